"""The last word on a way: frames move with the keyframes that they hang on, and with those that were dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from scenetx.core import Sim3
from scenetx.live.anchors import FINAL, anchor_of, finished, heirs_of, keyframe_poses, nearest, scaled, write_final
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.outputs import Trajectory, read_tum
from scenetx.live.update import Anchor, Status, Update

VIEWS, DEPTH = 9, 5.0


def pose(k: float) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", [3 * np.sin(k), 6 * k, 2 * k], degrees=True).as_matrix()
    out[:3, 3] = [0.3 * k, 0.1 * np.sin(k), 0.05 * k]
    return out


@pytest.fixture
def made() -> ClassicalMap:
    """Nine cameras on a way; what they see does not matter here."""
    return ClassicalMap(
        names=tuple(f"{k}.png" for k in range(VIEWS)),
        world_from_cam=np.stack([pose(k) for k in range(VIEWS)]),
        K=np.repeat(np.diag([500.0, 500.0, 1.0])[None], VIEWS, axis=0),
        sizes=np.full((VIEWS, 2), 480),
        positions=np.zeros((0, 3)),
        descriptors=np.zeros((0, 128), np.uint8),
        obs_view=np.zeros(0, np.int32),
        obs_point=np.zeros(0, np.int32),
        obs_xy=np.zeros((0, 2), np.float32),
        obs_sigma=np.zeros(0, np.float32),
        pictures=(b"",) * VIEWS,
    )


def moved(made: ClassicalMap, similarity: Sim3) -> ClassicalMap:
    return replace(made, world_from_cam=similarity.apply_to_poses(torch.from_numpy(made.world_from_cam)).numpy())


def elsewhere(scale: float) -> Sim3:
    turn = torch.from_numpy(Rotation.from_euler("xyz", [20, -50, 7], degrees=True).as_matrix())
    return Sim3(scale, turn, torch.tensor([1.0, -3.0, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 2.7])
def test_a_frame_moves_as_the_map_does(made, scale):
    frame = pose(4.3)
    anchor = anchor_of(frame, made, DEPTH)
    assert anchor.name == "4.png"
    assert nearest(frame, made.world_from_cam, 1e9) == 4  # by turn alone
    for similarity in (Sim3.identity(), elsewhere(scale)):
        final = finished(anchor, similarity.scale, keyframe_poses(moved(made, similarity), {}))
        assert final is not None
        assert torch.allclose(final, similarity.apply_to_poses(torch.from_numpy(frame)), atol=1e-9)
    assert finished(replace(anchor, name="none.png"), 1.0, keyframe_poses(made, {})) is None


def test_a_frame_moves_with_its_own_keyframe(made):
    """Not with the others: an error that came together on the way is taken out where it came."""
    anchors = [anchor_of(pose(k + 0.1), made, DEPTH) for k in (1, 7)]
    poses = made.world_from_cam.copy()
    poses[7, :3, 3] += [0.5, 0.0, 0.0]
    keyframes = keyframe_poses(replace(made, world_from_cam=poses), {})
    first, last = (finished(anchor, 1.0, keyframes) for anchor in anchors)
    assert first is not None
    assert last is not None
    assert torch.allclose(first, torch.from_numpy(pose(1.1)))
    assert (last[:3, 3] - torch.from_numpy(pose(7.1)[:3, 3])).tolist() == pytest.approx([0.5, 0, 0])


def test_dropped_keyframes_are_known_by_those_that_stay(made):
    """Also by some that were dropped later themselves, and when the map has become part of one of another unit."""

    def part(whole: ClassicalMap, gone: list[int]) -> ClassicalMap:
        views = np.setdiff1d(np.arange(len(whole.names)), gone)
        kept = {key: getattr(whole, key)[views] for key in ("world_from_cam", "K", "sizes")}
        return replace(whole, names=tuple(whole.names[k] for k in views), pictures=(b"",) * len(views), **kept)

    heirs = heirs_of(made, [5, 2], DEPTH)
    assert list(heirs) == ["5.png", "2.png"]
    left = part(made, [5, 2])
    heir = left.names.index(heirs["5.png"].name)
    heirs |= heirs_of(left, [heir], DEPTH)
    gone = [5, 2, made.names.index(left.names[heir])]
    for similarity in (Sim3.identity(), elsewhere(2.7)):
        found = keyframe_poses(part(moved(made, similarity), gone), scaled(heirs, similarity.scale))
        assert set(found) == set(made.names)
        for k, name in enumerate(made.names):
            wanted = similarity.apply_to_poses(torch.from_numpy(made.world_from_cam[k]))
            assert torch.allclose(found[name], wanted, atol=1e-9)
    orphan = {"5.png": replace(heirs["5.png"], name="of no map")}
    assert "5.png" not in keyframe_poses(part(made, gone), orphan)


def test_the_final_trajectory_is_written_beside_the_live_one(made, tmp_path):
    with Trajectory(tmp_path) as trajectory:
        for k in range(8):
            status: Status = "unsure" if k == 3 else "tracking"
            anchor = anchor_of(pose(k + 0.2), made, DEPTH)
            anchor = Anchor("of another map", anchor.keyframe_from_cam) if k == 6 else anchor
            here = torch.from_numpy(pose(k + 0.2))
            trajectory.add(Update(k, k / 10, status, here, torch.eye(3).double(), 1.0, anchor=anchor, map=1))
        trajectory.add(Update(8, 0.8, "lost", None, torch.eye(3).double(), 0.0))
    live = (tmp_path / "trajectory_tum.txt").read_text()
    joins = {1: (0, elsewhere(2.7))}  # the map has become part of another one since
    assert write_final(tmp_path, keyframe_poses(moved(made, elsewhere(2.7)), {}), joins) == (6, 1)
    rows = read_tum(tmp_path / FINAL)
    assert [seconds for seconds, _ in rows] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.7]
    for (_, row), k in zip(rows, (0, 1, 2, 4, 5, 7), strict=True):
        wanted = elsewhere(2.7).apply(torch.from_numpy(pose(k + 0.2)[:3, 3]))
        assert row[:3] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert (tmp_path / "trajectory_tum.txt").read_text() == live
