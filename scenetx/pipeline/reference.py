"""A scene against known cameras, depth and points, by the field's protocols: published tables can be re-made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError, Points, Scene, Sim3, View, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.geometry.align import align_cameras
from scenetx.geometry.lift import thin
from scenetx.io.cameras_json import read_cameras_json
from scenetx.io.colmap import read_colmap
from scenetx.io.json_value import read_json
from scenetx.io.posed import PosedPicture, PosedSource
from scenetx.io.sources import TRANSFORMS, is_ours
from scenetx.io.transforms import read_transforms
from scenetx.measure.shape import CloudErrors, DepthErrors, cloud_errors, depth_errors, pose_errors

AUC_DEGREES = (3, 5, 10, 30)
DENSE = 10_000
"""A reference cloud of fewer points is a sparse model: it says nothing about what is missing."""
CLOUD = 100_000

Pair = tuple[View, PosedPicture]


def against_reference(scene: Scene, reference: str | Path) -> dict[str, Any]:
    """Errors of cameras, and of depth and points where the reference has them.

    Pictures are matched by file name without suffix, frames of a video also by their number alone. Cameras: medians
    after one robust similarity (center_percent is of the reference's extent: the largest distance of a reference
    centre from their mean); ``ate_rmse`` after a least-squares similarity, in the reference's units (Sturm et al.,
    2012); ``pose_auc`` over all pairs of cameras, whether registered or not (a pair with a missing camera counts as 180
    degrees off). Depth: ``depth_absrel`` and ``depth_delta1`` at the cameras' scale, ``..._median`` with each picture
    scaled by its median. Points: accuracy, completeness and F-score at 1% of the extent, in the reference's units.
    """
    source = read_reference(reference)
    truth = {Path(picture.name).stem: picture for picture in source.pictures if picture.world_from_cam is not None}
    named = {view.name: _name_in(truth, view) for view in scene.views}
    pairs = [(view, truth[stem]) for view in scene.registered if (stem := named[view.name]) is not None]
    if len(pairs) < 2:
        raise InputError(str(reference), f"{len(pairs)} of its pictures are in the scene", "name the right reference")
    true_poses = torch.stack([p.world_from_cam.double() for _, p in pairs if p.world_from_cam is not None])
    found = torch.cat([view.camera.world_from_cam.double() for view, _ in pairs if view.camera is not None])
    similarity = align_cameras(true_poses, found)
    errors = pose_errors(true_poses, found, reference_from_estimate=similarity)
    expected = sum(stem is not None for stem in named.values())
    out: dict[str, Any] = {
        "cameras": len(pairs),
        "rotation_deg_median": round(float(errors.rotation_deg.median()), 4),
        "rotation_deg_max": round(float(errors.rotation_deg.max()), 4),
        "center_percent_median": round(100 * float(errors.center.median()), 4),
        "center_percent_max": round(100 * float(errors.center.max()), 4),
        "ate_rmse": float(f"{pose_errors(true_poses, found).ate_rmse:.4g}"),
    }
    # All pairs of the pictures that should have a camera, those that have none included.
    share = len(pairs) * (len(pairs) - 1) / max(1, expected * (expected - 1))
    out |= {f"pose_auc_{int(t)}": round(100 * share * value, 2) for t, value in errors.auc(AUC_DEGREES).items()}
    out.update(_depth(pairs, similarity))
    return {**out, **_cloud(scene, source, pairs, similarity)}


def read_reference(path: str | Path) -> PosedSource:
    """Cameras from a cameras.json, a transforms.json, a COLMAP model, or a folder with one of them: told by content.

    A scene of ours serves too, as folder or scene.json; pictures need not be there. Raises InputError where nothing of
    that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(str(path), "not there", "name a cameras.json, transforms.json or COLMAP folder")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() != ".json":
        if path.stem in ("cameras", "images", "points3D"):
            return read_colmap(path.parent, bare=True)
        raise InputError(str(path), "is no reference", "name a cameras.json, transforms.json or COLMAP folder")
    root = read_json(path)
    if "frames" in root:
        return read_transforms(path, bare=True)
    if "images" in root and isinstance(root["images"].value, dict):
        return read_cameras_json(path)
    if path.name == "scene.json":
        return _of_folder(path.parent)
    raise InputError(str(path), "JSON without 'frames' or 'images'", "name a transforms.json or cameras.json")


def _of_folder(folder: Path) -> PosedSource:
    """Cameras of a folder; a cameras.json of another program is left aside."""
    known = folder / "cameras.json"
    if known.is_file() and is_ours(known):
        return read_cameras_json(known)
    if any((folder / name).is_file() for name in TRANSFORMS):
        return read_transforms(folder, bare=True)
    return read_colmap(folder, bare=True)


def _name_in(truth: Mapping[str, PosedPicture], view: View) -> str | None:
    """The reference's name of a picture: the file's, or the bare number of a video's frame; None where it has none."""
    stem = Path(view.original.path or view.name).stem
    return next((name for name in (stem, stem.removeprefix("frame_")) if name in truth), None)


def _depth(pairs: Sequence[Pair], similarity: Sim3) -> Mapping[str, float]:
    """Means over pictures; the reference's pinhole is resampled at our pixels."""
    rows: list[tuple[DepthErrors, DepthErrors]] = []
    for view, picture in pairs:
        if view.depth is None or view.camera is None or (stored := true_depth(picture)) is None:
            continue
        truth = sample(stored, _reference_pixels(view.camera, picture, stored.shape[0], stored.shape[1]))
        if not bool(((truth > 0) & (view.depth > 0)).any()):
            continue
        placed = depth_errors(truth, view.depth * float(similarity.scale))
        rows.append((placed, depth_errors(truth, view.depth, align="median")))
    if not rows:
        return {}
    out = {}
    for place, suffix in ((0, ""), (1, "_median")):
        out[f"depth_absrel{suffix}"] = round(float(np.mean([row[place].abs_rel for row in rows])), 4)
        out[f"depth_delta1{suffix}"] = round(float(np.mean([row[place].delta1 for row in rows])), 4)
    return out


def _cloud(scene: Scene, source: PosedSource, pairs: Sequence[Pair], similarity: Sim3) -> Mapping[str, float]:
    """Accuracy and completeness of the scene's points."""
    if scene.points is None or len(scene.points) == 0:
        return {}
    truth = true_points(source, [picture for _, picture in pairs])
    if len(truth) < DENSE:
        return {}
    found = similarity.apply(scene.points.positions.double())
    found = found[thin(found.float(), CLOUD)]
    truth = truth[thin(truth.float(), CLOUD)]
    errors: CloudErrors = cloud_errors(truth, found)
    return {name: float(f"{value:.4g}") for name, value in asdict(errors).items()}


def true_points(source: PosedSource, pictures: Sequence[PosedPicture]) -> Float[Tensor, "p 3"]:
    """The reference's points: its own, or those of its depth maps."""
    own: Points | None = source.points
    if own is not None and len(own) >= DENSE:
        return own.positions.double()
    parts = [torch.zeros(0, 3, dtype=torch.float64)]
    for picture in pictures:
        stored = true_depth(picture)
        if stored is None or picture.world_from_cam is None:
            continue
        height, width = stored.shape
        camera = Cameras(picture.world_from_cam.double()[None], picture.K.double()[None], picture.height, picture.width)
        camera = camera.resized(height, width)
        index = (stored > 0).flatten().nonzero()[:, 0]
        index = index[:: max(1, 4 * len(index) * len(pictures) // (10 * CLOUD))]
        pixels = pixel_grid(height, width, dtype=torch.float64).flatten(0, 1)[index]
        parts.append(unproject(pixels[None], stored.flatten()[index].double()[None], camera)[0])
    return torch.cat(parts)


def true_depth(picture: PosedPicture) -> Float[Tensor, "h w"] | None:
    """The reference's z-depth in its world units, 0 = none, of the straight picture with its K; None without one."""
    path = picture.depth_path
    if path is None:
        return None
    values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    return torch.from_numpy(np.nan_to_num(values.astype(np.float32))) * picture.depth_unit


def _reference_pixels(camera: Cameras, picture: PosedPicture, height: int, width: int) -> Float[Tensor, "h w 2"]:
    """Where our pixels lie in the reference's depth map, a pinhole with the picture's K at another size."""
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).double() @ torch.linalg.inv(camera.K[0].double()).T
    pixels = rays @ picture.K.double().T
    return pixels[..., :2] * torch.tensor([width / picture.width, height / picture.height])


def sample(depth: Float[Tensor, "h w"], pixels: Float[Tensor, "a b 2"]) -> Float[Tensor, "a b"]:
    """Nearest value, 0 outside: depth must not be blended over an edge."""
    column, row = pixels[..., 0].floor().long(), pixels[..., 1].floor().long()
    inside = (column >= 0) & (row >= 0) & (column < depth.shape[1]) & (row < depth.shape[0])
    value = depth[row.clamp(0, depth.shape[0] - 1), column.clamp(0, depth.shape[1] - 1)]
    return torch.where(inside, value, torch.zeros_like(value))
