"""The cache's law, for every geometry model: a step equals the full forward in which the map does not see the query."""

from dataclasses import replace

import pytest
import torch

from scenetx.core import Cameras, InputError
from scenetx.models import dense_head, layers
from scenetx.models.attention import KVCache, KVShape, attend, query_mask
from scenetx.models.backbone import VitConfig
from scenetx.models.da3 import PRESETS, Da3, Da3Config
from scenetx.models.mapanything import MapAnything, MapAnythingConfig
from scenetx.models.pi3 import Pi3, Pi3Config
from scenetx.models.pi3x import Pi3x, Pi3xConfig
from scenetx.models.vggt import Vggt, VggtConfig
from scenetx.models.zoo import build

HEIGHT, WIDTH = 42, 56
LAW = 1e-4
VIT = VitConfig(64, 2, 4, grid=5)


def da3():
    return Da3(Da3Config(64, 6, 2, alternate_from=2, out_layers=(2, 3, 4, 5), features=16, widths=(8, 8, 16, 16)))


def vggt():
    vit = replace(VIT, registers=4, offset=0.0, antialias=True, mask_token=True)
    return Vggt(
        VggtConfig(64, 4, 4, vit=vit, out_layers=(0, 1, 2, 3), features=16, widths=(8, 8, 16, 16), camera_depth=2)
    )


def pi3():
    vit = replace(VIT, registers=4, offset=0.0, antialias=True)
    return Pi3(Pi3Config(64, 4, 6, vit=vit, head_dim=64, head_heads=4, head_depth=2, camera_dim=32))


def pi3x():
    vit = replace(VIT, registers=4, offset=0.0, antialias=True)
    return Pi3x(
        Pi3xConfig(
            64, 4, 6, vit=vit, head_dim=64, head_heads=4, head_depth=2, camera_dim=32, metric_dim=32, metric_heads=2,
            upsample=(32, 32, 32), pose_after=(1, 3),
        )
    )  # fmt: skip


def mapanything():
    vit = replace(VIT, feed="swiglu", final_norm=False)
    return MapAnything(
        MapAnythingConfig(
            64, 4, 4, 64, vit=vit, between=(1, 2), features=16, widths=(8, 8, 16, 16), given_widths=(16, 24, 32),
            code_widths=(8, 8, 8), scale_dim=8,
        )
    )  # fmt: skip


MODELS = {"da3": da3, "vggt": vggt, "pi3": pi3, "pi3x": pi3x, "mapanything": mapanything}
TAKE_CAMERAS = ("da3", "pi3x", "mapanything")


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


def made(name: str):
    """The tiny model with weights that make every part matter (start values of gains are far too small for that)."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for key, parameter in model.named_parameters():
        with torch.no_grad():
            if key.endswith("gamma"):
                parameter.fill_(0.5)
            elif "token" in key:
                parameter.normal_()
            elif "pose_branch.fc2" in key or key.startswith(("pose_head.fc_t", "cam_dec.fc_fov")):
                parameter.mul_(0.3).add_(0.1)
    return model


def pictures(count: int):
    return torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))


def cameras(count: int):
    world_from_cam = torch.eye(4).repeat(count, 1, 1)
    world_from_cam[:, 0, 3] = torch.linspace(0, 1.5, count)
    K = torch.tensor([[50.0, 0, WIDTH / 2], [0, 50, HEIGHT / 2], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(world_from_cam, K, HEIGHT, WIDTH)


def same(found, expected):
    """Cameras, depth and every published output of one picture."""
    for name in expected.published:
        a, b = found.published[name].double(), expected.published[name].double()
        assert torch.isfinite(b).all(), name
        assert (a - b).abs().max() <= LAW * max(1.0, float(b.abs().max())), name


def last(geometry, count: int = 1):
    published = {k: v[-count:] if v.ndim else v for k, v in geometry.published.items()}
    return replace(geometry, published=published)


@torch.no_grad()
def test_a_step_is_the_forward_in_which_the_map_does_not_see_the_query(name: str):
    model, images = made(name), pictures(5)
    cache = model.map(images[:4], capacity=6)
    full = model(images, queries=1)
    same(model.step(images[4], cache), last(full))
    # And the map does not feel the query.
    same(cache.geometry, replace(full, published={k: v[:4] if v.ndim else v for k, v in full.published.items()}))
    # While it would if it could look: the law is not true of anything.
    seen = model(images)
    difference = (seen.cameras.world_from_cam[4] - full.cameras.world_from_cam[4]).abs().max()
    assert difference > LAW


@torch.no_grad()
def test_several_queries_do_not_see_each_other(name: str):
    model, images = made(name), pictures(5)
    cache = model.map(images[:3])
    together = model(images, queries=2)
    for index in (3, 4):
        alone = {k: v[index : index + 1] if v.ndim else v for k, v in together.published.items()}
        same(model.step(images[index], cache), replace(together, published=alone))


@torch.no_grad()
@pytest.mark.parametrize("name", TAKE_CAMERAS)
def test_the_law_holds_for_maps_with_given_cameras(name: str):
    model, images = made(name), pictures(4)
    cache = model.map(images[:3], cameras(3))
    same(model.step(images[3], cache), last(model(images, cameras(3), queries=1)))
    free = model(images, queries=1)
    assert (free.cameras.world_from_cam - model(images, cameras(3), queries=1).cameras.world_from_cam).abs().max() > LAW


@torch.no_grad()
def test_a_camera_only_step_gives_the_same_camera(name: str):
    model, images = made(name), pictures(3)
    cache = model.map(images[:2])
    quick, whole = model.step(images[2], cache, dense=False), model.step(images[2], cache)
    assert torch.allclose(quick.cameras.world_from_cam, whole.cameras.world_from_cam, atol=1e-5)
    assert quick.depth is None
    assert whole.depth is not None


@torch.no_grad()
def test_keeping_then_dropping_a_keyframe_leaves_the_map_as_it_was(name: str):
    model, images = made(name), pictures(4)
    cache = model.map(images[:3], capacity=4)
    before = model.step(images[3], cache)
    model.step(images[1], cache, keep=True)
    assert cache.views == 4
    changed = model.step(images[3], cache)
    assert (changed.cameras.world_from_cam - before.cameras.world_from_cam).abs().max() > 1e-6
    with pytest.raises(InputError, match="full"):
        model.step(images[2], cache, keep=True)
    cache.drop(3)
    same(model.step(images[3], cache), before)


@torch.no_grad()
def test_a_saved_map_answers_as_before(name: str, tmp_path):
    model, images = made(name), pictures(3)
    cache = model.map(images[:2])
    cache.save(tmp_path / "map.safetensors")
    loaded = KVCache.load(tmp_path / "map.safetensors", capacity=3)
    same(model.step(images[2], loaded), model.step(images[2], cache))
    half = model.map(images[:2], dtype=torch.bfloat16)
    assert half.bytes_per_view * 2 == cache.bytes_per_view
    rough, exact = model.step(images[2], half), model.step(images[2], cache)
    assert (rough.cameras.world_from_cam - exact.cameras.world_from_cam).abs().max() < 0.1


def test_a_few_rows_at_a_time_is_all_at_once(name: str, monkeypatch):
    model, images = made(name), pictures(3)
    # With gradients everything is made at once; without, in parts and into place.
    whole = model(images).published
    monkeypatch.setattr(layers, "ROWS", 10)
    monkeypatch.setattr(dense_head, "STRIP", 11)
    with torch.no_grad():
        parts = model(images).published
    for key in whole:
        assert parts[key].shape == whole[key].shape
        assert torch.allclose(parts[key], whole[key], rtol=1e-4, atol=1e-5), key


@torch.no_grad()
def test_half_precision_weights_answer_in_single_precision(name: str):
    model, images = made(name), pictures(3)
    exact = model(images).published
    rough = model.to(torch.bfloat16)(images).published
    for key in exact:
        assert rough[key].dtype == exact[key].dtype, key
        if exact[key].dtype == torch.float32:
            assert (rough[key] - exact[key]).abs().max() < 0.1 * exact[key].abs().max(), key
    cache = model.map(images[:2])
    same_camera = (
        model.step(images[2], cache).cameras.world_from_cam - model(images, queries=1).cameras[2].world_from_cam
    )
    assert same_camera.abs().max() < 0.1
    given = {"cameras": cameras(3)} | ({"depth": torch.ones(3, HEIGHT, WIDTH)} if "depth" in model.takes else {})
    if name in TAKE_CAMERAS:
        assert torch.isfinite(model(images, **given).depth).all()


@torch.no_grad()
def test_bad_pictures_are_refused_in_words(name: str):
    model = made(name)
    with pytest.raises(InputError, match="multiples of 14"):
        model(torch.rand(2, 40, 56, 3))
    with pytest.raises(InputError, match="multiples of 14"):
        model(torch.rand(2, 0, 56, 3))
    with pytest.raises(InputError, match="none"):
        model(torch.rand(0, 42, 56, 3))
    cache = model.map(pictures(1))
    with pytest.raises(InputError, match="56x42"):
        model.step(torch.rand(56, 42, 3), cache)
    cache.drop(0)
    with pytest.raises(InputError, match="no keyframes"):
        model.step(pictures(1)[0], cache)
    if name in TAKE_CAMERAS:
        assert "cameras" in model.takes
        with pytest.raises(InputError, match="2 for 3 pictures"):
            model(pictures(3), cameras(2))
        with pytest.raises(InputError, match="resize the cameras"):
            model(pictures(2), cameras(2).resized(84, 112))
    else:
        with pytest.raises(InputError, match="takes them"):
            model(pictures(2), cameras(2))
    depth = torch.ones(2, 28, 56)
    with pytest.raises(InputError, match="resize the depth" if "depth" in model.takes else "takes it"):
        model(pictures(2), depth=depth)
    if "K" not in model.takes:
        with pytest.raises(InputError, match="takes it"):
            model(pictures(2), K=cameras(2).K)


@torch.no_grad()
def test_one_picture_is_enough(name: str):
    geometry = made(name)(pictures(1))
    assert len(geometry) == 1
    assert torch.isfinite(geometry.cameras.world_from_cam).all()


def test_gradients_reach_every_parameter_that_the_answer_needs(name: str):
    model = made(name).train()
    geometry = model(pictures(3))
    parts = [value.double().square().mean() for value in geometry.published.values() if value.requires_grad]
    sum(parts).backward()
    untouched = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()}
    # What only given cameras or depth would use, and what the released files hold without need.
    spare = ("cam_enc", "_aux.", "depth_encoder", "depth_scale", "ray_", "pose_inject", "cam_rot", "cam_trans")
    blocks = [key for key, _ in model.named_parameters() if ".attn." in key or ".mlp." in key]
    needed = {key for key in blocks if key.endswith("weight") and not any(word in key for word in spare)}
    assert len(needed) > 20
    assert needed & untouched == set()


# Width, height, MiB a keyframe in bf16.
MEBIBYTES = {
    "da3-small": (504, 378, 5.7), "da3-base": (504, 378, 11.4), "da3-large": (504, 378, 30),
    "da3-giant": (504, 378, 80), "pi3": (518, 392, 73), "mapanything": (518, 392, 49),
}  # fmt: skip


@pytest.mark.parametrize("name", MEBIBYTES)
def test_a_keyframe_takes_the_bytes_it_should(name: str):
    width, height, expected = MEBIBYTES[name]
    shapes = build(name, meta=True).cache_shapes(height, width)
    cache = KVCache(shapes, 1, dtype=torch.bfloat16, device="meta")
    assert cache.bytes_per_view / 2**20 == pytest.approx(expected, rel=0.02)


def test_attention_in_chunks_is_attention():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(3))
    mask = query_mask(3, 3, 1)
    for seen in (None, mask):
        whole = attend(q, k, v, mask=seen)
        assert torch.allclose(attend(q, k, v, mask=seen, query_chunk=4), whole, atol=1e-6)
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf)
    assert torch.allclose(attend(q, k, v, mask=mask), scores.softmax(-1) @ v, atol=1e-6)


def test_cache_refuses_what_is_not_a_cache(tmp_path):
    path = tmp_path / "map.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="KVCache"):
        KVCache.load(path)
    with pytest.raises(InputError, match="KVCache"):
        KVCache.load(tmp_path / "absent.safetensors")
    cache = KVCache({"trunk": KVShape(1, 1, 4, 2)}, 2)
    with pytest.raises(IndexError):
        cache.drop(0)
    with pytest.raises(InputError, match="room for 2"):
        cache.filling("trunk", 0, 3)
    with pytest.raises(InputError, match="1 or more"):
        KVCache({"trunk": KVShape(1, 1, 4, 2)}, 0)


@torch.no_grad()
def test_da3_reference_view_is_the_published_choice():
    model, images = made("da3"), pictures(4)
    # The order of the pictures changes nothing but the order of the answers, whichever is the reference.
    order = [2, 0, 3, 1]
    straight, turned = model(images), model(images[order])
    assert torch.allclose(straight.depth[order], turned.depth, atol=1e-4)
    assert len(PRESETS) == 4
