"""What a splat's numbers are worth to the pictures, and which bytes they get for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from splat_scenes import make_scene

from scenetx.core import Gaussians, InputError
from scenetx.fit.codes import cheapest
from scenetx.fit.sensitivity import sensitivity
from scenetx.splat import rasterize


def jacobian_squares(gaussians: Gaussians, cameras) -> dict[str, torch.Tensor]:
    """The definition: every pixel's gradient on its own, squared, and their mean."""
    names = ("means", "quats", "scales", "opacities", "sh")
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in names}
    rgb = rasterize(replace(gaussians, **leaves), cameras, backend="torch").rgb.flatten()
    sums = {name: torch.zeros_like(leaves[name]) for name in names}
    for value in rgb:
        for name, part in zip(names, torch.autograd.grad(value, list(leaves.values()), retain_graph=True), strict=True):
            sums[name] += part.square()
    return {name: total / len(rgb) for name, total in sums.items()}


def test_sensitivity_is_the_diagonal_by_its_definition():
    gaussians, cameras = make_scene(5, 10, 12, cameras=2, degree=1, size=0.3)
    exact = jacobian_squares(gaussians, cameras)
    exact["log_scales"] = exact.pop("scales") * gaussians.scales.square()
    found = sensitivity(gaussians, [cameras[0], cameras[1]] * 150)
    for name, value in exact.items():
        large = value > 0.2 * value.mean()
        assert large.any()
        ratio = getattr(found, name)[large] / value[large]
        assert float((ratio - 1).abs().mean()) < 0.1, name
        assert float((ratio - 1).abs().max()) < 0.4, name
    again = sensitivity(gaussians, [cameras[0]], seed=3, backend="torch")
    torch.testing.assert_close(again.sh, sensitivity(gaussians, [cameras[0]], seed=3, backend="torch").sh)
    assert not torch.equal(again.sh, sensitivity(gaussians, [cameras[0]], seed=4, backend="torch").sh)
    with pytest.raises(InputError, match="no camera"):
        sensitivity(gaussians, [])


def test_what_no_camera_sees_is_not_free():
    gaussians, cameras = make_scene(6, 10, 12, degree=0, size=0.3)
    gaussians.means[0] = torch.tensor([0.0, 0.0, -50.0])
    found = sensitivity(gaussians, [cameras], backend="torch")
    assert 0 < float(found.opacities[0]) < 0.01 * float(found.opacities.max())


def test_black_is_not_free():
    """A colour clamped for the cameras that tell may show for others."""
    gaussians, cameras = make_scene(6, 10, 12, degree=1, size=0.3)
    dark = replace(gaussians, sh=gaussians.sh.clone())
    dark.sh[:, 0] = -10.0
    felt, usual = (sensitivity(splats, [cameras], backend="torch").sh for splats in (dark, gaussians))
    torch.testing.assert_close(felt, usual)


def lagrangian(symbols: np.ndarray, places: np.ndarray, weights: np.ndarray, price: float) -> float:
    """Error, and bits by how often each symbol occurs."""
    counts = np.bincount(symbols, minlength=256)
    bits = -np.log2(np.maximum(counts, 1) / len(symbols))
    return float((weights * (symbols - places) ** 2).sum() + price * bits[symbols].sum())


@pytest.mark.parametrize(("price", "share"), [(1e-3, 1.02), (1e-1, 1.0), (1.0, 0.96), (10.0, 0.85)])
def test_symbols_are_cheaper_than_any_one_step(price, share):
    generator = np.random.default_rng(0)
    places = generator.normal(120, 25, 4000).clip(0, 255)
    weights = np.exp(generator.normal(0, 2.5, 4000))
    ours = lagrangian(cheapest(places, weights, price, middle=128), places, weights, price)
    uniform = [np.rint(places / step).astype(int) * step for step in (1, 2, 4, 8, 16, 32)]
    best = min(lagrangian(symbols.clip(0, 255), places, weights, price) for symbols in uniform)
    assert ours < share * best


def test_symbols_stay_in_their_bounds():
    places = np.array([-3.0, 0.2, 100.4, 254.9, 300.0])
    weights = np.ones(5)
    assert cheapest(places, weights, 0.0).tolist() == [0, 0, 100, 255, 255]
    assert cheapest(places, weights, 0.0, least=1).tolist() == [1, 1, 100, 255, 255]
    far = cheapest(np.array([10.0] * 50 + [200.0]), np.full(51, 1e-9), 1.0, reach=5)
    assert abs(int(far[-1]) - 200) <= 5
    green = np.arange(0, 250, 5)
    near = cheapest(green + 3.3, np.ones(50), 0.5, minus=green)
    assert len(np.unique(near - green)) == 1  # the difference costs no bits when it is always the same
