"""Poses from pixels and places: P3P in LO-RANSAC and robust refinement (PoseLib, Larsson et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import poselib
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation


def ransac(
    pixels: Float[np.ndarray, "n 2"],
    places: Float[np.ndarray, "n 3"],
    K: Float[np.ndarray, "3 3"],
    error: float,
    *,
    start: Float[np.ndarray, "4 4"] | None = None,
    rounds: int = 2000,
    free_focal: bool = False,
) -> tuple[Float[np.ndarray, "4 4"], Bool[np.ndarray, "n"], float]:
    """(cam_from_world, which are inliers, focal length) of the pose that puts most places within ``error`` pixels.

    ``start`` (cam_from_world) is tried as a hypothesis. ``free_focal``: K's focal length is a guess; the one that fits
    best together with the pose is given (of both axes), and inliers are those under it; the guess may be off by a
    sixth or so. Equal inputs give equal outputs. Needs four points; with fewer nothing is an inlier.
    """
    size = {"width": int(2 * K[0, 2]), "height": int(2 * K[1, 2])}
    camera: dict[str, Any] = {"model": "PINHOLE", **size, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
    bundle: dict[str, Any] = {"loss_type": "CAUCHY", "loss_scale": 0.5 * error, "max_iterations": 50}
    if len(pixels) < 4:
        return np.eye(4) if start is None else start, np.zeros(len(pixels), bool), float(K[0, 0])
    options = {"max_reproj_error": 2 * error if free_focal else error, "success_prob": 0.9999, "seed": 0}
    options |= {"max_iterations": rounds, "min_iterations": min(50, rounds)}
    first = {}
    if start is not None:
        pose = poselib.CameraPose()
        pose.R, pose.t = start[:3, :3], start[:3, 3]
        first["initial_pose"] = pose
    pixels, places = np.ascontiguousarray(pixels, np.float64), np.ascontiguousarray(places, np.float64)
    answer, info = poselib.estimate_absolute_pose(pixels, places, camera, options, bundle, **first)
    out = np.eye(4)
    out[:3] = answer.Rt
    inlier = np.asarray(info["inliers"], bool)
    if free_focal and int(inlier.sum()) >= 6:
        found = with_focal(pixels, places, K, out, error)
        return found.cam_from_world, found.inlier, found.zoom * float(K[0, 0])
    return out, inlier, float(K[0, 0])


@dataclass(frozen=True)
class WithFocal:
    """A pose and what the focal length has to be multiplied by, with the standard deviation of its logarithm."""

    cam_from_world: Float[np.ndarray, "4 4"]
    zoom: float
    sigma: float
    gain: float
    """The cost before, with the focal length given, over the cost now."""
    inlier: Bool[np.ndarray, "n"]


def with_focal(
    pixels: Float[np.ndarray, "n 2"],
    places: Float[np.ndarray, "n 3"],
    K: Float[np.ndarray, "3 3"],
    cam_from_world: Float[np.ndarray, "4 4"],
    error: float,
    rounds: int = 40,
) -> WithFocal:
    """Pose and focal length together: Levenberg-Marquardt under Cauchy's loss, from a start near them.

    ``sigma`` is from the residuals and how well the places tell a zoom from a step forward: it is large where all lie
    on a plane that faces the camera, and infinite for fewer than six points.
    """
    pose, zoom, damping, sigma = cam_from_world, 1.0, 1e-3, np.inf
    off, J = _residual(pixels, places, K, pose, zoom)
    loss = (0.5 * error) ** 2
    cost = np.log1p((off**2).sum(1) / loss).sum()
    before = cost
    for _ in range(rounds if len(pixels) >= 6 else 0):
        weight = 1 / (1 + (off**2).sum(1) / loss)
        H = np.einsum("nki,nkj,n->ij", J, J, weight)
        right = np.einsum("nki,nk,n->i", J, off, weight)
        step = -np.linalg.lstsq(H + damping * np.diag(np.diag(H) + 1e-12), right, rcond=None)[0]
        moved = pose.copy()
        turn = Rotation.from_rotvec(step[:3]).as_matrix()
        moved[:3, :3], moved[:3, 3] = turn @ pose[:3, :3], turn @ pose[:3, 3] + step[3:6]
        tried = zoom * float(np.exp(np.clip(step[6], -0.3, 0.3)))
        now_off, now_J = _residual(pixels, places, K, moved, tried)
        now = np.log1p((now_off**2).sum(1) / loss).sum()
        if now >= cost:
            damping *= 10
            if damping > 1e6:
                break
            continue
        done = cost - now < 1e-6 * cost
        pose, zoom, off, J, cost, damping = moved, tried, now_off, now_J, now, max(damping / 10, 1e-9)
        if done:
            break
    inlier = np.linalg.norm(off, axis=1) < error
    if int(inlier.sum()) >= 6:
        H = np.einsum("nki,nkj->ij", J[inlier], J[inlier])
        noise = (off[inlier] ** 2).sum() / max(2 * int(inlier.sum()) - 7, 1)
        sigma = float(np.sqrt(max(np.linalg.pinv(H)[6, 6], 0.0) * noise))
    return WithFocal(pose, zoom, sigma, float(before / max(cost, 1e-12)), inlier)


def _residual(
    pixels: np.ndarray, places: np.ndarray, K: np.ndarray, pose: np.ndarray, zoom: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 7"]]:
    """Pixels off, and their derivatives by turn, shift (in the camera's axes) and the focal length's logarithm."""
    cam = places @ pose[:3, :3].T + pose[:3, 3]
    z = np.where(cam[:, 2] > 1e-9, cam[:, 2], 1e-9)
    f = zoom * K[[0, 1], [0, 1]]
    ray = f * cam[:, :2] / z[:, None]
    J = np.zeros((len(cam), 2, 7))
    J[:, 0, 3], J[:, 1, 4] = f[0] / z, f[1] / z
    J[:, :, 5] = -ray / z[:, None]
    # A turn moves a point by its cross product with it.
    J[:, :, 0] = cam[:, 1:2] * J[:, :, 5] - cam[:, 2:] * J[:, :, 4]
    J[:, :, 1] = cam[:, 2:] * J[:, :, 3] - cam[:, :1] * J[:, :, 5]
    J[:, :, 2] = cam[:, :1] * J[:, :, 4] - cam[:, 1:2] * J[:, :, 3]
    J[:, :, 6] = ray
    return np.clip(ray + K[:2, 2] - pixels, -1e4, 1e4), J
