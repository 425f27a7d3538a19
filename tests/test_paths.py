"""Camera paths: rigid, finite, through their keyframes, and never where nobody looked from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import Cameras, InputError, Original, Points, Scene, View
from scenetx.core.cameras import look_at
from scenetx.core.paths import camera_layout, interpolate, orbit, spiral, through, up_axis

DEV = Path(__file__).parents[2] / "shared/data/dev"
UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)


def scene_of(poses: torch.Tensor, points: torch.Tensor | None = None, size: tuple[int, int] = (48, 64)) -> Scene:
    views = tuple(
        View(
            f"{i:03d}.jpg",
            torch.zeros(*size, 3, dtype=torch.uint8),
            Original(f"{i:03d}.jpg", *size),
            camera=Cameras(pose[None], K.to(pose)[None], *size),
        )
        for i, pose in enumerate(poses)
    )
    cloud = None if points is None else Points(points, torch.zeros(len(points), 3, dtype=torch.uint8))
    return Scene(views, points=cloud)


def ring(count: int, start: float = 0.0, stop: float = 2 * math.pi, target=(0.3, -0.2, 0.5)) -> torch.Tensor:
    angle = torch.linspace(start, stop, count + 1, dtype=torch.float64)[:-1]
    target = torch.tensor(target, dtype=torch.float64)
    eyes = target + torch.stack([3 * angle.cos(), 3 * angle.sin(), torch.full_like(angle, 1.0)], -1)
    return look_at(eyes, target, UP)


def plane(count: int, seed: int = 0) -> torch.Tensor:
    """Forward-facing: centres near a plane, all looking along +z of the world."""
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.4, 0.05])
    return poses


def cloud_at(center, spread: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.tensor(center) + spread * torch.randn(400, 3, generator=generator)


def assert_rigid(cameras: Cameras, count: int) -> None:
    poses = cameras.world_from_cam.double()
    assert poses.shape == (count, 4, 4)
    assert poses.isfinite().all()
    assert cameras.K.shape == (count, 3, 3)
    assert cameras.K.isfinite().all()
    R = poses[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=torch.float64).expand_as(R), atol=1e-5, rtol=0)
    assert (torch.linalg.det(R) > 0).all()
    torch.testing.assert_close(poses[:, 3], torch.tensor([0.0, 0, 0, 1]).double().expand(count, 4))


@pytest.mark.parametrize("path", [orbit, spiral, through])
@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize(
    "poses",
    [
        ring(1),
        ring(2),
        ring(12),
        plane(9),
        plane(2),
        torch.eye(4, dtype=torch.float64).repeat(5, 1, 1),  # identical
        torch.eye(4).repeat(1, 1, 1),
        look_at(
            torch.arange(5.0).double()[:, None] * torch.tensor([1.0, 0, 0]).double(),
            torch.tensor([0.0, 9, 0]).double(),
            UP,
        ),
        look_at(torch.zeros(6, 3).double(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), UP),
    ],
    ids=["one", "two", "ring", "plane", "pair", "identical", "single-f32", "line", "panorama"],
)
def test_paths_are_rigid_whatever_the_cameras(path, n, poses):
    cameras = path(scene_of(poses), n)
    assert_rigid(cameras, n)
    assert (cameras.height, cameras.width) == (48, 64)
    assert cameras.world_from_cam.dtype == poses.dtype


@given(st.integers(1, 7), st.integers(1, 30), st.integers(0, 10_000), st.floats(-6, 6))
@settings(max_examples=20, deadline=None)
def test_paths_of_random_cameras_are_rigid(count, n, seed, log_scale):
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)).Q
    poses[:, :3, :3] *= torch.linalg.det(poses[:, :3, :3])[:, None, None]
    poses[:, :3, 3] = 10**log_scale * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    for path in (orbit, spiral, through):
        assert_rigid(path(scene_of(poses), n), n)
    assert_rigid(interpolate(Cameras(poses, K.expand(count, 3, 3), 48, 64), n, closed=True), n)


def test_orbit_keeps_its_distance_and_finds_what_the_ring_looks_at():
    target = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    scene = scene_of(ring(10))
    torch.testing.assert_close(camera_layout(scene).focus, target, atol=1e-2, rtol=0)
    torch.testing.assert_close(camera_layout(scene).up, UP)
    cameras = orbit(scene, 24)
    distance = (cameras.centers - target).norm(dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, math.sqrt(10)), atol=1e-2, rtol=0)
    facing = (torch.nn.functional.normalize(target - cameras.centers, dim=-1) * cameras.forward).sum(-1)
    assert facing.min() > 0.9999
    step = (cameras.centers - cameras.centers.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(step, step[:1].expand_as(step))  # closed and even


def test_focus_survives_cameras_that_look_away():
    poses = ring(20)
    poses[::7, :3, :3] = look_at(poses[::7, :3, 3], torch.tensor([9.0, 9, 9]).double(), UP)[:, :3, :3]
    focus = camera_layout(scene_of(poses)).focus
    assert (focus - torch.tensor([0.3, -0.2, 0.5])).norm() < 0.1


def test_orbit_of_an_arc_stays_on_the_arc():
    poses = ring(9, 0.0, 1.8)
    cameras = orbit(scene_of(poses), 40)
    target = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    covered = torch.atan2(*(poses[:, :3, 3] - target)[:, :2].flip(-1).unbind(-1))
    azimuth = torch.atan2(*(cameras.centers - target)[:, :2].flip(-1).unbind(-1))
    assert azimuth.min() > covered.min() - 0.02
    assert azimuth.max() < covered.max() + 0.02
    assert azimuth.max() - azimuth.min() > 0.8 * (covered.max() - covered.min())


@pytest.mark.parametrize("count", [3, 4, 12])
def test_forward_facing_orbit_stays_inside_the_cameras(count):
    from scipy.spatial import Delaunay

    poses = plane(count)
    cameras = orbit(scene_of(poses, cloud_at((0.0, 0, 8.0))), 50)
    assert Delaunay(poses[:, :2, 3].numpy()).find_simplex(cameras.centers[:, :2].numpy()).min() >= 0
    assert cameras.forward[:, 2].min() > 0.9
    assert (cameras.centers.max(0).values - cameras.centers.min(0).values)[0] > 0.05


def test_orbit_of_cameras_looking_outwards_flies_through_them():
    poses = ring(8)
    outwards = look_at(poses[:, :3, 3], 2 * poses[:, :3, 3] - torch.tensor([0.3, -0.2, 0.5]).double(), UP)
    scene = scene_of(outwards)
    assert not camera_layout(scene).inward
    torch.testing.assert_close(orbit(scene, 48).world_from_cam, through(scene, 48).world_from_cam)


def test_up_of_pictures_taken_on_their_side():
    poses = ring(12)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    poses[:, :3, :3] = poses[:, :3, :3] @ quarter
    up = up_axis(Cameras(poses, K.expand(12, 3, 3), 48, 64))
    assert abs(float(up @ UP)) > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_through_starts_and_ends_at_the_views_and_visits_them(dtype):
    poses = ring(6).to(dtype)
    path = through(scene_of(poses), 301, order="given")
    torch.testing.assert_close(path.world_from_cam[0], poses[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(path.world_from_cam[-1], poses[-1], atol=1e-5, rtol=1e-5)
    nearest = torch.cdist(poses[:, :3, 3], path.centers).amin(-1)
    assert nearest.max() < 0.04


def test_through_mends_a_shuffled_order_and_keeps_a_good_one():
    poses = ring(12, 0, math.pi)
    shuffled = poses[torch.randperm(12, generator=torch.Generator().manual_seed(3))]

    def length(path: Cameras) -> float:
        return float(path.centers.diff(dim=0).norm(dim=-1).sum())

    straight = length(through(scene_of(poses), 200))
    assert length(through(scene_of(shuffled), 200)) < 1.05 * straight
    assert length(through(scene_of(shuffled), 200, order="given")) > 2 * straight
    torch.testing.assert_close(through(scene_of(poses), 200).world_from_cam[0], poses[0])


def test_interpolation_is_exact_on_constant_turns_and_smooth_everywhere():
    poses = ring(4, 0.0, 1.0)
    keys = Cameras(poses, K.expand(4, 3, 3), 48, 64)
    path = interpolate(keys, 91)
    # Even turns about one axis: slerp's geodesic, so every frame is level and turns by the same angle.
    torch.testing.assert_close(path.world_from_cam[::30], poses, atol=1e-9, rtol=0)
    swing = path.forward.diff(dim=0).norm(dim=-1)
    torch.testing.assert_close(swing, swing.mean().expand_as(swing), atol=1e-3 * float(swing.mean()), rtol=0)
    wild = interpolate(Cameras(plane(6, seed=4), K.expand(6, 3, 3), 48, 64), 4000)
    velocity = wild.centers.diff(dim=0)
    assert velocity.diff(dim=0).norm(dim=-1).max() < 0.02 * velocity.norm(dim=-1).max()  # C1: no jump in velocity


def test_closed_interpolation_joins_its_ends():
    keys = Cameras(ring(5), K.expand(5, 3, 3), 48, 64)
    path = interpolate(keys, 1000, closed=True)
    step = (path.centers - path.centers.roll(1, 0)).norm(dim=-1)
    assert step.max() < 1.5 * step.median()


def test_zoom_keyframes_blend():
    zoom = torch.stack([K, K * torch.tensor([2.0, 2, 1])[:, None]])
    path = interpolate(Cameras(ring(2), zoom, 48, 64), 3)
    torch.testing.assert_close(path.K[:, 0, 0], torch.tensor([50.0, 75, 100], dtype=torch.float64))


def test_size_is_the_most_common_one_or_the_one_asked_for():
    big = scene_of(ring(5), size=(48, 64))
    odd = scene_of(ring(2), size=(64, 48))
    mixed = replace(big, views=big.views + tuple(replace(v, name="x" + v.name) for v in odd.views))
    cameras = orbit(mixed, 3)
    assert (cameras.height, cameras.width) == (48, 64)
    half = orbit(mixed, 3, width=32)
    assert (half.height, half.width) == (24, 32)
    torch.testing.assert_close(half.K[0, :2], cameras.K[0, :2] / 2)
    square = orbit(mixed, 3, height=48, width=48)
    torch.testing.assert_close(square.K[0], torch.tensor([[50.0, 0, 24], [0, 50, 24], [0, 0, 1]]).double())


def test_nothing_to_fly_through_is_said():
    for path in (orbit, spiral, through):
        with pytest.raises(InputError, match="no view has a camera"):
            path(Scene(()), 5)
        with pytest.raises(InputError, match="0 frames"):
            path(scene_of(ring(3)), 0)
    with pytest.raises(InputError, match="0 keyframes"):
        interpolate(Cameras(torch.zeros(0, 4, 4), torch.zeros(0, 3, 3), 4, 4), 5)


def test_spiral_stays_near_the_cameras_and_looks_forward():
    poses = plane(20)
    cameras = spiral(scene_of(poses, cloud_at((0.0, 0, 8.0))), 60)
    offset = (cameras.centers - poses[:, :3, 3].mean(0)).abs()
    limit = (poses[:, :3, 3] - poses[:, :3, 3].mean(0)).abs().amax(0)
    assert (offset <= limit + 1e-6).all()
    assert cameras.forward[:, 2].min() > 0.9


@pytest.mark.parametrize("name, inward", [("fern", True), ("skull", True), ("temple", True), ("sceaux", True)])
def test_real_captures(name, inward):
    file = DEV / name / "cameras.json"
    if not file.is_file():
        pytest.skip(f"development data not beside the checkout: {file}")
    entries = json.loads(file.read_text())["images"]
    poses = torch.tensor([e["c2w"] for e in entries.values() if e.get("c2w")], dtype=torch.float64)
    scene = scene_of(poses)
    assert camera_layout(scene).inward == inward
    cameras = orbit(scene, 60)
    assert_rigid(cameras, 60)
    reach = torch.cdist(cameras.centers, poses[:, :3, 3]).amin(-1)
    assert reach.max() < scene.extent  # never far from where somebody stood
    assert_rigid(through(scene, 60), 60)
