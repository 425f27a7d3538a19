"""Where two maps show the same place they become one; where a map comes back to a place, its drift is taken out.

A picture of one map is looked for in the other (PnP with RANSAC over their points). What it sees in both maps gives
the scale, and so the similarity between them; its neighbours have to see the other map's points where that puts them,
for one look may be another place that looks alike. Then all cameras are adjusted together, and the result is taken only
if enough points hold the two parts together and hardly any were lost. Nothing here changes a map it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from scenetx.core import Sim3
from scenetx.live.anchors import scaled
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.expected import feature_rows, pixels_of, points_seen, seen_where_expected
from scenetx.live.features import match, unit
from scenetx.live.grow import GrowingMap
from scenetx.live.points import Station
from scenetx.live.radial import with_lens
from scenetx.live.solve import ransac


@dataclass(frozen=True)
class MeetSettings:
    """When two places are the same. Pixels are of pictures with a longer side of 640.

    The chance that a wrong match falls within 5 pixels of a pose that four others made is under 1 in 3,000: thirty that
    do are no accident, but may be another place that looks alike. That is what the neighbours are asked for.
    """

    error: float = 5.0
    """Pixels a point may fall from its feature,"""
    inliers: int = 30
    """so many points have to, at least,"""
    share: float = 0.3
    """and so many of those that look like a feature."""
    views: int = 6
    """Pictures of the other map that are asked."""
    both: int = 15
    """Points that the picture sees in both maps, for the scale."""
    spread: float = 0.15
    """Median deviation of the scales that they tell, relative."""
    neighbors: int = 4
    """Pictures about the first one that have to agree:"""
    reach: float = 12.0
    """within so many pixels (the similarity is not adjusted yet)"""
    agree: float = 0.5
    """this share of the points that look like a feature,"""
    agree_matches: int = 30
    """of so many."""
    apart: int = 8
    """Keyframes between a place and its being seen again, for that to be a loop."""
    common: int = 10
    """Points by which two pictures are neighbours."""
    kept: float = 0.85
    """Observations that a map has to keep when it is bent together."""


def met(there: ClassicalMap, here: ClassicalMap, station: Station, settings: MeetSettings) -> Sim3 | None:
    """``there_from_here``, if a picture of the map ``here`` (and its neighbours) shows what ``there`` shows."""
    scale = max(station.size) / 640
    pose = _placed(there, station, settings)
    if pose is None:
        return None
    placed = replace(station, world_from_cam=pose)
    rows, features = seen_where_expected(there, points_seen(there, placed), placed, settings.error * scale)
    view = here.names.index(station.name)
    mine = np.flatnonzero(here.obs_view == view)
    known = feature_rows(station, here.obs_xy[mine])
    _, i, j = np.intersect1d(features, known, return_indices=True)
    if len(i) < settings.both:
        return None
    depth = [
        pixels_of(made, each)[1][made.obs_point[which]]
        for made, each, which in ((there, placed, rows[i]), (here, station, mine[j]))
    ]
    good = (depth[0] > 1e-9) & (depth[1] > 1e-9)
    ratios = np.log(depth[0][good] / depth[1][good])
    if len(ratios) < settings.both or np.median(np.abs(ratios - np.median(ratios))) > settings.spread:
        return None
    return _through(pose, station.world_from_cam, float(np.exp(np.median(ratios))))


def confirmed(there: ClassicalMap, there_from_here: Sim3, neighbors: Sequence[Station], settings: MeetSettings) -> bool:
    """Whether other pictures see the map ``there`` where the similarity puts them."""
    right = count = 0
    for station in neighbors:
        moved = _moved(station, there_from_here)
        points = there.obs_point[points_seen(there, moved)]
        rows, columns, _ = match(
            unit(there.descriptors[points]) @ unit(station.features.descriptors).T, ratio=0.8, mutual=True
        )
        off = np.linalg.norm(pixels_of(there, moved)[0][points[rows]] - station.features.xy[columns], axis=1)
        right, count = right + int((off < settings.reach * max(station.size) / 640).sum()), count + len(rows)
    return count >= settings.agree_matches and right >= settings.agree * count


def joined(
    a: GrowingMap, b: GrowingMap, station: Station, settings: MeetSettings, *, of_a: bool = False
) -> tuple[GrowingMap, Sim3] | None:
    """Both maps as one in a's frame, and ``a_from_b``, if ``station`` (of b, or ``of_a``) is seen by the other too."""
    there, here, own = (b, a, a) if of_a else (a, b, b)
    found = met(there.map, here.map, station, settings)
    if found is None or not confirmed(there.map, found, _about(own, station.name, settings), settings):
        return None
    a_from_b = found.inverse() if of_a else found
    moved = [_moved(each, a_from_b) for each in b.stations]
    if not (a.known_lens and b.known_lens):
        moved = [with_lens(each, a.lens.focal, a.lens.k1) for each in moved]
    whole = GrowingMap(
        [*a.stations, *moved],
        a.map,
        known_lens=a.known_lens,
        settings=a.settings,
        links={**a.links, **b.links},
        lens=a.lens,
    )
    whole.heirs = {**a.heirs, **scaled(b.heirs, a_from_b.scale)}
    for each in moved:
        whole.match_points(each, settings.reach * max(each.size) / 640, a.map)
    ours = {each.name for each in a.stations}
    if not _holds(whole, ours, len(a.map.obs_view) + len(b.map.obs_view), settings):
        return None
    after = {each.name: each.world_from_cam for each in whole.stations}
    kept = [each for each in b.stations if each.name in after]
    before, now = (np.stack(poses) for poses in zip(*((e.world_from_cam, after[e.name]) for e in kept), strict=True))
    return whole, _between(now, before, a_from_b)


def closed(growing: GrowingMap, settings: MeetSettings) -> GrowingMap | None:
    """The map with its newest picture's place held to what earlier pictures, no neighbours of it, show of the same
    place; None = there is no such place, or it does not fit.

    The error that came together on the way is spread over the way first (what a pose graph of one chain does), and
    then all cameras are adjusted.
    """
    made, stations = growing.map, growing.stations
    far = _far(made, settings)
    if int(far.sum()) < 3:
        return None
    newest = stations[-1]
    old, new = part_of(made, far), part_of(made, ~far)
    if newest.name not in new.names or not len(old):
        return None
    found = met(old, new, newest, settings)
    about = _about(growing, newest.name, settings)
    if found is None or not confirmed(old, found, about, settings):
        return None
    bent = _bent(stations, int(np.flatnonzero(far).max()), found)
    lens, known = growing.lens, growing.known_lens
    whole = GrowingMap(bent, made, known_lens=known, settings=growing.settings, links=growing.links, lens=lens)
    whole.heirs = dict(growing.heirs)
    names = {newest.name, *(each.name for each in about)}
    for each in bent:
        if each.name in names:
            whole.match_points(each, settings.reach * max(each.size) / 640, old)
    ours = {name for name, mine in zip(made.names, far, strict=True) if mine}
    return whole if _holds(whole, ours, len(made.obs_view), settings) else None


def part_of(made: ClassicalMap, views: Bool[np.ndarray, "v"]) -> ClassicalMap:
    """The pictures ``views`` of a map and the points they see."""
    rows = views[made.obs_view]
    points, point = np.unique(made.obs_point[rows], return_inverse=True)
    number = np.cumsum(views) - 1
    chosen = np.flatnonzero(views)
    return replace(
        made,
        names=tuple(made.names[k] for k in chosen),
        world_from_cam=made.world_from_cam[chosen],
        K=made.K[chosen],
        sizes=made.sizes[chosen],
        positions=made.positions[points],
        descriptors=made.descriptors[points],
        obs_view=number[made.obs_view[rows]].astype(np.int32),
        obs_point=point.astype(np.int32),
        obs_xy=made.obs_xy[rows],
        obs_sigma=made.obs_sigma[rows],
        pictures=tuple(made.pictures[k] for k in chosen),
    )


def _placed(made: ClassicalMap, station: Station, settings: MeetSettings) -> Float[np.ndarray, "4 4"] | None:
    """world_from_cam of a picture in a map, by its features among the points of the pictures that look most like it."""
    described = unit(station.features.descriptors)
    some = described[:: max(1, len(described) // 400)]
    _, points, _ = match(some @ unit(made.descriptors).T, ratio=0.85, mutual=False)
    if len(points) < settings.both:
        return None
    likely = np.bincount(made.obs_view[np.isin(made.obs_point, points)], minlength=len(made.names))
    views = np.argsort(-likely, kind="stable")[: settings.views]
    mine = np.unique(made.obs_point[np.isin(made.obs_view, views)])
    rows, columns, _ = match(described @ unit(made.descriptors[mine]).T, ratio=0.85)
    pixels, places = station.features.xy[rows].astype(np.float64), made.positions[mine[columns]]
    error = settings.error * max(station.size) / 640
    cam_from_world, inlier, _ = ransac(pixels, places, station.K, error, rounds=1000)
    count = int(inlier.sum())
    if count < settings.inliers or count < settings.share * len(rows):
        return None
    # A far-away pose gathers any points in one spot.
    if pixels[inlier].std(0).max() < 0.05 * max(station.size):
        return None
    return np.linalg.inv(cam_from_world)


def _holds(whole: GrowingMap, ours: set[str], before: int, settings: MeetSettings) -> bool:
    """Adjusts a map of two parts; whether they then hold together, and the map has lost hardly any observation."""
    for loose in (4, 1):
        whole.settle(loose)
    made = whole.map
    mine = np.array([name in ours for name in made.names])[made.obs_view]
    sides = [np.bincount(made.obs_point[each], minlength=len(made)) > 0 for each in (mine, ~mine)]
    bridge = int((sides[0] & sides[1]).sum())
    return bridge >= settings.inliers and len(made.obs_view) >= settings.kept * before


def _common(made: ClassicalMap) -> Int[np.ndarray, "v v"]:
    """Points that each two pictures share."""
    seen = np.zeros((len(made.names), len(made)), np.float32)
    seen[made.obs_view, made.obs_point] = 1
    return np.rint(seen @ seen.T).astype(np.int64)


def _far(made: ClassicalMap, settings: MeetSettings) -> Bool[np.ndarray, "v"]:
    """Pictures of long ago that neither share points with the newest nor with those that do."""
    near = _common(made) >= settings.common
    about = near[-1].copy()
    about[-1] = True
    about = near[about].any(0) | about
    about[-settings.apart :] = True
    return ~about


def _about(growing: GrowingMap, name: str, settings: MeetSettings) -> list[Station]:
    """The pictures that share most points with one of them."""
    view = growing.map.names.index(name)
    common = _common(growing.map)[view]
    common[view] = 0
    chosen = np.argsort(-common, kind="stable")[: settings.neighbors]
    return [growing.stations[k] for k in chosen if common[k] > 0]


def _through(there_from_cam: Float[np.ndarray, "4 4"], here_from_cam: Float[np.ndarray, "4 4"], scale: float) -> Sim3:
    """``there_from_here`` by one camera's pose in both, and the ratio of depths."""
    turn = there_from_cam[:3, :3] @ here_from_cam[:3, :3].T
    shift = there_from_cam[:3, 3] - scale * turn @ here_from_cam[:3, 3]
    return Sim3(scale, torch.from_numpy(turn), torch.from_numpy(shift))


def _between(now: Float[np.ndarray, "n 4 4"], before: Float[np.ndarray, "n 4 4"], guess: Sim3) -> Sim3:
    """The similarity that brings cameras from where they were to where they are, all together."""
    U, _, Vt = np.linalg.svd((now[:, :3, :3] @ before[:, :3, :3].transpose(0, 2, 1)).sum(0))
    turn = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    centers = [poses[:, :3, 3] for poses in (now, before)]
    wide = [float(np.linalg.norm(each - each.mean(0))) for each in centers]
    scale = wide[0] / wide[1] if min(wide) > 1e-9 else guess.scale
    shift = centers[0].mean(0) - scale * turn @ centers[1].mean(0)
    return Sim3(scale, torch.from_numpy(turn), torch.from_numpy(shift))


def _moved(station: Station, similarity: Sim3) -> Station:
    pose = similarity.apply_to_poses(torch.from_numpy(station.world_from_cam)).numpy()
    return replace(station, world_from_cam=pose)


def _bent(stations: Sequence[Station], fixed: int, correction: Sim3) -> list[Station]:
    """Pictures up to ``fixed`` stay, the last one is moved by the correction, those between by parts of it that grow
    with the way gone."""
    centers = np.stack([station.world_from_cam[:3, 3] for station in stations])
    gone = np.cumsum([0.0, *np.linalg.norm(np.diff(centers[fixed:], axis=0), axis=1)])
    last, turn = centers[-1], Rotation.from_matrix(correction.rotation.numpy()).as_rotvec()
    step = correction.apply(torch.from_numpy(last)).numpy() - last
    out = list(stations[: fixed + 1])
    for k in range(fixed + 1, len(stations)):
        part = float(gone[k - fixed] / max(gone[-1], 1e-12))
        pose = stations[k].world_from_cam.copy()
        R, scale = Rotation.from_rotvec(part * turn).as_matrix(), correction.scale**part
        pose[:3, 3] = scale * R @ (pose[:3, 3] - last) + last + part * step
        pose[:3, :3] = R @ pose[:3, :3]
        out.append(replace(stations[k], world_from_cam=pose))
    return out
