"""Metres for a map that has none: of a known size of what it shows, or of two of its points a known distance apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import InputError, Sim3
from scenetx.live.classical import ClassicalLocator
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.kv_tracker import KvTracker
from scenetx.live.object_mode import ObjectTracker, object_points, point_at, scale_for_points, scale_for_size
from scenetx.live.update import Locator

REACH = 0.06
"""How far from a pixel, of the picture's longer side, the map's points may be that say how far away it is."""


@dataclass(frozen=True)
class KnownScale:
    """One of the two: ``size`` is the length of the longest side; ``points`` are x0 y0 x1 y1 in a picture of the map
    (``picture`` is its name; none = the first) and their true distance. Lengths in metres, or whatever is wanted."""

    size: float | int | None = None
    points: tuple[float, float, float, float, float] | None = None
    picture: str = ""

    def __post_init__(self) -> None:
        if self.size is not None and self.points is not None:
            raise InputError("known size", "and two known points", "give one of the two")
        if self.picture and self.points is None:
            raise InputError("known picture", self.picture, "give the two points in it")

    def __bool__(self) -> bool:
        return self.size is not None or self.points is not None


def in_known_scale(locator: Locator, known: KnownScale) -> tuple[Locator, Sim3]:
    """The locator with poses in the known scale, and ``object_from_map``: the origin is the middle of the points, or
    the first of the two points; the axes stay. Raises InputError for maps without points, points that are not there.
    """
    if isinstance(locator, ClassicalLocator):
        object_from_map = _scale(known, torch.from_numpy(locator.map.positions), locator)
        return ClassicalLocator(moved_map(locator.map, object_from_map), locator.settings), object_from_map
    if isinstance(locator, KvTracker):
        object_from_map = _scale(known, object_points(locator.map.keyframes), locator)
        return ObjectTracker(locator, object_from_map), object_from_map
    raise InputError("known size", f"method {locator.name} has no points", "use --method classical or kv with --map")


def moved_map(made: ClassicalMap, object_from_map: Sim3) -> ClassicalMap:
    """The same map in another frame and scale."""
    poses = object_from_map.apply_to_poses(torch.from_numpy(made.world_from_cam)).numpy()
    positions = object_from_map.apply(torch.from_numpy(made.positions)).numpy()
    return replace(made, world_from_cam=poses, positions=positions)


def _scale(known: KnownScale, points: Float[Tensor, "m 3"], locator: ClassicalLocator | KvTracker) -> Sim3:
    if known.size is not None:
        return scale_for_size(points, known.size)
    assert known.points is not None
    x0, y0, x1, y1, distance = known.points
    return scale_for_points(_point(locator, known.picture, x0, y0), _point(locator, known.picture, x1, y1), distance)


def _point(locator: ClassicalLocator | KvTracker, picture: str, x: float, y: float) -> Float[Tensor, "3"]:
    if isinstance(locator, ClassicalLocator):
        names = locator.map.names
        return classical_point(locator.map, _number(picture, names), x, y)
    keyframes = locator.map.keyframes
    return point_at(keyframes[_number(picture, tuple(each.name for each in keyframes))], x, y)


def _number(picture: str, names: tuple[str, ...]) -> int:
    if picture and picture not in names:
        some = ", ".join(names[:3])
        raise InputError("known picture", picture, f"name a picture of the map ({some}, ...)")
    return names.index(picture) if picture else 0


def classical_point(made: ClassicalMap, view: int, x: float, y: float) -> Float[Tensor, "3"]:
    """The place (float64) at a pixel of a map's picture: on its ray, as far as the nearest four points that the picture
    sees, nearer ones counting for more. Raises InputError when none is near."""
    rows = np.flatnonzero(made.obs_view == view)
    away = np.linalg.norm(made.obs_xy[rows] - np.array([x, y]), axis=1)
    nearest = np.argsort(away)[:4]
    nearest = nearest[away[nearest] <= REACH * made.sizes[view].max()]
    if not len(nearest):
        raise InputError("known points", f"({x:g}, {y:g}) in {made.names[view]}", "choose points with texture about")
    cam_from_world = np.linalg.inv(made.world_from_cam[view])
    places = made.positions[made.obs_point[rows[nearest]]]
    z = places @ cam_from_world[2, :3] + cam_from_world[2, 3]
    weight = 1 / (away[nearest] + 1.0) ** 2
    depth = weight.sum() / (weight / z).sum()
    K = made.K[view]
    ray = np.array([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], 1.0])
    pose = made.world_from_cam[view]
    return torch.from_numpy(pose[:3, :3] @ (depth * ray) + pose[:3, 3])
