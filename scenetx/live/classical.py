"""Placing pictures in a classical map: patches of the map where a guess puts them, else SIFT and RANSAC."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from scenetx.live.classical_map import ClassicalMap
from scenetx.live.features import FeatureFinder, Features, FeatureSettings, grey_of, match, reduced, unit
from scenetx.live.follow import Follower, FollowSettings, Sight
from scenetx.live.solve import ransac, with_focal
from scenetx.live.update import Located

FIELDS_OF_VIEW = (30, 38, 48, 60, 74, 92, 112)
"""Degrees across the longer side that an unknown camera may have: focal lengths a quarter apart."""


@dataclass(frozen=True)
class ClassicalSettings:
    """How pictures are placed. Pixels are of pictures with a longer side of 640."""

    features: FeatureSettings = field(default_factory=FeatureSettings)
    quick: FeatureSettings = field(default_factory=lambda: FeatureSettings(side=400, most=600))
    """Near a guess, where few points compete: less than half the time, and patches confirm the pose."""
    follow: FollowSettings = field(default_factory=FollowSettings)
    ratio: float = 0.8
    """Lowe's test among all points of the map,"""
    near_ratio: float = 0.9
    """and among those of the pictures that look alike."""
    near_views: int = 8
    error: float = 5.0
    """RANSAC: how far a point may fall from its feature, pixels."""
    min_inliers: int = 12
    min_share: float = 0.12
    """Of the matches among the points of the likely pictures."""
    sure_inliers: int = 60
    """So many inliers that patches confirm make a pose certain."""
    zoom: float = 0.04
    """A focal length off by more than this share,"""
    zoom_sigmas: float = 6.0
    """and by so many standard deviations,"""
    zoom_gain: float = 1.25
    """and that lowers the cost by so much, is told: the lens has zoomed. A map's own errors do not gain that much."""
    drift: float = 0.01
    """Off by more than this share, and by so many standard deviations, it is mentioned."""
    likely: int = 400
    """Features that say which pictures of the map a frame may be of."""


class ClassicalLocator:
    """A `Locator` over a `ClassicalMap`; any CPU will do.

    With a guess it looks for the map's patches where they should be (a few milliseconds); when they are not there, and
    without a guess, for SIFT features. Answers depend on the arguments alone.
    """

    name = "classical"

    def __init__(self, made: ClassicalMap, settings: ClassicalSettings | None = None) -> None:
        self.map = made
        self.settings = settings or ClassicalSettings()
        self._quick, self._finder = FeatureFinder(self.settings.quick), FeatureFinder(self.settings.features)
        self._descriptors = unit(made.descriptors)
        self._follower = Follower(made, self.settings.follow)
        self._latest: tuple[Tensor, Features] | None = None

    @property
    def keyframes(self) -> int:
        """Pictures in the map."""
        return len(self.map.names)

    def locate(
        self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], guess: Float[Tensor, "4 4"] | None
    ) -> Located | None:
        """As `Locator.locate`."""
        grey, lens = self._reduced(grey_of(image), K.double().numpy())
        frame, follow = self._follower.frame(grey), self.settings.follow
        start = None if guess is None else np.linalg.inv(guess.double().numpy())
        near: Sight | None = None
        if start is not None:
            near = self._follower.follow(frame, lens, start)
            if near is not None and near.share > follow.good_share and near.inliers >= follow.good_inliers:
                return self._answer(near, lens, K, "patches")
        found = self._by_features(self._features(image, grey, quick=start is not None), lens, start)
        confirmed = None if found is None else self._follower.follow(frame, lens, found[0])
        best = max(
            (each for each in (near, confirmed) if each is not None), key=lambda each: each.inliers, default=None
        )
        if best is not None:
            where = "few patches" if found is None or best is near else f"features ({found[3]}), patches"
            return self._answer(best, lens, K, where)
        if found is None:
            return None
        # Nothing but features: enough for a pose, not for certainty.
        cam_from_world, inliers, matches, where = found
        confidence = 0.5 * min(1.0, inliers / self.settings.sure_inliers) * min(1.0, 2 * inliers / matches)
        pose_here = torch.from_numpy(np.linalg.inv(cam_from_world))
        return Located(pose_here, confidence, matches, inliers, f"features ({where})")

    def estimate_K(self, image: UInt8[Tensor, "h w 3"]) -> tuple[Float[Tensor, "3 3"], int] | None:
        """Intrinsics of a picture of the scene from an unknown camera (centred, square pixels) and the inliers that
        speak for them: the focal length that RANSAC likes best of a few, refined. None = it does not say."""
        grey, lens = self._reduced(grey_of(image), np.eye(3))
        features = self._features(image, grey)
        described = unit(features.descriptors)
        best: tuple[int, float] = (0, 0.0)
        for views in self._likely(described):
            pair = self._pairs(features, described, views)
            rough: tuple[int, float] = (0, 0.0)
            for degrees in FIELDS_OF_VIEW:
                focal = max(grey.shape) / 2 / math.tan(math.radians(degrees / 2))
                _, inlier, _ = ransac(*pair, _centred(focal, grey), 2 * self.settings.error, rounds=500)
                rough = max(rough, (int(inlier.sum()), focal))
            if rough[0] >= self.settings.min_inliers:
                K = _centred(rough[1], grey)
                _, inlier, refined = ransac(*pair, K, self.settings.error, free_focal=True)
                best = max(best, (int(inlier.sum()), refined))
            if best[0] >= self.settings.sure_inliers:
                break
        if best[0] < 2 * self.settings.min_inliers:
            return None
        height, width = image.shape[:2]
        focal = best[1] / lens[0, 0]
        found = [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
        return torch.tensor(found, dtype=torch.float64), best[0]

    def _features(self, image: Tensor, grey: UInt8[np.ndarray, "h w"], *, quick: bool = False) -> Features:
        """The picture's features; all of them only once, where the focal length is asked for too."""
        if quick:
            return self._quick(grey)
        if self._latest is None or self._latest[0] is not image:
            self._latest = (image, self._finder(grey))
        return self._latest[1]

    def _reduced(self, grey: UInt8[np.ndarray, "h w"], K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture at the size it is worked on, and its K."""
        small = reduced(grey, self.settings.features.side)
        if small is grey:
            return grey, K
        return small, np.diag([small.shape[1] / grey.shape[1], small.shape[0] / grey.shape[0], 1.0]) @ K

    def _answer(self, sight: Sight, lens: Float[np.ndarray, "3 3"], K: Float[Tensor, "3 3"], note: str) -> Located:
        """By patches; ``lens`` is the K they were looked for with, ``K`` that of the picture in its own size."""
        pose, measured, zooms = sight.cam_from_world, None, False
        free = with_focal(sight.pixels, sight.places, lens, pose, sight.error, rounds=8)
        settings, off = self.settings, abs(math.log(free.zoom))
        if off > max(settings.drift, settings.zoom_sigmas * free.sigma):
            measured = K.double().clone()
            measured[[0, 1], [0, 1]] *= free.zoom
            better = free.gain > settings.zoom_gain and int(free.inlier.sum()) >= sight.inliers
            zooms = better and off > settings.zoom
            pose = free.cam_from_world if zooms else pose
        share = min(1.0, max(0.0, (sight.share - 0.15) / 0.35))
        confidence = share * min(1.0, sight.inliers / self.settings.sure_inliers)
        there = torch.from_numpy(np.linalg.inv(pose))
        return Located(there, confidence, sight.tried, sight.inliers, note, measured, zooms)

    def _by_features(
        self, features: Features, K: np.ndarray, start: np.ndarray | None
    ) -> tuple[np.ndarray, int, int, str] | None:
        """(cam_from_world, inliers, matches, where): near the guess if there is one, else in the whole map."""
        described = unit(features.descriptors)
        if start is not None:
            views = self._follower.near(start, self.settings.near_views)
            pose = self._in_views(features, described, views, K)
            return None if pose is None else (*pose, "near")
        best: tuple[np.ndarray, int, int] | None = None
        for views in self._likely(described):
            pose = self._in_views(features, described, views, K)
            if pose is not None and (best is None or pose[1] > best[1]):
                best = pose
            if best is not None and best[1] >= self.settings.sure_inliers:
                break
        return None if best is None else (*best, "whole map")

    def _likely(self, described: Float[np.ndarray, "n 128"]) -> list[Int[np.ndarray, "k"]]:
        """Groups of pictures that the features may be of: those that see most of the points they match, and those that
        stand around the first of them."""
        some = described[:: max(1, len(described) // self.settings.likely)]
        _, points, _ = match(some @ self._descriptors.T, ratio=self.settings.ratio, mutual=False)
        if len(points) < 6:
            return []
        votes = np.zeros(len(self.map.names))
        for point in points:
            votes[self._follower.views_of(int(point))] += 1
        order = np.argsort(-votes, kind="stable")[: self.settings.near_views]
        around = self._follower.near(np.linalg.inv(self.map.world_from_cam[order[0]]), self.settings.near_views)
        return [order, around]

    def _pairs(
        self, features: Features, described: np.ndarray, views: Int[np.ndarray, "k"]
    ) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 3"]]:
        """Features matched with the points that some views see: pixels and places."""
        points = self._follower.points_of(views)
        rows, columns, _ = match(described @ self._descriptors[points].T, ratio=self.settings.near_ratio)
        return features.xy[rows].astype(np.float64), self.map.positions[points[columns]]

    def _in_views(
        self, features: Features, described: np.ndarray, views: Int[np.ndarray, "k"], K: np.ndarray
    ) -> tuple[np.ndarray, int, int] | None:
        """RANSAC over matches with the points that some views see."""
        pixels, places = self._pairs(features, described, views)
        if len(pixels) < self.settings.min_inliers:
            return None
        pose, inlier, _ = ransac(pixels, places, K, self.settings.error)
        count = int(inlier.sum())
        if count < self.settings.min_inliers or count < self.settings.min_share * len(pixels):
            return None
        # A far-away pose gathers any points in one spot.
        if pixels[inlier].std(0).max() < 0.04 * 2 * max(K[0, 2], K[1, 2]):
            return None
        return pose, count, len(pixels)


def _centred(focal: float, grey: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "3 3"]:
    return np.array([[focal, 0, grey.shape[1] / 2], [0, focal, grey.shape[0] / 2], [0, 0, 1.0]])
