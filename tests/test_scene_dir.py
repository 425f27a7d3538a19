"""The scene folder: what is saved comes back, other tools read it, and a hostile one is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scenetx.core import Cameras, Gaussians, InputError, Original, Points, Scene, Skipped, Stage, View
from scenetx.core.rigid import rigid, rotation_from_rotvec
from scenetx.io.scene_dir import load_scene, save_scene
from scenetx.io.transforms import read_transforms


def picture(h: int, w: int, seed: int) -> torch.Tensor:
    """Smooth, so that JPEG keeps it well, with full range."""
    y, x = torch.meshgrid(torch.linspace(0, 3, h), torch.linspace(0, 3, w), indexing="ij")
    waves = [(x * (k + 1) + y * (3 - k) + seed).sin() for k in range(3)]
    return (127.5 + 127.5 * torch.stack(waves, -1)).round().to(torch.uint8)


def camera(seed: int, h: int, w: int) -> Cameras:
    rotvec = torch.tensor([0.3, 0.2 * seed, 0.1], dtype=torch.float64)
    center = torch.tensor([seed / 3, 0.1, -seed / 7], dtype=torch.float64)
    K = torch.tensor([[40.1, 0, w / 2 + 0.3], [0, 40.7, h / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(rigid(rotation_from_rotvec(rotvec), center)[None], K[None], h, w)


def full_scene() -> Scene:
    torch.manual_seed(0)
    K = torch.tensor([[400.1, 0, 320], [0, 400, 240.5], [0, 0, 1]], dtype=torch.float64)
    original = Original(
        "photos/héron 1.jpg", 480, 640, K, (0.1, -0.02, 1e-4, 1 / 3), 6, 400.5, "Maker Model 24mm", 1700000000.25
    )
    depth = torch.rand(48, 64) * 7
    depth[:5] = 0
    views = (
        View("a.jpg", picture(48, 64, 0), original, camera(1, 48, 64)),
        View(
            "left/b 2.png",
            picture(64, 48, 1),
            Original("b.png", 64, 48),
            camera(2, 64, 48),
            mask=torch.rand(64, 48) > 0.5,
            cutout=True,
            held_out=True,
        ),
        View("c.HEIC", picture(48, 64, 2), original, camera(3, 48, 64), depth=depth, confidence=torch.rand(48, 64) * 9),
        View("lost.jpg", picture(48, 64, 3), Original("lost.jpg", 48, 64)),
    )
    gaussians = Gaussians(
        torch.randn(30, 3),
        torch.nn.functional.normalize(torch.randn(30, 4), dim=-1),
        torch.rand(30, 3) * 0.1 + 0.01,
        torch.rand(30) * 0.9 + 0.05,
        torch.randn(30, 4, 3) * 0.2,
        antialiased=True,
    )
    return Scene(
        views,
        source="photos",
        points=Points(torch.randn(20, 3), torch.randint(0, 256, (20, 3), dtype=torch.uint8), torch.rand(20)),
        gaussians=gaussians,
        posed_by="sfm",
        skipped=(Skipped("broken.jpg", "cannot be decoded"), Skipped("lost.jpg", "shares nothing with the others")),
        history=(
            Stage("sfm", 12.25, {"width": 960, "loose": True, "names": ["a"]}, ("2 models",)),
            Stage("fit", 1 / 3),
        ),
        metrics={"psnr": 27.123456789, "views": {"left/b 2.png": {"psnr": 27.1}}, "lpips": None},
    )


def same_tensors(a: object, b: object, names: str, **close: float) -> None:
    for name in names.split():
        left, right = getattr(a, name), getattr(b, name)
        if left is None or right is None:
            assert left is right, name
        elif close:
            torch.testing.assert_close(right, left, **close)
        else:
            assert torch.equal(left, right), name


def test_round_trip(tmp_path):
    scene = full_scene()
    save_scene(scene, tmp_path / "s")
    back = load_scene(tmp_path / "s")
    for key in ("source", "posed_by", "skipped", "history", "metrics"):
        assert getattr(back, key) == getattr(scene, key), key
    assert [view.name for view in back.views] == [view.name for view in scene.views]
    for old, new in zip(scene.views, back.views, strict=True):
        assert (new.camera is None) == (old.camera is None)
        if old.camera is not None:
            same_tensors(old.camera, new.camera, "world_from_cam K")
            assert (new.camera.height, new.camera.width) == (old.height, old.width)
        assert replace(new.original, K=None) == replace(old.original, K=None)
        same_tensors(old.original, new.original, "K")
        same_tensors(old, new, "mask")
        assert (new.held_out, new.cutout) == (old.held_out, old.cutout)
        if old.depth is not None:
            half_unit = float(old.depth.max()) / 131070 * 1.01
            same_tensors(old, new, "depth", atol=half_unit, rtol=0)
            assert torch.equal(new.depth > 0, old.depth > 0)
        same_tensors(old, new, "confidence", atol=1e-4, rtol=0)
    same_tensors(scene.points, back.points, "positions colors errors")
    same_tensors(scene.gaussians, back.gaussians, "means sh")
    same_tensors(scene.gaussians, back.gaussians, "quats scales opacities", atol=1e-6, rtol=1e-6)
    assert back.gaussians.antialiased
    assert load_scene(tmp_path / "s/scene.json").source == "photos"


def test_pixels_png_exact_jpeg_close_and_never_twice_through_jpeg(tmp_path):
    scene = full_scene()
    save_scene(scene, tmp_path)
    assert sorted(p.name for p in (tmp_path / "images").rglob("*.*")) == ["a.jpg", "b 2.png", "c.HEIC.jpg", "lost.jpg"]
    first = load_scene(tmp_path)
    assert torch.equal(first.view("left/b 2.png").image, scene.view("left/b 2.png").image)
    error = (first.view("a.jpg").image.double() - scene.view("a.jpg").image.double()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 42
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png")]
    stamps = {path: path.stat().st_mtime_ns for path in files}
    for again in (first, scene, load_scene(tmp_path)):
        save_scene(again, tmp_path)
        assert {path: path.stat().st_mtime_ns for path in files} == stamps
    changed = replace(first, views=(replace(first.views[0], image=255 - first.views[0].image), *first.views[1:]))
    save_scene(changed, tmp_path)
    assert [path.name for path in files if path.stat().st_mtime_ns != stamps[path]] == ["a.jpg"]
    (tmp_path / "images/a.jpg").unlink()
    save_scene(changed, tmp_path)
    assert (tmp_path / "images/a.jpg").is_file()


def test_other_tools_read_the_folder(tmp_path):
    scene = full_scene()
    save_scene(scene, tmp_path)
    model = pycolmap.Reconstruction(tmp_path / "sparse/0")
    assert model.num_reg_images() == 3
    source = read_transforms(tmp_path)
    assert [p.name for p in source.pictures] == ["a.jpg", "left/b 2.png", "c.HEIC.jpg"]
    assert source.held_out == {"left/b 2.png"}
    for posed, view in zip(source.pictures, scene.registered, strict=True):
        torch.testing.assert_close(posed.world_from_cam, view.camera.world_from_cam[0])
        assert posed.path.is_file()
    assert source.pictures[1].mask_path.is_file()
    assert torch.equal(source.points.positions, scene.points.positions)
    record = json.loads((tmp_path / "scene.json").read_text())
    assert record["images"][3]["why"] == "shares nothing with the others"
    assert json.loads((tmp_path / "metrics.json").read_text()) == scene.metrics


def test_saving_into_a_scene_keeps_foreign_files_and_a_bare_scene_works(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_scene(full_scene(), tmp_path)
    bare = Scene((View("a.jpg", picture(48, 64, 0), Original("", 48, 64)),))
    save_scene(bare, tmp_path)
    back = load_scene(tmp_path)
    assert (back.points, back.gaussians, back.metrics, len(back.views)) == (None, None, {}, 1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "splats.ply").is_file()
    assert not list(tmp_path.rglob("*.part"))
    save_scene(Scene(()), tmp_path / "empty")
    assert load_scene(tmp_path / "empty").views == ()


def test_values_json_does_not_have(tmp_path):
    settings_ = {
        "path": Path("a") / "b",
        "size": (1, 2),
        "rate": torch.tensor(0.5),
        "n": np.int64(3),
        "inf": float("inf"),
    }
    scene = Scene((), history=(Stage("fit", 1.0, settings_),), metrics={"psnr": float("nan")})
    save_scene(scene, tmp_path)
    back = load_scene(tmp_path)
    assert back.history[0].settings == {"path": "a/b", "size": [1, 2], "rate": 0.5, "n": 3, "inf": None}
    assert back.metrics == {"psnr": None}


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "x/../../a.jpg", "a//b.jpg", "", "C:\\a.jpg", "C:/a.jpg", "a\\b.jpg"]
)
def test_names_that_leave_the_folder(tmp_path, name):
    view = View(name, picture(8, 8, 0), Original("", 8, 8))
    with pytest.raises(InputError, match="unique names inside"):
        save_scene(Scene((view,)), tmp_path / "s")
    save_scene(Scene((replace(view, name="a.jpg"),)), tmp_path / "s")
    record = json.loads((tmp_path / "s/scene.json").read_text())
    record["images"][0]["files"][0]["file"] = name
    (tmp_path / "s/scene.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"scene\.json: images\[0\]: files\[0\]: file"):
        load_scene(tmp_path / "s")


def test_names_twice(tmp_path):
    views = [View(name, picture(8, 8, 0), Original("", 8, 8)) for name in ("a.heic", "a.heic.jpg")]
    with pytest.raises(InputError, match="unique"):
        save_scene(Scene(tuple(views)), tmp_path)


def test_missing_and_broken_files(tmp_path):
    save_scene(full_scene(), tmp_path)
    with pytest.raises(InputError, match=r"holds no scene\.json"):
        load_scene(tmp_path / "images")
    record = (tmp_path / "scene.json").read_text()
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "an object"),
        ("[" * 100000, "is not JSON"),
        (record.replace('"version": 1', '"version": 2'), "newer than 1"),
        (record.replace('"posed_by": "sfm"', '"posed_by": "magic"'), "one of none, input, sfm, model"),
        (record.replace('"width": 64', '"width": 65', 1), "says 65 x 48"),
        (record.replace('"width": 64', '"width": 1e9', 1), "whole number"),
        (record.replace('"held_out": false', '"held_out": "no"', 1), "true or false"),
        (record.replace('"source": "photos",', ""), "has no 'source'"),
    ):
        assert text != record
        (tmp_path / "scene.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_scene(tmp_path)
    (tmp_path / "scene.json").write_text(record)
    (tmp_path / "images/a.jpg").write_bytes((tmp_path / "images/a.jpg").read_bytes()[:300])
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read"):
        load_scene(tmp_path)
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg: is missing"):
        load_scene(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "images/a.jpg", "BMP")
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read"):
        load_scene(tmp_path)


def one_line_about(path: Path, error: InputError) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


POISON = st.sampled_from([None, True, -1, 0, 1e308, 10**400, "", "../x", [], [[]], {}, "\0", float("nan")])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_poisoned_scene_json_is_read_or_refused(tmp_path, data):
    """Any value of scene.json replaced or taken away: a Scene or one InputError, nothing else."""
    folder = tmp_path / "s"
    if not (folder / "scene.json").is_file():
        save_scene(full_scene(), folder)
        (folder / "scene.json").rename(tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    node = record
    while True:
        key = data.draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if isinstance(node[key], dict | list) and len(node[key]) and data.draw(st.integers(0, 3)):
            node = node[key]
        else:
            break
    if data.draw(st.booleans()):
        node[key] = data.draw(POISON)
    else:
        del node[key]
    (folder / "scene.json").write_text(json.dumps(record))
    try:
        assert isinstance(load_scene(folder), Scene)
    except InputError as error:
        one_line_about(folder, error)
