"""RGB-D recordings with poses, as they are handed out: 7-Scenes, TUM RGB-D and ScanNet.

    7-Scenes   frame-000000.color.png .depth.png .pose.txt (camera-intrinsics.txt here or above; else f = 525)
    TUM        rgb.txt depth.txt groundtruth.txt, rgb/, depth/; lens by the sequence's name (freiburg1, 2, 3)
    ScanNet    color/0.jpg depth/0.png pose/0.txt intrinsic/intrinsic_color.txt

Poses are world_from_cam in metres, OpenCV axes, in all three. Depth is taken to be seen by the colour camera, as these
sets are commonly used: 7-Scenes' is off by the two sensors' small distance, the others are registered.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.rigid import rigid, rotation_from_quat
from scenetx.io.images import picture_size
from scenetx.io.posed import PosedPicture

MILLIMETRE = 0.001
TUM_UNIT = 1 / 5000
TUM_APART = 0.02  # seconds between a picture and its pose or depth
# Published calibrations (fx fy cx cy; k1 k2 p1 p2 k3), first pixel's centre at 0.
TUM_LENSES = {
    "freiburg1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "freiburg2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "freiburg3": ((535.4, 539.2, 320.1, 247.6), ()),
}
KINECT = (525.0, 525.0, 319.5, 239.5)


def read_rgbd(folder: str | Path) -> tuple[PosedPicture, ...]:
    """The frames of a recording that have a pose, in order of time; none for a folder of another layout.

    Raises InputError naming the file for a malformed list, pose or calibration.
    """
    folder = Path(folder)
    if (folder / "rgb.txt").is_file() and (folder / "groundtruth.txt").is_file():
        return _tum(folder)
    if (folder / "color").is_dir() and (folder / "pose").is_dir():
        return _scannet(folder)
    if next(folder.glob("frame-*.pose.txt"), None) is not None:
        return _seven_scenes(folder)
    return ()


def _seven_scenes(folder: Path) -> tuple[PosedPicture, ...]:
    places = (folder / "camera-intrinsics.txt", folder.parent / "camera-intrinsics.txt")
    lens = next((_numbers(path, 3, 3) for path in places if path.is_file()), None)
    # Given as 320, 240 for 640 x 480: the middle of the picture, in our convention.
    K = _lens((525.0, 525.0, 320.0, 240.0), 0.0) if lens is None else lens[:3, :3]
    frames = []
    for path in sorted(folder.glob("frame-*.pose.txt")):
        stem = path.name.removesuffix(".pose.txt")
        names = (f"{stem}.color.png", f"{stem}.color.jpg", f"{stem}.png", f"{stem}.jpg")
        color = next((folder / name for name in names if (folder / name).is_file()), None)
        pose = _pose(path)
        if color is not None and pose is not None:
            frames.append(_frame(color, pose, K, (480, 640), folder / f"{stem}.depth.png", MILLIMETRE))
    return tuple(frames)


def _scannet(folder: Path) -> tuple[PosedPicture, ...]:
    stated = folder / "intrinsic" / "intrinsic_color.txt"
    colors = {path.stem: path for path in (folder / "color").iterdir() if path.suffix.lower() in (".jpg", ".png")}
    if not colors:
        return ()
    size = picture_size(next(iter(colors.values())))
    K = _numbers(stated, 3, 3)[:3, :3].clone()
    K[:2, 2] += 0.5
    frames = []
    for name in sorted(colors, key=lambda stem: (len(stem), stem)):
        path = folder / "pose" / f"{name}.txt"
        pose = _pose(path) if path.is_file() else None
        if pose is not None:
            frames.append(_frame(colors[name], pose, K, size, folder / "depth" / f"{name}.png", MILLIMETRE))
    return tuple(frames)


def _tum(folder: Path) -> tuple[PosedPicture, ...]:
    colors, poses = _listed(folder / "rgb.txt"), _listed(folder / "groundtruth.txt")
    depths = _listed(folder / "depth.txt") if (folder / "depth.txt").is_file() else []
    series = next((name for name in TUM_LENSES if name in folder.resolve().name), "")
    numbers, distortion = TUM_LENSES.get(series, (KINECT, ()))
    K = _lens(numbers, 0.5)
    frames = []
    for time, words in colors:
        pose, depth = _nearest(poses, time), _nearest(depths, time)
        color = _inside(folder, words[0])
        if pose is None or not color.is_file():
            continue
        try:
            x, y, z, qx, qy, qz, qw = (float(word) for word in pose[:7])
        except ValueError as error:
            raise InputError(str(folder / "groundtruth.txt"), " ".join(pose), "give tx ty tz qx qy qz qw") from error
        rotation = rotation_from_quat(torch.tensor([qw, qx, qy, qz], dtype=torch.float64))
        motion = rigid(rotation, torch.tensor([x, y, z], dtype=torch.float64))
        where = _inside(folder, depth[0]) if depth else folder / "none"
        # Eight coefficients, as OpenCV counts them: k3 is the fifth.
        bent = (*distortion, 0.0, 0.0, 0.0) if distortion else ()
        frames.append(_frame(color, motion, K, (480, 640), where, TUM_UNIT, bent))
    return tuple(frames)


def _frame(
    color: Path,
    pose: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    size: tuple[int, int],
    depth: Path,
    unit: float,
    distortion: tuple[float, ...] = (),
) -> PosedPicture:
    there = depth if depth.is_file() else None
    return PosedPicture(
        color.name, color, pose, K, size[0], size[1], distortion, depth_path=there, depth_unit=unit
    )  # fmt: skip


def _lens(numbers: tuple[float, float, float, float], shift: float) -> Float[Tensor, "3 3"]:
    fx, fy, cx, cy = numbers
    return torch.tensor([[fx, 0, cx + shift], [0, fy, cy + shift], [0, 0, 1]], dtype=torch.float64)


def _numbers(path: Path, rows: int, columns: int) -> Float[Tensor, "r c"]:
    """A text file's matrix of at least that size. Raises InputError for anything else."""
    try:
        matrix = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(str(path), error, f"give a file with {rows} x {columns} numbers") from error
    if matrix.shape[0] < rows or matrix.shape[1] < columns:
        raise InputError(str(path), f"holds {matrix.shape[0]} x {matrix.shape[1]} numbers", f"give {rows} x {columns}")
    return torch.from_numpy(matrix)


def _pose(path: Path) -> Float[Tensor, "4 4"] | None:
    """A pose file; None where it says that there is none (ScanNet writes -inf)."""
    matrix = _numbers(path, 4, 4)[:4, :4]
    if not bool(matrix.isfinite().all()):
        return None
    # Written with few digits: the nearest rotation.
    u, _, vh = torch.linalg.svd(matrix[:3, :3])
    if float(torch.linalg.det(u @ vh)) < 0 or float((u @ vh - matrix[:3, :3]).abs().max()) > 0.05:
        raise InputError(str(path), "is no rigid motion", "give world_from_cam, OpenCV axes")
    return rigid(u @ vh, matrix[:3, 3])


def _listed(path: Path) -> list[tuple[float, list[str]]]:
    """``time words..`` lines of a TUM list, by time."""
    out = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                time, *words = line.split()
                out.append((float(time), words))
    except (OSError, ValueError) as error:
        raise InputError(str(path), error, "give lines of a time stamp and what it names") from error
    return sorted(out, key=lambda entry: entry[0])


def _nearest(entries: list[tuple[float, list[str]]], time: float) -> list[str] | None:
    """What is listed nearest to a time, if it is near enough."""
    if not entries:
        return None
    index = int(np.searchsorted([entry[0] for entry in entries], time))
    best = min(entries[max(0, index - 1) : index + 1] or entries[-1:], key=lambda entry: abs(entry[0] - time))
    return best[1] if abs(best[0] - time) <= TUM_APART and best[1] else None


def _inside(folder: Path, name: str) -> Path:
    """A listed file, held inside of the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(str(folder), f"lists {name!r}", "name files inside of the folder")
    return path
