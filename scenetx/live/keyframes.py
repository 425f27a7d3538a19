"""Which frames become keyframes of a map, which are turned away, and which go when there are too many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import Cameras, Points, project, unproject
from scenetx.core.cameras import pixel_grid


@dataclass(frozen=True)
class KeyframeSettings:
    """When a frame is worth keeping. Angles in degrees, shifts in units of the depth of what is seen."""

    most: int = 30
    """Keyframes a map holds, at most."""
    angle: float = 10.0
    """A view that is turned by more than this against every keyframe is new."""
    shift: float = 0.15
    """So is one taken from farther away than this from every keyframe."""
    overlap: float = 0.7
    """And one that sees less than this share of what any keyframe sees."""
    least_overlap: float = 0.15
    """A view that sees less than this of every keyframe hangs on nothing: it is turned away."""
    confidence: float = 0.3
    """Poses less sure than this never become keyframes."""

    def __post_init__(self) -> None:
        if self.most < 2 or self.angle <= 0 or self.shift <= 0:
            raise ValueError(f"keyframes: most {self.most} must be 2 or more, angle and shift above 0")


@dataclass(frozen=True)
class Keyframe:
    """A picture of the map. The grid is a coarse picture over what the model saw: about one cell a patch."""

    index: int
    """Number of the frame in its source."""
    picture: UInt8[Tensor, "h w 3"]
    K: Float[Tensor, "3 3"]
    """For the picture's pixels, float64."""
    world_from_cam: Float[Tensor, "4 4"]
    """float64."""
    grid_lens: Float[Tensor, "3 3"]
    """For the grid's cells, float64, as the model says."""
    depth: Float[Tensor, "r c"]
    """z in the world's unit, 0 = none."""
    grey: Float[Tensor, "r c"]
    """Mean brightness, 0 to 1."""
    confidence: float = 1.0
    name: str = ""

    @property
    def grid_camera(self) -> Cameras:
        return Cameras(self.world_from_cam[None], self.grid_lens[None], *self.depth.shape)

    @property
    def middle_depth(self) -> float:
        """Median depth; 1 where none is known."""
        known = self.depth[self.depth > 0]
        return float(known.median()) if len(known) else 1.0


@dataclass(frozen=True)
class Verdict:
    """``new``: worth a place in the map. ``known``: the map has it. ``rejected``: not to be trusted."""

    kind: Literal["new", "known", "rejected"]
    angle: float = 0.0  # degrees to the nearest keyframe
    shift: float = 0.0  # over depth, to the nearest keyframe
    overlap: float = 1.0  # with the keyframe it shares most with
    reason: str = ""


def grid_points(keyframe: Keyframe) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m"]]:
    """World points (float64) and brightness of the grid's cells that have a depth."""
    known = keyframe.depth > 0
    pixels = pixel_grid(*keyframe.depth.shape, dtype=torch.float64)[known]
    points = unproject(pixels[None], keyframe.depth[known].double()[None], keyframe.grid_camera)[0]
    return points, keyframe.grey[known]


def grid_colors(keyframe: Keyframe) -> UInt8[Tensor, "h w 3"]:
    """The picture where the grid's cells have their centres."""
    height, width = keyframe.picture.shape[:2]
    rows, columns = keyframe.depth.shape
    y = ((torch.arange(rows) + 0.5) * height / rows).long().clamp(0, height - 1)
    x = ((torch.arange(columns) + 0.5) * width / columns).long().clamp(0, width - 1)
    return keyframe.picture[y][:, x]


def coloured_points(keyframes: Sequence[Keyframe]) -> Points:
    """The points of `grid_points` of all keyframes, each in the colour of its picture there."""
    places, colors = [torch.zeros(0, 3)], [torch.zeros(0, 3, dtype=torch.uint8)]
    for keyframe in keyframes:
        points, _ = grid_points(keyframe)
        places.append(points.float())
        colors.append(grid_colors(keyframe)[keyframe.depth > 0])
    return Points(torch.cat(places), torch.cat(colors))


def overlap_share(keyframe: Keyframe, camera: Cameras) -> float:
    """Share of what a keyframe sees that lies in another camera's picture (float64, a batch of one); 0 without depth.

    Hiding is not looked at.
    """
    points, _ = grid_points(keyframe)
    if not len(points):
        return 0.0
    seen, z = project(points, camera)
    x, y = seen[0].unbind(-1)
    inside = (z[0] > 1e-9) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
    return float(inside.double().mean())


def steps_between(
    world_from_cam: Float[Tensor, "n 4 4"],
    others: Float[Tensor, "m 4 4"],
    depth: Float[Tensor, "m"],
    settings: KeyframeSettings,
) -> Float[Tensor, "n m"]:
    """How far apart views are, in steps: 1 = a keyframe apart, by turn or by place, whichever says more."""
    turned, moved = turns_and_shifts(world_from_cam, others, depth)
    return torch.maximum(turned / settings.angle, moved / settings.shift)


def turns_and_shifts(
    world_from_cam: Float[Tensor, "n 4 4"], others: Float[Tensor, "m 4 4"], depth: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Angles between the rotations in degrees (roll included), and distances of the centres over ``depth``."""
    trace = torch.einsum("nij,mij->nm", world_from_cam[:, :3, :3], others[:, :3, :3])
    turned = ((trace - 1) / 2).clamp(-1, 1).arccos() * (180 / math.pi)
    moved = torch.cdist(world_from_cam[:, :3, 3], others[:, :3, 3], compute_mode="donot_use_mm_for_euclid_dist")
    return turned, moved / depth.clamp_min(1e-12)


def judge(camera: Cameras, confidence: float, keyframes: Sequence[Keyframe], settings: KeyframeSettings) -> Verdict:
    """What a placed view (float64, a batch of one) is to the map. Its picture size only counts for the overlap."""
    if confidence < settings.confidence:
        return Verdict("rejected", reason=f"confidence {confidence:.2f}")
    if not keyframes:
        return Verdict("new", overlap=0.0, reason="first")
    poses = torch.stack([keyframe.world_from_cam for keyframe in keyframes])
    depth = torch.tensor([keyframe.middle_depth for keyframe in keyframes], dtype=torch.float64)
    turned, moved = turns_and_shifts(camera.world_from_cam, poses, depth)
    steps = torch.maximum(turned / settings.angle, moved / settings.shift)[0]
    near = steps.argsort()[:4].tolist()  # overlap falls with distance: the nearest few decide
    overlap = max(overlap_share(keyframes[index], camera) for index in near)
    angle, shift = float(turned[0, near[0]]), float(moved[0, near[0]])
    if overlap < settings.least_overlap:
        return Verdict("rejected", angle, shift, overlap, f"sees {100 * overlap:.0f}% of the map's nearest picture")
    if float(steps[near[0]]) > 1:
        return Verdict("new", angle, shift, overlap, "turned" if angle > settings.angle else "moved")
    if overlap < settings.overlap:
        return Verdict("new", angle, shift, overlap, "little overlap")
    return Verdict("known", angle, shift, overlap)


def spread(
    world_from_cam: Float[Tensor, "n 4 4"], depth: Float[Tensor, "n"], most: int, settings: KeyframeSettings
) -> list[int]:
    """Indices (in order) of at most ``most`` views that cover what all cover: the most redundant go, one by one.

    Redundant is who stands nearest to another; of two, the one with the nearer third. The last view (the newest) stays.
    """
    kept = list(range(len(world_from_cam)))
    steps = steps_between(world_from_cam, world_from_cam, depth, settings)
    steps = (steps + steps.T) / 2
    steps.fill_diagonal_(torch.inf)
    while len(kept) > max(most, 1):
        table = steps[kept][:, kept].sort(-1).values
        nearest = table[:, 0].clone()
        nearest[-1] = torch.inf
        ties = (nearest <= nearest.min() + 1e-12).nonzero()[:, 0]
        second = table[ties, min(1, table.shape[1] - 1)]
        del kept[int(ties[second.argmin()])]
    return kept


def thinned(keyframes: Sequence[Keyframe], settings: KeyframeSettings) -> list[Keyframe]:
    """The keyframes under the cap, without the most redundant; the newest always stays."""
    if len(keyframes) <= settings.most:
        return list(keyframes)
    poses = torch.stack([keyframe.world_from_cam for keyframe in keyframes])
    depth = torch.tensor([keyframe.middle_depth for keyframe in keyframes], dtype=torch.float64)
    return [keyframes[index] for index in spread(poses, depth, settings.most, settings)]
