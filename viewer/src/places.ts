// Places worth looking from, and what a change of frame does to them.
import { Matrix3, Matrix4, Quaternion, Vector3 } from "three";
import { type Eye, eyeOf, lookAt, PLAIN_LENS, poseMatrix } from "./eye";
import type { SceneInfo, Similarity } from "./messages";

function centers(info: SceneInfo): Vector3[] {
  return info.views.map((view) => new Vector3().setFromMatrixPosition(poseMatrix(view.world_from_cam)));
}

/** The middle of the cameras; of the scene when there is none. */
export function meanOf(info: SceneInfo): Vector3 {
  if (info.views.length === 0) return new Vector3(...info.center);
  return centers(info).reduce((sum, each) => sum.add(each), new Vector3()).divideScalar(info.views.length);
}

/** Everything in the picture, from the side the cameras are on; with the cameras themselves when they are shown.
 * ``camera``: where one is that is no photo's. */
export function allOf(info: SceneInfo, up: Vector3, aspect: number, withCameras: boolean, camera?: Vector3): Eye {
  const center = new Vector3(...info.center);
  const side = (info.views.length === 0 && camera ? camera.clone() : meanOf(info)).sub(center);
  if (side.length() < info.radius * 0.05) side.copy(new Vector3(1, 1, 1).projectOnPlane(up)).addScaledVector(up, 0.6);
  side.normalize().addScaledVector(up, 0.35).normalize();
  // Cameras far out must not make the scene a speck.
  const cameras = withCameras ? centers(info).map((each) => Math.min(each.distanceTo(center), 4 * info.radius)) : [];
  const reach = Math.max(info.radius, ...cameras);
  const distance = (reach * 1.15) / (PLAIN_LENS.tanY * Math.min(1, aspect));
  return lookAt(center.clone().addScaledVector(side, distance), center, up, PLAIN_LENS);
}

/** Where the first picture is a good one: at a training photo's place, not too close, from the side most are on. */
export function startOf(info: SceneInfo): Eye {
  const center = new Vector3(...info.center);
  const side = meanOf(info).sub(center);
  const training = info.views.filter((view) => !view.held_out);
  const eyes = (training.length > 0 ? training : info.views).map((view) => eyeOf(view, 1));
  const far = eyes.toSorted((a, b) => b.position.distanceTo(center) - a.position.distanceTo(center)).slice(0, Math.ceil(eyes.length / 2));
  const off = (eye: Eye) => eye.position.clone().sub(center).angleTo(side);
  const best = far.toSorted((a, b) => off(a) - off(b))[0];
  if (!best) return allOf(info, new Vector3(...info.up), 1, false);
  const along = new Vector3(0, 0, -1).applyQuaternion(best.quaternion).dot(center.sub(best.position));
  return { ...best, lens: { ...best.lens, shiftX: 0, shiftY: 0 }, distance: Math.max(along, info.radius * 0.05) };
}

/** A point of the ground: below the scene's middle, where the lowest points lie. */
export function groundOf(info: SceneInfo, up: Vector3, positions: Float32Array): Vector3 {
  const center = new Vector3(...info.center);
  const heights: number[] = [];
  const stride = Math.max(1, Math.floor(positions.length / 3 / 4000)) * 3;
  const at = new Vector3();
  for (let i = 0; i + 2 < positions.length; i += stride) {
    at.fromArray(positions, i);
    if (at.distanceTo(center) < info.radius * 2) heights.push(at.dot(up));
  }
  heights.sort((a, b) => a - b);
  const ground = heights[Math.floor(heights.length * 0.04)] ?? center.dot(up) - info.radius;
  return center.addScaledVector(up, ground - center.dot(up));
}

/** The eye that sees in the new frame what it saw in the old one. */
export function moved(eye: Eye, { scale, rotation, translation }: Similarity): Eye {
  const rows = new Matrix3().fromArray([...rotation]).transpose();
  const turn = new Quaternion().setFromRotationMatrix(new Matrix4().setFromMatrix3(rows));
  const position = eye.position.clone().applyMatrix3(rows).multiplyScalar(scale).add(new Vector3(...translation));
  return { ...eye, position, quaternion: turn.multiply(eye.quaternion), distance: eye.distance * scale };
}
