"""From gradients of screen splats back to Gaussians and the camera, in numba: the reverse of `cpu_project`."""

# numba infers the types:
# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import math

import numpy as np
from numba import prange

from scenetx.splat.cpu_jit import kernel
from scenetx.splat.cpu_project import (
    ABS_X,
    ABS_Y,
    BLOCK,
    CONIC_A,
    CONIC_B,
    CONIC_C,
    COV_XX,
    COV_XY,
    COV_YY,
    DET,
    DET_SHARP,
    G_DEPTH,
    G_RED,
    HALF,
    LOW_PASS,
    ONE,
    OPACITY,
    RED,
    SLOT_COLUMNS,
    TWO,
    VX,
    VXX,
    VXY,
    VY,
    VYY,
    ZERO,
    V,
    jacobian_times_rotation,
    rotation_from_quat,
    screen_axes,
    slopes,
    to_camera,
)
from scenetx.splat.cpu_sh import sh_basis_into, sh_direction_gradient

f32 = np.float32


@kernel()
def covariance_gradient(row, g, opacity, antialiased):
    """d loss / d screen covariance (its matrix entries xx, xy, yy), and d loss / d opacity."""
    a, b, c = f32(-16) * row[CONIC_A], f32(-8) * row[CONIC_B], f32(-16) * row[CONIC_C]
    ga, gb, gc = HALF * g[VXX], HALF * g[VXY], HALF * g[VYY]
    # d(Q^-1) = -Q dQ Q for the conic Q = [a b; b c]
    xx = -(a * a * ga + TWO * a * b * gb + b * b * gc)
    xy = -(a * b * ga + (a * c + b * b) * gb + b * c * gc)
    yy = -(b * b * ga + TWO * b * c * gb + c * c * gc)
    g_opacity = -g[V] / row[OPACITY]
    if antialiased:  # o_screen = o sqrt(det_sharp / det)
        half_g = HALF * g_opacity * row[OPACITY]
        sharp, det = half_g / row[DET_SHARP], half_g / row[DET]
        xx += (row[COV_YY] - LOW_PASS) * sharp - row[COV_YY] * det
        yy += (row[COV_XX] - LOW_PASS) * sharp - row[COV_XX] * det
        xy -= row[COV_XY] * (sharp - det)
        g_opacity *= math.sqrt(row[DET_SHARP] / row[DET])
    return xx, xy, yy, g_opacity if opacity <= ONE else ZERO


@kernel()
def axes_gradient(xx, xy, yy, jr, m, p, d_jr, d_m):
    """Through covariance = p p^T and p = jr @ m, into d_jr and d_m."""
    for j in range(3):
        p0 = TWO * (xx * p[0, j] + xy * p[1, j])
        p1 = TWO * (xy * p[0, j] + yy * p[1, j])
        p[0, j], p[1, j] = p0, p1
    for i in range(3):
        for row in range(2):
            d_jr[row, i] = p[row, 0] * m[i, 0] + p[row, 1] * m[i, 1] + p[row, 2] * m[i, 2]
        for j in range(3):
            d_m[i, j] = jr[0, i] * p[0, j] + jr[1, i] * p[1, j]


@kernel()
def shape_gradient(d, quat, norm, scale, d_quat, d_scale):
    """Through m = R(quat) diag(scale), into d_quat and d_scale; ``d`` (d loss / d m) is overwritten."""
    w, x, y, z = quat[0] / norm, quat[1] / norm, quat[2] / norm, quat[3] / norm
    rot = rotation_from_quat(w, x, y, z)
    for j in range(3):
        d_scale[j] = d[0, j] * rot[j] + d[1, j] * rot[3 + j] + d[2, j] * rot[6 + j]
        for i in range(3):
            d[i, j] *= scale[j]
    gw = x * (d[2, 1] - d[1, 2]) + y * (d[0, 2] - d[2, 0]) + z * (d[1, 0] - d[0, 1])
    gx = y * (d[0, 1] + d[1, 0]) + z * (d[0, 2] + d[2, 0]) + w * (d[2, 1] - d[1, 2]) - TWO * x * (d[1, 1] + d[2, 2])
    gy = x * (d[0, 1] + d[1, 0]) + z * (d[1, 2] + d[2, 1]) + w * (d[0, 2] - d[2, 0]) - TWO * y * (d[0, 0] + d[2, 2])
    gz = x * (d[0, 2] + d[2, 0]) + y * (d[1, 2] + d[2, 1]) + w * (d[1, 0] - d[0, 1]) - TWO * z * (d[0, 0] + d[1, 1])
    along = w * gw + x * gx + y * gy + z * gz
    d_quat[0], d_quat[1] = TWO * (gw - w * along) / norm, TWO * (gx - x * along) / norm
    d_quat[2], d_quat[3] = TWO * (gy - y * along) / norm, TWO * (gz - z * along) / norm


@kernel()
def point_gradient(row, g, x, y, z, sx, sy, lens, rotation, d_jr):
    """d loss / d point in the camera frame: through the pixel, the depth and the Jacobian."""
    fx, fy = lens[0], lens[1]
    a, b, c = f32(-16) * row[CONIC_A], f32(-8) * row[CONIC_B], f32(-16) * row[CONIC_C]
    gu, gv = a * g[VX] + b * g[VY], b * g[VX] + c * g[VY]
    gx, gy = gu * fx / z, gv * fy / z
    gz = g[G_DEPTH] - (gx * x + gy * y) / z
    # jr[0] = fx/z (R[:,0] - sx R[:,2]) and alike for y
    first = d_jr[0, 0] * rotation[0, 0] + d_jr[0, 1] * rotation[1, 0] + d_jr[0, 2] * rotation[2, 0]
    third = d_jr[0, 0] * rotation[0, 2] + d_jr[0, 1] * rotation[1, 2] + d_jr[0, 2] * rotation[2, 2]
    second_y = d_jr[1, 0] * rotation[0, 1] + d_jr[1, 1] * rotation[1, 1] + d_jr[1, 2] * rotation[2, 1]
    third_y = d_jr[1, 0] * rotation[0, 2] + d_jr[1, 1] * rotation[1, 2] + d_jr[1, 2] * rotation[2, 2]
    ax, ay = fx / z, fy / z
    gz -= (ax * (first - sx * third) + ay * (second_y - sy * third_y)) / z
    if sx == x / z:  # not held at the margin
        gx -= ax * third / z
        gz += ax * third * sx / z
    if sy == y / z:
        gy -= ay * third_y / z
        gz += ay * third_y * sy / z
    return gx, gy, gz


@kernel()
def color_gradient(row, g, d, sh, degree, basis, weight, d_sh):
    """d loss / d (mean - centre) through the view direction; d_sh is added to."""
    norm = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    x, y, z = d[0] / norm, d[1] / norm, d[2] / norm
    count = sh_basis_into(x, y, z, degree, basis)
    r = g[G_RED] if row[RED] > ZERO else ZERO
    gr = g[G_RED + 1] if row[RED + 1] > ZERO else ZERO
    b = g[G_RED + 2] if row[RED + 2] > ZERO else ZERO
    for k in range(count):
        weight[k] = sh[k, 0] * r + sh[k, 1] * gr + sh[k, 2] * b
        d_sh[k, 0] += basis[k] * r
        d_sh[k, 1] += basis[k] * gr
        d_sh[k, 2] += basis[k] * b
    gx, gy, gz = sh_direction_gradient(x, y, z, degree, weight)
    along = x * gx + y * gy + z * gz
    return (gx - x * along) / norm, (gy - y * along) / norm, (gz - z * along) / norm


@kernel()
def add_pose(pose, d, g_cam, view, rotation, jr_over, d_jr):
    """Add one splat to d loss / d world_from_cam[:3]: columns 0 to 2 the rotation, 3 the centre."""
    for i in range(3):
        for j in range(3):
            pose[i, j] += d[i] * g_cam[j]
        pose[i, 0] += jr_over[0] * d_jr[0, i]
        pose[i, 1] += jr_over[1] * d_jr[1, i]
        pose[i, 2] -= jr_over[2] * d_jr[0, i] + jr_over[3] * d_jr[1, i]
        moved = rotation[i, 0] * g_cam[0] + rotation[i, 1] * g_cam[1] + rotation[i, 2] * g_cam[2]
        pose[i, 3] -= moved + view[i]


@kernel()
def sum_slots(slots, begin, end, g):
    """Sum a splat's slots; True if all is finite."""
    g[:] = ZERO
    for slot in range(begin, end):
        for j in range(SLOT_COLUMNS):
            g[j] += slots[slot, j]
    total = ZERO
    for j in range(SLOT_COLUMNS):
        total += g[j]
    return math.isfinite(total)


@kernel()
def all_finite(d_mean, d_quat, d_scale, d_opacity):
    total = d_opacity
    for j in range(3):
        total += d_mean[j] + d_scale[j]
    for j in range(4):
        total += d_quat[j]
    return math.isfinite(total)


@kernel(parallel=True)
def project_backward(
    means, quats, scales, opacities, sh, rotation, center, lens, degree, antialiased,
    table, slots, slot_start, d_means, d_quats, d_scales, d_opacities, d_sh, poses, absgrad,
):  # fmt: skip
    """Add every seen Gaussian's gradients to its rows, each block's pose gradient to ``poses``, |d mean| to absgrad."""
    for block in prange(len(poses)):
        jr, m, p, d_jr = np.empty((2, 3), f32), np.empty((3, 3), f32), np.empty((2, 3), f32), np.empty((2, 3), f32)
        d_m, g, basis, weight = np.empty((3, 3), f32), np.empty(SLOT_COLUMNS, f32), np.empty(16, f32), np.empty(16, f32)
        d_quat, d_scale, d_mean, d = np.empty(4, f32), np.empty(3, f32), np.empty(3, f32), np.empty(3, f32)
        for i in range(block * BLOCK, min(len(means), (block + 1) * BLOCK)):
            if slot_start[i] == slot_start[i + 1] or not sum_slots(slots, slot_start[i], slot_start[i + 1], g):
                continue
            absgrad[i, 0], absgrad[i, 1] = g[ABS_X], g[ABS_Y]
            row = table[i]
            x, y, z = to_camera(means[i], rotation, center)
            sx, sy = slopes(x, y, z, lens)
            jacobian_times_rotation(rotation, z, sx, sy, lens, jr)
            norm = screen_axes(jr, quats[i], scales[i], m, p)
            xx, xy, yy, d_opacity = covariance_gradient(row, g, opacities[i], antialiased)
            axes_gradient(xx, xy, yy, jr, m, p, d_jr, d_m)
            shape_gradient(d_m, quats[i], norm, scales[i], d_quat, d_scale)
            g_cam = point_gradient(row, g, x, y, z, sx, sy, lens, rotation, d_jr)
            for j in range(3):
                d[j] = means[i, j] - center[j]
            view = color_gradient(row, g, d, sh[i], degree, basis, weight, d_sh[i])
            for j in range(3):
                d_mean[j] = view[j]
                for axis in range(3):
                    d_mean[j] += rotation[j, axis] * g_cam[axis]
            if not all_finite(d_mean, d_quat, d_scale, d_opacity):
                continue
            ax, ay = lens[0] / z, lens[1] / z
            add_pose(poses[block], d, g_cam, view, rotation, (ax, ay, ax * sx, ay * sy), d_jr)
            d_opacities[i] += d_opacity
            for j in range(4):
                d_quats[i, j] += d_quat[j]
            for j in range(3):
                d_means[i, j] += d_mean[j]
                d_scales[i, j] += d_scale[j]
