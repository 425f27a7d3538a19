"""Objects by composition: clusters of random solids (after Zeroverse, Xie et al. 2024) and simple furniture.

Everything is in the object's own frame, z up, about the origin; furniture stands on z = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from scenetx.data.shapes import (
    Solid,
    bowl,
    box,
    cone,
    cut,
    cylinder,
    dome,
    edges,
    ellipsoid,
    height_field,
    lump,
    placed,
    ring,
    sheet,
    tube,
)
from scenetx.data.world import random_turn, turn_about

Z = np.array([0.0, 0.0, 1.0])


def random_solid(rng: np.random.Generator, difficulty: float, size: float) -> Solid:
    """One solid of about ``size`` (half its longest side) in any attitude: plain, cut, thin or wavy."""
    axes = size * rng.uniform(0.3, 1.0, 3)
    turn = random_turn(rng) if rng.uniform() < 0.6 else turn_about(Z, rng.uniform(0, 2 * np.pi))
    frame = placed(axes, np.zeros(3), turn)
    luck = rng.uniform()
    if luck < 0.08 + 0.22 * difficulty:
        return _wavy(rng, difficulty, frame)
    plain: list[Callable[[np.ndarray], Solid]] = [box, ellipsoid, cylinder, dome, cone]
    solid = plain[rng.integers(5)](frame)
    if solid.quadric[2] < 0 and rng.uniform() < 0.6:
        solid = cone(frame, rng.uniform(0.2, 0.8))
    if luck > 1 - 0.45 * difficulty:
        return _cut(rng, solid, frame)
    if luck > 1 - 0.45 * difficulty - 0.1 - 0.1 * difficulty:
        return _open(rng, frame)
    return solid


def _wavy(rng: np.random.Generator, difficulty: float, frame: np.ndarray) -> Solid:
    frequency = rng.uniform(0.4, 0.6 + 0.8 * difficulty)
    choice = rng.uniform()
    if choice < 0.3:
        return height_field(frame, rng, frequency, rng.uniform(0.3, 0.9))
    if choice < 0.65:
        return lump(frame, rng, frequency, rng.uniform(0.1, 0.4))
    if choice < 0.85:
        return ring(frame, rng, rng.uniform(0.15, 0.4), rng.uniform(0, 0.5))
    return sheet(frame, rng, rng.uniform(0.5, 0.8), rng.uniform(0.08, 0.2))


def _cut(rng: np.random.Generator, solid: Solid, frame: np.ndarray) -> Solid:
    """Bites out of a solid near its surface, or a tunnel through it."""
    others = []
    for _ in range(rng.integers(1, 3)):
        if rng.uniform() < 0.4:
            size = np.array([0.3, 0.3, 2.5]) * rng.uniform(0.8, 1.8)
            others.append(cylinder(frame @ placed(size, rng.uniform(-0.3, 0.3, 3), random_turn(rng))))
        else:
            center = rng.normal(size=3)
            center *= rng.uniform(0.7, 1.1) / np.abs(center).max()
            make = (box, ellipsoid)[rng.integers(2)]
            others.append(make(frame @ placed(rng.uniform(0.4, 0.9, 3), center, random_turn(rng))))
    return cut(solid, *others)


def _open(rng: np.random.Generator, frame: np.ndarray) -> Solid:
    choice = rng.integers(3)
    if choice == 0:
        return edges(frame, rng.uniform(0.06, 0.25))
    if choice == 1:
        return tube(frame, rng.uniform(0.08, 0.4))
    return bowl(frame, rng.uniform(0.06, 0.3))


def cluster(rng: np.random.Generator, difficulty: float, size: float) -> list[Solid]:
    """A thing of 1 to 9 solids about the origin, most of them touching the first."""
    count = 1 + int(rng.integers(0, 2 + round(7 * difficulty)))
    solids = []
    for index in range(count):
        solid = random_solid(rng, difficulty, size * (0.7 if index == 0 else rng.uniform(0.2, 0.6)))
        offset = rng.normal(size=3)
        offset *= 0.0 if index == 0 else size * rng.uniform(0.3, 0.65) / np.linalg.norm(offset)
        solids.append(_shifted(solid, offset))
    if rng.uniform() < 0.1 + 0.3 * difficulty:
        solids += _rods(rng, size, int(rng.integers(1, 3 + round(3 * difficulty))))
    return solids


def _shifted(solid: Solid, offset: np.ndarray) -> Solid:
    frame = solid.object_from_unit.copy()
    frame[:3, 3] += offset
    return replace(solid, object_from_unit=frame, cuts=tuple(_shifted(c, offset) for c in solid.cuts))


def _rods(rng: np.random.Generator, size: float, count: int) -> list[Solid]:
    """Thin straight sticks through the thing."""
    rods = []
    for _ in range(count):
        radius = size * rng.uniform(0.015, 0.05)
        axes = np.array([radius, radius, size * rng.uniform(0.6, 1.0)])
        make = (cylinder, box)[rng.integers(2)]
        rods.append(make(placed(axes, size * rng.uniform(-0.3, 0.3, 3), random_turn(rng))))
    return rods


def _block(low: tuple[float, float, float], high: tuple[float, float, float]) -> Solid:
    a, b = np.array(low), np.array(high)
    return box(placed((b - a) / 2, (a + b) / 2))


def _pole(x: float, y: float, low: float, high: float, radius: float) -> Solid:
    return cylinder(placed(np.array([radius, radius, (high - low) / 2]), np.array([x, y, (low + high) / 2])))


def table(rng: np.random.Generator) -> list[Solid]:
    """A top on four legs, or on one."""
    w, d, h, t = rng.uniform(0.4, 0.9), rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.8), rng.uniform(0.02, 0.06)
    leg = rng.uniform(0.02, 0.05)
    if rng.uniform() < 0.35:
        top = cylinder(placed(np.array([w, w, t / 2]), np.array([0, 0, h - t / 2])))
        foot = cone(placed(np.array([0.5 * w, 0.5 * w, 0.04]), np.array([0, 0, 0.04])), 0.2)
        return [top, _pole(0.0, 0.0, 0.0, h - t, 1.3 * leg), foot]
    x, y = w - leg, d - leg
    return [_block((-w, -d, h - t), (w, d, h))] + [
        _pole(sx * x, sy * y, 0.0, h - t, leg) for sx in (-1, 1) for sy in (-1, 1)
    ]


def chair(rng: np.random.Generator) -> list[Solid]:
    """A seat, four legs, a back of slats or a board."""
    w, h, top, leg = rng.uniform(0.2, 0.28), rng.uniform(0.38, 0.5), rng.uniform(0.75, 1.1), rng.uniform(0.015, 0.03)
    solids = [_block((-w, -w, h - 0.05), (w, w, h))]
    solids += [_pole(sx * (w - leg), -w + leg, 0.0, h, leg) for sx in (-1, 1)]
    solids += [_pole(sx * (w - leg), w - leg, 0.0, top, leg) for sx in (-1, 1)]
    if rng.uniform() < 0.5:
        return [*solids, _block((-w, w - 2 * leg, h + 0.15), (w, w, top))]
    return solids + [_block((-w, w - 2 * leg, z), (w, w - leg, z + 0.06)) for z in (h + 0.1, (h + top) / 2, top - 0.06)]


def shelf(rng: np.random.Generator) -> list[Solid]:
    """Boards between two sides, with boxes like books on some."""
    w, d, h = rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.22), rng.uniform(0.8, 1.9)
    boards = int(rng.integers(3, 5))
    solids = [_block((s * w - 0.02, -d, 0.0), (s * w + 0.02, d, h)) for s in (-1, 1)]
    for k in range(boards):
        z = h * k / (boards - 1)
        solids.append(_block((-w, -d, z - 0.015), (w, d, z + 0.015)))
        if k < boards - 1:
            x = rng.uniform(-0.8, 0.2) * w
            high = z + h / (boards - 1) * rng.uniform(0.4, 0.85)
            solids.append(_block((x, -0.8 * d, z), (x + rng.uniform(0.2, 0.7) * w, 0.6 * d, high)))
    return solids


def lamp(rng: np.random.Generator) -> list[Solid]:
    """A pole with a foot and a shade."""
    h, r = rng.uniform(1.0, 1.7), rng.uniform(0.15, 0.3)
    shade = cone(placed(np.array([r, r, 0.15]), np.array([0, 0, h])), rng.uniform(0.3, 0.9))
    foot = dome(placed(np.array([0.8 * r, 0.8 * r, 0.03]), np.array([0, 0, 0.03])))
    return [_pole(0.0, 0.0, 0.0, h, 0.015), shade, foot]


def stairs(rng: np.random.Generator) -> list[Solid]:
    """Three to six steps."""
    w, run, rise = rng.uniform(0.3, 0.6), rng.uniform(0.15, 0.25), rng.uniform(0.1, 0.2)
    count = int(rng.integers(3, 7))
    return [_block((-w, k * run, 0.0), (w, count * run, (k + 1) * rise)) for k in range(count)]


def fence(rng: np.random.Generator) -> list[Solid]:
    """Thin posts under two rails."""
    w, h, count = rng.uniform(0.6, 1.2), rng.uniform(0.5, 1.0), int(rng.integers(5, 10))
    posts = [_pole(-w + 2 * w * k / (count - 1), 0.0, 0.0, h, 0.018) for k in range(count)]
    rails = [_block((-w, -0.015, z), (w, 0.015, z + 0.04)) for z in (0.25 * h, 0.9 * h)]
    return posts + rails


FURNITURE: tuple[Callable[[np.random.Generator], list[Solid]], ...] = (table, chair, shelf, lamp, stairs, fence)
