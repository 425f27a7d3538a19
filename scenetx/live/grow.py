"""A classical map that grows: pictures join with their matches, and the cameras about the newest are adjusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from scenetx.live.adjust import AdjustSettings, adjust, adjusted_map
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.expected import feature_rows, points_seen, seen_where_expected
from scenetx.live.features import match, unit
from scenetx.live.keyframes import KeyframeSettings, spread
from scenetx.live.points import PointSettings, Station, link, map_of, matched, starts
from scenetx.live.solve import ransac
from scenetx.live.two_view import off_lines

Joined = Literal["taken", "little", "doubtful"]
"""What becomes of a picture: it joins the map; hangs on too few points; contradicts the map's pictures."""


@dataclass(frozen=True)
class GrowSettings:
    """How a map takes a picture in."""

    most: int = 80
    """Pictures, at most; of more, the most redundant go."""
    neighbors: int = 6
    """Pictures of the map a new one is matched with."""
    window: int = 6
    """Pictures whose cameras are adjusted with the new one: those that share most points with it."""
    young: int = 12
    """In a map of so few pictures all cameras are adjusted: the first three hang on little parallax."""
    agree: float = 0.75
    """Share of a new picture's matches with its neighbours, cameras unasked, that have to agree with the cameras:"""
    agree_error: float = 2.0
    """by so many pixels (of a longer side of 640) from their epipolar lines."""
    agree_matches: int = 40
    """A neighbour with fewer matches has no say."""
    reach: float = 4.0
    """Pixels (of a longer side of 640) from where a point of the map should be, within which it is looked for."""
    least: int = 25
    """Points a new picture has to see to stay."""
    lens_pictures: int = 5
    """Pictures from which on an unknown focal length is looked for."""
    lens_use: float = 0.02
    """Its relative standard deviation from which on it is better than the first guess;"""
    lens_sigma: float = 0.004
    """from which on it is known, and"""
    lens_done: int = 25
    """pictures at which it is, if it is better than a guess."""
    adjust: AdjustSettings = field(default_factory=AdjustSettings)
    points: PointSettings = field(default_factory=lambda: PointSettings(parallax=3.0))
    """Far points with little parallax still say how the camera turns."""


class GrowingMap:
    """The pictures of a map, their matches and, after each change, the map. Not for two threads at once."""

    def __init__(
        self,
        stations: Sequence[Station],
        made: ClassicalMap,
        *,
        known_lens: bool,
        settings: GrowSettings | None = None,
        links: Mapping[tuple[str, str], Int[np.ndarray, "2 _"]] | None = None,
    ) -> None:
        """links: matches of the pictures, if they are known (`links`)."""
        self.settings = settings or GrowSettings()
        self.map = made
        self.known_lens = known_lens
        self._stations = list(stations)
        self._links: dict[tuple[str, str], Int[np.ndarray, "2 k"]] = dict(links or {})
        for k in range(1, len(self._stations) if links is None else 0):
            self._match(self._stations[k], self._stations[:k])

    @property
    def stations(self) -> tuple[Station, ...]:
        """As they are in the map, in order of their coming."""
        return tuple(self._stations)

    @property
    def links(self) -> Mapping[tuple[str, str], Int[np.ndarray, "2 _"]]:
        """Matches: of two pictures' names, the numbers of the features that are the same."""
        return self._links

    def add(self, station: Station) -> Joined:
        """One more picture, near its place in the map.

        Matches that are looked for along epipolar lines agree with any camera, so others are asked first: a picture
        that they contradict is placed anew by the map's points, or turned away.
        """
        station, near = self._seen_from(station)
        if self._agreement(station, near) < self.settings.agree:
            placed = self._placed_anew(station, near)
            if placed is None or self._agreement(placed, near) < self.settings.agree:
                return "doubtful"
            station = placed
        self._match(station, near)
        self.match_points(station, self.settings.reach * max(station.size) / 640, self.map)
        self._stations.append(station)
        made = self._made()
        if int((made.obs_view == len(self._stations) - 1).sum()) < self.settings.least:
            self._drop(len(self._stations) - 1)
            return "little"
        self.map = self._adjusted(made)
        self._follow()
        if not self.known_lens and len(self._stations) >= self.settings.lens_pictures:
            self._find_lens()
        if len(self._stations) > self.settings.most:
            self._thin()
        return "taken"

    def agrees(self, station: Station) -> bool:
        """Whether the map's pictures bear a picture's pose out, as far as they see the same."""
        return self._agreement(*self._seen_from(station)) >= self.settings.agree

    def _seen_from(self, station: Station) -> tuple[Station, list[Station]]:
        """The picture with the lens as it is now, and its neighbours."""
        if not self.known_lens:  # what it was thought to be may be old by now
            station = replace(station, K=self._stations[-1].K)
        return station, [self._stations[k] for k in self._nearest(station)]

    def _agreement(self, station: Station, near: Sequence[Station]) -> float:
        """Share of matches with its neighbours that agree with the cameras; 1 where there are too few to tell."""
        settings, right, count = self.settings, 0, 0
        for other in near:
            rows, columns = matched(other, station)
            if len(rows) >= settings.agree_matches:
                off = off_lines(other, station, rows, columns) * 640 / max(station.size)
                right, count = right + int((off < settings.agree_error).sum()), count + len(rows)
        return right / count if count else 1.0

    def _placed_anew(self, station: Station, near: Sequence[Station]) -> Station | None:
        """The picture where its features, matched with the points its neighbours see, put it."""
        made, names = self.map, {other.name for other in near}
        views = [k for k, name in enumerate(made.names) if name in names]
        points = np.unique(made.obs_point[np.isin(made.obs_view, views)])
        likeness = unit(station.features.descriptors) @ unit(made.descriptors[points]).T
        rows, columns, _ = match(likeness, ratio=0.85)
        pixels, error = station.features.xy[rows].astype(np.float64), 1.5 * self.settings.agree_error
        limit = error * max(station.size) / 640
        cam_from_world, inlier, _ = ransac(pixels, made.positions[points[columns]], station.K, limit, rounds=1000)
        if int(inlier.sum()) < self.settings.least:
            return None
        return replace(station, world_from_cam=np.linalg.inv(cam_from_world))

    def settle(self, loose: float | int = 1) -> None:
        """All cameras adjusted together, for a map that is to be kept; the first one and the scale stay. ``loose``:
        points may be so many times farther off at first, for pictures that stand only about right."""
        free = np.ones(len(self._stations), bool)
        free[0] = False
        made = self._made(loose)
        answer = adjust(made, free, focal=not self.known_lens, settings=self.settings.adjust)
        self.map = _same_scale(adjusted_map(made, answer), made)
        self._follow()
        if len(self._stations) > self.settings.most:
            self._thin()
        self.map = self._made()

    def _match(self, station: Station, others: Sequence[Station]) -> None:
        for other in others:
            self._links[other.name, station.name] = link(other, station, self.settings.points)

    def match_points(self, station: Station, reach: float, made: ClassicalMap) -> None:
        """Matches of a picture with the points of a map of (some of) these pictures, within ``reach`` pixels of where
        they should be: tracks grow longer than by neighbours, and a place seen again holds on to what was seen there.
        They count from the next adjustment on."""
        rows, features = seen_where_expected(made, points_seen(made, station), station, reach)
        by_name = {each.name: each for each in self._stations}
        for view in np.unique(made.obs_view[rows]):
            mine, name = made.obs_view[rows] == view, made.names[view]
            old = feature_rows(by_name[name], made.obs_xy[rows[mine]])
            pair = np.stack([old, features[mine]])[:, old >= 0]
            before = self._links.get((name, station.name))
            self._links[name, station.name] = pair if before is None else np.concatenate([before, pair], axis=1)

    def _made(self, loose: float | int = 1) -> ClassicalMap:
        """The map by the cameras as they stand."""
        points = replace(self.settings.points, epipolar=loose * self.settings.points.epipolar)
        number = {station.name: k for k, station in enumerate(self._stations)}
        first = starts(self._stations)
        links = [pair + first[[number[a], number[b]], None] for (a, b), pair in self._links.items()]
        return map_of(self._stations, np.concatenate(links, axis=1), points)

    def _adjusted(self, made: ClassicalMap) -> ClassicalMap:
        """The newest camera and those that share most points with it; the first two are what all hangs on."""
        newest = len(self._stations) - 1
        if newest < self.settings.young:
            answer = adjust(made, np.ones(newest + 1, bool), settings=self.settings.adjust)
            return _same_scale(adjusted_map(made, answer), made)
        shared = np.zeros(len(made), bool)
        shared[made.obs_point[made.obs_view == newest]] = True
        count = np.bincount(made.obs_view, shared[made.obs_point], len(self._stations))
        count[:2] = 0
        free = np.zeros(len(self._stations), bool)
        chosen = np.argsort(-count, kind="stable")[: self.settings.window + 1]
        free[chosen[count[chosen] > 0]] = True
        return adjusted_map(made, adjust(made, free, settings=self.settings.adjust))

    def _find_lens(self) -> None:
        """All cameras and the focal length they share."""
        settings = self.settings
        answer = adjust(self.map, np.ones(len(self._stations), bool), focal=True, settings=settings.adjust)
        if not 0.5 < answer.zoom < 2 or not answer.zoom_sigma < settings.lens_use:
            return
        self.known_lens = answer.zoom_sigma < settings.lens_sigma or len(self._stations) >= settings.lens_done
        self.map = adjusted_map(self.map, answer)
        self._follow()
        self.map = self._made()

    def _follow(self) -> None:
        """The pictures stand where the map's cameras do."""
        places = zip(self._stations, self.map.world_from_cam, self.map.K, strict=True)
        self._stations = [replace(station, world_from_cam=pose, K=K) for station, pose, K in places]

    def _nearest(self, station: Station) -> Int[np.ndarray, "k"]:
        """The newest picture, and those that see most of what the new one should see, from another place."""
        made, cam_from_world = self.map, np.linalg.inv(station.world_from_cam)
        cam = made.positions @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        xy = cam[:, :2] / np.maximum(cam[:, 2:], 1e-9) * station.K[[0, 1], [0, 1]] + station.K[:2, 2]
        inside = (cam[:, 2] > 1e-9) & (xy > 0).all(1) & (xy < np.array(station.size[::-1])).all(1)
        common = np.bincount(made.obs_view, inside[made.obs_point], len(self._stations))
        middle = made.positions[inside].mean(0) if inside.any() else made.positions.mean(0)
        rays = np.stack([each.world_from_cam[:3, 3] for each in (*self._stations, station)]) - middle
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        angle = np.degrees(np.arccos(np.clip(rays[:-1] @ rays[-1], -1, 1)))
        score = common * np.clip(angle / 5, 0.2, 1) * np.clip((60 - angle) / 30, 0.02, 1)
        score[-1] = np.inf
        return np.argsort(-score, kind="stable")[: self.settings.neighbors]

    def _thin(self) -> None:
        """Under the cap again: the most redundant picture goes, but never the first two."""
        poses = torch.from_numpy(np.stack([station.world_from_cam for station in self._stations[2:]]))
        depth = torch.full((len(poses),), self.middle_depth, dtype=torch.float64)
        kept = spread(poses, depth, self.settings.most - 2, KeyframeSettings())
        for number in sorted(set(range(len(poses))) - set(kept), reverse=True):
            self._drop(number + 2)
        self.map = self._made()

    @property
    def middle_depth(self) -> float:
        """Median depth of the points in the pictures that see them."""
        made = self.map
        cam_from_world = np.linalg.inv(made.world_from_cam)[made.obs_view]
        z = np.einsum("oj,oj->o", cam_from_world[:, 2, :3], made.positions[made.obs_point]) + cam_from_world[:, 2, 3]
        return float(np.median(z))

    def _drop(self, number: int) -> None:
        name = self._stations.pop(number).name
        self._links = {pair: found for pair, found in self._links.items() if name not in pair}


def _same_scale(now: ClassicalMap, before: ClassicalMap) -> ClassicalMap:
    """The map, scaled so that what its first picture (which stands still) sees is as far away as before."""
    rows = now.obs_point[now.obs_view == 0]
    depths = []
    for each in (before, now):
        cam_from_world = np.linalg.inv(each.world_from_cam[0])
        depths.append(each.positions[rows] @ cam_from_world[2, :3] + cam_from_world[2, 3])
    good = (depths[0] > 1e-9) & (depths[1] > 1e-9)
    scale = float(np.median(depths[0][good] / depths[1][good])) if good.any() else 1.0
    eye, poses = now.world_from_cam[0, :3, 3], now.world_from_cam.copy()
    poses[:, :3, 3] = eye + scale * (poses[:, :3, 3] - eye)
    return replace(now, world_from_cam=poses, positions=eye + scale * (now.positions - eye))


def shift_and_turn(
    world_from_cam: Float[np.ndarray, "4 4"], others: Float[np.ndarray, "n 4 4"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Distance and degrees from a camera to others."""
    away = np.linalg.norm(others[:, :3, 3] - world_from_cam[:3, 3], axis=1)
    trace = np.einsum("nij,ij->n", others[:, :3, :3], world_from_cam[:3, :3])
    return away, np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
