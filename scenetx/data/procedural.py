"""Endless scenes with exact answers: pictures, depth, normals, instances, motion and cameras, from a seed.

    config = ProceduralConfig(height=128, width=128, views=8, difficulty=0.3)
    batch = procedural_views([0, 1, 2, 3], config, device="cuda")
    flow, visible = batch.flow(0, 1)

A scene depends on its seed and the configuration alone: not on the batch it is made in, nor on where it is cut into
pieces to fit a cache. Composition follows what was published to carry over to real pictures (LRM-Zero, Xie et al. 2024;
MegaSynth, Jiang et al. 2024), with a ray caster in the place of a path tracer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from scenetx.core import Cameras, InputError
from scenetx.core.cameras import pixel_grid
from scenetx.data.cast import TILE, nearest, tile_rays, untile
from scenetx.data.compose import Kind, Taste, compose, without
from scenetx.data.rigs import Rig, shoot
from scenetx.data.shade import shade
from scenetx.data.tables import Tables, compile_world
from scenetx.io.images import is_picture, read_picture

# Rays at a time: what stays in a CPU's cache, what fills a GPU.
RAYS_CPU, RAYS_GPU = 1 << 16, 1 << 22
PHOTO_SIZE = 256
MAX_PHOTOS = 256


@dataclass(frozen=True)
class ProceduralConfig:
    """What scenes to make. ``difficulty`` (0 to 1) is the one dial: objects, parts, cuts, textures, lights, motion."""

    height: int = 128
    width: int = 128
    views: int = 8
    difficulty: float = 0.5
    moving: float = 0.0  # share of the objects that move over a scene's time
    kinds: tuple[Kind, ...] = get_args(Kind)
    rigs: tuple[Rig, ...] = get_args(Rig)
    shadows: bool = True
    smooth: int = 1  # picture samples along each side of a pixel; depth and the like are always at its centre
    blur: int = 3  # moments of a hand-held exposure; 1 for none
    grain: float = 0.02  # the most noise (deviation, of 1) a film has at difficulty 1
    photos: Path | None = None  # folder of pictures to paint surfaces with

    def __post_init__(self) -> None:
        for name, low, high in (
            ("height", 1, 8192), ("width", 1, 8192), ("views", 1, 4096), ("difficulty", 0, 1), ("moving", 0, 1),
            ("smooth", 1, 8), ("blur", 1, 15), ("grain", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"procedural {name}", f"{value}", f"give {low} to {high}")
        if self.blur % 2 == 0:
            raise InputError(
                "procedural blur", f"{self.blur} moments", "give an odd number, whose middle is the camera"
            )
        for name, known in (("kinds", get_args(Kind)), ("rigs", get_args(Rig))):
            given = getattr(self, name)
            if not given or not set(given) <= set(known):
                raise InputError(f"procedural {name}", f"{given}", f"choose from {', '.join(known)}")


@dataclass(frozen=True)
class ProceduralViews:
    """``b`` scenes of ``v`` views. Cameras are OpenCV's, the world's z is up, lengths are about metres."""

    rgb: UInt8[Tensor, "b v h w 3"]
    depth: Float[Tensor, "b v h w"]  # along the camera's z, 0 = nothing (sky)
    normals: Float[Tensor, "b v h w 3"]  # unit, camera's frame, towards the camera; 0 = nothing
    instances: Int[Tensor, "b v h w"]  # 0 = nothing, 1 = surroundings, 2.. = objects
    world_from_cam: Float[Tensor, "b v 4 4"]
    K: Float[Tensor, "b v 3 3"]
    times: Float[Tensor, "b v"]
    world_from_object: Float[Tensor, "b v o 4 4"]  # of instance i + 1 at each view's time; identity where there is none

    def __len__(self) -> int:
        return len(self.rgb)

    def to(self, device: torch.device | str) -> ProceduralViews:
        return ProceduralViews(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def cameras(self, scene: int) -> Cameras:
        """The cameras of one scene."""
        return Cameras(self.world_from_cam[scene], self.K[scene], self.rgb.shape[2], self.rgb.shape[3])

    def points(self, view: int) -> Float[Tensor, "b h w 3"]:
        """World points seen at each pixel of a view, at that view's time; meaningless where depth is 0."""
        height, width = self.rgb.shape[2:4]
        pixels = pixel_grid(height, width).to(self.depth)
        K, pose = self.K[:, view, None, None], self.world_from_cam[:, view, None, None]
        depth = self.depth[:, view]
        x = (pixels[..., 0] - K[..., 0, 2]) / K[..., 0, 0]
        y = (pixels[..., 1] - K[..., 1, 2]) / K[..., 1, 1]
        in_cam = torch.stack([x * depth, y * depth, depth], -1)
        return (pose[..., :3, :3] @ in_cam[..., None])[..., 0] + pose[..., :3, 3]

    def flow(self, source: int, target: int) -> tuple[Float[Tensor, "b h w 2"], Bool[Tensor, "b h w"]]:
        """Pixels from where a point is in view ``source`` to where it is in ``target``, and whether it is seen there.

        Objects' motion between the two times is part of it. 0 and False where nothing is seen; a point is taken to be
        seen in the target if it lies in the picture and no farther than 2 % behind what is at the pixel it falls on.
        """
        scene = torch.arange(len(self), device=self.rgb.device)[:, None, None]
        index = (self.instances[:, source] - 1).clamp_min(0).long()
        then, later = self.world_from_object[:, source], self.world_from_object[:, target]
        moved = (later @ torch.linalg.inv(then))[scene, index]
        point = (moved[..., :3, :3] @ self.points(source)[..., None])[..., 0] + moved[..., :3, 3]
        pose, K = self.world_from_cam[:, target, None, None], self.K[:, target, None, None]
        in_cam = (pose[..., :3, :3].transpose(-1, -2) @ (point - pose[..., :3, 3])[..., None])[..., 0]
        z = in_cam[..., 2]
        safe = torch.where(z > 1e-6, z, 1.0)
        x = K[..., 0, 0] * in_cam[..., 0] / safe + K[..., 0, 2]
        y = K[..., 1, 1] * in_cam[..., 1] / safe + K[..., 1, 2]
        height, width = self.rgb.shape[2:4]
        seen = (self.depth[:, source] > 0) & (z > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        column, line = (v.nan_to_num().clamp(0, m - 1).long() for v, m in ((x, width), (y, height)))
        there = self.depth[:, target][scene, line, column]
        flow = torch.stack([x, y], -1) - pixel_grid(height, width).to(self.depth)
        flow = torch.where(((self.depth[:, source] > 0) & (z > 1e-6))[..., None], flow, 0.0)
        return flow, seen & (there > 0) & (z < 1.02 * there)


@dataclass(frozen=True)
class _Made:
    """One scene, ready to be pictured; ``moments`` frames to each view, the middle one its own."""

    tables: Tables
    moments: int
    world_from_cam: Float[np.ndarray, "v 4 4"]
    K: Float[np.ndarray, "v 3 3"]
    times: Float[np.ndarray, "v"]
    world_from_object: Float[np.ndarray, "v o 4 4"]


def procedural_views(
    seeds: Sequence[int], config: ProceduralConfig | None = None, *, device: torch.device | str = "cpu"
) -> ProceduralViews:
    """The scenes of ``seeds`` (0 or more, each), pictured on ``device``.

    The same seed and configuration give the same bits on one kind of device, whatever the other seeds.
    """
    config = config or ProceduralConfig()
    if not seeds or min(seeds) < 0:
        raise InputError("procedural seeds", f"{list(seeds)}", "give one or more whole numbers from 0")
    photos = None if config.photos is None else _photos(Path(config.photos)).to(device)
    made = [_make(seed, config, 0 if photos is None else len(photos)) for seed in seeds]
    tables = Tables.cat([scene.tables for scene in made]).to(device)
    frames = len(tables.lens)
    padded = (-(-config.height // TILE) * TILE) * (-(-config.width // TILE) * TILE)
    budget = RAYS_CPU if tables.lens.device.type == "cpu" else RAYS_GPU
    step = max(1, budget // (padded * config.smooth**2))
    parts = [_picture(tables.frames(k, min(frames, k + step)), config, photos) for k in range(0, frames, step)]
    rgb, depth, normals, instances = (torch.cat(column) for column in zip(*parts, strict=True))
    own, mean = [], []
    start = 0
    for scene in made:
        count = scene.moments
        block = rgb[start : start + count * config.views].unflatten(0, (config.views, count))
        total = block[:, 0]
        for moment in range(1, count):
            total = total + block[:, moment]
        mean.append(total / count)
        own.append(torch.arange(config.views, device=rgb.device) * count + count // 2 + start)
        start += count * config.views
    index = torch.stack(own)
    return ProceduralViews(
        rgb=(torch.stack(mean) * 255 + 0.5).to(torch.uint8),
        depth=depth[index],
        normals=normals[index],
        instances=instances[index],
        world_from_cam=_stacked([scene.world_from_cam for scene in made], device),
        K=_stacked([scene.K for scene in made], device),
        times=_stacked([scene.times for scene in made], device),
        world_from_object=_stacked(_filled([scene.world_from_object for scene in made]), device),
    )


def endless(
    config: ProceduralConfig, batch: int, *, start: int = 0, stride: int = 1, device: torch.device | str = "cpu"
) -> Iterator[ProceduralViews]:
    """Batches without end: seeds ``start``, ``start + stride``, ... (a rank's number and the number of ranks)."""
    seed = start
    while True:
        yield procedural_views(range(seed, seed + batch * stride, stride), config, device=device)
        seed += batch * stride


def _make(seed: int, config: ProceduralConfig, photos: int) -> _Made:
    rng = np.random.default_rng([int(seed), 20260])
    taste = Taste(config.difficulty, config.moving, photos, config.kinds)
    world = compose(rng, taste)
    rig = config.rigs[rng.integers(len(config.rigs))]
    moments = config.blur if rig == "handheld" and rng.uniform() < 0.7 else 1
    shots = shoot(rng, world, rig, config.views, (config.height, config.width), config.difficulty, moments)
    world = without(world, shots.world_from_cam[:, :3, 3])
    count = config.views * moments
    film = np.empty((count, 3))
    film[:, 0] = rng.uniform(0.8, 1.25) * np.exp(0.06 * config.difficulty * rng.normal(size=count // moments)).repeat(
        moments
    )
    film[:, 1] = config.grain * config.difficulty * rng.uniform()
    film[:, 2] = rng.integers(1 << 20, size=count)
    tables = compile_world(
        world,
        shots.exposure.reshape(-1, 4, 4),
        shots.K.repeat(moments, axis=0),
        shots.times.repeat(moments),
        film,
    )
    placed = np.stack([[motion.world_from_object(t) for motion in world.motions] for t in shots.times])
    return _Made(tables, moments, shots.world_from_cam, shots.K, shots.times, placed)


def _picture(
    tables: Tables, config: ProceduralConfig, photos: UInt8[Tensor, "q s s 3"] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour (float), depth, normals and instances of all frames of the tables."""
    frames, height, width = len(tables.lens), config.height, config.width
    rays = tile_rays(tables.lens, height, width)
    hits = nearest(tables, rays)
    single = config.smooth == 1
    shaded = shade(tables, rays, hits, photos, shadows=config.shadows and single)
    rgb = untile(shaded.rgb, frames, height, width)
    depth = untile(torch.where(hits.row >= 0, hits.depth, 0.0), frames, height, width)
    normals = untile(shaded.normals, frames, height, width)
    instances = untile((shaded.owner + 1).to(torch.int32), frames, height, width)
    if not single:
        rgb = _smoothed(tables, config, photos)
    return rgb, depth, normals, instances


def _smoothed(
    tables: Tables, config: ProceduralConfig, photos: UInt8[Tensor, "q s s 3"] | None
) -> Float[Tensor, "f h w 3"]:
    """Colours as the mean of ``smooth x smooth`` samples a pixel."""
    side, frames = config.smooth, len(tables.lens)
    fine = Tables(**{f.name: getattr(tables, f.name) for f in fields(Tables)} | {"lens": tables.lens * side})
    rays = tile_rays(fine.lens, config.height * side, config.width * side)
    shaded = shade(fine, rays, nearest(fine, rays), photos, shadows=config.shadows)
    rgb = untile(shaded.rgb, frames, config.height * side, config.width * side)
    total = torch.zeros_like(rgb[:, ::side, ::side])
    for k in range(side * side):
        total = total + rgb[:, k // side :: side, k % side :: side]
    return total / (side * side)


@lru_cache(maxsize=4)
def _photos(folder: Path) -> UInt8[Tensor, "q s s 3"]:
    """The folder's pictures, cut to squares and reduced."""
    paths = sorted(path for path in folder.iterdir() if is_picture(path)) if folder.is_dir() else []
    if not paths:
        raise InputError(str(folder), "no pictures in it", "name a folder of photographs, or none")
    out = []
    for path in paths[:: -(-len(paths) // MAX_PHOTOS)]:
        rgb = read_picture(path).pixels
        side = min(rgb.shape[:2])
        top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
        square = Image.fromarray(rgb[top : top + side, left : left + side])
        out.append(np.asarray(square.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BOX)).copy())
    return torch.from_numpy(np.stack(out))


def _stacked(arrays: list[np.ndarray], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(device)


def _filled(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Objects' places, filled up with identities to one count."""
    most = max(array.shape[1] for array in arrays)
    out = []
    for array in arrays:
        full = np.tile(np.eye(4), (len(array), most, 1, 1))
        full[:, : array.shape[1]] = array
        out.append(full)
    return out
