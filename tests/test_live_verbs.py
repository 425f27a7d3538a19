"""`scenetx track` and `scenetx localize`, from a scene folder to files, messages and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from live_room import HEIGHT, WIDTH, K, Shots, path, picture, room, scene_of

import scenetx
from scenetx.cli import main
from scenetx.core import InputError, Scene, Sim3
from scenetx.io.images import write_picture
from scenetx.live.classical import ClassicalLocator
from scenetx.live.classical_map import FILE, FOLDER, load_map
from scenetx.live.intrinsics import GivenLens, Intrinsics
from scenetx.live.known_scale import KnownScale, in_known_scale
from scenetx.live.outputs import LINES, TUM, VIDEO, read_tum
from scenetx.live.update import Update
from scenetx.pipeline.localize import localize
from scenetx.pipeline.locators import OpenMap, classical_map, open_map, scene_lenses
from scenetx.pipeline.track import TrackPlan, run_track
from scenetx.pipeline.track_view import TrackView

POSES = path(25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return scene_of(room(0), POSES[::4]).save(tmp_path_factory.mktemp("room") / "room-scene")


@pytest.fixture(scope="module")
def opened(folder) -> OpenMap:
    return open_map(folder)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Pictures that are not in the scene, as files."""
    out = tmp_path_factory.mktemp("others")
    walls = room(0)
    for k in (2, 9, 14, 15, 17, 18, 19):
        write_picture(out / f"{k:03d}.png", picture(walls, POSES[k].numpy()))
    return out


def test_the_map_is_kept_in_the_scene_and_made_again_when_it_moves(folder, opened, tmp_path):
    kept = load_map(folder / FOLDER / FILE)
    assert opened.bytes == (folder / FOLDER / FILE).stat().st_size
    said: list[str] = []
    assert np.array_equal(classical_map(folder, say=said.append).positions, kept.positions)
    assert said == []
    scene = scenetx.load(folder)
    turn = Sim3(2.0, torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64))
    views = tuple(
        replace(view, camera=replace(view.camera, world_from_cam=turn.apply_to_poses(view.camera.world_from_cam)))
        for view in scene.views
    )
    moved = replace(scene, views=views).save(tmp_path / "moved")
    (moved / FOLDER).mkdir()
    (moved / FOLDER / FILE).write_bytes((folder / FOLDER / FILE).read_bytes())
    again = classical_map(moved, say=said.append)
    assert "changed" in said[0]
    assert np.allclose(np.median(again.positions, axis=0), 2 * np.median(kept.positions, axis=0) + [1, 0, 0], atol=0.1)


def test_lenses_are_read_without_pictures(folder):
    (lens,) = scene_lenses(folder)
    assert lens.height == HEIGHT
    assert lens.width == WIDTH
    assert tuple(K.flatten().tolist()) == lens.K


def test_a_lens_is_taken_from_an_earlier_scene(folder, others, tmp_path, capsys):
    (lens,) = scene_lenses(folder)
    asked = Intrinsics(GivenLens(cameras=(lens,)))
    _, found = asked.straight(torch.zeros(2 * HEIGHT, 2 * WIDTH, 3, dtype=torch.uint8), Nowhere())
    assert torch.allclose(found[:2], 2 * K[:2])
    with pytest.raises(InputError, match="these are 50x40"):
        asked.straight(torch.zeros(40, 50, 3, dtype=torch.uint8), Nowhere())
    words = ["track", "--source", str(others), "--no-view", "--lens", str(folder)]
    main([*words, "-o", str(tmp_path)])
    told = json.loads((tmp_path / LINES).read_text().splitlines()[0])
    assert told["K"] == [float(value) for value in K.flatten()]
    for wrong, message in (([*words, "--fov", "60"], "--fov and --lens"), ([*words[:-1], str(others)], "scene.json")):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


class Nowhere:
    """A map that places nothing."""

    name = "nowhere"

    def locate(self, image, K, guess):
        return None


def test_single_pictures_are_placed(folder, others, tmp_path):
    said: list[str] = []
    answers = localize(
        folder, [others / "009.png", folder / "images" / "002.png"], output=tmp_path / "a.json", say=said.append
    )
    away, there = answers
    assert away.found.located is not None
    assert float((away.found.located.world_from_cam - POSES[9])[:3, 3].norm()) < 0.01
    assert away.truth_distance is None
    assert there.truth_distance is not None
    assert there.truth_degrees is not None
    assert there.truth_distance < 0.01
    assert there.truth_degrees < 0.3
    written = json.loads((tmp_path / "a.json").read_text())["pictures"]
    assert written[0]["found"] is True
    assert written[1]["from_scene"]["distance"] == there.truth_distance
    assert any("units and" in line for line in said)


def test_a_picture_of_elsewhere_is_not_found(folder, opened, tmp_path):
    write_picture(tmp_path / "b.png", picture(room(5), POSES[3].numpy()))
    (answer,) = localize(opened, [tmp_path / "b.png"])
    assert answer.found.located is None or answer.found.located.confidence < 0.1
    assert answer.as_json()["picture"].endswith("b.png")
    with pytest.raises(InputError, match="nothing"):
        localize(opened, [tmp_path / "nothing.png"])


def test_track_yields_updates(opened, others):
    updates = list(scenetx.track(str(others), scene=opened))
    assert [update.name for update in updates] == [f"{k:03d}.png" for k in (2, 9, 14, 15, 17, 18, 19)]
    for update in updates:
        assert update.world_from_cam is not None
        assert float((update.world_from_cam - POSES[int(update.name[:3])])[:3, 3].norm()) < 0.01


def test_an_interruption_keeps_everything(folder, others, tmp_path):
    seen: list[Update] = []

    def stop(update: Update) -> None:
        seen.append(update)
        if len(seen) == 4:
            raise KeyboardInterrupt

    plan = TrackPlan(str(others), map=folder, output=tmp_path / "out", record=True)
    summary = run_track(plan, lambda line: None, stop)
    assert summary.frames == 4
    assert len(read_tum(tmp_path / "out" / TUM)) == 4
    assert len((tmp_path / "out" / LINES).read_text().splitlines()) == 4
    assert (tmp_path / "out" / VIDEO).stat().st_size > 500
    assert "4 of 4 frames placed" in summary.line()


def test_an_object_alone_is_looked_at(opened, others, tmp_path):
    """Masks of everything change nothing; masks of nothing leave nothing to see."""
    for k in range(7):
        write_picture(tmp_path / "all" / f"{k}.png", np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
        write_picture(tmp_path / "none" / f"{k}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    whole = TrackPlan(str(others), mask=tmp_path / "all").masks()
    seen = list(scenetx.track(str(others), scene=opened, masks=whole))
    assert {update.status for update in seen} == {"tracking"}
    unseen = list(scenetx.track(str(others), scene=opened, masks=TrackPlan("", mask=tmp_path / "none").masks()))
    assert {update.status for update in unseen} == {"init"}
    assert all("object not found" in update.note for update in unseen)


def test_a_loop_that_is_left_closes_its_source(opened):
    walls = room(0)
    reader = Shots([picture(walls, POSES[k].numpy()) for k in range(3)] * 50)
    updates = scenetx.track(reader, scene=opened)
    next(updates)
    updates.close()
    assert reader.given < 5


def test_the_page_is_told(opened, folder):
    walls = room(0)
    reader = Shots([picture(walls, POSES[k].numpy()) for k in range(4)])
    with TrackView(folder, "test", port=0, open_browser=False, say=lambda line: None) as view:
        for update in scenetx.track(reader, scene=opened):
            view.show(update)
        message = view.message(update)
    assert message.status == "tracking"
    assert len(message.trajectory) == 4 * 12
    assert message.picture[:2] == b"\xff\xd8"
    assert (message.width, message.height) == (WIDTH, HEIGHT)


def test_the_command_lines(folder, others, tmp_path, capsys):
    main(["track", "--source", str(others), "--map", str(folder), "-o", str(tmp_path / "t"), "--no-view"])
    assert "7 of 7 frames placed" in capsys.readouterr().err
    main(["localize", str(folder), str(others / "014.png"), "-o", str(tmp_path / "l.json")])
    assert json.loads((tmp_path / "l.json").read_text())["pictures"][0]["found"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        ["track", "--source", "98", "--map", "{folder}", "--no-view"],
        ["track", "--source", "{others}", "--map", "{others}", "--no-view"],
        ["track", "--source", "{others}", "--method", "student", "--no-view"],
        ["track", "--source", "{others}", "--no-view", "--known-size", "2"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--known-size", "0"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--known-points", "9", "9", "9", "9", "1"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--known-picture", "no.png"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--record"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--stream", "tcp://a:1"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--fov", "500"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--mask", "{folder}/nothing"],
        ["track", "--source", "{others}", "--map", "{folder}", "--no-view", "--box", "5", "5", "6", "6"],
        ["localize", "{others}", "{others}/009.png"],
        ["localize", "{folder}", "{folder}/scene.json"],
    ],
)
def test_bad_input_is_one_line(folder, others, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main([part.format(folder=folder, others=others) for part in arguments])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_folders_without_a_scene_are_said(tmp_path):
    with pytest.raises(InputError, match=r"no scene\.json"):
        open_map(tmp_path)


def test_two_known_points_make_metres(folder, others, tmp_path):
    """Pixels of the map's first picture whose distance is known: the room twice as large."""
    points = [point_of(0, x, y) for x, y in ((70, 60), (180, 120))]
    true = float((points[0] - points[1]).norm())
    arguments = ["--known-points", "70", "60", "180", "120", str(2 * true)]
    main(["track", "--source", str(others), "--map", str(folder), "-o", str(tmp_path), "--no-view", *arguments])
    lines = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    numbers = (2, 9, 14, 15, 17, 18, 19)
    for line, number in zip(lines, numbers, strict=True):
        center = torch.tensor(line["world_from_cam"], dtype=torch.float64).reshape(4, 4)[:3, 3]
        assert float((center - 2 * (POSES[number][:3, 3] - points[0])).norm()) < 0.15


def point_of(number: int, x: float, y: float) -> torch.Tensor:
    """The wall that a pixel of the path's picture shows."""
    pose = POSES[number]
    ray = pose[:3, :3] @ torch.linalg.inv(K) @ torch.tensor([x, y, 1.0], dtype=torch.float64)
    half = torch.tensor([2.0, 2.0, 1.5], dtype=torch.float64)
    far = ((torch.sign(ray) * half - pose[:3, 3]) / ray).min()
    return pose[:3, 3] + far * ray


def test_a_known_size_scales_the_whole_map(opened):
    locator, object_from_map = in_known_scale(opened.locator, KnownScale(size=10.0))
    assert isinstance(locator, ClassicalLocator)
    extent = np.ptp(locator.map.positions, axis=0).max()
    assert 8 < extent < 16
    picture_9 = torch.from_numpy(picture(room(0), POSES[9].numpy()))
    found = locator.locate(picture_9, K, None)
    assert found is not None
    expected = object_from_map.apply_to_poses(POSES[9])
    assert float((found.world_from_cam - expected)[:3, 3].norm()) < 0.02 * object_from_map.scale
    with pytest.raises(InputError, match="one of the two"):
        KnownScale(size=1.0, points=(0.0, 0.0, 1.0, 1.0, 1.0))


def test_a_scene_without_texture_says_so(tmp_path):
    plain = [np.full_like(wall, 128) for wall in room(0)]
    scene: Scene = scene_of(plain, POSES[:3])
    with pytest.raises(InputError, match="texture"):
        open_map(scene.save(tmp_path / "plain"), "classical")
