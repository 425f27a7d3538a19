"""transforms.json: each dialect in, nerfstudio out, nothing read that lies outside."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scenetx.core import Cameras, InputError, Original, Points, Scene, View
from scenetx.core.rigid import rigid, rotation_from_rotvec
from scenetx.io.ply import write_points_ply
from scenetx.io.transforms import read_transforms, write_transforms

FOX = Path(__file__).parents[2] / "shared/data/dev/fox"
needs_dev = pytest.mark.skipif(not FOX.is_dir(), reason="the development data is not beside this checkout")
LENS = {"fl_x": 50.0, "fl_y": 51.0, "cx": 33.0, "cy": 23.0, "w": 64, "h": 48}
POSE = [[0, 0, 1, 4], [1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 0, 1]]


def put(path: Path, size=(64, 48), **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)
    return str(path)


def source_of(folder: Path, root: dict, name: str = "transforms.json"):
    (folder / name).write_text(json.dumps(root))
    return read_transforms(folder)


def frame(name: str = "images/a.jpg", **more) -> dict:
    return {"file_path": name, "transform_matrix": POSE, **more}


def test_axes_and_names(tmp_path):
    put(tmp_path / "images/a.jpg")
    picture = source_of(tmp_path, {**LENS, "frames": [frame()]}).pictures[0]
    expected = [[0, 0, -1, 4], [1, 0, 0, 5], [0, -1, 0, 6], [0, 0, 0, 1]]  # the camera's y and z turn, its centre stays
    assert picture.world_from_cam.tolist() == expected
    assert picture.K.tolist() == [[50, 0, 33], [0, 51, 23], [0, 0, 1]]
    assert (picture.name, picture.height, picture.width, picture.distortion) == ("a.jpg", 48, 64, ())
    assert picture.path == tmp_path / "images/a.jpg"


def test_blender_scenes(tmp_path):
    """No size, no suffix, one angle, and a file for each split."""
    for split in ("train", "val", "test"):
        put(tmp_path / split / "r_0.png", (80, 60))
        root = {"camera_angle_x": 0.69, "frames": [frame(f"./{split}/r_0")]}
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(root))
    for given_ in (tmp_path, tmp_path / "transforms_train.json"):
        source = read_transforms(given_)
        assert [picture.name for picture in source.pictures] == ["train/r_0.png", "val/r_0.png", "test/r_0.png"]
        assert source.held_out == {"val/r_0.png", "test/r_0.png"}
        focal = 40 / math.tan(0.345)
        expected = torch.tensor([[focal, 0, 40], [0, focal, 30], [0, 0, 1]], dtype=torch.float64)
        torch.testing.assert_close(source.pictures[0].K, expected)


def test_sizes_come_from_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    put(tmp_path / "a.jpg", (64, 48), exif=exif)
    picture = source_of(tmp_path, {"camera_angle_x": 1.0, "frames": [frame("a.jpg")]}).pictures[0]
    assert (picture.height, picture.width) == (64, 48)


@pytest.mark.parametrize(
    "lens, distortion, kind",
    [
        ({"camera_model": "OPENCV", "k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4}, (0.1, 0.2, 0.3, 0.4), "opencv"),
        ({"k1": 0.1, "k3": 0.3}, (0.1, 0, 0, 0, 0.3), "opencv"),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.4}, (0.1, 0, 0, 0.4), "fisheye"),
        ({"is_fisheye": True, "k1": 0.1}, (0.1, 0, 0, 0), "fisheye"),
        ({"camera_model": "PINHOLE", "k1": 0.1}, (), "opencv"),
        ({"camera_model": "SIMPLE_PINHOLE"}, (), "opencv"),
        ({"camera_model": "OPENCV", "k1": 0, "k2": 0, "p1": 0, "p2": 0}, (), "opencv"),
    ],
)
def test_lenses_at_the_top_and_at_the_frame(tmp_path, lens, distortion, kind):
    put(tmp_path / "images/a.jpg")
    for root in ({**LENS, **lens, "frames": [frame()]}, {"frames": [frame(**LENS, **lens)]}):
        picture = source_of(tmp_path, root).pictures[0]
        assert (picture.distortion, picture.lens) == (distortion, kind)


def test_masks_depth_points_and_splits(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / f"images/{name}.jpg")
    points = Points(torch.randn(5, 3), torch.zeros(5, 3, dtype=torch.uint8))
    write_points_ply(points, tmp_path / "sparse_pc.ply")
    frames = [frame(mask_path="masks/a.png", depth_file_path="depth/a.png"), frame("images/b.jpg")]
    applied = [[0, 1, 0, 3], [1, 0, 0, 0], [0, 0, -1, 0]]
    root = {**LENS, "frames": frames, "ply_file_path": "sparse_pc.ply", "applied_transform": applied}
    source = source_of(tmp_path, root | {"test_filenames": ["images/b.jpg"], "depth_unit_scale_factor": 0.01})
    first = source.pictures[0]
    assert (first.mask_path, first.depth_path) == (tmp_path / "masks/a.png", tmp_path / "depth/a.png")
    assert first.depth_unit == 0.01
    assert source.held_out == {"b.jpg"}
    # nerfstudio has applied the transform to the poses and to the points: both stay in the file's frame
    assert torch.equal(source.points.positions, points.positions)
    assert first.world_from_cam[:3, 3].tolist() == [4, 5, 6]


def test_missing_pictures(tmp_path, caplog):
    put(tmp_path / "images/a.jpg")
    with caplog.at_level(logging.WARNING):
        source = source_of(tmp_path, {"camera_angle_x": 1.0, "frames": [frame(), frame("images/gone.jpg")]})
    assert [picture.name for picture in source.pictures] == ["a.jpg"]
    assert "1 pictures do not exist (images/gone.jpg" in caplog.text
    assert len(source_of(tmp_path, {**LENS, "frames": [frame(), frame("images/gone.jpg")]}).pictures) == 2
    for frames in ([], [frame("images/gone.jpg")]):
        with pytest.raises(InputError, match=r"none of its pictures exists|lists no picture"):
            source_of(tmp_path, {**LENS, "frames": frames})
    with pytest.raises(InputError, match=r"holds no transforms\.json"):
        read_transforms(tmp_path / "images")


@pytest.mark.parametrize("key", ["file_path", "mask_path", "depth_file_path", "ply_file_path"])
@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "images/../../../x.png", "", ".", "..\\..\\x.png"])
def test_paths_that_lead_outside(tmp_path, key, path):
    folder = tmp_path / "scene/json"
    put(folder / "images/a.jpg")
    root = {**LENS, "frames": [frame()]}
    (root if key == "ply_file_path" else root["frames"][0])[key] = path
    with pytest.raises(InputError, match=rf"{key}: is .*inside the folder of the file"):
        source_of(folder, root)


def test_paths_beside_and_through_links(tmp_path):
    folder = tmp_path / "json"
    folder.mkdir()
    put(tmp_path / "images/a.jpg")
    picture = source_of(folder, {**LENS, "frames": [frame("../images/a.jpg")]}).pictures[0]
    assert (picture.name, picture.path.is_file()) == ("a.jpg", True)
    (folder / "linked").symlink_to(tmp_path / "images")
    assert source_of(folder, {**LENS, "frames": [frame("linked/a.jpg")]}).pictures[0].path.is_file()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": {}}, "a list"),
        ({"fl_x": 0, "fl_y": 0}, "focal lengths"),
        ({"fl_x": "50"}, "a number"),
        ({"w": 0}, "whole number"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"k4": 0.1}, "k4 is 0.1"),
        ({"frames": [frame(transform_matrix=[[1, 0, 0, 0]])]}, "4 x 4 matrix"),
        ({"frames": [frame(transform_matrix=[[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])]}, "camera pose"),
        ({"frames": [frame(transform_matrix=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])]}, "matrix"),
        ({"frames": [frame(), frame()]}, "again"),
        ({"frames": [{"file_path": "images/a.jpg"}]}, "has no 'transform_matrix'"),
    ],
)
def test_malformed_files(tmp_path, change, message):
    put(tmp_path / "images/a.jpg")
    with pytest.raises(InputError, match=message):
        source_of(tmp_path, {**LENS, "frames": [frame()], **change})


POISON = st.sampled_from([None, True, -1, 0, 1e308, 10**400, "", "../../x", [], [[]], {}, "\0", float("nan")])


KEYS = [*LENS, "frames", "camera_model", "k1", "is_fisheye", "ply_file_path", "test_filenames"]
INNER = ["file_path", "transform_matrix", "mask_path", "w"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), inner=st.sampled_from(INNER), value=POISON, inside=st.booleans())
def test_poisoned_files_are_read_or_refused(tmp_path, key, inner, value, inside):
    if not (tmp_path / "images").is_dir():
        put(tmp_path / "images/a.jpg")
    root = {**LENS, "frames": [frame()]}
    if inside:
        root["frames"][0][inner] = value
    else:
        root[key] = value
    try:
        source = source_of(tmp_path, root)
    except InputError as error:
        one_line_about(tmp_path, error)
    else:
        assert bool(source.pictures[0].K.isfinite().all())


def one_line_about(path: Path, error: InputError) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


def scene_of(held_out: bool) -> Scene:
    views = []
    for i, name in enumerate(("a.jpg", "sub/b.png", "lost.jpg", "c.heic")):
        rotation = rotation_from_rotvec(torch.tensor([0.1, i, 0.2], dtype=torch.float64))
        pose = rigid(rotation, torch.tensor([i / 3, 0.5, -3.0], dtype=torch.float64))
        K = torch.tensor([[50.1 + i, 0, 32], [0, 51, 25], [0, 0, 1]], dtype=torch.float64)
        camera = None if name == "lost.jpg" else Cameras(pose[None], K[None], 48, 64)
        mask = torch.ones(48, 64, dtype=torch.bool) if i == 1 else None
        image = torch.zeros(48, 64, 3, dtype=torch.uint8)
        held = held_out and i == 1
        views.append(View(name, image, Original("", 48, 64), camera=camera, mask=mask, held_out=held))
    return Scene(tuple(views))


@pytest.mark.parametrize("held_out", [False, True])
def test_round_trip(tmp_path, held_out):
    scene = scene_of(held_out)
    write_transforms(scene, tmp_path / "transforms.json")
    for name in ("a.jpg", "sub/b.png", "c.heic.jpg"):
        put(tmp_path / "images" / name)
    source = read_transforms(tmp_path / "transforms.json")
    assert [picture.name for picture in source.pictures] == ["a.jpg", "sub/b.png", "c.heic.jpg"]
    assert source.held_out == ({"sub/b.png"} if held_out else set())
    for picture, view in zip(source.pictures, scene.registered, strict=True):
        assert torch.equal(picture.world_from_cam, view.camera.world_from_cam[0])
        assert torch.equal(picture.K, view.camera.K[0])
        assert (picture.height, picture.width, picture.distortion) == (48, 64, ())
    assert source.pictures[1].mask_path == tmp_path / "masks/sub/b.png.png"
    with pytest.raises(InputError, match="no picture has a camera"):
        write_transforms(Scene(()), tmp_path / "t.json")


@needs_dev
def test_a_real_file_agrees_with_the_reference_cameras(tmp_path):
    (tmp_path / "transforms.json").write_bytes((FOX / "gt_original/transforms.json").read_bytes())
    (tmp_path / "images").symlink_to(FOX / "images")
    source = read_transforms(tmp_path)
    reference = json.loads((FOX / "cameras.json").read_text())["images"]
    found = [picture for picture in source.pictures if picture.path.is_file()]
    assert len(found) == len(reference) == 50
    for picture in found:
        camera = reference[picture.name]
        expected = torch.tensor(camera["c2w"], dtype=torch.float64)
        torch.testing.assert_close(picture.world_from_cam, expected, atol=1e-5, rtol=0)
        assert float(picture.K[0, 0]) == pytest.approx(camera["fx"])
        assert picture.distortion == pytest.approx(camera["distortion"][:4])
