"""What two pictures say of their cameras, and how clearly: relative poses by many starts, with their rivals.

Little parallax explains a turn as a step aside, and a plane has two explanations (Longuet-Higgins, "The reconstruction
of a plane surface from two perspective projections", 1986). Both show as a second minimum of the epipolar error that
is nearly as low as the first: so all minima are looked for, and who reads the answer sees whether they are far apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import poselib
import pycolmap
from jaxtyping import Bool, Float, Int

from scenetx.live.points import Station

_DIRECTIONS = np.array(
    [[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (0, 1) if (z, y, x) > (0, 0, 0)], np.float64
)
"""Half of the sphere, for the sign of a shift is told by what lies before the cameras."""


@dataclass(frozen=True)
class PairSettings:
    """Pixels are of pictures with a longer side of 640."""

    matches: int = 50
    """Points before both cameras that agree, at least;"""
    share: float = 0.5
    """of all matches, likewise."""
    error: float = 2.0
    """Pixels a match may be off."""
    noise: float = 1.0
    """Pixels it usually is."""
    depth: float = 5.0
    """Median pixels that a mere turn of the camera leaves over: less does not tell a turn from a step. (Of pairs of
    real sequences, poses more than 15 degrees wrong left up to 4.4 pixels.)"""
    rival: float = 1.6
    """Another pose whose cost is less than this many times the least may be the right one."""
    apart: float = 12.0
    """Degrees between the directions of two poses that are not the same."""


@dataclass(frozen=True)
class TwoView:
    """A relative pose (length of the shift: 1), the matches it explains, and the points they make (first camera)."""

    b_from_a: Float[np.ndarray, "4 4"]
    inlier: Bool[np.ndarray, "n"]
    places: Float[np.ndarray, "n 3"]
    parallax: float
    """Median degrees between the rays to a point."""


def two_views(
    a: Station, b: Station, rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"], settings: PairSettings
) -> list[TwoView]:
    """Relative poses that explain matches ``rows`` of a, ``columns`` of b about equally well, the best first.

    Empty when none does, or when a turn without a step does too. More than one: the pictures do not tell which is
    right; a third one may.
    """
    xa, xb = a.features.xy[rows].astype(np.float64), b.features.xy[columns].astype(np.float64)
    scale = max(a.size) / 640
    rays_a, rays_b = _rays(a.K, xa), _rays(b.K, xb)
    turn, left = _turn(rays_a, rays_b, settings.noise * scale / a.K[0, 0])
    if np.median(left) * a.K[0, 0] < 0.5 * settings.depth * scale:  # spares the search
        return []
    noise = settings.noise * scale
    found = []
    for R, t in _starts(a, b, xa, xb, turn, settings.error * scale):
        pose = poselib.CameraPose()
        pose.R, pose.t = R, t
        loss = {"loss_type": "CAUCHY", "loss_scale": noise, "max_iterations": 50}
        pose, _ = poselib.refine_relative_pose(xa, xb, pose, _camera(a), _camera(b), loss)
        length = float(np.linalg.norm(pose.t))
        if length > 1e-9 and np.isfinite(pose.R).all():
            step = pose.t / length
            found.append((pose.R, step, _off_lines(pose.R, step, rays_a, rays_b) * a.K[0, 0]))
    if not found:
        return []
    # What no pose explains is no match, and says nothing of their merits.
    right = np.min([off for _, _, off in found], axis=0) < settings.error * scale
    if not right.any() or np.median(left[right]) * a.K[0, 0] < settings.depth * scale:
        return []
    costs = np.array([epipolar_cost(off[right] / noise) for _, _, off in found])
    kept: list[TwoView] = []
    for k in np.argsort(costs, kind="stable"):
        R, t, _ = found[k]
        known = any(_angle(t, pair.b_from_a[:3, 3]) < settings.apart for pair in kept)
        if known or costs[k] > settings.rival * costs.min():
            continue
        limit = settings.error * scale / a.K[0, 0]
        both = [_triangulated(_posed(R, sign * t), rays_a, rays_b, limit) for sign in (1, -1)]
        posed, inlier, places, parallax = max(both, key=lambda each: int(each[1].sum()))
        if inlier.sum() >= max(settings.matches, settings.share * len(rows)):
            kept.append(TwoView(posed, inlier, places, parallax))
    return kept


def epipolar_cost(off: Float[np.ndarray, "n"]) -> float:
    """Cauchy's, of distances in units of their noise; exact pictures keep some, so that costs can be divided."""
    return float(np.log1p(off**2).sum()) + 0.05 * len(off)


def off_lines(
    a: Station, b: Station, rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Pixels that matches of two posed pictures are off their epipolar lines (Sampson's distance)."""
    b_from_a = np.linalg.inv(b.world_from_cam) @ a.world_from_cam
    t = b_from_a[:3, 3] / max(float(np.linalg.norm(b_from_a[:3, 3])), 1e-12)
    rays = [_rays(each.K, each.features.xy[n].astype(np.float64)) for each, n in ((a, rows), (b, columns))]
    return _off_lines(b_from_a[:3, :3], t, *rays) * a.K[0, 0]


def _starts(
    a: Station, b: Station, xa: np.ndarray, xb: np.ndarray, turn: Float[np.ndarray, "3 3"], error: float
) -> list[tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]]:
    """Where to look for minima: the turn that explains most with a step in every direction, the five point algorithm's
    pose (Nistér 2004), and the homography's (Faugeras & Lustman 1988)."""
    out = [(turn, direction / np.linalg.norm(direction)) for direction in _DIRECTIONS]
    limits = {"max_epipolar_error": error, "max_reproj_error": error, "seed": 0, "min_iterations": 100}
    limits |= {"max_iterations": 1000}
    essential, _ = poselib.estimate_relative_pose(xa, xb, _camera(a), _camera(b), limits, {})
    out.append((essential.R, essential.t))
    H, flat = poselib.estimate_homography(xa, xb, limits, {})
    on_plane = np.asarray(flat["inliers"], bool)
    if on_plane.sum() >= 8:
        rays = [_rays(station.K, x[on_plane]) for station, x in ((a, xa), (b, xb))]
        answer = pycolmap.pose_from_homography_matrix(H, a.K, b.K, *rays)
        if answer is not None:
            pose = answer["cam2_from_cam1"].matrix()
            out.append((pose[:, :3], pose[:, 3]))
    return [(R, t) for R, t in out if np.linalg.norm(t) > 1e-9]


def _turn(
    a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"], noise: float
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "n"]]:
    """The rotation that brings rays a to rays b best (Kabsch, reweighted), and the angles it leaves."""
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    weight, R, left = np.ones(len(a)), np.eye(3), np.zeros(len(a))
    for _ in range(20):
        U, _, Vt = np.linalg.svd((b * weight[:, None]).T @ a)
        R = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
        left = np.linalg.norm(b - a @ R.T, axis=1)
        weight = 1 / (1 + (left / (2 * noise)) ** 2)
    return R, left


def _off_lines(
    R: Float[np.ndarray, "3 3"], t: Float[np.ndarray, "3"], a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n"]:
    """Sampson's distance of rays with z = 1."""
    E = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ R
    to_b, to_a = a @ E.T, b @ E
    below = to_b[:, 0] ** 2 + to_b[:, 1] ** 2 + to_a[:, 0] ** 2 + to_a[:, 1] ** 2
    return np.abs((b * to_b).sum(1)) / np.sqrt(np.maximum(below, 1e-18))


def _posed(R: Float[np.ndarray, "3 3"], t: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = R, t
    return out


def _angle(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> float:
    """Degrees between two directions of either sign."""
    return float(np.degrees(np.arccos(min(1.0, abs(float(a @ b))))))


def _triangulated(
    b_from_a: Float[np.ndarray, "4 4"], a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"], error: float
) -> tuple[Float[np.ndarray, "4 4"], Bool[np.ndarray, "n"], Float[np.ndarray, "n 3"], float]:
    """Points by the midpoint of their rays (pose, inliers, points, parallax); inliers lie before both cameras and fall
    within ``error`` (tangent)."""
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
    return b_from_a, inlier, places, float(np.median(angle[inlier])) if inlier.any() else 0.0


def _rays(K: Float[np.ndarray, "3 3"], xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    return np.concatenate([(xy - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(xy), 1))], axis=1)


def _camera(station: Station) -> dict[str, object]:
    K = station.K
    height, width = station.size
    return {"model": "PINHOLE", "width": width, "height": height, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
