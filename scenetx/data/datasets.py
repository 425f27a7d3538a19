"""Posed pictures on disk as scenes to learn from: our folders, COLMAP and transforms, and RGB-D recordings.

    open_posed("photos-scene/")        a scene folder of ours
    open_posed("garden/")              COLMAP, transforms.json, cameras.json, poses_bounds.npy with their pictures
    open_posed("redkitchen/seq-01/")   7-Scenes, TUM RGB-D or ScanNet (`scenetx.data.rgbd`)
    open_posed("many/")                a folder of any of these, one scene each

Sizes vary in the wild: a scene's views come at the size of its first one (`Sample.fitted`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError, Skipped, View
from scenetx.data.rgbd import read_rgbd
from scenetx.data.sample import Sample, nearest_size
from scenetx.io.images import read_picture
from scenetx.io.lens import pinhole_for, straighten, straighten_nearest
from scenetx.io.posed import PosedPicture
from scenetx.io.scene_dir import load_scene
from scenetx.io.sources import find_source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameScene:
    """Pictures with cameras, straightened as they are read."""

    name: str
    frames: tuple[PosedPicture, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def cameras(self) -> Cameras:
        """As the pictures' files are, before straightening: good enough to choose views by."""
        first = self.frames[0]
        poses = [frame.world_from_cam for frame in self.frames if frame.world_from_cam is not None]
        K = [_scaled(f.K, f.height, f.width, first.height, first.width) for f in self.frames]
        return Cameras(torch.stack(poses).float(), torch.stack(K).float(), first.height, first.width)

    def sample(self, views: Sequence[int]) -> Sample:
        """These views, at the size of the first of them."""
        parts = [_read(self.frames[view], self.name) for view in views]
        return _joined(self.name, parts)


@dataclass(frozen=True)
class FolderScene:
    """A scene folder of ours, held in memory once opened: its registered views."""

    name: str
    views: tuple[View, ...]

    @staticmethod
    def open(folder: Path) -> FolderScene:
        """Raises InputError for a folder without registered views."""
        views = load_scene(folder).registered
        if not views:
            raise InputError(str(folder), "no picture has a camera", "reconstruct it first")
        return FolderScene(folder.resolve().name, views)

    def __len__(self) -> int:
        return len(self.views)

    def cameras(self) -> Cameras:
        """At the size of the first view."""
        cameras = [view.camera for view in self.views if view.camera is not None]
        height, width = cameras[0].height, cameras[0].width
        return Cameras.cat([camera.resized(height, width).to(torch.float32) for camera in cameras])

    def sample(self, views: Sequence[int]) -> Sample:
        """These views, at the size of the first of them."""
        return _joined(self.name, [_of_view(self.views[view], self.name) for view in views])


@dataclass(frozen=True)
class Posed:
    """Scenes by index; views are read when they are asked for."""

    scenes: tuple[FolderScene | FrameScene, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.scenes)

    def names(self) -> list[str]:
        return [scene.name for scene in self.scenes]

    def cameras(self, index: int) -> Cameras:
        """The cameras of a scene, without its pictures."""
        return self.scenes[index].cameras()

    def sample(self, index: int, views: Sequence[int] | None = None) -> Sample:
        """A scene, or only these views of it. Raises InputError for a file that cannot be read."""
        scene = self.scenes[index]
        return scene.sample(list(range(len(scene))) if views is None else views)


def open_posed(path: str | Path) -> Posed:
    """The scene in a folder, or each folder's in it. Raises InputError when there is none."""
    path = Path(path)
    try:
        return Posed((_open_one(path),))
    except InputError as error:
        first = error
    inner = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    scenes, skipped = [], []
    for folder in inner:
        try:
            scenes.append(_open_one(folder))
        except InputError as error:
            skipped.append(Skipped(folder.name, str(error)))
    if not scenes:
        raise first
    for line in skipped:
        log.warning("left out %s: %s", line.name, line.reason)
    return Posed(tuple(scenes), tuple(skipped))


def _open_one(path: Path) -> FolderScene | FrameScene:
    frames = read_rgbd(path) if path.is_dir() else ()
    if frames:
        return FrameScene(path.name, frames)
    source = find_source(str(path))
    if source.kind == "scene":
        return FolderScene.open(source.path)
    if source.kind != "posed" or source.posed is None:
        raise InputError(str(path), f"a source of kind {source.kind!r} has no cameras", "reconstruct it first")
    there = {found.name for found in source.found}
    posed = [p for p in source.posed.pictures if p.world_from_cam is not None and p.name in there]
    if not posed:
        raise InputError(str(path), "no picture has a camera", "give a source with poses")
    return FrameScene(path.stem, tuple(posed))


def _of_view(view: View, name: str) -> Sample:
    assert view.camera is not None
    camera, depth = view.camera, view.depth
    return Sample(
        name,
        view.image[None],
        camera.world_from_cam.float(),
        camera.K.float(),
        None if depth is None else depth[None].float(),
    )


def _read(frame: PosedPicture, name: str) -> Sample:
    """One picture as a pinhole camera saw it, with its depth. Raises InputError naming the file."""
    assert frame.world_from_cam is not None
    pixels = read_picture(frame.path).pixels
    height, width = pixels.shape[:2]
    K = _scaled(frame.K, frame.height, frame.width, height, width)
    depth = None if frame.depth_path is None else _read_depth(frame.depth_path, frame.depth_unit)
    if frame.distortion or frame.lens == "fisheye":
        K_new, h, w = pinhole_for(K, frame.distortion, frame.lens, height, width, max(height, width))
        pixels = straighten(pixels, K, frame.distortion, frame.lens, K_new, h, w)
        if depth is not None:
            own = _scaled(K, height, width, *depth.shape)
            depth = straighten_nearest(depth, own, frame.distortion, frame.lens, K_new, h, w)
        K = K_new
    sample = Sample(name, torch.from_numpy(pixels.copy())[None], frame.world_from_cam[None].float(), K[None].float())
    if depth is None:
        return sample
    return replace(sample, depth=nearest_size(torch.from_numpy(depth)[None], *sample.rgb.shape[1:3]))


def _scaled(K: Tensor, height: int, width: int, new_height: int, new_width: int) -> Float[Tensor, "3 3"]:
    """Intrinsics of a picture of another size."""
    return K.double() * torch.tensor([[new_width / width], [new_height / height], [1.0]], dtype=torch.float64)


def _read_depth(path: Path, unit: float) -> Float[np.ndarray, "h w"]:
    """z in world units; 0 where the sensor saw none (0 or, of 16 bits, the largest number)."""
    try:
        with Image.open(path, formats=("PNG", "TIFF")) as image:
            values = np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(str(path), f"depth cannot be read ({error})", "give a 16-bit PNG") from error
    if values.ndim != 2:
        raise InputError(str(path), f"depth of shape {values.shape}", "give one number a pixel")
    return np.where(values == 65535, 0, values).astype(np.float32) * np.float32(unit)


def _joined(name: str, parts: Sequence[Sample]) -> Sample:
    height, width = parts[0].rgb.shape[1:3]
    parts = [part.fitted(height, width) for part in parts]
    depths = [part.depth for part in parts if part.depth is not None]
    return Sample(
        name,
        torch.cat([part.rgb for part in parts]),
        torch.cat([part.world_from_cam for part in parts]),
        torch.cat([part.K for part in parts]),
        torch.cat(depths) if len(depths) == len(parts) else None,
    )
