"""MapAnything 1.1 (arXiv 2509.13414): metric cameras, rays and depth of pictures, and of what is known about them.

DINOv2 ViT-g patch tokens (its first 24 blocks), plus encodings of given rays, depth and poses, share information in 16
blocks (even: all pictures and a scale token; odd: one picture). Published conventions: poses are world_from_cam, OpenCV
axes, quaternions xyzw, the first picture's camera is the world; depth runs along the ray; everything in metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize, pixel_unshuffle, relu

from scenetx.core import Cameras
from scenetx.core.rigid import quat_from_rotation, rigid, rotation_from_quat
from scenetx.models.attention import KVShape, query_mask
from scenetx.models.backbone import Vit, VitConfig, normalized
from scenetx.models.dense_head import FusionBlock, in_strips
from scenetx.models.geometry import Geometry
from scenetx.models.geometry_model import Ask, GeometryModel
from scenetx.models.given import Given, slopes
from scenetx.models.layers import Block, BlockConfig
from scenetx.models.ray_fit import intrinsics_from_rays
from scenetx.models.views import gathered, views_in_chunks

TINY = 1e-8


VIT = VitConfig(1536, 24, 24, feed="swiglu", offset=0.1, final_norm=False)


@dataclass(frozen=True)
class MapAnythingConfig:
    """MapAnything 1.1 (both licences)."""

    dim: int = 1536
    heads: int = 24
    depth: int = 16
    hidden: int = 4096
    vit: VitConfig = VIT
    between: tuple[int, int] = (7, 11)  # blocks whose outputs the dense head reads, besides the first and the last
    features: int = 256
    widths: tuple[int, ...] = (96, 192, 384, 768)
    given_widths: tuple[int, ...] = (588, 768, 1024)
    code_widths: tuple[int, ...] = (128, 256, 512)
    scale_dim: int = 196
    head_chunk: int = 1  # pictures the dense head takes at once
    view_chunk: int = 4  # pictures that see only themselves, at once


PRESETS = {"1.1": MapAnythingConfig()}


class ConvUnit(nn.Module):
    """gelu(conv(gelu(conv x)) + shortcut x)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        gelu = torch.nn.functional.gelu
        return gelu(self.conv2(gelu(self.conv1(x))) + self.shortcut(x))


class Encoder(nn.Module):
    """Holds the ViT under its published name."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        self.model = Vit(config.vit)


class MapEncoder(nn.Module):
    """A map of the picture's size (rays, depth) -> one token a patch."""

    def __init__(self, channels: int, config: MapAnythingConfig) -> None:
        super().__init__()
        self.patch = config.vit.patch
        first, second, third = config.given_widths
        self.conv_in = nn.Conv2d(channels * self.patch**2, first, 3, padding=1)
        self.encoder = nn.Sequential(ConvUnit(first, second), ConvUnit(second, third), nn.Conv2d(third, config.dim, 1))
        self.norm_layer = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        maps = pixel_unshuffle(maps, self.patch).to(self.conv_in.weight.dtype)
        x = self.encoder(self.conv_in(maps))
        return self.norm_layer(x.flatten(2).transpose(1, 2))


class CodeEncoder(nn.Module):
    """A few numbers (a quaternion, a translation, a log scale) -> one token."""

    def __init__(self, channels: int, config: MapAnythingConfig) -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(channels, config.code_widths[0]), nn.GELU())
        for before, after in zip(config.code_widths[:-1], config.code_widths[1:], strict=True):
            # Nested as published: the nesting is in the key names.
            net = nn.Sequential(net, nn.Linear(before, after), nn.GELU())
        self.encoder = nn.Sequential(net, nn.Linear(config.code_widths[-1], config.dim))
        self.norm_layer = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, codes: Float[Tensor, "n c"]) -> Float[Tensor, "n 1 d"]:
        return self.norm_layer(self.encoder(codes.to(self.norm_layer.weight.dtype)))[:, None]


class Sharing(nn.Module):
    """The blocks that join the pictures, and the mark of the first picture."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        block = BlockConfig(config.dim, config.heads, config.hidden, "swiglu", scale=1e-5, eps=1e-6)
        self.self_attention_blocks = nn.ModuleList([Block(block) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        # Row 0 of a sinusoidal table: sin 0, cos 0, ... It is in the file.
        mark = torch.tensor([0.0, 1.0], device="cpu").repeat(config.dim // 2)[None]
        self.register_buffer("view_pos_table", mark)

    view_pos_table: Tensor


class DenseFeatures(nn.Module):
    """DPT as in CroCo and DUSt3R: each fusion doubles the size; the coarsest is cropped to the next lateral."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        dim, features = config.dim, config.features
        a, b, c, d = config.widths
        steps: list[list[nn.Module]] = [
            [nn.Conv2d(dim, a, 1), nn.ConvTranspose2d(a, a, 4, stride=4)],
            [nn.Conv2d(dim, b, 1), nn.ConvTranspose2d(b, b, 2, stride=2)],
            [nn.Conv2d(dim, c, 1)],
            [nn.Conv2d(dim, d, 1), nn.Conv2d(d, d, 3, stride=2, padding=1)],
        ]
        self.input_process = nn.ModuleList(
            nn.Sequential(nn.Sequential(*step), nn.Conv2d(width, features, 3, padding=1, bias=False))
            for step, width in zip(steps, config.widths, strict=True)
        )
        self.scratch = nn.Module()
        for level in range(1, 5):
            self.scratch.add_module(f"refinenet{level}", FusionBlock(features, lateral=level < 4, relu_skip=False))

    def lateral(self, index: int, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n f i j"]:
        """One of the four layers, at its scale and the common width."""
        return self.input_process[index](tokens.transpose(1, 2).unflatten(2, grid))

    def forward(self, laterals: Sequence[Float[Tensor, "n f _ _"]]) -> Float[Tensor, "n f h w"]:
        blocks = [self.scratch.get_submodule(f"refinenet{level}") for level in range(1, 5)]
        rows, columns = laterals[2].shape[-2:]
        out = blocks[3](laterals[3])[..., :rows, :columns]
        for level in (2, 1, 0):
            out = blocks[level](out, laterals[level])
        return out


class DenseEnd(nn.Module):
    """To the picture's size and its channels."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        half = features // 2
        self.conv1 = nn.Conv2d(features, half, 3, padding=1)
        self.conv2 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, channels, 1))

    def forward(self, x: Float[Tensor, "n f i j"], size: tuple[int, int]) -> Float[Tensor, "n h w c"]:
        x = interpolate(self.conv1(x), size=size, mode="bilinear", align_corners=True)
        return in_strips(self.conv2, x).permute(0, 2, 3, 1)


class DenseHead(nn.Sequential):
    """Features, then pixels: ray 3, depth along it, confidence, mask (raw)."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__(DenseFeatures(config), DenseEnd(config.features, 6))

    def lateral(self, index: int, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n f i j"]:
        """`DenseFeatures.lateral`."""
        features = self[0]
        assert isinstance(features, DenseFeatures)
        return features.lateral(index, tokens, grid)

    def pixels(self, laterals: Sequence[Float[Tensor, "n f _ _"]], size: tuple[int, int]) -> Float[Tensor, "n h w 6"]:
        return self[1](self[0](laterals), size)


class ResidualPointwise(nn.Module):
    """x + relu(conv(relu(conv(relu(conv x))))), 1x1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Conv2d(dim, dim, 1)
        self.res_conv2 = nn.Conv2d(dim, dim, 1)
        self.res_conv3 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + relu(self.res_conv3(relu(self.res_conv2(relu(self.res_conv1(x))))))


class PoseHead(nn.Module):
    """Patch tokens -> mean -> translation and quaternion xyzw (raw)."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        dim = 4 * config.vit.patch**2
        self.proj = nn.Conv2d(config.dim, dim, 1)
        self.res_conv = nn.ModuleList([ResidualPointwise(dim) for _ in range(2)])
        self.more_mlps = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.fc_t = nn.Linear(dim, 3)
        self.fc_rot = nn.Linear(dim, 4)

    def forward(self, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n 7"]:
        x = self.proj(tokens.transpose(1, 2).unflatten(2, grid))
        for unit in self.res_conv:
            x = unit(x)
        x = self.more_mlps(x.mean(dim=(2, 3)))
        return torch.cat([self.fc_t(x), self.fc_rot(x)], dim=-1)


class ScaleHead(nn.Module):
    """The scale token -> log of metres a unit."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        dim = config.scale_dim
        self.proj = nn.Linear(config.dim, dim)
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(dim, dim), nn.ReLU()) for _ in range(2)])
        self.output_proj = nn.Linear(dim, 1)

    def forward(self, token: Float[Tensor, "c"]) -> Float[Tensor, "1"]:
        x = self.proj(token)
        for layer in self.mlp:
            x = layer(x)
        return self.output_proj(x)


class MapAnything(GeometryModel):
    """MapAnything. Input pictures [n h w 3] in [0, 1], sides multiples of 14 (published: longest side 518)."""

    metric = True
    takes = ("cameras", "K", "depth")
    noted = ("metric_scaling_factor",)

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__(config.vit.patch)
        self.config = config
        self.encoder = Encoder(config)
        self.ray_dirs_encoder = MapEncoder(3, config)
        self.depth_encoder = MapEncoder(1, config)
        self.depth_scale_encoder = CodeEncoder(1, config)
        self.cam_rot_encoder = CodeEncoder(4, config)
        self.cam_trans_encoder = CodeEncoder(3, config)
        self.cam_trans_scale_encoder = CodeEncoder(1, config)
        self.fusion_norm_layer = nn.LayerNorm(config.dim, eps=1e-6)
        self.scale_token = nn.Parameter(torch.zeros(config.dim))
        self.info_sharing = Sharing(config)
        self.dense_head = DenseHead(config)
        self.pose_head = PoseHead(config)
        self.scale_head = ScaleHead(config)

    def cache_shapes(self, height: int, width: int) -> dict[str, KVShape]:
        """Even blocks see all pictures; the scale token is the map's."""
        c = self.config
        tokens = 1 + (height // c.vit.patch) * (width // c.vit.patch)
        return {"trunk": KVShape(c.depth // 2, c.heads, c.dim // c.heads, tokens, shared=1)}

    def _look(self, images: Float[Tensor, "n h w 3"], ask: Ask) -> Geometry:
        n, height, width = images.shape[:3]
        known, grid = n - ask.queries, (height // self.patch, width // self.patch)
        x = self.encoder.model(normalized(images), chunk=self.config.view_chunk)
        patches = x[:, 1:]
        if known:
            added = self._given_tokens(ask.given, (height, width))
            patches = torch.cat([patches[:known] + added, patches[known:]])
        x = torch.cat([x[:, :1], self.fusion_norm_layer(patches)], dim=1)
        # In a step the scale token is the map's: in its cache, and what it said in its notes.
        token = self.scale_token[None] if ask.notes is None else self.scale_token.new_zeros(0, self.config.dim)
        last, token, laterals = self._trunk(x, token, grid, ask)
        if ask.notes is None:
            scale = self.scale_head(token[0]).float().exp().clamp(min=TINY)
        else:
            scale = ask.notes["metric_scaling_factor"][0]
        return self._answer(last, laterals, (height, width), scale)

    def _given_tokens(self, given: Given, size: tuple[int, int]) -> Float[Tensor, "n t c"] | float:
        """What is known of the pictures, as sums of tokens; scales are told only where they are metres."""
        total: Tensor | float = 0.0
        if given.K is not None:
            total = total + self.ray_dirs_encoder(_rays(given.K, size).permute(0, 3, 1, 2))
        if given.depth is not None:
            along = given.depth
            if given.K is not None:
                along = along / _rays(given.K, size)[..., 2]
            mean = (along.sum((1, 2)) / ((along > 0).sum((1, 2)) + TINY)).clamp(min=TINY)
            total = total + self.depth_encoder(torch.log1p(along / mean[:, None, None])[:, None])
            if given.metric:
                total = total + self.depth_scale_encoder((mean + TINY).log()[:, None])
        if given.world_from_cam is not None:
            total = total + self._pose_tokens(given.world_from_cam, given.metric)
        return total

    def _pose_tokens(self, world_from_cam: Float[Tensor, "n 4 4"], metric: bool) -> Float[Tensor, "n 1 c"]:
        """Poses relative to the first camera."""
        rotation = world_from_cam[:, :3, :3]
        quat = _relative_quat(quat_from_rotation(rotation))
        away = (world_from_cam[:, :3, 3] - world_from_cam[0, :3, 3]) @ rotation[0]
        distance = away.norm(dim=-1)
        mean = (distance.sum() / ((distance > 0).sum() + TINY)).clamp(min=TINY)
        tokens = self.cam_rot_encoder(quat) + self.cam_trans_encoder(away / mean)
        if metric:
            tokens = tokens + self.cam_trans_scale_encoder((mean + TINY).log().expand(len(quat), 1))
        return tokens

    def _trunk(
        self,
        x: Float[Tensor, "n t c"],
        scale: Float[Tensor, "s c"],
        grid: tuple[int, int],
        ask: Ask,
    ) -> tuple[Float[Tensor, "n p c"], Float[Tensor, "s c"], list[Tensor]]:
        """Last patch tokens, last scale token (if any) and the dense head's four laterals."""
        c, sharing, queries = self.config, self.info_sharing, ask.queries
        n, tokens = x.shape[:2]
        laterals = [self._lateral(0, x[:, 1:], grid)] if ask.dense else []
        if queries < n:
            x = torch.cat([x[:1] + sharing.view_pos_table, x[1:]])
        shared = len(scale)
        mask = query_mask(tokens, n, queries, shared=shared).to(x.device) if 0 < queries < n else None
        for layer, block in enumerate(sharing.self_attention_blocks):
            if layer % 2 == 0:
                remember = ask.door("trunk", layer // 2) if ask.door else None
                together = torch.cat([scale, x.reshape(n * tokens, c.dim)])[None]
                together = block(together, mask=mask, remember=remember)[0]
                scale, x = together[:shared], together[shared:].view(n, tokens, c.dim)
            else:
                x = views_in_chunks(block, x, c.view_chunk)
            if ask.dense and layer in c.between:
                laterals.append(self._lateral(len(laterals), sharing.norm(x[:, 1:]), grid))
        last = sharing.norm(x[:, 1:])
        if ask.dense:
            laterals.append(self._lateral(3, last, grid))
        return last, sharing.norm(scale), laterals

    def _lateral(self, index: int, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n f i j"]:
        few = tokens.split(self.config.head_chunk)
        return gathered(({"x": self.dense_head.lateral(index, part, grid)} for part in few), len(tokens))["x"]

    def _answer(
        self, last: Float[Tensor, "n t c"], laterals: list[Tensor], size: tuple[int, int], scale: Float[Tensor, "1"]
    ) -> Geometry:
        height, width = size
        grid = (height // self.patch, width // self.patch)
        pose = torch.cat([self.pose_head(part, grid) for part in last.split(self.config.view_chunk)]).float()
        quat = normalize(pose[:, 3:], dim=-1)
        rotation = rotation_from_quat(quat.roll(1, dims=-1))
        world_from_cam = rigid(rotation, pose[:, :3] * scale)
        published = {"cam_trans": pose[:, :3] * scale, "cam_quats": quat, "pose_raw": pose}
        published["metric_scaling_factor"] = scale.expand(len(pose), 1)
        if not laterals:
            blind = torch.full((len(pose), height, width, 2), torch.nan, device=pose.device)
            return Geometry(
                Cameras(world_from_cam, intrinsics_from_rays(blind), height, width), metric=True, published=published
            )
        few = zip(*(x.split(self.config.head_chunk) for x in laterals), strict=True)
        raw = gathered(({"raw": self.dense_head.pixels(part, size).float()} for part in few), len(pose))["raw"]
        rays = normalize(raw[..., :3], dim=-1)
        along = raw[..., 3:4].exp()
        local = rays * along * scale
        points = (rotation[:, None, None] @ local[..., None])[..., 0] + world_from_cam[:, None, None, :3, 3]
        published |= {"pts3d": points, "pts3d_cam": local, "ray_directions": rays, "depth_along_ray": along * scale}
        published |= {"conf": raw[..., 4].exp() + 1, "non_ambiguous_mask_logits": raw[..., 5]}
        published["non_ambiguous_mask"] = raw[..., 5] > 0
        K = intrinsics_from_rays(rays[..., :2] / rays[..., 2:].clamp(min=TINY))
        # What the model itself calls ambiguous (sky, mirrors) is not to be trusted at all.
        confidence = published["conf"] * published["non_ambiguous_mask"]
        cameras = Cameras(world_from_cam, K, height, width)
        return Geometry(cameras, local[..., 2], confidence, points, metric=True, published=published)


def _rays(K: Float[Tensor, "n 3 3"], size: tuple[int, int]) -> Float[Tensor, "n h w 3"]:
    """Unit rays of every pixel."""
    flat = slopes(K, size)
    return normalize(torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1), dim=-1)


def _relative_quat(quat: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Quaternions wxyz -> of each relative to the first, xyzw. A product, so its sign is free, as published."""
    w, v = quat[:, :1], quat[:, 1:]
    w0, v0 = w[:1], -v[:1]
    cross = torch.linalg.cross(v0.expand_as(v), v, dim=-1)
    return torch.cat([w0 * v + w * v0 + cross, w0 * w - (v0 * v).sum(-1, keepdim=True)], dim=-1)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys -> ours. The dense head's tensors go by up to four names; a file may hold any of them."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours.setdefault(canonical(name), tensor)
    return ours


def canonical(name: str) -> str:
    """The name we use of the several a shared tensor is published under."""
    name = name.replace("dpt_feature_head.", "dense_head.0.", 1).replace("dpt_regressor_head.", "dense_head.1.", 1)
    for index in range(4):
        for alias in (f"scratch.layer{index + 1}_rn.", f"scratch.layer_rn.{index}."):
            name = name.replace(alias, f"input_process.{index}.1.")
    return name


def to_published(name: str) -> str:
    """Our key -> the published one."""
    return name
