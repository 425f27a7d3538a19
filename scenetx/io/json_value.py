"""JSON that came from outside, read with its types checked: every complaint names the file and the key."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core import InputError

MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class JsonValue:
    """A value inside a JSON file and where it stands, for messages."""

    value: Any
    where: str

    def __contains__(self, key: str) -> bool:
        """True where the key is there and not null."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def __getitem__(self, key: str) -> JsonValue:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if key not in self.value:
            raise InputError(self.where, f"has no {key!r}", "add it, or write the file again")
        return JsonValue(self.value[key], f"{self.where}: {key}")

    def wrong(self, wanted: str) -> InputError:
        return InputError(self.where, f"is {str(self.value)[:60]!r}", f"make it {wanted}")

    def items(self) -> list[JsonValue]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [JsonValue(item, f"{self.where}[{index}]") for index, item in enumerate(self.value)]

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or "\0" in self.value:
            raise self.wrong("text")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("a number")
        try:
            number = float(self.value)
        except OverflowError:
            raise self.wrong("a number") from None
        if not math.isfinite(number):
            raise self.wrong("a finite number")
        return number

    def whole(self, low: int, high: int) -> int:
        """A whole number in [low, high]; written as 1080.0 it is fine too."""
        number = self.number()
        if number != int(number) or not low <= number <= high:
            raise self.wrong(f"a whole number from {low} to {high}")
        return int(number)

    def numbers(self) -> tuple[float, ...]:
        return tuple(item.number() for item in self.items())

    def matrix(self, rows: int, columns: int) -> Tensor:
        """A matrix of finite numbers, float64."""
        values = [row.numbers() for row in self.items()]
        if len(values) != rows or any(len(row) != columns for row in values):
            raise self.wrong(f"a {rows} x {columns} matrix")
        return torch.tensor(values, dtype=torch.float64)

    def pose(self) -> Float[Tensor, "4 4"]:
        """A rigid motion, float64."""
        matrix = self.matrix(4, 4)
        rotation = matrix[:3, :3]
        error = torch.dist(rotation.T @ rotation, torch.eye(3, dtype=torch.float64))
        if error > 1e-3 or torch.linalg.det(rotation) < 0 or not matrix[3].allclose(matrix.new_tensor([0, 0, 0, 1])):
            raise self.wrong("a camera pose (rotation and translation)")
        return matrix

    def lens(self) -> Float[Tensor, "3 3"]:
        """A camera matrix, float64, pixels."""
        K = self.matrix(3, 3)
        if not (K[0, 0] > 0 and K[1, 1] > 0) or not K[2].allclose(K.new_tensor([0, 0, 1])):
            raise self.wrong("a camera matrix with focal lengths above 0")
        return K

    def name(self) -> str:
        """A file name with forward slashes that stays inside the folder it is joined to."""
        name = self.text()
        if not is_inside(name):
            raise self.wrong("a file name inside the folder")
        return name


def is_inside(name: str) -> bool:
    """True where ``name`` is a relative path, with forward slashes, that cannot leave the folder it is joined to."""
    parts = name.split("/")
    clean = all(part not in ("", ".", "..") and not part.endswith((":", "\0")) for part in parts)
    return clean and "\\" not in name and ":" not in parts[0] and not PurePosixPath(name).is_absolute()


def read_json(path: str | Path) -> JsonValue:
    """The JSON object in a file.

    Raises:
        InputError: the file cannot be read, is not JSON, or holds no object.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(str(path), f"is {path.stat().st_size} bytes long", f"give JSON of at most {MAX_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(str(path), error.strerror or error, "give a JSON file that can be read") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), f"is not JSON ({error})", "give a JSON file that was written completely") from error
    root = JsonValue(value, str(path))
    root.mapping()
    return root


def to_json(value: object) -> bytes:
    """Readable JSON text. Numbers that are not finite become null, tensors and tuples lists, the rest its text.

    What UTF-8 cannot say (a file name in another encoding) becomes a question mark.
    """
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="replace")


def plain(value: object) -> Any:
    """The value in JSON's own types."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Tensor | np.ndarray):
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    return str(value)
