"""Blocks of the scene representation transformers: set-latent encoder, ray-query decoder, picture convolutions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.models.attention import attend
from scenetx.models.blocks import Blocks
from scenetx.models.layers import Mlp
from scenetx.models.rays import Rays, octaves


class ConvBlock(nn.Module):
    """3 x 3, ReLU, 3 x 3 with stride 2, ReLU; no biases: half the size, twice the channels."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.same = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.halve = nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e a b"]:
        return self.halve(self.same(x).relu()).relu()


def conv_stack(channels: int, width: int, blocks: int) -> nn.Sequential:
    """``blocks`` halvings; widths ``width``, ``2 width`` .. on the way, ``2^blocks width`` channels at the end."""
    return nn.Sequential(*[ConvBlock(channels if i == 0 else width << i, width << i) for i in range(blocks)])


class SetAttention(nn.Module):
    """Attention into a set; ``into=None`` is the sequence itself. No biases before the output projection."""

    def __init__(self, dim: int, heads: int, head_dim: int, from_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.kv = nn.Linear(from_dim or dim, 2 * heads * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, dim)

    def keys_values(self, z: Float[Tensor, "b m c"]) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        k, v = self.kv(z).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(
        self, x: Float[Tensor, "b n c"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m d"]
    ) -> Float[Tensor, "b n c"]:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class SetBlock(nn.Module):
    """Attention and MLP. Pre-norm attends to itself (or a set); post-norm is the paper's form of the encoder.

    In the paper (Sajjadi et al., 2022, section 3.1 and appendix) every encoder layer queries the picture features that
    entered the first one, and norms follow the sums.
    """

    def __init__(
        self, dim: int, heads: int, head_dim: int, hidden: int, from_dim: int | None = None, *, post_norm: bool = False
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.attn = nn.LayerNorm(dim), SetAttention(dim, heads, head_dim, from_dim)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, hidden)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        k: Float[Tensor, "b h m d"] | None = None,
        v: Float[Tensor, "b h m d"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """``k, v``: the set's; None = the sequence's own."""
        inner = x if self.post_norm else self.norm1(x)
        if k is None or v is None:
            k, v = self.attn.keys_values(inner)
        x = x + self.attn(inner, k, v)
        if self.post_norm:
            x = self.norm1(x)
            return self.norm2(x + self.mlp(x))
        return x + self.mlp(self.norm2(x))


def set_blocks(
    count: int,
    dim: int,
    heads: int,
    head_dim: int,
    hidden: int,
    from_dim: int | None = None,
    *,
    post_norm: bool = False,
) -> Blocks[SetBlock]:
    """``count`` blocks of one shape."""
    return Blocks(SetBlock(dim, heads, head_dim, hidden, from_dim, post_norm=post_norm) for _ in range(count))


def ray_octaves(rays: Rays, count: int, position_start: int) -> Float[Tensor, "n h w c"]:
    """Octaves of the origin from ``position_start`` and of the direction from 0: ``12 count`` channels."""
    return torch.cat([octaves(rays.origins, count, position_start), octaves(rays.directions, count)], dim=-1)


def feed(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for index in range(len(sizes) - 1):
        layers += [nn.ReLU()] if index else []
        layers.append(nn.Linear(sizes[index], sizes[index + 1]))
    return nn.Sequential(*layers)
