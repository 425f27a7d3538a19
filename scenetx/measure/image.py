"""Picture quality: PSNR and SSIM of float pictures in [0, 1].

Protocol: the one of 3DGS-style papers as gsplat evaluates it (torchmetrics): data range 1, the mean over pixels and
channels of one picture, then the mean over pictures; SSIM with an 11 x 11 Gaussian of sigma 1.5 over windows that lie
wholly inside the picture ("valid", as Wang et al., 2004). The 3DGS code itself pads with zeros instead ("same"), which
reads a few thousandths higher or lower.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # Wang et al. (2004), K1 = 0.01 and K2 = 0.03 at data range 1


def gaussian_window(*, dtype: torch.dtype = torch.float32) -> Float[Tensor, "11"]:
    """The separable window of SSIM, sum 1."""
    x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-x.square() / (2 * SIGMA**2))
    return (window / window.sum()).to(dtype)


def psnr(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over the pixels where ``mask`` is True; inf when equal, nan without a pixel."""
    squared = (a.double() - b.double()).square()
    if mask is not None:
        squared = squared[mask]
    if squared.numel() == 0:
        return math.nan
    error = float(squared.mean())
    return -10 * math.log10(error) if error > 0 else math.inf


def color_corrected(
    render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None
) -> Float[Tensor, "h w 3"]:
    """``render`` after the affine change of colour that brings it nearest to ``photo``, clamped to [0, 1].

    Least squares over the pixels of ``mask``. What then still differs is not the photo's own exposure or white balance,
    which no scene can know. gsplat's trainer does so for its "cc_psnr" (with squares of the colours too), and RawNeRF
    (arXiv 2111.13679) before it measures.
    """
    colors = torch.cat([render, torch.ones_like(render[..., :1])], -1).double()
    kept = colors.flatten(0, 1) if mask is None else colors[mask]
    wanted = (photo.flatten(0, 1) if mask is None else photo[mask]).double()
    # A picture of one colour determines less than an affine map: the smallest one is taken.
    change = torch.linalg.lstsq(kept, wanted, driver="gelsd").solution if len(kept) else colors.new_zeros(4, 3)
    return (colors @ change).clamp(0, 1).to(render)


def ssim_map(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"]) -> Float[Tensor, "h_in w_in 3"]:
    """SSIM (Wang et al., 2004, eq. 13) of every window inside the picture: ``h - 10`` by ``w - 10``. Differentiable."""
    if a.shape[0] < WINDOW or a.shape[1] < WINDOW:
        raise ValueError(f"ssim: a picture of {a.shape[0]} x {a.shape[1]} is smaller than the {WINDOW} px window")
    window = gaussian_window(dtype=a.dtype).to(a.device)
    x, y = a.permute(2, 0, 1), b.permute(2, 0, 1)
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    maps = conv2d(conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = maps.squeeze(1).unflatten(0, (5, 3))
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x.square() + yy - mean_y.square()
    similarity = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    similarity = similarity / ((mean_x.square() + mean_y.square() + C1) * (variances + C2))
    return similarity.permute(1, 2, 0)


def ssim(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None) -> float:
    """Mean structural similarity, 1 when equal; ``mask`` False pixels are blackened in both and their windows dropped.

    Raises ValueError for a picture smaller than the window; nan when the mask leaves no window.
    """
    a, b = a.double(), b.double()
    if mask is None:
        return float(ssim_map(a, b).mean())
    similarity = ssim_map(a * mask[..., None], b * mask[..., None])
    half = WINDOW // 2
    inside = mask[half:-half, half:-half]
    return float(similarity[inside].mean()) if inside.any() else math.nan
