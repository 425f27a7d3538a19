"""View-synthesis models by name or file: our own files say what they are, published ones are told by their tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scenetx.config import to_dict
from scenetx.core import InputError
from scenetx.models import zoo
from scenetx.models.own import Stated, build_own, open_own, read_stated, shipped, write_own
from scenetx.models.view_model import ViewModel

log = logging.getLogger(__name__)

PAINTERS = ("srt", "rust", "dyst", "lvsm", "svsm", "gnt")
ALIASES = {"lvsm": "lvsm-decoder-only-256", "svsm": "svsm-27m", "srt": "srt-msn"}


def build_view_model(kind: str, settings: Mapping[str, Any]) -> ViewModel:
    """The model of a class name and its settings. Raises InputError for an unknown name, setting or type of value."""
    if kind not in PAINTERS:
        raise InputError("view-synthesis model", repr(kind), f"use one of {', '.join(PAINTERS)}")
    model = build_own(Stated(kind, settings))
    assert isinstance(model, ViewModel)
    return model


def save_view_model(model: ViewModel, path: str | Path) -> Path:
    """Weights and settings in one safetensors file, whole or not at all."""
    return write_own(path, model.state_dict(), Stated(model.name, to_dict(model.config)))


def open_view_model(name: str | Path, device: str = "cpu") -> ViewModel:
    """A model ready to paint: a name of the zoo (``lvsm``, ``svsm``, ``srt``, ..), ``mini`` (ours, of the package), our
    own file, or a published one.

    Raises InputError for a name or file that is none of these, for weights that are not on this machine, and for models
    of another kind.
    """
    path = shipped(str(name), "view") or Path(name)
    if path.is_file():
        model: nn.Module = _own(path) or _published(path)
    else:
        entry = zoo.find(ALIASES.get(str(name), str(name)))
        if entry.kind != "view-synthesis":
            raise InputError("model", str(name), f"is a {entry.kind} model; use one of {', '.join(view_models())}")
        model = zoo.load_model(entry.name, device=device)
        _show_licence(entry)
    if not isinstance(model, ViewModel):
        raise InputError("model", str(name), "does not paint views")
    return model.to(device).eval()


def view_models() -> list[str]:
    """Names of the zoo's view-synthesis models."""
    return sorted(name for name, entry in zoo.ZOO.items() if entry.kind == "view-synthesis")


def _own(path: Path) -> nn.Module | None:
    """A file of `save_view_model`; None for any other kind of weight file."""
    stated = read_stated(path)
    return None if stated is None else open_own(path, stated)


def _published(path: Path) -> nn.Module:
    """A published checkpoint, told by its tensors' names and shapes."""
    entry = zoo.identify(path, "view-synthesis")
    model = zoo.load_model(entry.name, path)
    _show_licence(entry)
    return model


def _show_licence(entry: zoo.Published) -> None:
    if not entry.commercial:
        log.warning("%s: its weights are under %s, not for commercial use", entry.name, entry.licence)
