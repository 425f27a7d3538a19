// Splat files read in the page: to draw them, to find the surface under the pointer, to cut out a part without loss.
import type { SplatData } from "./messages";

const SPZ_HEADER = 16;
const SPZ_MAGIC = 0x5053474e;
const MOST_SPLATS = 10_000_000; // of versions 1 to 3
export const MOST_DEGREE = 3;
const DC_TO_BYTE = 0.15 * 255; // SPZ's scale of the DC term

/** A file's splats in the world frame. */
export interface SplatTable {
  readonly count: number;
  readonly positions: Float32Array;
  readonly scales: Float32Array;
  /** x, y, z, w. */
  readonly quaternions: Float32Array;
  readonly opacities: Float32Array;
  /** The DC term as SPZ keeps it: (byte / 255 - 0.5) / 0.15. */
  readonly colors: Uint8Array | Uint8ClampedArray;
  /** Higher terms up to ``degree``, red, green, blue of each: (byte - 128) / 128. */
  readonly sh: Uint8Array | Uint8ClampedArray;
  readonly degree: number;
  /** The terms are those of directions with y and z turned round. */
  readonly turned: boolean;
}

type File = Pick<SplatData, "format" | "data">;

interface Spz {
  readonly raw: Uint8Array<ArrayBuffer>;
  readonly version: number;
  readonly count: number;
  readonly degree: number;
  readonly bits: number;
  /** Bytes a splat in each plane: positions, opacity, colour, scales, rotation, SH. */
  readonly widths: readonly [number, number, number, number, number, number];
}

export function terms(degree: number): number {
  return (degree + 1) ** 2 - 1;
}

/** Not by way of a Blob: those live in another process. */
function unpacked(data: Uint8Array, through: GenericTransformStream): ReadableStream<Uint8Array<ArrayBuffer>> {
  const { readable, writable } = through as ReadableWritablePair<Uint8Array<ArrayBuffer>, Uint8Array>;
  const writer = writable.getWriter();
  // What goes wrong here is said by the other end.
  writer.write(data).then(() => writer.close()).catch(() => undefined);
  return readable;
}

type Head = Omit<Spz, "raw"> & { readonly size: number };

function headOfSpz(head: Uint8Array<ArrayBuffer>): Head {
  const header = new DataView(head.buffer);
  const version = header.getUint32(4, true);
  const count = header.getUint32(8, true);
  const degree = header.getUint8(12);
  if (header.getUint32(0, true) !== SPZ_MAGIC || version < 1 || version > 3 || degree > 4) throw new Error("this is no SPZ file of version 1 to 3");
  if (count > MOST_SPLATS) throw new Error(`the SPZ file says that it has ${count} splats, more than its version can have`);
  const widths = [version === 1 ? 6 : 9, 1, 3, 3, version === 3 ? 4 : 3, 3 * terms(degree)] as const;
  const size = SPZ_HEADER + count * widths.reduce((sum, width) => sum + width, 0);
  return { version, count, degree, bits: header.getUint8(13), widths, size };
}

/** Unpacks as much as the header tells of and no more: a small file can hold any number of zeros. */
async function openSpz(data: Uint8Array): Promise<Spz> {
  const reader = unpacked(data, new DecompressionStream("gzip")).getReader();
  let raw = new Uint8Array(SPZ_HEADER);
  let head: Head | null = null;
  let have = 0;
  // To the end even when all is there: the check sum comes with it.
  for (let more = await reader.read(); !more.done; more = await reader.read()) {
    let { value } = more;
    while (value.length > 0 && have < raw.length) {
      const some = value.subarray(0, raw.length - have);
      raw.set(some, have);
      have += some.length;
      value = value.subarray(some.length);
      if (head || have < SPZ_HEADER) continue;
      head = headOfSpz(raw);
      const whole = new Uint8Array(head.size);
      whole.set(raw);
      raw = whole;
    }
    if (value.length > 0) {
      await reader.cancel();
      break;
    }
  }
  if (!head || have < head.size) throw new Error(`the SPZ file is cut short: ${have} of ${head?.size ?? SPZ_HEADER} bytes`);
  return { raw, ...head };
}

/** SPZ's axes are right, up, back: y and z change sign. */
function tableOfSpz(spz: Spz): SplatTable {
  const { raw, count, widths } = spz;
  const starts = widths.map((_, plane) => SPZ_HEADER + count * widths.slice(0, plane).reduce((sum, width) => sum + width, 0)) as [number, number, number, number, number, number];
  const [placesAt, opacitiesAt, colorsAt, scalesAt, turnsAt, shAt] = starts;
  const opacities = new Float32Array(count);
  const scales = new Float32Array(count * 3);
  const scaleOf = Float32Array.from({ length: 256 }, (_, byte) => Math.exp(byte / 16 - 10));
  for (let i = 0; i < count; i++) opacities[i] = (raw[opacitiesAt + i] ?? 0) / 255;
  for (let i = 0; i < count * 3; i++) scales[i] = scaleOf[raw[scalesAt + i] ?? 0] ?? 0;
  const degree = Math.min(spz.degree, MOST_DEGREE);
  return {
    count,
    positions: placesOf(spz, placesAt),
    scales,
    quaternions: turnsOf(spz, turnsAt),
    opacities,
    colors: raw.subarray(colorsAt, colorsAt + count * 3),
    sh: firstTerms(raw.subarray(shAt, shAt + count * widths[5]), widths[5], 3 * terms(degree)),
    degree,
    turned: true,
  };
}

function placesOf({ raw, version, count, bits }: Spz, at: number): Float32Array {
  const places = new Float32Array(count * 3);
  const width = version === 1 ? 2 : 3;
  const step = 2 ** -bits;
  for (let i = 0; i < count * 3; i++) {
    const from = at + i * width;
    // Its length is checked: nothing is undefined.
    const low = (raw[from] as number) | ((raw[from + 1] as number) << 8);
    const value = width === 2 ? half(low) : ((low | ((raw[from + 2] as number) << 16)) << 8 >> 8) * step;
    places[i] = i % 3 === 0 ? value : -value;
  }
  return places;
}

function half(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const share = (bits & 1023) / 1024;
  const size = exponent === 0 ? share * 2 ** -14 : exponent === 31 ? Number.NaN : (1 + share) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -size : size;
}

function turnsOf({ raw, version, count }: Spz, at: number): Float32Array {
  const turns = new Float32Array(count * 4);
  const view = new DataView(raw.buffer);
  for (let i = 0; i < count; i++) {
    if (version === 3) smallestThree(view.getUint32(at + i * 4, true), turns, i * 4);
    else firstThree(raw, at + i * 3, turns, i * 4);
  }
  return turns;
}

/** 2 bits say which of x, y, z, w is largest, then sign and 9 bits of each other one. */
function smallestThree(packed: number, out: Float32Array, at: number): void {
  const largest = packed >>> 30;
  let rest = packed;
  let squares = 0;
  for (let index = 3; index >= 0; index--) {
    if (index === largest) continue;
    const size = (rest & 511) / (511 * Math.SQRT2);
    const value = (rest & 512) === 0 ? size : -size;
    out[at + index] = index === 1 || index === 2 ? -value : value;
    squares += value * value;
    rest >>>= 10;
  }
  const missing = Math.sqrt(Math.max(0, 1 - squares));
  out[at + largest] = largest === 1 || largest === 2 ? -missing : missing;
}

function firstThree(raw: Uint8Array, from: number, out: Float32Array, at: number): void {
  let squares = 0;
  for (let index = 0; index < 3; index++) {
    const value = (raw[from + index] ?? 0) / 127.5 - 1;
    out[at + index] = index === 0 ? value : -value;
    squares += value * value;
  }
  out[at + 3] = Math.sqrt(Math.max(0, 1 - squares));
}

/** The first ``kept`` of ``width`` bytes a splat. */
function firstTerms(plane: Uint8Array, width: number, kept: number): Uint8Array {
  if (width === kept) return plane;
  const count = plane.length / width;
  const out = new Uint8Array(count * kept);
  for (let i = 0; i < count; i++) out.set(plane.subarray(i * width, i * width + kept), i * kept);
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
  const gather = (names: readonly string[], change: (value: number) => number) => fill(new Float32Array(count * names.length), names.map(column), change);
  const degree = Math.min(MOST_DEGREE, Math.sqrt([...columns.keys()].filter((name) => name.startsWith("f_rest_")).length / 3 + 1) - 1);
  if (!Number.isInteger(degree)) throw new Error("the PLY file's f_rest columns are not those of whole SH bands");
  const every = [...columns.keys()].filter((name) => name.startsWith("f_rest_")).length / 3;
  const rest = Array.from({ length: terms(degree) * 3 }, (_, i) => `f_rest_${(i % 3) * every + Math.floor(i / 3)}`);
  return {
    count,
    positions: gather(["x", "y", "z"], (value) => value),
    scales: gather(["scale_0", "scale_1", "scale_2"], Math.exp),
    quaternions: gather(["rot_1", "rot_2", "rot_3", "rot_0"], (value) => value),
    opacities: gather(["opacity"], (value) => 1 / (1 + Math.exp(-value))),
    colors: fill(new Uint8ClampedArray(count * 3), ["f_dc_0", "f_dc_1", "f_dc_2"].map(column), (value) => value * DC_TO_BYTE + 127.5),
    sh: fill(new Uint8ClampedArray(count * rest.length), rest.map(column), (value) => value * 128 + 128),
    degree,
    turned: false,
  };
}

function fill<T extends Float32Array | Uint8ClampedArray>(out: T, columns: readonly ((i: number) => number)[], change: (value: number) => number): T {
  const width = columns.length;
  columns.forEach((read, j) => {
    for (let i = 0; i * width < out.length; i++) out[i * width + j] = change(read(i));
  });
  return out;
}

export async function readSplats(file: File): Promise<SplatTable> {
  return file.format === "spz" ? tableOfSpz(await openSpz(file.data)) : tableOfPly(file.data);
}

const tables = new WeakMap<File, Promise<SplatTable>>();

/** Decoded once a file, when first asked for. */
export function tableOf(file: File): Promise<SplatTable> {
  let table = tables.get(file);
  if (!table) {
    table = readSplats(file);
    tables.set(file, table);
  }
  return table;
}

/** What the file says of itself: fitted with the screen filter's opacity compensation (Mip-Splatting)? */
export async function isAntialiased(file: File): Promise<boolean> {
  if (file.format === "ply") return /SplatRenderMode: mip|antialiased 1/.test(new TextDecoder("latin1").decode(file.data.subarray(0, 4096)));
  const { raw } = await openSpz(file.data);
  return ((raw[14] ?? 0) & 1) === 1;
}

/** The file with the splats of ``kept`` only, bit for bit as they were. */
export async function cut(file: File, kept: readonly number[]): Promise<Uint8Array<ArrayBuffer>> {
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
  return new Uint8Array(await new Response(unpacked(out, new CompressionStream("gzip"))).arrayBuffer());
}

function cutPly(data: Uint8Array, kept: readonly number[]): Uint8Array<ArrayBuffer> {
  const { header, body, stride } = openPly(data);
  const text = new TextEncoder().encode(header.replace(/element vertex \d+/, `element vertex ${kept.length}`));
  const out = new Uint8Array(text.length + kept.length * stride);
  out.set(text);
  kept.forEach((index, i) => out.set(data.subarray(body + index * stride, body + (index + 1) * stride), text.length + i * stride));
  return out;
}
