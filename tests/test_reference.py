"""Scores against a reference: exact scenes score perfectly, known errors come out as what they are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenetx.core import Cameras, InputError, Original, Points, Scene, Sim3, View
from scenetx.core.cameras import look_at
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.io.cameras_json import read_cameras_json
from scenetx.measure.shape import cloud_errors
from scenetx.pipeline.reference import against_reference, true_points

H, W, N = 60, 80, 6


def world() -> Cameras:
    x = torch.linspace(-1, 1, N, dtype=torch.float64)
    eyes = torch.stack([x, 0.3 * x**2, -3 + 0 * x], -1)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    K = torch.tensor([[70.0, 0, W / 2], [0, 70, H / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(poses, K.repeat(N, 1, 1), H, W)


@pytest.fixture
def folder(tmp_path):
    """cameras.json with depth maps in millimetres; the scene is a wavy wall."""
    cameras = world()
    (tmp_path / "depth").mkdir()
    entries = {}
    for index in range(N):
        y, x = np.mgrid[:H, :W]
        depth = 3 + 0.3 * np.sin(x / 9 + index) * np.cos(y / 7)
        Image.fromarray((depth * 1000).astype(np.uint16)).save(tmp_path / "depth" / f"{index}.png")
        entries[f"{index}.png"] = {
            "width": W, "height": H, "K": cameras.K[index].tolist(), "depth": f"depth/{index}.png",
            "world_from_cam": cameras.world_from_cam[index].tolist(),
        }  # fmt: skip
    (tmp_path / "cameras.json").write_text(json.dumps({"images": entries}))
    return tmp_path


def scene(folder: Path, frame: Sim3, stretch: float = 1.0) -> Scene:
    """A reconstruction that is perfect in a frame of its own, but for depth that is too large by a factor."""
    source = read_cameras_json(folder)
    points = true_points(source, source.pictures)
    views = []
    for index, picture in enumerate(source.pictures):
        stored = torch.from_numpy(np.asarray(Image.open(picture.depth_path)).astype(np.float32)) / 1000
        pose = frame.apply_to_poses(picture.world_from_cam[None].double())
        camera = Cameras(pose, picture.K[None].double(), H, W)
        image = torch.zeros(H, W, 3, dtype=torch.uint8)
        original = Original(str(folder / f"{index}.jpg"), H, W)
        views.append(View(f"{index}.jpg", image, original, camera, depth=stored * frame.scale * stretch))
    cloud = Points(frame.apply(points).float(), torch.zeros(len(points), 3, dtype=torch.uint8))
    return Scene(tuple(views), points=cloud)


def another_frame() -> Sim3:
    rotation = rotation_from_rotvec(torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64))
    return Sim3(2.5, rotation, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def test_a_perfect_scene_scores_perfectly_in_any_frame(folder):
    errors = against_reference(scene(folder, another_frame()), folder)
    assert errors["cameras"] == N
    assert errors["rotation_deg_max"] < 1e-3
    assert errors["ate_rmse"] < 1e-6
    assert all(errors[f"pose_auc_{t}"] == 100 for t in (3, 5, 10, 30))
    assert errors["depth_absrel"] < 1e-4
    assert errors["depth_delta1"] == 1
    assert errors["accuracy"] < 1e-3
    assert errors["fscore"] == 1


def test_known_errors_come_out_as_what_they_are(folder):
    errors = against_reference(scene(folder, another_frame(), stretch=1.4), folder)
    assert errors["depth_absrel"] == pytest.approx(0.4, abs=1e-3)
    assert errors["depth_delta1"] == 0
    assert errors["depth_absrel_median"] < 1e-3
    perfect = scene(folder, Sim3.identity())
    moved = perfect.points.positions + torch.tensor([0.0, 0.0, 0.0])
    half = replace(perfect, points=Points(moved[: len(moved) // 2], perfect.points.colors[: len(moved) // 2]))
    cut = against_reference(half, folder)
    assert cut["accuracy"] < 1e-3
    assert cut["completeness"] > 10 * cut["accuracy"]
    assert cut["recall"] < 0.9
    # Pictures without a camera count against the score of pairs.
    lost = tuple(replace(view, camera=None) if index < 2 else view for index, view in enumerate(perfect.views))
    fewer = against_reference(replace(perfect, views=lost), folder)
    assert fewer["cameras"] == N - 2
    assert fewer["pose_auc_30"] == pytest.approx(100 * (4 * 3) / (6 * 5), abs=0.01)


def test_frames_of_a_video_are_known_by_their_number(folder):
    perfect = scene(folder, another_frame())
    views = tuple(
        replace(v, original=replace(v.original, path=f"frames/frame_{Path(v.name).stem}.png")) for v in perfect.views
    )
    assert against_reference(replace(perfect, views=views), folder)["cameras"] == N


def test_the_wrong_reference_is_said(folder, tmp_path):
    perfect = scene(folder, Sim3.identity())
    stranger = replace(perfect, views=perfect.views[:1])
    with pytest.raises(InputError, match="1 of its pictures"):
        against_reference(stranger, folder)
    with pytest.raises(InputError, match="not there"):
        against_reference(perfect, tmp_path / "absent.json")


def test_clouds_are_compared_both_ways():
    grid = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, 12),) * 3, indexing="ij"), -1).reshape(-1, 3)
    same = cloud_errors(grid, grid)
    assert same.accuracy == same.completeness == 0
    assert same.fscore == 1
    shifted = cloud_errors(grid, grid + torch.tensor([0.01, 0.0, 0.0]), threshold=0.005)
    assert shifted.accuracy == pytest.approx(0.01, abs=1e-6)
    assert shifted.fscore == 0
    wild = torch.cat([grid, torch.tensor([[100.0, 0, 0]])])
    assert cloud_errors(grid, wild, farthest=0.1).accuracy < 1e-3 < cloud_errors(grid, wild).accuracy
    assert cloud_errors(grid, wild).completeness == 0
    with pytest.raises(ValueError, match="0 reference"):
        cloud_errors(grid[:0], grid)
