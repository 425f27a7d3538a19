"""What ships: scored beside what knows nothing, and replaced by nothing worse."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from scenetx.config import to_dict
from scenetx.models import own
from scenetx.models.da3 import Da3, Da3Config
from scenetx.models.open_geometry import find_geometry
from scenetx.models.own import Stated, write_own
from scenetx.train.settings import DataSettings, TrainSettings
from scenetx.train.tasks import start_da3

CONFIG = Da3Config(
    dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8), patch=8
)


def benchmark(name):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ship():
    return benchmark("ship")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    settings = TrainSettings(model="da3", da3=CONFIG, data=DataSettings(height=32, width=32))
    folder = tmp_path / "step-00000007"
    state = {"settings": to_dict(settings), "progress": {"step": 7, "skipped": 0, "bad": 0, "seconds": 90.0}}
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(state, default=str))
    write_own(
        folder / "average.safetensors", start_da3(Da3(CONFIG)).state_dict(), Stated("da3", asdict(CONFIG), (32, 32))
    )
    return folder


def rows(auc, absrel):
    return {"auc30": auc, "absrel": absrel}


def test_weights_stay_when_any_mean_is_worse(ship):
    old = {"procedural": rows(40, 0.2), "real": rows(20, 0.3)}
    assert ship.no_worse(old, old)
    assert ship.no_worse({"procedural": rows(50, 0.1), "real": rows(20, 0.3)}, old)
    assert not ship.no_worse({"procedural": rows(50, 0.1), "real": rows(19, 0.3)}, old)
    assert not ship.no_worse({"procedural": rows(50, 0.21), "real": rows(30, 0.1)}, old)
    assert not ship.no_worse({"procedural": {"psnr": 20.0}, "real": {}}, {"procedural": {"psnr": 21.0}, "real": {}})


def test_real_scenes_are_averaged_where_they_have_truth(ship):
    found = ship.means({"procedural": rows(1, 1), "a": rows(10, 0.2), "b": {"auc30": 20}})
    assert found["real"] == {"auc30": 15, "absrel": 0.2}


def test_a_checkpoint_ships_with_its_card(ship, checkpoint, tmp_path, monkeypatch, capsys):
    shipped = tmp_path / "shipped"
    for module in (ship, own):
        monkeypatch.setattr(module, "SHIPPED", shipped)
    words = ["ship.py", "mini-geometry", str(checkpoint), "--scenes", "2", "--out", str(tmp_path / "o.json"), "--write"]
    monkeypatch.setattr(sys, "argv", words)
    ship.main()
    assert "no worse" in capsys.readouterr().out
    model = find_geometry("mini")
    assert (model.name, model.rule.longest) == ("mini-geometry", 32)
    text = (shipped / "mini-geometry.md").read_text()
    assert "7 steps" in text
    row = json.loads((tmp_path / "o.json").read_text())["mini-geometry"]["candidate"]["procedural"]
    assert f"{row['absrel']:.3f}" in text


@pytest.mark.parametrize(("recipe", "kind"), [("mini-geometry-cpu", "geometry"), ("mini-view-cpu", "view")])
def test_what_ships_is_gone_on_from_by_its_own_recipe_alone(recipe, kind):
    pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")
    lease = benchmark("train_on_lease")
    from scenetx.train.run import settings_of

    assert lease.shipped_for(settings_of(recipe)) == own.shipped("mini", kind)
    assert lease.shipped_for(settings_of(recipe.removesuffix("-cpu"))) is None  # a larger model


@pytest.mark.parametrize("name", ["mini-geometry", "mini-view"])
def test_the_weights_of_the_package_load_and_say_what_they_are(name):
    path = own.SHIPPED / f"{name}.safetensors"
    assert path.stat().st_size < 25e6
    stated = own.read_stated(path)
    assert (stated.name, stated.size) == (name, (64, 64))
    assert sum(p.numel() for p in own.open_own(path, stated).parameters()) > 1e6
    assert "no photo was seen" in path.with_suffix(".md").read_text()
