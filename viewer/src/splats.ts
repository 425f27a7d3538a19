// The splats: kept, merged and put in order by a worker, drawn by splatdraw.ts. What is drawn at rest is all of them or the
// level that fits the budget; where that is slow, a coarser level while things move; whatever is kept shows all.
import { Matrix4, type Vector3 } from "three";
import type { SplatData } from "./messages";
import { MOST_DEGREE } from "./splatfile";
import { ordered, type Ordered, type Question, SplatSet } from "./splatset";
import type { Filter, Sight } from "./splatsort";
import type { SplatWork } from "./splatwork";
import type { Stage, Wanted } from "./stage";

/** A box in world units; ``axes`` are unit vectors, ``half`` half its sides. */
export interface Box {
  readonly center: Vector3;
  readonly axes: readonly [Vector3, Vector3, Vector3];
  readonly half: Vector3;
}

const EVERYTHING: Filter = { leastOpacity: 0, box: [] };
const FEWEST = 4096; // splats: any machine draws so many
const CALM = 250; // milliseconds without a new filter before a level is made for it

/** A coarser version of a file; ``made``: which, and of what. */
interface Level {
  readonly name: string;
  readonly set: SplatSet;
  /** The file and the filter it was made of. */
  source: string;
  /** How many splats it was to have, and the one that is being made; 0 = none. */
  count: number;
  making: string;
}

export class SplatLayer {
  /** The file as it came: cropping and picking read it. */
  file: SplatData | null = null;
  count = 0;
  private readonly whole: SplatSet;
  private readonly resting: Level;
  private readonly moving: Level;
  private shown: SplatSet;
  private generation = 0;
  private filter = EVERYTHING;
  private filtered = -CALM;
  private calming = 0;
  private budget = 1;
  private degree = MOST_DEGREE;
  private visible = true;

  constructor(
    private readonly stage: Stage,
    private readonly work: SplatWork,
  ) {
    const set = () => {
      const made = new SplatSet(work, () => stage.draw());
      stage.world.add(made.drawing.mesh);
      return made;
    };
    const level = (name: string) => ({ name, set: set(), source: "", count: 0, making: "" });
    this.shown = this.whole = set();
    this.resting = level("resting");
    this.moving = level("moving");
    stage.beforeDraw.add((wanted) => this.prepare(wanted));
    stage.settling.add((whole) => this.settle(whole));
    stage.rested.add((next) => this.makeReady(next));
  }

  /** The graphics card has lost all it had. */
  restore(): void {
    for (const { drawing } of [this.whole, this.resting.set, this.moving.set]) drawing.forget();
  }

  /** How many splats the last picture was drawn from. */
  get drawn(): number {
    return this.shown.count;
  }

  /** Replaces what is shown once the new splats are ready; a newer call wins over one that is still at work. */
  async load(file: SplatData): Promise<void> {
    const generation = ++this.generation;
    const loaded = await this.work.load(file).catch((error: unknown) => {
      throw new Error(`the splats cannot be read (${error instanceof Error ? error.message : String(error)}); export the scene again`, { cause: error });
    });
    if (generation !== this.generation) return;
    const whole = await ordered(this.work, loaded, this.question(true));
    // The level of a budget comes with its file: nothing else is seen between.
    const count = this.within(loaded.packed.count);
    const level = count === null ? null : await this.made(this.resting, loaded.id, count);
    if (generation !== this.generation || !whole) return;
    this.whole.replace(whole);
    this.file = file;
    this.count = whole.packed.count;
    if (level && count !== null) this.take(this.resting, level, count);
    this.swap(this.best(1));
    this.stage.draw();
  }

  /** Has the browser make ready what it draws splats with, while they are still on their way. */
  warm(): void {
    if (this.file) return;
    this.shown.drawing.mesh.visible = true;
    this.stage.drawNow(false);
    this.shown.drawing.mesh.visible = false;
  }

  show(visible: boolean): void {
    this.visible = visible;
    this.swap(this.shown);
    this.stage.draw();
  }

  /** At most this share of the splats, merged; of those that come later too. */
  setBudget(share: number): void {
    this.budget = share;
    this.stage.draw();
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

  private choose(change: Partial<Filter>): void {
    this.filter = { ...this.filter, ...change };
    this.filtered = performance.now();
    this.stage.draw();
    window.clearTimeout(this.calming);
    this.calming = window.setTimeout(() => this.stage.draw(), CALM + 10);
  }

  private prepare({ whole, share }: Wanted): void {
    if (!this.visible || !this.file) return;
    const best = whole ? this.whole : this.best(share);
    const question = this.question(best === this.whole);
    if (best !== this.shown && (whole || best.isFresh(question))) this.swap(best);
    const { drawing } = this.shown;
    drawing.project(this.stage.renderer, this.stage.camera, { degree: this.degree, antialiased: this.file.antialiased });
    if (!best.isFor(question.key)) void best.order(question);
  }

  private swap(set: SplatSet): void {
    this.shown = set;
    for (const each of [this.whole, this.resting.set, this.moving.set]) each.drawing.mesh.visible = this.visible && this.file !== null && each === set;
  }

  /** The best there is for a picture of such a share of the splats; what is better than that is begun. */
  private best(share: number): SplatSet {
    const rest = this.within(this.count);
    const coarse = this.fewer(share);
    if (coarse !== null && coarse < (rest ?? this.count) && this.has(this.moving, coarse)) return this.moving.set;
    return rest !== null && this.has(this.resting, rest) ? this.resting.set : this.whole;
  }

  /** The budget in splats; null = all of them. */
  private within(count: number): number | null {
    return this.budget < 1 ? Math.max(1, Math.ceil(count * this.budget)) : null;
  }

  /** A share in splats; null = that would not be worth it. */
  private fewer(share: number): number | null {
    const count = Math.max(FEWEST, Math.ceil(this.count * share));
    return count < 0.75 * this.count ? count : null;
  }

  /** Whether the level is there: not perhaps of this count yet, but of these splats. */
  private has(level: Level, count: number): boolean {
    const source = this.sourceOf(this.whole.id);
    if ((level.source !== source || level.count !== count) && performance.now() - this.filtered > CALM) void this.make(level, count);
    return level.source === source;
  }

  private sourceOf(id: number): string {
    return JSON.stringify([id, this.filter]);
  }

  private async make(level: Level, count: number): Promise<void> {
    const source = this.sourceOf(this.whole.id);
    const making = `${count} of ${source}`;
    if (level.making === making) return;
    const made = await this.made(level, this.whole.id, count);
    if (!made || level.making !== making || source !== this.sourceOf(this.whole.id)) return;
    this.take(level, made, count);
    this.stage.draw();
  }

  private async made(level: Level, of: number, count: number): Promise<Ordered | null> {
    level.making = `${count} of ${this.sourceOf(of)}`;
    const loaded = await this.work.level(of, level.name, this.filter, count);
    return loaded && ordered(this.work, loaded, this.question(false));
  }

  private take(level: Level, made: Ordered, count: number): void {
    level.set.replace(made);
    level.source = this.sourceOf(this.whole.id);
    level.count = count;
  }

  /** Until what a picture at rest is drawn from, or all splats, are in their order for the camera. */
  private async settle(whole: boolean): Promise<void> {
    while (this.visible && this.file) {
      const set = whole ? this.whole : this.best(1);
      const question = this.question(set === this.whole);
      if (set.isFor(question.key)) return;
      await set.order(question);
    }
  }

  /** The level that will be drawn as soon as something moves, in its order for the camera as it stands. */
  private makeReady(share: number): void {
    if (!this.visible || !this.file) return;
    const set = this.best(share);
    const question = this.question(set === this.whole);
    if (!set.isFor(question.key)) void set.order(question);
  }

  /** Levels are made of what the filter lets through. */
  private question(whole: boolean): Question {
    const sight = this.sight();
    const filter = whole ? this.filter : EVERYTHING;
    return { sight, filter, key: JSON.stringify([sight, filter]) };
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
}
