"""The noise of MCMC fitting (eq. 8 of arXiv 2404.09591) on a CPU, in one numba pass with random numbers of its own.

A number depends on (seed, row, axis) alone, so neither threads nor the number of splats change it, and there is no
generator whose state would have to be saved.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN202
# mypy: disallow-untyped-defs=False
from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import prange
from torch import Tensor

from scenetx.splat.cpu_jit import kernel

STEEPNESS, OPACITY = 100.0, 0.005  # the paper's k and 1 - t
CEILING = 0.1  # above this opacity the noise is below 1e-4 of its full size and is left out


def wander(means: Tensor, quats: Tensor, log_scales: Tensor, logits: Tensor, *, strength: float, seed: int) -> None:
    """Move faint splats in place by covariance @ n, n ~ N(0, strength^2), gated by opacity. Float32 on a CPU."""
    tables = (tensor.detach().numpy() for tensor in (means, quats, log_scales, logits))
    _wander(*tables, np.float32(strength), np.uint64(seed % 2**64))


@kernel()
@no_type_check
def _uniform(counter):
    """(0, 1) from a counter: the finaliser of splitmix64 (Steele et al., 2014)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) + 0.5) / 2**53


@kernel()
@no_type_check
def _normal(seed, row, axis):
    counter = seed + np.uint64(8) * np.uint64(row) + np.uint64(2) * np.uint64(axis)
    radius = math.sqrt(-2 * math.log(_uniform(counter)))
    return radius * math.cos(2 * math.pi * _uniform(counter + np.uint64(1)))


@kernel(parallel=True)
@no_type_check
def _wander(means, quats, log_scales, logits, strength, seed):
    for row in prange(len(means)):
        opacity = 1 / (1 + math.exp(-logits[row]))
        if not opacity < CEILING:
            continue
        size = strength / (1 + math.exp(STEEPNESS * (opacity - OPACITY)))
        w, x, y, z = quats[row, 0], quats[row, 1], quats[row, 2], quats[row, 3]
        scale = 2 / (w * w + x * x + y * y + z * z)
        axes = (
            (1 - scale * (y * y + z * z), scale * (x * y + w * z), scale * (x * z - w * y)),
            (scale * (x * y - w * z), 1 - scale * (x * x + z * z), scale * (y * z + w * x)),
            (scale * (x * z + w * y), scale * (y * z - w * x), 1 - scale * (x * x + y * y)),
        )
        n0, n1, n2 = _normal(seed, row, 0), _normal(seed, row, 1), _normal(seed, row, 2)
        for k in range(3):
            axis = axes[k]
            along = axis[0] * n0 + axis[1] * n1 + axis[2] * n2
            step = size * math.exp(2 * log_scales[row, k]) * along
            for j in range(3):
                means[row, j] += step * axis[j]
