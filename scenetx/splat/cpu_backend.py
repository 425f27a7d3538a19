"""The rasterizer on CPU: numba kernels behind `torch.autograd.Function`, float32, all cores.

The picture and its gradients are bit-identical for any number of threads: every parallel loop either writes places of
its own or sums over blocks that do not depend on the threads.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.cameras import Cameras
from scenetx.core.gaussians import Gaussians
from scenetx.core.scene import Render
from scenetx.splat.stats import ScreenStats

_LOCK = threading.Lock()  # numba's workqueue threads end the process when two Python threads launch kernels at once


@dataclass(frozen=True)
class _Settings:
    height: int
    width: int
    lenses: tuple[tuple[float, float, float, float], ...]  # fx, fy, cx, cy of each camera
    degree: int
    antialiased: bool
    near: float
    stats: ScreenStats | None


@dataclass(frozen=True)
class _View:
    """What the backward pass needs of one camera's forward pass."""

    rotation: np.ndarray
    center: np.ndarray
    lens: tuple[np.float32, ...]
    table: np.ndarray
    order: np.ndarray
    slot_start: np.ndarray
    pairs: np.ndarray
    tile_start: np.ndarray
    heavy_first: np.ndarray
    columns: int
    until: np.ndarray


def rasterize_cpu(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Float[Tensor, "3"],
    sh_degree: int,
    antialiased: bool,
    near: float,
    stats: ScreenStats | None,
) -> Render:
    """See `scenetx.splat.rasterize`. The gradient with respect to K is zero (the torch backend has it)."""
    K = cameras.K.detach()
    lenses = torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], dim=-1).tolist()
    settings = _Settings(cameras.height, cameras.width, tuple(map(tuple, lenses)), sh_degree, antialiased, near, stats)
    g = gaussians
    rgb, depth, alpha = _Rasterize.apply(
        g.means, g.quats, g.scales, g.opacities, g.sh, cameras.world_from_cam, background, settings
    )
    return Render(rgb, depth, alpha)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, settings = inputs
        count, height, width = len(tensors[5]), settings.height, settings.width
        rgb = torch.empty(count, height, width, 3)
        depth, alpha = torch.empty(count, height, width), torch.empty(count, height, width)
        arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
        with _LOCK:
            views = [
                _forward_view(arrays, n, settings, rgb[n].numpy(), depth[n].numpy(), alpha[n].numpy())
                for n in range(count)
            ]
        ctx.save_for_backward(*tensors, depth, alpha)
        ctx.views, ctx.settings = views, settings
        ctx.set_materialize_grads(False)
        return rgb, depth, alpha

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, depth, alpha = ctx.saved_tensors
        d_rgb, d_depth, d_alpha = (
            torch.zeros(shape) if grad is None else grad.contiguous()
            for grad, shape in zip(gradients, ((*alpha.shape, 3), alpha.shape, alpha.shape), strict=True)
        )
        arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
        out = [torch.zeros(tensor.shape) for tensor in tensors]
        with _LOCK:
            for n, view in enumerate(ctx.views):
                picture = (depth[n].numpy(), alpha[n].numpy(), view.until)
                gradient = (d_rgb[n].numpy(), d_depth[n].numpy(), d_alpha[n].numpy())
                _backward_view(arrays, n, view, ctx.settings, picture, gradient, [tensor.numpy() for tensor in out])
        if ctx.needs_input_grad[6]:
            out[6] = ((1 - alpha)[..., None] * d_rgb).sum((0, 1, 2))
        return (*(grad if need else None for grad, need in zip(out, ctx.needs_input_grad, strict=False)), None)


def _forward_view(
    arrays: list[np.ndarray], n: int, settings: _Settings, rgb: np.ndarray, depth: np.ndarray, alpha: np.ndarray
) -> _View:
    kernels = _kernels()
    means, quats, scales, opacities, sh, poses, background = arrays
    height, width, tiles = settings.height, settings.width, kernels.tiles
    rotation, center = np.ascontiguousarray(poses[n, :3, :3]), np.ascontiguousarray(poses[n, :3, 3])
    lens = tuple(np.float32(value) for value in (*settings.lenses[n], width, height))
    table = np.empty((len(means), kernels.project.COLUMNS), np.float32)
    seen = np.empty(len(means), np.bool_)
    kernels.project.project_forward(
        means, quats, scales, opacities, sh, rotation, center, lens,
        np.float32(settings.near), settings.degree, settings.antialiased, table, seen,
    )  # fmt: skip
    order = tiles.depth_order(table, seen)
    columns, rows = -(-width // tiles.TILE_WIDTH), -(-height // tiles.TILE_HEIGHT)
    chunk_counts = np.empty((tiles.CHUNKS, columns * rows), np.int64)
    splat_counts = np.zeros(len(means), np.int64)
    tiles.count_pairs(table, order, columns, rows, height, chunk_counts, splat_counts)
    tile_start, slot_start = np.empty(columns * rows + 1, np.int64), np.empty(len(means) + 1, np.int64)
    tiles.starts(chunk_counts, splat_counts, tile_start, slot_start)
    pairs = np.empty((int(tile_start[-1]), 4), np.int32)
    tiles.fill_pairs(table, order, columns, height, chunk_counts, slot_start, pairs)
    heavy_first = np.argsort(-np.diff(tile_start), kind="stable")
    until = np.empty((height, width), np.float32)
    kernels.blend.blend_forward(table, pairs, tile_start, heavy_first, columns, background, rgb, depth, alpha, until)
    if settings.stats is not None:
        cov = table[order][:, [kernels.project.COV_XX, kernels.project.COV_YY]]
        radius = np.ceil(np.sqrt(table[order, kernels.project.REACH] * cov.max(-1, initial=0)))
        settings.stats.saw(torch.from_numpy(order).long(), torch.from_numpy(radius), height, width)
    return _View(rotation, center, lens, table, order, slot_start, pairs, tile_start, heavy_first, columns, until)


def _backward_view(
    arrays: list[np.ndarray],
    n: int,
    view: _View,
    settings: _Settings,
    picture: tuple[np.ndarray, ...],
    gradient: tuple[np.ndarray, ...],
    out: list[np.ndarray],
) -> None:
    kernels = _kernels()
    background = arrays[6]
    slots = _slots(len(view.pairs), kernels.project.SLOT_COLUMNS)
    kernels.blend.blend_backward(
        view.table, view.pairs, view.tile_start, view.heavy_first, view.columns, background, picture, gradient,
        settings.stats is not None, slots,
    )  # fmt: skip
    poses = np.zeros((-(-len(arrays[0]) // kernels.project.BLOCK), 3, 4), np.float64)
    absgrad = np.zeros((len(arrays[0]), 2), np.float32)
    kernels.unproject.project_backward(
        *arrays[:5], view.rotation, view.center, view.lens, settings.degree, settings.antialiased,
        view.table, slots, view.slot_start, *out[:5], poses, absgrad,
    )  # fmt: skip
    pose = poses.sum(0)
    out[5][n, :3] = np.where(np.abs(pose) <= np.finfo(np.float32).max, pose, 0)
    if settings.stats is not None:
        index = torch.from_numpy(view.order).long()
        settings.stats.felt(
            index, torch.from_numpy(absgrad[view.order]), settings.height, settings.width, len(settings.lenses)
        )


_SLOTS = [np.empty(0, np.float32)]  # kept between steps: fresh pages from the system cost more than the sums in them


def _slots(count: int, columns: int) -> np.ndarray:
    """Uninitialised rows for ``count`` pairs, to be used and forgotten while the lock is held."""
    size = count * columns
    if len(_SLOTS[0]) < size or len(_SLOTS[0]) > 8 * size:
        _SLOTS[0] = np.empty(size + size // 4, np.float32)
    return _SLOTS[0][:size].reshape(count, columns)


@dataclass(frozen=True)
class _Kernels:
    project: ModuleType
    tiles: ModuleType
    blend: ModuleType
    unproject: ModuleType


_LOADED: list[_Kernels] = []


def _kernels() -> _Kernels:
    """The numba modules, loaded on first use: importing scenetx stays quick."""
    if not _LOADED:
        from scenetx.splat import cpu_blend, cpu_project, cpu_tiles, cpu_unproject

        _LOADED.append(_Kernels(cpu_project, cpu_tiles, cpu_blend, cpu_unproject))
    return _LOADED[0]
