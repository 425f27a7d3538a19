"""What `track` and `localize` do where they cannot begin: nothing is lost, nothing is made, the trouble is named."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scenetx.core import InputError, Original, Scene, View
from scenetx.io.images import write_picture
from scenetx.live.outputs import LINES, TUM, Trajectory, as_json
from scenetx.live.source import open_reader
from scenetx.live.update import Located, Update
from scenetx.pipeline import localize as localize_room
from scenetx.pipeline import locators
from scenetx.pipeline import track as track_room
from scenetx.pipeline.localize import localize
from scenetx.pipeline.locators import OpenMap, open_map, open_without_map
from scenetx.pipeline.track import TrackPlan, run_track

OLD = "of an earlier run\n"


@dataclass
class Everywhere:
    """A locator that places any picture."""

    name: str = "everywhere"
    keyframes: int = 1
    map: tuple[()] = ()

    def locate(self, image: torch.Tensor, K: torch.Tensor, guess: torch.Tensor | None) -> Located | None:
        return Located(torch.eye(4, dtype=torch.float64), 0.9)


@pytest.fixture
def earlier(tmp_path) -> Path:
    """A folder with a trajectory in it."""
    for name in (TUM, LINES):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text(OLD)
    return tmp_path / "out"


@pytest.fixture
def no_map(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a map was opened")

    monkeypatch.setattr(track_room, "open_map", refuse)
    monkeypatch.setattr(track_room, "open_without_map", refuse)
    monkeypatch.setattr(localize_room, "open_map", refuse)


@pytest.fixture
def a_map(monkeypatch) -> None:
    opened = OpenMap(Everywhere(), ())
    for place in (track_room, localize_room):
        monkeypatch.setattr(place, "open_map", lambda *_, **__: opened)
    monkeypatch.setattr(track_room, "open_without_map", lambda *_, **__: opened.locator)


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        write_picture(folder / name, np.full((24, 32, 3), 90, np.uint8))
    return folder


@pytest.mark.usefixtures("no_map")
def test_a_source_that_is_not_there_costs_nothing(earlier, tmp_path):
    plan = TrackPlan(str(tmp_path / "nothing.mp4"), map=tmp_path / "scene", output=earlier)
    with pytest.raises(InputError, match=r"nothing\.mp4: does not exist"):
        run_track(plan)
    with pytest.raises(InputError, match="no-mask"):
        run_track(replace(plan, source=str(pictures(tmp_path / "p", "a.png")), mask=tmp_path / "no-mask"))
    assert (earlier / TUM).read_text() == (earlier / LINES).read_text() == OLD
    with pytest.raises(InputError, match=r"nothing\.mp4"):
        run_track(replace(plan, output=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("a_map")
@pytest.mark.parametrize("mapped", [True, False])
def test_a_source_that_gives_nothing_leaves_the_earlier_trajectory(earlier, tmp_path, mapped):
    (tmp_path / "p").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "p" / name).write_bytes(b"no picture")
    scene = tmp_path / "scene" if mapped else None
    plan = TrackPlan(str(tmp_path / "p"), map=scene, output=earlier)
    with pytest.raises(InputError, match=r"no picture can be read \(.*b\.png"):
        run_track(plan)
    with pytest.raises(InputError, match="camera 98"):
        run_track(replace(plan, source="98"))
    with pytest.raises(InputError, match="stream"):
        run_track(replace(plan, stream="tcp://a:1"))
    assert (earlier / TUM).read_text() == (earlier / LINES).read_text() == OLD


@pytest.mark.usefixtures("a_map")
def test_a_source_that_begins_writes_a_new_trajectory(earlier, tmp_path):
    summary = run_track(TrackPlan(str(pictures(tmp_path / "p", "a.png", "b.png")), output=earlier))
    assert summary.frames == 2
    assert [json.loads(line)["name"] for line in (earlier / LINES).read_text().splitlines()] == ["a.png", "b.png"]
    assert OLD not in (earlier / TUM).read_text()


def test_one_picture_of_many_is_passed_over(tmp_path):
    folder = pictures(tmp_path / "p", "a.png", "b.png")
    (folder / "c.png").write_bytes(b"no picture")
    assert [shot.name for shot in open_reader(str(folder)).shots()] == ["a.png", "b.png"]


def test_a_trajectory_takes_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    update = Update(0, 0.0, "lost", None, torch.eye(3, dtype=torch.float64), 0.0, name=name, note=name)
    with Trajectory(tmp_path) as trajectory:
        trajectory.add(update)
    assert json.loads((tmp_path / LINES).read_text())["name"] == "caf?.png"
    assert as_json(update)["note"] == "caf?.png"


@pytest.mark.usefixtures("no_map")
def test_pictures_are_looked_for_before_the_map(tmp_path):
    folder = pictures(tmp_path / "p", "a.png")
    with pytest.raises(InputError, match="no picture"):
        localize(tmp_path / "scene", [])
    with pytest.raises(InputError, match=r"b\.png: does not exist"):
        localize(tmp_path / "scene", [folder / "a.png", folder / "b.png"])


def test_one_bad_picture_does_not_cost_the_answers(tmp_path):
    folder = pictures(tmp_path / "p", "a.png", "c.png")
    (folder / "b.png").write_bytes(b"no picture")
    said: list[str] = []
    answers = localize(OpenMap(Everywhere(), ()), [folder], output=tmp_path / "x.json", say=said.append)
    assert [Path(answer.picture).name for answer in answers] == ["a.png", "c.png"]
    written = json.loads((tmp_path / "x.json").read_text())
    assert [Path(entry["picture"]).name for entry in written["pictures"]] == ["a.png", "c.png"]
    assert [Path(entry["picture"]).name for entry in written["unread"]] == ["b.png"]
    assert any(line.startswith("passed over") and "b.png" in line for line in said)
    with pytest.raises(InputError, match=r"b\.png"):
        localize(OpenMap(Everywhere(), ()), [folder / "b.png", folder / "b.png"])


def test_a_named_model_is_the_map(tmp_path, monkeypatch):
    (tmp_path / "scene.json").write_text("{}")
    monkeypatch.setattr(locators, "_classical", lambda *_: OpenMap(Everywhere("classical"), ()))
    with pytest.raises(InputError, match="nope"):
        open_map(tmp_path, model="nope")
    monkeypatch.setattr(locators, "_kv", lambda folder, model, say: OpenMap(Everywhere(model), ()))
    assert open_map(tmp_path).locator.name == "classical"
    assert open_map(tmp_path, model="da3-small").locator.name == "da3-small"
    for method in ("classical", "student"):
        with pytest.raises(InputError, match=f"method {method} has no use for one"):
            open_map(tmp_path, method, model="da3-small")
    with pytest.raises(InputError, match="method classical has no use for one"):
        open_without_map("classical", "da3-small")


def test_messages_about_a_map_name_the_scene_folder(tmp_path):
    original = Original("a.png", 24, 32, torch.eye(3, dtype=torch.float64))
    view = View("a.png", torch.zeros(24, 32, 3, dtype=torch.uint8), original)
    made = Scene((view,), source="desk").save(tmp_path / "one-scene")
    with pytest.raises(InputError, match=r"one-scene: 0 pictures with a camera"):
        open_map(made, "classical")
