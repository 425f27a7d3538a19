"""One step of learning splats in one pass: some views of each scene lifted by the model, the others painted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.models.stereo_splats import StereoAnswer, StereoSplats, scene_splats
from scenetx.splat import rasterize
from scenetx.train import losses
from scenetx.train.settings import LossSettings

QUANTILES = (0.02, 0.98)  # of known depth, and how much wider is looked: as plane sweeps are told by sparse points
WIDER = 1.3


class SplatTask(nn.Module):
    """A model of splats shown some views of each scene with their cameras, asked for the others' pictures and for the
    shown ones' depth."""

    def __init__(self, model: nn.Module, weights: LossSettings) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, batch: Mapping[str, Tensor], context: int, told: bool = False) -> dict[str, Tensor]:  # noqa: ARG002
        """``loss`` and its parts, unweighted. Cameras are always told."""
        rgb, poses, K = batch["rgb"].float() / 255, batch["world_from_cam"].float(), batch["K"].float()
        depth = batch["depth"][:, :context].float()
        scenes, (height, width) = len(rgb), rgb.shape[2:4]
        valid = (depth > 0) & depth.isfinite()
        cameras = Cameras(poses[:, :context].flatten(0, 1), K[:, :context].flatten(0, 1), height, width)
        assert isinstance(self.model, StereoSplats)
        answer = self.model(rgb[:, :context].flatten(0, 1), cameras, depth_range(depth, valid).flatten(0, 1), scenes)
        painted = torch.cat([
            rasterize(one.gaussians, Cameras(poses[k, context:], K[k, context:], height, width)).rgb
            for k, one in enumerate(scene_splats(answer, scenes))
        ])  # fmt: skip
        truth, w = rgb[:, context:].flatten(0, 1), self.weights
        parts = {"mse": (painted - truth).square().mean()}
        if w.ssim:
            parts["ssim"] = 1 - losses.ssim_batch(painted, truth)
        if w.gradient:
            parts["gradient"] = losses.gradient_loss(painted, truth)
        parts["depth"], parts["planes"], parts["far"], absrel = depth_parts(answer, depth, valid)
        loss = sum((getattr(w, name) * value for name, value in parts.items()), painted.new_zeros(()))
        return {"loss": loss, **parts, "absrel": absrel}


def depth_range(depth: Float[Tensor, "b v h w"], valid: Bool[Tensor, "b v h w"]) -> Float[Tensor, "b v 2"]:
    """Near and far of every view from what is known of its depth, a view that shows nothing as its scene; 1 to 2 where
    nobody knows anything. What sparse points would say in its place."""
    out = depth.new_tensor([1.0, 2.0]).repeat(*depth.shape[:2], 1)
    levels = depth.new_tensor(QUANTILES)
    for scene, (values, known) in enumerate(zip(depth, valid, strict=True)):
        for view in range(len(values)):
            some = values[view][known[view]] if bool(known[view].any()) else values[known]
            if len(some):
                low, high = torch.quantile(some, levels)
                out[scene, view] = torch.stack([low / WIDER, high * WIDER])
    return out


def depth_parts(
    answer: StereoAnswer, depth: Float[Tensor, "b v h w"], valid: Bool[Tensor, "b v h w"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Error of inverse depth as a share of the range, where it is known; cross-entropy of the first look's planes
    there; error where nothing is known, as if all of that were at the far end; and the mean relative error of depth."""
    shape, planes = depth.shape, answer.planes
    span = (planes[:, -1] - planes[:, 0]).view(*shape[:2], 1, 1)
    found = answer.inverse.view(shape)
    true = torch.where(valid, 1 / depth.clamp_min(1e-6), 0.0)
    off = (found - true).abs() / span
    behind = (found - planes[:, 0].view(*shape[:2], 1, 1)).clamp_min(0) / span
    known = losses.mean_of_valid(off, valid).mean()
    unknown = losses.mean_of_valid(behind, ~valid).mean()
    step = shape[2] // answer.scores.shape[2]
    middle = slice(step // 2, None, step)
    at = ((true.flatten(0, 1) - planes[:, :1, None]) / (planes[:, 1:2] - planes[:, :1])[..., None])[:, middle, middle]
    at = at.clamp(0, planes.shape[1] - 1)
    low = at.floor().long().clamp_max(planes.shape[1] - 2)
    chance = answer.scores.log_softmax(1)
    two = torch.stack([chance.gather(1, (low + k)[:, None])[:, 0] for k in range(2)], -1)
    cross = -((1 - (at - low)) * two[..., 0] + (at - low) * two[..., 1])
    sure = valid[:, :, middle, middle]
    entropy = losses.mean_of_valid(cross.unflatten(0, shape[:2]), sure).mean()
    relative = losses.mean_of_valid((1 / found - depth).abs() / depth.clamp_min(1e-6), valid).mean().detach()
    return known, entropy, unknown, relative
