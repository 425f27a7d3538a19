// The point cloud: round dots of a chosen size, the least certain ones left out on demand.
import { BufferAttribute, BufferGeometry, GLSL3, Points, ShaderMaterial, Vector3 } from "three";
import type { PointData } from "./messages";
import type { Stage } from "./stage";
import { floats } from "./wire";

const VERTEX = `
in vec3 shade;
in float confidence;
uniform float size, least;
out vec3 vShade;
void main() {
  vShade = shade;
  gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0);
  gl_PointSize = confidence < least ? 0.0 : size;
  if (confidence < least) gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
}`;

const FRAGMENT = `
in vec3 vShade;
out vec4 color;
void main() {
  if (length(gl_PointCoord - 0.5) > 0.5) discard;
  color = vec4(vShade, 1.0);
}`;

export class PointLayer {
  count = 0;
  positions: Float32Array = new Float32Array();
  private object: Points<BufferGeometry, ShaderMaterial> | null = null;
  private readonly material = new ShaderMaterial({
    glslVersion: GLSL3,
    vertexShader: VERTEX,
    fragmentShader: FRAGMENT,
    uniforms: { size: { value: 3 }, least: { value: 0 } },
  });

  private size = 3;

  constructor(private readonly stage: Stage) {
    stage.beforeDraw.add(() => this.uniform("size", this.size * stage.renderer.getPixelRatio()));
  }

  load(data: PointData, shown: boolean): void {
    this.object?.geometry.dispose();
    if (this.object) this.stage.world.remove(this.object);
    this.count = data.count;
    this.positions = floats(data.positions);
    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new BufferAttribute(this.positions, 3));
    geometry.setAttribute("shade", new BufferAttribute(data.colors.slice(), 3, true));
    geometry.setAttribute("confidence", new BufferAttribute(data.confidence.slice(), 1, true));
    this.object = new Points(geometry, this.material);
    this.object.frustumCulled = false;
    this.object.visible = shown;
    this.stage.world.add(this.object);
    this.stage.draw();
  }

  show(shown: boolean): void {
    if (this.object) this.object.visible = shown;
    this.stage.draw();
  }

  setSize(pixels: number): void {
    this.size = pixels;
    this.stage.draw();
  }

  setLeastConfidence(share: number): void {
    this.uniform("least", share);
    this.stage.draw();
  }

  /** The point nearest to a ray, within ``tangent`` of it; the closest to the eye among those. */
  pick(origin: Vector3, direction: Vector3, tangent: number): Vector3 | null {
    let best: Vector3 | null = null;
    let nearest = Number.POSITIVE_INFINITY;
    const offset = new Vector3();
    for (let i = 0; i + 2 < this.positions.length; i += 3) {
      offset.fromArray(this.positions, i).sub(origin);
      const along = offset.dot(direction);
      if (along <= 0 || along >= nearest) continue;
      if (offset.addScaledVector(direction, -along).length() > tangent * along) continue;
      nearest = along;
      best = new Vector3().fromArray(this.positions, i);
    }
    return best;
  }

  private uniform(name: string, value: number): void {
    const uniform = this.material.uniforms[name];
    if (uniform) uniform.value = value;
  }
}
