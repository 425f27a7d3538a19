"""Keyframes, the agreement of a picture with a map, and maps of keys and values: built, placed in, saved."""

import json
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from live_oracle import HEIGHT, WIDTH, Oracle, lens, pan, picture, walk
from PIL import Image
from test_models_cache import MODELS, made

from scenetx.core import Cameras, InputError, Original, Scene, Sim3, View
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.io.images import read_picture
from scenetx.live.agreement import agreement, coarse_grey
from scenetx.live.keyframes import Keyframe, KeyframeSettings, judge, overlap_share, spread, thinned
from scenetx.live.kv_map import CACHE_FILE, CELL, KEYFRAMES_FILE, Eye, KvMap, align, build_map, moved, unplaced
from scenetx.live.kv_tracker import KvSettings, KvTracker, map_scene, place
from scenetx.live.mapper import Mapper
from scenetx.live.update import Locator
from scenetx.models.pictures import SizeRule, to_model

SETTINGS = KeyframeSettings()


def keyframe(pose, index=0, confidence=1.0):
    """A keyframe of the hill with its exact depth."""
    image, depth = picture(pose)
    grid = torch.diag(torch.tensor([1 / CELL, 1 / CELL, 1.0]).double()) @ lens()
    grey = coarse_grey(image.float() / 255, CELL)
    middle = CELL // 2
    return Keyframe(index, image, lens(), pose, grid, depth[middle::CELL, middle::CELL], grey, confidence)


def camera(pose):
    frame = keyframe(walk(1)[0])
    return replace(frame.grid_camera, world_from_cam=pose[None])


def turned(pose, degrees):
    out = pose.clone()
    out[:3, :3] = pose[:3, :3] @ rotation_from_rotvec(torch.tensor([0.0, math.radians(degrees), 0.0]).double())
    return out


def test_views_are_new_by_turn_by_place_and_by_what_they_see():
    pose = walk(1)[0]
    frame = keyframe(pose)
    assert overlap_share(frame, camera(pose)) == 1
    assert judge(camera(pose), 0.9, [], SETTINGS).kind == "new"
    assert judge(camera(pose), 0.9, [frame], SETTINGS).kind == "known"
    for degrees, kind in ((8, "known"), (12, "new"), (60, "rejected")):
        verdict = judge(camera(turned(pose, degrees)), 0.9, [frame], SETTINGS)
        assert verdict.kind == kind
        assert verdict.angle == pytest.approx(degrees, abs=1e-4)
    aside = pose.clone()
    aside[:3, 3] += 0.2 * frame.middle_depth * pose[:3, 0]
    assert judge(camera(aside), 0.9, [frame], SETTINGS).reason == "moved"
    narrow = replace(SETTINGS, overlap=0.9)
    assert judge(camera(turned(pose, 8)), 0.9, [frame], narrow).reason == "little overlap"
    assert judge(camera(aside), 0.1, [frame], SETTINGS).kind == "rejected"
    # Near one of many is enough to be known.
    assert judge(camera(aside), 0.9, [frame, keyframe(aside)], SETTINGS).kind == "known"


def test_a_full_map_keeps_what_covers_most_and_the_newest():
    poses = torch.eye(4, dtype=torch.float64).repeat(40, 1, 1)
    # Thirty in one place, ten far apart; the newest is among the thirty.
    poses[5:15, 0, 3] = torch.arange(1, 11).double()
    poses[:, 1, 3] = 1e-3 * torch.arange(40)
    kept = spread(poses, torch.ones(40).double(), 12, SETTINGS)
    assert set(range(5, 15)) <= set(kept)
    assert kept == sorted(kept)
    assert len(kept) == 12
    assert kept[-1] == 39
    frames = [replace(keyframe(walk(1)[0]), index=i, world_from_cam=pose) for i, pose in enumerate(poses[:20])]
    assert [f.index for f in thinned(frames, replace(SETTINGS, most=20))] == list(range(20))
    assert len(thinned(frames, replace(SETTINGS, most=3))) == 3
    with pytest.raises(ValueError, match="2 or more"):
        KeyframeSettings(most=1)


def test_a_picture_agrees_with_the_map_from_where_it_was_taken_only():
    poses = walk(9, turn=0.6)
    frames = [keyframe(pose, i) for i, pose in enumerate(poses) if i != 4]
    image, _ = picture(poses[4])
    grey = coarse_grey(image.float() / 255, CELL)
    right = agreement(grey, camera(poses[4]), frames)
    assert right.confidence > 0.8
    assert right.overlap > 0.8
    # Exposure does not count.
    darker = agreement(0.5 * grey + 0.1, camera(poses[4]), frames)
    assert darker.confidence == pytest.approx(right.confidence, abs=1e-3)
    wrong = poses[4].clone()
    wrong[:3, 3] += 0.25 * wrong[:3, 0]
    assert agreement(grey, camera(wrong), frames).confidence < 0.5 * right.confidence
    assert agreement(grey, camera(turned(poses[4], 10)), frames).confidence < 0.5 * right.confidence
    away = agreement(grey, camera(turned(poses[4], 180)), frames)
    assert away.confidence == 0
    assert away.overlap == 0
    # A wall without any texture confirms nothing.
    blank = [replace(frame, grey=torch.full_like(frame.grey, 0.5)) for frame in frames]
    assert agreement(torch.full_like(grey, 0.5), camera(poses[4]), blank).confidence == 0
    assert agreement(grey, camera(poses[4]), []).confidence == 0


def test_real_pictures_agree_with_their_neighbours_from_where_they_were_taken_only():
    folder = Path(__file__).parents[2] / "shared/data/dev/hololens_a"
    if not (folder / "cameras.json").is_file():
        pytest.skip(f"{folder} is not here")
    entries = json.loads((folder / "cameras.json").read_text())["images"]
    frames = []
    for name in sorted(entries)[:14]:
        entry = entries[name]
        image = torch.from_numpy(read_picture(folder / "images" / name).pixels)
        with Image.open(folder / "depth" / f"{Path(name).stem}.png") as file:
            depth = torch.from_numpy(np.array(file).astype(np.float32)) / 1000
        K = torch.tensor([[entry["fx"], 0, entry["cx"]], [0, entry["fy"], entry["cy"]], [0, 0, 1]]).double()
        batch, windows = to_model([image], SizeRule(308, filter="box"))
        grey = coarse_grey(batch[0], CELL)
        cells = torch.diag(torch.tensor([1 / CELL, 1 / CELL, 1.0]).double()) @ windows[0].K_for_model(K)
        rows, columns = ((torch.arange(n) + 0.5) / n for n in grey.shape)
        there = depth[(rows * image.shape[0]).long()][:, (columns * image.shape[1]).long()]
        frames.append(Keyframe(0, image, K, torch.tensor(entry["c2w"]).double(), cells, there, grey))
    right, wrong, elsewhere = [], [], []
    for index in range(1, 13, 2):
        frame = frames[index]
        for pose, found in (
            (frame.world_from_cam, right),
            (turned(frame.world_from_cam, 8), wrong),
            (frames[(index + 6) % 14].world_from_cam, elsewhere),
        ):
            one = replace(frame.grid_camera, world_from_cam=pose[None])
            found.append(agreement(frame.grey, one, frames[::2]).confidence)
    assert min(right) > 0.75
    assert sorted(wrong)[3] < 0.4
    assert sorted(elsewhere)[3] < 0.4


def similarity(seed=0):
    generator = torch.Generator().manual_seed(seed)
    turn = rotation_from_rotvec(torch.randn(3, generator=generator).double())
    return Sim3(1.7, turn, torch.randn(3, generator=generator).double())


@pytest.mark.parametrize("poses", [walk(6), walk(2, turn=0.4), pan(4, 30), walk(1)], ids=["walk", "two", "pan", "one"])
def test_maps_are_aligned_in_place_turn_and_scale(poses):
    old = [keyframe(pose, i) for i, pose in enumerate(poses)]
    a_from_b = similarity()
    new = [moved(frame, a_from_b.inverse()) for frame in old]
    found, fit = align(old, new)
    assert fit < 1e-6
    # Also where places cannot tell the scale: depth can.
    assert found.scale == pytest.approx(1.7, rel=1e-6)
    assert torch.allclose(found.rotation, a_from_b.rotation, atol=1e-7)
    assert torch.allclose(found.translation, a_from_b.translation, atol=1e-5)


def test_one_wrong_keyframe_does_not_move_the_map():
    poses = walk(8)
    old = [keyframe(pose, i) for i, pose in enumerate(poses)]
    new = [moved(frame, similarity().inverse()) for frame in old]
    off = new[2].world_from_cam.clone()
    off[:3, 3] += 3.0
    new[2] = replace(new[2], world_from_cam=off)
    found, fit = align(old, new)
    assert found.scale == pytest.approx(1.7, rel=1e-6)
    assert fit < 1e-6
    shuffled = [replace(frame, world_from_cam=new[(3 * i) % 8].world_from_cam) for i, frame in enumerate(new)]
    assert align(old, shuffled)[1] > 0.15


def test_a_map_of_a_scene_is_in_the_scenes_frame_and_scale():
    poses = walk(12)
    oracle = Oracle(poses)
    wrong = poses.clone()
    wrong[3, :3, 3] += 5.0  # one camera of the scene is mistaken
    views = []
    for index, image in enumerate(oracle.pictures):
        one = Cameras(wrong[index : index + 1], lens()[None], HEIGHT, WIDTH)
        original = Original(f"{index}.png", HEIGHT, WIDTH)
        views.append(View(f"{index}.png", image, original, one, held_out=index in (5, 9)))
    scene = Scene(tuple(views), posed_by="sfm")
    settings = KvSettings(KeyframeSettings(most=8))
    tracker = KvTracker(oracle.eye(), map_scene(scene, oracle.eye(), settings), settings)
    assert isinstance(tracker, Locator)
    assert tracker.keyframes == 8
    assert not {frame.name for frame in tracker.map.keyframes} & {"5.png", "9.png"}
    for index in (5, 9, 11):
        found = tracker.locate(oracle.pictures[index], lens(), None)
        assert torch.allclose(found.world_from_cam, poses[index], atol=1e-5)
        assert found.world_from_cam.dtype == torch.float64
        assert found.confidence > 0.5
    with pytest.raises(InputError, match="no posed pictures"):
        map_scene(Scene(()), oracle.eye())
    with pytest.raises(InputError, match="made by oracle"):
        KvTracker(replace(oracle.eye(), name="other"), tracker.map)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_places_pictures_and_its_map_is_read_back_to_the_last_bit(name: str, tmp_path):
    model = made(name)
    eye = Eye(name, model, SizeRule(56), tells_focal=name in ("da3", "vggt"))
    generator = torch.Generator().manual_seed(5)
    shown = [torch.randint(0, 256, (60, 80, 3), generator=generator, dtype=torch.uint8) for _ in range(5)]
    K = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]]).double()
    kv_map = build_map(eye, [unplaced(i, shown[i], K) for i in range(4)], [False] * 4)
    assert kv_map.size == (42, 56)
    assert torch.allclose(kv_map.keyframes[0].world_from_cam, torch.eye(4).double(), atol=1e-4)
    placed = place(eye, kv_map, shown[4], K)
    step = model.step(placed.image, kv_map.cache, dense=False)
    expected = kv_map.world_from_map.apply_to_poses(step.cameras.world_from_cam.double())
    assert torch.equal(placed.camera.world_from_cam, expected)
    kv_map.save(tmp_path / "map")
    loaded = KvMap.load(tmp_path / "map")
    assert loaded.model == name
    assert torch.equal(place(eye, loaded, shown[4], K).camera.world_from_cam, expected)
    for before, after in zip(kv_map.keyframes, loaded.keyframes, strict=True):
        assert torch.equal(before.world_from_cam, after.world_from_cam)
        assert torch.equal(before.depth, after.depth)
        assert torch.equal(before.picture, after.picture)


def test_files_that_are_no_map_or_of_two_maps_are_refused(tmp_path):
    oracle = Oracle(walk(4))
    for name, numbers in (("a", (0, 1)), ("b", (2, 3))):
        frames = [unplaced(i, oracle.pictures[i], lens()) for i in numbers]
        build_map(oracle.eye(), frames, [False, False]).save(tmp_path / name)
    with pytest.raises(InputError, match="KvMap"):
        KvMap.load(tmp_path / "none")
    (tmp_path / "a" / KEYFRAMES_FILE).replace(tmp_path / "b" / KEYFRAMES_FILE)
    with pytest.raises(InputError, match="different maps"):
        KvMap.load(tmp_path / "b")
    (tmp_path / "b" / CACHE_FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="KVCache"):
        KvMap.load(tmp_path / "b")
    (tmp_path / "b" / KEYFRAMES_FILE).write_bytes(b"nothing")
    with pytest.raises(InputError, match="KvMap"):
        KvMap.load(tmp_path / "b")
    with pytest.raises(InputError, match="no pictures"):
        build_map(oracle.eye(), [], [])


def test_keyframes_leave_as_a_scene_that_can_be_reconstructed(tmp_path):
    from scenetx.io.scene_dir import load_scene

    oracle = Oracle(walk(3, turn=0.5))
    frames = [unplaced(i, image, lens()) for i, image in enumerate(oracle.pictures)]
    kv_map = build_map(oracle.eye(), frames, [False] * 3)
    kv_map.scene().save(tmp_path / "scene")
    scene = load_scene(tmp_path / "scene")
    assert len(scene.registered) == 3
    assert torch.allclose(scene.world_from_cams, torch.stack([f.world_from_cam for f in kv_map.keyframes]), atol=1e-9)


def test_the_mapper_gives_whole_results_the_newest_wish_first_and_survives_trouble():
    gate, begun, done = threading.Event(), threading.Event(), []

    def build(wish):
        begun.set()
        assert gate.wait(20)
        if wish == "bad":
            raise InputError("map", "bad", "map again")
        done.append(wish)
        return f"map of {wish}"

    with Mapper(build) as mapper:
        assert mapper.take() is None
        assert not mapper.busy
        mapper.ask("one")
        assert begun.wait(20)
        for wish in ("two", "three", "four"):
            mapper.ask(wish)
        assert mapper.busy
        assert mapper.take() is None
        gate.set()
        assert mapper.settle(20)
        # What waited was replaced, not queued; of two results the newer is handed over.
        assert done == ["one", "four"]
        assert mapper.take() == "map of four"
        assert mapper.take() is None
        mapper.ask("bad")
        assert mapper.settle(20)
        assert mapper.take() is None
        assert "map again" in mapper.trouble()
        assert mapper.trouble() == ""
        mapper.ask("five")
        assert mapper.settle(20)
        assert mapper.take() == "map of five"
    with pytest.raises(RuntimeError, match="closed"):
        mapper.ask("six")
    assert not mapper._thread.is_alive()
