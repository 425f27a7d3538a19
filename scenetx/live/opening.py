"""The first map of an unknown place: two pictures with enough parallax, checked by a third, adjusted together.

Two ways lead from one picture to the other: the essential matrix (five points, Nistér 2004) and, for flat scenes, the
homography (Faugeras & Lustman 1988; ORB-SLAM's choice of model, Mur-Artal et al. 2015). Rather than choose between
them by their residuals, both are carried on: the one whose points put the third picture in its place is right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import poselib
import pycolmap
from jaxtyping import Bool, Float, Int

from scenetx.live.adjust import AdjustSettings, adjust, adjusted_map
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.features import match, unit
from scenetx.live.points import PointSettings, Station, link, map_of, starts
from scenetx.live.solve import ransac

FOCALS = (0.85, 1.1, 0.68)
"""Of an unknown lens, times the longer side: webcams and phones first. Their residuals do not tell them apart (a far
place seen with little parallax looks the same through all of them), so the first that makes a map is taken."""


@dataclass(frozen=True)
class OpeningSettings:
    """When two pictures make a map. Pixels are of pictures with a longer side of 640."""

    kept: int = 12
    """Pictures waiting, at most."""
    matches: int = 50
    """Between the two pictures and, of their points, in a third one: fewer say nothing."""
    shift: float = 12.0
    """Median pixels a feature has moved before a map is tried."""
    news: float = 4.0
    """Median pixels a picture has to differ from the last one that waits to wait as well."""
    error: float = 2.0
    """Pixels a match may be off."""
    parallax: float = 2.0
    """Median degrees between the rays to a point;"""
    parallax_unknown: float = 3.0
    """of an unknown lens, where less does not tell near from far."""
    third: float = 0.6
    """Share of the points matched in a third picture that have to agree."""
    flat: float = 0.7
    """Share of the essential matrix's inliers from which on a homography is tried too."""
    fit: float = 1.0
    """Median pixels off, after adjustment."""


@dataclass(frozen=True)
class TwoView:
    """A relative pose (length of the shift: 1), the matches it explains, and the points they make (first camera)."""

    b_from_a: Float[np.ndarray, "4 4"]
    inlier: Bool[np.ndarray, "n"]
    places: Float[np.ndarray, "n 3"]
    parallax: float


class Opening:
    """Gathers pictures until three of them make a map; the oldest is its world."""

    def __init__(self, settings: OpeningSettings | None = None, points: PointSettings | None = None) -> None:
        self.settings = settings or OpeningSettings()
        self.points = points or PointSettings()
        self._waiting: list[Station] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures that wait."""
        return tuple(station.name for station in self._waiting)

    def add(self, station: Station, *, known_lens: bool) -> tuple[list[Station], ClassicalMap] | None:
        """One more picture (its pose does not count): the first map's pictures and the map, once there is one.

        The map's unit is the median depth of its points in the first picture. ``known_lens``: K is right; else `FOCALS`
        are tried, and the pictures come back with the one that made the map.
        """
        settings, scale = self.settings, max(station.size) / 640
        while self._waiting:
            rows, columns = _matched(self._waiting[0], station)
            if len(rows) >= settings.matches:
                break
            # The oldest picture is out of sight: the next one is the reference.
            del self._waiting[0]
        else:
            self._waiting = [station]
            return None
        moved = _shift(self._waiting[0], station, rows, columns)
        if len(self._waiting) >= 2 and moved > settings.shift * scale:
            for number in self._thirds():
                made = self._tried(station, rows, columns, self._waiting[number], known_lens=known_lens)
                if made is not None:
                    self._waiting = []
                    return made
        last = self._waiting[-1]
        if _shift(last, station, *_matched(last, station)) > settings.news * scale:
            self._waiting.append(station)
            if len(self._waiting) > settings.kept:
                self._waiting = self._waiting[::2]
        return None

    def _thirds(self) -> list[int]:
        """The middle one of those that wait, and the last."""
        count = len(self._waiting)
        return sorted({max(1, count // 2), count - 1})

    def _tried(
        self, b: Station, rows: np.ndarray, columns: np.ndarray, third: Station, *, known_lens: bool
    ) -> tuple[list[Station], ClassicalMap] | None:
        """The better of the maps that the two models lead to; None = none is good."""
        least = self.settings.parallax if known_lens else self.settings.parallax_unknown
        for focal in (None,) if known_lens else FOCALS:
            group = [self._waiting[0], third, b]
            if focal is not None:
                group = [_with_lens(station, focal) for station in group]
            best: tuple[float, list[Station], ClassicalMap] | None = None
            for pair in two_views(group[0], group[2], rows, columns, self.settings):
                posed = self._with_third(group, rows, pair) if pair.parallax >= least else None
                made = None if posed is None else self._adjusted(posed)
                if made is not None and (best is None or made[0] < best[0]):
                    best = made
            if best is not None:
                return best[1:]
        return None

    def _with_third(self, group: list[Station], rows: np.ndarray, pair: TwoView) -> list[Station] | None:
        """The three with poses, if the third one sees the pair's points where they should be."""
        a, third, _ = group
        mine, features = rows[pair.inlier], third.features
        likeness = unit(a.features[mine].descriptors) @ unit(features.descriptors).T
        i, j, _ = match(likeness, ratio=0.85)
        if len(i) < self.settings.matches // 2:
            return None
        pixels, places = features.xy[j].astype(np.float64), pair.places[pair.inlier][i]
        error = 1.5 * self.settings.error * max(a.size) / 640
        cam_from_world, inlier, _ = ransac(pixels, places, third.K, error, rounds=500)
        if inlier.sum() < self.settings.third * len(i):
            return None
        poses = (np.eye(4), np.linalg.inv(cam_from_world), np.linalg.inv(pair.b_from_a))
        return [replace(station, world_from_cam=pose) for station, pose in zip(group, poses, strict=True)]

    def _adjusted(self, group: list[Station]) -> tuple[float, list[Station], ClassicalMap] | None:
        """(error, the three, their map) after adjustment; None = too few points or too far off."""
        for final in (False, True):
            first = starts(group)
            links = [link(group[a], group[b], self.points) + first[[a, b], None] for a, b in ((0, 1), (0, 2), (1, 2))]
            made = map_of(group, np.concatenate(links, axis=1), self.points)
            if len(made) < self.settings.matches:
                return None
            made = with_unit(made, 0)
            answer = adjust(made, np.ones(3, bool), settings=AdjustSettings(rounds=15))
            made = with_unit(adjusted_map(made, answer), 0)
            group = [replace(each, world_from_cam=pose) for each, pose in zip(group, made.world_from_cam, strict=True)]
            if final and answer.error > self.settings.fit * max(group[0].size) / 640:
                return None
        return answer.error / np.sqrt(len(made)), group, made


def two_views(
    a: Station, b: Station, rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"], settings: OpeningSettings
) -> list[TwoView]:
    """What two pictures may say of their cameras, by matches ``rows`` of a, ``columns`` of b; those with too little
    parallax (a camera that only turns has none), or too few points before both cameras, are left out."""
    xa, xb = a.features.xy[rows].astype(np.float64), b.features.xy[columns].astype(np.float64)
    error = settings.error * max(a.size) / 640
    cameras = [_camera(station) for station in (a, b)]
    limits = {"max_epipolar_error": error, "max_reproj_error": error, "seed": 0, "min_iterations": 100}
    limits |= {"max_iterations": 2000}
    essential, said = poselib.estimate_relative_pose(xa, xb, cameras[0], cameras[1], limits, {})
    poses = [np.vstack([essential.Rt, [0, 0, 0, 1.0]])]
    inliers = int(np.sum(said["inliers"]))
    H, flat = poselib.estimate_homography(xa, xb, limits, {})
    on_plane = np.asarray(flat["inliers"], bool)
    if on_plane.sum() > settings.flat * max(inliers, 1) and on_plane.sum() >= 8:
        rays = [_rays(station.K, x[on_plane]) for station, x in ((a, xa), (b, xb))]
        answer = pycolmap.pose_from_homography_matrix(H, a.K, b.K, *rays)
        if answer is not None:
            pose = answer["cam2_from_cam1"].matrix()
            length = np.linalg.norm(pose[:, 3])
            if length > 1e-9:
                pose[:, 3] /= length
                poses.append(np.vstack([pose, [0, 0, 0, 1.0]]))
    found = [_triangulated(pose, _rays(a.K, xa), _rays(b.K, xb), error / a.K[0, 0]) for pose in poses]
    return [
        pair
        for pair in found
        if pair.inlier.sum() >= max(settings.matches, 0.5 * len(rows)) and pair.parallax >= settings.parallax
    ]


def _triangulated(
    b_from_a: Float[np.ndarray, "4 4"], a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"], error: float
) -> TwoView:
    """Points by the midpoint of their rays; inliers lie before both cameras and fall within ``error`` (tangent)."""
    R, t = b_from_a[:3, :3], b_from_a[:3, 3]
    center, turned = -R.T @ t, b @ R
    u, v = a / np.linalg.norm(a, axis=1, keepdims=True), turned / np.linalg.norm(turned, axis=1, keepdims=True)
    cosine = (u * v).sum(1)
    below = np.maximum(1 - cosine**2, 1e-12)
    along = ((u @ center) - cosine * (v @ center)) / below
    back = (cosine * (u @ center) - (v @ center)) / below
    places = 0.5 * (along[:, None] * u + center + back[:, None] * v)
    seen = places @ R.T + t
    front = (along > 0) & (back > 0) & (places[:, 2] > 1e-9) & (seen[:, 2] > 1e-9)
    off_a = np.linalg.norm(places[:, :2] / np.maximum(places[:, 2:], 1e-9) - a[:, :2], axis=1)
    off_b = np.linalg.norm(seen[:, :2] / np.maximum(seen[:, 2:], 1e-9) - b[:, :2], axis=1)
    inlier = front & (off_a < error) & (off_b < error)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return TwoView(b_from_a, inlier, places, float(np.median(angle[inlier])) if inlier.any() else 0.0)


def with_unit(made: ClassicalMap, view: int) -> ClassicalMap:
    """The map in the frame of one of its pictures, scaled so that its points' median depth there is 1."""
    cam_from_world = np.linalg.inv(made.world_from_cam[view])
    depth = made.positions[made.obs_point[made.obs_view == view]] @ cam_from_world[2, :3] + cam_from_world[2, 3]
    scale = 1 / max(float(np.median(depth)), 1e-9) if len(depth) else 1.0
    poses = cam_from_world @ made.world_from_cam
    poses[:, :3, 3] *= scale
    positions = scale * (made.positions @ cam_from_world[:3, :3].T + cam_from_world[:3, 3])
    return replace(made, world_from_cam=poses, positions=positions)


def _matched(a: Station, b: Station) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    rows, columns, _ = match(unit(a.features.descriptors) @ unit(b.features.descriptors).T, ratio=0.8)
    return rows, columns


def _shift(a: Station, b: Station, rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"]) -> float:
    """Median pixels between matches; without any, pictures differ beyond measure."""
    moved = np.linalg.norm(a.features.xy[rows] - b.features.xy[columns], axis=1)
    return float(np.median(moved)) if len(moved) else np.inf


def _with_lens(station: Station, focal: float) -> Station:
    """The picture as of a lens of ``focal`` times its longer side."""
    K = station.K.copy()
    K[0, 0] = K[1, 1] = focal * max(station.size)
    return replace(station, K=K)


def _rays(K: Float[np.ndarray, "3 3"], xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    return np.concatenate([(xy - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(xy), 1))], axis=1)


def _camera(station: Station) -> dict[str, object]:
    K = station.K
    height, width = station.size
    return {"model": "PINHOLE", "width": width, "height": height, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
