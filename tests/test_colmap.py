"""COLMAP models: against pycolmap in both directions, every lens, sub-models, and damaged files."""

from __future__ import annotations

import logging
import shutil
import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scenetx.core import Cameras, InputError, Original, Points, Scene, View, project
from scenetx.core.rigid import rigid, rotation_from_rotvec
from scenetx.io.colmap import find_model, read_colmap, write_colmap
from scenetx.io.colmap_files import MODELS

KERMIT = Path(__file__).parents[2] / "shared/data/dev/kermit"
needs_dev = pytest.mark.skipif(not KERMIT.is_dir(), reason="the development data is not beside this checkout")
NAMES = ("a.jpg", "sub/b c.jpg", "z.jpg")
PARAMS = {
    "SIMPLE_PINHOLE": (500, 320, 240),
    "PINHOLE": (500, 510, 320, 240),
    "SIMPLE_RADIAL": (500, 320, 240, 0.1),
    "RADIAL": (500, 320, 240, 0.1, -0.05),
    "OPENCV": (500, 510, 320, 240, 0.1, -0.05, 0.001, -0.002),
    "FULL_OPENCV": (500, 510, 320, 240, 0.1, -0.05, 0.001, -0.002, 0.01, 0.02, -0.03, 0.004),
    "OPENCV_FISHEYE": (500, 510, 320, 240, 0.1, -0.05, 0.01, -0.002),
    "SIMPLE_RADIAL_FISHEYE": (500, 320, 240, 0.1),
    "RADIAL_FISHEYE": (500, 320, 240, 0.1, -0.05),
    "SIMPLE_FISHEYE": (500, 320, 240),
    "FISHEYE": (500, 510, 320, 240),
}


def model_of(names=NAMES, camera: str = "PINHOLE") -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    params = PARAMS.get(camera) or pycolmap.Camera.create_from_model_name(1, camera, 500.0, 640, 480).params
    model.add_camera_with_trivial_rig(pycolmap.Camera(camera_id=1, model=camera, width=640, height=480, params=params))
    for number, name in enumerate(names, start=1):
        rotation = pycolmap.Rotation3d(np.array([0.1 * number, -0.2, 0.3]))
        image = pycolmap.Image(image_id=number, name=name, camera_id=1)
        image.points2D = [pycolmap.Point2D(np.array([10.0 * k, 5.0])) for k in range(number)]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, np.array([number, 0.5, -1.0])))
    for k in range(5):
        track = pycolmap.Track()
        if k == 0:
            track.add_element(len(names), 0)
        model.add_point3D(np.array([k, 2.0 * k, 10.0]), track, np.array([k, 100, 255], np.uint8))
    return model


def put_pictures(folder: Path, names=NAMES) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / name)


def save(model: pycolmap.Reconstruction, folder: Path, text: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (model.write_text if text else model.write_binary)(folder)
    return folder


@pytest.mark.parametrize("text", [False, True])
def test_models_of_pycolmap(tmp_path, text):
    model = model_of()
    save(model, tmp_path / "sparse/0", text)
    put_pictures(tmp_path / "images")
    source = read_colmap(tmp_path)
    assert [picture.name for picture in source.pictures] == sorted(NAMES)
    theirs = {image.name: image for image in model.images.values()}
    for picture in source.pictures:
        expected = theirs[picture.name].cam_from_world().inverse().matrix()
        np.testing.assert_allclose(picture.world_from_cam[:3].numpy(), expected, atol=1e-12)
        assert (picture.height, picture.width, picture.distortion, picture.lens) == (480, 640, (), "opencv")
        assert picture.path.is_file()
        assert picture.path == tmp_path / "images" / picture.name
    points = sorted(model.points3D.values(), key=lambda point: point.xyz[0])
    order = source.points.positions[:, 0].argsort()
    np.testing.assert_allclose(source.points.positions[order].numpy(), [point.xyz for point in points])
    np.testing.assert_array_equal(source.points.colors[order].numpy(), [point.color for point in points])


@pytest.mark.parametrize("camera", sorted(PARAMS))
def test_each_lens_projects_like_colmaps(tmp_path, camera):
    """OpenCV's formulas with the parameters read give COLMAP's own pixels."""
    model = model_of(camera=camera)
    save(model, tmp_path)
    put_pictures(tmp_path / "images")
    picture = read_colmap(tmp_path).pictures[0]
    rays = np.array([[0.2, -0.1, 1], [-0.3, 0.25, 1], [0, 0, 1], [0.4, 0.4, 1]])
    x, y = rays[:, 0], rays[:, 1]
    k = (*picture.distortion, *([0.0] * 8))[:8]
    if picture.lens == "fisheye":
        r = np.hypot(x, y)
        theta = np.arctan(r)
        bent = theta * (1 + sum(k[i] * theta ** (2 * i + 2) for i in range(4)))
        factor = np.divide(bent, r, out=np.ones_like(r), where=r > 0)
        u, v = x * factor, y * factor
    else:
        r2 = x * x + y * y
        radial = (1 + k[0] * r2 + k[1] * r2**2 + k[4] * r2**3) / (1 + k[5] * r2 + k[6] * r2**2 + k[7] * r2**3)
        u = x * radial + 2 * k[2] * x * y + k[3] * (r2 + 2 * x * x)
        v = y * radial + k[2] * (r2 + 2 * y * y) + 2 * k[3] * x * y
    K = picture.K.numpy()
    pixels = np.stack([K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]], -1)
    np.testing.assert_allclose(pixels, model.cameras[1].img_from_cam(rays), atol=1e-9)


def test_the_table_of_camera_models_is_colmaps():
    for name, number in pycolmap.CameraModelId.__members__.items():
        if int(number.value) in MODELS:
            camera = pycolmap.Camera.create_from_model_id(1, number, 100.0, 100, 100)
            assert MODELS[int(number.value)] == (name, len(camera.params))


@pytest.mark.parametrize("camera", ["FOV", "THIN_PRISM_FISHEYE", "DIVISION", "EUCM"])
def test_lenses_without_an_opencv_equal_are_named(tmp_path, camera):
    save(model_of(camera=camera), tmp_path)
    put_pictures(tmp_path / "images")
    with pytest.raises(InputError, match=f"camera model {camera} "):
        read_colmap(tmp_path)


@pytest.mark.parametrize("place", ["", "sparse/0", "sparse", "colmap/sparse/0"])
def test_where_models_and_pictures_are_found(tmp_path, place):
    model = save(model_of(), tmp_path / place)
    put_pictures(tmp_path / "images")
    assert find_model(tmp_path) == model
    for folder in (tmp_path, model):
        assert all(picture.path.is_file() for picture in read_colmap(folder).pictures)
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="name the images folder"):
        read_colmap(tmp_path)
    assert all(picture.path.is_file() for picture in read_colmap(tmp_path, tmp_path / "elsewhere").pictures)


def test_the_largest_of_several_models_is_taken_and_said(tmp_path, caplog):
    save(model_of(NAMES[:1]), tmp_path / "sparse/0")
    save(model_of(NAMES), tmp_path / "sparse/1")
    save(model_of(NAMES[:2]), tmp_path / "sparse/2")
    put_pictures(tmp_path / "images")
    with caplog.at_level(logging.WARNING):
        assert len(read_colmap(tmp_path).pictures) == 3
    assert "3 models (0: 1 images, 1: 3 images, 2: 2 images); taking 1" in caplog.text


def test_missing_parts(tmp_path, caplog):
    with pytest.raises(InputError, match="holds no cameras and images"):
        read_colmap(tmp_path)
    save(model_of(), tmp_path)
    put_pictures(tmp_path / "images", NAMES[:2])
    for stem in ("points3D", "rigs", "frames"):
        (tmp_path / f"{stem}.bin").unlink()
    with caplog.at_level(logging.WARNING):
        source = read_colmap(tmp_path)
    assert source.points is None
    assert len(source.pictures) == 3
    assert "1 of 3 pictures" in caplog.text


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", ""])
def test_image_names_that_leave_the_folder(tmp_path, name):
    save(model_of(), tmp_path)
    put_pictures(tmp_path / "images")
    pose = struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 0, 1)
    (tmp_path / "images.bin").write_bytes(struct.pack("<Q", 1) + pose + name.encode() + b"\0" + struct.pack("<Q", 0))
    with pytest.raises(InputError, match="leaves the folder"):
        read_colmap(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("text", [False, True])
def test_damaged_models_are_read_or_refused(tmp_path, text, data):
    good = tmp_path / "good"
    if not good.is_dir():
        save(model_of(camera="OPENCV"), good, text)
        put_pictures(tmp_path / "images")
    bad = tmp_path / "bad"
    shutil.copytree(good, bad, dirs_exist_ok=True)
    stem = data.draw(st.sampled_from(["cameras", "images", "points3D"]))
    path = bad / f"{stem}.{'txt' if text else 'bin'}"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    try:
        source = read_colmap(bad, tmp_path / "images")
    except InputError as error:
        one_line_about(bad, error)
    else:
        assert all(bool(picture.world_from_cam.isfinite().all()) for picture in source.pictures)
        assert source.points is None or bool(source.points.positions.isfinite().all())


def test_hostile_counts(tmp_path):
    save(model_of(), tmp_path)
    put_pictures(tmp_path / "images")
    for stem in ("cameras", "images", "points3D"):
        path = tmp_path / f"{stem}.bin"
        data = path.read_bytes()
        path.write_bytes(struct.pack("<Q", 2**62) + data[8:])
        with pytest.raises(InputError, match=f"{stem}.bin: promises"):
            read_colmap(tmp_path)
        path.write_bytes(data)


def one_line_about(path: Path, error: InputError) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


def scene_of(n: int = 4) -> Scene:
    torch.manual_seed(0)
    views = []
    for i in range(n):
        rotation = rotation_from_rotvec(torch.tensor([0.1 * i, 3.0 - i, 0.2], dtype=torch.float64))
        pose = rigid(rotation, torch.tensor([i / 9, 0.2, -0.1], dtype=torch.float64))
        h, w = (48, 64) if i % 2 else (64, 48)
        K = torch.tensor([[50.5, 0, w / 2], [0, 51.25, h / 2 + 1], [0, 0, 1]], dtype=torch.float64)
        image = torch.zeros(h, w, 3, dtype=torch.uint8)
        camera = None if i == 3 else Cameras(pose[None], K[None], h, w)
        views.append(View(f"d/{i} é.jpg", image, Original("", h, w), camera=camera))
    colors = torch.randint(0, 256, (30, 3), dtype=torch.uint8)
    return Scene(tuple(views), points=Points(torch.randn(30, 3, dtype=torch.float64), colors, torch.rand(30)))


def test_pycolmap_reads_what_is_written(tmp_path):
    scene = scene_of()
    (tmp_path / "rigs.bin").write_bytes(b"of another model")
    write_colmap(scene, tmp_path)
    model = pycolmap.Reconstruction(tmp_path)
    assert model.num_reg_images() == 3
    assert len(model.cameras) == 2  # views of equal intrinsics and size share one
    images = {image.name: image for image in model.images.values()}
    for view in scene.registered:
        image = images[view.name]
        pixels, depth = project(scene.points.positions, view.camera)
        seen = model.cameras[image.camera_id].img_from_cam(
            np.array([image.cam_from_world() * point for point in scene.points.positions.numpy()])
        )
        front = (depth[0] > 0.1).numpy()
        assert front.any()
        np.testing.assert_allclose(seen[front], pixels[0].numpy()[front], atol=1e-8)
    points = sorted(model.points3D.items())
    np.testing.assert_array_equal([point.xyz for _, point in points], scene.points.positions.numpy())
    np.testing.assert_array_equal([point.color for _, point in points], scene.points.colors.numpy())
    np.testing.assert_allclose([point.error for _, point in points], scene.points.errors.numpy())


def test_written_and_read_again(tmp_path):
    scene = scene_of()
    write_colmap(scene, tmp_path / "sparse/0")
    put_pictures(tmp_path / "images", [view.name for view in scene.views])
    source = read_colmap(tmp_path)
    assert [picture.name for picture in source.pictures] == [view.name for view in scene.registered]
    for picture, view in zip(source.pictures, scene.registered, strict=True):
        torch.testing.assert_close(picture.world_from_cam, view.camera.world_from_cam[0], atol=1e-12, rtol=0)
        assert torch.equal(picture.K, view.camera.K[0])
    assert torch.equal(source.points.positions, scene.points.positions)
    with pytest.raises(InputError, match="no picture has a camera"):
        write_colmap(Scene(()), tmp_path)


@needs_dev
def test_a_real_model_with_rigs_agrees_with_pycolmap():
    folder = KERMIT / "gt_original/colmap_sparse"
    source, model = read_colmap(folder), pycolmap.Reconstruction(folder)
    assert len(source.pictures) == model.num_reg_images()
    assert len(source.points) == len(model.points3D)
    theirs = {image.name: image for image in model.images.values()}
    for picture in source.pictures:
        assert picture.path.is_file()
        expected = theirs[picture.name].cam_from_world().inverse().matrix()
        np.testing.assert_allclose(picture.world_from_cam[:3].numpy(), expected, atol=1e-9)
