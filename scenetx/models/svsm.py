"""SVSM, the default: a one-way encoder-decoder for view synthesis that encodes once and decodes from a cache.

Context patches are mixed by a bidirectional encoder without a bottleneck; each decoder block is self-attention among
one target's patches, cross-attention to the context, MLP. Context never looks at targets, so its keys and values are
made once, stored already transformed by their cameras (PRoPE), and read by any number of targets. The shape follows the
scaling study of one-way view synthesis (SVSM) and Efficient-LVSM; queries and keys are normed, branches scaled by
1 / sqrt(layers).

`mixing` decides what one more view costs. "joint": context views see each other; appending encodes again, quadratic in
the views. "per_view": a view is encoded alone (Efficient-LVSM's stream); appending and dropping cost the same at any
number of views. With `co_refine` decoder block i reads encoder layer i's tokens instead of the last layer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.models.blocks import Blocks
from scenetx.models.layers import Mlp
from scenetx.models.prope import Prope, projections
from scenetx.models.rays import Frame, Rays, mean_frame
from scenetx.models.view_layers import (
    CrossAttention,
    SelfAttention,
    SelfBlock,
    initialise,
    norm,
    padded,
    padded_rays,
    patches,
    self_blocks,
    unpatched,
)
from scenetx.models.view_model import Inputs, ViewModel, Views, Where, size_of


@dataclass(frozen=True)
class SvsmConfig:
    """27 M weights: 384 wide, 6 + 6 layers."""

    dim: int = 384
    heads: int = 6
    patch: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    mixing: Literal["joint", "per_view"] = "joint"
    co_refine: bool = False
    prope: bool = True
    """Relative cameras in attention; without them targets may be given as rays."""


PRESETS = {
    "27m": SvsmConfig(),
    "27m-stream": SvsmConfig(mixing="per_view", co_refine=True),
    "79m": SvsmConfig(dim=512, heads=8, encoder_layers=8, decoder_layers=12),
    "226m": SvsmConfig(dim=768, heads=12, encoder_layers=10, decoder_layers=16),
    "420m": SvsmConfig(dim=768, heads=12, encoder_layers=16, decoder_layers=32),
}
"""Sizes of the scaling study's ladder (weights in millions)."""


class TargetBlock(nn.Module):
    """Self-attention among a target's patches, cross-attention to the context, MLP; branches times ``gain``."""

    def __init__(self, dim: int, heads: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.norm1, self.attn = norm(dim), SelfAttention(dim, heads)
        self.norm2, self.cross, self.norm_context = norm(dim), CrossAttention(dim, heads), norm(dim)
        self.norm3, self.mlp = norm(dim), Mlp(dim, 4 * dim, bias=False)

    def keys_values(self, z: Float[Tensor, "b m c"], place: Prope | None) -> tuple[Tensor, Tensor]:
        """What `forward` reads of the context, [b h m d] each."""
        return self.cross.keys_values(self.norm_context(z), place)

    def forward(
        self, x: Float[Tensor, "n t c"], k: Tensor, v: Tensor, alone: Prope | None, place: Prope | None
    ) -> Float[Tensor, "n t c"]:
        """``k, v`` of ``b`` scenes; ``n`` is a multiple of ``b``: the targets of a scene ask as one long sequence."""
        x = x + self.gain * self.attn(self.norm1(x), alone)
        scenes = len(k)
        asked = self.norm2(x).unflatten(0, (scenes, -1)).flatten(1, 2)
        x = x + self.gain * self.cross(asked, k, v, place).reshape(x.shape)
        return x + self.gain * self.mlp(self.norm3(x))


class Svsm(ViewModel):
    """One-way view synthesis. Output in (0, 1)."""

    name: ClassVar[str] = "svsm"

    def __init__(self, config: SvsmConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or SvsmConfig()
        self.separable = c.mixing == "per_view"
        area = c.patch * c.patch
        self.image_tokens = nn.Linear(9 * area, c.dim, bias=False)
        self.target_tokens = nn.Linear(6 * area, c.dim, bias=False)
        self.encoder = self_blocks(c.encoder_layers, c.dim, c.heads, c.encoder_layers**-0.5)
        self.decoder: Blocks[TargetBlock] = Blocks(
            TargetBlock(c.dim, c.heads, c.decoder_layers**-0.5) for _ in range(c.decoder_layers)
        )
        self.norm_out, self.head = norm(c.dim), nn.Linear(c.dim, 3 * area, bias=False)
        initialise(self)

    def frame_of(self, cameras: Cameras, scenes: int) -> Frame:
        return mean_frame(cameras, scenes)

    def tokenise(self, views: Views) -> Inputs:
        assert views.cameras is not None
        patch, each = self.config.patch, views.each
        rays = padded_rays(views.cameras, patch)
        pixels = torch.cat([2 * padded(views.images, patch) - 1, rays.pluecker], dim=-1)
        x = self.image_tokens(patches(pixels, patch))
        grid = _grid(rays, patch)
        tokens = {
            "x": x.unflatten(0, (views.scenes, each)).flatten(1, 2),
            "grid": grid.repeat(each, 1).expand(views.scenes, -1, -1),
        }
        poses = {"projection": projections(views.cameras).unflatten(0, (views.scenes, each))}
        return Inputs((x.shape[1],) * each, tokens, poses)

    def remember(self, inputs: Inputs) -> dict[str, Tensor]:
        """Each decoder block's keys and values of the context, ``k0 v0 k1 ..`` [b heads tokens head_dim]."""
        grid = inputs.tokens["grid"][0]
        place = self._place(inputs.poses["projection"], inputs.sizes, grid)
        layers = [inputs.tokens["x"]]
        for block in self.encoder:
            layers.append(self._mixed(block, layers[-1], inputs, place))
        memory = {}
        for index, target in enumerate(self.decoder):
            # Without co-refinement every block reads the last layer; with it, block i reads layer i of the encoder.
            source = len(self.encoder) * (index + 1) // len(self.decoder) if self.config.co_refine else -1
            memory[f"k{index}"], memory[f"v{index}"] = target.keys_values(layers[source], place)
        return memory

    def _mixed(self, block: SelfBlock, x: Float[Tensor, "b n c"], inputs: Inputs, place: Prope | None) -> Tensor:
        if not self.separable:
            return block(x, place)
        grid, projection = inputs.tokens["grid"][0], inputs.poses["projection"]
        views, size = len(inputs.sizes), inputs.sizes[0]
        # Pictures of one shape are a batch. Equal counts are not enough: 2 x 3 patches are not 3 x 2.
        if set(inputs.sizes) == {size} and bool((grid.unflatten(0, (views, size)) == grid[:size]).all()):
            alone = self._place(projection.flatten(0, 1)[:, None], (size,), grid[:size])
            return block(x.unflatten(1, (views, size)).flatten(0, 1), alone).reshape(x.shape)
        parts = []
        for index, part in enumerate(x.split(list(inputs.sizes), dim=1)):
            start = sum(inputs.sizes[:index])
            alone = self._place(projection[:, index : index + 1], (part.shape[1],), grid[start : start + part.shape[1]])
            parts.append(block(part, alone))
        return torch.cat(parts, dim=1)

    def _place(
        self, projection: Float[Tensor, "b v 4 4"], sizes: tuple[int, ...], grid: Int[Tensor, "n 2"]
    ) -> Prope | None:
        head_dim = self.config.dim // self.config.heads
        return Prope.of(projection, sizes, grid, head_dim) if self.config.prope else None

    def paint(self, memory: Mapping[str, Tensor], where: Where, scenes: int) -> Float[Tensor, "n h w 3"]:
        """Raises TypeError for rays where the model places cameras relative to each other."""
        patch = self.config.patch
        seen = self.placed(where)
        rays = padded_rays(seen, patch)
        x = self.target_tokens(patches(rays.pluecker, patch))
        alone = place = None
        if self.config.prope:
            if not isinstance(seen, Cameras):
                raise TypeError("this model places cameras relative to each other: give Cameras, not Rays")
            grid, count = _grid(rays, patch), len(seen) // scenes
            projection = projections(seen)
            alone = self._place(projection[:, None], (len(grid),), grid)
            each = projection.unflatten(0, (scenes, count))
            place = self._place(each, (len(grid),) * count, grid.repeat(count, 1))
        for index, block in enumerate(self.decoder):
            x = block(x, memory[f"k{index}"], memory[f"v{index}"], alone, place)
        pixels = self.head(self.norm_out(x)).sigmoid()
        return unpatched(pixels, patch, *size_of(seen))


def _grid(rays: Rays, patch: int) -> Int[Tensor, "n 2"]:
    """(y, x) of each patch of a picture."""
    rows, columns = rays.origins.shape[1] // patch, rays.origins.shape[2] // patch
    device = rays.origins.device
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([y, x], dim=-1).flatten(0, 1)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No weights are published by others: the names are ours."""
    return dict(tensors)
