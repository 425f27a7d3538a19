"""Predicted depth to points: exact on an exact scene, wrong depth is voted out, given cameras there and back."""

import pytest
import torch

from scenetx.core import Cameras, Original, Points, View, project
from scenetx.core.cameras import look_at, pixel_grid
from scenetx.geometry.lift import (
    LiftSettings,
    agreement,
    depth_scale,
    fuse,
    nearest_views,
    normalize_cameras,
    steady,
    thin,
    trusted,
)  # fmt: skip

SIZE = (48, 64)


def cameras() -> list[Cameras]:
    """Five cameras on an arc that look at the origin."""
    eyes = torch.tensor([[x, -0.3, -3.0] for x in (-1.0, -0.5, 0.0, 0.5, 1.0)], dtype=torch.float64)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]], dtype=torch.float64)
    return [Cameras(pose[None], K[None], *SIZE) for pose in poses]


def plane_depth(camera: Cameras) -> torch.Tensor:
    """z-depth of the world plane z = 0.5 at every pixel."""
    pixels = pixel_grid(*SIZE, dtype=torch.float64)
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1) @ torch.linalg.inv(camera.K[0]).T
    along = rays @ camera.world_from_cam[0, :3, :3].T
    return ((0.5 - camera.centers[0, 2]) / along[..., 2]).float()


def views() -> list[View]:
    return [
        View(
            f"{index}.png",
            torch.full((*SIZE, 3), 10 * index, dtype=torch.uint8),
            Original("", *SIZE),
            camera=camera,
            depth=plane_depth(camera),
            confidence=torch.ones(SIZE),
        )
        for index, camera in enumerate(cameras())
    ]


def test_exact_depth_agrees_everywhere_it_is_seen():
    scene = views()
    depths = [view.depth for view in scene]
    votes = agreement(depths, cameras(), 2, [0, 1, 3, 4], 0.01)
    assert (votes[10:-10, 15:-15] == 4).all()
    kept = trusted(scene, LiftSettings(confident=0.0))
    points = fuse(scene, kept, 100_000)
    assert len(points) > 0.8 * 5 * SIZE[0] * SIZE[1]
    assert (points.positions[:, 2] - 0.5).abs().max() < 1e-4
    assert set(points.colors[:, 0].tolist()) == {0, 10, 20, 30, 40}


def test_wrong_depth_is_voted_out_and_masked_pixels_stay_out():
    scene = views()
    wrong = scene[2].depth.clone()
    wrong[20:30, 30:40] *= 1.3
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[:5] = False
    scene[2] = View("2.png", scene[2].image, scene[2].original, scene[2].camera, mask, wrong, torch.ones(SIZE))
    kept = trusted(scene, LiftSettings(confident=0.0))[2]
    assert (kept[20:30, 30:40] == 0).all()
    assert (kept[:5] == 0).all()
    assert (kept[35:40, 20:40] > 0).all()


def test_the_unsure_and_the_edges_are_left_out():
    scene = views()
    confidence = torch.ones(SIZE)
    confidence[:, :32] = 2
    scene[1] = View("1.png", scene[1].image, scene[1].original, scene[1].camera, None, scene[1].depth, confidence)
    kept = trusted(scene, LiftSettings(confident=0.6))[1]
    assert (kept[:, 32:] == 0).all()
    assert (kept[10:40, 8:30] > 0).any()
    step = torch.ones(10, 10)
    step[:, 5:] = 2.0
    flat = steady(step, 0.04)
    assert not flat[:, 4:6].any()
    assert flat[:, :4].all()
    assert flat[:, 6:].all()
    assert not steady(torch.zeros(4, 4), 0.04).any()


def test_neighbours_are_near_and_look_the_same_way():
    ring = cameras()
    assert set(nearest_views(ring, 0, 2)) == {1, 2}
    away = ring[1].world_from_cam.clone()
    away[0, :3, :3] = away[0, :3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))
    turned = [ring[0], Cameras(away, ring[1].K, *SIZE), *ring[2:]]
    assert 1 not in nearest_views(turned, 0, 3)


def test_depth_follows_the_sparse_points_scale():
    camera = cameras()[1]
    points = fuse(views(), [view.depth for view in views()], 500).positions
    assert depth_scale(plane_depth(camera) / 2.5, camera, points) == pytest.approx(2.5, rel=0.02)
    assert depth_scale(plane_depth(camera), camera, points[:3]) is None
    assert depth_scale(plane_depth(camera), camera, torch.zeros(0, 3)) is None


def test_given_cameras_go_there_and_back():
    given = Cameras.cat(cameras())
    normal, back = normalize_cameras(given)
    assert torch.allclose(normal.world_from_cam[0], torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert float(normal.centers[1:].norm(dim=-1).median()) == pytest.approx(1.0)
    assert torch.allclose(back.apply_to_poses(normal.world_from_cam), given.world_from_cam, atol=1e-9)
    # What the cameras see stays where it is in the pictures.
    point = torch.tensor([[0.1, 0.2, 0.5]], dtype=torch.float64)
    before, after = project(point, given)[0], project(back.inverse().apply(point), normal)[0]
    assert torch.allclose(before, after, atol=1e-8)
    alone, one = normalize_cameras(given[2])
    assert one.scale == 1.0
    assert len(alone) == 1


def test_thinning_keeps_the_number_and_the_spread():
    generator = torch.Generator().manual_seed(0)
    heap = torch.cat([0.01 * torch.randn(5000, 3, generator=generator), torch.rand(500, 3, generator=generator)])
    chosen = thin(heap, 400)
    assert 200 < len(chosen) <= 400
    assert len(set(chosen.tolist())) == len(chosen)
    # The heap is a tenth of one cell's worth of space: it does not take the places of the rest.
    assert (chosen >= 5000).float().mean() > 0.5
    assert len(thin(heap[:10], 400)) == 10
    empty = fuse([], [], 10)
    assert isinstance(empty, Points)
    assert len(empty) == 0
