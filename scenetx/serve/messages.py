"""What the viewer page and its server say to each other: one truth, from which `viewer/src/messages.ts` is written.

A message travels as one binary frame: the header's length (uint32, little-endian), the header (JSON in UTF-8), then the
bytes of its ``bytes`` fields, which the header names by ``{"$bytes": [offset, length]}``. A static page holds the same
frames in base64. World frame, camera axes and matrices are those of `scenetx.core`; matrices are row by row.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union

from scenetx.core import InputError

Vector = tuple[float, float, float]
Matrix = tuple[float, ...]
Level = Literal["info", "warning", "error"]
Status = Literal["starting", "tracking", "weak", "lost", "done"]

MAX_REQUEST_BYTES = 1 << 16


@dataclass(frozen=True)
class ViewInfo:
    """A registered picture. ``lens`` is fx, fy, cx, cy in pixels of the ``width`` x ``height`` picture."""

    name: str
    world_from_cam: Matrix
    lens: tuple[float, float, float, float]
    width: int
    height: int
    held_out: bool
    thumbnail: bytes
    """JPEG; empty = none."""
    photo: str
    """Address relative to the page; empty = it comes as a `PhotoData`, or not at all."""
    psnr: float | None = None


@dataclass(frozen=True)
class SceneInfo:
    """What the scene is. ``center`` and ``radius``: a sphere around what the cameras look at, in world units."""

    title: str
    up: Vector
    center: Vector
    radius: float
    views: tuple[ViewInfo, ...]
    splats: int
    points: int
    editable: bool = False
    """The server takes `Similarity` messages; a static page offers a file instead."""
    rendered: bool = False
    """The server renders the pictures (`CameraRequest` -> `Picture`)."""
    live: bool = False


@dataclass(frozen=True)
class SplatData:
    """All splats as a file, the most important first, so that a budget is a prefix."""

    count: int
    antialiased: bool
    format: Literal["spz", "ply"]
    data: bytes


@dataclass(frozen=True)
class PointData:
    """The point cloud: float32 positions, 8-bit colours and confidence (255 = best), each in the points' order."""

    count: int
    positions: bytes
    colors: bytes
    confidence: bytes


@dataclass(frozen=True)
class PhotoData:
    """The photo of the view ``name``, JPEG."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Progress:
    """A stage of a running reconstruction. ``remaining``: seconds to go, when that can be said."""

    stage: str
    title: str
    fraction: float
    message: str
    seconds: float
    remaining: float | None = None
    finished: bool = False


@dataclass(frozen=True)
class Curve:
    """The whole training curve so far (thinned), so that the newest message is enough."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]
    psnr_steps: tuple[int, ...]
    psnr: tuple[float, ...]
    total: int
    """Steps of the whole run."""
    splats: int


@dataclass(frozen=True)
class Track:
    """Live tracking: the newest frame, the whole trajectory (float32 xyz) and keyframe poses (float32, 16 each)."""

    frame: int
    seconds: float
    status: Status
    message: str
    world_from_cam: Matrix | None
    lens: tuple[float, float, float, float]
    width: int
    height: int
    picture: bytes
    """JPEG; empty = none."""
    trajectory: bytes
    keyframes: bytes


@dataclass(frozen=True)
class Picture:
    """An answer to a `CameraRequest`: JPEG."""

    request: int
    width: int
    height: int
    data: bytes


@dataclass(frozen=True)
class Notice:
    """A sentence for the person who looks."""

    level: Level
    text: str


@dataclass(frozen=True)
class CameraRequest:
    """The browser's camera. ``moving``: a quick small picture is better now than a good one."""

    request: int
    world_from_cam: Matrix
    lens: tuple[float, float, float, float]
    width: int
    height: int
    moving: bool


@dataclass(frozen=True)
class Similarity:
    """The scene's new frame: x_new = scale * rotation @ x_old + translation."""

    scale: float
    rotation: Matrix
    """3 x 3."""
    translation: Vector


FromServer = SceneInfo | SplatData | PointData | PhotoData | Progress | Curve | Track | Picture | Notice
FromPage = CameraRequest | Similarity


def key_of(message: FromServer) -> str:
    """Messages of equal key replace each other in every queue: only the newest is of interest."""
    return f"PhotoData {message.name}" if isinstance(message, PhotoData) else type(message).__name__


def encode(message: FromServer | FromPage) -> bytes:
    """The binary frame of a message. Numbers that are not finite become null."""
    blobs: list[bytes] = []
    offset = 0

    def plain(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, bytes):
            place = [offset, len(value)]
            blobs.append(value)
            offset += len(value)
            return {"$bytes": place}
        if is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    header = {"type": type(message).__name__, **plain(message)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", errors="replace")
    return len(text).to_bytes(4, "little") + text + b"".join(blobs)


def decode_request(frame: bytes) -> CameraRequest | Similarity:
    """A page's message. Raises InputError for anything but a well-formed one: the other end may be anybody."""
    if not 4 <= len(frame) <= MAX_REQUEST_BYTES:
        raise InputError("message", f"{len(frame)} bytes", "send a message of the viewer")
    length = int.from_bytes(frame[:4], "little")
    try:
        header = json.loads(frame[4 : 4 + length])
    except (ValueError, RecursionError) as error:
        raise InputError("message", "is no JSON", "send a message of the viewer") from error
    kinds: dict[str, Callable[..., Any]] = {kind.__name__: kind for kind in typing.get_args(FromPage)}
    if not isinstance(header, dict) or header.get("type") not in kinds:
        raise InputError("message", "has no known type", f"send one of {', '.join(kinds)}")
    kind: Any = kinds[header["type"]]
    hints = typing.get_type_hints(kind)
    return kind(**{name: _checked(header.get(name), hint, name) for name, hint in hints.items()})


def _checked(value: Any, hint: Any, name: str) -> Any:
    """The JSON value as the annotated type, or an InputError."""
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        items = typing.get_args(hint)
        if items[-1] is Ellipsis and len(value) <= 16:
            return tuple(_checked(item, items[0], name) for item in value)
        if len(items) == len(value):
            return tuple(_checked(item, each, name) for item, each in zip(value, items, strict=True))
    raise InputError(f"message field {name}", repr(value)[:40], "send a message of the viewer")


def typescript() -> str:
    """The TypeScript side of this file; a test checks that ``viewer/src/messages.ts`` is equal to it."""
    lines = ["// Written by scripts/build-viewer from scenetx/serve/messages.py. Do not edit.", ""]
    kinds: list[type] = [ViewInfo, *typing.get_args(FromServer), *typing.get_args(FromPage)]
    for kind in kinds:
        lines.append(f"export interface {kind.__name__} {{")
        if kind is not ViewInfo:
            lines.append(f'  readonly type: "{kind.__name__}";')
        for name, hint in typing.get_type_hints(kind).items():
            lines.append(f"  readonly {name}: {_typescript(hint)};")
        lines += ["}", ""]
    for name, union in (("FromServer", FromServer), ("FromPage", FromPage)):
        lines.append(f"export type {name} = {' | '.join(kind.__name__ for kind in typing.get_args(union))};")
    return "\n".join([*lines, ""])


def _typescript(hint: Any) -> str:
    plain = {
        str: "string",
        int: "number",
        float: "number",
        bool: "boolean",
        bytes: "Uint8Array",
        types.NoneType: "null",
    }
    if hint in plain:
        return plain[hint]
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(json.dumps(item) for item in items)
    if origin is tuple and items[-1] is Ellipsis:
        return f"readonly {_typescript(items[0])}[]"
    if origin is tuple:
        return f"readonly [{', '.join(map(_typescript, items))}]"
    if origin in (Union, types.UnionType):
        return " | ".join(map(_typescript, items))
    if is_dataclass(hint) and isinstance(hint, type):
        return hint.__name__
    raise TypeError(f"no TypeScript for {hint}")
