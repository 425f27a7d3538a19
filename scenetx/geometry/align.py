"""The similarity between two sets of the same cameras, in spite of outliers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Sim3
from scenetx.core.rigid import rotation_angle

Batch = tuple[Float[Tensor, "b"], Float[Tensor, "b 3 3"], Float[Tensor, "b 3"]]
"""``b`` similarities: scale, rotation, translation."""


def align_cameras(
    reference: Float[Tensor, "n 4 4"], estimate: Float[Tensor, "n 4 4"], *, max_trials: int = 2000, seed: int = 0
) -> Sim3:
    """The similarity ``reference_from_estimate`` between the poses (world_from_cam) of the same ``n >= 1`` cameras.

    Each camera's rotation states the whole rotation between the frames, so two cameras give a similarity wherever the
    centres lie, also on a line. All pairs (or ``max_trials`` of them, drawn with ``seed``) are candidates; the one with
    the least median error is refined by reweighted least squares, centres and rotations together, in float64. A camera
    farther off than 5 median errors has no say. With one camera, or all in one place, the scale is 1.

    Raises ValueError when the numbers of cameras differ or are zero.
    """
    if len(reference) != len(estimate) or len(reference) == 0:
        counts = f"{len(reference)} reference and {len(estimate)} estimated cameras"
        raise ValueError(f"align: {counts}; give the same, at least one")
    reference, estimate = reference.double(), estimate.double()
    turns = reference[:, :3, :3] @ estimate[:, :3, :3].transpose(-1, -2)
    target, source = reference[:, :3, 3], estimate[:, :3, 3]
    extent = _extent(target)
    pairs = torch.combinations(torch.arange(len(target)), 2)
    if len(pairs) > max_trials:
        generator = torch.Generator().manual_seed(seed)
        pairs = pairs[torch.randperm(len(pairs), generator=generator)[:max_trials]]
    weights = torch.zeros(max(len(pairs), 1), len(target), dtype=torch.float64)
    weights.scatter_(1, pairs if len(pairs) else torch.zeros(1, 1, dtype=torch.int64), 1.0)
    candidates = _fit(target, source, turns, weights, extent)
    errors = _errors(candidates, target, source, turns, extent)
    # Robust without a threshold: the median, with a little of the truncated mean to tell equals apart.
    cost = errors.median(-1).values + 0.01 * errors.clamp(max=1.0).mean(-1)
    best = int(cost.argmin())
    scale, rotation, translation = (part[best : best + 1] for part in candidates)
    return _polish((scale, rotation, translation), target, source, turns, extent)


def _polish(
    start: Batch,
    target: Float[Tensor, "n 3"],
    source: Float[Tensor, "n 3"],
    turns: Float[Tensor, "n 3 3"],
    extent: float,
) -> Sim3:
    """Iteratively reweighted least squares (Geman-McClure) from a good start."""
    best = start
    for _ in range(20):
        errors = _errors(best, target, source, turns, extent)
        width = 2 * errors.median().clamp_min(1e-9)
        weights = (1 / (1 + (errors / width) ** 2)) ** 2
        best = _fit(target, source, turns, torch.where(errors <= 2.5 * width, weights, 0.0), extent)
    scale, rotation, translation = best
    return Sim3(float(scale[0]), rotation[0], translation[0])


def _fit(
    target: Float[Tensor, "n 3"],
    source: Float[Tensor, "n 3"],
    turns: Float[Tensor, "n 3 3"],
    weights: Float[Tensor, "b n"],
    extent: float,
) -> Batch:
    """Weighted least squares: Umeyama's problem with one more term, the cameras' own rotations."""
    weights = weights / weights.sum(-1, keepdim=True)
    target_mean, source_mean = weights @ target, weights @ source
    y, x = target - target_mean[:, None], source - source_mean[:, None]
    spread_x = (weights * x.square().sum(-1)).sum(-1).sqrt()
    spread_y = (weights * y.square().sum(-1)).sum(-1).sqrt()
    # Only a spread beyond rounding error has a direction and a scale.
    spans = (spread_y > 1e-9 * extent) & (spread_x > 1e-9 * x.abs().amax((-1, -2)))
    norm = torch.where(spans, spread_x * spread_y, 1.0)
    moment = torch.einsum("bn,bni,bnj->bij", weights, y, x) * (spans / norm)[:, None, None]
    u, _, vh = torch.linalg.svd(moment + torch.einsum("bn,nij->bij", weights, turns))
    u = u * torch.stack([torch.ones_like(norm), torch.ones_like(norm), torch.linalg.det(u @ vh).sign()], -1)[:, None]
    rotation = u @ vh
    along = torch.einsum("bn,bni,bni->b", weights, y, x @ rotation.transpose(-1, -2))
    scale = torch.where(spans & (along > 0), along / torch.where(spans, spread_x.square(), 1.0), 1.0)
    return scale, rotation, target_mean - scale[:, None] * (rotation @ source_mean[..., None]).squeeze(-1)


def _errors(
    sim3: Batch,
    target: Float[Tensor, "n 3"],
    source: Float[Tensor, "n 3"],
    turns: Float[Tensor, "n 3 3"],
    extent: float,
) -> Float[Tensor, "b n"]:
    """Distance of the centres in units of the reference's extent, plus the angle between the rotations in radians."""
    scale, rotation, translation = sim3
    moved = scale[:, None, None] * source @ rotation.transpose(-1, -2) + translation[:, None]
    distance = (moved - target).norm(dim=-1) / (extent or float("inf"))
    return distance + rotation_angle(rotation.transpose(-1, -2)[:, None] @ turns)


def _extent(centers: Float[Tensor, "n 3"]) -> float:
    """Median distance from the median centre (outliers have no say); the mean where half the cameras share a place."""
    distances = (centers - centers.median(0).values).norm(dim=-1)
    return float(distances.median()) or float(distances.mean())
