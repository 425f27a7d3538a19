"""Poses from pixels and places: P3P in LO-RANSAC and robust refinement (PoseLib, Larsson et al.)."""

from __future__ import annotations

from typing import Any

import numpy as np
import poselib
from jaxtyping import Bool, Float
from scipy.optimize import least_squares
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
        return _with_focal(pixels, places, K, out, error)
    return out, inlier, float(K[0, 0])


def _with_focal(
    pixels: Float[np.ndarray, "n 2"],
    places: Float[np.ndarray, "n 3"],
    K: Float[np.ndarray, "3 3"],
    cam_from_world: Float[np.ndarray, "4 4"],
    error: float,
) -> tuple[Float[np.ndarray, "4 4"], Bool[np.ndarray, "n"], float]:
    """Pose and focal length together: least squares under Cauchy's loss, from a start near them."""
    start = np.concatenate([[0, 0, 0], cam_from_world[:3, 3], [np.log(K[0, 0])]])

    def pose(x: Float[np.ndarray, "7"]) -> Float[np.ndarray, "4 4"]:
        out = np.eye(4)
        out[:3, :3] = Rotation.from_rotvec(x[:3]).as_matrix() @ cam_from_world[:3, :3]
        out[:3, 3] = x[3:6]
        return out

    def off(x: Float[np.ndarray, "7"]) -> Float[np.ndarray, "n 2"]:
        moved = pose(x)
        cam = places @ moved[:3, :3].T + moved[:3, 3]
        depth = np.where(cam[:, 2:] > 1e-9, cam[:, 2:], 1e-9)
        return np.clip(np.exp(x[6]) * cam[:, :2] / depth + K[:2, 2] - pixels, -1e4, 1e4)

    best = least_squares(
        lambda x: off(x).ravel(), start, loss="cauchy", f_scale=0.5 * error, x_scale="jac", max_nfev=60
    )
    return pose(best.x), np.linalg.norm(off(best.x), axis=1) < error, float(np.exp(best.x[6]))
