"""Settings: differences only, unknown keys are errors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from scenetx.config import load_settings, to_dict
from scenetx.core import InputError
from scenetx.geometry.sfm import SfmSettings


@dataclass(frozen=True)
class Fit:
    steps: int = 100
    rate: float = 0.5
    mode: Literal["a", "b"] = "a"
    scales: tuple[float, ...] = (1.0, 0.5)
    cap: int | None = None


@dataclass(frozen=True)
class Job:
    fit: Fit = field(default_factory=Fit)
    name: str = "x"
    keep: bool = True


def test_overrides_reach_nested_settings_and_leave_the_rest():
    job = load_settings(Job(), overrides=["fit.steps=7", "fit.rate=2", "name=desk", "keep=false", "fit.scales=[1, 2]"])
    assert job == Job(Fit(steps=7, rate=2.0, scales=(1.0, 2.0)), name="desk", keep=False)


def test_file_then_overrides(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text('name = "file"\n[fit]\nmode = "b"\nsteps = 3\n')
    job = load_settings(Job(), file=path, overrides=["fit.steps=4"])
    assert (job.name, job.fit.mode, job.fit.steps) == ("file", "b", 4)


def test_none_is_a_value_where_the_type_says_so():
    assert load_settings(Job(Fit(cap=3)), overrides=["fit.cap=none"]).fit.cap is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("fit.stepz=1", "did you mean 'steps'"),
        ("zzz=1", "known keys: fit, name, keep"),
        ("fit.steps=1.5", "type int"),
        ("fit.steps=true", "type int"),
        ("keep=1", "type bool"),
        ("fit.mode=c", "choose one of a, b"),
        ("fit=3", "it is a table"),
        ("fit.steps", "key=value"),
        ("fit.scales=[1, 'q']", "type float"),
    ],
)
def test_wrong_settings_are_named(override: str, says: str):
    with pytest.raises(InputError, match=says.replace("(", r"\(")) as error:
        load_settings(Job(), overrides=[override])
    assert "\n" not in str(error.value)


def test_what_a_dataclass_says_of_its_values_is_bad_input():
    with pytest.raises(InputError, match=r"sfm: intrinsics are \(1\.0, 2\.0\); give fx, fy, cx, cy"):
        load_settings(SfmSettings(), overrides=["intrinsics=[1, 2]"])


def test_broken_and_missing_files(tmp_path: Path):
    with pytest.raises(InputError, match="name a TOML file"):
        load_settings(Job(), file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="mend the TOML"):
        load_settings(Job(), file=tmp_path / "bad.toml")


def test_to_dict_comes_back(tmp_path: Path):
    job = Job(Fit(steps=9, scales=(3.0,)))
    said = to_dict(job)
    said["fit"].pop("cap")
    lines = [f"name = '{said['name']}'", "keep = true", "[fit]", "steps = 9", "scales = [3.0]"]
    (tmp_path / "a.toml").write_text("\n".join(lines))
    assert load_settings(Job(), file=tmp_path / "a.toml") == job
