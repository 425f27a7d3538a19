"""The same Gaussians with their axes named anew so that they are turned as little as possible.

An ellipsoid does not know which of its axes is the first or which way it points: 24 rotations, each with its order of
the scales, are the same Gaussian (the rotations of a cube). The least of them turns by at most 62.8 degrees, its w is
the largest of wxyz, and the others are small: four and a half bits a splat that no file needs to hold.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Gaussians
from scenetx.core.rigid import rotation_from_quat

ENOUGH = 0.02  # gain in w for which axes are named anew: what is all but least turned stays, with its rounding


def least_turned(gaussians: Gaussians) -> Gaussians:
    """Equal covariances, ``w >= 0`` and within `ENOUGH` of the largest w there is. Zero quaternions stay zero."""
    quats = torch.nn.functional.normalize(gaussians.quats.double(), dim=-1)
    group = _cube().to(quats.device)
    # The w of a product q p is the dot product of q with p's conjugate.
    w = (quats @ (group * group.new_tensor([1.0, -1, -1, -1])).T).abs()
    best = torch.where(w.amax(-1) > w[:, 0] + ENOUGH, w.argmax(-1), 0)
    turned = _times(quats, group[best])
    turned = turned * torch.where(turned[:, :1] < 0, -1.0, 1.0)
    # R S = (R P) (P^-1 S P) P^-1: the scales change their places as P's axes do.
    places = rotation_from_quat(group)[best].abs()
    scales = (places * gaussians.scales.double()[:, :, None]).sum(1)
    return replace(gaussians, quats=turned.to(gaussians.quats), scales=scales.to(gaussians.scales))


def _cube() -> Float[Tensor, "24 4"]:
    """The cube's rotations as unit quaternions wxyz, the identity first."""
    axes = [[float(i == j) for j in range(4)] for i in range(4)]
    pairs = [
        [1.0 if k == i else sign if k == j else 0.0 for k in range(4)]
        for i, j in itertools.combinations(range(4), 2)
        for sign in (1.0, -1.0)
    ]
    corners = [[1.0, *signs] for signs in itertools.product((1.0, -1.0), repeat=3)]
    return torch.nn.functional.normalize(torch.tensor([*axes, *pairs, *corners], dtype=torch.float64), dim=-1)


def _times(a: Float[Tensor, "n 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Hamilton product."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
