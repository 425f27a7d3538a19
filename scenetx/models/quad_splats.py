"""Pixels grouped into square blocks of one colour and one surface, as many as there may be splats.

Detail gets small blocks and flat colour large ones: a quadtree (Finkel and Bentley 1974) whose blocks are split while
their pixels differ from their mean by more than a threshold, the one threshold for all pictures that meets the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

LEVELS = 7  # blocks of up to 64 pixels a side
RELIEF = 0.1  # difference of ln(depth) that weights as much as black against white
ROUNDS = 18


@dataclass(frozen=True)
class BlockTree:
    """One picture's blocks of 1, 2, 4 ... pixels a side: the weight of the pixels in each, and what a block costs."""

    weights: list[Float[Tensor, "_ _"]]
    costs: list[Float[Tensor, "_ _"]]
    height: int
    width: int

    @staticmethod
    def of(image: Float[Tensor, "h w 3"], depth: Float[Tensor, "h w"], weight: Float[Tensor, "h w"]) -> BlockTree:
        """image: in [0, 1]. weight: how much a pixel's detail weights; above 0 for those to be grouped, whose depth is
        above 0 too.

        A block costs the weighed squared differences of its colours from their mean, and of its relief.
        """
        height, width = depth.shape
        whole = 1 << (LEVELS - 1)
        grown = (0, -width % whole, 0, -height % whole)
        wanted, weight = (
            weight > 0,
            pad(weight.double(), grown),
        )  # sums of squares less the square of sums: float32 would not do
        relief = torch.where(wanted, depth.double().clamp_min(1e-12).log(), 0.0) / RELIEF
        seen = torch.cat([image.double(), relief[..., None]], dim=-1).permute(2, 0, 1)
        values = pad(seen, grown) * weight
        squares = (pad(seen, grown).square() * weight).sum(0)
        weights, costs = [weight], [torch.zeros_like(weight)]
        for _ in range(1, LEVELS):
            weight, values, squares = _fourfold(weight), _fourfold(values), _fourfold(squares)
            weights.append(weight)
            costs.append((squares - values.square().sum(0) / weight.clamp_min(1e-6)).clamp_min(0))
        return BlockTree(weights, costs, height, width)

    def leaves(self, most: float) -> list[Bool[Tensor, "_ _"]]:
        """Of every level, finest first, the blocks that cost at most ``most`` and lie in no larger such block."""
        out: list[Tensor] = []
        taken = torch.zeros_like(self.weights[-1], dtype=torch.bool)
        for level in reversed(range(LEVELS)):
            free = ~taken & (self.weights[level] > 0)
            leaf = free & (self.costs[level] <= most) if level else free
            out.append(leaf)
            if level:
                taken = (taken | leaf).repeat_interleave(2, 0).repeat_interleave(2, 1)
        return out[::-1]

    def labels(self, most: float, first: int) -> tuple[Int[Tensor, "h w"], int]:
        """The block of every wanted pixel, numbered from ``first``; -1 elsewhere. And the next free number."""
        found = torch.full_like(self.weights[0], -1, dtype=torch.int64)
        for level, leaf in enumerate(self.leaves(most)):
            number = torch.full_like(leaf, -1, dtype=torch.int64)
            count = int(leaf.sum())
            number[leaf] = torch.arange(first, first + count)
            first += count
            size = 1 << level
            found = torch.maximum(found, number.repeat_interleave(size, 0).repeat_interleave(size, 1))
        found[self.weights[0] == 0] = -1
        return found[: self.height, : self.width], first


def grouped(trees: Sequence[BlockTree], most: int) -> tuple[list[Int[Tensor, "_ _"]], int]:
    """Labels of every picture's pixels, from 0 without gaps over all pictures, and how many there are.

    At most ``most`` unless even the largest blocks are more.
    """

    def number(threshold: float) -> int:
        return sum(int(leaf.sum()) for tree in trees for leaf in tree.leaves(threshold))

    low, high = 1e-6, 1e5  # of the cost; logarithms halve the way between a byte's rounding and a whole block
    best = 0.0 if number(0.0) <= most else high
    for _ in range(ROUNDS if best else 0):
        middle = (low * high) ** 0.5
        count = number(middle)
        if count > most:
            low = middle
        else:
            best = high = middle
            if count > 0.97 * most:
                break
    labels, first = [], 0
    for tree in trees:
        some, first = tree.labels(best, first)
        labels.append(some)
    return labels, first


def _fourfold(x: Float[Tensor, "*c h w"]) -> Float[Tensor, "*c i j"]:
    """Sums over squares of two by two."""
    rows = x[..., ::2, :] + x[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]
