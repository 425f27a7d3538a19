"""RealEstate10K as people have it on disk, and the published lists of which frames to score.

Layouts: pixelSplat's chunks (``[test/]index.json`` and ``*.torch``), LVSM's (``full_list.txt`` of one JSON a scene) and
the data set's own text files (``[test/]KEY.txt``) beside folders of frames named by their time stamps.
"""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from scenetx.core import Cameras, InputError
from scenetx.core.rigid import invert_rigid, rigid
from scenetx.io.images import read_picture


@dataclass(frozen=True)
class Entry:
    """Which frames of a scene are shown and which are painted. ``overlap``: NoPoSplat's index only."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    overlap: float | str | None = None


def read_index(path: str | Path) -> dict[str, Entry]:
    """A published evaluation index (pixelSplat's, NoPoSplat's); scenes listed as null are left out.

    Raises InputError for what is not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), error, "give an evaluation_index_re10k.json") from error
    if not isinstance(content, dict):
        raise InputError(str(path), "is not a list of scenes by key", "give an evaluation_index_re10k.json")
    entries = {}
    for key, value in content.items():
        if value is None:
            continue
        frames = [value.get(name) if isinstance(value, dict) else None for name in ("context", "target")]
        if not all(_indices(part) for part in frames):
            raise InputError(str(path), f"scene {key!r} has no context and target", "give a published index")
        entries[key] = Entry(tuple(frames[0] or ()), tuple(frames[1] or ()), value.get("overlap"))
    if not entries:
        raise InputError(str(path), "names no scene", "give an evaluation_index_re10k.json")
    return entries


def _indices(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(i) is int and i >= 0 for i in value)


@dataclass(frozen=True)
class Clip:
    """One scene: cameras of all frames by their fractions of the picture, and pictures when asked."""

    key: str
    lens: Sequence[tuple[float, float, float, float]]
    """fx, fy, cx, cy of each frame as fractions of the picture's width and height."""
    cam_from_world: Sequence[Tensor]  # 4 x 4 each
    pictures: Sequence[UInt8[Tensor, "_"] | Path]

    def __len__(self) -> int:
        return min(len(self.lens), len(self.pictures))

    def picture(self, index: int) -> UInt8[Tensor, "h w 3"]:
        """Raises InputError naming the scene and frame for a picture that cannot be read."""
        source = self.pictures[index]
        if isinstance(source, Path):
            return torch.from_numpy(read_picture(source).pixels.copy())
        try:
            with Image.open(BytesIO(source.numpy().tobytes())) as image:
                return torch.from_numpy(np.array(image.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{self.key} frame {index}", error, "get that chunk again") from error

    def camera(self, index: int, height: int, width: int) -> Cameras:
        fx, fy, cx, cy = self.lens[index]
        K = torch.tensor([[fx * width, 0, cx * width], [0, fy * height, cy * height], [0, 0, 1]], dtype=torch.float64)
        return Cameras(invert_rigid(_orthonormal(self.cam_from_world[index]))[None], K[None], height, width)


class Clips(ABC):
    """Scenes by key."""

    @abstractmethod
    def keys(self) -> set[str]: ...

    @abstractmethod
    def clip(self, key: str) -> Clip: ...

    def ordered(self, keys: Sequence[str]) -> list[str]:
        """The keys in the order that reads each file once."""
        return list(keys)


class Chunks(Clips):
    """pixelSplat's: a hundred megabytes of scenes a file, JPEG bytes as tensors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: Mapping[str, str] = _json(folder / "index.json")
        self._open: tuple[str, dict[str, Any]] = ("", {})

    def keys(self) -> set[str]:
        return set(self._files)

    def ordered(self, keys: Sequence[str]) -> list[str]:
        return sorted(keys, key=lambda key: (self._files[key], key))

    def clip(self, key: str) -> Clip:
        name = self._files[key]
        if self._open[0] != name:
            path = self._folder / name
            if path.resolve().parent != self._folder.resolve():
                raise InputError(str(self._folder / "index.json"), f"chunk {name!r}", "chunks lie beside the index")
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                self._open = (name, {scene["key"]: scene for scene in content})
            except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
                raise InputError(str(path), "broken, or not a chunk of scenes", "get it again") from error
        scene = self._open[1].get(key)
        if scene is None:
            raise InputError(str(self._folder / name), f"does not hold {key}", "its index.json is of other chunks")
        rows, images = scene.get("cameras"), scene.get("images")
        if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != 18 or not isinstance(images, list):
            raise InputError(str(self._folder / name), f"scene {key} has no cameras and images", "get the chunk again")
        return Clip(key, *_rows(rows.double()), images[: len(rows)])


class Texts(Clips):
    """The data set's own: a line a frame; time stamp, fx fy cx cy, two zeros, 3 x 4 cam_from_world."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.stem: path for path in sorted(folder.glob("*.txt")) if path.name != "full_list.txt"}

    def keys(self) -> set[str]:
        return {key for key, path in self._files.items() if _frames_of(path) is not None}

    def clip(self, key: str) -> Clip:
        path = self._files[key]
        folder = _frames_of(path)
        if folder is None:
            raise InputError(str(path), "no folder of frames beside it", f"put the frames into {path.with_suffix('')}")
        try:
            lines = [line.split() for line in path.read_text().splitlines()[1:] if line.strip()]
            rows = torch.tensor([[float(x) for x in line[1:]] for line in lines], dtype=torch.float64)
        except (OSError, ValueError) as error:
            raise InputError(str(path), error, "give RealEstate10K's camera file") from error
        if rows.ndim != 2 or rows.shape[1] != 18:
            raise InputError(str(path), "its lines do not have 19 numbers", "give RealEstate10K's camera file")
        pictures = {picture.stem: picture for picture in folder.iterdir()}
        missing = [line[0] for line in lines if line[0] not in pictures]
        if missing:
            raise InputError(str(folder), f"no frame {missing[0]}", "extract all frames that the camera file lists")
        return Clip(key, *_rows(rows), [pictures[line[0]] for line in lines])


class Listed(Clips):
    """LVSM's: a list of JSON files, each with frames of image_path, fxfycxcy in pixels and w2c."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "full_list.txt").read_text().split()
        self._files = {Path(line).stem: folder / line if not Path(line).is_absolute() else Path(line) for line in lines}

    def keys(self) -> set[str]:
        return set(self._files)

    def clip(self, key: str) -> Clip:
        path = self._files[key]
        try:
            frames = _json(path)["frames"]
            pictures = [_beside(path, frame["image_path"]) for frame in frames]
            poses = [torch.tensor(frame["w2c"], dtype=torch.float64).reshape(4, 4) for frame in frames]
            with Image.open(pictures[0]) as first:
                width, height = first.size
            scale = (width, height, width, height)
            lens = [tuple(x / s for x, s in zip(frame["fxfycxcy"], scale, strict=True)) for frame in frames]
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, IndexError) as error:
            raise InputError(str(path), f"not a scene of frames ({error})", "give LVSM's prepared data") from error
        return Clip(key, lens, poses, pictures)


def open_clips(folder: str | Path) -> Clips:
    """The data in whichever layout it has. Raises InputError that names the layouts when it has none."""
    folder = Path(folder)
    for place in (folder / "test", folder):
        if (place / "index.json").is_file():
            return Chunks(place)
        if (place / "full_list.txt").is_file():
            return Listed(place)
        if next(place.glob("*.txt"), None) is not None:
            return Texts(place)
    value = "not there" if not folder.is_dir() else "no RealEstate10K in it"
    do = "name a folder with test/index.json and chunks, full_list.txt, or KEY.txt camera files"
    raise InputError(str(folder), value, do)


def _rows(rows: Tensor) -> tuple[list[tuple[float, float, float, float]], list[Tensor]]:
    lens = [(float(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in rows]
    below = torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    return lens, [torch.cat([row[6:].reshape(3, 4), below]) for row in rows]


def _orthonormal(pose: Tensor) -> Tensor:
    """The nearest rigid motion: stored poses are rounded to seven digits or so."""
    u, _, vh = torch.linalg.svd(pose[:3, :3])
    return rigid(u @ vh, pose[:3, 3])


def _frames_of(path: Path) -> Path | None:
    places = (path.with_suffix(""), path.parent / "images" / path.stem, path.parent.parent / "images" / path.stem)
    return next((place for place in places if place.is_dir()), None)


def _beside(path: Path, picture: str) -> Path:
    """A frame's file as listed, or below the list's folders where the data was moved."""
    listed = Path(picture)
    places = [listed] if listed.is_absolute() else []
    places += [base / listed for base in (path.parent, *path.parents[1:3])]
    places += [base / "images" / path.stem / listed.name for base in path.parents[:2]]
    return next((place for place in places if place.is_file()), places[0])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), error, "get it again") from error
