"""Which views of a scene to show and which to ask for: by gap in time, by overlap, by coverage.

All are functions of a random stream, so that a step of training can be made again from its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras, InputError, project, unproject
from scenetx.core.cameras import pixel_grid

How = Literal["random", "gap", "overlap", "coverage"]


@dataclass(frozen=True)
class SamplerSettings:
    """``random``: any views. ``gap``: contexts span a gap of frames, targets lie between (RealEstate10K's protocol).
    ``overlap``: context pairs share this much of what they see. ``coverage``: contexts as far apart as can be."""

    how: How = "random"
    gap: tuple[int, int] = (2, 8)
    """Frames from the first context view to the last, from .. to."""
    overlap: tuple[float, float] = (0.3, 0.8)
    beyond: int = 0
    """gap: targets may lie so many frames outside of the contexts."""

    def __post_init__(self) -> None:
        if not 1 <= self.gap[0] <= self.gap[1]:
            raise InputError("sampler gap", self.gap, "give two frame counts, the smaller first, from 1")
        if not 0 <= self.overlap[0] < self.overlap[1] <= 1:
            raise InputError("sampler overlap", self.overlap, "give two shares, the smaller first, in 0 to 1")


def choose_views(
    rng: np.random.Generator,
    settings: SamplerSettings,
    cameras: Cameras,
    context: int,
    targets: int,
    depth: Float[Tensor, "v h w"] | None = None,
) -> tuple[list[int], list[int]]:
    """Indices of context views and of targets. Targets are no context views where there are enough others.

    Raises InputError when the scene has fewer than ``context`` views (or 2 for ``gap`` and ``overlap``).
    """
    count = len(cameras)
    if count < context:
        raise InputError("scene", f"{count} views, {context} are to be shown", "leave it out, or show fewer")
    if settings.how == "gap":
        return _by_gap(rng, settings, count, context, targets)
    if settings.how == "coverage":
        shown = farthest_views(cameras, context, int(rng.integers(count)))
    elif settings.how == "overlap" and context > 1:
        shown = _by_overlap(rng, settings, cameras, context, depth)
    else:
        shown = rng.permutation(count)[:context].tolist()
    return shown, _others(rng, range(count), shown, targets)


def _by_gap(
    rng: np.random.Generator, settings: SamplerSettings, count: int, context: int, targets: int
) -> tuple[list[int], list[int]]:
    low, high = min(settings.gap[0], count - 1), min(settings.gap[1], count - 1)
    gap = max(int(rng.integers(low, high + 1)), context - 1)
    first = int(rng.integers(count - gap))
    between = np.sort(rng.permutation(np.arange(first + 1, first + gap))[: max(0, context - 2)]).tolist()
    shown = [first, *between, first + gap][: context if context > 1 else 1]
    around = range(max(0, first - settings.beyond), min(count, first + gap + 1 + settings.beyond))
    return shown, _others(rng, around, shown, targets)


def _others(rng: np.random.Generator, among: range, shown: list[int], targets: int) -> list[int]:
    """``targets`` of the views that are not shown; where they run out, shown ones; then again from the start."""
    free = rng.permutation([view for view in among if view not in shown]).astype(int).tolist()
    order = free + rng.permutation(shown).astype(int).tolist()
    return [order[k % len(order)] for k in range(targets)]


def farthest_views(cameras: Cameras, count: int, first: int = 0) -> list[int]:
    """``count`` views that cover the cameras' places and directions: each the farthest from those chosen before.

    Distance: of the centres over their extent, plus that of the unit viewing directions (Gonzalez, 1985).
    """
    centers = cameras.centers.double()
    extent = (centers - centers.mean(0)).norm(dim=-1).max().clamp_min(1e-9)
    place = torch.cat([centers / extent, cameras.forward.double()], -1)
    chosen = [first]
    nearest = (place - place[first]).norm(dim=-1)
    while len(chosen) < min(count, len(cameras)):
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (place - place[chosen[-1]]).norm(dim=-1))
    return chosen


def _by_overlap(
    rng: np.random.Generator, settings: SamplerSettings, cameras: Cameras, context: int, depth: Tensor | None
) -> list[int]:
    """A chain: each view overlaps the one before by a share in the range, or as near to it as there is."""
    low, high = settings.overlap
    shown = [int(rng.integers(len(cameras)))]
    while len(shown) < context:
        shares = overlaps(cameras, shown[-1], depth)
        shares[shown] = 2.0  # beyond any range: only taken when nothing else is left
        off = torch.where(shares < low, low - shares, (shares - high).clamp_min(0))
        fits = (off <= off.min() + 1e-9).nonzero()[:, 0].tolist()
        shown.append(int(fits[rng.integers(len(fits))]))
    return shown


def overlaps(cameras: Cameras, view: int, depth: Float[Tensor, "v h w"] | None = None) -> Float[Tensor, "v"]:
    """Share of a view's pixels whose point lies in each other view's picture, unhidden where ``depth`` is known.

    Without depth the scene is taken to be one centre distance away (frustum overlap), which orders views well and
    measures them roughly.
    """
    cameras = cameras.to(torch.float64)
    height, width = cameras.height, cameras.width
    step = max(1, min(height, width) // 16)
    pixels = pixel_grid(height, width, dtype=torch.float64)[step // 2 :: step, step // 2 :: step].flatten(0, 1)
    if depth is None:
        spread = (cameras.centers - cameras.centers[view]).norm(dim=-1).median()
        z = torch.full((len(pixels),), max(float(spread), 1e-6), dtype=torch.float64)
    else:
        z = depth[view].double()[step // 2 :: step, step // 2 :: step].flatten()
    known = z > 0
    points = unproject(pixels[None], z[None], cameras[view])[0][known]
    if not len(points):
        return torch.zeros(len(cameras), dtype=torch.float64)
    seen, there = project(points, cameras)
    inside = (there > 0) & (seen[..., 0] >= 0) & (seen[..., 1] >= 0) & (seen[..., 0] < width) & (seen[..., 1] < height)
    if depth is not None:
        column = seen[..., 0].nan_to_num().clamp(0, width - 1).long()
        row = seen[..., 1].nan_to_num().clamp(0, height - 1).long()
        surface = depth.double()[torch.arange(len(cameras))[:, None], row, column]
        inside &= (surface <= 0) | (there < 1.05 * surface)
    return inside.double().mean(-1)
