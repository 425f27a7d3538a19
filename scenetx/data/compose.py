"""Whole worlds: a cluster on a stand, a yard, a room; with materials, lights and motions. One seed, one world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from scenetx.data.objects import FURNITURE, cluster
from scenetx.data.shapes import Solid, box, cut, cylinder, height_field, placed
from scenetx.data.world import (
    CELLS,
    CHECKER,
    GRATING,
    MARKS,
    PHOTO,
    PLAIN,
    Light,
    Material,
    Motion,
    World,
    random_turn,
    turn_about,
)

Kind = Literal["stand", "yard", "room"]
Z = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Taste:
    """What a world is drawn from: ``moving`` is the share of objects that move, ``photos`` how many there are."""

    difficulty: float = 0.5
    moving: float = 0.0
    photos: int = 0
    kinds: tuple[Kind, ...] = get_args(Kind)


class _Builder:
    """Collects solids object by object; object 0 is the surroundings."""

    def __init__(self, rng: np.random.Generator, taste: Taste) -> None:
        self.rng, self.taste = rng, taste
        self.solids: list[Solid] = []
        self.materials: list[Material] = []
        self.motions = [Motion(np.eye(4), np.zeros(3), Z)]
        self.obstacles = [np.array([0.0, 0.0, 0.0, -1e3])]
        self.palette = _palette(rng)

    def material(self, size: float, *, large: bool = False) -> int:
        """A new material for a thing of ``size``."""
        self.materials.append(_material(self.rng, self.taste, self.palette, size, large=large))
        return len(self.materials) - 1

    def surroundings(self, solid: Solid, size: float, *, casts: int = 2) -> None:
        self.solids.append(replace(solid, owner=0, material=self.material(size, large=True), casts=casts))

    def thing(self, solids: list[Solid], rest: np.ndarray, *, still: bool = False, plain: bool = False) -> None:
        """An object at ``rest``; parts share a few materials, and it may move."""
        rng, owner = self.rng, len(self.motions)
        spheres = [solid.sphere for solid in solids]
        radius = max(float(np.linalg.norm(center)) + r for center, r in spheres)
        count = 1 if plain else min(len(solids), 1 + int(rng.integers(0, 2 + round(3 * self.taste.difficulty))))
        materials = [self.material(radius) for _ in range(count)]
        motion = Motion(rest, np.zeros(3), Z)
        if not still and rng.uniform() < self.taste.moving:
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.5)
            travel = far * np.array([np.cos(angle), np.sin(angle), 0.0])
            motion = Motion(rest, travel, Z, float(rng.uniform(-2.5, 2.5)), float(rng.uniform()))
        for index, solid in enumerate(solids):
            which = index % count if index < count else rng.integers(count)
            self.solids.append(replace(solid, owner=owner, material=materials[which]))
        self.motions.append(motion)
        self.obstacles.append(np.array([*rest[:3, 3], radius + np.linalg.norm(motion.travel)]))


def compose(rng: np.random.Generator, taste: Taste) -> World:
    """A world from a random stream."""
    build = _Builder(rng, taste)
    kind = taste.kinds[rng.integers(len(taste.kinds))]
    return {"stand": _stand, "yard": _yard, "room": _room}[kind](build)


def without(world: World, centers: np.ndarray, clearance: float = 0.15) -> World:
    """The world less the objects that come nearer than ``clearance`` to a camera at ``centers`` [v 3]."""
    spheres = world.obstacles
    gap = np.linalg.norm(centers[:, None] - spheres[None, :, :3], axis=-1) - spheres[None, :, 3]
    gone = set((gap.min(0) < clearance).nonzero()[0].tolist()) - {0}
    return replace(world, solids=tuple(s for s in world.solids if s.owner not in gone))


def _at(x: float, y: float, z: float, turn: float = 0.0) -> np.ndarray:
    return placed(np.ones(3), np.array([x, y, z]), turn_about(Z, turn))


def _many(build: _Builder, few: int, many: int) -> int:
    """How many objects: from about ``few`` when easy to about ``many``."""
    mean = few + (many - few) * build.taste.difficulty
    return max(1, round(mean * build.rng.uniform(0.7, 1.3)))


def _stand(build: _Builder) -> World:
    """Clusters on a table or a floor, pictured from around it."""
    rng = build.rng
    ground = rng.uniform() < 0.85
    if ground:
        build.surroundings(box(placed(np.array([12.0, 12.0, 0.5]), np.array([0, 0, -0.5]))), 1.0, casts=0)
        if rng.uniform() < 0.5:
            angle = rng.uniform(0, 2 * np.pi)
            wall = placed(
                np.array([0.2, 8.0, 3.0]), 4.3 * np.array([np.cos(angle), np.sin(angle), 0.5]), turn_about(Z, angle)
            )
            build.surroundings(box(wall), 1.5, casts=0)
    if rng.uniform() < 0.5 or not ground:
        size = rng.uniform(0.9, 1.5)
        top = (cylinder, box)[rng.integers(2)](placed(np.array([size, size, 0.1]), np.array([0, 0, 0.1])))
        build.surroundings(top, 0.6)
    places = _scattered(rng, _many(build, 1, 7), 1.0, 0.28)
    for x, y in places:
        size = rng.uniform(0.3, 0.6) if len(places) > 1 else rng.uniform(0.6, 0.9)
        build.thing(cluster(rng, build.taste.difficulty, size), _at(x, y, 0.2 + 0.5 * size, rng.uniform(0, 6.3)))
    lights, ambient, sky = _daylight(build, 4.0)
    low, high = np.array([-6.0, -6.0, 0.3]), np.array([6.0, 6.0, 5.0])
    return _world(build, lights, ambient, sky, (low, high), np.array([0, 0, 0.5]), 1.3)


def _yard(build: _Builder) -> World:
    """Things scattered over open ground, flat or rolling."""
    rng = build.rng
    relief = rng.uniform(0.1, 0.5) if rng.uniform() < 0.2 + 0.4 * build.taste.difficulty else 0.0
    if relief:
        frame = placed(np.array([9.0, 9.0, relief]), np.array([0, 0, -0.5 * relief]))
        build.surroundings(height_field(frame, rng, rng.uniform(0.8, 2.0), 1.0), 1.0, casts=2 if relief > 0.3 else 0)
    else:
        build.surroundings(box(placed(np.array([20.0, 20.0, 0.5]), np.array([0, 0, -0.5]))), 1.0, casts=0)
    for x, y in _scattered(rng, _many(build, 5, 18), 2.4, 0.5):
        size = rng.uniform(0.3, 0.8)
        luck = rng.uniform()
        if luck < 0.3:
            build.thing(FURNITURE[rng.integers(len(FURNITURE))](rng), _at(x, y, -0.3 * relief, rng.uniform(0, 6.3)))
        elif luck < 0.4:
            tall = rng.uniform(1.0, 2.5)
            column = placed(np.array([0.5 * size, 0.5 * size, tall / 2]), np.array([0, 0, tall / 2]))
            build.thing([(cylinder, box)[rng.integers(2)](column)], _at(x, y, -relief, rng.uniform(0, 6.3)))
        else:
            z = rng.uniform(0.3, 1.0) * size + (rng.uniform(0.5, 1.5) if rng.uniform() < 0.15 else 0.0)
            build.thing(cluster(rng, build.taste.difficulty, size), _at(x, y, z, rng.uniform(0, 6.3)))
    lights, ambient, sky = _daylight(build, 8.0)
    low, high = np.array([-6.0, -6.0, 0.5 + relief]), np.array([6.0, 6.0, 4.5])
    return _world(build, lights, ambient, sky, (low, high), np.array([0, 0, 0.5]), 2.6)


def _room(build: _Builder) -> World:
    """Four walls with windows, a floor, a ceiling, furniture, things, pictures on the walls, lamps."""
    rng = build.rng
    half = np.array([rng.uniform(2.0, 3.5), rng.uniform(2.0, 3.5), rng.uniform(1.2, 1.6)])
    _walls(build, half)
    for x, y in _scattered(rng, _many(build, 4, 15), 0.8 * float(half[:2].min()), 0.5):
        size = rng.uniform(0.2, 0.5)
        luck = rng.uniform()
        if luck < 0.5:
            build.thing(FURNITURE[rng.integers(len(FURNITURE))](rng), _at(x, y, 0.0, rng.uniform(0, 6.3)))
        else:
            z = rng.uniform(0.5, 0.9) * size if luck < 0.85 else rng.uniform(0.8, 1.8)
            build.thing(cluster(rng, build.taste.difficulty, size), _at(x, y, z, rng.uniform(0, 6.3)))
    lamps = int(rng.integers(1, 2 + round(build.taste.difficulty)))
    lights = []
    for _ in range(lamps):
        place = np.array([*(rng.uniform(-0.5, 0.5, 2) * half[:2]), 2 * half[2] - rng.uniform(0.1, 0.5)])
        lights.append(Light(place, _warm(rng) * rng.uniform(1.2, 2.0) / lamps, float(rng.uniform(2.0, 4.0))))
    ambient = np.stack([_warm(rng), _warm(rng)]) * rng.uniform(0.25, 0.5)
    sky = np.stack([np.array([0.35, 0.55, 0.9]), np.array([0.85, 0.9, 0.95])]) * rng.uniform(0.8, 1.3)
    if rng.uniform() < 0.5:
        lights.append(_sun(rng, rng.uniform(1.0, 2.0)))
    low = np.array([-half[0], -half[1], 0.0]) + 0.3
    high = np.array([half[0], half[1], 2 * half[2]]) - 0.3
    return _world(build, tuple(lights), ambient, sky, (low, high), np.array([0, 0, 0.8]), 1.8)


def _walls(build: _Builder, half: np.ndarray) -> None:
    rng = build.rng
    wide = np.array([half[0] + 0.2, half[1] + 0.2, 0.1])
    build.surroundings(box(placed(wide, np.array([0, 0, -0.1]))), 1.0, casts=0)
    build.surroundings(box(placed(wide, np.array([0, 0, 2 * half[2] + 0.1]))), 1.5, casts=1)
    for axis in range(2):
        for side in (-1.0, 1.0):
            size = np.array([half[0] + 0.2, half[1] + 0.2, half[2]])
            size[axis] = 0.1
            center = np.array([0.0, 0.0, half[2]])
            center[axis] = side * (half[axis] + 0.1)
            wall = box(placed(size, center))
            if rng.uniform() < 0.35:
                hole = np.array([rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0), rng.uniform(0.4, 0.7)])
                hole[axis] = 0.3
                wall = cut(wall, box(placed(hole, center + np.array([0, 0, rng.uniform(0.0, 0.4)]))))
            build.surroundings(wall, 1.5, casts=1)
            if not wall.cuts and rng.uniform() < 0.3 + 0.5 * build.taste.difficulty:
                frame = np.array([rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.5)])
                frame[axis] = 0.03
                center[axis] = side * (half[axis] - 0.03)
                center[1 - axis] = rng.uniform(-0.5, 0.5) * half[1 - axis]
                build.thing([box(placed(frame, np.zeros(3)))], _at(*center), still=True, plain=True)


def _world(
    build: _Builder,
    lights: tuple[Light, ...],
    ambient: np.ndarray,
    sky: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    focus: np.ndarray,
    radius: float,
) -> World:
    obstacles = np.stack(build.obstacles)
    parts = tuple(build.solids), tuple(build.materials), tuple(build.motions)
    return World(*parts, lights, ambient, sky, *bounds, focus.astype(float), radius, obstacles)


def _scattered(rng: np.random.Generator, count: int, radius: float, gap: float) -> list[tuple[float, float]]:
    """Places in a disc, at least ``gap`` apart where that can be had."""
    places: list[tuple[float, float]] = []
    for _ in range(count):
        for _ in range(12):
            r, angle = radius * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
            spot = (float(r * np.cos(angle)), float(r * np.sin(angle)))
            if all(np.hypot(spot[0] - x, spot[1] - y) > gap for x, y in places):
                places.append(spot)
                break
    return places or [(0.0, 0.0)]


def _warm(rng: np.random.Generator) -> np.ndarray:
    """A light's colour, from warm to cool."""
    t = rng.uniform(-0.25, 0.25)
    return np.array([1 + t, 1.0, 1 - t])


def _sun(rng: np.random.Generator, strength: float) -> Light:
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.3)
    away = np.array([np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height), np.sin(height)])
    return Light(200.0 * away, _warm(rng) * strength, 1e6)


def _daylight(build: _Builder, reach: float) -> tuple[tuple[Light, ...], np.ndarray, np.ndarray]:
    """A sun, perhaps lamps; the ambient light; the sky."""
    rng = build.rng
    lights = [_sun(rng, rng.uniform(0.6, 1.2))]
    for _ in range(int(rng.integers(0, 1 + round(1.6 * build.taste.difficulty)))):
        place = np.array([*rng.uniform(-4, 4, 2), rng.uniform(2, 4)])
        lights.append(Light(place, _warm(rng) * rng.uniform(0.3, 0.8), reach))
    sky = np.stack([rng.uniform(0.05, 0.8, 3), rng.uniform(0.4, 1.0, 3)])
    if rng.uniform() < 0.6:
        sky = np.stack([np.array([0.15, 0.35, 0.8]), np.array([0.75, 0.85, 0.95])]) * rng.uniform(0.6, 1.1)
    ambient = np.stack([sky.mean(0) * 0.4 + 0.1, build.palette.mean(0) ** 2 * 0.3 + 0.04]) * rng.uniform(0.5, 1.1)
    return tuple(lights), ambient, sky


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Six colours around one to three hues, from dull to vivid; [6 3]."""
    hues = rng.uniform(size=int(rng.integers(1, 4)))
    out = []
    for _ in range(6):
        hue = (hues[rng.integers(len(hues))] + 0.05 * rng.normal()) % 1.0
        saturation, value = 0.05 + 0.7 * rng.uniform() ** 2, rng.uniform(0.2, 0.95)
        ramp = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
        out.append(value * (1 - saturation + saturation * ramp))
    return np.stack(out)


def _material(rng: np.random.Generator, taste: Taste, palette: np.ndarray, size: float, *, large: bool) -> Material:
    kinds = [PLAIN, GRATING, CHECKER, CELLS, MARKS]
    busy = 0.35 + 0.45 * taste.difficulty
    weights = np.array([1 - busy, 0.3 * busy, 0.2 * busy, 0.3 * busy, 0.2 * busy])
    kind = int(rng.choice(kinds, p=weights / weights.sum()))
    if taste.photos and rng.uniform() < 0.35:
        kind = PHOTO
    colors = palette[rng.integers(len(palette), size=3)]
    if rng.uniform() < 0.4:
        colors = np.clip(colors + rng.normal(scale=0.25, size=(3, 3)), 0.03, 0.97)
    per_size = rng.uniform(1.0, 2.0 + 4.0 * taste.difficulty) * (3.0 if kind == MARKS else 1.0)
    if kind == PHOTO:
        per_size = rng.uniform(0.5, 1.5)
    return Material(
        kind=kind,
        colors=colors,
        frequency=float(per_size / size),
        duty=float(rng.uniform(0.1, 0.9)),
        warp=float(rng.uniform(0.3, 2.5)) if rng.uniform() < 0.4 else 0.0,
        dirt=float(rng.uniform(0.1, 0.9)),
        noise_frequency=float(rng.uniform(1.0, 2.0 + 5.0 * taste.difficulty) / size),
        turn=np.eye(3) if large or kind in (MARKS, PHOTO) else random_turn(rng),
        specular=float(rng.uniform(0.05, 0.7)) if rng.uniform() < 0.5 else 0.0,
        shininess=int(rng.integers(3, 8)),
        seed=int(rng.integers(1 << 20)),
    )
