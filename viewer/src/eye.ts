// Where the person looks from. World units and frame; the quaternion has three's camera axes (x right, y up, z back).
import { Matrix4, Quaternion, Vector3 } from "three";
import type { ViewInfo } from "./messages";

/** Tangents of half the picture that has to be seen, and the principal point's shift as a share of them (x right, y down). */
export interface Lens {
  readonly tanX: number;
  readonly tanY: number;
  readonly shiftX: number;
  readonly shiftY: number;
}

export interface Eye {
  readonly position: Vector3;
  readonly quaternion: Quaternion;
  /** To the point that is turned about. */
  readonly distance: number;
  readonly lens: Lens;
}

export const PLAIN_LENS: Lens = { tanX: 0.46, tanY: 0.46, shiftX: 0, shiftY: 0 };
const FLIP = new Matrix4().makeScale(1, -1, -1);

export function poseMatrix(rows: readonly number[]): Matrix4 {
  return new Matrix4().fromArray([...rows]).transpose();
}

export function eyeOf(view: Pick<ViewInfo, "world_from_cam" | "lens" | "width" | "height">, distance: number): Eye {
  const pose = poseMatrix(view.world_from_cam).multiply(FLIP);
  const position = new Vector3();
  const quaternion = new Quaternion();
  pose.decompose(position, quaternion, new Vector3());
  return { position, quaternion, distance, lens: lensOf(view) };
}

export function lensOf(view: Pick<ViewInfo, "lens" | "width" | "height">): Lens {
  const [fx, fy, cx, cy] = view.lens;
  const halfWidth = view.width / 2;
  const halfHeight = view.height / 2;
  return {
    tanX: halfWidth / fx,
    tanY: halfHeight / fy,
    shiftX: (cx - halfWidth) / halfWidth,
    shiftY: (cy - halfHeight) / halfHeight,
  };
}

/** world_from_cam row by row with OpenCV's camera axes. */
export function poseRows(eye: Eye): number[] {
  const pose = new Matrix4().compose(eye.position, eye.quaternion, new Vector3(1, 1, 1)).multiply(FLIP);
  return pose.transpose().toArray();
}

/** fx, fy, cx, cy of a width x height picture that shows at least the lens' picture. */
export function intrinsics(lens: Lens, width: number, height: number): [number, number, number, number] {
  const { scaleX, scaleY } = fit(lens, width, height);
  const fx = (width / 2) * scaleX;
  const fy = (height / 2) * scaleY;
  return [fx, fy, (width / 2) * (1 + lens.shiftX * lens.tanX * scaleX), (height / 2) * (1 + lens.shiftY * lens.tanY * scaleY)];
}

/** 1 / tangent of half the window: the lens' picture is fitted in ("contain"). */
export function fit(lens: Lens, width: number, height: number): { scaleX: number; scaleY: number; shareX: number; shareY: number } {
  // Square pixels are assumed only for the window; a photo with fx != fy keeps its own proportions.
  const aspect = width / height;
  const own = lens.tanX / lens.tanY;
  const shareX = own > aspect ? 1 : own / aspect;
  const shareY = own > aspect ? aspect / own : 1;
  return { scaleX: shareX / lens.tanX, scaleY: shareY / lens.tanY, shareX, shareY };
}

export function forward(eye: Eye): Vector3 {
  return new Vector3(0, 0, -1).applyQuaternion(eye.quaternion);
}

export function targetOf(eye: Eye): Vector3 {
  return eye.position.clone().addScaledVector(forward(eye), eye.distance);
}

/** At ``position``, looking at ``target``, up as far as possible along ``up``. */
export function lookAt(position: Vector3, target: Vector3, up: Vector3, lens: Lens): Eye {
  const matrix = new Matrix4().lookAt(position, target, up);
  const quaternion = new Quaternion().setFromRotationMatrix(matrix);
  return { position: position.clone(), quaternion, distance: position.distanceTo(target) || 1, lens };
}

function mix(a: number, b: number, t: number): number {
  return a + (b - a) * t;
}

export function between(a: Eye, b: Eye, t: number): Eye {
  return {
    position: a.position.clone().lerp(b.position, t),
    quaternion: a.quaternion.clone().slerp(b.quaternion, t),
    distance: Math.exp(mix(Math.log(a.distance), Math.log(b.distance), t)),
    lens: {
      tanX: mix(a.lens.tanX, b.lens.tanX, t),
      tanY: mix(a.lens.tanY, b.lens.tanY, t),
      shiftX: mix(a.lens.shiftX, b.lens.shiftX, t),
      shiftY: mix(a.lens.shiftY, b.lens.shiftY, t),
    },
  };
}

/** The eye as a short text for the address bar, and back. */
export function toText(eye: Eye): string {
  const { position, quaternion, distance, lens } = eye;
  const numbers = [...position.toArray(), ...quaternion.toArray(), distance, lens.tanX, lens.tanY, lens.shiftX, lens.shiftY];
  return numbers.map((value) => Number(value.toPrecision(7))).join(",");
}

export function fromText(text: string): Eye | null {
  const n = text.split(",").map(Number);
  if (n.length !== 12 || n.some((value) => !Number.isFinite(value))) return null;
  const [x = 0, y = 0, z = 0, qx = 0, qy = 0, qz = 0, qw = 1, distance = 1, tanX = 1, tanY = 1, shiftX = 0, shiftY = 0] = n;
  const quaternion = new Quaternion(qx, qy, qz, qw);
  if (quaternion.length() < 0.5 || distance <= 0 || tanX <= 0 || tanY <= 0) return null;
  return { position: new Vector3(x, y, z), quaternion: quaternion.normalize(), distance, lens: { tanX, tanY, shiftX, shiftY } };
}
