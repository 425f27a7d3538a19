"""What one training step computes: a model and a batch of scenes to a loss. The part that Fabric wraps and shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.core.rigid import invert_rigid
from scenetx.measure.lpips import load_lpips
from scenetx.models.da3 import Da3
from scenetx.models.lvsm import Lvsm
from scenetx.models.srt import Srt
from scenetx.models.svsm import Svsm
from scenetx.models.view_model import ViewModel, Views
from scenetx.train import losses
from scenetx.train.pretrain import Pretraining, PretrainTask
from scenetx.train.settings import LossSettings, TrainSettings

Batch = Mapping[str, Tensor]
"""``rgb`` uint8 [b v h w 3], ``world_from_cam`` [b v 4 4], ``K`` [b v 3 3], perhaps ``depth``, ``normals``."""


def build_model(settings: TrainSettings) -> nn.Module:
    """The model with start values, drawn from the settings' seed whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.model == "da3":
            geometry = start_da3(Da3(settings.da3))
            return Pretraining(geometry, settings.pretrain) if settings.pretrain.kind else geometry
        kinds = {"svsm": (Svsm, settings.svsm), "lvsm": (Lvsm, settings.lvsm), "srt": (Srt, settings.srt)}
        kind, config = kinds[settings.model]
        return kind(config)


def start_da3(model: Da3) -> Da3:
    """Start values for training from nothing: tokens and matrices of deviation 0.02; cameras at rest, 60 degrees wide.

    Layer scales start at 0.2, so that deep stacks begin near the identity.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "pos_embed", "camera_token")):
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("gamma") and "cam_enc" not in name:
            nn.init.constant_(parameter, 0.2)
    for part in model.backbone.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    decoder = model.cam_dec
    for end, bias in ((decoder.fc_t, (0.0, 0.0, 0.0)), (decoder.fc_qvec, (0.0, 0.0, 0.0, 1.0))):
        nn.init.normal_(end.weight, std=0.01)
        end.bias.data = torch.tensor(bias)
    # The end is a ReLU: it must start alive.
    wide = decoder.fc_fov[0]
    assert isinstance(wide, nn.Linear)
    nn.init.normal_(wide.weight, std=0.001)
    nn.init.constant_(wide.bias, 1.05)
    return model


class ViewTask(nn.Module):
    """A view model shown some views of each scene, asked for the others."""

    def __init__(self, model: nn.Module, weights: LossSettings) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        # A network that judges but does not learn; no part of this module, so that it is neither saved nor sharded.
        self.judge = [load_lpips()] if weights.perceptual > 0 else []

    def paint(self, batch: Batch, context: int) -> tuple[Float[Tensor, "n h w 3"], Float[Tensor, "n h w 3"]]:
        """What the model paints of all views after the first ``context``, and the truth; scene-major."""
        rgb = batch["rgb"].float() / 255
        scenes, height, width = len(rgb), *rgb.shape[2:4]
        poses, K = batch["world_from_cam"], batch["K"]
        shown = Cameras(poses[:, :context].flatten(0, 1), K[:, :context].flatten(0, 1), height, width)
        asked = Cameras(poses[:, context:].flatten(0, 1), K[:, context:].flatten(0, 1), height, width)
        assert isinstance(self.model, ViewModel)
        painted = self.model.forward(Views(rgb[:, :context].flatten(0, 1), shown, scenes), asked)
        return painted.float(), rgb[:, context:].flatten(0, 1)

    def forward(self, batch: Batch, context: int, told: bool = False) -> dict[str, Tensor]:  # noqa: ARG002
        """``loss`` and its parts, unweighted. View models are always told the cameras."""
        painted, truth = self.paint(batch, context)
        w = self.weights
        mse = (painted - truth).square().mean()
        parts = {"mse": mse}
        if w.ssim:
            parts["ssim"] = 1 - losses.ssim_batch(painted, truth)
        if w.gradient:
            parts["gradient"] = losses.gradient_loss(painted, truth)
        if w.perceptual:
            parts["perceptual"] = self.judge[0].distance(painted, truth).mean()
        loss = sum((getattr(w, name) * value for name, value in parts.items()), torch.zeros_like(mse))
        return {"loss": loss, **parts}


class GeometryTask(nn.Module):
    """A geometry model shown all views of each scene, scene by scene; sometimes told their cameras."""

    def __init__(self, model: nn.Module, weights: LossSettings) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, batch: Batch, context: int, told: bool = False) -> dict[str, Tensor]:
        """``loss`` and its parts, unweighted, as means over scenes of the first ``context`` views."""
        scenes = [self._scene({name: value[k, :context] for name, value in batch.items()}, told)
                  for k in range(len(batch["rgb"]))]  # fmt: skip
        return {name: torch.stack([scene[name] for scene in scenes]).mean() for name in scenes[0]}

    def _scene(self, scene: Batch, told: bool) -> dict[str, Tensor]:
        w, depth, K = self.weights, scene["depth"].float(), scene["K"].float()
        valid = (depth > 0) & depth.isfinite()
        depth = torch.where(valid, depth, 1.0)
        height, width = depth.shape[1:]
        scale = losses.scene_scale(depth, K, valid)
        true = _first_view_world(scene["world_from_cam"].float(), scale)
        depth = depth / scale
        given = Cameras(true, K, height, width) if told else None
        found = self.model(scene["rgb"].float() / 255, given)
        assert found.depth is not None
        assert found.confidence is not None
        z, confidence = found.depth.float(), found.confidence.float()
        error = (z - depth).abs() / depth.clamp_min(0.1)
        parts = {"depth": losses.confident_l1(error, confidence, valid, w.confidence)}
        parts["depth_gradient"] = losses.depth_gradient_loss(z.clamp_min(1e-4).log(), depth.log(), valid)
        poses = found.cameras.world_from_cam.float()
        parts["rotation"], parts["translation"] = losses.relative_pose_loss(true, poses)
        wanted = torch.stack([2 * torch.atan(height / 2 / K[:, 1, 1]), 2 * torch.atan(width / 2 / K[:, 0, 0])], -1)
        parts["fov"] = (found.published["pose_enc"].float()[:, 7:9] - wanted).abs().mean()
        if w.points:
            parts["points"] = self._points(z, depth, found.cameras.K.float(), K, poses, true, valid)
        if w.rays and "ray" in found.published:
            parts["rays"] = _rays_loss(
                found.published["ray"].float(), Cameras(true, K, height, width), poses[0].detach()
            )
        if w.normals and "normals" in scene:
            parts["normals"] = losses.normals_loss(z, K, scene["normals"].float(), valid)
        if w.splat:
            parts["splat"] = losses.splat_loss(
                scene["rgb"].float() / 255, z, replace(found.cameras, world_from_cam=poses)
            )
        weights = {"splat": w.splat, "depth": w.depth, "depth_gradient": w.depth_gradient, "rotation": w.camera}
        weights |= {"translation": w.camera, "fov": w.fov, "points": w.points, "rays": w.rays}
        weights["normals"] = w.normals
        loss = sum((weights[name] * value for name, value in parts.items()), z.new_zeros(()))
        # The share of pixels whose depth is right, without doubt's weight: what a person wants to see fall.
        parts["absrel"] = ((error * valid).sum() / valid.sum().clamp_min(1)).detach()
        return {"loss": loss, **parts}

    def _points(
        self, z: Tensor, depth: Tensor, K: Tensor, true_K: Tensor, poses: Tensor, true: Tensor, valid: Tensor
    ) -> Float[Tensor, ""]:
        """Points of found depth and found cameras against true ones, each set in its own first camera's frame."""
        first = invert_rigid(poses)[:1]
        places = []
        for plane, lens, motion in ((z, K, first @ poses), (depth, true_K, true)):
            in_cam = losses.points_in_camera(plane, lens)
            places.append(torch.einsum("vij,vhwj->vhwi", motion[:, :3, :3], in_cam) + motion[:, None, None, :3, 3])
        off = (places[0] - places[1]).norm(dim=-1) / depth.clamp_min(0.1)
        return (off.clamp_max(10.0) * valid).sum() / valid.sum().clamp_min(1)


def build_task(settings: TrainSettings, model: nn.Module) -> ViewTask | GeometryTask | PretrainTask:
    """The task of the model's kind. With mixed precision the model's blocks are set to bfloat16 from now on."""
    if settings.precision == "bf16-mixed":
        blocks_in_bf16(model)
    if settings.task == "view":
        return ViewTask(model, settings.loss)
    if isinstance(model, Pretraining):
        return PretrainTask(model, settings.pretrain)
    return GeometryTask(model, settings.loss)


def blocks_in_bf16(model: nn.Module) -> None:
    """Transformer blocks compute in bfloat16 (weights stay float32); everything else in full precision.

    Autocast around all of a model would also round its rays, poses and intrinsics to three digits.
    """
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                if not (hasattr(block, "mlp") or hasattr(block, "attn")):
                    continue
                for name in ("forward", "keys_values"):
                    if hasattr(block, name):
                        setattr(block, name, _autocast(block, getattr(block, name)))
                for norm in block.modules():
                    if isinstance(norm, nn.RMSNorm):
                        # Of queries and keys: autocast leaves it alone, and half of it would be computed in each type.
                        norm.forward = _of_floats(norm.forward)  # type: ignore[method-assign, assignment]


def _autocast(module: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **more: Any) -> Any:
        with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
            return method(*args, **more)

    return call


def _of_floats(method: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: method(x.float())


def _rays_loss(found: Float[Tensor, "v i j 6"], true: Cameras, world: Float[Tensor, "4 4"]) -> Float[Tensor, ""]:
    """Directions (z = 1 in the camera) and origins of rays against those of ``true`` cameras, which are given in the
    first view's frame; ``world`` is where the model put that view, so that rays and cameras need one gauge only."""
    rows, columns = found.shape[1:3]
    K = true.resized(rows, columns).K
    ahead = losses.points_in_camera(torch.ones_like(found[..., 0]), K)
    motion = world @ true.world_from_cam
    direction = torch.einsum("vij,vhwj->vhwi", motion[:, :3, :3], ahead)
    origin = motion[:, None, None, :3, 3]
    return (found[..., :3] - direction).abs().mean() + (found[..., 3:] - origin).abs().mean()


def _first_view_world(world_from_cam: Float[Tensor, "v 4 4"], scale: Float[Tensor, ""]) -> Float[Tensor, "v 4 4"]:
    """Poses in the first view's frame, lengths divided by ``scale``."""
    relative = invert_rigid(world_from_cam[:1]) @ world_from_cam
    shift = relative[:, :3, 3:] / scale
    return torch.cat([torch.cat([relative[:, :3, :3], shift], -1), relative[:, 3:]], -2)
