"""The published models by name: configuration, file on the hub, size, licence; and the one way to load them."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from scenetx.core import InputError
from scenetx.models.hub import find_local
from scenetx.models.own import open_own, read_stated, shipped
from scenetx.models.weights import SUFFIXES, fill_bare, load_strictly, read_layout, read_weights

Kind = Literal["geometry", "view-synthesis", "splats"]
APACHE = "Apache-2.0"
CC_NC = "CC BY-NC 4.0"


@dataclass(frozen=True)
class Published:
    """A published checkpoint. ``module`` is "module:Class"; its file holds ``PRESETS[preset]`` and ``from_published``.

    ``from_published(state) -> state`` maps the published keys to the module's. ``revision`` and ``sha256`` None: pinned
    by the first fetch. ``megabytes`` is the file's size in float32.
    """

    name: str
    kind: Kind
    module: str
    preset: str
    repo: str
    file: str
    megabytes: int
    licence: str
    commercial: bool
    paper: str
    note: str = ""
    revision: str | None = None
    sha256: str | None = None


def _da3(size: str, megabytes: int, *, commercial: bool, version: str = "", note: str = "") -> Published:
    licence = APACHE if commercial else CC_NC
    name, repo = f"da3-{size}{version}", f"depth-anything/DA3-{size.upper()}{version}"
    if size == "giant":
        note = f"{note}; splat head not loaded".removeprefix("; ")
    module = "scenetx.models.da3:Da3"
    paper = "arXiv 2511.10647"
    return Published(
        name, "geometry", module, size, repo, "model.safetensors", megabytes, licence, commercial, paper, note
    )


def _geometry(name: str, module: str, preset: str, repo: str, megabytes: int, licence: str, paper: str) -> Published:
    commercial = licence == APACHE
    where = f"scenetx.models.{module}"
    return Published(name, "geometry", where, preset, repo, "model.safetensors", megabytes, licence, commercial, paper)


def _lvsm(kind: str, side: int, file: str, megabytes: int) -> Published:
    licence, note = "CC BY-NC-SA 4.0", f"trained on RealEstate10K at {side} x {side}"
    module, paper = "scenetx.models.lvsm:Lvsm", "arXiv 2410.17242"
    name, repo = f"lvsm-{kind}-{side}", "coast01/LVSM"
    return Published(
        name, "view-synthesis", module, kind, repo, file, megabytes, licence, commercial=False, paper=paper, note=note
    )


def _unhosted(
    name: str, module: str, preset: str, megabytes: int, paper: str, note: str, licence: str = APACHE
) -> Published:
    """Nothing to fetch: weights that are given as a file, or trained here."""
    where, file = f"scenetx.models.{module}", f"{name}.safetensors"
    return Published(
        name, "view-synthesis", where, preset, "", file, megabytes, licence, commercial=True, paper=paper, note=note
    )


SRT_NOTE = "its authors hand it out on the page of stelzner/srt: download it there and give the file"
RETRAINED = "retrained by its authors after a fault in training was mended"
UNTRAINED = "no weights are published: train it, or give a file"

ENTRIES = (
    _da3("small", 137, commercial=True),
    _da3("base", 541, commercial=True),
    _da3("large", 1644, commercial=False, version="-1.1", note=RETRAINED),
    _da3("giant", 5423, commercial=False, version="-1.1", note=RETRAINED),
    _da3("large", 1644, commercial=False, note="its authors prefer da3-large-1.1"),
    _da3("giant", 5423, commercial=False, note="its authors prefer da3-giant-1.1"),
    _geometry("pi3", "pi3:Pi3", "released", "yyfz233/Pi3", 3835, CC_NC, "arXiv 2507.13347"),
    _geometry("pi3x", "pi3x:Pi3x", "released", "yyfz233/Pi3X", 5440, CC_NC, "arXiv 2507.13347"),
    _geometry("vggt", "vggt:Vggt", "1b", "facebook/VGGT-1B", 5026, CC_NC, "arXiv 2503.11651"),
    _geometry(
        "mapanything",
        "mapanything:MapAnything",
        "1.1",
        "facebook/map-anything-apache",
        4914,
        APACHE,
        "arXiv 2509.13414",
    ),
    _geometry(
        "mapanything-nc", "mapanything:MapAnything", "1.1", "facebook/map-anything", 4914, CC_NC, "arXiv 2509.13414"
    ),
)
VIEW_SYNTHESIS = (
    _lvsm("decoder-only", 256, "scene_decoder_only_256.pt", 684),
    _lvsm("encoder-decoder", 256, "scene_encoder_decoder_256.pt", 692),
    _lvsm("decoder-only", 512, "lvsm_scene_decoder_only_res512.pt", 684),
    _lvsm("encoder-decoder", 512, "lvsm_scene_encoder_decoder_res512.pt", 692),
    _unhosted("srt-msn", "srt:Srt", "msn", 296, "arXiv 2111.13152", SRT_NOTE, "MIT"),
    _unhosted("isrt-msn", "srt:Srt", "isrt", 164, "arXiv 2206.06922", SRT_NOTE, "MIT"),
    _unhosted("svsm-27m", "svsm:Svsm", "27m", 102, "arXiv 2507.10496", UNTRAINED),
    _unhosted("svsm-27m-stream", "svsm:Svsm", "27m-stream", 102, "arXiv 2507.10496", UNTRAINED),
    _unhosted("svsm-79m", "svsm:Svsm", "79m", 302, "arXiv 2507.10496", UNTRAINED),
    _unhosted("rust", "rust:Rust", "msn", 330, "arXiv 2211.14306", UNTRAINED),
    _unhosted("dyst", "dyst:Dyst", "dyso", 470, "arXiv 2310.06020", UNTRAINED),
    _unhosted("gnt-move", "gnt:Gnt", "move", 7, "arXiv 2308.11793", UNTRAINED),
)
SPLATS = (
    Published(
        "mvp",
        "splats",
        "scenetx.models.mvp:Mvp",
        "960x540",
        "Gynjn/MVP",
        "mvp.pt",
        965,
        "MIT",
        True,
        "arXiv 2512.07806",
        "posed pictures to Gaussians; trained on DL3DV at 960 x 540",
    ),
)
ZOO: dict[str, Published] = {entry.name: entry for entry in (*ENTRIES, *VIEW_SYNTHESIS, *SPLATS)}


def find(name: str) -> Published:
    """The entry of a name. Raises InputError that lists the names, or says what is meant."""
    entry = ZOO.get(name)
    if entry is None:
        raise unknown_model(name, ZOO, f"use one of {', '.join(sorted(ZOO))}")
    return entry


def unknown_model(asked: str, known: Collection[str], do: str) -> InputError:
    """The error for what is none of the ``known`` names: a file that is not there, a slip of the pen, or ``do``."""
    if "/" in asked or asked.endswith(SUFFIXES):
        return InputError(asked, "no such file", "give a weight file that is there, or a name of: scenetx models list")
    near = difflib.get_close_matches(asked, known, 1, 0.8)
    return InputError("model", asked, f"did you mean {near[0]}? Or {do}" if near else do)


def load_model(
    name: str,
    weights: str | Path | Mapping[str, Tensor] | None = "hub",
    *,
    init: bool = True,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A published model, or one that ships with the package, ready to use (``eval``).

    weights: "hub" = the fetched file of this name (never downloads: `scenetx models fetch`); another hub name
    ("owner/repo" that was fetched for an entry here); a path; a state dict with the published keys; None = no weights:
    ``init`` True draws start values for training, False leaves zeros and costs nothing.
    dtype: of the weights, None = as in the file. Raises InputError for unknown names, and for weights that do not fit,
    naming the missing and unexpected keys.
    """
    ours = shipped(name) if weights == "hub" else None
    stated = read_stated(ours) if ours else None
    if ours and stated:
        return open_own(ours, stated, device).to(dtype=dtype)
    entry = find(name)
    if weights is None and init:
        return build(name).to(device=device, dtype=dtype).eval()
    module = build(name, meta=True)
    if weights is None:
        fill_bare(module)
        return module.to(device=device, dtype=dtype).eval()
    if isinstance(weights, Mapping):
        state, what = dict(weights), f"weights for {name}"
    else:
        path = resolve(entry, weights)
        state, what = read_weights(path), str(path)
    load_strictly(module, source_of(entry).from_published(state), what, dtype)
    return module.to(device).eval()


def build(name: str, *, meta: bool = False) -> nn.Module:
    """The module with start values, or without any memory on the meta device."""
    entry = find(name)
    module = source_of(entry)
    config = module.PRESETS[entry.preset]
    with torch.device("meta" if meta else "cpu"):
        return getattr(module, entry.module.partition(":")[2])(config)


def resolve(entry: Published, weights: str | Path) -> Path:
    """The file that is meant: the entry's own, another fetched one by its hub name, or a path."""
    if weights == "hub":
        return find_local(entry)
    if Path(weights).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(weights)):
        return Path(weights)
    for other in ZOO.values():
        if other.repo.lower() == str(weights).lower():
            return find_local(other)
    return Path(weights)


def source_of(entry: Published) -> ModuleType:
    """The file that defines the model."""
    return importlib.import_module(entry.module.partition(":")[0])


def identify(path: Path, kind: Kind) -> Published:
    """The published model whose tensors a weight file holds, told by names and shapes alone. Raises InputError.

    Several names may share a layout (licences differ, tensors do not); the first listed is given.
    """
    state = read_layout(path)
    entries = [entry for entry in ZOO.values() if entry.kind == kind]
    for entry in entries:
        module = build(entry.name, meta=True)
        ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}
        if {name: tuple(tensor.shape) for name, tensor in source_of(entry).from_published(state).items()} == ours:
            return entry
    known = ", ".join(entry.name for entry in entries)
    raise InputError(str(path), f"{len(state)} tensors of no model known here", f"known: {known}")
