"""The first map of an unknown place: two pictures with enough parallax, checked by a third, adjusted together.

Two pictures often have more than one explanation (`two_views`). All are carried on; the map is made when, over all
three pictures, one of them is right and plainly better than the others. Else more pictures are waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int

from scenetx.live.adjust import AdjustSettings, adjust, adjusted_map
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.features import match, unit
from scenetx.live.points import PointSettings, Station, link, map_of, matched, starts
from scenetx.live.solve import ransac
from scenetx.live.two_view import PairSettings, TwoView, epipolar_cost, off_lines, two_views

FOCALS = (0.68, 0.85, 1.1)
"""Of an unknown lens, times the longer side: phones and webcams. Their residuals do not tell them apart (a far place
seen with little parallax looks the same through all of them), so the first that makes a map is taken, and more pictures
tell the focal length (`grow.GrowingMap.find_lens`)."""


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
    pair: PairSettings = field(default_factory=PairSettings)
    parallax: float = 2.0
    """Median degrees between the rays to a point;"""
    parallax_unknown: float = 3.0
    """of an unknown lens, where less does not tell near from far."""
    third: float = 0.6
    """Share of the points matched in a third picture that have to agree."""
    agree: float = 0.7
    """Share of all matches, between each two of the three, that have to agree with the cameras."""
    rival: float = 1.25
    """Cameras that differ must have so many times the cost of the best, over all three pictures."""
    fit: float = 1.0
    """Median pixels off, after adjustment."""


class Opening:
    """Gathers pictures until three of them make a map; the oldest is its world."""

    def __init__(self, settings: OpeningSettings | None = None, points: PointSettings | None = None) -> None:
        self.settings = settings or OpeningSettings()
        self.points = points or PointSettings()
        self._waiting: list[Station] = []
        self._tries = 0
        self.rest: tuple[Station, ...] = ()
        """Pictures that waited too, and are not among the three of the map just made."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pictures that wait."""
        return tuple(station.name for station in self._waiting)

    def add(self, station: Station, *, known_lens: bool) -> tuple[list[Station], ClassicalMap] | None:
        """One more picture (its pose does not count): the first map's pictures and the map, once there is one.

        The map's unit is the median depth of its points in the first picture. ``known_lens``: K is right; else `FOCALS`
        are tried, one a picture, and the pictures come back with the one that made the map.
        """
        settings, scale = self.settings, max(station.size) / 640
        while self._waiting:
            rows, columns = matched(self._waiting[0], station)
            if len(rows) >= settings.matches:
                break
            # The oldest picture is out of sight: the next one is the reference.
            del self._waiting[0]
        else:
            self._waiting = [station]
            return None
        moved = _shift(self._waiting[0], station, rows, columns)
        if len(self._waiting) >= 2 and moved > settings.shift * scale:
            self._tries += 1
            for number in self._thirds():
                made = self._tried(station, rows, columns, self._waiting[number], known_lens=known_lens)
                if made is not None:
                    names = {each.name for each in made[0]}
                    self.rest = tuple(each for each in self._waiting if each.name not in names)
                    self._waiting = []
                    return made
        last = self._waiting[-1]
        if _shift(last, station, *matched(last, station)) > settings.news * scale:
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
        """The map that three pictures make; None = none, or several that differ."""
        least = self.settings.parallax if known_lens else self.settings.parallax_unknown
        group, made = [self._waiting[0], third, b], []
        if not known_lens:
            group = [_with_lens(station, FOCALS[self._tries % len(FOCALS)]) for station in group]
        for pair in two_views(group[0], group[2], rows, columns, self.settings.pair):
            posed = self._with_third(group, rows, pair)
            fitted = None if posed is None else self._adjusted(posed)
            if fitted is not None:
                made.append((*fitted, pair.parallax >= least))
        best = self._plainly_best([group for group, _, _ in made])
        return made[best][:2] if best is not None and made[best][2] else None

    def _plainly_best(self, groups: list[list[Station]]) -> int | None:
        """Which of several poses of the same three pictures is right; None = none is, or they do not tell.

        Judged by all matches between each two of them, but for those that none explains.
        """
        if not groups:
            return None
        scale, pair = max(groups[0][0].size) / 640, self.settings.pair
        parts = []
        for a, b in ((0, 2), (0, 1), (1, 2)):
            rows, columns = matched(groups[0][a], groups[0][b])
            parts.append([off_lines(group[a], group[b], rows, columns) / scale for group in groups])
        off = np.concatenate(parts, axis=1)
        right = off.min(axis=0) < pair.error
        costs = np.array([epipolar_cost(each[right] / pair.noise) for each in off])
        best = int(costs.argmin())
        if (off[best] < pair.error).mean() < self.settings.agree:
            return None
        steps = np.stack([group[2].world_from_cam[:3, 3] for group in groups])
        steps /= np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12)
        other = np.degrees(np.arccos(np.clip(steps @ steps[best], -1, 1))) > pair.apart
        return None if (costs[other] < self.settings.rival * costs[best]).any() else best

    def _with_third(self, group: list[Station], rows: np.ndarray, pair: TwoView) -> list[Station] | None:
        """The three with poses, if the third one sees the pair's points where they should be."""
        a, third, _ = group
        mine, features = rows[pair.inlier], third.features
        likeness = unit(a.features[mine].descriptors) @ unit(features.descriptors).T
        i, j, _ = match(likeness, ratio=0.85)
        if len(i) < self.settings.matches // 2:
            return None
        pixels, places = features.xy[j].astype(np.float64), pair.places[pair.inlier][i]
        error = 1.5 * self.settings.pair.error * max(a.size) / 640
        cam_from_world, inlier, _ = ransac(pixels, places, third.K, error, rounds=500)
        if inlier.sum() < self.settings.third * len(i):
            return None
        poses = (np.eye(4), np.linalg.inv(cam_from_world), np.linalg.inv(pair.b_from_a))
        return [replace(station, world_from_cam=pose) for station, pose in zip(group, poses, strict=True)]

    def _adjusted(self, group: list[Station]) -> tuple[list[Station], ClassicalMap] | None:
        """(the three, their map) after adjustment; None = too few points or too far off."""
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
        return group, made


def with_unit(made: ClassicalMap, view: int) -> ClassicalMap:
    """The map in the frame of one of its pictures, scaled so that its points' median depth there is 1."""
    cam_from_world = np.linalg.inv(made.world_from_cam[view])
    depth = made.positions[made.obs_point[made.obs_view == view]] @ cam_from_world[2, :3] + cam_from_world[2, 3]
    scale = 1 / max(float(np.median(depth)), 1e-9) if len(depth) else 1.0
    poses = cam_from_world @ made.world_from_cam
    poses[:, :3, 3] *= scale
    positions = scale * (made.positions @ cam_from_world[:3, :3].T + cam_from_world[:3, 3])
    return replace(made, world_from_cam=poses, positions=positions)


def _shift(a: Station, b: Station, rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"]) -> float:
    """Median pixels between matches; without any, pictures differ beyond measure."""
    moved = np.linalg.norm(a.features.xy[rows] - b.features.xy[columns], axis=1)
    return float(np.median(moved)) if len(moved) else np.inf


def _with_lens(station: Station, focal: float) -> Station:
    """The picture as of a lens of ``focal`` times its longer side."""
    K = station.K.copy()
    K[0, 0] = K[1, 1] = focal * max(station.size)
    return replace(station, K=K)
