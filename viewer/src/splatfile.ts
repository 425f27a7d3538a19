// Splat files read in the page: to find the surface under the pointer, and to cut out a part without loss.
import { Quaternion, Vector3 } from "three";
import type { SplatData } from "./messages";
import type { Box } from "./splats";

const SPZ_HEADER = 16;
const SPZ_MAGIC = 0x5053474e;
const FAINT = 1 / 255;

/** What picking and cropping need of every splat, in the world frame. */
export interface SplatTable {
  readonly count: number;
  readonly positions: Float32Array;
  readonly scales: Float32Array;
  /** x, y, z, w. */
  readonly quaternions: Float32Array;
  readonly opacities: Float32Array;
}

interface Spz {
  readonly raw: Uint8Array<ArrayBuffer>;
  readonly count: number;
  readonly bits: number;
  /** Bytes a splat in each plane: positions, opacity, colour, scales, rotation, SH. */
  readonly widths: readonly [number, number, number, number, number, number];
}

async function pipe(data: Uint8Array, through: GenericTransformStream): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([data.slice()]).stream().pipeThrough(through as ReadableWritablePair<Uint8Array, Uint8Array<ArrayBuffer>>);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function openSpz(data: Uint8Array): Promise<Spz> {
  const raw = await pipe(data, new DecompressionStream("gzip"));
  const header = new DataView(raw.buffer);
  const version = header.getUint32(4, true);
  if (header.getUint32(0, true) !== SPZ_MAGIC || version !== 3) throw new Error("this is no SPZ file of version 3");
  const count = header.getUint32(8, true);
  const degree = header.getUint8(12);
  const widths = [9, 1, 3, 3, 4, 3 * ((degree + 1) ** 2 - 1)] as const;
  const size = SPZ_HEADER + count * widths.reduce((sum, width) => sum + width, 0);
  if (raw.length < size) throw new Error(`the SPZ file is cut short: ${raw.length} of ${size} bytes`);
  return { raw, count, bits: header.getUint8(13), widths };
}

/** SPZ's axes are right, up, back: y and z change sign. */
function tableOfSpz({ raw, count, bits, widths }: Spz): SplatTable {
  const positions = new Float32Array(count * 3);
  const scales = new Float32Array(count * 3);
  const quaternions = new Float32Array(count * 4);
  const opacities = new Float32Array(count);
  const view = new DataView(raw.buffer);
  const step = 2 ** -bits;
  let at = SPZ_HEADER;
  for (let i = 0; i < count * 3; i++) {
    const fixed = (view.getUint8(at + i * 3) << 8) | (view.getUint8(at + i * 3 + 1) << 16) | (view.getUint8(at + i * 3 + 2) << 24);
    positions[i] = (fixed >> 8) * step * (i % 3 === 0 ? 1 : -1);
  }
  at += count * widths[0];
  for (let i = 0; i < count; i++) opacities[i] = view.getUint8(at + i) / 255;
  at += count * (widths[1] + widths[2]);
  for (let i = 0; i < count * 3; i++) scales[i] = Math.exp(view.getUint8(at + i) / 16 - 10);
  at += count * widths[3];
  for (let i = 0; i < count; i++) quaternions.set(smallestThree(view.getUint32(at + i * 4, true)), i * 4);
  return { count, positions, scales, quaternions, opacities };
}

/** 2 bits say which of x, y, z, w is largest, then sign and 9 bits of each other one. */
function smallestThree(packed: number): [number, number, number, number] {
  const largest = packed >>> 30;
  const out: [number, number, number, number] = [0, 0, 0, 0];
  let rest = packed;
  let squares = 0;
  for (const index of [3, 2, 1, 0]) {
    if (index === largest) continue;
    const size = (rest & 511) / (511 * Math.SQRT2);
    const value = (rest & 512) === 0 ? size : -size;
    out[index] = index === 1 || index === 2 ? -value : value;
    squares += value * value;
    rest >>>= 10;
  }
  const missing = Math.sqrt(Math.max(0, 1 - squares));
  out[largest] = largest === 1 || largest === 2 ? -missing : missing;
  return out;
}

interface Ply {
  readonly header: string;
  readonly body: number;
  readonly count: number;
  readonly stride: number;
  readonly columns: ReadonlyMap<string, number>;
}

function openPly(data: Uint8Array): Ply {
  const text = new TextDecoder("latin1").decode(data.subarray(0, 65536));
  const end = text.indexOf("end_header\n");
  const header = text.slice(0, end + 11);
  const count = Number(/element vertex (\d+)/.exec(header)?.[1] ?? Number.NaN);
  const properties = [...header.matchAll(/property (\w+) (\w+)/g)];
  const plain = end > 0 && header.includes("binary_little_endian") && properties.every((each) => each[1] === "float" || each[1] === "float32");
  if (!plain || !Number.isFinite(count)) throw new Error("only binary float PLY files can be measured and cropped");
  const columns = new Map(properties.map((each, i) => [each[2] ?? "", i * 4]));
  const stride = properties.length * 4;
  if (header.length + count * stride > data.length) throw new Error("the PLY file is cut short");
  return { header, body: header.length, count, stride, columns };
}

function tableOfPly(data: Uint8Array): SplatTable {
  const { body, count, stride, columns } = openPly(data);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const column = (name: string) => {
    const offset = columns.get(name);
    if (offset === undefined) throw new Error(`the PLY file has no ${name}`);
    return (i: number) => view.getFloat32(body + i * stride + offset, true);
  };
  const gather = (names: readonly string[], change: (value: number) => number) => {
    const out = new Float32Array(count * names.length);
    names.map(column).forEach((read, j) => {
      for (let i = 0; i < count; i++) out[i * names.length + j] = change(read(i));
    });
    return out;
  };
  return {
    count,
    positions: gather(["x", "y", "z"], (value) => value),
    scales: gather(["scale_0", "scale_1", "scale_2"], Math.exp),
    quaternions: gather(["rot_1", "rot_2", "rot_3", "rot_0"], (value) => value),
    opacities: gather(["opacity"], (value) => 1 / (1 + Math.exp(-value))),
  };
}

const tables = new WeakMap<SplatData, Promise<SplatTable>>();

/** Decoded once a file, when first asked for. */
export function tableOf(file: SplatData): Promise<SplatTable> {
  let table = tables.get(file);
  if (!table) {
    table = file.format === "spz" ? openSpz(file.data).then(tableOfSpz) : Promise.resolve().then(() => tableOfPly(file.data));
    tables.set(file, table);
  }
  return table;
}

/** What the file says of itself: fitted with the screen filter's opacity compensation (Mip-Splatting)? */
export async function isAntialiased(file: SplatData): Promise<boolean> {
  if (file.format === "ply") return /SplatRenderMode: mip|antialiased 1/.test(new TextDecoder("latin1").decode(file.data.subarray(0, 4096)));
  const { raw } = await openSpz(file.data);
  return ((raw[14] ?? 0) & 1) === 1;
}

/** Where along the ray half of the light is stopped (the median depth); null where less than half is. */
export function pickSplat(table: SplatTable, origin: Vector3, direction: Vector3, keep: (index: number) => boolean): Vector3 | null {
  const hits: { along: number; alpha: number }[] = [];
  const offset = new Vector3();
  const local = new Vector3();
  const turned = new Quaternion();
  for (let i = 0; i < table.count; i++) {
    const opacity = table.opacities[i] ?? 0;
    offset.fromArray(table.positions, i * 3).sub(origin);
    const along = offset.dot(direction);
    const [a = 0, b = 0, c = 0] = table.scales.subarray(i * 3, i * 3 + 3);
    const reach = 3 * Math.max(a, b, c);
    if (opacity < FAINT || along < -reach || offset.lengthSq() - along * along > reach * reach || !keep(i)) continue;
    turned.fromArray(table.quaternions, i * 4).normalize().invert();
    offset.applyQuaternion(turned).divide(local.set(a, b, c));
    local.copy(direction).applyQuaternion(turned).divide(new Vector3(a, b, c));
    const nearest = offset.dot(local) / local.lengthSq();
    const power = local.multiplyScalar(nearest).sub(offset).lengthSq();
    const alpha = opacity * Math.exp(-0.5 * power);
    if (nearest > 0 && alpha > FAINT) hits.push({ along: nearest, alpha });
  }
  hits.sort((one, two) => one.along - two.along);
  let light = 1;
  for (const { along, alpha } of hits) {
    light *= 1 - alpha;
    if (light < 0.5) return origin.clone().addScaledVector(direction, along);
  }
  return null;
}

export function isInside(box: Box, positions: Float32Array, index: number): boolean {
  const [x = 0, y = 0, z = 0] = positions.subarray(index * 3, index * 3 + 3);
  const offset = new Vector3(x, y, z).sub(box.center);
  return box.axes.every((axis, i) => Math.abs(offset.dot(axis)) <= box.half.getComponent(i));
}

/** The file with the splats of ``kept`` only, bit for bit as they were. */
export async function cut(file: SplatData, kept: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
  if (file.format === "ply") return cutPly(file.data, kept);
  const { raw, count, widths } = await openSpz(file.data);
  const out = new Uint8Array(SPZ_HEADER + kept.length * widths.reduce((sum, width) => sum + width, 0));
  out.set(raw.subarray(0, SPZ_HEADER));
  new DataView(out.buffer).setUint32(8, kept.length, true);
  let from = SPZ_HEADER;
  let to = SPZ_HEADER;
  for (const width of widths) {
    for (const index of kept) {
      out.set(raw.subarray(from + index * width, from + (index + 1) * width), to);
      to += width;
    }
    from += count * width;
  }
  return pipe(out, new CompressionStream("gzip"));
}

function cutPly(data: Uint8Array, kept: readonly number[]): Uint8Array<ArrayBuffer> {
  const { header, body, stride } = openPly(data);
  const text = new TextEncoder().encode(header.replace(/element vertex \d+/, `element vertex ${kept.length}`));
  const out = new Uint8Array(text.length + kept.length * stride);
  out.set(text);
  kept.forEach((index, i) => out.set(data.subarray(body + index * stride, body + (index + 1) * stride), text.length + i * stride));
  return out;
}
