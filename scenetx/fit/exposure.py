"""Three gains per training picture, so that a changing exposure or white balance is not painted into the scene."""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor

from scenetx.fit.adam import Adam
from scenetx.splat.cpu_jit import kernel


class Exposure:
    """``photo = gain * render``, one gain per picture and channel, all starting at one.

    A camera's exposure and white balance multiply light, and so, for a gamma's tone curve, the photo's values; richer
    transforms (a 3x4 matrix per picture) also explain shading and haze, and the render then misses the photos' colours
    (benchmarks/README.md, exposure). Only differences between pictures can be known, so the mean gain is held at one
    (the gauge): a held-out picture, rendered without a correction, is neither brightened nor tinted by the training
    pictures. A decay towards one keeps a picture from explaining geometry by colour.
    """

    def __init__(self, count: int, *, rate: float, decay: float, device: str = "cpu") -> None:
        self.table = Adam({"delta": torch.zeros(count, 3, device=device)}, marker="delta")
        self.rate, self.decay = rate, decay

    def apply(self, rgb: Float[Tensor, "h w 3"], index: int) -> Float[Tensor, "h w 3"]:
        delta = self.table["delta"][index]
        if rgb.device.type == "cpu" and rgb.dtype == torch.float32:
            return _Corrected.apply(rgb, delta)
        return corrected_torch(rgb, delta)

    def step(self, progress: float) -> None:
        """Update what the last loss touched; ``progress`` in [0, 1] lowers the rate to a tenth."""
        self.table.step({"delta": self.rate * 0.1**progress})
        with torch.no_grad():
            delta = self.table["delta"]
            delta *= 1 - self.rate * self.decay
            delta -= delta.mean(0)

    def gains(self) -> Float[Tensor, "n 3"]:
        return 1 + self.table["delta"].detach()


def corrected_torch(rgb: Float[Tensor, "h w 3"], delta: Float[Tensor, "3"]) -> Float[Tensor, "h w 3"]:
    """``(1 + delta) rgb`` for every pixel: the definition, and what runs on other devices."""
    return rgb * (1 + delta)


class _Corrected(torch.autograd.Function):
    """The same, with the gradient in one pass over the picture, bit-equal for any number of threads."""

    @staticmethod
    def forward(ctx: Any, rgb: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(rgb, delta)
        return corrected_torch(rgb, delta)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        rgb, delta = ctx.saved_tensors
        d_rgb = torch.empty_like(rgb, memory_format=torch.contiguous_format)
        sums = np.empty((rgb.shape[0], 3), np.float32)
        pictures = (rgb.detach().contiguous().numpy(), grad_outputs[0].contiguous().numpy())
        _uncorrect(*pictures, (1 + delta.detach()).numpy(), d_rgb.numpy(), sums)
        return d_rgb, torch.from_numpy(sums.sum(0, dtype=np.float64)).to(delta)


@kernel(parallel=True, fast=True)
@no_type_check
def _uncorrect(rgb: np.ndarray, grad: np.ndarray, gain: np.ndarray, d_rgb: np.ndarray, sums: np.ndarray) -> None:
    """The gradient by the picture, and each row's part of the one by the gains."""
    for y in prange(rgb.shape[0]):
        r, g, b = np.float32(0), np.float32(0), np.float32(0)
        for x in range(rgb.shape[1]):
            d_rgb[y, x, 0] = grad[y, x, 0] * gain[0]
            d_rgb[y, x, 1] = grad[y, x, 1] * gain[1]
            d_rgb[y, x, 2] = grad[y, x, 2] * gain[2]
            r += grad[y, x, 0] * rgb[y, x, 0]
            g += grad[y, x, 1] * rgb[y, x, 1]
            b += grad[y, x, 2] * rgb[y, x, 2]
        sums[y, 0], sums[y, 1], sums[y, 2] = r, g, b
