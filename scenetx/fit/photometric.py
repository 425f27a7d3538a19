"""The picture loss of splat fitting, (1 - w) L1 + w (1 - SSIM), fused with its gradient into two numba passes on a CPU.

SSIM is the "valid" one of `scenetx.measure`. Masked-out pixels are blackened in both pictures, and only windows centred
on a used pixel count, so neither the render nor the photo has any influence there. The plain torch twin is the
definition, the test oracle, and what runs on other devices.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numba import prange
from torch import Tensor

from scenetx.measure.image import C1, C2, WINDOW, gaussian_window, ssim_map
from scenetx.splat.cpu_jit import kernel

SSIM_WEIGHT = 0.2
_TAPS = gaussian_window().numpy()
_BORDER = WINDOW - 1
# Not "nnan": a NaN must reach the loss, where the loop sees it.
_FASTMATH = frozenset({"contract", "reassoc", "nsz", "arcp"})


def photometric_loss(
    render: Float[Tensor, "h w 3"],
    photo: UInt8[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w"] | None = None,
    *,
    ssim_weight: float = SSIM_WEIGHT,
) -> Float[Tensor, ""]:
    """Loss between a render in [0, 1] and an 8-bit photo, differentiable in the render only.

    The gradient is computed with the value (float32 on a CPU, bit-equal for any number of threads) and cannot be
    differentiated again. Pictures need 11 px a side (ValueError).
    """
    target = photo.to(render.dtype).mul_(1 / 255)
    if render.device.type != "cpu" or render.dtype != torch.float32:
        return photometric_loss_torch(render, target, mask, ssim_weight=ssim_weight)
    if min(render.shape[:2]) < WINDOW:
        raise ValueError(f"photometric_loss: {tuple(render.shape[:2])} is smaller than the {WINDOW} px window")
    return _FusedLoss.apply(render, target, mask, ssim_weight)


def photometric_loss_torch(
    render: Float[Tensor, "h w 3"],
    target: Float[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w"] | None = None,
    *,
    ssim_weight: float = SSIM_WEIGHT,
) -> Float[Tensor, ""]:
    """The plain twin of `photometric_loss`; the target is a float picture."""
    half = WINDOW // 2
    if mask is None:
        similarity = ssim_map(render, target).mean()
        absolute = (render - target).abs().mean()
    else:
        used = mask[..., None].to(render.dtype)
        # `where`, not a product: a NaN under the mask must not leak through 0 * NaN.
        render = torch.where(mask[..., None], render, torch.zeros_like(render))
        target = target * used
        inside = used[half:-half, half:-half].expand(-1, -1, 3)
        similarity = (ssim_map(render, target) * inside).sum() / inside.sum().clamp_min(1)
        absolute = (render - target).abs().sum() / (3 * used.sum()).clamp_min(1)
    return (1 - ssim_weight) * absolute + ssim_weight * (1 - similarity)


def emptiness_loss(
    render: Float[Tensor, "h w 3"], background: Float[Tensor, "3"], empty: Bool[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """Mean difference from the background where nothing is to be seen; 0 where that is nowhere."""
    off = torch.where(empty[..., None], render - background, torch.zeros_like(render))
    return off.abs().sum() / (3 * empty.sum()).clamp_min(1)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, render: Tensor, target: Tensor, mask: Tensor | None, ssim_weight: float) -> Tensor:
        height, width = render.shape[:2]
        half = WINDOW // 2
        x, y = render.detach().contiguous(), target.contiguous()
        if mask is None:
            used = np.ones((0, 0), np.float32)
            num_pixels, num_windows = height * width, (height - _BORDER) * (width - _BORDER)
        else:
            x = torch.where(mask[..., None], x, torch.zeros_like(x))
            y = y * mask[..., None]
            num_pixels, num_windows = int(mask.sum()), int(mask[half:-half, half:-half].sum())
            used = mask.to(torch.float32).repeat_interleave(3, dim=1).numpy()
        weights = (1 - ssim_weight) / max(3 * num_pixels, 1), ssim_weight / max(3 * num_windows, 1)
        x_rows, y_rows = x.view(height, -1).numpy(), y.view(height, -1).numpy()
        partials = np.empty((3, height - _BORDER, (width - _BORDER) * 3), np.float32)
        similarities = _similarity(x_rows, y_rows, used, _TAPS, partials)
        gradient = np.empty_like(x_rows)
        absolutes = _gradient(x_rows, y_rows, used, _TAPS, partials, weights[0], weights[1], gradient)
        ctx.gradient = torch.from_numpy(gradient).view_as(render)
        value = weights[0] * absolutes.sum() + ssim_weight - weights[1] * similarities.sum()
        return render.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient * grad_outputs[0], None, None, None


@kernel(fast=_FASTMATH)
@no_type_check
def _add_middle(a: np.ndarray, b: np.ndarray, tap: float, vertical: np.ndarray) -> None:
    out0, out1, out2, out3 = vertical[0], vertical[1], vertical[2], vertical[3]
    for j in range(len(a)):
        out0[j] += tap * a[j]
        out1[j] += tap * b[j]
        out2[j] += tap * (a[j] * a[j] + b[j] * b[j])
        out3[j] += tap * (a[j] * b[j])


@kernel(fast=_FASTMATH)
@no_type_check
def _across(source: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
    """Horizontal pass: ``out[j] = sum of taps[k] source[j + 3 k]``; slices, so that no index can be negative."""
    n = len(out)
    s0, s1, s2, s3, s4, s5 = source[:n], source[3:], source[6:], source[9:], source[12:], source[15:]
    s6, s7, s8, s9, s10 = source[18:], source[21:], source[24:], source[27:], source[30:]
    t0, t1, t2, t3, t4, t5 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    for j in range(n):
        near = t5 * s5[j] + t4 * (s4[j] + s6[j]) + t3 * (s3[j] + s7[j])
        out[j] = near + t2 * (s2[j] + s8[j]) + t1 * (s1[j] + s9[j]) + t0 * (s0[j] + s10[j])


@kernel(parallel=True, fast=_FASTMATH)
@no_type_check
def _similarity(x: np.ndarray, y: np.ndarray, used: np.ndarray, taps: np.ndarray, partials: np.ndarray) -> np.ndarray:
    """Row sums of SSIM over used windows; its derivatives by E[x], E[xx], E[xy] of each window into ``partials``.

    Rows are ``3 w`` interleaved channels, so a horizontal tap is a stride of 3 and every loop is contiguous. Vertical
    pass first, into row buffers that stay in the cache.
    """
    rows, columns = partials.shape[1:]
    length = x.shape[1]
    sums = np.zeros(rows)
    for row in prange(rows):
        vertical = np.zeros((4, length), np.float32)
        moments = np.zeros((4, columns), np.float32)
        for k in range(5):  # taps k and 10 - k are equal: half the traffic through the buffers
            a, b, c, d = x[row + k], y[row + k], x[row + 10 - k], y[row + 10 - k]
            tap, out0, out1, out2, out3 = taps[k], vertical[0], vertical[1], vertical[2], vertical[3]
            for j in range(length):
                out0[j] += tap * (a[j] + c[j])
                out1[j] += tap * (b[j] + d[j])
                out2[j] += tap * ((a[j] * a[j] + b[j] * b[j]) + (c[j] * c[j] + d[j] * d[j]))
                out3[j] += tap * (a[j] * b[j] + c[j] * d[j])
        _add_middle(x[row + 5], y[row + 5], taps[5], vertical)
        for m in range(4):
            _across(vertical[m], taps, moments[m])
        total = 0.0
        for j in range(columns):
            weight = np.float32(1) if used.size == 0 else used[row + 5, j + 15]
            mean_x, mean_y = moments[0, j], moments[1, j]
            squares = mean_x * mean_x + mean_y * mean_y
            product = mean_x * mean_y
            n1 = 2 * product + np.float32(C1)
            n2 = 2 * (moments[3, j] - product) + np.float32(C2)
            d1 = squares + np.float32(C1)
            d2 = moments[2, j] - squares + np.float32(C2)
            inverse = 1 / (d1 * d2)
            similarity = n1 * n2 * inverse * weight
            total += similarity
            partials[0, row, j] = (
                2 * mean_y * (n2 - n1) * inverse * weight + 2 * mean_x * similarity * (d1 - d2) * inverse
            )
            partials[1, row, j] = -similarity * d1 * inverse
            partials[2, row, j] = 2 * n1 * inverse * weight
        sums[row] = total
    return sums


@kernel(parallel=True, fast=_FASTMATH)
@no_type_check
def _gradient(
    x: np.ndarray,
    y: np.ndarray,
    used: np.ndarray,
    taps: np.ndarray,
    partials: np.ndarray,
    absolute_weight: float,
    similarity_weight: float,
    gradient: np.ndarray,
) -> np.ndarray:
    """Row sums of |x - y|; the loss's gradient by x: the adjoint of the window, three times, and the sign."""
    height, length = x.shape
    rows, columns = partials.shape[1:]
    sums = np.zeros(height)
    scale_ssim, scale_l1 = np.float32(similarity_weight), np.float32(absolute_weight)
    for i in prange(height):
        spread = np.zeros((3, length), np.float32)
        padded = np.zeros(columns + 60, np.float32)
        inner = padded[30 : 30 + columns]
        for m in range(3):
            inner[:] = 0
            for row in range(max(i - 10, 0), min(i + 1, rows)):
                tap, source = taps[i - row], partials[m, row]
                for j in range(columns):
                    inner[j] += tap * source[j]
            _across(padded, taps, spread[m])
        total = 0.0
        for j in range(length):
            weight = np.float32(1) if used.size == 0 else used[i, j]
            difference = x[i, j] - y[i, j]
            total += abs(difference)
            sign = np.float32(difference > 0) - np.float32(difference < 0)
            similarity = spread[0, j] + 2 * x[i, j] * spread[1, j] + y[i, j] * spread[2, j]
            gradient[i, j] = weight * (scale_l1 * sign - scale_ssim * similarity)
        sums[i] = total
    return sums
