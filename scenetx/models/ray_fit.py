"""Intrinsics from predicted rays, for models that say where every pixel looks but not with which lens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def intrinsics_from_rays(slopes: Float[Tensor, "n h w 2"]) -> Float[Tensor, "n 3 3"]:
    """Least-squares fx and fy of ``pixel = f * slope + centre`` with the principal point in the picture's middle.

    slopes: x/z and y/z of every pixel's ray in its camera. Pixels of a picture without usable slopes get f = its width.
    """
    n, height, width = slopes.shape[:3]
    x = torch.arange(width, device=slopes.device) + 0.5 - width / 2
    y = torch.arange(height, device=slopes.device) + 0.5 - height / 2
    across, down = slopes[..., 0].double(), slopes[..., 1].double()
    fx = (across * x).sum((1, 2)) / across.square().sum((1, 2))
    fy = (down * y[:, None]).sum((1, 2)) / down.square().sum((1, 2))
    K = torch.zeros(n, 3, 3, dtype=slopes.dtype, device=slopes.device)
    for row, focal, side in ((0, fx, width), (1, fy, height)):
        usable = focal.isfinite() & (focal > 0)
        K[:, row, row] = torch.where(usable, focal, torch.full_like(focal, float(width))).to(slopes.dtype)
        K[:, row, 2] = side / 2
    K[:, 2, 2] = 1
    return K
