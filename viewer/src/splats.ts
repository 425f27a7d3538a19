// The splats: kept and put in order by a worker, drawn by splatdraw.ts; opacity filter, budget and crop choose what is put in order.
import { Matrix4, type Vector3 } from "three";
import type { SplatData } from "./messages";
import { SplatDrawing } from "./splatdraw";
import { MOST_DEGREE } from "./splatfile";
import type { Filter, Sight } from "./splatsort";
import type { SplatWork } from "./splatwork";
import type { Stage } from "./stage";

/** A box in world units; ``axes`` are unit vectors, ``half`` half its sides. */
export interface Box {
  readonly center: Vector3;
  readonly axes: readonly [Vector3, Vector3, Vector3];
  readonly half: Vector3;
}

export class SplatLayer {
  /** The file as it came: cropping and picking read it. */
  file: SplatData | null = null;
  count = 0;
  private readonly drawing = new SplatDrawing();
  private generation = 0;
  private drawn = 0;
  private filter = { share: 1, leastOpacity: 0, box: [] as number[] };
  private degree = MOST_DEGREE;
  private shown = true;
  /** What the order that is drawn, and the one that is being made, were asked for. */
  private ordered = "";
  private ordering: Promise<void> | null = null;
  private spare: Uint32Array<ArrayBuffer> | null = null;

  constructor(
    private readonly stage: Stage,
    private readonly work: SplatWork,
  ) {
    stage.world.add(this.drawing.mesh);
    stage.beforeDraw.add(() => this.prepare());
    stage.settling.add(() => this.settle());
  }

  /** Replaces what is shown once the new splats are ready; a newer call wins over one that is still at work. */
  async load(file: SplatData): Promise<void> {
    const generation = ++this.generation;
    const { id, packed } = await this.work.load(file).catch((error: unknown) => {
      throw new Error(`the splats cannot be read (${error instanceof Error ? error.message : String(error)}); export the scene again`, { cause: error });
    });
    if (generation !== this.generation) return;
    const key = this.key();
    const { order, count } = await this.work.sort(id, this.sight(), this.filterOf(packed.count), SplatDrawing.orderOf(packed.count));
    if (generation !== this.generation || count === null) return;
    this.drawing.replace(packed, order, count);
    this.drawn = id;
    this.ordered = key;
    this.spare = new Uint32Array(order.length);
    this.file = file;
    this.count = packed.count;
    this.show(this.shown);
  }

  /** Has the browser make ready what it draws splats with, while they are still on their way. */
  warm(): void {
    if (this.file) return;
    this.drawing.mesh.visible = true;
    this.stage.drawNow();
    this.drawing.mesh.visible = false;
  }

  show(shown: boolean): void {
    this.shown = shown;
    this.drawing.mesh.visible = shown && this.file !== null;
    this.stage.draw();
  }

  /** This share of the splats, the most important ones; of those that come later too. */
  setBudget(share: number): void {
    this.choose({ share });
  }

  /** Splats fainter than this are not shown. */
  setLeastOpacity(leastOpacity: number): void {
    this.choose({ leastOpacity });
  }

  setMaxSh(degree: number): void {
    this.degree = degree;
    this.stage.draw();
  }

  /** Shows only what is inside; null = everything. */
  setBox(box: Box | null): void {
    const half = box?.half.toArray() ?? [];
    this.choose({ box: box ? [...box.center.toArray(), ...box.axes.flatMap((axis, i) => axis.clone().divideScalar(half[i] || 1).toArray())] : [] });
  }

  private choose(change: Partial<typeof this.filter>): void {
    this.filter = { ...this.filter, ...change };
    this.stage.draw();
  }

  private prepare(): void {
    if (!this.drawing.mesh.visible) return;
    this.drawing.project(this.stage.renderer, this.stage.camera, { degree: this.degree, antialiased: this.file?.antialiased ?? false });
    if (this.key() !== this.ordered) this.order();
  }

  /** Until the splats that are drawn are in their order for the camera. */
  private async settle(): Promise<void> {
    while (this.drawing.mesh.visible && this.key() !== this.ordered) await this.order();
  }

  /** Asks for the order of what the camera sees now; a second question waits until the first is answered. */
  private order(): Promise<void> {
    this.ordering ??= this.ask().finally(() => { this.ordering = null; });
    return this.ordering;
  }

  private async ask(): Promise<void> {
    const { spare, drawn } = this;
    if (!spare) return;
    const key = this.key();
    this.spare = null;
    const { order, count } = await this.work.sort(drawn, this.sight(), this.filterOf(this.count), spare);
    if (drawn !== this.drawn) return;
    if (count === null) {
      // A newer file is on its way, with its own order.
      this.spare = order;
      this.ordered = key;
      return;
    }
    this.spare = this.drawing.setOrder(order, count);
    this.ordered = key;
    this.stage.draw();
  }

  private filterOf(count: number): Filter {
    const { share, leastOpacity, box } = this.filter;
    return { budget: Math.ceil(count * share), leastOpacity, box };
  }

  private sight(): Sight {
    const { camera, world } = this.stage;
    const m = new Matrix4().multiplyMatrices(camera.matrixWorldInverse, world.matrixWorld).elements;
    const p = camera.projectionMatrix.elements;
    return {
      rows: [0, 1, 2].flatMap((row) => [m[row] ?? 0, m[row + 4] ?? 0, m[row + 8] ?? 0, m[row + 12] ?? 0]),
      scale: [p[0], p[5]],
      offset: [-p[8], -p[9]],
      near: camera.near,
    };
  }

  private key(): string {
    return JSON.stringify([this.sight(), this.filter]);
  }
}
