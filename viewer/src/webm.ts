// The WebM container (Matroska, RFC 9559), as much of it as one video track needs.
import { join } from "./bytes";

interface Track {
  readonly codec: string;
  readonly width: number;
  readonly height: number;
  readonly seconds: number;
}

const CLUSTER_MS = 5000;

/** Big-endian, as few bytes as it takes. */
function whole(value: number): Uint8Array {
  const bytes: number[] = [];
  for (let rest = value; rest > 0 || bytes.length === 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  return Uint8Array.from(bytes);
}

function float(value: number): Uint8Array {
  const out = new DataView(new ArrayBuffer(8));
  out.setFloat64(0, value);
  return new Uint8Array(out.buffer);
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

/** An element: its id, its length (always in eight bytes, 0x01 and seven), its body. */
function element(id: number, ...body: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const content = join(body);
  const size = new Uint8Array(8);
  size.set(whole(content.length), 8 - whole(content.length).length);
  size[0] = 1;
  return join([whole(id), size, content]);
}

export function webm(chunks: readonly EncodedVideoChunk[], track: Track): Uint8Array<ArrayBuffer> {
  const head = element(0x1a45dfa3, element(0x4286, whole(1)), element(0x42f7, whole(1)), element(0x42f2, whole(4)), element(0x42f3, whole(8)), element(0x4282, text("webm")), element(0x4287, whole(4)), element(0x4285, whole(2)));
  const info = element(0x1549a966, element(0x2ad7b1, whole(1_000_000)), element(0x4489, float(track.seconds * 1000)), element(0x4d80, text("scenetx")), element(0x5741, text("scenetx")));
  const video = element(0xe0, element(0xb0, whole(track.width)), element(0xba, whole(track.height)));
  const entry = element(0xae, element(0xd7, whole(1)), element(0x73c5, whole(1)), element(0x83, whole(1)), element(0x86, text(track.codec)), video);
  return join([head, element(0x18538067, info, element(0x1654ae6b, entry), ...clusters(chunks))]);
}

/** A cluster begins at a key frame; times in its blocks are 16 bits of milliseconds. */
function clusters(chunks: readonly EncodedVideoChunk[]): Uint8Array[] {
  const out: Uint8Array[] = [];
  let blocks: Uint8Array[] = [];
  let start = 0;
  const flush = () => {
    if (blocks.length > 0) out.push(element(0x1f43b675, element(0xe7, whole(start)), ...blocks));
    blocks = [];
  };
  for (const chunk of chunks) {
    const time = Math.round(chunk.timestamp / 1000);
    if (blocks.length === 0 || (chunk.type === "key" && time - start >= CLUSTER_MS)) {
      flush();
      start = time;
    }
    const data = new Uint8Array(4 + chunk.byteLength);
    data.set([0x81, (time - start) >> 8, (time - start) & 255, chunk.type === "key" ? 0x80 : 0]);
    chunk.copyTo(data.subarray(4));
    blocks.push(element(0xa3, data));
  }
  flush();
  return out;
}
