// Levels of detail: fewer splats for the same scene, without holes. Neighbours are merged into one that keeps their mass,
// mean and covariance (Kerbl et al. 2024, section 4.1): `coarser` of scenetx/core/levels.py, whose answers these are.
import { bisected, type Groups } from "./bisect";
import { type SplatTable, terms } from "./splatfile";
import { type Filter, isWithin } from "./splatsort";

const BALANCE = 0.25; // large splats keep more to themselves
const MOST_OPAQUE = 0.99;
/** Splats between two pauses: a few milliseconds' work. */
const SLICE = 20_000;

/** At most ``count`` (1 or more) splats that look like those of ``table`` that ``filter`` lets through. */
export function* coarser(table: SplatTable, filter: Filter, count: number): Generator<undefined, SplatTable> {
  const kept = keptOf(table, filter);
  const points = new Float32Array(kept.length * 3);
  const weights = new Float64Array(kept.length);
  kept.forEach((index, i) => {
    points.set(table.positions.subarray(index * 3, index * 3 + 3), i * 3);
    weights[i] = (covered(table, index) + 1e-12) ** BALANCE;
  });
  yield;
  const groups = yield* bisected(points, weights, Math.min(count, kept.length));
  for (let i = 0; i < kept.length; i++) groups.members[i] = kept[groups.members[i] as number] as number;
  return yield* merged(table, groups);
}

/** What is asked for, less what is not finite. */
function keptOf({ count, positions, scales, quaternions, opacities }: SplatTable, { leastOpacity, box }: Filter): Uint32Array {
  const kept = new Uint32Array(count);
  let number = 0;
  for (let i = 0; i < count; i++) {
    const [x, y, z] = [positions[i * 3] as number, positions[i * 3 + 1] as number, positions[i * 3 + 2] as number];
    const sizes = (scales[i * 3] as number) + (scales[i * 3 + 1] as number) + (scales[i * 3 + 2] as number);
    const turn = Math.hypot(quaternions[i * 4] as number, quaternions[i * 4 + 1] as number, quaternions[i * 4 + 2] as number, quaternions[i * 4 + 3] as number);
    // A sum is finite only where its parts are.
    if (!Number.isFinite(x + y + z + sizes + turn + (opacities[i] as number)) || turn === 0) continue;
    if ((opacities[i] as number) < leastOpacity || (box.length > 0 && !isWithin(box, x, y, z))) continue;
    kept[number++] = i;
  }
  return kept.subarray(0, number);
}

/** Opacity times the two largest axes; in single precision, as the Python side has it. */
function covered({ scales, opacities }: SplatTable, index: number): number {
  const [a, b, c] = [scales[index * 3] as number, scales[index * 3 + 1] as number, scales[index * 3 + 2] as number];
  return Math.fround((opacities[index] as number) * Math.fround(Math.max(a, b) * Math.max(Math.min(a, b), c)));
}

/** Of the ellipsoid, up to a factor: the mean area that it hides. */
function surface(x: number, y: number, z: number): number {
  return x * y + y * z + z * x;
}

/** One splat a group; its sums are kept in double precision, since covariances are differences of large numbers. */
function* merged(table: SplatTable, { members, starts }: Groups): Generator<undefined, SplatTable> {
  const count = starts.length - 1;
  const width = 3 * terms(table.degree);
  const out = {
    count,
    positions: new Float32Array(count * 3),
    scales: new Float32Array(count * 3),
    quaternions: new Float32Array(count * 4),
    opacities: new Float32Array(count),
    colors: new Uint8ClampedArray(count * 3),
    sh: new Uint8ClampedArray(count * width),
    degree: table.degree,
    turned: table.turned,
  };
  const weights = new Float64Array(members.length);
  const colors = new Float64Array(3);
  const sh = new Float64Array(width);
  for (let group = 0, paused = 0; group < count; group++) {
    const [from, to] = [starts[group] as number, starts[group + 1] as number];
    const own = members.subarray(from, to);
    const shares = weights.subarray(0, to - from);
    const total = shareOut(table, own, shares);
    const middle = placeOf(table, own, shares);
    const { variances, turn } = principal(covarianceOf(table, own, shares, middle));
    const [x, y, z] = variances.map((value) => Math.sqrt(Math.max(value, 1e-24))) as [number, number, number];
    out.positions.set(middle, group * 3);
    out.scales.set([x, y, z], group * 3);
    out.quaternions.set(turn, group * 4);
    out.opacities[group] = Math.min(total / surface(x, y, z), MOST_OPAQUE);
    out.colors.set(meanOf(table.colors, own, shares, colors), group * 3);
    if (width > 0) out.sh.set(meanOf(table.sh, own, shares, sh), group * width);
    if (to - paused < SLICE) continue;
    paused = to;
    yield;
  }
  return out;
}

/** Weights that add to one go to ``shares``; gives what they were shared out of. */
function shareOut({ scales, opacities }: SplatTable, members: Uint32Array, shares: Float64Array): number {
  let total = 0;
  for (let i = 0; i < members.length; i++) {
    // Typed arrays give undefined only past their end.
    const at = (members[i] as number) * 3;
    const weight = (opacities[members[i] as number] as number) * surface(scales[at] as number, scales[at + 1] as number, scales[at + 2] as number) + 1e-30;
    shares[i] = weight;
    total += weight;
  }
  for (let i = 0; i < members.length; i++) shares[i] = (shares[i] as number) / total;
  return total;
}

type Three = [number, number, number];

function placeOf({ positions }: SplatTable, members: Uint32Array, shares: Float64Array): Three {
  const place: Three = [0, 0, 0];
  for (let i = 0; i < members.length; i++) {
    const at = (members[i] as number) * 3;
    const share = shares[i] as number;
    place[0] += share * (positions[at] as number);
    place[1] += share * (positions[at + 1] as number);
    place[2] += share * (positions[at + 2] as number);
  }
  return place;
}

/** xx, yy, zz, yz, zx, xy. */
type Symmetric = [number, number, number, number, number, number];

function covarianceOf({ positions, scales, quaternions }: SplatTable, members: Uint32Array, shares: Float64Array, [mx, my, mz]: Three): Symmetric {
  const sum: Symmetric = [0, 0, 0, 0, 0, 0];
  for (let i = 0; i < members.length; i++) {
    const index = members[i] as number;
    const share = shares[i] as number;
    let [x, y, z, w] = [quaternions[index * 4] as number, quaternions[index * 4 + 1] as number, quaternions[index * 4 + 2] as number, quaternions[index * 4 + 3] as number];
    const size = Math.hypot(x, y, z, w);
    [x, y, z, w] = [x / size, y / size, z / size, w / size];
    add(sum, share, (positions[index * 3] as number) - mx, (positions[index * 3 + 1] as number) - my, (positions[index * 3 + 2] as number) - mz);
    // The rotation's columns, as long as the scales.
    add(sum, share * (scales[index * 3] as number) ** 2, 1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y));
    add(sum, share * (scales[index * 3 + 1] as number) ** 2, 2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x));
    add(sum, share * (scales[index * 3 + 2] as number) ** 2, 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y));
  }
  return sum;
}

function add(sum: Symmetric, weight: number, x: number, y: number, z: number): void {
  sum[0] += weight * x * x;
  sum[1] += weight * y * y;
  sum[2] += weight * z * z;
  sum[3] += weight * y * z;
  sum[4] += weight * z * x;
  sum[5] += weight * x * y;
}

function meanOf(values: Uint8Array | Uint8ClampedArray, members: Uint32Array, shares: Float64Array, sums: Float64Array): Float64Array {
  const width = sums.length;
  sums.fill(0);
  for (let i = 0; i < members.length; i++) {
    const at = (members[i] as number) * width;
    const share = shares[i] as number;
    for (let k = 0; k < width; k++) sums[k] = (sums[k] as number) + share * (values[at + k] as number);
  }
  return sums;
}

const SWEEPS = 12;

/** Variances along the principal axes, and the rotation (x, y, z, w) to them: Jacobi's method, each of whose steps is a
 * turn about one of the three axes. */
function principal(matrix: Symmetric): { variances: Three; turn: [number, number, number, number] } {
  const a = matrix.slice() as Symmetric;
  let turn: [number, number, number, number] = [0, 0, 0, 1];
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const rest = a[3] * a[3] + a[4] * a[4] + a[5] * a[5];
    if (!(rest > 1e-30 * (a[0] + a[1] + a[2]) ** 2)) break;
    for (const r of [0, 1, 2] as const) {
      const [p, q] = [((r + 1) % 3) as 0 | 1 | 2, ((r + 2) % 3) as 0 | 1 | 2];
      // The entry of p and q is the one that is named after r.
      const [pq, rp, qr] = [a[3 + r] as number, a[3 + q] as number, a[3 + p] as number];
      if (pq === 0) continue;
      const apart = a[p] - a[q];
      const angle = 0.5 * Math.atan2(apart < 0 ? -2 * pq : 2 * pq, Math.abs(apart));
      const [c, s] = [Math.cos(angle), Math.sin(angle)];
      const [pp, qq] = [a[p], a[q]];
      a[p] = c * c * pp + 2 * c * s * pq + s * s * qq;
      a[q] = s * s * pp - 2 * c * s * pq + c * c * qq;
      a[3 + r] = 0;
      a[3 + q] = c * rp + s * qr;
      a[3 + p] = c * qr - s * rp;
      turn = turned(turn, r, angle);
    }
  }
  return { variances: [a[0], a[1], a[2]], turn };
}

/** The rotation after one more about its own axis. */
function turned([x, y, z, w]: readonly [number, number, number, number], axis: 0 | 1 | 2, angle: number): [number, number, number, number] {
  const [c, s] = [Math.cos(angle / 2), Math.sin(angle / 2)];
  if (axis === 0) return [x * c + w * s, y * c + z * s, z * c - y * s, w * c - x * s];
  if (axis === 1) return [x * c - z * s, y * c + w * s, z * c + x * s, w * c - y * s];
  return [x * c + y * s, y * c - x * s, z * c + w * s, w * c - z * s];
}
