"""Gaussians as binary glTF 2.0 with the extension KHR_gaussian_splatting: written exactly, read from any writer.

Source: the extension's text, github.com/KhronosGroup/glTF. Early drafts keep logarithms of scales, later ones and the
programs in use (three.js, splat-transform) the scales themselves: that is written, and both are read.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from scenetx.core import Gaussians, InputError, Sim3
from scenetx.core.atomic import replacing
from scenetx.core.rigid import rotation_from_quat
from scenetx.io.json_value import JsonValue
from scenetx.io.ply import drop_broken

EXTENSION = "KHR_gaussian_splatting"
MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
MOST_JSON = 1 << 24
SIZES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
KINDS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
AGAIN = "give a .glb file that was written completely"
# glTF is y up, z back: half a turn about x, its own inverse.
TURNED = Sim3(
    1.0, torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)), torch.zeros(3, dtype=torch.float64)
)


def write_gltf_splats(gaussians: Gaussians, path: str | Path) -> None:
    """The Gaussians as .glb in float32; coordinates are ``diag(1, -1, -1) @ x_world`` (glTF's y is up), nothing scaled.

    Viewers without the extension show coloured points. The antialiasing mark goes into the primitive's ``extras``.

    Raises:
        InputError: there are no Gaussians (glTF has no empty accessor), or the file cannot be written.
    """
    gaussians = drop_broken(gaussians.detach().to("cpu").to(torch.float64), str(path))
    if not len(gaussians):
        raise InputError(str(path), "there are no splats to write", "reconstruct the scene first")
    antialiased = gaussians.antialiased
    gaussians = gaussians.transformed(TURNED)
    quats = torch.nn.functional.normalize(gaussians.quats, dim=-1)[:, [1, 2, 3, 0]]
    color = torch.cat([gaussians.rgb, gaussians.opacities.clamp(0, 1)[:, None]], dim=-1)
    attributes: dict[str, np.ndarray] = {
        "POSITION": gaussians.means.float().numpy(),
        "COLOR_0": (255 * color).round().byte().numpy(),
        f"{EXTENSION}:ROTATION": quats.float().numpy(),
        f"{EXTENSION}:SCALE": gaussians.scales.float().numpy(),
        f"{EXTENSION}:OPACITY": gaussians.opacities.clamp(0, 1).float()[:, None].numpy(),
    }
    for degree in range(gaussians.sh_degree + 1):
        for index in range(2 * degree + 1):
            name = f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}"
            attributes[name] = gaussians.sh[:, degree**2 + index].float().numpy()
    document, blobs = _document(attributes, antialiased)
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    size = document["buffers"][0]["byteLength"]
    with replacing(path) as file:
        file.write(struct.pack("<IIIII", MAGIC, 2, 28 + len(text) + size, len(text), JSON_CHUNK) + text)
        file.write(struct.pack("<II", size, BIN_CHUNK))
        for blob in blobs:
            file.write(blob)


def read_gltf_splats(path: str | Path) -> Gaussians:
    """All Gaussians (float32) of a .glb file in its default scene, nodes applied, in y-down z-forward axes.

    Raises:
        InputError: no .glb, truncated, without the extension, compressed by a further extension, numbers that leave
            their buffer, or a node that is no similarity.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give a .glb file that can be read") from error
    document, blob = _chunks(path, data)
    file = _File(path, document, blob)
    parts = [file.gaussians(primitive).transformed(world) for primitive, world in file.primitives()]
    if not parts:
        raise InputError(str(path), f"has no primitive with {EXTENSION}", "give a .glb file of Gaussian splats")
    degree = max(part.sh.shape[1] for part in parts)
    filled = [
        Gaussians(p.means, p.quats, p.scales, p.opacities, _padded(p.sh, degree), parts[0].antialiased) for p in parts
    ]
    return drop_broken(Gaussians.cat(filled).transformed(TURNED).to(torch.float32), str(path))


def _document(attributes: dict[str, np.ndarray], antialiased: bool) -> tuple[dict[str, Any], list[bytes]]:
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    offset = 0
    for name, values in attributes.items():
        blob = np.ascontiguousarray(values).tobytes()  # rows are 4, 12 or 16 bytes: aligned as they are
        kind = {4: "VEC4", 3: "VEC3", 1: "SCALAR"}[values.shape[1]]
        accessor: dict[str, Any] = {"bufferView": len(views), "componentType": 5126, "count": len(values), "type": kind}
        if values.dtype == np.uint8:
            accessor |= {"componentType": 5121, "normalized": True}
        if name == "POSITION":
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(blob), "target": 34962})
        accessors.append(accessor)
        blobs.append(blob)
        offset += len(blob)
    details = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective"}
    primitive: dict[str, Any] = {
        "mode": 0,
        "attributes": {name: index for index, name in enumerate(attributes)},
        "extensions": {EXTENSION: {**details, "sortingMethod": "cameraDistance"}},
    }
    if antialiased:
        primitive["extras"] = {"antialiased": True}
    document = {
        "asset": {"version": "2.0", "generator": "scenetx"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "splats"}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": offset}],
        "bufferViews": views,
        "accessors": accessors,
    }
    return document, blobs


def _chunks(path: Path, data: bytes) -> tuple[JsonValue, bytes]:
    if len(data) < 20 or struct.unpack_from("<II", data) != (MAGIC, 2):
        raise InputError(str(path), f"is no binary glTF 2.0 (it starts with {data[:8]!r})", "give a .glb file")
    total, length, kind = struct.unpack_from("<III", data, 8)
    if total > len(data) or kind != JSON_CHUNK or length > MOST_JSON or 20 + length > len(data):
        raise InputError(str(path), f"is truncated: {len(data)} of {max(total, 20 + length)} bytes", AGAIN)
    try:
        document = JsonValue(json.loads(data[20 : 20 + length]), str(path))
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"its JSON cannot be read ({error})", AGAIN) from error
    document.mapping()
    at = 20 + length
    if len(data) < at + 8:
        return document, b""
    size, kind = struct.unpack_from("<II", data, at)
    if kind != BIN_CHUNK or at + 8 + size > len(data):
        raise InputError(str(path), f"is truncated: {len(data) - at - 8} of {size} bytes of numbers", AGAIN)
    return document, data[at + 8 : at + 8 + size]


class _File:
    """A glTF document and its one buffer; every number in it is checked before it is used."""

    def __init__(self, path: Path, document: JsonValue, blob: bytes) -> None:
        self.path, self.document, self.blob = path, document, blob

    def item(self, kind: str, index: JsonValue) -> JsonValue:
        items = self.document[kind].items()
        return items[index.whole(0, len(items) - 1)]

    def primitives(self) -> list[tuple[JsonValue, Sim3]]:
        """Every splat primitive with its world transform, parents first."""
        root = Sim3.identity()
        scene = self.item("scenes", self.document["scene"] if "scene" in self.document else JsonValue(0, "scene"))
        todo = [(index, root) for index in (scene["nodes"].items() if "nodes" in scene else [])]
        found, seen = [], set()
        while todo:
            index, parent = todo.pop(0)
            if index.value in seen:
                raise InputError(
                    index.where, f"is node {index.value} again", "give every node one parent, as glTF asks"
                )
            node = self.item("nodes", index)
            seen.add(index.value)
            world = parent @ self.transform(node)
            todo += [(child, world) for child in (node["children"].items() if "children" in node else [])]
            for primitive in self.item("meshes", node["mesh"])["primitives"].items() if "mesh" in node else []:
                if "extensions" in primitive and EXTENSION in primitive["extensions"]:
                    found.append((primitive, world))
        return found

    def transform(self, node: JsonValue) -> Sim3:
        """A node's transform; raises InputError where it is no similarity, since a splat cannot be sheared."""
        if "matrix" in node:
            numbers = node["matrix"].numbers()
            if len(numbers) != 16:
                raise node["matrix"].wrong("16 numbers")
            matrix = torch.tensor(numbers, dtype=torch.float64).view(4, 4).T
        else:
            shift, quat, size = (
                self.vector(node, name, default)
                for name, default in (
                    ("translation", (0.0, 0.0, 0.0)),
                    ("rotation", (0.0, 0.0, 0.0, 1.0)),
                    ("scale", (1.0, 1.0, 1.0)),
                )
            )
            matrix = torch.eye(4, dtype=torch.float64)
            matrix[:3, :3] = rotation_from_quat(quat[[3, 0, 1, 2]]) * size
            matrix[:3, 3] = shift
        scale = float(matrix[:3, :3].det()) ** (1 / 3) if matrix[:3, :3].det() > 0 else 0.0
        rotation = matrix[:3, :3] / scale if scale > 0 else matrix[:3, :3]
        if scale <= 0 or not torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-4):
            raise InputError(node.where, "moves splats by something that is no similarity", "apply it, then export")
        return Sim3(scale, rotation, matrix[:3, 3].clone())

    def vector(self, node: JsonValue, name: str, default: tuple[float, ...]) -> torch.Tensor:
        numbers = node[name].numbers() if name in node else default
        if len(numbers) != len(default):
            raise node[name].wrong(f"{len(default)} numbers")
        return torch.tensor(numbers, dtype=torch.float64)

    def gaussians(self, primitive: JsonValue) -> Gaussians:
        details = primitive["extensions"][EXTENSION]
        if "extensions" in details and details["extensions"].mapping():
            packing = ", ".join(details["extensions"].mapping())[:80]
            raise InputError(str(self.path), f"holds splats packed with {packing}", "export without compression")
        where = primitive["attributes"]
        means, quats, scales, alpha = (
            self.numbers(where[name])
            for name in ("POSITION", *(f"{EXTENSION}:{part}" for part in ("ROTATION", "SCALE", "OPACITY")))
        )
        if bool((scales <= 0).any()):  # a standard deviation is above 0: these are logarithms (early drafts)
            with np.errstate(over="ignore"):
                scales = np.exp(scales)
        rest = []
        for degree in range(4):
            names = [f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}" for index in range(2 * degree + 1)]
            if degree and names[0] not in where:
                break
            rest += [self.numbers(where[name]) for name in names]
        counts = {len(part) for part in (means, quats, scales, alpha, *rest)}
        widths = {means.shape[1], scales.shape[1], *(part.shape[1] for part in rest)}
        if len(counts) != 1 or widths != {3} or quats.shape[1] != 4 or alpha.shape[1] != 1:
            raise InputError(where.where, f"differ in length or kind ({sorted(counts)} rows)", AGAIN)
        antialiased = "extras" in primitive and isinstance(primitive["extras"].value, dict)
        antialiased = antialiased and primitive["extras"].mapping().get("antialiased") is True
        arrays = [torch.from_numpy(part) for part in (means, quats[:, [3, 0, 1, 2]], scales, alpha[:, 0])]
        sh = torch.from_numpy(np.stack(rest, axis=1))
        return Gaussians(arrays[0], arrays[1], arrays[2], arrays[3], sh, antialiased)

    def numbers(self, index: JsonValue) -> Float[np.ndarray, "n c"]:
        """An accessor's values, float64; normalised integers in [-1, 1] or [0, 1]."""
        accessor = self.item("accessors", index)
        if "sparse" in accessor or "bufferView" not in accessor:
            raise InputError(accessor.where, "is sparse or empty", "export with plain accessors")
        view = self.item("bufferViews", accessor["bufferView"])
        kind = KINDS.get(accessor["componentType"].whole(0, 1 << 16))
        width = SIZES.get(accessor["type"].text())
        if kind is None or width is None:
            raise InputError(accessor.where, "has a component type or type that splats do not use", AGAIN)
        dtype = np.dtype(kind)
        count = accessor["count"].whole(1, 1 << 32)
        start = sum(part["byteOffset"].whole(0, 1 << 40) for part in (accessor, view) if "byteOffset" in part)
        stride = view["byteStride"].whole(1, 252) if "byteStride" in view else dtype.itemsize * width
        end = start + (count - 1) * stride + dtype.itemsize * width
        inline = view["buffer"].whole(0, 1 << 16) == 0 and "uri" not in self.item("buffers", view["buffer"])
        if end > len(self.blob) or not inline or stride < dtype.itemsize * width:
            raise InputError(accessor.where, f"needs {end} bytes of the file's {len(self.blob)}", AGAIN)
        raw = np.ndarray((count, width), dtype, self.blob, start, (stride, dtype.itemsize))
        values = raw.astype(np.float64)
        if "normalized" in accessor and accessor["normalized"].flag() and dtype.kind != "f":
            values = np.maximum(values / np.iinfo(dtype).max, -1)
        return values


def _padded(sh: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([sh, sh.new_zeros(len(sh), length - sh.shape[1], 3)], dim=1)
