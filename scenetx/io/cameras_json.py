"""cameras.json: one table of exact cameras by picture name, as our examples and data sets have it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scenetx.core import InputError
from scenetx.io.json_value import JsonValue, read_json
from scenetx.io.posed import Lens, PosedPicture, PosedSource

_MAX_SIDE = 1 << 20


def read_cameras_json(path: str | Path) -> PosedSource:
    """The cameras of a cameras.json (or of the folder that holds one); pictures lie in images/ beside it.

    ``{"pixel_center": 0.5, "images": {name: {width, height, fx, fy, cx, cy (or K), distortion, world_from_cam (or
    c2w)}}}``, OpenCV axes. ``pixel_center`` says where the first pixel's centre is in the file's K (0.5 if absent); K
    is shifted to 0.5 here. Optional for a picture: ``lens`` ("opencv" or "fisheye"), ``held_out`` (true or false),
    ``depth`` (file of z-depth of the undistorted picture, beside the JSON) and ``depth_unit`` (world units a step).
    Pictures are listed also where the file is missing.

    Raises:
        InputError: malformed JSON, missing keys, or values that make no camera; names the file and the key.
    """
    path = Path(path)
    path = path / "cameras.json" if path.is_dir() else path
    root = read_json(path)
    shift = 0.5 - (root["pixel_center"].number() if "pixel_center" in root else 0.5)
    images = root["images"]
    folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    pictures, held_out = [], set()
    for name in images.mapping():
        entry = images[name]
        JsonValue(name, entry.where).name()
        pictures.append(_picture(name, folder / name, entry, shift, path.parent))
        if "held_out" in entry and entry["held_out"].flag():
            held_out.add(name)
    if not pictures:
        raise InputError(str(path), "lists no picture", "give a file with cameras under 'images'")
    return PosedSource("cameras.json", tuple(pictures), held_out=frozenset(held_out))


def _picture(name: str, path: Path, entry: JsonValue, shift: float, folder: Path) -> PosedPicture:
    K = _intrinsics(entry)
    K[:2, 2] += shift
    if not bool(K[0, 0] > 0) or not bool(K[1, 1] > 0):
        raise InputError(entry.where, f"focal lengths {float(K[0, 0])}, {float(K[1, 1])}", "make them positive pixels")
    distortion = entry["distortion"].numbers() if "distortion" in entry else ()
    lens: Lens = "fisheye" if "lens" in entry and entry["lens"].text() == "fisheye" else "opencv"
    unit = entry["depth_unit"].number() if "depth_unit" in entry else 0.001
    return PosedPicture(
        name, path, _world_from_cam(entry), K, entry["height"].whole(1, _MAX_SIDE), entry["width"].whole(1, _MAX_SIDE),
        distortion if any(distortion) or lens == "fisheye" else (), lens,
        depth_path=_depth_path(entry, folder), depth_unit=unit,
    )  # fmt: skip


def _depth_path(entry: JsonValue, folder: Path) -> Path | None:
    """The depth file, held inside the JSON's folder; None where none is named or it is missing."""
    if "depth" not in entry:
        return None
    path = folder / entry["depth"].name()
    return path if path.is_file() else None


def _intrinsics(entry: JsonValue) -> Tensor:
    if "K" in entry:
        return entry["K"].matrix(3, 3)
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0], K[1, 1] = entry["fx"].number(), entry["fy"].number()
    K[0, 2], K[1, 2] = entry["cx"].number(), entry["cy"].number()
    return K


def _world_from_cam(entry: JsonValue) -> Tensor | None:
    key = next((key for key in ("world_from_cam", "c2w") if key in entry), None)
    if key is None:
        return None
    matrix = entry[key].matrix(4, 4)
    rotation = matrix[:3, :3]
    error = torch.dist(rotation.T @ rotation, torch.eye(3, dtype=torch.float64))
    if error > 1e-3 or torch.linalg.det(rotation) < 0:
        raise InputError(
            f"{entry.where}: {key}", "is no rigid motion", "give a rotation and a translation, OpenCV axes"
        )
    return matrix
