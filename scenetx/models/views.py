"""Many pictures a few at a time, wherever they do not see each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.models.layers import Rope


def gathered(parts: Iterable[Mapping[str, Tensor]], views: int) -> dict[str, Tensor]:
    """Answers for a few of ``views`` pictures at a time as one for all (dimension 0).

    Without gradients each part is written into place as it comes, so that no answer is there twice.
    """
    if torch.is_grad_enabled():
        every = list(parts)
        return {name: torch.cat([part[name] for part in every]) for name in every[0]}
    whole: dict[str, Tensor] = {}
    end = 0
    for part in parts:
        start, end = end, end + len(next(iter(part.values())))
        if start == 0:
            whole = {name: value.new_empty(views, *value.shape[1:]) for name, value in part.items()}
        for name, value in part.items():
            whole[name][start:end] = value
    return whole


def at_once(chunk: int, views: int) -> int:
    """How many of ``views`` pictures to take at a time: with gradients all, since then every part's work is kept."""
    return views if torch.is_grad_enabled() else chunk


def views_in_chunks(
    block: nn.Module, x: Float[Tensor, "n t c"], chunk: int, rope: Rope | None = None
) -> Float[Tensor, "n t c"]:
    """A block in which pictures do not see each other, ``chunk`` pictures at a time."""
    chunk = at_once(chunk, len(x))
    if len(x) <= chunk:
        return block(x, rope=rope)
    return gathered(({"x": block(part, rope=rope)} for part in x.split(chunk)), len(x))["x"]
