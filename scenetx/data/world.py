"""What a procedural scene is before it is pictured: solids, materials, motions and lights, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scenetx.data.shapes import Solid

PLAIN, GRATING, CHECKER, CELLS, MARKS, PHOTO = range(6)


@dataclass(frozen=True)
class Material:
    """A pattern mixing two colours (display space, 0 to 1), dirt of a third, and Phong's two numbers.

    ``frequency`` is in cycles per world unit; ``duty`` the share of the second colour; ``warp`` bends the pattern and
    ``dirt`` mixes in the third colour, both by noise of ``noise_frequency``. ``turn`` rotates it in the object.
    """

    kind: int
    colors: Float[np.ndarray, "3 3"]
    frequency: float
    duty: float
    warp: float
    dirt: float
    noise_frequency: float
    turn: Float[np.ndarray, "3 3"]
    specular: float
    shininess: int  # doublings of the exponent: the highlight is cos^(2^shininess)
    seed: int

    def packed(self) -> Float[np.ndarray, "28"]:
        """One row of the shader's table; `MATERIAL_COLUMNS` names its columns."""
        scalars = [self.kind, self.frequency, self.duty, self.warp, self.dirt, self.noise_frequency, self.specular]
        scalars += [self.shininess, self.seed, 0.0]
        return np.concatenate([np.array(scalars, dtype=float), self.colors.ravel(), self.turn.ravel()])


@dataclass(frozen=True)
class Motion:
    """Rigid motion of an object: at rest at ``rest``, it swings along ``travel`` and turns about ``axis``.

    ``world_from_object(t) = T(travel sin(2 pi (t + phase))) rest R(axis, spin t)``, t in [0, 1] over a scene.
    """

    rest: Float[np.ndarray, "4 4"]
    travel: Float[np.ndarray, "3"]
    axis: Float[np.ndarray, "3"]
    spin: float = 0.0  # radians over the scene
    phase: float = 0.0

    def world_from_object(self, time: float) -> Float[np.ndarray, "4 4"]:
        """The object's place at ``time``."""
        out = self.rest.copy()
        if self.spin != 0.0:
            out[:3, :3] = out[:3, :3] @ turn_about(self.axis, self.spin * time)
        out[:3, 3] += self.travel * np.sin(2 * np.pi * (time + self.phase))
        return out


@dataclass(frozen=True)
class Light:
    """A point light; ``reach`` is the distance at which it is half as bright (a sun is far, with a huge reach)."""

    position: Float[np.ndarray, "3"]
    color: Float[np.ndarray, "3"]
    reach: float


@dataclass(frozen=True)
class World:
    """A scene: z is up, units are metres or so. Object 0 is the surroundings (floor, walls)."""

    solids: tuple[Solid, ...]
    materials: tuple[Material, ...]
    motions: tuple[Motion, ...]
    lights: tuple[Light, ...]
    ambient: Float[np.ndarray, "2 3"]  # from above and from below
    sky: Float[np.ndarray, "2 3"]  # at the zenith and at the horizon
    low: Float[np.ndarray, "3"]  # cameras stay between low and high
    high: Float[np.ndarray, "3"]
    focus: Float[np.ndarray, "3"]  # where there is something to look at
    radius: float  # of what there is to look at
    obstacles: Float[np.ndarray, "o 4"]  # sphere around each object's whole motion: centre, radius; row 0 is empty


def turn_about(axis: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """Rotation by ``angle`` radians about a unit axis (Rodrigues)."""
    x, y, z = axis
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * (skew @ skew)


def random_turn(rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """A rotation, uniform over all of them (Shoemake, 1992: a normalised Gaussian quaternion)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
