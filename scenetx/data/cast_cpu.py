"""The ray caster's two loops as machine code: `scenetx.data.cast` defines what they compute.

A tile's 256 rays are lanes of one flat scratch array, whose parts lie at constant distances, so that the compiler sees
that they do not overlap and makes vectors of every loop. Nothing may be fused or reordered (no fast-math): each lane
does the definition's operations in the definition's order, and differs by a root's last bit at most (torch may take
roots from a library that rounds a few of them the other way). Tiles are visited with their solids front to back, and a
solid behind all that a tile has hit is not looked at.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenetx.data.shapes import CONVEX, HEIGHT, LUMP, RING, WAVES
from scenetx.data.tables import Tables
from scenetx.splat.cpu_jit import kernel

f32 = np.float32
P = 256  # lanes: TILE * TILE of the caster
TINY, NEARLY = f32(1e-12), f32(1e-9)
ZERO, ONE, HALF, FOUR = f32(0), f32(1), f32(0.5), f32(4)
ONE_AND_HALF, SMALLEST = f32(1.5), f32(1e-20)
INF = f32(np.inf)
STEPS, BISECTIONS = 16, 5
# Parts of the scratch array: origin and direction (camera's frame), the interval, the hit, a cut's interval, waves.
ORIGIN, DIRECTION, ENTER, LEAVE, T, CUT = 0, 3 * P, 6 * P, 7 * P, 8 * P, 9 * P
UNIT_O, UNIT_D, PHASE, RATE = 11 * P, 14 * P, 17 * P, (17 + WAVES) * P
VALUE = (17 + 2 * WAVES) * P
LOW, LOW_VALUE, HIGH, HIGH_VALUE = VALUE + P, VALUE + 2 * P, VALUE + 3 * P, VALUE + 4 * P
PREVIOUS, PREVIOUS_VALUE, HERE, SPAN = VALUE + 5 * P, VALUE + 6 * P, VALUE + 7 * P, VALUE + 8 * P
SCRATCH = VALUE + 9 * P


@kernel()
def _interval(unit, half, quadric, row, w, at):
    """Where rays are inside a convex solid: ``w[at]`` enter, ``w[at + P]`` leave. See `cast._interval`."""
    m0, m1, m2, m3 = unit[row, 0], unit[row, 1], unit[row, 2], unit[row, 3]
    m4, m5, m6, m7 = unit[row, 4], unit[row, 5], unit[row, 6], unit[row, 7]
    m8, m9, m10, m11 = unit[row, 8], unit[row, 9], unit[row, 10], unit[row, 11]
    hx, hy, hz = half[row, 0], half[row, 1], half[row, 2]
    kx, ky, kz, lz, c0 = quadric[row, 0], quadric[row, 1], quadric[row, 2], quadric[row, 3], quadric[row, 4]
    curved = kx != ZERO or ky != ZERO or kz != ZERO or lz != ZERO
    for p in range(P):
        x, y, z = w[ORIGIN + p], w[ORIGIN + P + p], w[ORIGIN + 2 * P + p]
        ox, oy, oz = m0 * x + m1 * y + m2 * z + m3, m4 * x + m5 * y + m6 * z + m7, m8 * x + m9 * y + m10 * z + m11
        x, y, z = w[DIRECTION + p], w[DIRECTION + P + p], w[DIRECTION + 2 * P + p]
        dx, dy, dz = m0 * x + m1 * y + m2 * z, m4 * x + m5 * y + m6 * z, m8 * x + m9 * y + m10 * z
        ix = ONE / (dx if abs(dx) >= TINY else TINY)
        iy = ONE / (dy if abs(dy) >= TINY else TINY)
        iz = ONE / (dz if abs(dz) >= TINY else TINY)
        mx, my, mz = -ox * ix, -oy * iy, -oz * iz
        rx, ry, rz = hx * abs(ix), hy * abs(iy), hz * abs(iz)
        enter, leave = max(max(mx - rx, my - ry), mz - rz), min(min(mx + rx, my + ry), mz + rz)
        if curved:
            a = kx * dx * dx + ky * dy * dy + kz * dz * dz
            b = kx * ox * dx + ky * oy * dy + (kz * oz + HALF * lz) * dz
            c = kx * ox * ox + ky * oy * oy + (kz * oz + lz) * oz + c0
            a = a if abs(a) >= NEARLY else NEARLY
            square = b * b - a * c
            root = np.sqrt(max(square, ZERO))
            first, last = (-b - root) / a, (-b + root) / a
            missed, two = square <= ZERO, a < ZERO
            lower = min(leave, last)
            early = lower > enter
            outer = max(enter, first)
            one_leave = -INF if missed else lower
            two_enter = enter if early or missed else outer
            two_leave = lower if early and not missed else leave
            enter, leave = (two_enter if two else outer), (two_leave if two else one_leave)
        w[at + p], w[at + P + p] = enter, leave


@kernel()
def _convex(unit, half, quadric, first_cut, cuts, row, near, w, surface):
    """Hits of a convex solid less its cuts: ``w[T]`` (inf: a miss), and the row of the surface met."""
    _interval(unit, half, quadric, row, w, ENTER)
    for p in range(P):
        w[T + p] = max(w[ENTER + p], near)
        surface[p] = row
    count = cuts[row]
    for _ in range(count):
        for k in range(count):
            cut = first_cut[row] + k
            _interval(unit, half, quadric, cut, w, CUT)
            for p in range(P):
                t = w[T + p]
                inside = w[CUT + p] <= t and t < w[CUT + P + p]
                w[T + p] = w[CUT + P + p] if inside else t
                surface[p] = cut if inside else surface[p]
    for p in range(P):
        w[T + p] = w[T + p] if w[T + p] < w[LEAVE + p] else INF


@kernel()
def _function(kind, a, b, amplitudes, w, at, out):
    """A wavy solid's function at ``t = w[at]``, into ``w[out]``. See `cast._along`."""
    for p in range(P):
        w[out + p] = ZERO
    for j in range(WAVES):
        amplitude = amplitudes[j]
        for p in range(P):
            u = w[PHASE + j * P + p] + w[RATE + j * P + p] * w[at + p]
            g = abs(u - np.floor(u) - HALF) * FOUR - ONE
            w[out + p] = w[out + p] + amplitude * (g * (ONE_AND_HALF - HALF * g * g))
    for p in range(P):
        t, h = w[at + p], w[out + p]
        z = w[UNIT_O + 2 * P + p] + t * w[UNIT_D + 2 * P + p]
        x, y = w[UNIT_O + p] + t * w[UNIT_D + p], w[UNIT_O + P + p] + t * w[UNIT_D + P + p]
        flat = x * x + y * y
        if kind == HEIGHT:
            w[out + p] = z + h
        elif kind == LUMP:
            w[out + p] = flat + z * z - a + h
        elif kind == RING:
            rho = np.sqrt(flat) - a
            w[out + p] = rho * rho + z * z - b + h
        else:
            w[out + p] = abs(h) - b


@kernel()
def _into_unit(unit, waves, row, w):
    """Rays in the solid's unit space, and phases and rates of its waves along them."""
    for i in range(3):
        a, b, c, d = unit[row, 4 * i], unit[row, 4 * i + 1], unit[row, 4 * i + 2], unit[row, 4 * i + 3]
        for p in range(P):
            x, y, z = w[ORIGIN + p], w[ORIGIN + P + p], w[ORIGIN + 2 * P + p]
            w[UNIT_O + i * P + p] = a * x + b * y + c * z + d
            x, y, z = w[DIRECTION + p], w[DIRECTION + P + p], w[DIRECTION + 2 * P + p]
            w[UNIT_D + i * P + p] = a * x + b * y + c * z
    for j in range(WAVES):
        k0, k1, k2, phase = waves[row, 5 * j], waves[row, 5 * j + 1], waves[row, 5 * j + 2], waves[row, 5 * j + 3]
        for p in range(P):
            x, y, z = w[UNIT_O + p], w[UNIT_O + P + p], w[UNIT_O + 2 * P + p]
            w[PHASE + j * P + p] = k0 * x + k1 * y + k2 * z + phase
            x, y, z = w[UNIT_D + p], w[UNIT_D + P + p], w[UNIT_D + 2 * P + p]
            w[RATE + j * P + p] = k0 * x + k1 * y + k2 * z


@kernel()
def _box_span(half, row, near, w):
    """The rays' way through the solid's box: ``w[LOW]`` its start, ``w[SPAN]`` its length; whether any ray has one."""
    hx, hy, hz = half[row, 0], half[row, 1], half[row, 2]
    met = 0
    for p in range(P):
        dx, dy, dz = w[UNIT_D + p], w[UNIT_D + P + p], w[UNIT_D + 2 * P + p]
        ix = ONE / (dx if abs(dx) >= TINY else TINY)
        iy = ONE / (dy if abs(dy) >= TINY else TINY)
        iz = ONE / (dz if abs(dz) >= TINY else TINY)
        mx, my, mz = -w[UNIT_O + p] * ix, -w[UNIT_O + P + p] * iy, -w[UNIT_O + 2 * P + p] * iz
        rx, ry, rz = hx * abs(ix), hy * abs(iy), hz * abs(iz)
        enter = max(max(max(mx - rx, my - ry), mz - rz), near)
        leave = min(min(mx + rx, my + ry), mz + rz)
        missed = leave <= enter
        w[LOW + p] = near if missed else enter
        w[SPAN + p] = ZERO if missed else leave - enter
        w[LEAVE + p] = ZERO if missed else ONE
        met += 0 if missed else 1
    return met > 0


@kernel()
def _waves(unit, half, kind, shape, waves, row, near, w, surface):
    """Hits of a wavy solid: ``w[T]``. See `cast._hit_waves`. ``found`` is 1 or 0 in ``w[ENTER]``, ``solid`` in CUT."""
    _into_unit(unit, waves, row, w)
    for p in range(P):
        w[T + p] = INF
        surface[p] = row
    if not _box_span(half, row, near, w):
        return
    code, a, b = kind[row], shape[row, 0], shape[row, 1]
    amplitudes = waves[row, 4::5]
    _function(code, a, b, amplitudes, w, LOW, PREVIOUS_VALUE)
    for p in range(P):
        value = w[PREVIOUS_VALUE + p]
        inside = ONE if value < ZERO else ZERO
        w[ENTER + p] = w[CUT + p] = inside
        w[CUT + P + p] = w[PREVIOUS + p] = w[HIGH + p] = w[LOW + p]
        w[LOW_VALUE + p] = w[HIGH_VALUE + p] = value
    for k in range(1, STEPS + 1):
        share = f32(k / STEPS)
        for p in range(P):
            w[HERE + p] = w[CUT + P + p] + w[SPAN + p] * share
        _function(code, a, b, amplitudes, w, HERE, VALUE)
        for p in range(P):
            new = w[ENTER + p] == ZERO and w[VALUE + p] < ZERO
            w[LOW + p] = w[PREVIOUS + p] if new else w[LOW + p]
            w[HIGH + p] = w[HERE + p] if new else w[HIGH + p]
            w[LOW_VALUE + p] = w[PREVIOUS_VALUE + p] if new else w[LOW_VALUE + p]
            w[HIGH_VALUE + p] = w[VALUE + p] if new else w[HIGH_VALUE + p]
            w[ENTER + p] = ONE if new else w[ENTER + p]
            w[PREVIOUS + p], w[PREVIOUS_VALUE + p] = w[HERE + p], w[VALUE + p]
    for _ in range(BISECTIONS):
        for p in range(P):
            w[HERE + p] = HALF * (w[LOW + p] + w[HIGH + p])
        _function(code, a, b, amplitudes, w, HERE, VALUE)
        for p in range(P):
            inside = w[VALUE + p] < ZERO
            w[LOW + p] = w[LOW + p] if inside else w[HERE + p]
            w[HIGH + p] = w[HERE + p] if inside else w[HIGH + p]
            w[LOW_VALUE + p] = w[LOW_VALUE + p] if inside else w[VALUE + p]
            w[HIGH_VALUE + p] = w[VALUE + p] if inside else w[HIGH_VALUE + p]
    for p in range(P):
        fall = max(w[LOW_VALUE + p] - w[HIGH_VALUE + p], SMALLEST)
        share = min(max(w[LOW_VALUE + p] / fall, ZERO), ONE)
        t = w[LOW + p] + (w[HIGH + p] - w[LOW + p]) * share
        t = w[CUT + P + p] if w[CUT + p] > ZERO else t
        w[T + p] = t if w[ENTER + p] > ZERO and w[LEAVE + p] > ZERO else INF


@kernel()
def _hit(unit, half, quadric, shape, waves, kind, first_cut, cuts, row, near, w, surface):
    if kind[row] == CONVEX:
        _convex(unit, half, quadric, first_cut, cuts, row, near, w, surface)
    else:
        _waves(unit, half, kind, shape, waves, row, near, w, surface)


@kernel()
def nearest_lanes(
    unit, half, quadric, shape, waves, kind, first_cut, cuts, start, rows, keys, fronts, x, y, near, depth, row
):
    """The first surface on every ray into ``depth`` and ``row``; a tile's solids are ``rows[start[n]:start[n + 1]]``.

    ``fronts``: the least z of each; in their order, so that the first beyond all hits ends the tile. Of two equal hits
    the one with the smaller of ``keys`` counts.
    """
    w, surface = np.empty(SCRATCH, f32), np.empty(P, np.int64)
    best = np.empty(P, np.int64)
    for n in range(len(start) - 1):
        for p in range(P):
            w[ORIGIN + p] = w[ORIGIN + P + p] = w[ORIGIN + 2 * P + p] = ZERO
            w[DIRECTION + p], w[DIRECTION + P + p], w[DIRECTION + 2 * P + p] = x[n, p], y[n, p], ONE
            best[p] = 1 << 62
        for k in range(start[n], start[n + 1]):
            farthest = ZERO
            for p in range(P):
                farthest = max(farthest, depth[n, p])
            if fronts[k] > farthest:
                break
            _hit(unit, half, quadric, shape, waves, kind, first_cut, cuts, rows[k], near, w, surface)
            key = keys[k]
            for p in range(P):
                t = w[T + p]
                closer = t < depth[n, p] or (t == depth[n, p] and t < INF and key < best[p])
                if closer:
                    depth[n, p], row[n, p], best[p] = t, surface[p], key


@kernel()
def shadow_lanes(unit, half, quadric, shape, waves, kind, first_cut, cuts, start, rows, px, py, pz, light, dark):
    """Sets ``dark`` where something stands between a point and its tile's light; a tile that is dark is left."""
    w, surface = np.empty(SCRATCH, f32), np.empty(P, np.int64)
    for n in range(len(start) - 1):
        if start[n] == start[n + 1]:
            continue
        lx, ly, lz = light[n, 0], light[n, 1], light[n, 2]
        for p in range(P):
            w[ORIGIN + p], w[ORIGIN + P + p], w[ORIGIN + 2 * P + p] = px[n, p], py[n, p], pz[n, p]
            w[DIRECTION + p] = lx - px[n, p]
            w[DIRECTION + P + p] = ly - py[n, p]
            w[DIRECTION + 2 * P + p] = lz - pz[n, p]
        for k in range(start[n], start[n + 1]):
            lit = 0
            for p in range(P):
                lit += 0 if dark[n, p] else 1
            if lit == 0:
                break
            _hit(unit, half, quadric, shape, waves, kind, first_cut, cuts, rows[k], ZERO, w, surface)
            for p in range(P):
                dark[n, p] = dark[n, p] or w[T + p] < ONE


def cast_compiled(
    tables: Tables,
    directions: tuple[Tensor, Tensor],
    pairs: tuple[Tensor, Tensor, Tensor],
    near: float,
    depth: Float[Tensor, "n p"],
    row: Int[Tensor, "n p"],
) -> None:
    """`cast.nearest` into ``depth`` and ``row``. ``pairs``: rows, tiles, and what decides between equal hits."""
    rows, tile, keys = (part.numpy() for part in pairs)
    sphere = tables.sphere.numpy()[rows]
    # A little nearer than the solid can be, rounding and all.
    fronts = sphere[:, 2] - f32(1.001) * sphere[:, 3] - f32(1e-3)
    order, start = _in_tiles(tile, fronts, len(depth))
    x, y = (part.contiguous().numpy() for part in directions)
    nearest_lanes(
        *_arrays(tables), start, rows[order], keys[order], fronts[order], x, y, f32(near), depth.numpy(), row.numpy()
    )


def shadow_compiled(
    tables: Tables,
    point: tuple[Tensor, Tensor, Tensor],
    light: Float[Tensor, "n 3"],
    pairs: tuple[Tensor, Tensor],
    dark: Bool[Tensor, "n p"],
) -> None:
    """`cast.shadowed` into ``dark``. Large solids are asked first: they are likely to shade the whole tile."""
    rows, tile = (part.numpy() for part in pairs)
    order, start = _in_tiles(tile, -tables.sphere.numpy()[rows, 3], len(dark))
    places = [part.contiguous().numpy() for part in point]
    shadow_lanes(*_arrays(tables), start, rows[order], *places, light.contiguous().numpy(), dark.numpy())


def _in_tiles(tile: np.ndarray, first: np.ndarray, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """The order that sorts pairs by tile and then by ``first``, and where each tile's begin."""
    order = np.lexsort((first, tile))
    return order, np.concatenate([[0], np.cumsum(np.bincount(tile, minlength=tiles))]).astype(np.int64)


def _arrays(tables: Tables) -> tuple[np.ndarray, ...]:
    """The tables' columns that intersections read."""
    t = tables
    columns = (t.unit_from_cam, t.half, t.quadric, t.shape, t.waves, t.kind, t.first_cut, t.cuts)
    return tuple(column.contiguous().numpy() for column in columns)
