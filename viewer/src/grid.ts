// The ground: a grid in the plane across the up axis, and the world's three axes.
import { BufferGeometry, Float32BufferAttribute, GLSL3, Group, LineBasicMaterial, LineSegments, Mesh, PlaneGeometry, Quaternion, ShaderMaterial, Vector3 } from "three";
import type { Stage } from "./stage";

const VERTEX = `
out vec2 place;
uniform float extent;
void main() {
  place = position.xy * extent;
  gl_Position = projectionMatrix * modelViewMatrix * vec4(position.xy * extent, 0.0, 1.0);
}`;

// Lines of one pixel at any distance; every tenth is stronger; all fade towards the rim.
const FRAGMENT = `
in vec2 place;
out vec4 color;
uniform float cell, extent;
uniform vec3 shade;
float lines(vec2 at, float step) {
  vec2 g = at / step;
  vec2 width = fwidth(g);
  vec2 d = abs(fract(g - 0.5) - 0.5) / width;
  vec2 solid = clamp(1.0 - d, 0.0, 1.0) * clamp(1.0 - width * 2.0, 0.0, 1.0);
  return max(solid.x, solid.y);
}
void main() {
  float fade = 1.0 - smoothstep(0.35, 1.0, length(place) / extent);
  float strength = max(lines(place, cell) * 0.35, lines(place, cell * 10.0) * 0.75);
  color = vec4(shade, strength * fade);
  if (color.a < 0.004) discard;
}`;

export class Grid {
  readonly group = new Group();
  /** A cell's side, world units. */
  cell = 1;
  private readonly plane: Mesh<PlaneGeometry, ShaderMaterial>;
  private readonly axes: LineSegments;

  constructor(private readonly stage: Stage) {
    const material = new ShaderMaterial({
      glslVersion: GLSL3,
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      transparent: true,
      depthWrite: false,
      side: 2,
      uniforms: { cell: { value: 1 }, extent: { value: 1 }, shade: { value: new Vector3(0.62, 0.66, 0.74) } },
    });
    this.plane = new Mesh(new PlaneGeometry(2, 2), material);
    this.plane.frustumCulled = false;
    this.plane.renderOrder = -1;
    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new Float32BufferAttribute([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], 3));
    const colors = [1, 0.32, 0.32, 1, 0.32, 0.32, 0.42, 0.85, 0.4, 0.42, 0.85, 0.4, 0.4, 0.6, 1, 0.4, 0.6, 1];
    geometry.setAttribute("color", new Float32BufferAttribute(colors, 3));
    this.axes = new LineSegments(geometry, new LineBasicMaterial({ vertexColors: true }));
    this.axes.frustumCulled = false;
    this.group.add(this.plane, this.axes);
    stage.world.add(this.group);
  }

  /** ``ground``: a point of the plane. */
  place(ground: Vector3, up: Vector3, radius: number): void {
    this.cell = 10 ** Math.floor(Math.log10(radius / 2));
    this.plane.position.copy(ground);
    this.plane.quaternion.copy(new Quaternion().setFromUnitVectors(new Vector3(0, 0, 1), up));
    const { uniforms } = this.plane.material;
    if (uniforms["cell"]) uniforms["cell"].value = this.cell;
    if (uniforms["extent"]) uniforms["extent"].value = radius * 6;
    this.axes.scale.setScalar(radius * 0.35);
    this.stage.draw();
  }

  show(shown: boolean): void {
    this.group.visible = shown;
    this.stage.draw();
  }
}
