"""A lens of one radial term, for pictures whose lens is found on the way: its pixels, straightened and bent again.

As OpenCV's k1: a ray (x, y) is seen at (x, y)(1 + k1 r^2). Focal length and centre are those of K on both sides, and
the picture keeps its size.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from scenetx.live.classical_map import Lens, decode_grey, encode_grey
from scenetx.live.intrinsics import Straighten
from scenetx.live.points import Station

_STEP = 0.5
"""Pixels in a picture's corner that a lens has to move for the picture to be straightened anew."""


def bent(xy: Float[np.ndarray, "n 2"], K: Float[np.ndarray, "*n 3 3"], k1: float) -> Float[np.ndarray, "n 2"]:
    """Where the lens puts the pixels ``xy`` of a straight picture."""
    f, c = K[..., [0, 1], [0, 1]], K[..., :2, 2]
    ray = (xy - c) / f
    return ray * (1 + k1 * (ray**2).sum(1, keepdims=True)) * f + c


def straight(xy: Float[np.ndarray, "n 2"], K: Float[np.ndarray, "*n 3 3"], k1: float) -> Float[np.ndarray, "n 2"]:
    """The inverse of `bent`, by Newton's method on the radius. Beyond where the lens folds back: where it does."""
    f, c = K[..., [0, 1], [0, 1]], K[..., :2, 2]
    seen = (xy - c) / f
    radius = np.linalg.norm(seen, axis=1)
    last = 1 / np.sqrt(-3 * k1) if k1 < 0 else np.inf
    found = np.minimum(radius, 0.9 * last)
    for _ in range(10):
        slope = np.maximum(1 + 3 * k1 * found**2, 1e-2)
        found = np.clip(found - (found * (1 + k1 * found**2) - radius) / slope, 0, last)
    return seen * (found / np.maximum(radius, 1e-12))[:, None] * f + c


def with_lens(station: Station, focal: float, k1: float, *, picture: bool = True) -> Station:
    """A picture, straightened for a lens of ``focal`` pixels; one that was never bent only gets the focal length.
    picture: False = its grey picture stays as it is."""
    K = station.K.copy()
    K[0, 0] = K[1, 1] = focal
    if station.seen is None:
        return replace(station, K=K)
    xy = straight(station.seen.xy.astype(np.float64), K, k1).astype(np.float32)
    grey = station.picture
    if picture:
        grey = _straight_picture(station.seen.picture, *_rounded(station, k1 / focal**2))
    return replace(station, K=K, features=replace(station.features, xy=xy), picture=grey)


def straighten(K: Float[np.ndarray, "3 3"], k1: float, height: int, width: int) -> Straighten:
    """For pictures of this size; that of the last few lenses is kept."""
    return _straightener(Lens(height, width, tuple(float(value) for value in K.flatten()), (float(k1),)))


@functools.lru_cache(maxsize=4)
def _straightener(lens: Lens) -> Straighten:
    return Straighten(lens, same=True)


def _rounded(station: Station, bend: float) -> tuple[float, float, float]:
    """The lens's centre (parts of width and height), and the radial term that, with a focal length of the longer side,
    does the same to a picture as ``bend`` (k1 by the focal length squared), in steps."""
    height, width = station.size
    corner = np.hypot(width, height) / 2
    step = _STEP / corner**3
    x, y = float(station.K[0, 2] / width), float(station.K[1, 2] / height)
    return x, y, float(round(bend / step) * step * max(station.size) ** 2)


@functools.lru_cache(maxsize=256)
def _straight_picture(picture: bytes, x: float, y: float, k1: float) -> bytes:
    if k1 == 0:
        return picture
    grey = decode_grey(picture).copy()
    height, width = grey.shape
    f = max(height, width)
    K = np.array([[f, 0.0, x * width], [0.0, f, y * height], [0.0, 0.0, 1.0]])
    made = straighten(K, k1, height, width)(torch.from_numpy(grey)[..., None])
    return encode_grey(made[..., 0].numpy(), max(grey.shape))
