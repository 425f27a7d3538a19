"""How well Gaussians show pictures: PSNR and SSIM per view, as the report and metrics.json state them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from scenetx.core import Gaussians, InputError, Scene, View
from scenetx.fit.targets import reduced, target_view
from scenetx.measure.image import WINDOW, color_corrected, psnr, ssim
from scenetx.splat import Backend, rasterize


@dataclass(frozen=True)
class ViewScores:
    """Scores by view name, their plain means (nan without a view), and the renders as they were scored.

    psnr_corrected: after the affine change of colour that suits the photo best (`measure.image.color_corrected`).
    """

    psnr: Mapping[str, float]
    ssim: Mapping[str, float]
    psnr_corrected: Mapping[str, float]
    renders: Mapping[str, UInt8[Tensor, "_h _w 3"]]

    @property
    def mean_psnr(self) -> float:
        return _mean(list(self.psnr.values()))

    @property
    def mean_ssim(self) -> float:
        return _mean(list(self.ssim.values()))

    @property
    def mean_psnr_corrected(self) -> float:
        return _mean(list(self.psnr_corrected.values()))


def evaluate_views(
    scene: Scene,
    gaussians: Gaussians,
    *,
    views: Sequence[View] | None = None,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    backend: Backend = "auto",
    width: int | None = None,
) -> ViewScores:
    """Render and score ``views`` (default: the held-out ones) at their own size, with the cameras they carry.

    With ``width`` render and photo are reduced, by area, to at most that on their longest side before they are
    compared, so that scenes of different picture sizes can be.

    The render is clamped to [0, 1] and rounded to 8 bits first, as a viewer would show it; only
    `psnr_corrected` knows the photo's exposure; pixels outside a view's mask do not count. A view without a camera is
    left out. Raises InputError for a ``width``, or a picture that is to be reduced, below the SSIM window.
    """
    if width is not None and width < WINDOW:
        raise InputError("width", width, f"choose at least {WINDOW} pixels")
    chosen = scene.held_out if views is None else views
    scores: dict[str, float] = {}
    similarities: dict[str, float] = {}
    corrected: dict[str, float] = {}
    renders: dict[str, Tensor] = {}
    for view in chosen:
        if view.camera is None:
            continue
        with torch.no_grad():
            camera = view.camera.to(torch.float32)
            rgb = rasterize(gaussians, camera, background=torch.tensor(background), backend=backend).rgb[0]
        render, image, mask = rgb.cpu().clamp(0, 1).mul(255).round().byte(), view.image, view.mask
        if width is not None and width < max(view.height, view.width):
            target = target_view(view, width=width, pyramid=0).levels[0]
            image, mask = target.photo, target.mask
            render = reduced(render, *image.shape[:2])
        shown, photo = render.float() / 255, image.float() / 255
        scores[view.name] = psnr(shown, photo, mask)
        corrected[view.name] = psnr(color_corrected(shown, photo, mask), photo, mask)
        large = min(shown.shape[:2]) >= WINDOW
        similarities[view.name] = ssim(shown, photo, mask) if large else math.nan
        renders[view.name] = render
    return ViewScores(scores, similarities, corrected, renders)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
