"""Pi3 (arXiv 2507.13347): cameras and camera-frame points of any number of pictures, no picture being the first.

DINOv2 patch tokens with five registers, 36 blocks that alternate between one picture and all, then three small
transformers a picture for points, confidence and camera. Published conventions: ``camera_poses`` is world_from_cam,
OpenCV axes; frame and scale are the model's own; ``conf`` is a logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, pixel_shuffle, relu

from scenetx.core import Cameras
from scenetx.core.rigid import rigid
from scenetx.models.attention import KVShape, query_mask
from scenetx.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Vit, VitConfig, normalized
from scenetx.models.geometry import Geometry
from scenetx.models.geometry_model import Ask, GeometryModel
from scenetx.models.layers import Block, BlockConfig, Rope, grid_positions, rope_2d
from scenetx.models.ray_fit import intrinsics_from_rays
from scenetx.models.views import gathered, views_in_chunks

VIT = VitConfig(registers=4, offset=0.0, antialias=True)


@dataclass(frozen=True)
class Pi3Config:
    """Pi3 as released."""

    dim: int = 1024
    heads: int = 16
    depth: int = 36
    registers: int = 5
    vit: VitConfig = VIT
    head_dim: int = 1024
    head_heads: int = 16
    head_depth: int = 5
    camera_dim: int = 512
    view_chunk: int = 4  # pictures that see only themselves, at once


PRESETS = {"released": Pi3Config()}


class HeadTransformer(nn.Module):
    """Linear, blocks within each picture, linear."""

    def __init__(self, config: Pi3Config, out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(2 * config.dim, config.head_dim)
        block = BlockConfig(config.head_dim, config.head_heads, scale=None)
        self.blocks = nn.ModuleList([Block(block) for _ in range(config.head_depth)])
        self.linear_out = nn.Linear(config.head_dim, out)

    def forward(self, x: Float[Tensor, "n t c"], rope: Rope) -> Float[Tensor, "n t d"]:
        x = self.projects(x)
        for block in self.blocks:
            x = block(x, rope=rope)
        return self.linear_out(x)


class PatchPixels(nn.Module):
    """Every patch token says its own pixels."""

    def __init__(self, dim: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, channels * patch * patch)

    def forward(self, x: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n h w d"]:
        pixels = self.proj(x).transpose(1, 2).unflatten(2, grid)
        return pixel_shuffle(pixels, self.patch).permute(0, 2, 3, 1)


class ResidualLinear(nn.Module):
    """x + relu(fc(relu(fc(relu(fc x)))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Linear(dim, dim)
        self.res_conv2 = nn.Linear(dim, dim)
        self.res_conv3 = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        return x + relu(self.res_conv3(relu(self.res_conv2(relu(self.res_conv1(x))))))


class CameraHead(nn.Module):
    """Patch tokens -> mean -> translation and nine numbers of a rotation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList([ResidualLinear(dim) for _ in range(2)])
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, 9)

    def forward(self, x: Float[Tensor, "n t c"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 9"]]:
        for unit in self.res_conv:
            x = unit(x)
        x = self.more_mlps(x.mean(dim=1))
        return self.fc_t(x).float(), self.fc_rot(x).float()


def rotation_from_nine(nine: Float[Tensor, "n 9"]) -> Float[Tensor, "n 3 3"]:
    """The rotation nearest to the matrix with these rows after each row is made a unit vector (arXiv 2006.14616)."""
    rows = normalize(nine.unflatten(1, (3, 3)), dim=-1)
    u, _, vh = torch.linalg.svd(rows)
    handed = torch.ones_like(nine[:, :3])
    handed[:, 2] = torch.linalg.det(u @ vh)
    return (u * handed[:, None, :]) @ vh


class Pi3(GeometryModel):
    """Pi3. Input pictures [n h w 3] in [0, 1], sides multiples of 14 (published: up to 255,000 pixels)."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Pi3Config) -> None:
        super().__init__(config.vit.patch)
        self.config = config
        self.encoder = Vit(config.vit)
        block = BlockConfig(config.dim, config.heads, scale=0.01, qk_norm="layer", eps=1e-6)
        self.decoder = nn.ModuleList([Block(block) for _ in range(config.depth)])
        self.register_token = nn.Parameter(torch.zeros(1, 1, config.registers, config.dim))
        self.point_decoder = HeadTransformer(config, config.head_dim)
        self.point_head: nn.Module = PatchPixels(config.head_dim, 3, config.vit.patch)
        self.conf_decoder = HeadTransformer(config, config.head_dim)
        self.conf_head: nn.Module = PatchPixels(config.head_dim, 1, config.vit.patch)
        self.camera_decoder = HeadTransformer(config, config.camera_dim)
        self.camera_head = CameraHead(config.camera_dim)
        # They are in the files. Made on the CPU even where the module is built without memory.
        mean, std = torch.tensor(IMAGENET_MEAN, device="cpu"), torch.tensor(IMAGENET_STD, device="cpu")
        self.register_buffer("image_mean", mean.view(1, 3, 1, 1))
        self.register_buffer("image_std", std.view(1, 3, 1, 1))

    def cache_shapes(self, height: int, width: int) -> dict[str, KVShape]:
        """Odd blocks see all pictures."""
        c = self.config
        tokens = c.registers + (height // c.vit.patch) * (width // c.vit.patch)
        return {"trunk": KVShape(c.depth // 2, c.heads, c.dim // c.heads, tokens)}

    def _look(self, images: Float[Tensor, "n h w 3"], ask: Ask) -> Geometry:
        size = (images.shape[1], images.shape[2])
        return self._answer(self._trunk(self._encode(images), size, ask), size, ask.dense)

    def _encode(self, images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n p c"]:
        x = normalized(images, self.image_mean, self.image_std)
        return self.encoder(x, chunk=self.config.view_chunk)[:, self.encoder.special :]

    def _rope(self, size: tuple[int, int]) -> Rope:
        c = self.config
        positions = grid_positions(size[0] // c.vit.patch, size[1] // c.vit.patch, special=c.registers)
        return rope_2d(positions.to(self.register_token.device), c.dim // c.heads)

    def _trunk(
        self,
        patches: Float[Tensor, "n p c"],
        size: tuple[int, int],
        ask: Ask,
        inject: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "n t c2"]:
        """The outputs of the last two blocks, side by side. ``inject`` may add to the tokens after a block."""
        c, n, queries = self.config, len(patches), ask.queries
        x = torch.cat([self.register_token[0].expand(n, -1, -1), patches], dim=1)
        tokens = x.shape[1]
        rope = self._rope(size)
        all_ropes = rope.tiled(n)
        mask = query_mask(tokens, n, queries).to(x.device) if 0 < queries < n else None
        own = x
        for layer, block in enumerate(self.decoder):
            if layer % 2 == 0:
                x = own = views_in_chunks(block, x, c.view_chunk, rope)
            else:
                remember = ask.door("trunk", layer // 2) if ask.door else None
                together = x.reshape(1, n * tokens, c.dim)
                x = block(together, rope=all_ropes, mask=mask, remember=remember).view(n, tokens, c.dim)
            if inject is not None:
                x = inject(layer, x)
        return torch.cat([own, x], dim=-1)

    def _answer(self, last: Float[Tensor, "n t c2"], size: tuple[int, int], dense: bool) -> Geometry:
        """The heads, which see one picture, a few pictures at a time."""
        published = self._cameras(last, size)
        world_from_cam = published["camera_poses"]
        height, width = size
        if not dense:
            K = intrinsics_from_rays(torch.full((len(last), height, width, 2), torch.nan, device=last.device))
            return Geometry(Cameras(world_from_cam, K, height, width), published=published)
        published |= self._points(last, size)
        local, conf = published["local_points"], published["conf"]
        K = intrinsics_from_rays(local[..., :2] / local[..., 2:])
        rotation, center = world_from_cam[:, None, None, :3, :3], world_from_cam[:, None, None, :3, 3]
        points = (rotation @ local[..., None])[..., 0] + center
        published["points"] = points
        cameras = Cameras(world_from_cam, K, height, width)
        return Geometry(cameras, local[..., 2], conf[..., 0].sigmoid(), points, published=published)

    def _cameras(self, last: Float[Tensor, "n t c2"], size: tuple[int, int]) -> dict[str, Tensor]:
        rope, skip = self._rope(size), self.config.registers

        def answers() -> Iterator[dict[str, Tensor]]:
            for few in last.split(self.config.view_chunk):
                translation, nine = self.camera_head(self.camera_decoder(few, rope)[:, skip:])
                poses = rigid(rotation_from_nine(nine), translation)
                yield {"camera_poses": poses, "cam_fc_t": translation, "cam_fc_rot": nine}

        return gathered(answers(), len(last))

    def _points(self, last: Float[Tensor, "n t c2"], size: tuple[int, int]) -> dict[str, Tensor]:
        """Camera-frame points and confidence logits."""
        rope, skip = self._rope(size), self.config.registers
        grid = (size[0] // self.patch, size[1] // self.patch)

        def answers() -> Iterator[dict[str, Tensor]]:
            for few in last.split(self.config.view_chunk):
                points = self._local_points(self.point_decoder(few, rope)[:, skip:], grid)
                yield {"local_points": points, "conf": self._confidence(self.conf_decoder(few, rope)[:, skip:], grid)}

        return gathered(answers(), len(last))

    def _local_points(self, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n h w 3"]:
        raw = self.point_head(tokens, grid).float()
        z = raw[..., 2:].exp()
        return torch.cat([raw[..., :2] * z, z], dim=-1)

    def _confidence(self, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n h w 1"]:
        return self.conf_head(tokens, grid).float()


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys are ours."""
    return dict(state)


def to_published(name: str) -> str:
    """Our key -> the published one."""
    return name
