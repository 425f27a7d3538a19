"""How much memory a model needs for so many pictures, said before it runs; and how many pictures fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from scenetx.core import InputError

if TYPE_CHECKING:
    from scenetx.models.geometry_model import GeometryModel

GIB = 2**30
# Full-width copies of all tokens that are alive at once in a block that sees all pictures: the tokens, queries, keys,
# values, what was seen; and one for memory that was given back to the allocator, not to the system.
WIDTHS_ALIVE = 6
# Of the dense head, per picture at once: maps of the picture's size at the head's width.
MAPS_ALIVE = 2


@dataclass(frozen=True)
class Need:
    """Bytes: of the weights, of what grows with the pictures, and of what does not."""

    weights: int
    per_picture: int
    fixed: int

    def total(self, pictures: int) -> int:
        return self.weights + self.fixed + pictures * self.per_picture


def need(model: nn.Module, height: int, width: int) -> Need:
    """An estimate for a geometry model at a picture size; within about a fifth of what was measured on a CPU."""
    config: Any = model.config
    shape = cast("GeometryModel", model).cache_shapes(height, width)["trunk"]
    item = next(model.parameters()).dtype.itemsize
    weights = sum(parameter.numel() * parameter.dtype.itemsize for parameter in model.parameters())
    dim = shape.heads * shape.head_dim
    features, widths = getattr(config, "features", 256), getattr(config, "widths", (dim,))
    patches = shape.tokens
    kept = patches * sum(widths) + 8 * height * width
    head = getattr(config, "head_chunk", 1) * MAPS_ALIVE * features * height * width
    return Need(weights, item * (WIDTHS_ALIVE * patches * dim + kept), item * head)


def available_memory(device: str = "cpu") -> int:
    """Bytes that are free for us now, in the machine's memory or a GPU's."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 (no file of ours)
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def pictures_that_fit(needed: Need, free: int, *, loaded: bool = True) -> int:
    """How many pictures can be looked at together in ``free`` bytes. ``loaded``: the weights are there already."""
    room = free - needed.fixed - (0 if loaded else needed.weights)
    return max(0, room // needed.per_picture)


def check_fits(name: str, needed: Need, pictures: int, free: int, *, loaded: bool = True) -> None:
    """Raises InputError that says how many pictures would fit."""
    fits = pictures_that_fit(needed, free, loaded=loaded)
    if pictures > fits:
        wants = needed.total(pictures) / GIB
        what = f"{name}: {pictures} pictures need about {wants:.1f} GiB, {free / GIB:.1f} GiB are free"
        do = f"at most {fits} would fit together" if fits else "take a smaller model or smaller pictures"
        raise InputError("memory", what, do)
