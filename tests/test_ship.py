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
from scenetx.models.own import Stated, open_own, write_own
from scenetx.models.splat_head import SplatHeadConfig
from scenetx.models.stereo_splats import HIDDEN, StereoSplatsConfig
from scenetx.train.settings import DataSettings, TrainSettings
from scenetx.train.tasks import build_model, start_da3

CONFIG = Da3Config(
    dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8), patch=8
)


def benchmark(name):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # benchmarks import one another
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


@pytest.fixture
def splat_checkpoint(tmp_path):
    head = SplatHeadConfig(features=8, layers=1, extra=HIDDEN)
    config = StereoSplatsConfig(da3=CONFIG, head=head, channels=8, planes=8, width=16, look=32)
    settings = TrainSettings(model="stereo_splats", stereo_splats=config, data=DataSettings(height=32, width=32))
    folder = tmp_path / "step-00000003"
    state = {"settings": to_dict(settings), "progress": {"step": 3, "skipped": 0, "bad": 0, "seconds": 60.0}}
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps(state, default=str))
    stated = Stated("stereo_splats", to_dict(config), (32, 32))
    write_own(folder / "average.safetensors", build_model(settings).state_dict(), stated)
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


def test_splats_ship_where_they_are_better_than_lifted_depth(ship, splat_checkpoint, tmp_path, monkeypatch, capsys):
    shipped, scenes = tmp_path / "shipped", sys.modules["procedural_scenes"]
    shipped.mkdir()
    (shipped / "mini-geometry.safetensors").write_bytes((own.SHIPPED / "mini-geometry.safetensors").read_bytes())
    for module in (ship, own):
        monkeypatch.setattr(module, "SHIPPED", shipped)
    real = scenes.procedural_scene(7, 8, 40, (), depth=False).save(tmp_path / "seen")
    words = ["ship.py", "mini-splat", str(splat_checkpoint), "--scenes", "1", "--real", str(real), "--write"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "o.json")])
    monkeypatch.setattr(ship, "worth_it", lambda row: True)
    ship.main()
    said = json.loads((tmp_path / "o.json").read_text())["mini-splat"]["candidate"]
    ways = {"psnr", "geometry_psnr", "swept_psnr", "nearest_psnr", "warped_psnr"}
    assert said["procedural"].keys() == ways | {"true_psnr"}
    assert said["seen"].keys() == ways
    assert all(0 < value < 60 for row in said.values() for value in row.values())
    assert f"{said['seen']['psnr']:.2f}" in capsys.readouterr().out
    path = own.shipped("mini-splat", "splat")
    assert path == shipped / "mini-splat.safetensors"
    model = open_own(path, own.read_stated(path))
    assert sum(p.numel() for p in model.parameters()) > 1000
    assert "mini-geometry's depth" in path.with_suffix(".md").read_text()
    monkeypatch.undo()
    assert ship.worth_it({"psnr": 20.0, "geometry_psnr": 19.0})
    assert not ship.worth_it({"psnr": 20.0, "geometry_psnr": 21.0})
    assert ship.worth_it({"psnr": 20.0})


@pytest.mark.slow
def test_ways_to_splats_are_compared(tmp_path, monkeypatch):
    ways = benchmark("splat_ways")
    words = ["splat_ways.py", "--procedural", "1", "--views", "6", "--side", "32", "--every", "3", "--ways",
             "refined", "fitted", "equal", "--out", str(tmp_path / "o.json"), "--set", "fit.steps=60"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    ways.main()
    said = json.loads((tmp_path / "o.json").read_text())
    assert [(row["by"], row.get("depth")) for row in said["rows"]] == [
        ("instant", "sweep"), ("refined", "sweep"), ("fitted", None), ("equal", None),
    ]  # fmt: skip
    assert {row["scene"] for row in said["rows"]} == {f"procedural-{ways.SEEDS}"}
    steps = {row["by"]: row["steps"] for row in said["rows"]}
    assert steps["fitted"] == 60
    assert steps["equal"] >= ways.LEAST


@pytest.mark.parametrize(
    ("recipe", "kind"), [("mini-geometry-cpu", "geometry"), ("mini-view-cpu", "view"), ("mini-splat-cpu", "splat")]
)
def test_what_ships_is_gone_on_from_by_its_own_recipe_alone(recipe, kind):
    pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")
    lease = benchmark("train_on_lease")
    from scenetx.train.run import settings_of

    assert lease.shipped_for(settings_of(recipe)) == own.shipped("mini", kind)
    assert lease.shipped_for(settings_of(recipe.removesuffix("-cpu"))) is None  # a larger model


@pytest.mark.parametrize("name", ["mini-geometry", "mini-view", "mini-splat"])
def test_the_weights_of_the_package_load_and_say_what_they_are(name):
    path = own.SHIPPED / f"{name}.safetensors"
    assert path.stat().st_size < 25e6
    stated = own.read_stated(path)
    assert (stated.name, stated.size) == (name, (64, 64))
    assert sum(p.numel() for p in own.open_own(path, stated).parameters()) > 1e6
    assert "no photo was seen" in path.with_suffix(".md").read_text()
