"""Dense depth without a learned model: plane-sweep stereo between known cameras, and holes filled from what is sure.

Collins 1996; fronto-parallel planes, evenly spaced in inverse depth over the range that sparse points show. A plane is
scored by the zero-normalised cross-correlation of small windows, averaged over the better half of the neighbours, which
tolerates what some of them do not see; neighbouring pixels then agree on planes (`scenetx.geometry.smooth_planes`).
Shine, thin things and wide bare surfaces stay unsure and are left to the filling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, max_pool2d

from scenetx.core import Cameras, InputError, Points, View, project, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.geometry.lift import LiftSettings, nearest_views, trusted
from scenetx.geometry.smooth_planes import aggregated

LEAST_POINTS = 20  # a picture that shows fewer takes the range of all
RANGE = (0.02, 0.98)  # quantiles of the points' depth ...
WIDER = 1.3  # ... and by how much the planes reach beyond them
OUTSIDE = -2.0  # what a picture says of what it does not show
QUIET = 1e-4  # variance of a window, of grey in [0, 1], below which it says nothing


@dataclass(frozen=True)
class SweepSettings:
    """How carefully depth is looked for. width: longest side of the pictures compared."""

    width: int = 240
    planes: int = 64
    neighbors: int = 4
    window: int = 7
    least_score: float = 0.35
    """Correlation, of the pixel or of those around it, below which its depth is not believed."""

    def __post_init__(self) -> None:
        if self.width < 32 or self.planes < 4 or self.neighbors < 1 or self.window < 3 or self.window % 2 == 0:
            shown = (self.width, self.planes, self.neighbors, self.window)
            raise InputError("sweep width, planes, neighbors, window", shown, "use 32, 4, 1, 3 or more; an odd window")


def sweep(
    views: Sequence[View],
    points: Points | None,
    settings: SweepSettings | None = None,
    lift: LiftSettings | None = None,
    say: Callable[[str, float], None] | None = None,
) -> list[View]:
    """The views (each with its camera) with z-depth at their own pixels, 0 where none could be trusted.

    points: of the scene, world frame; they say how near and far to look. What neighbours do not confirm is dropped.
    Raises InputError for fewer than two views or without points in sight.
    """
    settings = settings or SweepSettings()
    if len(views) < 2 or points is None or len(points) < LEAST_POINTS:
        shown = f"{len(views)} views, {0 if points is None else len(points)} points"
        raise InputError("sweep", shown, "give two or more views with cameras and the points between them")
    small = [_small(view, settings.width) for view in views]
    cameras = [camera for _, camera in small]
    ranges = depth_ranges(cameras, points)
    found = []
    for index, view in enumerate(views):
        others = nearest_views(cameras, index, settings.neighbors)
        depth, score = sweep_one(small, index, others, ranges[index], settings)
        found.append(replace(view, depth=depth, confidence=score, camera=cameras[index], mask=None))
        if say is not None:
            say(f"depth of {view.name}", (index + 1) / len(views))
    # The score is the confidence: the floor decides, no share of every picture is given up.
    lift = replace(lift or LiftSettings(), confident=0.0)
    kept = trusted(found, lift, settings.least_score)
    return [
        replace(view, depth=_masked(_resized(depth, view.height, view.width), view))
        for view, depth in zip(views, kept, strict=True)
    ]


def sweep_one(
    small: Sequence[tuple[Float[Tensor, "_ _"], Cameras]],
    index: int,
    others: Sequence[int],
    near_far: tuple[float, float],
    settings: SweepSettings,
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """z-depth of every pixel of one grey picture against ``others``, between planes by a parabola, and how well it
    correlates: the pixel, or the mean around it where that is better."""
    grey, camera = small[index]
    inverse = torch.linspace(1 / near_far[1], 1 / near_far[0], settings.planes)
    mean, variance = _moments(grey[None], settings.window)
    scores = []
    for other in others:
        warped, inside = _warped(small[other], camera, grey.shape, inverse)
        scores.append(_correlation(grey, mean, variance, warped, inside, settings.window))
    better = torch.stack(scores).sort(dim=0, descending=True).values[: (len(scores) + 1) // 2]
    seen = (better > OUTSIDE).float()
    best = (better * seen).sum(0) / seen.sum(0).clamp_min(1)  # 0 where nobody sees: no word for or against
    cost = aggregated(1 - best, grey)
    plane = cost.argmin(dim=0)
    inner = plane.clamp(1, settings.planes - 2)
    before, at, after = (cost.gather(0, (inner + step)[None])[0] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    move = torch.where(bend > 1e-6, 0.5 * (before - after) / bend.clamp_min(1e-6), 0.0).clamp(-0.5, 0.5)
    place = torch.where(inner == plane, plane + move, plane.float())
    score = best.gather(0, plane[None])[0]
    score = torch.maximum(score, _box(score[None], 2 * settings.window + 1)[0])
    step = inverse[1] - inverse[0]
    return 1 / (inverse[0] + place * step), score


def filled(depth: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Depth with its holes (0) closed from around: inverse depth averaged down a pyramid until every cell knows some,
    then handed back up (push-pull, Gortler 1996). All 0 stays 0."""
    known = (depth > 0).to(depth)
    if not bool(known.any()) or bool(known.all()):
        return depth
    inverse = torch.where(depth > 0, 1 / depth.clamp_min(1e-12), 0.0)
    levels = [(inverse[None, None], known[None, None])]
    while bool((levels[-1][1] == 0).any()):
        value, weight = levels[-1]
        share = avg_pool2d(weight, 2, ceil_mode=True)
        mean = avg_pool2d(value * weight, 2, ceil_mode=True) / share.clamp_min(1e-12)
        levels.append((mean, (share > 0).to(depth)))
    value = levels[-1][0]
    for fine, weight in reversed(levels[:-1]):
        rough = interpolate(value, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        value = torch.where(weight > 0, fine, rough)
    return 1 / value[0, 0]


def in_free_space(
    depth: Float[Tensor, "h w"],
    known: Sequence[Float[Tensor, "_ _"]],
    cameras: Sequence[Cameras],
    index: int,
    others: Sequence[int],
    *,
    margin: float = 0.05,
) -> Bool[Tensor, "h w"]:
    """Where picture ``index``'s guess of depth cannot be: another picture knows a surface there and looks through it.

    known: trusted depth of every picture, 0 = none. A point is refused when it is nearer to one of ``others`` than what
    that picture knows in its direction, by more than ``margin`` of the depth.
    """
    height, width = depth.shape
    pixels = pixel_grid(height, width, dtype=torch.float64).flatten(0, 1)[None]
    points = unproject(pixels, depth.double().flatten()[None], cameras[index].to(torch.float64))[0]
    through = torch.zeros(height * width, dtype=torch.bool)
    for other in others:
        seen, z = project(points, cameras[other].to(torch.float64))
        column, row = seen[0, :, 0].floor(), seen[0, :, 1].floor()
        rows, columns = known[other].shape
        inside = (z[0] > 0) & (column >= 0) & (row >= 0) & (column < columns) & (row < rows)
        flat = row.clamp(0, rows - 1).long() * columns + column.clamp(0, columns - 1).long()
        there = known[other].flatten()[flat].double()
        through |= inside & (there > 0) & (z[0] < (1 - margin) * there)
    return through.view(height, width)


def _small(view: View, width: int) -> tuple[Float[Tensor, "h w"], Cameras]:
    assert view.camera is not None
    share = min(1.0, width / max(view.height, view.width))
    height, wide = max(8, round(view.height * share)), max(8, round(view.width * share))
    grey = view.image.float().mean(-1)[None, None] / 255
    return interpolate(grey, size=(height, wide), mode="area")[0, 0], view.camera.resized(height, wide).to(
        torch.float64
    )


def depth_ranges(cameras: Sequence[Cameras], points: Points) -> list[tuple[float, float]]:
    """Nearest and farthest z-depth to look at in each picture. Raises InputError where cameras see too few points."""
    seen: list[Tensor] = []
    for camera in cameras:
        pixels, depth = project(points.positions.double(), camera)
        inside = (pixels[0] >= 0).all(-1) & (pixels[0, :, 0] < camera.width) & (pixels[0, :, 1] < camera.height)
        seen.append(depth[0][inside & (depth[0] > 0)])
    together = torch.cat(seen)
    if len(together) < LEAST_POINTS:
        raise InputError("sweep", f"{len(together)} points in sight of the cameras", "give cameras that see the points")
    quantiles = together.new_tensor(RANGE)
    out = []
    for some in seen:
        some = some if len(some) >= LEAST_POINTS else together
        low, high = torch.quantile(some[:: max(1, len(some) // 100_000)], quantiles).tolist()
        out.append((low / WIDER, high * WIDER))
    return out


def _warped(
    other: tuple[Float[Tensor, "_ _"], Cameras],
    camera: Cameras,
    shape: torch.Size,
    inverse: Float[Tensor, "d"],
) -> tuple[Float[Tensor, "d h w"], Float[Tensor, "d h w"]]:
    """Another picture as seen through every plane of ``camera``, and 1 where it shows anything."""
    grey, there = other
    height, width = shape
    # x_there ~ K (R K0^-1 p + inverse_depth * t): one product for the rays, one for the shift.
    motion = (there.cam_from_world @ camera.world_from_cam)[0]
    rays = (there.K[0] @ motion[:3, :3] @ torch.linalg.inv(camera.K[0])).float()
    shift = (there.K[0] @ motion[:3, 3]).float()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    base = torch.stack([x, y, torch.ones_like(x)], -1) @ rays.T
    place = base[None] + inverse[:, None, None, None] * shift
    z = place[..., 2]
    size = torch.tensor([grey.shape[1], grey.shape[0]], dtype=torch.float32)
    grid = 2 * place[..., :2] / z.clamp_min(1e-6)[..., None] / size - 1
    inside = (z > 1e-6) & (grid.abs() < 1).all(-1)
    source = grey[None, None].expand(len(inverse), 1, -1, -1)
    seen = grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return seen, inside.float()


def _moments(grey: Float[Tensor, "d h w"], window: int) -> tuple[Float[Tensor, "d h w"], Float[Tensor, "d h w"]]:
    mean = _box(grey, window)
    return mean, (_box(grey * grey, window) - mean * mean).clamp_min(0)


def _correlation(
    grey: Float[Tensor, "h w"],
    mean: Float[Tensor, "1 h w"],
    variance: Float[Tensor, "1 h w"],
    warped: Float[Tensor, "d h w"],
    inside: Float[Tensor, "d h w"],
    window: int,
) -> Float[Tensor, "d h w"]:
    """In [-1, 1], 0 where a window is flat; `OUTSIDE` the other picture."""
    other_mean, other_variance = _moments(warped, window)
    covariance = _box(grey[None] * warped, window) - mean * other_mean
    loud = (variance > QUIET) & (other_variance > QUIET)
    score = torch.where(loud, covariance / (variance * other_variance).sqrt().clamp_min(QUIET), 0.0)
    return torch.where(inside > 0, score.clamp(-1, 1), OUTSIDE)


def _box(x: Float[Tensor, "d h w"], window: int) -> Float[Tensor, "d h w"]:
    """Mean over a square window, cut at the border; rows, then columns."""
    half = window // 2
    out = avg_pool2d(x[:, None], (1, window), 1, (0, half), count_include_pad=False)
    return avg_pool2d(out, (window, 1), 1, (half, 0), count_include_pad=False)[:, 0]


def _resized(depth: Float[Tensor, "_ _"], height: int, width: int, edge: float = 0.05) -> Float[Tensor, "h w"]:
    """Inverse depth between pixels that are all known and differ by less than ``edge``, elsewhere the nearest: depth
    does not blend over edges."""
    size = (height, width)
    nearest = interpolate(depth[None, None], size=size, mode="nearest")[0, 0].float()
    inverse = torch.where(depth > 0, 1 / depth.clamp_min(1e-12), 0.0).float()[None, None]
    between = interpolate(inverse, size=size, mode="bilinear", align_corners=False)[0, 0]
    grown = torch.nn.functional.pad(inverse, (1, 1, 1, 1), mode="replicate")
    high, low = max_pool2d(grown, 3, stride=1), -max_pool2d(-grown, 3, stride=1)
    smooth = interpolate(((low > 0) & (high - low < edge * high)).float(), size=size, mode="nearest")[0, 0] > 0
    return torch.where(smooth & (nearest > 0), 1 / between.clamp_min(1e-12), nearest)


def _masked(depth: Float[Tensor, "h w"], view: View) -> Float[Tensor, "h w"]:
    return depth if view.mask is None else torch.where(view.mask, depth, 0.0)
