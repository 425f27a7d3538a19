"""One affine colour transform per training picture, so that a changing exposure is not painted into the scene."""

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
    """``photo = M @ [render, 1]`` with one 3x4 M per picture, all starting at the identity.

    Only differences between pictures can be known, so the mean of all M is held at the identity (the gauge): a held-out
    picture, rendered without a correction, is neither brightened nor tinted by the training pictures. A decay towards
    the identity keeps a picture from explaining geometry by colour.
    """

    def __init__(self, count: int, *, rate: float, decay: float, device: str = "cpu") -> None:
        self.table = Adam({"delta": torch.zeros(count, 3, 4, device=device)}, marker="delta")
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

    def matrices(self) -> Float[Tensor, "n 3 4"]:
        return self.table["delta"].detach() + torch.eye(3, 4, device=self.table.counts.device)


def corrected_torch(rgb: Float[Tensor, "h w 3"], delta: Float[Tensor, "3 4"]) -> Float[Tensor, "h w 3"]:
    """``(delta + identity) @ [rgb, 1]`` for every pixel: the definition, and what runs on other devices."""
    return torch.addmm(delta[:, 3], rgb.reshape(-1, 3), delta[:, :3].T).view_as(rgb) + rgb


class _Corrected(torch.autograd.Function):
    """The same in two passes over the picture, bit-equal for any number of threads."""

    @staticmethod
    def forward(ctx: Any, rgb: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(rgb, delta)
        out = torch.empty_like(rgb, memory_format=torch.contiguous_format)
        _correct(rgb.detach().contiguous().numpy(), delta.detach().numpy(), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        rgb, delta = ctx.saved_tensors
        d_rgb = torch.empty_like(rgb, memory_format=torch.contiguous_format)
        sums = np.empty((rgb.shape[0], 3, 4), np.float32)
        pictures = (rgb.detach().contiguous().numpy(), grad_outputs[0].contiguous().numpy())
        _uncorrect(*pictures, delta.detach().numpy(), d_rgb.numpy(), sums)
        return d_rgb, torch.from_numpy(sums.sum(0, dtype=np.float64)).to(delta)


@kernel(parallel=True, fast=True)
@no_type_check
def _correct(rgb: np.ndarray, delta: np.ndarray, out: np.ndarray) -> None:
    for y in prange(rgb.shape[0]):
        for x in range(rgb.shape[1]):
            r, g, b = rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2]
            out[y, x, 0] = r + (delta[0, 0] * r + delta[0, 1] * g + delta[0, 2] * b + delta[0, 3])
            out[y, x, 1] = g + (delta[1, 0] * r + delta[1, 1] * g + delta[1, 2] * b + delta[1, 3])
            out[y, x, 2] = b + (delta[2, 0] * r + delta[2, 1] * g + delta[2, 2] * b + delta[2, 3])


@kernel(parallel=True, fast=True)
@no_type_check
def _uncorrect(rgb: np.ndarray, grad: np.ndarray, delta: np.ndarray, d_rgb: np.ndarray, sums: np.ndarray) -> None:
    """The gradient by the picture, and each row's part of the one by ``delta``."""
    for y in prange(rgb.shape[0]):
        zero = np.float32(0)
        rr, rg, rb, r1, gr, gg, gb, g1, br, bg, bb, b1 = (
            zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero,
        )  # fmt: skip
        for x in range(rgb.shape[1]):
            r, g, b = rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2]
            dr, dg, db = grad[y, x, 0], grad[y, x, 1], grad[y, x, 2]
            d_rgb[y, x, 0] = dr + (delta[0, 0] * dr + delta[1, 0] * dg + delta[2, 0] * db)
            d_rgb[y, x, 1] = dg + (delta[0, 1] * dr + delta[1, 1] * dg + delta[2, 1] * db)
            d_rgb[y, x, 2] = db + (delta[0, 2] * dr + delta[1, 2] * dg + delta[2, 2] * db)
            rr, rg, rb, r1 = rr + dr * r, rg + dr * g, rb + dr * b, r1 + dr
            gr, gg, gb, g1 = gr + dg * r, gg + dg * g, gb + dg * b, g1 + dg
            br, bg, bb, b1 = br + db * r, bg + db * g, bb + db * b, b1 + db
        sums[y, 0, 0], sums[y, 0, 1], sums[y, 0, 2], sums[y, 0, 3] = rr, rg, rb, r1
        sums[y, 1, 0], sums[y, 1, 1], sums[y, 1, 2], sums[y, 1, 3] = gr, gg, gb, g1
        sums[y, 2, 0], sums[y, 2, 1], sums[y, 2, 2], sums[y, 2, 3] = br, bg, bb, b1
