"""The numba backend against the definition with the hard cut-offs named: which pixels and splats they touch is worked
out in float64, and everything else has to agree to rounding, every element of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from splat_scenes import TENSORS, make_scene, render_and_differentiate

from scenetx.core.cameras import pixel_grid
from scenetx.splat.rules import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from scenetx.splat.torch_backend import project_splats

CLOSE = 1e-4  # relative: what float32 leaves open of an alpha, and of a transmittance after many splats
BAND = 2 / 255


def at_cutoffs(gaussians, camera, sh_degree, antialiased):
    """(height, width) pixels with a splat within `CLOSE` of a cut-off, and (gaussians,) splats that such a pixel sees.

    Cut-offs: alpha at 1/255 and at its ceiling, a ray's end, a colour at zero.
    """
    gaussians = replace(gaussians, sh=gaussians.sh[:, : (sh_degree + 1) ** 2])
    splats = project_splats(gaussians, camera, sh_degree, antialiased)
    order = splats.depths.argsort(stable=True)
    splats = type(splats)(*(values[order] for values in splats))
    pixels = pixel_grid(camera.height, camera.width, dtype=torch.float64).reshape(-1, 2)
    dx, dy = (splats.means[:, None] - pixels).unbind(-1)
    a, b, c = splats.conics[:, None].unbind(-1)
    raw = splats.opacities[:, None] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
    raw = torch.where((splats.depths > 0)[:, None], raw, 0)
    alpha = torch.where(raw >= MIN_ALPHA, raw.clamp(max=MAX_ALPHA), 0)
    log_after = torch.log1p(-alpha).cumsum(0)
    ending = (log_after - math.log(MIN_TRANSMITTANCE)).abs() < CLOSE * 10
    close = ((raw / MIN_ALPHA - 1).abs() < CLOSE) | ((raw / MAX_ALPHA - 1).abs() < CLOSE) | (ending & (alpha > 0))
    pixel = close.any(0)
    touched = ((raw >= 0.99 * MIN_ALPHA) & pixel).any(1) | (splats.colors.abs() < 1e-5).any(-1)
    named = torch.zeros(len(gaussians), dtype=torch.bool)
    named[order] = touched
    return pixel.reshape(camera.height, camera.width), named


@pytest.mark.parametrize(("degree", "antialiased", "seed"), [(0, False, 0), (1, True, 1), (2, False, 2), (3, True, 3)])
def test_away_from_the_cutoffs_every_element_agrees(degree, antialiased, seed):
    gaussians, cameras = make_scene(300, seed=seed)
    options = {"sh_degree": degree, "antialiased": antialiased}
    cpu, gradients, _ = render_and_differentiate(gaussians, cameras, "cpu", **options)
    double = (gaussians.to(torch.float64), cameras.to(torch.float64))
    oracle, true_gradients, _ = render_and_differentiate(*double, "torch", **options)
    pixel, named = at_cutoffs(*double, degree, antialiased)
    assert pixel.double().mean() < 0.05
    assert named.double().mean() < 0.5

    for part in ("rgb", "alpha"):
        error = (getattr(cpu, part) - getattr(oracle, part)).abs()[0]
        assert error[~pixel].max() < 2e-5, part
        assert error.max() < BAND, part
    for name in TENSORS:
        mine, true = (table[name].double().reshape(len(named), -1)[~named] for table in (gradients, true_gradients))
        scale = true.abs().amax()
        torch.testing.assert_close(
            mine, true, rtol=1e-3, atol=float(2e-5 * scale), msg=lambda text, n=name: f"{n}: {text}"
        )
        # No side is favoured: errors of either sign cancel far below their size.
        bias = ((mine - true) * true.sign()).sum() / true.abs().sum()
        assert abs(float(bias)) < 1e-5, name


def test_a_splat_at_the_edge_of_sight_is_named():
    gaussians, camera = make_scene(2, seed=5, dtype=torch.float64)
    clear = replace(gaussians, opacities=torch.full((2,), 0.5, dtype=torch.float64))
    splats = project_splats(clear, camera, 3, False)
    column, row = splats.means[0].floor().long().tolist()
    dx, dy = splats.means[0] - torch.tensor([column + 0.5, row + 0.5], dtype=torch.float64)
    a, b, c = splats.conics[0]
    there = torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)  # its alpha at that pixel, of opacity 1
    for factor, expected in ((1.0, True), (1.001, False), (0.999, False)):
        opacities = torch.tensor([factor * MIN_ALPHA / float(there), 0.5], dtype=torch.float64)
        pixel, named = at_cutoffs(replace(clear, opacities=opacities), camera, 3, False)
        assert bool(pixel[row, column]) == bool(named[0]) == expected
