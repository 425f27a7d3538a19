"""A classical map of a scene: features of its pictures, matched where the known cameras allow, triangulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from scenetx.core import Cameras, InputError, Scene, View, project
from scenetx.core.paths import camera_layout
from scenetx.live.classical_map import ClassicalMap, Lens, encode_grey
from scenetx.live.features import FeatureFinder, Features, FeatureSettings, grey_of, match, unit

Report = Callable[[float], None]


@dataclass(frozen=True)
class BuildSettings:
    """How the map is made."""

    features: FeatureSettings = field(default_factory=lambda: FeatureSettings(side=960, most=1500))
    views: int = 240
    """Pictures in the map, at most; of more, those that stand farthest apart are taken."""
    neighbors: int = 10
    """Pictures each picture is matched with, those that see most of the same from another place."""
    ratio: float = 0.85
    epipolar: float = 3.0
    """Pixels (of a 960 pixel wide picture) a match may be off its epipolar line, and a point off its features."""
    parallax: float = 6.0
    """Pixels (of the map's pictures) between a point's outermost rays, at least; less does not tell how far it is."""
    points: int = 60_000
    side: int = 640
    """Longer side of the grey pictures that the map keeps."""


def build_map(scene: Scene, settings: BuildSettings | None = None, report: Report | None = None) -> ClassicalMap:
    """The classical map of a scene's registered views, in the scene's frame and scale.

    Takes about a third of a second a picture. Raises InputError when fewer than two pictures have a camera or hardly
    a point comes out (no texture).
    """
    settings = settings or BuildSettings()
    say = report or _silent
    views = _spread(scene.registered, settings.views)
    if len(views) < 2:
        raise InputError(scene.source or "scene", f"{len(views)} pictures with a camera", "reconstruct it first")
    found = _features(views, settings, lambda share: say(0.6 * share))
    pairs = _pairs(scene, views, settings.neighbors)
    links = []
    for k, (a, b) in enumerate(pairs):
        links.append(_link(views[a], views[b], found[a], found[b], settings) + _starts(found)[[a, b], None])
        say(0.6 + 0.3 * (k + 1) / len(pairs))
    track = _tracks(np.concatenate(links, axis=1), int(_starts(found)[-1]))
    made = _assemble(views, found, track, settings)
    say(1.0)
    if len(made.positions) < 30:
        raise InputError(
            scene.source or "scene", f"only {len(made.positions)} points could be placed", "take pictures with texture"
        )
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


def _starts(found: Sequence[Features]) -> Int[np.ndarray, "starts"]:
    return np.concatenate([[0], np.cumsum([len(features) for features in found])])


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


def _link(a: View, b: View, fa: Features, fb: Features, settings: BuildSettings) -> Int[np.ndarray, "2 k"]:
    """Matches of two views that agree with their cameras: only features near the epipolar line are compared."""
    ca, cb = _cameras(a), _cameras(b)
    b_from_a = (cb.cam_from_world[0] @ ca.world_from_cam[0]).numpy()
    t = b_from_a[:3, 3]
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    Ka, Kb = np.linalg.inv(ca.K[0].numpy()), np.linalg.inv(cb.K[0].numpy())
    F = Kb.T @ cross @ b_from_a[:3, :3] @ Ka
    xa = np.concatenate([fa.xy, np.ones((len(fa), 1))], axis=1)
    xb = np.concatenate([fb.xy, np.ones((len(fb), 1))], axis=1)
    off = np.maximum(_from_lines(xa @ F.T, xb), _from_lines(xb @ F, xa).T)
    limit = settings.epipolar * max(a.width, a.height, b.width, b.height) / 960
    likeness = unit(fa.descriptors) @ unit(fb.descriptors).T
    # Twice the limit keeps the rival that Lowe's test needs; a match then has to be within the limit.
    likeness[off > 2 * limit] = 0
    i, j, _ = match(likeness, ratio=settings.ratio)
    good = off[i, j] <= limit
    return np.stack([i[good], j[good]]).astype(np.int64)


def _from_lines(lines: Float[np.ndarray, "n 3"], points: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "n m"]:
    """Distance of every (homogeneous) point from every line, pixels; float32, for this is where the time goes."""
    length = np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)
    return np.abs((lines / length).astype(np.float32) @ points.astype(np.float32).T)


def _tracks(links: Int[np.ndarray, "2 k"], count: int) -> Int[np.ndarray, "n"]:
    """The track of every feature (a number, -1 = unmatched): connected components of the matches."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(links.shape[1], np.int8), (links[0], links[1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    size = np.bincount(label)
    label = np.where(size[label] > 1, label, -1)
    kept = np.unique(label[label >= 0])
    return np.where(label >= 0, np.searchsorted(kept, label), -1)


def _assemble(
    views: Sequence[View], found: Sequence[Features], track: Int[np.ndarray, "n"], settings: BuildSettings
) -> ClassicalMap:
    """Triangulates the tracks and keeps what agrees with the pictures."""
    view_of = np.repeat(np.arange(len(views)), [len(features) for features in found])
    xy = np.concatenate([features.xy for features in found]).astype(np.float64)
    sigma = np.concatenate([features.sigma for features in found])
    cameras = [_cameras(view) for view in views]
    cam_from_world = np.stack([camera.cam_from_world[0].numpy() for camera in cameras])
    K = np.stack([camera.K[0].numpy() for camera in cameras])
    scale = np.array([max(view.width, view.height) for view in views]) / 960
    limit = settings.epipolar * scale[view_of] * np.clip(sigma / scale[view_of] / 2, 1, 3)
    rows, point, positions = _placed(track, xy, view_of, limit, cam_from_world, K)
    centers = np.stack([camera.centers[0].numpy() for camera in cameras])
    wide = _widest(positions, point, view_of[rows], centers)
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
        names=tuple(view.name for view in views),
        world_from_cam=np.stack([camera.world_from_cam[0].numpy() for camera in cameras]),
        K=K,
        sizes=np.array([(view.height, view.width) for view in views], np.int32),
        positions=positions[kept],
        descriptors=np.clip(np.round(512 * mean), 0, 255).astype(np.uint8),
        obs_view=view_of[rows].astype(np.int32),
        obs_point=point.astype(np.int32),
        obs_xy=xy[rows].astype(np.float32),
        obs_sigma=sigma[rows].astype(np.float32),
        pictures=tuple(encode_grey(grey_of(view.image), settings.side) for view in views),
        lenses=tuple(_lenses(views)),
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
    rows = np.flatnonzero(track >= 0)
    for _ in range(3):
        kept, point = _dense(track[rows], view_of[rows])
        rows = rows[kept]
        positions = _triangulate(xy[rows], point, view_of[rows], cam_from_world, K)
        error, depth = _residuals(positions, xy[rows], point, view_of[rows], cam_from_world, K)
        rows = rows[(error < limit[rows]) & (depth > 0)]
    kept, point = _dense(track[rows], view_of[rows])
    rows = rows[kept]
    return rows, point, _triangulate(xy[rows], point, view_of[rows], cam_from_world, K)


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


def _dense(track: Int[np.ndarray, "r"], view: Int[np.ndarray, "r"]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows to keep (tracks of two pictures and more, each once) and their point numbers without gaps."""
    _, first = np.unique(np.stack([track, view]), axis=1, return_index=True)
    kept = np.sort(first)
    count = np.bincount(track[kept])
    kept = kept[count[track[kept]] >= 2]
    _, point = np.unique(track[kept], return_inverse=True)
    return kept, point


def _triangulate(
    xy: np.ndarray, point: np.ndarray, view: np.ndarray, cam_from_world: np.ndarray, K: np.ndarray
) -> Float[np.ndarray, "p 3"]:
    """Points nearest to their rays (linear), then three Gauss-Newton steps on the robust reprojection error."""
    count = int(point.max()) + 1 if len(point) else 0
    rays = np.einsum("rij,rj->ri", np.linalg.inv(K)[view], np.concatenate([xy, np.ones((len(xy), 1))], axis=1))
    R, t = cam_from_world[view, :3, :3], cam_from_world[view, :3, 3]
    direction = np.einsum("rji,rj->ri", R, rays / np.linalg.norm(rays, axis=1, keepdims=True))
    center = -np.einsum("rji,rj->ri", R, t)
    flat = np.eye(3) - direction[:, :, None] * direction[:, None]
    X = _solve(flat, np.einsum("rij,rj->ri", flat, center), point, count)
    for _ in range(3):
        cam = np.einsum("rij,rj->ri", R, X[point]) + t
        z = np.where(np.abs(cam[:, 2]) > 1e-9, cam[:, 2], 1e-9)
        fx, fy = K[view, 0, 0], K[view, 1, 1]
        residual = np.stack([fx * cam[:, 0] / z + K[view, 0, 2], fy * cam[:, 1] / z + K[view, 1, 2]], 1) - xy
        zero = np.zeros_like(z)
        by_cam = np.stack(
            [np.stack([fx / z, zero, -fx * cam[:, 0] / z**2], 1), np.stack([zero, fy / z, -fy * cam[:, 1] / z**2], 1)],
            axis=1,
        )
        J = by_cam @ R
        weight = 1 / np.maximum(1, np.linalg.norm(residual, axis=1) / 2)
        normal = np.einsum("rki,rkj,r->rij", J, J, weight)
        X = X - _solve(normal, np.einsum("rki,rk,r->ri", J, residual, weight), point, count)
    return X


def _solve(normal: np.ndarray, right: np.ndarray, point: np.ndarray, count: int) -> Float[np.ndarray, "p 3"]:
    """The sums of 3 x 3 systems over each point's rows, solved."""
    A, b = np.zeros((count, 3, 3)), np.zeros((count, 3))
    for i in range(3):
        b[:, i] = np.bincount(point, right[:, i], count)
        for j in range(3):
            A[:, i, j] = np.bincount(point, normal[:, i, j], count)
    A += 1e-9 * (np.trace(A, axis1=1, axis2=2)[:, None, None] + 1e-12) * np.eye(3)
    return np.linalg.solve(A, b[..., None])[..., 0]


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


def _silent(share: float) -> None:
    """No one watches."""
