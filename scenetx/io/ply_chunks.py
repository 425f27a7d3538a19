"""SuperSplat's compressed PLY: chunks of 256 splats, 16 bytes a splat, optional SH as bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from scenetx.core import InputError
from scenetx.core.gaussians import SH_C0
from scenetx.io.ply_table import Ply

CHUNK = 256
BOUNDS = [f"{end}_{axis}" for axis in ("x", "y", "z", "scale_x", "scale_y", "scale_z") for end in ("min", "max")]
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
COLORS = ("r", "g", "b")


def is_compressed(ply: Ply) -> bool:
    vertex = ply.elements.get("vertex")
    return vertex is not None and all(name in (vertex.dtype.names or ()) for name in PACKED)


def unpack_chunks(path: Path, ply: Ply) -> dict[str, np.ndarray]:
    """The columns of a plain 3DGS PLY (float32) from the packed ones.

    Layout of PlayCanvas' splat-transform: 11-10-11 bits for positions and logarithms of scales between the chunk's
    bounds, smallest-three with 2-10-10-10 bits for rotations, 8 bits for colour (between the chunk's bounds where it
    has them) and opacity, and SH as bytes over [-4, 4].

    Raises:
        InputError: chunks or their bounds are missing, or do not fit the number of splats.
    """
    vertex, chunk = ply.elements["vertex"], ply.elements.get("chunk")
    names = () if chunk is None else chunk.dtype.names or ()
    missing = [name for name in BOUNDS if name not in names]
    if chunk is None or missing or len(chunk) < -(-len(vertex) // CHUNK):
        found = "no element 'chunk'" if chunk is None else f"{len(chunk)} chunks lacking {missing}"
        raise InputError(str(path), f"has {len(vertex)} packed splats but {found}", "write it again with SuperSplat")
    unsigned = [name for name in PACKED if vertex.dtype[name] != np.uint32]
    if unsigned:
        raise InputError(str(path), f"{', '.join(unsigned)} are not uint", "write it again with SuperSplat")
    row = np.arange(len(vertex)) // CHUNK

    def between(name: str, at: np.ndarray) -> np.ndarray:
        low, high = (chunk[f"{end}_{name}"].astype(np.float64)[row] for end in ("min", "max"))
        return low * (1 - at) + high * at

    out = {}
    with np.errstate(all="ignore"):  # hostile bounds become splats that are not finite; the caller drops those
        for axis, bits in zip("xyz", ((21, 11), (11, 10), (0, 11)), strict=True):
            out[axis] = between(axis, _unorm(vertex["packed_position"], *bits))
            out[f"scale_{'xyz'.index(axis)}"] = between(f"scale_{axis}", _unorm(vertex["packed_scale"], *bits))
        for index, color in enumerate(COLORS):
            value = _unorm(vertex["packed_color"], 24 - 8 * index, 8)
            value = between(color, value) if f"min_{color}" in names and f"max_{color}" in names else value
            out[f"f_dc_{index}"] = (value - 0.5) / SH_C0
        alpha = _unorm(vertex["packed_color"], 0, 8)
        out["opacity"] = np.log(alpha) - np.log1p(-alpha)
        quat = _smallest_three(vertex["packed_rotation"])
        out.update({f"rot_{index}": quat[:, index] for index in range(4)})
        out = {name: value.astype(np.float32) for name, value in out.items()}
    return out | _unpack_sh(path, ply, len(vertex))


def _unorm(packed: np.ndarray, shift: int, bits: int) -> Float[np.ndarray, "n"]:
    top = (1 << bits) - 1
    return ((packed >> np.uint32(shift)) & np.uint32(top)) / float(top)


def _smallest_three(packed: np.ndarray) -> Float[np.ndarray, "n 4"]:
    small = np.stack([_unorm(packed, shift, 10) for shift in (20, 10, 0)], -1)
    small = (small - 0.5) * np.sqrt(2.0)
    large = np.sqrt(np.maximum(0, 1 - np.square(small).sum(-1)))
    which = (packed >> np.uint32(30)).astype(np.int64)
    quat = np.empty((len(packed), 4))
    for index in range(4):
        mine = which == index
        quat[mine] = np.insert(small[mine], index, large[mine], axis=1)
    return quat


def _unpack_sh(path: Path, ply: Ply, count: int) -> dict[str, np.ndarray]:
    table = ply.elements.get("sh")
    if table is None:
        return {}
    names = [name for name in table.dtype.names or () if name.startswith("f_rest_")]
    if len(table) != count or any(table.dtype[name] != np.uint8 for name in names):
        raise InputError(str(path), f"has {len(table)} rows of SH for {count} splats", "write it again with SuperSplat")
    out = {}
    for name in names:
        value = (table[name].astype(np.float32) + 0.5) / 256
        value[table[name] == 0] = 0
        value[table[name] == 255] = 1
        out[name] = (value - 0.5) * 8
    return out
