"""The ray caster: nearest hits and shadows of rays in tiles of 16 x 16, for many frames at once, on any device.

Solids are tested only against the tiles they can touch. All arithmetic on rays is elementwise and made of operations
that IEEE 754 rounds exactly (no sine, no power, no matrix product), so a picture's bits do not depend on its batch.
Slabs: Kay and Kajiya (1986). Boolean differences by intervals on the ray: Roth (1982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenetx.data.cast_cpu import cast_compiled, shadow_compiled
from scenetx.data.shapes import CONVEX, HEIGHT, LUMP, MAX_CUTS, RING, SHEET, WAVES
from scenetx.data.tables import Tables

TILE = 16
NEAR = 0.02
# Lights farther than this are suns.
FAR = 100.0
STEPS = 16
BISECTIONS = 5
# Tiles at a time: temporaries that stay in a core's cache, or that fill a GPU.
BLOCK_CPU, BLOCK_GPU = 128, 1 << 14
# Directions smaller than this are treated as this, so that no slab divides by zero.
TINY = 1e-12

Vector = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Rays:
    """Rays ``(x, y, 1)`` through pixel centres in the frames of ``f`` cameras; ``n = f * tiles`` tiles, 256 each."""

    x: Float[Tensor, "n p"]
    y: Float[Tensor, "n p"]
    frame: Int[Tensor, "n"]
    corners: Float[Tensor, "f tiles 4 2"]  # directions of a tile's corners, going round


@dataclass(frozen=True)
class Hits:
    """What each ray meets first: z-depth (inf: nothing) and the row of the surface it meets (-1: nothing)."""

    depth: Float[Tensor, "n p"]
    row: Int[Tensor, "n p"]


@dataclass(frozen=True)
class Beam:
    """Rays ``origin + t (x, y, z)`` in camera frames, one line a tile; without an origin they are ``t (x, y, 1)``."""

    x: Float[Tensor, "n p"]
    y: Float[Tensor, "n p"]
    z: Float[Tensor, "n p"] | None = None
    origin: Vector | None = None

    def __getitem__(self, index: Int[Tensor, "k"]) -> Beam:
        if self.z is None or self.origin is None:
            return Beam(self.x[index], self.y[index])
        a, b, c = self.origin
        return Beam(self.x[index], self.y[index], self.z[index], (a[index], b[index], c[index]))

    def into(self, tables: Tables, row: Int[Tensor, "n"]) -> tuple[Vector, Vector]:
        """Origins and directions in the unit spaces of ``row``; ``t`` is the same there."""
        m, x, y = columns(tables.unit_from_cam, row), self.x, self.y
        if self.z is None or self.origin is None:
            direction = (m[0] * x + m[1] * y + m[2], m[4] * x + m[5] * y + m[6], m[8] * x + m[9] * y + m[10])
            return (m[3], m[7], m[11]), direction
        return transformed(m, self.origin), turned(m, (x, y, self.z))


def tile_rays(lens: Float[Tensor, "f 4"], height: int, width: int) -> Rays:
    """Rays of every pixel; pictures are filled up to whole tiles."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    fx, fy, cx, cy = lens.unsqueeze(-1).unbind(1)
    tile = torch.arange(rows * columns, device=lens.device)
    left, top = (tile % columns) * TILE, (tile // columns) * TILE
    pixel = torch.arange(TILE * TILE, device=lens.device)
    px = (left[:, None] + pixel % TILE).to(lens.dtype) + 0.5
    py = (top[:, None] + pixel // TILE).to(lens.dtype) + 0.5
    x = (px - cx[..., None]) / fx[..., None]
    y = (py - cy[..., None]) / fy[..., None]
    step = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], device=lens.device, dtype=lens.dtype) * TILE
    corner_x = (left[:, None] + step[:, 0] - cx[..., None]) / fx[..., None]
    corner_y = (top[:, None] + step[:, 1] - cy[..., None]) / fy[..., None]
    frame = torch.arange(len(lens), device=lens.device).repeat_interleave(len(tile))
    return Rays(x.flatten(0, 1), y.flatten(0, 1), frame, torch.stack([corner_x, corner_y], -1))


def untile(values: Tensor, frames: int, height: int, width: int) -> Tensor:
    """``[n p ...]`` of tiles as pictures ``[f h w ...]``."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    grid = values.reshape(frames, rows, columns, TILE, TILE, *values.shape[2:]).transpose(2, 3)
    return grid.reshape(frames, rows * TILE, columns * TILE, *values.shape[2:])[:, :height, :width]


def dot(a: Vector, b: Vector) -> Tensor:
    """Sums in one fixed order: a reduction's order may depend on the tensor's shape."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def columns(table: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """Columns of the rows ``index`` of a table, each ``[n 1]``."""
    return table[index].unsqueeze(-1).unbind(1)


def turned(matrix: tuple[Tensor, ...], vector: Vector) -> Vector:
    """The linear part of a 3x4 matrix, given row by row, times a vector."""
    m = matrix
    return dot((m[0], m[1], m[2]), vector), dot((m[4], m[5], m[6]), vector), dot((m[8], m[9], m[10]), vector)


def transformed(matrix: tuple[Tensor, ...], point: Vector) -> Vector:
    x, y, z = turned(matrix, point)
    return x + matrix[3], y + matrix[7], z + matrix[11]


def wave(u: Tensor) -> Tensor:
    """A smooth wave of period 1 and range [-1, 1]: a triangle wave through ``1.5 g - 0.5 g^3``."""
    g = (u - u.floor() - 0.5).abs_().mul_(4).sub_(1)
    return g * (1.5 - 0.5 * g * g)


def wave_slope(u: Tensor) -> Tensor:
    """The derivative of `wave`."""
    side = u - u.floor() - 0.5
    g = 4 * side.abs() - 1
    return 6 * (1 - g * g) * side.sign()


def nearest(tables: Tables, rays: Rays, *, compiled: bool = True) -> Hits:
    """The first surface on every ray. ``compiled``: by machine code where the tables are on the CPU."""
    depth = torch.full_like(rays.x, torch.inf)
    row = torch.full(rays.x.shape, -1, dtype=torch.int64, device=rays.x.device)
    pair_row, pair_tile = _seen(tables, rays)
    if compiled and depth.device.type == "cpu":
        # Of surfaces that coincide the loop below keeps the one it meets first: by sort, then by row.
        keys = _sorts(tables, pair_row) * len(tables.kind) + pair_row
        cast_compiled(tables, (rays.x, rays.y), (pair_row, pair_tile, keys), NEAR, depth, row)
        return Hits(depth, row)
    for solid, tile, hit in _blocks(tables, pair_row, pair_tile):
        t, surface = hit(tables, solid, Beam(rays.x[tile], rays.y[tile]), NEAR)
        for chosen in _rounds(tile):
            where, new = tile[chosen], t[chosen]
            best = depth[where]
            closer = new < best
            depth[where] = torch.where(closer, new, best)
            row[where] = torch.where(closer, surface[chosen], row[where])
    return Hits(depth, row)


def shadowed(
    tables: Tables, point: Vector, light: Float[Tensor, "n 3"], asked: Bool[Tensor, "n p"], *, compiled: bool = True
) -> Bool[Tensor, "n p"]:
    """Whether something stands between points (camera frame, ``[n p]`` each) and their tile's light.

    Only where ``asked``; elsewhere the answer is True. ``compiled`` as in `nearest`.
    """
    dark = ~asked
    pair_row, pair_tile = _between(tables, point, light, asked)
    if compiled and dark.device.type == "cpu":
        shadow_compiled(tables, point, light, (pair_row, pair_tile), dark)
        return dark
    to_light = tuple(light[:, i, None] - point[i] for i in range(3))
    for solid, tile, hit in _blocks(tables, pair_row, pair_tile):
        origin = point[0][tile], point[1][tile], point[2][tile]
        beam = Beam(to_light[0][tile], to_light[1][tile], to_light[2][tile], origin)
        t, _ = hit(tables, solid, beam, 0.0)
        for chosen in _rounds(tile):
            dark[tile[chosen]] |= t[chosen] < 1
    return dark


_Hit = Callable[[Tables, Tensor, Beam, float], tuple[Tensor, Tensor]]


def _blocks(tables: Tables, row: Int[Tensor, "k"], tile: Int[Tensor, "k"]) -> Iterator[tuple[Tensor, Tensor, _Hit]]:
    """Pairs in blocks of one sort (boxes, other quadrics, cones, waves), each with what finds its hits."""
    sort = _sorts(tables, row)
    order = torch.sort(sort, stable=True).indices
    row, tile = row[order], tile[order]
    size = BLOCK_CPU if row.device.type == "cpu" else BLOCK_GPU
    start = 0
    for name, count in enumerate(torch.bincount(sort, minlength=4).tolist()):
        for first in range(start, start + count, size):
            last = min(first + size, start + count)
            yield row[first:last], tile[first:last], _hit_waves if name == 3 else _hit_convex
        start += count


def _sorts(tables: Tables, row: Int[Tensor, "k"]) -> Int[Tensor, "k"]:
    """0 boxes, 1 other quadrics, 2 cones, 3 waves."""
    quadric = tables.quadric[row]
    sort = (quadric[:, :4] != 0).any(-1).long() + (quadric[:, 2] < 0).long()
    return torch.where(tables.kind[row] != CONVEX, 3, sort)


def _rounds(tile: Int[Tensor, "k"]) -> Iterator[Int[Tensor, "j"]]:
    """The places of a list, in rounds that name no tile twice, so that a round may write to its tiles."""
    order = torch.sort(tile, stable=True).indices
    tile = tile[order]
    place = torch.arange(len(tile), device=tile.device)
    fresh = torch.ones_like(tile, dtype=torch.bool)
    fresh[1:] = tile[1:] != tile[:-1]
    rank = place - torch.where(fresh, place, 0).cummax(0).values
    for k in range(int(rank.max()) + 1):
        yield order[rank == k]


def _seen(tables: Tables, rays: Rays) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Pairs of a solid and a tile whose pyramid of rays may meet the solid's box: separating planes in unit space."""
    solid = (tables.role > 0).nonzero()[:, 0]
    m = tables.unit_from_cam[solid][:, None, None, :].unbind(-1)
    corner = rays.corners[tables.frame[solid]]
    x, y = corner.unbind(-1)
    d = (m[0] * x + m[1] * y + m[2], m[4] * x + m[5] * y + m[6], m[8] * x + m[9] * y + m[10])
    o, h = (m[3], m[7], m[11]), tables.half[solid][:, None, None, :].unbind(-1)
    apart = torch.zeros(corner.shape[:2], dtype=torch.bool, device=corner.device)
    for i in range(3):
        # The camera is beyond a face and every ray of the tile leads away from it.
        beyond = (o[i] > h[i]) & (d[i] >= 0) | (o[i] < -h[i]) & (d[i] <= 0)
        apart |= beyond.all(-1)
    normal = cross(d, (d[0].roll(-1, -1), d[1].roll(-1, -1), d[2].roll(-1, -1)))
    inward = dot(normal, (d[0].roll(-2, -1), d[1].roll(-2, -1), d[2].roll(-2, -1))).sign()
    reach = normal[0].abs() * h[0] + normal[1].abs() * h[1] + normal[2].abs() * h[2]
    slack = 1e-4 * (reach + (normal[0] * o[0]).abs() + (normal[1] * o[1]).abs() + (normal[2] * o[2]).abs())
    apart |= (reach + slack < inward * dot(normal, o)).any(-1)
    index, tile = (~apart).nonzero(as_tuple=True)
    return solid[index], tables.frame[solid[index]] * corner.shape[1] + tile


def _between(
    tables: Tables, point: Vector, light: Float[Tensor, "n 3"], asked: Bool[Tensor, "n p"]
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Pairs of a solid and a tile of points such that the solid's sphere meets the way from the points to the light."""
    solid = (tables.role >= 2).nonzero()[:, 0]
    frames = len(tables.lens)
    low = torch.stack([torch.where(asked, p, torch.inf).amin(-1) for p in point], -1)
    high = torch.stack([torch.where(asked, p, -torch.inf).amax(-1) for p in point], -1)
    start = ((low + high) / 2).unflatten(0, (frames, -1))[tables.frame[solid]]
    half = ((high - low) / 2).unflatten(0, (frames, -1))[tables.frame[solid]]
    any_asked = asked.any(-1).unflatten(0, (frames, -1))[tables.frame[solid]]
    way = light.unflatten(0, (frames, -1))[tables.frame[solid]] - start
    # The shell around a scene (role 2) is asked about only for a light outside of it.
    outside = ((way * way).sum(-1) > FAR * FAR) | (tables.role[solid] == 3)[:, None]
    center = tables.sphere[solid][:, None, :3]
    share = ((center - start) * way).sum(-1) / (way * way).sum(-1)
    gap = start + share.clamp(0, 1)[..., None] * way - center
    reach = half.norm(dim=-1) + tables.sphere[solid][:, None, 3]
    # Rounding on the way to a distant sun: a margin, since too many pairs only cost time.
    index, tile = (any_asked & outside & (gap.norm(dim=-1) < 1.01 * reach + 0.01)).nonzero(as_tuple=True)
    return solid[index], tables.frame[solid[index]] * start.shape[1] + tile


def _slabs(half: tuple[Tensor, ...], origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """Where a ray enters and leaves the box ``|x_i| <= half_i``; it misses where it leaves before it enters."""
    lows, highs = [], []
    for h, o, d in zip(half, origin, direction, strict=True):
        inverse = 1 / torch.where(d.abs() < TINY, TINY, d)
        middle, radius = -o * inverse, h * inverse.abs()
        lows.append(middle - radius)
        highs.append(middle + radius)
    enter = torch.maximum(torch.maximum(lows[0], lows[1]), lows[2])
    return enter, torch.minimum(torch.minimum(highs[0], highs[1]), highs[2])


def _interval(tables: Tables, row: Int[Tensor, "n"], beam: Beam) -> tuple[Tensor, Tensor]:
    """Where rays are inside a convex solid: its quadric within its slabs. Empty where the end is before the start."""
    origin, direction = beam.into(tables, row)
    enter, leave = _slabs(columns(tables.half, row), origin, direction)
    quadric = tables.quadric[row]
    if not bool((quadric[:, :4] != 0).any()):
        return enter, leave
    kx, ky, kz, lz, c0 = quadric.unsqueeze(-1).unbind(1)
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = kx * dx * dx + ky * dy * dy + kz * dz * dz
    b = kx * ox * dx + ky * oy * dy + (kz * oz + 0.5 * lz) * dz
    c = kx * ox * ox + ky * oy * oy + (kz * oz + lz) * oz + c0
    # In a block with others a box has its c far below zero, and the roots lie outside every slab.
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    square = b * b - a * c
    root = square.clamp_min(0).sqrt()
    first, last = (-b - root) / a, (-b + root) / a
    missed = square <= 0
    if not bool((kz < 0).any()):
        return torch.maximum(enter, first), torch.where(missed, -torch.inf, torch.minimum(leave, last))
    # a < 0: inside up to `last` and from `first` on (two sheets of a cone), of which the slabs leave one.
    two, lower = a < 0, torch.minimum(leave, last)
    early = lower > enter
    sheet_enter = torch.where(early | missed, enter, torch.maximum(enter, first))
    sheet_leave = torch.where(early & ~missed, lower, leave)
    whole_leave = torch.where(missed, -torch.inf, torch.minimum(leave, last))
    return torch.where(two, sheet_enter, torch.maximum(enter, first)), torch.where(two, sheet_leave, whole_leave)


def _hit_convex(
    tables: Tables, row: Int[Tensor, "n"], beam: Beam, near: float
) -> tuple[Float[Tensor, "n p"], Int[Tensor, "n p"]]:
    """Where rays first meet convex solids, less their cuts, beyond ``near``: ``(t, surface's row)``; inf for a miss."""
    enter, leave = _interval(tables, row, beam)
    t = enter.clamp_min(near)
    surface = row[:, None].expand(t.shape)
    cut = (tables.cuts[row] > 0).nonzero()[:, 0]
    if len(cut):
        surface = surface.clone()
        t[cut], surface[cut] = _past_cuts(tables, row[cut], beam[cut], t[cut])
    return torch.where(t < leave, t, torch.inf), surface


def _past_cuts(
    tables: Tables, row: Int[Tensor, "n"], beam: Beam, t: Float[Tensor, "n p"]
) -> tuple[Float[Tensor, "n p"], Int[Tensor, "n p"]]:
    """The first point from ``t`` on that no cut takes away, and the surface it lies on."""
    surface = row[:, None].expand(t.shape)
    spans = []
    for k in range(MAX_CUTS):
        has = tables.cuts[row] > k
        if not bool(has.any()):
            break
        # A row that has fewer cuts asks about its first again: that changes nothing.
        which = tables.first_cut[row] + torch.where(has, k, 0)
        spans.append((which, *_interval(tables, which, beam)))
    # The end of one cut may lie in another: as many rounds as cuts settle every order.
    for _ in spans:
        for which, start, end in spans:
            inside = (start <= t) & (t < end)
            t = torch.where(inside, end, t)
            surface = torch.where(inside, which[:, None], surface)
    return t, surface


def _hit_waves(
    tables: Tables, row: Int[Tensor, "n"], beam: Beam, near: float
) -> tuple[Float[Tensor, "n p"], Int[Tensor, "n p"]]:
    """Where rays first meet surfaces of waves: steps until the sign changes, bisections, one secant.

    What is thinner than a step may be missed at its rim. A ray that enters the box inside the solid meets the box.
    """
    origin, direction = beam.into(tables, row)
    enter, leave = _slabs(columns(tables.half, row), origin, direction)
    enter = enter.clamp_min(near)
    missed = leave <= enter
    span = torch.where(missed, 0.0, leave - enter)
    start = torch.where(missed, near, enter)
    function = _along(tables, row, origin, direction)
    value = function(start)
    low, low_value = start, value
    found = solid = value < 0
    previous, high, high_value = start, start, value
    for k in range(1, STEPS + 1):
        here = start + span * (k / STEPS)
        at = function(here)
        new = ~found & (at < 0)
        low, high = torch.where(new, previous, low), torch.where(new, here, high)
        low_value, high_value = torch.where(new, value, low_value), torch.where(new, at, high_value)
        found, previous, value = found | new, here, at
    for _ in range(BISECTIONS):
        here = 0.5 * (low + high)
        at = function(here)
        inside = at < 0
        low, high = torch.where(inside, low, here), torch.where(inside, here, high)
        low_value, high_value = torch.where(inside, low_value, at), torch.where(inside, at, high_value)
    fall = (low_value - high_value).clamp_min(1e-20)
    t = torch.where(solid, start, low + (high - low) * (low_value / fall).clamp(0, 1))
    return torch.where(found & ~missed, t, torch.inf), row[:, None].expand(t.shape)


def _along(
    tables: Tables, row: Int[Tensor, "n"], origin: Vector, direction: Vector
) -> Callable[[Float[Tensor, "n p"]], Float[Tensor, "n p"]]:
    """The solids' functions on their rays, as functions of ``t``: waves' phases and squares are linear in it."""
    waves = columns(tables.waves, row)
    a, b = columns(tables.shape, row)
    kind = tables.kind[row][:, None]
    phases = []
    for j in range(WAVES):
        k, phase, amplitude = waves[5 * j : 5 * j + 3], waves[5 * j + 3], waves[5 * j + 4]
        phases.append((dot((k[0], k[1], k[2]), origin) + phase, dot((k[0], k[1], k[2]), direction), amplitude))
    present = set(kind.flatten().tolist())

    def function(t: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
        h = torch.zeros_like(t)
        for phase, rate, amplitude in phases:
            h = h + amplitude * wave(phase + rate * t)
        z = origin[2] + t * direction[2]
        out = z + h
        if present == {HEIGHT}:
            return out
        x, y = origin[0] + t * direction[0], origin[1] + t * direction[1]
        flat = x * x + y * y
        if LUMP in present:
            out = torch.where(kind == LUMP, flat + z * z - a + h, out)
        if RING in present:
            rho = flat.sqrt() - a
            out = torch.where(kind == RING, rho * rho + z * z - b + h, out)
        if SHEET in present:
            out = torch.where(kind == SHEET, h.abs() - b, out)
        return out

    return function


def normals(
    tables: Tables, row: Int[Tensor, "k"], depth: Float[Tensor, "k"], x: Float[Tensor, "k"], y: Float[Tensor, "k"]
) -> Vector:
    """Unit normals in the camera's frame, towards the camera, at hits of the rays ``(x, y, 1)`` on surfaces ``row``."""
    m = tables.unit_from_cam[row].unbind(-1)
    p = transformed(m, (x * depth, y * depth, depth))
    half = tables.half[row].unbind(-1)
    kx, ky, kz, lz, c = tables.quadric[row].unbind(-1)
    value = kx * p[0] * p[0] + ky * p[1] * p[1] + (kz * p[2] + lz) * p[2] + c
    gradient: Vector = (2 * kx * p[0], 2 * ky * p[1], 2 * kz * p[2] + lz)
    size = dot(gradient, gradient).clamp_min(1e-20).sqrt()
    near = torch.where(c < -1e5, -torch.inf, value / size)
    waved = (tables.kind[row] != CONVEX).nonzero()[:, 0]
    if len(waved):
        near = near.clone()
        g = tuple(part.clone() for part in gradient)
        near[waved], (g[0][waved], g[1][waved], g[2][waved]) = _wave_surface(
            tables, row[waved], (p[0][waved], p[1][waved], p[2][waved])
        )
        gradient = (g[0], g[1], g[2])
    # The surface a point is on is the one it is least inside of.
    face = [p[i].abs() - half[i] for i in range(3)]
    best = torch.maximum(torch.maximum(face[0], face[1]), face[2])
    on_face = best > near
    first, second = face[0] == best, face[1] == best
    axis = (first, ~first & second, ~first & ~second)
    g0, g1, g2 = (torch.where(on_face, torch.where(axis[i], p[i].sign(), 0.0), gradient[i]) for i in range(3))
    n = (
        m[0] * g0 + m[4] * g1 + m[8] * g2,
        m[1] * g0 + m[5] * g1 + m[9] * g2,
        m[2] * g0 + m[6] * g1 + m[10] * g2,
    )
    away = (n[0] * x + n[1] * y + n[2]) > 0
    scale = torch.where(away, -1.0, 1.0) / dot(n, n).clamp_min(1e-30).sqrt()
    return n[0] * scale, n[1] * scale, n[2] * scale


def _wave_surface(tables: Tables, row: Int[Tensor, "k"], p: Vector) -> tuple[Float[Tensor, "k"], Vector]:
    """Signed distance, to first order, to a surface of waves at points of unit spaces, and the function's gradient."""
    waves = tables.waves[row].unbind(-1)
    a, b = tables.shape[row].unbind(-1)
    kind = tables.kind[row]
    h, g = torch.zeros_like(p[0]), [torch.zeros_like(p[0]) for _ in range(3)]
    for j in range(WAVES):
        k, phase, amplitude = waves[5 * j : 5 * j + 3], waves[5 * j + 3], waves[5 * j + 4]
        u = dot((k[0], k[1], k[2]), p) + phase
        h, slope = h + amplitude * wave(u), amplitude * wave_slope(u)
        g = [g[i] + k[i] * slope for i in range(3)]
    x, y, z = p
    flat = x * x + y * y
    rho = flat.clamp_min(1e-20).sqrt()
    pull = 2 * (rho - a) / rho
    value, out = z + h, [g[0], g[1], g[2] + 1]
    for code, other, lift in (
        (LUMP, flat + z * z - a + h, (2 * x, 2 * y, 2 * z)),
        (RING, (rho - a) * (rho - a) + z * z - b + h, (pull * x, pull * y, 2 * z)),
    ):
        value = torch.where(kind == code, other, value)
        out = [torch.where(kind == code, g[i] + lift[i], out[i]) for i in range(3)]
    value = torch.where(kind == SHEET, h.abs() - b, value)
    out = [torch.where(kind == SHEET, g[i] * h.sign(), out[i]) for i in range(3)]
    size = dot((out[0], out[1], out[2]), (out[0], out[1], out[2])).clamp_min(1e-20).sqrt()
    return value / size, (out[0], out[1], out[2])
