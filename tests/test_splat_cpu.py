"""The numba backend against the definition: pictures, every gradient, threads, poison, extremes."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from dataclasses import replace

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splat_scenes import TENSORS, make_scene, render_and_differentiate

from scenetx.core import Gaussians
from scenetx.splat import rasterize

# A splat whose alpha is 1/255 to within rounding at some pixel is there in one backend and not in the other, and a ray
# can end one splat earlier. Pixels and splats touched by that are few and off by at most about 1/255: the band.
BAND = 2 / 255


def assert_twins(cpu, oracle):
    """Pictures and gradients agree: tight but for the few values at a hard cut-off."""
    render, gradients, stats = cpu
    true_render, true_gradients, true_stats = oracle
    for name in ("rgb", "alpha"):
        error = (getattr(render, name) - getattr(true_render, name)).abs()
        assert (error > 2e-5).double().mean() < 2e-3, name
        assert error.max() < BAND * 2, name
    error = (render.depth - true_render.depth).abs()
    assert (error > 1e-3).double().mean() < 2e-3
    for name, gradient in gradients.items():
        a, b = gradient.double().flatten(), true_gradients[name].double().flatten()
        assert torch.isfinite(a).all(), name
        assert a.norm() / b.norm() == pytest.approx(1, abs=1e-3), name
        assert 1 - torch.cosine_similarity(a, b, dim=0) < 1e-6, name
        off = (a - b).abs() > 1e-3 * b.abs() + 1e-4 * b.abs().max()
        assert off.double().mean() < 5e-3, f"{name}: {int(off.sum())} of {len(off)} elements"
    assert (stats.seen != true_stats.seen).double().mean() < 2e-3
    torch.testing.assert_close(stats.radii.double(), true_stats.radii.double(), atol=1.1 / 45, rtol=0)
    torch.testing.assert_close(stats.grad2d.sum(), true_stats.grad2d.sum().float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_numba_is_the_definition(degree, antialiased):
    gaussians, cameras = make_scene(400, cameras=2, seed=degree)
    options = {"sh_degree": degree, "antialiased": antialiased}
    cpu = render_and_differentiate(gaussians, cameras, "cpu", **options)
    oracle = render_and_differentiate(gaussians.to(torch.float64), cameras.to(torch.float64), "torch", **options)
    assert_twins(cpu, oracle)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (33, 8), (16, 16), (65, 23)])
def test_any_picture_size(height, width):
    gaussians, cameras = make_scene(150, height, width, size=0.3, degree=1)
    cpu = render_and_differentiate(gaussians, cameras, "cpu")
    oracle = render_and_differentiate(gaussians.to(torch.float64), cameras.to(torch.float64), "torch")
    for name in ("rgb", "alpha"):
        assert (getattr(cpu[0], name) - getattr(oracle[0], name)).abs().max() < BAND
    for name in TENSORS:
        a, b = cpu[1][name].double(), oracle[1][name]
        assert (a - b).norm() < 2e-2 * b.norm() + 1e-6, name


def test_splats_beside_and_behind_the_camera():
    gaussians, cameras = make_scene(300, size=0.2)
    gaussians = replace(gaussians, means=gaussians.means * 4)  # some behind, many beyond the frustum's margin
    cpu = render_and_differentiate(gaussians, cameras, "cpu")
    oracle = render_and_differentiate(gaussians.to(torch.float64), cameras.to(torch.float64), "torch")
    assert 0 < cpu[2].seen.sum() < 300
    for name in (*TENSORS, "world_from_cam"):
        a, b = cpu[1][name].double().flatten(), oracle[1][name].flatten()
        assert 1 - torch.cosine_similarity(a, b, dim=0) < 1e-4, name
    assert not cpu[1]["means"][cpu[2].seen == 0].any()


def test_bit_identical_for_any_number_of_threads():
    gaussians, cameras = make_scene(3000, 90, 120, cameras=2, size=0.05)
    most = numba.get_num_threads()
    if most < 2:
        pytest.skip("one core")
    try:
        results = []
        for threads in (1, most, most):
            numba.set_num_threads(threads)
            results.append(render_and_differentiate(gaussians, cameras, "cpu"))
    finally:
        numba.set_num_threads(most)
    for render, gradients, stats in results[1:]:
        first, first_gradients, first_stats = results[0]
        assert torch.equal(render.rgb, first.rgb)
        assert torch.equal(render.depth, first.depth)
        assert torch.equal(stats.grad2d, first_stats.grad2d)
        for name, gradient in gradients.items():
            assert torch.equal(gradient, first_gradients[name]), name


def test_two_python_threads_may_render_at_once():
    gaussians, cameras = make_scene(500)
    expected = rasterize(gaussians, cameras).rgb
    out = {}
    workers = [
        threading.Thread(target=lambda i=i: out.update({i: rasterize(gaussians, cameras).rgb})) for i in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(out) == 4
    assert all(torch.equal(rgb, expected) for rgb in out.values())


POISON = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1e-38, -1e-30, 1e10, 1e20, 1e30, 3e38, -3e38]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 19), st.integers(0, len(TENSORS) - 1), st.integers(0, 47), st.sampled_from(POISON)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
    st.sampled_from(["cpu", "torch"]),
)
def test_poison_draws_nothing_and_has_no_gradient(drops, antialiased, backend):
    gaussians, cameras = make_scene(20, 9, 13, size=0.2)
    tensors = {name: getattr(gaussians, name).clone() for name in TENSORS}
    for splat, tensor, element, value in drops:
        row = tensors[TENSORS[tensor]][splat : splat + 1].view(-1)
        row[element % len(row)] = value
    render, gradients, stats = render_and_differentiate(Gaussians(**tensors), cameras, backend, antialiased=antialiased)
    for picture in (render.rgb, render.depth, render.alpha):
        assert torch.isfinite(picture).all()
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
    poisoned = ~Gaussians(**tensors).finite()
    for name in TENSORS:
        assert not gradients[name][poisoned].any(), name
    assert not stats.seen[poisoned].any()


def test_a_hundred_thousand_splats_in_one_tile():
    count = 100_000
    gaussians, cameras = make_scene(count, 3, 3, degree=0, size=0.5, seed=1)
    gaussians = replace(gaussians, opacities=torch.full((count,), 0.0045))
    cpu = render_and_differentiate(gaussians, cameras, "cpu")
    oracle = render_and_differentiate(gaussians.to(torch.float64), cameras.to(torch.float64), "torch")
    assert (cpu[0].rgb - oracle[0].rgb).abs().max() < 1e-2
    a, b = cpu[1]["sh"].double().flatten(), oracle[1]["sh"].flatten()
    assert torch.cosine_similarity(a, b, dim=0) > 0.999


def test_a_million_splats_in_one_tile():
    count, opacity = 1_000_000, 0.01
    scene, cameras = make_scene(1, 3, 3, degree=0)
    opacities = torch.full((count,), opacity, requires_grad=True)
    stack = Gaussians(
        means=scene.means.zero_().expand(count, 3).contiguous(),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        scales=torch.full((count, 3), 100.0),
        opacities=opacities,
        sh=torch.zeros(count, 1, 3),
    )
    render = rasterize(stack, cameras, backend="cpu")
    taken = math.floor(math.log(1e-4) / math.log(1 - opacity))  # as many as leave more than 1e-4 of the light
    torch.testing.assert_close(render.alpha, torch.full((1, 3, 3), 1 - (1 - opacity) ** taken), rtol=1e-4, atol=0)
    render.alpha.sum().backward()
    assert int((opacities.grad != 0).sum()) == taken
    assert torch.equal(opacities.grad.nonzero().squeeze(-1), torch.arange(taken))  # equal depths keep their order


def test_kernels_stay_off_tbb_whose_workers_can_outlive_the_program():
    rasterize(*make_scene(50), backend="cpu")
    assert numba.threading_layer() in ("omp", "workqueue")


def test_only_what_is_asked_for_is_differentiated():
    gaussians, cameras = make_scene(50)
    gaussians = replace(gaussians, sh=gaussians.sh.clone().requires_grad_())
    rasterize(gaussians, cameras).depth.sum().backward()  # depth does not depend on colour
    assert not gaussians.sh.grad.any()
    assert not rasterize(gaussians.detach(), cameras).rgb.requires_grad


def test_importing_the_room_does_not_load_numba():
    code = "import sys, scenetx.splat; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("antialiased", [False, True])
def test_gsplat_is_the_definition(antialiased):
    pytest.importorskip("gsplat")
    gaussians, cameras = make_scene(400, cameras=2, degree=0)  # degree 0: gsplat drops the view direction's gradient
    cuda = render_and_differentiate(gaussians.to("cuda"), cameras.to("cuda"), "cuda", antialiased=antialiased)
    oracle = render_and_differentiate(gaussians, cameras, "torch", antialiased=antialiased)
    assert (cuda[0].rgb.cpu() - oracle[0].rgb).abs().max() < BAND * 2
    for name in (*TENSORS, "world_from_cam"):
        a, b = cuda[1][name].cpu().flatten(), oracle[1][name].flatten()
        assert torch.cosine_similarity(a, b, dim=0) > 0.9999, name
    assert torch.equal(cuda[2].seen.cpu(), oracle[2].seen)
    torch.testing.assert_close(cuda[2].grad2d.cpu(), oracle[2].grad2d, rtol=1e-2, atol=1e-3)
