"""From verified matches to one good model: several mappers, the best answer, its refinement (pycolmap)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from scenetx.geometry.sfm_job import JobPicture, SfmSettings

Report = Callable[[float], None]
ENOUGH_FOR_LENS = 10
"""Pictures of one camera that may determine more of the lens than a focal length and one radial term."""
WORTH = 0.01
"""Share of bundle adjustment's cost that a freer lens has to explain."""
DETERMINED = 0.002
"""Share of the picture to which a principal point must be known: 0.1 degrees at a focal length of one picture."""
SIGNIFICANT = 20.0
"""Standard deviations; those of bundle adjustment are too small by a few times, since neighbouring errors agree."""
FAR = 10.0
"""A camera this many times farther out than the median one, and seen by few points, is not believed."""


@dataclass(frozen=True)
class Candidate:
    """One attempt's largest model, and who is in which of its models, the largest first."""

    model: pycolmap.Reconstruction
    groups: tuple[frozenset[str], ...]
    how: str

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(group) for group in self.groups)

    @property
    def score(self) -> tuple[int, float]:
        """More pictures first, then the smaller reprojection error."""
        return self.model.num_reg_images(), -self.model.compute_mean_reprojection_error()


def map_incremental(
    database: Path,
    images: Path,
    folder: Path,
    settings: SfmSettings,
    report: Report,
    *,
    relaxed: bool,
    start: Path | None = None,
) -> Candidate | None:
    """COLMAP's incremental mapper. ``relaxed`` thresholds take weaker pictures; ``start`` continues a model on disk."""
    empty_folder(folder)
    options = pycolmap.IncrementalPipelineOptions(
        min_model_size=settings.min_model_size,
        num_threads=settings.num_threads,
        random_seed=settings.seed,
        extract_colors=False,
    )
    options.mapper.random_seed = options.triangulation.random_seed = settings.seed
    total = _num_images(database)
    # Points of two views are weak, but all there is between few or weakly connected pictures.
    options.triangulation.ignore_two_view_tracks = total > 4 and not relaxed
    if total == 2 or settings.intrinsics:
        options.ba_refine_extra_params = options.mapper.abs_pose_refine_extra_params = False
    if settings.intrinsics:
        options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = False
    if relaxed:
        options.min_num_matches = 10
        options.mapper.init_min_num_inliers = 40
        options.mapper.init_min_tri_angle = 5.0
        options.mapper.abs_pose_min_num_inliers = 15
        options.mapper.abs_pose_min_inlier_ratio = 0.15
        options.mapper.max_reg_trials = 6
    count = 0

    def next_image() -> None:
        nonlocal count
        count += 1
        report(min(count / total, 0.99))

    models = pycolmap.incremental_mapping(
        database, images, folder, options, str(start) if start else "", next_image_callback=next_image
    )
    return _largest(models, "incremental, relaxed" if relaxed else "incremental")


def map_global(database: Path, images: Path, folder: Path, settings: SfmSettings) -> Candidate | None:
    """The global mapper (GLOMAP; Pan et al., 2024), on a copy of the database whose focal lengths it may calibrate."""
    empty_folder(folder)
    copy = folder / "calibrated.db"
    shutil.copyfile(database, copy)
    options = pycolmap.GlobalPipelineOptions(
        min_model_size=settings.min_model_size, num_threads=settings.num_threads, random_seed=settings.seed
    )
    if settings.intrinsics:
        adjustment = options.mapper.bundle_adjustment
        adjustment.refine_focal_length = adjustment.refine_extra_params = False
    else:
        pycolmap.calibrate_view_graph(copy)
    models = pycolmap.global_mapping(copy, images, folder, options)
    copy.unlink()
    return _largest(models, "global")


def _largest(models: dict[int, pycolmap.Reconstruction], how: str) -> Candidate | None:
    ordered = sorted(models.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
    ordered = [model for model in ordered if model.num_reg_images() >= 2 and model.num_points3D() >= 8]
    if not ordered:
        return None
    groups = [frozenset(model.image(image_id).name for image_id in model.reg_image_ids()) for model in ordered]
    return Candidate(ordered[0], tuple(groups), how)


def empty_folder(folder: Path) -> None:
    """A folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _num_images(database: Path) -> int:
    handle = pycolmap.Database.open(database)
    try:
        return int(handle.num_images())
    finally:
        handle.close()


def drop_unreliable(model: pycolmap.Reconstruction) -> list[str]:
    """Take cameras out that are far from all the others and held by few points, or by hardly any; their names.

    One such camera blows up the scale of everything that looks at the cameras' extent.
    """
    images = [model.image(image_id) for image_id in model.reg_image_ids()]
    if len(images) < 4:
        return []
    centers = np.array([image.projection_center() for image in images])
    counts = np.array([image.num_points3D for image in images])
    distances = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
    far = distances > FAR * max(float(np.median(distances)), 1e-12)
    bad = (far & (counts < max(30.0, 0.2 * float(np.median(counts))))) | (counts < 6)
    dropped = [(image.name, image.frame_id) for image, is_bad in zip(images, bad, strict=True) if is_bad]
    for _, frame_id in dropped:
        model.deregister_frame(frame_id)
    return [name for name, _ in dropped]


def refine(model: pycolmap.Reconstruction, settings: SfmSettings) -> list[str]:
    """Last bundle adjustment, in place, and what the lens turned out to need, in words.

    Where `ENOUGH_FOR_LENS` pictures share a camera, SIMPLE_RADIAL grows to RADIAL, and then the principal point is set
    free. Each step is kept only if it lowers the cost by `WORTH` (the cost always falls a little, and then
    the new parameters soak up noise and turn the cameras) and bundle adjustment's covariance says they are determined.
    A principal point `SIGNIFICANT` standard deviations away needs only a quarter of that worth: where pictures turn
    little, even a large offset explains little. Either half of the pictures must find it again, `halves_agree`.
    Pixels stay square and lenses centred on the principal point: two focal lengths and tangential distortion pose as a
    principal point that is off. A lens that really is decentred comes out a tenth of a degree worse for it.
    """
    members = _pictures_of(model)
    if settings.intrinsics:
        adjust(model, settings, frozenset(members), principal_point=False)
        return ["lens as given"]
    cost, _ = adjust(model, settings, frozenset(), principal_point=False)
    few = frozenset(camera_id for camera_id, count in members.items() if count < ENOUGH_FOR_LENS)
    free = sorted(set(members) - few)
    notes = []
    for what in ("distortion", "principal point"):
        centre = what == "principal point"
        if not free or (centre and not settings.principal_point):
            break
        saved = pycolmap.Reconstruction(model)
        if not centre:
            for camera_id in free:
                _widen(model.camera(camera_id))
        new_cost, adjuster = adjust(model, settings, few, principal_point=centre)
        gain = 1 - new_cost / max(cost, 1e-12)
        # The covariance costs as much as the adjustment: only where its answer can matter.
        held = _determined(model, adjuster, free, principal_point=centre) if gain > 0.25 * WORTH else 0.0
        worth = 0.25 * WORTH if centre and held >= SIGNIFICANT else WORTH
        if held > 0 and gain > worth and (not centre or halves_agree(model, settings, few)):
            cost = new_cost
            notes.append(f"{what} estimated (cost -{100 * gain:.1f}%)")
        else:
            _restore(model, saved)
    return notes


def _widen(camera: pycolmap.Camera) -> None:
    """SIMPLE_RADIAL to the same lens as RADIAL."""
    if camera.model_name == "SIMPLE_RADIAL":
        params = [*camera.params, 0.0]
        camera.model = pycolmap.CameraModelId.RADIAL
        camera.params = params


def _pictures_of(model: pycolmap.Reconstruction) -> dict[int, int]:
    counts: dict[int, int] = {}
    for image_id in model.reg_image_ids():
        camera_id = model.image(image_id).camera_id
        counts[camera_id] = counts.get(camera_id, 0) + 1
    return counts


def adjust(
    model: pycolmap.Reconstruction, settings: SfmSettings, fixed: frozenset[int], *, principal_point: bool
) -> tuple[float, pycolmap.CeresBundleAdjuster]:
    """Bundle adjustment with a robust loss, in place: its cost and adjuster (for `_determined`); ``fixed`` stay."""
    options = pycolmap.BundleAdjustmentOptions(refine_principal_point=principal_point, print_summary=False)
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.solver_options.num_threads = settings.num_threads
    options.ceres.solver_options.function_tolerance = 1e-7
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for camera_id in fixed:
        config.set_constant_cam_intrinsics(camera_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    summary = adjuster.solve()
    model.update_point_3d_errors()
    return float(summary.ceres_summary.final_cost) if summary.is_solution_usable() else float("inf"), adjuster


def halves_agree(model: pycolmap.Reconstruction, settings: SfmSettings, fixed: frozenset[int]) -> bool:
    """Do both halves of the pictures find the principal points of all to within `DETERMINED`?

    Bundle adjustment's covariance takes errors for independent; those of one picture are not, and where few pictures
    turn little they put the principal point percents away and the cameras with it.
    """
    return all(apart / 2 <= DETERMINED for apart in halves_apart(model, settings, fixed).values())


def halves_apart(model: pycolmap.Reconstruction, settings: SfmSettings, fixed: frozenset[int]) -> dict[int, float]:
    """By camera, how far apart the principal points are that every second picture and the others find, as a share of
    the longer side. Cameras in ``fixed`` are left out."""
    ids = sorted(model.reg_image_ids())
    points = []
    for left_out in (ids[::2], ids[1::2]):
        half = pycolmap.Reconstruction(model)
        for image_id in left_out:
            half.deregister_frame(half.image(image_id).frame_id)
        adjust(half, settings, fixed, principal_point=True)
        points.append({i: _principal_point(half.camera(i)) for i in set(_pictures_of(model)) - fixed})
    longer = {i: max(model.camera(i).width, model.camera(i).height) for i in points[0]}
    return {i: float(np.abs(point - points[1][i]).max()) / longer[i] for i, point in points[0].items()}


def _principal_point(camera: pycolmap.Camera) -> np.ndarray:
    return np.array([camera.principal_point_x, camera.principal_point_y])


def _determined(
    model: pycolmap.Reconstruction,
    adjuster: pycolmap.CeresBundleAdjuster,
    cameras: Sequence[int],
    *,
    principal_point: bool,
) -> float:
    """0 unless focal lengths are known to 0.5%, principal points to `DETERMINED` and near the middle (a tenth).

    With the principal point free and so determined: how many standard deviations it is away from the middle.
    Pictures that neither roll nor come close leave it to trade with rotation.
    """
    options = pycolmap.BACovarianceOptions(params=pycolmap.BACovarianceOptionsParams.ALL)
    covariance = pycolmap.estimate_ba_covariance(options, model, adjuster)
    if covariance is None:
        return 0.0
    significance = 1.0
    # Ceres takes the residuals' standard deviation for one pixel; theirs is smaller.
    noise = max(model.compute_mean_reprojection_error(), 1e-3)
    for camera_id in cameras:
        camera = model.camera(camera_id)
        block = covariance.get_other_params_cov(camera.params)
        if block is None:
            return 0.0
        params, size = np.asarray(camera.params), max(camera.width, camera.height)
        std = noise * np.sqrt(np.abs(np.diag(block)))
        focal, middle = list(camera.focal_length_idxs()), list(camera.principal_point_idxs())
        if (std[focal] > 0.005 * params[focal]).any():
            return 0.0
        if principal_point:
            off, error = np.abs(params[middle] - np.array([camera.width, camera.height]) / 2), std[middle]
            if (error > DETERMINED * size).any() or (off > 0.1 * size).any():
                return 0.0
            significance = max(significance, float((off / np.maximum(error, 1e-9)).max()))
    return significance


def _restore(model: pycolmap.Reconstruction, saved: pycolmap.Reconstruction) -> None:
    for camera_id, camera in saved.cameras.items():
        model.camera(camera_id).model = camera.model
        model.camera(camera_id).params = camera.params
    for frame_id in saved.reg_frame_ids():
        model.frame(frame_id).rig_from_world = saved.frame(frame_id).rig_from_world
    for point_id, point in saved.points3D.items():
        model.point3D(point_id).xyz = point.xyz


def clean(model: pycolmap.Reconstruction, images: Path) -> None:
    """Drop points with a large reprojection error or hardly any parallax; give the others errors and colours."""
    pycolmap.ObservationManager(model).filter_all_points3D(4.0, 1.0)
    model.update_point_3d_errors()
    model.extract_colors_for_all_images(images)


def known_model(database: Path, pictures: Sequence[JobPicture]) -> pycolmap.Reconstruction:
    """A model of the pictures' given cameras, without points."""
    handle = pycolmap.Database.open(database)
    try:
        model = pycolmap.Reconstruction()
        for camera in handle.read_all_cameras():
            model.add_camera_with_trivial_rig(camera)
        for image in handle.read_all_images():
            given = pictures[image.image_id - 1].cam_from_world
            pose = pycolmap.Rigid3d(np.array(given, dtype=np.float64)[:3])
            model.add_image_with_trivial_frame(
                pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image.image_id), pose
            )
    finally:
        handle.close()
    return model


def map_points(
    model: pycolmap.Reconstruction, database: Path, images: Path, folder: Path, settings: SfmSettings
) -> pycolmap.Reconstruction:
    """Triangulate what matches between cameras that stay fixed."""
    empty_folder(folder)
    options = pycolmap.IncrementalPipelineOptions(num_threads=settings.num_threads, random_seed=settings.seed)
    return pycolmap.triangulate_points(model, database, images, folder, True, options)
