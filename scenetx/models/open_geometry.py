"""Geometry models by name or file: published ones, and those that were trained here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from scenetx.core import InputError
from scenetx.models import zoo
from scenetx.models.da3 import Da3Config
from scenetx.models.geometry_model import GeometryModel
from scenetx.models.own import Stated, open_own, read_stated, shipped
from scenetx.models.pictures import RULES, SizeRule


@dataclass(frozen=True)
class GeometrySource:
    """Which geometry model is meant. ``family``: the file that defines it; ``rule``: the sizes it takes."""

    name: str
    family: str
    rule: SizeRule
    megabytes: float
    weights: str
    stated: Stated | None = None
    """Of a file of our own; None = published."""

    def load(self, device: torch.device | str = "cpu") -> GeometryModel:
        """The model, ready to look (``eval``). Raises InputError as `scenetx.models.zoo.load_model` does."""
        if self.stated is None:
            module = zoo.load_model(self.name, self.weights, device=device)
        else:
            module = open_own(self.weights, self.stated, device)
        assert isinstance(module, GeometryModel)
        return module


def find_geometry(asked: str, weights: str | Path = "hub") -> GeometrySource:
    """The model of a name (``mini``: ours, of the package), or of a weight file (or a hub's folder) by what it says or
    holds; nothing is loaded yet.

    weights: see `scenetx.models.zoo.load_model`. Raises InputError for unknown names and files, and for models that
    make pictures.
    """
    if weights == "hub":
        asked = str(shipped(asked, "geometry") or asked)
    file = Path(asked if weights == "hub" and asked not in zoo.ZOO else weights)
    stated = read_stated(file)
    if stated is not None:
        if stated.model != "da3":
            raise InputError(str(file), f"a {stated.model} model: it makes pictures, not geometry", "give another file")
        return _own(file, stated)
    if asked not in zoo.ZOO and file.exists():
        asked, weights = zoo.identify(file, "geometry").name, str(file)
    entry = zoo.find(asked)
    if entry.kind != "geometry":
        raise InputError("model", asked, "it makes pictures, not geometry; see: scenetx models list")
    family = zoo.source_of(entry).__name__.rpartition(".")[2]
    return GeometrySource(asked, family, RULES[family], float(entry.megabytes), str(weights))


def _own(file: Path, stated: Stated) -> GeometrySource:
    """A file of our own takes pictures as large as those it learned from."""
    patch = stated.config(Da3Config()).patch
    rule = replace(RULES["da3"], patch=patch)
    if stated.size is not None:
        rule = replace(rule, longest=max(stated.size))
    megabytes = file.stat().st_size / 1e6
    return GeometrySource(stated.name or file.stem, "da3", rule, megabytes, str(file), stated)
