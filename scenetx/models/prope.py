"""PRoPE: cameras as relative positions in attention (Li et al., arXiv 2507.10496).

Half of a head's channels, in groups of four, go through the 4 x 4 projection of the token's camera; the other half
turns with the token's place in its picture. A score then depends on two cameras only through ``P_i P_j^-1``, so the
world frame drops out, and keys and values can be stored transformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.core import Cameras
from scenetx.core.rigid import invert_rigid
from scenetx.models.layers import Rope, rope_2d, rotate


def projections(cameras: Cameras) -> Float[Tensor, "n 4 4"]:
    """``lift(K_normalised) @ cam_from_world``: pixels as fractions of the picture, its middle at 0."""
    K = torch.zeros_like(cameras.world_from_cam)
    size = K.new_tensor([cameras.width, cameras.height])
    K[:, :2, :2] = cameras.K[:, :2, :2] / size[:, None]
    K[:, :2, 2] = cameras.K[:, :2, 2] / size - 0.5
    K[:, 2, 2] = K[:, 3, 3] = 1
    return K @ invert_rigid(cameras.world_from_cam)


@runtime_checkable
class Place(Protocol):
    """Where a sequence's tokens are, as attention asks for it: queries, keys and values in, the answer out."""

    def query(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]: ...
    def stored(self, k: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]: ...
    def value(self, v: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]: ...
    def answer(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]: ...


@dataclass(frozen=True)
class Turned:
    """Places within a picture only: queries and keys turn (2-D RoPE), values stay as they are."""

    rope: Rope

    @staticmethod
    def of(grid: Int[Tensor, "n 2"], head_dim: int, device: torch.device | str = "cpu") -> Turned:
        """Raises ValueError for a head dimension that is not a multiple of 4."""
        rope = rope_2d(grid.cpu(), head_dim)
        return Turned(Rope(rope.cos.to(device), rope.sin.to(device)))

    def query(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        return rotate(q, self.rope)

    def stored(self, k: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        return rotate(k, self.rope)

    def value(self, v: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        return v

    def answer(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        return out


@dataclass(frozen=True)
class Prope:
    """The places of a sequence's tokens: ``sizes`` tokens of each of ``v`` cameras, and each token's (y, x) patch.

    Two sequences meet as ``attend(a.query(q), b.stored(k), b.stored(v))`` followed by ``a.answer``.
    """

    projection: Float[Tensor, "b v 4 4"]
    inverse: Float[Tensor, "b v 4 4"]
    sizes: tuple[int, ...]
    rope: Rope

    @staticmethod
    def of(
        projection: Float[Tensor, "b v 4 4"], sizes: tuple[int, ...], grid: Int[Tensor, "n 2"], head_dim: int
    ) -> Prope:
        """Raises ValueError for a head dimension that is not a multiple of 8."""
        if head_dim % 8:
            raise ValueError(f"relative cameras need head_dim % 8 == 0, not {head_dim}")
        rope = rope_2d(grid.cpu(), head_dim // 2)
        rope = Rope(rope.cos.to(projection.device), rope.sin.to(projection.device))
        return Prope(projection, torch.linalg.inv(projection.float()), sizes, rope)

    def query(self, q: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """``P^T q``."""
        return self._apply(q, self.projection.transpose(-1, -2), self.rope)

    def stored(self, k: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """``P^-1 k``, and the same for values."""
        return self._apply(k, self.inverse, self.rope)

    def value(self, v: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """As keys."""
        return self.stored(v)

    def answer(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """``P out``, turned back."""
        return self._apply(out, self.projection, Rope(self.rope.cos, -self.rope.sin))

    def _apply(
        self, x: Float[Tensor, "b h n d"], matrix: Float[Tensor, "b v 4 4"], rope: Rope
    ) -> Float[Tensor, "b h n d"]:
        half = x.shape[-1] // 2
        seen, placed = x[..., :half], rotate(x[..., half:], rope)
        return torch.cat([_times(seen, matrix, self.sizes), placed], dim=-1)


def _times(
    x: Float[Tensor, "b h n c"], matrix: Float[Tensor, "b v 4 4"], sizes: tuple[int, ...]
) -> Float[Tensor, "b h n c"]:
    """Groups of four channels through their camera's matrix."""
    turned = matrix.to(x.dtype).transpose(-1, -2)
    if len(set(sizes)) == 1:
        rows = x.unflatten(-1, (-1, 4)).unflatten(2, (len(sizes), -1))
        rows = rows.flatten(3, 4)  # b h v (tokens groups) 4: one small product a view
        return (rows @ turned[:, None]).reshape(x.shape)
    parts = x.split(list(sizes), dim=2)
    return torch.cat(
        [_times(part, matrix[:, i : i + 1], (size,)) for i, (part, size) in enumerate(zip(parts, sizes, strict=True))],
        2,
    )
