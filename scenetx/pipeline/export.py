"""Doors out, by the name of the file asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scenetx.core import InputError, Scene
from scenetx.core.levels import coarser
from scenetx.geometry.fuse import FuseSettings
from scenetx.io.colmap import write_colmap
from scenetx.io.glb import write_glb
from scenetx.io.ply import write_points_ply
from scenetx.io.scene_dir import refuse_own, scene_folder
from scenetx.io.splat_formats import write_gaussians
from scenetx.io.transforms import write_transforms
from scenetx.pipeline.mesh import MESH_SUFFIXES, export_mesh
from scenetx.pipeline.page import write_page

SPLAT_SUFFIXES = {".ply", ".splat", ".spz", ".sog"}
PAGE_SUFFIXES = {".html", ".htm"}


def at_most(scene: Scene, splats: int) -> Scene:
    """The scene with its splats merged into no more than ``splats``; as it is where it has none, or no more."""
    if splats < 1:
        raise InputError("export --splats", splats, "give 1 or more")
    if scene.gaussians is None or len(scene.gaussians) <= splats:
        return scene
    return replace(scene, gaussians=coarser(scene.gaussians, splats))


def check_target(target: str | Path) -> Path:
    """The target as a path. Raises InputError where `export` would not know what to write, or would harm a scene."""
    target = Path(target)
    suffix = target.suffix.lower()
    if target.name in ("", ".."):
        raise InputError(f"export {str(target)!r}", "no file and no new folder", "name one, for example splats.spz")
    known = SPLAT_SUFFIXES | PAGE_SUFFIXES | {".glb", ".json", ""}
    if suffix not in known and not (target.name.startswith("mesh") and suffix in MESH_SUFFIXES):
        shown = ", ".join(sorted(SPLAT_SUFFIXES | {".glb", ".html", ".json"}))
        raise InputError(str(target), f"unknown suffix {suffix}", f"use {shown}, or a folder name for COLMAP")
    refuse_own(target)
    return target


def export(scene: Scene, target: str | Path, folder: str | Path | None = None) -> Path:
    """Write one file (or COLMAP folder) of the scene and give its path. The name says what:

    ``*.ply .compressed.ply .splat .spz .sog`` splats (a name that begins with "points": the point cloud, as ``.ply``),
    ``*.glb`` points and camera frustums (a name that begins with "splats": splats as KHR_gaussian_splatting), ``mesh*``
    as ``.glb .ply .obj`` a mesh of the splats with its report beside it ("mesh-poisson*": a closed surface),
    ``*.json`` nerfstudio transforms, ``*.html`` the viewer with the scene inside, a name without
    suffix: a COLMAP model (binary). ``folder``: the scene's own, whose pictures transforms.json then names; without
    it they are those in images/ beside the file.

    Raises:
        InputError: as `check_target`; a scene without what is asked for; a file that cannot be written.
    """
    target = check_target(target)
    suffix = target.suffix.lower()
    if suffix == ".ply" and target.name.startswith("points"):
        if scene.points is None:
            raise InputError(str(target), "the scene has no points", "reconstruct it first")
        write_points_ply(scene.points, target)
    elif target.name.startswith("mesh") and suffix in MESH_SUFFIXES:
        export_mesh(scene, target, FuseSettings(surface="poisson" if "poisson" in target.stem else "tsdf"))
    elif suffix in SPLAT_SUFFIXES or (suffix == ".glb" and target.name.startswith("splats")):
        if scene.gaussians is None:
            raise InputError(str(target), "the scene has no splats", "reconstruct it without --no-splats first")
        write_gaussians(scene.gaussians, target)
    elif suffix == ".glb":
        write_glb(scene, target)
    elif suffix in PAGE_SUFFIXES:
        write_page(scene, target, title=target.stem)
    elif suffix == ".json":
        write_transforms(scene, target, None if folder is None else scene_folder(folder))
    else:
        write_colmap(scene, target)
    return target
