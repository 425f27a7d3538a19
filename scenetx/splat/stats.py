"""What densification needs to know about each Gaussian's footprint on the screen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class ScreenStats:
    """Running sums over rendered views, one entry a Gaussian; the rasterizer adds to them in place.

    grad2d: sum over views of the norm of the screen-space gradient of the mean, its absolute values summed over pixels
    (AbsGS, arXiv 2404.10484), in half pictures (gradient x width / 2, x height / 2) and times the number of cameras in
    the call, as gsplat's ``DefaultStrategy`` measures it; it is added to when the render is differentiated.
    seen: number of views in which the footprint touched the picture. radii: largest footprint so far, as a fraction of
    the picture's longer side.
    """

    grad2d: Float[Tensor, "g"]
    seen: Float[Tensor, "g"]
    radii: Float[Tensor, "g"]

    @staticmethod
    def zeros(count: int, device: torch.device | str = "cpu") -> ScreenStats:
        return ScreenStats(*(torch.zeros(count, device=device) for _ in range(3)))

    def saw(self, index: Tensor, radius: Tensor, height: int, width: int) -> None:
        """Note one view's visible Gaussians and their radii in pixels."""
        self.seen.index_add_(0, index, torch.ones_like(radius, dtype=self.seen.dtype))
        share = (radius / max(height, width)).to(self.radii.dtype)
        self.radii[index] = torch.maximum(self.radii[index], share)

    def felt(self, index: Tensor, absgrad: Tensor, height: int, width: int, cameras: int) -> None:
        """Note one view's per-pixel-absolute gradients (index, 2) of the projected means, in loss per pixel."""
        half = absgrad.new_tensor([width / 2 * cameras, height / 2 * cameras])
        self.grad2d.index_add_(0, index, (absgrad * half).norm(dim=-1).to(self.grad2d.dtype))
