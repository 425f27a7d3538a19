"""Weight files on this machine, and the one place that goes online for them: when a person asks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scenetx.core import InputError
from scenetx.core.atomic import write_text

if TYPE_CHECKING:
    from scenetx.models.zoo import Published

CHUNK = 1 << 22


def weights_folder() -> Path:
    """Where fetched files live: ``$SCENETX_WEIGHTS``, or ``~/.cache/scenetx/weights``."""
    given = os.environ.get("SCENETX_WEIGHTS")
    return Path(given) if given else Path.home() / ".cache" / "scenetx" / "weights"


def local_file(entry: Published) -> Path:
    """Where the file of a published model lies once fetched (whether it is there or not)."""
    return weights_folder() / entry.repo.replace("/", "--") / entry.file


def find_local(entry: Published) -> Path:
    """The fetched file. Raises InputError that says how to get it; never goes online."""
    path = local_file(entry)
    if not path.is_file() and not entry.repo:
        raise InputError(f"{entry.name}: weights", "not on the hub", entry.note)
    if not path.is_file():
        what = f"{entry.name}: weights ({entry.megabytes:,} MB, {entry.licence})"
        flag = "" if entry.commercial else " --accept-non-commercial"
        raise InputError(what, "not on this machine", f"get them with: scenetx models fetch {entry.name}{flag}")
    return path


def fetch(
    entry: Published,
    *,
    accept_non_commercial: bool = False,
    report: Callable[[str, float], None] | None = None,
) -> Path:
    """Download a published model's file (once) and give its path.

    The revision is the entry's, or the one of the first fetch, which is written beside the file together with its
    sha256; a file that no longer has its sha256 is refused. Raises InputError for non-commercial weights without
    ``accept_non_commercial``, for a missing ``huggingface_hub``, and for what the hub answers.
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
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError("huggingface_hub", "not installed", "pip install huggingface_hub") from error
    if report:
        report(f"{entry.repo}/{entry.file}, {entry.megabytes:,} MB, licence {entry.licence}", 0.0)
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        revision = entry.revision or HfApi().model_info(entry.repo).sha
        got = Path(hf_hub_download(entry.repo, entry.file, revision=revision, local_dir=folder))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{entry.repo}/{entry.file}", reason, "check the network, or give a local file") from error
    _write_note(path, {"revision": revision, "sha256": sha256_of(got)})
    verify(entry, path)
    if report:
        report(str(path), 1.0)
    return path


def verify(entry: Published, path: Path) -> None:
    """Raises InputError when the file is not the one that was published (or first fetched)."""
    note = path.with_name(path.name + ".json")
    expected = entry.sha256
    if expected is None and note.is_file():
        expected = json.loads(note.read_text()).get("sha256")
    if expected is None:
        return
    found = sha256_of(path)
    if found != expected:
        raise InputError(str(path), f"sha256 is {found[:16]}..., not {expected[:16]}...", "delete it and fetch again")


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _write_note(path: Path, note: dict[str, object]) -> None:
    write_text(path.with_name(path.name + ".json"), json.dumps(note, indent=1))
