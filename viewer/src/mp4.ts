// The MP4 container (ISO/IEC 14496-12, and -15 for H.264), as much of it as one H.264 track of steady rate needs.
import { join, type Part } from "./bytes";

interface Track {
  /** The decoder's settings as the encoder gives them: the body of an avcC box. */
  readonly settings: Uint8Array;
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  readonly color: VideoColorSpaceInit;
}

/** Ticks of a frame: time is counted in parts of a second so small that a block's length is whole. */
const TICKS = 1000;
const IDENTITY = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000];

/** Big-endian numbers of 4 bytes each. */
function words(...values: number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => view.setUint32(4 * i, value));
  return new Uint8Array(view.buffer);
}

/** Two numbers of 2 bytes. */
const pair = (a: number, b: number): Uint8Array => words(a * 0x10000 + b);
const text = (value: string): Uint8Array => new TextEncoder().encode(value);

function box(name: string, ...body: Part[]): Uint8Array<ArrayBuffer> {
  const size = body.reduce((sum, part) => sum + part.length, 8);
  return join([words(size), text(name), ...body]);
}

/** Version 0 and flags come before the body. */
const fullBox = (name: string, flags: number, ...body: Part[]): Uint8Array => box(name, words(flags), ...body);

/** The index lies before the pictures, so a browser can begin to play before it has all of them. */
export function mp4(chunks: readonly EncodedVideoChunk[], track: Track): Uint8Array<ArrayBuffer> {
  const head = box("ftyp", text("isom"), words(0x200), text("isomiso2avc1mp41"));
  const pictures = chunks.map((chunk) => {
    const data = new Uint8Array(chunk.byteLength);
    chunk.copyTo(data);
    return data;
  });
  // The index's length does not depend on the place it tells.
  const start = head.length + movie(chunks, track, 0).length + 8;
  return join([head, movie(chunks, track, start), box("mdat", ...pictures)]);
}

function movie(chunks: readonly EncodedVideoChunk[], track: Track, start: number): Uint8Array {
  const { width, height, fps } = track;
  const [rate, length] = [fps * TICKS, chunks.length * TICKS];
  const header = fullBox("mvhd", 0, words(0, 0, rate, length, 0x10000, 0x1000000, 0, 0, ...IDENTITY, 0, 0, 0, 0, 0, 0, 2));
  const place = fullBox("tkhd", 3, words(0, 0, 1, 0, length, 0, 0, 0, 0, ...IDENTITY, width * 0x10000, height * 0x10000));
  const time = fullBox("mdhd", 0, words(0, 0, rate, length), pair(0x55c4, 0)); // language: undetermined
  const kind = fullBox("hdlr", 0, words(0), text("vide"), words(0, 0, 0), text("scenetx\0"));
  const sources = box("dinf", fullBox("dref", 0, words(1), fullBox("url ", 1)));
  const media = box("minf", fullBox("vmhd", 1, words(0, 0)), sources, samples(chunks, track, start));
  return box("moov", header, box("trak", place, box("mdia", time, kind, media)));
}

/** How numbers become colours, as ITU-T H.273 numbers it; players guess when it is not said. */
function colors({ primaries, transfer, matrix, fullRange }: VideoColorSpaceInit): Uint8Array {
  const unknown = 2;
  const known: Readonly<Record<string, number>> = { rgb: 0, bt709: 1, bt470bg: 5, smpte170m: 6, "iec61966-2-1": 13 };
  const [a, b, c] = [primaries, transfer, matrix].map((name) => known[name ?? ""] ?? unknown) as [number, number, number];
  return box("colr", text("nclx"), pair(a, b), [0, c, fullRange ? 0x80 : 0]);
}

/** By how much a picture is shown later than it is decoded; nothing where the encoder keeps their order. */
function shifts(chunks: readonly EncodedVideoChunk[], fps: number): Uint8Array {
  const late = chunks.map(({ timestamp }, i) => (Math.round((timestamp * fps) / 1e6) - i) * TICKS);
  return late.every((each) => each === 0) ? new Uint8Array() : fullBox("ctts", 0x1000000, words(late.length, ...late.flatMap((each) => [1, each])));
}

/** Where every picture is, how long, and which can be begun with: all in one chunk. */
function samples(chunks: readonly EncodedVideoChunk[], { settings, width, height, fps, color }: Track, start: number): Uint8Array {
  const keys = chunks.flatMap((chunk, i) => (chunk.type === "key" ? [i + 1] : []));
  const entry = box("avc1", words(0), pair(0, 1), words(0, 0, 0, 0), pair(width, height), words(0x480000, 0x480000, 0), pair(1, 0), new Uint8Array(30), pair(24, 0xffff), box("avcC", settings), colors(color));
  return box(
    "stbl",
    fullBox("stsd", 0, words(1), entry),
    fullBox("stts", 0, words(1, chunks.length, TICKS)),
    shifts(chunks, fps),
    fullBox("stss", 0, words(keys.length, ...keys)),
    fullBox("stsc", 0, words(1, 1, chunks.length, 1)),
    fullBox("stsz", 0, words(0, chunks.length, ...chunks.map((chunk) => chunk.byteLength))),
    fullBox("stco", 0, words(1, start)),
  );
}
