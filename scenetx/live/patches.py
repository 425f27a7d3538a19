"""Patches of the map's pictures, warped to where the camera should be and looked for in the frame (numba).

The measuring half of a tracker after PTAM (Klein & Murray, 2007): the search takes the patch whole (zero-mean
normalised correlation, so exposure does not matter), the refinement is inverse compositional with gain and offset
projected out (Baker & Matthews, 2004). Pixel (i, j) of a picture has its centre at (j + 0.5, i + 0.5); level ``l`` of a
pyramid is ``2**l`` times smaller. Patches carry a border of one pixel for their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from scenetx.splat.cpu_jit import kernel

SIDE = 8  # a patch's side, pixels of its level
LEVELS = 4
_FLAT = 4.0  # variance (grey values squared) under which a patch has no texture


Levels = tuple[UInt8[np.ndarray, "_ _"], ...]
"""Of one picture, each half as large as the one before."""


@dataclass(frozen=True)
class Shelf:
    """Pyramids of many pictures in one piece of memory: picture ``k``'s level ``l`` is row ``k * LEVELS + l``."""

    pixels: UInt8[np.ndarray, "n"]
    start: Int[np.ndarray, "r"]
    size: Int[np.ndarray, "r 2"]  # height, width

    @staticmethod
    def of(pictures: Sequence[Levels]) -> Shelf:
        """Of the pictures' `LEVELS` levels (`levels_of`)."""
        levels = [level for picture in pictures for level in picture]
        flat = [level.ravel() for level in levels]
        start = np.cumsum([0, *(len(part) for part in flat)])[:-1]
        size = np.array([level.shape for level in levels], np.int64)
        return Shelf(np.concatenate(flat), start.astype(np.int64), size)


def levels_of(grey: UInt8[np.ndarray, "h w"]) -> Levels:
    """The `pyramid`, rounded."""
    return tuple(np.round(level).astype(np.uint8) for level in pyramid(grey))


def pyramid(grey: UInt8[np.ndarray, "h w"]) -> list[Float[np.ndarray, "_ _"]]:
    """`LEVELS` float32 pictures, each half as large as the one before, but never under a pixel."""
    out = [grey.astype(np.float32)]
    while len(out) < LEVELS:
        out.append(_halved(out[-1]) if min(out[-1].shape) >= 2 else out[-1])
    return out


@kernel(fast=True, nogil=True)
def _halved(image):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    height, width = image.shape[0] // 2, image.shape[1] // 2
    out = np.empty((height, width), np.float32)
    for i in range(height):
        for j in range(width):
            out[i, j] = 0.25 * (
                image[2 * i, 2 * j] + image[2 * i, 2 * j + 1] + image[2 * i + 1, 2 * j] + image[2 * i + 1, 2 * j + 1]
            )
    return out


@kernel(fast=True, nogil=True)
def _warp(pixels, start, size, row, places, step, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    half = (SIDE + 2) / 2 - 0.5
    for k in range(len(places)):
        height, width = size[row[k], 0], size[row[k], 1]
        base = start[row[k]]
        for i in range(SIDE + 2):
            for j in range(SIDE + 2):
                dx, dy = j - half, i - half
                x = places[k, 0] + step[k, 0, 0] * dx + step[k, 0, 1] * dy - 0.5
                y = places[k, 1] + step[k, 1, 0] * dx + step[k, 1, 1] * dy - 0.5
                if not (x >= 0 and y >= 0 and x < width - 1 and y < height - 1):
                    out[k, i, j] = np.nan
                    continue
                u, v = int(x), int(y)
                a, b = np.float32(x - u), np.float32(y - v)
                at = base + v * width + u
                p, q = np.float32(pixels[at]), np.float32(pixels[at + width])
                upper = p + a * (np.float32(pixels[at + 1]) - p)
                lower = q + a * (np.float32(pixels[at + width + 1]) - q)
                out[k, i, j] = upper + b * (lower - upper)


def warped(
    shelf: Shelf,
    row: Int[np.ndarray, "n"],
    places: Float[np.ndarray, "n 2"],
    step: Float[np.ndarray, "n 2 2"],
) -> Float[np.ndarray, "n s s"]:
    """Patches around ``places`` (x, y) of the shelf's picture rows, where a step in patch ``k`` is ``step[k]`` there.

    NaN where a patch leaves its picture.
    """
    out = np.empty((len(places), SIDE + 2, SIDE + 2), np.float32)
    _warp(shelf.pixels, shelf.start, shelf.size, row.astype(np.int64), places, step, out)
    return out


@kernel(fast=True, nogil=True)
def _best(image, template, middle_x, middle_y, radius):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The window that correlates best with a template of mean 0 and length 1, by whole pixels."""
    n = SIDE * SIDE
    height, width = image.shape
    left, top = int(np.round(middle_x - SIDE / 2)), int(np.round(middle_y - SIDE / 2))
    best, best_x, best_y = np.float32(-1), 0, 0
    for y in range(max(top - radius, 0), min(top + radius, height - SIDE) + 1):
        for x in range(max(left - radius, 0), min(left + radius, width - SIDE) + 1):
            s, ss, st = np.float32(0), np.float32(0), np.float32(0)
            for i in range(SIDE):
                for j in range(SIDE):
                    value = image[y + i, x + j]
                    s += value
                    ss += value * value
                    st += value * template[i, j]
            spread = ss - s * s / n
            # st > 0 and st**2 / spread > best**2, without a root for every place
            if st > 0 and spread > _FLAT * n and st * st > best * abs(best) * spread:
                best, best_x, best_y = st / np.sqrt(spread), x, y
    return best, best_x + SIDE / 2, best_y + SIDE / 2


@kernel(fast=True, nogil=True)
def _search(image, patches, places, radius, found, score):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    n = SIDE * SIDE
    template = np.empty((SIDE, SIDE), np.float32)
    for k in range(len(places)):
        score[k] = -1.0
        total, square = np.float32(0), np.float32(0)
        for i in range(SIDE):
            for j in range(SIDE):
                value = patches[k, i + 1, j + 1]
                total += value
                square += value * value
        variance = square - total * total / n
        if not variance > _FLAT * n:  # NaN too
            continue
        for i in range(SIDE):
            for j in range(SIDE):
                template[i, j] = (patches[k, i + 1, j + 1] - total / n) / np.sqrt(variance)
        score[k], found[k, 0], found[k, 1] = _best(image, template, places[k, 0], places[k, 1], radius)


def sought(
    image: Float[np.ndarray, "h w"], patches: Float[np.ndarray, "n s s"], places: Float[np.ndarray, "n 2"], radius: int
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Where (to a whole pixel) each patch correlates best with ``image``, up to ``radius`` pixels from ``places``.

    Gives places (x, y) and correlations; -1 = nowhere to look, or a patch without texture.
    """
    found, score = places.copy(), np.empty(len(places))
    _search(image, patches, places, radius, found, score)
    return found, score


@kernel(fast=True, nogil=True)
def _prepare(patch, J):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Fills J with the patch's gradient, made orthogonal to the patch and to a constant (gain and offset).

    Gives the patch's mean and square sum about it (0 = no texture) and the normal matrix xx, xy, yy.
    """
    n = SIDE * SIDE
    mean, gx, gy = 0.0, 0.0, 0.0
    for i in range(SIDE):
        for j in range(SIDE):
            mean += patch[i + 1, j + 1] / n
            J[i, j, 0] = 0.5 * (patch[i + 1, j + 2] - patch[i + 1, j])
            J[i, j, 1] = 0.5 * (patch[i + 2, j + 1] - patch[i, j + 1])
            gx += J[i, j, 0] / n
            gy += J[i, j, 1] / n
    tt, tx, ty = 0.0, 0.0, 0.0
    for i in range(SIDE):
        for j in range(SIDE):
            J[i, j, 0] -= gx
            J[i, j, 1] -= gy
            t = patch[i + 1, j + 1] - mean
            tt += t * t
            tx += t * J[i, j, 0]
            ty += t * J[i, j, 1]
    if not tt > _FLAT * n:
        return mean, 0.0, 0.0, 0.0, 0.0
    xx, xy, yy = 0.0, 0.0, 0.0
    for i in range(SIDE):
        for j in range(SIDE):
            t = (patch[i + 1, j + 1] - mean) / tt
            J[i, j, 0] -= t * tx
            J[i, j, 1] -= t * ty
            xx += J[i, j, 0] * J[i, j, 0]
            xy += J[i, j, 0] * J[i, j, 1]
            yy += J[i, j, 1] * J[i, j, 1]
    return mean, tt, xx, xy, yy


@kernel(fast=True, nogil=True)
def _compare(image, patch, mean, J, left, top):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sums over the window at (left, top): its spread, its product with the patch, with the gradients."""
    n = SIDE * SIDE
    u, v = int(left), int(top)
    a, b = np.float32(left - u), np.float32(top - v)
    s, ss, st, bx, by = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(SIDE):
        for j in range(SIDE):
            p, q = image[v + i, u + j], image[v + i + 1, u + j]
            upper = p + a * (image[v + i, u + j + 1] - p)
            lower = q + a * (image[v + i + 1, u + j + 1] - q)
            value = upper + b * (lower - upper)
            s += value
            ss += value * value
            st += value * (patch[i + 1, j + 1] - mean)
            bx += value * J[i, j, 0]
            by += value * J[i, j, 1]
    return ss - s * s / n, st, bx, by


@kernel(fast=True, nogil=True)
def _refine(image, patches, places, rounds, found, score):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    height, width = image.shape
    J = np.empty((SIDE, SIDE, 2), np.float32)
    for k in range(len(places)):
        score[k] = -1.0
        mean, tt, xx, xy, yy = _prepare(patches[k], J)
        det = xx * yy - xy * xy
        if not det > 1e-3 * (xx + yy) * (xx + yy) or not tt > 0:
            continue
        x, y = places[k, 0], places[k, 1]
        for r in range(rounds + 1):
            left, top = x - SIDE / 2, y - SIDE / 2
            near = abs(x - places[k, 0]) < 2.5 and abs(y - places[k, 1]) < 2.5
            if not (near and left >= 0 and top >= 0 and left < width - SIDE - 1 and top < height - SIDE - 1):
                score[k] = -1.0
                break
            spread, st, bx, by = _compare(image, patches[k], mean, J, left, top)
            score[k] = st / np.sqrt(max(spread, 1e-6) * tt)
            found[k, 0], found[k, 1] = x, y
            gain = st / tt
            if r == rounds or not gain > 0.05:
                break
            x -= (yy * bx - xy * by) / (det * gain)
            y -= (xx * by - xy * bx) / (det * gain)


def refined(
    image: Float[np.ndarray, "h w"],
    patches: Float[np.ndarray, "n s s"],
    places: Float[np.ndarray, "n 2"],
    rounds: int = 8,
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """The patches' places to a fraction of a pixel, from within about a pixel and a half.

    Gives places (x, y) and correlations; -1 = it leaves the picture, strays, or has no texture in some direction.
    """
    found, score = places.copy(), np.empty(len(places))
    _refine(image, patches, places, rounds, found, score)
    return found, score
