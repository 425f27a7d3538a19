"""Real spherical harmonics up to degree 3 in numba: the basis of `scenetx.core.gaussians.sh_basis` and its gradient."""

# numba infers the types:
# ruff: noqa: ANN001, ANN201
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import numpy as np

from scenetx.splat.cpu_jit import kernel

f32 = np.float32
C0, C1 = f32(0.28209479177387814), f32(0.4886025119029199)
C2, C20, C22 = f32(1.0925484305920792), f32(0.31539156525252005), f32(0.5462742152960396)
C33, C32, C31 = f32(0.5900435899266435), f32(2.890611442640554), f32(0.4570457994644658)
C30, C32S = f32(0.3731763325901154), f32(1.445305721320277)
TWO, THREE, FOUR, SIX = f32(2), f32(3), f32(4), f32(6)


@kernel()
def sh_basis_into(x, y, z, degree, out):
    """Fill ``out`` at a unit direction; how many coefficients that is."""
    out[0] = C0
    if degree == 0:
        return 1
    out[1], out[2], out[3] = -C1 * y, C1 * z, -C1 * x
    if degree == 1:
        return 4
    xx, yy, zz = x * x, y * y, z * z
    out[4], out[5], out[6] = C2 * x * y, -C2 * y * z, C20 * (TWO * zz - xx - yy)
    out[7], out[8] = -C2 * x * z, C22 * (xx - yy)
    if degree == 2:
        return 9
    out[9], out[10] = -C33 * y * (THREE * xx - yy), C32 * x * y * z
    out[11], out[12] = -C31 * y * (FOUR * zz - xx - yy), C30 * z * (TWO * zz - THREE * xx - THREE * yy)
    out[13], out[14] = -C31 * x * (FOUR * zz - xx - yy), C32S * z * (xx - yy)
    out[15] = -C33 * x * (xx - THREE * yy)
    return 16


@kernel()
def sh_direction_gradient(x, y, z, degree, c):
    """Gradient of sum_k c[k] Y_k with respect to the (unnormalised) direction."""
    if degree == 0:
        return f32(0), f32(0), f32(0)
    gx, gy, gz = -C1 * c[3], -C1 * c[1], C1 * c[2]
    if degree == 1:
        return gx, gy, gz
    gx += C2 * (y * c[4] - z * c[7]) + TWO * x * (C22 * c[8] - C20 * c[6])
    gy += C2 * (x * c[4] - z * c[5]) - TWO * y * (C22 * c[8] + C20 * c[6])
    gz += FOUR * C20 * z * c[6] - C2 * (y * c[5] + x * c[7])
    if degree == 2:
        return gx, gy, gz
    xx, yy, zz = x * x, y * y, z * z
    gx += -C33 * (SIX * x * y * c[9] + THREE * (xx - yy) * c[15]) + C32 * y * z * c[10]
    gx += C31 * (TWO * x * y * c[11] - (FOUR * zz - THREE * xx - yy) * c[13])
    gx += x * z * (TWO * C32S * c[14] - SIX * C30 * c[12])
    gy += -C33 * (THREE * (xx - yy) * c[9] - SIX * x * y * c[15]) + C32 * x * z * c[10]
    gy += C31 * (TWO * x * y * c[13] - (FOUR * zz - xx - THREE * yy) * c[11])
    gy += -y * z * (TWO * C32S * c[14] + SIX * C30 * c[12])
    gz += C32 * x * y * c[10] - f32(8) * C31 * z * (y * c[11] + x * c[13])
    gz += THREE * C30 * (TWO * zz - xx - yy) * c[12] + C32S * (xx - yy) * c[14]
    return gx, gy, gz
