"""The picture files of a scene folder: working pictures, masks, depth and confidence, and what they are called."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.atomic import write_bytes

JPEG_QUALITY = 97  # with 4:4:4 chroma: about 45 dB to the pixels in memory, a third of a PNG's bytes
JPEG_SUFFIXES = (".jpg", ".jpeg")
KEPT_SUFFIXES = (*JPEG_SUFFIXES, ".png")
MAX_SIDE = 65535

Digests = Mapping[str, tuple[str, ...]]
"""File -> digests of the arrays it stands for: as given, and as decoded (they differ for JPEG)."""


def stored_name(name: str) -> str:
    """The file, inside images/, that holds a view's picture: its name, with .jpg added where that is no JPEG or PNG."""
    return name if PurePosixPath(name).suffix.lower() in KEPT_SUFFIXES else f"{name}.jpg"


def digest(array: Shaped[np.ndarray, "..."]) -> str:
    """Tells whether two arrays are equal in shape and bytes."""
    return hashlib.blake2b(repr((array.shape, array.dtype.str)).encode() + array.tobytes(), digest_size=16).hexdigest()


def store(folder: Path, file: str, array: Shaped[np.ndarray, "..."], known: Digests) -> tuple[str, ...]:
    """Writes ``array`` (bytes [h w 3], bytes [h w] or 16 bits [h w]) unless the file already stands for it.

    So a scene that was loaded and saved again does not go through JPEG twice. Returns the file's digests.
    """
    path, mine = folder / file, digest(array)
    if mine in known.get(file, ()) and path.is_file():
        return known[file]
    lossy = path.suffix.lower() in JPEG_SUFFIXES
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if lossy else {"compress_level": 3}
    Image.fromarray(array).save(buffer, "JPEG" if lossy else "PNG", **options)
    write_bytes(path, buffer.getvalue())
    if not lossy:
        return (mine,)
    with Image.open(buffer) as decoded:
        return (mine, digest(np.asarray(decoded)))


def load_pixels(path: Path, height: int, width: int) -> UInt8[Tensor, "h w 3"]:
    """The pixels of a working picture.

    Raises:
        InputError: missing, broken, or not of that size.
    """
    return torch.from_numpy(_decode(path, height, width, "RGB").copy())


def load_mask(path: Path, height: int, width: int) -> Bool[Tensor, "h w"]:
    """True = use this pixel, from a grey picture (above 127)."""
    return torch.from_numpy(_decode(path, height, width, "L") > 127)


def load_scaled(path: Path, height: int, width: int, unit: float) -> Float[Tensor, "h w"]:
    """A 16-bit grey picture times ``unit``, float32."""
    return torch.from_numpy(_decode(path, height, width, "I;16").astype(np.float32) * np.float32(unit))


def to_16_bit(values: Float[Tensor, "h w"]) -> tuple[Shaped[np.ndarray, "h w"], float]:
    """16-bit numbers and the unit that gives ``values`` back to half a unit, 1/131070 of the largest value.

    Negative and not finite values become 0 ("none"); what is above 0 stays above 0.
    """
    numbers = values.detach().cpu().double().numpy()
    numbers = np.where(np.isfinite(numbers) & (numbers > 0), numbers, 0)
    unit = float(numbers.max(initial=0)) / 65535 or 1.0
    return np.maximum((numbers / unit).round(), numbers > 0).astype(np.uint16), unit


def _decode(path: Path, height: int, width: int, mode: str) -> Shaped[np.ndarray, "..."]:
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            if picture.size != (width, height):
                size = f"is {picture.size[0]} x {picture.size[1]}, scene.json says {width} x {height}"
                raise InputError(str(path), size, "reconstruct the scene again")
            if mode == "I;16":
                if picture.mode != mode:
                    raise InputError(str(path), f"is of mode {picture.mode}", "reconstruct the scene again")
                return np.asarray(picture)
            return np.asarray(picture.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(str(path), why, "put it back, or reconstruct the scene again") from error
