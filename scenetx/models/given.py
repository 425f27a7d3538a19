"""What a user may know of the pictures before a model looks at them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import Cameras
from scenetx.core.cameras import pixel_grid


@dataclass(frozen=True)
class Given:
    """Known of all ``n`` pictures of a map; each may be None. depth: z, 0 = unknown. metric: lengths are metres."""

    K: Float[Tensor, "n 3 3"] | None = None
    world_from_cam: Float[Tensor, "n 4 4"] | None = None
    depth: Float[Tensor, "n h w"] | None = None
    metric: bool = True

    @staticmethod
    def of(
        cameras: Cameras | None,
        K: Float[Tensor, "n 3 3"] | None,
        depth: Float[Tensor, "m h w"] | None,
        *,
        metric: bool = True,
    ) -> Given:
        """Cameras bring poses and intrinsics; ``K`` alone brings intrinsics."""
        if cameras is not None and K is None:
            K = cameras.K
        world_from_cam = None if cameras is None else cameras.world_from_cam.float()
        return Given(None if K is None else K.float(), world_from_cam, None if depth is None else depth.float(), metric)


def slopes(K: Float[Tensor, "n 3 3"], size: tuple[int, int]) -> Float[Tensor, "n h w 2"]:
    """x/z and y/z of every pixel's ray in its camera."""
    pixels = pixel_grid(size[0], size[1]).to(K)
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    return torch.einsum("nij,hwj->nhwi", torch.linalg.inv(K), homogeneous)[..., :2]
