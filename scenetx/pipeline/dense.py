"""From a model's predictions to a scene: cameras checked and refined, depth in their scale, points that agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch

from scenetx.core import Points, Scene, Sim3, Skipped, View
from scenetx.geometry.align import align_cameras
from scenetx.geometry.lift import depth_scale, fuse, trusted
from scenetx.geometry.sfm import SfmCamera, SfmPicture, SfmResult, SfmSettings, refine_cameras
from scenetx.io.prepare import CameraModel, PrepareSettings, with_cameras
from scenetx.pipeline.predict import Prediction, Predictor, PredictSettings, of_one_shape, predict
from scenetx.pipeline.workspace import Workspace

FEW_POINTS = 1000
Files = Callable[[Scene], list[SfmPicture]]


def from_model(
    scene: Scene,
    predictor: Predictor,
    settings: PredictSettings,
    sfm: SfmSettings,
    prepare: PrepareSettings,
    files: Files,
    space: Workspace,
    notes: list[str],
) -> Scene:
    """The scene with cameras, depth and points that start from what a model says of its pictures.

    ``files(scene)``: the originals as files for matching. The frame (and scale, for a metric model) is the model's,
    whichever cameras are kept.
    """
    looked, other = of_one_shape(scene.views, predictor.rule)
    predictions = predict(looked, predictor, settings, space.progress("cameras"), notes, posed=False)
    mapped = {view.name: _with_maps(view, one) for view, one in zip(looked, predictions, strict=True)}
    reason = "of another shape than most: the model looks at one shape at a time"
    left_out = tuple(Skipped(view.name, reason) for view in other)
    views = tuple(mapped.get(view.name, view) for view in scene.views)
    scene = replace(scene, views=views, skipped=(*scene.skipped, *left_out))
    models = _models(looked, predictions)
    sparse: Points | None = None
    if settings.refine and len(looked) > 1:
        pictures = files(replace(scene, views=tuple(looked)))
        result = refine_cameras(pictures, _guesses(models), space.work / "sfm", sfm, space.progress("cameras"))
        notes += result.notes
        if result.kept != "prediction":
            models, sparse, back = _in_model_frame(scene, models, result)
            notes.append(f"brought into the model's frame (scale {back.scale:.3g})")
            lost = tuple(Skipped(name, f"not registered: {why}") for name, why in result.unregistered.items())
            scene = replace(scene, skipped=(*scene.skipped, *lost))
    scene = with_cameras(scene, models, prepare)
    scene = _scaled_depth(scene, sparse)
    scale = "metres" if predictor.metric else "the model's scale"
    return with_points(replace(scene, points=sparse, posed_by="model"), settings, notes, scale)


def add_depth(
    scene: Scene, predictor: Predictor, settings: PredictSettings, space: Workspace, notes: list[str]
) -> Scene:
    """Depth and dense points for a scene whose cameras are given and stay; its sparse points set the depth's scale.

    Depth that the source brings stays too.
    """
    if all(view.depth is not None for view in scene.registered):
        return with_points(scene, settings, notes, "the given cameras' scale")
    known, other = of_one_shape(scene.registered, predictor.rule)
    if other:
        notes.append(f"{len(other)} pictures of another shape than most have no predicted depth")
    predictions = predict(known, predictor, settings, space.progress("cameras"), notes, posed=True)
    pairs = zip(known, predictions, strict=True)
    mapped = {view.name: _with_maps(view, one) for view, one in pairs if view.depth is None}
    scene = replace(scene, views=tuple(mapped.get(view.name, view) for view in scene.views))
    sparse = scene.points
    return with_points(_scaled_depth(scene, sparse), settings, notes, "the given cameras' scale")


def with_points(scene: Scene, settings: PredictSettings, notes: list[str], scale: str) -> Scene:
    """Trusted depth in every view, and the points of it; sparse points stay beside them."""
    views = [view for view in scene.registered if view.depth is not None]
    depths = trusted(views, settings.lift)
    points = fuse(views, depths, settings.lift.max_points)
    kept = {view.name: replace(view, depth=depth) for view, depth in zip(views, depths, strict=True)}
    share = sum(float((depth > 0).float().mean()) for depth in depths) / max(1, len(depths))
    notes.append(f"{len(points):,} points from {100 * share:.0f}% of the pixels, in {scale}")
    if scene.points is not None and len(points) < FEW_POINTS:
        points = scene.points
    elif scene.points is not None:
        sparse = scene.points
        positions = torch.cat([points.positions, sparse.positions.to(points.positions)])
        points = Points(positions, torch.cat([points.colors, sparse.colors]))
    return replace(scene, views=tuple(kept.get(view.name, view) for view in scene.views), points=points)


def _with_maps(view: View, prediction: Prediction) -> View:
    """The view with depth and confidence at its own pixels."""
    depth = prediction.window.map_for_picture(prediction.depth.float(), view.height, view.width)
    confidence = prediction.window.map_for_picture(prediction.confidence.float(), view.height, view.width)
    return replace(view, depth=depth, confidence=confidence)


def _models(views: Sequence[View], predictions: Sequence[Prediction]) -> dict[str, CameraModel]:
    """Predicted cameras for the working pictures' pixels. Pictures of one lens share their median focal length."""
    found = [one.window.K_for_picture(one.camera.K[0].double()) for one in predictions]
    focals: dict[str, list[float]] = {}
    for view, K in zip(views, found, strict=True):
        focals.setdefault(_lens(view), []).append(float(K[0, 0] + K[1, 1]) / 2 / view.width)
    models = {}
    for view, one in zip(views, predictions, strict=True):
        focal = median(focals[_lens(view)]) * view.width
        K = torch.tensor([[focal, 0, view.width / 2], [0, focal, view.height / 2], [0, 0, 1]], dtype=torch.float64)
        pose = one.camera.world_from_cam[0].double()
        models[view.name] = CameraModel(pose, K, (), "opencv", view.height, view.width)
    return models


def _lens(view: View) -> str:
    return f"{view.original.camera_exif}|{view.original.width}x{view.original.height}"


def _guesses(models: Mapping[str, CameraModel]) -> dict[str, SfmCamera]:
    """Predicted cameras as `refine_cameras` takes them; it brings them to the files' size."""
    none = (0.0, 0.0, 0.0, 0.0)
    return {
        name: SfmCamera(model.world_from_cam, model.K, none, model.height, model.width)
        for name, model in models.items()
    }


def _in_model_frame(
    scene: Scene, predicted: Mapping[str, CameraModel], result: SfmResult
) -> tuple[dict[str, CameraModel], Points, Sim3]:
    """Refined cameras and points in the frame and scale of the prediction."""
    names = list(result.cameras)
    there = torch.stack([predicted[name].world_from_cam.double() for name in names])
    here = torch.stack([result.cameras[name].world_from_cam.double() for name in names])
    back = align_cameras(there, here)
    models = {}
    for name in names:
        camera, original = result.cameras[name], scene.view(name).original
        pose = back.apply_to_poses(camera.world_from_cam[None])[0]
        scale = camera.K.new_tensor([original.width / camera.width, original.height / camera.height, 1.0])
        models[name] = CameraModel(
            pose, camera.K * scale[:, None], camera.distortion, "opencv", original.height, original.width
        )
    return models, replace(result.points, positions=back.apply(result.points.positions)), back


def _scaled_depth(scene: Scene, sparse: Points | None) -> Scene:
    """Each view's depth times the median ratio to the sparse points it sees: cameras moved, depth follows.

    A view that sees too few of them takes the median factor of the others.
    """
    if sparse is None or len(sparse) == 0:
        return scene
    factors: dict[str, float] = {}
    for view in scene.registered:
        if view.depth is not None and view.camera is not None:
            factor = depth_scale(view.depth, view.camera, sparse.positions)
            if factor is not None:
                factors[view.name] = factor
    if not factors:
        return scene
    usual = median(factors.values())
    views = []
    for view in scene.views:
        if view.depth is not None and view.camera is not None:
            view = replace(view, depth=view.depth * factors.get(view.name, usual))
        views.append(view)
    return replace(scene, views=tuple(views))
