"""A small textured scene with exact cameras: balls before a wall, cast ray by ray."""

import torch
from torch import Tensor

from scenetx.core import Cameras
from scenetx.core.cameras import look_at
from scenetx.models.rays import camera_rays


def ring(n: int, height: int = 16, width: int = 16, *, seed: int = 0, spread: float = 0.6) -> Cameras:
    """Cameras about the origin, each with its own focal length and principal point."""
    generator = torch.Generator().manual_seed(seed)
    eye = torch.tensor([0.0, 0.0, -3.0]) + spread * (2 * torch.rand(n, 3, generator=generator) - 1)
    world_from_cam = look_at(eye, torch.zeros(3), torch.tensor([0.0, -1.0, 0.0]))
    K = torch.eye(3).repeat(n, 1, 1)
    size = max(height, width)
    K[:, 0, 0] = K[:, 1, 1] = size * (1.1 + 0.2 * torch.rand(n, generator=generator))
    K[:, 0, 2] = width / 2 + torch.rand(n, generator=generator)
    K[:, 1, 2] = height / 2 - torch.rand(n, generator=generator)
    return Cameras(world_from_cam, K, height, width)


def picture(cameras: Cameras, shift: float = 0.0) -> Tensor:
    """[n h w 3] in [0, 1]; ``shift`` moves the balls sideways."""
    rays = camera_rays(cameras)
    origins, directions = rays.origins, rays.directions
    t = (1.5 - origins[..., 2]) / directions[..., 2].clamp_min(1e-3)
    point = origins + t[..., None] * directions
    colour = 0.5 + 0.4 * torch.sin(2.0 * point + torch.tensor([0.0, 1.0, 2.0]))
    for center, radius, paint in (((-0.4, 0.1, 0.0), 0.5, (0.9, 0.3, 0.2)), ((0.5, -0.2, 0.4), 0.4, (0.2, 0.5, 0.9))):
        middle = torch.tensor(center) + torch.tensor([shift, 0.0, 0.0])
        offset = origins - middle
        b = (offset * directions).sum(-1)
        square = b.square() - offset.square().sum(-1) + radius**2
        hit = -b - square.clamp_min(0).sqrt()
        normal = (offset + hit[..., None] * directions) / radius
        light = (0.6 - 0.4 * normal[..., 2:]).clamp(0, 1)
        colour = torch.where((square > 0)[..., None], torch.tensor(paint) * light, colour)
    return colour.clamp(0, 1)
