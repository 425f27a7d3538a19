"""View-synthesis models by name or file: our own files say what they are, published ones are told by their tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scenetx.config import to_dict
from scenetx.core import InputError
from scenetx.models import zoo
from scenetx.models.dyst import Dyst, DystConfig
from scenetx.models.gnt import Gnt, GntConfig
from scenetx.models.lvsm import Lvsm, LvsmConfig
from scenetx.models.own import Stated, read_stated, write_own
from scenetx.models.rust import Rust, RustConfig
from scenetx.models.srt import Srt, SrtConfig
from scenetx.models.svsm import Svsm, SvsmConfig
from scenetx.models.view_model import ViewModel
from scenetx.models.weights import load_strictly, read_weights

log = logging.getLogger(__name__)

CLASSES: Mapping[str, tuple[type[ViewModel], type]] = {
    "srt": (Srt, SrtConfig),
    "rust": (Rust, RustConfig),
    "dyst": (Dyst, DystConfig),
    "lvsm": (Lvsm, LvsmConfig),
    "svsm": (Svsm, SvsmConfig),
    "gnt": (Gnt, GntConfig),
}
ALIASES = {"lvsm": "lvsm-decoder-only-256", "svsm": "svsm-27m", "srt": "srt-msn"}


def build_view_model(kind: str, settings: Mapping[str, Any]) -> ViewModel:
    """The model of a class name and its settings. Raises InputError for an unknown name, setting or type of value."""
    if kind not in CLASSES:
        raise InputError("view-synthesis model", repr(kind), f"use one of {', '.join(CLASSES)}")
    make, config = CLASSES[kind]
    return make(Stated(kind, settings).config(config()))  # type: ignore[call-arg]


def save_view_model(model: ViewModel, path: str | Path) -> Path:
    """Weights and settings in one safetensors file, whole or not at all."""
    return write_own(path, model.state_dict(), Stated(model.name, to_dict(model.config)))


def open_view_model(name: str | Path, device: str = "cpu") -> ViewModel:
    """A model ready to paint: a name of the zoo (``lvsm``, ``svsm``, ``srt``, ..), our own file, or a published one.

    Raises InputError for a name or file that is none of these, for weights that are not on this machine, and for models
    of another kind.
    """
    path = Path(name)
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


def _own(path: Path) -> ViewModel | None:
    """A file of `save_view_model`; None for any other kind of weight file."""
    stated = read_stated(path)
    if stated is None:
        return None
    with torch.device("meta"):
        model = build_view_model(stated.model, stated.settings)
    load_strictly(model, read_weights(path), str(path), None)
    return model


def _published(path: Path) -> nn.Module:
    """A published checkpoint, told by its tensors' names and shapes."""
    entry = zoo.identify(path, "view-synthesis")
    model = zoo.load_model(entry.name, path)
    _show_licence(entry)
    return model


def _show_licence(entry: zoo.Published) -> None:
    if not entry.commercial:
        log.warning("%s: its weights are under %s, not for commercial use", entry.name, entry.licence)
