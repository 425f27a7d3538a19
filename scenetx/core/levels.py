"""Levels of detail: fewer Gaussians for the same scene, without holes.

Neighbours are merged into one that keeps their mass, mean and covariance (Kerbl et al., "A Hierarchical 3D Gaussian
Representation for Real-Time Rendering of Very Large Datasets", 2024, section 4.1). Leaving the least important ones out
instead tears holes: at a quarter of the splats it costs several decibels more.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.core.gaussians import Gaussians
from scenetx.core.rigid import quat_from_rotation

MOST_OPAQUE = 0.99
BALANCE = 0.25
"""Groups are alike in the sum of what their splats cover to this power: large splats keep more to themselves."""


def coarser(gaussians: Gaussians, count: int) -> Gaussians:
    """At most ``count`` Gaussians (float32, CPU) that look like ``gaussians``; those that are not finite are left out.

    Opacities: the merged one covers as much as its parts did, each its opacity times its surface. Colours: weighed by
    that. Deterministic.
    """
    if count < 1:
        raise ValueError(f"coarser: {count} Gaussians; give 1 or more")
    fine = gaussians.detach().to("cpu")[gaussians.finite().cpu()].to(torch.float32)
    if len(fine) <= count:
        return fine
    seen = (fine.opacities * fine.scales.topk(2, dim=-1).values.prod(-1)).double().numpy()
    group = bisected(fine.means.double().numpy(), (seen + 1e-12) ** BALANCE, count)
    return _merged(fine, torch.from_numpy(group), count)


def bisected(points: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n"], count: int) -> Int[np.ndarray, "n"]:
    """Which of ``count`` (at most n) groups each point is in: of nearly equal weight (positive), by halving along the
    axis in which they are spread widest."""
    n, axes = points.shape
    group, leaves = np.zeros(n, np.int64), np.array([count])
    while (leaves > 1).any():
        sizes, total = np.bincount(group, minlength=len(leaves)), np.bincount(group, weights, len(leaves))

        def mean(values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "c d"]:
            sums = [np.bincount(group, weights * values[:, axis], len(leaves)) for axis in range(axes)]  # noqa: B023
            return np.stack(sums, -1) / total[:, None]  # noqa: B023

        spread = mean((points - mean(points)[group]) ** 2)
        order = np.lexsort((points[np.arange(n), spread.argmax(1)[group]], group))
        start, along = np.cumsum(sizes) - sizes, np.concatenate([[0.0], np.cumsum(weights[order])])
        rank, passed = np.empty(n, np.int64), np.empty(n)
        rank[order] = np.arange(n) - start[group[order]]
        passed[order] = (along[:-1] + along[1:]) / 2 - along[start][group[order]]
        # A group that is to become one stays whole; else each side gets its share of the weight, and enough points.
        left = np.where(leaves > 1, leaves // 2, 1)
        right = leaves - left
        over = passed * leaves[group] >= (total * left)[group]
        over = ((over & (rank >= left[group])) | (rank >= (sizes - right)[group])) & (leaves > 1)[group]
        place = np.cumsum((leaves > 1) + 1) - ((leaves > 1) + 1)
        group = place[group] + over
        both = np.stack([left, right], 1).reshape(-1)
        leaves = both[both > 0]
    return group


def _merged(fine: Gaussians, group: Int[Tensor, "g"], count: int) -> Gaussians:
    """One Gaussian a group; in double precision, since covariances are differences of large numbers."""
    means, sh = fine.means.double(), fine.sh.double().flatten(1)
    weight = fine.opacities.double() * _surface(fine.scales.double()) + 1e-30
    total = weight.new_zeros(count).index_add_(0, group, weight)

    def mean(values: Float[Tensor, "g *k"]) -> Float[Tensor, "c *k"]:
        share = (weight / total[group]).reshape(-1, *[1] * (values.ndim - 1))
        return values.new_zeros(count, *values.shape[1:]).index_add_(0, group, values * share)

    middle = mean(means)
    off = means - middle[group]
    variance, axes = torch.linalg.eigh(mean(fine.covariances.double() + off[:, :, None] * off[:, None, :]))
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]  # a rotation, no mirror
    scales = variance.clamp_min(1e-24).sqrt()
    return Gaussians(
        means=middle.float(),
        quats=quat_from_rotation(axes).float(),
        scales=scales.float(),
        opacities=(total / _surface(scales)).clamp(max=MOST_OPAQUE).float(),
        sh=mean(sh).unflatten(1, (-1, 3)).float(),
        antialiased=fine.antialiased,
    )


def _surface(scales: Float[Tensor, "g 3"]) -> Float[Tensor, "g"]:
    """Of the ellipsoid, up to a factor: the mean area that it hides."""
    x, y, z = scales.unbind(-1)
    return x * y + y * z + z * x
