"""LVSM: a large view synthesis model with minimal 3D inductive bias (Jin et al., arXiv 2410.17242).

Decoder-only: one transformer over [context patches, target patches], again for every target; nothing can be cached
exactly but the first layer's tokens, because context attends to target. Encoder-decoder: context patches are read into
3072 latents once; a target is painted from the latents, which are updated while it is painted.

The published weights (``coast01/LVSM`` on the hub, CC BY-NC-SA 4.0: not for commercial use) load with `from_published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.models.rays import Frame, Rays, camera_rays, mean_frame
from scenetx.models.view_layers import norm, padded, padded_rays, patches, self_blocks, unpatched
from scenetx.models.view_model import Inputs, ViewModel, Views, Where, size_of
from scenetx.models.weights import renamed

LICENCE = "CC BY-NC-SA 4.0 (not for commercial use)"


@dataclass(frozen=True)
class LvsmConfig:
    """The published settings."""

    kind: Literal["decoder-only", "encoder-decoder"] = "decoder-only"
    dim: int = 768
    heads: int = 12
    patch: int = 8
    encoder_layers: int = 12  # encoder-decoder only
    decoder_layers: int = 24  # the published encoder-decoder has 12
    latents: int = 3072  # encoder-decoder only


PRESETS = {
    "decoder-only": LvsmConfig(),
    "encoder-decoder": LvsmConfig(kind="encoder-decoder", decoder_layers=12),
}


class Lvsm(ViewModel):
    """Both forms of LVSM. Output in (0, 1)."""

    name: ClassVar[str] = "lvsm"

    def __init__(self, config: LvsmConfig | None = None) -> None:
        super().__init__()
        self.config: LvsmConfig = config or LvsmConfig()
        c = self.config
        area = c.patch * c.patch
        self.separable = c.kind == "decoder-only"
        self.image_tokens = nn.Linear(9 * area, c.dim, bias=False)
        self.target_tokens = nn.Linear(6 * area, c.dim, bias=False)
        self.encoder = self_blocks(0, c.dim, c.heads)
        if c.kind == "encoder-decoder":
            self.latents = nn.Parameter(0.02 * torch.randn(c.latents, c.dim))
            self.encoder = self_blocks(c.encoder_layers, c.dim, c.heads)
        self.norm_in = norm(c.dim)
        self.decoder = self_blocks(c.decoder_layers, c.dim, c.heads)
        self.norm_out, self.head = norm(c.dim), nn.Linear(c.dim, 3 * area, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal, 0.02; inside block l 0.02 / sqrt(2 (l + 1)), so that deep stacks start near the identity."""
        for linear in (self.image_tokens, self.target_tokens, self.head):
            nn.init.normal_(linear.weight, std=0.02)
        for stack in (self.encoder, self.decoder):
            for depth, block in enumerate(stack):
                for module in block.modules():
                    if isinstance(module, nn.Linear):
                        nn.init.normal_(module.weight, std=0.02 / (2 * (depth + 1)) ** 0.5)

    def frame_of(self, cameras: Cameras, scenes: int) -> Frame:
        """The published normalisation, over context views only (published runs looked at the targets too)."""
        return mean_frame(cameras, scenes)

    def tokenise(self, views: Views) -> Inputs:
        assert views.cameras is not None
        return self.tokenise_rays(views.images, camera_rays(views.cameras), views.scenes)

    def tokenise_rays(self, images: Float[Tensor, "n h w 3"], rays: Rays, scenes: int = 1) -> Inputs:
        patch = self.config.patch
        pixels = torch.cat([2 * padded(images, patch) - 1, padded_rays(rays, patch).pluecker], dim=-1)
        tokens = self.image_tokens(patches(pixels, patch))
        each = len(images) // scenes
        return Inputs((tokens.shape[1],) * each, {"x": tokens.unflatten(0, (scenes, each)).flatten(1, 2)}, {})

    def remember(self, inputs: Inputs) -> dict[str, Tensor]:
        """Decoder-only: the tokens, ``[b 1 n c]``. Encoder-decoder: the latents, ``[b latents c]``."""
        x = inputs.tokens["x"]
        if self.config.kind == "decoder-only":
            return {"x": x[:, None]}
        x = torch.cat([self.latents.expand(len(x), -1, -1), x], dim=1)
        for block in self.encoder:
            x = block(x)
        return {"latents": x[:, : self.config.latents]}

    def paint(self, memory: Mapping[str, Tensor], where: Where, scenes: int) -> Float[Tensor, "n h w 3"]:
        patch = self.config.patch
        seen = self.placed(where)
        targets = self.target_tokens(patches(padded_rays(seen, patch).pluecker, patch))
        count = targets.shape[1]
        each = len(targets) // scenes
        if self.config.kind == "decoder-only":
            x = torch.cat([memory["x"][:, 0].repeat_interleave(each, 0), targets], dim=1)
            own = slice(-count, None)
        else:
            x = torch.cat([targets, memory["latents"].repeat_interleave(each, 0)], dim=1)
            own = slice(0, count)
        x = self.norm_in(x)
        for block in self.decoder:
            x = block(x)
        pixels = self.head(self.norm_out(x[:, own])).sigmoid()
        return unpatched(pixels, patch, *size_of(seen))


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published file's ``model`` entry under our names; the loss network's tensors are left behind."""
    return renamed(tensors, _NAMES)


_NAMES = (
    ("image_tokenizer.1.", "image_tokens."),
    ("target_pose_tokenizer.1.", "target_tokens."),
    ("n_light_field_latent", "latents"),
    ("transformer_input_layernorm_decoder.", "norm_in."),
    ("transformer_input_layernorm.", "norm_in."),
    ("transformer_encoder.", "encoder."),
    ("transformer_decoder.", "decoder."),
    ("transformer_blocks.", "decoder."),
    (".attn.to_qkv.", ".attn.qkv."),
    (".attn.fc.", ".attn.proj."),
    (".mlp.mlp.0.", ".mlp.fc1."),
    (".mlp.mlp.2.", ".mlp.fc2."),
    ("image_token_decoder.0.", "norm_out."),
    ("image_token_decoder.1.", "head."),
)
