"""Weight files of our own say what they hold, and every door opens them: reconstruct, track, render."""

from dataclasses import replace

import pytest
import torch

from scenetx.config import to_dict
from scenetx.core import Cameras, InputError, View
from scenetx.core.scene import Original
from scenetx.live.kv_map import open_eye
from scenetx.models import own
from scenetx.models.da3 import Da3, Da3Config
from scenetx.models.open_geometry import find_geometry
from scenetx.models.open_view_model import open_view_model
from scenetx.models.own import Stated, read_stated, write_own
from scenetx.models.weights import read_weights
from scenetx.models.zoo import load_model
from scenetx.pipeline.choose import choose_model
from scenetx.pipeline.models import fetch_model, list_models, model_info
from scenetx.pipeline.predict import PredictSettings, open_predictor, predict
from scenetx.train.settings import DataSettings, TrainSettings
from scenetx.train.tasks import start_da3

CONFIG = Da3Config(
    dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8), patch=8
)


@pytest.fixture(scope="module")
def model() -> Da3:
    torch.manual_seed(0)
    return start_da3(Da3(CONFIG)).eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "average.safetensors"
    return write_own(path, model.state_dict(), Stated("da3", to_dict(CONFIG), (48, 64), "mini-test"))


def test_what_is_stated_comes_back(file):
    stated = read_stated(file)
    assert (stated.model, stated.size, stated.name) == ("da3", (48, 64), "mini-test")
    assert stated.config(Da3Config()) == CONFIG


def test_a_trained_model_is_chosen_loaded_and_looks(file, model):
    name, weights, why = choose_model(str(file))
    assert (name, weights) == ("mini-test", str(file))
    assert "mini-test" in why
    predictor = open_predictor(name, PredictSettings(weights=weights))
    assert predictor.rule.size(480, 640) == (48, 64)
    assert predictor.takes_cameras
    pictures = torch.randint(0, 256, (3, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    views = [View(f"{k}.png", one, Original(f"{k}.png", 48, 64, torch.eye(3))) for k, one in enumerate(pictures)]
    found = predict(views, predictor, PredictSettings(), lambda *_: None, [], posed=False)
    eye = open_eye(str(file))
    assert (eye.name, eye.rule, eye.tells_focal) == ("mini-test", predictor.rule, True)
    with torch.no_grad():
        expected = model(pictures.float() / 255)
        mapped = eye.model.map(pictures.float() / 255)
    assert torch.allclose(found[1].depth, expected.depth[1], atol=1e-5)
    assert torch.allclose(mapped.geometry.depth, expected.depth, atol=1e-5)


def test_a_run_of_training_leaves_such_a_file(tmp_path):
    pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")
    from scenetx.train import checkpoint
    from scenetx.train.tasks import build_model

    data = DataSettings(height=40, width=56)
    settings = TrainSettings(name="tiny", model="da3", da3=CONFIG, data=data)
    trained = build_model(settings)
    checkpoint.save_model(trained, trained.state_dict(), tmp_path / "w.safetensors", settings)
    source = find_geometry(str(tmp_path / "w.safetensors"))
    assert (source.name, source.rule.longest, source.rule.patch) == ("tiny", 56, 8)
    loaded = source.load().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())


def test_files_that_are_something_else_are_one_line(file, tmp_path):
    weights = read_weights(file)
    paints = write_own(tmp_path / "svsm.safetensors", weights, Stated("svsm", {}))
    with pytest.raises(InputError, match="pictures, not geometry"):
        find_geometry(str(paints))
    wrong = write_own(tmp_path / "wrong.safetensors", weights, Stated("da3", {"dimm": 3}))
    with pytest.raises(InputError, match="dimm"):
        find_geometry(str(wrong))
    other = write_own(tmp_path / "other.safetensors", weights, Stated("da3", to_dict(replace(CONFIG, depth=6))))
    with pytest.raises(InputError, match=r"other\.safetensors"):
        find_geometry(str(other)).load()
    with pytest.raises(InputError, match="pictures, not geometry"):
        find_geometry("svsm-27m")
    assert read_stated(tmp_path / "none.safetensors") is None


def test_given_cameras_reach_a_trained_model(file):
    predictor = open_predictor("mini-test", PredictSettings(weights=str(file)))
    pictures = torch.rand(2, 48, 64, 3, generator=torch.Generator().manual_seed(2))
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 1.0
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]).repeat(2, 1, 1)
    told, free = predictor.estimate(pictures, Cameras(poses, K, 48, 64)), predictor.estimate(pictures, None)
    assert not torch.equal(told.depth, free.depth)


def test_weights_of_the_package_go_by_name(file, model, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "SHIPPED", tmp_path)
    assert own.shipped("mini", "geometry") is None
    half = {name: value.bfloat16() for name, value in model.state_dict().items()}
    ships = write_own(tmp_path / "mini-geometry.safetensors", half, Stated("da3", to_dict(CONFIG), (48, 64), "mini"))
    for name in ("mini", "mini-geometry"):
        assert choose_model(name)[:2] == ("mini-geometry", str(ships))
        loaded = find_geometry(name).load()
        assert isinstance(loaded, Da3)
        assert all(torch.equal(value, half[key].float()) for key, value in loaded.state_dict().items())
        assert model_info(name)["file"] == str(ships)
        assert fetch_model(name, accept_non_commercial=False) == ships
    assert isinstance(load_model("mini"), Da3)
    assert load_model("mini", dtype=torch.float64).cam_dec.fc_t.weight.dtype == torch.float64
    assert [row.here for row in list_models() if row.name == "mini-geometry"] == [True]
    with pytest.raises(InputError, match="mini-view"):
        open_view_model("mini-view")


def test_automatic_choice_never_takes_the_small_model(monkeypatch, tmp_path):
    monkeypatch.setenv("SCENETX_WEIGHTS", str(tmp_path))
    assert choose_model("auto")[0] == "sfm"
