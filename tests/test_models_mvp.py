"""MVP: the published code's answers on deterministic weights, and the laws of groups, frames, sizes and memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import weight
from torch.utils._python_dispatch import TorchDispatchMode
from view_scenes import picture, ring

from scenetx.core import Cameras, InputError, Sim3
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.models.mvp import Mvp, MvpConfig, SeenGaussians, from_published, group_sizes
from scenetx.models.weights import load_strictly, read_weights
from scenetx.models.zoo import build
from scenetx.splat import rasterize

GOLDEN = Path(__file__).parent / "golden/mvp_small.npz"
SMALL = MvpConfig(dims=(64, 128, 256), layers=(2, 4, 4))
TINY = MvpConfig(dims=(16, 32, 32), layers=(1, 2, 2), head_dim=16, patch=4, registers=1, scale_bias=-4.0, farthest=8.0)


def published_keys(config: MvpConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published checkpoint, written from its code."""
    keys: dict[str, tuple[int, ...]] = {"register_token_init": (1, 1, config.registers, config.dims[0])}
    keys["image_tokenizer.1.weight"] = (config.dims[0], 12 * config.patch**2)
    keys["image_tokenizer.2.weight"] = (config.dims[0],)
    for stage, (dim, count) in enumerate(zip(config.dims, config.layers, strict=True), 1):
        for index in range(count):
            at = f"stage{stage}.{index}"
            keys |= {f"{at}.ln1.weight": (dim,), f"{at}.ln2.weight": (dim,)}
            keys |= {f"{at}.attn.to_qkv.weight": (3 * dim, dim), f"{at}.attn.c_proj.weight": (dim, dim)}
            keys |= {f"{at}.attn.q_norm.weight": (config.head_dim,), f"{at}.attn.k_norm.weight": (config.head_dim,)}
            keys |= {f"{at}.mlp.c_fc.weight": (4 * dim, dim), f"{at}.mlp.c_proj.weight": (dim, 4 * dim)}
    width = config.dims[2]
    for index, (dim, out) in enumerate(zip(config.dims[:2], config.dims[1:], strict=True), 1):
        keys |= {f"merge_block{index}.weight": (out, 1, 2, 2), f"merge_block{index}.bias": (out,)}
        keys |= {f"resize_block{index}.weight": (out, dim), f"resize_block{index}.bias": (out,)}
    for index, dim in enumerate(config.dims, 1):
        keys |= {f"dpt_head.norm{index}.weight": (dim,), f"dpt_head.norm{index}.bias": (dim,)}
        keys[f"dpt_head.scratch.layer{index}_rn.weight"] = (width, dim, 3, 3)
        at = f"dpt_head.scratch.refinenet{index}"
        keys |= {f"{at}.out_conv.weight": (width, width, 1, 1), f"{at}.out_conv.bias": (width,)}
        for unit in (2,) if index == 3 else (1, 2):
            for conv in (1, 2):
                keys[f"{at}.resConfUnit{unit}.conv{conv}.weight"] = (width, width, 3, 3)
                keys[f"{at}.resConfUnit{unit}.conv{conv}.bias"] = (width,)
    last = "dpt_head.scratch.output_conv1"
    keys |= {f"{last}.weight": (width, width, 3, 3), f"{last}.bias": (width,)}
    return keys | {"gaussian_decoder.0.weight": (width,), "gaussian_decoder.1.weight": (31 * config.patch**2, width)}


def loaded(config: MvpConfig, seed: int = 3) -> Mvp:
    model = Mvp(config)
    tensors = {name: weight(name, shape, seed) for name, shape in published_keys(config).items()}
    load_strictly(model, from_published(tensors), "golden", torch.float32)
    return model.eval()


@torch.no_grad()
def test_the_published_code_answers_the_same():
    """Run with published code at 8 views of 64 x 48 (an odd grid in the last stage) and the weights of `published`."""
    golden = np.load(GOLDEN)
    cameras = ring(8, 48, 64, seed=5, spread=1.0)
    seen = loaded(SMALL)(picture(cameras), replace(cameras, world_from_cam=torch.from_numpy(golden["c2w"])))
    rows = torch.from_numpy(golden["rows"])
    gaussians = seen.gaussians[rows]
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(gaussians.means, torch.from_numpy(golden["xyz"]), rtol=1e-4, atol=2e-2)  # of 500
    torch.testing.assert_close(gaussians.scales.log(), torch.from_numpy(golden["scale"]), **close)
    torch.testing.assert_close(gaussians.sh, torch.from_numpy(golden["feature"]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen.opacity_sh[rows], torch.from_numpy(golden["opacity"])[..., 0], rtol=1e-3, atol=1e-3)
    quats = torch.nn.functional.normalize(torch.from_numpy(golden["rotation"]), dim=-1)
    torch.testing.assert_close((gaussians.quats * quats).sum(-1).abs(), torch.ones(len(rows)), rtol=0, atol=1e-5)


def test_the_published_checkpoint_loads_strictly(tmp_path):
    model = build("mvp", meta=True)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in published_keys(MvpConfig()).items()}
    ours = {name: tuple(value.shape) for name, value in from_published(tensors).items()}
    assert ours == {name: tuple(value.shape) for name, value in model.state_dict().items()}
    small = {name: weight(name, shape) for name, shape in published_keys(TINY).items()}
    training = {"model": {}, "ema": small | {"loss_computer.vgg.weight": torch.zeros(3)}}
    torch.save(training, tmp_path / "mvp.pt")
    load_strictly(Mvp(TINY), from_published(read_weights(tmp_path / "mvp.pt")), "mvp.pt", None)
    small.pop("merge_block1.bias")
    with pytest.raises(InputError, match=r"missing merge1\.bias"):
        load_strictly(Mvp(TINY), from_published(small), "mvp.pt", None)


def tiny() -> Mvp:
    torch.manual_seed(0)
    model = Mvp(TINY).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2)  # start values are small: make every branch speak
    return model


@pytest.mark.parametrize("views, height, width", [(1, 16, 16), (3, 18, 21), (5, 16, 24), (9, 13, 17)])
@torch.no_grad()
def test_any_number_of_views_of_any_size(views, height, width):
    cameras = ring(views, height, width)
    seen = tiny()(picture(cameras), cameras)
    assert len(seen) == views * height * width
    assert bool(seen.gaussians.finite().all())
    rays = seen.gaussians.means.unflatten(0, (views, height, width)) - cameras.centers[:, None, None]
    inside = (rays @ cameras.world_from_cam[:, None, :3, :3])[..., 2]
    assert bool((inside > 0).all())  # in front of their own camera
    with pytest.raises(InputError, match="mvp"):
        tiny()(picture(cameras)[:, :8], cameras)
    with pytest.raises(InputError, match="mvp"):
        tiny()(picture(cameras)[:0], cameras)
    with pytest.raises(InputError, match="at least 16 pixels"):
        tiny()(picture(cameras)[:, :8, :8], replace(cameras, height=8, width=8))


def test_groups_are_even():
    for views in range(1, 30):
        sizes = [size for size, count in group_sizes(views, 4) for _ in range(count)]
        assert sum(sizes) == views
        assert max(sizes) <= 4
        assert max(sizes) - min(sizes) <= 1
    assert group_sizes(8, 4) == [(4, 2)]


@torch.no_grad()
def test_the_world_frame_does_not_matter():
    """A world moved, turned and scaled gives the Gaussians moved, turned and scaled, colour and opacity with them."""
    cameras, model = ring(5, 16, 24), tiny()
    images = picture(cameras)
    turn = rotation_from_rotvec(torch.tensor([[0.3, -1.1, 0.4]], dtype=torch.float64))[0]
    motion = Sim3(2.5, turn, torch.tensor([3.0, -2.0, 7.0], dtype=torch.float64))
    there = model(images, replace(cameras, world_from_cam=motion.apply_to_poses(cameras.world_from_cam)))
    here = model(images, cameras).transformed(motion)
    torch.testing.assert_close(there.gaussians.means, here.gaussians.means, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(there.gaussians.scales, here.gaussians.scales, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(there.gaussians.covariances, here.gaussians.covariances, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(there.gaussians.sh, here.gaussians.sh, rtol=1e-2, atol=1e-3)
    center = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(
        there.seen_from(center).opacities, here.seen_from(center).opacities, rtol=1e-3, atol=1e-4
    )


@torch.no_grad()
def test_early_stages_see_their_group_only():
    cameras, model = ring(8, 16, 16), tiny()
    images = picture(cameras)
    broken = images.clone()
    broken[6] = 0.5
    encoded = [model.encode(some, cameras, _rays(cameras)) for some in (images, broken)]
    for stage, reach in ((0, [6]), (1, [4, 5, 6, 7]), (2, list(range(8)))):
        change = (encoded[0][stage] - encoded[1][stage]).abs().flatten(1).amax(1) > 1e-6
        assert change.nonzero()[:, 0].tolist() == reach


def _rays(cameras: Cameras):
    from scenetx.models.rays import camera_rays

    return camera_rays(cameras)


@torch.no_grad()
def test_the_opacity_of_a_direction():
    cameras = ring(4, 16, 16)
    seen = tiny()(picture(cameras), cameras)
    flat = SeenGaussians(seen.gaussians, torch.cat([seen.opacity_sh[:, :1], torch.zeros(len(seen), 8)], 1))
    torch.testing.assert_close(flat.seen_from(torch.zeros(3)).opacities, seen.gaussians.opacities)
    each = torch.stack([seen.seen_from(center).opacities for center in cameras.centers])
    assert each.std(0).max() > 0.01
    torch.testing.assert_close(seen.baked(cameras.centers).opacities, each.mean(0))


class Largest(TorchDispatchMode):
    """The largest tensor any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return out


@torch.no_grad()
def test_memory_grows_linearly_with_views():
    sizes = []
    for views in (8, 32):
        cameras = ring(views, 16, 16)
        with Largest() as seen:
            tiny()(picture(cameras), cameras)
        sizes.append(seen.elements)
    assert sizes[1] <= 4.01 * sizes[0]


@pytest.mark.slow
def test_it_learns_one_scene():
    """Over-fit: a tiny model paints its own views through the rasterizer."""
    torch.manual_seed(0)
    cameras = ring(4, 24, 24, spread=0.3)
    images = picture(cameras)
    model = Mvp(replace(TINY, scale_bias=-3.5, opacity_bias=0.0))
    step = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        gaussians = model(images, cameras).baked(cameras.centers)
        loss = (rasterize(gaussians, cameras).rgb - images).square().mean()
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert losses[-1] < 0.25 * losses[0]
