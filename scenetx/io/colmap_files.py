"""The three files of a COLMAP model, binary and text, as plain records (COLMAP's manual, "Output Format")."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from scenetx.core import InputError, Points

# id -> name and number of parameters, as in COLMAP's src/colmap/sensor/models.h
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
MAX_SIDE = 1 << 20  # pixels
FARTHEST = 1e12  # units from the world's origin, beyond which a number is damage


@dataclass(frozen=True)
class ModelCamera:
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class ModelImage:
    name: str
    camera: int
    quat: Float[np.ndarray, "4"]  # wxyz of cam_from_world
    translation: Float[np.ndarray, "3"]


def model_file(folder: Path, stem: str) -> Path | None:
    """The model's file of that stem, binary first."""
    for suffix in (".bin", ".txt"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    return None


def read_cameras(path: Path) -> dict[int, ModelCamera]:
    """Cameras by id.

    Raises:
        InputError: truncated, malformed, an unknown camera model, or a size or parameter that makes no sense.
    """
    cameras = _read_cameras_text(path) if path.suffix == ".txt" else _read_cameras_binary(path)
    for key, camera in cameras.items():
        sizes_ok = 0 < camera.width <= MAX_SIDE and 0 < camera.height <= MAX_SIDE
        if not sizes_ok or not np.isfinite(camera.params).all():
            raise broken(path, f"camera {key} is {camera.width} x {camera.height} with parameters {camera.params}")
    return cameras


def read_images(path: Path) -> tuple[ModelImage, ...]:
    """Images in the file's order; the 2D points are passed over.

    Raises:
        InputError: truncated, malformed, or a pose that makes no sense.
    """
    images = _read_images_text(path) if path.suffix == ".txt" else _read_images_binary(path)
    for image in images:
        size = np.abs(image.quat).max()  # 1 in theory; text files round
        if not (1e-3 < size < 1e3 and np.abs(image.translation).max() < FARTHEST):
            raise broken(path, f"image {image.name[:60]!r} has a pose that makes no sense")
    return images


def read_points(path: Path) -> Points:
    """Positions (float64), colours and mean reprojection errors (pixels); points that are not finite are dropped.

    Raises:
        InputError: truncated or malformed.
    """
    rows = _read_points_text(path) if path.suffix == ".txt" else _read_points_binary(path)
    positions = np.array([row[0:3] for row in rows], np.float64).reshape(-1, 3)
    colors = np.array([row[3:6] for row in rows], np.float64).reshape(-1, 3)
    errors = np.array([row[6] for row in rows], np.float64)
    keep = np.isfinite(positions).all(-1) & np.isfinite(colors).all(-1)
    return Points(
        torch.from_numpy(positions[keep]),
        torch.from_numpy(colors[keep].clip(0, 255).astype(np.uint8)),
        torch.from_numpy(np.nan_to_num(errors[keep])),
    )


def broken(path: Path, value: object) -> InputError:
    return InputError(str(path), value, "give a COLMAP model that was written completely")


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give a COLMAP model that can be read") from error


def _truncated(path: Path, size: int) -> InputError:
    return broken(path, f"is truncated or not a COLMAP file ({size} bytes)")


def _count(path: Path, data: bytes, smallest: int) -> int:
    """The number of records, held against the size of the file."""
    if len(data) < 8:
        raise _truncated(path, len(data))
    (count,) = struct.unpack_from("<Q", data)
    if count * smallest > len(data):
        raise broken(path, f"promises {count} records in {len(data)} bytes")
    return count


def _read_cameras_binary(path: Path) -> dict[int, ModelCamera]:
    data = _load(path)
    cameras, at = {}, 8
    try:
        for _ in range(_count(path, data, 24)):
            key, model, width, height = struct.unpack_from("<IiQQ", data, at)
            if model not in MODELS:
                raise broken(path, f"camera {key} has the unknown model number {model}")
            name, size = MODELS[model]
            cameras[key] = ModelCamera(name, width, height, struct.unpack_from(f"<{size}d", data, at + 24))
            at += 24 + 8 * size
    except struct.error:
        raise _truncated(path, len(data)) from None
    return cameras


def _read_images_binary(path: Path) -> tuple[ModelImage, ...]:
    data = _load(path)
    images, at = [], 8
    try:
        for _ in range(_count(path, data, 73)):
            _, *pose, camera = struct.unpack_from("<I7dI", data, at)
            end = data.index(b"\0", at + 64)
            (points,) = struct.unpack_from("<Q", data, end + 1)
            images.append(ModelImage(data[at + 64 : end].decode(), camera, np.array(pose[:4]), np.array(pose[4:])))
            at = end + 9 + 24 * points
        if at > len(data):
            raise _truncated(path, len(data))
    except (struct.error, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise _truncated(path, len(data)) from None
    return tuple(images)


def _read_points_binary(path: Path) -> list[tuple[float, ...]]:
    data = _load(path)
    rows: list[tuple[float, ...]] = []
    at = 8
    record = struct.Struct("<Q3d3BdQ")
    try:
        for _ in range(_count(path, data, record.size)):
            _, *row, track = record.unpack_from(data, at)
            rows.append(tuple(map(float, row)))
            at += record.size + 8 * track
    except (struct.error, OverflowError):
        raise _truncated(path, len(data)) from None
    if at > len(data):
        raise _truncated(path, len(data))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        lines = _load(path).decode().splitlines()
    except UnicodeDecodeError:
        raise broken(path, "is not text") from None
    return [line.strip() for line in lines if not line.startswith("#")]


def _read_cameras_text(path: Path) -> dict[int, ModelCamera]:
    sizes = dict(MODELS.values())
    cameras = {}
    for line in filter(None, _lines(path)):
        words = line.split()
        try:
            camera = ModelCamera(words[1], int(words[2]), int(words[3]), tuple(map(float, words[4:])))
            cameras[int(words[0])] = camera
        except (ValueError, IndexError):
            raise broken(path, f"line {line[:60]!r} is not a camera") from None
        if len(camera.params) != sizes.get(camera.model):
            raise broken(path, f"camera model {camera.model[:30]!r} with {len(camera.params)} parameters is unknown")
    return cameras


def _read_images_text(path: Path) -> tuple[ModelImage, ...]:
    lines = _lines(path)
    while lines and not lines[0]:
        lines = lines[1:]
    images = []
    for line in lines[::2]:  # every second line holds the 2D points, and may be empty
        if not line:
            continue
        words = line.split(maxsplit=9)
        try:
            pose = np.array([float(word) for word in words[1:8]])
            images.append(ModelImage(words[9], int(words[8]), pose[:4], pose[4:]))
        except (ValueError, IndexError):
            raise broken(path, f"line {line[:60]!r} is not an image") from None
    return tuple(images)


def _read_points_text(path: Path) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []
    for line in filter(None, _lines(path)):
        row: tuple[float, ...]
        try:
            row = tuple(map(float, line.split(maxsplit=8)[1:8]))
        except ValueError:
            row = ()
        if len(row) != 7:
            raise broken(path, f"line {line[:60]!r} is not a point")
        rows.append(row)
    return rows
