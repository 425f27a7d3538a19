"""The normal equations of a bundle adjustment, points eliminated, and of points alone (numba).

Written out, for these few small matrices a point are what the making of a map waits for; while they run, other Python
threads do too. `tests/test_live_equations.py` says the same with all unknowns in one dense system.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from scenetx.splat.cpu_jit import kernel

NEAR = 1e-6
"""Depth under which a point's counts as this."""
FAR = 1e3
"""Pixels off, beyond which a residual grows no more."""


@dataclass(frozen=True)
class Observations:
    """Of points by cameras, sorted by point; those of point p are first[p] to first[p + 1]."""

    view: Int[np.ndarray, "o"]
    slot: Int[np.ndarray, "o"]
    """The number of a free camera; -1 = it holds still."""
    xy: Float[np.ndarray, "o 2"]
    lens: Float[np.ndarray, "o 4"]
    """fx, fy, cx, cy of its picture."""
    first: Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Reduced:
    """The system of cameras (six numbers each: turn and shift in their own axes) and lens (log of focal, k1), and what
    leads from its solution to the points."""

    S: Float[np.ndarray, "u u"]
    b: Float[np.ndarray, "u"]
    inverse: Float[np.ndarray, "p 3 3"]
    right: Float[np.ndarray, "p 3"]
    by_lens: Float[np.ndarray, "p 3 2"]
    W: Float[np.ndarray, "o 6 3"]
    squared: float
    """Sum of the weighted squares of the residuals, pixels^2."""


def focals_and_centers(K: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 4"]:
    """fx, fy, cx, cy of each."""
    return np.ascontiguousarray(K[:, [0, 1, 0, 1], [0, 1, 2, 2]])


def reduced(
    seen: Observations,
    cam_from_world: Float[np.ndarray, "v 4 4"],
    positions: Float[np.ndarray, "p 3"],
    lens: tuple[float, float],
    free: int,
    *,
    with_lens: bool,
    damping: float,
    loss: float,
) -> Reduced:
    """Gauss-Newton's system under Cauchy's loss of scale ``loss`` pixels, Levenberg-Marquardt's damping on cameras and
    points. lens: zoom and k1; ``with_lens`` puts both among the unknowns, after ``free`` cameras."""
    unknowns = 6 * free + (2 if with_lens else 0)
    count, rows = len(positions), len(seen.view)
    S, b = np.zeros((unknowns, unknowns)), np.zeros(unknowns)
    inverse, right, by_lens = np.zeros((count, 3, 3)), np.zeros((count, 3)), np.zeros((count, 3, 2))
    W = np.zeros((rows, 6, 3))
    poses = np.ascontiguousarray(cam_from_world[:, :3])
    squared = _gather(
        poses, positions, lens[0], lens[1], seen.view, seen.slot, seen.xy, seen.lens, seen.first,
        free, with_lens, damping, loss, S, b, inverse, right, by_lens, W,
    )  # fmt: skip
    return Reduced(S, b, inverse, right, by_lens, W, float(squared))


def points_step(
    system: Reduced, seen: Observations, cameras: Float[np.ndarray, "n 6"], lens: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "p 3"]:
    """What a step of cameras and lens asks of the points."""
    out = np.empty_like(system.right)
    _back(system.inverse, system.right, system.by_lens, system.W, seen.slot, seen.first, cameras, lens, out)
    return out


def solved(
    S: Float[np.ndarray, "u u"], b: Float[np.ndarray, "u"]
) -> tuple[Float[np.ndarray, "u"], Float[np.ndarray, "u u"]] | None:
    """x with S x = b for a symmetric positive definite S, and Cholesky's lower factor; None = S is not.

    Of a few hundred unknowns. A threaded LAPACK takes up to 0.2 s for what takes a millisecond where other work runs on
    the cores: its threads wait for each other.
    """
    x, L = b.copy(), np.zeros_like(S)
    if not _cholesky(S, L):
        return None
    _substitute(L, x)
    return x, L


def residuals(
    seen: Observations,
    cam_from_world: Float[np.ndarray, "v 4 4"],
    positions: Float[np.ndarray, "p 3"],
    lens: tuple[float, float],
) -> Float[np.ndarray, "o"]:
    """Pixels off."""
    out = np.empty(len(seen.view))
    poses = np.ascontiguousarray(cam_from_world[:, :3])
    _off(poses, positions, lens[0], lens[1], seen.view, seen.xy, seen.lens, seen.first, out)
    return out


def triangulated(
    xy: Float[np.ndarray, "r 2"],
    point: Int[np.ndarray, "r"],
    view: Int[np.ndarray, "r"],
    cam_from_world: Float[np.ndarray, "v 4 4"],
    lens: Float[np.ndarray, "v 4"],
    count: int,
) -> Float[np.ndarray, "p 3"]:
    """``count`` points nearest to the rays of their pixels, then three Gauss-Newton steps on the robust reprojection
    error (Huber's, 2 pixels). lens: fx, fy, cx, cy."""
    A, b, out = np.zeros((count, 3, 3)), np.zeros((count, 3)), np.zeros((count, 3))
    _triangulate(xy, point, view, np.ascontiguousarray(cam_from_world[:, :3]), lens, A, b, out)
    return out


@kernel(nogil=True)
def _invert(V, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Of a symmetric 3 x 3 matrix."""
    a = V[1, 1] * V[2, 2] - V[1, 2] ** 2
    b = V[0, 2] * V[1, 2] - V[0, 1] * V[2, 2]
    c = V[0, 1] * V[1, 2] - V[0, 2] * V[1, 1]
    det = V[0, 0] * a + V[0, 1] * b + V[0, 2] * c
    out[0, 0], out[0, 1], out[0, 2] = a / det, b / det, c / det
    out[1, 1] = (V[0, 0] * V[2, 2] - V[0, 2] ** 2) / det
    out[1, 2] = (V[0, 1] * V[0, 2] - V[0, 0] * V[1, 2]) / det
    out[2, 2] = (V[0, 0] * V[1, 1] - V[0, 1] ** 2) / det
    out[1, 0], out[2, 0], out[2, 1] = out[0, 1], out[0, 2], out[1, 2]


@kernel(nogil=True)
def _in_camera(pose, X, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(3):
        out[i] = pose[i, 0] * X[0] + pose[i, 1] * X[1] + pose[i, 2] * X[2] + pose[i, 3]


@kernel(nogil=True)
def _off(poses, X, zoom, k1, view, xy, K, first, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    cam = np.empty(3)
    for p in range(len(X)):
        for o in range(first[p], first[p + 1]):
            _in_camera(poses[view[o]], X[p], cam)
            z = max(cam[2], NEAR)
            x, y = cam[0] / z, cam[1] / z
            radial = zoom * (1 + k1 * (x * x + y * y))
            dx = min(max(radial * x * K[o, 0] + K[o, 2] - xy[o, 0], -FAR), FAR)
            dy = min(max(radial * y * K[o, 1] + K[o, 3] - xy[o, 1], -FAR), FAR)
            out[o] = math.sqrt(dx * dx + dy * dy)


@kernel(nogil=True)
def _jacobians(pose, X, zoom, k1, xy, K, cam, off, A, B, G):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Residual (pixels), and its derivatives by camera, point and lens."""
    _in_camera(pose, X, cam)
    z = max(cam[2], NEAR)
    x, y = cam[0] / z, cam[1] / z
    squared = x * x + y * y
    radial = 1 + k1 * squared
    fx, fy = zoom * K[0], zoom * K[1]
    off[0] = min(max(radial * x * fx + K[2] - xy[0], -FAR), FAR)
    off[1] = min(max(radial * y * fy + K[3] - xy[1], -FAR), FAR)
    for i in range(2):
        f, ray = (fx, x) if i == 0 else (fy, y)
        a, b = 2 * k1 * f * ray * x / z, 2 * k1 * f * ray * y / z  # by the point in its camera
        if i == 0:
            a += f * radial / z
        else:
            b += f * radial / z
        c = -(a * x + b * y)
        A[i, 0] = -b * cam[2] + c * cam[1]
        A[i, 1] = a * cam[2] - c * cam[0]
        A[i, 2] = -a * cam[1] + b * cam[0]
        A[i, 3], A[i, 4], A[i, 5] = a, b, c
        for j in range(3):
            B[i, j] = a * pose[0, j] + b * pose[1, j] + c * pose[2, j]
    G[0, 0], G[0, 1] = fx * radial * x, fx * squared * x
    G[1, 0], G[1, 1] = fy * radial * y, fy * squared * y


@kernel(nogil=True)
def _gather(  # type: ignore[no-untyped-def]  # noqa: ANN202
    poses, X, zoom, k1, view, slot, xy, K, first, free, with_lens, damping, loss, S, b, inverse, right, by_lens, W,  # noqa: ANN001
):  # fmt: skip
    cam, off, A, B, G = np.empty(3), np.empty(2), np.empty((2, 6)), np.empty((2, 3)), np.empty((2, 2))
    V, n, total = np.empty((3, 3)), 6 * free, 0.0
    for p in range(len(X)):
        V[:] = 0.0
        for o in range(first[p], first[p + 1]):
            _jacobians(poses[view[o]], X[p], zoom, k1, xy[o], K[o], cam, off, A, B, G)
            squares = off[0] * off[0] + off[1] * off[1]
            w = 1 / (1 + squares / (loss * loss))
            total += w * squares
            for i in range(3):
                right[p, i] += w * (B[0, i] * off[0] + B[1, i] * off[1])
                for j in range(3):
                    V[i, j] += w * (B[0, i] * B[0, j] + B[1, i] * B[1, j])
                if with_lens:
                    for j in range(2):
                        by_lens[p, i, j] += w * (B[0, i] * G[0, j] + B[1, i] * G[1, j])
            if with_lens:
                for i in range(2):
                    b[n + i] += w * (G[0, i] * off[0] + G[1, i] * off[1])
                    for j in range(2):
                        S[n + i, n + j] += w * (G[0, i] * G[0, j] + G[1, i] * G[1, j])
            s = 6 * slot[o]
            if s < 0:
                continue
            for i in range(6):
                b[s + i] += w * (A[0, i] * off[0] + A[1, i] * off[1])
                for j in range(3):
                    W[o, i, j] = w * (A[0, i] * B[0, j] + A[1, i] * B[1, j])
                for j in range(6):
                    more = w * (A[0, i] * A[0, j] + A[1, i] * A[1, j])
                    S[s + i, s + j] += more * (1 + damping) if i == j else more
                if with_lens:
                    for j in range(2):
                        S[s + i, n + j] += w * (A[0, i] * G[0, j] + A[1, i] * G[1, j])
        held = damping * (V[0, 0] + V[1, 1] + V[2, 2]) + 1e-12
        for i in range(3):
            V[i, i] += held
        _invert(V, inverse[p])
        _eliminate(inverse[p], right[p], by_lens[p], W, slot, first[p], first[p + 1], n, with_lens, S, b)
    for i in range(len(S)):
        for j in range(i):
            S[i, j] = S[j, i]
    return total


@kernel(nogil=True)
def _eliminate(inverse, right, by_lens, W, slot, begin, end, n, with_lens, S, b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Takes one point out of the system; of S the upper half is kept right."""
    Y = np.empty((6, 3))
    if with_lens:
        for j in range(2):
            for i in range(3):
                half = inverse[i, 0] * by_lens[0, j] + inverse[i, 1] * by_lens[1, j] + inverse[i, 2] * by_lens[2, j]
                b[n + j] -= half * right[i]
                for k in range(2):
                    S[n + k, n + j] -= half * by_lens[i, k]
    for o in range(begin, end):
        s = 6 * slot[o]
        if s < 0:
            continue
        for i in range(6):
            for j in range(3):
                Y[i, j] = W[o, i, 0] * inverse[0, j] + W[o, i, 1] * inverse[1, j] + W[o, i, 2] * inverse[2, j]
            b[s + i] -= Y[i, 0] * right[0] + Y[i, 1] * right[1] + Y[i, 2] * right[2]
            if with_lens:
                for j in range(2):
                    S[s + i, n + j] -= Y[i, 0] * by_lens[0, j] + Y[i, 1] * by_lens[1, j] + Y[i, 2] * by_lens[2, j]
        for q in range(begin, end):
            t = 6 * slot[q]
            if t < s:
                continue
            for i in range(6):
                for j in range(6):
                    S[s + i, t + j] -= Y[i, 0] * W[q, j, 0] + Y[i, 1] * W[q, j, 1] + Y[i, 2] * W[q, j, 2]


@kernel(fast=frozenset({"contract", "nsz", "reassoc"}), nogil=True)
def _dot(a, b, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = 0.0
    for k in range(count):
        total += a[k] * b[k]
    return total


@kernel(nogil=True)
def _cholesky(S, L):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(len(S)):
        for j in range(i):
            L[i, j] = (S[i, j] - _dot(L[i], L[j], j)) / L[j, j]
        left = S[i, i] - _dot(L[i], L[i], i)
        if not left > 0.0:  # NaN too
            return False
        L[i, i] = math.sqrt(left)
    return True


@kernel(nogil=True)
def _substitute(L, x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    count = len(x)
    for i in range(count):
        x[i] = (x[i] - _dot(L[i], x, i)) / L[i, i]
    for i in range(count - 1, -1, -1):
        x[i] /= L[i, i]
        for k in range(i):
            x[k] -= L[i, k] * x[i]


@kernel(nogil=True)
def _back(inverse, right, by_lens, W, slot, first, cameras, lens, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    r = np.empty(3)
    for p in range(len(right)):
        for i in range(3):
            r[i] = right[p, i] + by_lens[p, i, 0] * lens[0] + by_lens[p, i, 1] * lens[1]
        for o in range(first[p], first[p + 1]):
            if slot[o] >= 0:
                for i in range(6):
                    for j in range(3):
                        r[j] += W[o, i, j] * cameras[slot[o], i]
        for i in range(3):
            out[p, i] = -(inverse[p, i, 0] * r[0] + inverse[p, i, 1] * r[1] + inverse[p, i, 2] * r[2])


@kernel(nogil=True)
def _solve_points(A, b, X):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """X -= A^-1 b, for each point."""
    inverse = np.empty((3, 3))
    for p in range(len(X)):
        held = 1e-9 * (A[p, 0, 0] + A[p, 1, 1] + A[p, 2, 2] + 1e-12)
        for i in range(3):
            A[p, i, i] += held
        _invert(A[p], inverse)
        for i in range(3):
            X[p, i] -= inverse[i, 0] * b[p, 0] + inverse[i, 1] * b[p, 1] + inverse[i, 2] * b[p, 2]


@kernel(nogil=True)
def _triangulate(xy, point, view, poses, K, A, b, X):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    d, cam, J, C = np.empty(3), np.empty(3), np.empty((2, 3)), np.zeros((2, 3))
    for r in range(len(point)):
        p, pose, lens = point[r], poses[view[r]], K[view[r]]
        x, y = (xy[r, 0] - lens[2]) / lens[0], (xy[r, 1] - lens[3]) / lens[1]
        length = math.sqrt(x * x + y * y + 1)
        for j in range(3):
            d[j] = (pose[0, j] * x + pose[1, j] * y + pose[2, j]) / length
            cam[j] = -(pose[0, j] * pose[0, 3] + pose[1, j] * pose[1, 3] + pose[2, j] * pose[2, 3])
        along = d[0] * cam[0] + d[1] * cam[1] + d[2] * cam[2]
        for i in range(3):
            b[p, i] += along * d[i] - cam[i]
            for j in range(3):
                A[p, i, j] += (1.0 if i == j else 0.0) - d[i] * d[j]
    _solve_points(A, b, X)  # X is 0: the linear answer
    for _ in range(3):
        A[:], b[:] = 0.0, 0.0
        for r in range(len(point)):
            p, pose, lens = point[r], poses[view[r]], K[view[r]]
            _in_camera(pose, X[p], cam)
            z = cam[2] if abs(cam[2]) > 1e-9 else 1e-9
            x, y = cam[0] / z, cam[1] / z
            dx, dy = lens[0] * x + lens[2] - xy[r, 0], lens[1] * y + lens[3] - xy[r, 1]
            C[0, 0], C[0, 2], C[1, 1], C[1, 2] = lens[0] / z, -lens[0] * x / z, lens[1] / z, -lens[1] * y / z
            w = 1 / max(1.0, math.sqrt(dx * dx + dy * dy) / 2)
            for i in range(2):
                for j in range(3):
                    J[i, j] = C[i, 0] * pose[0, j] + C[i, 1] * pose[1, j] + C[i, 2] * pose[2, j]
            for i in range(3):
                b[p, i] += w * (J[0, i] * dx + J[1, i] * dy)
                for j in range(3):
                    A[p, i, j] += w * (J[0, i] * J[0, j] + J[1, i] * J[1, j])
        _solve_points(A, b, X)
