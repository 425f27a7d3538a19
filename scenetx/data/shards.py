"""Samples in tar files, as WebDataset lays them out: files that share a name up to the first dot are one sample.

    00000042.json        sizes and cameras
    00000042.00.png ..   the views
    00000042.depth.npy   float32 [v h w]
    00000042.normals.npy int8 [v h w 3], in 1/127

Any tool that reads tar reads them. Here they are read by place: a shard's list of files is scanned once, then each
sample is one seek away. A shard or sample that is broken is left out and named.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError, Skipped
from scenetx.core.atomic import replacing
from scenetx.data.sample import Sample

log = logging.getLogger(__name__)

VERSION = 1
MAX_SIDE, MAX_VIEWS = 8192, 4096
AGAIN = "make or copy the shard again"


def write_shard(path: str | Path, samples: Iterable[Sample], notes: Mapping[str, Any] | None = None) -> Path:
    """One tar file of samples, whole or not at all; the same samples give the same bytes.

    ``notes`` go into every sample's JSON. Raises InputError where the file cannot be written or two samples share a
    name.
    """
    path, names = Path(path), set[str]()
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if sample.name in names or not sample.name or "." in sample.name or "/" in sample.name:
                raise InputError(str(path), f"a sample is named {sample.name!r}", "use unique names without dots")
            names.add(sample.name)
            for suffix, data in _files_of(sample, notes or {}):
                member = tarfile.TarInfo(f"{sample.name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
    return path


def _files_of(sample: Sample, notes: Mapping[str, Any]) -> Iterable[tuple[str, bytes]]:
    about = {
        "version": VERSION,
        "views": len(sample),
        "height": sample.rgb.shape[1],
        "width": sample.rgb.shape[2],
        "world_from_cam": sample.world_from_cam.double().tolist(),
        "K": sample.K.double().tolist(),
    }
    yield "json", json.dumps(about | dict(notes)).encode()
    for index, picture in enumerate(sample.rgb.cpu().numpy()):
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
        yield f"{index:02d}.png", buffer.getvalue()
    if sample.depth is not None:
        yield "depth.npy", _npy(sample.depth.cpu().numpy().astype(np.float32))
    if sample.normals is not None:
        yield "normals.npy", _npy(np.rint(sample.normals.cpu().numpy() * 127).astype(np.int8))


def _npy(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Place:
    """Where a sample's files lie in its shard: suffix -> (start, length) in bytes."""

    shard: Path
    name: str
    files: Mapping[str, tuple[int, int]]


class Shards:
    """Samples of a folder of ``*.tar`` files (or of one), by index, in the order of names."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError when there is no shard that can be read."""
        path = Path(path)
        found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        self.skipped: tuple[Skipped, ...] = ()
        self._places: list[_Place] = []
        for shard in found:
            try:
                self._places += _scan(shard)
            except InputError as error:
                self._skip(shard.name, str(error))
        if not self._places:
            value = self.skipped[0].reason if self.skipped else "no .tar file in it"
            raise InputError(str(path), value, "make some with: scenetx data make FOLDER")

    def __len__(self) -> int:
        return len(self._places)

    def names(self) -> list[str]:
        return [place.name for place in self._places]

    def cameras(self, index: int) -> Cameras:
        """The cameras of a sample, without its pictures. Raises InputError as `sample` does."""
        place = self._places[index]
        try:
            with place.shard.open("rb") as file:
                _, height, width, poses, K = _about(place, file)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{place.shard}: {place.name}", f"broken sample ({error})", AGAIN) from error
        return Cameras(poses, K, height, width)

    def sample(self, index: int, views: Sequence[int] | None = None) -> Sample:
        """A sample, or only these views of it. Raises InputError that names the shard and the sample."""
        place = self._places[index]
        where = f"{place.shard}: {place.name}"
        try:
            with place.shard.open("rb") as file:
                return _read(place, file, views)
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
            raise InputError(where, f"broken sample ({error})", AGAIN) from error

    def _skip(self, name: str, reason: str) -> None:
        log.warning("skipped %s: %s", name, reason)
        self.skipped = (*self.skipped, Skipped(name, reason))


def _scan(shard: Path) -> list[_Place]:
    """The samples of a tar file, by reading headers only. Raises InputError for a file that is no whole tar."""
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            members = [member for member in tar if member.isreg()]
        whole = size >= max((member.offset_data + member.size for member in members), default=0) + 1024
    except (OSError, tarfile.TarError) as error:
        raise InputError(str(shard), f"broken ({error})", "make or copy it again") from error
    if not whole:
        raise InputError(str(shard), f"cut off after {size:,} bytes", "make or copy it again")
    files: dict[str, dict[str, tuple[int, int]]] = {}
    for member in members:
        name, _, suffix = member.name.partition(".")
        files.setdefault(name, {})[suffix] = (member.offset_data, member.size)
    return [_Place(shard, name, parts) for name, parts in files.items() if "json" in parts]


def _data(place: _Place, file: BufferedReader, suffix: str) -> bytes:
    start, length = place.files[suffix]
    file.seek(start)
    return file.read(length)


def _about(place: _Place, file: BufferedReader) -> tuple[int, int, int, Tensor, Tensor]:
    """Count, height, width, poses and intrinsics of a sample's views. Raises ValueError for what cannot be."""
    about = json.loads(_data(place, file, "json"))
    count, height, width = (int(about[key]) for key in ("views", "height", "width"))
    if not (0 < count <= MAX_VIEWS and 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ValueError(f"{count} views of {width} x {height}")
    poses, K = (torch.tensor(about[key], dtype=torch.float32) for key in ("world_from_cam", "K"))
    sound = bool(poses.isfinite().all() & K.isfinite().all())
    if poses.shape != (count, 4, 4) or K.shape != (count, 3, 3) or not sound:
        raise ValueError("its cameras are not 4 x 4 and 3 x 3 numbers a view")
    return count, height, width, poses, K


def _read(place: _Place, file: BufferedReader, views: Sequence[int] | None) -> Sample:
    def data(suffix: str) -> bytes:
        return _data(place, file, suffix)

    count, height, width, poses, K = _about(place, file)
    chosen = list(range(count)) if views is None else list(views)
    rgb = torch.stack([_picture(data(f"{index:02d}.png"), height, width) for index in chosen])
    depth = _array(data("depth.npy"), (count, height, width), np.float32) if "depth.npy" in place.files else None
    normals = _array(data("normals.npy"), (count, height, width, 3), np.int8) if "normals.npy" in place.files else None
    return Sample(
        place.name,
        rgb,
        poses[chosen],
        K[chosen],
        None if depth is None else depth[chosen],
        None if normals is None else normals[chosen].float() / 127,
    )


def _picture(data: bytes, height: int, width: int) -> UInt8[Tensor, "h w 3"]:
    with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
        # The size is in the header: a bomb is refused before it is unpacked.
        if image.size != (width, height):
            raise ValueError(f"a view of {image.size[0]} x {image.size[1]} instead of {width} x {height}")
        return torch.from_numpy(np.array(image.convert("RGB")))


def _array(data: bytes, shape: tuple[int, ...], dtype: type) -> Tensor:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not expected <= len(data) <= expected + 4096:
        raise ValueError(f"an array of {len(data)} bytes instead of {expected}")
    array = np.load(BytesIO(data), allow_pickle=False)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"an array {array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}")
    return torch.from_numpy(array)
