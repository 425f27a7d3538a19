"""Blocks of pixels as splats, planes that neighbours agree on, colours set right against the pictures."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from wall_scene import textured

from scenetx.core import Gaussians
from scenetx.geometry.smooth_planes import _path, aggregated
from scenetx.models.quad_splats import BlockTree, grouped
from scenetx.pipeline.lifting import LiftedSettings, lifted, painted
from scenetx.splat import rasterize


def test_a_path_costs_what_the_cheapest_choice_of_planes_costs():
    cost = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0))
    jump, small = torch.full((3, 2), 0.3), 0.1
    found = _path(cost, jump, small)
    for line, last in product(range(2), range(3)):
        best = {}
        for planes in product(range(3), repeat=4):
            steps = [abs(a - b) for a, b in pairwise(planes)]
            total = sum(float(cost[i, line, p]) for i, p in enumerate(planes)) + sum(
                0 if step == 0 else small if step == 1 else 0.3 for step in steps
            )
            best[planes[3]] = min(total, best.get(planes[3], 1e9))
        # The recursion keeps only differences: the best end is what all are measured from.
        assert float(found[3, line, last] - found[3, line].min()) == pytest.approx(best[last] - min(best.values()))


def test_planes_close_over_noise_and_keep_edges():
    truth = torch.where(torch.arange(24).expand(20, 24) < 12, 3, 8)
    cost = 1 - torch.nn.functional.one_hot(truth, 12).permute(2, 0, 1).float()
    wrong = torch.rand(20, 24, generator=torch.Generator().manual_seed(0)) < 0.3
    cost = torch.where(wrong, torch.rand(12, 20, 24, generator=torch.Generator().manual_seed(1)), cost)
    assert ((cost.argmin(0) - truth).abs() <= 1).float().mean() < 0.85
    grey = torch.where(truth == 3, 0.2, 0.8)
    assert ((aggregated(cost, grey).argmin(0) - truth).abs() <= 1).float().mean() > 0.95


def test_detail_gets_small_blocks_and_flat_colour_large_ones():
    image = torch.full((40, 70, 3), 0.5)
    image[:, :20] = torch.rand(40, 20, 3, generator=torch.Generator().manual_seed(0))
    wanted = torch.ones(40, 70, dtype=torch.bool)
    wanted[30:, 60:] = False
    trees = [BlockTree.of(image, torch.full((40, 70), 2.0), wanted.float())] * 2
    for most in (5000, 1200, 300):
        labels, count = grouped(trees, most)
        assert count <= most
        together = torch.cat([label[label >= 0] for label in labels])
        assert torch.equal(together.unique(), torch.arange(count))
        assert all(torch.equal(label >= 0, wanted) for label in labels)
    busy, flat = labels[0][:, :20].unique(), labels[0][:, 32:].unique()
    assert len(busy) > 2 * len(flat)
    edge = torch.where(torch.arange(70).expand(40, 70) < 37, 2.0, 4.0)
    (label,), _ = grouped([BlockTree.of(torch.zeros(40, 70, 3), edge, wanted.float())], 200)
    assert not set(label[:, :37].unique().tolist()) & set(label[:, 37:][label[:, 37:] >= 0].tolist())
    assert grouped([BlockTree.of(image, edge, torch.zeros(40, 70))], 10)[1] == 0


def wall() -> list:
    views, exact, _ = textured(4)
    return [replace(view, depth=depth) for view, depth in zip(views, exact, strict=True)]


def shown(gaussians: Gaussians, view) -> float:
    render = rasterize(gaussians, view.camera, backend="torch")
    error = (render.rgb[0].clamp(0, 1) - view.image.float() / 255)[render.alpha[0] > 0.9]
    return float(-10 * error.square().mean().log10())


def test_a_surface_is_lifted_once_and_painted_right():
    views = wall()
    once = lifted(views, 10**6, LiftedSettings())
    pixels = views[0].image.shape[0] * views[0].image.shape[1]
    assert pixels <= len(once) < 2.5 * pixels  # four pictures of one wall from nearly the same side
    few = lifted(views, 600, LiftedSettings())
    assert len(few) <= 600
    assert bool(few.finite().all())
    better = painted(few, views[:3], LiftedSettings(rounds=3), width=64, backend="torch")
    assert shown(better, views[3]) > shown(few, views[3]) + 0.5
    still = painted(few, views[:3], LiftedSettings(rounds=0), width=64, backend="torch")
    assert torch.equal(still.sh, few.sh)
