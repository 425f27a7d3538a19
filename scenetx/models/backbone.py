"""DINOv2 vision transformer (arXiv 2304.07193), with the variations the geometry models make of it.

Tokens of a picture: cls, registers (if any), patches row by row. The learned position table of 37 x 37 patches is
resized bicubically to the picture's grid. Key names are those of the released checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.models.layers import Block, BlockConfig, PatchEmbed, QkNorm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VitConfig:
    """A DINOv2 ViT. ``offset`` and ``antialias`` say how the position table is resized (they differ between models)."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    channels: int = 3
    grid: int = 37
    registers: int = 0
    feed: Literal["mlp", "swiglu"] = "mlp"
    offset: float = 0.1
    antialias: bool = False
    mask_token: bool = False
    final_norm: bool = True
    norm_eps: float = 1e-6
    qk_norm_from: int | None = None  # first block with normed queries and keys

    @property
    def hidden(self) -> int:
        """DINOv2's SwiGLU keeps the parameter count of a 4x MLP: two thirds of it, rounded up to 8."""
        return 4 * self.dim if self.feed == "mlp" else (int(4 * self.dim * 2 / 3) + 7) // 8 * 8


def vit_block(config: VitConfig, index: int) -> Block:
    """The block at ``index``."""
    normed = config.qk_norm_from is not None and index >= config.qk_norm_from
    qk_norm: QkNorm = "layer" if normed else "none"
    return Block(
        BlockConfig(config.dim, config.heads, hidden=config.hidden, feed=config.feed, qk_norm=qk_norm, eps=1e-6)
    )


class Vit(nn.Module):
    """DINOv2. `tokens` embeds pictures; `forward` runs all blocks and the final norm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch, config.channels, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.dim))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        if config.mask_token:
            # Training of the backbone only; it is in the files.
            self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.blocks = nn.ModuleList([vit_block(config, index) for index in range(config.depth)])
        if config.final_norm:
            self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    @property
    def special(self) -> int:
        """Tokens before the patches."""
        return 1 + self.config.registers

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 t c"]:
        """The position table at the picture's grid of patches, cls first."""
        size, offset = self.config.grid, self.config.offset
        if rows == columns == size:
            return self.pos_embed
        table = self.pos_embed[:, 1:].float().unflatten(1, (size, size)).permute(0, 3, 1, 2)
        # DINOv2's historical offset: the scale factor, not the target size, fixes the sampling positions.
        where = (
            {"scale_factor": ((rows + offset) / size, (columns + offset) / size)}
            if offset
            else {"size": (rows, columns)}
        )
        table = torch.nn.functional.interpolate(table, mode="bicubic", antialias=self.config.antialias, **where)
        if table.shape[-2:] != (rows, columns):
            raise ValueError(f"position table: wanted {rows} x {columns}, got {tuple(table.shape[-2:])}")
        patches = table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], patches], dim=1)

    def tokens(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        """Normalised pictures to tokens (before the first block)."""
        patch = self.config.patch
        patches = self.patch_embed(images)
        cls = self.cls_token.expand(len(images), -1, -1)
        x = torch.cat([cls, patches], dim=1) + self.positions(images.shape[-2] // patch, images.shape[-1] // patch)
        if self.config.registers:
            registers = self.register_tokens.expand(len(images), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        return x

    def forward(self, images: Float[Tensor, "n c h w"], *, chunk: int = 8) -> Float[Tensor, "n t d"]:
        """All tokens after the last block (and norm), ``chunk`` pictures at a time: they do not see each other here."""
        outputs = []
        for part in images.split(chunk):
            x = self.tokens(part)
            for block in self.blocks:
                x = block(x)
            outputs.append(self.norm(x) if self.config.final_norm else x)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def normalized(
    images: Float[Tensor, "n h w 3"],
    mean: tuple[float, ...] | Tensor = IMAGENET_MEAN,
    std: tuple[float, ...] | Tensor = IMAGENET_STD,
) -> Float[Tensor, "n 3 h w"]:
    """Channels first, (x - mean) / std; ImageNet's numbers unless told."""
    mean, std = torch.as_tensor(mean).to(images).flatten(), torch.as_tensor(std).to(images).flatten()
    return ((images - mean) / std).permute(0, 3, 1, 2).contiguous()
