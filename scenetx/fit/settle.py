"""Splats on their way into a small file: one kind of number after another is fixed, the free ones make up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.core import Gaussians
from scenetx.fit.codes import coded_base, coded_labels, coded_means, coded_opacities, coded_quats, coded_scales
from scenetx.fit.sensitivity import Sensitivity

Part = Literal["means", "rest", "quats", "opacities", "scales", "base"]
STAGES: tuple[tuple[Part, ...], ...] = (("means", "rest"), ("quats", "opacities"), ("scales",), ("base",))
"""What is fixed in turn: colour last, since nothing repairs a picture as well."""


@dataclass(frozen=True)
class Settled:
    """Numbers that no longer change, by their names in `Gaussians` and ``base`` (first SH coefficients); and which
    splats share one view-dependent colour, whose value stays free."""

    fixed: dict[str, Tensor] = field(default_factory=dict)
    labels: Int[Tensor, "g"] | None = None
    mass: Float[Tensor, "g"] | None = None  # of a splat in the colour it shares

    def apply(self, free: Gaussians) -> Gaussians:
        """The splats with the fixed numbers; gradients pass through to the free ones, of which they tell nothing."""
        base, rest = free.sh[:, :1], free.sh[:, 1:]
        return replace(
            free,
            means=self._kept("means", free.means),
            quats=self._kept("quats", free.quats),
            scales=self._kept("scales", free.scales),
            opacities=self._kept("opacities", free.opacities),
            sh=torch.cat([self._kept("base", base), self._shared(rest)], 1),
        )

    def then(self, free: Gaussians, parts: Iterable[Part], weights: Sensitivity, price: float) -> Settled:
        """``parts`` of ``free`` (what `apply` gives now) fixed too, as coarsely as ``price`` asks for."""
        coders: dict[str, Callable[[], Tensor]] = {
            "means": lambda: coded_means(free.means, weights, price),
            "quats": lambda: coded_quats(free.quats, weights, price),
            "opacities": lambda: coded_opacities(free.opacities, weights, price),
            "scales": lambda: coded_scales(free.scales, weights, price),
            "base": lambda: coded_base(free.sh[:, :1], weights, price),
        }
        out = replace(self, fixed=self.fixed | {part: coders[part]() for part in parts if part in coders})
        if "rest" in parts and free.sh_degree and len(free):
            return replace(out, labels=coded_labels(free.sh[:, 1:], weights, price), mass=weights.rest)
        return out

    def _kept(self, name: str, free: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Exactly the fixed numbers, with the gradient of the free ones."""
        return self.fixed[name] + (free - free.detach()) if name in self.fixed else free

    def _shared(self, rest: Float[Tensor, "g k 3"]) -> Float[Tensor, "g k 3"]:
        """Every splat's view-dependent colour as that of all who share its label: their weighted mean."""
        if self.labels is None or self.mass is None:
            return rest
        entries = int(self.labels.max()) + 1
        mass = self.mass.to(rest)
        total = rest.new_zeros(entries).index_add(0, self.labels, mass)
        weight = (mass / total[self.labels])[:, None, None]
        return rest.new_zeros(entries, *rest.shape[1:]).index_add(0, self.labels, weight * rest)[self.labels]


def rounded(gaussians: Gaussians, weights: Sensitivity, price: float) -> Gaussians:
    """All of it fixed at once."""
    plain = gaussians.detach()
    return Settled().then(plain, [part for stage in STAGES for part in stage], weights, price).apply(plain)
