"""RUST: latent neural scene representations from unposed imagery (Sajjadi et al., CVPR 2023, arXiv 2211.14306).

Neither context nor target has a camera. A pose estimator peeks at half of the target picture, compares it with the
first context view's tokens and writes down a latent pose of eight numbers; the decoder paints from latent pose and
pixel position. Trained on the half it did not see, the eight numbers become a camera, which a small supervised probe
(`PoseProbe`) reads out. No code or weights of RUST are public: the facts are the paper's, sizes follow SRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from scenetx.core import Cameras, InputError
from scenetx.core.rigid import rigid
from scenetx.models.rays import Frame, octaves, world_frame
from scenetx.models.scene_state import SceneState
from scenetx.models.srt import SRT_MSN, QueryDecoder, SetEncoder, SrtConfig, pixel_coordinates
from scenetx.models.srt_layers import feed, set_blocks
from scenetx.models.view_model import Inputs, LatentViews, ViewModel, Views, Where

Half = Literal["left", "right", "all"]
UNPOSED = SrtConfig(
    conv_blocks=SRT_MSN.conv_blocks, encoder_layers=5, posed=False, grid=None, pixel_octaves=8, query_hidden=360
)


@dataclass(frozen=True)
class RustConfig:
    """Sizes of the set encoder and decoder, and of the estimator."""

    set: SrtConfig = field(default_factory=lambda: UNPOSED)
    latent: int = 8
    estimator_layers: int = 3
    query_dim: int = 192
    pixel_octaves: int = 8
    """Octaves of a target pixel's place in the query."""


class LatentEstimator(nn.Module):
    """A picture (or half of it) and the first context view's tokens to a few numbers.

    Layers alternate attention into the first view's tokens with attention among the picture's own; the mean token gives
    the latent. Only the first view is looked at, so that latents of one scene share a frame.
    """

    def __init__(self, config: SrtConfig, layers: int, latent: int) -> None:
        super().__init__()
        c, head_dim = config, config.dim // config.heads
        self.eyes = SetEncoder(SrtConfig(**{**config.__dict__, "encoder_layers": 0, "marks": False}))
        self.compare = set_blocks(layers, c.dim, c.heads, head_dim, c.hidden, c.dim)
        self.think = set_blocks(layers, c.dim, c.heads, head_dim, c.hidden)
        self.head = nn.Sequential(nn.LayerNorm(c.dim), nn.Linear(c.dim, latent))

    def forward(
        self, images: Float[Tensor, "n h w 3"], first: Float[Tensor, "b m c"], half: Half
    ) -> Float[Tensor, "n k"]:
        """``n`` pictures of ``b`` scenes, scene-major."""
        x = self.eyes.cells(*peek(images, half))
        first = first.repeat_interleave(len(images) // len(first), 0)
        for compare, think in zip(self.compare, self.think, strict=True):
            k, v = compare.attn.keys_values(first)
            x = think(compare(x, k, v))
        return self.head(x.mean(1))


def peek(images: Float[Tensor, "n h w 3"], half: Half) -> tuple[Float[Tensor, "n h a 3"], None, Float[Tensor, "h a 2"]]:
    """The left or right half (or all) of pictures, and its pixels' coordinates in the whole picture."""
    width = images.shape[2]
    where = pixel_coordinates(*images.shape[1:3]).to(images)
    columns = {"left": slice(0, width // 2), "right": slice(width - width // 2, width), "all": slice(None)}[half]
    return images[:, :, columns], None, where[:, columns]


class Rust(ViewModel):
    """Views without cameras to a set; pictures by latent pose. Output in (0, 1).

    Adding a view mixes the set again (quadratic in the views).
    """

    name: ClassVar[str] = "rust"
    posed: ClassVar[bool] = False

    def __init__(self, config: RustConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or RustConfig()
        self.encoder = SetEncoder(c.set)
        self.estimators = nn.ModuleDict(
            {name: LatentEstimator(c.set, c.estimator_layers, size) for name, size in self._latents().items()}
        )
        self.query = nn.Linear(sum(self._latents().values()) + 4 * c.pixel_octaves, c.query_dim)
        self.decoder = QueryDecoder(c.set, c.query_dim)
        for module in self.modules():
            # The pictures must be louder than their positions, or the latent starts (and stays) the same for all.
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _latents(self) -> dict[str, int]:
        """Name and size of each latent, in the order they are laid beside each other."""
        return {"pose": self.config.latent}

    def frame_of(self, cameras: Cameras, scenes: int) -> Frame:
        """Cameras play no part."""
        del cameras
        return world_frame(scenes)

    def tokenise(self, views: Views) -> Inputs:
        cells = self.encoder.cells(views.images)
        tokens = {"x": cells.unflatten(0, (views.scenes, views.each)).flatten(1, 2)}
        return Inputs((cells.shape[1],) * views.each, tokens, {})

    def remember(self, inputs: Inputs) -> dict[str, Tensor]:
        """The decoder's keys and values, and the mixed tokens of the first view for the estimator."""
        z = self.encoder.mix(inputs.tokens["x"], inputs.sizes)
        return {**self.decoder.memory(z), "first": z[:, : inputs.sizes[0]]}

    def estimate(self, state: SceneState, images: Float[Tensor, "n h w 3"], half: Half = "all") -> LatentViews:
        """The latent poses of pictures of the state's scenes (scene-major), from what ``half`` shows."""
        self._own(state)
        return self._estimate(state, images, half)

    def _estimate(self, state: SceneState, images: Float[Tensor, "n h w 3"], half: Half) -> LatentViews:
        if len(images) == 0 or len(images) % state.scenes:
            raise InputError("targets", f"{len(images)} pictures for {state.scenes} scenes", "give each equally many")
        first = state.memory["first"]
        latents = [estimator(images, first, half) for estimator in self.estimators.values()]
        return LatentViews(torch.cat(latents, dim=-1), *images.shape[1:3])

    def paint(self, memory: Mapping[str, Tensor], where: Where, scenes: int) -> Float[Tensor, "n h w 3"]:
        """Raises TypeError for cameras or rays: this model does not know where they would be."""
        if not isinstance(where, LatentViews):
            raise TypeError(f"{self.name} paints latents (see estimate), not cameras")
        pixels = pixel_coordinates(where.height, where.width).to(where.latents).flatten(0, 1)
        places = octaves(pixels, self.config.pixel_octaves)
        latents = where.latents[:, None].expand(-1, len(places), -1)
        queries = self.query(torch.cat([latents, places.expand(len(where), -1, -1)], dim=-1))
        queries = queries.unflatten(0, (scenes, -1)).flatten(1, 2)
        parts = [self.decoder(part, memory) for part in queries.split(self.config.set.rays_at_once, 1)]
        return torch.cat(parts, dim=1).reshape(len(where), where.height, where.width, 3)

    def reconstruct(self, views: Views, targets: Float[Tensor, "n h w 3"], half: Half) -> Float[Tensor, "n h w 3"]:
        """Training's forward: targets painted from what half of them gives away. Take the loss on the `other` half."""
        state = self._encode(views, None, "")
        return self._decode(state, self._estimate(state, targets, half))


def other(images: Float[Tensor, "n h w 3"], half: Half) -> Float[Tensor, "n h a 3"]:
    """The columns the estimator did not see."""
    width = images.shape[2]
    return images[:, :, width // 2 :] if half == "left" else images[:, :, : width - width // 2]


def principal_directions(latents: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "k"], Float[Tensor, "k k"]]:
    """Standard deviations and directions (rows) of latents, largest first."""
    centred = latents - latents.mean(0)
    _, sizes, rows = torch.linalg.svd(centred, full_matrices=True)
    deviations = torch.zeros(latents.shape[1], dtype=latents.dtype, device=latents.device)
    deviations[: len(sizes)] = sizes / max(len(latents) - 1, 1) ** 0.5
    return deviations, rows


def traversal(start: LatentViews, latents: Float[Tensor, "n k"], direction: int, steps: int = 9) -> LatentViews:
    """From two deviations below to two above ``start`` (one view) along a principal direction of ``latents``."""
    deviations, rows = principal_directions(latents)
    walk = torch.linspace(-2, 2, steps).to(latents)[:, None] * deviations[direction] * rows[direction]
    return LatentViews(start.latents[:1] + walk, start.height, start.width)


class PoseProbe(nn.Module):
    """A supervised read-out: latent poses to explicit ones, ``first_from_cam`` up to the scene's scale.

    Two hidden layers; rotation as two axes made orthonormal (Zhou et al., 2019). It tells what latents know; it does
    not train them: detach the latents.
    """

    def __init__(self, latent: int = 8, hidden: int = 256) -> None:
        super().__init__()
        self.layers = feed((latent, hidden, hidden, 9))

    def forward(self, latents: Float[Tensor, "n k"]) -> Float[Tensor, "n 4 4"]:
        out = self.layers(latents)
        return rigid(rotation_from_axes(out[:, :3], out[:, 3:6]), out[:, 6:])


def rotation_from_axes(x: Float[Tensor, "n 3"], y: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """The rotation whose first columns are ``x`` and ``y`` by Gram-Schmidt (Zhou et al., 2019, eq. 15)."""
    first = normalize(x, dim=-1)
    second = normalize(y - (first * y).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-1)


PRESETS = {"msn": RustConfig()}


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No weights are published by others: the names are ours."""
    return dict(tensors)
