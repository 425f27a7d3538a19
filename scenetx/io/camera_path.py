"""Camera paths: the cameras of a video to render, as JSON."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from scenetx.core import Cameras, InputError
from scenetx.core.atomic import write_bytes
from scenetx.io.json_value import JsonValue, read_json, to_json

_MAX_SIDE = 16384
# OpenGL's camera axes (y up, z back) to OpenCV's.
_FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def write_camera_path(cameras: Cameras, path: str | Path, fps: float | int = 30.0) -> None:
    """``{"fps", "width", "height", "frames": [{"world_from_cam": 4x4, "K": 3x3}, ...]}``, OpenCV axes, pixels."""
    frames = [
        {"world_from_cam": pose.tolist(), "K": K.tolist()}
        for pose, K in zip(cameras.world_from_cam.double(), cameras.K.double(), strict=True)
    ]
    write_bytes(path, to_json({"fps": fps, "width": cameras.width, "height": cameras.height, "frames": frames}))


def read_camera_path(path: str | Path) -> Cameras:
    """Cameras (float64) of our own JSON or of nerfstudio's camera_path (``camera_to_world``, OpenGL axes, ``fov``).

    nerfstudio's frame is that of its viewer: its poses fit a scene only if that scene kept the same frame. ``fov`` is
    the vertical field of view in degrees, as in nerfstudio.

    Raises:
        InputError: malformed JSON, no frames, a matrix that is no rigid motion, or a size that is no picture's.
    """
    root = read_json(path)
    nerfstudio = "camera_path" in root
    prefix = "render_" if nerfstudio else ""
    height = root[f"{prefix}height"].whole(1, _MAX_SIDE)
    width = root[f"{prefix}width"].whole(1, _MAX_SIDE)
    frames = root["camera_path" if nerfstudio else "frames"].items()
    if not frames:
        raise InputError(str(path), "holds no frames", "give a path of at least one camera")
    poses, intrinsics = [], []
    for frame in frames:
        if nerfstudio:
            poses.append(_matrix_4x4(frame["camera_to_world"]).pose() @ _FLIP)
            intrinsics.append(_from_fov(frame["fov"], height, width))
        else:
            poses.append(frame["world_from_cam"].pose())
            intrinsics.append(frame["K"].lens())
    return Cameras(torch.stack(poses), torch.stack(intrinsics), height, width)


def _matrix_4x4(value: JsonValue) -> JsonValue:
    """nerfstudio writes sixteen numbers in a row; other tools write four rows."""
    if isinstance(value.value, list) and len(value.value) == 16:
        return JsonValue([value.value[i : i + 4] for i in range(0, 16, 4)], value.where)
    return value


def _from_fov(value: JsonValue, height: int, width: int) -> Tensor:
    degrees = value.number()
    if not 0 < degrees < 180:
        raise InputError(value.where, f"{degrees} degrees", "give a field of view between 0 and 180")
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0] = K[1, 1] = height / 2 / math.tan(math.radians(degrees) / 2)
    K[0, 2], K[1, 2] = width / 2, height / 2
    return K
