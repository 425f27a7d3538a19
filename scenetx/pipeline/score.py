"""The truth about a scene: held-out pictures, cameras and depth against a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scenetx.core import Scene, View
from scenetx.core.atomic import write_text
from scenetx.fit import ViewScores, evaluate_views
from scenetx.pipeline.reference import against_reference
from scenetx.pipeline.render import render, to_uint8
from scenetx.serve.report import ReportPicture


def evaluate(
    scene: Scene,
    *,
    reference: str | Path | None = None,
    held_out: ViewScores | None = None,
    width: int | None = None,
) -> dict[str, Any]:
    """Scores of a scene: what was registered, PSNR/SSIM of held-out views, errors against reference cameras.

    Held-out pictures are compared as they are (8-bit render against the undistorted working picture; only
    `psnr_color_corrected` matches colours first), masked pixels left out; means are over pictures. Their cameras come
    from all pictures, as is usual.
    ``held_out``: their scores, where the caller has them. ``width``: of the longest side, to which photos and renders
    are reduced first (see `evaluate_views`).
    """
    metrics: dict[str, Any] = {"registered": len(scene.registered), "images": len(scene.views) + _unreadable(scene)}
    if scene.points is not None:
        metrics["points"] = len(scene.points)
    if scene.gaussians is not None:
        metrics["gaussians"] = len(scene.gaussians)
        metrics.update(_held_out(held_out or evaluate_views(scene, scene.gaussians, width=width)))
    if reference is not None:
        metrics["reference"] = against_reference(scene, reference)
    return metrics


def _unreadable(scene: Scene) -> int:
    names = {view.name for view in scene.views}
    return sum(skipped.name not in names for skipped in scene.skipped)


def _held_out(scores: ViewScores) -> dict[str, Any]:
    if not scores.psnr:
        return {"views": {}, "protocol": "no picture was held out"}
    parts = {"psnr": scores.psnr, "ssim": scores.ssim, "psnr_color_corrected": scores.psnr_corrected}
    views = {name: {part: round(values[name], 4) for part, values in parts.items()} for name in scores.psnr}
    longest = max(max(render.shape[:2]) for render in scores.renders.values())
    protocol = (
        f"{len(views)} pictures held out of the fitting, mean over pictures, undistorted, longest side {longest} px; "
        "SSIM with an 11 px Gaussian window; no colour correction (colours matched: after the affine change of "
        "colour that suits each photo best); their cameras come from all pictures"
    )
    means = {"psnr": scores.mean_psnr, "ssim": scores.mean_ssim, "psnr_color_corrected": scores.mean_psnr_corrected}
    return {**{part: round(value, 4) for part, value in means.items()}, "views": views, "protocol": protocol}


def rendered(scene: Scene, view: View) -> Tensor:
    """The scene from a view's camera as uint8 [h w 3]."""
    assert view.camera is not None
    return torch.from_numpy(to_uint8(render(scene, view.camera).rgb[0]))


def with_depth(scene: Scene) -> Scene:
    """Every registered view with the splats' expected depth, 0 where less than half of the light is theirs."""
    views = []
    for view in scene.views:
        if view.camera is not None:
            picture = render(scene, view.camera)
            depth = torch.where(picture.alpha[0] > 0.5, picture.depth[0], 0.0)
            view = replace(view, depth=depth.cpu())
        views.append(view)
    return replace(scene, views=tuple(views))


def report_pictures(scene: Scene, limit: int = 16) -> list[ReportPicture]:
    """Photo and render of held-out views (of training views when none is held out), evenly chosen."""
    if scene.gaussians is None:
        return []
    views: Sequence[View] = scene.held_out or scene.registered
    keep = sorted({round(i) for i in np.linspace(0, len(views) - 1, min(limit, len(views)))})
    return [ReportPicture(views[i].name, views[i].image.numpy(), rendered(scene, views[i]).numpy()) for i in keep]


def write_metrics(metrics: Mapping[str, Any], folder: Path) -> None:
    """``metrics.json``, whole or not at all. Merges over what is there: an evaluation keeps the fitting's seconds."""
    path = folder / "metrics.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    write_text(path, json.dumps({**kept, **metrics}, indent=1))
