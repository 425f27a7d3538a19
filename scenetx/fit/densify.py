"""How splats are born, moved and dropped: MCMC with a hard cap (default), and the classic clone, split and prune.

MCMC: Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", 2024 (arXiv 2404.09591). Classic: Kerbl et
al., 2023, with the absolute gradients of AbsGS (arXiv 2404.10484). Pure torch; chance comes from the generator given.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenetx.core.rigid import rotation_from_quat
from scenetx.fit.adam import Adam
from scenetx.fit.settings import FitSettings
from scenetx.fit.trainable import logit, rows_of
from scenetx.fit.wander import CEILING, OPACITY, STEEPNESS, wander
from scenetx.splat import ScreenStats

MAX_COPIES = 51  # of one splat at a time; beyond that eq. 9 gains nothing and its binomials lose digits


def relocated(
    opacities: Float[Tensor, "n"], scales: Float[Tensor, "n 3"], copies: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"]]:
    """Opacity and scales of each of ``copies`` equal splats that together look like the one given (eq. 9).

    Opacities compose exactly at the centre, 1 - (1 - new)^copies = old; the scale keeps the integral over a line
    through the centre. Copies beyond 51 count as 51.
    """
    n = copies.clamp(1, MAX_COPIES)
    old = opacities.double()
    new = 1 - (1 - old) ** (1 / n.double())
    # sum_{i=1..n} sum_{k<i} C(i-1, k) (-1)^k new^(k+1) / sqrt(k+1): summed over i first (hockey stick), that is
    # sum_k C(n, k+1) (-1)^k new^(k+1) / sqrt(k+1), one table row instead of a double loop.
    k = torch.arange(1, MAX_COPIES + 1, dtype=torch.float64, device=old.device)
    rows = torch.arange(MAX_COPIES + 1, dtype=torch.float64, device=old.device)[:, None]
    log_binomials = torch.lgamma(rows + 1) - torch.lgamma(k + 1) - torch.lgamma((rows - k).clamp_min(0) + 1)
    signs = torch.where(k % 2 == 1, 1.0, -1.0).double()
    table = torch.where(k <= rows, log_binomials.exp(), 0.0) * signs / k.sqrt()
    denominator = (table[n] * new[:, None] ** k).sum(-1)
    shrink = torch.where(n > 1, old / denominator, 1.0)
    return new.to(opacities), (scales.double() * shrink[:, None]).to(scales)


class Mcmc:
    """Dead splats move onto living ones, the number grows to the cap, and faint splats wander."""

    def __init__(self, settings: FitSettings, extent: float) -> None:
        self.settings = settings
        self.extent = extent

    def refine(self, table: Adam, target: int, generator: torch.Generator) -> None:
        """Relocate splats below the least opacity, then add until there are ``target``."""
        opacities = table["logits"].detach().sigmoid()
        dead = opacities <= self.settings.min_opacity
        alive = (~dead).nonzero().squeeze(-1)
        if len(alive) == 0:
            return
        dead_rows = dead.nonzero().squeeze(-1)
        if len(dead_rows):
            parents = self._divide(table, alive, len(dead_rows), generator)
            table.overwrite(dead_rows, rows_of(table, parents))
            table.forget(parents)
        missing = target - len(table)
        if missing > 0:
            everyone = torch.arange(len(table), device=opacities.device)
            table.append(rows_of(table, self._divide(table, everyone, missing, generator)))

    def _divide(
        self, table: Adam, candidates: Int[Tensor, "n"], number: int, generator: torch.Generator
    ) -> Int[Tensor, "m"]:
        """Draw ``number`` parents by opacity and give them what each of their copies shall have; their rows."""
        opacities = table["logits"].detach().sigmoid()
        weights = opacities[candidates].cpu().double()
        parents = candidates[torch.multinomial(weights, number, replacement=True, generator=generator).to(candidates)]
        copies = torch.bincount(parents, minlength=len(table)) + 1
        chosen = (copies > 1).nonzero().squeeze(-1)
        scales = table["log_scales"].detach()[chosen].exp()
        new_opacities, new_scales = relocated(opacities[chosen], scales, copies[chosen])
        with torch.no_grad():
            table["logits"][chosen] = logit(new_opacities.clamp_min(self.settings.min_opacity))
            table["log_scales"][chosen] = new_scales.log()
        return parents

    def perturb(self, table: Adam, means_lr: float, generator: torch.Generator) -> None:
        """Noise on the means of faint splats, shaped by their covariance (eq. 8); ``means_lr`` in world units.

        The paper's scenes have a size of about one; covariances are taken in units of the extent to mean the same here.
        """
        strength = means_lr * self.settings.noise_lr / self.extent**2
        means, quats, log_scales, logits = (table[name] for name in ("means", "quats", "log_scales", "logits"))
        if means.device.type == "cpu" and means.dtype == torch.float32:
            wander(means, quats, log_scales, logits, strength=strength, seed=generator.initial_seed())
            return
        with torch.no_grad():
            opacities = logits.sigmoid()
            rows = (opacities < CEILING).nonzero().squeeze(-1)
            gate = torch.sigmoid(-STEEPNESS * (opacities[rows] - OPACITY))
            half = rotation_from_quat(quats[rows]) * log_scales[rows].exp()[:, None, :]
            draw = torch.randn(len(rows), 3, generator=generator).to(half)
            noise = (half @ (half.transpose(-1, -2) @ draw[:, :, None])).squeeze(-1)
            means[rows] += noise * (gate * strength)[:, None]


class Classic:
    """Clone small and split large splats where the picture asks for it; prune the faint and the huge."""

    def __init__(self, settings: FitSettings, extent: float) -> None:
        self.settings = settings
        self.extent = extent

    def refine(self, table: Adam, stats: ScreenStats, limit: int, generator: torch.Generator) -> ScreenStats:
        """One round; returns fresh statistics for the new rows. Never more than ``limit`` splats."""
        wanted = self._grow(table, stats, limit)
        largest = table["log_scales"].detach().exp().amax(-1)
        small = wanted & (largest <= 0.01 * self.extent)
        large = wanted & ~small
        clones = rows_of(table, small.nonzero().squeeze(-1))
        halves = self._split(table, large.nonzero().squeeze(-1), generator)
        too_large = (largest > 0.1 * self.extent) if len(table) > 1000 else torch.zeros_like(large)
        faint = table["logits"].detach().sigmoid() < self.settings.min_opacity
        kept = ~(large | faint | too_large)
        if not kept.any():
            kept = ~large
        table.keep(kept)
        table.append({name: torch.cat([clones[name], halves[name]]) for name in clones})
        return ScreenStats.zeros(len(table), table.counts.device)

    def _grow(self, table: Adam, stats: ScreenStats, limit: int) -> Bool[Tensor, "g"]:
        """The splats to double: those with the largest mean gradient above the threshold, as many as fit."""
        mean = stats.grad2d / stats.seen.clamp_min(1)
        wanted = mean > self.settings.grow_grad2d
        room = max(limit - len(table), 0)
        if int(wanted.sum()) > room:
            best = torch.where(wanted, mean, torch.zeros_like(mean)).topk(room).indices
            wanted = torch.zeros_like(wanted)
            wanted[best] = True
        return wanted

    def _split(self, table: Adam, rows: Int[Tensor, "n"], generator: torch.Generator) -> dict[str, Tensor]:
        values = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in rows_of(table, rows).items()}
        scales = values["log_scales"].exp()
        draw = torch.randn(len(scales), 3, generator=generator).to(scales)
        offset = rotation_from_quat(values["quats"]) @ (draw * scales)[:, :, None]
        values["means"] = values["means"] + offset.squeeze(-1)
        values["log_scales"] = values["log_scales"] - math.log(1.6)
        # Two halves on one ray must not be more opaque than what they replace (revised opacity, arXiv 2404.06109).
        values["logits"] = logit(1 - torch.sqrt(1 - values["logits"].sigmoid()))
        return values

    def reset_opacities(self, table: Adam) -> None:
        """Everything back to twice the least opacity; what the pictures need comes back."""
        with torch.no_grad():
            table["logits"].clamp_(max=math.log(2 * self.settings.min_opacity / (1 - 2 * self.settings.min_opacity)))
        table.first["logits"].zero_()
        table.second["logits"].zero_()
