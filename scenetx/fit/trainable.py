"""Gaussians as an optimiser sees them: free numbers, activated on the way to the rasterizer."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.core import Gaussians
from scenetx.fit.adam import Adam

SMALLEST, LARGEST = 1e-12, 1 - 1e-6  # opacities are kept inside, where the logit is finite


def logit(opacity: Float[Tensor, "g"]) -> Float[Tensor, "g"]:
    return torch.logit(opacity.clamp(SMALLEST, LARGEST))


def trainable(gaussians: Gaussians, *, selective: bool) -> Adam:
    """The optimiser that owns ``gaussians``: means, quats, log_scales, logits and sh."""
    parameters = {
        "means": gaussians.means.float(),
        "quats": gaussians.quats.float(),
        "log_scales": gaussians.scales.float().log(),
        "logits": logit(gaussians.opacities.float()),
        "sh": gaussians.sh.float(),
    }
    return Adam(parameters, marker="means" if selective else None)


def activated(table: Adam, *, antialiased: bool) -> Gaussians:
    """What the rasterizer takes; differentiable in the table's parameters."""
    return Gaussians(
        means=table["means"],
        quats=table["quats"],
        scales=table["log_scales"].exp(),
        opacities=table["logits"].sigmoid(),
        sh=table["sh"],
        antialiased=antialiased,
    )


def thinned(gaussians: Gaussians, rate: float, generator: torch.Generator) -> Gaussians:
    """Without a random ``rate`` of the splats; the opacities of the others make up for it.

    What others hide is then seen now and then and learns too, so that few photos are not learned by heart by splats
    right before their cameras (DropGaussian, arXiv 2504.00773, whose factor is ``1 / (1 - rate)`` as here).
    """
    if rate <= 0:
        return gaussians
    kept = (torch.rand(len(gaussians), generator=generator) >= rate).to(gaussians.opacities)
    return replace(gaussians, opacities=(gaussians.opacities * kept / (1 - rate)).clamp(max=1))


def shorten_needles(table: Adam, max_aspect: float) -> None:
    """The longest axis of each splat at most ``max_aspect`` times its middle one; discs may be as flat as they like.

    Few photos leave room for needles that point at them and are hidden from all others, and that any view between them
    shows. PhysGaussian (arXiv 2311.12198) and others bound the longest by the shortest axis, by a loss.
    """
    with torch.no_grad():
        scales = table["log_scales"]
        middle = scales.sort(dim=1).values[:, 1:2]
        scales.copy_(torch.minimum(scales, middle + math.log(max_aspect)))


def rows_of(table: Adam, rows: Int[Tensor, "n"]) -> dict[str, Tensor]:
    """Copies of some rows of every parameter."""
    return {name: tensor.detach()[rows] for name, tensor in table.parameters.items()}


def grow_bands(table: Adam, degree: int) -> None:
    """Room for view-dependent colour up to ``degree``; the new coefficients are zero."""
    if table["sh"].shape[1] < (degree + 1) ** 2:
        table.widen("sh", (degree + 1) ** 2)
