"""A learned head that turns any depth (or pointmap) and any geometry model's tokens into pixel-aligned Gaussians.

Position on the pixel's ray, moved by a bounded share of a pixel and of the depth; size a bounded number of pixel
footprints (pixelSplat, arXiv 2312.12337, which ties it to depth and focal length in this way); rotation and
view-dependent colour in the camera's frame, turned into the world; opacity with a bias; a confidence by which Gaussians
are dropped and merged across views (AnySplat, arXiv 2505.23716). An untrained head gives the plain lifted Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from scenetx.core import Cameras, Gaussians, InputError
from scenetx.core.gaussians import SH_C0, rotate_sh
from scenetx.core.rigid import quat_from_rotation, rotation_from_quat
from scenetx.models.dense_head import Pyramid, ResidualUnit
from scenetx.models.pixel_splats import PIXEL, confident, footprint, merged, pixel_points

GROUPS = (2, 1, 3, 4, 1, 1)


@dataclass(frozen=True)
class SplatHeadConfig:
    """What the head reads and how far it may go.

    kind: "conv" reads pictures and depth; "dpt" also four layers of tokens of ``dim`` channels. extra: channels of
    what else whoever found the depth says of each pixel. least, most: standard deviation in pixel footprints;
    shift: of the position, in pixels; stretch: of the depth, as a share of it.
    """

    kind: Literal["conv", "dpt"] = "conv"
    dim: int = 384
    widths: tuple[int, int, int, int] = (48, 96, 192, 384)
    features: int = 64
    layers: int = 3
    extra: int = 0
    sh_degree: int = 1
    least: float = 0.1
    most: float = 8.0
    shift: float = 0.5
    stretch: float = 0.1
    opacity_bias: float = 2.2  # logit: 0.9

    def __post_init__(self) -> None:
        if not 0 < self.least < PIXEL < self.most or not 0 <= self.sh_degree <= 3:
            shown = (self.least, self.most, self.sh_degree)
            raise InputError("splat head least, most, sh_degree", shown, f"use 0 < least < {PIXEL} < most, degree 0-3")


@dataclass(frozen=True)
class PixelSplats:
    """One Gaussian a pixel, (view, row, column), how sure each is, and where the cameras were."""

    gaussians: Gaussians
    confidence: Float[Tensor, "g"]
    eyes: Float[Tensor, "n 3"]

    def scene(self, most: int, *, drop: float = 0.1) -> Gaussians:
        """The surest merged across views into at most ``most``; ``drop``: share of the least sure that is left out."""
        kept = confident(self.confidence, drop) & self.gaussians.finite()
        return merged(self.gaussians[kept], self.confidence[kept], self.eyes, most)


class SplatHead(nn.Module):
    """Pictures, cameras and depth (and tokens) to `PixelSplats`."""

    def __init__(self, config: SplatHeadConfig | None = None) -> None:
        super().__init__()
        self.config: SplatHeadConfig = config or SplatHeadConfig()
        c = self.config
        self.pixels = nn.Conv2d(7 + c.extra, c.features, 3, padding=1)
        if c.kind == "dpt":
            self.pyramid = Pyramid(c.dim, c.widths, c.features)
            self.pyramid.add_fusion(c.features, relu_skip=False)
        self.mix = nn.Sequential(*[ResidualUnit(c.features, relu_skip=False) for _ in range(c.layers)])
        self.last = nn.Conv2d(c.features, sum(GROUPS) + 3 * (c.sh_degree + 1) ** 2, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        images: Float[Tensor, "n h w 3"],
        depth: Float[Tensor, "n h w"],
        cameras: Cameras,
        *,
        points: Float[Tensor, "n h w 3"] | None = None,
        tokens: Sequence[Float[Tensor, "n t c"]] | None = None,
        grid: tuple[int, int] | None = None,
        extra: Float[Tensor, "n e h w"] | None = None,
    ) -> PixelSplats:
        """Gaussians in the frame of ``cameras`` (given or the model's own: unposed pictures take the latter).

        images: sRGB in [0, 1]. depth: z, above 0. points: the model's pointmap in the same frame; it then says where
        the pixels are, and depth only how large. tokens: four layers' patch tokens with their ``grid`` (kind "dpt").
        extra: of the config's number. Raises InputError for depth that is not above 0, or tokens or extra channels that
        do not belong to the config.
        """
        if not bool((depth > 0).all()) or not bool(depth.isfinite().all()):
            raise InputError("splat head depth", "holds values that are not above 0", "fill it first, or mask pixels")
        if (self.config.kind == "dpt") != (tokens is not None and grid is not None):
            raise InputError("splat head", f"kind {self.config.kind!r}, tokens {tokens is not None}", "match the two")
        if self.config.extra != (0 if extra is None else extra.shape[1]):
            shown = f"{0 if extra is None else extra.shape[1]} extra channels"
            raise InputError("splat head", shown, f"give the {self.config.extra} of its config")
        seen = self._input(images, depth, cameras)
        x = self.pixels(seen if extra is None else torch.cat([seen, extra], 1))
        if tokens is not None and grid is not None:
            x = x + self._from_tokens(tokens, grid, images.shape[1], images.shape[2])
        raw = self.last(self.mix(x)).permute(0, 2, 3, 1)
        return self._activated(raw, images, depth, cameras, points)

    def _input(
        self, images: Float[Tensor, "n h w 3"], depth: Float[Tensor, "n h w"], cameras: Cameras
    ) -> Float[Tensor, "n 7 h w"]:
        """Picture, log depth over its median, ray in the camera's frame: nothing depends on the world's unit."""
        middle = depth.flatten(1).median(1).values[:, None, None]
        still = replace(cameras, world_from_cam=torch.eye(4).to(depth).expand(len(depth), 4, 4))
        rays = normalize(pixel_points(torch.ones_like(depth), still), dim=-1)
        seen = torch.cat([2 * images - 1, (depth / middle).log()[..., None], rays], dim=-1)
        return seen.permute(0, 3, 1, 2)

    def _from_tokens(
        self, tokens: Sequence[Float[Tensor, "n t c"]], grid: tuple[int, int], height: int, width: int
    ) -> Float[Tensor, "n f h w"]:
        aspect = width / height
        projected = [self.pyramid.project(index, layer, grid, aspect) for index, layer in enumerate(tokens)]
        x = self.pyramid.fuse(self.pyramid.laterals(projected))
        return interpolate(x, size=(height, width), mode="bilinear", align_corners=True)

    def _activated(
        self,
        raw: Float[Tensor, "n h w d"],
        images: Float[Tensor, "n h w 3"],
        depth: Float[Tensor, "n h w"],
        cameras: Cameras,
        points: Float[Tensor, "n h w 3"] | None,
    ) -> PixelSplats:
        c = self.config
        shift, stretch, scale, quat, alpha, sure, color = raw.split([*GROUPS, raw.shape[-1] - sum(GROUPS)], dim=-1)
        away = depth * (1 + c.stretch * stretch[..., 0].tanh())
        means = pixel_points(away, cameras, c.shift * shift.tanh())
        if points is not None:  # moved by as much as a point on the ray would be
            means = points + (means - pixel_points(depth, cameras))
        start = math.log((PIXEL - c.least) / (c.most - PIXEL))
        pixels = c.least + (c.most - c.least) * (scale + start).sigmoid()
        turn = cameras.world_from_cam[:, None, None, :3, :3].to(raw)
        still = raw.new_tensor([1.0, 0, 0, 0])
        rotation = turn @ rotation_from_quat(normalize(quat + still, dim=-1))
        gaussians = Gaussians(
            means=means.flatten(0, 2),
            quats=quat_from_rotation(rotation).flatten(0, 2),
            scales=(pixels * footprint(away, cameras)[..., None]).flatten(0, 2),
            opacities=(alpha[..., 0] + c.opacity_bias).sigmoid().flatten(),
            sh=self._colors(color, images, cameras),
        )
        return PixelSplats(gaussians, sure[..., 0].clamp(-15, 15).exp().flatten(), cameras.centers.to(raw))

    def _colors(
        self, color: Float[Tensor, "n h w k"], images: Float[Tensor, "n h w 3"], cameras: Cameras
    ) -> Float[Tensor, "g m 3"]:
        """The pixel's colour plus a little, world frame; band l is 0.1 / 4^l of what is predicted (pixelSplat)."""
        sh = color.unflatten(-1, (-1, 3))
        degrees = torch.tensor([math.isqrt(index) for index in range(sh.shape[-2])])
        gain = (0.1 * 0.25**degrees).to(sh)
        sh = sh * gain[:, None]
        sh = torch.cat([sh[..., :1, :] + ((images - 0.5) / SH_C0)[..., None, :], sh[..., 1:, :]], dim=-2)
        turned = [
            rotate_sh(view.flatten(0, 1), pose[:3, :3]) for view, pose in zip(sh, cameras.world_from_cam, strict=True)
        ]
        return torch.cat(turned)
