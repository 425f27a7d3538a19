"""Projection of Gaussians to screen splats and its gradient in numba: one splat an iteration, nothing shared."""

# numba infers the types:
# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import math

import numpy as np
from numba import prange

from scenetx.splat import rules
from scenetx.splat.cpu_jit import kernel
from scenetx.splat.cpu_sh import sh_basis_into

f32 = np.float32
LOW_PASS = f32(rules.LOW_PASS)
MIN_ALPHA = f32(rules.MIN_ALPHA)
MARGIN = f32(0.5 * rules.FRUSTUM_MARGIN)
MIN_QUAT_NORM = f32(rules.MIN_QUAT_NORM)
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)

# Columns of the splat table. u = A dx^2 + B dx dy + C dy^2 is -sigma / 8, the argument of the kernels' exponential.
MX, MY, CONIC_A, CONIC_B, CONIC_C, OPACITY, RED, GREEN, BLUE, DEPTH = range(10)
REACH, COV_XX, COV_XY, COV_YY, DET, DET_SHARP = range(10, 16)
COLUMNS = 16  # one cache line

# Columns of the gradient slots: sums over a splat's pixels. V is d loss / d sigma.
G_RED, G_GREEN, G_BLUE, G_DEPTH, V, VX, VY, VXX, VXY, VYY, ABS_X, ABS_Y = range(12)
SLOT_COLUMNS = 12
BLOCK = 256  # splats a task; also the unit of the pose gradient's sum, so it must not follow the number of threads


@kernel()
def rotation_from_quat(w, x, y, z):
    return (
        ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y),
        TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x),
        TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y),
    )  # fmt: skip


@kernel()
def clamp(value, low, high):
    value = value if value > low else low
    return value if value < high else high


@kernel()
def slopes(x, y, z, lens):
    """x / z and y / z, held within the picture and its margin: where the Jacobian is taken."""
    fx, fy, cx, cy, width, height = lens
    mx, my = MARGIN * width / fx, MARGIN * height / fy
    sx = clamp(x / z, -cx / fx - mx, (width - cx) / fx + mx)
    sy = clamp(y / z, -cy / fy - my, (height - cy) / fy + my)
    return sx, sy


@kernel()
def screen_axes(jr, quat, scale, m, p):
    """Scaled axes m = R(quat) diag(scale), world frame, and p = jr @ m: the screen covariance is p p^T."""
    norm = math.sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3])
    rot = rotation_from_quat(quat[0] / norm, quat[1] / norm, quat[2] / norm, quat[3] / norm)
    for i in range(3):
        for j in range(3):
            m[i, j] = rot[3 * i + j] * scale[j]
    for i in range(2):
        for j in range(3):
            p[i, j] = jr[i, 0] * m[0, j] + jr[i, 1] * m[1, j] + jr[i, 2] * m[2, j]
    return norm


@kernel()
def jacobian_times_rotation(rotation, z, sx, sy, lens, jr):
    """d pixel / d world point."""
    ax, ay = lens[0] / z, lens[1] / z
    for i in range(3):
        jr[0, i] = ax * (rotation[i, 0] - sx * rotation[i, 2])
        jr[1, i] = ay * (rotation[i, 1] - sy * rotation[i, 2])


@kernel()
def to_camera(mean, rotation, center):
    dx, dy, dz = mean[0] - center[0], mean[1] - center[1], mean[2] - center[2]
    x = rotation[0, 0] * dx + rotation[1, 0] * dy + rotation[2, 0] * dz
    y = rotation[0, 1] * dx + rotation[1, 1] * dy + rotation[2, 1] * dz
    z = rotation[0, 2] * dx + rotation[1, 2] * dy + rotation[2, 2] * dz
    return x, y, z


@kernel()
def shape_into(row, x, y, z, opacity, antialiased, lens, p):
    """Fill the geometric columns; True if the splat touches the picture."""
    sharp_x = p[0, 1] * p[1, 2] - p[0, 2] * p[1, 1]
    sharp_y = p[0, 2] * p[1, 0] - p[0, 0] * p[1, 2]
    sharp_z = p[0, 0] * p[1, 1] - p[0, 1] * p[1, 0]
    # Lagrange: the squared cross product is the determinant of p p^T, and rounding cannot make it negative.
    sharp = sharp_x * sharp_x + sharp_y * sharp_y + sharp_z * sharp_z
    xx = p[0, 0] * p[0, 0] + p[0, 1] * p[0, 1] + p[0, 2] * p[0, 2]
    yy = p[1, 0] * p[1, 0] + p[1, 1] * p[1, 1] + p[1, 2] * p[1, 2]
    xy = p[0, 0] * p[1, 0] + p[0, 1] * p[1, 1] + p[0, 2] * p[1, 2]
    det = sharp + LOW_PASS * (xx + yy) + LOW_PASS * LOW_PASS
    xx, yy = xx + LOW_PASS, yy + LOW_PASS
    if not math.isfinite(opacity):
        return False
    opacity = opacity if opacity < ONE else ONE
    if antialiased:
        opacity *= math.sqrt(sharp / det)
    if not (opacity >= MIN_ALPHA):
        return False
    reach = TWO * math.log(opacity / MIN_ALPHA)
    row[MX], row[MY] = lens[0] * x / z + lens[2], lens[1] * y / z + lens[3]
    row[CONIC_A], row[CONIC_B], row[CONIC_C] = -yy / (f32(16) * det), xy / (f32(8) * det), -xx / (f32(16) * det)
    row[OPACITY], row[DEPTH], row[REACH] = opacity, z, reach
    row[COV_XX], row[COV_XY], row[COV_YY], row[DET], row[DET_SHARP] = xx, xy, yy, det, sharp
    rx, ry = math.sqrt(reach * xx), math.sqrt(reach * yy)
    inside = row[MX] + rx > ZERO and row[MX] - rx < lens[4] and row[MY] + ry > ZERO and row[MY] - ry < lens[5]
    return inside and math.isfinite(det) and math.isfinite(row[MX] + row[MY] + rx + ry)


@kernel()
def color_into(row, mean, center, sh, degree, basis):
    """Fill the colour columns; True if they are finite."""
    dx, dy, dz = mean[0] - center[0], mean[1] - center[1], mean[2] - center[2]
    norm = math.sqrt(dx * dx + dy * dy + dz * dz)
    count = sh_basis_into(dx / norm, dy / norm, dz / norm, degree, basis)
    total = ZERO
    for channel in range(3):
        value = HALF
        for k in range(count):
            value += basis[k] * sh[k, channel]
        total += value
        row[RED + channel] = value if value > ZERO else ZERO
    return math.isfinite(total)


@kernel(parallel=True)
def project_forward(
    means, quats, scales, opacities, sh, rotation, center, lens, near, degree, antialiased, table, seen
):
    """Fill one row of ``table`` for each Gaussian in the picture and say in ``seen`` which those are."""
    count = len(means)
    for block in prange((count + BLOCK - 1) // BLOCK):
        jr, m, p = np.empty((2, 3), f32), np.empty((3, 3), f32), np.empty((2, 3), f32)
        basis = np.empty(16, f32)
        for i in range(block * BLOCK, min(count, (block + 1) * BLOCK)):
            seen[i] = False
            x, y, z = to_camera(means[i], rotation, center)
            if not (z >= near and math.isfinite(x + y + z)):
                continue
            sx, sy = slopes(x, y, z, lens)
            jacobian_times_rotation(rotation, z, sx, sy, lens, jr)
            norm = screen_axes(jr, quats[i], scales[i], m, p)
            if not norm > MIN_QUAT_NORM:
                continue
            row = table[i]
            if shape_into(row, x, y, z, opacities[i], antialiased, lens, p):
                seen[i] = color_into(row, means[i], center, sh[i], degree, basis)
