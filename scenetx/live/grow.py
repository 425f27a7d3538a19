"""A classical map that grows: pictures join with their matches, and the cameras about the newest are adjusted."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from scenetx.live.adjust import AdjustSettings, adjust, adjusted_map
from scenetx.live.anchors import Heir, heirs_of, shift_and_turn
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.expected import feature_rows, points_seen, seen_where_expected
from scenetx.live.features import match, unit
from scenetx.live.keyframes import KeyframeSettings, spread
from scenetx.live.points import PointSettings, Station, link, map_of, matched, starts
from scenetx.live.radial import with_lens
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
    lens_last: int = 5
    """Of an unknown lens, the last estimates whose spread counts beside the standard deviation they tell: that one
    leaves out what all pictures have in common (a rolling shutter, blur, a lens that is not quite radial)."""
    lens_use: float = 0.02
    """Uncertainty (relative, of the focal length) from which on poses hold, until it is twice that;"""
    lens_sigma: float = 0.004
    """from which on the lens is known, and"""
    lens_done: int = 60
    """pictures at which it is, if poses hold."""
    lens_often: int = 25
    """Pictures up to which it is looked for anew with each picture, and"""
    lens_seldom: int = 5
    """with each so-many-th from then on."""
    steady: float = 1.25
    """Degrees by which the last estimates may have moved what a keyframe sees (its turn, and its shift by the depth),
    for poses to be said, until it is twice that: they are told in the map's frame as they come, and when that moves
    away they are wrong."""
    lens_before: float = 0.02
    """Relative standard deviation, at least, of one that an earlier map found."""
    lens_slack: float = 2.0
    """Until poses hold, matches may be so many times farther off."""
    lens_adjust: AdjustSettings = field(default_factory=lambda: AdjustSettings(rounds=25, enough=1e-5, points=2000))
    """Focal length and depth make up for each other almost: a long valley, down which a few steps do not lead."""
    adjust: AdjustSettings = field(default_factory=AdjustSettings)
    points: PointSettings = field(default_factory=lambda: PointSettings(parallax=3.0))
    """Far points with little parallax still say how the camera turns."""


@dataclass(frozen=True)
class FoundLens:
    """A lens as a map's pictures have it so far, in their pixels; ``sigma`` is relative."""

    focal: float
    k1: float = 0.0
    sigma: float = np.inf
    k1_sigma: float = np.inf


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
        lens: FoundLens | None = None,
    ) -> None:
        """links: matches of the pictures, if they are known (`links`). known_lens: K is right; else it is looked for,
        from ``lens`` on, if an earlier map has found one that holds."""
        self.settings = settings or GrowSettings()
        self.map = made
        self.known_lens = known_lens
        self.lens = lens or FoundLens(float(made.K[0, 0, 0]))
        before = lens is not None and lens.sigma < 2 * self.settings.lens_use
        self.holds = known_lens or before
        """Whether the lens is known well enough for matches to be looked for along epipolar lines;"""
        self.steady = self.holds
        """and for poses to be said: it is, and the cameras stay where they are when it is estimated anew."""
        self._estimates: deque[dict[str, Float[np.ndarray, "4 4"]]] = deque(maxlen=self.settings.lens_last)
        self._focals = [self.lens.focal] * self.settings.lens_last if before else []
        self._lens_adjust = self.settings.lens_adjust
        if lens is not None and before and not known_lens:
            sigma = max(lens.sigma, self.settings.lens_before)
            focal, k1_sigma = lens.focal / max(stations[0].size), min(lens.k1_sigma, self._lens_adjust.k1_sigma)
            self._lens_adjust = replace(
                self._lens_adjust, focal=focal, focal_sigma=sigma, k1=lens.k1, k1_sigma=k1_sigma
            )
        self._stations = list(stations)
        self.heirs: dict[str, Heir] = {}
        """Of the pictures that were dropped as redundant, in the order of their going."""
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
        if self.holds:
            self._match(station, near)
            self.match_points(station, self.settings.reach * max(station.size) / 640, self.map)
        else:
            self._match(station, self._stations, near)
        self._stations.append(station)
        made = self._made(self._slack)
        if int((made.obs_view == len(self._stations) - 1).sum()) < self.settings.least:
            self._drop(len(self._stations) - 1)
            return "little"
        count, settings = len(self._stations), self.settings
        if self.known_lens or (self.steady and count > settings.lens_often and count % settings.lens_seldom):
            self.map = self._adjusted(made)
            self._follow()
        else:
            self.find_lens()
        if len(self._stations) > self.settings.most:
            self._thin()
        return "taken"

    def agrees(self, station: Station) -> bool:
        """Whether the map's pictures bear a picture's pose out, as far as they see the same."""
        return self._agreement(*self._seen_from(station)) >= self.settings.agree

    def placed(self, station: Station) -> Station | None:
        """A picture of the same place as all the others, where the map's points put it, through the map's lens."""
        station = replace(station, world_from_cam=self._stations[-1].world_from_cam)
        if station.seen is not None:
            station = with_lens(station, self.lens.focal, self.lens.k1)
        return self._placed_anew(*self._seen_from(station))

    def _seen_from(self, station: Station) -> tuple[Station, list[Station]]:
        """The picture with the lens as it is now, and its neighbours."""
        if station.seen is not None or not self.known_lens:  # what it was thought to be may be old by now
            focal = float(station.K[0, 0]) if self.known_lens else self.lens.focal
            station = with_lens(station, focal, self.lens.k1)
        return station, [self._stations[k] for k in self._nearest(station)]

    def _agreement(self, station: Station, near: Sequence[Station]) -> float:
        """Share of matches with its neighbours that agree with the cameras; 1 where there are too few to tell."""
        settings, right, count = self.settings, 0, 0
        for other in near:
            rows, columns = matched(other, station)
            if len(rows) >= settings.agree_matches:
                off = off_lines(other, station, rows, columns) * 640 / max(station.size)
                right, count = right + int((off < self._slack * settings.agree_error).sum()), count + len(rows)
        return right / count if count else 1.0

    def _placed_anew(self, station: Station, near: Sequence[Station]) -> Station | None:
        """The picture where its features, matched with the points its neighbours see, put it."""
        made, names = self.map, {other.name for other in near}
        views = [k for k, name in enumerate(made.names) if name in names]
        points = np.unique(made.obs_point[np.isin(made.obs_view, views)])
        likeness = unit(station.features.descriptors) @ unit(made.descriptors[points]).T
        rows, columns, _ = match(likeness, ratio=0.85)
        pixels, error = station.features.xy[rows].astype(np.float64), 1.5 * self._slack * self.settings.agree_error
        limit = error * max(station.size) / 640
        cam_from_world, inlier, _ = ransac(pixels, made.positions[points[columns]], station.K, limit, rounds=1000)
        if int(inlier.sum()) < self.settings.least:
            return None
        return replace(station, world_from_cam=np.linalg.inv(cam_from_world))

    def settle(self, loose: float | int = 1) -> None:
        """All cameras adjusted together, for a map that is to be kept; the first one and the scale stay. ``loose``:
        points may be so many times farther off at first, for pictures that stand only about right."""
        if not self.known_lens:
            self.find_lens(loose)
            return
        free = np.ones(len(self._stations), bool)
        free[0] = False
        made = self._made(loose)
        answer = adjust(made, free, settings=self.settings.adjust)
        self.map = _same_scale(adjusted_map(made, answer), made)
        self._follow()
        if len(self._stations) > self.settings.most:
            self._thin()
        self.map = self._made()

    def _match(self, station: Station, others: Sequence[Station], near: Sequence[Station] = ()) -> None:
        """Matches that are looked for along epipolar lines bear the lens out that the lines are of: while it is looked
        for, looks alone count first, and the lines of those ``near`` are wide."""
        names = {other.name for other in near}
        for other in others:
            if self.holds:
                self._links[other.name, station.name] = link(other, station, self.settings.points)
                continue
            found = np.stack(matched(other, station)).astype(np.int64)
            if other.name in names:
                wide = link(other, station, self._points(self._slack))
                found = np.concatenate([found, wide], axis=1)
            if found.shape[1] >= self.settings.least:
                self._links[other.name, station.name] = found

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
        number = {station.name: k for k, station in enumerate(self._stations)}
        first = starts(self._stations)
        links = [pair + first[[number[a], number[b]], None] for (a, b), pair in self._links.items()]
        return map_of(self._stations, np.concatenate(links, axis=1), self._points(loose))

    def _points(self, loose: float | int) -> PointSettings:
        return replace(self.settings.points, epipolar=loose * self.settings.points.epipolar)

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

    @property
    def _slack(self) -> float:
        return 1.0 if self.holds else self.settings.lens_slack

    def find_lens(self, loose: float | int = 1) -> None:
        """All cameras and the lens they share."""
        settings, held = self.settings, self.holds
        for each in (max(loose, 1.5 * self._slack), max(1.0, 0.75 * self._slack)):
            made = self._made(each)
            every = np.ones(len(self._stations), bool)
            answer = adjust(made, every, lens=True, k1=self.lens.k1, settings=self._lens_adjust)
            focal = self.lens.focal * answer.zoom
            self.lens = FoundLens(focal, answer.k1, answer.zoom_sigma, answer.k1_sigma)
            self.map = _same_way(adjusted_map(made, answer), made)
            self._follow(pictures=False)
        self._follow()
        self._focals.append(self.lens.focal)
        last = np.log(self._focals[-settings.lens_last :])
        spread = float(last.max() - last.min()) / 2 if len(last) == settings.lens_last else np.inf
        self.lens = replace(self.lens, sigma=max(self.lens.sigma, spread))
        self.holds = self.lens.sigma < settings.lens_use * (2 if self.holds else 1)
        if held < self.holds:
            self._match_anew()
        self.known_lens = self.holds and (
            self.lens.sigma < settings.lens_sigma or len(self._stations) >= settings.lens_done
        )
        self.map = self._made()
        self._estimates.append({each.name: each.world_from_cam for each in self._stations})
        self.steady = self.known_lens or (self.holds and self._stays())

    def _stays(self) -> bool:
        """Whether the cameras are where the last estimates had them. The lens's standard deviation does not tell that:
        it supposes errors of the pictures' own, and how far poses are off hangs on how the camera moved."""
        *earlier, now = self._estimates
        depth = self.middle_depth
        for before in earlier:
            both = [name for name in now if name in before]
            steps = [shift_and_turn(now[name], before[name][None]) for name in both]
            away, turned = np.concatenate(steps, axis=1)
            if (np.degrees(np.arctan(away / depth)) + turned).max() > self.settings.steady * (2 if self.steady else 1):
                return False
        return True

    def _match_anew(self) -> None:
        """Along epipolar lines, for the lens is known now."""
        by_name = {station.name: station for station in self._stations}
        for a, b in self._links:
            self._links[a, b] = link(by_name[a], by_name[b], self.settings.points)

    def _follow(self, *, pictures: bool = True) -> None:
        """The pictures stand where the map's cameras do, and are straightened for the lens as it is now."""
        placed = [
            replace(station, world_from_cam=pose, K=K)
            for station, pose, K in zip(self._stations, self.map.world_from_cam, self.map.K, strict=True)
        ]
        lens = self.lens
        self._stations = (
            placed if self.known_lens else [with_lens(each, lens.focal, lens.k1, picture=pictures) for each in placed]
        )

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
        dropped = sorted((number + 2 for number in set(range(len(poses))) - set(kept)), reverse=True)
        self.heirs |= heirs_of(self.map, dropped, self.middle_depth)
        for number in dropped:
            self._drop(number)
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
    return _about_first(now, scale)


def _same_way(now: ClassicalMap, before: ClassicalMap) -> ClassicalMap:
    """The map, scaled so that its cameras stay, as well as they can, where they were. Another focal length changes all
    depths at once: by them the way would be told in another unit than before."""
    eye = now.world_from_cam[0, :3, 3]
    here, there = now.world_from_cam[:, :3, 3] - eye, before.world_from_cam[:, :3, 3] - eye
    scale = float((here * there).sum() / max((here * here).sum(), 1e-24))
    return _about_first(now, scale if scale > 1e-6 else 1.0)


def _about_first(now: ClassicalMap, scale: float) -> ClassicalMap:
    """The map scaled about its first camera."""
    eye, poses = now.world_from_cam[0, :3, 3], now.world_from_cam.copy()
    poses[:, :3, 3] = eye + scale * (poses[:, :3, 3] - eye)
    return replace(now, world_from_cam=poses, positions=eye + scale * (now.positions - eye))
