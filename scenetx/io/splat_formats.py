"""Splat files by their suffix, and the .splat format (32 bytes a splat, no header)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scenetx.core import Gaussians, InputError
from scenetx.core.atomic import write_bytes
from scenetx.core.gaussians import SH_C0
from scenetx.io.compressed_ply import write_compressed_ply
from scenetx.io.gltf_splats import read_gltf_splats, write_gltf_splats
from scenetx.io.ply import drop_broken, read_splat_ply, write_splat_ply
from scenetx.io.sog import read_sog, write_sog
from scenetx.io.spz import read_spz, write_spz

__all__ = [
    "COMPRESSED_PLY",
    "read_gaussians",
    "read_splat",
    "read_spz",
    "write_gaussians",
    "write_splat",
    "write_spz",
]

COMPRESSED_PLY = ".compressed.ply"

RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
READERS = {".ply": read_splat_ply, ".spz": read_spz, ".sog": read_sog, ".glb": read_gltf_splats}
WRITERS = {".ply": write_splat_ply, ".spz": write_spz, ".sog": write_sog, ".glb": write_gltf_splats}


def read_gaussians(path: str | Path) -> Gaussians:
    """Gaussians of a .ply (3DGS or SuperSplat compressed), .spz, .sog, .splat or .glb (KHR_gaussian_splatting) file.

    A folder with a SOG's meta.json, or that meta.json, is read too.

    Raises:
        InputError: another suffix, or what the format's reader finds wrong.
    """
    suffix = Path(path).suffix.lower()
    if Path(path).name == "meta.json" or (Path(path) / "meta.json").is_file():
        return read_sog(path)
    return (READERS | {".splat": read_splat})[_known(path, suffix)](path)


def write_gaussians(gaussians: Gaussians, path: str | Path) -> None:
    """The Gaussians in the format of the suffix.

    .ply and .glb are exact to float32; .compressed.ply, .spz (about a tenth of the size) and .sog (about a twentieth)
    lose what their writers say; .splat has no view dependence.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if Path(path).name.lower().endswith(COMPRESSED_PLY):
        write_compressed_ply(gaussians, path)
        return
    (WRITERS | {".splat": write_splat})[_known(path, suffix)](gaussians, path)


def read_splat(path: str | Path) -> Gaussians:
    """Gaussians (float32, SH degree 0) of a .splat file; opacity and colour have 8 bits, quaternions 7 and a sign.

    Raises:
        InputError: empty, or not a multiple of 32 bytes long.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give a .splat file that can be read") from error
    if not data or len(data) % RECORD.itemsize:
        raise InputError(str(path), f"is {len(data)} bytes long, not 32 a splat", "give a .splat file that is whole")
    table = np.frombuffer(data, RECORD)
    color = (table["rgba"] / 255.0).astype(np.float32)
    parts = (
        table["means"],
        (table["quats"].astype(np.float32) - 128) / 128,
        table["scales"],
        color[:, 3],
        ((color[:, :3] - 0.5) / SH_C0)[:, None],
    )
    means, quats, scales, opacities, sh = (torch.from_numpy(np.array(part, np.float32)) for part in parts)
    return drop_broken(Gaussians(means, quats, scales, opacities, sh), str(path))


def write_splat(gaussians: Gaussians, path: str | Path) -> None:
    """The Gaussians as .splat, largest and most opaque first (viewers show the file while it loads).

    View-dependent colour and the antialiasing mark are lost: the format has no place for them.

    Raises:
        InputError: the file cannot be written.
    """
    gaussians = drop_broken(gaussians.detach().to("cpu").to(torch.float32), str(path))
    order = (gaussians.scales.double().clamp(min=1e-30).log().sum(-1) + gaussians.opacities.double().log()).argsort(
        descending=True, stable=True
    )
    gaussians = gaussians[order]
    table = np.empty(len(gaussians), RECORD)
    table["means"], table["scales"] = gaussians.means.numpy(), gaussians.scales.numpy()
    rgba = torch.cat([gaussians.rgb, gaussians.opacities[:, None]], dim=-1).clamp(0, 1)
    table["rgba"] = (255 * rgba).round().numpy()
    quats = torch.nn.functional.normalize(gaussians.quats, dim=-1)
    table["quats"] = (128 * quats + 128).round().clamp(0, 255).numpy()
    write_bytes(path, table.tobytes())


def _known(path: str | Path, suffix: str) -> str:
    if suffix in (*READERS, ".splat"):
        return suffix
    known = "use .ply, .spz, .sog, .splat or .glb"
    hint = "convert it with SuperSplat first" if suffix in (".ksplat", ".rad") else known
    raise InputError(str(path), f"{suffix or 'no suffix'} is no splat format that scenetx knows", hint)
