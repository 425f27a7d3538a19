"""Lenses are straightened here and nowhere else: distortion, its inverse, and the pinhole picture that comes of it.

Normalised coordinates are x/z, y/z of a ray in the camera frame. Lens "opencv" is Brown's model with OpenCV's order
(k1, k2, p1, p2[, k3[, k4, k5, k6]]); lens "fisheye" is the equidistant model of Kannala and Brandt (2006) as in OpenCV
and COLMAP (k1, k2, k3, k4). An empty tuple is a perfect pinhole ("opencv") or a perfect equidistant lens ("fisheye").
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.cameras import pixel_grid
from scenetx.io.posed import Lens

# A pinhole picture of a wider view is mostly stretched border: 114 degrees is where it stops.
_MAX_TANGENT = math.tan(math.radians(57.0))
_TABLE_SIZE = 4096


def distort(
    xy: Float[Tensor, "*batch 2"], distortion: tuple[float, ...], lens: Lens = "opencv"
) -> Float[Tensor, "*batch 2"]:
    """Where the lens puts the ray with normalised coordinates ``xy``, in the same dtype.

    Beyond `valid_radius` the formulas fold back: the result there is a number, not a place in the picture.
    """
    x, y = xy.unbind(-1)
    if lens == "fisheye":
        radius = xy.norm(dim=-1)
        factor = _fisheye(torch.atan(radius), distortion)[0] / radius.clamp_min(torch.finfo(xy.dtype).tiny)
        return xy * torch.where(radius > 1e-12, factor, torch.ones_like(radius))[..., None]
    if not any(distortion):
        return xy
    _, _, p1, p2, *_ = _coefficients(distortion)
    squared = x * x + y * y
    radial = _radial(squared, distortion)[0]
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            y * radial + p1 * (squared + 2 * y * y) + 2 * p2 * x * y,
        ],
        dim=-1,
    )


def undistort(
    xy: Float[Tensor, "*batch 2"], distortion: tuple[float, ...], lens: Lens = "opencv"
) -> Float[Tensor, "*batch 2"]:
    """The inverse of `distort`: the ray seen at distorted normalised coordinates ``xy``, by Newton's method in float64.

    NaN where no ray inside `valid_radius` reaches ``xy`` (the lens's formulas fold back before it; a fisheye's rays at
    or behind 90 degrees have no normalised coordinates).
    """
    if lens == "opencv" and not any(distortion):
        return xy
    target = xy.double()
    limit = valid_radius(distortion, lens)
    radius = target.norm(dim=-1)
    # A table of the radial part gives a start from which Newton cannot step over the turning point.
    angles = torch.linspace(0, math.atan(limit) * (1 - 1e-9), _TABLE_SIZE, dtype=torch.float64)
    table = torch.tan(angles)
    distorted = _distorted_radius(table, distortion, lens)
    upper = torch.searchsorted(distorted, radius.contiguous()).clamp(1, _TABLE_SIZE - 1)
    lower = upper - 1
    fraction = ((radius - distorted[lower]) / (distorted[upper] - distorted[lower])).clamp(0, 1)
    start = table[lower] + fraction * (table[upper] - table[lower])
    guess = target * torch.where(radius > 1e-12, start / radius.clamp_min(1e-300), torch.ones_like(radius))[..., None]
    for _ in range(20):
        step = _newton_step(guess, target, distortion, lens)
        guess = guess - step
        if not bool((step.abs() > 1e-15 * (1 + guess.abs())).any()):
            break
    residual = (distort(guess, distortion, lens) - target).norm(dim=-1)
    reached = (residual < 1e-11 * (1 + radius)) & (guess.norm(dim=-1) <= limit * (1 + 1e-6))
    return torch.where(reached[..., None], guess, torch.full_like(guess, math.nan)).to(xy)


@functools.lru_cache(maxsize=256)
def valid_radius(distortion: tuple[float, ...], lens: Lens = "opencv") -> float:
    """Largest normalised radius up to which the radial part of the lens grows, so that it can be undone; may be inf.

    Looked for in steps of 0.02 degrees, then refined; the tangential part (small in real lenses) is left out.
    """
    angles = torch.linspace(0, math.pi / 2 - 1e-4, _TABLE_SIZE, dtype=torch.float64)

    def rising(angle: Tensor) -> Tensor:
        """Positive where a larger angle means a larger distorted radius."""
        if lens == "fisheye":
            return _fisheye(angle, distortion)[1]
        squared = torch.tan(angle).square()
        value, derivative = _radial(squared, distortion)
        return torch.minimum(value, value + 2 * squared * derivative)

    falling = torch.nonzero(~(rising(angles) > 0))
    if not len(falling):
        return math.inf
    first = int(falling[0])
    if first == 0:
        raise InputError("lens", f"distortion {distortion}", "check the coefficients: they fold the picture's centre")
    low, high = angles[first - 1], angles[first]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bool(rising(middle) > 0) else (low, middle)
    return math.tan(float(low))


def _coefficients(distortion: tuple[float, ...]) -> tuple[float, ...]:
    """OpenCV's eight, zeros where fewer are given."""
    if len(distortion) > 8:
        raise InputError("lens", f"{len(distortion)} distortion coefficients", "give at most OpenCV's first eight")
    return tuple(distortion) + (0.0,) * (8 - len(distortion))


def _radial(squared: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Brown's radial factor and its derivative by the squared radius."""
    k1, k2, _, _, k3, k4, k5, k6 = _coefficients(distortion)
    above = 1 + squared * (k1 + squared * (k2 + squared * k3))
    below = 1 + squared * (k4 + squared * (k5 + squared * k6))
    above_slope = k1 + squared * (2 * k2 + 3 * squared * k3)
    below_slope = k4 + squared * (2 * k5 + 3 * squared * k6)
    return above / below, (above_slope * below - above * below_slope) / below.square()


def _fisheye(angle: Tensor, distortion: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Distorted radius of a ray at ``angle`` (radians) from the axis, and its derivative."""
    if len(distortion) > 4:
        raise InputError("lens", f"{len(distortion)} fisheye coefficients", "give k1, k2, k3, k4")
    k1, k2, k3, k4 = tuple(distortion) + (0.0,) * (4 - len(distortion))
    squared = angle.square()
    value = angle * (1 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4))))
    slope = 1 + squared * (3 * k1 + squared * (5 * k2 + squared * (7 * k3 + squared * 9 * k4)))
    return value, slope


def _distorted_radius(radius: Tensor, distortion: tuple[float, ...], lens: Lens) -> Tensor:
    if lens == "fisheye":
        return _fisheye(torch.atan(radius), distortion)[0]
    return radius * _radial(radius.square(), distortion)[0]


def _newton_step(guess: Tensor, target: Tensor, distortion: tuple[float, ...], lens: Lens) -> Tensor:
    error = distort(guess, distortion, lens) - target
    x, y = guess.unbind(-1)
    squared = x * x + y * y
    if lens == "fisheye":
        radius = squared.sqrt().clamp_min(1e-300)
        value, slope = _fisheye(torch.atan(radius), distortion)
        factor = torch.where(radius > 1e-12, value / radius, torch.ones_like(radius))
        # d(factor)/d(squared), zero at the centre where the guess is exact anyway.
        rate = torch.where(radius > 1e-9, (slope / (1 + squared) - factor) / (2 * squared.clamp_min(1e-300)), 0.0)
        p1 = p2 = 0.0
    else:
        _, _, p1, p2, *_ = _coefficients(distortion)
        factor, rate = _radial(squared, distortion)
    xx = factor + 2 * x * x * rate + 2 * p1 * y + 6 * p2 * x
    yy = factor + 2 * y * y * rate + 6 * p1 * y + 2 * p2 * x
    xy = 2 * x * y * rate + 2 * p1 * x + 2 * p2 * y
    determinant = xx * yy - xy * xy
    return torch.stack(
        [
            (yy * error[..., 0] - xy * error[..., 1]) / determinant,
            (xx * error[..., 1] - xy * error[..., 0]) / determinant,
        ],
        dim=-1,
    )


def pinhole_for(
    K: Float[Tensor, "3 3"], distortion: tuple[float, ...], lens: Lens, h: int, w: int, out_width: int
) -> tuple[Float[Tensor, "3 3"], int, int]:
    """The pinhole camera (K, height, width) of the straightened picture: the largest upright rectangle without blank
    pixels, on the same optical axis, at the focal length of the original times one scale.

    The longer side is at most ``out_width`` pixels and never more than the rectangle has in the original. The size is
    a whole number, so the two focal lengths may differ from equal scales by up to half a pixel in their side. The
    principal point stays where the axis is, off the centre if need be. Wide fisheyes are cut at 57 degrees off axis.
    """
    _check_intrinsics(K, h, w)
    K = K.double()
    left, top, right, bottom = _inner_rectangle(K, distortion, lens, h, w)
    focal = torch.stack([K[0, 0], K[1, 1]])
    across, down = float((right - left) * focal[0]), float((bottom - top) * focal[1])
    scale = min(1.0, out_width / max(across, down))
    w_new, h_new = max(1, round(across * scale)), max(1, round(down * scale))
    out = torch.eye(3, dtype=torch.float64)
    out[0, 0], out[1, 1] = w_new / (right - left), h_new / (bottom - top)
    out[0, 2], out[1, 2] = -left * out[0, 0], -top * out[1, 1]
    return out, h_new, w_new


def _check_intrinsics(K: Tensor, h: int, w: int) -> None:
    good = bool(torch.isfinite(K).all()) and bool(K[0, 0] > 0) and bool(K[1, 1] > 0) and h > 0 and w > 0
    if not good:
        raise InputError("camera", f"K {K.tolist()} for {w}x{h} pixels", "give finite focal lengths above zero")


def _inner_rectangle(
    K: Tensor, distortion: tuple[float, ...], lens: Lens, h: int, w: int
) -> tuple[float, float, float, float]:
    """left, top, right, bottom in normalised coordinates, every ray inside of which the picture holds."""
    steps = torch.linspace(0, 1, 257, dtype=torch.float64)
    zero, one = torch.zeros_like(steps), torch.ones_like(steps)
    inverse = torch.linalg.inv(K)

    def side(x: Tensor, y: Tensor) -> Tensor:
        corners = torch.stack([x * w, y * h, torch.ones_like(x)], -1) @ inverse.T
        return _undistort_or_limit(corners[:, :2], distortion, lens)

    left = float(side(zero, steps)[:, 0].max())
    right = float(side(one, steps)[:, 0].min())
    top = float(side(steps, zero)[:, 1].max())
    bottom = float(side(steps, one)[:, 1].min())
    rectangle = torch.tensor([left, top, right, bottom], dtype=torch.float64).clamp(-_MAX_TANGENT, _MAX_TANGENT)
    if lens == "opencv" and not any(distortion):
        rectangle = torch.tensor([left, top, right, bottom], dtype=torch.float64)
    for _ in range(400):
        left, top, right, bottom = rectangle.tolist()
        if left >= right or top >= bottom:
            break
        x, y = left + steps * (right - left), top + steps * (bottom - top)
        border = torch.cat(
            [torch.stack(p, -1) for p in ((x, zero + top), (x, zero + bottom), (zero + left, y), (zero + right, y))]
        )
        if bool(_seen(border, K, distortion, lens, h, w).all()):
            return left, top, right, bottom
        # Only lenses that fold back inside of their own picture come here: their limit is a circle, not a frame.
        rectangle = rectangle * 0.99
    raise InputError("lens", f"distortion {distortion} for {w}x{h} pixels", "check it: no picture is left inside")


def _undistort_or_limit(xy: Tensor, distortion: tuple[float, ...], lens: Lens) -> Tensor:
    """As `undistort`; what the lens cannot reach is put on the edge of what it can, in the same direction."""
    rays = undistort(xy, distortion, lens)
    edge = min(valid_radius(distortion, lens) * 0.999, 1e3)
    limit = xy / xy.norm(dim=-1, keepdim=True).clamp_min(1e-12) * edge
    return torch.where(torch.isfinite(rays), rays, limit)


def _seen(xy: Tensor, K: Tensor, distortion: tuple[float, ...], lens: Lens, h: int, w: int) -> Tensor:
    """Whether rays fall inside of the picture, to a thousandth of a pixel."""
    pixels = _pixels_of(xy, K, distortion, lens)
    inside = (pixels >= -1e-3).all(-1) & (pixels[..., 0] <= w + 1e-3) & (pixels[..., 1] <= h + 1e-3)
    return inside & (xy.norm(dim=-1) <= valid_radius(distortion, lens))


def _pixels_of(xy: Tensor, K: Tensor, distortion: tuple[float, ...], lens: Lens) -> Tensor:
    return distort(xy, distortion, lens) @ K[:2, :2].T + K[:2, 2]


def _source_pixels(
    K: Tensor, distortion: tuple[float, ...], lens: Lens, K_new: Tensor, h_new: int, w_new: int
) -> Float[Tensor, "h_new w_new 2"]:
    """Where in the original each pixel centre of the straightened picture comes from, float64 pixels."""
    K, K_new = K.double(), K_new.double()
    rays = (pixel_grid(h_new, w_new, dtype=torch.float64) - K_new[:2, 2]) / K_new.diagonal()[:2]
    pixels = _pixels_of(rays, K, distortion, lens)
    beyond = rays.norm(dim=-1) > valid_radius(distortion, lens)
    return torch.where(beyond[..., None], torch.full_like(pixels, -1e6), pixels)


def straighten(
    pixels: UInt8[np.ndarray, "h w 3"], K: Float[Tensor, "3 3"], distortion: tuple[float, ...], lens: Lens,
    K_new: Float[Tensor, "3 3"], h_new: int, w_new: int,
) -> UInt8[np.ndarray, "h_new w_new 3"]:  # fmt: skip
    """The picture that pinhole ``K_new`` would have taken, antialiased (Lanczos down to its scale, then Catmull-Rom).

    Rays outside of the original are black. Colours are blended in sRGB, as all resizers do.
    """
    h, w = pixels.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if lens == "opencv" and not any(distortion) and abs(float(K[0, 1])) < 1e-9:
        box = _plain_box(K, K_new, h_new, w_new)
        if min(box[:2]) > -1e-3 and box[2] < w + 1e-3 and box[3] < h + 1e-3:
            box = (max(box[0], 0), max(box[1], 0), min(box[2], w), min(box[3], h))
            return np.array(image.resize((w_new, h_new), Image.Resampling.LANCZOS, box=box))
    source = _source_pixels(K, distortion, lens, K_new, h_new, w_new)
    scale = min(1.0, float(K_new[0, 0] / K[0, 0]), float(K_new[1, 1] / K[1, 1]))
    if scale < 0.99:
        image = image.resize((max(2, round(w * scale)), max(2, round(h * scale))), Image.Resampling.LANCZOS)
    out = _catmull_rom(np.array(image), source / torch.tensor([w / image.width, h / image.height], dtype=torch.float64))
    outside = (source < -1e-3).any(-1) | (source[..., 0] > w + 1e-3) | (source[..., 1] > h + 1e-3)
    out[outside] = 0
    return out.round().clamp(0, 255).byte().numpy()


def _catmull_rom(pixels: UInt8[np.ndarray, "h w 3"], places: Float[Tensor, "r c 2"]) -> Float[Tensor, "r c 3"]:
    """The picture's values at places (x, y), first pixel centre (0.5, 0.5), borders repeated.

    Keys's cubic with a = -0.5 (1981), which keeps straight ramps where they are. The a = -0.75 of torch and OpenCV does
    not: it moves edges by up to 0.03 pixels, as the fraction of the place has it.
    """
    height, width = pixels.shape[:2]
    values = torch.from_numpy(pixels).float().flatten(0, 1)
    first = torch.floor(places - 0.5)
    f = (places - 0.5 - first).float()
    weights = torch.stack(
        [
            f * (-0.5 + f * (1 - 0.5 * f)),
            1 + f * f * (1.5 * f - 2.5),
            f * (0.5 + f * (2 - 1.5 * f)),
            f * f * (0.5 * f - 0.5),
        ]
    )
    column, row = first.long().unbind(-1)
    out = torch.zeros(*places.shape[:2], 3)
    for j in range(4):
        start = (row + (j - 1)).clamp(0, height - 1) * width
        for i in range(4):
            index = start + (column + (i - 1)).clamp(0, width - 1)
            weight = weights[i, ..., 0] * weights[j, ..., 1]
            out += weight[..., None] * values[index.flatten()].view(*index.shape, 3)
    return out


def straighten_nearest(
    values: Shaped[np.ndarray, "h w"], K: Float[Tensor, "3 3"], distortion: tuple[float, ...], lens: Lens,
    K_new: Float[Tensor, "3 3"], h_new: int, w_new: int,
) -> Shaped[np.ndarray, "h_new w_new"]:  # fmt: skip
    """`straighten` for masks and z-depth: the value of the nearest pixel, never a mixture. 0 (False) outside."""
    h, w = values.shape
    source = _source_pixels(K, distortion, lens, K_new, h_new, w_new)
    column, row = (part.numpy() for part in torch.floor(source).clamp(-1e6, 1e6).long().unbind(-1))
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    out = values[row.clip(0, h - 1), column.clip(0, w - 1)]
    return np.where(inside, out, np.zeros((), values.dtype))


def _plain_box(K: Tensor, K_new: Tensor, h_new: int, w_new: int) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of the original that a pinhole-to-pinhole picture shows."""
    scale = (K.diagonal() / K_new.diagonal())[:2]
    first = K[:2, 2] - K_new[:2, 2] * scale
    last = first + scale * scale.new_tensor([w_new, h_new])
    return float(first[0]), float(first[1]), float(last[0]), float(last[1])
