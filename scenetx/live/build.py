"""A classical map of a scene: features of its pictures, matched where the known cameras allow, triangulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool

from scenetx.core import Cameras, InputError, Scene, View, project
from scenetx.core.paths import camera_layout
from scenetx.live.classical_map import ClassicalMap, Lens, encode_grey
from scenetx.live.features import FeatureFinder, Features, FeatureSettings, grey_of
from scenetx.live.points import PointSettings, Station, link, map_of, starts

Report = Callable[[float], None]


@dataclass(frozen=True)
class BuildSettings:
    """How the map is made."""

    features: FeatureSettings = field(default_factory=lambda: FeatureSettings(side=960, most=1500))
    views: int = 240
    """Pictures in the map, at most; of more, those that stand farthest apart are taken."""
    neighbors: int = 10
    """Pictures each picture is matched with, those that see most of the same from another place."""
    points: PointSettings = field(default_factory=PointSettings)
    side: int = 640
    """Longer side of the grey pictures that the map keeps."""


def build_map(
    scene: Scene, settings: BuildSettings | None = None, report: Report | None = None, name: str = ""
) -> ClassicalMap:
    """The classical map of a scene's registered views, in the scene's frame and scale.

    Takes about a third of a second a picture. ``name``: what messages call the scene (its folder). Raises InputError
    when fewer than two pictures have a camera or hardly a point comes out (no texture).
    """
    settings = settings or BuildSettings()
    say, name = report or _silent, name or scene.source or "scene"
    views = _spread(scene.registered, settings.views)
    if len(views) < 2:
        raise InputError(name, f"{len(views)} pictures with a camera", "reconstruct it first")
    found = _features(views, settings, lambda share: say(0.6 * share))
    pairs = _pairs(scene, views, settings.neighbors)
    stations = [_station(view, features, settings.side) for view, features in zip(views, found, strict=True)]
    first, links = starts(stations), []
    for k, (a, b) in enumerate(pairs):
        links.append(link(stations[a], stations[b], settings.points) + first[[a, b], None])
        say(0.6 + 0.3 * (k + 1) / len(pairs))
    made = map_of(stations, np.concatenate(links, axis=1), settings.points, _lenses(views))
    say(1.0)
    if len(made.positions) < 30:
        raise InputError(name, f"only {len(made.positions)} points could be placed", "take pictures with texture")
    return made


def _spread(views: Sequence[View], most: int) -> list[View]:
    """At most ``most`` views, farthest first in place and direction (those close to a chosen one say the same)."""
    if len(views) <= most:
        return list(views)
    poses = torch.cat([view.camera.world_from_cam.double() for view in views if view.camera is not None]).numpy()
    centers, forward = poses[:, :3, 3], poses[:, :3, 2]
    extent = np.linalg.norm(centers - centers.mean(0), axis=1).max() or 1.0
    place = np.concatenate([centers / extent, 0.5 * forward], axis=1)
    chosen, distance = [0], np.linalg.norm(place - place[0], axis=1)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(place - place[chosen[-1]], axis=1))
    return [views[i] for i in sorted(chosen)]


def _features(views: Sequence[View], settings: BuildSettings, report: Report) -> list[Features]:
    finders = [FeatureFinder(settings.features) for _ in range(2)]

    def work(lane: int) -> dict[int, Features]:
        out = {}
        for i in range(lane, len(views), len(finders)):
            view = views[i]
            features = finders[lane](grey_of(view.image))
            if view.mask is not None and len(features):
                x, y = np.floor(features.xy).astype(int).T
                inside = view.mask.numpy()[y.clip(0, view.height - 1), x.clip(0, view.width - 1)]
                features = features[inside]
            out[i] = features
            report(i / len(views))
        return out

    with ThreadPoolExecutor(len(finders)) as pool:
        parts = list(pool.map(work, range(len(finders))))
    merged = {index: features for part in parts for index, features in part.items()}
    return [merged[i] for i in range(len(views))]


def _station(view: View, features: Features, side: int) -> Station:
    camera = _cameras(view)
    picture = encode_grey(grey_of(view.image), side)
    pose, K = camera.world_from_cam[0].numpy(), camera.K[0].numpy()
    return Station(view.name, pose, K, (view.height, view.width), features, picture)


def _cameras(view: View) -> Cameras:
    assert view.camera is not None
    return view.camera.to(torch.float64)


def _pairs(scene: Scene, views: Sequence[View], neighbors: int) -> list[tuple[int, int]]:
    """Pairs that see the same points, from places apart enough to place them."""
    if scene.points is not None and len(scene.points) >= 100:
        points = scene.points.positions.double()
        points = points[torch.linspace(0, len(points) - 1, min(len(points), 3000)).long()]
    else:
        points = _guessed_points(scene, views)
    seen = np.stack([_sees(view, points) for view in views])
    centers = torch.cat([_cameras(view).centers for view in views]).numpy()
    middle = np.stack([points.numpy()[row].mean(0) if row.any() else np.full(3, np.nan) for row in seen])
    pairs = set()
    for i in range(len(views)):
        common = (seen & seen[i]).sum(1) / max(seen[i].sum(), 1)
        near, far = centers[i] - middle[i], centers - middle[i]
        cosine = (far @ near) / np.maximum(np.linalg.norm(far, axis=1) * np.linalg.norm(near), 1e-12)
        angle = np.degrees(np.arccos(np.clip(np.nan_to_num(cosine), -1, 1)))
        # Seven degrees of parallax place a point well; past thirty SIFT hardly finds it again.
        score = common * np.clip(angle / 7, 0.15, 1) * np.clip((60 - angle) / 30, 0, 1)
        score[i] = 0
        for j in np.argsort(-score, kind="stable")[:neighbors]:
            if score[j] > 0.02:
                pairs.add((min(i, int(j)), max(i, int(j))))
    return sorted(pairs) or [(i, i + 1) for i in range(len(views) - 1)]


def _guessed_points(scene: Scene, views: Sequence[View]) -> torch.Tensor:
    """Without points: places on the rays of each picture's grid, at what is likely its depth."""
    layout = camera_layout(scene)
    grid = torch.tensor([(x, y, 1.0) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)], dtype=torch.float64)
    out = []
    for view in views:
        camera = _cameras(view)
        rays = (grid * torch.tensor([view.width, view.height, 1.0])) @ torch.linalg.inv(camera.K[0]).T
        for depth in (layout.near, (layout.near * layout.far) ** 0.5, layout.far):
            out.append(camera.centers + depth * rays @ camera.world_from_cam[0, :3, :3].T)
    return torch.cat(out)


def _sees(view: View, points: torch.Tensor) -> Bool[np.ndarray, "p"]:
    pixels, depth = project(points, _cameras(view))
    x, y = pixels[0].unbind(-1)
    inside = (depth[0] > 0) & (x > 0) & (x < view.width) & (y > 0) & (y < view.height)
    return inside.numpy()


def _lenses(views: Sequence[View]) -> list[Lens]:
    """The cameras the scene was taken with: one entry a size and lens."""
    seen: dict[tuple[object, ...], Lens] = {}
    for view in views:
        original = view.original
        if original.K is not None:
            K = tuple(round(float(value), 3) for value in original.K.flatten())
            key = (original.height, original.width, K, original.distortion)
            flat = tuple(float(value) for value in original.K.flatten())
            seen.setdefault(key, Lens(original.height, original.width, flat, tuple(original.distortion), original.lens))
    return list(seen.values())[:8]


def _silent(share: float) -> None:
    """No one watches."""
