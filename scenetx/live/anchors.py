"""The last word on a way: each frame hangs on a keyframe near it, and moves as that one moves after it was placed.

While a map grows, loops close and the lens becomes known better, its keyframes move; poses said before do not. What a
frame saw of its keyframe still holds (ORB-SLAM3, Campos et al. 2021, writes its trajectories so at the end). Shifts
from keyframe to frame keep their length, but where a map became part of another one in another scale: they are short,
and what scale drifts within a map is little of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.live.classical_map import ClassicalMap
from scenetx.live.one_frame import Joins, root_of
from scenetx.live.outputs import believed, write_tum
from scenetx.live.update import Anchor, KeyframePoses

FINAL = "trajectory_final_tum.txt"


@dataclass(frozen=True)
class Heir:
    """What is left of a keyframe that a map dropped: another one, and where it was from there."""

    name: str
    keyframe_from_cam: Float[np.ndarray, "4 4"]


def shift_and_turn(
    world_from_cam: Float[np.ndarray, "4 4"], others: Float[np.ndarray, "n 4 4"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Distance and degrees from a camera to others."""
    away = np.linalg.norm(others[:, :3, 3] - world_from_cam[:3, 3], axis=1)
    trace = np.einsum("nij,ij->n", others[:, :3, :3], world_from_cam[:3, :3])
    return away, np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def nearest(world_from_cam: Float[np.ndarray, "4 4"], others: Float[np.ndarray, "n 4 4"], depth: float) -> int:
    """The camera that sees most nearly the same: a shift counts as the angle under which it is seen from ``depth``."""
    away, turned = shift_and_turn(world_from_cam, others)
    return int((away / depth + np.radians(turned)).argmin())


def anchor_of(world_from_cam: Float[np.ndarray, "4 4"], made: ClassicalMap, depth: float) -> Anchor:
    """The picture of a map (of this median depth) that a frame hangs on."""
    k = nearest(world_from_cam, made.world_from_cam, depth)
    return Anchor(made.names[k], torch.from_numpy(np.linalg.inv(made.world_from_cam[k]) @ world_from_cam))


def heirs_of(made: ClassicalMap, dropped: Sequence[int], depth: float) -> dict[str, Heir]:
    """For each picture that is to be dropped, the nearest of those that stay."""
    out, poses = {}, made.world_from_cam
    stay = np.setdiff1d(np.arange(len(made.names)), dropped)
    for view in dropped:
        k = int(stay[nearest(poses[view], poses[stay], depth)])
        out[made.names[view]] = Heir(made.names[k], np.linalg.inv(poses[k]) @ poses[view])
    return out


def scaled(heirs: Mapping[str, Heir], scale: float) -> dict[str, Heir]:
    """The heirs of a map whose unit became ``scale`` of another one's."""
    out = {}
    for name, heir in heirs.items():
        relative = heir.keyframe_from_cam.copy()
        relative[:3, 3] *= scale
        out[name] = Heir(heir.name, relative)
    return out


def keyframe_poses(made: ClassicalMap, heirs: Mapping[str, Heir]) -> KeyframePoses:
    """Where a map's pictures stand, and those it dropped (in the order of their going), by their heirs."""
    known = dict(zip(made.names, made.world_from_cam, strict=True))
    for name, heir in reversed(list(heirs.items())):
        if heir.name in known and name not in known:
            known[name] = known[heir.name] @ heir.keyframe_from_cam
    return {name: torch.from_numpy(pose.copy()) for name, pose in known.items()}


def finished(anchor: Anchor, scale: float, keyframes: KeyframePoses) -> Float[Tensor, "4 4"] | None:
    """world_from_cam of a frame as the keyframes stand now, one unit of the map it was placed in being ``scale`` of
    theirs; None = its keyframe is not among them."""
    if anchor.name not in keyframes:
        return None
    relative = anchor.keyframe_from_cam.clone()
    relative[:3, 3] *= scale
    return keyframes[anchor.name] @ relative


def write_final(folder: str | Path, keyframes: KeyframePoses, joins: Joins) -> tuple[int, int]:
    """Writes FINAL, a TUM trajectory: the believed poses of a `Trajectory`'s `LINES` as the keyframes stand now.

    Gives how many there are, and how many there are not, for their keyframes are of a map that is not kept.
    """
    poses, left = [], 0
    for said in believed(folder):
        if "keyframe" not in said:
            continue
        relative = torch.tensor(said["keyframe_from_cam"], dtype=torch.float64).reshape(4, 4)
        pose = finished(Anchor(said["keyframe"], relative), root_of(said["map"], joins)[1].scale, keyframes)
        if pose is None:
            left += 1
        else:
            poses.append((said["time"], pose))
    write_tum(Path(folder) / FINAL, poses)
    return len(poses), left
