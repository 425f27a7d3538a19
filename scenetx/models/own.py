"""Weight files of our own: safetensors that say which model they hold, its settings, and the size it learned at.

Some ship with the package, in ``shipped/``, each beside a card that says what it learned from and how good it is.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scenetx.config import load_settings
from scenetx.core import InputError
from scenetx.core.atomic import write_tensors
from scenetx.models.weights import load_strictly, read_weights

FORMAT = "scenetx-model-1"
SHIPPED = Path(__file__).parent / "shipped"
KINDS: Mapping[str, str] = {
    "da3": "Da3", "srt": "Srt", "rust": "Rust", "dyst": "Dyst", "lvsm": "Lvsm", "svsm": "Svsm", "gnt": "Gnt",
    "stereo_splats": "StereoSplats",
}  # fmt: skip
"""Short names and classes: `scenetx.models.NAME` holds CLASS and CLASSConfig."""
Config = TypeVar("Config")


@dataclass(frozen=True)
class Stated:
    """What such a file says of itself. ``model``: the class's short name (svsm, da3, ...), ``settings``: of its config.

    ``size``: height and width of the pictures it learned from, ``name``: of the recipe; where they are known.
    """

    model: str
    settings: Mapping[str, Any]
    size: tuple[int, int] | None = None
    name: str = ""

    def config(self, defaults: Config) -> Config:
        """The settings in a config dataclass. Raises InputError for unknown ones and wrong types."""
        return load_settings(defaults, overrides=_words(self.settings))


def write_own(path: str | Path, tensors: Mapping[str, Tensor], stated: Stated) -> Path:
    """The file, whole or not at all."""
    path = Path(path)
    write_tensors(path, tensors, {"scenetx": json.dumps({"format": FORMAT, **asdict(stated)})})
    return path


def read_stated(path: str | Path) -> Stated | None:
    """What a file says of itself; None for any other kind of weight file. Raises InputError for a broken one."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("scenetx")
        about = json.loads(text) if text else None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(str(path), "broken or truncated", "get it again") from error
    if about is None:
        return None
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("settings"), dict):
        raise InputError(str(path), "was written by another version", "save the model again")
    size: tuple[int, int] | None = None
    match about.get("size"):
        case [int(height), int(width)] if min(height, width) > 0:
            size = (height, width)
    return Stated(str(about.get("model")), about["settings"], size, str(about.get("name") or ""))


def build_own(stated: Stated) -> nn.Module:
    """The model that a file holds, with start values. Raises InputError for unknown models, settings and types."""
    if stated.model not in KINDS:
        raise InputError("model", repr(stated.model), f"use one of {', '.join(KINDS)}")
    module, name = importlib.import_module(f"scenetx.models.{stated.model}"), KINDS[stated.model]
    model = getattr(module, name)(stated.config(getattr(module, f"{name}Config")()))
    assert isinstance(model, nn.Module)
    return model


def open_own(path: str | Path, stated: Stated, device: torch.device | str = "cpu") -> nn.Module:
    """The model of such a file, ready to use (``eval``, float32). Raises InputError for weights that do not fit."""
    with torch.device("meta"):
        model = build_own(stated)
    load_strictly(model, read_weights(path), str(path), torch.float32)
    return model.to(device).eval()


def shipped(name: str, *kinds: Literal["geometry", "view", "splat"]) -> Path | None:
    """The weight file that comes with the package under a name (``mini-geometry``), or as ``mini`` the first of the
    kinds asked for; without any, of all."""
    for kind in kinds or ("geometry", "view", "splat"):
        path = SHIPPED / f"mini-{kind}.safetensors"
        if name in ("mini", path.stem) and path.is_file():
            return path
    return None


def _words(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as ``key=value`` words, which are checked against the config's types."""
    words = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            words += _words(value, f"{prefix}{key}.")
        elif is_dataclass(value):
            words += _words({entry.name: getattr(value, entry.name) for entry in fields(value)}, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={'none' if value is None else json.dumps(value)}")
    return words
