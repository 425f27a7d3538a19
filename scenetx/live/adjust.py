"""Bundle adjustment of a small map: some cameras, their points and, if asked, one focal length.

Levenberg-Marquardt with the points eliminated (Schur complement; Triggs et al., "Bundle Adjustment", 1999), under
Cauchy's loss. All in vectorised numpy: it runs beside the tracking and must not hold the interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from scenetx.live.classical_map import ClassicalMap


@dataclass(frozen=True)
class AdjustSettings:
    """How long and how robustly."""

    rounds: int = 10
    loss: float = 1.5
    """Pixels off from which a residual counts for less."""
    enough: float = 1e-4
    """Share of the cost under which a step is the last."""
    points: int = 4000
    """At most; of more, those that most pictures see."""


@dataclass(frozen=True)
class Adjusted:
    """What came out: ``zoom`` is what the focal length was multiplied by, ``zoom_sigma`` its standard deviation."""

    world_from_cam: Float[np.ndarray, "v 4 4"]
    positions: Float[np.ndarray, "p 3"]
    zoom: float
    zoom_sigma: float
    error: float
    """Median pixels off, of the observations that took part."""


@dataclass(frozen=True)
class _Problem:
    """Observations sorted by point; the free cameras are numbered 0 to ``free``-1, fixed ones -1."""

    K: Float[np.ndarray, "o 3 3"]
    view: Int[np.ndarray, "o"]
    slot: Int[np.ndarray, "o"]
    point: Int[np.ndarray, "o"]
    xy: Float[np.ndarray, "o 2"]
    first: Int[np.ndarray, "p"]
    pair: tuple[Int[np.ndarray, "q"], Int[np.ndarray, "q"]]
    target: Int[np.ndarray, "t"]
    target_first: Int[np.ndarray, "t"]
    free: int
    focal: bool
    loss: float


@dataclass(frozen=True)
class _State:
    cam_from_world: Float[np.ndarray, "v 4 4"]
    positions: Float[np.ndarray, "p 3"]
    zoom: float = 1.0


def adjust(
    made: ClassicalMap, free: Bool[np.ndarray, "v"], *, focal: bool = False, settings: AdjustSettings | None = None
) -> Adjusted:
    """The cameras ``free`` of a map, and the points they see, where the reprojection error is least.

    Other cameras hold still, and with them place and scale; when none is left, the first does, and the scale is near
    what it was. ``focal``: all cameras share one lens, and its focal length is unknown. Positions that no free camera
    sees come back as they were.
    """
    settings = settings or AdjustSettings()
    free = free.copy()
    if free.all():
        free[0] = False
    rows, kept = _chosen(made, free, settings.points)
    state = _State(np.linalg.inv(made.world_from_cam), made.positions[kept])
    if len(rows) < 12 or not free.any():
        return Adjusted(made.world_from_cam, made.positions, 1.0, np.inf, np.inf)
    problem = _problem(made, free, rows, kept, focal, settings.loss)
    slots = np.flatnonzero(free)
    cost, damping, sigma = _cost(problem, state), 1e-4, np.inf
    for _ in range(settings.rounds):
        step, sigma = _step(problem, state, damping)
        if step is None:
            damping *= 10
            continue
        tried = _moved(state, slots, step, focal)
        now = _cost(problem, tried)
        if now < cost:
            done = cost - now < settings.enough * cost
            state, cost, damping = tried, now, max(damping / 5, 1e-9)
            if done:
                break
        else:
            damping *= 10
    positions = made.positions.copy()
    positions[kept] = state.positions
    off, _ = _residual(problem, state)
    error = float(np.median(np.linalg.norm(off, axis=1)))
    return Adjusted(np.linalg.inv(state.cam_from_world), positions, state.zoom, sigma, error)


def adjusted_map(made: ClassicalMap, answer: Adjusted) -> ClassicalMap:
    """The map with the cameras, points and focal length that were found."""
    K = made.K.copy()
    K[:, [0, 1], [0, 1]] *= answer.zoom
    return replace(made, world_from_cam=answer.world_from_cam, positions=answer.positions, K=K)


def _chosen(
    made: ClassicalMap, free: Bool[np.ndarray, "v"], most: int
) -> tuple[Int[np.ndarray, "o"], Int[np.ndarray, "p"]]:
    """Observations (sorted by point) of the points that free cameras see, and those points."""
    seen = np.bincount(made.obs_point, free[made.obs_view], len(made)) > 0
    length = np.where(seen, np.bincount(made.obs_point, minlength=len(made)), 0)
    kept = np.sort(np.argsort(-length, kind="stable")[: min(most, int(seen.sum()))])
    taken = np.zeros(len(made), bool)
    taken[kept] = True
    rows = np.flatnonzero(taken[made.obs_point])
    return rows[np.argsort(made.obs_point[rows], kind="stable")], kept


def _problem(
    made: ClassicalMap, free: Bool[np.ndarray, "v"], rows: np.ndarray, kept: np.ndarray, focal: bool, loss: float
) -> _Problem:
    number = np.full(len(made), -1)
    number[kept] = np.arange(len(kept))
    slot_of = np.full(len(free), -1)
    slot_of[free] = np.arange(int(free.sum()))
    view, point = made.obs_view[rows].astype(np.int64), number[made.obs_point[rows]]
    slot, count = slot_of[view], int(free.sum())
    # All ordered pairs of free observations of one point: the blocks of the reduced system.
    mine = np.flatnonzero(slot >= 0)
    size = np.bincount(point[mine], minlength=len(kept))
    begin = np.cumsum(size) - size
    left = np.repeat(np.arange(len(mine)), size[point[mine]])
    within = np.arange(len(left)) - np.repeat(np.cumsum(size[point[mine]]) - size[point[mine]], size[point[mine]])
    right = begin[point[mine]][left] + within
    block = slot[mine][left] * count + slot[mine][right]
    order = np.argsort(block, kind="stable")
    target, target_first = np.unique(block[order], return_index=True)
    pair = (mine[left[order]], mine[right[order]])
    first = np.searchsorted(point, np.arange(len(kept)))
    xy, K = made.obs_xy[rows].astype(np.float64), made.K[view]
    return _Problem(K, view, slot, point, xy, first, pair, target, target_first, count, focal, loss)


def _residual(problem: _Problem, state: _State) -> tuple[Float[np.ndarray, "o 2"], Float[np.ndarray, "o 3"]]:
    """Pixels off, and the points in their cameras."""
    pose = state.cam_from_world[problem.view]
    cam = np.einsum("oij,oj->oi", pose[:, :3, :3], state.positions[problem.point]) + pose[:, :3, 3]
    z = np.where(cam[:, 2] > 1e-6, cam[:, 2], 1e-6)
    ray = state.zoom * cam[:, :2] / z[:, None] * problem.K[:, [0, 1], [0, 1]]
    return np.clip(ray + problem.K[:, :2, 2] - problem.xy, -1e3, 1e3), cam


def _cost(problem: _Problem, state: _State) -> float:
    off, _ = _residual(problem, state)
    return float(np.log1p((off**2).sum(1) / problem.loss**2).sum())


def _jacobians(problem: _Problem, state: _State, cam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pixels by the camera (turn and shift in its own axes), by the point, by the logarithm of the focal."""
    z = np.where(cam[:, 2] > 1e-6, cam[:, 2], 1e-6)
    f = state.zoom * problem.K[:, [0, 1], [0, 1]]
    ray = f * cam[:, :2] / z[:, None]
    by_cam = np.zeros((len(cam), 2, 3))
    by_cam[:, 0, 0], by_cam[:, 1, 1] = f[:, 0] / z, f[:, 1] / z
    by_cam[:, :, 2] = -ray / z[:, None]
    skew = np.zeros((len(cam), 3, 3))
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = cam[:, 2], -cam[:, 1], cam[:, 0]
    skew -= skew.transpose(0, 2, 1)
    by_pose = np.concatenate([by_cam @ skew, by_cam], axis=2)
    return by_pose, by_cam @ state.cam_from_world[problem.view][:, :3, :3], ray


def _step(
    problem: _Problem, state: _State, damping: float
) -> tuple[tuple[np.ndarray, np.ndarray, float] | None, float]:
    """Gauss-Newton's step with damping (cameras, points, log focal), and the focal's standard deviation."""
    off, cam = _residual(problem, state)
    A, B, g = _jacobians(problem, state, cam)
    weight = 1 / (1 + (off**2).sum(1) / problem.loss**2)
    At, Bt = A.transpose(0, 2, 1) * weight[:, None, None], B.transpose(0, 2, 1) * weight[:, None, None]
    V, bp = np.add.reduceat(Bt @ B, problem.first), np.add.reduceat(np.einsum("oij,oj->oi", Bt, off), problem.first)
    V += (damping * np.trace(V, axis1=1, axis2=2)[:, None, None] + 1e-12) * np.eye(3)
    inverse = np.linalg.inv(V)
    W, n = At @ B, problem.free
    Y = W @ inverse[problem.point]
    mine = problem.slot >= 0
    S, b = np.zeros((6 * n + 1, 6 * n + 1)), np.zeros(6 * n + 1)
    blocks = np.zeros((n, n, 6, 6))
    left, right = problem.pair
    blocks.reshape(n * n, 6, 6)[problem.target] = -np.add.reduceat(
        Y[left] @ W[right].transpose(0, 2, 1), problem.target_first
    )
    U, bc = np.zeros((n, 6, 6)), np.zeros((n, 6))
    np.add.at(U, problem.slot[mine], (At @ A)[mine])
    reduced = np.einsum("oij,oj->oi", At, off) - np.einsum("oij,oj->oi", Y, bp[problem.point])
    np.add.at(bc, problem.slot[mine], reduced[mine])
    blocks[np.arange(n), np.arange(n)] += U * (1 + damping * np.eye(6))
    S[: 6 * n, : 6 * n], b[: 6 * n] = blocks.transpose(0, 2, 1, 3).reshape(6 * n, 6 * n), bc.ravel()
    if problem.focal:
        by_point = np.add.reduceat(np.einsum("oij,oj->oi", Bt, g), problem.first)
        half = np.einsum("pi,pij->pj", by_point, inverse)
        S[-1, -1] = (weight * (g**2).sum(1)).sum() - (half * by_point).sum()
        b[-1] = (weight * (g * off).sum(1)).sum() - (half * bp).sum()
        cross = np.zeros((n, 6))
        both = np.einsum("oij,oj->oi", At, g) - np.einsum("oij,oj->oi", Y, by_point[problem.point])
        np.add.at(cross, problem.slot[mine], both[mine])
        S[-1, :-1] = S[:-1, -1] = cross.ravel()
    else:
        S[-1, -1] = 1.0
    try:
        found = -np.linalg.solve(S, b)
        spread = float(np.linalg.inv(S)[-1, -1]) if problem.focal else np.inf
    except np.linalg.LinAlgError:
        return None, np.inf
    cameras, focal = found[:-1].reshape(n, 6), float(found[-1])
    back = np.zeros_like(bp)
    np.add.at(back, problem.point[mine], np.einsum("oij,oi->oj", W[mine], cameras[problem.slot[mine]]))
    if problem.focal:
        back += by_point * focal
    points = -np.einsum("pij,pj->pi", inverse, bp + back)
    noise = float((weight * (off**2).sum(1)).sum() / max(2 * len(off) - S.shape[0] - 3 * len(bp), 1))
    return (cameras, points, focal), float(np.sqrt(max(spread * noise, 0.0))) if problem.focal else np.inf


def _moved(
    state: _State, slots: Int[np.ndarray, "f"], step: tuple[np.ndarray, np.ndarray, float], focal: bool
) -> _State:
    cameras, points, log_zoom = step
    poses = state.cam_from_world.copy()
    turn = Rotation.from_rotvec(cameras[:, :3]).as_matrix()
    poses[slots, :3, :3] = turn @ poses[slots, :3, :3]
    poses[slots, :3, 3] = np.einsum("vij,vj->vi", turn, poses[slots, :3, 3]) + cameras[:, 3:]
    zoom = state.zoom * float(np.exp(np.clip(log_zoom, -0.5, 0.5))) if focal else state.zoom
    return _State(poses, state.positions + points, zoom)
