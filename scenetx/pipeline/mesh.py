"""A mesh of the scene's splats: their depth from every training camera, fused, coloured and reported on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from scenetx.core import Cameras, InputError, Render, Scene
from scenetx.core.atomic import write_bytes
from scenetx.geometry.fuse import Cleanliness, FuseSettings, Mesh, fuse
from scenetx.io.glb import GLTF_FROM_WORLD
from scenetx.io.json_value import to_json
from scenetx.pipeline.render import render

MESH_SUFFIXES = (".glb", ".ply", ".obj")


def scene_mesh(scene: Scene, settings: FuseSettings | None = None) -> tuple[Mesh, Cleanliness]:
    """The surface of the scene's Gaussians in the scene's frame and scale; needs the extra ``mesh`` (Open3D).

    Raises:
        InputError: no splats, no registered view, Open3D is missing, or the depth makes no surface.
    """
    if not scene.training:
        raise InputError("mesh", "the scene has no camera", "reconstruct it first")
    return fuse(_pictures(scene), settings)


def export_mesh(scene: Scene, path: str | Path, settings: FuseSettings | None = None) -> Cleanliness:
    """`scene_mesh` as a file, and its cleanliness report as JSON beside it.

    Raises:
        InputError: as `scene_mesh`; another suffix than .glb, .ply or .obj.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise InputError(str(path), f"{path.suffix or 'no suffix'} is no mesh format", "use .glb, .ply or .obj")
    mesh, report = scene_mesh(scene, settings)
    write_mesh(mesh, path)
    write_bytes(path.with_suffix(".report.json"), to_json(asdict(report)))
    return report


def write_mesh(mesh: Mesh, path: Path) -> None:
    """The mesh as .glb (y up: ``diag(1, -1, -1) @ x_world``), or as .ply or .obj in the scene's own frame."""
    import trimesh

    vertices = mesh.vertices @ GLTF_FROM_WORLD if path.suffix.lower() == ".glb" else mesh.vertices
    out = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=mesh.colors, process=False)
    data = out.export(file_type=path.suffix.lower()[1:])
    write_bytes(path, data.encode() if isinstance(data, str) else data)


def _pictures(scene: Scene) -> Iterator[tuple[Render, Cameras]]:
    for view in scene.training:
        assert view.camera is not None
        yield render(scene, view.camera), view.camera
