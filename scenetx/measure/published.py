"""Picture scores exactly as the two-view tables compute them (pixelSplat's code, used by everyone after it).

PSNR: both pictures clamped to [0, 1], mean over a picture. SSIM: scikit-image's ``structural_similarity`` with an 11
pixel Gaussian window, data range 1 and its default *sample* covariance (n / (n - 1) with n = 121), which
`measure.image` does not have: the two differ in the third or fourth digit.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from scenetx.measure.image import C1, C2, WINDOW, gaussian_window

SAMPLE = WINDOW**2 / (WINDOW**2 - 1)


def published_psnr(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"]) -> float:
    """dB; inf when equal."""
    error = float((a.double().clamp(0, 1) - b.double().clamp(0, 1)).square().mean())
    return -10 * math.log10(error) if error > 0 else math.inf


def published_ssim(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"]) -> float:
    """Mean over windows that lie wholly inside, then over channels. Raises ValueError below 11 pixels."""
    if min(a.shape[:2]) < WINDOW:
        raise ValueError(f"ssim: a picture of {a.shape[0]} x {a.shape[1]} is smaller than the {WINDOW} px window")
    x, y = a.double().permute(2, 0, 1)[:, None], b.double().permute(2, 0, 1)[:, None]
    window = gaussian_window(dtype=x.dtype).to(x.device)

    def mean(z: Tensor) -> Tensor:
        return conv2d(conv2d(z, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    ux, uy = mean(x), mean(y)
    vx, vy, vxy = SAMPLE * (mean(x * x) - ux * ux), SAMPLE * (mean(y * y) - uy * uy), SAMPLE * (mean(x * y) - ux * uy)
    similarity = (2 * ux * uy + C1) * (2 * vxy + C2) / ((ux.square() + uy.square() + C1) * (vx + vy + C2))
    return float(similarity.mean())
