"""View-synthesis models by name or file: our own files say what they are, published ones are told by their tensors."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from scenetx.config import load_settings, to_dict
from scenetx.core import InputError
from scenetx.core.atomic import write_tensors
from scenetx.models import zoo
from scenetx.models.dyst import Dyst, DystConfig
from scenetx.models.gnt import Gnt, GntConfig
from scenetx.models.lvsm import Lvsm, LvsmConfig
from scenetx.models.rust import Rust, RustConfig
from scenetx.models.srt import Srt, SrtConfig
from scenetx.models.svsm import Svsm, SvsmConfig
from scenetx.models.view_model import ViewModel
from scenetx.models.weights import load_strictly, read_weights

log = logging.getLogger(__name__)

FORMAT = "scenetx-model-1"
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
    return make(load_settings(config(), overrides=_overrides(settings)))  # type: ignore[call-arg]


def save_view_model(model: ViewModel, path: str | Path) -> Path:
    """Weights and settings in one safetensors file, whole or not at all."""
    path = Path(path)
    about = {"format": FORMAT, "model": model.name, "settings": to_dict(model.config)}
    write_tensors(path, model.state_dict(), {"scenetx": json.dumps(about)})
    return path


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
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("scenetx")
        about = json.loads(stated) if stated else None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(str(path), "broken or truncated", "get it again") from error
    if about is None:
        return None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("settings"), dict):
        raise InputError(str(path), "was written by another version", "save the model again")
    with torch.device("meta"):
        model = build_view_model(str(about.get("model")), about["settings"])
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


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as ``key=value`` words, which are checked against the config's types."""
    words = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            words += _overrides(value, f"{prefix}{key}.")
        elif is_dataclass(value):
            words += _overrides({entry.name: getattr(value, entry.name) for entry in fields(value)}, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={'none' if value is None else json.dumps(value)}")
    return words
