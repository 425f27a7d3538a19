"""Codebooks for packed splats: scalar ones for single numbers, palettes of vectors for SH, and an order for images."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ENTRIES = 256  # of a scalar codebook: an index is one byte
_BLOCK = 1 << 24  # distances held at once while vectors are assigned


def scalar_codebook(values: Float[np.ndarray, "n"], *, rounds: int = 12) -> Float[np.ndarray, "256"]:
    """256 sorted levels for ``values`` by Lloyd's algorithm (1957/1982), deterministic.

    Starts with half of the levels at equal counts and half at equal steps, so that rare large values keep levels of
    their own. The ends are the smallest and the largest value: nothing is ever cut. At most 256 distinct values are
    kept as they are. All zeros when there are no values.
    """
    if not len(values):
        return np.zeros(ENTRIES)
    distinct = np.unique(values.astype(np.float64))
    if len(distinct) <= ENTRIES:
        return np.concatenate([distinct, np.full(ENTRIES - len(distinct), distinct[-1])])
    ordered = np.sort(values.astype(np.float64))
    share = (np.arange(ENTRIES // 2) + 0.5) / (ENTRIES // 2)
    even = np.linspace(ordered[0], ordered[-1], ENTRIES // 2)
    levels = np.sort(np.concatenate([even, ordered[(share * len(ordered)).astype(np.int64)]]))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(rounds):
        edges = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(edges)
        levels = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), levels)
        levels[0], levels[-1] = ordered[0], ordered[-1]
        levels = np.sort(levels)
    return levels


def nearest_level(values: Float[np.ndarray, "*s"], levels: Float[np.ndarray, "256"]) -> np.ndarray:
    """Index (uint8, the shape of ``values``) of the nearest of sorted ``levels``."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


def palette(
    vectors: Float[Tensor, "n d"], count: int, *, weights: Float[Tensor, "n"] | None = None, rounds: int = 6
) -> tuple[Float[Tensor, "k d"], Int[Tensor, "n"]]:
    """At most ``count`` vectors that stand for all of them, and which one each of them is shown by.

    Weighted k-means: a vector counts as often as its weight says (LightGaussian, arXiv 2311.17245, section 3.4, weighs
    by significance). Deterministic; starts from vectors spread over their own order of magnitude; an entry that
    nothing is near takes the worst served vector. Few distinct vectors are kept as they are.
    """
    if not len(vectors) or count < 1:
        raise ValueError(f"palette: {count} entries for {len(vectors)} vectors")
    vectors = vectors.detach().float()
    if len(vectors) <= count:
        return vectors.clone(), torch.arange(len(vectors))
    distinct, which = torch.unique(vectors, dim=0, return_inverse=True)
    if len(distinct) <= count:
        return distinct, which
    mass = torch.ones(len(vectors)) if weights is None else weights.detach().float().clamp_min(1e-12)
    order = (vectors.norm(dim=-1) * mass.sqrt()).argsort(descending=True, stable=True)
    start = torch.linspace(0, 1, count).square() * (len(vectors) - 1)  # denser among what is large and weighs
    centers = vectors[order[start.long()]]
    labels, error = _assign(vectors, centers)
    for _ in range(rounds):
        total = torch.zeros(count).index_add_(0, labels, mass)
        sums = torch.zeros_like(centers).index_add_(0, labels, vectors * mass[:, None])
        centers = torch.where(total[:, None] > 0, sums / total.clamp_min(1e-12)[:, None], centers)
        empty = (total == 0).nonzero()[:, 0]
        if len(empty):
            centers[empty] = vectors[(error * mass).topk(len(empty)).indices]
        labels, error = _assign(vectors, centers)
    return centers, labels


def _assign(vectors: Float[Tensor, "n d"], centers: Float[Tensor, "k d"]) -> tuple[Tensor, Tensor]:
    """Nearest centre and squared distance of every vector, in blocks that bound the memory."""
    half = 0.5 * centers.square().sum(-1)
    labels, errors = [], []
    for block in vectors.split(max(1, _BLOCK // len(centers))):
        score, label = torch.addmm(half, block, centers.T, alpha=-1).min(dim=-1)
        labels.append(label)
        errors.append((2 * score + block.square().sum(-1)).clamp_min(0))
    return torch.cat(labels), torch.cat(errors)


def morton_order(positions: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, "n"]:
    """Rows along a Z-order curve (Morton, 1966), 21 bits an axis: neighbours in space become neighbours in the file.

    Stable, so equal positions keep their order.
    """
    if not len(positions):
        return np.zeros(0, np.int64)
    points = positions.astype(np.float64)
    low = points.min(0)
    span = np.maximum(points.max(0) - low, 1e-30)
    cells = ((points - low) / span * (2**21 - 1)).astype(np.uint64)
    key = np.zeros(len(points), np.uint64)
    for axis in range(3):
        key |= _spread(cells[:, axis]) << np.uint64(axis)
    return np.argsort(key, kind="stable").astype(np.int64)


def _spread(x: np.ndarray) -> np.ndarray:
    """The 21 low bits with two zeros between them."""
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | x << np.uint64(shift)) & np.uint64(mask)
    return x
