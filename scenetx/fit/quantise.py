"""Gaussians as a small file will keep them, seen by a fit: rounded on the way in, free numbers behind (Bengio 2013)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.core import Gaussians
from scenetx.io.codebook import palette
from scenetx.io.sog_steps import SogSteps, snap

LEAST_PALETTE = 32


@dataclass(frozen=True)
class Quantiser:
    """Rounds Gaussians whose number and order do not change; which palette entry a splat has is decided once."""

    steps: SogSteps
    labels: Int[Tensor, "g"] | None  # None: no view-dependent colour
    mass: Float[Tensor, "g"]
    entries: int

    @staticmethod
    def of(gaussians: Gaussians, steps: SogSteps, scores: Float[Tensor, "g"] | None = None) -> Quantiser:
        """``scores``: whose view-dependent colour the palette should fit best; all alike when not given."""
        count = len(gaussians)
        mass = torch.ones(count) if scores is None else scores.detach().cpu().float().clamp_min(1e-6)
        entries = min(max(LEAST_PALETTE, count // steps.palette), count)
        if gaussians.sh_degree == 0 or not count:
            return Quantiser(steps, None, mass, 0)
        rest = gaussians.sh[:, 1:].flatten(1).detach()
        return Quantiser(steps, palette(rest, entries, weights=mass)[1], mass, entries)

    def rounded(self, gaussians: Gaussians) -> Gaussians:
        """What the file will hold."""
        return self.apply(gaussians).detach()

    def apply(self, gaussians: Gaussians) -> Gaussians:
        """Rounded values with the gradient of the free ones; splats of one palette entry share it."""
        free = replace(gaussians, quats=torch.nn.functional.normalize(gaussians.quats, dim=-1))
        kept = snap(free.detach(), self.steps)
        turned = torch.where((kept.quats * free.quats.detach()).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        kept = replace(kept, quats=kept.quats * turned)
        out = replace(
            free,
            means=_through(free.means, kept.means),
            quats=_through(free.quats, kept.quats),
            scales=_through(free.scales, kept.scales),
            opacities=_through(free.opacities, kept.opacities),
        )
        first = _through(free.sh[:, :1], kept.sh[:, :1])
        return replace(out, sh=first if self.labels is None else torch.cat([first, self._shared(free.sh[:, 1:])], 1))

    def _shared(self, rest: Float[Tensor, "g k 3"]) -> Float[Tensor, "g k 3"]:
        """Every splat's view-dependent colour as its entry's: the weighted mean of the splats that share it."""
        assert self.labels is not None
        total = rest.new_zeros(self.entries).index_add(0, self.labels, self.mass.to(rest))
        weight = (self.mass.to(rest) / total[self.labels])[:, None, None]
        centers = rest.new_zeros(self.entries, *rest.shape[1:]).index_add(0, self.labels, weight * rest)
        return centers[self.labels]


def _through(free: Float[Tensor, "*n"], kept: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Exactly ``kept``, with the gradient of ``free``."""
    return kept + (free - free.detach())
