"""Files that are written never cost a scene its own, and what was exported can be read where it lies."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from splat_scenes import make_scene

from scenetx.core import InputError, Original, Points, Scene, View
from scenetx.io.scene_dir import load_scene, save_scene, scene_folder
from scenetx.io.transforms import read_transforms, write_transforms
from scenetx.pipeline.compress import CompressPlan, compress
from scenetx.pipeline.export import check_target, export
from scenetx.pipeline.view import apply_frame


@pytest.fixture(scope="module")
def scene() -> Scene:
    gaussians, cameras = make_scene(40, 40, 52, cameras=3, degree=0, size=0.15)
    image = torch.zeros(40, 52, 3, dtype=torch.uint8)
    views = tuple(View(f"{i}.png", image, Original(f"{i}.png", 40, 52), cameras[i], held_out=i == 2) for i in range(3))
    points = Points(gaussians.means, torch.zeros(40, 3, dtype=torch.uint8), torch.zeros(40))
    return Scene(views, "photos", points, gaussians, "input", metrics={"psnr": 1.0})


@pytest.fixture
def folder(scene: Scene, tmp_path: Path) -> Path:
    save_scene(scene, tmp_path / "sc")
    return tmp_path / "sc"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("output", [".", "images", "sparse/0", "scene.json"])
def test_compress_refuses_a_folder_of_the_scene(folder: Path, output: str) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match="belongs to the scene sc"):
        compress(folder, folder / output, CompressPlan(target=1.0, formats=("sog",)))
    assert contents(folder) == before


def test_compress_leaves_files_of_others_alone(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("splats.ply", "trial.sog"):
        (mine / name).write_text("mine")
    curve = compress(folder, mine, CompressPlan(target=1.0, formats=("sog",)))
    assert [(mine / name).read_text() for name in ("splats.ply", "trial.sog")] == ["mine", "mine"]
    assert {path.name for path in mine.iterdir()} == {"splats.ply", "trial.sog", "splats.sog", "rate_distortion.json"}
    assert [point.name for point in curve.points] == ["splats.ply", "splats.sog"]


def test_compress_by_scene_json_writes_beside_it(folder: Path) -> None:
    compress(folder / "scene.json", None, CompressPlan(target=1.0, formats=("sog",)))
    assert (folder / "compressed/splats.sog").is_file()


OWN = [".", "scene.json", "metrics.json", "transforms.json", "splats.ply", "points.ply", "images", "images/x.spz"]


@pytest.mark.parametrize("target", [*OWN, "report.html", "sparse/0", "sub/../splats.ply"])
def test_export_refuses_what_a_scene_is_kept_in(scene: Scene, folder: Path, target: str) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match="belongs to the scene sc"):
        export(scene, folder / target)
    assert contents(folder) == before


def test_export_refuses_a_link_to_a_scene_and_a_scene_by_a_link(scene: Scene, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ply").symlink_to(folder / "splats.ply")
    (tmp_path / "there").symlink_to(folder)
    for target in (tmp_path / "a.ply", tmp_path / "there", tmp_path / "there/splats.ply"):
        with pytest.raises(InputError, match="belongs to the scene"):
            export(scene, target)


@pytest.mark.parametrize("target", ["", ".", ".."])
def test_export_refuses_a_target_without_a_name(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name one"):
        export(scene, Path(target))
    assert not list(tmp_path.iterdir())


def test_export_into_the_scene_folder_under_other_names_works(scene: Scene, folder: Path) -> None:
    for name in ("small.spz", "a.ply", "colmap", "viewer.html"):
        assert export(scene, folder / name).exists()


@pytest.mark.parametrize("name", ["b.xyz", "a.txt"])
def test_a_target_of_no_known_kind_is_told_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="unknown suffix"):
        check_target(tmp_path / name)
    for known in ("a.ply", "a.compressed.ply", "mesh.obj", "mesh-poisson.glb", "a.JSON", "folder", "a.htm"):
        check_target(tmp_path / known)
    with pytest.raises(InputError, match="unknown suffix"):
        check_target(tmp_path / "a.obj")


@pytest.mark.parametrize("name", ["x.spz", "x.json", "x.glb", "x.html", "points.ply", "x"])
def test_export_below_a_file_is_one_line(scene: Scene, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="cannot be written"):
        export(scene, tmp_path / "a.txt" / name)
    with pytest.raises(InputError, match="cannot be written"):
        export(scene, tmp_path / ("n" * 300 + name))


@pytest.mark.parametrize("target", ["t.json", "deep/t.json", "sc/t.json"])
def test_an_exported_transforms_json_names_the_pictures_of_the_scene(folder: Path, tmp_path: Path, target: str) -> None:
    scene = load_scene(folder)
    export(scene, tmp_path / target, folder / "scene.json")
    root = json.loads((tmp_path / target).read_text())
    here = (tmp_path / target).parent
    assert all((here / frame["file_path"]).resolve().parent == folder / "images" for frame in root["frames"])
    source = read_transforms(tmp_path / target)
    assert all(picture.path.is_file() for picture in source.pictures)
    assert len(source.held_out) == 1
    assert source.points is not None
    assert len(source.points) == 40


def test_transforms_json_of_the_scene_folder_is_as_it_was(scene: Scene, folder: Path) -> None:
    root = json.loads((folder / "transforms.json").read_text())
    assert [frame["file_path"] for frame in root["frames"]] == ["images/0.png", "images/1.png", "images/2.png"]
    assert (root["ply_file_path"], root["test_filenames"]) == ("points.ply", ["images/2.png"])


def test_transforms_json_with_a_camera_beyond_all_measure_is_refused(scene: Scene, folder: Path) -> None:
    path = folder / "transforms.json"
    root = json.loads(path.read_text())
    root["frames"][1]["transform_matrix"][0][3] = 1e300
    path.write_text(json.dumps(root))
    with pytest.raises(InputError, match="within 1e"):
        read_transforms(path)


def test_masks_are_named_where_the_scene_keeps_them(scene: Scene, tmp_path: Path) -> None:
    masked = replace(scene.views[0], mask=torch.ones(40, 52, dtype=torch.bool))
    write_transforms(replace(scene, views=(masked, *scene.views[1:])), tmp_path / "out/t.json", tmp_path / "sc")
    root = json.loads((tmp_path / "out/t.json").read_text())
    assert root["frames"][0]["mask_path"] == "../sc/masks/0.png.png"


def test_a_frame_file_is_applied_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame, other = tmp_path / "f.json", tmp_path / "g.json"
    change = {"scale": 2, "rotation": [1, 0, 0, 0, 1, 0, 0, 0, 1], "translation": [0, 0, 0]}
    frame.write_text(json.dumps(change))
    other.write_text(json.dumps({**change, "scale": 3}))
    centres = [load_scene(folder).world_from_cams[:, :3, 3]]
    with caplog.at_level(logging.WARNING):
        for file in (frame, frame, other, frame, other):
            apply_frame(folder / "scene.json", file)
            centres.append(load_scene(folder).world_from_cams[:, :3, 3])
    for found, scale in zip(centres, (1, 2, 2, 6, 6, 6), strict=True):
        torch.testing.assert_close(found, scale * centres[0])
    assert [record.getMessage() for record in caplog.records if "has this frame already" in record.getMessage()] == [
        f"{file}: {folder} has this frame already; nothing was changed" for file in (frame, frame, other)
    ]
    assert scene_folder(folder) == folder


IDENTITY = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
LENS = [[50.0, 0, 26], [0, 50, 20], [0, 0, 1]]


@pytest.mark.parametrize(
    "key, value",
    [
        ("K", [[0.0, 0, 0]] * 3),
        ("K", [[-50.0, 0, 26], [0, 50, 20], [0, 0, 1]]),
        ("K", [*LENS[:2], [0, 0, 0]]),
        ("world_from_cam", [[0.0, 0, 0, 0]] * 4),
        ("world_from_cam", [[-1.0, 0, 0, 0], *IDENTITY[1:]]),
        ("world_from_cam", [[2.0, 0, 0, 0], *IDENTITY[1:]]),
        ("world_from_cam", [*IDENTITY[:3], [0, 0, 0, 0]]),
    ],
)
def test_a_scene_with_an_impossible_camera_is_refused(folder: Path, key: str, value: list[list[float]]) -> None:
    path = folder / "scene.json"
    root = json.loads(path.read_text())
    root["images"][0]["camera"] = {"K": LENS, "world_from_cam": IDENTITY}
    path.write_text(json.dumps(root))
    load_scene(folder)
    root["images"][0]["camera"][key] = value
    path.write_text(json.dumps(root))
    with pytest.raises(InputError, match=rf"scene\.json: images\[0\]: camera: {key}"):
        load_scene(folder)


def test_a_link_in_a_circle_is_no_target(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    check_target(tmp_path / "a/b.ply")
