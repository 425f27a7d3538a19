"""Structure from motion on a procedural room corner: all cameras found, crashes survived, work kept, bad input said."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenetx.core import InputError
from scenetx.core.cameras import look_at
from scenetx.core.rigid import rotation_angle
from scenetx.geometry import sfm_process, sfm_worker
from scenetx.geometry.align import align_cameras
from scenetx.geometry.pairs import alike_pairs, all_pairs, in_order, likeness, sequential_pairs
from scenetx.geometry.sfm import SfmCamera, SfmPicture, SfmSettings, opencv_camera, run_sfm, triangulate
from scenetx.geometry.sfm_job import Job, JobPicture

HEIGHT, WIDTH, FOCAL = 240, 320, 300.0
PLAIN = SfmSettings(few_features=0)
"""One pass of feature detection: enough for pictures this rich."""


def noise(seed: int, size: int = 512) -> np.ndarray:
    """Blobs of many sizes: what SIFT likes."""
    generator = np.random.default_rng(seed)
    total = np.zeros((size, size))
    for cells in (16, 32, 64, 128):
        coarse = Image.fromarray(generator.random((cells, cells)).astype(np.float32))
        total += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    return (255 * (total - total.min()) / np.ptp(total)).astype(np.float32)


TEXTURES = [noise(seed) for seed in range(3)]


def room(world_from_cam: np.ndarray) -> np.ndarray:
    """A corner of three textured walls (x = 0, y = 0, z = 0, each 4 wide), seen from the positive octant."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], -1) @ world_from_cam[:3, :3].T
    origin = world_from_cam[:3, 3]
    picture, nearest = np.zeros((HEIGHT, WIDTH)), np.full((HEIGHT, WIDTH), np.inf)
    for axis, texture in enumerate(TEXTURES):
        with np.errstate(divide="ignore"):
            distance = -origin[axis] / rays[..., axis]
        distance = np.where(distance > 0, distance, np.inf)
        hit = distance < nearest
        point = np.delete(origin + np.where(hit, distance, 0.0)[..., None] * rays, axis, axis=-1)
        u, v = (np.clip(point[..., i] / 4 * 511, 0, 510.999) for i in (0, 1))
        i, j, fu, fv = u.astype(int), v.astype(int), u % 1, v % 1
        value = (texture[i, j] * (1 - fu) + texture[i + 1, j] * fu) * (1 - fv) + (
            texture[i, j + 1] * (1 - fu) + texture[i + 1, j + 1] * fu
        ) * fv
        picture, nearest = np.where(hit, value, picture), np.where(hit, distance, nearest)
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def poses(n: int) -> torch.Tensor:
    angle = torch.linspace(0.15, math.pi / 2 - 0.15, n, dtype=torch.float64)
    height = 1.6 + 0.4 * torch.sin(5 * angle)
    eye = torch.stack([3.2 * angle.cos(), 3.2 * angle.sin(), height], -1)
    target = torch.tensor([0.8, 0.8, 0.8], dtype=torch.float64)
    return look_at(eye, target, torch.tensor([0.0, 0, 1], dtype=torch.float64))


@pytest.fixture(scope="session")
def corner(tmp_path_factory) -> tuple[list[SfmPicture], torch.Tensor]:
    folder = tmp_path_factory.mktemp("corner")
    world_from_cam = poses(8)
    pictures = []
    for index, pose in enumerate(world_from_cam):
        path = folder / f"{index}.png"
        Image.fromarray(room(pose.numpy())).save(path)
        pictures.append(SfmPicture(f"trip to/view {index}.png", path, "phone"))
    return pictures, world_from_cam


@pytest.fixture(scope="session")
def solved(corner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sfm")
    steps: list[tuple[str, float]] = []
    result = run_sfm(corner[0], folder, PLAIN, lambda step, share: steps.append((step, share)))
    return folder, result, steps


def saved(folder: Path, name: str, pixels: np.ndarray) -> SfmPicture:
    Image.fromarray(pixels).save(folder / name)
    return SfmPicture(name, folder / name, "phone")


def test_every_camera_is_found_where_it_was(corner, solved):
    pictures, truth = corner
    _, result, _ = solved
    assert result.unregistered == {}
    assert result.notes[0].startswith("8 of 8 pictures registered")
    found = torch.stack([result.cameras[picture.name].world_from_cam for picture in pictures])
    aligned = align_cameras(truth, found).apply_to_poses(found)
    angles = rotation_angle(aligned[:, :3, :3].transpose(1, 2) @ truth[:, :3, :3])
    assert math.degrees(float(angles.max())) < 0.3
    assert float((aligned[:, :3, 3] - truth[:, :3, 3]).norm(dim=-1).max()) < 0.02 * 3.2
    camera = result.cameras[pictures[0].name]
    assert (camera.height, camera.width) == (HEIGHT, WIDTH)
    assert float(camera.K[0, 0]) == pytest.approx(FOCAL, rel=0.02)


def test_a_calibrated_lens_stays_as_given(corner, tmp_path):
    pictures, truth = corner
    lens = (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, 0.0, 0.0, 0.0, 0.0)
    settings = replace(PLAIN, intrinsics=lens)
    result = run_sfm([replace(picture, lens=lens) for picture in pictures], tmp_path, settings)
    assert len(result.cameras) == len(pictures)
    for camera in result.cameras.values():
        assert camera.K.tolist() == [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]
        assert camera.distortion == (0.0, 0.0, 0.0, 0.0)
    found = torch.stack([result.cameras[picture.name].world_from_cam for picture in pictures])
    aligned = align_cameras(truth, found).apply_to_poses(found)
    angles = rotation_angle(aligned[:, :3, :3].transpose(1, 2) @ truth[:, :3, :3])
    assert math.degrees(float(angles.max())) < 0.3


def test_points_lie_on_the_walls_with_colours_and_errors(corner, solved):
    pictures, truth = corner
    _, result, _ = solved
    found = torch.stack([result.cameras[picture.name].world_from_cam for picture in pictures])
    points = align_cameras(truth, found).apply(result.points.positions.double())
    assert len(points) > 200
    assert float(points.abs().amin(-1).median()) < 0.02
    assert result.points.errors is not None
    assert 0 < float(result.points.errors.mean()) < 1.5
    assert int(result.points.colors.max()) > 100


def test_progress_runs_through_the_steps(solved):
    _, _, steps = solved
    assert all(0 <= share <= 1 for _, share in steps)
    kinds = list(dict.fromkeys(step.split(",")[0] for step, _ in steps))
    assert kinds == ["features", "matches", "mapping"]


def test_a_second_run_has_nothing_to_do(corner, solved):
    folder, result, _ = solved
    steps = []
    again = run_sfm(corner[0], folder, PLAIN, lambda step, _: steps.append(step))
    assert not any(step.startswith(("matches", "mapping")) for step in steps)
    assert again.notes == result.notes
    name = corner[0][3].name
    assert torch.equal(again.cameras[name].world_from_cam, result.cameras[name].world_from_cam)


def test_triangulated_points_lie_on_the_walls_in_the_cameras_own_frame(corner, tmp_path):
    pictures, truth = corner
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = {
        picture.name: SfmCamera(pose, K, (0.0, 0.0, 0.0, 0.0), HEIGHT, WIDTH)
        for picture, pose in zip(pictures[:4], truth, strict=False)
    }
    points = triangulate(pictures, cameras, tmp_path, PLAIN)
    assert len(points) > 100
    assert float(points.positions.abs().amin(-1).median()) < 0.01


def test_a_crash_in_the_solver_is_one_clear_line(corner, tmp_path, monkeypatch):
    monkeypatch.setenv(sfm_worker.CRASH, "matches")
    with pytest.raises(InputError, match=r"died in step 'matches.*SIGSEGV.*sfm\.log") as caught:
        run_sfm(corner[0][:3], tmp_path, PLAIN)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv(sfm_worker.CRASH)
    steps = []
    assert len(run_sfm(corner[0][:3], tmp_path, PLAIN, lambda step, _: steps.append(step)).cameras) == 3
    # The features of the first run were kept: the step is announced and over, without a share in between.
    assert steps.count("features") == 2


def test_an_interrupt_ends_the_worker_and_the_folder_stays_good(corner, tmp_path):
    def interrupt(step: str, _: float) -> None:
        if step.startswith("matches"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sfm(corner[0][:3], tmp_path, PLAIN, interrupt)
    assert len(run_sfm(corner[0][:3], tmp_path, PLAIN).cameras) == 3


def test_two_pictures_give_two_cameras(corner, tmp_path):
    result = run_sfm(corner[0][2:5:2], tmp_path, SfmSettings())
    assert len(result.cameras) == 2
    assert len(result.points) > 30


@pytest.mark.slow
def test_a_picture_of_something_else_is_named_with_a_reason(corner, tmp_path):
    stranger = saved(tmp_path, "stranger.png", np.repeat(noise(9)[:HEIGHT, :WIDTH, None], 3, -1).astype(np.uint8))
    blank = saved(tmp_path, "blank.png", np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    result = run_sfm(
        [*corner[0][:4], stranger, blank], tmp_path / "sfm", SfmSettings(mapper="incremental", few_features=0)
    )
    assert len(result.cameras) == 4
    assert result.notes[0].startswith("4 of 6 pictures registered")
    assert result.unregistered["blank.png"] == "few features (0)"
    assert "match" in result.unregistered["stranger.png"]


def test_no_texture_no_overlap_and_one_picture_are_said(corner, tmp_path):
    grey = [saved(tmp_path, f"g{i}.png", np.full((HEIGHT, WIDTH, 3), 90 + i, np.uint8)) for i in range(3)]
    with pytest.raises(InputError, match="0 of 3 pictures show enough detail"):
        run_sfm(grey, tmp_path / "a", PLAIN)
    apart = [
        saved(tmp_path, f"n{i}.png", np.repeat(noise(20 + i)[:HEIGHT, :WIDTH, None], 3, -1).astype(np.uint8))
        for i in range(2)
    ]
    with pytest.raises(InputError, match="no two of the 2 pictures"):
        run_sfm(apart, tmp_path / "b", PLAIN)
    with pytest.raises(InputError, match="at least two"):
        run_sfm(corner[0][:1], tmp_path / "c", SfmSettings())


def test_bad_files_and_names_are_said(corner, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match="broken"):
        run_sfm([corner[0][0], SfmPicture("b", broken)], tmp_path / "a", PLAIN)
    with pytest.raises(InputError, match="two pictures have this name"):
        run_sfm([corner[0][0], corner[0][0]], tmp_path / "b", PLAIN)
    with pytest.raises((ValueError, TypeError), match="magic"):
        SfmSettings(mapper="magic")


def test_a_new_picture_joins_and_the_old_work_is_kept(corner, tmp_path):
    run_sfm(corner[0][:3], tmp_path, PLAIN)
    shares = []
    result = run_sfm(corner[0][:4], tmp_path, PLAIN, lambda step, share: shares.append((step, share)))
    assert len(list((tmp_path / "images").iterdir())) == 4
    assert len(result.cameras) == 4
    # Three of four pictures need no look any more.
    assert ("features", 0.75) in shares


def test_a_mask_keeps_features_away(corner, tmp_path):
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(mask)
    hidden = [SfmPicture(picture.name, picture.path, "phone", None, mask) for picture in corner[0][:2]]
    with pytest.raises(InputError, match="0 of 2 pictures"):
        run_sfm(hidden, tmp_path / "sfm", PLAIN)


def test_a_lost_optional_step_is_left_out_the_second_time(tmp_path, monkeypatch):
    answers = iter([({}, "mapping, global", -11), ({"done": {"notes": ["fine"]}}, "", 0)])
    jobs = []

    def once(job, _):
        jobs.append(job)
        return next(answers)

    monkeypatch.setattr(sfm_process, "_run_once", once)
    job = Job("reconstruct", str(tmp_path), (), SfmSettings())
    assert sfm_process.run_job(job, None) == {"notes": ["fine"]}
    assert [job.skip for job in jobs] == [(), ("global",)]


def test_a_job_survives_the_trip_through_json():
    picture = JobPicture("ä b.jpg", "/x/ä b.jpg", "g", 500.0, None, 3, 4, (1.0, 2.0), ((1.0, 0.0), (0.0, 1.0)))
    job = Job("triangulate", "/x", (picture,), SfmSettings(mapper="global", overlap=3), ("global",))
    assert Job.from_json(job.to_json()) == job
    assert json.loads(job.to_json())["settings"]["overlap"] == 3


def test_pairs_cover_what_they_promise():
    assert len(all_pairs(7)) == 21
    sequential = sequential_pairs(40, 5)
    assert {(0, step) for step in (1, 2, 3, 4, 5, 8, 16, 32)} == {pair for pair in sequential if pair[0] == 0}
    assert all(a < b < 40 for a, b in sequential)


def test_pictures_of_one_place_look_alike():
    generator = np.random.default_rng(0)
    places = [generator.integers(0, 256, (200, 128)) for _ in range(4)]
    noisy = [
        np.clip(place + generator.normal(0, 8, place.shape), 0, 255).astype(np.uint8)
        for place in places
        for _ in range(3)
    ]
    noisy.append(np.zeros((0, 128), np.uint8))
    alike = likeness(noisy, words=16)
    assert np.allclose(alike, alike.T, atol=1e-5)
    best = alike_pairs(alike[:12, :12], neighbors=2)
    assert set(best) == {(a, b) for a in range(12) for b in range(a + 1, 12) if a // 3 == b // 3}
    assert all(b - a >= 5 for a, b in alike_pairs(alike, 3, min_gap=5))


def test_a_walk_is_told_from_a_heap_of_pictures():
    """Descriptors that drift from picture to picture, in order and shuffled."""
    generator = np.random.default_rng(1)
    things = generator.integers(30, 226, (16, 128)).repeat(50, 0)
    world = (things + generator.normal(0, 8, things.shape)).astype(np.uint8)
    alike = likeness([world[10 * i : 10 * i + 200] for i in range(60)], words=16)
    assert in_order(alike)
    shuffled = generator.permutation(60)
    assert not in_order(alike[np.ix_(shuffled, shuffled)])


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"])
def test_a_converted_lens_projects_like_colmaps_own(model):
    import pycolmap

    params = {
        "SIMPLE_PINHOLE": [500, 320, 240],
        "PINHOLE": [500, 510, 320, 240],
        "SIMPLE_RADIAL": [500, 320, 240, -0.1],
        "RADIAL": [500, 320, 240, -0.1, 0.02],
        "OPENCV": [500, 510, 320, 240, -0.1, 0.02, 0.003, -0.004],
    }[model]
    camera = pycolmap.Camera(model=model, width=640, height=480, params=params)
    K, (k1, k2, p1, p2) = opencv_camera(camera)
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    expected = camera.img_from_cam(np.array([[x], [y], [1.0]]))
    assert (K @ [xd, yd, 1])[:2] == pytest.approx(np.ravel(expected))
