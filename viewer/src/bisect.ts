// Groups of neighbours of nearly equal weight: `bisected` of scenetx/core/levels.py, whose answers these are.
import { cumulate, DIGIT, next } from "./splatsort";

const AXES = [0, 1, 2] as const;
/** Points between two pauses: a few milliseconds' work. */
const SLICE = 100_000;

export interface Groups {
  /** Points, group after group. */
  readonly members: Uint32Array;
  /** Where each group begins, and the end of the last. */
  readonly starts: Uint32Array;
}

interface Part {
  readonly from: number;
  readonly to: number;
  /** How many groups it is to become. */
  readonly leaves: number;
}

/** ``count`` groups (at most as many as points; positive weights), by halving along the axis in which they are spread
 * widest. Pauses now and then, so that whoever drives it can do something else. */
export function* bisected(points: Float32Array, weights: Float64Array, count: number): Generator<undefined, Groups> {
  const lists: Uint32Array[] = [];
  for (const axis of AXES) {
    lists.push(sortedAlong(points, axis));
    yield;
  }
  const halving = new Halving(points, weights, lists);
  const starts = new Uint32Array(count + 1);
  const open: Part[] = count > 0 ? [{ from: 0, to: weights.length, leaves: count }] : [];
  let groups = 0;
  let work = 0;
  for (let part = open.pop(); part; part = open.pop()) {
    const { from, to, leaves } = part;
    if (leaves === 1) {
      starts[groups++] = from;
      continue;
    }
    const left = leaves >> 1;
    const middle = halving.split(part, left);
    open.push({ from: middle, to, leaves: leaves - left }, { from, to: middle, leaves: left });
    work += to - from;
    if (work < SLICE) continue;
    work = 0;
    yield;
  }
  starts[count] = weights.length;
  return { members: lists[0] as Uint32Array, starts };
}

/** Points in the order of one coordinate, three times: a part of all of them is the same range of each list. */
class Halving {
  private readonly after: Uint8Array;
  private readonly spare: Uint32Array;

  constructor(
    private readonly points: Float32Array,
    private readonly weights: Float64Array,
    private readonly lists: readonly Uint32Array[],
  ) {
    this.after = new Uint8Array(weights.length);
    this.spare = new Uint32Array(weights.length);
  }

  /** Gives where the second half begins; ``left`` of the part's groups are in the first. */
  split(part: Part, left: number): number {
    const { from, to, leaves } = part;
    const { total, axis } = this.measure(part);
    const list = this.lists[axis] as Uint32Array;
    let along = 0;
    let middle = from;
    // Each side gets its share of the weight, and enough points.
    const least = from + left;
    const most = to - (leaves - left);
    for (; middle < most; middle++) {
      // Typed arrays give undefined only past their end.
      const passed = along + (this.weights[list[middle] as number] as number);
      if (middle >= least && ((along + passed) / 2) * leaves >= total * left) break;
      along = passed;
    }
    for (let rank = from; rank < to; rank++) this.after[list[rank] as number] = rank < middle ? 0 : 1;
    for (const other of AXES) if (other !== axis) this.part(this.lists[other] as Uint32Array, from, to);
    return middle;
  }

  /** The weight, and the axis of the largest variance. */
  private measure({ from, to }: Part): { total: number; axis: 0 | 1 | 2 } {
    const { points, weights } = this;
    const list = this.lists[0] as Uint32Array;
    let total = 0;
    let [x, y, z] = [0, 0, 0];
    for (let rank = from; rank < to; rank++) {
      const point = list[rank] as number;
      const weight = weights[point] as number;
      total += weight;
      x += weight * (points[point * 3] as number);
      y += weight * (points[point * 3 + 1] as number);
      z += weight * (points[point * 3 + 2] as number);
    }
    [x, y, z] = [x / total, y / total, z / total];
    let [xx, yy, zz] = [0, 0, 0];
    for (let rank = from; rank < to; rank++) {
      const point = list[rank] as number;
      const weight = weights[point] as number;
      xx += weight * ((points[point * 3] as number) - x) ** 2;
      yy += weight * ((points[point * 3 + 1] as number) - y) ** 2;
      zz += weight * ((points[point * 3 + 2] as number) - z) ** 2;
    }
    return { total, axis: xx >= yy && xx >= zz ? 0 : yy >= zz ? 1 : 2 };
  }

  /** Those that are not ``after`` first; either side keeps its order. */
  private part(list: Uint32Array, from: number, to: number): void {
    const { after, spare } = this;
    let kept = from;
    let moved = 0;
    for (let rank = from; rank < to; rank++) {
      const point = list[rank] as number;
      if (after[point] === 0) list[kept++] = point;
      else spare[moved++] = point;
    }
    list.set(spare.subarray(0, moved), kept);
  }
}

/** Indices by one coordinate; equal ones as they came. */
function sortedAlong(points: Float32Array, axis: 0 | 1 | 2): Uint32Array {
  const count = points.length / 3;
  const places = new Float32Array(count);
  for (let i = 0; i < count; i++) places[i] = (points[i * 3 + axis] as number) + 0; // no -0
  const keys = new Uint32Array(places.buffer);
  // Floats are ordered like their bits, negative ones the other way round.
  for (let i = 0; i < count; i++) keys[i] = (keys[i] as number) ^ ((keys[i] as number) >>> 31 === 1 ? 0xffffffff : 0x80000000);
  const every = Uint32Array.from({ length: count }, (_, i) => i);
  return byDigit(keys, 16, byDigit(keys, 0, every));
}

function byDigit(keys: Uint32Array, shift: number, order: Uint32Array): Uint32Array {
  const places = new Uint32Array(DIGIT);
  for (const key of keys) next(places, (key >>> shift) & 0xffff);
  cumulate(places);
  const out = new Uint32Array(order.length);
  for (const index of order) out[next(places, ((keys[index] as number) >>> shift) & 0xffff)] = index;
  return out;
}
