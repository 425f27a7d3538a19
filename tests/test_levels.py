"""Levels of detail: merged splats keep mass, place and shape, turn with the scene, and leave no holes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import Gaussians, Sim3
from scenetx.core.cameras import Cameras, look_at
from scenetx.core.levels import bisected, coarser
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.measure.image import psnr
from scenetx.splat import rasterize


def cloud(count: int, seed: int = 0) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)
    return Gaussians(
        torch.randn(count, 3, generator=draw),
        torch.randn(count, 4, generator=draw),
        0.01 + 0.1 * torch.rand(count, 3, generator=draw),
        0.02 * torch.rand(count, generator=draw),
        torch.randn(count, 4, 3, generator=draw),
    )


def mass(gaussians: Gaussians) -> torch.Tensor:
    x, y, z = gaussians.scales.double().unbind(-1)
    return gaussians.opacities.double() * (x * y + y * z + z * x)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_groups_are_as_many_as_asked_and_nearly_equal(points, count, seed):
    count = min(points, count)
    draw = np.random.default_rng(seed)
    places, weights = draw.normal(size=(points, 3)), 10.0 ** draw.uniform(-6, 0, points)
    sizes = np.bincount(bisected(places, weights, count), minlength=count)
    assert len(sizes) == count
    assert sizes.min() >= 1
    even = np.bincount(bisected(places, np.ones(points), count), minlength=count)
    assert even.max() - even.min() <= -(-points // count)


def test_merging_keeps_mass_mean_and_covariance():
    fine = cloud(300)
    one = coarser(fine, 1)
    share = (mass(fine) / mass(fine).sum())[:, None]
    middle = (fine.means.double() * share).sum(0)
    assert torch.allclose(one.means[0].double(), middle, atol=1e-5)
    off = fine.means.double() - middle
    spread = ((fine.covariances.double() + off[:, :, None] * off[:, None]) * share[..., None]).sum(0)
    assert torch.allclose(one.covariances[0].double(), spread, rtol=1e-4, atol=1e-6)
    assert float(mass(coarser(fine, 40)).sum()) == pytest.approx(float(mass(fine).sum()), rel=1e-4)


def test_as_many_as_there_are_is_the_same_and_broken_ones_go():
    fine = cloud(20)
    assert all(torch.equal(getattr(coarser(fine, 20), name), getattr(fine, name)) for name in ("means", "sh"))
    broken = replace(fine, means=fine.means.index_fill(0, torch.tensor([3]), torch.nan))
    assert len(coarser(broken, 20)) == 19
    assert bool(coarser(broken, 5).finite().all())
    assert len(coarser(fine[:0], 5)) == 0
    with pytest.raises(ValueError, match="0 Gaussians"):
        coarser(fine, 0)


def test_it_turns_and_grows_with_the_scene():
    fine = replace(cloud(64), sh=cloud(64).sh[:, :1])
    motion = Sim3(2.0, rotation_from_rotvec(torch.tensor([0.0, 0.0, torch.pi / 2])), torch.tensor([1.0, 2.0, 3.0]))
    a, b = coarser(fine.transformed(motion), 16), coarser(fine, 16).transformed(motion)
    order_a, order_b = a.means[:, 0].argsort(), b.means[:, 0].argsort()
    assert torch.allclose(a.means[order_a], b.means[order_b], atol=1e-4)
    assert torch.allclose(a.covariances[order_a], b.covariances[order_b], atol=1e-4)
    assert torch.allclose(a.opacities[order_a], b.opacities[order_b], rtol=1e-3)


def test_a_merged_wall_has_no_holes():
    """A quarter of a wall's splats, merged, shows its picture; the most important quarter of them shows holes."""
    side = 48
    x, y = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    means = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    colour = torch.stack([0.5 + 0.4 * x, 0.5 + 0.4 * y, 0.5 - 0.4 * x * y], -1).reshape(-1, 1, 3)
    turn = torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1)
    scales = torch.tensor([0.02, 0.02, 0.001]).repeat(len(means), 1)
    wall = Gaussians(means, turn, scales, torch.full((len(means),), 0.9), (colour - 0.5) / 0.28209479)
    camera = Cameras(
        look_at(torch.tensor([[0.2, 0.1, -3.0]]), torch.zeros(3), torch.tensor([0.0, -1.0, 0.0])),
        torch.tensor([[[90.0, 0, 32], [0, 90, 32], [0, 0, 1]]]),
        64,
        64,
    )
    full = rasterize(wall, camera).rgb[0]
    merged = rasterize(coarser(wall, len(wall) // 4), camera).rgb[0]
    few = rasterize(wall[::4], camera).rgb[0]
    assert psnr(full, merged) > psnr(full, few) + 5
