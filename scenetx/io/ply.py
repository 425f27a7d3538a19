"""Gaussian splats and coloured points as PLY files, in the layout of the 3DGS reference (Kerbl et al., 2023)."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float

from scenetx.core import Gaussians, InputError, Points
from scenetx.core.gaussians import SH_C0
from scenetx.io.ply_chunks import is_compressed, unpack_chunks
from scenetx.io.ply_table import Ply, read_ply, write_ply

logger = logging.getLogger(__name__)

OPACITY_MARGIN = 1e-7  # 0 and 1 are written as this far inside, so that the stored logits are finite
SCALE_FLOOR = 1e-30  # a standard deviation of 0 is written as this, so that its logarithm is finite
POSITION = ("x", "y", "z")
SCALE = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
DC = ("f_dc_0", "f_dc_1", "f_dc_2")
COLOR_NAMES = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))


def read_splat_ply(path: str | Path) -> Gaussians:
    """Gaussians (float32) of a 3DGS PLY or a SuperSplat compressed PLY, in the file's own frame.

    Stored are logits of opacities, natural logarithms of scales, quaternions wxyz and SH channel by channel; the
    degree follows from the number of ``f_rest_*``. Attributes that splats do not have are ignored. Splats with a
    value that is not finite, or a zero quaternion, are dropped and counted in the log. ``antialiased`` is read from
    a comment ``SplatRenderMode: mip`` or ``antialiased 1``.

    Raises:
        InputError: not a PLY, truncated, or without the attributes of a splat (which are named).
    """
    path = Path(path)
    ply = read_ply(path)
    vertex = ply.elements.get("vertex")
    if vertex is None:
        raise InputError(str(path), "has no element 'vertex'", "give a PLY file of Gaussian splats")
    raw = unpack_chunks(path, ply) if is_compressed(ply) else _columns(vertex)
    missing = [name for name in (*POSITION, *DC, "opacity", *SCALE, *ROTATION) if name not in raw]
    if missing:
        found = "looks like a point cloud or mesh" if "f_dc_0" in missing else "is not a 3DGS file"
        raise InputError(str(path), f"lacks {', '.join(missing)} ({found})", "give a PLY file of Gaussian splats")
    count = sum(name.startswith("f_rest_") for name in raw)
    rest = [f"f_rest_{index}" for index in range(count)]
    if count not in (0, 9, 24, 45) or any(name not in raw for name in rest):
        raise InputError(
            str(path), f"has {count} f_rest attributes", "give one with f_rest_0 to 0, 9, 24 or 45 of them"
        )

    def columns(names: tuple[str, ...] | list[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([raw[name].astype(np.float32, copy=False) for name in names], -1))

    sh = columns(DC)[:, None]
    if rest:
        sh = torch.cat([sh, columns(rest).unflatten(1, (3, count // 3)).transpose(1, 2)], dim=1)
    opacities, scales = columns(["opacity"])[:, 0].sigmoid(), columns(SCALE).exp()
    gaussians = Gaussians(columns(POSITION), columns(ROTATION), scales, opacities, sh, _antialiased(ply))
    return drop_broken(gaussians, str(path))


def write_splat_ply(gaussians: Gaussians, path: str | Path) -> None:
    """The Gaussians as a binary little-endian 3DGS PLY (float32), in their own frame; the file is replaced whole.

    Quaternions are normalised. Opacities 0 and 1 are moved inside by 1e-7 and scales are at least 1e-30, since the
    file holds logits and logarithms. Broken Gaussians (not finite) are left out and counted in the log.

    Raises:
        InputError: the file cannot be written.
    """
    gaussians = drop_broken(gaussians.detach().to("cpu"), str(path))
    rest = 3 * (gaussians.sh.shape[1] - 1)
    names = [*POSITION, "nx", "ny", "nz", *DC, *(f"f_rest_{i}" for i in range(rest)), "opacity", *SCALE, *ROTATION]
    parts = [
        gaussians.means,
        torch.zeros_like(gaussians.means),
        gaussians.sh[:, 0],
        gaussians.sh[:, 1:].transpose(1, 2).flatten(1),
        gaussians.opacities.double().logit(eps=OPACITY_MARGIN)[:, None],
        gaussians.scales.double().clamp(min=SCALE_FLOOR).log(),
        torch.nn.functional.normalize(gaussians.quats.double(), dim=-1),
    ]
    table = torch.cat([part.float() for part in parts], dim=1).contiguous().numpy()
    mode = "mip" if gaussians.antialiased else "default"
    vertex = (
        table.view([(name, "<f4") for name in names])[:, 0] if len(table) else np.empty(0, [(n, "<f4") for n in names])
    )
    write_ply(path, {"vertex": vertex}, (f"SplatRenderMode: {mode}",))


def read_points_ply(path: str | Path) -> Points:
    """A point cloud: x y z and, where there are any, colours (bytes, 16 bits, or floats in [0, 1]) and ``error``.

    Points of a splat file get the splats' base colour; points without any colour are mid grey. Other attributes and
    faces are ignored; points that are not finite are dropped and counted in the log. Positions keep the file's width.

    Raises:
        InputError: not a PLY, truncated, or without x, y, z.
    """
    path = Path(path)
    vertex = read_ply(path).elements.get("vertex")
    names = () if vertex is None else vertex.dtype.names or ()
    missing = [name for name in POSITION if name not in names]
    if vertex is None or missing:
        raise InputError(str(path), f"lacks {', '.join(missing)}", "give a PLY file of points")
    wide = any(vertex.dtype[name] == np.float64 for name in POSITION)
    positions = np.stack([vertex[name] for name in POSITION], -1).astype(np.float64 if wide else np.float32)
    keep = np.isfinite(positions).all(-1)
    if not keep.all():
        logger.warning("%s: %d of %d points are not finite and were dropped", path, (~keep).sum(), len(keep))
    errors = vertex["error"].astype(np.float32)[keep] if "error" in names else None
    return Points(
        torch.from_numpy(positions[keep]),
        torch.from_numpy(_colors(vertex)[keep]),
        None if errors is None else torch.from_numpy(np.nan_to_num(errors)),
    )


def write_points_ply(points: Points, path: str | Path) -> None:
    """x y z (float32), red green blue (bytes) and, where known, ``error``; the file is replaced whole.

    Raises:
        InputError: the file cannot be written.
    """
    fields = [*((name, "<f4") for name in POSITION), *((name, "u1") for name in COLOR_NAMES[0])]
    if points.errors is not None:
        fields.append(("error", "<f4"))
    table = np.empty(len(points), fields)
    positions, colors = points.positions.detach().cpu().numpy(), points.colors.cpu().numpy()
    for axis in range(3):
        table[POSITION[axis]] = positions[:, axis]
        table[COLOR_NAMES[0][axis]] = colors[:, axis]
    if points.errors is not None:
        table["error"] = points.errors.detach().cpu().numpy()
    write_ply(path, {"vertex": table})


def drop_broken(gaussians: Gaussians, where: str) -> Gaussians:
    """Without the Gaussians that hold a value that is not finite or a zero quaternion; says in the log how many."""
    keep: Bool[torch.Tensor, "g"] = gaussians.finite()
    if bool(keep.all()):
        return gaussians
    logger.warning("%s: %d of %d splats are not finite and were dropped", where, int((~keep).sum()), len(keep))
    return gaussians[keep]


def _columns(table: np.ndarray) -> dict[str, np.ndarray]:
    return {name: table[name] for name in table.dtype.names or ()}


def _antialiased(ply: Ply) -> bool:
    for comment in ply.comments:
        found = re.match(r"\s*(SplatRenderMode|antialiased)\s*:?\s*(\w+)", comment, re.IGNORECASE)
        if found:
            return found[2].lower() in ("mip", "1", "true")
    return False


def _colors(vertex: np.ndarray) -> np.ndarray:
    names = vertex.dtype.names or ()
    for triple in (*COLOR_NAMES, DC):
        if all(name in names for name in triple):
            kinds = {vertex.dtype[name].kind for name in triple}
            widest = max(vertex.dtype[name].itemsize for name in triple)
            values: Float[np.ndarray, "p 3"] = np.stack([vertex[name] for name in triple], -1).astype(np.float64)
            values = np.nan_to_num(values, nan=0.5, posinf=0.5, neginf=0.5)
            if triple is DC:
                values = 255 * (0.5 + SH_C0 * values)
            elif "f" in kinds and values.max(initial=0) <= 1:
                values = 255 * values
            elif "f" not in kinds and widest > 1 and values.max(initial=0) > 255:
                values = values / 257
            return values.round().clip(0, 255).astype(np.uint8)
    return np.full((len(vertex), 3), 128, np.uint8)
