"""Batched pinhole cameras of one picture size. Lenses are straightened at the door (`scenetx.io`), never in here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.rigid import invert_rigid


@dataclass(frozen=True)
class Cameras:
    """``n`` pinhole cameras; ``K`` in pixels of a ``height`` x ``width`` picture, first pixel centre (0.5, 0.5)."""

    world_from_cam: Float[Tensor, "n 4 4"]
    K: Float[Tensor, "n 3 3"]
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.world_from_cam.ndim != 3 or self.K.ndim != 3 or len(self.K) != len(self.world_from_cam):
            shapes = f"{tuple(self.world_from_cam.shape)} and {tuple(self.K.shape)}"
            raise ValueError(f"cameras: world_from_cam and K must be [n 4 4] and [n 3 3], not {shapes}")

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> Cameras:
        """A batch again, also for a single index."""
        if isinstance(index, int):
            index = [index]
        return replace(self, world_from_cam=self.world_from_cam[index], K=self.K[index])

    @property
    def cam_from_world(self) -> Float[Tensor, "n 4 4"]:
        return invert_rigid(self.world_from_cam)

    @property
    def centers(self) -> Float[Tensor, "n 3"]:
        """Optical centres in the world."""
        return self.world_from_cam[:, :3, 3]

    @property
    def forward(self) -> Float[Tensor, "n 3"]:
        """Unit viewing directions (+z of each camera) in the world."""
        return self.world_from_cam[:, :3, 2]

    def to(self, like: torch.device | torch.dtype | str) -> Cameras:
        return replace(self, world_from_cam=self.world_from_cam.to(like), K=self.K.to(like))

    def resized(self, height: int, width: int) -> Cameras:
        """The same cameras for the picture resampled to ``height`` x ``width`` (corners fixed, as all resizers do)."""
        scale = self.K.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, K=self.K * scale[:, None], height=height, width=width)

    def cropped(self, top: int, left: int, height: int, width: int) -> Cameras:
        """The same cameras for a crop of the picture."""
        shift = self.K.new_tensor([[0, 0, left], [0, 0, top], [0, 0, 0]])
        return replace(self, K=self.K - shift, height=height, width=width)

    @staticmethod
    def cat(parts: list[Cameras]) -> Cameras:
        """One batch from several of equal picture size."""
        sizes = {(part.height, part.width) for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"cameras: a batch has one picture size, got {sorted(sizes)}")
        world_from_cam = torch.cat([part.world_from_cam for part in parts])
        return replace(parts[0], world_from_cam=world_from_cam, K=torch.cat([part.K for part in parts]))


def project(points: Float[Tensor, "p 3"], cameras: Cameras) -> tuple[Float[Tensor, "n p 2"], Float[Tensor, "n p"]]:
    """Pixels and z-depths of world points in every camera. Pixels mean nothing where depth <= 0."""
    cam_from_world = cameras.cam_from_world
    in_cam = points @ cam_from_world[:, :3, :3].transpose(-1, -2) + cam_from_world[:, None, :3, 3]
    homogeneous = in_cam @ cameras.K.transpose(-1, -2)
    return homogeneous[..., :2] / homogeneous[..., 2:], in_cam[..., 2]


def unproject(pixels: Float[Tensor, "n p 2"], depth: Float[Tensor, "n p"], cameras: Cameras) -> Float[Tensor, "n p 3"]:
    """World points seen at ``pixels`` at z-depth ``depth``: the inverse of `project`."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    rays = homogeneous @ torch.linalg.inv(cameras.K).transpose(-1, -2)
    rotation = cameras.world_from_cam[:, :3, :3]
    return (rays * depth[..., None]) @ rotation.transpose(-1, -2) + cameras.centers[:, None]


def focal_and_center(K: Float[Tensor, "3 3"]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a pinhole's intrinsics."""
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def pixel_grid(height: int, width: int, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "h w 2"]:
    """Pixel centres (x, y)."""
    y = torch.arange(height, dtype=dtype) + 0.5
    x = torch.arange(width, dtype=dtype) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def look_at(
    eye: Float[Tensor, "n 3"], target: Float[Tensor, "3"] | Float[Tensor, "n 3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "n 4 4"]:
    """``world_from_cam`` at ``eye`` looking at ``target``, picture up along ``up`` as far as possible."""
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    right = torch.linalg.cross(forward, up.expand_as(forward), dim=-1)
    # Looking along `up` leaves the roll free: any right-hand direction will do, so take one that is not parallel.
    spare = torch.linalg.cross(forward, up.roll(1).expand_as(forward), dim=-1)
    right = torch.where(right.norm(dim=-1, keepdim=True) > 1e-6, right, spare)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)
    out = torch.eye(4, dtype=eye.dtype).repeat(len(eye), 1, 1)
    out[:, :3, :] = torch.stack([right, down, forward, eye], dim=-1)
    return out
