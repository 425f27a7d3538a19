"""LLFF folders: poses_bounds.npy beside the pictures (Mildenhall et al., 2019)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scenetx.core import InputError
from scenetx.io.images import is_picture, picture_size
from scenetx.io.posed import PosedPicture, PosedSource

# images/ is full size; the others are what LLFF scripts leave behind, best first.
_FOLDERS = ("images", "images_2", "images_4", "images_8")


def read_llff(folder: str | Path) -> PosedSource:
    """The pinhole cameras of a folder with poses_bounds.npy and images/ (or images_2, _4, _8).

    Each row holds a 3x5 matrix (axes down, right, back; centre; height, width, focal length) and two depths, which are
    not used. Rows belong to the pictures in plain alphabetical order. The frame and scale are the file's. The focal
    length is rescaled to the pictures found; the principal point is the centre, since the format has none.

    Raises:
        InputError: no readable table, another number of pictures than rows, or values that make no cameras.
    """
    folder = Path(folder)
    table_path = folder / "poses_bounds.npy"
    try:
        table = np.load(table_path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise InputError(str(table_path), f"cannot be read ({error})", "give LLFF's poses_bounds.npy") from error
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind != "f":
        raise InputError(
            str(table_path), f"holds {getattr(table, 'shape', 'no array')}", "give one float row of 17 a picture"
        )
    if not np.isfinite(table).all():
        raise InputError(str(table_path), "holds values that are not finite", "make the file again with LLFF")
    files = _pictures(folder)
    if len(files) != len(table):
        counts = f"{len(table)} rows for {len(files)} pictures in {files[0].parent.name if files else 'images'}/"
        raise InputError(str(table_path), counts, "put back the pictures that the poses were made for")
    pictures = tuple(_picture(path, row, table_path) for path, row in zip(files, table, strict=True))
    return PosedSource("llff", pictures)


def _pictures(folder: Path) -> list[Path]:
    for name in _FOLDERS:
        place = folder / name
        if place.is_dir():
            found = [path for path in place.iterdir() if is_picture(path) and not path.name.startswith(".")]
            if found:
                return sorted(found, key=lambda path: path.name)
    return []


def _picture(path: Path, row: np.ndarray, table_path: Path) -> PosedPicture:
    matrix = torch.from_numpy(row[:15].reshape(3, 5).astype(np.float64))
    down, right, back, center, (h, w, focal) = (matrix[:, i] for i in range(5))
    world_from_cam = torch.eye(4, dtype=torch.float64)
    world_from_cam[:3] = torch.stack([right, down, -back, center], dim=-1)
    rotation = world_from_cam[:3, :3]
    turned = torch.dist(rotation.T @ rotation, torch.eye(3, dtype=torch.float64))
    if turned > 1e-2 or torch.linalg.det(rotation) < 0 or min(float(h), float(w), float(focal)) <= 0:
        raise InputError(str(table_path), f"the row of {path.name} is no camera", "make the file again with LLFF")
    height, width = picture_size(path)
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0], K[1, 1] = focal * width / w, focal * height / h
    K[0, 2], K[1, 2] = width / 2, height / 2
    return PosedPicture(path.name, path, world_from_cam, K, height, width)
