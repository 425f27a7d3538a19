"""The definition: what a splat is by hand, its gradient by differences, its cut-offs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from splat_scenes import make_scene

from scenetx.core import Cameras, Gaussians, InputError
from scenetx.splat import ScreenStats, rasterize, resolve_backend


def one_splat(opacity=0.8, scale=0.05, depth=2.0, dtype=torch.float64):
    gaussians = Gaussians(
        means=torch.tensor([[0.0, 0.0, depth]]),
        quats=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        scales=torch.full((1, 3), scale),
        opacities=torch.tensor([opacity]),
        sh=torch.zeros(1, 1, 3),
    )
    K = torch.tensor([[[100.0, 0, 10.5], [0, 100.0, 8.5], [0, 0, 1.0]]])
    return gaussians.to(dtype), Cameras(torch.eye(4)[None], K, 17, 21).to(dtype)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_one_splat_is_the_formula(backend):
    gaussians, cameras = one_splat(dtype=torch.float32)
    render = rasterize(gaussians, cameras, backend=backend)
    variance = (100 * 0.05 / 2) ** 2 + 0.3
    y, x = torch.meshgrid(torch.arange(17) - 8.0, torch.arange(21) - 10.0, indexing="ij")
    alpha = 0.8 * torch.exp(-0.5 * (x * x + y * y) / variance)
    alpha = torch.where(alpha < 1 / 255, 0, alpha)
    torch.testing.assert_close(render.alpha[0], alpha, atol=3e-6, rtol=0)
    torch.testing.assert_close(render.rgb[0], 0.5 * alpha[..., None].expand(-1, -1, 3), atol=3e-6, rtol=0)
    torch.testing.assert_close(render.depth[0], torch.where(alpha > 0, 2.0, 0.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_pixel_stops_before_the_splat_that_would_end_it(backend):
    gaussians, cameras = one_splat(opacity=1.0, dtype=torch.float32)  # clamped to 0.999
    stack = Gaussians.cat([gaussians] * 3)
    far = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 2.1], [0.0, 0.0, 2.2]])
    alpha = rasterize(replace(stack, means=far), cameras, backend=backend).alpha[0, 8, 10]
    # the second would leave 1e-6 <= 1e-4, so only the first counts
    assert float(alpha) == pytest.approx(0.999, abs=1e-6)


def test_antialiasing_keeps_the_energy_of_a_small_splat():
    gaussians, cameras = one_splat(opacity=0.5, scale=0.004)
    plain = rasterize(gaussians, cameras, antialiased=False).alpha.max()
    smooth = rasterize(replace(gaussians, antialiased=True), cameras).alpha.max()
    sharp = (100 * 0.004 / 2) ** 2
    assert float(smooth / plain) == pytest.approx(sharp / (sharp + 0.3), rel=1e-6)


@pytest.mark.parametrize("antialiased", [False, True])
def test_gradcheck(antialiased):
    # Opaque, broad splats of one picture's size: no alpha near 1/255, no end of a ray, so differences are honest.
    gaussians, cameras = make_scene(2, 3, 4, size=0.9, degree=2, dtype=torch.float64, seed=3)
    means = gaussians.means * torch.tensor([0.2, 0.2, 1.0], dtype=torch.float64)
    sh = gaussians.sh * 0.3
    opacities = gaussians.opacities * 0.4 + 0.2

    def run(means, quats, scales, opacities, sh, pose, background):
        scene = Gaussians(means, quats, scales, opacities, sh)
        out = rasterize(scene, replace(cameras, world_from_cam=pose), background=background, antialiased=antialiased)
        return out.rgb, out.depth, out.alpha

    inputs = (means, gaussians.quats, gaussians.scales, opacities, sh, cameras.world_from_cam, torch.rand(3).double())
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_screen_statistics_of_one_splat():
    gaussians, cameras = one_splat()
    gaussians = replace(gaussians, means=gaussians.means.clone().requires_grad_())
    stats = ScreenStats.zeros(1)
    rasterize(gaussians, cameras, stats=stats).alpha.sum().backward()
    reach = math.sqrt(2 * math.log(255 * 0.8))
    radius = math.ceil(reach * math.sqrt((100 * 0.05 / 2) ** 2 + 0.3))
    assert stats.seen.tolist() == [1]
    assert stats.radii.item() == pytest.approx(radius / 21)
    # The signed gradient cancels by symmetry, the absolute one does not.
    assert gaussians.means.grad[0, :2].abs().max() < 1e-9
    assert stats.grad2d.item() > 1


def test_empty_scenes_show_the_background():
    gaussians, cameras = make_scene(5, 7, 9, cameras=2)
    for backend in ("torch", "cpu"):
        render = rasterize(gaussians[:0], cameras, background=torch.tensor([0.1, 0.2, 0.3]), backend=backend)
        assert torch.equal(render.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(2, 7, 9, 3))
        assert not render.alpha.any()
        assert rasterize(gaussians, cameras[0:0], backend=backend).rgb.shape == (0, 7, 9, 3)


def test_the_door_names_what_is_wrong():
    gaussians, cameras = make_scene(3)
    with pytest.raises(InputError, match="float32"):
        rasterize(gaussians.to(torch.float64), cameras, backend="cpu")
    with pytest.raises(InputError, match="sh_degree"):
        rasterize(gaussians, cameras, sh_degree=-1)
    with pytest.raises(InputError, match="stats"):
        rasterize(gaussians, cameras, stats=ScreenStats.zeros(4))
    with pytest.raises(InputError, match="cuda"):
        rasterize(gaussians, cameras, backend="cuda")
    assert resolve_backend("auto", "cpu") == "cpu"
    assert resolve_backend("auto", "cpu", torch.float64) == "torch"
