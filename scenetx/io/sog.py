"""SOG (Spatially Ordered Gaussians): a zip of meta.json and lossless WebP pictures. Reads versions 1, 2; writes 2.

Source: the format's description (developer.playcanvas.com, "The SOG Format") and what splat-transform writes where the
two differ: quaternions are stored wxyz, scales as logarithms, in the frame of 3DGS PLY files.
"""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from scenetx.core import Gaussians, InputError
from scenetx.core.atomic import replacing
from scenetx.io.codebook import ENTRIES, morton_order, nearest_level, palette, scalar_codebook
from scenetx.io.json_value import JsonValue
from scenetx.io.ply import drop_broken

ROW = 64  # palette entries in a row of the centroids' picture
MOST = 1 << 26  # splats in a file
MOST_BYTES = 1 << 29  # of one member, unpacked
MOST_META = 1 << 22
MOST_RATIO = 200  # a member may be so many times larger than it is packed
MOST_PALETTE = 1 << 16  # an entry's number has two bytes
BANDS = {1: 3, 2: 8, 3: 15}  # degree -> coefficients above the first
AGAIN = "give a SOG file that was written completely"
Fetch = Callable[[str], bytes]  # a member's bytes by its name


def read_sog(path: str | Path) -> Gaussians:
    """Gaussians (float32) of a .sog archive, or of the meta.json (or its folder) of an unpacked one.

    Nothing is ever unpacked to disk; sizes are checked before anything is unpacked in memory.

    Raises:
        InputError: not SOG, a later version, truncated, a name outside the archive, or more than it can hold.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "meta.json"
    if path.suffix.lower() == ".json":
        return _decode(path, _folder_fetch(path.parent), path.name)
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give a SOG file that can be read") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(str(path), f"is no whole zip archive ({error})", AGAIN) from error
    with archive:
        return _decode(path, _zip_fetch(path, archive), "meta.json")


def write_sog(
    gaussians: Gaussians,
    path: str | Path,
    *,
    entries: int | None = None,
    weights: Float[torch.Tensor, "g"] | None = None,
) -> None:
    """The Gaussians as SOG version 2 (one archive), in Morton order; the file is replaced whole.

    Lossy: positions keep 16 bits an axis of sign(x) ln(1 + |x|), rotations 8 bits a number, scales and colours the
    best 256 levels, opacities 8 bits. SH above degree 0 becomes a palette of ``entries`` vectors (default one for 16
    splats, at most 16,384); ``weights`` say whose colours it should fit best, all alike when not given.

    Raises:
        InputError: more splats than the format holds, SH degree above 3, or the file cannot be written.
    """
    sound = gaussians.finite().cpu()
    gaussians = drop_broken(gaussians.detach().to("cpu").to(torch.float64), str(path))
    if len(gaussians) > MOST or gaussians.sh_degree > 3:
        shown = f"{len(gaussians)} splats of SH degree {gaussians.sh_degree}"
        raise InputError(str(path), shown, f"write at most {MOST} splats of degree 3 as SOG")
    # Along the curve in the coordinates that are stored: one far splat would otherwise spoil the order of all others.
    order = torch.from_numpy(morton_order(_logs(gaussians.means.numpy())))
    gaussians = gaussians[order]
    count = len(gaussians)
    meta: dict[str, Any] = {"version": 2, "count": count, "antialias": gaussians.antialiased}
    files: dict[str, bytes] = {}
    side = max(4, 4 * math.ceil(math.sqrt(count) / 4))
    shape = (max(4, 4 * math.ceil(count / side / 4)), side)
    meta["means"] = _put_means(gaussians.means.numpy(), shape, files)
    meta["scales"] = _put_scales(gaussians.scales.clamp_min(1e-30).log().numpy(), shape, files)
    files["quats.webp"] = _picture(_pack_quats(gaussians.quats.numpy()), shape)
    meta["quats"] = {"files": ["quats.webp"]}
    meta["sh0"] = _put_colors(gaussians, shape, files)
    if gaussians.sh_degree and count:
        mass = None if weights is None else weights.detach().cpu()[sound][order]
        size = entries or min(1 << 14, max(ROW, count // 16))
        meta["shN"] = _put_sh(gaussians, min(size, count, MOST_PALETTE), mass, shape, files)
    text = json.dumps(meta, separators=(",", ":")).encode()
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in {"meta.json": text, **files}.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=kind)  # 1980: the same bytes every time


# writing


def _logs(means: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    return np.sign(means) * np.log1p(np.abs(means))


def _put_means(means: Float[np.ndarray, "n 3"], shape: tuple[int, int], files: dict[str, bytes]) -> dict[str, Any]:
    logs = _logs(means)
    low = logs.min(0, initial=np.inf) if len(logs) else np.zeros(3)
    high = logs.max(0, initial=-np.inf) if len(logs) else np.zeros(3)
    share = (logs - low) / np.where(high > low, high - low, 1)
    fixed = np.rint(65535 * share).astype(np.uint16)
    files["means_l.webp"] = _picture((fixed & 255).astype(np.uint8), shape)
    files["means_u.webp"] = _picture((fixed >> 8).astype(np.uint8), shape)
    return {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]}


def _put_scales(logs: Float[np.ndarray, "n 3"], shape: tuple[int, int], files: dict[str, bytes]) -> dict[str, Any]:
    levels = scalar_codebook(logs.reshape(-1))
    files["scales.webp"] = _picture(nearest_level(logs, levels), shape)
    return {"codebook": _short(levels), "files": ["scales.webp"]}


def _put_colors(gaussians: Gaussians, shape: tuple[int, int], files: dict[str, bytes]) -> dict[str, Any]:
    dc = gaussians.sh[:, 0].numpy()
    levels = scalar_codebook(dc.reshape(-1))
    alpha = np.rint(255 * gaussians.opacities.clamp(0, 1).numpy()).astype(np.uint8)
    files["sh0.webp"] = _picture(np.concatenate([nearest_level(dc, levels), alpha[:, None]], axis=1), shape)
    return {"codebook": _short(levels), "files": ["sh0.webp"]}


def _put_sh(
    gaussians: Gaussians, entries: int, weights: torch.Tensor | None, shape: tuple[int, int], files: dict[str, bytes]
) -> dict[str, Any]:
    rest = gaussians.sh[:, 1:].flatten(1)
    centers, labels = palette(rest, entries, weights=weights)
    levels = scalar_codebook(centers.double().numpy().reshape(-1))
    rows, coefficients = -(-len(centers) // ROW), gaussians.sh.shape[1] - 1
    pixels = nearest_level(centers.double().numpy(), levels).reshape(-1, 3)
    number = labels.numpy().astype(np.uint16)
    split = np.stack([number & 255, number >> 8], -1).astype(np.uint8)
    files["shN_centroids.webp"] = _picture(pixels, (rows, ROW * coefficients))
    files["shN_labels.webp"] = _picture(split, shape)
    return {
        "count": len(centers),
        "bands": gaussians.sh_degree,
        "codebook": _short(levels),
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }


def _short(levels: Float[np.ndarray, "256"]) -> list[float]:
    """Seven digits, as many as a float32 has: the text of three codebooks is what a small scene's file consists of."""
    return [float(f"{level:.7g}") for level in levels]


def _picture(values: UInt8[np.ndarray, "n c"], shape: tuple[int, int]) -> bytes:
    """Rows of up to four bytes as the pixels of a lossless WebP; what is left over is 0, a missing alpha 255."""
    from PIL import Image

    pixels = np.zeros((shape[0] * shape[1], 4), np.uint8)
    pixels[:, 3] = 255
    pixels[: len(values), : values.shape[1]] = values
    out = io.BytesIO()
    # exact: colours under an alpha of 0 are data too.
    Image.fromarray(pixels.reshape(*shape, 4)).save(out, "WEBP", lossless=True, quality=80, method=4, exact=True)
    return out.getvalue()


def _pack_quats(wxyz: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    quat = wxyz / np.linalg.norm(wxyz, axis=-1, keepdims=True)
    largest = np.abs(quat).argmax(-1)
    quat = quat * np.where(np.take_along_axis(quat, largest[:, None], -1) < 0, -1, 1)
    small = np.take_along_axis(quat, _OTHERS[largest], -1)
    coded = np.rint(255 * (small / np.sqrt(2) + 0.5)).clip(0, 255)
    return np.concatenate([coded, 252 + largest[:, None]], axis=1).astype(np.uint8)


_OTHERS = np.array([[j for j in range(4) if j != i] for i in range(4)])


# reading


def _folder_fetch(folder: Path) -> Fetch:
    def fetch(name: str) -> bytes:
        file = folder / name
        try:
            if file.stat().st_size > MOST_BYTES:
                raise InputError(str(file), f"is {file.stat().st_size} bytes long", AGAIN)
            return file.read_bytes()
        except OSError as error:
            raise InputError(str(file), error.strerror or error, AGAIN) from error

    return fetch


def _zip_fetch(path: Path, archive: zipfile.ZipFile) -> Fetch:
    def fetch(name: str) -> bytes:
        try:
            member = archive.getinfo(name)
            if member.file_size > min(MOST_BYTES, MOST_RATIO * max(member.compress_size, 1024)):
                shown = f"{name[:60]!r} promises {member.file_size} bytes from {member.compress_size}"
                raise InputError(str(path), shown, AGAIN)
            with archive.open(member) as file:
                return file.read(member.file_size)
        except KeyError:
            raise InputError(str(path), f"holds no {name[:60]!r}", AGAIN) from None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # Runtime: encrypted
            raise InputError(str(path), f"{name[:60]!r} cannot be unpacked ({error})", AGAIN) from error

    return fetch


def _decode(path: Path, fetch: Fetch, meta_name: str) -> Gaussians:
    raw = fetch(meta_name)
    if len(raw) > MOST_META:
        raise InputError(f"{path}: meta.json", f"is {len(raw)} bytes long", AGAIN)
    try:
        meta = JsonValue(json.loads(raw), f"{path}: meta.json")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: meta.json", f"is not JSON ({error})", AGAIN) from error
    first = "version" not in meta
    if not first and meta["version"].number() != 2:
        raise InputError(f"{path}: meta.json", f"is SOG version {meta['version'].number():g}", "write it as version 2")
    count = (meta["means"]["shape"].items()[:1] or [meta["means"]["shape"]])[0] if first else meta["count"]
    reader = _Pictures(path, fetch, count.whole(0, MOST))
    means = _means(meta["means"], reader)
    scales = _levels(meta["scales"], reader.rows(meta["scales"], 0)[:, :3], first)
    color = reader.rows(meta["sh0"], 0)
    dc = _levels(meta["sh0"], color[:, :3], first).astype(np.float32)
    if first:
        low, high = (meta["sh0"][end].numbers()[3:4] or (0.0,) for end in ("mins", "maxs"))
        with np.errstate(over="ignore"):
            alpha = 1 / (1 + np.exp(-(low[0] + (high[0] - low[0]) * color[:, 3] / 255.0)))
    else:
        alpha = color[:, 3] / 255.0
    sh = np.concatenate([dc[:, None], _rest(meta, reader, first)], axis=1)
    quats = _unpack_quats(reader.rows(meta["quats"], 0))
    with np.errstate(over="ignore"):
        arrays = [np.asarray(a).astype(np.float32) for a in (means, quats, np.exp(scales), alpha, sh)]
    tensors = [torch.from_numpy(array) for array in arrays]
    antialiased = "antialias" in meta and meta["antialias"].flag()
    return drop_broken(Gaussians(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], antialiased), str(path))


class _Pictures:
    """The archive's pictures, checked before they are decoded."""

    def __init__(self, path: Path, fetch: Fetch, count: int) -> None:
        self.path, self.fetch, self.count = path, fetch, count

    def rows(self, part: JsonValue, index: int) -> UInt8[np.ndarray, "n 4"]:
        """The pixels of the file of a property, one a splat."""
        pixels = self.load(part, index, most=4 * self.count + (1 << 16))
        if pixels.shape[0] * pixels.shape[1] < self.count:
            shown = f"has {pixels.shape[1]} x {pixels.shape[0]} pixels for {self.count} splats"
            raise InputError(part.where, shown, AGAIN)
        return pixels.reshape(-1, 4)[: self.count]

    def load(self, part: JsonValue, index: int, *, most: int) -> UInt8[np.ndarray, "h w 4"]:
        from PIL import Image

        names = part["files"].items()
        if len(names) <= index:
            raise part["files"].wrong(f"{index + 1} or more file names")
        name = names[index].name()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
                with Image.open(io.BytesIO(self.fetch(name)), formats=("WEBP", "PNG")) as image:
                    if image.width * image.height > most:
                        shown = f"has {image.width} x {image.height} pixels for {self.count} splats"
                        raise InputError(f"{self.path}: {name}", shown, AGAIN)
                    return np.asarray(image.convert("RGBA"))
        except InputError:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise InputError(f"{self.path}: {name}", f"is no whole picture ({error})", AGAIN) from error


def _means(part: JsonValue, reader: _Pictures) -> Float[np.ndarray, "n 3"]:
    low, high = (np.array(_triple(part[end])) for end in ("mins", "maxs"))
    fixed = reader.rows(part, 0)[:, :3].astype(np.float64) + 256.0 * reader.rows(part, 1)[:, :3]
    logs = low + (high - low) * fixed / 65535
    with np.errstate(over="ignore"):
        return np.sign(logs) * np.expm1(np.abs(logs))


def _triple(value: JsonValue) -> tuple[float, ...]:
    numbers = value.numbers()
    if len(numbers) < 3:
        raise value.wrong("three numbers")
    return numbers[:3]


def _levels(part: JsonValue, index: UInt8[np.ndarray, "*s"], first: bool) -> Float[np.ndarray, "*s"]:
    """What bytes stand for: a codebook's levels (version 2), or steps between bounds, one pair or one a channel."""
    if not first:
        return np.array(_codebook(part["codebook"]))[index]
    low, high = (
        np.array(_triple(part[end])) if isinstance(part[end].value, list) else np.array(part[end].number())
        for end in ("mins", "maxs")
    )
    return low + (high - low) * index / 255.0


def _codebook(value: JsonValue) -> tuple[float, ...]:
    numbers = value.numbers()
    if len(numbers) != ENTRIES:
        raise InputError(value.where, f"has {len(numbers)} levels, not {ENTRIES}", AGAIN)
    return numbers


def _rest(meta: JsonValue, reader: _Pictures, first: bool) -> Float[np.ndarray, "n k 3"]:
    if "shN" not in meta or not reader.count:
        return np.zeros((reader.count, 0, 3), np.float32)
    part = meta["shN"]
    pixels = reader.load(part, 0, most=MOST_PALETTE * BANDS[3])
    wanted = {ROW * number: number for number in BANDS.values()}
    number = wanted.get(pixels.shape[1]) if first else BANDS[part["bands"].whole(1, 3)]
    if number is None or pixels.shape[1] != ROW * number:
        raise InputError(part.where, f"has a palette picture {pixels.shape[1]} pixels wide", AGAIN)
    entries = pixels.shape[0] * ROW if first else part["count"].whole(1, MOST_PALETTE)
    labels = reader.rows(part, 1).astype(np.int64)
    labels = labels[:, 0] + 256 * labels[:, 1]
    if labels.max() >= min(entries, pixels.shape[0] * ROW):
        raise InputError(part.where, f"names entry {labels.max()} of a palette of {entries}", AGAIN)
    table = _levels(part, np.ascontiguousarray(pixels.reshape(-1, number, 4)[:, :, :3]), first)
    return table.astype(np.float32)[labels]  # the largest part of a scene: never in float64


def _unpack_quats(coded: UInt8[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """wxyz; zero where the alpha names no component, so that the splat is dropped and counted."""
    small = (coded[:, :3] / 255.0 - 0.5) * np.sqrt(2)
    largest = coded[:, 3].astype(np.int64) - 252
    quat = np.zeros((len(coded), 4))
    good = largest >= 0
    which = np.where(good, largest, 0)
    np.put_along_axis(quat, _OTHERS[which], small, -1)
    rest = np.sqrt(np.maximum(0, 1 - np.square(small).sum(-1)))
    np.put_along_axis(quat, which[:, None], rest[:, None], -1)
    return quat * good[:, None]
