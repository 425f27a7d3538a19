"""The truth about a scene: held-out pictures, cameras and depth against a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, Gaussians, InputError, Scene, View
from scenetx.fit import evaluate_views
from scenetx.geometry.align import align_cameras
from scenetx.io.cameras_json import read_cameras_json
from scenetx.io.colmap import read_colmap
from scenetx.io.posed import PosedPicture, PosedSource
from scenetx.io.transforms import read_transforms
from scenetx.measure.shape import pose_errors
from scenetx.pipeline.render import render, to_uint8
from scenetx.serve.report import ReportPicture


def evaluate(scene: Scene, *, reference: str | Path | None = None) -> dict[str, Any]:
    """Scores of a scene: what was registered, PSNR/SSIM of held-out views, errors against reference cameras.

    Held-out pictures are compared as they are (8-bit render against the undistorted working picture, no colour
    correction), masked pixels left out; means are over pictures. Their cameras come from all pictures, as is usual.
    """
    metrics: dict[str, Any] = {"registered": len(scene.registered), "images": len(scene.views) + _unreadable(scene)}
    if scene.points is not None:
        metrics["points"] = len(scene.points)
    if scene.gaussians is not None:
        metrics["gaussians"] = len(scene.gaussians)
        metrics.update(_held_out(scene, scene.gaussians))
    if reference is not None:
        metrics["reference"] = against_reference(scene, reference)
    return metrics


def _unreadable(scene: Scene) -> int:
    names = {view.name for view in scene.views}
    return sum(skipped.name not in names for skipped in scene.skipped)


def _held_out(scene: Scene, gaussians: Gaussians) -> dict[str, Any]:
    scores = evaluate_views(scene, gaussians)
    if not scores.psnr:
        return {"views": {}, "protocol": "no picture was held out"}
    views = {name: {"psnr": round(scores.psnr[name], 4), "ssim": round(scores.ssim[name], 4)} for name in scores.psnr}
    longest = max(max(view.height, view.width) for view in scene.held_out)
    protocol = (
        f"{len(views)} pictures held out of the fitting, mean over pictures, undistorted, longest side {longest} px; "
        "SSIM with an 11 px Gaussian window; no colour correction; their cameras come from all pictures"
    )
    means = {"psnr": round(scores.mean_psnr, 4), "ssim": round(scores.mean_ssim, 4)}
    return {**means, "views": views, "protocol": protocol}


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


def against_reference(scene: Scene, reference: str | Path) -> dict[str, Any]:
    """Errors of cameras (after one similarity) and, where the reference has depth, of depth (after its scale).

    Pictures are matched by file name without suffix. center_percent is of the reference's extent: the largest distance
    of a reference centre from their mean.
    """
    truth = {Path(picture.name).stem: picture for picture in read_reference(reference).pictures}
    pairs = [(view, truth[_stem(view)]) for view in scene.registered if _stem(view) in truth]
    pairs = [(view, picture) for view, picture in pairs if picture.world_from_cam is not None]
    if len(pairs) < 2:
        raise InputError(str(reference), f"{len(pairs)} of its pictures are in the scene", "name the right reference")
    true_poses = torch.stack([p.world_from_cam.double() for _, p in pairs if p.world_from_cam is not None])
    found = torch.cat([view.camera.world_from_cam.double() for view, _ in pairs if view.camera is not None])
    similarity = align_cameras(true_poses, found)
    errors = pose_errors(true_poses, similarity.apply_to_poses(found))
    out: dict[str, Any] = {
        "cameras": len(pairs),
        "rotation_deg_median": round(float(errors.rotation_deg.median()), 4),
        "rotation_deg_max": round(float(errors.rotation_deg.max()), 4),
        "center_percent_median": round(100 * float(errors.center.median()), 4),
        "center_percent_max": round(100 * float(errors.center.max()), 4),
    }
    depth = [_depth_absrel(view, picture, similarity.scale) for view, picture in pairs]
    measured = [value for value in depth if value is not None]
    if measured:
        out["depth_absrel"] = round(float(np.mean(measured)), 4)
    return out


def read_reference(path: str | Path) -> PosedSource:
    """Cameras from a cameras.json, a transforms.json or a COLMAP model."""
    path = Path(path)
    if not path.exists():
        raise InputError(str(path), "not there", "name a cameras.json, transforms.json or COLMAP folder")
    if path.is_dir():
        return read_cameras_json(path) if (path / "cameras.json").exists() else read_colmap(path, None)
    return read_transforms(path) if "transforms" in path.name else read_cameras_json(path)


def _stem(view: View) -> str:
    return Path(view.original.path or view.name).stem


def _depth_absrel(view: View, picture: PosedPicture, scale: float) -> float | None:
    """Mean |d - d*| / d* over pixels where both are known; the reference's pinhole is resampled at our pixels."""
    if picture.depth_path is None or view.depth is None or view.camera is None:
        return None
    stored = torch.from_numpy(np.asarray(Image.open(picture.depth_path)).astype(np.float32)) * picture.depth_unit
    truth = _sample(stored, _reference_pixels(view.camera, picture, stored.shape[0], stored.shape[1]))
    known = (truth > 0) & (view.depth > 0)
    if not known.any():
        return None
    return float(((view.depth * scale - truth).abs() / truth)[known].mean())


def _reference_pixels(camera: Cameras, picture: PosedPicture, height: int, width: int) -> Float[Tensor, "h w 2"]:
    """Where our pixels lie in the reference's depth map, a pinhole with the picture's K at another size."""
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).double() @ torch.linalg.inv(camera.K[0].double()).T
    pixels = rays @ picture.K.double().T
    return pixels[..., :2] * torch.tensor([width / picture.width, height / picture.height])


def _sample(depth: Float[Tensor, "h w"], pixels: Float[Tensor, "a b 2"]) -> Float[Tensor, "a b"]:
    """Nearest value, 0 outside: depth must not be blended over an edge."""
    column, row = pixels[..., 0].floor().long(), pixels[..., 1].floor().long()
    inside = (column >= 0) & (row >= 0) & (column < depth.shape[1]) & (row < depth.shape[0])
    value = depth[row.clamp(0, depth.shape[0] - 1), column.clamp(0, depth.shape[1] - 1)]
    return torch.where(inside, value, torch.zeros_like(value))


def write_metrics(metrics: Mapping[str, Any], folder: Path) -> None:
    """``metrics.json``, whole or not at all. Merges over what is there: an evaluation keeps the fitting's seconds."""
    path = folder / "metrics.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**kept, **metrics}, indent=1))
    temporary.replace(path)
