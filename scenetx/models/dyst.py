"""DyST: dynamic neural scene representations on real-world videos (Seitzer et al., ICLR 2024, arXiv 2310.06020).

RUST with two estimators of one architecture: a camera latent and a dynamics latent. They are kept apart by swapping: of
a scene rendered as a grid of cameras x moments, the picture (camera c, moment m) is painted with the camera latent of a
picture that shares c only and the dynamics latent of one that shares m only. No code or weights of DyST are public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenetx.core import InputError
from scenetx.models.rust import Half, Rust, RustConfig
from scenetx.models.view_model import LatentViews, Views


@dataclass(frozen=True)
class DystConfig(RustConfig):
    """RUST's sizes; ``latent`` is the camera's."""

    dynamics: int = 8


class Dyst(Rust):
    """Latents are laid side by side: camera, then dynamics. Output in (0, 1)."""

    name: ClassVar[str] = "dyst"
    config: DystConfig

    def __init__(self, config: DystConfig | None = None) -> None:
        super().__init__(config or DystConfig())

    def _latents(self) -> dict[str, int]:
        return {"camera": self.config.latent, "dynamics": self.config.dynamics}

    def combined(self, camera: LatentViews, dynamics: LatentViews) -> LatentViews:
        """Views from the cameras of one batch at the moments of another."""
        if len(camera) != len(dynamics):
            raise InputError("latents", f"{len(camera)} cameras and {len(dynamics)} moments", "give equally many")
        cut = self.config.latent
        latents = torch.cat([camera.latents[:, :cut], dynamics.latents[:, cut:]], dim=-1)
        return LatentViews(latents, camera.height, camera.width)

    def swapped(
        self, views: Views, grid: Float[Tensor, "c m h w 3"], order: Int[Tensor, "k 2"], half: Half
    ) -> Float[Tensor, "k h w 3"]:
        """Training's forward on one scene: pictures ``order`` (camera, moment) of the grid, each painted from others.

        The camera latent comes from the same camera at the next moment, the dynamics latent from the next camera at the
        same moment (round about), so neither has seen the target. Raises InputError for a grid with one row or column,
        which leaves nothing to swap.
        """
        cameras, moments = grid.shape[:2]
        if cameras < 2 or moments < 2:
            raise InputError("grid", f"{cameras} cameras x {moments} moments", "give at least two of each")
        state = self._encode(views, None, "")
        camera, moment = order[:, 0], order[:, 1]
        from_camera = self._estimate(state, grid[camera, (moment + 1) % moments], "all")
        from_moment = self._estimate(state, grid[(camera + 1) % cameras, moment], half)
        return self._decode(state, self.combined(from_camera, from_moment))


PRESETS = {"dyso": DystConfig()}


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No weights are published by others: the names are ours."""
    return dict(tensors)
