// Splats under the pointer and inside a box.
import { Quaternion, Vector3 } from "three";
import type { SplatTable } from "./splatfile";
import type { Box } from "./splats";

const FAINT = 1 / 255;

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
