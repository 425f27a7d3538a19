// Splats as they are drawn, of a file or of a level of it: the graphics card's copy, and the order they are in.
import { SplatDrawing } from "./splatdraw";
import type { Packed } from "./splatpack";
import type { Filter, Sight } from "./splatsort";
import type { Loaded, SplatWork } from "./splatwork";

/** An order is good enough for an eye that has turned so little (about radians) and moved so little (the stage's units), */
const TURNED = 0.2;
const MOVED = 0.5;
const FRESH = 250; // or that asked for it so many milliseconds ago

/** What the camera sees of which splats, and both as a key. */
export interface Question {
  readonly sight: Sight;
  readonly filter: Filter;
  readonly key: string;
}

/** Splats in their order, ready to take the place of others. */
export interface Ordered {
  readonly id: number;
  readonly packed: Packed;
  readonly order: Uint32Array<ArrayBuffer>;
  readonly count: number;
  readonly question: Question;
}

/** Splats that came, in their order for ``question``; null = something newer has come meanwhile. */
export async function ordered(work: SplatWork, { id, packed }: Loaded, question: Question): Promise<Ordered | null> {
  const { sight, filter } = question;
  const { order, count } = await work.sort(id, sight, filter, SplatDrawing.orderOf(packed.count));
  return count === null ? null : { id, packed, order, count, question };
}

export class SplatSet {
  readonly drawing = new SplatDrawing();
  id = -1;
  count = 0;
  /** What the order that is drawn was asked for, and when it came. */
  private key = "";
  private rows: readonly number[] = [];
  private came = 0;
  private ordering: Promise<void> | null = null;
  private spare: Uint32Array<ArrayBuffer> | null = null;

  constructor(
    private readonly work: SplatWork,
    private readonly changed: () => void,
  ) {}

  replace({ id, packed, order, count, question }: Ordered): void {
    this.drawing.replace(packed, order, count);
    this.id = id;
    this.count = packed.count;
    this.answered(question);
    this.spare = new Uint32Array(order.length);
  }

  isFor(key: string): boolean {
    return this.key === key;
  }

  /** Good enough to be shown in place of others. */
  isFresh({ sight: { rows }, key }: Question): boolean {
    const size = Math.hypot(...rows.slice(0, 3));
    const near = this.rows.length > 0 && this.rows.every((value, i) => Math.abs(value - (rows[i] ?? 0)) < (i % 4 === 3 ? MOVED : TURNED * size));
    return this.isFor(key) || near || performance.now() - this.came < FRESH;
  }

  /** Asks for the order of what the camera sees now; a second question waits until the first is answered. */
  order(question: Question): Promise<void> {
    this.ordering ??= this.ask(question).finally(() => { this.ordering = null; });
    return this.ordering;
  }

  private async ask(question: Question): Promise<void> {
    const { sight, filter } = question;
    const { spare, id } = this;
    if (!spare) return;
    this.spare = null;
    const { order, count } = await this.work.sort(id, sight, filter, spare);
    if (id !== this.id) return;
    // None: a newer file is on its way, with its own order.
    this.spare = count === null ? order : this.drawing.setOrder(order, count);
    this.answered(question);
    if (count !== null) this.changed();
  }

  private answered({ key, sight: { rows } }: Question): void {
    this.key = key;
    this.rows = rows;
    this.came = performance.now();
  }
}
