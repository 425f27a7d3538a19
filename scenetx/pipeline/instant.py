"""Splats in one pass, the training pictures' depth lifted to Gaussians; and a short fit that starts there.

Depth comes from the geometry model where one was used, from the source where it brings depth, and else from plane-sweep
stereo between the scene's cameras; where even that finds nothing, the sparse points become splats of their spacing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from scenetx.core import Cameras, Gaussians, InputError, Scene
from scenetx.fit import FitSettings, ViewScores
from scenetx.fit.initialise import first_gaussians
from scenetx.geometry.lift import LiftSettings
from scenetx.geometry.sweep import SweepSettings, sweep
from scenetx.models.mvp import Mvp
from scenetx.models.pixel_splats import merged
from scenetx.models.zoo import find, load_model
from scenetx.pipeline.lifting import LiftedSettings, lifted, painted, resized
from scenetx.pipeline.stereo import StereoSettings, open_stereo, stereo_file, stereo_splats

SplatsBy = Literal["fitted", "refined", "instant", "none"]
METHODS = "splats"  # in metrics.json: what each way came to, side by side
WHOLE = 0.5  # share of the views that need depth for it to be used
Say = Callable[[str, float], None]


@dataclass(frozen=True)
class InstantSettings:
    """How splats are made in one pass, and the short fit after it."""

    model: str = ""
    """A model that answers with splats instead of lifted depth: mini-splat (ours), a file of such a model, or one whose
    weights were fetched (mvp)."""
    steps: float = 0.08
    """Of the fit's steps, those that refining takes."""
    crowd: float = 2.0
    """Splats that refining works with, at most, for each pixel of one picture: more only fit noise, and cost time."""
    sweep: SweepSettings = field(default_factory=SweepSettings)
    lifted: LiftedSettings = field(default_factory=LiftedSettings)
    stereo: StereoSettings = field(default_factory=StereoSettings)


def instant_splats(
    scene: Scene, settings: InstantSettings, fit: FitSettings, lift: LiftSettings, notes: list[str], say: Say
) -> Gaussians:
    """At most ``fit.max_splats`` Gaussians in the scene's frame, from its training views only.

    Raises InputError for a scene without a training view, or for weights that are not here.
    """
    if not scene.training:
        raise InputError("instant splats", "no training view with a camera", "run SfM first or give posed pictures")
    if settings.model:
        file = stereo_file(settings.model)
        if file is not None:
            return _by_stereo(scene, file, settings, fit, notes)
        return _by_model(scene, settings, fit, notes)
    views = [view for view in scene.training if view.depth is not None and bool((view.depth > 0).any())]
    origin = "depth that is there"
    if len(views) < WHOLE * len(scene.training):
        origin = "plane-sweep depth between the cameras"
        try:
            views = sweep(scene.training, scene.points, settings.sweep, lift, say)
            views = [view for view in views if view.depth is not None and bool((view.depth > 0).any())]
        except InputError as error:
            notes.append(f"no dense depth: {error}")
            views = []
    if not views:
        sized = first_gaussians(scene, replace(fit, initial_opacity=0.8))
        notes.append(f"{len(sized):,} splats are the sparse points at their spacing, not fitted: expect holes")
        return sized
    known = sum(float((view.depth > 0).float().mean()) for view in views if view.depth is not None) / len(views)
    gaussians = lifted(views, fit.max_splats, settings.lifted)
    gaussians = painted(gaussians, scene.training, settings.lifted, width=fit.width, backend=fit.backend)
    notes.append(f"{len(gaussians):,} splats lifted from {origin} ({100 * known:.0f}% of the pixels), not fitted")
    return gaussians


def _by_stereo(scene: Scene, file: Path, settings: InstantSettings, fit: FitSettings, notes: list[str]) -> Gaussians:
    """Splats of a model that compares the training pictures, their colours then set right against them."""
    model = open_stereo(file, settings.stereo)
    gaussians = stereo_splats(scene.training, scene.points, model, fit.max_splats, settings.stereo)
    rules = replace(settings.lifted, rounds=settings.stereo.rounds)
    gaussians = painted(gaussians, scene.training, rules, width=fit.width, backend=fit.backend)
    notes.append(f"{len(gaussians):,} splats from {file.stem} in one pass, not fitted")
    return gaussians


def _by_model(scene: Scene, settings: InstantSettings, fit: FitSettings, notes: list[str]) -> Gaussians:
    """A model's own splats from the training pictures, all brought to one size; opacity averaged over their cameras."""
    if find(settings.model).kind != "splats":
        raise InputError("instant.model", settings.model, "name a model of kind splats (scenetx models list)")
    model = load_model(settings.model)
    assert isinstance(model, Mvp)
    first = scene.training[0]
    share = min(1.0, fit.width / max(first.height, first.width))
    height, width = round(first.height * share), round(first.width * share)
    images, _, cameras = zip(*(resized(view, height, width) for view in scene.training), strict=True)
    together = Cameras.cat(list(cameras))
    with torch.inference_mode():
        found = model(torch.stack(images), together).baked(together.centers)
    found = found[found.finite() & (found.opacities > 1 / 255)]
    gaussians = merged(found, found.opacities, together.centers, fit.max_splats)
    notes.append(f"{len(gaussians):,} splats from {settings.model} in one pass, not fitted")
    return gaussians


def uncrowded(scene: Scene, fit: FitSettings, settings: InstantSettings) -> FitSettings:
    """The fit with no more splats than refining small pictures can use, fewer from the first pass on."""
    shares = [min(1.0, fit.width / max(view.height, view.width)) for view in scene.training]
    pixels = [view.height * view.width * share**2 for view, share in zip(scene.training, shares, strict=True)]
    most = max(fit.initial_splats, round(settings.crowd * max(pixels, default=0.0)))
    return replace(fit, max_splats=min(fit.max_splats, most))


def shortened(fit: FitSettings, settings: InstantSettings, count: int = 0) -> FitSettings:
    """The fit that refines ``count`` splats of one pass: few steps and short walks, but twice the rates of what has no
    place. Only where they are few do they grow in number: a pass over pixels leaves more than enough."""
    steps = max(100, round(settings.steps * fit.steps))
    return replace(
        fit,
        steps=steps,
        grow_until=fit.grow_until if count < fit.initial_splats else 0.0,
        pyramid=min(fit.pyramid, 1),
        pyramid_until=0.2,
        sh_interval=max(1, steps // 4),
        refine_interval=max(10, steps // 20),
        means_lr=fit.means_lr / 2,
        scales_lr=2 * fit.scales_lr,
        quats_lr=2 * fit.quats_lr,
        opacities_lr=2 * fit.opacities_lr,
        sh_lr=2 * fit.sh_lr,
        noise_lr=fit.noise_lr / 10,
    )


def method(by: str, seconds: float, gaussians: Gaussians, scores: ViewScores) -> dict[str, Any]:
    """One line of the comparison: how long, and how good on held-out pictures (None where none is held out)."""
    judged = bool(scores.psnr)
    return {
        "by": by,
        "seconds": round(seconds, 2),
        "psnr": round(scores.mean_psnr, 4) if judged else None,
        "ssim": round(scores.mean_ssim, 5) if judged else None,
        "gaussians": len(gaussians),
    }


def side_by_side(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """These lines and those of other ways that an earlier run left in the folder's metrics.json, quickest first."""
    try:
        earlier = json.loads((folder / "metrics.json").read_text())[METHODS]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    kept = {row["by"]: dict(row) for row in earlier if isinstance(row, dict) and "by" in row}
    kept |= {str(row["by"]): dict(row) for row in rows}
    return sorted(kept.values(), key=lambda row: float(row.get("seconds") or 0.0))
