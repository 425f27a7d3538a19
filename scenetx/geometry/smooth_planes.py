"""Semi-global matching: a plane for every pixel such that neighbours rarely differ (Hirschmueller, PAMI 2008).

The sum over pixels of a plane's cost and a penalty wherever neighbours have other planes has no quick exact minimum
over a picture, but has one along a line; what the lines through a pixel from four sides say of every plane is averaged.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SMALL = 0.08  # penalty for the next plane: slanted surfaces
LARGE = 0.6  # for any other: an edge of the surface, cheaper where the picture has an edge too
EDGE = 0.05  # of grey in [0, 1] from pixel to pixel that halves it


def aggregated(
    cost: Float[Tensor, "d h w"], grey: Float[Tensor, "h w"], *, small: float = SMALL, large: float = LARGE
) -> Float[Tensor, "d h w"]:
    """Mean cost of every plane over paths from left, right, above and below. The planes are in their order."""
    total = torch.zeros_like(cost)
    for axis in (1, 2):
        lines = cost.movedim(axis, 0).transpose(1, 2).contiguous()  # along the path, paths, planes
        change = grey.movedim(axis - 1, 0).diff(dim=0).abs()
        jump = (large / (1 + change / EDGE)).clamp_min(1.5 * small)
        forward = _path(lines, jump, small)
        back = _path(lines.flip(0), jump.flip(0), small).flip(0)
        total += (forward + back).transpose(1, 2).movedim(0, axis)
    return total / 4


def _path(cost: Float[Tensor, "n m d"], jump: Float[Tensor, "k m"], small: float) -> Float[Tensor, "n m d"]:
    """Least cost of a path that ends at each pixel with each plane, less the best of the pixel before (equation 13)."""
    out = torch.empty_like(cost)
    out[0] = cost[0]
    for index in range(1, len(cost)):
        before = out[index - 1]
        least = before.amin(-1, keepdim=True)
        best = torch.minimum(before, least + jump[index - 1, :, None])
        best[:, 1:] = torch.minimum(best[:, 1:], before[:, :-1] + small)
        best[:, :-1] = torch.minimum(best[:, :-1], before[:, 1:] + small)
        out[index] = cost[index] + best - least
    return out
