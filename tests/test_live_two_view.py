"""Relative poses of two pictures and their rivals: exact points, exact poses, pixel noise, wrong matches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scenetx.live.features import Features
from scenetx.live.points import Station
from scenetx.live.two_view import PairSettings, off_lines, two_views

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


def pair(
    places: np.ndarray, turn: list[float], step: list[float], *, wrong: float = 0.1
) -> tuple[Station, Station, np.ndarray]:
    """Two pictures of points, the second turned (degrees) and moved; and the shift's true direction, from b to a."""
    rng = np.random.default_rng(5)
    there = np.eye(4)
    there[:3, :3], there[:3, 3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix(), step
    stations = []
    for name, pose in (("a", np.eye(4)), ("b", there)):
        cam_from_world = np.linalg.inv(pose)
        cam = places @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        xy = cam[:, :2] / cam[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2] + rng.normal(scale=0.3, size=(len(cam), 2))
        if name == "b":
            xy[: int(wrong * len(xy))] = rng.uniform(0, 480, size=(int(wrong * len(xy)), 2))
        features = Features(xy.astype(np.float32), np.ones(len(xy), np.float32), np.zeros((len(xy), 128), np.uint8))
        stations.append(Station(name, pose, K, (480, 640), features, b""))
    b_from_a = np.linalg.inv(there)
    return stations[0], stations[1], b_from_a[:3, 3] / max(float(np.linalg.norm(b_from_a[:3, 3])), 1e-12)


def cloud(count: int = 120, *, near: float = 2.0, far: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    z = rng.uniform(near, far, count)
    return np.stack([rng.uniform(-0.45, 0.45, count) * z, rng.uniform(-0.35, 0.35, count) * z, z], axis=1)


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("step", [[0.4, 0, 0], [0.0, 0.3, 0.2], [0.1, -0.1, 0.9], [-0.3, 0.1, -0.5]])
def test_a_plain_step_has_one_explanation(step: list[float]):
    a, b, true = pair(cloud(), [2, 4, 1], step)
    rows = np.arange(len(a.features))
    found = two_views(a, b, rows, rows, PairSettings())
    assert len(found) == 1
    assert degrees(found[0].b_from_a[:3, 3], true) < 3
    assert np.linalg.norm(found[0].b_from_a[:3, 3]) == pytest.approx(1)
    # The wrong matches are no inliers, nearly all others are, and their points are where they are but for the scale.
    assert found[0].inlier[:12].sum() <= 2
    assert found[0].inlier[12:].mean() > 0.9
    ratio = np.linalg.norm(found[0].places[found[0].inlier], axis=1) / np.linalg.norm(cloud()[found[0].inlier], axis=1)
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.05


@pytest.mark.parametrize("step", [[0, 0, 0], [0, 0, 0.03], [0.02, 0.01, 0.02]])
def test_a_turn_is_no_step(step: list[float]):
    """However far the picture has moved: what a turn explains says nothing of depth."""
    a, b, _ = pair(cloud(), [4, 8, 2], step)
    rows = np.arange(len(a.features))
    assert float(np.median(np.linalg.norm(a.features.xy - b.features.xy, axis=1))) > 40
    assert two_views(a, b, rows, rows, PairSettings()) == []


def test_of_a_plane_all_explanations_are_told():
    places = cloud()
    places[:, 2] = 3 + 0.5 * places[:, 0]
    a, b, true = pair(places, [1, 3, 0], [0.5, 0.1, 0.1], wrong=0.0)
    rows = np.arange(len(a.features))
    found = two_views(a, b, rows, rows, PairSettings())
    assert min(degrees(each.b_from_a[:3, 3], true) for each in found) < 4
    assert len(found) >= 2


def test_noise_has_no_explanation():
    a, b, _ = pair(cloud(), [0, 0, 0], [0.4, 0, 0], wrong=1.0)
    rows = np.arange(len(a.features))
    assert two_views(a, b, rows, rows, PairSettings()) == []


def test_distances_from_epipolar_lines_know_the_true_cameras():
    a, b, _ = pair(cloud(), [2, 4, 1], [0.4, 0, 0.2], wrong=0.0)
    rows = np.arange(len(a.features))
    assert np.median(off_lines(a, b, rows, rows)) < 0.5
    turned = b.world_from_cam.copy()
    turned[:3, :3] = turned[:3, :3] @ Rotation.from_euler("x", 2, degrees=True).as_matrix()
    wrong = Station("b", turned, K, b.size, b.features, b"")
    assert np.median(off_lines(a, wrong, rows, rows)) > 5
