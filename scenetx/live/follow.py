"""Following: where the camera is when it is known about where it should be, by the map's patches."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, UInt8

from scenetx.live import patches as patch
from scenetx.live.classical_map import ClassicalMap, decode_grey
from scenetx.live.solve import ransac


@dataclass(frozen=True)
class FollowSettings:
    """How patches are chosen and judged."""

    views: int = 6
    """Pictures of the map whose points are looked for: those nearest in place and direction."""
    coarse: int = 120
    fine: int = 260
    """Patches of the first search (far, in a small picture) and of the second."""
    reach: int = 9
    """Pixels the first search goes, in a picture a quarter as wide; and where it finds nothing"""
    far_reach: int = 16
    """a search before it, in a picture an eighth as wide."""
    alike: float = 0.75
    """Correlation from which a patch counts as found."""
    error: float = 2.0
    """Pixels (of the patch's level) a found patch may be off."""
    min_inliers: int = 16
    min_share: float = 0.2
    """Of the patches looked for that agree with the pose, for there to be a pose at all,"""
    good_share: float = 0.3
    """and, with so many inliers,"""
    good_inliers: int = 30
    """to look no further."""


@dataclass(frozen=True)
class Sight:
    """A pose that patches agree on."""

    cam_from_world: Float[np.ndarray, "4 4"]
    tried: int
    inliers: int
    pixels: Float[np.ndarray, "n 2"]
    """Where patches were found, right or wrong;"""
    places: Float[np.ndarray, "n 3"]
    """and the points they are of."""
    error: float
    """Pixels off, within which they are right."""

    @property
    def share(self) -> float:
        """Of the patches looked for, those that agree."""
        return self.inliers / max(self.tried, 1)


@dataclass(frozen=True)
class _Expected:
    """``n`` points where a pose puts them, and the warps that make their patches."""

    point: Int[np.ndarray, "n"]
    xy: Float[np.ndarray, "n 2"]
    view: Int[np.ndarray, "n"]
    ref_xy: Float[np.ndarray, "n 2"]
    ref_from_cur: Float[np.ndarray, "n 2 2"]  # a pixel's step in the frame, in the map's picture
    sigma: Float[np.ndarray, "n"]  # the feature's size in the frame


@functools.lru_cache(maxsize=96)
def _levels_of(picture: bytes) -> patch.Levels:
    """A map that grows is followed anew with each picture that joins it; most of its pictures stay."""
    return patch.levels_of(decode_grey(picture))


class Follower:
    """Knows which points the map's pictures see, and measures a frame against them."""

    def __init__(self, made: ClassicalMap, settings: FollowSettings | None = None) -> None:
        self.settings = settings or FollowSettings()
        self._map = made
        levels = [_levels_of(picture) for picture in made.pictures]
        self._shelf = patch.Shelf.of(levels)
        small = np.array([each[0].shape for each in levels], np.float64)
        scale = small / made.sizes  # of height, width
        self._K = made.K * np.concatenate([scale[:, ::-1], np.ones((len(scale), 1))], axis=1)[:, :, None]
        self._xy = made.obs_xy * scale[made.obs_view][:, ::-1]
        self._sigma = made.obs_sigma * scale[made.obs_view].mean(1)
        self._cam_from_world = np.linalg.inv(made.world_from_cam)
        self._first = np.searchsorted(made.obs_view, np.arange(len(made.names) + 1))
        by_point = np.argsort(made.obs_point, kind="stable")
        self._views_by_point = made.obs_view[by_point]
        self._start_by_point = np.searchsorted(made.obs_point[by_point], np.arange(len(made) + 1))
        self._seen = np.diff(self._start_by_point)
        cam = (
            np.einsum("oij,oj->oi", self._cam_from_world[made.obs_view][:, :3, :3], made.positions[made.obs_point])
            + (self._cam_from_world[made.obs_view][:, :3, 3])
        )
        self._depth = np.maximum(cam[:, 2], 1e-9)
        middle = float(np.median(self._depth))
        ends = pairwise(self._first)
        self._range = np.array([np.median(self._depth[a:b]) if b > a else middle for a, b in ends])

    def views_of(self, point: int) -> Int[np.ndarray, "k"]:
        """The pictures that see a point."""
        return self._views_by_point[self._start_by_point[point] : self._start_by_point[point + 1]]

    def points_of(self, views: Int[np.ndarray, "k"]) -> Int[np.ndarray, "p"]:
        """The points that some pictures see, each once."""
        parts = [self._map.obs_point[self._first[view] : self._first[view + 1]] for view in views]
        return np.unique(np.concatenate(parts))

    def near(self, cam_from_world: Float[np.ndarray, "4 4"], count: int) -> Int[np.ndarray, "k"]:
        """The map's pictures nearest to a pose: distance over the depth they see, and the angle between the axes."""
        world_from_cam = np.linalg.inv(cam_from_world)
        away = np.linalg.norm(self._map.world_from_cam[:, :3, 3] - world_from_cam[:3, 3], axis=1) / self._range
        cosine = self._map.world_from_cam[:, :3, 2] @ world_from_cam[:3, 2]
        angle = np.arccos(np.clip(cosine, -1, 1))
        return np.argsort(away + angle, kind="stable")[:count]

    def frame(self, grey: UInt8[np.ndarray, "h w"]) -> list[Float[np.ndarray, "_ _"]]:
        """A frame's pyramid, for `follow`."""
        return patch.pyramid(grey)

    def follow(
        self, frame: list[Float[np.ndarray, "_ _"]], K: Float[np.ndarray, "3 3"], start: Float[np.ndarray, "4 4"]
    ) -> Sight | None:
        """The pose near ``start`` (cam_from_world) that the patches agree on; None = too few are where they should be.

        A far search in a small picture first, RANSAC over what it finds; then a near one at the features' own sizes, to
        a fraction of a pixel, and the robust least squares pose.
        """
        settings = self.settings
        level = 2 if max(frame[0].shape) > 400 else 1
        pose = self._coarse(frame, K, start, level, settings.reach)
        if pose is None and settings.far_reach and level + 1 < patch.LEVELS:
            rough = self._coarse(frame, K, start, level + 1, settings.far_reach)
            pose = None if rough is None else self._coarse(frame, K, rough, level, settings.reach)
        if pose is None:
            return None
        expected = self._expected(frame[0].shape, K, pose, settings.fine)
        if len(expected.point) < settings.min_inliers:
            return None
        level_of = np.clip(np.round(np.log2(np.maximum(expected.sigma, 0.1) / 1.6)), 0, 3).astype(np.int64)
        found, score, tried = self._measure(frame, expected, level_of, 3, 8)
        good = score > settings.alike
        if int(good.sum()) < settings.min_inliers:
            return None
        error = settings.error * 2 ** float(np.median(level_of[good]))
        pose, inlier = self._pose(expected, good, found, K, pose, error)
        count = int(inlier.sum())
        if count < settings.min_inliers or count < settings.min_share * tried:
            return None
        return Sight(pose, tried, count, found[good], self._map.positions[expected.point[good]], error)

    def _coarse(
        self, frame: list[np.ndarray], K: np.ndarray, start: np.ndarray, level: int, reach: int
    ) -> Float[np.ndarray, "4 4"] | None:
        """Whole patches in a small picture, up to ``reach`` of its pixels from where they should be, and RANSAC."""
        expected = self._expected(frame[0].shape, K, start, self.settings.coarse)
        if len(expected.point) < self.settings.min_inliers:
            return None
        found, score, _ = self._measure(frame, expected, np.full(len(expected.point), level), reach, 0)
        good = score > self.settings.alike
        if int(good.sum()) < 8:
            return None
        pose, inlier = self._pose(expected, good, found, K, start, 2.5 * 2**level)
        return pose if int(inlier.sum()) >= 8 else None

    def _expected(self, size: tuple[int, ...], K: np.ndarray, pose: Float[np.ndarray, "4 4"], most: int) -> _Expected:
        """Points of the near pictures that should be in the frame, spread over it, each with its nearest picture."""
        views = self.near(pose, self.settings.views)
        rows = np.concatenate([np.arange(self._first[view], self._first[view + 1]) for view in views])
        # The first time a point comes up is in the nearest picture.
        _, once = np.unique(self._map.obs_point[rows], return_index=True)
        rows = rows[np.sort(once)]
        point = self._map.obs_point[rows]
        cam = self._map.positions[point] @ pose[:3, :3].T + pose[:3, 3]
        z = np.where(cam[:, 2] > 1e-9, cam[:, 2], 1.0)
        xy = cam[:, :2] / z[:, None] * K[[0, 1], [0, 1]] + K[:2, 2]
        margin = 6.0
        inside = (cam[:, 2] > 1e-9) & (xy > margin).all(1) & (xy < np.array(size[::-1]) - margin).all(1)
        rows, point, xy = rows[inside], point[inside], xy[inside]
        chosen = _spread(xy, self._seen[point], size, most)
        rows, point, xy = rows[chosen], point[chosen], xy[chosen]
        ref_from_cur = self._warps(rows, pose, K)
        zoom = np.sqrt(np.abs(np.linalg.det(ref_from_cur)))
        fits = (zoom > 0.2) & (zoom < 5) & np.isfinite(zoom)
        rows, point, xy, ref_from_cur, zoom = rows[fits], point[fits], xy[fits], ref_from_cur[fits], zoom[fits]
        return _Expected(point, xy, self._map.obs_view[rows], self._xy[rows], ref_from_cur, self._sigma[rows] / zoom)

    def _warps(self, rows: np.ndarray, pose: np.ndarray, K: np.ndarray) -> Float[np.ndarray, "n 2 2"]:
        """How a small step in the frame moves in the map's picture, for a surface that faces that picture."""
        view = self._map.obs_view[rows]
        cur_from_ref = pose @ self._map.world_from_cam[view]
        Kr, z = self._K[view], self._depth[rows]
        x, y = ((self._xy[rows] - Kr[:, :2, 2]) / Kr[:, [0, 1], [0, 1]]).T
        R, t = cur_from_ref[:, :3, :3], cur_from_ref[:, :3, 3]
        p = np.einsum("nij,nj->ni", R, np.stack([x * z, y * z, z], 1)) + t
        w = np.where(np.abs(p[:, 2]) > 1e-9, p[:, 2], 1e-9)
        out = np.empty((len(rows), 2, 2))
        for j in range(2):
            d = R[:, :, j] * (z / Kr[:, j, j])[:, None]
            for i in range(2):
                out[:, i, j] = K[i, i] * (d[:, i] / w - p[:, i] * d[:, 2] / w**2)
        det = out[:, 0, 0] * out[:, 1, 1] - out[:, 0, 1] * out[:, 1, 0]
        det = np.where(np.abs(det) > 1e-12, det, np.nan)
        swapped = np.stack([out[:, 1, 1], -out[:, 0, 1], -out[:, 1, 0], out[:, 0, 0]], 1).reshape(-1, 2, 2)
        return swapped / det[:, None, None]

    def _measure(
        self, frame: list[np.ndarray], expected: _Expected, level: np.ndarray, reach: int, rounds: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Where the patches are in the frame (pixels of level 0), how alike they are, and how many could be made."""
        found, score = expected.xy.copy(), np.full(len(expected.point), -1.0)
        tried = 0
        for at in np.unique(level):
            mine = np.flatnonzero(level == at)
            step = expected.ref_from_cur[mine] * 2.0**at
            zoom = np.sqrt(np.abs(np.linalg.det(step)))
            below = np.clip(np.round(np.log2(zoom)), 0, patch.LEVELS - 1).astype(np.int64)
            shrink = 2.0 ** -below.astype(np.float64)
            row = expected.view[mine].astype(np.int64) * patch.LEVELS + below
            made = patch.warped(self._shelf, row, expected.ref_xy[mine] * shrink[:, None], step * shrink[:, None, None])
            tried += int(np.isfinite(made[:, 0, 0] + made[:, -1, -1]).sum())
            image, size = frame[int(at)], 2.0**at
            places, alike = patch.sought(image, made, expected.xy[mine] / size, reach)
            if rounds:
                fine, alike_fine = patch.refined(image, made, places, rounds)
                places, alike = fine, np.where(alike > 0.5, alike_fine, -1.0)
            found[mine], score[mine] = places * size, alike
        return found, score, tried

    def _pose(
        self, expected: _Expected, good: np.ndarray, found: np.ndarray, K: np.ndarray, pose: np.ndarray, error: float
    ) -> tuple[Float[np.ndarray, "4 4"], np.ndarray]:
        """RANSAC with the guess as a hypothesis, refined on the inliers."""
        pixels = np.ascontiguousarray(found[good])
        places = np.ascontiguousarray(self._map.positions[expected.point[good]])
        answer, inlier, _ = ransac(pixels, places, K, error, start=pose, rounds=300)
        return answer, inlier


def _spread(
    xy: Float[np.ndarray, "n 2"], seen: Int[np.ndarray, "n"], size: tuple[int, ...], most: int
) -> Int[np.ndarray, "m"]:
    """At most ``most`` points, evenly over the frame: round by round the most often seen of each cell."""
    if len(xy) <= most:
        return np.arange(len(xy))
    across, down = 16, 12
    cell = (xy[:, 0] * across / size[1]).astype(int).clip(0, across - 1)
    cell = cell + across * (xy[:, 1] * down / size[0]).astype(int).clip(0, down - 1)
    order = np.lexsort((-seen, cell))
    first = np.searchsorted(cell[order], np.arange(across * down))
    rank = np.arange(len(order)) - first[cell[order]]
    return order[np.argsort(rank, kind="stable")[:most]]
