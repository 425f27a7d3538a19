"""The shading of pictures as machine code, a pixel at a time: `scenetx.data.shade` defines what it computes.

Two kernels with the shadows between them: what a pixel's surface is (normal, colour, which lamps to ask about), then
its light. As in `cast_cpu` every operation is the definition's, in its order and in single precision; a root's last bit
may differ, and with it, on the edge of a texture's cell, a pixel.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN202
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from scenetx.data.cast import Hits, Rays, Vector
from scenetx.data.shapes import CONVEX, LUMP, RING, SHEET, WAVES
from scenetx.data.tables import LIGHTS, Tables
from scenetx.data.world import CELLS, CHECKER, GRATING, MARKS, PHOTO
from scenetx.splat.cpu_jit import kernel

f32, i32 = np.float32, np.int32
ZERO, ONE, TWO, FOUR, HALF = f32(0), f32(1), f32(2), f32(4), f32(0.5)
STEP24 = f32(2.0**-24)
GRAIN = f32(6**0.5)


@kernel()
def _hashed(x, y, z, seed):
    """`textures.hashed`: arithmetic of 32 bits that wraps around."""
    h = i32(i32(x * 374761393) ^ i32(y * 668265263) ^ i32(z * 1274126177) ^ i32(seed * 974634777))
    h = i32((h ^ (h >> 15)) * 739982445)
    h = i32((h ^ (h >> 12)) * 695872825)
    return i32((h ^ (h >> 15)) & 0xFFFFFF)


@kernel()
def _clamp(value, low, high):
    return min(max(value, low), high)


@kernel()
def _noise(px, py, pz, seed):
    """`textures.value_noise`."""
    fx, fy, fz = np.floor(px), np.floor(py), np.floor(pz)
    x, y, z = i32(fx), i32(fy), i32(fz)
    u, v, w = px - fx, py - fy, pz - fz
    u, v, w = u * u * (f32(3) - TWO * u), v * v * (f32(3) - TWO * v), w * w * (f32(3) - TWO * w)
    first = last = ZERO
    for dz in range(2):
        below = above = ZERO
        for dy in range(2):
            a = f32(_hashed(x, i32(y + dy), i32(z + dz), seed)) * STEP24
            b = f32(_hashed(i32(x + 1), i32(y + dy), i32(z + dz), seed)) * STEP24
            line = a + (b - a) * u
            if dy == 0:
                below = line
            else:
                above = line
        plane = below + (above - below) * v
        if dz == 0:
            first = plane
        else:
            last = plane
    return first + (last - first) * w


@kernel()
def _cells(px, py, pz, seed):
    """`textures.cells`."""
    x0, y0, z0 = i32(np.floor(px - HALF)), i32(np.floor(py - HALF)), i32(np.floor(pz - HALF))
    nearest = second = f32(1e9)
    name = ZERO
    for corner in range(8):
        x, y, z = i32(x0 + (corner & 1)), i32(y0 + ((corner >> 1) & 1)), i32(z0 + ((corner >> 2) & 1))
        bits = _hashed(x, y, z, seed)
        dx = px - (f32(x) + (f32(bits & 255) * f32(0.6 / 256) + f32(0.2)))
        dy = py - (f32(y) + (f32((bits >> 8) & 255) * f32(0.6 / 256) + f32(0.2)))
        dz = pz - (f32(z) + (f32((bits >> 16) & 255) * f32(0.6 / 256) + f32(0.2)))
        square = dx * dx + dy * dy + dz * dz
        if square < nearest:
            second, nearest = nearest, square
            name = f32(i32(bits * 48271) & 0xFFFFFF) * STEP24
        else:
            second = min(second, square)
    return name, np.sqrt(second) - np.sqrt(nearest)


@kernel()
def _soft(value, width):
    """`textures.soft_step`."""
    return _clamp(value / max(width, f32(1e-4)) + HALF, ZERO, ONE)


@kernel()
def _stripes(u, duty, blur):
    triangle = abs((u - np.floor(u)) * TWO - ONE)
    sharp = _soft(duty - triangle, TWO * blur)
    return duty + (sharp - duty) * _clamp(TWO - f32(3) * blur, ZERO, ONE)


@kernel()
def _marks(u, v, seed, blur):
    """`textures.marks`."""
    column, line = np.floor(u), np.floor(v)
    x, y = (u - column) * f32(1.25), (v - line) * f32(1.6)
    bits = _hashed(i32(column), i32(line), i32(0), seed)
    ink = ZERO
    inside_x, inside_y = x > f32(0.08) and x < f32(0.92), y > f32(0.06) and y < f32(0.94)
    if ((bits >> 12) & 7) != 0 and inside_x and inside_y:
        for k in range(9):
            if ((bits >> k) & 1) == 0:
                continue
            if k < 6:
                third = k % 3
                center = f32(0.16) if third == 0 else (f32(0.5) if third == 1 else f32(0.84))
                across, along = abs(x - center), (y < f32(0.54) if k < 3 else y > f32(0.46))
            else:
                center = f32(0.14) if k == 6 else (f32(0.5) if k == 7 else f32(0.86))
                across, along = abs(y - center), True
            if along:
                ink = max(ink, _soft(f32(0.08) - across, TWO * blur))
    return f32(0.2) + (ink - f32(0.2)) * _clamp(TWO - f32(8) * blur, ZERO, ONE)


@kernel()
def _mirrored(a):
    half = a * HALF
    return ONE - abs((half - np.floor(half)) * TWO - ONE)


@kernel()
def _photo(u, v, which, photos, out):
    """`textures.photo` into ``out``."""
    size = photos.shape[1]
    x, y = _mirrored(u) * f32(size - 1), _mirrored(v) * f32(size - 1)
    x0, y0 = _clamp(np.floor(x), ZERO, f32(size - 2)), _clamp(np.floor(y), ZERO, f32(size - 2))
    fx, fy = x - x0, y - y0
    picture, i, j = photos[which % len(photos)], int(y0), int(x0)
    for k in range(3):
        a, b = f32(picture[i, j, k]), f32(picture[i, j + 1, k])
        c, d = f32(picture[i + 1, j, k]), f32(picture[i + 1, j + 1, k])
        top, bottom = a + (b - a) * fx, c + (d - c) * fx
        out[k] = (top + (bottom - top) * fy) * f32(1 / 255)


@kernel()
def _color(m, point, normal, footprint, photos, out):
    """`textures.surface_colors` of one point (object's frame), ``m`` its material, into ``out``."""
    kind, frequency, duty = int(m[0]), m[1], m[2]
    seed = i32(m[8])
    qx = m[19] * point[0] + m[20] * point[1] + m[21] * point[2]
    qy = m[22] * point[0] + m[23] * point[1] + m[24] * point[2]
    qz = m[25] * point[0] + m[26] * point[1] + m[27] * point[2]
    rough, fine = m[5], f32(2.7) * m[5]
    mixed = _noise(qx * rough, qy * rough, qz * rough, seed)
    keep = _clamp(f32(1.5) - fine * footprint, ZERO, ONE)
    if keep > ZERO:
        mixed = mixed + HALF * (_noise(qx * fine, qy * fine, qz * fine, i32(seed + 7)) - HALF) * keep
    blur = _clamp(footprint * frequency, f32(1e-3), FOUR)
    bend = m[3] * (mixed - HALF)
    nx = abs(m[19] * normal[0] + m[20] * normal[1] + m[21] * normal[2])
    ny = abs(m[22] * normal[0] + m[23] * normal[1] + m[24] * normal[2])
    nz = abs(m[25] * normal[0] + m[26] * normal[1] + m[27] * normal[2])
    along_x, along_y = nx >= ny and nx >= nz, ny > nx and ny >= nz
    u, v = (qy if along_x else qx) * frequency, (qz if along_x or along_y else qy) * frequency
    if kind == GRATING:
        amount = _stripes(qx * frequency + bend, duty, blur)
    elif kind == CHECKER:
        one, two = _stripes(u + bend, HALF, blur), _stripes(v, HALF, blur)
        amount = one + two - TWO * one * two
    elif kind == CELLS:
        name, border = _cells(qx * frequency, qy * frequency, qz * frequency, seed)
        amount = name if duty > HALF else _soft(HALF * duty - border, TWO * blur)
    elif kind == MARKS:
        amount = _marks(u, v, seed, blur)
    else:
        amount = _soft(mixed - HALF, f32(0.6) - HALF * duty)
    for k in range(3):
        out[k] = m[10 + k] + (m[13 + k] - m[10 + k]) * amount
    if kind == PHOTO and len(photos) > 0:
        _photo(u * HALF, v * HALF, int(seed), photos, out)
    dirt = m[4] * _clamp(TWO * mixed - f32(0.6), ZERO, ONE)
    for k in range(3):
        out[k] = out[k] + (m[16 + k] - out[k]) * dirt


@kernel()
def _wave_surface(kind, shape, waves, p, g):
    """`cast._wave_surface` of one point: its distance; the function's gradient into ``g``."""
    h = ZERO
    g[0] = g[1] = g[2] = ZERO
    for j in range(WAVES):
        k0, k1, k2 = waves[5 * j], waves[5 * j + 1], waves[5 * j + 2]
        u = k0 * p[0] + k1 * p[1] + k2 * p[2] + waves[5 * j + 3]
        side = u - np.floor(u) - HALF
        line = abs(side) * FOUR - ONE
        h = h + waves[5 * j + 4] * (line * (f32(1.5) - HALF * line * line))
        slope = waves[5 * j + 4] * (f32(6) * (ONE - line * line) * f32(np.sign(side)))
        g[0], g[1], g[2] = g[0] + k0 * slope, g[1] + k1 * slope, g[2] + k2 * slope
    flat = p[0] * p[0] + p[1] * p[1]
    if kind == LUMP:
        value = flat + p[2] * p[2] - shape[0] + h
        g[0], g[1], g[2] = g[0] + TWO * p[0], g[1] + TWO * p[1], g[2] + TWO * p[2]
    elif kind == RING:
        rho = np.sqrt(max(flat, f32(1e-20)))
        value = (rho - shape[0]) * (rho - shape[0]) + p[2] * p[2] - shape[1] + h
        pull = TWO * (rho - shape[0]) / rho
        g[0], g[1], g[2] = g[0] + pull * p[0], g[1] + pull * p[1], g[2] + TWO * p[2]
    elif kind == SHEET:
        value = abs(h) - shape[1]
        side = f32(np.sign(h))
        g[0], g[1], g[2] = g[0] * side, g[1] * side, g[2] * side
    else:
        value = p[2] + h
        g[2] = g[2] + ONE
    size = np.sqrt(max(g[0] * g[0] + g[1] * g[1] + g[2] * g[2], f32(1e-20)))
    return value / size


@kernel()
def _normal(m, half, quadric, kind, shape, waves, x, y, depth, p, g, out):
    """`cast.normals` of one hit into ``out``; ``p`` and ``g`` are scratch."""
    px, py = x * depth, y * depth
    for i in range(3):
        p[i] = m[4 * i] * px + m[4 * i + 1] * py + m[4 * i + 2] * depth + m[4 * i + 3]
    if kind == CONVEX:
        kx, ky, kz, lz, c = quadric[0], quadric[1], quadric[2], quadric[3], quadric[4]
        g[0], g[1], g[2] = TWO * kx * p[0], TWO * ky * p[1], TWO * kz * p[2] + lz
        value = kx * p[0] * p[0] + ky * p[1] * p[1] + (kz * p[2] + lz) * p[2] + c
        size = np.sqrt(max(g[0] * g[0] + g[1] * g[1] + g[2] * g[2], f32(1e-20)))
        near = f32(-np.inf) if c < f32(-1e5) else value / size
    else:
        near = _wave_surface(kind, shape, waves, p, g)
    a, b, c = abs(p[0]) - half[0], abs(p[1]) - half[1], abs(p[2]) - half[2]
    best = max(max(a, b), c)
    if best > near:
        first, second = a == best, b == best
        g[0] = f32(np.sign(p[0])) if first else ZERO
        g[1] = f32(np.sign(p[1])) if second and not first else ZERO
        g[2] = f32(np.sign(p[2])) if not first and not second else ZERO
    nx = m[0] * g[0] + m[4] * g[1] + m[8] * g[2]
    ny = m[1] * g[0] + m[5] * g[1] + m[9] * g[2]
    nz = m[2] * g[0] + m[6] * g[1] + m[10] * g[2]
    toward = -ONE if nx * x + ny * y + nz > ZERO else ONE
    scale = toward / np.sqrt(max(nx * nx + ny * ny + nz * nz, f32(1e-30)))
    out[0], out[1], out[2] = nx * scale, ny * scale, nz * scale


@kernel()
def _surfaces(
    unit, half, quadric, kind, shape, waves, place, material, materials, lens, lamps, frame, x, y, depth, row, photos,
    normal, albedo, lifted, asked,
):  # fmt: skip
    """Normals, reflected light's share, points a little off their surfaces, and which lamps face them: per hit."""
    p, g, n = np.empty(3, f32), np.empty(3, f32), np.empty(3, f32)
    at, facing, color = np.empty(3, f32), np.empty(3, f32), np.empty(3, f32)
    for tile in range(row.shape[0]):
        f = frame[tile]
        for lane in range(row.shape[1]):
            r = row[tile, lane]
            if r < 0:
                continue
            vx, vy, z = x[tile, lane], y[tile, lane], depth[tile, lane]
            _normal(unit[r], half[r], quadric[r], kind[r], shape[r], waves[r], vx, vy, z, p, g, n)
            px, py = vx * z, vy * z
            length = np.sqrt(vx * vx + vy * vy + ONE)
            cosine = n[0] * (-vx / length) + n[1] * (-vy / length) + n[2] * (-ONE / length)
            footprint = z / lens[f, 0] / max(cosine, f32(0.2))
            m = place[r]
            for i in range(3):
                facing[i] = m[4 * i] * n[0] + m[4 * i + 1] * n[1] + m[4 * i + 2] * n[2]
                at[i] = m[4 * i] * px + m[4 * i + 1] * py + m[4 * i + 2] * z + m[4 * i + 3]
            _color(materials[material[r]], at, facing, footprint, photos, color)
            off = f32(2e-3) + f32(1e-3) * z
            for i in range(3):
                normal[tile, lane, i], albedo[tile, lane, i] = n[i], color[i] * color[i]
            lifted[0, tile, lane], lifted[1, tile, lane] = px + n[0] * off, py + n[1] * off
            lifted[2, tile, lane] = z + n[2] * off
            for k in range(lamps.shape[1]):
                lamp = lamps[f, k]
                wx, wy, wz = lamp[0] - px, lamp[1] - py, lamp[2] - z
                distance = np.sqrt(wx * wx + wy * wy + wz * wz)
                cosine = n[0] * (wx / distance) + n[1] * (wy / distance) + n[2] * (wz / distance)
                asked[k, tile, lane] = cosine > ZERO and max(max(lamp[3], lamp[4]), lamp[5]) > ZERO


@kernel()
def _sky(around, dx, dy, dz, k):
    height = around[0] * dx + around[1] * dy + around[2] * dz
    share = (np.sqrt(abs(height)) if height > ZERO else ZERO) * f32(0.9) + f32(0.1)
    return around[12 + k] + (around[9 + k] - around[12 + k]) * share


@kernel()
def _light(around, lamps, specular, shininess, point, normal, view, albedo, lit, out):
    """`shade._lit` of one point into ``out``; ``lit`` tells which lamps it sees."""
    up = HALF + HALF * (normal[0] * around[0] + normal[1] * around[1] + normal[2] * around[2])
    facing = TWO * (normal[0] * view[0] + normal[1] * view[1] + normal[2] * view[2])
    mx, my, mz = facing * normal[0] - view[0], facing * normal[1] - view[1], facing * normal[2] - view[2]
    rim = ONE - HALF * _clamp(facing, ZERO, TWO)
    gloss = specular * (f32(0.08) + HALF * rim * rim * rim)
    for i in range(3):
        ambient = around[6 + i] + (around[3 + i] - around[6 + i]) * up
        out[i] = albedo[i] * ambient + _sky(around, mx, my, mz, i) * gloss
    for k in range(lamps.shape[0]):
        if not lit[k]:
            continue
        lamp = lamps[k]
        wx, wy, wz = lamp[0] - point[0], lamp[1] - point[1], lamp[2] - point[2]
        square = wx * wx + wy * wy + wz * wz
        distance = np.sqrt(square)
        wx, wy, wz = wx / distance, wy / distance, wz / distance
        cosine = max(normal[0] * wx + normal[1] * wy + normal[2] * wz, ZERO)
        bright = ONE / (ONE + square / (lamp[6] * lamp[6]))
        hx, hy, hz = wx + view[0], wy + view[1], wz + view[2]
        size = np.sqrt(max(hx * hx + hy * hy + hz * hz, f32(1e-12)))
        shine = _clamp((normal[0] * hx + normal[1] * hy + normal[2] * hz) / size, ZERO, ONE)
        for doubling in range(8):
            if shininess > doubling:
                shine = shine * shine
        diffuse, glint = cosine * bright, specular * shine * bright if cosine > ZERO else ZERO
        for i in range(3):
            out[i] = out[i] + lamp[3 + i] * (albedo[i] * diffuse + glint)


@kernel()
def _expose(around, place, out):
    """`shade._film` of one pixel."""
    grain, seed = around[16], i32(around[17])
    for c in range(3):
        value = np.sqrt(_clamp(out[c] * around[15], ZERO, ONE))
        if grain > ZERO:
            one = f32(_hashed(place, i32(c), i32(0), seed)) * STEP24
            two = f32(_hashed(place, i32(c), i32(1), seed)) * STEP24
            value = _clamp(value + (one + two - ONE) * GRAIN * grain, ZERO, ONE)
        out[c] = value


@kernel()
def _pictures(
    material, owners, materials, lamps, surround, frame, x, y, depth, row, normal, albedo, lit, rgb, owner
):  # fmt: skip
    """Colours of all pixels into ``rgb``, objects into ``owner``."""
    tiles = row.shape[0] // surround.shape[0]
    point, view, seen = np.empty(3, f32), np.empty(3, f32), np.empty(lamps.shape[1], np.bool_)
    for tile in range(row.shape[0]):
        f = frame[tile]
        for lane in range(row.shape[1]):
            r, vx, vy, z = row[tile, lane], x[tile, lane], y[tile, lane], depth[tile, lane]
            length = np.sqrt(vx * vx + vy * vy + ONE)
            out = rgb[tile, lane]
            if r < 0:
                for c in range(3):
                    out[c] = _sky(surround[f], vx / length, vy / length, ONE / length, c)
            else:
                owner[tile, lane] = owners[r]
                point[0], point[1], point[2] = vx * z, vy * z, z
                view[0], view[1], view[2] = -vx / length, -vy / length, -ONE / length
                for k in range(lamps.shape[1]):
                    seen[k] = lit[k, tile, lane]
                m = materials[material[r]]
                _light(
                    surround[f], lamps[f], m[6], m[7], point, normal[tile, lane], view, albedo[tile, lane], seen, out
                )
            _expose(surround[f], i32((tile % tiles) * row.shape[1] + lane), out)


def surfaces_compiled(
    tables: Tables, rays: Rays, hits: Hits, photos: UInt8[Tensor, "q s s 3"] | None
) -> tuple[Float[Tensor, "n p 3"], Float[Tensor, "n p 3"], Vector, Bool[Tensor, "l n p"]]:
    """Normals, albedos, points lifted off their surfaces, and which of the lamps in use face them; 0 for misses."""
    t, shape = tables, tuple(hits.depth.shape)
    lamps = _lamps(tables)
    normal, albedo = torch.zeros(*shape, 3), torch.zeros(*shape, 3)
    lifted, asked = torch.zeros(3, *shape), torch.zeros(lamps.shape[1], *shape, dtype=torch.bool)
    pictures = torch.zeros(0, 2, 2, 3, dtype=torch.uint8) if photos is None else photos
    _surfaces(
        *_arrays(t.unit_from_cam, t.half, t.quadric, t.kind, t.shape, t.waves, t.object_from_cam, t.material),
        *_arrays(t.materials, t.lens, lamps, rays.frame, rays.x, rays.y, hits.depth, hits.row, pictures),
        *_arrays(normal, albedo, lifted, asked),
    )
    return normal, albedo, (lifted[0], lifted[1], lifted[2]), asked


def pictures_compiled(
    tables: Tables,
    rays: Rays,
    hits: Hits,
    normal: Float[Tensor, "n p 3"],
    albedo: Float[Tensor, "n p 3"],
    lit: Bool[Tensor, "l n p"],
) -> tuple[Float[Tensor, "n p 3"], Int[Tensor, "n p"]]:
    """Colours as the film shows them and the objects hit; ``lit``: which lamps each point sees."""
    rgb, owner = torch.empty_like(normal), torch.full_like(hits.row, -1)
    t = tables
    _pictures(
        *_arrays(t.material, t.owner, t.materials, _lamps(t), t.surround, rays.frame, rays.x, rays.y),
        *_arrays(hits.depth, hits.row, normal, albedo, lit, rgb, owner),
    )
    return rgb, owner


def _lamps(tables: Tables) -> Float[Tensor, "f l 7"]:
    """The lamps up to the first that no frame uses."""
    used = (tables.lights[:, :, 3:6] > 0).flatten(2).any(-1).any(0).tolist()
    return tables.lights[:, : next((k for k in range(LIGHTS) if not used[k]), LIGHTS)]


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.contiguous().numpy() for tensor in tensors)
