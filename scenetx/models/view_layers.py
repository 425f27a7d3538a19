"""Blocks of the patch-wise view-synthesis transformers (LVSM, SVSM): no biases, normed queries and keys, patches.

A patch becomes a token in the order (row, column, channel), channel fastest, as LVSM's checkpoints expect.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.models.attention import attend
from scenetx.models.blocks import Blocks
from scenetx.models.layers import Mlp
from scenetx.models.prope import Place, Prope
from scenetx.models.rays import Rays, camera_rays

EPS = 1e-5


class SelfAttention(nn.Module):
    """Attention among one sequence's tokens; RMS-normed queries and keys a head (LVSM)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(dim // heads, eps=EPS)
        self.k_norm = nn.RMSNorm(dim // heads, eps=EPS)

    def forward(self, x: Float[Tensor, "b n c"], place: Place | None = None) -> Float[Tensor, "b n c"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if place is not None:
            q, k, v = place.query(q), place.stored(k), place.value(v)
        out = attend(q, k, v)
        if place is not None:
            out = place.answer(out)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention into another sequence whose keys and values are made once (`keys_values`) and kept."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(dim // heads, eps=EPS)
        self.k_norm = nn.RMSNorm(dim // heads, eps=EPS)

    def keys_values(
        self, z: Float[Tensor, "b m c"], place: Prope | None = None
    ) -> tuple[Float[Tensor, "b h m d"], Float[Tensor, "b h m d"]]:
        """What `forward` reads, normed and in place: it depends on ``z`` alone."""
        k, v = self.kv(z).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k = self.k_norm(k)
        return (k, v) if place is None else (place.stored(k), place.stored(v))

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        k: Float[Tensor, "b h m d"],
        v: Float[Tensor, "b h m d"],
        place: Prope | None = None,
    ) -> Float[Tensor, "b n c"]:
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        out = attend(q if place is None else place.query(q), k, v)
        if place is not None:
            out = place.answer(out)
        return self.proj(out.transpose(1, 2).flatten(2))


def norm(dim: int) -> nn.LayerNorm:
    """LayerNorm with a gain and no bias."""
    return nn.LayerNorm(dim, eps=EPS, bias=False)


class SelfBlock(nn.Module):
    """Pre-norm self-attention and MLP; branches times ``gain``."""

    def __init__(self, dim: int, heads: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.norm1, self.attn = norm(dim), SelfAttention(dim, heads)
        self.norm2, self.mlp = norm(dim), Mlp(dim, 4 * dim, bias=False)

    def forward(self, x: Float[Tensor, "b n c"], place: Place | None = None) -> Float[Tensor, "b n c"]:
        x = x + self.gain * self.attn(self.norm1(x), place)
        return x + self.gain * self.mlp(self.norm2(x))


def self_blocks(count: int, dim: int, heads: int, gain: float = 1.0) -> Blocks[SelfBlock]:
    """``count`` blocks of one shape."""
    return Blocks(SelfBlock(dim, heads, gain) for _ in range(count))


def initialise(model: nn.Module, std: float = 0.02) -> None:
    """Every weight matrix normal with ``std``, every gain one, every bias zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def padded(images: Float[Tensor, "n h w c"], patch: int) -> Float[Tensor, "n H W c"]:
    """Pictures made larger to the right and below, by their edge, until patches fit."""
    height, width = images.shape[1:3]
    down, right = -height % patch, -width % patch
    if not down and not right:
        return images
    grown = nn.functional.pad(images.permute(0, 3, 1, 2), (0, right, 0, down), mode="replicate")
    return grown.permute(0, 2, 3, 1)


def padded_rays(where: Cameras | Rays, patch: int) -> Rays:
    """A ray a pixel, and rays beyond the right and lower edge until patches fit (a camera's go on as they should)."""
    if isinstance(where, Cameras):
        height, width = where.height, where.width
        return camera_rays(replace(where, height=height + -height % patch, width=width + -width % patch))
    return Rays(padded(where.origins, patch), padded(where.directions, patch))


def patches(pixels: Float[Tensor, "n h w c"], patch: int) -> Float[Tensor, "n t p"]:
    """Squares of ``patch`` pixels as rows, channel fastest."""
    rows = pixels.unflatten(1, (-1, patch)).unflatten(3, (-1, patch))
    return rows.transpose(2, 3).flatten(3).flatten(1, 2)


def unpatched(rows: Float[Tensor, "n t p"], patch: int, height: int, width: int) -> Float[Tensor, "n h w c"]:
    """The inverse of `patches`, cut to ``height`` x ``width``."""
    down, across = -(-height // patch), -(-width // patch)
    pixels = rows.unflatten(1, (down, across)).unflatten(-1, (patch, patch, -1)).transpose(2, 3)
    return pixels.flatten(3, 4).flatten(1, 2)[:, :height, :width]
