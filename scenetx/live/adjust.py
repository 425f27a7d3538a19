"""Bundle adjustment of a small map: some cameras, their points and, if asked, the lens they share.

Levenberg-Marquardt with the points eliminated (Schur complement; Triggs et al., "Bundle Adjustment", 1999), under
Cauchy's loss. It runs beside the tracking and does not hold the interpreter for long (`normal_equations`).

A lens is a focal length and one radial term (`radial`). Both are looked for together: a focal length found without
the radial term is several percent off where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation

from scenetx.live.classical_map import ClassicalMap
from scenetx.live.normal_equations import (
    Observations,
    Reduced,
    focals_and_centers,
    points_step,
    reduced,
    residuals,
    solved,
)
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
    """The observations (``xy`` are where the lens put them), how many cameras are free, and what was thought of the
    lens before: log of zoom, k1, and the weights of both."""

    seen: Observations
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

    @property
    def zoom_k1(self) -> tuple[float, float]:
        """As the observations' equations want them."""
        return float(np.exp(self.lens[0])), float(self.lens[1])


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
        step = _step(problem, state, damping)
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
    sigma = _lens_sigma(problem, state) if lens else np.full(2, np.inf)
    positions = made.positions.copy()
    positions[kept] = state.positions
    error = float(np.median(residuals(problem.seen, state.cam_from_world, state.positions, state.zoom_k1)))
    zoom, found = state.zoom_k1[0], state.zoom_k1[1] if lens else k1
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
    first = np.searchsorted(point, np.arange(len(kept) + 1))
    xy, K = made.obs_xy[rows].astype(np.float64), made.K[view]
    xy = bent(xy, K, k1) if k1 else xy
    longer = float(made.sizes[0].max())
    before = np.array([np.log(settings.focal * longer / made.K[0, 0, 0]), settings.k1])
    weight = (settings.noise * max(longer / 640, 1) / np.array([settings.focal_sigma, settings.k1_sigma])) ** 2
    seen = Observations(view, slot_of[view], np.ascontiguousarray(xy), focals_and_centers(K), first)
    return _Problem(seen, int(free.sum()), k1 is not None, (before, weight), settings.loss)


def _cost(problem: _Problem, state: _State) -> float:
    off = residuals(problem.seen, state.cam_from_world, state.positions, state.zoom_k1)
    before, weight = problem.prior
    held = float((weight * (state.lens - before) ** 2).sum()) / problem.loss**2 if problem.lens else 0.0
    return float(np.log1p((off / problem.loss) ** 2).sum()) + held


_Step = tuple[Float[np.ndarray, "n 6"], Float[np.ndarray, "p 3"], Float[np.ndarray, "2"]]


def _step(problem: _Problem, state: _State, damping: float) -> _Step | None:
    """Gauss-Newton's step with damping (cameras, points, lens)."""
    system = _system(problem, state, damping)
    answer = solved(system.S, system.b)
    if answer is None:
        return None
    found = -answer[0]
    cameras = np.ascontiguousarray(found[: 6 * problem.free].reshape(-1, 6))
    lens = found[6 * problem.free :] if problem.lens else np.zeros(2)
    return cameras, points_step(system, problem.seen, cameras, lens), lens


def _lens_sigma(problem: _Problem, state: _State) -> Float[np.ndarray, "2"]:
    """Standard deviations of the logarithm of the focal length and of k1; without damping, which would hold what the
    pictures do not."""
    system = _system(problem, state, 1e-12)
    answer = solved(system.S, system.b)
    if answer is None:
        return np.full(2, np.inf)
    last = answer[1][-2:, -2:]
    spread = np.diag(np.linalg.inv(last @ last.T))  # of the inverse of S, its last corner
    left = max(2 * len(problem.seen.view) - len(system.b) - 3 * len(state.positions), 1)
    return np.sqrt(np.maximum(spread * system.squared / left, 0.0))


def _system(problem: _Problem, state: _State, damping: float) -> Reduced:
    """The reduced equations, with what was thought of the lens before."""
    system = reduced(
        problem.seen, state.cam_from_world, state.positions, state.zoom_k1, problem.free,
        with_lens=problem.lens, damping=damping, loss=problem.loss,
    )  # fmt: skip
    if problem.lens:
        before, held = problem.prior
        system.S[[-2, -1], [-2, -1]] += held
        system.b[-2:] += held * (state.lens - before)
    return system


def _moved(state: _State, slots: Int[np.ndarray, "f"], step: _Step) -> _State:
    cameras, points, lens = step
    poses = state.cam_from_world.copy()
    turn = Rotation.from_rotvec(cameras[:, :3]).as_matrix()
    poses[slots, :3, :3] = turn @ poses[slots, :3, :3]
    poses[slots, :3, 3] = np.einsum("vij,vj->vi", turn, poses[slots, :3, 3]) + cameras[:, 3:]
    return _State(poses, state.positions + points, state.lens + np.clip(lens, -0.3, 0.3))
