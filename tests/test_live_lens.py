"""A lens that is found while a map is made: its focal length and radial term, how sure of them, and who is told."""

from __future__ import annotations

import io
from dataclasses import replace

import live_room
import numpy as np
import pytest
import torch
from live_room import Shots, picture, room
from PIL import Image
from scipy.spatial.transform import Rotation

import scenetx
from scenetx.core.rigid import rotation_angle
from scenetx.io.images import write_picture
from scenetx.io.lens import distort
from scenetx.live import grow
from scenetx.live.adjust import AdjustSettings, adjust, adjusted_map
from scenetx.live.classical_map import ClassicalMap, Lens, encode_grey
from scenetx.live.classical_session import ClassicalSession
from scenetx.live.features import Features
from scenetx.live.grow import FoundLens, GrowingMap, GrowSettings
from scenetx.live.grown import Grown, grown_of
from scenetx.live.intrinsics import GivenLens, Intrinsics, Straighten
from scenetx.live.opening import Opening
from scenetx.live.points import PointSettings, Seen, Station, map_of, starts
from scenetx.live.radial import bent, straight, with_lens
from scenetx.live.track import Tracker
from scenetx.live.update import Frame, Located
from scenetx.pipeline.localize import localize
from scenetx.pipeline.locators import open_map, scene_lenses

HEIGHT, WIDTH, FOCAL, BEND = 480, 640, 520.0, -0.08
ROOM_BEND = 0.15
GREY = encode_grey(np.full((HEIGHT, WIDTH), 90, np.uint8), 320)


def lens(focal: float = FOCAL) -> np.ndarray:
    return np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1.0]])


def stations(count: int, *, k1: float = BEND, noise: float = 0.3, seed: int = 0, turning: float = 1.0) -> list[Station]:
    """Pictures of a cloud from a swinging walk, as a bent lens shows them; poses are the true ones, K is a guess."""
    rng = np.random.default_rng(seed)
    places = rng.uniform([-2.4, -1.8, 2.2], [2.4, 1.8, 6.0], size=(420, 3))
    looks = rng.gamma(0.6, 1.0, size=(420, 128))
    looks = np.round(512 * looks / np.linalg.norm(looks, axis=1, keepdims=True)).clip(0, 255).astype(np.uint8)
    out = []
    for k in range(count):
        t = k / 6
        pose = np.eye(4)
        turn = turning * np.array([9 * np.sin(1.7 * t), -14 * np.sin(t), 6 * np.sin(2.3 * t)])
        pose[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
        pose[:3, 3] = [0.9 * np.sin(t), 0.3 * np.sin(1.3 * t), 0.25 * np.sin(0.8 * t)]
        cam = (places - pose[:3, 3]) @ pose[:3, :3]
        xy = bent(cam[:, :2] / cam[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2], lens(), k1)
        xy += rng.normal(scale=noise, size=xy.shape)
        kept = (cam[:, 2] > 0.5) & (xy > 0).all(1) & (xy < [WIDTH, HEIGHT]).all(1)
        found = Features(xy[kept].astype(np.float32), np.full(int(kept.sum()), 2.0, np.float32), looks[kept])
        seen = Seen(found.xy, GREY)
        out.append(Station(f"{k:02d}.png", pose, lens(0.85 * WIDTH), (HEIGHT, WIDTH), found, GREY, seen))
    return out


def true_map(pictures: list[Station], *, focal: float, k1: float) -> ClassicalMap:
    """By exact matches (looks are a point's own), as a lens that is thought of has it."""
    made = [with_lens(each, focal, k1) for each in pictures]
    first, links = starts(made), []
    for a in range(len(made)):
        for b in range(a + 1, len(made)):
            same = (made[a].features.descriptors[:, None] == made[b].features.descriptors[None]).all(2)
            links.append(np.stack(np.nonzero(same)) + first[[a, b], None])
    return map_of(made, np.concatenate(links, axis=1), PointSettings(epipolar=40.0))


@pytest.mark.parametrize("k1", [-0.2, -0.03, 0.0, 0.1])
def test_bent_pixels_are_those_of_the_one_lens_model_and_come_back(k1: float):
    rng = np.random.default_rng(1)
    xy, K = rng.uniform(0, [WIDTH, HEIGHT], size=(200, 2)), lens()
    rays = torch.from_numpy((xy - K[:2, 2]) / FOCAL)
    twin = distort(rays, (k1, 0.0, 0.0, 0.0)).numpy() * FOCAL + K[:2, 2]
    assert np.abs(bent(xy, K, k1) - twin).max() < 1e-9
    assert np.abs(straight(bent(xy, K, k1), K, k1) - xy).max() < 1e-6
    # Where the lens folds back there is an end, and no nonsense.
    assert np.isfinite(straight(np.array([[5000.0, 4000.0]]), K, k1)).all()


def test_focal_length_and_radial_term_are_found_together_and_how_well_is_said():
    off = []
    for seed in range(6):
        pictures = stations(6, seed=seed)
        made = true_map(pictures, focal=1.15 * FOCAL, k1=0.0)
        answer = adjust(made, np.ones(6, bool), lens=True, settings=AdjustSettings(rounds=40, enough=1e-7))
        assert abs(1.15 * answer.zoom - 1) < 0.025
        assert abs(answer.k1 - BEND) < 0.015
        assert answer.error < 0.6
        off.append([np.log(1.15 * answer.zoom) / answer.zoom_sigma, (answer.k1 - BEND) / answer.k1_sigma])
    spread = np.sqrt(np.mean(np.square(off), axis=0))
    assert (spread > 0.25).all()
    assert (spread < 2.0).all()
    # Without the radial term the focal length is far off, and would be said to be right.
    stiff = adjust(made, np.ones(6, bool), lens=True, settings=AdjustSettings(rounds=40, enough=1e-7, k1_sigma=1e-6))
    assert abs(1.15 * stiff.zoom - 1) > 0.1
    assert stiff.zoom_sigma < 0.01
    found = adjusted_map(made, answer).K[0, 0, 0]
    assert found == pytest.approx(FOCAL, rel=0.02)


def test_what_the_pictures_do_not_tell_is_said_to_be_unknown():
    """A camera that does not turn: any focal length goes with some depth."""
    made = true_map(stations(5, k1=0.0, turning=0.0), focal=1.15 * FOCAL, k1=0.0)
    answer = adjust(made, np.ones(5, bool), lens=True, settings=AdjustSettings(rounds=30))
    assert answer.zoom_sigma > 0.05


def test_observations_may_have_been_straightened_before():
    made = true_map(stations(6), focal=0.9 * FOCAL, k1=-0.05)
    answer = adjust(made, np.ones(6, bool), lens=True, k1=-0.05, settings=AdjustSettings(rounds=40, enough=1e-7))
    assert abs(0.9 * answer.zoom - 1) < 0.02
    assert abs(answer.k1 - BEND) < 0.015
    assert adjust(made, np.ones(6, bool), k1=-0.05).k1 == -0.05


@pytest.fixture(scope="module")
def grown() -> tuple[GrowingMap, list[tuple[bool, float]]]:
    """A map from pictures of a lens that nothing is known of; and whether it held, and its focal length, on the way."""
    opening, growing, way = Opening(), None, []
    for station in stations(9):
        unposed = replace(station, world_from_cam=np.eye(4))
        if growing is None:
            opened = opening.add(unposed, known_lens=False)
            if opened is not None:
                growing = GrowingMap(*opened, known_lens=False)
                growing.find_lens()
        else:
            placed = growing.placed(unposed)
            assert placed is not None
            assert growing.add(placed) == "taken"
        if growing is not None:
            way.append((growing.holds, growing.lens.focal))
    assert growing is not None
    return growing, way


def test_a_map_of_an_unknown_lens_finds_it_before_it_says_so(grown):
    growing, way = grown
    assert growing.holds
    assert growing.lens.focal == pytest.approx(FOCAL, rel=0.015)
    assert growing.lens.k1 == pytest.approx(BEND, abs=0.01)
    assert all(abs(focal / FOCAL - 1) < 0.04 for held, focal in way if held)
    assert not way[0][0]
    # Its cameras stand where they should, up to the frame that is its own.
    centers = np.stack([each.world_from_cam[:3, 3] for each in growing.stations])
    true = {each.name: each.world_from_cam[:3, 3] for each in stations(9)}
    wanted = np.stack([true[each.name] for each in growing.stations])
    a, b = (np.linalg.norm(each[:, None] - each[None], axis=2) for each in (centers, wanted))
    assert np.abs(a / a.max() - b / b.max()).max() < 0.02


def test_a_map_begun_later_goes_on_with_the_lens(grown):
    growing, _ = grown
    three = growing.stations[:3]
    later = GrowingMap(three, growing.map, known_lens=False, lens=growing.lens)
    assert later.holds
    vague = GrowingMap(three, growing.map, known_lens=False, lens=FoundLens(FOCAL, 0.0, np.inf))
    assert not vague.holds


def test_poses_are_held_back_while_new_estimates_move_the_cameras(grown, monkeypatch):
    """A lens may be said to be known to a percent, and the next estimate puts the cameras elsewhere all the same."""
    growing, _ = grown
    settings = GrowSettings(lens_last=3, lens_sigma=0.0)  # it is never said to be known for good
    later = GrowingMap(
        growing.stations, growing.map, known_lens=False, settings=settings, links=growing.links, lens=growing.lens
    )
    for _ in range(2):
        later.find_lens()
        assert later.steady
    depth = later.middle_depth
    for shift, turn, away in ((0.02, 0.0, False), (0.06, 0.0, True), (0.0, 3.0, True)):
        asked: list[int] = []

        def elsewhere(*given, shift=shift, turn=turn, asked=asked, **named):
            answer = adjust(*given, **named)
            asked.append(1)
            if len(asked) < 2:
                return answer
            poses = answer.world_from_cam.copy()
            poses[-1, 0, 3] += shift * depth
            poses[-1, :3, :3] = poses[-1, :3, :3] @ Rotation.from_euler("y", turn, degrees=True).as_matrix()
            return replace(answer, world_from_cam=poses)

        with monkeypatch.context() as patch:
            patch.setattr(grow, "adjust", elsewhere)
            later.find_lens()
        assert later.holds
        assert later.steady is not away
        assert grown_of(later, ClassicalSession().settings.locator, 8).steady is not away
        said = []
        for _ in range(0 if turn else 3):  # until that one is forgotten
            later.find_lens()
            said.append(later.steady)
        assert said == ([] if turn else [not away, not away, True])


def test_a_grown_map_straightens_frames_and_says_its_lens(grown):
    ready = grown_of(grown[0], ClassicalSession().settings.locator, 8)
    assert isinstance(ready, Grown)
    line = ready.lens_line(HEIGHT, WIDTH)
    assert line.startswith("focal length 5")
    assert "k1 -0.0" in line
    assert ready.K(2 * HEIGHT, 2 * WIDTH)[0, 0] == pytest.approx(2 * ready.K(HEIGHT, WIDTH)[0, 0])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = torch.from_numpy(np.stack([x % 256, y % 256, x // 8], axis=2).astype(np.uint8))
    out = ready.straight(image)
    assert out.shape == image.shape
    # In the middle nothing moves; towards the corner the straight picture shows what the lens drew farther in.
    middle = slice(HEIGHT // 2 - 5, HEIGHT // 2 + 5), slice(WIDTH // 2 - 5, WIDTH // 2 + 5)
    assert int((out[middle].int() - image[middle].int()).abs().max()) <= 1
    assert int(out[30, 600, 2]) < int(image[30, 600, 2])


def test_a_picture_is_straightened_as_its_features_are():
    grey = np.full((HEIGHT, WIDTH), 60, np.uint8)
    grey[40:46, 40:46] = 250
    picture = encode_grey(grey, WIDTH)
    features = Features(np.array([[43.0, 43.0]], np.float32), np.ones(1, np.float32), np.zeros((1, 128), np.uint8))
    raw = Station("a", np.eye(4), lens(), (HEIGHT, WIDTH), features, picture, Seen(features.xy, picture))
    made = with_lens(raw, FOCAL, 0.1)
    with Image.open(io.BytesIO(made.picture)) as image:
        bright = np.argwhere(np.asarray(image).astype(int) > 170)
    assert np.abs(bright.mean(0)[::-1] + 0.5 - made.features.xy[0]).max() < 1.0
    assert np.abs(made.features.xy[0] - 43).min() > 5
    assert with_lens(raw, FOCAL, 1e-7).picture == picture
    assert with_lens(replace(raw, seen=None), 400.0, 0.1).features.xy[0, 0] == 43
    small = Straighten(Lens(HEIGHT, WIDTH, tuple(map(float, lens().ravel())), (0.1,)), same=True)
    assert tuple(small(torch.zeros(HEIGHT, WIDTH, 1, dtype=torch.uint8)).shape) == (HEIGHT, WIDTH, 1)


@pytest.fixture(scope="module")
def bent_walk() -> list[np.ndarray]:
    """A walk through the room with a lens of `ROOM_BEND`, whose pictures are cut from larger straight ones."""
    walls, out = room(0), []
    y, x = np.mgrid[0 : live_room.HEIGHT, 0 : live_room.WIDTH] + 0.5
    xy = straight(np.stack([x.ravel(), y.ravel()], axis=1), live_room.K.numpy(), ROOM_BEND)
    at = torch.from_numpy(2 * xy / [live_room.WIDTH, live_room.HEIGHT] - 1).float().reshape(1, *x.shape, 2)
    for pose in live_room.path(32)[:12]:
        large = torch.from_numpy(picture(walls, pose.numpy(), 2 * live_room.HEIGHT, 2 * live_room.WIDTH))
        made = torch.nn.functional.grid_sample(large.permute(2, 0, 1)[None].float(), at, align_corners=False)
        out.append(made[0].permute(1, 2, 0).round().byte().numpy())
    return out


def test_a_found_lens_is_kept_in_the_scene_and_used_by_all_who_open_it(bent_walk, tmp_path):
    with ClassicalSession(patient=True) as own:
        for _ in scenetx.track(Shots(bent_walk), scene=own):
            pass
        own.finish()
        made = own.scene()
        assert own.growing is not None
        found = own.growing.lens
    assert abs(found.k1) > 0.02, "nothing to be kept"
    made.save(tmp_path / "scene")
    (lens,) = scene_lenses(tmp_path / "scene")
    assert (lens.height, lens.width) == (live_room.HEIGHT, live_room.WIDTH)
    assert lens.K[0] == pytest.approx(found.focal, rel=1e-9)
    assert lens.distortion[0] == pytest.approx(found.k1, rel=1e-9)
    assert not any(lens.distortion[1:])
    # Where the session stood at each keyframe, both ways of placing its raw pictures put them again.
    kept = dict(sorted((int(view.name[:6]) - 1, view) for view in made.registered))
    for k in kept:
        write_picture(tmp_path / "raw" / f"{k:03d}.png", bent_walk[k])
    opened = open_map(tmp_path / "scene", "classical")
    updates = list(scenetx.track(str(tmp_path / "raw"), scene=opened))
    answers = localize(opened, [tmp_path / "raw" / f"{k:03d}.png" for k in kept])
    assert len(updates) == len(answers) == len(kept) >= 4
    for k, update, answer in zip(kept, updates, answers, strict=True):
        camera = kept[k].camera
        assert camera is not None
        assert answer.found.located is not None
        for pose in (update.world_from_cam, answer.found.located.world_from_cam):
            assert pose is not None
            off = torch.linalg.inv(camera.world_from_cam[0]) @ pose
            assert float(off[:3, 3].norm()) < 0.005
            assert float(torch.rad2deg(rotation_angle(off[:3, :3]))) < 0.3


class Rough:
    """A locator whose map does not know its lens until the third frame."""

    name = "rough"

    def __init__(self) -> None:
        self.asked = 0

    def locate(self, image: torch.Tensor, K: torch.Tensor, guess: torch.Tensor | None) -> Located | None:
        self.asked += 1
        return Located(torch.eye(4).double(), 1.0, rough=self.asked < 3, image=image + 1)


def test_no_pose_is_called_tracked_before_the_lens_is_known():
    tracker = Tracker(Rough(), Intrinsics(GivenLens(fov=60)))
    blank = torch.full((24, 32, 3), 90, dtype=torch.uint8)
    updates = [tracker.step(Frame(k, k / 30, blank)) for k in range(4)]
    assert [update.status for update in updates] == ["unsure", "unsure", "tracking", "tracking"]
    assert [update.confidence for update in updates] == [0.1, 0.1, 1.0, 1.0]
    assert updates[0].world_from_cam is not None
    assert updates[0].image is not None
    assert int(updates[0].image[0, 0, 0]) == 91
