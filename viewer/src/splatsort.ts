// Which splats are drawn and in which order: those in the picture and not filtered away, the farthest first.
import type { SplatTable } from "./splatfile";

const REACH = 3.33; // standard deviations at which the strongest splat is below 1 / 255
const MARGIN = 1.5; // of half the picture: the eye may turn a little until the next order is there
export const DIGIT = 1 << 16;

/** What a picture shows. Units are those of ``rows``. */
export interface Sight {
  /** The first three rows of view_from_world for cameras that look along -z. */
  readonly rows: readonly number[];
  /** Places in the picture, -1 to 1, are scale * x / depth + offset. */
  readonly scale: readonly [number, number];
  readonly offset: readonly [number, number];
  readonly near: number;
}

export interface Filter {
  readonly leastOpacity: number;
  /** Centre, then the three axes divided by half their lengths; empty = no box. */
  readonly box: readonly number[];
}

/** Keeps what sorting needs, and memory to sort in. */
export class Sorter {
  private readonly keys: Uint32Array;
  private readonly chosen: Uint32Array;
  private readonly half: Uint32Array;
  private readonly reach: Float32Array;
  private readonly low = new Uint32Array(DIGIT);
  private readonly high = new Uint32Array(DIGIT);

  constructor(private readonly table: Pick<SplatTable, "count" | "positions" | "scales" | "opacities">) {
    const { count, scales } = table;
    this.keys = new Uint32Array(count);
    this.chosen = new Uint32Array(count);
    this.half = new Uint32Array(count);
    this.reach = new Float32Array(count);
    for (let i = 0; i < count; i++) this.reach[i] = REACH * Math.max(scales[i * 3] ?? 0, scales[i * 3 + 1] ?? 0, scales[i * 3 + 2] ?? 0);
  }

  /** Writes indices to ``out``, the farthest first, and gives their number. */
  sort(sight: Sight, filter: Filter, out: Uint32Array): number {
    const { keys, chosen, half, low, high } = this;
    low.fill(0);
    high.fill(0);
    const count = this.choose(sight, filter);
    cumulate(low);
    cumulate(high);
    // Typed arrays give undefined only past their end.
    for (let i = 0; i < count; i++) half[next(low, (keys[i] as number) & 0xffff)] = i;
    for (let i = 0; i < count; i++) {
      const j = half[i] as number;
      out[next(high, (keys[j] as number) >>> 16)] = chosen[j] as number;
    }
    return count;
  }

  /** Fills ``chosen`` and ``keys`` (larger = nearer) and counts both digits of the keys. */
  private choose({ rows, scale, offset, near }: Sight, { leastOpacity, box }: Filter): number {
    const { positions, opacities } = this.table;
    const { keys, chosen, reach, low, high } = this;
    const [xx = 0, xy = 0, xz = 0, xw = 0, yx = 0, yy = 0, yz = 0, yw = 0, zx = 0, zy = 0, zz = 0, zw = 0] = rows;
    const size = Math.hypot(xx, xy, xz);
    const [scaleX, scaleY] = scale;
    const [offsetX, offsetY] = offset;
    const depths = new Float32Array(1);
    const bits = new Uint32Array(depths.buffer);
    let count = 0;
    for (let i = 0; i < this.table.count; i++) {
      const x = positions[i * 3] as number;
      const y = positions[i * 3 + 1] as number;
      const z = positions[i * 3 + 2] as number;
      const depth = -(zx * x + zy * y + zz * z + zw);
      if (!(depth > near) || (opacities[i] as number) < leastOpacity) continue;
      const wide = MARGIN * depth;
      const far = (reach[i] as number) * size;
      if (Math.abs(scaleX * (xx * x + xy * y + xz * z + xw) + offsetX * depth) > wide + scaleX * far) continue;
      if (Math.abs(scaleY * (yx * x + yy * y + yz * z + yw) + offsetY * depth) > wide + scaleY * far) continue;
      if (box.length > 0 && !isWithin(box, x, y, z)) continue;
      // Positive floats are ordered like their bits.
      depths[0] = depth;
      const key = ~(bits[0] as number) >>> 0;
      keys[count] = key;
      chosen[count++] = i;
      next(low, key & 0xffff);
      next(high, key >>> 16);
    }
    return count;
  }
}

export function isWithin(box: readonly number[], x: number, y: number, z: number): boolean {
  const [cx = 0, cy = 0, cz = 0] = box;
  for (let k = 3; k < 12; k += 3) {
    const [ax = 0, ay = 0, az = 0] = [box[k], box[k + 1], box[k + 2]];
    if (Math.abs(ax * (x - cx) + ay * (y - cy) + az * (z - cz)) > 1) return false;
  }
  return true;
}

/** Counts up, and gives what was there. */
export function next(counts: Uint32Array, index: number): number {
  const here = counts[index] as number;
  counts[index] = here + 1;
  return here;
}

/** Numbers of things become the places of the first of each. */
export function cumulate(counts: Uint32Array): void {
  let sum = 0;
  for (let i = 0; i < counts.length; i++) {
    const here = counts[i] as number;
    counts[i] = sum;
    sum += here;
  }
}
