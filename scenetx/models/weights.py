"""Weight files: read strictly, without ever running code from them."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from scenetx.core import InputError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".safetensors.index.json"
SHOWN = 4


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor of a ``.safetensors`` file, or of a ``.pt`` that holds nothing but tensors.

    A folder as the hub lays it out (``model.safetensors``, or shards and their ``.safetensors.index.json``), or the
    index itself, is read as one. A ``.pt`` is unpickled by torch's restricted reader: one with code in it is refused.
    Raises InputError for a file that is missing, truncated, of another kind, or that holds no tensors.
    """
    path = Path(path)
    if shards := shards_of(path):
        return {name: tensor for shard in shards for name, tensor in read_weights(shard).items()}
    if not path.is_file():
        raise InputError(str(path), "no such file", "give a weight file, or fetch one with: scenetx models fetch NAME")
    if path.suffix not in SUFFIXES:
        raise InputError(str(path), f"unknown suffix {path.suffix!r}", f"give one of {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(str(path), f"broken or truncated ({error})", "fetch it again") from error
    try:
        with warnings.catch_warnings():
            # torch warns of old pickle protocols; what it cannot read safely is an error below.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = "holds more than tensors (code is never run from weight files)"
        raise InputError(str(path), reason, "convert it to safetensors where you trust it") from error
    except Exception as error:  # a broken pickle ends in nearly any error there is
        reason = f"broken or truncated ({str(error) or type(error).__name__})"[:200]
        raise InputError(str(path), reason, "fetch it again") from error
    return tensors_of(content, str(path))


def read_layout(path: str | Path) -> dict[str, Tensor]:
    """`read_weights` without the data: names and shapes, on the meta device. Gigabytes are not read for a question."""
    path = Path(path)
    if shards := shards_of(path):
        return {name: tensor for shard in shards for name, tensor in read_layout(shard).items()}
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 (no iteration)
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), f"broken or truncated ({error})", "fetch it again") from error
    return {name: tensor.to("meta") for name, tensor in read_weights(path).items()}


def shards_of(path: Path) -> list[Path]:
    """The files that hold the weights of a folder in the hub's layout, or of its index; none for a plain file.

    Raises InputError for an index that is broken or that names files elsewhere, and for a folder without weights.
    """
    if path.is_dir():
        whole = path / "model.safetensors"
        found = [whole] if whole.is_file() else sorted(path.glob(f"*{INDEX}"))
        if len(found) != 1:
            do = "give a folder with model.safetensors, or with shards and their index, or give the file itself"
            raise InputError(str(path), f"{len(found)} sets of weights in it", do)
        return found if found[0] == whole else shards_of(found[0])
    if not (path.name.endswith(INDEX) and path.is_file()):
        return []
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(str(path), f"broken index ({type(error).__name__})", "fetch it again") from error
    # Another machine's file says what to open: only its neighbours may be opened.
    bad = [
        name
        for name in names
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors")
    ]
    if bad or not names:
        raise InputError(str(path), f"names {bad[0]!r}" if bad else "names no files", "fetch it again")
    return [path.with_name(name) for name in names]


def tensors_of(content: object, what: str) -> dict[str, Tensor]:
    """The state dict in what a file held: itself, or under the customary names."""
    for name in ("ema", "model", "state_dict", "net"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if isinstance(content, Mapping) and all(isinstance(content.get(part), Mapping) for part in ("encoder", "decoder")):
        # Two state dicts in one file (SRT): the entries' names lead.
        content = {f"{part}.{name}": value for part in ("encoder", "decoder") for name, value in content[part].items()}
    if not isinstance(content, Mapping):
        raise InputError(what, f"holds a {type(content).__name__}", "give a file with a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(what, "holds no tensors", "give a file with a state dict")
    return tensors


def renamed(tensors: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors that a training script of LVSM's family saved, under our names (theirs, ours: parts of a name, replaced
    in order); what wraps the model is taken off and the loss network's tensors are left behind."""
    out = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        if name.startswith("loss_computer."):
            continue
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        out[name] = tensor
    return out


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str, dtype: torch.dtype | None) -> None:
    """Put tensors into a module that was built on the meta device or anywhere else; every key must fit.

    dtype: of floating tensors; None keeps the file's. Raises InputError that names missing, unexpected and misshapen
    keys.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    said = [
        f"{kind} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if names
    ]
    if said:
        raise InputError(what, f"does not fit the model: {'; '.join(said)}", "give the file of this very model")
    cast = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    module.load_state_dict(cast, strict=True, assign=True)


def fill_bare(module: nn.Module) -> None:
    """Give the meta tensors of a module memory that holds zeros: right shapes, no start values, no time."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
                part.register_parameter(name, nn.Parameter(zeros, requires_grad=parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_meta:
                raise ValueError(f"buffer {name!r} of {type(part).__name__} must be made on the CPU: it has no file")
