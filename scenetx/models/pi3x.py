"""Pi3X: Pi3 with metric scale, smooth point maps, and given depth, intrinsics and poses where there are any.

Given intrinsics and depth are added to the patch tokens; given poses act through five blocks of attention with relative
cameras (PRoPE, arXiv 2507.10496) between the pictures that have one. One more token asks all pictures for the scale.
Published conventions as Pi3's, in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scenetx.core.rigid import invert_rigid
from scenetx.models.attention import attend
from scenetx.models.backbone import Vit
from scenetx.models.geometry import Geometry
from scenetx.models.geometry_model import Ask
from scenetx.models.given import Given, slopes
from scenetx.models.layers import Attention, BlockConfig, LayerScale, Mlp, PatchEmbed, Rope, rotate
from scenetx.models.pi3 import Pi3, Pi3Config
from scenetx.models.prope import Prope

STILL = 0.02  # a set of given cameras that move less than this (in mean depths) is not rescaled by its motion
FARTHEST = 15.0  # log of the largest depth the head may say


@dataclass(frozen=True)
class Pi3xConfig(Pi3Config):
    """Pi3X as released."""

    metric_dim: int = 512
    metric_heads: int = 8
    upsample: tuple[int, ...] = (256, 128, 64)
    pose_after: tuple[int, ...] = (1, 9, 17, 25, 33)  # blocks after which given poses act


PRESETS = {"released": Pi3xConfig()}


class ConvUnit(nn.Module):
    """x + conv(relu(norm(conv(relu(norm x))))), edges repeated (MoGe, arXiv 2410.19115)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 2 * dim
        self.layers = nn.Sequential(
            nn.GroupNorm(1, dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, hidden, 3, padding=1, padding_mode="replicate"),
            nn.GroupNorm(hidden // 32, hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, dim, 3, padding=1, padding_mode="replicate"),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return x + self.layers(x)


class ConvHead(nn.Module):
    """Patch tokens, upsampled three times with the pixel's place as two more channels, to the picture's size."""

    def __init__(self, dim: int, widths: tuple[int, ...], outputs: tuple[int, ...], patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.upsample_blocks = nn.ModuleList()
        for before, after in zip((dim, *widths[:-1]), widths, strict=True):
            enlarge = nn.Sequential(
                nn.ConvTranspose2d(before + 2, after, 2, stride=2),
                nn.Conv2d(after, after, 3, padding=1, padding_mode="replicate"),
            )
            self.upsample_blocks.append(nn.Sequential(enlarge, ConvUnit(after), ConvUnit(after)))
        self.output_block = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(widths[-1] + 2, 32, 3, padding=1, padding_mode="replicate"),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(32, channels, 1),
                )
                for channels in outputs
            ]
        )

    def forward(self, x: Float[Tensor, "n t c"], grid: tuple[int, int]) -> list[Float[Tensor, "n h w _"]]:
        """One map an output, channels last."""
        aspect = grid[1] / grid[0]
        y = x.transpose(1, 2).unflatten(2, grid)
        for block in self.upsample_blocks:
            y = block(_with_place(y, aspect))
        size = (grid[0] * self.patch, grid[1] * self.patch)
        y = _with_place(interpolate(y, size, mode="bilinear", align_corners=False), aspect)
        return [block(y).permute(0, 2, 3, 1) for block in self.output_block]


def _with_place(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n d h w"]:
    """Two more channels: the pixel centre's place, the picture's diagonal being 2."""
    height, width = x.shape[-2:]
    diagonal = (1 + aspect * aspect) ** 0.5
    right = aspect / diagonal * (width - 1) / width
    low = (height - 1) / height / diagonal
    across = torch.linspace(-right, right, width, dtype=x.dtype, device=x.device).expand(height, width)
    down = torch.linspace(-low, low, height, dtype=x.dtype, device=x.device)[:, None].expand(height, width)
    place = torch.stack([across, down]).expand(len(x), -1, -1, -1)
    return torch.cat([x, place], dim=1)


class PoseAttention(Attention):
    """Self-attention between pictures of known relative pose."""

    def related(self, x: Float[Tensor, "1 n c"], cameras: Prope) -> Float[Tensor, "1 n c"]:
        """What `forward` gives, with queries, keys and values carried between the cameras' frames."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        out = cameras.answer(attend(cameras.query(q), cameras.stored(k), cameras.stored(v)))
        return self.proj(out.transpose(1, 2).flatten(2))


class PoseInject(nn.Module):
    """What given poses add to the patch tokens: attention and feed-forward side by side, both of the same input."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim, scale = config.dim, config.scale or 1.0
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.attn = PoseAttention(dim, config.heads, qk_norm="layer", eps=config.qk_eps)
        self.ls1 = LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, scale)

    def forward(self, x: Float[Tensor, "1 n c"], cameras: Prope) -> Float[Tensor, "1 n c"]:
        return self.ls1(self.attn.related(self.norm1(x), cameras)) + self.ls2(self.mlp(self.norm2(x)))


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another; both turn with their places."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "1 m c"], y: Float[Tensor, "1 n c"], rope: Rope) -> Float[Tensor, "1 m c"]:
        """``rope`` is y's; x stands at (0, 0)."""
        q, k, v = (
            layer(s).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, s in ((self.q_proj, x), (self.k_proj, y), (self.v_proj, y))
        )
        return self.proj(attend(q, rotate(k, rope), v).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Cross-attention and feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.norm_y = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "1 m c"], y: Float[Tensor, "1 n c"], rope: Rope) -> Float[Tensor, "1 m c"]:
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), rope)
        return x + self.mlp(self.norm3(x))


class MetricDecoder(nn.Module):
    """One token reads all pictures' tokens."""

    def __init__(self, config: Pi3xConfig) -> None:
        super().__init__()
        dim = config.metric_dim
        self.projects_x = nn.Linear(2 * config.dim, dim)
        self.projects_y = nn.Linear(2 * config.dim, dim)
        self.blocks = nn.ModuleList([CrossBlock(dim, config.metric_heads) for _ in range(config.head_depth)])
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, token: Float[Tensor, "1 1 c"], last: Float[Tensor, "1 n c"], rope: Rope) -> Float[Tensor, "d"]:
        x, y = self.projects_x(token), self.projects_y(last)
        for block in self.blocks:
            x = block(x, y, rope)
        return self.linear_out(x)[0, 0]


class Pi3x(Pi3):
    """Pi3X. Input pictures [n h w 3] in [0, 1], sides multiples of 14; answers in metres.

    Given poses and depth are taken to share one scale, whichever it is.
    """

    metric = True
    takes = ("cameras", "K", "depth")
    noted = ("metric",)
    config: Pi3xConfig

    def __init__(self, config: Pi3xConfig) -> None:
        super().__init__(config)
        patch = config.vit.patch
        self.point_head = ConvHead(config.head_dim, config.upsample, (2, 1), patch)
        self.conf_head = ConvHead(config.head_dim, config.upsample, (1,), patch)
        self.depth_encoder = Vit(replace(config.vit, channels=2))
        self.depth_emb = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.ray_embed = PatchEmbed(patch, 2, config.dim)
        block = BlockConfig(config.dim, config.heads, scale=0.01, eps=1e-6)
        self.pose_inject_blk = nn.ModuleList([PoseInject(block) for _ in config.pose_after])
        self.metric_token = nn.Parameter(torch.zeros(1, 1, 2 * config.dim))
        self.metric_decoder = MetricDecoder(config)
        self.metric_head = nn.Linear(config.metric_dim, 1)

    def _look(self, images: Float[Tensor, "n h w 3"], ask: Ask) -> Geometry:
        size, known = (images.shape[1], images.shape[2]), len(images) - ask.queries
        given = _scaled(ask.given)
        patches = self._encode(images)
        if known:
            patches = torch.cat([patches[:known] + self._given_tokens(given, size), patches[known:]])
        last = self._trunk(patches, size, ask, self._injector(given, size))
        metric = self._metric(last[:known] if known else last, size) if ask.notes is None else ask.notes["metric"]
        return self._metric_answer(self._answer(last, size, ask.dense), metric)

    def _given_tokens(self, given: Given, size: tuple[int, int]) -> Float[Tensor, "n p c"] | float:
        """What given intrinsics and depth add to the patch tokens."""
        total: Tensor | float = 0.0
        if given.K is not None:
            total = total + self.ray_embed(slopes(given.K, size).permute(0, 3, 1, 2))
        if given.depth is not None:
            depth = given.depth[:, None]
            seen = torch.cat([depth, (depth > 0).to(depth)], dim=1)
            encoded = self.depth_encoder(seen, chunk=self.config.view_chunk)
            total = total + encoded[:, self.depth_encoder.special :] + self.depth_emb
        return total

    def _injector(self, given: Given, size: tuple[int, int]) -> Callable[[int, Tensor], Tensor] | None:
        if given.world_from_cam is None or len(given.world_from_cam) < 2:
            return None  # poses act relative to each other
        c, n = self.config, len(given.world_from_cam)
        rows, columns = size[0] // c.vit.patch, size[1] // c.vit.patch
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        # The published rotation runs backwards and puts x before y.
        grid = -torch.stack([x, y], -1).flatten(0, 1).repeat(n, 1)
        cam_from_world = invert_rigid(given.world_from_cam)[None]
        cameras = Prope.of(cam_from_world, (rows * columns,) * n, grid, c.dim // c.heads)

        def inject(layer: int, x: Tensor) -> Tensor:
            if layer not in c.pose_after:
                return x
            block = self.pose_inject_blk[c.pose_after.index(layer)]
            posed = x[:n, c.registers :]
            added = block(posed.reshape(1, -1, c.dim), cameras).view(posed.shape)
            x = x.clone()
            x[:n, c.registers :] += added
            return x

        return inject

    def _metric(self, last: Float[Tensor, "n t c"], size: tuple[int, int]) -> Float[Tensor, ""]:
        """Metres a unit."""
        rope = self._rope(size).tiled(len(last))
        read = self.metric_decoder(self.metric_token, last.flatten(0, 1)[None], rope)
        return self.metric_head(read).float().exp()[0]

    def _metric_answer(self, geometry: Geometry, metric: Float[Tensor, ""]) -> Geometry:
        """The answer in metres."""
        world_from_cam = geometry.cameras.world_from_cam.clone()
        world_from_cam[:, :3, 3] *= metric
        published = dict(geometry.published) | {"camera_poses": world_from_cam, "metric": metric}
        for name in {"points", "local_points"} & published.keys():
            published[name] = published[name] * metric
        return replace(
            geometry,
            cameras=replace(geometry.cameras, world_from_cam=world_from_cam),
            depth=None if geometry.depth is None else geometry.depth * metric,
            points=published.get("points"),
            metric=True,
            published=published,
        )

    def _local_points(self, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n h w 3"]:
        slopes, depth = (each.float() for each in self.point_head(tokens, grid))
        z = depth.clamp(max=FARTHEST).exp()
        return torch.cat([slopes * z, z], dim=-1)

    def _confidence(self, tokens: Float[Tensor, "n t c"], grid: tuple[int, int]) -> Float[Tensor, "n h w 1"]:
        return self.conf_head(tokens, grid)[0].float()


def _scaled(given: Given) -> Given:
    """Poses relative to the first one; lengths in mean given depths, or without depth in mean distances from it."""
    world_from_cam, depth = given.world_from_cam, given.depth
    unit: Tensor | float = 1.0
    if depth is not None and bool((depth > 0).any()):
        unit = depth[depth > 0].mean()
        depth = depth / (unit + 1e-8)
    if world_from_cam is not None:
        world_from_cam = invert_rigid(world_from_cam[:1]) @ world_from_cam
        world_from_cam[:, :3, 3] /= unit
        moved = world_from_cam[1:, :3, 3].norm(dim=-1)
        if depth is None and len(moved) and bool(moved.max() >= STILL):
            world_from_cam[:, :3, 3] /= moved.mean() + 1e-8
    return Given(given.K, world_from_cam, depth)


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys are ours."""
    return dict(state)


def to_published(name: str) -> str:
    """Our key -> the published one."""
    return name
