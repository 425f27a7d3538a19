"""COLMAP models: cameras, poses and points from a folder, and a scene as a model other tools read."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import InputError, Scene
from scenetx.core.atomic import write_bytes
from scenetx.core.rigid import invert_rigid, quat_from_rotation, rigid, rotation_from_quat
from scenetx.io.colmap_files import ModelCamera, model_file, read_cameras, read_images, read_points
from scenetx.io.json_value import is_inside
from scenetx.io.posed import Lens, PosedPicture, PosedSource
from scenetx.io.scene_files import stored_name

logger = logging.getLogger(__name__)

PLACES = ("", "sparse", "colmap/sparse", "distorted/sparse", "colmap")  # where models lie below a folder
IMAGE_PLACES = (
    "images",
    ".",
    "../images",
    "../../images",
    "../../../images",
    "..",
    "../..",
    "input",
)  # pictures, from the model
PINHOLE = 1


def find_model(folder: str | Path) -> Path | None:
    """The COLMAP model in or below a folder (itself, sparse/, sparse/0, colmap/sparse/0); None = there is none.

    Where a reconstruction fell apart into several models (sparse/0, sparse/1, ...) the one with the most images is
    taken and the log says so: nothing orders COLMAP's numbers by size.
    """
    folder = Path(folder)
    for place in PLACES:
        here = folder / place
        if model_file(here, "cameras") and model_file(here, "images"):
            return here
        parts = sorted(
            part for part in here.glob("[0-9]*") if model_file(part, "images") and model_file(part, "cameras")
        )
        if len(parts) == 1:
            return parts[0]
        if parts:
            sizes = {part: len(read_images(_must(part, "images"))) for part in parts}
            best = max(parts, key=lambda part: sizes[part])
            listed = ", ".join(f"{part.name}: {size} images" for part, size in sizes.items())
            logger.warning("%s holds %d models (%s); taking %s", here, len(parts), listed, best.name)
            return best
    return None


def read_colmap(folder: str | Path, images_folder: str | Path | None = None, *, bare: bool = False) -> PosedSource:
    """Pictures with lenses and poses, and points, of a COLMAP model (.bin or .txt), in the model's frame and scale.

    ``folder`` is the model or a folder above it (see `find_model`); ``images_folder`` is where the image names start,
    by default images/ beside or above the model. Pictures are listed as the model has them, also where the file is
    gone, as long as one is there; ``bare``: also where none is, for who wants the cameras alone. Rigs and frames are
    not needed, nor are points.

    Raises:
        InputError: no model or pictures found, a truncated file, a camera model with no OpenCV equal (it is named).
    """
    folder = Path(folder)
    model = find_model(folder)
    if model is None:
        raise InputError(str(folder), "holds no cameras and images (.bin or .txt)", "give the folder of a COLMAP model")
    cameras, images = read_cameras(_must(model, "cameras")), read_images(_must(model, "images"))
    if not images:
        raise InputError(str(model), "holds no images", "give a model with registered images")
    for image in images:
        if not is_inside(image.name):
            raise InputError(str(model), f"image name {image.name[:80]!r} leaves the folder", "correct the model")
        if image.camera not in cameras:
            raise InputError(str(model), f"image {image.name[:80]!r} has no camera {image.camera}", "correct the model")
    root = model if bare else _images_root(folder, model, images_folder, [image.name for image in images])
    pictures = []
    for image in sorted(images, key=lambda image: image.name):
        K, distortion, lens = _lens_of(cameras[image.camera], model)
        rotation = rotation_from_quat(torch.from_numpy(image.quat))
        pictures.append(
            PosedPicture(
                name=image.name,
                path=root / image.name,
                world_from_cam=invert_rigid(rigid(rotation, torch.from_numpy(image.translation))),
                K=K,
                height=cameras[image.camera].height,
                width=cameras[image.camera].width,
                distortion=distortion,
                lens=lens,
            )
        )
    if len({picture.name for picture in pictures}) < len(pictures):
        raise InputError(str(model), "lists an image name twice", "correct the model")
    points = model_file(model, "points3D")
    return PosedSource("colmap", tuple(pictures), read_points(points) if points else None)


def write_colmap(scene: Scene, folder: str | Path) -> None:
    """The scene's registered views and points as a binary COLMAP model in ``folder``.

    Cameras are PINHOLE and speak of the working pictures (images/ of the scene folder), not of the originals; world
    frame and scale are the scene's. Points carry colour and error; which images see them is not known here, so tracks
    are empty. Rigs and frames left there by another model are removed, since they would contradict this one.

    Raises:
        InputError: no view is registered, or a file cannot be written.
    """
    folder = Path(folder)
    if not scene.registered:
        raise InputError(str(folder), "no picture has a camera", "reconstruct the scene before writing it")
    cameras: dict[bytes, int] = {}
    images = [struct.pack("<Q", len(scene.registered))]
    for number, view in enumerate(scene.registered, start=1):
        assert view.camera is not None
        K = view.camera.K[0].double()
        params = [float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))]
        record = struct.pack("<iQQ4d", PINHOLE, view.camera.width, view.camera.height, *params)
        camera = cameras.setdefault(record, len(cameras) + 1)
        cam_from_world = invert_rigid(view.camera.world_from_cam[0].double())
        pose = [*quat_from_rotation(cam_from_world[:3, :3]).tolist(), *cam_from_world[:3, 3].tolist()]
        images.append(
            struct.pack("<I7dI", number, *pose, camera) + stored_name(view.name).encode() + b"\0" + struct.pack("<Q", 0)
        )
    records = [struct.pack("<Q", len(cameras)), *(struct.pack("<I", key) + record for record, key in cameras.items())]
    write_bytes(folder / "cameras.bin", b"".join(records))
    write_bytes(folder / "images.bin", b"".join(images))
    write_bytes(folder / "points3D.bin", _pack_points(scene))
    for stale in ("rigs.bin", "frames.bin"):
        (folder / stale).unlink(missing_ok=True)


def _pack_points(scene: Scene) -> bytes:
    points = scene.points
    if points is None:
        return struct.pack("<Q", 0)
    layout = [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")]
    table = np.zeros(len(points), layout)
    table["id"] = np.arange(1, len(points) + 1)
    table["xyz"] = points.positions.detach().cpu().numpy()
    table["rgb"] = points.colors.cpu().numpy()
    table["error"] = -1 if points.errors is None else points.errors.detach().cpu().numpy()  # COLMAP's "not known"
    return struct.pack("<Q", len(points)) + table.tobytes()


def _must(model: Path, stem: str) -> Path:
    path = model_file(model, stem)
    if path is None:
        raise InputError(str(model), f"holds no {stem}.bin or {stem}.txt", "give the folder of a COLMAP model")
    return path


def _images_root(folder: Path, model: Path, given: str | Path | None, names: list[str]) -> Path:
    near = [folder / "images", *(model / place for place in IMAGE_PLACES)]
    places = near if given is None else [Path(given)]
    # Deleted pictures are normal, so the folder that has the most of them wins, not one that has the first.
    found = {place: sum((place / name).is_file() for name in names) for place in places}
    best = max(places, key=lambda place: found[place])
    if not found[best]:
        looked = ", ".join(dict.fromkeys(str(place.resolve()) for place in places))
        raise InputError(str(model), f"none of its pictures ({names[0]}, ...) is in {looked}", "name the images folder")
    if found[best] < len(names):
        logger.warning("%s: %d of %d pictures are not in %s", model, len(names) - found[best], len(names), best)
    return best.resolve()


def _lens_of(camera: ModelCamera, model: Path) -> tuple[Float[Tensor, "3 3"], tuple[float, ...], Lens]:
    """K (pixels, first pixel centre (0.5, 0.5), as in COLMAP), distortion in OpenCV's order, and the lens."""
    name, p = camera.model, camera.params
    single = name in (
        "SIMPLE_PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
        "SIMPLE_RADIAL_FISHEYE",
        "RADIAL_FISHEYE",
        "SIMPLE_FISHEYE",
    )
    fx, fy, cx, cy = (p[0], p[0], p[1], p[2]) if single else p[:4] if len(p) >= 4 else (0, 0, 0, 0)
    rest = tuple(p[3:] if single else p[4:])
    lens: Lens = "opencv"
    if name in ("PINHOLE", "SIMPLE_PINHOLE"):
        distortion: tuple[float, ...] = ()
    elif name in ("SIMPLE_RADIAL", "RADIAL"):
        distortion = (*rest, 0.0, 0.0, 0.0)[:4] if len(rest) == 1 else (*rest, 0.0, 0.0)
    elif name in ("OPENCV", "FULL_OPENCV"):
        distortion = rest
    elif name in ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE", "FISHEYE"):
        lens, distortion = "fisheye", (*rest, 0.0, 0.0, 0.0, 0.0)[:4]
    else:
        raise InputError(
            str(model),
            f"camera model {name} has no OpenCV equal",
            "undistort the pictures with `colmap image_undistorter`",
        )
    if fx <= 0 or fy <= 0:
        raise InputError(str(model), f"a {name} camera has focal lengths {fx}, {fy}", "correct the model")
    if lens == "opencv" and not any(distortion):
        distortion = ()
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64), distortion, lens
