"""`scenetx models`: what there is, what it costs, under which licence; and fetching it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenetx.models.hub import fetch, local_file, pinned
from scenetx.models.zoo import ZOO, Published, find


@dataclass(frozen=True)
class ModelRow:
    """A line of the list."""

    name: str
    kind: str
    megabytes: int
    licence: str
    here: bool


def list_models() -> list[ModelRow]:
    """Every published model that can be loaded, by kind and name."""
    entries = sorted(ZOO.values(), key=lambda entry: (entry.kind, entry.name))
    return [
        ModelRow(entry.name, entry.kind, entry.megabytes, entry.licence, local_file(entry).is_file())
        for entry in entries
    ]


def model_info(name: str) -> dict[str, str]:
    """All that is known of one model, in words."""
    entry = find(name)
    path = local_file(entry)
    use = "commercial use allowed" if entry.commercial else "not for commercial use"
    rows = {
        "name": entry.name,
        "kind": entry.kind,
        "source": f"https://huggingface.co/{entry.repo} ({entry.file})" if entry.repo else "not on the hub",
        "size": f"{entry.megabytes:,} MB",
        "licence": f"{entry.licence}, {use}",
        "paper": entry.paper,
        "file": str(path) if path.is_file() else _how_to_get(entry),
    }
    pin = pinned(entry)
    rows["revision"] = pin.revision or "pinned by the first fetch"
    rows["sha256"] = pin.sha256 or "recorded at the first fetch, checked at every load"
    if entry.note:
        rows["note"] = entry.note
    return rows


def fetch_model(name: str, *, accept_non_commercial: bool, report: Callable[[str, float], None] | None = None) -> Path:
    """Download a model's weights; see `scenetx.models.hub.fetch`."""
    return fetch(find(name), accept_non_commercial=accept_non_commercial, report=report)


def _fetch_words(entry: Published) -> str:
    return entry.name if entry.commercial else f"{entry.name} --accept-non-commercial"


def _how_to_get(entry: Published) -> str:
    return f"not here; scenetx models fetch {_fetch_words(entry)}" if entry.repo else "not here"
