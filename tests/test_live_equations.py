"""The equations of bundle adjustment against one dense system, points against scipy, matches against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from test_live_lens import FOCAL, HEIGHT, WIDTH, lens, stations

from scenetx.live import adjust
from scenetx.live.features import match, unit
from scenetx.live.normal_equations import solved, triangulated
from scenetx.live.points import PointSettings, Station, link

VIEWS, POINTS = 4, 12


def cloud(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """cam_from_world [VIEWS 4 4] and places [POINTS 3] before all cameras."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(rng.normal(scale=0.08, size=(VIEWS, 3))).as_matrix()
    poses[:, :3, 3] = rng.normal(scale=0.3, size=(VIEWS, 3))
    return poses, rng.uniform([-1.2, -0.9, 3], [1.2, 0.9, 6], size=(POINTS, 3))


def problem(free: list[int], *, with_lens: bool) -> tuple[adjust._Problem, adjust._State]:
    """Every second point is not seen by the last camera; observations are off by pixels, some by many."""
    poses, places = cloud()
    rng = np.random.default_rng(1)
    seen = [(v, p) for p in range(POINTS) for v in range(VIEWS) if v < VIEWS - 1 or p % 2]
    view, point = np.array(seen).T
    slot_of = np.full(VIEWS, -1)
    slot_of[free] = np.arange(len(free))
    K = np.tile([FOCAL, 1.1 * FOCAL, WIDTH / 2, HEIGHT / 2], (len(seen), 1))
    xy = rng.normal(scale=3, size=(len(seen), 2)) + K[:, 2:]
    cam = np.einsum("oij,oj->oi", poses[view][:, :3, :3], places[point]) + poses[view][:, :3, 3]
    xy += cam[:, :2] / cam[:, 2:] * K[:, :2]
    xy[3] += 40
    first = np.searchsorted(point, np.arange(POINTS + 1))
    observations = adjust.Observations(view, slot_of[view], xy, K, first)
    prior = (np.array([0.1, 0.02]), np.array([3.0, 40.0]))
    state = adjust._State(poses, places, np.array([0.05, -0.03]) if with_lens else np.zeros(2))
    return adjust._Problem(observations, len(free), with_lens, prior, 1.5), state


def residuals(problem: adjust._Problem, state: adjust._State) -> np.ndarray:
    """Pixels off, x and y in turn: the definition."""
    seen = problem.seen
    point = np.repeat(np.arange(POINTS), np.diff(seen.first))
    pose = state.cam_from_world[seen.view]
    cam = np.einsum("oij,oj->oi", pose[:, :3, :3], state.positions[point]) + pose[:, :3, 3]
    ray = cam[:, :2] / cam[:, 2:]
    bent = np.exp(state.lens[0]) * (1 + state.lens[1] * (ray**2).sum(1, keepdims=True)) * ray
    return (bent * seen.lens[:, :2] + seen.lens[:, 2:] - seen.xy).ravel()


def moved(state: adjust._State, free: list[int], x: np.ndarray) -> adjust._State:
    n = 6 * len(free)
    step = x[:n].reshape(-1, 6), x[n + 2 :].reshape(-1, 3), x[n : n + 2]
    return adjust._moved(state, np.array(free), step)


def slopes(given: adjust._Problem, state: adjust._State, free: list[int]) -> np.ndarray:
    """Of the residuals by all unknowns (cameras, lens, points), by differences."""
    steps = 1e-6 * np.eye(6 * len(free) + 2 + 3 * POINTS)
    ends = [[residuals(given, moved(state, free, sign * step)) for sign in (1, -1)] for step in steps]
    return np.stack([(there - back) / 2e-6 for there, back in ends], axis=1)


@pytest.mark.parametrize("with_lens", [False, True])
@pytest.mark.parametrize("free", [[1, 2, 3], [0, 2]])
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_a_step_is_that_of_one_dense_system(free: list[int], with_lens: bool, damping: float):
    given, state = problem(free, with_lens=with_lens)
    n, size = 6 * len(free), 6 * len(free) + 2 + 3 * POINTS
    r, J = residuals(given, state), slopes(given, state, free)
    weight = np.repeat(1 / (1 + (r.reshape(-1, 2) ** 2).sum(1) / given.loss**2), 2)
    H, g = J.T @ (weight[:, None] * J), J.T @ (weight * r)
    H[range(n), range(n)] *= 1 + damping
    for p in range(POINTS):
        rows = slice(n + 2 + 3 * p, n + 5 + 3 * p)
        H[rows, rows] += (damping * np.trace(H[rows, rows]) + 1e-12) * np.eye(3)
    before, held = given.prior
    if with_lens:
        H[[n, n + 1], [n, n + 1]] += held
        g[n : n + 2] += held * (state.lens - before)
    kept = np.r_[0:n, n : n + 2 if with_lens else n, n + 2 : size]
    expected = -np.linalg.solve(H[np.ix_(kept, kept)], g[kept])
    cameras, points, lens_step = adjust._step(given, state, damping)
    parts = [cameras.ravel(), lens_step if with_lens else np.zeros(0), points.ravel()]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=2e-5, atol=1e-7 * np.abs(expected).max())
    assert with_lens or not lens_step.any()


def test_the_lens_is_as_sure_as_the_dense_system_says():
    free = [1, 2, 3]
    given, state = problem(free, with_lens=True)
    n, size = 6 * len(free), 6 * len(free) + 2 + 3 * POINTS
    r, J = residuals(given, state), slopes(given, state, free)
    squares = (r.reshape(-1, 2) ** 2).sum(1)
    weight = np.repeat(1 / (1 + squares / given.loss**2), 2)
    H = J.T @ (weight[:, None] * J)
    H[[n, n + 1], [n, n + 1]] += given.prior[1]
    noise = (weight * r**2).sum() / max(len(r) - size, 1)
    expected = np.sqrt(np.diag(np.linalg.inv(H))[n : n + 2] * noise)
    np.testing.assert_allclose(adjust._lens_sigma(given, state), expected, rtol=1e-4)


def test_a_system_that_is_not_positive_definite_has_no_solution():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(31, 31))
    S, b = A @ A.T + 0.1 * np.eye(31), rng.normal(size=31)
    x, L = solved(S, b)
    np.testing.assert_allclose(x, np.linalg.solve(S, b), rtol=1e-9)
    np.testing.assert_allclose(L @ L.T, S, rtol=1e-9, atol=1e-12)
    assert solved(S - 200 * np.eye(31), b) is None
    assert solved(np.full((3, 3), np.nan), np.ones(3)) is None


def test_points_are_where_the_robust_error_is_least():
    poses, places = cloud(3)
    rng = np.random.default_rng(4)
    view, point = (each.ravel() for each in np.meshgrid(np.arange(VIEWS), np.arange(POINTS), indexing="ij"))
    K = np.tile([FOCAL, 1.1 * FOCAL, WIDTH / 2, HEIGHT / 2], (VIEWS, 1))

    def pixels(X: np.ndarray, rows: np.ndarray) -> np.ndarray:
        cam = np.einsum("rij,rj->ri", poses[view[rows]][:, :3, :3], X) + poses[view[rows]][:, :3, 3]
        return cam[:, :2] / cam[:, 2:] * K[view[rows], :2] + K[view[rows], 2:]

    every = np.arange(len(view))
    for noise in (0.0, 0.5):
        xy = pixels(places[point], every) + rng.normal(scale=noise, size=(len(view), 2))
        found = triangulated(xy, point, view, poses, K, POINTS)
        for p in range(POINTS):
            rows = np.flatnonzero(point == p)

            def off(X: np.ndarray, rows: np.ndarray = rows, xy: np.ndarray = xy) -> np.ndarray:
                return (pixels(np.tile(X, (len(rows), 1)), rows) - xy[rows]).ravel()

            best = least_squares(off, places[p]).x
            assert np.linalg.norm(found[p] - best) < (1e-8 if noise == 0 else 2e-3)


def test_matches_along_lines_are_those_of_all_pairs_compared():
    a, b = stations(2)
    a, b = (Station(each.name, each.world_from_cam, lens(), each.size, each.features, each.picture) for each in (a, b))
    settings = PointSettings(epipolar=0.9)
    b_from_a = np.linalg.inv(b.world_from_cam) @ a.world_from_cam
    t = b_from_a[:3, 3]
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(b.K).T @ cross @ b_from_a[:3, :3] @ np.linalg.inv(a.K)
    xa, xb = (np.concatenate([each.features.xy, np.ones((len(each.features), 1))], axis=1) for each in (a, b))
    product = np.abs(xb @ F @ xa.T).T
    off = product / np.minimum(
        np.linalg.norm((xa @ F.T)[:, :2], axis=1)[:, None], np.linalg.norm((xb @ F)[:, :2], axis=1)
    )
    likeness = unit(a.features.descriptors) @ unit(b.features.descriptors).T
    limit = settings.epipolar * WIDTH / 960
    likeness[off > 2 * limit] = 0
    i, j, _ = match(likeness, ratio=settings.ratio)
    good = off[i, j] <= limit
    found = link(a, b, settings)
    assert good.sum() > 100
    assert good.sum() < len(good)
    np.testing.assert_array_equal(found, np.stack([i[good], j[good]]))
