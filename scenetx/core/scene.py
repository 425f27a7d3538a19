"""The noun every stage takes and gives: pictures with what is known about them, points, Gaussians, history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from scenetx.core.cameras import Cameras
from scenetx.core.gaussians import Gaussians

PosedBy = Literal["none", "input", "sfm", "model"]


@dataclass(frozen=True)
class Original:
    """The photo as it came, turned upright. `K` and `distortion` speak of its pixels (``height`` x ``width``).

    ``distortion`` is OpenCV's (k1, k2, p1, p2[, k3, k4, k5, k6]); empty = pinhole. With the working view's K these give
    the exact way back: working pixel -> ray by inv(K_working) -> distort -> K_original -> original pixel.
    """

    path: str
    height: int
    width: int
    K: Float[Tensor, "3 3"] | None = None
    distortion: tuple[float, ...] = ()
    orientation: int = 1  # EXIF tag 274 of the file; the sizes here are after turning
    focal_exif: float | None = None  # pixels of the upright original, from EXIF, None = not stated
    camera_exif: str = ""  # maker, model and lens: pictures of equal text (and size) share intrinsics
    time: float | None = None  # seconds: EXIF capture time, or time in the video
    lens: Literal["opencv", "fisheye"] = "opencv"  # fisheye: `distortion` is the equidistant (k1, k2, k3, k4)


@dataclass(frozen=True)
class View:
    """One working picture (sRGB, upright, undistorted once `camera` is known) and what is known about it."""

    name: str  # file name inside images/, with forward slashes
    image: UInt8[Tensor, "h w 3"]
    original: Original
    camera: Cameras | None = None  # a batch of one, for `image`'s pixels; None = not registered
    mask: Bool[Tensor, "h w"] | None = None  # True = use this pixel
    depth: Float[Tensor, "h w"] | None = None  # z, world units, 0 = none
    confidence: Float[Tensor, "h w"] | None = None
    held_out: bool = False
    cutout: bool = False  # what the mask leaves out is nothing (the photo is transparent there), not merely unknown

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]


@dataclass(frozen=True)
class Points:
    """A coloured point cloud in the world frame."""

    positions: Float[Tensor, "p 3"]
    colors: UInt8[Tensor, "p 3"]
    errors: Float[Tensor, "p"] | None = None  # mean reprojection error, pixels of the original pictures

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Render:
    """``n`` rendered pictures. depth is the expected z (divided by alpha, 0 where alpha is 0)."""

    rgb: Float[Tensor, "n h w 3"]
    depth: Float[Tensor, "n h w"]
    alpha: Float[Tensor, "n h w"]


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the scene, and why, in words for the user."""

    name: str
    reason: str


@dataclass(frozen=True)
class Stage:
    """A finished step: what it was, how long it took, with which settings, and what it has to say."""

    name: str
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """Everything known about a set of pictures. Stages map a Scene to a Scene by `dataclasses.replace`."""

    views: tuple[View, ...]
    source: str = ""
    points: Points | None = None
    gaussians: Gaussians | None = None
    posed_by: PosedBy = "none"
    skipped: tuple[Skipped, ...] = ()
    history: tuple[Stage, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def registered(self) -> tuple[View, ...]:
        """The views whose camera is known."""
        return tuple(view for view in self.views if view.camera is not None)

    @property
    def training(self) -> tuple[View, ...]:
        return tuple(view for view in self.registered if not view.held_out)

    @property
    def held_out(self) -> tuple[View, ...]:
        return tuple(view for view in self.registered if view.held_out)

    @property
    def world_from_cams(self) -> Float[Tensor, "n 4 4"]:
        """Poses of the registered views."""
        poses = [view.camera.world_from_cam for view in self.registered if view.camera is not None]
        return torch.cat(poses) if poses else torch.zeros(0, 4, 4, dtype=torch.float64)

    @property
    def extent(self) -> float:
        """Largest distance of a registered camera from their mean, world units; 1 when there is none to speak of."""
        centers = self.world_from_cams[:, :3, 3]
        if len(centers) < 2:
            return 1.0
        return float((centers - centers.mean(0)).norm(dim=-1).max()) or 1.0

    def view(self, name: str) -> View:
        for view in self.views:
            if view.name == name:
                return view
        raise KeyError(f"no view named {name!r}; there are {[view.name for view in self.views[:5]]} ...")

    def save(self, folder: str | Path) -> Path:
        """Write the scene folder that `scenetx.load` and other people's tools read; gives its path."""
        # The one import that runs up: a convenience of the noun, bound late so that core stands alone.
        from scenetx.io.scene_dir import save_scene

        save_scene(self, Path(folder))
        return Path(folder)

    def with_stage(self, stage: Stage) -> Scene:
        """The scene with one more line of history (an earlier line of the same name is replaced)."""
        kept = tuple(old for old in self.history if old.name != stage.name)
        return replace(self, history=(*kept, stage))
