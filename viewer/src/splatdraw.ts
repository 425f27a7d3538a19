// Splats on the graphics card: the textures of one file, the pass that puts every splat on the screen, the mesh.
import {
  BufferGeometry, Camera, CustomBlending, DataTexture, GLSL3, InstancedBufferGeometry, Matrix4, Mesh, NearestFilter, NoBlending, OneFactor, OneMinusSrcAlphaFactor,
  type PerspectiveCamera, RawShaderMaterial, RedIntegerFormat, RGBAIntegerFormat, Scene, Uint16BufferAttribute, UnsignedIntType, Vector2, Vector3,
  type WebGLRenderer, WebGLRenderTarget,
} from "three";
import { type Packed, ROW } from "./splatpack";
import { FRAGMENT, FULL_SCREEN, PROJECT, VERTEX } from "./splatshader";

/** Splats an instance: one each would cost a draw call's work each on many drivers. */
const BATCH = 1024;

export interface Look {
  readonly degree: number;
  readonly antialiased: boolean;
}

/** One for good: three keeps something of every material, scene and mesh it has drawn, so files only swap the data. */
export class SplatDrawing {
  readonly mesh: Mesh<InstancedBufferGeometry, RawShaderMaterial>;
  private readonly places = texture(4);
  private readonly shapes = texture(4);
  private readonly sh = texture(4);
  private readonly order = texture(1);
  private readonly target = new WebGLRenderTarget(ROW, 1, { count: 2, format: RGBAIntegerFormat, type: UnsignedIntType, internalFormat: "RGBA32UI", minFilter: NearestFilter, magFilter: NearestFilter, depthBuffer: false, generateMipmaps: false });
  private readonly pass: Mesh<BufferGeometry, RawShaderMaterial>;
  private readonly passScene = new Scene();
  private readonly passCamera = new Camera();
  private readonly view = new Matrix4();
  private readonly size = new Vector2();
  private done = "";
  private bands = 0;

  constructor() {
    const { places, shapes, sh, order, view, size } = this;
    const [clips, rests] = this.target.textures;
    const passUniforms = { places, shapes, sh, view, projection: new Matrix4(), size, eye: new Vector3(), count: 0, bands: 0, degree: 0, antialiased: false, turned: false };
    const passMaterial = new RawShaderMaterial({ glslVersion: GLSL3, vertexShader: FULL_SCREEN, fragmentShader: PROJECT, uniforms: uniformsOf(passUniforms), blending: NoBlending, depthTest: false, depthWrite: false });
    const triangle = new BufferGeometry();
    triangle.setDrawRange(0, 3);
    this.pass = new Mesh(triangle.setIndex([0, 1, 2]), passMaterial);
    this.pass.frustumCulled = false;
    this.passScene.add(this.pass);
    const material = new RawShaderMaterial({
      glslVersion: GLSL3, vertexShader: VERTEX, fragmentShader: FRAGMENT,
      uniforms: uniformsOf({ order, clips, rests, size, count: 0, batch: BATCH }),
      transparent: true, blending: CustomBlending, blendSrc: OneFactor, blendDst: OneMinusSrcAlphaFactor, depthWrite: false,
    });
    const geometry = new InstancedBufferGeometry();
    geometry.setIndex(new Uint16BufferAttribute(Uint16Array.from({ length: 3 * BATCH }, (_, i) => i), 1));
    geometry.instanceCount = 1;
    geometry.setDrawRange(0, 3);
    this.mesh = new Mesh(geometry, material);
    this.mesh.frustumCulled = false;
    this.mesh.visible = false;
  }

  /** Memory for the order of so many splats. */
  static orderOf(count: number): Uint32Array<ArrayBuffer> {
    return new Uint32Array(Math.max(1, Math.ceil(count / ROW)) * ROW);
  }

  /** Draws other splats from now on, so many of ``order``. */
  replace(packed: Packed, order: Uint32Array<ArrayBuffer>, count: number): void {
    put(this.places, packed.places, 4);
    put(this.shapes, packed.shapes, 4);
    put(this.sh, packed.sh, 4);
    this.target.setSize(ROW, this.places.image.height);
    const { material } = this.pass;
    this.bands = packed.degree;
    set(material, "bands", packed.degree);
    set(material, "count", packed.count);
    set(material, "turned", packed.turned);
    this.mesh.geometry.setDrawRange(0, 3 * Math.min(BATCH, packed.count));
    this.setOrder(order, count);
    this.done = "";
  }

  /** Draws so many of ``order`` from now on; gives the memory of the order before. */
  setOrder(order: Uint32Array<ArrayBuffer>, count: number): Uint32Array<ArrayBuffer> {
    const old = this.order.image.data as Uint32Array<ArrayBuffer>;
    put(this.order, order, 1);
    this.mesh.geometry.instanceCount = Math.ceil(count / BATCH);
    set(this.mesh.material, "count", count);
    return old;
  }

  /** Works out again, before the next picture, where the splats are. */
  forget(): void {
    this.done = "";
  }

  /** Works out where every splat is on the screen, unless it is known. Before every picture. */
  project(renderer: WebGLRenderer, camera: PerspectiveCamera, look: Look): void {
    this.view.multiplyMatrices(camera.matrixWorldInverse, this.mesh.matrixWorld);
    renderer.getDrawingBufferSize(this.size);
    const key = [...this.view.elements, ...camera.projectionMatrix.elements, this.size.x, this.size.y, look.degree, look.antialiased].join();
    if (key === this.done) return;
    this.done = key;
    const { material } = this.pass;
    const eye = new Vector3().applyMatrix4(this.view.clone().invert());
    for (const [name, value] of Object.entries({ antialiased: look.antialiased, degree: Math.min(look.degree, this.bands), eye, projection: camera.projectionMatrix })) set(material, name, value);
    const { autoClear } = renderer;
    renderer.autoClear = false;
    renderer.setRenderTarget(this.target);
    renderer.render(this.passScene, this.passCamera);
    renderer.setRenderTarget(null);
    renderer.autoClear = autoClear;
  }
}

function texture(channels: 1 | 4): DataTexture {
  const made = new DataTexture(new Uint32Array(channels * ROW), ROW, 1, channels === 4 ? RGBAIntegerFormat : RedIntegerFormat, UnsignedIntType);
  made.internalFormat = channels === 4 ? "RGBA32UI" : "R32UI";
  made.needsUpdate = true;
  return made;
}

function put(to: DataTexture, data: Uint32Array<ArrayBuffer>, channels: 1 | 4): void {
  const height = data.length / channels / ROW;
  // Its place on the graphics card cannot grow.
  if (height !== to.image.height) to.dispose();
  to.image = { data, width: ROW, height };
  to.needsUpdate = true;
}

function uniformsOf(values: Record<string, unknown>): Record<string, { value: unknown }> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, { value }]));
}

function set(material: RawShaderMaterial, name: string, value: unknown): void {
  const uniform = material.uniforms[name];
  if (uniform) uniform.value = value;
}
