"""What training reads: some views of one scene, with cameras and whatever else is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from scenetx.core import Cameras
from scenetx.data.procedural import ProceduralViews


@dataclass(frozen=True)
class Sample:
    """``v`` views of one scene, all of one size. Cameras are OpenCV's, in any world frame and scale."""

    name: str
    rgb: UInt8[Tensor, "v h w 3"]
    world_from_cam: Float[Tensor, "v 4 4"]
    K: Float[Tensor, "v 3 3"]
    depth: Float[Tensor, "v h w"] | None = None  # z, world units, 0 = unknown
    normals: Float[Tensor, "v h w 3"] | None = None  # unit, camera's frame, towards the camera, 0 = unknown

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def cameras(self) -> Cameras:
        return Cameras(self.world_from_cam, self.K, self.rgb.shape[1], self.rgb.shape[2])

    def __getitem__(self, views: Sequence[int]) -> Sample:
        """The same scene with these views, in this order."""
        chosen = torch.as_tensor(list(views), dtype=torch.long)
        return Sample(
            self.name,
            self.rgb[chosen],
            self.world_from_cam[chosen],
            self.K[chosen],
            None if self.depth is None else self.depth[chosen],
            None if self.normals is None else self.normals[chosen],
        )

    def fitted(self, height: int, width: int) -> Sample:
        """The middle of every view at ``height`` x ``width``: resized to cover it, then cut. Depth: nearest values."""
        h, w = self.rgb.shape[1:3]
        if (h, w) == (height, width):
            return self
        scale = max(height / h, width / w)
        tall, wide = max(height, round(h * scale)), max(width, round(w * scale))
        top, left = (tall - height) // 2, (wide - width) // 2
        rgb = interpolate(
            self.rgb.permute(0, 3, 1, 2).float(), (tall, wide), mode="bilinear", antialias=True, align_corners=False
        )
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        cameras = self.cameras.resized(tall, wide).cropped(top, left, height, width)
        nearest = [
            None if plane is None else nearest_size(plane, tall, wide)[window] for plane in (self.depth, self.normals)
        ]
        pixels = rgb.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)[window].contiguous()
        return Sample(self.name, pixels, cameras.world_from_cam, cameras.K, nearest[0], nearest[1])


def nearest_size(plane: Tensor, height: int, width: int) -> Tensor:
    """Every view's plane (``[v h w ...]``) at another size, without blending values across edges."""
    rows = ((torch.arange(height) + 0.5) * plane.shape[1] / height).long()
    columns = ((torch.arange(width) + 0.5) * plane.shape[2] / width).long()
    return plane[:, rows][:, :, columns]


def procedural_samples(views: ProceduralViews, names: Sequence[str]) -> list[Sample]:
    """The scenes of a procedural batch, one by one."""
    return [
        Sample(
            name, views.rgb[k], views.world_from_cam[k], views.K[k], views.depth[k], views.normals[k]
        )
        for k, name in enumerate(names)
    ]  # fmt: skip
