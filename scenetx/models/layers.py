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

# Tokens a block takes at once without gradients, wherever one token does not concern another: what it makes of them in
# between (normed and turned copies, the hidden layer) is many times as large as they are. A GPU wants larger pieces.
ROWS, ROWS_GPU = 2048, 16384


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of a 2-D rotary embedding, one row a token: axis 0 is y, axis 1 is x."""

    cos: Float[Tensor, "n 2 f"]
    sin: Float[Tensor, "n 2 f"]

    def rows(self, which: slice) -> Rope:
        """Of some of the tokens."""
        return Rope(self.cos[which], self.sin[which])

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
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=positions.device) / (head_dim // 2)
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

    def heads_of(self, x: Float[Tensor, "b n c"], rope: Rope | None) -> list[Float[Tensor, "b h n d"]]:
        """Queries, keys (both normed, then turned) and values."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        return [q, k, v] if rope is None else [rotate(q, rope), rotate(k, rope), v]


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
        """``remember`` is a cache's door (`KVCache.filling` or `KVCache.stepping`); it sees normed, turned keys."""
        q, k, v = _heads_of(self, x, rope)
        if remember is not None:
            k, v = remember(k, v)
        seen = attend(q, k, v, mask=mask).transpose(1, 2).flatten(2)
        del q, k, v
        if torch.is_grad_enabled():
            x = x + self.ls1(self.attn.proj(seen))
            return x + self.ls2(self.mlp(self.norm2(x)))
        return _fed(self, x, seen.contiguous())


def _rows(x: Tensor) -> int:
    return ROWS if x.device.type == "cpu" else ROWS_GPU


def _heads_of(block: Block, x: Float[Tensor, "b n c"], rope: Rope | None) -> list[Float[Tensor, "b h n d"]]:
    """Queries, keys and values; without gradients written into place, some tokens at a time."""
    size = max(1, _rows(x) // len(x))
    if torch.is_grad_enabled() or x.shape[1] <= 2 * size:
        return block.attn.heads_of(block.norm1(x), rope)
    whole: list[Tensor] = []
    for start in range(0, x.shape[1], size):
        rows = slice(start, start + size)
        parts = block.attn.heads_of(block.norm1(x[:, rows]), rope and rope.rows(rows))
        whole = whole or [p.new_empty(*p.shape[:2], x.shape[1], p.shape[3]) for p in parts]
        for place, part in zip(whole, parts, strict=True):
            place[:, :, rows] = part
    return whole


def _fed(block: Block, x: Float[Tensor, "b n c"], seen: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """The rest of a block after attention, without gradients: the same numbers some rows at a time, into ``seen``."""
    out = seen if seen.dtype == x.dtype else torch.empty_like(x)
    before, attended, after = (each.view(-1, x.shape[-1]).split(_rows(x)) for each in (x.contiguous(), seen, out))
    for old, rows, new in zip(before, attended, after, strict=True):
        y = old + block.ls1(block.attn.proj(rows))
        y += block.ls2(block.mlp(block.norm2(y)))
        new.copy_(y)
    return out


class PatchEmbed(nn.Module):
    """Square patches to tokens, row by row."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
