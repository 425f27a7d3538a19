"""Weight files on this machine, and the one place that goes online for them: when a person asks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scenetx.core import InputError
from scenetx.core.atomic import write_text

if TYPE_CHECKING:
    from scenetx.models.zoo import Published


def weights_folder() -> Path:
    """Where fetched files live: ``$SCENETX_WEIGHTS``, or ``~/.cache/scenetx/weights``."""
    given = os.environ.get("SCENETX_WEIGHTS")
    return Path(given) if given else Path.home() / ".cache" / "scenetx" / "weights"


def local_file(entry: Published) -> Path:
    """Where the file of a published model lies once fetched (whether it is there or not)."""
    return weights_folder() / entry.repo.replace("/", "--") / entry.file


def find_local(entry: Published) -> Path:
    """The fetched file, which still is what was fetched (`verify`).

    Raises InputError that says how to get it, or that it has changed; never goes online.
    """
    path = local_file(entry)
    if not path.is_file() and not entry.repo:
        raise InputError(f"{entry.name}: weights", "not on the hub", entry.note)
    if not path.is_file():
        what = f"{entry.name}: weights ({entry.megabytes:,} MB, {entry.licence})"
        flag = "" if entry.commercial else " --accept-non-commercial"
        raise InputError(what, "not on this machine", f"get them with: scenetx models fetch {entry.name}{flag}")
    verify(entry, path)
    return path


def fetch(
    entry: Published,
    *,
    accept_non_commercial: bool = False,
    report: Callable[[str, float], None] | None = None,
) -> Path:
    """Download a published model's file (once) and give its path.

    The revision is the entry's, or that of the first fetch: it is written beside the file together with its sha256, and
    a later fetch asks for the same. A file that does not have its sha256 is refused, then and at every load. Raises
    InputError for non-commercial weights without ``accept_non_commercial``, for a missing ``huggingface_hub``, and for
    what the hub answers.
    """
    if not entry.repo:
        raise InputError(f"{entry.name}: weights", "not on the hub", entry.note)
    if not entry.commercial and not accept_non_commercial:
        what = f"{entry.name}: licence {entry.licence}"
        raise InputError(what, "not for commercial use", "add --accept-non-commercial if your use is not commercial")
    path = local_file(entry)
    if path.is_file():
        verify(entry, path)
        return path
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as error:
        raise InputError("huggingface_hub", "not installed", "pip install huggingface_hub") from error
    if report:
        report(f"{entry.repo}/{entry.file}, {entry.megabytes:,} MB, licence {entry.licence}", 0.0)
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        revision = pinned(entry).revision or HfApi().model_info(entry.repo).sha
        hf_hub_download(entry.repo, entry.file, revision=revision, local_dir=folder)
    except Exception as error:  # without a network it is one of the http client, which differs between versions
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{entry.repo}/{entry.file}", reason, "check the network, or give a local file") from error
    verify(entry, path, revision)
    if report:
        report(str(path), 1.0)
    return path


@dataclass(frozen=True)
class Pin:
    """Which file a published model's is: the hub's revision and the sha256, as far as they are known."""

    revision: str | None = None
    sha256: str | None = None


def pinned(entry: Published) -> Pin:
    """The entry's own, else what the first fetch (or the first use of a file that was put there) wrote down."""
    noted: object = None
    with contextlib.suppress(OSError, ValueError):  # no note yet, or one that says nothing
        noted = json.loads(_note(entry).read_text())
    said = noted if isinstance(noted, dict) else {}
    values = {key: value for key in ("revision", "sha256") if isinstance(value := said.get(key), str)}
    return Pin(entry.revision or values.get("revision"), entry.sha256 or values.get("sha256"))


def verify(entry: Published, path: Path, revision: str | None = None) -> None:
    """Raises InputError when the file is not the one that was published, or not the one first seen here.

    Where no sha256 is known yet, this file's is written down beside it, if that can be written.
    """
    pin, found = pinned(entry), sha256_of(path)
    if pin.sha256 is None:
        with contextlib.suppress(OSError):  # a folder of weights may be for reading only
            write_text(_note(entry), json.dumps({"revision": revision or pin.revision, "sha256": found}, indent=1))
    elif found != pin.sha256:
        what = f"sha256 is {found[:16]}..., not {pin.sha256[:16]}... as first seen"
        note = _note(entry).name
        raise InputError(str(path), what, f"delete it and fetch again (with {note} too, if a new one is meant)")


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(entry: Published) -> Path:
    path = local_file(entry)
    return path.with_name(path.name + ".json")
