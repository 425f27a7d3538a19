"""MVP, the Multi-view Pyramid Transformer: posed pictures to Gaussians in one pass (Kang et al., arXiv 2512.07806).

Three stages look coarser to see broader: 2 blocks within a view at 1/8 of its size, 4 blocks that alternate between a
view and its group of four at 1/16, 8 blocks that alternate between a view and all views at 1/32; broad blocks place
cameras relative to each other (PRoPE). Tokens of all three scales are fused coarse to fine, and one linear layer makes
a Gaussian of every pixel. Opacity depends on the direction it is seen from, as published.

The published weights (``Gynjn/MVP`` on the hub, MIT) load with `from_published`. Published code takes multiples of four
views at one size; here any number goes into groups of at most four, and pictures of any size are grown to whole patches
by their edge. Memory grows linearly with the views; the time of the last stage's broad blocks does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scenetx.core import Cameras, Gaussians, InputError, Sim3
from scenetx.core.gaussians import rotate_sh, sh_basis
from scenetx.models.blocks import Blocks
from scenetx.models.dense_head import FusionBlock, Scratch, add_uv
from scenetx.models.layers import grid_positions
from scenetx.models.prope import Place, Prope, Turned, projections
from scenetx.models.rays import Rays, camera_rays, check_cameras, mean_frame
from scenetx.models.view_layers import EPS, SelfBlock, initialise, norm, padded, patches, self_blocks, unpatched
from scenetx.models.views import at_once
from scenetx.models.weights import renamed

STAGES = 3


@dataclass(frozen=True)
class MvpConfig:
    """The published settings. ``opacity_bias`` is added to the first coefficient of the opacity's harmonics."""

    dims: tuple[int, int, int] = (256, 512, 1024)
    layers: tuple[int, int, int] = (2, 4, 8)
    head_dim: int = 64
    patch: int = 8
    registers: int = 4
    group: int = 4
    sh_degree: int = 1
    opacity_degree: int = 2
    scale_bias: float = -6.9
    scale_max: float = -1.2  # of the logarithm, in the model's frame
    opacity_bias: float = -2.0
    farthest: float = 500.0  # distance along the ray, in the model's frame
    view_chunk: int = 4  # views at once in what sees one view only, without gradients

    @property
    def channels(self) -> tuple[int, ...]:
        """Of a pixel: distance (mean of three), colour, log scales, quaternion, opacity."""
        return 3, 3 * (self.sh_degree + 1) ** 2, 3, 4, (self.opacity_degree + 1) ** 2


PRESETS = {"960x540": MvpConfig()}


@dataclass(frozen=True)
class SeenGaussians:
    """Gaussians whose opacity depends on the viewing direction: ``sigmoid(sum of opacity_sh * Y(direction))``.

    ``gaussians.opacities`` hold the opacity without direction; `seen_from` and `baked` put others in its place.
    """

    gaussians: Gaussians
    opacity_sh: Float[Tensor, "g k"]

    def __len__(self) -> int:
        return len(self.gaussians)

    def seen_from(self, center: Float[Tensor, "3"]) -> Gaussians:
        """The Gaussians as a camera at ``center`` (world) sees them: exact for a picture taken there."""
        return replace(self.gaussians, opacities=self._opacity(center))

    def baked(self, centers: Float[Tensor, "n 3"]) -> Gaussians:
        """One opacity for all directions, the mean of what cameras at ``centers`` see: what a splat file can hold."""
        total = torch.zeros_like(self.gaussians.opacities)
        for center in centers:
            total = total + self._opacity(center)
        return replace(self.gaussians, opacities=total / len(centers))

    def transformed(self, a_from_b: Sim3) -> SeenGaussians:
        """The same in another frame."""
        turned = rotate_sh(self.opacity_sh[..., None].expand(-1, -1, 3), a_from_b.rotation.to(self.opacity_sh))
        return SeenGaussians(self.gaussians.transformed(a_from_b), turned[..., 0])

    def _opacity(self, center: Float[Tensor, "3"]) -> Float[Tensor, "g"]:
        degree = int(self.opacity_sh.shape[1] ** 0.5) - 1
        direction = torch.nn.functional.normalize(self.gaussians.means - center.to(self.gaussians.means), dim=-1)
        return (self.opacity_sh * sh_basis(direction, degree)).sum(-1).sigmoid()


class Aggregation(nn.Module):
    """Pyramidal feature aggregation: three scales to one width, fused coarse to fine (DPT, arXiv 2103.13413)."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        features = dims[-1]
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for dim in dims])
        self.scratch = Scratch()
        for index, dim in enumerate(dims):
            self.scratch.add_module(f"layer{index + 1}_rn", nn.Conv2d(dim, features, 3, padding=1, bias=False))
            block = FusionBlock(features, lateral=index + 1 < len(dims), relu_skip=True)
            self.scratch.add_module(f"refinenet{index + 1}", block)
        self.scratch.output_conv1 = nn.Conv2d(features, features, 3, padding=1)

    def forward(
        self, scales: Sequence[Float[Tensor, "n _t _c"]], grids: Sequence[tuple[int, int]], aspect: float
    ) -> Float[Tensor, "n t c"]:
        """Tokens of the finest grid from those of all, finest first."""
        laterals = []
        for index, (tokens, grid) in enumerate(zip(scales, grids, strict=True)):
            x = add_uv(self.norms[index](tokens).transpose(1, 2).unflatten(2, grid).contiguous(), aspect)
            laterals.append(self.scratch.get_submodule(f"layer{index + 1}_rn")(x))
        out = self.scratch.get_submodule("refinenet3")(laterals[2], size=grids[1])
        out = self.scratch.get_submodule("refinenet2")(out, laterals[1], size=grids[0])
        out = self.scratch.get_submodule("refinenet1")(out, laterals[0], size=grids[0])
        return add_uv(self.scratch.output_conv1(out), aspect).flatten(2).transpose(1, 2)


class Mvp(nn.Module):
    """Posed pictures to pixel-aligned Gaussians."""

    def __init__(self, config: MvpConfig | None = None) -> None:
        super().__init__()
        self.config: MvpConfig = config or MvpConfig()
        c = self.config
        if any(dim % c.head_dim for dim in c.dims) or c.head_dim % 8:
            raise ValueError(f"mvp: head_dim {c.head_dim} must be a multiple of 8 that divides {c.dims}")
        self.tokens, self.tokens_norm = nn.Linear(12 * c.patch**2, c.dims[0], bias=False), norm(c.dims[0])
        self.registers = nn.Parameter(0.02 * torch.randn(1, 1, c.registers, c.dims[0]))
        stages = [self_blocks(n, dim, dim // c.head_dim) for n, dim in zip(c.layers, c.dims, strict=True)]
        self.stage1, self.stage2, self.stage3 = stages
        self.merge1, self.resize1 = _merge(c.dims[0], c.dims[1]), nn.Linear(c.dims[0], c.dims[1])
        self.merge2, self.resize2 = _merge(c.dims[1], c.dims[2]), nn.Linear(c.dims[1], c.dims[2])
        self.aggregation = Aggregation(c.dims)
        self.head_norm = nn.LayerNorm(c.dims[2], eps=EPS, bias=False)
        self.head = nn.Linear(c.dims[2], c.patch**2 * sum(c.channels), bias=False)
        initialise(self)

    def forward(self, images: Float[Tensor, "v h w 3"], cameras: Cameras) -> SeenGaussians:
        """A Gaussian for every pixel, in the frame of ``cameras``; rows run over view, row, column.

        images: sRGB in [0, 1]. The model sees the cameras in its own frame (mean axes, largest coordinate 1). Raises
        InputError for pictures and cameras that do not belong together, or less than four patches a side.
        """
        self._check(images, cameras)
        frame = mean_frame(cameras, margin=1.0)
        inside, pixels = frame.of_cameras(cameras), padded(images, self.config.patch)
        grown = replace(inside, height=pixels.shape[1], width=pixels.shape[2])
        rays = camera_rays(grown)
        raw = self.decode(self.encode(pixels, grown, rays), grown, images.shape[1], images.shape[2])
        seen = self._gaussians(raw, camera_rays(inside))
        motion = frame.model_from_world[0]
        model_from_world = Sim3(1.0, motion[:3, :3], motion[:3, 3])
        to_scale = Sim3(1 / float(frame.scale[0]), torch.eye(3, dtype=torch.float64), torch.zeros(3).double())
        return seen.transformed(model_from_world.inverse() @ to_scale)

    def encode(self, pixels: Float[Tensor, "v H W 3"], cameras: Cameras, rays: Rays) -> list[Tensor]:
        """Patch tokens of the three stages, finest first, for pictures of whole patches in the model's frame."""
        c, views = self.config, len(pixels)
        seen = torch.cat(
            [rays.origins, rays.directions, torch.linalg.cross(rays.origins, rays.directions, dim=-1), 2 * pixels - 1],
            dim=-1,
        )
        down, across = pixels.shape[1] // c.patch, pixels.shape[2] // c.patch
        projection = projections(cameras)

        def first(some: Tensor) -> Tensor:
            x = self.tokens_norm(self.tokens(patches(some, c.patch)))
            x = torch.cat([self.registers[0].expand(len(x), -1, -1), x], dim=1)
            return _run(self.stage1, x)

        x = self._each(first, seen)
        out, x = [x[:, c.registers :]], self._coarser(x, (down, across), self.merge1, self.resize1)
        down, across = down // 2, across // 2
        x = self._groups(x, projection, (down, across))
        out, x = [*out, x[:, c.registers :]], self._coarser(x, (down, across), self.merge2, self.resize2)
        x = self._alternate(self.stage3, x[None], projection[None], (down // 2, across // 2))[0]
        assert len(x) == views
        return [*out, x[:, c.registers :]]

    def decode(
        self, scales: Sequence[Float[Tensor, "v _t _c"]], cameras: Cameras, height: int, width: int
    ) -> Float[Tensor, "v h w d"]:
        """Raw channels of every pixel of the ``height`` x ``width`` pictures from the tokens of the three stages."""
        patch = self.config.patch
        grid = (cameras.height // patch, cameras.width // patch)
        grids = [grid, (grid[0] // 2, grid[1] // 2), (grid[0] // 4, grid[1] // 4)]
        aspect = cameras.width / cameras.height

        def last(*some: Tensor) -> Tensor:
            rows = self.head(self.head_norm(self.aggregation(some, grids, aspect)))
            return unpatched(rows, patch, height, width)

        return self._each(last, *scales)

    def _check(self, images: Float[Tensor, "v h w 3"], cameras: Cameras) -> None:
        if not len(images) or len(images) != len(cameras):
            raise InputError("mvp", f"{len(images)} pictures, {len(cameras)} cameras", "give a camera with each")
        if images.shape[1:3] != (cameras.height, cameras.width):
            shown = f"pictures of {tuple(images.shape[1:3])}, cameras of {(cameras.height, cameras.width)}"
            raise InputError("mvp", shown, "give cameras for these pictures (Cameras.resized)")
        if min(images.shape[1:3]) < 3 * self.config.patch + 1:
            shown = f"pictures of {images.shape[2]} x {images.shape[1]}"
            raise InputError("mvp", shown, f"give at least {4 * self.config.patch} pixels a side")
        check_cameras(cameras, "mvp")

    def _gaussians(self, raw: Float[Tensor, "v h w d"], rays: Rays) -> SeenGaussians:
        """Activated, in the model's frame (float32)."""
        c = self.config
        place, color, scale, quat, opacity = raw.flatten(0, 2).float().split(c.channels, dim=-1)
        distance = place.mean(-1, keepdim=True).sigmoid() * c.farthest
        means = rays.origins.reshape(-1, 3) + distance * rays.directions.reshape(-1, 3)
        bias = opacity.new_zeros(opacity.shape[1])
        bias[0] = c.opacity_bias
        opacity = opacity + bias
        gaussians = Gaussians(
            means=means,
            quats=torch.nn.functional.normalize(quat, dim=-1),
            scales=(scale + c.scale_bias).clamp(max=c.scale_max).exp(),
            opacities=(opacity[:, 0] * 0.28209479177387814).sigmoid(),
            sh=color.unflatten(-1, (3, -1)).transpose(1, 2),
        )
        return SeenGaussians(gaussians, opacity)

    def _each(self, part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """What sees one view at a time; without gradients a few views at once, which bounds the memory."""
        size = at_once(self.config.view_chunk, len(inputs[0]))
        return torch.cat([part(*some) for some in zip(*(x.split(size) for x in inputs), strict=True)])

    def _coarser(
        self, x: Float[Tensor, "v t c"], grid: tuple[int, int], merge: nn.Module, resize: nn.Module
    ) -> Float[Tensor, "v u e"]:
        """Half the grid, wider tokens; an odd last row or column takes part in the finer scale only."""
        registers = resize(x[:, : self.config.registers])
        patch = merge(x[:, self.config.registers :].transpose(1, 2).unflatten(2, grid))
        return torch.cat([registers, patch.flatten(2).transpose(1, 2)], dim=1)

    def _groups(
        self, x: Float[Tensor, "v t c"], projection: Float[Tensor, "v 4 4"], grid: tuple[int, int]
    ) -> Float[Tensor, "v t c"]:
        """Stage 2 over groups of neighbours in the order given, as even as they come, of at most ``group`` views."""
        out, start = [], 0
        for size, count in group_sizes(len(x), self.config.group):
            stop = start + size * count
            some, cameras = (part[start:stop].unflatten(0, (count, size)) for part in (x, projection))
            out.append(self._alternate(self.stage2, some, cameras, grid).flatten(0, 1))
            start = stop
        return torch.cat(out)

    def _alternate(
        self,
        blocks: Blocks[SelfBlock],
        x: Float[Tensor, "g s t c"],
        projection: Float[Tensor, "g s 4 4"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "g s t c"]:
        """Blocks in turn within each view and over all ``s`` views of a group."""
        groups, views = x.shape[:2]
        # Published coordinates are (x, y) and turn the other way round.
        places = -grid_positions(*grid, special=self.config.registers).flip(-1)
        alone = Turned.of(places, self.config.head_dim, x.device)
        broad = Prope.of(projection, (len(places),) * views, places.repeat(views, 1), self.config.head_dim)
        for index, block in enumerate(blocks):
            if index % 2:
                x = block(x.flatten(1, 2), broad).unflatten(1, (views, -1))
            else:
                x = block(x.flatten(0, 1), alone).unflatten(0, (groups, views))
        return x


def group_sizes(views: int, most: int) -> list[tuple[int, int]]:
    """(size, how many) of groups of at most ``most`` views, larger ones first; sizes differ by one at most."""
    count = -(-views // most)
    small, larger = divmod(views, count)
    return [(size, number) for size, number in ((small + 1, larger), (small, count - larger)) if number]


def _merge(dim: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(dim, out, 2, stride=2, groups=dim)


def _run(blocks: Blocks[SelfBlock], x: Float[Tensor, "n t c"], place: Place | None = None) -> Float[Tensor, "n t c"]:
    for block in blocks:
        x = block(x, place)
    return x


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published file's ``ema`` entry under our names; the loss network's tensors are left behind."""
    return renamed(tensors, _NAMES)


_NAMES = (
    ("image_tokenizer.1.", "tokens."),
    ("image_tokenizer.2.", "tokens_norm."),
    ("register_token_init", "registers"),
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".attn.to_qkv.", ".attn.qkv."),
    (".attn.c_proj.", ".attn.proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("merge_block", "merge"),
    ("resize_block", "resize"),
    ("dpt_head.norm1.", "aggregation.norms.0."),
    ("dpt_head.norm2.", "aggregation.norms.1."),
    ("dpt_head.norm3.", "aggregation.norms.2."),
    ("dpt_head.", "aggregation."),
    ("gaussian_decoder.0.", "head_norm."),
    ("gaussian_decoder.1.", "head."),
)
