"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scenetx.core import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes ``path``'s place when the block ends well; else ``path`` stays as it was.

    Parent folders are made. What the operating system refuses (full disk, no right to write) is an `InputError`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    except OSError as error:
        raise _refused(path, error) from error
    part = Path(name)
    try:
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            part.chmod(0o644)  # mkstemp makes files that only their owner can read
            part.replace(path)
        except OSError as error:
            raise _refused(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """`replacing`, for data that is at hand."""
    with replacing(path) as file:
        file.write(data)


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(
        str(path), f"cannot be written ({error.strerror or error})", "free space or choose another folder"
    )
