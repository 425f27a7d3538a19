"""The published view-synthesis networks, on deterministic weights, against what the published code gave."""

import gc
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scenetx.core import Cameras, InputError
from scenetx.models import lvsm, srt
from scenetx.models.lvsm import Lvsm
from scenetx.models.rays import Rays, camera_rays, world_frame
from scenetx.models.srt import Srt
from scenetx.models.view_model import Views
from scenetx.models.weights import load_strictly, tensors_of

GOLDEN = Path(__file__).parents[2] / "shared/golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no golden outputs beside the checkout")


def golden(name: str):
    """Stored arrays and the weights by the published names."""
    spec = importlib.util.spec_from_file_location("weight_rule", GOLDEN / "weight_rule.py")
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    arrays = np.load(GOLDEN / name / "golden.npz")
    shapes = json.loads((GOLDEN / name / "keys.json").read_text())["tensors"]
    state = rule.deterministic_state_dict(shapes, int(arrays["seed"]))
    for key in arrays:
        if key.startswith("weight_probe/"):
            first = state[key.partition("/")[2]].flatten()[: arrays[key].size]
            torch.testing.assert_close(first, torch.from_numpy(arrays[key]))
    return arrays, state


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check_lvsm(kind: str, cases: list[str]) -> None:
    arrays, state = golden(f"lvsm-{kind}")
    with torch.device("meta"):
        model = Lvsm(lvsm.PRESETS[kind]).eval()
    state["loss_computer.perceptual_loss_module.layer.weight"] = torch.zeros(1)  # real files hold such
    load_strictly(model, lvsm.from_published(state), "golden", None)
    for case in cases:
        images = torch.from_numpy(arrays[f"{case}/images"]).float() / 255
        fx, fy, cx, cy = torch.from_numpy(arrays[f"{case}/in_fxfycxcy"]).T
        K = torch.eye(3).repeat(len(fx), 1, 1)
        K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = fx, fy, cx, cy
        cameras = Cameras(torch.from_numpy(arrays[f"{case}/in_c2w"]), K, *images.shape[1:3])
        directions = torch.from_numpy(arrays[f"{case}/ray_d"]).permute(0, 2, 3, 1)
        torch.testing.assert_close(camera_rays(cameras).directions, directions, rtol=0, atol=1e-6)
        with torch.no_grad():
            given = Views(images, cameras[: len(images)])
            found = model.decode(model.encode(given, world_frame()), cameras[len(images) :])
        expected = torch.from_numpy(arrays[f"{case}/render"]).permute(0, 2, 3, 1)
        assert relative(found, expected) < 1e-5
    del model, state
    gc.collect()


@pytest.mark.slow
def test_lvsm_decoder_only():
    check_lvsm("decoder-only", ["i2t1", "i2t2"])


@pytest.mark.slow
def test_lvsm_encoder_decoder():
    check_lvsm("encoder-decoder", ["i2t1"])


@pytest.mark.parametrize(("name", "preset"), [("srt-msn", "msn"), ("srt-msn-isrt", "isrt")])
def test_srt(name, preset):
    arrays, state = golden(name)
    with torch.device("meta"):
        model = Srt(srt.PRESETS[preset]).eval()
    load_strictly(model, srt.from_published(state), "golden", None)

    def rays(position: str, direction: str) -> Rays:
        directions = torch.from_numpy(arrays[f"i3/{direction}"])
        return Rays(torch.from_numpy(arrays[f"i3/{position}"])[:, None, None].expand_as(directions), directions)

    images = torch.from_numpy(arrays["i3/images"]).float() / 255
    with torch.no_grad():
        inputs = model.tokenise_rays(images, rays("in_camera_pos", "in_rays"))
        found = model.paint(model.remember(inputs), rays("target_camera_pos", "target_rays"), 1)
    assert relative(found, torch.from_numpy(arrays["i3/pixels"])) < 1e-5
    del model, state
    gc.collect()


def test_wrong_checkpoints_are_named():
    _, state = golden("srt-msn-isrt")
    with torch.device("meta"):
        model = Srt(srt.PRESETS["isrt"])
    state.pop("decoder.render_mlp.8.bias")
    state["decoder.extra"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"missing decoder.colour.8.bias; unexpected decoder.extra"):
        load_strictly(model, srt.from_published(state), "file.pt", None)


def test_the_two_entries_of_an_srt_file_are_found():
    content = {"encoder": {"a": torch.zeros(1)}, "decoder": {"b": torch.ones(1)}, "it": 7}
    assert sorted(tensors_of(content, "model.pt")) == ["decoder.b", "encoder.a"]
