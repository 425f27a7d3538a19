"""From predicted depth to points that several pictures agree on, and given cameras to the frame models expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenetx.core import Cameras, Points, Sim3, View, project, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.core.rigid import invert_rigid


@dataclass(frozen=True)
class LiftSettings:
    """Which predicted pixels become points."""

    confident: float = 0.3
    """Share of each picture's pixels, the least sure ones, that is left out."""
    edge: float = 0.04
    """Depth may differ by this share from a neighbouring pixel's."""
    agree: float = 0.03
    """Another picture agrees where its depth is within this share."""
    neighbors: int = 6
    """Pictures asked for their agreement."""
    votes: int = 1
    """Pictures that have to agree."""
    max_points: int = 200_000


def normalize_cameras(cameras: Cameras) -> tuple[Cameras, Sim3]:
    """Cameras relative to the first one, the median distance from it 1; and ``given_from_normalized`` back.

    The frame in which models take given cameras. With all cameras in one place the scale stays.
    """
    world_from_cam = cameras.world_from_cam.double()
    relative = invert_rigid(world_from_cam[:1]) @ world_from_cam
    distances = relative[1:, :3, 3].norm(dim=-1)
    scale = float(distances.median()) if len(distances) and float(distances.median()) > 0 else 1.0
    relative[:, :3, 3] /= scale
    back = Sim3(scale, world_from_cam[0, :3, :3], world_from_cam[0, :3, 3])
    return replace(cameras, world_from_cam=relative), back


def steady(depth: Float[Tensor, "h w"], edge: float) -> Bool[Tensor, "h w"]:
    """Pixels whose depth is known and hardly differs from the neighbours': not on an edge, where depth is a blend."""
    known = depth > 0
    inverse = torch.where(known, 1 / depth.clamp_min(1e-12), torch.zeros_like(depth))
    padded = torch.nn.functional.pad(inverse[None, None], (1, 1, 1, 1), mode="replicate")
    high = torch.nn.functional.max_pool2d(padded, 3, stride=1)[0, 0]
    low = -torch.nn.functional.max_pool2d(-padded, 3, stride=1)[0, 0]
    return known & (high - low <= 2 * edge * inverse)


def agreement(
    depths: Sequence[Float[Tensor, "_ _"]], cameras: Sequence[Cameras], index: int, others: Sequence[int], agree: float
) -> Float[Tensor, "h w"]:
    """How many of ``others`` see each pixel's point of picture ``index`` at the depth they have themselves."""
    depth, camera = depths[index], cameras[index]
    height, width = depth.shape
    pixels = pixel_grid(height, width, dtype=torch.float64).flatten(0, 1)[None]
    points = unproject(pixels, depth.double().flatten()[None], camera.to(torch.float64))[0]
    votes = torch.zeros(height * width)
    for other in others:
        seen, z = project(points, cameras[other].to(torch.float64))
        column, row = seen[0, :, 0].floor(), seen[0, :, 1].floor()
        rows, columns = depths[other].shape
        inside = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < columns) & (row < rows)
        flat = row.clamp(0, rows - 1).long() * columns + column.clamp(0, columns - 1).long()
        there = depths[other].flatten()[flat].double()
        votes += (inside & (there > 0) & ((z[0] - there).abs() <= agree * there)).float()
    return votes.view(height, width)


def nearest_views(cameras: Sequence[Cameras], index: int, count: int) -> list[int]:
    """The cameras most likely to see the same: near, and looking the same way."""
    centers = torch.cat([camera.centers for camera in cameras]).double()
    forward = torch.cat([camera.forward for camera in cameras]).double()
    distance = (centers - centers[index]).norm(dim=-1)
    distance = distance / (distance.median() + 1e-12)
    apart = distance + 2 * (1 - forward @ forward[index])
    apart[index] = torch.inf
    return apart.argsort()[: min(count, len(cameras) - 1)].tolist()


def trusted(
    views: Sequence[View], settings: LiftSettings, floor: Float[Tensor, ""] | float = 0.0
) -> list[Float[Tensor, "_ _"]]:
    """Each view's depth where it is sure, steady and confirmed by other views; 0 elsewhere.

    views: with camera, depth and confidence. floor: confidence at or below it never counts.
    """
    depths = []
    for view in views:
        assert view.depth is not None
        keep = steady(view.depth, settings.edge)
        if view.confidence is not None:
            level = torch.quantile(
                view.confidence.flatten()[:: max(1, view.confidence.numel() // 100_000)], settings.confident
            )
            keep &= (view.confidence >= level) & (view.confidence > floor)
        if view.mask is not None:
            keep &= view.mask
        depths.append(torch.where(keep, view.depth, torch.zeros_like(view.depth)))
    cameras = [view.camera for view in views if view.camera is not None]
    if len(views) < 2:
        return depths
    whole = [view.depth for view in views if view.depth is not None]
    out = []
    for index, depth in enumerate(depths):
        others = nearest_views(cameras, index, settings.neighbors)
        votes = agreement(whole, cameras, index, others, settings.agree)
        out.append(torch.where(votes >= settings.votes, depth, torch.zeros_like(depth)))
    return out


def fuse(views: Sequence[View], depths: Sequence[Float[Tensor, "_ _"]], max_points: int) -> Points:
    """Coloured points of all depths, thinned evenly over space to at most ``max_points``.

    One point a cell of a grid: where many pictures look at the same place they do not pile up.
    """
    positions, colors = [], []
    budget = max(1, 4 * max_points // max(1, len(views)))
    for view, depth in zip(views, depths, strict=True):
        assert view.camera is not None
        index = (depth > 0).flatten().nonzero()[:, 0]
        if len(index) > budget:
            index = index[torch.linspace(0, len(index) - 1, budget).round().long()]
        height, width = depth.shape
        pixels = pixel_grid(height, width, dtype=torch.float64).flatten(0, 1)[index]
        camera = view.camera.to(torch.float64)
        positions.append(unproject(pixels[None], depth.flatten()[index].double()[None], camera)[0].float())
        colors.append(view.image.flatten(0, 1)[index])
    if not positions or sum(map(len, positions)) == 0:
        return Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
    points, color = torch.cat(positions), torch.cat(colors)
    chosen = thin(points, max_points)
    return Points(points[chosen], color[chosen])


def thin(points: Float[Tensor, "p 3"], most: int) -> Int[Tensor, "q"]:
    """Indices of at most ``most`` points, one a cell of the finest even grid that leaves so few."""
    if len(points) <= most:
        return torch.arange(len(points))
    values = points.double().numpy()
    low, high = np.quantile(values, 0.02, axis=0), np.quantile(values, 0.98, axis=0)
    extent = float((high - low).max()) or 1.0
    smallest, largest = extent / 20_000, extent
    chosen = np.arange(most)
    for _ in range(24):
        cell = (smallest * largest) ** 0.5
        _, first = np.unique(np.floor((values - low) / cell).astype(np.int64), axis=0, return_index=True)
        if len(first) > most:
            smallest = cell
        else:
            chosen, largest = first, cell
            if len(first) > 0.9 * most:
                break
    return torch.from_numpy(np.sort(chosen))


def depth_scale(
    depth: Float[Tensor, "h w"], camera: Cameras, points: Float[Tensor, "p 3"], least: int = 10
) -> float | None:
    """Factor from a predicted depth to the z of sparse points: the median ratio; None with too few points in sight."""
    seen, z = project(points.double(), camera.to(torch.float64))
    height, width = depth.shape
    column, row = seen[0, :, 0].floor(), seen[0, :, 1].floor()
    inside = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    found = depth[row[inside].long(), column[inside].long()].double()
    ratio = (z[0][inside] / found)[found > 0]
    return float(ratio.median()) if len(ratio) >= least else None
