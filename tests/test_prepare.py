"""Whatever a SOURCE is, it becomes a Scene or one clear line; lenses go, and the way back stays exact."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scenetx.core import Cameras, InputError, Original, Scene, View
from scenetx.core.cameras import look_at
from scenetx.io.camera_path import read_camera_path, write_camera_path
from scenetx.io.cameras_json import read_cameras_json
from scenetx.io.images import picture_size, read_picture
from scenetx.io.lens import distort
from scenetx.io.llff import read_llff
from scenetx.io.prepare import (
    CameraModel,
    Opened,
    PrepareSettings,
    hold_out,
    open_source,
    with_cameras,
    write_upright,
)
from scenetx.io.sources import find_source, natural_key, safe_names

DEV = Path(__file__).parents[2] / "shared/data/dev"
needs_dev = pytest.mark.skipif(not DEV.is_dir(), reason="shared/data/dev is not beside this checkout")
SMALL = PrepareSettings(width=64)


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (96, 64), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def opened(source: Path | str, tmp_path: Path, setting: PrepareSettings = SMALL) -> Opened:
    return open_source(str(source), setting, tmp_path / "work")


def names(result: Opened) -> list[str]:
    return [view.name for view in result.scene.views]


def test_pictures_come_in_natural_order_at_working_size(tmp_path: Path):
    for seed, name in enumerate(["img10.jpg", "img2.PNG", "deep/img 1 (x).jpeg", ".hidden.jpg", "__MACOSX/a.jpg"]):
        photo(tmp_path / "p" / name, seed, size=(96, 64) if seed else (40, 80))
    (tmp_path / "p/Thumbs.db").write_text("side file")
    result = opened(tmp_path / "p", tmp_path)
    assert result.kind == "pictures"
    assert names(result) == ["deep/img_1_x.jpg", "img2.jpg", "img10.jpg"]
    assert [(view.height, view.width) for view in result.scene.views] == [(43, 64), (43, 64), (64, 32)]
    assert [view.original.height for view in result.scene.views] == [64, 64, 80]
    assert result.scene.skipped == ()
    assert all(view.camera is None and view.mask is None for view in result.scene.views)


def test_pictures_are_never_enlarged(tmp_path: Path):
    photo(tmp_path / "p/a.jpg", size=(50, 40))
    assert opened(tmp_path / "p", tmp_path, PrepareSettings(width=900)).scene.views[0].image.shape == (40, 50, 3)


def test_bad_pictures_are_skipped_and_named(tmp_path: Path):
    folder = tmp_path / "p"
    good = photo(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"")
    (folder / "c.jpg").write_bytes(good.read_bytes()[:-200])
    (folder / "d.jpg").write_text("no picture")
    photo(folder / "e.png", size=(1, 1))
    (folder / "f.jpg").write_bytes(good.read_bytes())
    (folder / "g.nef").write_bytes(b"raw")
    (folder / "h.mp4").write_bytes(b"film")
    result = opened(folder, tmp_path)
    assert names(result) == ["a.jpg"]
    reasons = {line.name: line.reason for line in result.scene.skipped}
    assert set(reasons) == {"b.jpg", "c.jpg", "d.jpg", "e.png", "f.jpg", "g.nef", "h.mp4"}
    for name, word in [("b.jpg", "empty"), ("c.jpg", "truncated"), ("d.jpg", "not a picture"), ("e.png", "1x1")]:
        assert word in reasons[name]
    assert reasons["f.jpg"] == "the same picture as a.jpg"
    kept = opened(folder, tmp_path, replace(SMALL, keep_duplicates=True))
    assert names(kept) == ["a.jpg", "f.jpg"]


def test_the_rim_of_a_cutout_keeps_its_colour_when_the_picture_is_reduced(tmp_path: Path):
    y, x = np.mgrid[:160, :240]
    inside = (x - 120) ** 2 + (y - 80) ** 2 < 60**2
    rgba = np.where(inside[..., None], np.array([180, 40, 90, 255]), np.array([255, 255, 255, 0])).astype(np.uint8)
    (tmp_path / "p").mkdir()
    Image.fromarray(rgba).save(tmp_path / "p/a.png")
    scene = opened(tmp_path / "p", tmp_path).scene
    K = torch.tensor([[200.0, 0, 120], [0, 200, 80], [0, 0, 1]])
    model = CameraModel(torch.eye(4), K, (-0.1, 0.02, 0.0, 0.0), "opencv", 160, 240)
    for view in (scene.views[0], with_cameras(scene, {"a.png": model}, SMALL).views[0]):
        assert max(view.image.shape) < 240
        assert 0.1 < view.mask.float().mean() < 0.5
        off = (view.image[view.mask].float() - torch.tensor([180.0, 40, 90])).abs()
        assert off.max() <= 2


@pytest.mark.parametrize("place", ["masks/a.png", "p/masks/a.jpg.png"])
def test_masks_beside_or_inside_are_found(tmp_path: Path, place: str):
    photo(tmp_path / "p/a.jpg")
    mask = np.zeros((64, 96), np.uint8)
    mask[:, :48] = 255
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(tmp_path / place)
    result = opened(tmp_path / "p", tmp_path)
    used = result.scene.views[0].mask
    assert used is not None
    assert used[:, :32].all()
    assert not used[:, 32:].any()
    assert not result.scene.views[0].cutout
    assert names(result) == ["a.jpg"]
    assert opened(tmp_path / "p", tmp_path, replace(SMALL, masks=False)).scene.views[0].mask is None


def test_transparency_is_a_mask_and_keeps_png(tmp_path: Path):
    rgba = np.full((64, 64, 4), 200, np.uint8)
    rgba[:, :, 3] = np.arange(64)[:, None] // 32 * 255
    (tmp_path / "p").mkdir()
    Image.fromarray(rgba).save(tmp_path / "p/a.png")
    view = opened(tmp_path / "p", tmp_path).scene.views[0]
    assert view.name == "a.png"
    assert view.mask is not None
    assert torch.equal(view.mask[:, 0], torch.arange(64) >= 32)
    assert view.cutout
    # A mask file leaves out what may well be there.
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "masks/a.png")
    assert not opened(tmp_path / "p", tmp_path).scene.views[0].cutout


def test_wrong_mask_skips_its_picture_by_name(tmp_path: Path):
    for seed, name in enumerate("ab"):
        photo(tmp_path / f"p/{name}.jpg", seed)
    photo(tmp_path / "p/masks/b.png", size=(64, 96))
    result = opened(tmp_path / "p", tmp_path)
    assert names(result) == ["a.jpg"]
    assert "mask" in result.scene.skipped[0].reason


def test_what_cannot_be_opened_says_why(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"")
    (tmp_path / "odd.zip").write_bytes(b"PK")
    (tmp_path / "odd.json").write_text("{}")
    (tmp_path / "two").mkdir()
    for name in ("a.mp4", "b.mov"):
        (tmp_path / "two" / name).write_bytes(b"x")
    cases = {
        "none": "does not exist", "*.jpg": "matches nothing", "empty": "is empty", "text": "holds no pictures",
        "bad": "not one usable picture", "odd.zip": "unknown kind", "odd.json": "without 'frames'", "two": "2 videos",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            opened(tmp_path / name, tmp_path)
    for odd in ("\0", "a" * 5000, ""):
        with pytest.raises(InputError):
            find_source(odd if odd else str(tmp_path / "empty"))


def test_glob_and_single_picture(tmp_path: Path):
    for seed, name in enumerate(["x/a1.jpg", "x/a2.jpg", "y/a1.jpg", "y/b.jpg"]):
        photo(tmp_path / name, seed)
    assert names(opened(f"{tmp_path}/*/a*.jpg", tmp_path)) == ["x/a1.jpg", "x/a2.jpg", "y/a1.jpg"]
    assert names(opened(tmp_path / "y/b.jpg", tmp_path)) == ["b.jpg"]


def test_scene_folder_is_left_to_the_caller(tmp_path: Path):
    (tmp_path / "scene.json").write_text("{}")
    result = opened(tmp_path, tmp_path)
    assert (result.kind, result.path, result.scene.views) == ("scene", tmp_path, ())


@given(
    st.lists(st.text(min_size=1, max_size=12).filter(lambda text: text.strip("/. ") and "\0" not in text), max_size=8)
)
@settings(deadline=None)
def test_names_are_safe_unique_and_relative(raw: list[str]):
    safe = safe_names(raw, [".jpg"] * len(raw))
    assert len({name.casefold() for name in safe}) == len(raw)
    for name in safe:
        assert name.endswith(".jpg")
        assert not any(part in ("", ".", "..") for part in name.split("/"))
        assert not set(name) & set(' \\:*?"<>|\n\t')


def test_natural_key_orders_numbers_by_value():
    assert sorted(["b10", "a2", "B9", "a10", "7", "x"], key=natural_key) == ["7", "a2", "a10", "B9", "b10", "x"]


LENS = CameraModel(
    look_at(torch.tensor([[1.0, 2, 3]]), torch.zeros(3), torch.tensor([0.0, 0, 1]))[0],
    torch.tensor([[200.0, 0, 100], [0, 201, 64], [0, 0, 1]]), (-0.1, 0.02, 0.001, 0.0), "opencv", 128, 192,
)  # fmt: skip


def test_with_cameras_keeps_the_way_back_exact(tmp_path: Path):
    for seed, name in enumerate("ab"):
        photo(tmp_path / f"p/{name}.jpg", seed, size=(384, 256))
    scene = opened(tmp_path / "p", tmp_path, PrepareSettings(width=200)).scene
    placed = with_cameras(scene, {"a.jpg": LENS}, PrepareSettings(width=200))
    view, other = placed.views
    assert other.camera is None
    assert view.camera is not None
    assert view.camera.width == view.width == 200
    assert view.camera.height == view.height
    assert torch.allclose(view.camera.world_from_cam[0].float(), LENS.world_from_cam)
    # The model speaks of a picture half as large as the original.
    assert view.original.K is not None
    assert torch.allclose(view.original.K[:2].float(), LENS.K[:2] * 2)
    assert view.original.distortion == LENS.distortion
    full = read_picture(view.original.path).pixels.astype(float)
    K = view.camera.K[0]
    for x, y in [(20.5, 20.5), (100.5, 60.5), (180.5, 110.5)]:
        ray = torch.linalg.inv(K) @ torch.tensor([x, y, 1], dtype=torch.float64)
        bent = torch.cat([distort(ray[None, :2], view.original.distortion)[0], torch.ones(1, dtype=torch.float64)])
        column, row = (view.original.K @ bent)[:2].int().tolist()
        assert np.abs(full[row, column] - view.image[int(y), int(x)].numpy()).max() < 9


def test_with_cameras_twice_gives_the_same_again(tmp_path: Path):
    photo(tmp_path / "p/a.jpg", size=(192, 128))
    mask = np.zeros((128, 192), np.uint8)
    mask[:, 96:] = 255
    (tmp_path / "p/masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "p/masks/a.png")
    setting = PrepareSettings(width=192)
    once = with_cameras(opened(tmp_path / "p", tmp_path, setting).scene, {"a.jpg": LENS}, setting)
    twice = with_cameras(once, {"a.jpg": LENS}, setting)
    assert torch.equal(once.views[0].image, twice.views[0].image)
    assert once.views[0].mask is not None
    assert twice.views[0].mask is not None
    assert torch.equal(once.views[0].mask, twice.views[0].mask)
    assert 0.3 < once.views[0].mask.float().mean() < 0.7


def test_with_cameras_refuses_what_does_not_fit(tmp_path: Path):
    path = photo(tmp_path / "p/a.jpg", size=(192, 128))
    scene = opened(tmp_path / "p", tmp_path).scene
    with pytest.raises(InputError, match=r"'b\.jpg' is no picture"):
        with_cameras(scene, {"b.jpg": LENS}, SMALL)
    with pytest.raises(InputError, match="its camera is for 128x192"):
        with_cameras(scene, {"a.jpg": replace(LENS, height=192, width=128)}, SMALL)
    photo(path, size=(100, 100))
    with pytest.raises(InputError, match="192x128"):
        with_cameras(scene, {"a.jpg": LENS}, SMALL)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jpg"):
        with_cameras(scene, {"a.jpg": LENS}, SMALL)


def test_write_upright_turns_shrinks_and_resumes(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    photo(tmp_path / "p/s/a.jpg", exif=exif)
    scene = opened(tmp_path / "p", tmp_path).scene
    files = write_upright(scene, tmp_path / "up", 48)
    path = files["s/a.jpg"]
    assert picture_size(path) == (48, 32)
    assert read_picture(path).original.orientation == 1
    written = path.stat().st_mtime_ns
    assert write_upright(scene, tmp_path / "up", 48)["s/a.jpg"].stat().st_mtime_ns == written
    assert picture_size(write_upright(scene, tmp_path / "up", 40)["s/a.jpg"]) == (40, 27)


def with_views(count: int, **changes) -> Scene:
    camera = Cameras(torch.eye(4)[None], torch.eye(3)[None], 2, 2)
    image = torch.zeros(2, 2, 3, dtype=torch.uint8)
    return Scene(tuple(View(f"v{i}.jpg", image, Original("", 2, 2), camera, **changes) for i in range(count)))


def test_hold_out_is_every_eighth_from_the_first():
    scene = with_views(20)
    assert [view.name for view in hold_out(scene, 8).held_out] == ["v0.jpg", "v8.jpg", "v16.jpg"]
    assert hold_out(with_views(7), 8).held_out == ()
    assert hold_out(scene, 0).held_out == ()
    marked = replace(scene, views=(*scene.views[:-1], replace(scene.views[-1], held_out=True)))
    assert [view.name for view in hold_out(marked, 8).held_out] == ["v19.jpg"]
    unplaced = replace(scene, views=(replace(scene.views[0], camera=None), *scene.views[1:]))
    assert [view.name for view in hold_out(unplaced, 8).held_out] == ["v1.jpg", "v9.jpg", "v17.jpg"]
    for bad in (1, -3):
        with pytest.raises(InputError):
            hold_out(scene, bad)


def cameras_json(folder: Path, **extra) -> Path:
    pose = torch.eye(4).tolist()
    entry = {"width": 96, "height": 64, "fx": 80, "fy": 80, "cx": 47.5, "cy": 31.5, "world_from_cam": pose}
    images = {"a.jpg": entry, "b.jpg": {**entry, "held_out": True}, "gone.jpg": entry}
    path = folder / "cameras.json"
    path.write_text(json.dumps({"pixel_center": 0.0, "images": images, **extra}))
    return path


def test_cameras_json_folder_opens_posed(tmp_path: Path):
    for seed, name in enumerate("ab"):
        photo(tmp_path / f"images/{name}.jpg", seed)
    cameras_json(tmp_path)
    result = opened(tmp_path, tmp_path)
    assert result.kind == "posed"
    assert result.posed is not None
    assert [picture.name for picture in result.posed.pictures] == names(result) == ["a.jpg", "b.jpg"]
    assert result.posed.held_out == {"b.jpg"}
    assert result.posed.pictures[0].K[:2, 2].tolist() == [48, 32]
    assert "missing" in result.scene.skipped[0].reason


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ('{"images": {}}', "lists no picture"),
        ('{"images": {"../x.jpg": {}}}', "inside the folder"),
        ('{"images": {"a.jpg": {"fx": 1}}}', "has no 'fy'"), ('{"images": {"a.jpg": {"K": [[1]]}}}', "3 x 3"),
    ],
)  # fmt: skip
def test_malformed_cameras_json_names_the_key(tmp_path: Path, content: str, message: str):
    (tmp_path / "cameras.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_cameras_json(tmp_path)


def llff_table(count: int) -> np.ndarray:
    # Columns down, right, back of an OpenCV camera that looks along +z, at (1, 2, 3).
    pose = np.array([[0, 1, 0, 1, 128], [1, 0, 0, 2, 192], [0, 0, -1, 3, 200]], float)
    return np.stack([np.concatenate([pose.ravel(), [0.1, 9]])] * count)


def test_llff_axes_and_scale(tmp_path: Path):
    for seed, name in enumerate(["b.jpg", "a.jpg"]):
        photo(tmp_path / f"images_2/{name}", seed)
    np.save(tmp_path / "poses_bounds.npy", llff_table(2))
    source = read_llff(tmp_path)
    assert [picture.name for picture in source.pictures] == ["a.jpg", "b.jpg"]
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, 3] = torch.tensor([1, 2, 3])
    assert torch.equal(source.pictures[0].world_from_cam, expected)
    assert source.pictures[0].K.diagonal().tolist() == [100, 100, 1]
    assert opened(tmp_path, tmp_path).kind == "posed"


@pytest.mark.parametrize("table", [llff_table(3), llff_table(1)[:, :15], llff_table(1) * np.nan, llff_table(1) * 2])
def test_bad_llff_tables_are_input_errors(tmp_path: Path, table: np.ndarray):
    photo(tmp_path / "images/a.jpg")
    np.save(tmp_path / "poses_bounds.npy", table)
    with pytest.raises(InputError, match="poses_bounds"):
        read_llff(tmp_path)


def test_pickled_npy_is_not_unpickled(tmp_path: Path):
    np.save(tmp_path / "poses_bounds.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        read_llff(tmp_path)


def test_camera_path_round_trip_and_nerfstudio(tmp_path: Path):
    eyes = torch.randn(3, 3, dtype=torch.float64) + 4
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64))
    K = torch.tensor([[90.0, 0, 60], [0, 90, 40], [0, 0, 1]], dtype=torch.float64).expand(3, 3, 3)
    write_camera_path(Cameras(poses, K, 80, 120), tmp_path / "a.json", 24)
    back = read_camera_path(tmp_path / "a.json")
    assert torch.equal(back.world_from_cam, poses)
    assert torch.equal(back.K, K)
    flipped = (poses[0] @ torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))).flatten().tolist()
    fov = float(torch.rad2deg(2 * torch.atan(torch.tensor(40 / 90, dtype=torch.float64))))
    frames = [{"camera_to_world": flipped, "fov": fov, "aspect": 1.5}]
    theirs = {"camera_type": "perspective", "render_height": 80, "render_width": 120, "camera_path": frames}
    (tmp_path / "b.json").write_text(json.dumps(theirs))
    other = read_camera_path(tmp_path / "b.json")
    assert torch.allclose(other.world_from_cam[0], poses[0])
    assert torch.allclose(other.K[0], K[0])
    (tmp_path / "c.json").write_text('{"width": 5, "height": 5, "frames": [{"world_from_cam": [[1]], "K": 3}]}')
    with pytest.raises(InputError, match="world_from_cam"):
        read_camera_path(tmp_path / "c.json")


@needs_dev
def test_hostile_folder_gives_what_its_manifest_expects(tmp_path: Path):
    folder = DEV / "hostile_door"
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    result = opened(folder / "images", tmp_path)
    used = {str(Path(view.original.path).relative_to(folder / "images")) for view in result.scene.views}
    skipped = {line.name for line in result.scene.skipped}
    for name, entry in manifest.items():
        if entry["expect"] == "use" or entry["expect"].startswith("decode"):
            assert name in used, name
        elif entry["expect"].startswith(("skip", "refuse")):
            assert name in skipped, name
        elif entry["expect"].startswith("ignore"):
            assert name not in used | skipped
    assert any("first of 4 frames" in note for note in result.scene.history[0].notes)


def test_full_disk_is_said_before_the_work_and_during_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photo(tmp_path / "p/a.jpg")
    scene = opened(tmp_path / "p", tmp_path).scene
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(InputError, match="make room for about"):
        write_upright(scene, tmp_path / "up", 48)
    monkeypatch.undo()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        write_upright(scene, tmp_path / "up", 48)
    assert list((tmp_path / "up").iterdir()) == []
