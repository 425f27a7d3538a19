"""Scene representation transformer (Sajjadi et al., CVPR 2022, arXiv 2111.13152) and its later forms.

Pictures with ray octaves go through convolutions into a set of tokens, a transformer mixes the set, and a small decoder
looks a ray's colour up in it by attention. Forms: `SRT_MSN` (the reimplementation whose weights are public; pre-norm),
`SRT_PAPER` (post-norm, layers look at the first features), `ISRT` (improved: Sajjadi et al., 2022, OSRT, appendix A.4),
`UPSRT` (unposed inputs: the first view is the world).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scenetx.core import Cameras, InputError
from scenetx.core.cameras import pixel_grid
from scenetx.models.rays import Frame, Rays, camera_rays, first_frame, octaves, world_frame
from scenetx.models.srt_layers import conv_stack, feed, ray_octaves, set_blocks
from scenetx.models.view_model import Inputs, ViewModel, Views, Where


@dataclass(frozen=True)
class SrtConfig:
    """The public weights' form (MultiShapeNet) unless said otherwise."""

    conv_blocks: int = 4
    conv_width: int = 96
    dim: int = 768
    heads: int = 12
    hidden: int = 1536
    encoder_layers: int = 10
    decoder_layers: int = 2
    octaves: int = 15
    position_start: int = -5
    grid: tuple[int, int] | None = (15, 20)
    """Size of the learned cell-position table (larger pictures interpolate it); None: no table."""
    marks: bool = True
    """Learned embeddings that tell the first view from the others."""
    pixel_octaves: int = 0
    """Octaves of the pixel's place beside its colour: positions for pictures of any size."""
    query_hidden: int | None = None
    """Hidden width of an MLP on the query (ISRT)."""
    render: tuple[int, ...] = (128,)
    """Hidden widths from a query's answer to a colour."""
    squash: bool = True
    """Colour through a sigmoid."""
    post_norm: bool = False
    posed: bool = True
    frame: Literal["first", "world"] = "first"
    """The first context camera is the world, or the world is as given."""
    rays_at_once: int = 65536

    @property
    def query_dim(self) -> int:
        return 12 * self.octaves


SRT_MSN = SrtConfig()
SRT_PAPER = replace(SRT_MSN, post_norm=True)
UPSRT = replace(SRT_MSN, posed=False)
ISRT = replace(
    SRT_MSN,
    conv_blocks=3,
    encoder_layers=5,
    grid=None,
    marks=False,
    query_hidden=360,
    render=(1536,) * 4,
    squash=False,
    frame="world",
)
PRESETS = {"msn": SRT_MSN, "isrt": ISRT, "paper": SRT_PAPER, "upsrt": UPSRT}


class SetEncoder(nn.Module):
    """Pictures (and rays) to cells, cells of all views to a set."""

    def __init__(self, config: SrtConfig) -> None:
        super().__init__()
        c = self.config = config
        channels = 3 + (c.query_dim if c.posed else 0) + 4 * c.pixel_octaves
        self.convs = conv_stack(channels, c.conv_width, c.conv_blocks)
        self.cell = nn.Conv2d(c.conv_width << c.conv_blocks, c.dim, 1)
        if c.grid is not None:
            self.positions = nn.Parameter(torch.randn(1, c.dim, *c.grid) * c.dim**-0.5)
        if c.marks:
            self.first = nn.Parameter(torch.randn(1, 1, c.dim) * c.dim**-0.5)
            self.others = nn.Parameter(torch.randn(1, 1, c.dim) * c.dim**-0.5)
        head_dim = c.dim // c.heads
        self.layers = set_blocks(c.encoder_layers, c.dim, c.heads, head_dim, c.hidden, post_norm=c.post_norm)

    def cells(
        self,
        images: Float[Tensor, "n h w 3"],
        rays: Rays | None = None,
        coordinates: Float[Tensor, "h w 2"] | None = None,
    ) -> Float[Tensor, "n t c"]:
        """One token a cell of ``2^conv_blocks`` pixels a side, row by row. ``coordinates``: of a cut-out's pixels."""
        c = self.config
        parts = [images]
        if rays is not None:
            parts.append(ray_octaves(rays, c.octaves, c.position_start))
        if c.pixel_octaves:
            where = pixel_coordinates(*images.shape[1:3]).to(images) if coordinates is None else coordinates
            parts.append(octaves(where, c.pixel_octaves).expand(len(images), -1, -1, -1))
        pixels = torch.cat(parts, dim=-1)
        x = self.cell(self.convs(pixels.permute(0, 3, 1, 2)))
        if c.grid is not None:
            x = x + self._positions(x.shape[2], x.shape[3])
        return x.flatten(2).transpose(1, 2)

    def _positions(self, rows: int, columns: int) -> Float[Tensor, "1 c r s"]:
        """The table's upper left corner, as in training; a picture that is larger stretches the table."""
        height, width = self.positions.shape[2:]
        if rows <= height and columns <= width:
            return self.positions[:, :, :rows, :columns]
        size = (max(rows, height), max(columns, width))
        stretched = interpolate(self.positions, size=size, mode="bicubic", align_corners=False)
        return stretched[:, :, :rows, :columns]

    def mix(self, x: Float[Tensor, "b n c"], sizes: tuple[int, ...]) -> Float[Tensor, "b n c"]:
        """The set of all views' cells; the first view is marked where the form has marks."""
        if self.config.marks:
            marks = torch.cat([self.first.expand(-1, sizes[0], -1), self.others.expand(-1, sum(sizes[1:]), -1)], dim=1)
            x = x + marks
        start = x
        for layer in self.layers:
            k, v = layer.attn.keys_values(start) if self.config.post_norm else (None, None)
            x = layer(x, k, v)
        return x


def pixel_coordinates(height: int, width: int) -> Float[Tensor, "h w 2"]:
    """Pixel centres (x, y), -1 to 1 over the longer side."""
    middle = torch.tensor([width, height]) / 2
    return (pixel_grid(height, width) - middle) / (max(height, width) / 2)


class QueryDecoder(nn.Module):
    """Queries to colours, by attention into the set."""

    def __init__(self, config: SrtConfig, query_dim: int | None = None) -> None:
        super().__init__()
        c, dim = config, query_dim or config.query_dim
        self.squash = c.squash
        self.query = feed((dim, c.query_hidden, dim)) if c.query_hidden else nn.Identity()
        self.layers = set_blocks(c.decoder_layers, dim, c.heads, c.dim // c.heads, c.hidden, c.dim)
        self.colour = feed((dim, *c.render, 3))

    def memory(self, z: Float[Tensor, "b m c"]) -> dict[str, Tensor]:
        """Keys and values of the set for each layer: made once, read by every query."""
        out = {}
        for index, layer in enumerate(self.layers):
            out[f"k{index}"], out[f"v{index}"] = layer.attn.keys_values(z)
        return out

    def forward(self, queries: Float[Tensor, "b n q"], memory: Mapping[str, Tensor]) -> Float[Tensor, "b n 3"]:
        x = self.query(queries)
        for index, layer in enumerate(self.layers):
            x = layer(x, memory[f"k{index}"], memory[f"v{index}"])
        colour = self.colour(x)
        return colour.sigmoid() if self.squash else colour


class Srt(ViewModel):
    """SRT in the form its config says. Any ray can be decoded, alone or in a picture.

    Adding a view costs its convolutions (constant) plus mixing the whole set again (quadratic in the views).
    """

    name: ClassVar[str] = "srt"

    def __init__(self, config: SrtConfig = SRT_MSN) -> None:
        super().__init__()
        if config.dim % config.heads:
            raise ValueError(f"{config.heads} heads do not divide {config.dim} channels")
        self.config: SrtConfig = config
        self.posed = config.posed  # type: ignore[misc]
        self.encoder = SetEncoder(config)
        self.decoder = QueryDecoder(config)

    def frame_of(self, cameras: Cameras, scenes: int) -> Frame:
        first = self.config.frame == "first" or not self.config.posed
        return first_frame(cameras, scenes) if first else world_frame(scenes)

    def tokenise(self, views: Views) -> Inputs:
        rays = camera_rays(views.cameras) if views.cameras is not None and self.config.posed else None
        return self.tokenise_rays(views.images, rays, views.scenes)

    def tokenise_rays(self, images: Float[Tensor, "n h w 3"], rays: Rays | None, scenes: int = 1) -> Inputs:
        cells = self.encoder.cells(images, rays)
        each = len(images) // scenes
        return Inputs((cells.shape[1],) * each, {"x": cells.unflatten(0, (scenes, each)).flatten(1, 2)}, {})

    def remember(self, inputs: Inputs) -> dict[str, Tensor]:
        return self.decoder.memory(self.encoder.mix(inputs.tokens["x"], inputs.sizes))

    def paint(self, memory: Mapping[str, Tensor], where: Where, scenes: int) -> Float[Tensor, "n h w 3"]:
        rays = self.rays_of(where)
        shape = rays.origins.shape
        origins = rays.origins.reshape(scenes, 1, -1, 3).split(self.config.rays_at_once, 2)
        directions = rays.directions.reshape(scenes, 1, -1, 3).split(self.config.rays_at_once, 2)
        parts = [self._look(Rays(o, d), memory) for o, d in zip(origins, directions, strict=True)]
        return torch.cat(parts, dim=1).reshape(shape)

    def _look(self, rays: Rays, memory: Mapping[str, Tensor]) -> Float[Tensor, "b r 3"]:
        queries = ray_octaves(rays, self.config.octaves, self.config.position_start)
        return self.decoder(queries[:, 0], memory)


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the public checkpoints (``encoder.*`` and ``decoder.*`` of the file's two entries) to ours.

    Raises InputError for a name that cannot be placed.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name.replace("decoder.ray_predictor.", "decoder.").replace("decoder.allocation_transformer.", "decoder.")
        for theirs, ours in _NAMES:
            new = new.replace(theirs, ours)
        if new.endswith(".fn.to_qkv.weight"):
            stem = new.removesuffix("fn.to_qkv.weight")
            third = len(tensor) // 3
            renamed[f"{stem}q.weight"], renamed[f"{stem}kv.weight"] = tensor[:third], tensor[third:]
        else:
            renamed[new] = tensor
    if len(renamed) < len(tensors):
        raise InputError("SRT checkpoint", "two tensors have one meaning", "name a file of the public repository")
    return renamed


_NAMES = (
    ("encoder.conv_blocks.", "encoder.convs."),
    (".layers.0.weight", ".same.weight"),
    (".layers.2.weight", ".halve.weight"),
    ("encoder.per_patch_linear.", "encoder.cell."),
    ("encoder.pixel_embedding", "encoder.positions"),
    ("encoder.canonical_camera_embedding", "encoder.first"),
    ("encoder.non_canonical_camera_embedding", "encoder.others"),
    ("transformer.layers.", "layers."),
    (".0.norm.", ".norm1."),
    (".1.norm.", ".norm2."),
    (".0.fn.to_qkv.", ".attn.fn.to_qkv."),
    (".0.fn.to_q.", ".attn.q."),
    (".0.fn.to_kv.", ".attn.kv."),
    (".0.fn.to_out.0.", ".attn.proj."),
    (".1.fn.net.0.", ".mlp.fc1."),
    (".1.fn.net.3.", ".mlp.fc2."),
    ("decoder.input_mlp.", "decoder.query."),
    ("decoder.output_mlp.", "decoder.colour."),
    ("decoder.render_mlp.", "decoder.colour."),
)
