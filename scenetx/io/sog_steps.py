"""Numbers a .sog keeps in fewer levels than it could: the fewer, the better lossless WebP packs them.

`snap` rounds Gaussians to what `scenetx.io.sog.write_sog` then stores exactly, so that a fit can see the rounding and
work against it before the file is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Gaussians, InputError
from scenetx.io.codebook import ENTRIES

FINEST = 65535  # steps of a position along an axis


@dataclass(frozen=True)
class SogSteps:
    """How finely numbers are kept. ``scale`` and ``color`` are steps of ln(standard deviation) and of the first SH
    coefficient; ``rotation`` and ``opacity`` count steps over the whole range; ``palette`` is the splats an entry of
    the palette of view-dependent colour stands for, at least."""

    position_bits: int = 14
    rotation: int = 64
    scale: float = 0.15
    color: float = 0.12
    opacity: int = 24
    palette: int = 512

    def __post_init__(self) -> None:
        if not 4 <= self.position_bits <= 16:
            raise InputError("sog position_bits", self.position_bits, "use 4 to 16")
        if not (2 <= self.rotation <= 255 and 2 <= self.opacity <= 255 and self.palette >= 1):
            shown = (self.rotation, self.opacity, self.palette)
            raise InputError("sog steps rotation, opacity, palette", shown, "use 2 to 255, 2 to 255, 1 or more")
        for name in ("scale", "color"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"sog step {name}", value, "use a number above 0")


def snap(gaussians: Gaussians, steps: SogSteps) -> Gaussians:
    """The Gaussians (finite, scales above 0) on the grid of ``steps``; SH above degree 0 stays as it is.

    Snapped Gaussians snap to themselves as long as the outermost splats stay. Where 256 levels of a step do not span
    all values, the smallest scales and the darkest colours are lifted to the lowest level.
    """
    logs = gaussians.scales.clamp_min(1e-30).log()
    sh = gaussians.sh.clone()
    sh[:, 0] = _stepped(sh[:, 0], steps.color)
    return replace(
        gaussians,
        means=_means(gaussians.means, steps.position_bits),
        quats=_quats(gaussians.quats, steps.rotation),
        scales=_stepped(logs, steps.scale).exp(),
        opacities=_opacities(gaussians.opacities, steps.opacity),
        sh=sh,
    )


def _means(means: Float[Tensor, "g 3"], bits: int) -> Float[Tensor, "g 3"]:
    if not len(means):
        return means
    wide = means.double()
    logs = wide.sign() * wide.abs().log1p()
    low, high = logs.amin(0), logs.amax(0)
    span = torch.where(high > low, high - low, 1.0)
    coarse = 1 << (16 - bits)
    fixed = (FINEST * (logs - low) / span).round()
    fixed = ((fixed / coarse).round() * coarse).clamp_max(FINEST)
    snapped = low + span * fixed / FINEST
    return (snapped.sign() * snapped.abs().expm1()).to(means)


def _quats(quats: Float[Tensor, "g 4"], levels: int) -> Float[Tensor, "g 4"]:
    """The three smaller numbers on a grid that has a level at 0; the largest is positive and follows from them."""
    quats = torch.nn.functional.normalize(quats.double(), dim=-1)
    largest = quats.abs().argmax(-1, keepdim=True)
    quats = quats * torch.where(quats.gather(-1, largest) < 0, -1.0, 1.0)
    step = 255 / levels
    coded = (255 / math.sqrt(2)) * quats / step
    coded = ((coded.round() * step) + 127.5).round().clamp(0, 255)  # whole bytes, as the file has them
    small = ((coded / 255 - 0.5) * math.sqrt(2)).scatter(-1, largest, 0.0)
    rest = (1 - small.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    return small.scatter(-1, largest, rest).to(torch.float32)


def _stepped(values: Float[Tensor, "*n"], step: float) -> Float[Tensor, "*n"]:
    if not values.numel():
        return values
    index = (values.double() / step).round()
    return (index.clamp_min(float(index.amax()) - (ENTRIES - 1)) * step).to(values)


def _opacities(opacities: Float[Tensor, "g"], levels: int) -> Float[Tensor, "g"]:
    """Whole bytes, of which at most ``levels`` + 1 occur; 0 among them: the faintest splats vanish."""
    kept = (opacities.double().clamp(0, 1) * levels).round()
    return ((255 * kept / levels).round() / 255).to(opacities)
