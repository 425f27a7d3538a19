"""transforms.json of nerfstudio, instant-ngp and the Blender scenes: cameras from it, and a scene as one."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scenetx.core import InputError, Points, Scene, View
from scenetx.core.atomic import write_bytes
from scenetx.io.json_value import JsonValue, read_json, to_json
from scenetx.io.ply import read_points_ply
from scenetx.io.posed import Lens, PosedPicture, PosedSource
from scenetx.io.scene_files import stored_name

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")  # tried where file_path has none
LENSES: dict[str, Lens] = {
    "OPENCV": "opencv",
    "SIMPLE_PINHOLE": "opencv",
    "PINHOLE": "opencv",
    "SIMPLE_RADIAL": "opencv",
    "RADIAL": "opencv",
    "PERSPECTIVE": "opencv",
    "OPENCV_FISHEYE": "fisheye",
    "FISHEYE": "fisheye",
}
SPLITS = ("train", "val", "test")  # transforms_<split>.json of one scene
MAX_SIDE = 1 << 20
FARTHEST = 1e12  # of a camera from the origin, world units: no real capture is; 1e300 overflows in what follows
OPENCV_FROM_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))  # camera axes


def read_transforms(path: str | Path, *, bare: bool = False) -> PosedSource:
    """Pictures with lenses and poses of a transforms.json, or of a folder that holds one (or a train/val/test set).

    Camera axes are turned from OpenGL's to OpenCV's; the world is the file's own, also where ``applied_transform``
    says that another one came before (nerfstudio has applied it to poses and ``ply_file_path`` alike). Test pictures
    (transforms_test.json, ``test_filenames``) are ``held_out``, validation pictures of a split set are too. Depth is
    in units of ``depth_unit_scale_factor`` (0.001). Pictures whose file is gone are listed as long as one is there
    and the file states their size; ``bare``: also where none is there, for who wants the cameras alone.

    Paths may lead up at most to the parent of the JSON's folder: a file that names /etc/passwd is not followed.

    Raises:
        InputError: malformed, leads outside, an unknown camera model, no focal length, or no picture that exists.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = [path / "transforms.json"]
        if not files[0].is_file():
            files = [path / f"transforms_{split}.json" for split in SPLITS]
    elif path.stem.startswith("transforms_") and path.stem.removeprefix("transforms_") in SPLITS:
        files = [path.with_name(f"transforms_{split}.json") for split in SPLITS]
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(str(path), "holds no transforms.json", "give a transforms.json or the folder of one")
    pictures: dict[str, PosedPicture] = {}
    held_out: set[str] = set()
    points = None
    for file in files:
        root = read_json(file)
        mine = _read_frames(root, file)
        for picture in mine:
            if picture.name in pictures:
                raise InputError(str(file), f"lists {picture.name!r} again", "name each picture once")
            pictures[picture.name] = picture
        held_out |= _held_out(root, file, mine)
        points = points or _read_points(root, file)
    if not (bare and pictures) and not any(picture.path.is_file() for picture in pictures.values()):
        first = next(iter(pictures.values()), None)
        shown = f"none of its pictures exists ({first.path}, ...)" if first else "lists no picture that exists"
        raise InputError(str(path), shown, "put the pictures where file_path says")
    return PosedSource("transforms", tuple(pictures.values()), points, frozenset(held_out))


def write_transforms(scene: Scene, path: str | Path, folder: str | Path | None = None) -> None:
    """The registered views as a nerfstudio transforms.json, for the working pictures in ``folder``/images.

    ``folder``: the scene's (default: that of the file); paths are relative to the file. Intrinsics stand at each
    frame, camera axes are OpenGL's, the world is the scene's; masks/ and points.ply are named where the scene has them
    (this writes neither); held-out views make the test and validation split.

    Raises:
        InputError: no view is registered, or the file cannot be written.
    """
    if not scene.registered:
        raise InputError(str(path), "no picture has a camera", "reconstruct the scene before writing it")
    here = Path(path).parent.resolve()
    to_scene = PurePath(os.path.relpath(Path(folder).resolve(), here) if folder is not None else ".")
    root: dict[str, object] = {
        "camera_model": "PINHOLE",
        "frames": [_frame(view, to_scene) for view in scene.registered],
    }
    if scene.points is not None:
        root["ply_file_path"] = (to_scene / "points.ply").as_posix()
    if scene.held_out and scene.training:
        test = [_picture(view, to_scene) for view in scene.held_out]
        train = [_picture(view, to_scene) for view in scene.training]
        root |= {"train_filenames": train, "val_filenames": test, "test_filenames": test}
    write_bytes(path, to_json(root))


def _picture(view: View, to_scene: PurePath) -> str:
    return (to_scene / "images" / stored_name(view.name)).as_posix()


def _frame(view: View, to_scene: PurePath) -> dict[str, object]:
    assert view.camera is not None
    K = view.camera.K[0].double()
    frame: dict[str, object] = {
        "file_path": _picture(view, to_scene),
        "w": view.camera.width,
        "h": view.camera.height,
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "transform_matrix": view.camera.world_from_cam[0].double() @ OPENCV_FROM_OPENGL,
    }
    if view.mask is not None:
        frame["mask_path"] = (to_scene / "masks" / f"{stored_name(view.name)}.png").as_posix()
    return frame


@dataclass(frozen=True)
class _Frame:
    """A frame whose missing keys are looked up at the top of the file."""

    frame: JsonValue
    root: JsonValue

    def get(self, key: str) -> JsonValue | None:
        for place in (self.frame, self.root):
            if key in place:
                return place[key]
        return None

    def number(self, key: str, default: float = 0.0) -> float:
        found = self.get(key)
        return default if found is None else found.number()


def _read_frames(root: JsonValue, file: Path) -> list[PosedPicture]:
    pictures, dropped = [], []
    for entry in root["frames"].items():
        picture = _read_frame(_Frame(entry, root), file)
        if picture is None:
            dropped.append(entry["file_path"].text())
        else:
            pictures.append(picture)
    if dropped:
        logger.warning("%s: %d pictures do not exist (%s, ...) and were left out", file, len(dropped), dropped[0])
    return pictures


def _read_frame(frame: _Frame, file: Path) -> PosedPicture | None:
    """None where neither the picture nor its size is known."""
    path = _inside(frame.frame["file_path"], file)
    if not path.is_file() and path.suffix.lower() not in SUFFIXES:
        path = next((p for s in SUFFIXES if (p := path.with_name(path.name + s)).is_file()), path)
    size = _size(frame, path)
    if size is None:
        return None
    height, width = size
    mask, depth = frame.get("mask_path"), frame.get("depth_file_path")
    K, distortion, lens = _lens(frame, height, width)
    return PosedPicture(
        name=_name(path, file),
        path=path,
        world_from_cam=_pose(frame.frame["transform_matrix"]),
        K=K,
        height=height,
        width=width,
        distortion=distortion,
        lens=lens,
        mask_path=None if mask is None else _inside(mask, file),
        depth_path=None if depth is None else _inside(depth, file),
        depth_unit=frame.number("depth_unit_scale_factor", 0.001),
    )


def _inside(entry: JsonValue, file: Path) -> Path:
    """The path an entry names, which may not leave the parent of the JSON's folder.

    Paths are compared as written, links unresolved: a linked folder of pictures is its owner's own choice.
    """
    here = Path(os.path.abspath(file.parent))  # noqa: PTH100 - resolve() would follow links
    path = Path(os.path.normpath(here / entry.text().replace("\\", "/")))
    if not entry.text() or not path.is_relative_to(here.parent) or path == here:
        raise entry.wrong("a path inside the folder of the file, or its parent")
    return path


def _name(path: Path, file: Path) -> str:
    """A picture's name: its path below the JSON's folder, without a leading images/."""
    here = Path(os.path.abspath(file.parent))  # noqa: PTH100
    name = path.relative_to(here if path.is_relative_to(here) else here.parent).as_posix()
    return name.removeprefix("images/")


def _size(frame: _Frame, path: Path) -> tuple[int, int] | None:
    """Height and width: as stated, else as the picture's header says (after turning it upright)."""
    w, h = frame.get("w"), frame.get("h")
    if w is not None and h is not None:
        return h.whole(1, MAX_SIDE), w.whole(1, MAX_SIDE)
    if not path.is_file():
        return None
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(274, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "state w and h in transforms.json") from error
    return (width, height) if turned else (height, width)


def _lens(frame: _Frame, height: int, width: int) -> tuple[Float[Tensor, "3 3"], tuple[float, ...], Lens]:
    focal = {}
    for axis, side in (("x", width), ("y", height)):
        angle = frame.number(f"camera_angle_{axis}")
        if frame.get(f"fl_{axis}") is not None:
            focal[axis] = frame.number(f"fl_{axis}")
        elif 0 < angle < math.pi:
            focal[axis] = 0.5 * side / math.tan(0.5 * angle)
    fx, fy = focal.get("x", focal.get("y", 0.0)), focal.get("y", focal.get("x", 0.0))
    if fx <= 0 or fy <= 0:
        raise InputError(frame.frame.where, f"focal lengths are {fx}, {fy}", "state fl_x, or camera_angle_x")
    cx, cy = frame.number("cx", width / 2), frame.number("cy", height / 2)
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    entry, fisheye = frame.get("camera_model"), frame.get("is_fisheye")
    model = "OPENCV" if entry is None else entry.text().upper()
    if model not in LENSES:
        raise InputError(frame.frame.where, f"camera_model is {model[:40]!r}", f"use one of {', '.join(LENSES)}")
    lens: Lens = "fisheye" if fisheye is not None and fisheye.flag() else LENSES[model]
    k1, k2, k3, k4 = (frame.number(f"k{index}") for index in (1, 2, 3, 4))
    if lens == "fisheye":
        return K, (k1, k2, k3, k4), lens
    if "PINHOLE" in model or model == "PERSPECTIVE":
        return K, (), lens
    if k4:
        raise InputError(frame.frame.where, f"k4 is {k4}", "drop it: nerfstudio's k4 (r^8) has no OpenCV equal")
    distortion = (k1, k2, frame.number("p1"), frame.number("p2"), k3)
    return K, (distortion if k3 else distortion[:4]) if any(distortion) else (), lens


def _pose(entry: JsonValue) -> Float[Tensor, "4 4"]:
    """``world_from_cam`` in OpenCV axes; a 3 x 4 matrix will do. A scale in the rotation is an error, not repaired."""
    if len(entry.items()) == 3:
        matrix = torch.cat([entry.matrix(3, 4), torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])
    else:
        matrix = entry.matrix(4, 4)
    rotation = matrix[:3, :3]
    rigid = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-2
    if not rigid or torch.linalg.det(rotation) < 0:
        raise entry.wrong("a camera pose (rotation and translation)")
    if float(matrix[:3, 3].abs().max()) > FARTHEST:
        raise entry.wrong(f"a camera pose within {FARTHEST:g} of the origin")
    # Files hold a handful of digits; the nearest rotation is what was meant, and inverses then are transposes.
    u, _, vh = torch.linalg.svd(rotation)
    matrix = matrix.clone()
    matrix[:3, :3] = u @ vh if (u @ vh - rotation).abs().max() > 1e-12 else rotation
    return matrix @ OPENCV_FROM_OPENGL


def _held_out(root: JsonValue, file: Path, pictures: list[PosedPicture]) -> set[str]:
    if file.stem in ("transforms_test", "transforms_val"):
        return {picture.name for picture in pictures}
    if "test_filenames" not in root:
        return set()
    return {_name(_inside(item, file), file) for item in root["test_filenames"].items()}


def _read_points(root: JsonValue, file: Path) -> Points | None:
    if "ply_file_path" not in root:
        return None
    path = _inside(root["ply_file_path"], file)
    if not path.is_file():
        logger.warning("%s: its points %s do not exist and were left out", file, path)
        return None
    return read_points_ply(path)
