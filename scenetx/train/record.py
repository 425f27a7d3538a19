"""What a run leaves to look at: metrics.jsonl, TensorBoard where it is installed, sample pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.atomic import replacing, write_bytes


class Record:
    """Metrics of a run, one JSON object a line. Going on from a step drops the lines after it."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._path = folder / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        kept = [line for line in lines if _step(line) <= step]
        write_bytes(self._path, "".join(f"{line}\n" for line in kept).encode())
        self._board = _board(folder, step)

    def write(self, step: int, **values: Any) -> None:
        """Append a line. Raises InputError when the disk is full."""
        plain = {name: round(value, 7) if isinstance(value, float) else value for name, value in values.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **plain}) + "\n")
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise InputError(str(self._path), what, "free space; the same command goes on") from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def pictures(self, step: int, rows: list[list[Float[Tensor, "h w 3"]]]) -> Path:
        """One PNG of rows of pictures."""
        lines = [np.concatenate([_bytes(tile) for tile in row], 1) for row in rows]
        width = max(line.shape[1] for line in lines)
        lines = [np.pad(line, ((0, 2), (0, width - line.shape[1]), (0, 0))) for line in lines]
        path = self.folder / "pictures" / f"step-{step:08d}.png"
        with replacing(path) as file:
            Image.fromarray(np.concatenate(lines)).save(file, "PNG")
        return path

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _bytes(picture: Float[Tensor, "h w 3"]) -> np.ndarray:
    return (picture.detach().float().cpu().clamp(0, 1) * 255 + 0.5).numpy().astype(np.uint8)


def _step(line: str) -> int:
    """A line's step; a torn last line belongs to no step that was kept."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
