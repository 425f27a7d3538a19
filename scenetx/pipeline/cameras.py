"""Cameras and points for opened pictures: taken from the source where it brings them, found by SfM where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from scenetx.core import InputError, Scene, Skipped, View
from scenetx.geometry.sfm import SfmCamera, SfmPicture, SfmResult, SfmSettings, run_sfm, triangulate
from scenetx.io.images import write_picture
from scenetx.io.posed import PosedSource
from scenetx.io.prepare import CameraModel, Opened, PrepareSettings, with_cameras, write_upright
from scenetx.pipeline.choose import choose_model
from scenetx.pipeline.dense import add_depth, from_model
from scenetx.pipeline.predict import PredictSettings, open_predictor
from scenetx.pipeline.workspace import Workspace


def find_cameras(
    opened: Opened,
    sfm: SfmSettings,
    prepare: PrepareSettings,
    space: Workspace,
    notes: list[str],
    *,
    model: str = "sfm",
    predict: PredictSettings | None = None,
) -> Scene:
    """The scene with cameras and points; what could not be placed is named in ``Scene.skipped`` and the notes.

    model: who estimates them: see `choose_model`. A source's own cameras stay; a model then adds depth.
    """
    predict = predict or PredictSettings()
    name, weights, why = choose_model(model)
    notes.append(f"estimator: {why}")
    if weights and predict.weights == "hub":
        predict = replace(predict, weights=weights)
    if opened.posed is not None:
        scene = _from_source(opened.scene, opened.posed, sfm, prepare, space, notes)
        return scene if name == "sfm" else add_depth(scene, open_predictor(name, predict), predict, space, notes)
    scene = opened.scene
    if name != "sfm":
        in_order = replace(sfm, ordered=sfm.ordered or opened.kind == "video")

        def files(scene: Scene) -> list[SfmPicture]:
            return _pictures(scene, space.work / "upright", sfm.max_image_size)

        predictor = open_predictor(name, predict)
        return from_model(scene, predictor, predict, in_order, prepare, files, space, notes)
    if len(scene.views) < 2:
        raise InputError(scene.source, f"{len(scene.views)} usable picture(s)", "give two or more overlapping pictures")
    pictures = _calibrated(scene, _pictures(scene, space.work / "upright", sfm.max_image_size), sfm)
    ordered = sfm.ordered or opened.kind == "video"
    result = run_sfm(pictures, space.work / "sfm", replace(sfm, ordered=ordered), space.progress("cameras"))
    notes += result.notes
    scene = with_cameras(scene, _models(scene, result), prepare)
    lost = tuple(Skipped(name, f"not registered: {why}") for name, why in result.unregistered.items())
    return replace(scene, points=result.points, posed_by="sfm", skipped=(*scene.skipped, *lost))


def _from_source(
    scene: Scene, posed: PosedSource, sfm: SfmSettings, prepare: PrepareSettings, space: Workspace, notes: list[str]
) -> Scene:
    """The source's own poses; points are triangulated between them when it brings none."""
    models = {
        picture.name: CameraModel(
            picture.world_from_cam, picture.K, picture.distortion, picture.lens, picture.height, picture.width
        )
        for picture in posed.pictures
        if picture.world_from_cam is not None
    }
    scene = replace(with_cameras(scene, models, prepare), posed_by="input")
    notes.append(f"{len(scene.registered)} of {len(scene.views)} pictures have cameras ({posed.kind})")
    points = posed.points
    if points is None or len(points) == 0:
        pictures, cameras = _straightened(scene.registered, space.work / "straight")
        points = triangulate(pictures, cameras, space.work / "sfm", sfm, space.progress("cameras"))
        notes.append(f"{len(points):,} points triangulated between the given cameras")
    views = tuple(replace(view, held_out=view.name in posed.held_out) for view in scene.views)
    return replace(scene, views=views, points=points)


def _pictures(scene: Scene, folder: Path, max_side: int) -> list[SfmPicture]:
    """The originals as files for SfM. Equal camera text and size share intrinsics; without EXIF, equal size does."""
    files = write_upright(scene, folder, max_side)
    pictures = []
    for view in scene.views:
        original = view.original
        shrink = min(1.0, max_side / max(original.height, original.width))
        focal = original.focal_exif * shrink if original.focal_exif else None
        group = f"{original.camera_exif}|{original.width}x{original.height}"
        mask = _mask_file(view, files[view.name], folder / "masks" / f"{view.name}.png")
        pictures.append(SfmPicture(view.name, files[view.name], group, focal, mask))
    return pictures


def _calibrated(scene: Scene, pictures: list[SfmPicture], sfm: SfmSettings) -> list[SfmPicture]:
    """With the settings' intrinsics, which are the originals', in pixels of the files."""
    if not sfm.intrinsics:
        return pictures
    sizes = {(view.original.height, view.original.width) for view in scene.views}
    if len(sizes) > 1:
        value = f"given for pictures of {len(sizes)} sizes"
        raise InputError("sfm.intrinsics", value, "give pictures of one calibrated camera, all upright or all sideways")
    height, width = sizes.pop()
    shrink = min(1.0, sfm.max_image_size / max(height, width))
    lens = (*(value * shrink for value in sfm.intrinsics[:4]), *(sfm.intrinsics[4:] or (0.0, 0.0, 0.0, 0.0)))
    return [replace(picture, lens=lens, focal=lens[0]) for picture in pictures]


def _mask_file(view: View, picture: Path, path: Path) -> Path | None:
    """The view's mask at the size of the file SfM sees, black = no features here."""
    if view.mask is None:
        return None
    with Image.open(picture) as opened:
        size = opened.size
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(view.mask.numpy().astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def _models(scene: Scene, result: SfmResult) -> Mapping[str, CameraModel]:
    """SfM's cameras, which speak of the shrunk files, for the originals' pixels."""
    models = {}
    for name, camera in result.cameras.items():
        original = scene.view(name).original
        scale = camera.K.new_tensor([original.width / camera.width, original.height / camera.height, 1.0])
        models[name] = CameraModel(
            camera.world_from_cam,
            camera.K * scale[:, None],
            camera.distortion,
            "opencv",
            original.height,
            original.width,
        )
    return models


def _straightened(views: Sequence[View], folder: Path) -> tuple[list[SfmPicture], Mapping[str, SfmCamera]]:
    """Working pictures with pinhole cameras: whatever lens the source has no longer matters."""
    pictures, cameras = [], {}
    folder.mkdir(parents=True, exist_ok=True)
    for index, view in enumerate(views):
        assert view.camera is not None
        path = folder / f"{index:05d}.png"
        write_picture(path, view.image.numpy())
        K = view.camera.K[0]
        pictures.append(SfmPicture(view.name, path, f"{K.tolist()}", float(K[0, 0]), None))
        cameras[view.name] = SfmCamera(view.camera.world_from_cam[0], K, (0.0, 0.0, 0.0, 0.0), view.height, view.width)
    return pictures, cameras
