"""Posed pictures to pixel-aligned Gaussians: depth by comparing views along the rays, and a head that says the rest.

MVSplat's way (arXiv 2403.14627), small, with what DepthSplat added (arXiv 2410.13862): features of neighbouring views
are compared on planes of inverse depth, a U-Net that is also told what Depth Anything 3 says of the pictures (depth up
to scale) decides between the planes, a second look at twice the resolution compares finer steps around that answer,
and learned weights bring it to the pixels (RAFT's upsampling, arXiv 2003.12039). `SplatHead` then moves, sizes, turns,
colours and dims the Gaussians. Nothing depends on the world's frame or unit; views may be of any number and size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, normalize, pad, unfold

from scenetx.core import Cameras, InputError
from scenetx.core.cameras import pixel_grid
from scenetx.core.rigid import invert_rigid
from scenetx.models.da3 import Da3, Da3Config
from scenetx.models.dense_head import ResidualUnit
from scenetx.models.splat_head import PixelSplats, SplatHead, SplatHeadConfig

BEYOND = 0.2  # of the far end's inverse depth: the last plane, which stands for all that is farther, such as a sky
ROUND = 4  # sides are multiples of this: the first look has a quarter of the resolution
TOGETHER = 4  # pictures of a scene that ``da3`` sees at once, at most: as many as it learned from
HIDDEN = 16  # channels that the second look hands to the head


@dataclass(frozen=True)
class StereoSplatsConfig:
    """Sizes. channels: of the features compared, in ``groups``; planes: of the first look, steps: of the second, each
    half as far apart; sources: other views that a view is compared with, at most; width: of the U-Net.

    look: longest side of the pictures that ``da3`` sees, the size it learned at.
    """

    da3: Da3Config = field(default_factory=Da3Config)
    head: SplatHeadConfig = field(default_factory=lambda: SplatHeadConfig(features=24, layers=2, extra=HIDDEN))
    channels: int = 16
    groups: int = 4
    planes: int = 32
    steps: int = 7
    sources: int = 2
    width: int = 64
    look: int = 64
    view_chunk: int = 32  # pictures whose planes are in memory at once

    def __post_init__(self) -> None:
        if self.channels % self.groups or self.planes < 4 or self.steps % 2 == 0 or self.sources < 1:
            shown = (self.channels, self.groups, self.planes, self.steps, self.sources)
            what = "stereo splats channels, groups, planes, steps, sources"
            raise InputError(what, shown, "use groups that divide the channels, 4 or more planes, odd steps, a source")
        if self.head.kind != "conv" or self.head.extra != HIDDEN:
            raise InputError("stereo splats head", (self.head.kind, self.head.extra), f"use conv, extra {HIDDEN}")

    @property
    def patch(self) -> int:
        """Sides of training pictures are multiples of this."""
        return self.da3.patch


@dataclass(frozen=True)
class StereoAnswer:
    """splats: one a pixel. inverse: 1 / z at the pixels. scores: logits of the first look's planes, whose inverse depth
    is ``planes``, farthest first."""

    splats: PixelSplats
    inverse: Float[Tensor, "n h w"]
    scores: Float[Tensor, "n d i j"]
    planes: Float[Tensor, "n d"]

    @property
    def depth(self) -> Float[Tensor, "n h w"]:
        return 1 / self.inverse


class Features(nn.Module):
    """A picture's features at half and at a quarter of its resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.fine = nn.Sequential(
            nn.ReLU(), nn.Conv2d(16, channels, 3, stride=2, padding=1), ResidualUnit(channels, relu_skip=False)
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            *[ResidualUnit(channels, relu_skip=False) for _ in range(2)],
        )

    def forward(self, images: Float[Tensor, "n h w 3"]) -> tuple[Float[Tensor, "n c _ _"], Float[Tensor, "n c _ _"]]:
        half = self.fine(self.first(2 * images.permute(0, 3, 1, 2) - 1))
        return half, self.coarse(half)


class PlaneScores(nn.Module):
    """How alike the views are on every plane: correlation of groups of features (GwcNet, arXiv 1903.04025), averaged
    over the views that see the place, then mixed with the same weights on all planes."""

    def __init__(self, groups: int, hidden: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.mix = nn.Sequential(
            nn.Conv2d(groups + 1, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 3, padding=1)
        )

    def forward(
        self,
        here: Float[Tensor, "n c i j"],
        there: Float[Tensor, "n m c i j"],
        motion: tuple[Float[Tensor, "n m 3 3"], Float[Tensor, "n m 3"]],
        inverse: Float[Tensor, "n d i j"],
    ) -> Float[Tensor, "n d i j"]:
        """motion: of `homographies`, for pixels of this resolution. inverse: of the planes, at every pixel."""
        n, m, c = there.shape[:3]
        depths, size = inverse.shape[1], inverse.shape[2:]
        grid, inside = seen_at(motion, inverse)
        own = normalize(here.unflatten(1, (self.groups, -1)), dim=2)[:, None, :, :, None]
        other = normalize(there.unflatten(2, (self.groups, -1)), dim=3).flatten(2, 3).flatten(0, 1)
        found = grid_sample(other, grid.flatten(0, 1).flatten(1, 2), align_corners=False)
        found = found.view(n, m, self.groups, c // self.groups, depths, *size)
        weight = inside[:, :, None]
        alike = ((own * found).sum(3) * weight).sum(1) / weight.sum(1).clamp_min(1)
        seen = torch.cat([alike, inside.mean(1)[:, None]], 1)  # n g+1 d i j
        return self.mix(seen.transpose(1, 2).flatten(0, 1)).view(n, depths, *size)


class UNet(nn.Module):
    """Two steps down and up, residual units at each; any size."""

    def __init__(self, into: int, width: int, out: int) -> None:
        super().__init__()
        self.start = nn.Conv2d(into, width, 3, padding=1)
        self.levels = nn.ModuleList([ResidualUnit(width, relu_skip=False) for _ in range(3)])
        self.down = nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(2)])
        self.up = nn.ModuleList([ResidualUnit(width, relu_skip=False) for _ in range(2)])
        self.end = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c i j"]) -> Float[Tensor, "n o i j"]:
        x = self.levels[0](self.start(x))
        kept = []
        for down, level in zip(self.down, list(self.levels)[1:], strict=True):
            kept.append(x)
            x = level(down(x))
        for unit, skip in zip(self.up, kept[::-1], strict=True):
            x = unit(skip + interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False))
        return self.end(x)


class StereoSplats(nn.Module):
    """Pictures of one or more scenes with their cameras to `StereoAnswer`. ``da3`` is asked, and does not learn."""

    def __init__(self, config: StereoSplatsConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.da3 = Da3(c.da3).requires_grad_(requires_grad=False)
        self.features = Features(c.channels)
        self.first = PlaneScores(c.groups)
        self.decide = UNet(c.planes + c.channels + 2, c.width, c.planes + 36)
        self.second = PlaneScores(c.groups)
        self.settle = nn.Sequential(
            nn.Conv2d(c.steps + c.channels + 2, 32, 3, padding=1),
            *[ResidualUnit(32, relu_skip=False) for _ in range(2)],
            nn.Conv2d(32, c.steps + 36 + HIDDEN, 3, padding=1),
        )
        self.head = SplatHead(c.head)

    def forward(
        self, images: Float[Tensor, "n h w 3"], cameras: Cameras, near_far: Float[Tensor, "n 2"], scenes: int = 1
    ) -> StereoAnswer:
        """images: sRGB in [0, 1], sides multiples of 4, of ``scenes`` of equally many views, one scene after another.
        near_far: z-depths between which each picture's surfaces are thought to lie, world units.

        Raises InputError for fewer than two views a scene, other sides, or a range that is none.
        """
        c, (n, height, width) = self.config, images.shape[:3]
        if n // scenes < 2 or n % scenes or height % ROUND or width % ROUND:
            shown = f"{n} pictures of {scenes} scenes, {width} x {height}"
            raise InputError("stereo splats", shown, f"give two views a scene or more, sides multiples of {ROUND}")
        if not bool(((near_far[:, 0] > 0) & (near_far[:, 1] > near_far[:, 0]) & near_far.isfinite().all(-1)).all()):
            raise InputError("stereo splats near_far", "holds ranges that are none", "give 0 < near < far")
        sources = neighbours(cameras, scenes, c.sources)
        said = self._said(images, scenes, sources)
        half, quarter = self.features(images)
        share = torch.linspace(0, 1, c.planes, device=images.device)
        low, high = BEYOND / near_far[:, 1:], 1 / near_far[:, :1]
        planes = low + share * (high - low)
        parts = [
            self._depth(few, (half, quarter), said, planes, cameras, sources)
            for few in torch.arange(n, device=images.device).split(c.view_chunk)
        ]
        inverse, hidden, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        splats = self.head(images, 1 / inverse, cameras, extra=hidden)
        return StereoAnswer(splats, inverse, scores, planes)

    def _depth(
        self,
        few: Int[Tensor, "k"],
        features: tuple[Float[Tensor, "n c _ _"], Float[Tensor, "n c _ _"]],
        said: Float[Tensor, "n 2 _ _"],
        planes: Float[Tensor, "n d"],
        cameras: Cameras,
        sources: Int[Tensor, "n m"],
    ) -> tuple[Float[Tensor, "k h w"], Float[Tensor, "k e h w"], Float[Tensor, "k d _ _"]]:
        """Of some of the views: inverse depth and hidden channels at the pixels, and the first look's logits."""
        c, (half, quarter), near = self.config, features, planes[few]
        size = quarter.shape[-2:]
        motion = homographies(cameras, few, sources[few], size)
        everywhere = near[:, :, None, None].expand(-1, -1, *size)
        alike = self.first(quarter[few], quarter[sources[few]], motion, everywhere)
        hint = interpolate(said[few], size=size, mode="bilinear", align_corners=False)
        found = self.decide(torch.cat([alike, quarter[few], hint], 1))
        scores = alike + found[:, : c.planes]
        inverse, sure = around_peak(scores, near)
        inverse, sure = (convex_double(value, found[:, c.planes :]) for value in (inverse, sure))
        # The second look: the same at twice the resolution, around what the first found.
        step = (near[:, 1] - near[:, 0])[:, None, None, None] / 2
        offsets = torch.arange(c.steps, device=near.device) - c.steps // 2
        tried = (inverse + step * offsets[:, None, None]).clamp_min(0)
        motion = homographies(cameras, few, sources[few], half.shape[-2:])
        alike = self.second(half[few], half[sources[few]], motion, tried.detach())
        place = (inverse - near[:, :1, None, None]) / (near[:, -1:] - near[:, :1])[:, :, None, None]
        found = self.settle(torch.cat([alike, half[few], sure, place], 1))
        chosen = ((alike + found[:, : c.steps]).softmax(1) * offsets[:, None, None]).sum(1, keepdim=True)
        inverse = convex_double(inverse + step * chosen, found[:, c.steps : c.steps + 36])
        hidden = interpolate(found[:, c.steps + 36 :], scale_factor=2, mode="bilinear", align_corners=False)
        least = near[:, :1, None] / 2
        return torch.maximum(inverse[:, 0], least), hidden, scores

    @torch.no_grad()
    def _said(
        self, images: Float[Tensor, "n h w 3"], scenes: int, sources: Int[Tensor, "n m"]
    ) -> Float[Tensor, "n 2 _ _"]:
        """What ``da3`` says of each picture, seen with its neighbours: log depth less its median, log confidence."""
        patch, (height, width) = self.config.da3.patch, images.shape[1:3]
        share = min(1.0, self.config.look / max(height, width))
        size = [max(patch, patch * round(side * share / patch)) for side in (height, width)]
        small = interpolate(images.permute(0, 3, 1, 2), size=size, mode="area").permute(0, 2, 3, 1)
        views = len(images) // scenes
        grouped = views > TOGETHER
        if grouped:  # each picture with its neighbours, itself first
            own = torch.arange(len(images), device=images.device)
            small, scenes = small[torch.cat([own[:, None], sources], 1).flatten()], len(images)
        few = max(1, self.config.view_chunk // (len(small) // scenes)) * (len(small) // scenes)
        found = [self.da3.of_scenes(part, len(part) * scenes // len(small)) for part in small.split(few)]
        depth = torch.cat([one.depth for one in found if one.depth is not None])
        confidence = torch.cat([one.confidence for one in found if one.confidence is not None])
        if grouped:
            depth, confidence = depth[:: 1 + sources.shape[1]], confidence[:: 1 + sources.shape[1]]
        log = depth.clamp_min(1e-6).log()
        log = log - log.flatten(1).median(1).values[:, None, None]
        return torch.stack([log.clamp(-3, 3), confidence.log().clamp(0, 5)], 1)


def neighbours(cameras: Cameras, scenes: int, most: int) -> Int[Tensor, "n m"]:
    """Of every view the views of its scene, ``most`` or all others, that stand nearest and look the same way."""
    centers = cameras.centers.double().unflatten(0, (scenes, -1))
    forward = cameras.forward.double().unflatten(0, (scenes, -1))
    distance = torch.cdist(centers, centers)
    distance = distance / (distance.flatten(1).median(1).values[:, None, None] + 1e-12)
    apart = distance + 2 * (1 - forward @ forward.mT)
    views = centers.shape[1]
    apart[:, range(views), range(views)] = torch.inf
    order = apart.argsort(dim=-1, stable=True)[..., : min(most, views - 1)]
    return (order + views * torch.arange(scenes, device=order.device)[:, None, None]).flatten(0, 1)


def homographies(
    cameras: Cameras, views: Int[Tensor, "k"], sources: Int[Tensor, "k m"], size: tuple[int, int] | torch.Size
) -> tuple[Float[Tensor, "k m 3 3"], Float[Tensor, "k m 3"]]:
    """``A, b`` with which a pixel ``p`` (x, y, 1) of a view at inverse depth ``w`` is seen by a source at ``A p + w b``
    (homogeneous), both in pixels of pictures of ``size``."""
    small = cameras.to(torch.float64).resized(*size)
    cam_from_world = invert_rigid(small.world_from_cam)
    motion = cam_from_world[sources] @ small.world_from_cam[views][:, None]
    lens = small.K[sources]
    A = lens @ motion[..., :3, :3] @ torch.linalg.inv(small.K[views])[:, None]
    b = (lens @ motion[..., :3, 3:])[..., 0]
    return A.float(), b.float()


def seen_at(
    motion: tuple[Float[Tensor, "n m 3 3"], Float[Tensor, "n m 3"]], inverse: Float[Tensor, "n d i j"]
) -> tuple[Float[Tensor, "n m d i j 2"], Float[Tensor, "n m d i j"]]:
    """Where sources see the pixels on their planes, in -1 .. 1 of their pictures, and 1 where that is inside."""
    (A, b), (height, width) = motion, inverse.shape[2:]
    pixels = pad(pixel_grid(height, width).to(inverse), (0, 1), value=1.0)
    turned = torch.einsum("nmab,ijb->nmija", A, pixels)[:, :, None]
    seen = turned + inverse[:, None, ..., None] * b[:, :, None, None, None]
    z = seen[..., 2]
    place = seen[..., :2] / z.clamp_min(1e-6)[..., None]
    grid = 2 * place / place.new_tensor([width, height]) - 1
    inside = (grid.abs() <= 1).all(-1) & (z > 1e-6)
    return grid.clamp(-2, 2), inside.to(inverse)


def around_peak(
    scores: Float[Tensor, "n d i j"], planes: Float[Tensor, "n d"], reach: int = 2
) -> tuple[Float[Tensor, "n 1 i j"], Float[Tensor, "n 1 i j"]]:
    """Mean inverse depth of the planes around the best one, and their share of the probability.

    Of all planes it would lie between two surfaces where both are likely, which is where neither is.
    """
    probability = scores.softmax(1)
    best = scores.argmax(1, keepdim=True)
    index = torch.arange(scores.shape[1], device=scores.device)[:, None, None]
    near = probability * ((index - best).abs() <= reach)
    share = near.sum(1, keepdim=True)
    return (near * planes[:, :, None, None]).sum(1, keepdim=True) / share.clamp_min(1e-6), share


def convex_double(x: Float[Tensor, "n 1 i j"], weights: Float[Tensor, "n 36 i j"]) -> Float[Tensor, "n 1 k l"]:
    """Twice the resolution; each new pixel a learned mean of the nine around the old one."""
    n, _, height, width = x.shape
    shares = weights.view(n, 9, 2, 2, height, width).softmax(1)
    around = unfold(pad(x, (1, 1, 1, 1), mode="replicate"), 3).view(n, 9, 1, 1, height, width)
    mean = (shares * around).sum(1)
    return mean.permute(0, 3, 1, 4, 2).reshape(n, 1, 2 * height, 2 * width)


def scene_splats(answer: StereoAnswer, scenes: int) -> list[PixelSplats]:
    """The answer's splats scene by scene."""
    splats = answer.splats
    each, views = len(splats.gaussians) // scenes, len(splats.eyes) // scenes
    return [
        replace(
            splats,
            gaussians=splats.gaussians[slice(k * each, (k + 1) * each)],
            confidence=splats.confidence[k * each : (k + 1) * each],
            eyes=splats.eyes[k * views : (k + 1) * views],
        )
        for k in range(scenes)
    ]
