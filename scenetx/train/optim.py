"""AdamW as the published recipes use it: which weights decay, the learning rate of a step, the moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scenetx.train.settings import OptimSettings


def build_optimizer(model: nn.Module, settings: OptimSettings, *, fused: bool = False) -> torch.optim.AdamW:
    """AdamW; only matrices decay (not gains, biases, tokens and tables of positions)."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        flat = parameter.ndim < 2 or name.endswith(("token", "tokens", "pos_embed", "latents"))
        (free if flat else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused or None)


def learning_rate(step: int, settings: OptimSettings) -> float:
    """Linear from 0 over ``warmup`` steps, then a cosine to ``floor`` at the last (Loshchilov and Hutter, 2017)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return settings.lr * (settings.floor + (1 - settings.floor) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def average_into(average: Sequence[Tensor], model: nn.Module, decay: float, step: int) -> None:
    """The moving average after a step; early on it forgets faster, so that it does not remember the start values."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, parameter in zip(average, model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
