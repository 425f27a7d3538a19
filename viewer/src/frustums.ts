// The cameras: a pyramid each with its photo in it, coloured by what the photo was used for.
import { BufferGeometry, CanvasTexture, Color, DoubleSide, Float32BufferAttribute, LineBasicMaterial, LineSegments, Mesh, MeshBasicMaterial, SRGBColorSpace, Vector3 } from "three";
import { poseMatrix } from "./eye";
import type { ViewInfo } from "./messages";
import type { Stage } from "./stage";
import { jpeg } from "./wire";

export const TRAIN_COLOR = "#7fb0ff";
export const HELD_OUT_COLOR = "#ff9a5c";
const ATLAS = 2048;

interface Frustum {
  readonly view: ViewInfo;
  readonly apex: Vector3;
  /** Around the picture from its top left. */
  readonly corners: readonly [Vector3, Vector3, Vector3, Vector3];
  /** Tip of the mark on the picture's upper side. */
  readonly tip: Vector3;
}

export class FrustumLayer {
  frustums: Frustum[] = [];
  chosen: string | null = null;
  private readonly lines = new LineSegments(new BufferGeometry(), new LineBasicMaterial({ vertexColors: true }));
  private readonly photos = new Mesh(new BufferGeometry(), new MeshBasicMaterial({ side: DoubleSide }));
  /** Those that the eye is in or close behind: their photo would hide the scene. */
  private near = new Set<string>();
  private shown = true;
  private withThumbnails = true;
  private size = 1;
  private views: readonly ViewInfo[] = [];
  private pictured = "[]";
  private spacing = 1;

  constructor(private readonly stage: Stage) {
    for (const each of [this.lines, this.photos]) {
      each.frustumCulled = false;
      stage.world.add(each);
    }
    stage.afterDraw.add(() => this.makeWay());
  }

  load(views: readonly ViewInfo[]): void {
    this.views = views;
    this.spacing = spacing(views, this.stage.radius);
    this.build();
  }

  /** The photos of the cameras, unless they are those that are shown already. */
  loadPictures(): void {
    const names = JSON.stringify(this.views.map((view) => view.name));
    if (names !== this.pictured) void this.makeAtlas();
    this.pictured = names;
  }

  show(shown: boolean): void {
    this.shown = shown;
    this.build();
  }

  showThumbnails(shown: boolean): void {
    this.withThumbnails = shown;
    this.build();
  }

  setSize(size: number): void {
    this.size = size;
    this.build();
  }

  /** Marks one; while its photo is looked at no frustum is in the way. */
  choose(name: string | null): void {
    this.chosen = name;
    this.build();
  }

  /** The frustum under a window pixel, the nearest first. */
  pick(x: number, y: number): ViewInfo | null {
    if (!this.shown || this.chosen !== null) return null;
    let best: ViewInfo | null = null;
    let nearest = Number.POSITIVE_INFINITY;
    for (const { view, apex, corners } of this.frustums) {
      if (this.near.has(view.name)) continue;
      const at = this.stage.project(apex);
      const rim = corners.map((corner) => this.stage.project(corner));
      if (!at || rim.some((corner) => corner === null)) continue;
      const polygon = rim as { x: number; y: number; depth: number }[];
      const depth = Math.min(at.depth, ...polygon.map((corner) => corner.depth));
      const touched = Math.hypot(at.x - x, at.y - y) < 10 || contains(polygon, x, y);
      if (touched && depth < nearest) {
        nearest = depth;
        best = view;
      }
    }
    return best;
  }

  private build(): void {
    this.frustums = this.views.map((view) => frustum(view, this.spacing * this.size));
    this.lines.visible = this.shown && this.chosen === null && this.frustums.length > 0;
    this.photos.visible = this.lines.visible && this.withThumbnails && this.photos.material.map !== null;
    if (this.lines.visible) replace(this.lines, outlines(this.frustums.filter(({ view }) => !this.near.has(view.name))));
    if (this.photos.visible) replace(this.photos, this.pictures());
    this.stage.draw();
  }

  private makeWay(): void {
    const reach = 2.5 * this.spacing * this.size;
    const position = this.stage.eye.position;
    const near = this.frustums.filter(({ apex }) => apex.distanceTo(position) < reach).map(({ view }) => view.name);
    if (near.length === this.near.size && near.every((name) => this.near.has(name))) return;
    this.near = new Set(near);
    this.build();
  }

  private pictures(): BufferGeometry {
    const positions: number[] = [];
    const uvs: number[] = [];
    const cells = grid(this.views.length);
    this.frustums.forEach(({ view, corners }, i) => {
      if (this.near.has(view.name)) return;
      const left = (i % cells) / cells;
      const top = 1 - Math.floor(i / cells) / cells;
      const [a, b, c, d] = corners;
      for (const point of [a, d, c, a, c, b]) positions.push(...point.toArray());
      const right = left + 1 / cells;
      const bottom = top - 1 / cells;
      uvs.push(left, top, left, bottom, right, bottom, left, top, right, bottom, right, top);
    });
    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new Float32BufferAttribute(positions, 3));
    geometry.setAttribute("uv", new Float32BufferAttribute(uvs, 2));
    return geometry;
  }

  /** All thumbnails on one texture: one draw call however many there are. */
  private async makeAtlas(): Promise<void> {
    const views = this.views;
    const cells = grid(views.length);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = Math.min(ATLAS, cells * 160);
    const cell = canvas.width / cells;
    const context = canvas.getContext("2d");
    if (!context) return;
    context.fillStyle = "#30333a";
    context.fillRect(0, 0, canvas.width, canvas.height);
    await Promise.all(
      views.map(async (view, i) => {
        if (view.thumbnail.length === 0) return;
        const picture = await createImageBitmap(jpeg(view.thumbnail)).catch(() => null);
        if (!picture) return;
        context.drawImage(picture, (i % cells) * cell, Math.floor(i / cells) * cell, cell, cell);
        picture.close();
      }),
    );
    if (views !== this.views && views.length !== this.views.length) return;
    const { material } = this.photos;
    material.map?.dispose();
    material.map = new CanvasTexture(canvas);
    material.map.colorSpace = SRGBColorSpace;
    material.needsUpdate = true;
    this.build();
  }
}

function grid(count: number): number {
  return Math.max(1, Math.ceil(Math.sqrt(count)));
}

/** three keeps something of every object and material it has drawn: only their geometry is new. */
function replace(object: LineSegments | Mesh, geometry: BufferGeometry): void {
  object.geometry.dispose();
  object.geometry = geometry;
}

function outlines(frustums: readonly Frustum[]): BufferGeometry {
  const positions: number[] = [];
  const colors: number[] = [];
  for (const { view, apex, corners, tip } of frustums) {
    const [a, b, c, d] = corners;
    const color = new Color(view.held_out ? HELD_OUT_COLOR : TRAIN_COLOR);
    const segments = [apex, a, apex, b, apex, c, apex, d, a, b, b, c, c, d, d, a, a, tip, tip, b];
    for (const point of segments) {
      positions.push(...point.toArray());
      colors.push(color.r, color.g, color.b);
    }
  }
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new Float32BufferAttribute(positions, 3));
  geometry.setAttribute("color", new Float32BufferAttribute(colors, 3));
  return geometry;
}

function frustum(view: ViewInfo, depth: number): Frustum {
  const pose = poseMatrix(view.world_from_cam);
  const [fx, fy, cx, cy] = view.lens;
  // The picture's diagonal, not its depth, is what all frustums share: long lenses stay short.
  const scale = depth / Math.hypot(view.width / fx, view.height / fy, 1);
  const at = (x: number, y: number) => new Vector3(((x - cx) / fx) * scale, ((y - cy) / fy) * scale, scale).applyMatrix4(pose);
  return {
    view,
    apex: new Vector3().setFromMatrixPosition(pose),
    corners: [at(0, 0), at(view.width, 0), at(view.width, view.height), at(0, view.height)],
    tip: at(view.width / 2, -0.22 * view.height),
  };
}

/** A frustum's size: less than what lies between neighbours, and never large in the scene. */
function spacing(views: readonly ViewInfo[], radius: number): number {
  const centers = views.slice(0, 400).map((view) => new Vector3().setFromMatrixPosition(poseMatrix(view.world_from_cam)));
  const gaps = centers
    .map((a) => Math.min(...centers.filter((b) => b !== a).map((b) => a.distanceTo(b))))
    .filter((gap) => Number.isFinite(gap) && gap > 0)
    .toSorted((a, b) => a - b);
  const middle = gaps[gaps.length >> 1] ?? radius * 0.2;
  const mean = centers.reduce((sum, each) => sum.add(each), new Vector3()).divideScalar(Math.max(1, centers.length));
  const reach = Math.max(0, ...centers.map((each) => each.distanceTo(mean)));
  return Math.min(Math.max(middle * 0.55, radius * 0.03), Math.max(radius * 0.16, reach * 0.1));
}

function contains(polygon: readonly { x: number; y: number }[], x: number, y: number): boolean {
  let inside = false;
  polygon.forEach((a, i) => {
    const b = polygon[(i + 1) % polygon.length] ?? a;
    if (a.y > y !== b.y > y && x < ((b.x - a.x) * (y - a.y)) / (b.y - a.y) + a.x) inside = !inside;
  });
  return inside;
}
