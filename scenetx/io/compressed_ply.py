"""Writes SuperSplat's compressed PLY: 16 bytes a splat and a byte per SH number (`scenetx.io.ply_chunks` reads it)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt32

from scenetx.core import Gaussians
from scenetx.core.gaussians import SH_C0
from scenetx.io.codebook import morton_order
from scenetx.io.ply import drop_broken
from scenetx.io.ply_chunks import CHUNK, COLORS, PACKED
from scenetx.io.ply_table import write_ply

AXES = ("x", "y", "z")
LOG_SCALE = 20.0  # logarithms of scales are kept within +-20, as other writers do


def write_compressed_ply(gaussians: Gaussians, path: str | Path) -> None:
    """The Gaussians in Morton order, in chunks of 256 between whose bounds numbers are rounded; replaced whole.

    Layout of PlayCanvas' splat-transform. Lossy: within a chunk positions and log scales keep 10 or 11 bits, rotations
    10 bits a number, colours and opacities 8 bits, SH a byte over [-4, 4]. Not in it: the antialiasing mark is a
    comment that other readers may ignore.

    Raises:
        InputError: the file cannot be written.
    """
    gaussians = drop_broken(gaussians.detach().to("cpu").to(torch.float64), str(path))
    gaussians = gaussians[torch.from_numpy(morton_order(gaussians.means.numpy()))]
    count, chunks = len(gaussians), -(-len(gaussians) // CHUNK)
    means = gaussians.means.numpy()
    scales = gaussians.scales.clamp_min(1e-30).log().clamp(-LOG_SCALE, LOG_SCALE).numpy()
    colors = 0.5 + SH_C0 * gaussians.sh[:, 0].numpy()
    bounds: dict[str, np.ndarray] = {}
    shares: list[np.ndarray] = []
    for names, values in ((AXES, means), ([f"scale_{axis}" for axis in AXES], scales), (COLORS, colors)):
        low, high = _bounds(values, chunks)
        bounds |= {f"min_{name}": low[:, i] for i, name in enumerate(names)}
        bounds |= {f"max_{name}": high[:, i] for i, name in enumerate(names)}
        shares.append(_share(values, low, high))
    chunk = np.empty(chunks, [(name, "<f4") for name in bounds])
    for name, column in bounds.items():
        chunk[name] = column
    vertex = np.empty(count, [(name, "<u4") for name in PACKED])
    vertex["packed_position"] = _pack(shares[0], (11, 10, 11))
    vertex["packed_rotation"] = _pack_quats(gaussians.quats.numpy())
    vertex["packed_scale"] = _pack(shares[1], (11, 10, 11))
    alpha = gaussians.opacities.clamp(0, 1).numpy()[:, None]
    vertex["packed_color"] = _pack(np.concatenate([shares[2], alpha], axis=1), (8, 8, 8, 8))
    tables = {"chunk": chunk, "vertex": vertex}
    rest = gaussians.sh[:, 1:].transpose(1, 2).flatten(1).numpy()
    if rest.shape[1]:
        coded = np.trunc((rest / 8 + 0.5) * 256).clip(0, 255).astype(np.uint8)
        tables["sh"] = np.empty(count, [(f"f_rest_{i}", "u1") for i in range(rest.shape[1])])
        for index in range(rest.shape[1]):
            tables["sh"][f"f_rest_{index}"] = coded[:, index]
    mode = "mip" if gaussians.antialiased else "default"
    write_ply(path, tables, (f"SplatRenderMode: {mode}",))


def _bounds(values: Float[np.ndarray, "n c"], chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of every chunk, [chunks c], as the float32 that a reader will see."""
    starts = np.arange(chunks) * CHUNK
    if not chunks:
        return np.zeros((0, values.shape[1])), np.zeros((0, values.shape[1]))
    low = np.minimum.reduceat(values, starts).astype(np.float32)
    return low.astype(np.float64), np.maximum.reduceat(values, starts).astype(np.float32).astype(np.float64)


def _share(values: Float[np.ndarray, "n c"], low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "n c"]:
    """Where each value lies between its chunk's bounds, in [0, 1]."""
    row = np.arange(len(values)) // CHUNK
    span = (high - low)[row]
    return ((values - low[row]) / np.where(span > 0, span, 1)).clip(0, 1)


def _pack(shares: Float[np.ndarray, "n c"], bits: tuple[int, ...]) -> UInt32[np.ndarray, "n"]:
    """Numbers in [0, 1] as bit fields, the first one on top."""
    packed = np.zeros(len(shares), np.uint32)
    for index, width in enumerate(bits):
        field = np.rint(shares[:, index] * ((1 << width) - 1)).astype(np.uint32)
        packed = (packed << np.uint32(width)) | field
    return packed


def _pack_quats(wxyz: Float[np.ndarray, "n 4"]) -> UInt32[np.ndarray, "n"]:
    """Two bits name the largest of wxyz, which is made positive and left out; the others keep 10 bits each."""
    quat = wxyz / np.linalg.norm(wxyz, axis=-1, keepdims=True)
    largest = np.abs(quat).argmax(-1)
    quat = quat * np.where(np.take_along_axis(quat, largest[:, None], -1) < 0, -1, 1)
    others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
    small = np.take_along_axis(quat, others, -1)
    return largest.astype(np.uint32) << np.uint32(30) | _pack((small / np.sqrt(2) + 0.5).clip(0, 1), (10, 10, 10))
