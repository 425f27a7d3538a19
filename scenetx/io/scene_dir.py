"""The scene folder: everything known about a scene, in files that other people's tools read too."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError, Original, Points, Scene, Skipped, Stage, View
from scenetx.core.atomic import write_bytes
from scenetx.core.scene import PosedBy
from scenetx.io.colmap import write_colmap
from scenetx.io.json_value import JsonValue, is_inside, read_json, to_json
from scenetx.io.ply import read_points_ply, read_splat_ply, write_points_ply, write_splat_ply
from scenetx.io.scene_files import (
    MAX_SIDE,
    Digests,
    load_mask,
    load_pixels,
    load_scaled,
    store,
    stored_name,
    to_16_bit,
)
from scenetx.io.transforms import write_transforms

VERSION = 1
OWN = {"scene.json", "metrics.json", "transforms.json", "points.ply", "splats.ply", "report.html"} | {
    *("images", "masks", "depth", "sparse", "map", ".work"),
}
"""What a scene folder is read from, or what `reconstruct` says of it."""
WORKERS = 4  # Pillow lets go of the interpreter while it codes


def save_scene(scene: Scene, folder: str | Path) -> None:
    """Writes the scene into ``folder`` (made if need be), as `load_scene` and other tools read it.

    scene.json; images/ (JPEG of quality 97 with full chroma, or PNG where a view's name ends so); masks/ and depth/
    (PNG; depth and confidence in 16 bits of a unit that scene.json states); sparse/0 and transforms.json for the
    registered views; points.ply, splats.ply, metrics.json. Pictures that the folder already holds are not written
    again, files of others stay, nothing is deleted, and each file is replaced whole; scene.json comes last, so an
    interrupted save leaves the older scene. Cameras are kept to the last bit; depth to half a unit, points and
    Gaussians to float32.

    Raises:
        InputError: a view's name leaves images/ or is there twice, or a file cannot be written.
    """
    folder = Path(folder)
    names = [stored_name(view.name) for view in scene.views]
    for view, name in zip(scene.views, names, strict=True):
        if not is_inside(view.name) or names.count(name) > 1:
            raise InputError(str(folder), f"a view is named {view.name!r}", "use unique names inside the folder")
    known = _known_digests(folder)
    with ThreadPoolExecutor(WORKERS) as pool:
        views = list(pool.map(lambda view: _save_view(view, folder, known), scene.views))
    reasons = {skipped.name: skipped.reason for skipped in scene.skipped}
    for entry in views:
        if not entry["registered"]:
            entry["why"] = reasons.get(entry["name"], "no camera was found for it")
    if scene.registered:
        write_colmap(scene, folder / "sparse" / "0")
        write_transforms(scene, folder / "transforms.json")
    if scene.points is not None:
        write_points_ply(scene.points, folder / "points.ply")
    if scene.gaussians is not None:
        write_splat_ply(scene.gaussians, folder / "splats.ply")
    if scene.metrics:
        write_bytes(folder / "metrics.json", to_json(scene.metrics))
    write_bytes(folder / "scene.json", to_json(_describe(scene, views)))


def load_scene(folder: str | Path) -> Scene:
    """The scene that `save_scene` wrote into a folder (or beside the scene.json given). Cameras are float64.

    Raises:
        InputError: no scene.json, one that is malformed, leaves the folder or is of a newer version, or a file that
            it lists is missing, broken or of another size.
    """
    folder = scene_folder(folder)
    if not (folder / "scene.json").is_file():
        raise InputError(str(folder), "holds no scene.json", "give a folder that scenetx wrote")
    root = read_json(folder / "scene.json")
    version = root["version"].whole(1, 1 << 31)
    if version > VERSION:
        raise InputError(str(folder / "scene.json"), f"is of version {version}, newer than {VERSION}", "update scenetx")
    posed_by: Any = root["posed_by"].text()
    if posed_by not in get_args(PosedBy):
        raise root["posed_by"].wrong(f"one of {', '.join(get_args(PosedBy))}")
    with ThreadPoolExecutor(WORKERS) as pool:
        views = tuple(pool.map(lambda entry: _load_view(entry, folder), root["images"].items()))
    stages = (
        Stage(
            stage["name"].text(),
            stage["seconds"].number(),
            stage["settings"].mapping(),
            tuple(note.text() for note in stage["notes"].items()),
        )
        for stage in root["stages"].items()
    )
    return Scene(
        views=views,
        source=root["source"].text(),
        points=_load_points(root, folder),
        gaussians=_load_gaussians(root, folder),
        posed_by=posed_by,
        skipped=tuple(Skipped(item["name"].text(), item["reason"].text()) for item in root["skipped"].items()),
        history=tuple(stages),
        metrics=read_json(folder / "metrics.json").mapping() if "metrics" in root else {},
    )


def _known_digests(folder: Path) -> Digests:
    """What the files of an earlier save stand for; nothing where there is none that can be read."""
    try:
        images = read_json(folder / "scene.json")["images"].items()
        files = [item for entry in images for item in entry["files"].items()]
        return {item["file"].name(): tuple(text.text() for text in item["digests"].items()) for item in files}
    except InputError:
        return {}


def _save_view(view: View, folder: Path, known: Digests) -> dict[str, Any]:
    name, files = stored_name(view.name), []

    def keep(kind: str, file: str, array: Any, **more: float) -> None:
        files.append({"kind": kind, "file": file, "digests": store(folder, file, array, known), **more})

    keep("image", f"images/{name}", view.image.cpu().numpy())
    if view.mask is not None:
        keep("mask", f"masks/{name}.png", view.mask.cpu().numpy().astype("uint8") * 255)
    for kind, values in (("depth", view.depth), ("confidence", view.confidence)):
        if values is not None:
            array, unit = to_16_bit(values)
            keep(kind, f"depth/{name}.{kind}.png", array, unit=unit)
    camera = view.camera
    return {
        "name": view.name,
        "width": view.width,
        "height": view.height,
        "registered": camera is not None,
        "held_out": view.held_out,
        "cutout": view.cutout,
        "camera": camera and {"world_from_cam": camera.world_from_cam[0].double(), "K": camera.K[0].double()},
        "original": view.original,
        "files": files,
    }


def _describe(scene: Scene, views: list[dict[str, Any]]) -> dict[str, Any]:
    points, gaussians = scene.points, scene.gaussians
    return {
        "version": VERSION,
        "generator": "scenetx",
        "conventions": (
            "camera axes x right, y down, z forward; x_world = world_from_cam @ x_cam; K in pixels of the picture, "
            "first pixel centre (0.5, 0.5); original K and OpenCV distortion speak of the upright original; depth is z"
        ),
        "source": scene.source,
        "posed_by": scene.posed_by,
        "images": views,
        "skipped": scene.skipped,
        "stages": scene.history,
        # An empty cloud is a cloud: `is None`, for both have a length.
        "points": None if points is None else {"file": "points.ply", "count": len(points)},
        "gaussians": None
        if gaussians is None
        else {
            "file": "splats.ply",
            "count": len(gaussians),
            "sh_degree": gaussians.sh_degree,
            "antialiased": gaussians.antialiased,
        },
        "metrics": "metrics.json" if scene.metrics else None,
    }


def scene_folder(path: str | Path) -> Path:
    """The folder of a scene that was named by its folder or by its scene.json."""
    path = Path(path)
    return path.parent if path.name == "scene.json" and path.is_file() else path


def refuse_own(target: Path) -> None:
    """Raises InputError for a path that is a scene folder, or one of the files and folders a scene is kept in."""
    for place in (Path(os.path.realpath(target)), Path(os.path.realpath(target.parent), target.name)):
        for folder in (place, *place.parents):
            below = place.relative_to(folder).parts
            if (not below or below[0] in OWN) and _holds_scene(folder):
                raise InputError(str(target), f"belongs to the scene {folder.name}", "choose another name or folder")


def _holds_scene(folder: Path) -> bool:
    try:
        return (folder / "scene.json").is_file()
    except OSError:  # a name too long, a folder that may not be looked into
        return False


def _load_view(entry: JsonValue, folder: Path) -> View:
    width, height = entry["width"].whole(1, MAX_SIDE), entry["height"].whole(1, MAX_SIDE)
    files = {item["kind"].text(): item for item in entry["files"].items()}
    if "image" not in files:
        raise entry["files"].wrong("a list with a file of kind 'image'")
    path = {kind: folder / item["file"].name() for kind, item in files.items()}
    scaled: dict[str, Float[Tensor, "h w"]] = {
        kind: load_scaled(path[kind], height, width, files[kind]["unit"].number())
        for kind in ("depth", "confidence")
        if kind in files
    }
    camera = None
    if "camera" in entry:
        pose, K = entry["camera"]["world_from_cam"].pose(), entry["camera"]["K"].lens()
        camera = Cameras(pose[None], K[None], height, width)
    return View(
        name=entry["name"].name(),
        image=load_pixels(path["image"], height, width),
        original=_load_original(entry["original"]),
        camera=camera,
        mask=load_mask(path["mask"], height, width) if "mask" in path else None,
        depth=scaled.get("depth"),
        confidence=scaled.get("confidence"),
        held_out=entry["held_out"].flag(),
        cutout="cutout" in entry and entry["cutout"].flag(),
    )


def _load_original(entry: JsonValue) -> Original:
    return Original(
        path=entry["path"].text(),
        height=entry["height"].whole(1, 1 << 20),
        width=entry["width"].whole(1, 1 << 20),
        K=entry["K"].matrix(3, 3) if "K" in entry else None,
        distortion=entry["distortion"].numbers(),
        orientation=entry["orientation"].whole(1, 8),
        focal_exif=entry["focal_exif"].number() if "focal_exif" in entry else None,
        camera_exif=entry["camera_exif"].text(),
        time=entry["time"].number() if "time" in entry else None,
        lens="fisheye" if "lens" in entry and entry["lens"].text() == "fisheye" else "opencv",
    )


def _load_points(root: JsonValue, folder: Path) -> Points | None:
    return read_points_ply(folder / root["points"]["file"].name()) if "points" in root else None


def _load_gaussians(root: JsonValue, folder: Path) -> Gaussians | None:
    return read_splat_ply(folder / root["gaussians"]["file"].name()) if "gaussians" in root else None
