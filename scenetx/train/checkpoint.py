"""Checkpoints: a folder of safetensors and JSON that appears whole, says which settings made it, and resumes exactly.

    checkpoints/step-00000500/model.safetensors      the weights, with the model's settings (`save_model` format)
                              average.safetensors    their moving average, where there is one
                              optimizer.safetensors  moments, one tensor a parameter
                              state.json             step, counters, all settings

Full tensors are written whatever the strategy was (one process, DDP, FSDP), so any other may go on from them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scenetx.config import to_dict
from scenetx.core import InputError
from scenetx.core.atomic import write_bytes, write_tensors
from scenetx.models.own import Stated, read_stated, write_own
from scenetx.models.stereo_splats import StereoSplats
from scenetx.models.weights import load_strictly, read_weights
from scenetx.train.pretrain import PREFIX, Pretraining
from scenetx.train.settings import TrainSettings

FORMAT = "scenetx-training-1"
MAY_CHANGE = frozenset({
    "name", "start_from", "accelerator", "strategy", "compile", "save_every", "keep", "log_every", "picture_every",
    "evaluate_every", "evaluate_scenes", "nan_limit", "seconds", "accumulate", "data.workers", "data.ahead",
    "data.path",
})  # fmt: skip
"""Settings that do not change what is learned, so that a run may go on with others."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: ``step`` steps are done."""

    step: int = 0
    skipped: int = 0
    """Steps left out: no finite loss or gradient, or a gradient far too large."""
    bad: int = 0
    """Of these, without a finite loss or gradient."""
    seconds: float = 0.0


@dataclass
class Trained:
    """What a checkpoint holds, as it lives in a run. ``average`` has the parameters' order."""

    module: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: list[Tensor]


def save_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, settings: TrainSettings) -> None:
    """Weights with the model's name and settings in the file; `open_view_model` and `find_geometry` read them."""
    size = (settings.data.height, settings.data.width)
    stated = Stated(settings.model, to_dict(getattr(settings, settings.model)), size, settings.name)
    known = set(model.state_dict(keep_vars=True))
    write_own(path, {k: v for k, v in tensors.items() if k in known}, stated)


def save(folder: Path, trained: Trained, settings: TrainSettings, progress: Progress, *, writes: bool) -> Path:
    """Write the checkpoint of a step; all processes call it, one ``writes``. Older ones beyond ``keep`` go."""
    model = trained.model
    weights = {name: whole(value) for name, value in model.state_dict(keep_vars=True).items()}
    names = [name for name, _ in model.named_parameters()]
    average = {name: whole(tensor) for name, tensor in zip(names, trained.average, strict=False)}
    moments = {
        f"{name}.{key}": whole(value)
        for name, parameter in model.named_parameters()
        for key, value in trained.optimizer.state.get(parameter, {}).items()
    }
    target = folder / f"step-{progress.step:08d}"
    if not writes:
        return target
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    save_model(model, weights, part / "model.safetensors", settings)
    if average:
        save_model(model, {**weights, **average}, part / "average.safetensors", settings)
    write_tensors(part / "optimizer.safetensors", moments, {"format": FORMAT})
    state = {"format": FORMAT, "progress": vars(progress), "settings": to_dict(settings)}
    write_bytes(part / "state.json", json.dumps(state, indent=1, default=str).encode())
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
    for old in found(folder)[: -settings.keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load(path: Path, trained: Trained, settings: TrainSettings) -> Progress:
    """Put a checkpoint into a run. Raises InputError for one of other settings, naming the first that differs."""
    state = _state(path)
    _same(to_dict(settings), state["settings"], path)
    weights = read_weights(path / "model.safetensors")
    expected = {name: tuple(value.shape) for name, value in trained.model.state_dict(keep_vars=True).items()}
    if {name: tuple(value.shape) for name, value in weights.items()} != expected:
        raise InputError(str(path), "holds the weights of another model", "choose another output folder")
    with torch.no_grad():
        for name, target in trained.model.state_dict(keep_vars=True).items():
            _put(target, weights[name])
        _put_moments(trained, read_weights(path / "optimizer.safetensors"), path)
        if trained.average:
            average = read_weights(path / "average.safetensors")
            for (name, _), mean in zip(trained.model.named_parameters(), trained.average, strict=True):
                _put(mean, average[name])
    return Progress(**state["progress"])


def start_from(path: Path, model: nn.Module) -> None:
    """Begin with the weights of a file (a checkpoint's, or a shipped one); a model of splats also with those of the
    geometry model that it asks. Raises InputError where they do not fit."""
    weights = read_weights(path)
    inside = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    if inside and not isinstance(model, Pretraining):
        weights = inside  # of a pretraining, whose other parts have done their work
    stated = read_stated(path)
    if isinstance(model, StereoSplats) and stated is not None and stated.model == "da3":
        model = model.da3  # the part that is asked; the others have nothing to begin with
    load_strictly(model, weights, str(path), torch.float32)


def _put_moments(trained: Trained, moments: Mapping[str, Tensor], path: Path) -> None:
    """Moments and counts into the optimizer; parameters that never had a gradient have none."""
    parameters = dict(trained.model.named_parameters())
    fused = any(group.get("fused") for group in trained.optimizer.param_groups)
    for full, value in moments.items():
        name, _, key = full.rpartition(".")
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            raise InputError(str(path), f"has moments of {name!r}, which the model does not fit", "delete it")
        parameter = parameters[name]
        if value.ndim == 0 and key == "step":
            kept = value.to(parameter.device) if fused else value
        else:
            kept = torch.zeros_like(parameter)
            _put(kept, value)
        trained.optimizer.state[parameter][key] = kept


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be shared out among processes."""
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather else tensor).detach().cpu()


def _put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be shared out among processes."""
    mesh = getattr(target, "device_mesh", None)
    if mesh is None:
        target.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    target.copy_(distribute_tensor(value.to(target.device), mesh, target.placements))


def _state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise InputError(str(path), f"format {state['format']!r}", "begin in another output folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), f"no checkpoint ({error})", "delete it; an older one is taken then") from error
    return state


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path, prefix: str = "") -> None:
    """Raises InputError for the first setting that differs and may not."""
    for key, value in ours.items():
        name = f"{prefix}{key}"
        if name in MAY_CHANGE or key not in theirs:
            continue  # a setting that an older version did not know was at its default
        other = theirs[key]
        if isinstance(value, dict) and isinstance(other, dict):
            _same(value, other, path, f"{name}.")
        elif json.loads(json.dumps(value, default=str)) != other:
            what = f"was begun with {name} = {other}, now {value}"
            raise InputError(str(path), what, "choose another output folder, or that value")
