"""Data on disk: tar shards, samplers of views, readers of posed and RGB-D layouts."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenetx.core import Cameras, InputError, Original, Scene, View, project
from scenetx.core.cameras import look_at
from scenetx.data.datasets import open_posed
from scenetx.data.make import MakeSettings, make_shard, make_shards
from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.data.rgbd import read_rgbd
from scenetx.data.sample import Sample, procedural_samples
from scenetx.data.samplers import SamplerSettings, choose_views, farthest_views, overlaps
from scenetx.data.shards import Shards, write_shard

CONFIG = ProceduralConfig(height=16, width=24, views=4, difficulty=0.1, blur=1, shadows=False)
KITCHEN = Path(__file__).parents[2] / "shared/data/dev/redkitchen_a"


@lru_cache(maxsize=1)
def samples() -> list[Sample]:
    return procedural_samples(procedural_views([0, 1, 2], CONFIG), ["0", "1", "2"])


def same(a: Sample, b: Sample) -> None:
    assert torch.equal(a.rgb, b.rgb)
    assert torch.equal(a.world_from_cam, b.world_from_cam)
    assert torch.equal(a.K, b.K)
    assert torch.equal(a.depth, b.depth)
    assert (a.normals - b.normals).abs().max() <= 0.5 / 127 + 1e-6


def test_shards_give_back_what_was_written_and_plain_tar_reads_them(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(), {"difficulty": 0.1})
    shards = Shards(tmp_path)
    assert shards.names() == ["0", "1", "2"]
    for index, sample in enumerate(samples()):
        same(shards.sample(index), sample)
    same(shards.sample(1, [3, 0]), samples()[1][[3, 0]])
    assert torch.equal(shards.cameras(2).world_from_cam, samples()[2].world_from_cam)
    with tarfile.open(path) as tar:
        about = json.loads(tar.extractfile("1.json").read())
        assert about["views"] == 4
        assert about["difficulty"] == 0.1
        with Image.open(tar.extractfile("1.02.png")) as picture:
            assert np.array_equal(np.array(picture), samples()[1].rgb[2].numpy())


def test_the_same_samples_give_the_same_bytes(tmp_path):
    one, two = (write_shard(tmp_path / name, samples()) for name in ("a.tar", "b.tar"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("keep", [100, 5000, -12000])
def test_a_shard_that_is_cut_off_is_skipped_and_named(tmp_path, keep):
    write_shard(tmp_path / "good.tar", samples())
    data = (tmp_path / "good.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:keep])
    shards = Shards(tmp_path)
    assert len(shards) == 3
    assert [line.name for line in shards.skipped] == ["cut.tar"]
    (tmp_path / "good.tar").unlink()
    with pytest.raises(InputError, match=r"cut\.tar"):
        Shards(tmp_path)


def test_a_broken_sample_names_its_shard(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples())
    data = bytearray(path.read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 8] = b"\x00" * 8
    path.write_bytes(bytes(data))
    shards = Shards(path)
    with pytest.raises(InputError, match=r"a\.tar: 0"):
        shards.sample(0)
    same(shards.sample(1), samples()[1])


def test_a_shard_cannot_ask_for_a_huge_picture_or_unpickle(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples()[:1])
    data = path.read_bytes()
    lie = data.replace(b'"height": 16', b'"height": 99')
    assert lie != data
    path.write_bytes(lie)
    with pytest.raises(InputError, match="instead of"):
        Shards(path).sample(0)
    path.write_bytes(data.replace(b"'descr': '<f4'", b"'descr': '|O' "))
    with pytest.raises(InputError, match="broken sample"):
        Shards(path).sample(0)


def test_names_with_dots_or_twice_are_refused(tmp_path):
    with pytest.raises(InputError, match="unique names"):
        write_shard(tmp_path / "a.tar", [samples()[0], samples()[0]])
    with pytest.raises(InputError, match="unique names"):
        write_shard(tmp_path / "a.tar", [replace(samples()[0], name="a.b")])
    assert list(tmp_path.iterdir()) == []


def test_made_shards_are_the_generator_s_scenes_and_are_not_made_twice(tmp_path, monkeypatch):
    settings = MakeSettings(scenes=3, per_shard=2, start=0, procedural=CONFIG)
    for index in range(2):
        make_shard(str(tmp_path / f"shard-{index:06d}.tar"), index, settings)
    shards = Shards(tmp_path)
    assert shards.names() == ["00000000", "00000001", "00000002"]
    same(shards.sample(2), samples()[2])
    # All there: no process has anything to do.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    make_shards(tmp_path, settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == before
    with pytest.raises(InputError, match="other settings"):
        make_shards(tmp_path, replace(settings, procedural=replace(CONFIG, difficulty=0.9)))


def test_a_sample_is_cut_and_resized_with_its_cameras():
    sample = samples()[0]
    small = sample.fitted(8, 8)
    assert small.rgb.shape == (4, 8, 8, 3)
    # The point seen in the middle of the small view is where the large one sees it.
    point = torch.tensor([[0.3, -0.2, 0.4]])
    large_at, z = project(point, sample.cameras)
    small_at, _ = project(point, small.cameras)
    assert torch.allclose(small_at, (large_at - torch.tensor([4.0, 0.0])) / 2, atol=1e-4)
    assert z.shape == (4, 1)


def ring(count: int) -> Cameras:
    angle = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
    eye = torch.stack([3 * angle.cos(), 3 * angle.sin(), torch.zeros(count)], -1)
    poses = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64))
    K = torch.tensor([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    return Cameras(poses, K, 40, 40)


def test_gap_sampling_keeps_the_gap_and_asks_between():
    settings = SamplerSettings("gap", gap=(4, 6))
    for seed in range(50):
        shown, asked = choose_views(np.random.default_rng(seed), settings, ring(20), 2, 3)
        assert 4 <= shown[1] - shown[0] <= 6
        assert all(shown[0] < view < shown[1] for view in asked)
        assert len(set(asked)) == 3


def test_samplers_are_functions_of_their_stream():
    for how in ("random", "gap", "overlap", "coverage"):
        settings = SamplerSettings(how, gap=(8, 8))
        runs = [choose_views(np.random.default_rng(7), settings, ring(9), 3, 4) for _ in range(2)]
        assert runs[0] == runs[1]
        assert len(runs[0][0]) == 3
        assert not set(runs[0][0]) & set(runs[0][1])


def test_coverage_takes_views_that_are_far_apart():
    shown = sorted(farthest_views(ring(12), 4, first=2))
    assert np.diff([*shown, shown[0] + 12]).max() <= 4
    assert farthest_views(ring(3), 5) == [0, 2, 1] or len(farthest_views(ring(3), 5)) == 3


def test_overlap_is_whole_with_itself_falls_with_the_angle_and_respects_depth():
    cameras = ring(36)
    shares = overlaps(cameras, 0, None)
    assert shares[0] == 1
    sample = samples()[0]
    depth = overlaps(sample.cameras, 1, sample.depth)
    assert depth[1] > 0.95
    # A scene whose other views stand behind a wall has nothing in common.
    wall = sample.depth.clone()
    wall[[0, 2, 3]] = 0.01
    hidden = overlaps(sample.cameras, 1, wall)
    assert hidden[1] > 0.95
    assert hidden[[0, 2, 3]].max() == 0


def test_too_few_views_are_refused():
    with pytest.raises(InputError, match="are to be shown"):
        choose_views(np.random.default_rng(0), SamplerSettings(), ring(2), 3, 1)
    with pytest.raises(InputError, match="gap"):
        SamplerSettings("gap", gap=(5, 2))


def test_our_scene_folders_are_read(tmp_path):
    sample = samples()[0]
    original = Original("x.png", 16, 24)
    views = tuple(
        View(f"{k}.png", sample.rgb[k], original, sample.cameras[k].to(torch.float64), depth=sample.depth[k])
        for k in range(4)
    )
    Scene(views, posed_by="input").save(tmp_path / "one")
    posed = open_posed(tmp_path)
    assert posed.names() == ["one"]
    found = posed.sample(0)
    assert torch.equal(found.rgb, sample.rgb)
    assert torch.allclose(found.world_from_cam, sample.world_from_cam, atol=1e-6)
    assert torch.allclose(found.depth, sample.depth, atol=1e-3)
    assert torch.allclose(posed.cameras(0).K, sample.K)
    (tmp_path / "two").mkdir()
    assert [line.name for line in open_posed(tmp_path).skipped] == ["two"]


def test_pictures_without_cameras_are_refused(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no cameras"):
        open_posed(tmp_path)


def as_seven_scenes(folder: Path, frames: range) -> Path:
    folder.mkdir()
    for index in frames:
        stem = f"frame-{index:06d}"
        shutil.copy(KITCHEN / "images" / f"{stem}.jpg", folder / f"{stem}.color.jpg")
        shutil.copy(KITCHEN / "depth_raw" / f"{stem}.png", folder / f"{stem}.depth.png")
        shutil.copy(KITCHEN / "gt_original" / f"{stem}.pose.txt", folder / f"{stem}.pose.txt")
    return folder


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="the recording lies beside the checkout, not in it")
def test_a_real_7_scenes_recording_agrees_with_itself(tmp_path):
    folder = as_seven_scenes(tmp_path / "seq", range(0, 24, 8))
    found = open_posed(folder).sample(0).fitted(120, 160)
    assert found.rgb.shape == (3, 120, 160, 3)
    known = found.depth > 0
    assert known.float().mean() > 0.6
    assert 0.3 < float(found.depth[known].median()) < 5
    # Points of the first view, by its depth and both poses, lie on the surface that the second one saw.
    from scenetx.core import unproject
    from scenetx.core.cameras import pixel_grid

    pixels = pixel_grid(120, 160)[known[0]]
    points = unproject(pixels[None], found.depth[0][known[0]][None], found.cameras[[0]])[0]
    at, z = project(points, found.cameras[[1]])
    column, row = at[0].floor().long().unbind(-1)
    inside = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < 160) & (row < 120)
    there = found.depth[1][row[inside], column[inside]]
    ratio = (z[0][inside] / there)[there > 0]
    assert inside.float().mean() > 0.6
    assert (ratio - 1).abs().median() < 0.05


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="the recording lies beside the checkout, not in it")
def test_a_cameras_json_recording_is_read_undistorted():
    posed = open_posed(KITCHEN)
    assert len(posed.scenes[0]) == 75
    found = posed.sample(0, [0, 1])
    assert torch.equal(posed.cameras(0).world_from_cam[:2], found.world_from_cam)
    assert found.depth is None
    assert found.K[0, 0, 0] == pytest.approx(517.3, rel=0.05)


def picture(path: Path, value: int, size: tuple[int, int] = (640, 480)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def depth_png(path: Path, value: int, size: tuple[int, int] = (640, 480)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0]), value, np.uint16)).save(path)


def test_tum_recordings_are_joined_by_time(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg3_x"
    for name, value in (("1.000", 10), ("1.100", 20), ("2.000", 30)):
        picture(folder / "rgb" / f"{name}.png", value)
    depth_png(folder / "depth" / "1.005.png", 10000)
    (folder / "rgb.txt").write_text("# a\n1.000 rgb/1.000.png\n1.100 rgb/1.100.png\n2.000 rgb/2.000.png\n")
    (folder / "depth.txt").write_text("1.005 depth/1.005.png\n")
    (folder / "groundtruth.txt").write_text("1.001 1 2 3 0 0 0 1\n1.101 4 5 6 0 0 0.70710678 0.70710678\n")
    frames = read_rgbd(folder)
    assert [frame.name for frame in frames] == ["1.000.png", "1.100.png"]  # the third has no pose near it
    assert frames[0].depth_path is not None
    assert frames[1].depth_path is None
    assert frames[1].world_from_cam[:3, 3].tolist() == [4, 5, 6]
    assert torch.allclose(frames[1].world_from_cam[:2, :2], torch.tensor([[0.0, -1], [1, 0]]).double(), atol=1e-6)
    sample = open_posed(folder).sample(0, [0])
    assert float(sample.depth.median()) == pytest.approx(2.0)
    assert sample.K[0, 0, 0] == pytest.approx(535.4)
    (folder / "rgb.txt").write_text("1.000 ../../secret.png\n")
    with pytest.raises(InputError, match="inside"):
        read_rgbd(folder)


def test_scannet_leaves_out_frames_without_a_pose(tmp_path):
    folder = tmp_path / "scene0000_00"
    for index in (0, 2, 10):
        picture(folder / "color" / f"{index}.jpg", index, (320, 240))
        depth_png(folder / "depth" / f"{index}.png", 1500, (160, 120))
        (folder / "pose").mkdir(exist_ok=True)
        rows = np.eye(4) if index != 2 else np.full((4, 4), -np.inf)
        np.savetxt(folder / "pose" / f"{index}.txt", rows)
    (folder / "intrinsic").mkdir()
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", np.diag([300.0, 300, 1, 1]))
    frames = read_rgbd(folder)
    assert [frame.name for frame in frames] == ["0.jpg", "10.jpg"]
    sample = open_posed(folder).sample(0)
    assert sample.depth.shape == (2, 240, 320)
    assert float(sample.depth.median()) == pytest.approx(1.5)
    np.savetxt(folder / "pose" / "0.txt", np.diag([1.0, 1, -1, 1]))
    with pytest.raises(InputError, match=r"0\.txt"):
        read_rgbd(folder)
