"""A map's points in a posed picture: which it should see, and which of its features they are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from scenetx.live.classical_map import ClassicalMap
from scenetx.live.features import match, unit
from scenetx.live.points import Station


def points_seen(made: ClassicalMap, station: Station) -> Int[np.ndarray, "k"]:
    """Observations (rows of the map), one a point, of the points that lie in the picture: of several, the one whose
    picture stands nearest, and none from a direction more than 60 degrees off."""
    xy, depth = pixels_of(made, station)
    inside = (depth > 1e-9) & (xy > 0).all(1) & (xy < np.array(station.size[::-1])).all(1)
    rows = np.flatnonzero(inside[made.obs_point])
    place = made.positions[made.obs_point[rows]]
    here = _towards(place, station.world_from_cam[:3, 3])
    cosine = (here * _towards(place, made.world_from_cam[made.obs_view[rows], :3, 3])).sum(1)
    order = np.argsort(-cosine, kind="stable")
    _, first = np.unique(made.obs_point[rows[order]], return_index=True)
    best = order[first]
    return rows[best[cosine[best] > 0.5]]


def seen_where_expected(
    made: ClassicalMap, rows: Int[np.ndarray, "k"], station: Station, reach: float, *, ratio: float = 0.8
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """(observations among ``rows``, the picture's features) that are the same points: within ``reach`` pixels of where
    the map puts them, and plainly more alike than anything else within twice that."""
    if not len(rows) or not len(station.features):
        return rows[:0], np.zeros(0, np.int64)
    points = made.obs_point[rows]
    xy, _ = pixels_of(made, station)
    off = _distances(xy[points], station.features.xy.astype(np.float64))
    likeness = unit(made.descriptors[points]) @ unit(station.features.descriptors).T
    likeness[off > 2 * reach] = 0
    i, j, _ = match(likeness, ratio=ratio)
    good = off[i, j] <= reach
    return rows[i[good]], j[good].astype(np.int64)


def feature_rows(station: Station, xy: Float[np.ndarray, "k 2"]) -> Int[np.ndarray, "k"]:
    """Which feature of a picture lies exactly there (observations are features' places); -1 = none."""
    if not len(station.features):
        return np.full(len(xy), -1)
    key, wanted = (
        np.ascontiguousarray(each, np.float32).view(np.complex64)[:, 0] for each in (station.features.xy, xy)
    )
    order = np.argsort(key, kind="stable")
    at = order[np.searchsorted(key[order], wanted).clip(0, len(order) - 1)]
    return np.where(key[at] == wanted, at, -1)


def pixels_of(made: ClassicalMap, station: Station) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, "p"]]:
    """Where the map's points fall in the picture, and their depth."""
    cam_from_world = np.linalg.inv(station.world_from_cam)
    cam = made.positions @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    z = np.where(cam[:, 2] > 1e-9, cam[:, 2], 1.0)
    return cam[:, :2] / z[:, None] * station.K[[0, 1], [0, 1]] + station.K[:2, 2], cam[:, 2]


def _towards(place: Float[np.ndarray, "k 3"], eye: np.ndarray) -> Float[np.ndarray, "k 3"]:
    ray = eye - place
    return ray / np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12)


def _distances(a: Float[np.ndarray, "k 2"], b: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "k n"]:
    """Pixels between all pairs (float32: exact enough, and half the memory)."""
    x = a[:, :1].astype(np.float32) - b[None, :, 0].astype(np.float32)
    y = a[:, 1:].astype(np.float32) - b[None, :, 1].astype(np.float32)
    return np.sqrt(x * x + y * y)
