"""Structure from motion in a process of its own (COLMAP): cameras and points, or points for known cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scenetx.core import InputError, Points
from scenetx.core.rigid import invert_rigid
from scenetx.geometry.sfm_job import Job, JobPicture, SfmSettings
from scenetx.geometry.sfm_process import WHAT, Progress, run_job

__all__ = ["SfmCamera", "SfmPicture", "SfmResult", "SfmSettings", "refine_cameras", "run_sfm", "triangulate"]


@dataclass(frozen=True)
class SfmPicture:
    """An upright 8-bit picture file. Pictures of one ``group`` (and size) were taken with one camera at one zoom."""

    name: str
    path: Path
    group: str = ""
    focal: float | None = None
    """Pixels of this file, a first guess; None = not known."""
    mask_path: Path | None = None
    """8-bit picture of the same size: 0 = look away."""
    lens: tuple[float, ...] | None = None
    """fx, fy, cx, cy, k1, k2, p1, p2 in pixels of this file, where `SfmSettings.intrinsics` gives them."""


@dataclass(frozen=True)
class SfmCamera:
    """``K`` in pixels of the file given, first pixel centre (0.5, 0.5); ``distortion`` is OpenCV's (k1, k2, p1, p2)."""

    world_from_cam: Float[Tensor, "4 4"]
    K: Float[Tensor, "3 3"]
    distortion: tuple[float, float, float, float]
    height: int
    width: int


@dataclass(frozen=True)
class SfmResult:
    """The largest consistent model: arbitrary frame and scale. ``notes[0]`` says how many pictures are in it."""

    cameras: Mapping[str, SfmCamera]
    points: Points
    notes: tuple[str, ...]
    unregistered: Mapping[str, str]
    models: tuple[int, ...]
    kept: str = "structure from motion"
    """Where the cameras come from: "prediction" and "refined prediction" only from `refine_cameras`."""


def run_sfm(
    pictures: Sequence[SfmPicture], folder: Path, settings: SfmSettings, on_progress: Progress | None = None
) -> SfmResult:
    """Cameras and points of overlapping pictures of a scene that does not move.

    ``folder`` keeps the database and each finished step; the same call resumes there, and a call with other pictures or
    settings redoes what they change. ``on_progress(step, share of the step)``. The frame and scale are arbitrary. With
    one seed the result is equal up to rounding: bundle adjustment sums in the order its threads finish.

    Raises InputError when no two cameras can be had, or when the solver dies (what pycolmap said is in ``sfm.log``).
    Schoenberger & Frahm, Structure-from-Motion Revisited, 2016; Pan et al., Global SfM Revisited, 2024.
    """
    if len(pictures) < 2:
        raise InputError(WHAT, f"{len(pictures)} picture", "give at least two pictures taken from different places")
    _check_names(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [_size(picture) for picture in pictures]
    jobs = [_job_picture(picture, size) for picture, size in zip(pictures, sizes, strict=True)]
    answer = run_job(Job("reconstruct", str(folder), tuple(jobs), settings), on_progress)
    cameras, points = _read_model(folder / "model", jobs)
    return SfmResult(cameras, points, tuple(answer["notes"]), dict(answer["unregistered"]), tuple(answer["models"]))


def refine_cameras(
    pictures: Sequence[SfmPicture],
    guesses: Mapping[str, SfmCamera],
    folder: Path,
    settings: SfmSettings,
    on_progress: Progress | None = None,
) -> SfmResult:
    """The best of three: predicted cameras as they are, the same after bundle adjustment, plain structure from motion.

    Each is judged by the same verified matches: the share that lies within two pixels of its epipolar lines, pictures
    without a camera explaining none. ``SfmResult.kept`` says which it was and the second note why. ``guesses`` are of
    all pictures, at any size of them; distortion is not used. The frame is near that of the guesses only if one of
    theirs is kept. Raises InputError as `run_sfm` does.
    """
    _check_names(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for picture in pictures:
        camera = guesses[picture.name]
        size = _size(picture)
        K = camera.K.double() * torch.tensor([[size[1] / camera.width], [size[0] / camera.height], [1.0]])
        guess = tuple(float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
        pose = tuple(map(tuple, invert_rigid(camera.world_from_cam.double()).tolist()))
        jobs.append(replace(_job_picture(picture, size), guess=guess, cam_from_world=pose))
    answer = run_job(Job("refine", str(folder), tuple(jobs), settings), on_progress)
    cameras, points = _read_model(folder / "model", jobs)
    unregistered, models = dict(answer["unregistered"]), tuple(answer["models"])
    return SfmResult(cameras, points, tuple(answer["notes"]), unregistered, models, answer["kept"])


def triangulate(
    pictures: Sequence[SfmPicture],
    cameras: Mapping[str, SfmCamera],
    folder: Path,
    settings: SfmSettings,
    on_progress: Progress | None = None,
) -> Points:
    """Points seen by known cameras, in the cameras' own frame and scale; the cameras stay as they are.

    Pictures without a camera are left out. No points is an answer (no texture, no overlap). Raises InputError as
    `run_sfm` does.
    """
    known = [picture for picture in pictures if picture.name in cameras]
    empty = Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8), torch.zeros(0))
    if len(known) < 2:
        return empty
    _check_names(known)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for picture in known:
        camera = cameras[picture.name]
        K = camera.K.double()
        params = (K[0, 0], K[1, 1], K[0, 2], K[1, 2], *camera.distortion)
        pose = invert_rigid(camera.world_from_cam.double()).tolist()
        given = tuple(float(value) for value in params)
        jobs.append(_job_picture(picture, _size(picture), given, tuple(map(tuple, pose))))
    run_job(Job("triangulate", str(folder), tuple(jobs), settings), on_progress)
    return _read_model(folder / "model", jobs)[1]


def _check_names(pictures: Sequence[SfmPicture]) -> None:
    seen: set[str] = set()
    for picture in pictures:
        if picture.name in seen:
            raise InputError(picture.name, "two pictures have this name", "give every picture a name of its own")
        seen.add(picture.name)


def _size(picture: SfmPicture) -> tuple[int, int]:
    try:
        with Image.open(picture.path) as image:
            return image.height, image.width
    except OSError as error:
        raise InputError(str(picture.path), f"cannot be read ({error})", "check the file or leave it out") from error


def _job_picture(
    picture: SfmPicture,
    size: tuple[int, int],
    camera: tuple[float, ...] | None = None,
    cam_from_world: tuple[tuple[float, ...], ...] | None = None,
) -> JobPicture:
    mask = str(picture.mask_path.absolute()) if picture.mask_path else None
    path = str(picture.path.absolute())
    height, width = size
    lens = camera or picture.lens
    return JobPicture(picture.name, path, picture.group, picture.focal, mask, height, width, lens, cam_from_world)


def _read_model(folder: Path, jobs: Sequence[JobPicture]) -> tuple[dict[str, SfmCamera], Points]:
    import pycolmap

    model = pycolmap.Reconstruction(folder)
    names = {job.key: job.name for job in jobs}
    cameras = {}
    images = {names[image.name]: image for image in (model.image(image_id) for image_id in model.reg_image_ids())}
    for job in jobs:
        if job.name in images:
            image = images[job.name]
            pose = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
            K, distortion = opencv_camera(model.camera(image.camera_id))
            world_from_cam = invert_rigid(torch.from_numpy(pose))
            cameras[job.name] = SfmCamera(world_from_cam, torch.from_numpy(K), distortion, job.height, job.width)
    points = list(model.points3D.values())
    positions = np.array([point.xyz for point in points], dtype=np.float32).reshape(-1, 3)
    colors = np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)
    errors = np.array([point.error for point in points], dtype=np.float32)
    return cameras, Points(torch.from_numpy(positions), torch.from_numpy(colors), torch.from_numpy(errors))


def opencv_camera(camera: object) -> tuple[Float[np.ndarray, "3 3"], tuple[float, float, float, float]]:
    """K and OpenCV's (k1, k2, p1, p2) of a pycolmap camera, exactly; ValueError for a model that has no such form."""
    params = [float(value) for value in camera.params]  # type: ignore[attr-defined]
    model = camera.model_name  # type: ignore[attr-defined]
    match model:
        case "SIMPLE_PINHOLE" | "SIMPLE_RADIAL" | "RADIAL":
            focal, cx, cy, *radial = params
            fx = fy = focal
            k1, k2, p1, p2 = (*(*radial, 0.0, 0.0)[:2], 0.0, 0.0)
        case "PINHOLE" | "OPENCV":
            fx, fy, cx, cy, *rest = params
            k1, k2, p1, p2 = rest or (0.0, 0.0, 0.0, 0.0)
        case _:
            raise ValueError(f"sfm: camera model {model} is not OpenCV's")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), (k1, k2, p1, p2)
