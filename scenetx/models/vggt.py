"""VGGT (arXiv 2503.11651): cameras, depth and world points of any number of pictures, in the first camera's frame.

DINOv2 patch tokens, then 24 times (attention within each picture, attention over all pictures); the camera head refines
its answer four times. Point tracking is left out. Published conventions: ``pose_enc`` is cam_from_world, OpenCV axes;
the first picture's camera is near the identity, scale arbitrary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scenetx.core import Cameras
from scenetx.core.rigid import invert_rigid
from scenetx.models.attention import KVShape, query_mask
from scenetx.models.backbone import Vit, VitConfig, normalized
from scenetx.models.dense_head import DptHead
from scenetx.models.geometry import Geometry
from scenetx.models.geometry_model import Ask, Door, GeometryModel
from scenetx.models.layers import Block, BlockConfig, Mlp, grid_positions, rope_2d
from scenetx.models.pose_codec import decode_pose
from scenetx.models.views import gathered, views_in_chunks

VIT = VitConfig(registers=4, offset=0.0, antialias=True, mask_token=True)


@dataclass(frozen=True)
class VggtConfig:
    """VGGT-1B."""

    dim: int = 1024
    heads: int = 16
    depth: int = 24
    registers: int = 4
    vit: VitConfig = VIT
    out_layers: tuple[int, ...] = (4, 11, 17, 23)
    features: int = 256
    widths: tuple[int, ...] = (256, 512, 1024, 1024)
    camera_depth: int = 4
    camera_rounds: int = 4
    head_chunk: int = 1  # pictures the dense heads take at once
    view_chunk: int = 4  # pictures a per-picture block takes at once


PRESETS = {"1b": VggtConfig()}


class Aggregator(nn.Module):
    """Tokens of a picture: camera, registers, patches. The first picture has camera and registers of its own."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        dim = config.dim
        self.patch_embed = Vit(config.vit)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, dim))
        block = BlockConfig(dim, config.heads, scale=0.01, qk_norm="layer", eps=1e-5)
        self.frame_blocks = nn.ModuleList([Block(block) for _ in range(config.depth)])
        self.global_blocks = nn.ModuleList([Block(block) for _ in range(config.depth)])

    def tokens(self, images: Float[Tensor, "n h w 3"], *, first: bool, chunk: int) -> Float[Tensor, "n t c"]:
        """Of all pictures; ``first`` says whether the first one is the world's."""
        patches = self.patch_embed(normalized(images), chunk=chunk)[:, self.patch_embed.special :]
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        which = torch.ones(len(images), dtype=torch.long, device=images.device)
        if first:
            which[0] = 0
        return torch.cat([special[which], patches], dim=1)


class CameraHead(nn.Module):
    """Camera tokens -> encodings, refined in rounds; each round's update is modulated by the round before."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        dim = 2 * config.dim
        self.rounds = config.camera_rounds
        self.trunk = nn.Sequential(
            *[Block(BlockConfig(dim, config.heads, scale=0.01, eps=1e-5)) for _ in range(config.camera_depth)]
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def forward(
        self, token: Float[Tensor, "n c"], *, mask: Bool[Tensor, "n n"] | None = None, door: Door | None = None
    ) -> list[Float[Tensor, "n 9"]]:
        """The encoding after each round (translation, quaternion xyzw, fields of view)."""
        token = self.token_norm(token)
        plain = torch.nn.functional.layer_norm(token, token.shape[-1:], eps=1e-6)
        encoding: Tensor | None = None
        answers = []
        for turn in range(self.rounds):
            before = self.empty_pose_tokens[0].expand(len(token), -1) if encoding is None else encoding.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(before)).chunk(3, dim=-1)
            x = (gate * (plain * (1 + scale) + shift) + token)[None]
            for layer, block in enumerate(self.trunk):
                remember = door("camera", turn * len(self.trunk) + layer) if door else None
                x = block(x, mask=mask, remember=remember)
            delta = self.pose_branch(self.trunk_norm(x)[0])
            encoding = delta if encoding is None else encoding + delta
            answers.append(torch.cat([encoding[:, :7], encoding[:, 7:].relu()], dim=-1).float())
        return answers


class Vggt(GeometryModel):
    """VGGT. Input pictures [n h w 3] in [0, 1], sides multiples of 14 (published: width 518); the first one's camera is
    the world's frame."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__(config.vit.patch)
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        # Their fusion units were trained with in-place ReLUs: the skips carry relu(x).
        self.point_head = DptHead(2 * config.dim, config.widths, config.features, 4, relu_skip=True)
        self.depth_head = DptHead(2 * config.dim, config.widths, config.features, 2, relu_skip=True)

    def cache_shapes(self, height: int, width: int) -> dict[str, KVShape]:
        """Global blocks, and the camera head's blocks: one camera token a view, once for every round and layer."""
        c = self.config
        patch = c.vit.patch
        tokens = 1 + c.registers + (height // patch) * (width // patch)
        return {
            "trunk": KVShape(c.depth, c.heads, c.dim // c.heads, tokens),
            "camera": KVShape(c.camera_rounds * c.camera_depth, c.heads, 2 * c.dim // c.heads, 1),
        }

    def _look(self, images: Float[Tensor, "n h w 3"], ask: Ask) -> Geometry:
        n, height, width = images.shape[:3]
        tokens, projected = self._trunk(images, ask)
        mask = query_mask(1, n, ask.queries).to(images.device) if 0 < ask.queries < n else None
        rounds = self.camera_head(tokens, mask=mask, door=ask.door)
        cam_from_world, K = decode_pose(rounds[-1], height, width)
        cameras = Cameras(invert_rigid(cam_from_world), K, height, width)
        published = {"pose_enc": rounds[-1], "extrinsics": cam_from_world[:, :3], "intrinsics": K}
        published |= {f"pose_enc_{turn}": encoding for turn, encoding in enumerate(rounds)}
        if not ask.dense:
            return Geometry(cameras, published=published)
        published |= self._dense(projected, width / height)
        depth, confidence = published["depth"][..., 0], published["depth_conf"]
        return Geometry(cameras, depth, confidence, published["world_points"], published=published)

    def _trunk(
        self, images: Float[Tensor, "n h w 3"], ask: Ask
    ) -> tuple[Float[Tensor, "n c2"], list[tuple[Tensor, Tensor]]]:
        """Last camera tokens, and for each of the four layers what the two heads make of it."""
        c, aggregator, queries = self.config, self.aggregator, ask.queries
        n, height, width = images.shape[:3]
        grid, special = (height // c.vit.patch, width // c.vit.patch), 1 + c.registers
        x = aggregator.tokens(images, first=queries < n, chunk=c.view_chunk)
        tokens = x.shape[1]
        rope = rope_2d(grid_positions(*grid, special=special).to(x.device), c.dim // c.heads)
        all_ropes = rope.tiled(n)
        mask = query_mask(tokens, n, queries).to(x.device) if 0 < queries < n else None
        projected: list[tuple[Tensor, Tensor]] = []
        own = x
        for layer, (frame, whole) in enumerate(zip(aggregator.frame_blocks, aggregator.global_blocks, strict=True)):
            own = views_in_chunks(frame, x, c.view_chunk, rope)
            remember = ask.door("trunk", layer) if ask.door else None
            together = own.reshape(1, n * tokens, c.dim)
            x = whole(together, rope=all_ropes, mask=mask, remember=remember).view(n, tokens, c.dim)
            if ask.dense and layer in c.out_layers:
                projected.append(self._project(len(projected), own[:, special:], x[:, special:], grid, width / height))
        return torch.cat([own[:, 0], x[:, 0]], dim=-1), projected

    def _project(
        self,
        index: int,
        own: Float[Tensor, "n t c"],
        x: Float[Tensor, "n t c"],
        grid: tuple[int, int],
        aspect: float,
    ) -> tuple[Tensor, Tensor]:
        chunk, depth, point = self.config.head_chunk, self.depth_head, self.point_head
        pairs = (torch.cat(pair, dim=-1) for pair in zip(own.split(chunk), x.split(chunk), strict=True))
        whole = gathered(
            (
                {"depth": depth.project(index, both, grid, aspect), "point": point.project(index, both, grid, aspect)}
                for both in pairs
            ),
            len(x),
        )
        return whole["depth"], whole["point"]

    def _dense(self, projected: Sequence[tuple[Tensor, Tensor]], aspect: float) -> dict[str, Tensor]:
        """Depth and world points with confidences, a few pictures at a time."""

        def answers() -> Iterator[dict[str, Tensor]]:
            views, chunk = len(projected[0][0]), self.config.head_chunk
            for rows in (slice(start, start + chunk) for start in range(0, views, chunk)):
                depth = self.depth_head([each[rows] for each, _ in projected], aspect).float()
                point = self.point_head([each[rows] for _, each in projected], aspect).float()
                where = point[..., :3]
                yield {
                    "depth": depth[..., :1].exp(),
                    "depth_conf": depth[..., 1].exp() + 1,
                    "world_points": where.sign() * where.abs().expm1(),
                    "world_points_conf": point[..., 3].exp() + 1,
                }

        return gathered(answers(), len(projected[0][0]))


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys are ours; the point tracker's are left out."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("track_head.")}


def to_published(name: str) -> str:
    """Our key -> the published one."""
    return name
