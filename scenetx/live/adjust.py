"""Bundle adjustment of a small map: some cameras, their points and, if asked, the lens they share.

Levenberg-Marquardt with the points eliminated (Schur complement; Triggs et al., "Bundle Adjustment", 1999), under
Cauchy's loss. All in vectorised numpy: it runs beside the tracking and must not hold the interpreter.

A lens is a focal length and one radial term (`radial`). Both are looked for together: a focal length found without
the radial term is several percent off where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from scenetx.live.classical_map import ClassicalMap
from scenetx.live.radial import bent


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
    focal: float = 0.95
    """Of an unknown lens, of the longer side (55 degrees across), before anything was seen;"""
    focal_sigma: float = 0.35
    """the standard deviation of its logarithm: phones, webcams, headsets and moderate zooms;"""
    k1: float = 0.0
    """And its radial term,"""
    k1_sigma: float = 0.06
    """with its standard deviation."""
    noise: float = 0.7
    """Pixels a feature usually is off: what the observations weigh against these."""


@dataclass(frozen=True)
class Adjusted:
    """What came out: ``zoom`` is what the focal length was multiplied by, ``k1`` the radial term; with their standard
    deviations (of zoom: relative)."""

    world_from_cam: Float[np.ndarray, "v 4 4"]
    positions: Float[np.ndarray, "p 3"]
    zoom: float
    zoom_sigma: float
    error: float
    """Median pixels off, of the observations that took part."""
    k1: float = 0.0
    k1_sigma: float = np.inf


@dataclass(frozen=True)
class _Problem:
    """Observations sorted by point; the free cameras are numbered 0 to ``free``-1, fixed ones -1. ``xy`` are where the
    lens put them, ``prior`` what was thought of the lens before: log of zoom, k1, and the weights of both."""

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
    lens: bool
    prior: tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]
    loss: float


@dataclass(frozen=True)
class _State:
    cam_from_world: Float[np.ndarray, "v 4 4"]
    positions: Float[np.ndarray, "p 3"]
    lens: Float[np.ndarray, "2"]
    """Logarithm of the zoom, and k1."""


def adjust(
    made: ClassicalMap,
    free: Bool[np.ndarray, "v"],
    *,
    lens: bool = False,
    k1: float = 0.0,
    settings: AdjustSettings | None = None,
) -> Adjusted:
    """The cameras ``free`` of a map, and the points they see, where the reprojection error is least.

    Other cameras hold still, and with them place and scale; when none is left, the first does, and the scale is near
    what it was. ``lens``: all cameras share one lens that is not known; ``k1`` is the radial term that the map's
    observations were straightened with, and its K holds the first guess of the focal length. Positions that no free
    camera sees come back as they were.
    """
    settings = settings or AdjustSettings()
    free = free.copy()
    if free.all():
        free[0] = False
    rows, kept = _chosen(made, free, settings.points)
    state = _State(np.linalg.inv(made.world_from_cam), made.positions[kept], np.array([0.0, k1 if lens else 0.0]))
    if len(rows) < 12 or not free.any():
        return Adjusted(made.world_from_cam, made.positions, 1.0, np.inf, np.inf, k1)
    problem = _problem(made, free, rows, kept, k1 if lens else None, settings)
    slots = np.flatnonzero(free)
    cost, damping = _cost(problem, state), 1e-4
    for _ in range(settings.rounds):
        step, _ = _step(problem, state, damping)
        if step is None:
            damping *= 10
            continue
        tried = _moved(state, slots, step)
        now = _cost(problem, tried)
        if now < cost:
            done = cost - now < settings.enough * cost
            state, cost, damping = tried, now, max(damping / 5, 1e-9)
            if done:
                break
        else:
            damping *= 10
    # Damping would hold what the pictures do not.
    sigma = _step(problem, state, 1e-12)[1] if lens else np.full(2, np.inf)
    positions = made.positions.copy()
    positions[kept] = state.positions
    error = float(np.median(np.linalg.norm(_seen(problem, state)[0], axis=1)))
    zoom, found = float(np.exp(state.lens[0])), float(state.lens[1]) if lens else k1
    return Adjusted(
        np.linalg.inv(state.cam_from_world), positions, zoom, float(sigma[0]), error, found, float(sigma[1])
    )


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
    made: ClassicalMap,
    free: Bool[np.ndarray, "v"],
    rows: np.ndarray,
    kept: np.ndarray,
    k1: float | None,
    settings: AdjustSettings,
) -> _Problem:
    """k1: None = the lens is known."""
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
    xy = bent(xy, K, k1) if k1 else xy
    longer = float(made.sizes[0].max())
    before = np.array([np.log(settings.focal * longer / made.K[0, 0, 0]), settings.k1])
    weight = (settings.noise * max(longer / 640, 1) / np.array([settings.focal_sigma, settings.k1_sigma])) ** 2
    return _Problem(
        K, view, slot, point, xy, first, pair, target, target_first, count, k1 is not None, (before, weight),
        settings.loss,
    )  # fmt: skip


def _seen(
    problem: _Problem, state: _State
) -> tuple[Float[np.ndarray, "o 2"], Float[np.ndarray, "o 3"], Float[np.ndarray, "o 2"]]:
    """Pixels off, the points in their cameras, and x/z, y/z."""
    pose = state.cam_from_world[problem.view]
    cam = np.einsum("oij,oj->oi", pose[:, :3, :3], state.positions[problem.point]) + pose[:, :3, 3]
    ray = cam[:, :2] / np.where(cam[:, 2] > 1e-6, cam[:, 2], 1e-6)[:, None]
    radial = np.exp(state.lens[0]) * (1 + state.lens[1] * (ray**2).sum(1, keepdims=True))
    off = radial * ray * problem.K[:, [0, 1], [0, 1]] + problem.K[:, :2, 2] - problem.xy
    return np.clip(off, -1e3, 1e3), cam, ray


def _cost(problem: _Problem, state: _State) -> float:
    off, _, _ = _seen(problem, state)
    before, weight = problem.prior
    held = float((weight * (state.lens - before) ** 2).sum()) / problem.loss**2 if problem.lens else 0.0
    return float(np.log1p((off**2).sum(1) / problem.loss**2).sum()) + held


def _jacobians(
    problem: _Problem, state: _State, cam: np.ndarray, ray: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pixels by the camera (turn and shift in its own axes), by the point, by the lens (log of focal, k1)."""
    z = np.where(cam[:, 2] > 1e-6, cam[:, 2], 1e-6)[:, None]
    f, squared = np.exp(state.lens[0]) * problem.K[:, [0, 1], [0, 1]], (ray**2).sum(1)[:, None]
    k1 = state.lens[1]
    by_ray = 2 * k1 * ray[:, :, None] * ray[:, None]
    by_ray[:, [0, 1], [0, 1]] += 1 + k1 * squared
    by_ray *= f[:, :, None]
    by_cam = np.empty((len(cam), 2, 3))
    by_cam[:, :, :2] = by_ray / z[:, None]
    by_cam[:, :, 2] = -np.einsum("oij,oj->oi", by_cam[:, :, :2], ray)
    skew = np.zeros((len(cam), 3, 3))
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = cam[:, 2], -cam[:, 1], cam[:, 0]
    skew -= skew.transpose(0, 2, 1)
    by_pose = np.concatenate([by_cam @ skew, by_cam], axis=2)
    by_lens = np.stack([f * (1 + k1 * squared) * ray, f * squared * ray], axis=2)
    return by_pose, by_cam @ state.cam_from_world[problem.view][:, :3, :3], by_lens


_Step = tuple[Float[np.ndarray, "n 6"], Float[np.ndarray, "p 3"], Float[np.ndarray, "2"]]


def _step(problem: _Problem, state: _State, damping: float) -> tuple[_Step | None, Float[np.ndarray, "2"]]:
    """Gauss-Newton's step with damping (cameras, points, lens), and the lens's standard deviations."""
    off, cam, ray = _seen(problem, state)
    A, B, G = _jacobians(problem, state, cam, ray)
    weight = 1 / (1 + (off**2).sum(1) / problem.loss**2)
    At, Bt = A.transpose(0, 2, 1) * weight[:, None, None], B.transpose(0, 2, 1) * weight[:, None, None]
    V, bp = np.add.reduceat(Bt @ B, problem.first), np.add.reduceat(np.einsum("oij,oj->oi", Bt, off), problem.first)
    V += (damping * np.trace(V, axis1=1, axis2=2)[:, None, None] + 1e-12) * np.eye(3)
    inverse = np.linalg.inv(V)
    W, n, m = At @ B, problem.free, 2 if problem.lens else 0
    Y = W @ inverse[problem.point]
    mine = problem.slot >= 0
    S, b = np.zeros((6 * n + m, 6 * n + m)), np.zeros(6 * n + m)
    S[: 6 * n, : 6 * n] = _cameras_alone(problem, At @ A, Y, W, damping)
    reduced = np.einsum("oij,oj->oi", At, off) - np.einsum("oij,oj->oi", Y, bp[problem.point])
    np.add.at(b[: 6 * n].reshape(n, 6), problem.slot[mine], reduced[mine])
    L = np.zeros((len(bp), 3, m))
    if m:
        L = np.add.reduceat(Bt @ G, problem.first)
        Gt, (before, held) = G.transpose(0, 2, 1) * weight[:, None, None], problem.prior
        half = inverse @ L
        S[6 * n :, 6 * n :] = (Gt @ G).sum(0) - np.einsum("pij,pik->jk", L, half) + np.diag(held)
        b[6 * n :] = np.einsum("oij,oj->i", Gt, off) - np.einsum("pij,pi->j", half, bp) + held * (state.lens - before)
        cross = np.zeros((n, 6, m))
        np.add.at(cross, problem.slot[mine], (At @ G - Y @ L[problem.point])[mine])
        S[: 6 * n, 6 * n :], S[6 * n :, : 6 * n] = cross.reshape(6 * n, m), cross.reshape(6 * n, m).T
    try:
        found = -np.linalg.solve(S, b)
        spread = np.diag(np.linalg.inv(S))[6 * n :] if m else np.full(2, np.inf)
    except np.linalg.LinAlgError:
        return None, np.full(2, np.inf)
    cameras, lens = found[: 6 * n].reshape(n, 6), found[6 * n :]
    back = L @ lens
    np.add.at(back, problem.point[mine], np.einsum("oij,oi->oj", W[mine], cameras[problem.slot[mine]]))
    points = -np.einsum("pij,pj->pi", inverse, bp + back)
    noise = float((weight * (off**2).sum(1)).sum() / max(2 * len(off) - len(S) - 3 * len(bp), 1))
    return (cameras, points, lens if m else np.zeros(2)), np.sqrt(np.maximum(spread * noise, 0.0))


def _cameras_alone(
    problem: _Problem, each: np.ndarray, Y: np.ndarray, W: np.ndarray, damping: float
) -> Float[np.ndarray, "c c"]:
    """The normal matrix of the cameras, points eliminated."""
    n = problem.free
    left, right = problem.pair
    blocks, U, mine = np.zeros((n, n, 6, 6)), np.zeros((n, 6, 6)), problem.slot >= 0
    blocks.reshape(n * n, 6, 6)[problem.target] = -np.add.reduceat(
        Y[left] @ W[right].transpose(0, 2, 1), problem.target_first
    )
    np.add.at(U, problem.slot[mine], each[mine])
    blocks[np.arange(n), np.arange(n)] += U * (1 + damping * np.eye(6))
    return blocks.transpose(0, 2, 1, 3).reshape(6 * n, 6 * n)


def _moved(state: _State, slots: Int[np.ndarray, "f"], step: _Step) -> _State:
    cameras, points, lens = step
    poses = state.cam_from_world.copy()
    turn = Rotation.from_rotvec(cameras[:, :3]).as_matrix()
    poses[slots, :3, :3] = turn @ poses[slots, :3, :3]
    poses[slots, :3, 3] = np.einsum("vij,vj->vi", turn, poses[slots, :3, 3]) + cameras[:, 3:]
    return _State(poses, state.positions + points, state.lens + np.clip(lens, -0.3, 0.3))
