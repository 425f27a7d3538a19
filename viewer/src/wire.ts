// Frames of the protocol (scenetx/serve/messages.py says what they look like), from a socket or from the page itself.
import type { FromPage, FromServer } from "./messages";

interface Place {
  readonly $bytes: readonly [number, number];
}

function isBlob(value: unknown): value is Place {
  return typeof value === "object" && value !== null && "$bytes" in value;
}

export function decode(frame: ArrayBuffer): FromServer {
  if (frame.byteLength < 4) throw new Error("a message is cut short");
  const length = new DataView(frame).getUint32(0, true);
  if (4 + length > frame.byteLength) throw new Error("a message is cut short");
  const text = new TextDecoder().decode(new Uint8Array(frame, 4, length));
  const blobs = 4 + length;
  return JSON.parse(text, (_key, value: unknown) => {
    if (!isBlob(value)) return value;
    const [offset, size] = value.$bytes;
    if (blobs + offset + size > frame.byteLength) throw new Error("a message is cut short");
    return new Uint8Array(frame, blobs + offset, size);
  }) as FromServer;
}

/** Messages of the page carry no bytes. */
export function encode(message: FromPage): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(message));
  const frame = new Uint8Array(4 + text.length);
  new DataView(frame.buffer).setUint32(0, text.length, true);
  frame.set(text, 4);
  return frame;
}

export function fromBase64(text: string): ArrayBuffer {
  const native = Reflect.get(Uint8Array, "fromBase64") as ((text: string) => Uint8Array<ArrayBuffer>) | undefined;
  if (native) return native.call(Uint8Array, text).buffer;
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes.buffer;
}

/** An aligned copy, as typed arrays want it. */
export function floats(bytes: Uint8Array): Float32Array<ArrayBuffer> {
  return new Float32Array(bytes.slice().buffer, 0, bytes.length >> 2);
}

export function jpeg(bytes: Uint8Array): Blob {
  return new Blob([bytes.slice()], { type: "image/jpeg" });
}
