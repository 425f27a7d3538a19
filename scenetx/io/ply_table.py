"""PLY files as tables: the header, and numpy structured arrays of what it lists. Knows nothing about splats."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scenetx.core import InputError
from scenetx.core.atomic import replacing

logger = logging.getLogger(__name__)

MAX_HEADER = 1 << 18  # bytes; real headers stay under 8 KiB
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
NAMES = {"u1": "uchar", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}


@dataclass(frozen=True)
class Ply:
    """The fixed-width elements of a PLY file, and its comments."""

    comments: tuple[str, ...]
    elements: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    columns: tuple[tuple[str, str], ...]  # name and numpy type without byte order
    has_list: bool


@dataclass(frozen=True)
class _Header:
    form: str  # "ascii", "<" or ">"
    comments: tuple[str, ...]
    elements: tuple[_Element, ...]


def read_ply(path: str | Path) -> Ply:
    """The tables of a PLY file: ascii, binary little or big endian, PLY 1.0 (Turk, 1994).

    Elements from the first one with a list property on (faces of a mesh) are left out, since their rows have no
    fixed width. Counts are held against the file's size before anything is allocated.

    Raises:
        InputError: not a PLY file, a malformed or oversized header, fewer bytes than the header promises.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            left = os.fstat(file.fileno()).st_size - file.tell()
            tables = _read_ascii(path, file, header, left) if header.form == "ascii" else {}
            if header.form != "ascii":
                tables = _read_binary(path, file, header, left)
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give a PLY file that can be read") from error
    return Ply(header.comments, tables)


def write_ply(path: str | Path, tables: Mapping[str, np.ndarray], comments: tuple[str, ...] = ()) -> None:
    """Structured arrays (fields of 1-byte unsigned, 4-byte integer or float types) as a binary little-endian PLY."""
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {text}" for text in comments)]
    for element, table in tables.items():
        lines.append(f"element {element} {len(table)}")
        assert table.dtype.names is not None
        lines += [f"property {NAMES[table.dtype[name].str[1:]]} {name}" for name in table.dtype.names]
    lines.append("end_header\n")
    with replacing(path) as file:
        file.write("\n".join(lines).encode("ascii"))
        for table in tables.values():
            file.write(np.ascontiguousarray(table).astype(table.dtype.newbyteorder("<"), copy=False).tobytes())


def _bad(path: Path, value: object) -> InputError:
    return InputError(str(path), value, "give a PLY file that was written completely")


def _read_header(path: Path, file: BinaryIO) -> _Header:
    start = file.read(MAX_HEADER)
    if not start.startswith((b"ply\n", b"ply\r")):
        raise InputError(str(path), f"does not start with 'ply' but with {start[:8]!r}", "give a PLY file")
    end = start.find(b"\nend_header")
    stop = start.find(b"\n", end + 1) if end >= 0 else -1
    if stop < 0 or start[end + 11 : stop].strip():
        raise _bad(path, f"has no end_header in its first {MAX_HEADER} bytes")
    file.seek(stop + 1)
    form, comments, elements = "", [], []
    for line in start[:end].decode("latin-1").splitlines()[1:]:
        words = line.split()
        if not words:
            continue
        if words[0] in ("comment", "obj_info"):
            comments.append(line.split(None, 1)[1] if len(words) > 1 else "")
        elif words[0] == "format":
            form = {"ascii": "ascii", "binary_little_endian": "<", "binary_big_endian": ">"}.get(
                "".join(words[1:2]), ""
            )
        elif words[0] == "element" and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 16:
            elements.append(_Element(words[1], int(words[2]), (), False))
        elif words[0] == "property" and elements:
            elements[-1] = _with_property(path, elements[-1], words[1:])
        else:
            raise _bad(path, f"header line {line[:60]!r} is not understood")
    if not form:
        raise _bad(path, "header names no format (ascii, binary_little_endian or binary_big_endian)")
    if len({element.name for element in elements}) < len(elements):
        raise _bad(path, "header lists an element twice")
    return _Header(form, tuple(comments), tuple(elements))


def _with_property(path: Path, element: _Element, words: list[str]) -> _Element:
    if len(words) == 4 and words[0] == "list":
        return _Element(element.name, element.count, element.columns, True)
    if len(words) != 2 or words[0] not in TYPES:
        raise _bad(path, f"property {' '.join(words)[:60]!r} of element {element.name[:30]!r} is not understood")
    if words[1] in dict(element.columns):
        raise _bad(path, f"property {words[1][:30]!r} of element {element.name[:30]!r} is listed twice")
    return _Element(element.name, element.count, (*element.columns, (words[1], TYPES[words[0]])), element.has_list)


def _truncated(path: Path, element: _Element, needed: int, left: int) -> InputError:
    return _bad(path, f"is truncated: {element.count} x {element.name[:30]} need {needed} bytes, {left} are left")


def _read_binary(path: Path, file: BinaryIO, header: _Header, left: int) -> dict[str, np.ndarray]:
    tables = {}
    for element in header.elements:
        if element.has_list:
            break
        dtype = np.dtype([(name, header.form + kind) for name, kind in element.columns])
        needed = element.count * dtype.itemsize
        if needed > left:
            raise _truncated(path, element, needed, left)
        if dtype.itemsize == 0:
            continue
        table = np.fromfile(file, dtype, element.count)
        if len(table) != element.count:
            raise _truncated(path, element, needed, table.nbytes)
        tables[element.name] = table.astype(dtype.newbyteorder("="), copy=False)
        left -= needed
    return tables


def _read_ascii(path: Path, file: BinaryIO, header: _Header, left: int) -> dict[str, np.ndarray]:
    tables: dict[str, np.ndarray] = {}
    wanted = [element for element in header.elements if element.columns and not element.has_list]
    # The shortest value is one digit and one blank, so a count that the file cannot hold is seen before reading.
    for element in wanted:
        needed = 2 * element.count * len(element.columns) - 1
        if needed > left:
            raise _truncated(path, element, needed, left)
    words: list[Any] = file.read().split()
    for element in header.elements:
        if element.has_list:
            break
        total = element.count * len(element.columns)
        if total > len(words):
            raise _bad(
                path, f"is truncated: {element.count} x {element.name[:30]} need {total} values, not {len(words)}"
            )
        try:
            values = np.array(words[:total], dtype="S").astype(np.float64)
        except ValueError as error:
            raise _bad(path, f"holds something that is not a number ({error})") from error
        table = np.empty(element.count, [(name, "=" + kind) for name, kind in element.columns])
        with np.errstate(all="ignore"):
            for index, (name, _) in enumerate(element.columns):
                table[name] = values[index :: len(element.columns)]
        if element.columns:
            tables[element.name] = table
        words = words[total:]
    return tables
