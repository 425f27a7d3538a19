"""Weights are read strictly and never run, licences are shown, pixels find their way back."""

import json
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import scenetx
from scenetx.core import InputError
from scenetx.models import hub, zoo
from scenetx.models.given import slopes
from scenetx.models.memory import check_fits, need, pictures_that_fit
from scenetx.models.pictures import RULES, SizeRule, cameras_for_model, lost_share, to_model, window_for
from scenetx.models.ray_fit import intrinsics_from_rays
from scenetx.models.weights import read_layout, read_weights
from scenetx.pipeline.choose import choose_model
from scenetx.pipeline.models import list_models, model_info


@pytest.fixture(scope="module")
def small():
    """Da3-small's published state, in half precision to keep it small."""
    module = scenetx.load_model("da3-small", None, init=False)
    return {f"model.{name}": tensor.half() for name, tensor in module.state_dict().items()}


@pytest.fixture(autouse=True)
def no_weights_here(tmp_path, monkeypatch):
    monkeypatch.setenv("SCENETX_WEIGHTS", str(tmp_path / "weights"))


def test_a_model_loads_from_a_path_and_a_state_dict(small, tmp_path):
    save_file(small, tmp_path / "w.safetensors")
    torch.save({"model": small}, tmp_path / "w.pt")
    for weights in (small, tmp_path / "w.safetensors", str(tmp_path / "w.pt")):
        module = scenetx.load_model("da3-small", weights)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
        assert not module.training
    half = scenetx.load_model("da3-small", tmp_path / "w.safetensors", dtype=None)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert zoo.identify(tmp_path / "w.safetensors", "geometry").name == "da3-small"
    assert choose_model(str(tmp_path / "w.safetensors"))[0] == "da3-small"


def test_wrong_weights_are_named(small, tmp_path):
    bad = dict(small)
    bad["model.head.norm.extra"] = bad.pop("model.head.norm.weight")
    with pytest.raises(InputError, match=r"missing head\.norm\.weight; unexpected head\.norm\.extra"):
        scenetx.load_model("da3-small", bad)
    misshapen = small | {"model.head.norm.weight": torch.zeros(3)}
    with pytest.raises(InputError, match=r"head\.norm\.weight \(3,\) instead of \(768,\)"):
        scenetx.load_model("da3-small", misshapen)
    with pytest.raises(InputError, match=r"missing .* and .* more"):
        scenetx.load_model("da3-base", {"model.head.norm.weight": torch.zeros(3)})
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no model known here"):
        zoo.identify(tmp_path / "other.safetensors", "geometry")


class Hostile:
    def __reduce__(self):
        return (sys.setrecursionlimit, (12345,))


def test_code_in_a_weight_file_is_refused_and_not_run(tmp_path):
    before = sys.getrecursionlimit()
    torch.save({"model": Hostile()}, tmp_path / "bad.pt")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump(Hostile(), file)
    for name in ("bad.pt", "plain.pt"):
        with pytest.raises(InputError, match="code is never run"):
            read_weights(tmp_path / name)
    assert sys.getrecursionlimit() == before


def test_broken_files_are_one_line_each(small, tmp_path):
    save_file(small, tmp_path / "w.safetensors")
    torch.save(small, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(content[: len(content) // 2])
        (tmp_path / f"empty_{name}").write_bytes(b"")
        for kind in ("cut", "empty"):
            with pytest.raises(InputError, match=f"{kind}_{name}") as error:
                read_weights(tmp_path / f"{kind}_{name}")
            assert "\n" not in str(error.value)
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 8)
    for path, word in (("noise.safetensors", "broken"), ("absent.pt", "no such file"), ("w.onnx", "no such file")):
        with pytest.raises(InputError, match=word):
            read_weights(tmp_path / path)
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="suffix"):
        read_weights(tmp_path / "w.onnx")
    torch.save({"model": {"step": 3}}, tmp_path / "none.pt")
    with pytest.raises(InputError, match="no tensors"):
        read_weights(tmp_path / "none.pt")


def test_nothing_goes_online_unasked_and_licences_are_told():
    with pytest.raises(InputError, match=r"137 MB, Apache-2.0.*scenetx models fetch da3-small"):
        scenetx.load_model("da3-small")
    with pytest.raises(InputError, match=r"--accept-non-commercial"):
        scenetx.load_model("vggt")
    with pytest.raises(InputError, match="CC BY-NC"):
        hub.fetch(zoo.find("vggt"))
    with pytest.raises(InputError, match="use one of"):
        scenetx.load_model("da4")
    with pytest.raises(InputError, match="weight file, or one of"):
        choose_model("da4")
    assert choose_model("auto")[0] == "sfm"
    assert choose_model("sfm") == ("sfm", "", "asked for")
    rows = {row.name: row for row in list_models()}
    assert {"da3-small", "da3-giant", "pi3", "pi3x", "vggt", "mapanything"} <= rows.keys()
    packed = {"mini-geometry", "mini-splat", "mini-view"}
    assert {name for name, row in rows.items() if row.here} <= packed
    told = model_info("vggt")
    assert "not for commercial use" in told["licence"]
    assert "scenetx models fetch vggt" in told["file"]


def test_a_fetched_file_is_found_checked_and_preferred(small):
    entry = zoo.find("da3-small")
    path = hub.local_file(entry)
    path.parent.mkdir(parents=True)
    save_file(small, path)
    note = path.with_name(path.name + ".json")
    note.write_text(f'{{"revision": "abc", "sha256": "{hub.sha256_of(path)}"}}')
    assert hub.fetch(entry) == path
    assert model_info("da3-small")["revision"] == "abc"
    assert choose_model("auto")[0] == "da3-small"
    assert scenetx.load_model("da3-small", "depth-anything/DA3-SMALL") is not None
    note.write_text('{"revision": "abc", "sha256": "0000"}')
    for use in (hub.fetch, hub.find_local):
        with pytest.raises(InputError, match="sha256"):
            use(entry)


def test_a_file_is_pinned_by_its_first_use_and_checked_at_every_load(small):
    entry = zoo.find("da3-small")
    path = hub.local_file(entry)
    path.parent.mkdir(parents=True)
    save_file(small, path)
    assert "first fetch" in model_info("da3-small")["sha256"]
    scenetx.load_model("da3-small")
    assert model_info("da3-small")["sha256"] == hub.sha256_of(path) == hub.pinned(entry).sha256
    save_file(small | {"model.head.norm.bias": torch.ones(768)}, path)
    with pytest.raises(InputError, match=r"first seen.*fetch again \(with model.safetensors.json too"):
        scenetx.load_model("da3-small")
    # A note that says nothing pins nothing.
    path.with_name(path.name + ".json").write_text("[not json")
    assert hub.pinned(entry) == hub.Pin()
    scenetx.load_model("da3-small")
    assert hub.pinned(entry).sha256 == hub.sha256_of(path)


def test_shards_in_the_hubs_layout_are_one_file(tmp_path):
    parts = {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.zeros(3)}}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    for path in (index, tmp_path):
        assert {name: tuple(t.shape) for name, t in read_weights(path).items()} == {"x": (2,), "y": (3,)}
        assert read_layout(path)["y"].is_meta
    for content in (
        '{"weight_map": {"x": "../a.safetensors"}}',
        '{"weight_map": {}}',
        "[1]",
        '{"weight_map": {"x": 3}}',
    ):
        index.write_text(content)
        with pytest.raises(InputError, match=r"index\.json"):
            read_weights(index)
    index.unlink()
    with pytest.raises(InputError, match="0 sets of weights"):
        read_weights(tmp_path)
    save_file({"z": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path).keys() == {"z"}


def test_bare_and_fresh_models():
    bare = scenetx.load_model("da3-small", None, init=False)
    assert all(not parameter.any() for parameter in bare.parameters())
    fresh = scenetx.load_model("da3-small", None)
    assert fresh.backbone.pretrained.patch_embed.proj.weight.std() > 0
    assert scenetx.load_model("da3-small", None, init=False).head is not None


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(20, 3000), width=st.integers(20, 3000), name=st.sampled_from(sorted(RULES)),
    x=st.floats(0, 1), y=st.floats(0, 1),
)  # fmt: skip
def test_pixels_find_their_way_back(height: int, width: int, name: str, x: float, y: float):
    rule = RULES[name]
    size = rule.size(height, width)
    assert all(side % 14 == 0 and side >= 14 for side in size)
    if rule.pixels:
        assert size[0] * size[1] <= rule.pixels or 14 in size
    else:
        assert abs(max(size) - rule.longest) <= 14
    window = window_for(height, width, size)
    K = torch.tensor([[500.0, 0, x * width], [0, 400.0, y * height], [0, 0, 1]], dtype=torch.float64)
    there = window.K_for_model(K)
    assert torch.allclose(window.K_for_picture(there), K, atol=1e-6)
    # The same ray: a point seen at a pixel of the picture is seen at that pixel's image in the model's picture.
    ray = torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64)
    pixel = (K @ ray)[:2]
    expected = torch.tensor([(pixel[0] - window.left) * window.scale_x, (pixel[1] - window.top) * window.scale_y])
    assert torch.allclose((there @ ray)[:2], expected.double(), atol=1e-6)


def test_published_sizes():
    assert RULES["da3"].size(1080, 1920) == (280, 504)
    assert RULES["da3"].size(3000, 4000) == (378, 504)
    assert RULES["vggt"].size(3000, 4000) == (392, 518)
    height, width = RULES["pi3"].size(480, 640)
    assert (height, width) == (434, 574)
    with pytest.raises(InputError, match="14 or more"):
        SizeRule().size(10, 400)


def test_pictures_of_several_sizes_become_one_batch():
    gradient = torch.arange(160)[None, :, None].expand(120, 160, 3).to(torch.uint8)
    batch, windows = to_model([gradient, gradient[:, :100], gradient[::2, ::2]], SizeRule(56), (42, 56))
    assert batch.shape == (3, 42, 56, 3)
    assert lost_share(windows[0], (42, 56)) < 0.01
    # The narrow one is cropped above and below, the half-size one is all there.
    assert windows[1].top > 10
    assert windows[2].scale_x == pytest.approx(0.7)
    assert torch.allclose(batch[0], batch[2], atol=0.02)
    depth = torch.arange(42.0)[:, None].expand(42, 56).contiguous() + 1
    back = windows[1].map_for_picture(depth, 120, 100)
    assert (back[:20] == 0).all()
    assert (back[30:90] > 0).all()
    with pytest.raises(InputError, match="apart"):
        to_model([gradient, gradient.transpose(0, 1)], SizeRule(56), (28, 84))
    with pytest.raises(InputError, match="none"):
        to_model([], SizeRule(56))


def test_intrinsics_of_rays():
    K = torch.tensor([[[70.0, 0, 28], [0, 65, 21], [0, 0, 1]]])
    assert torch.allclose(intrinsics_from_rays(slopes(K, (42, 56))), K, atol=1e-3)
    blind = intrinsics_from_rays(torch.full((1, 42, 56, 2), torch.nan))
    assert blind.isfinite().all()
    cameras = [scenetx.Cameras(torch.eye(4)[None], K, 42, 56)]
    _, windows = to_model([torch.zeros(42, 56, 3, dtype=torch.uint8)], SizeRule(112), (84, 112))
    assert torch.allclose(cameras_for_model(cameras, windows, (84, 112)).K[0, 0, 0], torch.tensor(140.0).double())


def test_memory_is_said_before():
    model = zoo.build("da3-small", meta=True)
    needed = need(model, 378, 504)
    assert needed.weights == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert needed.total(20) > needed.total(10) > needed.weights
    fits = pictures_that_fit(needed, 2 * 2**30)
    assert 5 < fits < 200
    check_fits("da3-small", needed, fits, 2 * 2**30)
    with pytest.raises(InputError, match=f"at most {fits} would fit"):
        check_fits("da3-small", needed, fits + 1, 2 * 2**30)
    with pytest.raises(InputError, match="smaller model"):
        check_fits("da3-small", needed, 2, 2**20)
