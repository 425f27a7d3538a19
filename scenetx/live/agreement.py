"""Does a picture look as the map says it should from there? The check that no model has to vouch for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras, project
from scenetx.live.keyframes import Keyframe, grid_points, overlap_share, turns_and_shifts

FEWEST = 24
"""Cells that have to be seen before their agreement means anything."""
WELL_SEEN = 0.3
"""Share of a keyframe in sight from which on the agreement counts in full."""


@dataclass(frozen=True)
class Agreement:
    """confidence: 0 to 1, correlation of predicted and seen brightness, less where little of the map is in sight."""

    confidence: float
    overlap: float


def coarse_grey(image: Float[Tensor, "h w 3"], cell: int) -> Float[Tensor, "r c"]:
    """Mean brightness of cells of ``cell`` x ``cell`` pixels (the sides are multiples of it)."""
    return torch.nn.functional.avg_pool2d(image.mean(-1)[None, None], cell)[0, 0]


def agreement(grey: Float[Tensor, "r c"], camera: Cameras, keyframes: Sequence[Keyframe], *, ask: int = 3) -> Agreement:
    """What the ``ask`` keyframes nearest to ``camera`` (a batch of one, float64, K for ``grey``'s cells) expect.

    Each keyframe's cells are moved into the picture by their depth; their brightness there and here is compared by the
    correlation of what remains when the slow changes are taken out (so exposure and shading do not count).
    """
    if not keyframes:
        return Agreement(0.0, 0.0)
    poses = torch.stack([keyframe.world_from_cam for keyframe in keyframes])
    depth = torch.tensor([keyframe.middle_depth for keyframe in keyframes], dtype=torch.float64)
    turned, moved = turns_and_shifts(camera.world_from_cam, poses, depth)
    nearest = (turned[0] / 20 + moved[0] / 0.3).argsort()[:ask].tolist()
    here = _detail(grey)
    best = Agreement(0.0, max(overlap_share(keyframes[index], camera) for index in nearest))
    for index in nearest:
        found = _compare(here, camera, keyframes[index])
        if found.confidence > best.confidence:
            best = Agreement(found.confidence, max(best.overlap, found.overlap))
    return best


def _compare(here: Float[Tensor, "r c"], camera: Cameras, keyframe: Keyframe) -> Agreement:
    detail = _detail(keyframe.grey)[keyframe.depth > 0]
    points, _ = grid_points(keyframe)
    if len(points) < FEWEST:
        return Agreement(0.0, 0.0)
    seen, z = project(points, camera)
    x, y = seen[0].unbind(-1)
    inside = (z[0] > 1e-9) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
    share = float(inside.double().mean())
    if int(inside.sum()) < FEWEST:
        return Agreement(0.0, share)
    where = torch.stack([2 * x[inside] / camera.width - 1, 2 * y[inside] / camera.height - 1], -1)
    there = torch.nn.functional.grid_sample(
        here[None, None], where[None, None].to(here), align_corners=False, padding_mode="border"
    )[0, 0, 0]
    expected = detail[inside]
    expected, there = expected - expected.mean(), there - there.mean()
    norm = float(expected.norm() * there.norm())
    # Two blank walls agree about nothing.
    correlation = float(expected @ there) / norm if norm > 1e-6 * len(there) else 0.0
    return Agreement(max(correlation, 0.0) * min(1.0, share / WELL_SEEN), share)


def _detail(grey: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """What differs from the surroundings, 7 x 7 cells, softened by 3 x 3 so that one cell's error does not count."""
    padded = torch.nn.functional.pad(grey[None, None], (3, 3, 3, 3), mode="replicate")
    slow = torch.nn.functional.avg_pool2d(padded, 7, stride=1)[0, 0]
    soft = torch.nn.functional.avg_pool2d(padded[..., 2:-2, 2:-2], 3, stride=1)[0, 0]
    return soft - slow
