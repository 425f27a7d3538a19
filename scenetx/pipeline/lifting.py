"""Pictures with depth as Gaussians: every surface from the picture that sees it best, in blocks as large as its detail
allows, and their colours so that the pictures come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from scenetx.core import Cameras, Gaussians, View
from scenetx.core.gaussians import SH_C0
from scenetx.geometry.lift import agreement, nearest_views
from scenetx.geometry.sweep import filled, in_free_space
from scenetx.models.pixel_splats import footprint, pixel_gaussians, pooled
from scenetx.models.quad_splats import BlockTree, grouped
from scenetx.splat import Backend, rasterize


@dataclass(frozen=True)
class LiftedSettings:
    """How pixels with depth become splats."""

    pixels: int = 1_500_000
    """Pixels of all pictures together that are lifted, at most."""
    hole: float = 0.3
    """Weight of pixels whose depth was filled in from around: in averages, and in what detail is worth."""
    longest: float = 6.0
    """A splat's longest axis, of its middle one."""
    witnesses: int = 12
    """Nearest pictures that are asked whether a surface is theirs already, or a filled pixel in their way."""
    same: float = 0.05
    """Surfaces whose depths differ by less than this share are one."""
    spread: float = 1.75
    """Splats are so much wider than the pixels they stand for: neighbours close up."""
    opacity: float = 0.95
    rounds: int = 2
    """Times that colours are set right against the pictures."""
    judges: int = 24
    """Pictures that colours are set right against, at most."""


@dataclass(frozen=True)
class _Shot:
    """A view at the size at which it is lifted. depth: as it came, 0 = unknown."""

    image: Float[Tensor, "h w 3"]
    depth: Float[Tensor, "h w"]
    used: Bool[Tensor, "h w"]
    camera: Cameras


def lifted(views: Sequence[View], most: int, settings: LiftedSettings) -> Gaussians:
    """At most ``most`` Gaussians (SH degree 0) of views that each have a camera and depth.

    What is seen from near comes first; farther pictures add what no nearer one has. Holes in a picture's depth are
    filled from around, and kept only where no picture knows the surface or looks through it.
    """
    area = sum(view.height * view.width for view in views)
    share = min(1.0, (settings.pixels / area) ** 0.5)
    shots = [_reduced(view, share) for view in views]
    shots.sort(key=lambda shot: float(footprint(shot.depth[None], shot.camera)[shot.depth[None] > 0].median()))
    depths, known = _new(shots, settings)
    weights = [torch.where(sure, 1.0, settings.hole) * (depth > 0) for sure, depth in zip(known, depths, strict=True)]
    trees = [
        BlockTree.of(shot.image, depth, weight) for shot, depth, weight in zip(shots, depths, weights, strict=True)
    ]
    labels, _ = grouped(trees, most)
    parts = [
        pixel_gaussians(shot.image[None], depth[None], shot.camera, opacity=settings.opacity)
        for shot, depth in zip(shots, depths, strict=True)
    ]
    mass = torch.cat([weight[weight > 0] for weight in weights])
    numbers = torch.cat([label[label >= 0] for label in labels])
    found = pooled(Gaussians.cat(parts), mass, numbers, spread=settings.spread)
    # Blocks over an edge are needles along the ray, which other views see from the side.
    longest = settings.longest * found.scales.median(dim=-1, keepdim=True).values
    return replace(found, scales=torch.minimum(found.scales, longest))


def _new(shots: Sequence[_Shot], settings: LiftedSettings) -> tuple[list[Tensor], list[Tensor]]:
    """Every shot's depth where it shows what no earlier one has, else 0; and where that depth was known, not filled."""
    cameras = [shot.camera for shot in shots]
    known = [torch.where(shot.used, shot.depth, 0.0) for shot in shots]
    closed = [filled(shot.depth) for shot in shots]
    out: list[Tensor] = []
    for index, shot in enumerate(shots):
        others = nearest_views(cameras, index, settings.witnesses)
        earlier = [other for other in others if other < index]
        sure = known[index] > 0
        covered = agreement(known, cameras, index, earlier, settings.same) > 0
        guess = closed[index]
        # A guess must be nobody's surface, neither known nor guessed, and in nobody's way.
        posed = [*(out[:index]), guess, *known[index + 1 :]]
        doubted = agreement(_at(known, index, guess), cameras, index, others, 2 * settings.same) > 0
        doubted |= agreement(posed, cameras, index, earlier, 2 * settings.same) > 0
        doubted |= in_free_space(guess, known, cameras, index, others)
        keep = shot.used & (guess > 0) & torch.where(sure, ~covered, ~doubted)
        out.append(torch.where(keep, guess, 0.0))
    return out, [depth > 0 for depth in known]


def _at(depths: Sequence[Tensor], index: int, depth: Tensor) -> list[Tensor]:
    """The list with another entry at ``index``."""
    return [depth if here == index else one for here, one in enumerate(depths)]


def painted(
    gaussians: Gaussians, views: Sequence[View], settings: LiftedSettings, *, width: int, backend: Backend = "auto"
) -> Gaussians:
    """Colours moved by what the pictures still lack, in all pictures at once (SIRT, Gilbert 1972).

    A splat's colour changes by the mean of the error where it shows, weighed by how much it shows there. views: with
    cameras; their pictures are taken at most ``width`` wide.
    """
    chosen = views[:: max(1, -(-len(views) // settings.judges))]
    shots = [_plain(view, width) for view in chosen]
    weight: Tensor | None = None
    for _ in range(settings.rounds):
        lack, mass = torch.zeros_like(gaussians.sh[:, 0]), torch.zeros_like(gaussians.opacities)
        for image, used, camera in shots:
            color = gaussians.sh.clone().requires_grad_()
            rgb = rasterize(replace(gaussians, sh=color), camera, backend=backend).rgb[0]
            error = (image - rgb.detach()) * used[..., None]
            (change,) = torch.autograd.grad(rgb, color, error, retain_graph=weight is None)
            lack += change[:, 0]
            if weight is None:
                (seen,) = torch.autograd.grad(rgb, color, used[..., None].to(rgb).expand_as(rgb))
                mass += seen[:, 0].mean(-1)
        weight = mass if weight is None else weight
        # Both are gradients of a coefficient: their ratio is a change of colour.
        step = torch.where(weight[:, None] > 1e-6, lack / weight.clamp_min(1e-6)[:, None], 0.0) / SH_C0
        base = (0.5 + SH_C0 * (gaussians.sh[:, 0] + step)).clamp(0, 1)
        first = ((base - 0.5) / SH_C0)[:, None]
        gaussians = replace(gaussians, sh=torch.cat([first, gaussians.sh[:, 1:]], dim=1))
    return gaussians


def _plain(view: View, width: int) -> tuple[Tensor, Tensor, Cameras]:
    """Picture, which of its pixels count, and its camera, at most ``width`` on the longer side."""
    shot = _reduced(replace(view, depth=None), min(1.0, width / max(view.height, view.width)))
    return shot.image, shot.used, shot.camera


def _reduced(view: View, share: float) -> _Shot:
    assert view.camera is not None
    height, width = max(1, round(view.height * share)), max(1, round(view.width * share))
    image, used, camera = resized(view, height, width)
    depth = torch.zeros(height, width)
    if view.depth is not None:
        depth = interpolate(view.depth[None, None].float(), size=(height, width), mode="nearest")[0, 0]
    return _Shot(image, depth, used, camera)


def resized(view: View, height: int, width: int) -> tuple[Float[Tensor, "h w 3"], Bool[Tensor, "h w"], Cameras]:
    """A view with a camera in another size, by area: its picture (0 to 1), which of its pixels count, its camera."""
    assert view.camera is not None
    image = interpolate(view.image.permute(2, 0, 1)[None].float() / 255, size=(height, width), mode="area")
    used = torch.ones(height, width, dtype=torch.bool)
    if view.mask is not None:
        used = interpolate(view.mask[None, None].float(), size=(height, width), mode="area")[0, 0] > 0.5
    return image[0].permute(1, 2, 0), used, view.camera.to(torch.float32).resized(height, width)
