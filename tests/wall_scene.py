"""Pictures of a finely textured wall with exact depth: what stereo can see."""

import torch
from view_scenes import ring

from scenetx.core import Original, Points, View, unproject
from scenetx.models.pixel_splats import pixel_points


def textured(views: int = 5, height: int = 48, width: int = 64) -> tuple[list[View], torch.Tensor, Points]:
    """Cameras before a wall at z = 1.5 with fine texture; the exact depth, and sparse points on it."""
    cameras = ring(views, height, width, seed=3, spread=0.5)
    ray = pixel_points(torch.ones(views, height, width), cameras)
    center = cameras.centers[:, None, None]
    depth = (1.5 - center[..., 2]) / (ray - center)[..., 2]
    where = center + (ray - center) * depth[..., None]
    waves = torch.tensor([[7.0, 3.0], [-4.0, 9.0], [13.0, -6.0], [5.0, 17.0]])
    color = 0.5 + 0.12 * torch.sin(where[..., :2] @ waves.T).sum(-1, keepdim=True).expand(-1, -1, -1, 3)
    shots = [
        View(
            f"{i}.png",
            color[i].clamp(0, 1).mul(255).round().byte(),
            Original(f"{i}.png", height, width),
            camera=cameras[i],
        )
        for i in range(views)
    ]
    spots = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([width, height])
    column, row = spots.long().unbind(-1)
    found = unproject(spots[None], depth[0, row, column][None], cameras[0])[0]
    # A little depth of field, or the range would be a single plane.
    far = found + torch.tensor([0.0, 0.0, 1.0])
    return shots, depth, Points(torch.cat([found, far]), torch.zeros(400, 3, dtype=torch.uint8))
