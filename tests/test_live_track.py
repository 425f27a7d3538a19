"""The classical map and the tracker, in a room with exact poses: places, losses, relocalisation, wrong scenes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from live_room import FOCAL, HEIGHT, WIDTH, K, path, picture, room, scene_of

from scenetx.core import InputError
from scenetx.core.rigid import rotation_angle
from scenetx.live.build import BuildSettings, build_map
from scenetx.live.classical import ClassicalLocator
from scenetx.live.classical_map import ClassicalMap, Lens, load_map, save_map
from scenetx.live.features import FeatureSettings
from scenetx.live.intrinsics import GivenLens, Intrinsics
from scenetx.live.track import Tracker, track_frames
from scenetx.live.update import Frame, Located, Locator, Update

COUNT, EVERY = 49, 6
POSES = path(COUNT)


@pytest.fixture(scope="module")
def walls() -> list[np.ndarray]:
    return room(0)


@pytest.fixture(scope="module")
def made(walls) -> ClassicalMap:
    settings = BuildSettings(features=FeatureSettings(side=640, most=600), neighbors=5)
    return build_map(scene_of(walls, POSES[::EVERY]), settings)


@pytest.fixture(scope="module")
def locator(made) -> ClassicalLocator:
    return ClassicalLocator(made)


@pytest.fixture(scope="module")
def pictures(walls) -> list[torch.Tensor]:
    return [torch.from_numpy(picture(walls, pose.numpy())) for pose in POSES]


def frames_of(pictures: list[torch.Tensor], numbers: list[int], notes: dict[int, str] | None = None) -> list[Frame]:
    """Frames at 30 a second; ``notes`` by place."""
    return [Frame(k, k / 30, pictures[number], note=(notes or {}).get(k, "")) for k, number in enumerate(numbers)]


def followed(locator: Locator, frames: list[Frame], lens: GivenLens | None = None) -> list[Update]:
    given = lens or GivenLens(K=(FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2))
    return list(track_frames(frames, Tracker(locator, Intrinsics(given))))


def off(update: Update, number: int) -> tuple[float, float]:
    """Distance (the path is about 0.9 long) and degrees from the true pose."""
    assert update.world_from_cam is not None
    turn = rotation_angle(POSES[number][:3, :3].T @ update.world_from_cam[:3, :3])
    return float((update.world_from_cam - POSES[number])[:3, 3].norm()), float(torch.rad2deg(turn))


def test_the_map_knows_where_its_points_are(made):
    """Every point lies on a wall of the room, to about a hundredth."""
    assert len(made) > 200
    half = np.array([2, 2, 1.5])
    from_wall = np.abs(half - np.abs(made.positions)).min(axis=1)
    assert np.median(from_wall) < 0.01
    assert (from_wall < 0.05).mean() > 0.85


def test_frames_that_the_map_has_not_seen_are_placed(locator, pictures):
    numbers = [k for k in range(COUNT) if k % EVERY]
    updates = followed(locator, frames_of(pictures, numbers))
    assert {update.status for update in updates} == {"tracking"}
    errors = np.array([off(update, number) for update, number in zip(updates, numbers, strict=True)])
    assert np.sqrt((errors[:, 0] ** 2).mean()) < 0.005
    assert errors[:, 1].max() < 0.4
    assert all(update.locator == "classical" and update.keyframes == len(POSES[::EVERY]) for update in updates)
    # After the first frame the patches do: no features are looked for.
    assert sum(update.note.endswith("patches") for update in updates) == len(updates)
    assert sum("features" in update.note for update in updates) <= 2


def test_a_global_search_needs_no_history(locator, pictures):
    first = locator.locate(pictures[20], K, None)
    locator.locate(pictures[40], K, POSES[40])
    again = locator.locate(pictures[20], K, None)
    assert first is not None
    assert again is not None
    assert torch.equal(first.world_from_cam, again.world_from_cam)
    assert float((first.world_from_cam - POSES[20])[:3, 3].norm()) < 0.01


def test_dark_frames_lose_the_camera_and_light_brings_it_back(locator, pictures):
    dark = [*pictures, torch.zeros_like(pictures[0])]
    numbers = [*range(8), *[COUNT] * 40, 40, 41, 42]
    notes = dict.fromkeys(range(8, 48), "black")
    updates = followed(locator, frames_of(dark, numbers, notes))
    states = [update.status for update in updates]
    assert states[:8] == ["tracking"] * 8
    assert states[8] == "unsure"
    assert updates[8].world_from_cam is not None
    assert states[47] == "lost"
    assert updates[47].world_from_cam is None
    assert states[48:] == ["relocalised", "tracking", "tracking"]
    assert off(updates[48], 40)[0] < 0.01


def test_another_place_is_not_taken_for_the_maps(locator, pictures):
    other = room(7)
    strange = [torch.from_numpy(picture(other, pose.numpy())) for pose in POSES[:12]]
    assert {update.status for update in followed(locator, frames_of(strange, list(range(12))))} == {"init"}
    both = [*pictures, *strange]
    numbers = [0, 1, 2, 3, *[COUNT + k % 12 for k in range(33)]]
    states = [update.status for update in followed(locator, frames_of(both, numbers))]
    assert states[3] == "tracking"
    assert "tracking" not in states[4:]
    assert states[-1] == "lost"


def test_exposure_jumps_and_noise_are_borne(locator, pictures):
    rng = np.random.default_rng(1)

    def darker(image: torch.Tensor, gain: float) -> torch.Tensor:
        noisy = gain * image.numpy() + 20 + rng.normal(scale=3, size=image.shape)
        return torch.from_numpy(np.clip(noisy, 0, 255).astype(np.uint8))

    numbers = list(range(1, 21))
    changed = {k: darker(pictures[k], 0.45 if k % 8 < 4 else 0.8) for k in numbers}
    frames = [Frame(i, i / 30, changed[k]) for i, k in enumerate(numbers)]
    updates = followed(locator, frames)
    assert {update.status for update in updates} == {"tracking"}
    assert max(off(update, number)[0] for update, number in zip(updates, numbers, strict=True)) < 0.02


def test_fast_motion_is_found_again_by_features(locator, pictures):
    """Every seventh frame only: nothing is where the last motion would have it."""
    numbers = [0, 1, 2, *range(3, COUNT, 7)]
    updates = followed(locator, frames_of(pictures, numbers))
    assert all(update.world_from_cam is not None for update in updates)
    assert off(updates[-1], numbers[-1])[0] < 0.02


def test_a_phone_turned_to_portrait_goes_on(locator, pictures):
    """The stream turns by a quarter: the lens is turned with it, and the camera has rolled."""
    upright = [pictures[k] for k in range(10, 14)]
    turned = [torch.rot90(pictures[k], 1).contiguous() for k in range(14, 18)]
    updates = followed(locator, frames_of([*upright, *turned], list(range(8))))
    assert all(update.status in ("tracking", "relocalised", "unsure") for update in updates)
    assert any(f"now {HEIGHT}x{WIDTH}" in update.note for update in updates)
    assert updates[-1].status == "tracking"
    # The turned picture's x axis is the old one's y axis, its y axis the old x axis backwards.
    roll = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    pose = updates[-1].world_from_cam
    assert pose is not None
    assert float((pose - POSES[17])[:3, 3].norm()) < 0.02
    assert float(torch.rad2deg(rotation_angle((POSES[17][:3, :3] @ roll).T @ pose[:3, :3]))) < 0.5


def test_a_frozen_camera_is_not_believed(locator, pictures):
    numbers = [0, 1, 2, 2, 2]
    updates = followed(locator, frames_of(pictures, numbers, {3: "frozen", 4: "frozen"}))
    assert [update.status for update in updates] == ["tracking", "tracking", "tracking", "unsure", "unsure"]


def test_a_kept_map_gives_the_same_poses(made, locator, pictures, tmp_path):
    kept = load_map(save_map(made, tmp_path / "map" / "classical.safetensors"))
    assert kept.names == made.names
    assert kept.lenses == made.lenses
    other = ClassicalLocator(kept)
    for number, guess in ((5, None), (6, POSES[5]), (33, POSES[30])):
        here, there = (each.locate(pictures[number], K, guess) for each in (locator, other))
        assert here is not None
        assert there is not None
        assert torch.equal(here.world_from_cam, there.world_from_cam)
        assert (here.confidence, here.inliers) == (there.confidence, there.inliers)


@pytest.mark.parametrize("cut", [0, 4, 100, 5000])
def test_a_damaged_map_is_said(made, tmp_path, cut):
    whole = save_map(made, tmp_path / "a.safetensors").read_bytes()
    bad = tmp_path / "b.safetensors"
    bad.write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"b\.safetensors"):
        load_map(bad)


def test_numbers_that_do_not_fit_are_said(made, tmp_path):
    wrong = replace(made, obs_point=made.obs_point + len(made))
    with pytest.raises(InputError, match="damaged"):
        load_map(save_map(wrong, tmp_path / "c.safetensors"))
    with pytest.raises(InputError, match=r"c\.safetensor"):
        load_map(tmp_path / "none" / "c.safetensors")


def test_pictures_without_texture_make_no_map(walls):
    scene = scene_of([np.full_like(wall, 120) for wall in walls], POSES[:3])
    with pytest.raises(InputError, match="texture"):
        build_map(scene)
    with pytest.raises(InputError, match="reconstruct it first"):
        build_map(replace(scene, views=scene.views[:1]))


def test_an_unknown_focal_length_is_found(locator, pictures):
    found = locator.estimate_K(pictures[24])
    assert found is not None
    assert abs(float(found[0][0, 0]) / FOCAL - 1) < 0.04
    # And while tracking, when the map's own camera is of another shape.
    lens = Lens(100, 100, (90.0, 0.0, 50.0, 0.0, 90.0, 50.0, 0.0, 0.0, 1.0))
    tracker = Tracker(locator, Intrinsics(None, [lens]))
    update = tracker.step(Frame(0, 0.0, pictures[24]))
    assert "estimated" in update.note
    assert abs(float(update.K[0, 0]) / FOCAL - 1) < 0.04


def test_the_maps_camera_is_taken_for_its_pictures(made, locator, pictures):
    tracker = Tracker(locator, Intrinsics(None, made.lenses))
    update = tracker.step(Frame(0, 0.0, pictures[24]))
    assert "the map's camera" in update.note
    assert torch.equal(update.K, K)


class Scripted:
    """A locator that answers by a list."""

    name = "scripted"

    def __init__(self, answers: list[Located | None]) -> None:
        self.answers = answers

    def locate(self, image: torch.Tensor, K: torch.Tensor, guess: torch.Tensor | None) -> Located | None:
        del image, K, guess
        return self.answers.pop(0) if self.answers else None


def at(x: float, confidence: float = 0.9) -> Located:
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = x
    return Located(pose, confidence)


def scripted(answers: list[Located | None]) -> list[Update]:
    image = torch.full((24, 32, 3), 99, dtype=torch.uint8)
    tracker = Tracker(Scripted(answers), Intrinsics(GivenLens(fov=60)))
    return [tracker.step(Frame(k, k / 30, image)) for k in range(len(answers))]


def test_a_jump_is_doubted_until_it_is_confirmed():
    walk = [at(0.01 * k) for k in range(8)]
    one = scripted([*walk, at(3.0, 0.2), at(0.09)])
    assert [update.status for update in one[8:]] == ["unsure", "tracking"]
    pose = one[8].world_from_cam
    assert pose is not None
    assert abs(float(pose[0, 3]) - 0.08) < 0.02
    two = scripted([*walk, at(3.0, 0.2), at(3.01, 0.2)])
    assert two[9].world_from_cam is not None
    assert float(two[9].world_from_cam[0, 3]) == 3.01
    sure = scripted([*walk, at(3.0, 0.95)])
    assert sure[8].status == "tracking"


def test_a_weak_first_pose_waits_for_a_second():
    assert [update.status for update in scripted([at(0, 0.2), at(0.01, 0.2)])] == ["init", "tracking"]
    assert {update.status for update in scripted([at(0, 0.05), at(0.01, 0.05)])} == {"init"}
