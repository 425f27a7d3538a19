"""The classical map as a file: points with descriptors, where the pictures see them, small grey pictures."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scenetx.core import InputError
from scenetx.core.atomic import write_bytes

VERSION = 1
FOLDER, FILE = "map", "classical.safetensors"
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Lens:
    """A camera that took pictures of the scene: ``K`` (row by row) and distortion for its upright originals."""

    height: int
    width: int
    K: tuple[float, ...]
    distortion: tuple[float, ...] = ()
    kind: Literal["opencv", "fisheye"] = "opencv"


@dataclass(frozen=True)
class ClassicalMap:
    """``p`` points seen by ``v`` pinhole pictures in ``o`` observations (sorted by picture). World frame and scale are
    the scene's; pixels are of the pictures of ``sizes`` (height, width), first centre (0.5, 0.5)."""

    names: tuple[str, ...]
    world_from_cam: Float[np.ndarray, "v 4 4"]
    K: Float[np.ndarray, "v 3 3"]
    sizes: Int[np.ndarray, "v 2"]
    positions: Float[np.ndarray, "p 3"]
    descriptors: UInt8[np.ndarray, "p 128"]  # RootSIFT of length 512, the mean over a point's observations
    obs_view: Int[np.ndarray, "o"]
    obs_point: Int[np.ndarray, "o"]
    obs_xy: Float[np.ndarray, "o 2"]
    obs_sigma: Float[np.ndarray, "o"]  # feature size, pixels
    pictures: tuple[bytes, ...]  # grey JPEG, of the views, reduced
    lenses: tuple[Lens, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def bytes(self) -> int:
        """How large the file is."""
        arrays = sum(getattr(self, name).nbytes for name in _ARRAYS)
        return int(arrays) + sum(map(len, self.pictures))


_ARRAYS = (
    "world_from_cam", "K", "sizes", "positions", "descriptors", "obs_view", "obs_point", "obs_xy", "obs_sigma",
)  # fmt: skip


def encode_grey(grey: UInt8[np.ndarray, "h w"], side: int) -> bytes:
    """The picture as JPEG, its longer side at most ``side``."""
    image = Image.fromarray(np.ascontiguousarray(grey))
    scale = min(1.0, side / max(image.size))
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def decode_grey(picture: bytes) -> UInt8[np.ndarray, "h w"]:
    """The inverse."""
    with Image.open(io.BytesIO(picture), formats=("JPEG",)) as image:
        return np.asarray(image.convert("L"))


def save_map(made: ClassicalMap, path: str | Path) -> Path:
    """Writes the map, whole or not at all; gives its path. Poses found with it are equal to the last bit."""
    ends = np.cumsum([len(data) for data in made.pictures]).astype(np.int64)
    tensors: dict[str, Any] = {name: np.ascontiguousarray(getattr(made, name)) for name in _ARRAYS}
    tensors["picture_bytes"] = np.frombuffer(b"".join(made.pictures), np.uint8)
    tensors["picture_ends"] = ends
    about = {
        "format": "scenetx classical map",
        "version": str(VERSION),
        "names": json.dumps(made.names),
        "lenses": json.dumps([asdict(lens) for lens in made.lenses]),
    }
    write_bytes(Path(path), save(tensors, about))
    return Path(path)


def load_map(path: str | Path) -> ClassicalMap:
    """The map that `save_map` wrote. Raises InputError for a file that is missing, damaged, of others or too new."""
    path = Path(path)
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        about = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if about.get("format") != "scenetx classical map":
            raise InputError(str(path), "is no classical map", "build it again from its scene")
        if int(about["version"]) > VERSION:
            raise InputError(str(path), f"is of version {about['version']}, newer than {VERSION}", "update scenetx")
        tensors = load(data)
        ends = pairwise([0, *map(int, tensors["picture_ends"])])
        blob = tensors["picture_bytes"].tobytes()
        made = ClassicalMap(
            names=tuple(map(str, json.loads(about["names"]))),
            pictures=tuple(blob[a:b] for a, b in ends),
            lenses=tuple(_lens(entry) for entry in json.loads(about["lenses"])),
            **{name: tensors[name] for name in _ARRAYS},
        )
        _check(made)
    except InputError:
        raise
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "check the path") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError, MemoryError) as error:
        raise InputError(str(path), f"is damaged ({type(error).__name__})", "delete it; it is made again") from error
    return made


def _lens(entry: dict[str, Any]) -> Lens:
    kind: Literal["opencv", "fisheye"] = "fisheye" if entry["kind"] == "fisheye" else "opencv"
    K, distortion = tuple(map(float, entry["K"])), tuple(map(float, entry["distortion"]))
    return Lens(int(entry["height"]), int(entry["width"]), K, distortion, kind)


def _check(made: ClassicalMap) -> None:
    """Sizes and numbers that fit each other: later code indexes without looking."""
    v, p, o = len(made.names), len(made.positions), len(made.obs_view)
    shapes = {
        "world_from_cam": (v, 4, 4), "K": (v, 3, 3), "sizes": (v, 2), "positions": (p, 3), "descriptors": (p, 128),
        "obs_point": (o,), "obs_xy": (o, 2), "obs_sigma": (o,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if getattr(made, name).shape != shape:
            raise ValueError(f"{name} has shape {getattr(made, name).shape}, not {shape}")
    if len(made.pictures) != v or v < 1 or p < 1 or o < 1:
        raise ValueError("empty")
    if not all(np.isfinite(getattr(made, name)).all() for name in ("world_from_cam", "K", "positions", "obs_xy")):
        raise ValueError("numbers that are not finite")
    for index, count in ((made.obs_view, v), (made.obs_point, p)):
        if index.min() < 0 or index.max() >= count:
            raise ValueError("observations of what is not there")
    if (np.diff(made.obs_view) < 0).any() or made.sizes.min() < 1:
        raise ValueError("observations out of order")
