"""The transformer block every model here is made of, two-dimensional rotary positions, and feed-forward layers.

Module names are the published ones (``norm1``, ``attn.qkv``, ``mlp.fc1``, ``ls1.gamma``), so that checkpoints load by
name. Block = pre-norm ViT with layer scale: x += ls1(attn(norm1 x)); x += ls2(mlp(norm2 x)) (DINOv2, arXiv 2304.07193).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scenetx.models.attention import Remember, attend

QkNorm = Literal["none", "layer", "rms"]

# Rows a feed-forward layer takes at once without gradients: its hidden layer is the largest thing a block makes.
FEED_ROWS = 4096


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of a 2-D rotary embedding, one row a token: axis 0 is y, axis 1 is x."""

    cos: Float[Tensor, "n 2 f"]
    sin: Float[Tensor, "n 2 f"]

    def tiled(self, times: int) -> Rope:
        """The same rows again for each of ``times`` views."""
        return Rope(self.cos.repeat(times, 1, 1), self.sin.repeat(times, 1, 1))


def grid_positions(rows: int, columns: int, *, special: int, constant: bool = False) -> Int[Tensor, "n 2"]:
    """(y, x) of a picture's tokens: ``special`` tokens at (0, 0), patches from (1, 1); ``constant``: all at (1, 1)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    patches = torch.stack([y, x], -1).flatten(0, 1) + 1
    if constant:
        patches = torch.ones_like(patches)
    return torch.cat([torch.zeros(special, 2, dtype=patches.dtype), patches])


def rope_2d(positions: Int[Tensor, "n 2"], head_dim: int, *, base: float = 100.0) -> Rope:
    """RoPE of CroCo and VGGT: half of the channels turn with y, half with x, in halves (not interleaved).

    Frequencies base^(-2i/(head_dim/2)), i = 0 .. head_dim/4 - 1 (RoFormer, arXiv 2104.09864, eq. 15, per axis).
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary positions need head_dim % 4 == 0, not {head_dim}")
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    angles = positions[..., None].float() / base**exponents
    return Rope(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "b h n d"], rope: Rope) -> Float[Tensor, "b h n d"]:
    """Turn queries or keys by their tokens' angles."""
    cos, sin = rope.cos.to(x), rope.sin.to(x)
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(-3)


class Mlp(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, out or dim, bias=bias)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n e"]:
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12 x (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(torch.nn.functional.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned gain a channel."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention with one fused ``qkv`` projection, optional norms of queries and keys, optional rotation."""

    def __init__(self, dim: int, heads: int, *, bias: bool = True, qk_norm: QkNorm = "none", eps: float = 1e-5) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        norm = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}[qk_norm]
        size = (dim // heads,)
        self.q_norm = nn.Identity() if qk_norm == "none" else norm(size, eps=eps)
        self.k_norm = nn.Identity() if qk_norm == "none" else norm(size, eps=eps)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        *,
        rope: Rope | None = None,
        mask: Bool[Tensor, "n n"] | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "b n c"]:
        """``remember`` is a cache's door (`KVCache.filling` or `KVCache.stepping`); it sees normed, rotated keys."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if remember is not None:
            k, v = remember(k, v)
        return self.proj(attend(q, k, v, mask=mask).transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class BlockConfig:
    """One transformer block. ``hidden`` None: 4 x dim. ``scale`` None: no layer scale, else its start value."""

    dim: int
    heads: int
    hidden: int | None = None
    feed: Literal["mlp", "swiglu"] = "mlp"
    bias: bool = True
    scale: float | None = 1.0
    qk_norm: QkNorm = "none"
    eps: float = 1e-6
    qk_eps: float = 1e-5


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.hidden or 4 * config.dim
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = Attention(dim, config.heads, bias=config.bias, qk_norm=config.qk_norm, eps=config.qk_eps)
        self.ls1 = nn.Identity() if config.scale is None else LayerScale(dim, config.scale)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        feed = Mlp if config.feed == "mlp" else SwiGlu
        self.mlp = feed(dim, hidden, bias=config.bias)
        self.ls2 = nn.Identity() if config.scale is None else LayerScale(dim, config.scale)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        *,
        rope: Rope | None = None,
        mask: Bool[Tensor, "n n"] | None = None,
        remember: Remember | None = None,
    ) -> Float[Tensor, "b n c"]:
        x = x + self.ls1(self.attn(self.norm1(x), rope=rope, mask=mask, remember=remember))
        return feed_forward(self, x)


def feed_forward(block: Block, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """``x + ls2(mlp(norm2 x))``; without gradients in place, a few rows at a time: the same numbers in less memory."""
    if torch.is_grad_enabled():
        return x + block.ls2(block.mlp(block.norm2(x)))
    for rows in x.view(-1, x.shape[-1]).split(FEED_ROWS):
        rows += block.ls2(block.mlp(block.norm2(rows)))
    return x


class PatchEmbed(nn.Module):
    """Square patches to tokens, row by row."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        return self.proj(images).flatten(2).transpose(1, 2)
