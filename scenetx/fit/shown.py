"""What a splat shows of the photos; and splats that show nothing but stand in the way.

Before a background a splat of the background's colour costs a fit nothing: no photo tells it from what is not there.
From other places it hides what is behind it, or hangs in the air. A black cloth behind an object grows such splats, and
a held-out photo of it that is half covered by one loses ten decibels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scenetx.core import Cameras, Gaussians
from scenetx.core.gaussians import SH_C0
from scenetx.fit.targets import Target
from scenetx.splat import Backend, rasterize

UNSHOWN = 0.5  # pixels, summed over all photos
LIKE_BACKGROUND = 0.04  # of a colour's range: ten of 255
PLAIN = 0.02
"""A pixel that changes by more than five of 255 is missed by a person."""
ELSEWHERE = 0.01
"""As much of what a splat shows may lie where photos have other colours: its faint rim."""
LEAST_SHARE = 1e-3
"""Of all that is shown: what fewer show is not worth looking at again."""
ROUNDS = (0.3, 0.1, 0.03, 0.01)
"""A splat comes back when more than this share of what it showed is missed; the coarse ones first, for a large splat
that is in nobody's way may touch what a small one is missed for."""


def shown(
    gaussians: Gaussians, camera: Cameras, maps: Float[Tensor, "h w k"], backend: Backend = "auto"
) -> Float[Tensor, "g k"]:
    """Per splat, the sum over a picture's pixels of its blending weight times up to three maps.

    The weight is the gradient of the picture in the splat's colour: one backward pass.
    """
    color = torch.zeros(len(gaussians), 1, 3, device=gaussians.means.device, requires_grad=True)  # grey: not clamped
    probe = replace(gaussians.detach(), sh=color)
    rgb = rasterize(probe, camera.to(torch.float32), backend=backend).rgb[0]
    (gradient,) = torch.autograd.grad((rgb[..., : maps.shape[-1]] * maps).sum(), color)
    return gradient[:, 0, : maps.shape[-1]] / SH_C0


def unmissed(
    gaussians: Gaussians,
    targets: Sequence[Target],
    background: Float[Tensor, "3"],
    backend: Backend = "auto",
) -> Bool[Tensor, "g"]:
    """Splats that none of the photos would miss: those hardly shown by any, and those shown only where photos have the
    background's colour and behind which there is, in every photo, nothing else.

    Pixels outside of a photo's mask and empty ones count as unlike the background.
    """
    total = gaussians.means.new_zeros(len(gaussians), 2)
    for target in targets:
        unlike = _unlike(target, background)
        total += shown(gaussians, target.camera, torch.stack([torch.ones_like(unlike), unlike], -1), backend)
    weight, elsewhere = total.unbind(-1)
    faint = weight < UNSHOWN
    gone = ~faint & (elsewhere < ELSEWHERE * weight)
    if float(weight[gone].sum()) < LEAST_SHARE * float(weight.sum()):
        return faint
    return faint | _not_missed(gaussians, gone, weight, targets, background, backend)


def _not_missed(
    gaussians: Gaussians,
    gone: Bool[Tensor, "g"],
    weight: Float[Tensor, "g"],
    targets: Sequence[Target],
    background: Float[Tensor, "3"],
    backend: Backend,
) -> Bool[Tensor, "g"]:
    """Those of ``gone`` without which no photo changes plainly: all are left out, then what is missed comes back."""
    pictures = [_picture(gaussians, target, background, backend) for target in targets]
    for share in ROUNDS:
        left, missed = gaussians[~gone], torch.zeros_like(weight)
        for target, before in zip(targets, pictures, strict=True):
            changed = (_picture(left, target, background, backend) - before).abs().amax(-1) > PLAIN
            if bool(changed.any()):
                missed += shown(gaussians, target.camera, changed[..., None].float(), backend)[:, 0]
        back = gone & (missed > share * weight)
        gone = gone & ~back
    return gone


def _picture(
    gaussians: Gaussians, target: Target, background: Float[Tensor, "3"], backend: Backend
) -> Float[Tensor, "h w 3"]:
    with torch.no_grad():
        camera = target.camera.to(torch.float32)
        return rasterize(gaussians, camera, background=background, backend=backend).rgb[0].clamp(0, 1)


def _unlike(target: Target, background: Float[Tensor, "3"]) -> Float[Tensor, "h w"]:
    """1 where the photo has another colour than the background, or tells nothing."""
    unlike = (target.photo.float() / 255 - background).abs().amax(-1) > LIKE_BACKGROUND
    for known in (target.mask, None if target.empty is None else ~target.empty):
        if known is not None:
            unlike = unlike | ~known
    return unlike.float()
