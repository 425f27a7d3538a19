"""Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scenetx.core.errors import InputError


@contextmanager
def replacing_path(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place when the block ends well; else ``path`` stays as it was.

    Parent folders are made. A link stays: the file it leads to is replaced. A device or a named pipe stays too: what
    is finished is written into it. What the operating system refuses (full disk, no right to write) is an `InputError`.
    """
    path = Path(path)
    try:
        into = path.exists() and not path.is_file() and not path.is_dir()
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        if not into:
            target.parent.mkdir(parents=True, exist_ok=True)
        folder = None if into else target.parent
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name[:40]}.", suffix=".part")
    except OSError as error:
        raise _refused(path, error) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        if into:
            with part.open("rb") as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
        else:
            part.chmod(0o644)  # mkstemp makes files that only their owner can read
            part.replace(target)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """`replacing_path`, opened for writing bytes."""
    with replacing_path(path) as part, part.open("wb") as file:
        yield file


def write_bytes(path: str | Path, data: bytes) -> None:
    """`replacing`, for data that is at hand."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8; what UTF-8 cannot say (a file name in another encoding) becomes a question mark."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file. The tensors may live on any device, lie in any order and share memory."""
    # Parts of one tensor share memory, which the format refuses: each of those is copied.
    seen: set[int] = set()
    owned = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        start = flat.untyped_storage().data_ptr()
        owned[name] = flat.clone() if start in seen else flat
        seen.add(start)
    with replacing_path(path) as part:
        try:
            save_file(owned, part, metadata=dict(metadata))
        except SafetensorError as error:  # its text is that of the operating system
            raise InputError(str(path), f"cannot be written ({error})", "choose another folder") from error


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(
        str(path), f"cannot be written ({error.strerror or error})", "free space or choose another folder"
    )
