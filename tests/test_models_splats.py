"""Pixel-aligned Gaussians: where they are, how large, what merging keeps; the learned head and its bounds."""

from dataclasses import replace

import pytest
import torch
from view_scenes import picture, ring

from scenetx.core import Cameras, InputError, Sim3, project
from scenetx.core.cameras import pixel_grid
from scenetx.core.gaussians import SH_C0
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.models.pixel_splats import cells, confident, footprint, merged, pixel_gaussians, pixel_points
from scenetx.models.splat_head import SplatHead, SplatHeadConfig
from scenetx.splat import rasterize

SMALL = SplatHeadConfig(dim=12, widths=(8, 8, 8, 8), features=8, layers=1)


def wall(cameras: Cameras, distance: float = 1.5) -> torch.Tensor:
    """z-depth of the plane z = ``distance`` of the world."""
    ray = pixel_points(torch.ones(len(cameras), cameras.height, cameras.width), cameras)
    center = cameras.centers[:, None, None, :]
    return (distance - center[..., 2]) / (ray - center)[..., 2]


def test_pixels_lie_on_their_rays_and_are_half_a_pixel_wide():
    cameras = ring(3, 14, 18)
    images, depth = picture(cameras), wall(cameras)
    depth[0, :, :4] = 0
    gaussians = pixel_gaussians(images, depth, cameras)
    known = depth > 0
    assert len(gaussians) == int(known.sum())
    torch.testing.assert_close(gaussians.means[:, 2], torch.full((len(gaussians),), 1.5), atol=1e-4, rtol=0)
    seen, z = project(gaussians.means, cameras[2])
    own = slice(int(known[:2].sum()), None)
    torch.testing.assert_close(seen[0, own], pixel_grid(14, 18).flatten(0, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(z[0, own], depth[2].flatten(), atol=1e-4, rtol=0)
    torch.testing.assert_close(gaussians.scales[own, 0], 0.5 * depth[2].flatten() / cameras.K[2, 0, 0])
    torch.testing.assert_close(0.5 + SH_C0 * gaussians.sh[own, 0], images[2].flatten(0, 1))
    shown = rasterize(gaussians[own], cameras[2]).rgb[0]
    plain = (images[2] - images[2].flatten(0, 1).mean(0)).abs().mean()
    assert (shown - images[2]).abs()[2:-2, 2:-2].mean() < 0.5 * plain


def test_a_pointmap_says_where():
    cameras = ring(2, 8, 8)
    points = torch.randn(2, 8, 8, 3)
    gaussians = pixel_gaussians(picture(cameras), wall(cameras), cameras, points=points)
    torch.testing.assert_close(gaussians.means, points.flatten(0, 2))
    torch.testing.assert_close(gaussians.scales[:, 0], 0.5 * footprint(wall(cameras), cameras).flatten())


def test_merging_keeps_moments_and_colours():
    cameras = ring(4, 24, 24)
    gaussians = pixel_gaussians(picture(cameras), wall(cameras), cameras)
    weights = torch.rand(len(gaussians), generator=torch.Generator().manual_seed(0)) + 0.1
    few = merged(gaussians, weights, cameras.centers, 300, spread=1.0)
    assert 100 < len(few) <= 300
    labels = cells(gaussians.means, cameras.centers, 300)
    mass = torch.zeros(len(few)).index_add(0, labels, weights)
    for own, all_of_it in ((few.means, gaussians.means), (few.sh[:, 0], gaussians.sh[:, 0])):
        torch.testing.assert_close(
            (mass[:, None] * own).sum(0), (weights[:, None] * all_of_it).sum(0), rtol=1e-4, atol=1e-3
        )
    second = [
        (w[:, None, None] * (g.covariances + g.means[:, :, None] * g.means[:, None, :])).sum(0)
        for g, w in ((few, mass), (gaussians, weights))
    ]
    torch.testing.assert_close(*second, rtol=2e-3, atol=0.5)
    scales = merged(gaussians, weights, cameras.centers, 60).scales
    assert (scales.min(-1).values / scales.max(-1).values).median() < 0.4  # a wall's splats are flat
    close = rasterize(merged(gaussians, weights, cameras.centers, 300), cameras)
    assert (close.rgb - picture(cameras)).abs().mean() < 0.1
    assert close.alpha.mean() > 0.9
    assert merged(few, mass, cameras.centers, 10**6) is few


def test_cells_are_larger_where_cameras_are_far():
    eyes = torch.zeros(1, 3)
    generator = torch.Generator().manual_seed(1)
    near, far = torch.rand(4000, 3, generator=generator) + 1, 64 * (torch.rand(4000, 3, generator=generator) + 1)
    labels = cells(torch.cat([near, far]), eyes, 500)
    counts = [len(labels[part].unique()) for part in (slice(0, 4000), slice(4000, None))]
    assert sum(counts) <= 500
    assert 0.5 < counts[0] / counts[1] < 2
    assert len(cells(torch.ones(7, 3), eyes, 3).unique()) == 1


def test_the_least_sure_go():
    assert confident(torch.tensor([1.0, 3, 2, 0]), 0.5).tolist() == [False, True, True, False]
    assert confident(torch.ones(4), 0.25).tolist() == [True, True, True, False]


@pytest.mark.parametrize("kind", ["conv", "dpt"])
def test_an_untrained_head_lifts_and_a_wild_one_keeps_its_bounds(kind):
    cameras = ring(2, 16, 24)
    images, depth = picture(cameras), wall(cameras)
    torch.manual_seed(0)
    head = SplatHead(replace(SMALL, kind=kind))
    extra = {"tokens": [torch.randn(2, 24, 12) for _ in range(4)], "grid": (4, 6)} if kind == "dpt" else {}
    plain, lifted = head(images, depth, cameras, **extra), pixel_gaussians(images, depth, cameras)
    torch.testing.assert_close(plain.gaussians.means, lifted.means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.gaussians.scales, lifted.scales, rtol=1e-4, atol=0)
    torch.testing.assert_close(plain.gaussians.sh[:, :1], lifted.sh, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.gaussians.opacities, lifted.opacities, atol=1e-2, rtol=0)
    torch.nn.init.normal_(head.last.weight, std=30.0)
    wild = head(images, depth, cameras, **extra)
    assert bool(wild.gaussians.finite().all())
    pixels = wild.gaussians.scales / footprint(depth, cameras).flatten()[:, None]
    assert 0.08 < pixels.min() < pixels.max() < 9
    seen, z = project(wild.gaussians.means[: 16 * 24], cameras[0])
    assert ((seen[0] - pixel_grid(16, 24).flatten(0, 1)).abs() <= 0.501).all()
    assert ((z[0] / depth[0].flatten() - 1).abs() <= 0.101).all()
    loss = wild.gaussians.means.sum() + wild.gaussians.sh.square().sum() + wild.gaussians.scales.log().sum()
    (loss + wild.confidence.log().sum() + wild.gaussians.quats[:, 1].sum() + wild.gaussians.opacities.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())
    few = wild.scene(100)
    assert len(few) <= 100
    assert bool(few.finite().all())


def test_the_head_does_not_know_the_world():
    """Cameras moved, turned and scaled with the depth: the Gaussians go along."""
    cameras = ring(2, 16, 16)
    images, depth = picture(cameras), wall(cameras)
    torch.manual_seed(0)
    head = SplatHead(SMALL)
    torch.nn.init.normal_(head.last.weight, std=0.3)
    turn = rotation_from_rotvec(torch.tensor([[0.2, 0.5, -1.0]], dtype=torch.float64))[0]
    motion = Sim3(3.0, turn, torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64))
    moved = replace(cameras, world_from_cam=motion.apply_to_poses(cameras.world_from_cam))
    with torch.no_grad():
        there = head(images, 3 * depth, moved).gaussians
        here = head(images, depth, cameras).gaussians.transformed(motion)
    for name in ("means", "scales", "opacities", "sh", "covariances"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), rtol=1e-3, atol=1e-3, msg=name)


def test_wrong_input_is_one_line():
    cameras = ring(2, 16, 16)
    images, depth = picture(cameras), wall(cameras)
    depth[0, 0, 0] = 0
    with pytest.raises(InputError, match="depth"):
        SplatHead(SMALL)(images, depth, cameras)
    with pytest.raises(InputError, match="tokens"):
        SplatHead(replace(SMALL, kind="dpt"))(images, wall(cameras), cameras)
    with pytest.raises(InputError, match="least"):
        SplatHeadConfig(least=2.0)


@pytest.mark.slow
def test_it_learns_to_paint_better_than_lifting():
    """Over-fit on one scene whose depth is wrong by a tenth of a wave: new views get better."""
    cameras = ring(4, 24, 24, spread=0.4)
    images, depth = picture(cameras), wall(cameras)
    torch.manual_seed(0)
    head = SplatHead(replace(SMALL, features=16, layers=2))
    step = torch.optim.Adam(head.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        gaussians = head(images[:3], depth[:3], cameras[:3]).gaussians
        loss = (rasterize(gaussians, cameras).rgb - images).square().mean()
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
