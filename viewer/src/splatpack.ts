// A table of splats as the graphics card reads it: integer textures, the layout that splatshader.ts takes apart.
import { type SplatTable, terms } from "./splatfile";

/** Texels in a row of every texture. */
export const ROW = 2048;
const TURN_STEPS = 32767;
/** Scales are kept as (log + 20) * 2048 in 16 bits: from 2e-9 to 1.6e5, to 0.05 %. */
const SCALE_OFFSET = 20;
const SCALE_STEPS = 2048;

export interface Packed {
  readonly count: number;
  readonly degree: number;
  readonly turned: boolean;
  /** A texel a splat: position (the bits of three floats), then red, green, blue, opacity. */
  readonly places: Uint32Array<ArrayBuffer>;
  /** A texel a splat: x, y, z, w of the quaternion and the three scales, 16 bits each. */
  readonly shapes: Uint32Array<ArrayBuffer>;
  /** So many texels a splat as its degree: the SH terms, a byte each. */
  readonly sh: Uint32Array<ArrayBuffer>;
}

function texels(count: number): Uint32Array<ArrayBuffer> {
  return new Uint32Array(Math.max(1, Math.ceil(count / ROW)) * ROW * 4);
}

export function pack(table: SplatTable): Packed {
  const { count, degree, turned, positions, colors, opacities, sh } = table;
  const places = texels(count);
  const floats = new Float32Array(places.buffer);
  const words = texels(count * degree);
  const bytes = new Uint8Array(words.buffer);
  const width = 3 * terms(degree);
  // Typed arrays give undefined only past their end.
  for (let i = 0; i < count; i++) {
    const from = i * 3;
    floats[i * 4] = positions[from] as number;
    floats[i * 4 + 1] = positions[from + 1] as number;
    floats[i * 4 + 2] = positions[from + 2] as number;
    const alpha = Math.round((opacities[i] as number) * 255);
    places[i * 4 + 3] = (colors[from] as number) | ((colors[from + 1] as number) << 8) | ((colors[from + 2] as number) << 16) | (alpha << 24);
  }
  for (let i = 0; i < count; i++) {
    const from = i * width;
    const to = i * degree * 16;
    for (let k = 0; k < width; k++) bytes[to + k] = sh[from + k] as number;
  }
  return { count, degree, turned, places, shapes: packShapes(table), sh: words };
}

function packShapes({ count, quaternions, scales }: SplatTable): Uint32Array<ArrayBuffer> {
  const out = texels(count);
  const scale = (at: number) => Math.min(65535, Math.max(0, Math.round((Math.log(scales[at] as number) + SCALE_OFFSET) * SCALE_STEPS)));
  for (let i = 0; i < count; i++) {
    const from = i * 4;
    const x = quaternions[from] as number;
    const y = quaternions[from + 1] as number;
    const z = quaternions[from + 2] as number;
    const w = quaternions[from + 3] as number;
    const steps = TURN_STEPS / (Math.sqrt(x * x + y * y + z * z + w * w) || 1);
    out[from] = (Math.round(x * steps) & 0xffff) | (Math.round(y * steps) << 16);
    out[from + 1] = (Math.round(z * steps) & 0xffff) | (Math.round(w * steps) << 16);
    out[from + 2] = scale(i * 3) | (scale(i * 3 + 1) << 16);
    out[from + 3] = scale(i * 3 + 2);
  }
  return out;
}
