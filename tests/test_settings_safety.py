"""Settings that would end in an empty scene, a traceback or nonsense are refused with a line, before any work."""

import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from scenetx.cli import main
from scenetx.config import load_settings
from scenetx.core import InputError
from scenetx.data.make import MakeSettings, make_shards
from scenetx.data.procedural import ProceduralConfig
from scenetx.fit import FitSettings
from scenetx.pipeline.reconstruct import ReconstructSettings, settings_for
from scenetx.train.settings import TrainSettings
from scenetx.verbs import settings_last


def test_an_input_error_comes_home_from_another_process():
    error = pickle.loads(pickle.dumps(InputError("photos", ValueError("gone"), "put them back")))
    assert type(error) is InputError
    assert str(error) == "photos: gone; put them back"


@pytest.mark.parametrize(
    "word",
    [
        "means_lr=nan",
        "means_lr=-1",
        "means_lr=0",
        "means_lr_end=0",
        "initial_scale=inf",
        "initial_scale=0",
        "background=[nan, 0, 0]",
        "background=[2, 0, 0]",
        "ssim_weight=nan",
        "ssim_weight=2",
        "initial_opacity=2",
        "initial_opacity=0",
        "min_opacity=0.5",
        "pyramid_until=5",
        "checkpoint_seconds=nan",
        "scales_lr=-1",
        "noise_lr=inf",
        "eval_views=-1",
        "reset_interval=0",
        "device=foo",
        "device=meta",
        "device=cuda:99",
    ],
)
def test_fit_settings_out_of_range_are_named(word: str):
    with pytest.raises(InputError, match=word.partition("=")[0]):
        settings_for("draft", overrides=[f"fit.{word}"])


def test_fit_settings_are_checked_without_a_command_line_too():
    for name, value in (("means_lr", math.nan), ("initial_scale", math.inf), ("background", (math.nan, 0.0, 0.0))):
        with pytest.raises(InputError, match=f"fit setting {name}"):
            FitSettings(**{name: value})
    assert FitSettings(refine_start=1.0, least_points=0, checkpoint_seconds=1e9).clear


@dataclass(frozen=True)
class Rates:
    rate: float = 1.0
    share: float | None = None
    both: tuple[float, float] = (0.0, 1.0)
    seconds: float = math.inf


def test_a_number_that_is_not_finite_is_refused_unless_the_default_is_such_a_one():
    for word in ("rate=nan", "rate=-inf", "share=inf", "both=[0, nan]"):
        with pytest.raises(InputError, match="give a finite number"):
            load_settings(Rates(), overrides=[word])
    assert load_settings(Rates(seconds=3.0), overrides=["share=0.5"]).share == 0.5
    assert load_settings(Rates(), overrides=["seconds=inf"]).seconds == math.inf


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=nan",
        "optim.lr=-1",
        "optim.lr=inf",
        "optim.betas=[2, 3]",
        "optim.weight_decay=-1",
        "data.workers=-1",
        "data.ahead=0",
        "data.difficulty_from=2",
        "svsm.heads=0",
        "svsm.dim=0",
        "da3.patch=0",
        "evaluate_scenes=-1",
        "seconds=nan",
    ],
)
def test_train_settings_out_of_range_are_named(word: str):
    with pytest.raises(InputError, match=word.partition("=")[0].rpartition(".")[2]):
        load_settings(TrainSettings(), overrides=[word])


def test_heads_divide_the_width_of_the_model_that_is_trained():
    settings = load_settings(TrainSettings(), overrides=["svsm.dim=32", "svsm.heads=5"])
    with pytest.raises(InputError, match=r"svsm\.heads: 5"):
        settings.checked()
    assert replace(settings, model="lvsm").checked()


@pytest.mark.parametrize("word", ["difficulty_from=7", "difficulty_from=-0.1", "difficulty_from=nan", "device=foo"])
def test_data_make_checks_before_it_writes(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["data", "make", str(tmp_path / "set"), word])
    assert stopped.value.code == 2
    assert word.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_set_that_failed_before_its_first_shard_can_be_begun_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scenetx.data.make.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    small = ProceduralConfig(height=8, width=8, views=1, difficulty=0.0, blur=1, shadows=False)
    settings = MakeSettings(scenes=1, per_shard=1, procedural=small)
    with pytest.raises(InputError, match="nowhere"):
        make_shards(tmp_path / "set", replace(settings, procedural=replace(small, photos=tmp_path / "nowhere")))
    assert [path.is_file() for path in make_shards(tmp_path / "set", settings)] == [True]
    with pytest.raises(InputError, match="other settings"):
        make_shards(tmp_path / "set", replace(settings, start=5))


@pytest.mark.parametrize("every", [1, -3])
def test_eval_every_says_at_once_what_it_may_be(every: int):
    with pytest.raises(InputError, match=r"give 0 \(none\) or 2 and more"):
        settings_for("draft", overrides=[f"eval_every={every}"])
    with pytest.raises(InputError, match="eval_every"):
        ReconstructSettings(eval_every=every)
    assert settings_for("draft", overrides=["eval_every=0"]).eval_every == 0


def test_settings_may_stand_anywhere_on_the_command_line():
    given = ["train", "mini-view", "batch=1", "-o", "a=b", "optim.steps=1"]
    assert settings_last(given) == ["train", "mini-view", "-o", "a=b", "batch=1", "optim.steps=1"]
    given = ["reconstruct", "photos", "a=1", "--no-splats", "b=2", "--config=x.toml", "fit.steps=3", "-q", "draft"]
    moved = ["a=1", "b=2", "fit.steps=3"]
    assert settings_last(given) == ["reconstruct", "photos", "--no-splats", "--config=x.toml", "-q", "draft", *moved]
    for other in (["export", "sc", "a=1", "--splats", "5"], ["train", "--", "b=1", "c"], []):
        assert settings_last(other) == other


def test_split_settings_reach_the_training(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("scenetx.cli._train", lambda verb, _: seen.append(verb))
    main(["train", "mini-view", "batch=1", "-o", "d", "optim.steps=1"])
    assert (seen[0].overrides, seen[0].output) == (("batch=1", "optim.steps=1"), Path("d"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "sc", "--index", "i.json"], "protocol re10k"),
        (["evaluate", "sc", "--model", "mini"], "protocol re10k"),
        (["evaluate", "sc", "--limit", "3"], "protocol re10k"),
        (["evaluate", "sc", "--protocol", "re10k", "--width", "64"], "leave it out"),
        (["track", "--source", "v.mp4", "--fov", "60", "--K", "1", "1", "1", "1"], "give one of them"),
    ],
)
def test_options_that_say_nothing_here_are_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reconstruct"], ["Missing from scenetx reconstruct", "scenetx reconstruct --help"]),
        (["reconstruct", "x", "-q", "best"], ["'best'", "--quality", "'draft', 'standard', 'high'"]),
        (["reconstruct", "x", "--eval-evry", "3"], ["--eval-evry", "--eval-every INT", "scenetx --help"]),
        (["render", "x", "--width", "wide"], ["--width", "'wide'"]),
        (["enlarge"], ["enlarge", "reconstruct, render, view"]),
        ([], ["Missing subcommand", "reconstruct, render, view"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_wrong_command_is_told_in_one_line(words: list[str], told: list[str], encoding: str):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C", "COLUMNS": "50"}
    done = subprocess.run(
        [sys.executable, "-m", "scenetx", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("scenetx: ")
    assert done.stderr.count("\n") == 1
    for part in told:
        assert part in done.stderr
