"""What one training step computes: a model and a batch of scenes to a loss. The part that Fabric wraps and shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.core.rigid import invert_rigid
from scenetx.measure.lpips import load_lpips
from scenetx.models.da3 import Da3
from scenetx.models.geometry import Geometry
from scenetx.models.layers import Block
from scenetx.models.lvsm import Lvsm
from scenetx.models.srt import Srt
from scenetx.models.stereo_splats import StereoSplats
from scenetx.models.svsm import Svsm
from scenetx.models.view_model import ViewModel, Views
from scenetx.train import losses
from scenetx.train.matching import Looks, attention_loss, watched
from scenetx.train.pretrain import Pretraining, PretrainTask
from scenetx.train.settings import LossSettings, TrainSettings
from scenetx.train.splat_task import SplatTask

Batch = Mapping[str, Tensor]
"""``rgb`` uint8 [b v h w 3], ``world_from_cam`` [b v 4 4], ``K`` [b v 3 3], perhaps ``depth``, ``normals``."""
Seen = tuple[Float[Tensor, "b v h w"], Float[Tensor, "b v 3 3"], Float[Tensor, "b v 4 4"]]
"""z-depth, intrinsics and ``world_from_cam`` of the views of some scenes."""
DENSE = ("depth", "depth_gradient", "points", "rays", "normals", "splat")
"""Losses of a geometry model's dense head."""


def build_model(settings: TrainSettings) -> nn.Module:
    """The model with start values, drawn from the settings' seed whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.model == "da3":
            geometry = start_da3(Da3(settings.da3))
            return Pretraining(geometry, settings.pretrain) if settings.pretrain.kind else geometry
        if settings.model == "stereo_splats":
            splats = StereoSplats(settings.stereo_splats)
            start_da3(splats.da3)
            return splats
        kinds = {"svsm": (Svsm, settings.svsm), "lvsm": (Lvsm, settings.lvsm), "srt": (Srt, settings.srt)}
        kind, config = kinds[settings.model]
        return kind(config)


def start_da3(model: Da3) -> Da3:
    """Start values for training from nothing: cameras at rest, 60 degrees wide; every patch says where it is; and the
    blocks that see all views look at what is alike.

    Matrices have deviation 1 / sqrt(columns), which keeps the size of what passes through narrow models too (the 0.02
    that is usual for wide ones makes it a fifth of it at 96 channels), and layer scales 1 / sqrt(blocks), which
    keeps the size of the sum. Equal queries and keys are a mimetic start (arXiv 2305.09828): a patch's own content is
    what it asks for, so that matching of views is refined and not invented.
    """
    vit = model.backbone.pretrained
    for token in (vit.cls_token, vit.camera_token):
        nn.init.trunc_normal_(token, std=0.02)
    with torch.no_grad():
        vit.pos_embed.copy_(place_waves(vit.config.grid, vit.config.dim))
    for part in vit.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=part.in_features**-0.5)
            nn.init.zeros_(part.bias)
    for name, parameter in vit.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, len(vit.blocks) ** -0.5)
    for layer in model.global_layers():
        block = vit.blocks[layer]
        assert isinstance(block, Block)
        queries, keys, _ = block.attn.qkv.weight.data.chunk(3)
        keys.copy_(queries)
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


def place_waves(grid: int, channels: int, size: float = 0.5) -> Float[Tensor, "1 t c"]:
    """A position table of sines and cosines (arXiv 1706.03762, section 3.5, on two axes), zero for the class token.

    From a quarter of a turn to four turns over a picture, none shorter, since the table is resized to far smaller
    grids; ``size`` is of the order of what a patch's colours are embedded as, or places drown in them.
    """
    turns = 0.25 * 16 ** torch.linspace(0, 1, channels // 4)
    place = (torch.arange(grid) + 0.5) / grid
    waves = 2 * torch.pi * place[:, None] * turns
    axis = size * torch.cat([waves.sin(), waves.cos()], -1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    table = torch.cat([rows, columns], -1).flatten(0, 1)
    return torch.nn.functional.pad(table, (0, channels - table.shape[1], 1, 0))[None]


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
    """A geometry model shown all views of each scene; sometimes told their cameras."""

    def __init__(self, model: nn.Module, weights: LossSettings) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, batch: Batch, context: int, told: bool = False) -> dict[str, Tensor]:
        """``loss`` and its parts, unweighted, as means over scenes of the first ``context`` views."""
        w, rgb = self.weights, batch["rgb"][:, :context].float() / 255
        depth, K = batch["depth"][:, :context].float(), batch["K"][:, :context].float()
        scenes, (height, width) = len(rgb), rgb.shape[2:4]
        valid = (depth > 0) & depth.isfinite()
        depth = torch.where(valid, depth, 1.0)
        scale = losses.scene_scale(depth, K, valid)
        true = losses.first_view_world(batch["world_from_cam"][:, :context].float(), scale)
        depth = depth / scale[:, None, None, None]
        lenses = Cameras(true.flatten(0, 1), K.flatten(0, 1), height, width)
        assert isinstance(self.model, Da3)
        watch: AbstractContextManager[Looks] = watched(self.model) if w.matching else nullcontext([])
        with watch as looks:
            found = self.model.of_scenes(rgb.flatten(0, 1), scenes, lenses if told else None)
        poses = found.cameras.world_from_cam.float().unflatten(0, (scenes, context))
        parts = dict(zip(("rotation", "translation"), losses.relative_pose_loss(true, poses), strict=True))
        parts["fov"] = losses.fov_loss(found.published["pose_enc"][:, 7:9].float(), K.flatten(0, 1), height, width)
        told_of = {}
        if w.matching:
            known = torch.where(valid, depth, 0.0)
            parts["matching"], told_of["matched"] = attention_loss(looks, known, K, true, self.model.patch)
        dense, told_of["absrel"] = self._dense(batch, found, (depth, K, true), valid)
        parts |= dense
        weights = {name: getattr(w, name) for name in ("fov", "matching", *DENSE)}
        weights |= {"rotation": w.camera, "translation": w.camera / 2}
        loss = sum((weights[name] * value for name, value in parts.items()), poses.new_zeros(()))
        return {"loss": loss, **parts, **told_of}

    def _dense(
        self, batch: Batch, found: Geometry, true: Seen, valid: Tensor
    ) -> tuple[dict[str, Tensor], Float[Tensor, ""]]:
        """The parts of the dense head. And the share by which depth is off, without doubt's weight: what a person wants
        to see fall."""
        (depth, K, poses), w, shape = true, self.weights, true[0].shape[:2]
        assert found.depth is not None
        assert found.confidence is not None
        z, confidence = (value.float().unflatten(0, shape) for value in (found.depth, found.confidence))
        error = (z - depth).abs() / depth.clamp_min(0.1)
        parts = {"depth": losses.confident_l1(error, confidence, valid, w.confidence)}
        parts["depth_gradient"] = losses.depth_gradient_loss(z.clamp_min(1e-4).log(), depth.log(), valid)
        cameras = found.cameras
        found_K, found_poses = (value.float().unflatten(0, shape) for value in (cameras.K, cameras.world_from_cam))
        if w.points:
            parts["points"] = _points_loss((z, found_K, found_poses), true, valid)
        if w.rays:
            lenses = Cameras(poses.flatten(0, 1), K.flatten(0, 1), cameras.height, cameras.width)
            parts["rays"] = _rays_loss(found.published["ray"].float(), lenses, found_poses[:, 0].detach())
        if w.normals and "normals" in batch:
            parts["normals"] = losses.normals_loss(z, K, batch["normals"][:, : shape[1]].float(), valid)
        if w.splat:
            rgb = batch["rgb"][:, : shape[1]].float() / 255
            parts["splat"] = _splat_loss(rgb, z, replace(cameras, world_from_cam=found_poses.flatten(0, 1)))
        return parts, losses.mean_of_valid(error, valid).mean().detach()


def build_task(settings: TrainSettings, model: nn.Module) -> ViewTask | GeometryTask | SplatTask | PretrainTask:
    """The task of the model's kind. With mixed precision the model's blocks are set to bfloat16 from now on."""
    if settings.precision == "bf16-mixed":
        blocks_in_bf16(model)
    if settings.task == "view":
        return ViewTask(model, settings.loss)
    if settings.task == "splats":
        return SplatTask(model, settings.loss)
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


def _points_loss(found: Seen, true: Seen, valid: Tensor) -> Float[Tensor, ""]:
    """Points of found depth and found cameras against true ones, each set in its own first camera's frame."""
    places = []
    for depth, K, world_from_cam in (found, true):
        first_from_cam = invert_rigid(world_from_cam[:, :1]) @ world_from_cam
        turned = torch.einsum("bvij,bvhwj->bvhwi", first_from_cam[..., :3, :3], losses.points_in_camera(depth, K))
        places.append(turned + first_from_cam[..., None, None, :3, 3])
    off = (places[0] - places[1]).norm(dim=-1) / true[0].clamp_min(0.1)
    return losses.mean_of_valid(off.clamp_max(10.0), valid).mean()


def _splat_loss(rgb: Float[Tensor, "b v h w 3"], depth: Float[Tensor, "b v h w"], cameras: Cameras) -> Tensor:
    """`losses.splat_loss`, scene by scene: each is rasterized on its own. cameras: of all views, scene-major."""
    views = torch.arange(len(cameras), device=depth.device).unflatten(0, depth.shape[:2])
    each = [losses.splat_loss(rgb[k], depth[k], cameras[views[k]]) for k in range(len(rgb))]
    return torch.stack(each).mean()


def _rays_loss(found: Float[Tensor, "n i j 6"], true: Cameras, world: Float[Tensor, "b 4 4"]) -> Float[Tensor, ""]:
    """Directions (z = 1 in the camera) and origins of rays against those of ``true`` cameras, which are given in their
    scene's first view's frame; ``world`` is where the model put that view, so that rays and cameras need one gauge."""
    rows, columns = found.shape[1:3]
    K = true.resized(rows, columns).K
    ahead = losses.points_in_camera(torch.ones_like(found[..., 0]), K)
    motion = (world[:, None] @ true.world_from_cam.unflatten(0, (len(world), -1))).flatten(0, 1)
    direction = torch.einsum("vij,vhwj->vhwi", motion[:, :3, :3], ahead)
    origin = motion[:, None, None, :3, 3]
    return (found[..., :3] - direction).abs().mean() + (found[..., 3:] - origin).abs().mean()
