"""What a geometry backbone can learn before it learns geometry; each a task for the loop, of the same trunk.

completion    nine tenths of a view's patches are hidden and painted from the rest and a second view that is whole
              (CroCo, arXiv 2210.10716; v2, arXiv 2211.10408: colours normalised in each patch, 2-D rotary positions).
masked_depth  of one view most patches of colour and most of depth are hidden, and depth is told from what is left
              (Mask3D, arXiv 2302.14746).
matching      patches that see one point are alike, others are not (InfoNCE, as MASt3R, arXiv 2406.09756, section 3.2).
cameras       of two views, as in geometry but without the dense head (half the work), with two signals for each patch:
              where attention should look for it in the other view (`scenetx.train.matching`), and how far it moves.

The published models pair an encoder with a decoder that is thrown away. Here the trunk, whose later blocks look at one
view and at all views in turn, is both, so that all of its blocks begin geometry with what they learned.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from scenetx.models.backbone import normalized
from scenetx.models.da3 import Da3
from scenetx.models.geometry_model import Ask
from scenetx.models.pose_codec import decode_pose
from scenetx.train import losses
from scenetx.train.matching import attention_loss, moves_loss, patch_matches, watched
from scenetx.train.settings import PretrainSettings

FEATURES = 64
PREFIX = "geometry."
"""Of a geometry model's weights among those of its pretraining."""


class Pretraining(nn.Module):
    """A geometry model and the little that only its pretraining needs."""

    def __init__(self, geometry: Da3, settings: PretrainSettings) -> None:
        super().__init__()
        dim, area = geometry.config.dim, geometry.config.patch**2
        self.geometry = geometry
        self.mask_token = nn.Parameter(0.02 * torch.randn(dim))
        self.norm = nn.LayerNorm(dim)
        channels = {"completion": 3 * area, "masked_depth": area, "matching": FEATURES, "cameras": 2}
        self.end = nn.Linear(dim, channels[settings.kind])
        if settings.kind == "masked_depth":
            self.depth_tokens = nn.Linear(2 * area, dim)

    def forward(
        self,
        images: Float[Tensor, "n h w 3"],
        scenes: int,
        hidden: Bool[Tensor, "n t"] | None = None,
        more: Float[Tensor, "n t d"] | None = None,
    ) -> Float[Tensor, "n t k"]:
        """What the end says of each patch of the views of some scenes. ``hidden`` patches are not seen; ``more``
        is made into tokens that are added."""
        grid = (images.shape[1] // self.geometry.patch, images.shape[2] // self.geometry.patch)
        x = self.geometry.backbone.pretrained.tokens(normalized(images))
        seen = x[:, 1:]
        if hidden is not None:
            places = self.geometry.backbone.pretrained.positions(*grid)
            seen = torch.where(hidden[..., None], self.mask_token + places[:, 1:], seen)
        if more is not None:
            seen = seen + self.depth_tokens(more)
        _, x, _ = self.geometry.trunk(torch.cat([x[:, :1], seen], 1), grid, Ask(dense=False, scenes=scenes))
        return self.end(self.norm(x[:, 1:]))

    def cameras(
        self, images: Float[Tensor, "n h w 3"], scenes: int
    ) -> tuple[Float[Tensor, "n 9"], Float[Tensor, "n t k"]]:
        """The cameras' nine numbers (`decode_pose`), and what the end says of each patch after the last block that sees
        one view: the geometry model as it is, without its dense head."""
        model = self.geometry
        grid = (images.shape[1] // model.patch, images.shape[2] // model.patch)
        x = model.backbone.pretrained.tokens(normalized(images))
        local, x, _ = model.trunk(x, grid, Ask(dense=False, scenes=scenes))
        encoding = model.cam_dec(torch.cat([local[:, 0], x[:, 0]], dim=-1))
        return encoding, self.end(self.norm(local[:, 1:]))


class PretrainTask(nn.Module):
    """A pretraining on the first views of each scene."""

    def __init__(self, model: Pretraining, settings: PretrainSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, batch: Mapping[str, Tensor], context: int, told: bool = False) -> dict[str, Tensor]:  # noqa: ARG002
        """``loss``, and what it means. What is hidden depends on the pictures alone, so that a step can be repeated."""
        draw = torch.Generator().manual_seed(int(batch["rgb"].sum(dtype=torch.int64)))
        kinds = {"completion": self._completion, "masked_depth": self._masked_depth}
        kinds |= {"matching": self._matching, "cameras": self._cameras}
        return kinds[self.settings.kind](batch, draw)

    def _completion(self, batch: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        pair = batch["rgb"][:, :2].float() / 255
        scenes, patch = len(pair), self.model.geometry.config.patch
        wanted = in_patches(pair[:, 0], patch)
        mean, deviation = wanted.mean(-1, keepdim=True), wanted.var(-1, keepdim=True).add(1e-6).sqrt()
        hide = hidden(draw, len(wanted), wanted.shape[1], self.settings.masked).to(wanted.device)
        both = torch.stack([hide, torch.zeros_like(hide)], 1).flatten(0, 1)
        painted = self.model(pair.flatten(0, 1), scenes, both).unflatten(0, (scenes, 2))[:, 0].float()
        error = (painted - (wanted - mean) / deviation).square().mean(-1)
        return {"loss": (error * hide).sum() / hide.sum().clamp_min(1)}

    def _masked_depth(self, batch: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        patch = self.model.geometry.config.patch
        depth = batch["depth"][:, 0].float()
        valid = (depth > 0) & depth.isfinite()
        log = torch.where(valid, depth, 1.0).log()
        # Depth is told up to its scale, as geometry is.
        middle = (log * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
        wanted, known = in_patches((log - middle[:, None, None])[..., None], patch), in_patches(valid[..., None], patch)
        share = self.settings.masked
        colors, depths = (hidden(draw, len(wanted), wanted.shape[1], share).to(wanted.device) for _ in range(2))
        told = known & ~depths[..., None]
        more = torch.cat([wanted * told, told.to(wanted)], -1)
        found = self.model(batch["rgb"][:, 0].float() / 255, len(depth), colors, more).float()
        asked = known & depths[..., None]
        return {"loss": ((found - wanted).abs() * asked).sum() / asked.sum().clamp_min(1)}

    def _matching(self, batch: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        scenes = len(batch["rgb"])
        features = self.model(batch["rgb"][:, :2].flatten(0, 1).float() / 255, scenes).float()
        a, b = normalize(features, dim=-1).unflatten(0, (scenes, 2)).unbind(1)
        patch = self.model.geometry.config.patch
        depth, K, poses = (batch[name][:, :2].float() for name in ("depth", "K", "world_from_cam"))
        match = patch_matches(depth, K, poses, patch)
        right = ((a @ b.mT).argmax(-1) == match) & (match >= 0)
        share = right.sum() / (match >= 0).sum().clamp_min(1)
        return {"loss": losses.contrastive_loss(a, b, match), "right": share}

    def _cameras(self, batch: Mapping[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        images, patch, w = batch["rgb"][:, :2].float() / 255, self.model.geometry.patch, self.settings
        depth, K, poses = (batch[name][:, :2].float() for name in ("depth", "K", "world_from_cam"))
        scenes, (height, width) = len(images), images.shape[2:4]
        depth = torch.where(depth.isfinite(), depth, 0.0)
        scale = losses.scene_scale(depth, K, depth > 0)
        with watched(self.model.geometry) as looks:
            encoding, moved = self.model.cameras(images.flatten(0, 1), scenes)
        found, _ = decode_pose(encoding, height, width)
        true = losses.first_view_world(poses, scale)
        rotation, translation = losses.relative_pose_loss(true, found.unflatten(0, (scenes, 2)))
        parts = {"rotation": rotation, "translation": translation}
        parts["fov"] = losses.fov_loss(encoding[:, 7:9], K.flatten(0, 1), height, width)
        parts["looks"], matched = attention_loss(looks, depth, K, poses, patch)
        parts["moves"] = moves_loss(moved.float().unflatten(0, (scenes, 2)), depth, K, poses, patch)
        weights = {"rotation": 1.0, "translation": 0.5, "fov": 0.3, "looks": w.looks, "moves": w.moves}
        loss = sum((weights[name] * value for name, value in parts.items()), rotation.new_zeros(()))
        return {"loss": loss, **parts, "matched": matched}


def in_patches(pictures: Tensor, patch: int) -> Tensor:
    """``[n h w c]`` as ``[n t patch * patch * c]``, row by row."""
    cut = pictures.unflatten(1, (-1, patch)).unflatten(3, (-1, patch)).transpose(2, 3)
    return cut.flatten(3, 5).flatten(1, 2)


def hidden(draw: torch.Generator, count: int, tokens: int, share: float) -> Bool[Tensor, "n t"]:
    """In each row the same number of places, a ``share`` of them, drawn at random."""
    order = torch.rand(count, tokens, generator=draw).argsort(dim=1).argsort(dim=1)
    return order < round(share * tokens)
