"""How far estimated cameras and depth are from a reference: after alignment, between pairs, and along depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from scenetx.core import Sim3, umeyama
from scenetx.core.rigid import invert_rigid, rotation_angle


@dataclass(frozen=True)
class PoseErrors:
    """``n`` cameras' errors, and those of all their ``pairs`` (which need no alignment)."""

    rotation_deg: Float[Tensor, "n"]
    """Angle between the rotations after alignment, degrees."""
    center: Float[Tensor, "n"]
    """Distance of the centres after alignment, as a fraction of the extent: the largest distance of a reference centre
    from their mean."""
    ate_rmse: float
    """Root mean square distance of the centres after alignment, in the reference's units."""
    relative_rotation_deg: Float[Tensor, "pairs"]
    """Angle between the relative rotations of each pair of cameras a < b, degrees."""
    relative_translation_deg: Float[Tensor, "pairs"]
    """Angle between the directions of the relative translations, degrees in [0, 90]: its sign is not told apart, as in
    the DUSt3R and VGGT evaluations. 90 where only one of the two has a baseline, 0 where none has."""

    def auc(self, thresholds: Sequence[float | int] = (3.0, 5.0, 10.0, 30.0)) -> dict[float, float]:
        """Area under the recall curve of max(rotation, translation) error of the pairs up to each threshold in degrees.

        In [0, 1]; the histogram of one-degree bins of PoseDiffusion (Wang et al., 2023), which VGGT and DUSt3R follow.
        """
        worst = torch.maximum(self.relative_rotation_deg, self.relative_translation_deg)
        out = {}
        for threshold in thresholds:
            if threshold < 1 or threshold != int(threshold):
                raise ValueError(f"auc: threshold {threshold} must be a whole number of degrees, at least 1")
            steps = torch.arange(1, int(threshold) + 1, dtype=worst.dtype)
            recall = (worst[None] < steps[:, None]).to(worst).mean(-1) if len(worst) else torch.zeros(len(steps))
            out[float(threshold)] = float(recall.mean())
        return out


def pose_errors(
    reference: Float[Tensor, "n 4 4"], estimate: Float[Tensor, "n 4 4"], *, reference_from_estimate: Sim3 | None = None
) -> PoseErrors:
    """Errors of estimated cameras (world_from_cam, any frame and scale) against a reference, in float64.

    Without ``reference_from_estimate`` the centres are aligned by least squares (Umeyama, 1991), as trajectory errors
    are defined: one wild camera then shifts all the others, and centres on a line leave a rotation free. Give the
    robust one of ``geometry.align_cameras`` where that matters. Raises ValueError unless the numbers of cameras agree
    and are at least two.
    """
    if len(reference) != len(estimate) or len(reference) < 2:
        raise ValueError(
            f"pose_errors: {len(reference)} reference and {len(estimate)} estimated cameras; give the same, at least 2"
        )
    reference, estimate = reference.double(), estimate.double()
    sim3 = reference_from_estimate or umeyama(reference[:, :3, 3], estimate[:, :3, 3])
    aligned = sim3.apply_to_poses(estimate)
    distance = (aligned[:, :3, 3] - reference[:, :3, 3]).norm(dim=-1)
    centers = reference[:, :3, 3]
    extent = float((centers - centers.mean(0)).norm(dim=-1).max()) or 1.0
    first, second = torch.triu_indices(len(reference), len(reference), offset=1).unbind(0)
    true = invert_rigid(reference[first]) @ reference[second]
    found = invert_rigid(estimate[first]) @ estimate[second]
    return PoseErrors(
        rotation_deg=_angle_deg(aligned, reference),
        center=distance / extent,
        ate_rmse=float(distance.square().mean().sqrt()),
        relative_rotation_deg=_angle_deg(true, found),
        relative_translation_deg=_direction_deg(true[:, :3, 3], found[:, :3, 3]),
    )


def _angle_deg(a: Float[Tensor, "m 4 4"], b: Float[Tensor, "m 4 4"]) -> Float[Tensor, "m"]:
    return torch.rad2deg(rotation_angle(a[:, :3, :3].transpose(-1, -2) @ b[:, :3, :3]))


def _direction_deg(a: Float[Tensor, "m 3"], b: Float[Tensor, "m 3"]) -> Float[Tensor, "m"]:
    """Angle between lines; atan2 keeps small angles exact."""
    still_a, still_b = (v.norm(dim=-1) <= 1e-12 * v.norm(dim=-1).amax().clamp_min(1e-300) for v in (a, b))
    angle = torch.rad2deg(torch.atan2(torch.linalg.cross(a, b, dim=-1).norm(dim=-1), (a * b).sum(-1).abs()))
    angle = torch.where(still_a ^ still_b, torch.full_like(angle, 90.0), angle)
    return torch.where(still_a & still_b, torch.zeros_like(angle), angle)


@dataclass(frozen=True)
class DepthErrors:
    """``abs_rel``: mean of |estimate - reference| / reference; ``delta1``: share with a ratio under 1.25 either way."""

    abs_rel: float
    delta1: float
    pixels: int


def depth_errors(
    reference: Float[Tensor, "*shape"],
    estimate: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
    align: Literal["none", "scale", "median"] = "none",
) -> DepthErrors:
    """Errors of z-depth (0 or not finite = none) where the reference, the mask and the estimate have some.

    align: "none"; "median": the estimate times the ratio of the medians (Zhou et al., 2017); "scale": times the factor
    with the least sum of |scaled estimate - reference| / reference, the exact weighted median of ratios. Pixels without
    an estimate are not counted: compare ``pixels``. Raises ValueError when no pixel is left.
    """
    valid = (reference > 0) & (estimate > 0) & reference.isfinite() & estimate.isfinite()
    if mask is not None:
        valid &= mask
    if not bool(valid.any()):
        raise ValueError("depth_errors: no pixel has a reference and an estimate; check mask, sizes and units")
    true, found = reference[valid].double(), estimate[valid].double()
    if align == "median":
        found = found * (true.median() / found.median())
    elif align == "scale":
        found = found * _least_relative_scale(true, found)
    ratio = found / true
    within = torch.maximum(ratio, 1 / ratio) < 1.25
    return DepthErrors(float((ratio - 1).abs().mean()), float(within.double().mean()), int(valid.sum()))


def _least_relative_scale(true: Float[Tensor, "m"], found: Float[Tensor, "m"]) -> float:
    """argmin over s of sum |s r - 1| with r = found / true: the median of 1 / r weighted by r."""
    order = torch.argsort(true / found)
    candidates, weights = (true / found)[order], (found / true)[order]
    half = torch.searchsorted(weights.cumsum(0), weights.sum() / 2)
    return float(candidates[half.clamp(max=len(candidates) - 1)])


@dataclass(frozen=True)
class CloudErrors:
    """Distances between two clouds, in the reference's units: what is built is true, what is true is built."""

    accuracy: float
    """Mean distance from an estimated point to the nearest reference point."""
    accuracy_median: float
    completeness: float
    """Mean distance from a reference point to the nearest estimated point."""
    completeness_median: float
    precision: float
    """Share of estimated points nearer than the threshold to the reference (Tanks and Temples)."""
    recall: float
    fscore: float


def cloud_errors(
    reference: Float[Tensor, "p 3"],
    estimate: Float[Tensor, "q 3"],
    *,
    threshold: float | None = None,
    farthest: float | None = None,
) -> CloudErrors:
    """Accuracy and completeness of an estimated cloud that is in the reference's frame and scale already.

    threshold: for precision, recall and F-score; default 1% of the reference's extent (the diagonal of the box of its
    middle 96%). farthest: distances are cut there (DTU cuts at 20 mm), so that a few wild points do not decide a mean.
    Knapitsch et al., Tanks and Temples, 2017; the clouds are taken as they are: thin them evenly before, as the
    protocols do. Raises ValueError for an empty cloud.
    """
    if len(reference) == 0 or len(estimate) == 0:
        raise ValueError(f"cloud_errors: {len(reference)} reference and {len(estimate)} estimated points")
    true, found = reference.double().numpy(), estimate.double().numpy()
    to_true = torch.from_numpy(cKDTree(true).query(found)[0])
    to_found = torch.from_numpy(cKDTree(found).query(true)[0])
    if threshold is None:
        sample = reference.double()[:: max(1, len(reference) // 100_000)]
        threshold = 0.01 * float((sample.quantile(0.98, dim=0) - sample.quantile(0.02, dim=0)).norm())
    precision = float((to_true < threshold).double().mean())
    recall = float((to_found < threshold).double().mean())
    if farthest is not None:
        to_true, to_found = to_true.clamp(max=farthest), to_found.clamp(max=farthest)
    return CloudErrors(
        accuracy=float(to_true.mean()),
        accuracy_median=float(to_true.median()),
        completeness=float(to_found.mean()),
        completeness_median=float(to_found.median()),
        precision=precision,
        recall=recall,
        fscore=2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
    )
