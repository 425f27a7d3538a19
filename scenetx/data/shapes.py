"""The solids that procedural scenes are made of: quadrics in slabs, cut by others, and surfaces of waves.

Every solid lives in a unit space with a box ``|x_i| <= half_i`` and is set into its object by an affine map, so one
intersection routine serves boxes, ellipsoids, cylinders, cones, domes and their boolean differences, and another the
height fields, lumps, rings and wavy sheets (`scenetx.data.cast`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

CONVEX, HEIGHT, LUMP, RING, SHEET = range(5)
WAVES = 4
MAX_CUTS = 3


@dataclass(frozen=True)
class Solid:
    """One solid: where ``Q(x) = kx x^2 + ky y^2 + kz z^2 + lz z + c <= 0`` within the slabs, less the cuts.

    A surface of waves (``kind`` other than CONVEX) is where its function is negative within the same box:
    HEIGHT ``z + h``, LUMP ``|p|^2 - a + h``, RING ``(rho - a)^2 + z^2 - b + h`` and SHEET ``|h| - b``, with
    ``h(p) = sum_j amplitude_j W(k_j . p + phase_j)`` and W the smooth wave of `scenetx.data.cast.wave`.
    """

    object_from_unit: Float[np.ndarray, "4 4"]
    quadric: Float[np.ndarray, "5"]  # kx ky kz lz c
    half: Float[np.ndarray, "3"]
    kind: int = CONVEX
    shape: tuple[float, float] = (0.0, 0.0)  # a, b of the surface of waves
    waves: Float[np.ndarray, "4 5"] | None = None  # k (3), phase, amplitude
    cuts: tuple[Solid, ...] = ()  # what is taken away, in the frame of the same object
    owner: int = 0  # index of the object it is a part of
    material: int = 0
    casts: int = 2  # 2: can shade others; 1: only from a sun (walls around the lamps); 0: never

    @property
    def sphere(self) -> tuple[Float[np.ndarray, "3"], float]:
        """Centre (object frame) and radius of a sphere around the solid."""
        linear = self.object_from_unit[:3, :3]
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * self.half
        return self.object_from_unit[:3, 3].copy(), float(np.linalg.norm(signs @ linear.T, axis=1).max())


NO_QUADRIC = np.array([0.0, 0.0, 0.0, 0.0, -1e6])


def placed(
    size: Float[np.ndarray, "3"], center: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"] | None = None
) -> Float[np.ndarray, "4 4"]:
    """``object_from_unit`` that scales by half sizes, turns, then moves."""
    out = np.eye(4)
    out[:3, :3] = (np.eye(3) if rotation is None else rotation) * np.asarray(size, dtype=float)
    out[:3, 3] = center
    return out


def box(frame: Float[np.ndarray, "4 4"]) -> Solid:
    return Solid(frame, NO_QUADRIC, np.ones(3))


def ellipsoid(frame: Float[np.ndarray, "4 4"]) -> Solid:
    return Solid(frame, np.array([1.0, 1.0, 1.0, 0.0, -1.0]), np.ones(3))


def cylinder(frame: Float[np.ndarray, "4 4"]) -> Solid:
    """Radius 1 about z, from z = -1 to 1 in the unit space."""
    return Solid(frame, np.array([1.0, 1.0, 0.0, 0.0, -1.0]), np.ones(3))


def cone(frame: Float[np.ndarray, "4 4"], top: float = 0.0) -> Solid:
    """Radius 1 at z = -1 and ``top`` (0 to 1) at z = 1."""
    mean, slope = (1 + top) / 2, (top - 1) / 2
    return Solid(frame, np.array([1.0, 1.0, -slope * slope, -2 * mean * slope, -mean * mean]), np.ones(3))


def dome(frame: Float[np.ndarray, "4 4"]) -> Solid:
    """A paraboloid: radius 1 at z = -1, closing at z = 1."""
    return Solid(frame, np.array([1.0, 1.0, 0.0, 0.5, -0.5]), np.ones(3))


def cut(solid: Solid, *others: Solid) -> Solid:
    """``solid`` less convex ``others``, at most `MAX_CUTS` in all."""
    cuts = solid.cuts + others
    if len(cuts) > MAX_CUTS or any(c.kind != CONVEX for c in others) or solid.kind != CONVEX:
        raise ValueError(f"cut: only convex solids can be cut, by at most {MAX_CUTS} convex solids")
    return replace(solid, cuts=cuts)


def edges(frame: Float[np.ndarray, "4 4"], thickness: float) -> Solid:
    """The edges of a box: what three square tunnels leave of it."""
    tunnels = []
    for axis in range(3):
        size = np.full(3, 1 - thickness)
        size[axis] = 1.1
        tunnels.append(box(frame @ placed(size, np.zeros(3))))
    return cut(box(frame), *tunnels)


def tube(frame: Float[np.ndarray, "4 4"], thickness: float) -> Solid:
    """A cylinder with a bore along its axis."""
    return cut(cylinder(frame), cylinder(frame @ placed(np.array([1 - thickness, 1 - thickness, 1.1]), np.zeros(3))))


def bowl(frame: Float[np.ndarray, "4 4"], thickness: float) -> Solid:
    """Half an ellipsoid's shell, open towards +z."""
    inner = ellipsoid(frame @ placed(np.full(3, 1 - thickness), np.zeros(3)))
    lid = box(frame @ placed(np.array([1.1, 1.1, 0.6]), np.array([0.0, 0.0, 0.7])))
    return cut(ellipsoid(frame), inner, lid)


def random_waves(rng: np.random.Generator, frequency: float, height: float, *, flat: bool = False) -> np.ndarray:
    """Four waves of falling amplitude, in the plane z = 0 (``flat``) or in space; [4 5]."""
    out = np.zeros((WAVES, 5))
    for j in range(WAVES):
        direction = rng.normal(size=3)
        if flat:
            direction[2] = 0.0
        direction /= np.linalg.norm(direction)
        out[j, :3] = direction * frequency * (1.0, 1.4, 2.2, 3.1)[j] * rng.uniform(0.8, 1.2)
        out[j, 3] = rng.uniform()
        out[j, 4] = height * (0.45, 0.3, 0.16, 0.09)[j]
    return out


def height_field(frame: Float[np.ndarray, "4 4"], rng: np.random.Generator, frequency: float, height: float) -> Solid:
    """A block whose top is a sum of waves of at most ``height`` about z = 0 of the unit space."""
    waves = random_waves(rng, frequency, height, flat=True)
    return Solid(frame, NO_QUADRIC, np.ones(3), HEIGHT, waves=waves)


def lump(frame: Float[np.ndarray, "4 4"], rng: np.random.Generator, frequency: float, height: float) -> Solid:
    """A ball with waves on it; ``height`` at most 0.4."""
    waves = random_waves(rng, frequency, height)
    return Solid(frame, NO_QUADRIC, np.ones(3), LUMP, (1 - height, 0.0), waves)


def ring(frame: Float[np.ndarray, "4 4"], rng: np.random.Generator, minor: float, height: float = 0.0) -> Solid:
    """A torus of outer radius 1 about z and tube radius ``minor``, with waves on it when ``height`` > 0."""
    waves = random_waves(rng, 1.0, height * minor * minor)
    return Solid(frame, NO_QUADRIC, np.array([1.0, 1.0, minor]), RING, (1 - minor, minor * minor * (1 - height)), waves)


def sheet(frame: Float[np.ndarray, "4 4"], rng: np.random.Generator, frequency: float, thickness: float) -> Solid:
    """Thin wavy walls filling a box, like a sponge."""
    return Solid(frame, NO_QUADRIC, np.ones(3), SHEET, (0.0, thickness), random_waves(rng, frequency, 1.0))


def moved(solid: Solid, parent_from_object: Float[np.ndarray, "4 4"]) -> Solid:
    """The solid and its cuts in a parent's frame."""
    cuts = tuple(moved(c, parent_from_object) for c in solid.cuts)
    return replace(solid, object_from_unit=parent_from_object @ solid.object_from_unit, cuts=cuts)
