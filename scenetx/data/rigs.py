"""Cameras for procedural worlds: orbits, walks, hand-held shots with blur, stereo pairs; varied lenses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from scenetx.data.world import World

Rig = Literal["orbit", "walk", "handheld", "stereo"]


@dataclass(frozen=True)
class Shots:
    """``v`` cameras, in order of time, ``s`` moments of each exposure (the middle one is the camera's own)."""

    world_from_cam: Float[np.ndarray, "v 4 4"]
    exposure: Float[np.ndarray, "v s 4 4"]
    K: Float[np.ndarray, "v 3 3"]
    times: Float[np.ndarray, "v"]


def shoot(
    rng: np.random.Generator, world: World, rig: Rig, views: int, size: tuple[int, int], difficulty: float, moments: int
) -> Shots:
    """Cameras of one rig in a world, within its bounds, looking at what is there; pictures of ``size`` (h, w)."""
    u = np.linspace(0, 1, views) if views > 1 else np.array([0.5])
    eye, target, roll = {"orbit": _orbit, "walk": _walk, "handheld": _handheld, "stereo": _stereo}[rig](
        rng, world, u, difficulty
    )
    eye = np.clip(eye, world.low, world.high)
    poses = looking(eye, target, roll)
    if rig == "stereo":
        # The right camera of a pair shares the left one's attitude.
        baseline = rng.uniform(0.06, 0.12 + 0.3 * difficulty)
        right = poses[: 2 * (views // 2) : 2].copy()
        right[:, :3, 3] += baseline * right[:, :3, 0]
        poses[1 : 2 * (views // 2) : 2] = right
    exposure = poses[:, None].repeat(moments, axis=1)
    if rig == "handheld" and moments > 1:
        exposure = _shaken(rng, poses, moments, difficulty)
    return Shots(poses, exposure, _lenses(rng, views, size, difficulty), u)


def looking(
    eye: Float[np.ndarray, "v 3"], target: Float[np.ndarray, "v 3"], roll: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v 4 4"]:
    """``world_from_cam`` at ``eye`` towards ``target``, turned by ``roll`` radians about the line of sight; z is up."""
    forward = target - eye
    length = np.linalg.norm(forward, axis=-1, keepdims=True)
    forward = np.where(length > 1e-6, forward / np.maximum(length, 1e-6), np.array([1.0, 0.0, 0.0]))
    # Never straight up or down, where the horizon is lost.
    forward[:, 2] = np.clip(forward[:, 2], -0.98, 0.98)
    forward[:, 0] = np.where(np.hypot(forward[:, 0], forward[:, 1]) < 1e-3, 0.2, forward[:, 0])
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    out = np.tile(np.eye(4), (len(eye), 1, 1))
    out[:, :3, :] = np.stack([c * right + s * down, c * down - s * right, forward, eye], axis=-1)
    return out


def _orbit(
    rng: np.random.Generator, world: World, u: np.ndarray, difficulty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Around the middle of things, over an arc that grows with difficulty."""
    arc = rng.uniform(0.3, 0.6 + 5.0 * difficulty)
    angle = rng.uniform(0, 2 * np.pi) + arc * (u - 0.5)
    elevation = rng.uniform(0.1, 0.9) + 0.25 * difficulty * np.sin(2 * np.pi * (u + rng.uniform()))
    radius = world.radius * rng.uniform(1.5, 2.4) * (1 + 0.1 * difficulty * np.sin(4 * u + rng.uniform(0, 6)))
    offset = np.stack([np.cos(angle) * np.cos(elevation), np.sin(angle) * np.cos(elevation), np.sin(elevation)], -1)
    target = world.focus + 0.15 * world.radius * rng.normal(size=3)
    return world.focus + radius[:, None] * offset, np.tile(target, (len(u), 1)), np.zeros(len(u))


def _walk(
    rng: np.random.Generator, world: World, u: np.ndarray, difficulty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From one side past the things, looking ahead of the middle."""
    angle, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.5 + 1.5 * difficulty)
    far = world.radius * rng.uniform(1.2, 1.9)
    ends = [angle, angle + turn]
    start, stop = (far * np.array([np.cos(a), np.sin(a), 0]) for a in ends)
    height = world.low[2] + rng.uniform(0.25, 0.6) * (min(world.high[2], world.low[2] + 2.0) - world.low[2])
    eye = start + (stop - start) * u[:, None] * rng.uniform(0.6, 1.0)
    eye[:, 2] += height + 0.04 * np.sin(9 * u + rng.uniform(0, 6))
    sway = world.radius * (0.2 + 0.3 * difficulty)
    target = world.focus + sway * np.stack(
        [np.sin(3 * u + rng.uniform(0, 6)), np.sin(2.3 * u + rng.uniform(0, 6)), 0.3 * np.sin(4 * u)], -1
    )
    return eye + np.array([0.0, 0.0, 0.0]), target, 0.03 * np.sin(7 * u)


def _handheld(
    rng: np.random.Generator, world: World, u: np.ndarray, difficulty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One place with a slow drift and a tremble."""
    angle = rng.uniform(0, 2 * np.pi)
    place = world.radius * rng.uniform(1.1, 1.9) * np.array([np.cos(angle), np.sin(angle), 0])
    place[2] = world.low[2] + rng.uniform(0.2, 0.8) * (min(world.high[2], world.low[2] + 2.5) - world.low[2])
    drift = rng.normal(size=3) * world.radius * (0.12 + 0.35 * difficulty)
    tremble = 0.01 + 0.03 * difficulty
    eye = place + drift * (u[:, None] - 0.5) + tremble * rng.normal(size=(len(u), 3))
    target = world.focus + 0.3 * world.radius * rng.normal(size=3) + 3 * tremble * rng.normal(size=(len(u), 3))
    return eye, target, rng.uniform(-0.1, 0.1) + tremble * rng.normal(size=len(u))


def _stereo(
    rng: np.random.Generator, world: World, u: np.ndarray, difficulty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _walk(rng, world, u, difficulty) if rng.uniform() < 0.5 else _orbit(rng, world, u, difficulty)


def _shaken(
    rng: np.random.Generator, poses: Float[np.ndarray, "v 4 4"], moments: int, difficulty: float
) -> Float[np.ndarray, "v s 4 4"]:
    """Moments of exposures during which the camera turns and moves a little, at constant speed."""
    views = len(poses)
    turn = (0.002 + 0.02 * difficulty) * rng.normal(size=(views, 3))
    move = (0.002 + 0.012 * difficulty) * rng.normal(size=(views, 3))
    out = np.empty((views, moments, 4, 4))
    for k, share in enumerate(np.linspace(-0.5, 0.5, moments)):
        step = np.tile(np.eye(4), (views, 1, 1))
        x, y, z = (share * turn).T
        zero = np.zeros(views)
        skew = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(views, 3, 3)
        # Cayley's map: a rotation for any skew matrix, and all but the exponential for so small a turn.
        step[:, :3, :3] = np.linalg.solve(np.eye(3) - skew / 2, np.eye(3) + skew / 2)
        step[:, :3, 3] = share * move
        out[:, k] = poses @ step
    return out


def _lenses(
    rng: np.random.Generator, views: int, size: tuple[int, int], difficulty: float
) -> Float[np.ndarray, "v 3 3"]:
    """One lens a scene, sometimes one a view; 35 to 85 degrees across, nearly square pixels, centre a little off."""
    height, width = size
    spread = 12 + 13 * difficulty
    zoom = np.clip(rng.normal(60, spread), 35, 85)
    each = zoom + (rng.normal(scale=6 * difficulty, size=views) if rng.uniform() < 0.3 else np.zeros(views))
    focal = 0.5 * max(width, height) / np.tan(np.radians(np.clip(each, 30, 95)) / 2)
    K = np.zeros((views, 3, 3))
    K[:, 0, 0] = focal
    K[:, 1, 1] = focal * (1 + 0.01 * difficulty * rng.normal())
    K[:, 0, 2] = width / 2 + 0.03 * difficulty * width * np.clip(rng.normal(), -2, 2)
    K[:, 1, 2] = height / 2 + 0.03 * difficulty * height * np.clip(rng.normal(), -2, 2)
    K[:, 2, 2] = 1
    return K
