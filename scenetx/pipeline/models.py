"""`scenetx models`: what there is, what it costs, under which licence; and fetching it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scenetx.models.hub import fetch, local_file, pinned
from scenetx.models.own import read_stated, shipped
from scenetx.models.zoo import APACHE, ZOO, Published, find

VIEW = "view-synthesis"


@dataclass(frozen=True)
class ModelRow:
    """A line of the list."""

    name: str
    kind: str
    megabytes: int
    licence: str
    here: bool


def list_models() -> list[ModelRow]:
    """Every model that can be loaded, ours and published ones, by kind and name."""
    ours = (("mini-geometry", "geometry"), ("mini-view", VIEW), ("mini-splat", "splats"))
    rows = [ModelRow(name, kind, _megabytes(path), APACHE, here=True) for name, kind in ours if (path := shipped(name))]
    rows += [
        ModelRow(entry.name, entry.kind, entry.megabytes, entry.licence, local_file(entry).is_file())
        for entry in ZOO.values()
    ]
    return sorted(rows, key=lambda row: (row.kind, row.name))


def model_info(name: str) -> dict[str, str]:
    """All that is known of one model, in words."""
    ours = shipped(name)
    if ours is not None:
        return _info_of(ours)
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
    """Download a model's weights; see `scenetx.models.hub.fetch`. Those of the package are here already."""
    ours = shipped(name)
    if ours is not None:
        return ours
    return fetch(find(name), accept_non_commercial=accept_non_commercial, report=report)


def _megabytes(path: Path) -> int:
    return max(1, round(path.stat().st_size / 1e6))


def _info_of(path: Path) -> dict[str, str]:
    """What is known of a model of the package; the rest is in its card."""
    stated = read_stated(path)
    assert stated is not None
    return {
        "name": path.stem,
        "kind": {"da3": "geometry", "stereo_splats": "splats"}.get(stated.model, VIEW),
        "source": "ships with scenetx; trained here, on rendered scenes alone",
        "size": f"{_megabytes(path)} MB",
        "licence": f"{APACHE}, commercial use allowed",
        "looks at": "pictures of any size" if stated.size is None else f"{stated.size[1]} x {stated.size[0]} pixels",
        "file": str(path),
        "card": str(path.with_suffix(".md")),
    }


def _fetch_words(entry: Published) -> str:
    return entry.name if entry.commercial else f"{entry.name} --accept-non-commercial"


def _how_to_get(entry: Published) -> str:
    return f"not here; scenetx models fetch {_fetch_words(entry)}" if entry.repo else "not here"
