"""The scene's points and cameras as GLB (binary glTF 2.0), for any 3D viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from scenetx.core import Cameras, InputError, Points, Scene, unproject
from scenetx.core.atomic import write_bytes

GLTF_FROM_WORLD = np.diag([1.0, -1.0, -1.0])  # y down, z forward -> y up, z back: half a turn about x
TRAINING_COLOR = (46, 134, 222, 255)
HELD_OUT_COLOR = (231, 76, 60, 255)
FRUSTUM_DEPTH = 0.08  # of the scene's extent
OPAQUE = 0.1  # splats below this opacity do not stand in for points


def write_glb(scene: Scene, path: str | Path) -> None:
    """Points (the Gaussians' centres where there are no points) and one frustum of lines per registered view.

    glTF's y is up: coordinates are ``diag(1, -1, -1) @ x_world``, in world units, nothing is scaled or centred, so
    a file and its scene stay comparable. Frustums are blue for training and red for held-out views, and are
    named after the view. Pictures are not included.

    Raises:
        InputError: neither points nor cameras, or the file cannot be written.
    """
    import trimesh  # half a second, needed by nobody else in this room

    out = trimesh.Scene()
    points = _points(scene)
    if points is not None and len(points):
        positions = points.positions.detach().cpu().double().numpy() @ GLTF_FROM_WORLD
        alpha = np.full((len(points), 1), 255, np.uint8)
        colors: UInt8[np.ndarray, "p 4"] = np.concatenate([points.colors.cpu().numpy(), alpha], axis=1)
        out.add_geometry(trimesh.PointCloud(positions, colors=colors), node_name="points", geom_name="points")
    for view in scene.registered:
        assert view.camera is not None
        corners = _frustum(view.camera, FRUSTUM_DEPTH * scene.extent) @ GLTF_FROM_WORLD
        color = HELD_OUT_COLOR if view.held_out else TRAINING_COLOR
        name = f"camera {view.name}"
        out.add_geometry(_lines(trimesh, corners, color), node_name=name, geom_name=name)
    if not out.geometry:
        raise InputError(str(path), "the scene has neither points nor cameras", "reconstruct it before writing it")
    write_bytes(path, out.export(file_type="glb"))


def _points(scene: Scene) -> Points | None:
    if scene.points is not None or scene.gaussians is None:
        return scene.points
    seen = scene.gaussians[scene.gaussians.opacities > OPAQUE]
    return Points(seen.means, (255 * seen.rgb).round().to(torch.uint8))


def _frustum(camera: Cameras, depth: float) -> Float[np.ndarray, "5 3"]:
    """The optical centre and the picture's corners at ``depth``, clockwise from the top left, in the world."""
    h, w = float(camera.height), float(camera.width)
    camera = camera.to("cpu").to(torch.float64)
    pixels = torch.tensor([[[0, 0], [w, 0], [w, h], [0, h]]], dtype=torch.float64)
    corners = unproject(pixels, torch.full((1, 4), depth, dtype=torch.float64), camera)[0]
    return torch.cat([camera.centers, corners]).detach().numpy()


def _lines(trimesh: Any, corners: Float[np.ndarray, "5 3"], color: tuple[int, int, int, int]) -> Any:
    """The edges as one strip; an edge gone over twice keeps it to one glTF primitive a camera."""
    strip = corners[[0, 1, 2, 0, 3, 4, 0, 2, 3, 4, 1]]
    return trimesh.path.Path3D([trimesh.path.entities.Line(np.arange(len(strip)), color=color)], strip, process=False)
