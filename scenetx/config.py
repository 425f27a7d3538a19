"""Settings: defaults live in dataclasses, a TOML file and ``key=value`` words hold only what differs."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from scenetx.core import InputError

Settings = TypeVar("Settings")


def load_settings(defaults: Settings, *, file: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """``defaults`` with a TOML file's differences, then ``key=value`` overrides, applied.

    Nested dataclasses are reached by tables or dotted keys (``fit.steps=2000``). An unknown key or a value of the wrong
    type is an `InputError` that names it and the nearest known key; so are inf and nan where the default is finite.
    Values of overrides are TOML; a bare word is text.
    """
    settings = defaults
    if file is not None:
        settings = _merge(settings, _read_toml(Path(file)), where=str(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError("setting", override, "write it as key=value, for example fit.steps=2000")
        nested: Any = _value(text.strip())
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        settings = _merge(settings, nested, where="command line")
    return settings


def to_dict(settings: Any) -> dict[str, Any]:
    """A dataclass as plain TOML/JSON values."""
    out: dict[str, Any] = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            out[entry.name] = to_dict(value)
        elif isinstance(value, tuple):
            out[entry.name] = list(value)
        else:
            out[entry.name] = str(value) if isinstance(value, Path) else value
    return out


def in_range(what: str, settings: Any, low: float, high: float, *names: str) -> None:
    """Raises InputError for the first named field that is not in [low, high]; None passes, inf and NaN never do."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (low <= value <= high and value < math.inf):
            limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise InputError(f"{what} {name}", value, f"give a number {limits}")


def check_device(what: str, name: str) -> None:
    """Raises InputError for a device that torch does not know, or that is not on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(what, name, "use cpu or cuda") from error
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if device.type == "cuda" else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= there.get(device.type, 0):
        raise InputError(what, f"{name} is not on this machine", "use cpu (scenetx doctor says what is here)")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), error.strerror, "name a TOML file that can be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), error, "mend the TOML at that place") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _merge(settings: Any, changes: Mapping[str, Any], *, where: str) -> Any:
    hints = typing.get_type_hints(type(settings))
    names = [entry.name for entry in dataclasses.fields(settings)]
    new: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
            raise InputError(where, f"unknown setting {key!r}", advice)
        current = getattr(settings, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise InputError(where, f"{key} = {value!r}", "it is a table: set the keys inside it")
            new[key] = _merge(current, value, where=where)
        else:
            new[key] = _checked(key, value, hints[key], where)
            if not _finite(new[key]) and _finite(current):
                raise InputError(where, f"{key} = {value!r}", "give a finite number")
    try:
        return dataclasses.replace(settings, **new)
    except InputError:
        raise
    except ValueError as error:  # what the dataclass itself has to say of its values: "value; what to do"
        value, _, advice = str(error).partition("; ")
        raise InputError(where, value, advice or "correct it") from error


def _finite(value: Any) -> bool:
    """Whether no number in it is inf or nan."""
    items = value if isinstance(value, tuple) else (value,)
    return all(math.isfinite(item) for item in items if isinstance(item, float))


def _checked(key: str, value: Any, hint: Any, where: str) -> Any:
    """``value`` as the type ``hint`` or an `InputError`. TOML arrays serve tuples, whole numbers serve floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        raise InputError(where, f"{key} = {value!r}", f"choose one of {', '.join(map(str, arguments))}")
    if origin in (typing.Union, types.UnionType):
        if value == "none" and type(None) in arguments:
            return None
        for argument in arguments:
            try:
                return _checked(key, value, argument, where)
            except InputError:
                continue
    elif origin is tuple and isinstance(value, list):
        inner = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
        if len(inner) == len(value):
            return tuple(_checked(key, item, of, where) for item, of in zip(value, inner, strict=True))
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise InputError(where, f"{key} = {value!r}", f"give a value of type {name}")
