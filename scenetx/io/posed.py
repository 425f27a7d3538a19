"""What a source that brings its own cameras says, before any picture is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from scenetx.core import Points

Lens = Literal["opencv", "fisheye"]


@dataclass(frozen=True)
class PosedPicture:
    """One picture of a posed source. ``K`` and ``distortion`` speak of the file's own upright pixels.

    ``distortion``: lens "opencv": (k1, k2, p1, p2[, k3, k4, k5, k6]); lens "fisheye": (k1, k2, k3, k4); empty = none.
    ``world_from_cam`` (OpenCV axes, in the source's own world frame and scale) is None where the source lists the
    picture without a pose. Depth files are z-depth; metres (world units) = stored value * ``depth_unit``.
    """

    name: str
    path: Path
    world_from_cam: Float[Tensor, "4 4"] | None
    K: Float[Tensor, "3 3"]
    height: int
    width: int
    distortion: tuple[float, ...] = ()
    lens: Lens = "opencv"
    mask_path: Path | None = None
    depth_path: Path | None = None
    depth_unit: float = 0.001


@dataclass(frozen=True)
class PosedSource:
    """A COLMAP model, transforms.json, poses_bounds.npy or cameras.json, in one form."""

    kind: str
    pictures: tuple[PosedPicture, ...]
    points: Points | None = None
    held_out: frozenset[str] = frozenset()
    """Names the source itself marks as test pictures."""
