"""The training pictures at every size of the coarse-to-fine schedule, 8-bit, made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from scenetx.core import Cameras, InputError, View
from scenetx.fit.photometric import SSIM_WEIGHT, emptiness_loss, photometric_loss
from scenetx.measure.image import WINDOW

LEAST_SIDE = 48  # the pyramid stops before pictures get smaller than this


@dataclass(frozen=True)
class Target:
    """One picture at one size.

    mask: True where the photo's colour counts. empty: True where nothing is to be seen, a pixel away from all that is;
    None where the photo does not tell.
    """

    photo: UInt8[Tensor, "h w 3"]
    camera: Cameras
    mask: Bool[Tensor, "h w"] | None
    empty: Bool[Tensor, "h w"] | None = None

    def loss(
        self, render: Float[Tensor, "h w 3"], background: Float[Tensor, "3"], *, ssim_weight: float = SSIM_WEIGHT
    ) -> Float[Tensor, ""]:
        """How far a render over ``background`` is from the photo, and from the background where nothing is.

        Each has its own mean: a small object counts no less for what is around it.
        """
        loss = photometric_loss(render, self.photo, self.mask, ssim_weight=ssim_weight)
        return loss if self.empty is None else loss + emptiness_loss(render, background, self.empty)


@dataclass(frozen=True)
class TargetView:
    """One view, largest picture first."""

    name: str
    levels: tuple[Target, ...]

    def at(self, level: int) -> Target:
        return self.levels[min(level, len(self.levels) - 1)]


def target_view(view: View, *, width: int, pyramid: int, device: str = "cpu") -> TargetView:
    """The view reduced to at most ``width`` on its longest side, then halved ``pyramid`` times, by area.

    A reduced pixel is used only where all that it covers is. Raises InputError for a picture below the SSIM window.
    """
    if view.camera is None:
        raise ValueError(f"{view.name} has no camera")
    if min(view.height, view.width) < WINDOW:
        raise InputError(view.name, f"{view.width} x {view.height}", f"use pictures of at least {WINDOW} pixels a side")
    factor = min(1.0, width / max(view.height, view.width))
    levels: list[Target] = []
    for level in range(pyramid + 1):
        height, wide = (max(WINDOW, round(side * factor / 2**level)) for side in (view.height, view.width))
        if level and min(height, wide) < LEAST_SIDE:
            break
        mask, empty = _reduced_mask(view, height, wide)
        photo = reduced(view.image, height, wide)
        parts = [None if part is None else part.to(device) for part in (mask, empty)]
        camera = view.camera.to(torch.float32).resized(height, wide).to(device)
        levels.append(Target(photo.to(device), camera, *parts))
    return TargetView(view.name, tuple(levels))


def reduced(image: UInt8[Tensor, "h w 3"], height: int, width: int) -> UInt8[Tensor, "h2 w2 3"]:
    """The picture resampled by area, rounded to 8 bits."""
    if tuple(image.shape[:2]) == (height, width):
        return image.contiguous()
    small = interpolate(image.permute(2, 0, 1)[None].float(), size=(height, width), mode="area")
    return small[0].permute(1, 2, 0).add(0.5).clamp(0, 255).byte().contiguous()


def _reduced_mask(view: View, height: int, width: int) -> tuple[Bool[Tensor, "h w"] | None, Bool[Tensor, "h w"] | None]:
    """The mask of a reduced picture, and where it is empty. Between them lies the rim, whose colours are mixed."""
    if view.mask is None:
        return None, None
    share = interpolate(view.mask[None, None].float(), size=(height, width), mode="area")
    empty = max_pool2d(share, 3, stride=1, padding=1)[0, 0] < 0.001 if view.cutout else None
    return share[0, 0] > 0.999, empty
