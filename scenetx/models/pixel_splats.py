"""A Gaussian for every pixel whose depth is known, and many views' pixels merged into few Gaussians.

No learning in here: `scenetx.models.splat_head` predicts what these functions take as given.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from scenetx.core import Cameras, Gaussians, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.core.gaussians import SH_C0
from scenetx.core.rigid import quat_from_rotation

PIXEL = 0.5  # standard deviation of a pixel's Gaussian, in pixels: neighbours meet, nothing blurs
SPREAD = 1.5  # merged splats are this much wider than the points they stand for, so that neighbours close up
ROUNDS = 20


def footprint(depth: Float[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """World width of a pixel at its z-depth: depth / sqrt(fx fy)."""
    focal = (cameras.K[:, 0, 0] * cameras.K[:, 1, 1]).sqrt().to(depth)
    return depth / focal[:, None, None]


def pixel_points(
    depth: Float[Tensor, "n h w"], cameras: Cameras, shift: Float[Tensor, "n h w 2"] | None = None
) -> Float[Tensor, "n h w 3"]:
    """World points on the rays through the pixel centres (moved by ``shift`` pixels) at z-depth ``depth``."""
    height, width = depth.shape[1:]
    grid = pixel_grid(height, width, dtype=depth.dtype).to(depth.device)
    pixels = grid.expand(len(depth), -1, -1, -1)
    if shift is not None:
        pixels = pixels + shift
    found = unproject(pixels.flatten(1, 2), depth.flatten(1), cameras.to(depth.dtype).to(depth.device))
    return found.unflatten(1, (height, width))


def pixel_gaussians(
    images: Float[Tensor, "n h w 3"],
    depth: Float[Tensor, "n h w"],
    cameras: Cameras,
    *,
    points: Float[Tensor, "n h w 3"] | None = None,
    opacity: float = 0.9,
) -> Gaussians:
    """Round Gaussians of half a pixel on every pixel, view by view, row by row, in the frame of ``cameras``.

    images: sRGB in [0, 1]. points: where the pixels are, instead of on their rays at ``depth`` (a pointmap; depth still
    sets the size). Pixels of depth 0 are left out: the result has as many rows as pixels of known depth.
    """
    known = depth > 0
    where = pixel_points(depth, cameras) if points is None else points
    size = PIXEL * footprint(depth, cameras)[known]
    count = len(size)
    return Gaussians(
        means=where[known],
        quats=size.new_tensor([1.0, 0, 0, 0]).repeat(count, 1),
        scales=size[:, None].repeat(1, 3),
        opacities=torch.full_like(size, opacity),
        sh=((images[known] - 0.5) / SH_C0)[:, None, :],
    )


def confident(confidence: Float[Tensor, "g"], share: float) -> Bool[Tensor, "g"]:
    """True for all but the least sure ``share``; of equal ones the later are the less sure."""
    kept = torch.zeros_like(confidence, dtype=torch.bool)
    kept[confidence.argsort(descending=True, stable=True)[: round((1 - share) * len(confidence))]] = True
    return kept


def merged(
    gaussians: Gaussians, weights: Float[Tensor, "g"], eyes: Float[Tensor, "n 3"], most: int, *, spread: float = SPREAD
) -> Gaussians:
    """At most ``most`` Gaussians: those that share a cell of space become one with their mean, covariance and colour.

    Cells are as much larger as their nearest camera (``eyes``) is farther, in powers of two, so that all views agree on
    them and near things keep their detail. Moments are matched with ``weights``; what the spread of the means adds to
    the covariance is widened by ``spread``. Gaussians that are few enough come back as they are.
    """
    if len(gaussians) <= most:
        return gaussians
    return pooled(gaussians, weights, cells(gaussians.means.detach(), eyes, most), spread=spread)


def pooled(
    gaussians: Gaussians, weights: Float[Tensor, "g"], labels: Int[Tensor, "g"], *, spread: float = SPREAD
) -> Gaussians:
    """One Gaussian a label (0 to the largest, each in use) with the weighted mean and covariance of its members."""
    count = int(labels.max()) + 1 if len(labels) else 0
    weights = weights.to(gaussians.means).clamp_min(1e-12)
    share = weights / weights.new_zeros(count).index_add(0, labels, weights)[labels]

    def mean_of(values: Float[Tensor, "g *s"]) -> Float[Tensor, "m *s"]:
        scaled = values * share.view(-1, *[1] * (values.ndim - 1))
        return values.new_zeros(count, *values.shape[1:]).index_add(0, labels, scaled)

    means = mean_of(gaussians.means)
    offset = spread * (gaussians.means - means[labels])
    covariance = mean_of(gaussians.covariances + offset[:, :, None] * offset[:, None, :])
    variance, axes = torch.linalg.eigh(covariance.double())
    axes = torch.cat([axes[:, :, :2], torch.linalg.cross(axes[:, :, 0], axes[:, :, 1], dim=-1)[..., None]], dim=-1)
    smallest = mean_of(gaussians.scales.amin(-1))
    scales = variance.clamp_min(0).sqrt().to(means)
    return replace(
        gaussians,
        means=means,
        quats=quat_from_rotation(axes).to(means),
        scales=torch.maximum(scales, 0.5 * smallest[:, None]),
        opacities=mean_of(gaussians.opacities),
        sh=mean_of(gaussians.sh),
    )


def cells(points: Float[Tensor, "g 3"], eyes: Float[Tensor, "n 3"], most: int) -> Int[Tensor, "g"]:
    """The cell of every point, numbered without gaps: the finest cells of which there are at most ``most``."""
    values = points.double().cpu().numpy()
    near = np.maximum(cKDTree(eyes.double().cpu().numpy()).query(values)[0], 1e-12)
    middle = float(np.median(near))
    factor = 2.0 ** np.clip(np.floor(np.log2(near / middle)), -8, 24)
    # Points a thousand times farther than half of all share cells whatever the size; logarithms keep the search short.
    smallest, largest = 1e-6 * middle, 1e3 * middle
    best = _numbered(values, factor, largest)
    for _ in range(ROUNDS):
        size = (smallest * largest) ** 0.5
        labels, count = _numbered(values, factor, size)
        if count > most:
            smallest = size
        else:
            best, largest = (labels, count), size
            if count > 0.95 * most:
                break
    return torch.from_numpy(best[0]).to(points.device)


def _numbered(
    values: Float[np.ndarray, "g 3"], factor: Float[np.ndarray, "g"], size: float
) -> tuple[Int[np.ndarray, "g"], int]:
    """Cells of ``size`` times each point's factor as consecutive numbers, and how many there are."""
    index = np.floor(values / (size * factor)[:, None]).astype(np.int64)
    # One 64-bit number a cell; odd multipliers wrap around, and a collision would merge two cells in 2^64.
    key = index @ np.array([0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB], np.int64)
    key += np.log2(factor).astype(np.int64) * 0x2545F4914F6CDD1D
    found, labels = np.unique(key, return_inverse=True)
    return labels.reshape(-1), len(found)
