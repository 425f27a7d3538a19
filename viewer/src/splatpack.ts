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
  const { count, degree, turned } = table;
  const places = texels(count);
  const floats = new Float32Array(places.buffer);
  const shapes = texels(count);
  const sh = texels(count * degree);
  const bytes = new Uint8Array(sh.buffer);
  const width = 3 * terms(degree);
  for (let i = 0; i < count; i++) {
    for (let k = 0; k < 3; k++) floats[i * 4 + k] = table.positions[i * 3 + k] ?? 0;
    const alpha = Math.round((table.opacities[i] ?? 0) * 255);
    places[i * 4 + 3] = (table.colors[i * 3] ?? 0) | ((table.colors[i * 3 + 1] ?? 0) << 8) | ((table.colors[i * 3 + 2] ?? 0) << 16) | (alpha << 24);
    packShape(table, i, shapes);
    for (let k = 0; k < width; k++) bytes[i * degree * 16 + k] = table.sh[i * width + k] ?? 0;
  }
  return { count, degree, turned, places, shapes, sh };
}

function packShape({ quaternions, scales }: SplatTable, i: number, out: Uint32Array): void {
  const [x = 0, y = 0, z = 0, w = 1] = [quaternions[i * 4], quaternions[i * 4 + 1], quaternions[i * 4 + 2], quaternions[i * 4 + 3]];
  const steps = TURN_STEPS / (Math.sqrt(x * x + y * y + z * z + w * w) || 1);
  const turn = (value: number) => Math.round(value * steps) & 0xffff;
  const scale = (k: number) => Math.min(65535, Math.max(0, Math.round((Math.log(scales[i * 3 + k] ?? 0) + SCALE_OFFSET) * SCALE_STEPS)));
  out[i * 4] = turn(x) | (turn(y) << 16);
  out[i * 4 + 1] = turn(z) | (turn(w) << 16);
  out[i * 4 + 2] = scale(0) | (scale(1) << 16);
  out[i * 4 + 3] = scale(2);
}
