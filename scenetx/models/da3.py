"""Depth Anything 3 (arXiv 2511.10647): cameras, depth and rays of any number of pictures, cameras given or not.

A DINOv2 ViT whose later blocks alternate between one picture and all pictures; its class token becomes a camera token.
Written from the published description and its released checkpoints' layout; splat head of the giant left out.
Published conventions: ``pose_enc`` is world_from_cam, ``extrinsics`` cam_from_world, OpenCV axes, scale arbitrary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.models.attention import KVShape, query_mask
from scenetx.models.backbone import Vit, VitConfig, normalized
from scenetx.models.dense_head import Pyramid, pixel_end, to_pixels
from scenetx.models.geometry import Geometry
from scenetx.models.geometry_model import Ask, GeometryModel
from scenetx.models.layers import Block, BlockConfig, Mlp, grid_positions, rope_2d
from scenetx.models.pose_codec import decode_pose, encode_pose
from scenetx.models.views import at_once, gathered, views_in_chunks


@dataclass(frozen=True)
class Da3Config:
    """Sizes of one published model; blocks from ``alternate_from`` on alternate and use norms and rotations."""

    dim: int = 384
    depth: int = 12
    heads: int = 6
    feed: Literal["mlp", "swiglu"] = "mlp"
    alternate_from: int = 4
    out_layers: tuple[int, ...] = (5, 7, 9, 11)
    features: int = 64
    widths: tuple[int, ...] = (48, 96, 192, 384)
    patch: int = 14
    head_chunk: int = 1  # pictures the dense head takes at once
    view_chunk: int = 4  # pictures a per-picture block takes at once

    @property
    def vit(self) -> VitConfig:
        return VitConfig(
            self.dim,
            self.depth,
            self.heads,
            patch=self.patch,
            feed=self.feed,
            offset=0.1,
            norm_eps=1e-5,
            qk_norm_from=self.alternate_from,
        )


LARGE = (256, 512, 1024, 1024)
PRESETS = {
    "small": Da3Config(),
    "base": Da3Config(768, 12, 12, features=128, widths=(96, 192, 384, 768)),
    "large": Da3Config(
        1024, 24, 16, alternate_from=8, out_layers=(11, 15, 19, 23), features=256, widths=LARGE
    ),
    "giant": Da3Config(
        1536, 40, 24, "swiglu", alternate_from=13, out_layers=(19, 27, 33, 39), features=256, widths=LARGE
    ),
}  # fmt: skip


class CameraVit(Vit):
    """DINOv2 with two camera tokens: of the reference picture, and of the others."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__(config.vit)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, config.dim))


class Backbone(nn.Module):
    """Holds the ViT under its published name."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        self.pretrained = CameraVit(config)


class DualHead(Pyramid):
    """One pyramid, two fusion chains: depth at the picture's size, rays at 8/14 of it."""

    def __init__(self, config: Da3Config) -> None:
        features = config.features
        super().__init__(2 * config.dim, config.widths, features)
        self.patch = config.patch
        self.add_fusion(features, relu_skip=False)
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = pixel_end(features // 2, 2)
        self.add_fusion(features, relu_skip=False, suffix="_aux")
        # The files hold an end for each of four levels; only the finest was ever an output.
        self.scratch.output_conv1_aux = nn.ModuleList([_ray_neck(features) for _ in range(4)])
        self.scratch.output_conv2_aux = nn.ModuleList([_ray_end(features // 2) for _ in range(4)])

    def forward(
        self, projected: list[Float[Tensor, "n _ _ _"]], aspect: float
    ) -> tuple[Float[Tensor, "n h w 2"], Float[Tensor, "n i j 7"]]:
        """Raw (depth, confidence) and raw (ray direction and origin, confidence)."""
        rows, columns = projected[2].shape[-2:]
        laterals, parts = self.laterals(projected), self.scratch
        depth = parts.output_conv1(self.fuse(laterals))
        size = (rows * self.patch, columns * self.patch)
        raw_depth = to_pixels(depth, parts.output_conv2, size, aspect).float()
        ray = parts.output_conv1_aux[-1](self.fuse(laterals, "_aux"))
        ray_size = (ray.shape[-2], ray.shape[-1])
        return raw_depth, to_pixels(ray, parts.output_conv2_aux[-1], ray_size, aspect).float()


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over channels that come first."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _ray_neck(features: int) -> nn.Sequential:
    wide, narrow = features, features // 2
    sizes = [(wide, narrow), (narrow, wide), (wide, narrow), (narrow, wide), (wide, narrow)]
    return nn.Sequential(*[nn.Conv2d(a, b, 3, padding=1) for a, b in sizes])


def _ray_end(features: int) -> nn.Sequential:
    # Identities stand where the published module permutes: the indices are part of the key names.
    return nn.Sequential(
        nn.Conv2d(features, 32, 3, padding=1),
        nn.Identity(),
        ChannelNorm(32),
        nn.Identity(),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 7, 1),
    )


class CameraDecoder(nn.Module):
    """Camera token (after the last block, not normed) -> nine numbers of world_from_cam."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, token: Float[Tensor, "n c"]) -> Float[Tensor, "n 9"]:
        x = self.backbone(token)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], dim=-1).float()


class CameraEncoder(nn.Module):
    """Given cameras -> camera tokens; the cameras attend to each other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        block = BlockConfig(dim, 16, scale=0.01, eps=1e-5)
        self.trunk = nn.Sequential(*[Block(block) for _ in range(4)])
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(9, dim // 2, dim)

    def forward(self, encoding: Float[Tensor, "n 9"], scenes: int = 1) -> Float[Tensor, "n c"]:
        x = self.token_norm(self.pose_branch(encoding.to(self.token_norm.weight.dtype)))
        return self.trunk_norm(self.trunk(x.unflatten(0, (scenes, -1)))).flatten(0, 1)


class Da3(GeometryModel):
    """Depth Anything 3. Input pictures [n h w 3] in [0, 1], sides multiples of 14 (published: longest side 504).

    Given cameras are in a frame near the first one, at a median distance of about one
    (`scenetx.geometry.lift.normalize_cameras`).
    """

    takes = ("cameras",)

    def __init__(self, config: Da3Config) -> None:
        super().__init__(config.patch)
        self.config = config
        self.backbone = Backbone(config)
        self.head = DualHead(config)
        self.cam_dec = CameraDecoder(2 * config.dim)
        self.cam_enc = CameraEncoder(config.dim)

    def cache_shapes(self, height: int, width: int) -> dict[str, KVShape]:
        """Every second block from ``alternate_from`` on sees all views."""
        c = self.config
        tokens = 1 + (height // c.patch) * (width // c.patch)
        return {"trunk": KVShape(len(self.global_layers()), c.heads, c.dim // c.heads, tokens)}

    def global_layers(self) -> list[int]:
        """Indices of the blocks that see all views."""
        return [layer for layer in range(self.config.alternate_from, self.config.depth) if layer % 2 == 1]

    def of_scenes(self, images: Float[Tensor, "n h w 3"], scenes: int, cameras: Cameras | None = None) -> Geometry:
        """`forward` of each of some scenes of equally many views, one after another in ``images``. Training's door."""
        return self._look(images, Ask(self._given(images, cameras, None, None, True, 0), scenes=scenes))

    def _look(self, images: Float[Tensor, "n h w 3"], ask: Ask) -> Geometry:
        height, width = images.shape[1:3]
        told, known = None, ask.given
        if known.world_from_cam is not None and known.K is not None:
            told = self.cam_enc(encode_pose(known.world_from_cam, known.K, height, width), ask.scenes)
        vit, chunk = self.backbone.pretrained, at_once(self.config.view_chunk, len(images))
        x = gathered(({"x": vit.tokens(normalized(few))} for few in images.split(chunk)), len(images))["x"]
        local, x, projected = self.trunk(x, (height // self.patch, width // self.patch), ask, told)
        token = torch.cat([local[:, 0], x[:, 0]], dim=-1)
        encoding = self.cam_dec(token)
        world_from_cam, K = decode_pose(encoding, height, width)
        found = Cameras(world_from_cam, K, height, width)
        published = {"pose_enc": encoding, "extrinsics": found.cam_from_world[:, :3], "intrinsics": K}
        if not ask.dense:
            return Geometry(found, published=published)
        published |= self._dense(projected, width / height)
        return Geometry(found, published["depth"], published["depth_conf"], published=published)

    def _dense(self, projected: list[Float[Tensor, "n _ _ _"]], aspect: float) -> dict[str, Tensor]:
        """Depth and rays with their confidences, a few pictures at a time."""

        def answers() -> Iterator[dict[str, Tensor]]:
            chunk = at_once(self.config.head_chunk, len(projected[0]))
            for few in zip(*(x.split(chunk) for x in projected), strict=True):
                depth, ray = self.head(list(few), aspect)
                yield {
                    "depth": depth[..., 0].exp(),
                    "depth_conf": depth[..., 1].exp() + 1,
                    "ray": ray[..., :6],
                    "ray_conf": ray[..., 6].exp() + 1,
                }

        return gathered(answers(), len(projected[0]))

    def trunk(
        self,
        x: Float[Tensor, "n t c"],
        grid: tuple[int, int],
        ask: Ask,
        given: Float[Tensor, "m c"] | None = None,
    ) -> tuple[Float[Tensor, "n t c"], Float[Tensor, "n t c"], list[Float[Tensor, "n _ _ _"]]]:
        """All blocks over the tokens of pictures of ``grid`` patches.

        After the last block that sees one picture, after the last block, and four layers' projected patch tokens.
        ``given``: camera tokens of the pictures before the queries.
        """
        c, queries = self.config, ask.queries
        n, tokens = x.shape[:2]
        local_rope = rope_2d(grid_positions(*grid, special=1).to(x.device), c.dim // c.heads)
        # In global blocks every patch of every picture sits at (1, 1): keys carry no place and no order.
        global_rope = rope_2d(grid_positions(*grid, special=1, constant=True).to(x.device), c.dim // c.heads)
        global_rope = global_rope.tiled(n // ask.scenes)
        # Pictures that only ask are masked out for the others; in a step the map is not here, only its cache.
        mask = query_mask(tokens, n, queries).to(x.device) if 0 < queries < n else None
        projected: list[Tensor] = []
        local, ordinary = x, x[: n - queries, 0]
        for layer, block in enumerate(self.backbone.pretrained.blocks):
            if layer == c.alternate_from - 1:
                ordinary = x[: n - queries, 0]
            if layer == c.alternate_from:
                cameras = self._camera_tokens(n, ordinary, ask.scenes) if given is None else self._told(n, given)
                x = torch.cat([cameras[:, None], x[:, 1:]], dim=1)
            if layer < c.alternate_from:
                x = local = views_in_chunks(block, x, c.view_chunk)
            elif layer % 2 == 0:
                x = local = views_in_chunks(block, x, c.view_chunk, local_rope)
            else:
                remember = ask.door("trunk", self.global_layers().index(layer)) if ask.door else None
                together = x.reshape(ask.scenes, -1, c.dim)
                x = block(together, rope=global_rope, mask=mask, remember=remember).reshape(n, tokens, c.dim)
            if layer in c.out_layers and ask.dense:
                projected.append(self._project(len(projected), local, x, grid))
        return local, x, projected

    def _project(
        self, index: int, local: Float[Tensor, "n t c"], x: Float[Tensor, "n t c"], grid: tuple[int, int]
    ) -> Float[Tensor, "n d i j"]:
        """What the head needs of a layer, a few pictures at a time: it is smaller than the layer."""
        norm, chunk = self.backbone.pretrained.norm, at_once(self.config.head_chunk, len(x))
        pairs = (
            torch.cat([a[:, 1:], norm(b[:, 1:])], dim=-1)
            for a, b in zip(local.split(chunk), x.split(chunk), strict=True)
        )
        # Patches are square: the grid's aspect is the picture's.
        return gathered(({"x": self.head.project(index, pair, grid, grid[1] / grid[0])} for pair in pairs), len(x))["x"]

    def _camera_tokens(self, n: int, ordinary: Float[Tensor, "m c"], scenes: int) -> Float[Tensor, "n c"]:
        """The token that replaces cls, learned: one for the reference picture of each scene, one for the others.

        ordinary: class tokens of the pictures that may be a reference, those before the queries.
        """
        first, other = self.backbone.pretrained.camera_token[0]
        tokens = other.expand(n, -1).clone()
        views = len(ordinary) // scenes
        if views:
            start = torch.arange(0, len(ordinary), views, device=tokens.device)
            few = views < 3  # published: then the first
            tokens[start if few else start + reference_view(ordinary.unflatten(0, (scenes, views)))] = first
        return tokens

    def _told(self, n: int, given: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """Tokens of given cameras, and the learned one for the queries."""
        return torch.cat([given, self.backbone.pretrained.camera_token[0, 1].expand(n - len(given), -1)])


def reference_view(cls: Float[Tensor, "*b n c"]) -> Int[Tensor, "*b"]:
    """The picture whose class token is most ordinary in similarity, norm and variance (published: saddle_balanced)."""
    norm = cls.norm(dim=-1)
    unit = cls / norm[..., None]
    n = cls.shape[-2]
    similarity = ((unit @ unit.mT) - torch.eye(n, device=cls.device)).sum(-1) / (n - 1)
    off_middle = torch.zeros_like(norm)
    for measure in (similarity, norm, unit.var(dim=-1)):
        low, high = measure.amin(-1, keepdim=True), measure.amax(-1, keepdim=True)
        off_middle += ((measure - low) / (high - low + 1e-8) - 0.5).abs()
    return off_middle.argmin(-1)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys -> ours: the hub wrapper's ``model.`` goes; the giant's splat head is not ours."""
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if not name.startswith("model.gs_")}


def to_published(name: str) -> str:
    """Our key -> the published one."""
    return f"model.{name}"
