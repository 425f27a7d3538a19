"""Solid textures of objects: noise, gratings, checks, cells, marks like writing, and photographs.

Patterns are functions of the place in the object, so they move with it and agree between views. Edges are softened by
the pixel's footprint, and what is finer than a pixel fades to its mean. Only exactly rounded operations are used.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scenetx.data.cast import Vector, dot
from scenetx.data.world import CELLS, CHECKER, GRATING, MARKS, PHOTO


def hashed(x: Int[Tensor, "k"], y: Int[Tensor, "k"], z: Int[Tensor, "k"], seed: Int[Tensor, "k"]) -> Int[Tensor, "k"]:
    """24 random bits for integer places (32-bit mixing by multiply and shift, wrapping around)."""
    h = (x * 374761393) ^ (y * 668265263) ^ (z * 1274126177) ^ (seed * 974634777)
    h = (h ^ (h >> 15)) * 739982445
    h = (h ^ (h >> 12)) * 695872825
    return (h ^ (h >> 15)) & 0xFFFFFF


def uniform(bits: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Bits of `hashed` as numbers in [0, 1)."""
    return bits.to(torch.float32) * 2.0**-24


def value_noise(p: Vector, seed: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Smooth noise in [0, 1] with one random value at each integer place."""
    floors = [v.floor() for v in p]
    x, y, z = (f.to(torch.int32) for f in floors)
    u, v, w = (part - f for part, f in zip(p, floors, strict=True))
    u, v, w = (f * f * (3 - 2 * f) for f in (u, v, w))
    planes = []
    for dz in (0, 1):
        lines = []
        for dy in (0, 1):
            a = uniform(hashed(x, y + dy, z + dz, seed))
            b = uniform(hashed(x + 1, y + dy, z + dz, seed))
            lines.append(a + (b - a) * u)
        planes.append(lines[0] + (lines[1] - lines[0]) * v)
    return planes[0] + (planes[1] - planes[0]) * w


def cells(p: Vector, seed: Int[Tensor, "k"]) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Voronoi cells of one point in each unit cube: a random number per cell, and the distance to the border.

    Only the eight nearest cubes are asked; points keep to the middle 60 % of theirs.
    """
    base = [(v - 0.5).floor().to(torch.int32) for v in p]
    nearest = torch.full_like(p[0], 1e9)
    second, name = nearest, torch.zeros_like(p[0])
    for corner in range(8):
        x, y, z = (base[i] + ((corner >> i) & 1) for i in range(3))
        bits = hashed(x, y, z, seed)
        jitter = [((bits >> (8 * i)) & 255).to(torch.float32) * (0.6 / 256) + 0.2 for i in range(3)]
        d = [part - (i.to(torch.float32) + j) for part, i, j in zip(p, (x, y, z), jitter, strict=True)]
        square = dot((d[0], d[1], d[2]), (d[0], d[1], d[2]))
        closer = square < nearest
        second = torch.where(closer, nearest, torch.minimum(second, square))
        name = torch.where(closer, uniform((bits * 48271) & 0xFFFFFF), name)
        nearest = torch.where(closer, square, nearest)
    return name, second.sqrt() - nearest.sqrt()


def soft_step(value: Float[Tensor, "k"], width: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """0 below zero, 1 above, over a ramp of ``width``."""
    return (value / width.clamp_min(1e-4) + 0.5).clamp(0, 1)


def stripes(u: Float[Tensor, "k"], duty: Float[Tensor, "k"], blur: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """A square wave of period 1 that is 1 for a share ``duty``; where a pixel spans a period, its mean."""
    triangle = ((u - u.floor()) * 2 - 1).abs()
    sharp = soft_step(duty - triangle, 2 * blur)
    keep = (2 - 3 * blur).clamp(0, 1)
    return duty + (sharp - duty) * keep


def marks(
    u: Float[Tensor, "k"], v: Float[Tensor, "k"], seed: Int[Tensor, "k"], blur: Float[Tensor, "k"]
) -> Float[Tensor, "k"]:
    """Lines of glyph-like marks: each cell holds some of nine strokes, some cells are blank."""
    column, line = u.floor(), v.floor()
    x, y = (u - column) * 1.25, (v - line) * 1.6
    bits = hashed(column.to(torch.int32), line.to(torch.int32), torch.zeros_like(seed), seed)
    ink = torch.zeros_like(u)
    inside_x, inside_y = (x > 0.08) & (x < 0.92), (y > 0.06) & (y < 0.94)
    for k in range(9):
        if k < 6:
            across, along = (x - (0.16, 0.5, 0.84)[k % 3]).abs(), (y < 0.54) if k < 3 else (y > 0.46)
        else:
            across, along = (y - (0.14, 0.5, 0.86)[k - 6]).abs(), inside_x
        stroke = soft_step(0.08 - across, 2 * blur)
        drawn = along & inside_x & inside_y & (((bits >> k) & 1) > 0)
        ink = torch.where(drawn, torch.maximum(ink, stroke), ink)
    ink = torch.where(((bits >> 12) & 7) == 0, 0.0, ink)
    keep = (2 - 8 * blur).clamp(0, 1)
    return 0.2 + (ink - 0.2) * keep


def photo(
    u: Float[Tensor, "k"], v: Float[Tensor, "k"], which: Int[Tensor, "k"], photos: UInt8[Tensor, "q s s 3"]
) -> Float[Tensor, "3 k"]:
    """Photographs laid out over the plane, every other one mirrored, bilinear, in [0, 1]."""
    size = photos.shape[1]
    flat = photos.reshape(-1, 3)
    base = (which % len(photos)) * (size * size)

    def mirrored(a: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
        half = a * 0.5
        return 1 - ((half - half.floor()) * 2 - 1).abs()

    x, y = mirrored(u) * (size - 1), mirrored(v) * (size - 1)
    x0, y0 = x.floor().clamp(0, size - 2), y.floor().clamp(0, size - 2)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    index = base + y0.to(torch.int64) * size + x0.to(torch.int64)
    a, b, c, d = (flat[index + shift].to(torch.float32) for shift in (0, 1, size, size + 1))
    top, bottom = a + (b - a) * fx, c + (d - c) * fx
    return ((top + (bottom - top) * fy) * (1 / 255)).transpose(0, 1)


def surface_colors(
    material: tuple[Tensor, ...],
    point: Vector,
    normal: Vector,
    footprint: Float[Tensor, "k"],
    photos: UInt8[Tensor, "q s s 3"] | None,
) -> Float[Tensor, "3 k"]:
    """Colours (display space) at points of objects, in the objects' frames.

    ``material`` are the columns of `Material.packed` at the points; ``footprint`` the size of a pixel there, in world
    units.
    """
    kind, frequency, duty, warp, dirt, noise_frequency = material[:6]
    seed = material[8].to(torch.int32)
    a, b, c = (torch.stack(material[10 + 3 * i : 13 + 3 * i]) for i in range(3))
    t = material[19:28]
    q = tuple(dot((t[3 * i], t[3 * i + 1], t[3 * i + 2]), point) for i in range(3))
    n = tuple(dot((t[3 * i], t[3 * i + 1], t[3 * i + 2]), normal).abs() for i in range(3))
    noise = value_noise((q[0] * noise_frequency, q[1] * noise_frequency, q[2] * noise_frequency), seed)
    fine = 2.7 * noise_frequency
    detail = value_noise((q[0] * fine, q[1] * fine, q[2] * fine), seed + 7)
    keep = (1.5 - fine * footprint).clamp(0, 1)
    mixed = noise + 0.5 * (detail - 0.5) * keep
    amount = soft_step(mixed - 0.5, 0.6 - 0.5 * duty)

    blur = (footprint * frequency).clamp(1e-3, 4)
    bend = warp * (mixed - 0.5)
    # The plane of marks and photographs is the one the surface lies in most.
    along_x, along_y = (n[0] >= n[1]) & (n[0] >= n[2]), (n[1] > n[0]) & (n[1] >= n[2])
    u = torch.where(along_x, q[1], q[0]) * frequency
    v = torch.where(along_x | along_y, q[2], q[1]) * frequency
    scaled = (q[0] * frequency, q[1] * frequency, q[2] * frequency)

    def where(code: int) -> Tensor:
        return (kind == code).nonzero()[:, 0]

    if len(i := where(GRATING)):
        amount[i] = stripes(scaled[0][i] + bend[i], duty[i], blur[i])
    if len(i := where(CHECKER)):
        half = torch.full_like(duty[i], 0.5)
        one, two = stripes(u[i] + bend[i], half, blur[i]), stripes(v[i], half, blur[i])
        amount[i] = one + two - 2 * one * two
    if len(i := where(CELLS)):
        name, border = cells((scaled[0][i], scaled[1][i], scaled[2][i]), seed[i])
        wide = duty[i] > 0.5  # half of these materials show the cells, half the borders
        amount[i] = torch.where(wide, name, soft_step(0.5 * duty[i] - border, 2 * blur[i]))
    if len(i := where(MARKS)):
        amount[i] = marks(u[i], v[i], seed[i], blur[i])
    color = a + (b - a) * amount
    if photos is not None and len(i := where(PHOTO)):
        color[:, i] = photo(u[i] * 0.5, v[i] * 0.5, seed[i].to(torch.int64), photos)
    return color + (c - color) * (dirt * (2 * mixed - 0.6).clamp(0, 1))
