"""Points from features of pictures whose cameras are known: matches along epipolar lines, tracks, triangulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scenetx.live.classical_map import ClassicalMap, Lens
from scenetx.live.features import Features, match, unit
from scenetx.live.normal_equations import focals_and_centers, triangulated
from scenetx.live.tracks import tracks
from scenetx.splat.cpu_jit import kernel


@dataclass(frozen=True)
class Seen:
    """A picture before it was straightened: where its features were, and its grey JPEG."""

    xy: Float[np.ndarray, "n 2"]
    picture: bytes


@dataclass(frozen=True)
class Station:
    """A picture of a map: from where it was taken, and what was found in it."""

    name: str
    world_from_cam: Float[np.ndarray, "4 4"]
    K: Float[np.ndarray, "3 3"]
    size: tuple[int, int]
    """Height and width of the picture that K and the features are of."""
    features: Features
    picture: bytes
    """Grey JPEG, reduced."""
    seen: Seen | None = None
    """As the lens showed it, while the lens is looked for."""


@dataclass(frozen=True)
class PointSettings:
    """Which matches make points."""

    ratio: float = 0.85
    epipolar: float = 3.0
    """Pixels (of a 960 pixel wide picture) a match may be off its epipolar line, and a point off its features."""
    parallax: float = 6.0
    """Pixels (of the map's pictures) between a point's outermost rays, at least; less does not tell how far it is."""
    points: int = 60_000
    """At most; of more, those that most pictures see."""


def starts(stations: Sequence[Station]) -> Int[np.ndarray, "starts"]:
    """The number of each picture's first feature, when all are counted through."""
    return np.concatenate([[0], np.cumsum([len(station.features) for station in stations])])


def matched(a: Station, b: Station) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Matches of two pictures' features (rows of a, of b) by their looks alone."""
    rows, columns, _ = match(unit(a.features.descriptors) @ unit(b.features.descriptors).T, ratio=0.8)
    return rows, columns


def link(a: Station, b: Station, settings: PointSettings) -> Int[np.ndarray, "2 k"]:
    """Matches of two pictures that agree with their cameras: only features near the epipolar line are compared."""
    fa, fb = a.features, b.features
    b_from_a = np.linalg.inv(b.world_from_cam) @ a.world_from_cam
    t = b_from_a[:3, 3]
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(b.K).T @ cross @ b_from_a[:3, :3] @ np.linalg.inv(a.K)
    xa, xb = (np.concatenate([each.xy, np.ones((len(each), 1))], axis=1) for each in (fa, fb))
    lines = xa @ F.T
    length_b, length_a = np.linalg.norm(lines[:, :2], axis=1), np.linalg.norm((xb @ F)[:, :2], axis=1)
    limit = settings.epipolar * max(*a.size, *b.size) / 960
    likeness = np.zeros((len(fa), len(fb)), np.float32)
    # Twice the limit keeps the rival that Lowe's test needs; a match then has to be within the limit.
    _compare(lines, length_b, length_a, xb, unit(fa.descriptors), unit(fb.descriptors), 2 * limit, likeness)
    i, j, _ = match(likeness, ratio=settings.ratio)
    off = np.abs((lines[i] * xb[j]).sum(1)) / np.maximum(np.minimum(length_b[i], length_a[j]), 1e-12)
    return np.stack([i[off <= limit], j[off <= limit]]).astype(np.int64)


@kernel(fast=frozenset({"contract", "nsz", "reassoc"}), nogil=True)
def _compare(lines, length_b, length_a, xb, looks_a, looks_b, limit, likeness):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Likeness of the features that are no farther than ``limit`` from each other's epipolar lines; of others, zero."""
    for i in range(len(lines)):
        for j in range(len(xb)):
            off = abs(lines[i, 0] * xb[j, 0] + lines[i, 1] * xb[j, 1] + lines[i, 2])
            if off <= limit * min(length_b[i], length_a[j]):
                total = np.float32(0)
                for k in range(looks_a.shape[1]):
                    total += looks_a[i, k] * looks_b[j, k]
                likeness[i, j] = total


def map_of(
    stations: Sequence[Station],
    links: Int[np.ndarray, "2 k"],
    settings: PointSettings,
    lenses: Sequence[Lens] = (),
) -> ClassicalMap:
    """Triangulates what matches (pairs of features, counted through) and keeps what agrees with the pictures."""
    found = [station.features for station in stations]
    view_of = np.repeat(np.arange(len(stations)), [len(features) for features in found])
    track = tracks(links, view_of)
    xy = np.concatenate([features.xy for features in found]).astype(np.float64)
    sigma = np.concatenate([features.sigma for features in found])
    world_from_cam = np.stack([station.world_from_cam for station in stations])
    cam_from_world, K = np.linalg.inv(world_from_cam), np.stack([station.K for station in stations])
    scale = np.array([max(station.size) for station in stations]) / 960
    limit = settings.epipolar * scale[view_of] * np.clip(sigma / scale[view_of] / 2, 1, 3)
    rows, point, positions = _placed(track, xy, view_of, limit, cam_from_world, K)
    wide = _widest(positions, point, view_of[rows], world_from_cam[:, :3, 3])
    good = (wide > np.degrees(settings.parallax / np.median(K[:, 0, 0]))) & np.isfinite(positions).all(1)
    # Of too many, those that most pictures see.
    length = np.where(good, np.bincount(point, minlength=len(positions)), -1)
    kept = np.sort(np.argsort(-length, kind="stable")[: min(settings.points, int(good.sum()))])
    number = np.full(len(positions), -1)
    number[kept] = np.arange(len(kept))
    mine = number[point] >= 0
    rows, point = rows[mine], number[point[mine]]
    descriptors = np.concatenate([features.descriptors for features in found])[rows]
    mean = np.zeros((len(kept), 128), np.float32)
    np.add.at(mean, point, unit(descriptors))
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
    return ClassicalMap(
        names=tuple(station.name for station in stations),
        world_from_cam=world_from_cam,
        K=K,
        sizes=np.array([station.size for station in stations], np.int32),
        positions=positions[kept],
        descriptors=np.clip(np.round(512 * mean), 0, 255).astype(np.uint8),
        obs_view=view_of[rows].astype(np.int32),
        obs_point=point.astype(np.int32),
        obs_xy=xy[rows].astype(np.float32),
        obs_sigma=sigma[rows].astype(np.float32),
        pictures=tuple(station.picture for station in stations),
        lenses=tuple(lenses),
    )


def _placed(
    track: Int[np.ndarray, "n"],
    xy: Float[np.ndarray, "n 2"],
    view_of: Int[np.ndarray, "n"],
    limit: Float[np.ndarray, "n"],
    cam_from_world: Float[np.ndarray, "v 4 4"],
    K: Float[np.ndarray, "v 3 3"],
) -> tuple[Int[np.ndarray, "r"], Int[np.ndarray, "r"], Float[np.ndarray, "p 3"]]:
    """(features, their points, the points' places): features that fall farther than ``limit`` from their point, or come
    second in their picture, leave their track."""
    rows, lens = np.flatnonzero(track >= 0), focals_and_centers(K)
    for _ in range(3):
        kept, point = _dense(track[rows], view_of[rows])
        rows = rows[kept]
        positions = triangulated(xy[rows], point, view_of[rows], cam_from_world, lens, int(point.max(initial=-1)) + 1)
        error, depth = _residuals(positions, xy[rows], point, view_of[rows], cam_from_world, K)
        rows = rows[(error < limit[rows]) & (depth > 0)]
    kept, point = _dense(track[rows], view_of[rows])
    rows = rows[kept]
    return (
        rows,
        point,
        triangulated(xy[rows], point, view_of[rows], cam_from_world, lens, int(point.max(initial=-1)) + 1),
    )


def _dense(track: Int[np.ndarray, "r"], view: Int[np.ndarray, "r"]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows to keep (tracks of two pictures and more, each once) and their point numbers without gaps."""
    _, first = np.unique(track * (int(view.max(initial=0)) + 1) + view, return_index=True)
    kept = np.sort(first)
    count = np.bincount(track[kept])
    kept = kept[count[track[kept]] >= 2]
    _, point = np.unique(track[kept], return_inverse=True)
    return kept, point


def _residuals(
    X: np.ndarray, xy: np.ndarray, point: np.ndarray, view: np.ndarray, cam_from_world: np.ndarray, K: np.ndarray
) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "r"]]:
    """Pixels off and depth of every observation."""
    cam = np.einsum("rij,rj->ri", cam_from_world[view, :3, :3], X[point]) + cam_from_world[view, :3, 3]
    z = np.where(np.abs(cam[:, 2]) > 1e-9, cam[:, 2], 1e-9)
    pixel = np.stack([K[view, 0, 0] * cam[:, 0] / z, K[view, 1, 1] * cam[:, 1] / z], 1) + K[view, :2, 2]
    return np.linalg.norm(pixel - xy, axis=1), cam[:, 2]


def _widest(X: np.ndarray, point: np.ndarray, view: np.ndarray, centers: np.ndarray) -> Float[np.ndarray, "p"]:
    """Degrees between a point's outermost rays: at least half the true one (from the mean ray), doubled."""
    ray = centers[view] - X[point]
    ray = ray / np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12)
    mean = np.stack([np.bincount(point, ray[:, i], len(X)) for i in range(3)], axis=1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    angle = np.degrees(np.arccos(np.clip((ray * mean[point]).sum(1), -1, 1)))
    out = np.zeros(len(X))
    np.maximum.at(out, point, angle)
    return 2 * out
