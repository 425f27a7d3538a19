"""Rays of pinhole cameras and the ways view-synthesis models read them: Pluecker coordinates, octaves, a frame.

Directions are unit vectors in the frame of the cameras; the first pixel's centre is (0.5, 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from scenetx.core import Cameras, InputError
from scenetx.core.cameras import pixel_grid
from scenetx.core.rigid import invert_rigid

MEAN_FRAME_MARGIN = 1.35  # LVSM: the largest coordinate of a context camera becomes 1 / 1.35


@dataclass(frozen=True)
class Rays:
    """``n`` grids of rays: a ray is ``origin + t * direction``, directions of length 1."""

    origins: Float[Tensor, "n h w 3"]
    directions: Float[Tensor, "n h w 3"]

    def __len__(self) -> int:
        return len(self.origins)

    def to(self, like: torch.device | torch.dtype | str) -> Rays:
        return Rays(self.origins.to(like), self.directions.to(like))

    @property
    def pluecker(self) -> Float[Tensor, "n h w 6"]:
        """Moment ``origin x direction``, then direction: the same for every point of the line (LVSM's order)."""
        return torch.cat([torch.linalg.cross(self.origins, self.directions, dim=-1), self.directions], dim=-1)


def camera_rays(cameras: Cameras) -> Rays:
    """The ray through every pixel centre, in the frame ``world_from_cam`` leads to. Skew in K is honoured."""
    grid = pixel_grid(cameras.height, cameras.width, dtype=cameras.K.dtype).to(cameras.K.device)
    homogeneous = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=-1)
    in_world = cameras.world_from_cam[:, :3, :3] @ torch.linalg.inv(cameras.K)
    directions = normalize(torch.einsum("nij,hwj->nhwi", in_world, homogeneous), dim=-1)
    return Rays(cameras.centers[:, None, None].expand_as(directions), directions)


def octaves(x: Float[Tensor, "*batch d"], count: int, start: int = 0) -> Float[Tensor, "*batch c"]:
    """Sines, then cosines of ``2^k pi x`` for ``count`` octaves k from ``start``; octave fastest (SRT, NeRF eq. 4)."""
    multipliers = math.pi * 2.0 ** torch.arange(start, start + count, device=x.device, dtype=x.dtype)
    scaled = (x[..., None] * multipliers).flatten(-2)
    return torch.cat([scaled.sin(), scaled.cos()], dim=-1)


@dataclass(frozen=True)
class Frame:
    """Where a model sees ``b`` scenes: ``x_model = scale * (model_from_world @ x_world)``.

    It is found from context views only and kept by the scene's state, so that a picture decoded today does not depend
    on what is decoded tomorrow.
    """

    model_from_world: Float[Tensor, "b 4 4"]
    scale: Float[Tensor, "b"]

    def to(self, device: torch.device | str) -> Frame:
        return Frame(self.model_from_world.to(device), self.scale.to(device))

    def of_cameras(self, cameras: Cameras) -> Cameras:
        """World cameras (scene-major, equally many a scene) in the model's frame, float32.

        The motion is applied in float64: worlds may lie kilometres from their origin.
        """
        each = _each(cameras, len(self.scale))
        poses = cameras.world_from_cam.double().unflatten(0, (len(self.scale), each))
        poses = self.model_from_world.to(poses)[:, None] @ poses
        centers = poses[..., :3, 3:] * self.scale.to(poses)[:, None, None, None]
        poses = torch.cat([torch.cat([poses[..., :3, :3], centers], dim=-1), poses[..., 3:, :]], dim=-2)
        return replace(cameras, world_from_cam=poses.flatten(0, 1).float(), K=cameras.K.float())

    def of_rays(self, rays: Rays) -> Rays:
        """World rays in the model's frame, float32."""
        scenes = len(self.scale)
        motion = self.model_from_world.to(rays.origins.device).double().repeat_interleave(len(rays) // scenes, 0)
        rotation, shift = motion[:, None, None, :3, :3], motion[:, None, None, :3, 3]
        scale = self.scale.to(motion).repeat_interleave(len(rays) // scenes)[:, None, None, None]
        origins = (rotation @ rays.origins.double()[..., None])[..., 0] + shift
        directions = (rotation @ rays.directions.double()[..., None])[..., 0]
        return Rays((origins * scale).float(), directions.float())


def world_frame(scenes: int = 1) -> Frame:
    """The model sees the world as it is."""
    return Frame(torch.eye(4, dtype=torch.float64).repeat(scenes, 1, 1), torch.ones(scenes, dtype=torch.float64))


def first_frame(cameras: Cameras, scenes: int = 1) -> Frame:
    """The first camera of each scene is the world, in world units (SRT's canonical camera)."""
    _each(cameras, scenes)
    poses = cameras.world_from_cam.double().unflatten(0, (scenes, -1))
    return Frame(invert_rigid(poses[:, 0]), torch.ones(scenes, dtype=torch.float64, device=poses.device))


def mean_frame(cameras: Cameras, scenes: int = 1, *, margin: float = MEAN_FRAME_MARGIN) -> Frame:
    """Origin at the mean centre, axes from the mean forward and down, largest coordinate 1 / ``margin`` (LVSM).

    Cameras that coincide keep world units. Where the mean directions vanish or coincide (cameras all around), the first
    camera's axes are taken.
    """
    _each(cameras, scenes)
    poses = cameras.world_from_cam.double().unflatten(0, (scenes, -1))
    mean = poses.mean(1)
    forward = normalize(mean[:, :3, 2], dim=-1)
    right = torch.linalg.cross(mean[:, :3, 1], forward, dim=-1)
    sound = (right.norm(dim=-1) > 1e-6) & (mean[:, :3, 2].norm(dim=-1) > 1e-6)
    right = normalize(right, dim=-1)
    down = normalize(torch.linalg.cross(forward, right, dim=-1), dim=-1)
    axes = torch.stack([right, down, forward], dim=-1)
    axes = torch.where(sound[:, None, None], axes, poses[:, 0, :3, :3])
    world_from_model = mean.clone()
    world_from_model[:, :3, :3] = axes
    model_from_world = invert_rigid(world_from_model)
    inside = (model_from_world[:, None] @ poses)[..., :3, 3]
    largest = inside.abs().flatten(1).amax(-1)
    # Centres that differ by rounding only are one place: blowing them up would be noise.
    place = mean[:, :3, 3].abs().amax(-1).clamp_min(1.0)
    scale = torch.where(largest > 1e-9 * place, 1 / (margin * largest), torch.ones_like(largest))
    return Frame(model_from_world, scale)


def check_cameras(cameras: Cameras, what: str = "cameras") -> None:
    """InputError for a camera that is not rigid or whose intrinsics are not those of a pinhole."""
    poses, K = cameras.world_from_cam.detach().double(), cameras.K.detach().double()
    for index in range(len(cameras)):
        if not bool(K[index].isfinite().all()) or not bool((K[index].diagonal()[:2] > 0).all()):
            value = f"intrinsics of camera {index} are {_numbers(K[index])}"
            raise InputError(what, value, "give finite fx, fy > 0 and cx, cy in pixels")
        if not bool(poses[index].isfinite().all()):
            raise InputError(what, f"pose of camera {index} is not finite", "leave that view out")
        rotation = poses[index, :3, :3]
        off = float((rotation.T @ rotation - torch.eye(3).to(rotation)).abs().max())
        last = bool((poses[index, 3] == poses.new_tensor([0.0, 0, 0, 1])).all())
        if off > 1e-3 or float(torch.linalg.det(rotation)) <= 0 or not last:
            value = f"world_from_cam of camera {index} is not rigid (rotation off by {off:.3g})"
            raise InputError(what, value, "give a rotation (determinant +1), a translation and a last row 0 0 0 1")


def _numbers(K: Float[Tensor, "3 3"]) -> str:
    return ", ".join(
        f"{name} {float(K[i, j]):g}" for name, i, j in (("fx", 0, 0), ("fy", 1, 1), ("cx", 0, 2), ("cy", 1, 2))
    )


def _each(cameras: Cameras, scenes: int) -> int:
    """Cameras a scene."""
    each, rest = divmod(len(cameras), scenes)
    if rest or not each:
        raise ValueError(f"{len(cameras)} cameras cannot be shared out to {scenes} scenes")
    return each
