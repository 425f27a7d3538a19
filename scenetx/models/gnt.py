"""GNT: novel views by attention along epipolar lines (Varma et al., ICLR 2023, arXiv 2207.13298), with mixtures of view
experts (GNT-MOVE: Cong et al., ICCV 2023, arXiv 2308.11793).

The geometry-biased counterpart of the set and patch models: a target ray is sampled in depth, every sample looks itself
up in the context views (where the epipolar line passes), a view transformer weighs the views, a ray transformer weighs
the samples. Nothing about the scene is kept but the views' features, so adding or dropping a view costs that view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

from scenetx.core import Cameras
from scenetx.models.attention import attend
from scenetx.models.blocks import Blocks
from scenetx.models.layers import Mlp
from scenetx.models.rays import Frame, mean_frame, octaves
from scenetx.models.view_model import Inputs, ViewModel, Views, Where

LN_EPS = 1e-6


@dataclass(frozen=True)
class GntConfig:
    """The published width and depth. ``near`` and ``far`` are in model units: 1.35 = the spread of the cameras."""

    dim: int = 64
    heads: int = 4
    layers: int = 8
    features: int = 32
    samples: int = 64
    near: float = 0.5
    far: float = 40.0
    experts: int = 4
    """Experts of each view transformer's MLP (GNT-MOVE); 1 = a plain MLP (GNT)."""
    chosen: int = 2
    """Experts that see a token."""
    rays_at_once: int = 2048


class Features(nn.Module):
    """Pictures to feature maps of the same size: two scales, seen twice as wide and put back together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), nn.GELU(), nn.Conv2d(width, width, 3, 1, 1), nn.GELU())
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, 1), nn.GELU(), nn.Conv2d(width, width, 3, 1, 1), nn.GELU()
        )
        self.join = nn.Conv2d(2 * width, width, 1)

    def forward(self, images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n h w c"]:
        size = images.shape[1:3]
        fine = self.fine(2 * images.permute(0, 3, 1, 2) - 1)
        coarse = interpolate(self.coarse(fine), size=fine.shape[2:], mode="bilinear", align_corners=False)
        joined = interpolate(self.join(torch.cat([fine, coarse], 1)), size=size, mode="bilinear", align_corners=False)
        return joined.permute(0, 2, 3, 1)


class ViewExperts(nn.Module):
    """A few MLPs of which each token asks the ``chosen`` best for it, beside one that everybody asks."""

    def __init__(self, dim: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.chosen = min(chosen, experts)
        self.always = Mlp(dim, 4 * dim)
        self.gate = nn.Linear(dim, experts, bias=False) if experts > 1 else None
        self.experts: Blocks[Mlp] = Blocks(Mlp(dim, 4 * dim) for _ in range(experts if experts > 1 else 0))

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        out = self.always(x)
        if self.gate is None:
            return out
        rows = x.flatten(0, -2)
        best, which = self.gate(rows).topk(self.chosen, dim=-1)
        weights = best.softmax(-1)
        mixed = torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            row, place = (which == index).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, row, weights[row, place, None] * expert(rows[row]))
        return (out + mixed.view_as(out)) / 2


class ViewTransformer(nn.Module):
    """A sample asks the views: attention by subtraction, a weight a channel (GNT, section 3.2)."""

    def __init__(self, config: GntConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=LN_EPS), nn.LayerNorm(dim, eps=LN_EPS)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.turn = nn.Sequential(nn.Linear(4, dim // 8), nn.ReLU(), nn.Linear(dim // 8, dim))
        self.weigh = nn.Sequential(nn.Linear(dim, dim // 8), nn.ReLU(), nn.Linear(dim // 8, dim))
        self.proj = nn.Linear(dim, dim)
        self.mlp = ViewExperts(dim, config.experts, config.chosen)

    def forward(
        self,
        x: Float[Tensor, "r s c"],
        seen: Float[Tensor, "r s v c"],
        angles: Float[Tensor, "r s v 4"],
        visible: Bool[Tensor, "r s v"],
    ) -> Float[Tensor, "r s c"]:
        k = self.k(seen)
        turned = self.turn(angles)
        scores = self.weigh(k - self.q(self.norm1(x))[:, :, None] + turned)
        weights = scores.masked_fill(~visible[..., None], -1e9).softmax(dim=2)
        x = x + self.proj(((self.v(k) + turned) * weights).sum(2))
        return x + self.mlp(self.norm2(x))


class RayTransformer(nn.Module):
    """The samples of a ray look at each other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=LN_EPS), nn.LayerNorm(dim, eps=LN_EPS)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "r s c"]) -> Float[Tensor, "r s c"]:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Gnt(ViewModel):
    """Epipolar attention. Values may leave [0, 1]."""

    name: ClassVar[str] = "gnt"

    def __init__(self, config: GntConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or GntConfig()
        self.features = Features(c.features)
        self.enter = nn.Sequential(nn.Linear(c.features + 3, c.dim), nn.ReLU(), nn.Linear(c.dim, c.dim))
        self.place = nn.Linear(c.dim + 6 * 10 + 6 * 4, c.dim)
        self.across: Blocks[ViewTransformer] = Blocks(ViewTransformer(c) for _ in range(c.layers))
        self.along: Blocks[RayTransformer] = Blocks(RayTransformer(c.dim, c.heads) for _ in range(c.layers))
        self.norm, self.colour = nn.LayerNorm(c.dim), nn.Linear(c.dim, 3)

    def frame_of(self, cameras: Cameras, scenes: int) -> Frame:
        return mean_frame(cameras, scenes)

    def tokenise(self, views: Views) -> Inputs:
        """A pixel's colour and features are a token."""
        cameras = views.cameras
        assert cameras is not None
        shape = (views.scenes, views.each)
        pixels = torch.cat([views.images, self.features(views.images)], dim=-1)
        size = torch.tensor([cameras.height, cameras.width], device=pixels.device).expand(*shape, 2)
        poses = {
            "cam_from_world": cameras.cam_from_world.unflatten(0, shape),
            "K": cameras.K.unflatten(0, shape),
            "size": size,
        }
        tokens = {"pixels": pixels.flatten(1, 2).unflatten(0, shape).flatten(1, 2)}
        return Inputs((cameras.height * cameras.width,) * views.each, tokens, poses)

    def remember(self, inputs: Inputs) -> dict[str, Tensor]:
        """The views as they are."""
        return {**inputs.tokens, **inputs.poses}

    def paint(self, memory: Mapping[str, Tensor], where: Where, scenes: int) -> Float[Tensor, "n h w 3"]:
        rays = self.rays_of(where)
        origins = rays.origins.reshape(scenes, -1, 3)
        directions = rays.directions.reshape(scenes, -1, 3)
        painted = []
        for scene in range(scenes):
            mine = {name: value[scene] for name, value in memory.items()}
            size = self.config.rays_at_once
            parts = zip(origins[scene].split(size), directions[scene].split(size), strict=True)
            painted.append(torch.cat([self._rays(o, d, mine) for o, d in parts]))
        return torch.stack(painted).reshape(rays.origins.shape)

    def _rays(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], memory: Mapping[str, Tensor]
    ) -> Float[Tensor, "r 3"]:
        c = self.config
        # Even steps in 1 / depth: a step is then about one pixel along the epipolar line.
        inverse = torch.linspace(1 / c.near, 1 / c.far, c.samples, device=origins.device, dtype=origins.dtype)
        points = origins[:, None] + directions[:, None] / inverse[:, None]
        seen, visible = look_up(points, memory)
        angles = _angles(points, directions, memory["cam_from_world"])
        seen = self.enter(seen)
        x = seen.masked_fill(~visible[..., None], -1e9).amax(2)
        x = torch.where(visible.any(-1)[..., None], x, torch.zeros_like(x))
        # Depth counts on a scale that the samples share: far points would leave the octaves' range.
        contracted = points / (1 + points.norm(dim=-1, keepdim=True))
        there = octaves(contracted, 10)
        towards = octaves(directions, 4)[:, None].expand(-1, c.samples, -1)
        for index, (across, along) in enumerate(zip(self.across, self.along, strict=True)):
            x = across(x, seen, angles, visible)
            if index == 0:
                x = self.place(torch.cat([x, there, towards], dim=-1))
            x = along(x)
        return self.colour(self.norm(x).mean(1))


def look_up(
    points: Float[Tensor, "r s 3"], memory: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "r s v c"], Bool[Tensor, "r s v"]]:
    """What every context view shows where points fall, bilinearly, and whether they fall into it."""
    seen, visible, start = [], [], 0
    for cam_from_world, K, size in zip(memory["cam_from_world"], memory["K"], memory["size"], strict=True):
        height, width = int(size[0]), int(size[1])
        picture = memory["pixels"][start : start + height * width].unflatten(0, (height, width))
        start += height * width
        in_cam = points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        depth = in_cam[..., 2:]
        pixel = (in_cam @ K.T)[..., :2] / depth.clamp_min(1e-6)
        unit = 2 * pixel / pixel.new_tensor([width, height]) - 1
        values = grid_sample(picture.permute(2, 0, 1)[None], unit[None], padding_mode="border", align_corners=False)
        seen.append(values[0].permute(1, 2, 0))
        visible.append((depth[..., 0] > 1e-6) & (unit.abs() <= 1).all(-1))
    return torch.stack(seen, dim=2), torch.stack(visible, dim=2)


def _angles(
    points: Float[Tensor, "r s 3"], directions: Float[Tensor, "r 3"], cam_from_world: Float[Tensor, "v 4 4"]
) -> Float[Tensor, "r s v 4"]:
    """Target direction less each view's direction to the point, made unit length, and their cosine (IBRNet)."""
    centers = -(cam_from_world[:, :3, :3].transpose(1, 2) @ cam_from_world[:, :3, 3:])[..., 0]
    towards = nn.functional.normalize(points[:, :, None] - centers, dim=-1)
    mine = directions[:, None, None].expand_as(towards)
    difference = mine - towards
    length = difference.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()
    return torch.cat([difference / length, (mine * towards).sum(-1, keepdim=True)], dim=-1)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our own names; the published GNT weights belong to another feature network and are not read."""
    return dict(tensors)


PRESETS = {"move": GntConfig(), "plain": GntConfig(experts=1)}
