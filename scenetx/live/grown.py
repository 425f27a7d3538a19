"""A map of one's own, ready to be tracked in, with the lens that it has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import Cameras, Original, Points, Scene, View
from scenetx.live.anchors import Heir
from scenetx.live.classical import ClassicalLocator, ClassicalSettings
from scenetx.live.classical_map import ClassicalMap
from scenetx.live.grow import FoundLens, GrowingMap
from scenetx.live.radial import bent, straighten


@dataclass(frozen=True)
class Grown:
    """A map that is ready to be tracked in."""

    locator: ClassicalLocator
    known_lens: bool
    holds: bool
    """Whether the lens is known well enough for other maps to begin with it;"""
    steady: bool
    """and for poses to be said."""
    lens: FoundLens
    depth: float
    made: ClassicalMap
    heirs: Mapping[str, Heir] = field(default_factory=dict)
    """Of the pictures it dropped."""

    def K(self, height: int, width: int) -> Float[np.ndarray, "3 3"]:
        """Intrinsics, as the map has them, of frames of this size."""
        scale = np.array([[width / self.made.sizes[0, 1]], [height / self.made.sizes[0, 0]], [1.0]])
        return scale * self.made.K[0]

    def straight(self, image: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "h w 3"]:
        """The frame without the distortion that the map has found."""
        height, width = int(image.shape[0]), int(image.shape[1])
        k1 = self.lens.k1
        return straighten(self.K(height, width), k1, height, width)(image) if k1 else image

    def lens_line(self, height: int, width: int) -> str:
        """What is known of the lens, for people, in the pixels of frames of this size."""
        focal, lens = float(self.K(height, width)[0, 0]), self.lens
        k1 = f"k1 {lens.k1:+.3f} +- {lens.k1_sigma:.3f}"
        return f"focal length {focal:.0f} +- {lens.sigma * focal:.0f} pixels, {k1}, by the map"


def grown_of(growing: GrowingMap, settings: ClassicalSettings, zooms: int) -> Grown:
    """The map as it is now; from ``zooms`` pictures on, and with a lens that is known, it tells when the lens zooms."""
    tells = growing.known_lens and len(growing.stations) >= zooms
    how = settings if tells else replace(settings, zoom=float("inf"), drift=float("inf"))
    locator = ClassicalLocator(growing.map, how)
    return Grown(
        locator=locator,
        known_lens=growing.known_lens,
        holds=growing.holds,
        steady=growing.steady,
        lens=growing.lens,
        depth=growing.middle_depth,
        made=growing.map,
        heirs=dict(growing.heirs),
    )


Pictures = Mapping[str, UInt8[Tensor, "h w 3"]]
"""Of a map's keyframes, by name, as the lens showed them."""


def scene_of(grown: Grown, pictures: Pictures) -> Scene:
    """The keyframes, straightened, as a scene of posed pictures with the map's points."""
    made, k1 = grown.made, grown.lens.k1
    views = []
    for name, pose, K in zip(made.names, made.world_from_cam, made.K, strict=True):
        height, width = int(pictures[name].shape[0]), int(pictures[name].shape[1])
        camera = Cameras(torch.from_numpy(pose)[None], torch.from_numpy(K)[None], height, width)
        original = Original(name, height, width, torch.from_numpy(K), (k1, 0.0, 0.0, 0.0) if k1 else ())
        views.append(View(name, grown.straight(pictures[name]), original, camera))
    points = points_of(grown, pictures)
    return Scene(tuple(views), source="tracked without a map", points=points, posed_by="model")


def points_of(grown: Grown, pictures: Pictures) -> Points:
    """The map's points in the colours of the first pictures that see them."""
    made, k1 = grown.made, grown.lens.k1
    colors = np.zeros((len(made), 3), np.uint8)
    for view in reversed(range(len(made.names))):
        picture = pictures[made.names[view]].numpy()
        rows = np.flatnonzero(made.obs_view == view)
        xy = bent(made.obs_xy[rows].astype(np.float64), made.K[view], k1) if k1 else made.obs_xy[rows]
        x, y = np.floor(xy).astype(int).T
        inside = picture[y.clip(0, picture.shape[0] - 1), x.clip(0, picture.shape[1] - 1)]
        colors[made.obs_point[rows]] = inside
    return Points(torch.from_numpy(made.positions).float(), torch.from_numpy(colors))
