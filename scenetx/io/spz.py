"""SPZ, Niantic's compressed splats: reads versions 1 to 3, writes version 3 (gzip; version 4 few viewers can read).

Source: the format's description and reference code, github.com/nianticlabs/spz. Axes in the file are right-up-back
(RUB); here they are right-down-forward like in 3DGS files, so y and z change sign, and with them quaternions and SH.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from scenetx.core import Gaussians, InputError
from scenetx.core.atomic import write_bytes
from scenetx.core.gaussians import sh_basis
from scenetx.io.ply import drop_broken

logger = logging.getLogger(__name__)

MAGIC = 0x5053474E  # "NGSP"
HEADER = struct.Struct("<IIIBBBB")  # magic, version, number, SH degree, fractional bits, flags, reserved
ANTIALIASED = 1
COLOR_SCALE = 0.15
SH_BITS = (5, 4)  # kept of 8 for degree 1 and above: the reference's choice, made for compression
MAX_DEGREE = 3
MAX_FRACTIONAL_BITS = 23
FINEST = 1 / 64  # position step wanted, in standard deviations of a small splat
MAX_RATIO, FREE_BYTES = 200, 1 << 28  # a gzip stream may promise this many times its size, or this many bytes
FLIP = np.array([1.0, -1.0, -1.0])


def read_spz(path: str | Path) -> Gaussians:
    """Gaussians (float32) of an SPZ file of version 1, 2 or 3, in right-down-forward axes.

    Positions are exact to 2^-(fractional bits), scales to 3 %, opacities to 1/255. SH of degree 4 is cut to 3.

    Raises:
        InputError: version 4 (it needs zstd), another file, truncated, or promising far more than it can hold.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give an SPZ file that can be read") from error
    if data[:4] == struct.pack("<I", MAGIC):
        version = struct.unpack_from("<I", data, 4)[0] if len(data) >= 8 else 0
        if version >= 4:
            raise InputError(str(path), f"is SPZ version {version}, packed with zstd", "write it as version 3 or PLY")
        raw = data
    else:
        raw = _inflate(path, data)
    if len(raw) < HEADER.size:
        raise _truncated(path, HEADER.size, len(raw))
    magic, version, count, degree, bits, flags, _ = HEADER.unpack_from(raw)
    if magic != MAGIC or not 1 <= version <= 3 or degree > 4 or bits > MAX_FRACTIONAL_BITS:
        shown = f"has magic {magic:#x}, version {version}, SH degree {degree}, {bits} fractional bits"
        raise InputError(str(path), shown, "give an SPZ file of version 1 to 3")
    size = HEADER.size + count * _bytes_per_splat(version, degree)
    if len(raw) < size:
        raise _truncated(path, size, len(raw))
    return drop_broken(_unpack(raw, version, count, degree, bits, bool(flags & ANTIALIASED)), str(path))


def write_spz(gaussians: Gaussians, path: str | Path, *, sh_bits: tuple[int, int] = SH_BITS) -> None:
    """The Gaussians (right-down-forward axes) as SPZ version 3; the file is replaced whole.

    24-bit positions get as many fractional bits as the extent allows, up to a step of 1/64 of a small splat. Lossy:
    scales keep 3 %, colours and opacities 8 bits, SH above degree 0 is cut to [-1, 1] and ``sh_bits`` bits.

    Raises:
        InputError: a Gaussian lies beyond 2^23 units, or the file cannot be written.
    """
    gaussians = drop_broken(gaussians.detach().to("cpu").to(torch.float64), str(path))
    count, degree = len(gaussians), gaussians.sh_degree
    bits = _fractional_bits(gaussians, str(path))
    fixed = np.rint(gaussians.means.numpy() * FLIP * 2.0**bits).astype("<i4")
    planes = [
        fixed.reshape(-1).view(np.uint8).reshape(-1, 4)[:, :3],
        _byte(gaussians.opacities.numpy() * 255),
        _byte(gaussians.sh[:, 0].numpy() * (COLOR_SCALE * 255) + 127.5),
        _byte((gaussians.scales.clamp(min=1e-30).log().numpy() + 10) * 16),
        _pack_quats(gaussians.quats.numpy()),
    ]
    if degree:
        sh = gaussians.sh[:, 1:].numpy() * _sh_signs(degree)[1:, None]
        kept = np.where(np.arange(1, sh.shape[1] + 1) < 4, sh_bits[0], sh_bits[1])
        step = (1 << (8 - kept))[:, None]
        planes.append(_byte((np.rint(sh * 128 + 128) + step // 2) // step * step))
    flags = ANTIALIASED if gaussians.antialiased else 0
    raw = HEADER.pack(MAGIC, 3, count, degree, bits, flags, 0) + b"".join(plane.tobytes() for plane in planes)
    write_bytes(path, gzip.compress(raw, compresslevel=6, mtime=0))


def _inflate(path: Path, data: bytes) -> bytes:
    """The gzip stream, as far as its own header says it goes: a bomb never grows beyond what it promises."""
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        head = inflater.decompress(data, HEADER.size)
        if len(head) < HEADER.size:
            raise _truncated(path, HEADER.size, len(head))
        magic, version, count, degree, *_ = HEADER.unpack(head)
        if magic != MAGIC or not 1 <= version <= 3 or degree > 4:
            return head
        left = count * _bytes_per_splat(version, degree)
        if left > max(FREE_BYTES, MAX_RATIO * len(data)):
            raise InputError(
                str(path), f"promises {count} splats in {len(data)} bytes", "give an SPZ file that is whole"
            )
        return head + inflater.decompress(inflater.unconsumed_tail, left) if left else head
    except zlib.error as error:
        raise InputError(str(path), f"is no SPZ file ({error})", "give an SPZ file of version 1 to 3") from error


def _truncated(path: Path, wanted: int, found: int) -> InputError:
    return InputError(str(path), f"is truncated: {found} of {wanted} bytes", "give an SPZ file that is whole")


def _bytes_per_splat(version: int, degree: int) -> int:
    return (6 if version == 1 else 9) + 1 + 3 + 3 + (4 if version == 3 else 3) + 3 * ((degree + 1) ** 2 - 1)


def _unpack(raw: bytes, version: int, count: int, degree: int, bits: int, antialiased: bool) -> Gaussians:
    at = HEADER.size

    def plane(width: int) -> UInt8[np.ndarray, "n w"]:
        nonlocal at
        values = np.frombuffer(raw, np.uint8, count * width, at).reshape(count, width)
        at += count * width
        return values

    if version == 1:
        means = plane(6).copy().view("<f2").astype(np.float64)
    else:
        low, middle, high = np.moveaxis(plane(9).reshape(count, 3, 3), -1, 0).astype(np.int32)
        means = (((low | middle << 8 | high << 16) ^ 0x800000) - 0x800000) / 2.0**bits
    opacities = plane(1)[:, 0] / 255.0
    dc = ((plane(3) / 255.0 - 0.5) / COLOR_SCALE).astype(np.float32)
    scales = np.exp(plane(3) / 16.0 - 10)
    quats = _unpack_quats(plane(4)) if version == 3 else _unpack_first_three(plane(3))
    every, kept = (degree + 1) ** 2 - 1, (min(degree, MAX_DEGREE) + 1) ** 2
    rest = (plane(3 * every).reshape(count, every, 3)[:, : kept - 1].astype(np.float32) - 128) / 128
    signs = _sh_signs(min(degree, MAX_DEGREE)).astype(np.float32)
    sh = np.concatenate([dc[:, None], rest], axis=1) * signs[:, None]
    arrays = (means * FLIP, quats, scales, opacities, sh)
    tensors = [torch.from_numpy(array.astype(np.float32, copy=False)) for array in arrays]
    return Gaussians(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], antialiased)


def _sh_signs(degree: int) -> Float[np.ndarray, "k"]:
    """What each basis function is multiplied with when y and z change sign."""
    direction = torch.tensor([0.48, 0.6, 0.64], dtype=torch.float64)
    signs = sh_basis(direction * torch.from_numpy(FLIP), degree) / sh_basis(direction, degree)
    return signs.round().numpy()


def _fractional_bits(gaussians: Gaussians, where: str) -> int:
    farthest = float(gaussians.means.abs().max()) if len(gaussians) else 1.0
    fits = math.floor(math.log2((2**23 - 1) / max(farthest, 1e-30)))
    if fits < 0:
        raise InputError(where, f"a splat lies {farthest:.3g} units out", "crop the scene: SPZ ends at 2^23 units")
    wanted = 12
    if len(gaussians):
        small = float(gaussians.scales.median(dim=-1).values.quantile(0.05)) if len(gaussians) < 1 << 23 else 1e-3
        wanted = max(wanted, math.ceil(math.log2(1 / (FINEST * max(small, 1e-9)))))
        if 2.0**-fits > 0.5 * small:  # up to a quarter of a standard deviation off does not show
            logger.warning("%s: a splat %.3g units out leaves positions a step of %.2g", where, farthest, 2.0**-fits)
    return min(fits, wanted, MAX_FRACTIONAL_BITS)


def _byte(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _pack_quats(wxyz: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    """Smallest three: the two top bits say which of xyzw is largest, the others follow as sign and 9 bits."""
    quat = wxyz[:, [1, 2, 3, 0]] * [*FLIP, 1.0]
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    largest = np.abs(quat).argmax(-1)
    quat = quat * np.where(np.take_along_axis(quat, largest[:, None], -1) < 0, -1, 1)
    packed = largest.astype(np.uint32)
    for index in range(4):
        size = np.rint(511 * np.abs(quat[:, index]) * math.sqrt(2)).clip(0, 511).astype(np.uint32)
        field = (packed << np.uint32(10)) | (quat[:, index] < 0).astype(np.uint32) << np.uint32(9) | size
        packed = np.where(largest == index, packed, field)
    return packed.astype("<u4").reshape(-1, 1).view(np.uint8)


def _unpack_quats(data: UInt8[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    packed = np.ascontiguousarray(data).view("<u4")[:, 0].astype(np.uint32)
    largest = (packed >> np.uint32(30)).astype(np.int64)
    quat = np.zeros((len(packed), 4))
    for index in (3, 2, 1, 0):
        value = (packed & np.uint32(511)) / (511 * math.sqrt(2))
        value = np.where(packed & np.uint32(512), -value, value)
        quat[:, index] = np.where(largest == index, 0, value)
        packed = np.where(largest == index, packed, packed >> np.uint32(10))
    rest = np.sqrt(np.maximum(0, 1 - np.square(quat).sum(-1)))
    np.put_along_axis(quat, largest[:, None], rest[:, None], -1)
    return (quat * [*FLIP, 1.0])[:, [3, 0, 1, 2]]


def _unpack_first_three(data: UInt8[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4"]:
    xyz = data / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(-1, keepdims=True)))
    return np.concatenate([w, xyz * FLIP], axis=-1)
