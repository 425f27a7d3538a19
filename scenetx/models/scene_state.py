"""What a view-synthesis model keeps of a scene: an object that owns its memory and can be joined, cut, moved and saved.

A state is a value: joining and cutting give a new state and leave the old one alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.atomic import write_tensors
from scenetx.models.rays import Frame

FORMAT = "scenetx-state-1"


@dataclass(frozen=True)
class SceneState:
    """``scenes`` scenes of equally many views, encoded.

    ``sizes``: tokens of each view, in the order of the views. ``tokens``: what the encoder read,
    ``[b, sum(sizes), ...]``. ``poses``: one row a view, ``[b, views, ...]``. ``memory``: what the decoder reads; where
    ``separable``, its tensors are ``[b, heads, sum(sizes), ...]`` and a view's part depends on that view alone, so that
    views can be cut out and joined.
    ``made_by`` names the model and its weights; another model refuses the state.
    """

    made_by: str
    scenes: int
    frame: Frame
    sizes: tuple[int, ...]
    memory: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    poses: Mapping[str, Tensor] = field(default_factory=dict)
    separable: bool = False

    @property
    def views(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        kept = [*self.memory.values(), *self.tokens.values(), *self.poses.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def inputs_joined(self, other: SceneState) -> SceneState:
        """Both states' views; memory is joined where it is separable and otherwise left for the model to make."""
        if other.scenes != self.scenes:
            raise ValueError(f"scene state: {self.scenes} scenes cannot be joined with {other.scenes}")
        memory = _paired(self.memory, other.memory, 2) if self.separable else {}
        tokens, poses = _paired(self.tokens, other.tokens, 1), _paired(self.poses, other.poses, 1)
        return replace(self, sizes=self.sizes + other.sizes, memory=memory, tokens=tokens, poses=poses)

    def inputs_without(self, view: int) -> SceneState:
        """The state less one view; memory as in `inputs_joined`. Raises InputError for an unknown or the last view."""
        if not 0 <= view < self.views:
            raise InputError("scene state", f"view {view}", f"choose one of 0 to {self.views - 1}")
        if self.views == 1:
            raise InputError("scene state", "its only view cannot be dropped", "keep at least one")
        start = sum(self.sizes[:view])
        stop = start + self.sizes[view]
        memory = _map(self.memory, lambda x: _cut(x, 2, start, stop)) if self.separable else {}
        tokens = _map(self.tokens, lambda x: _cut(x, 1, start, stop))
        poses = _map(self.poses, lambda x: _cut(x, 1, view, view + 1))
        sizes = self.sizes[:view] + self.sizes[view + 1 :]
        return replace(self, sizes=sizes, memory=memory, tokens=tokens, poses=poses)

    def to(self, device: torch.device | str) -> SceneState:
        def move(x: Tensor) -> Tensor:
            return x.to(device)

        memory, tokens, poses = _map(self.memory, move), _map(self.tokens, move), _map(self.poses, move)
        return replace(self, frame=self.frame.to(device), memory=memory, tokens=tokens, poses=poses)

    def detach(self) -> SceneState:
        memory, tokens = _map(self.memory, Tensor.detach), _map(self.tokens, Tensor.detach)
        return replace(self, memory=memory, tokens=tokens, poses=_map(self.poses, Tensor.detach))

    def save(self, path: str | Path) -> Path:
        """One safetensors file, whole or not at all."""
        path = Path(path)
        header = {"format": FORMAT, "made_by": self.made_by, "scenes": self.scenes, "sizes": list(self.sizes)}
        tensors = {"frame/model_from_world": self.frame.model_from_world, "frame/scale": self.frame.scale}
        for group, values in (("memory", self.memory), ("tokens", self.tokens), ("poses", self.poses)):
            tensors |= {f"{group}/{name}": value for name, value in values.items()}
        write_tensors(path, tensors, {"state": json.dumps({**header, "separable": self.separable})})
        return path

    @staticmethod
    def load(path: str | Path, device: str = "cpu") -> SceneState:
        """A saved state. Raises InputError for a file that is not one, or of another version of the format."""
        try:
            with safe_open(path, framework="pt", device=device) as file:
                header = _header(str(path), file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration)
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), error, "name a file that SceneState.save wrote") from error
        groups: dict[str, dict[str, Tensor]] = {"frame": {}, "memory": {}, "tokens": {}, "poses": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            if group not in groups:
                raise InputError(str(path), f"tensor {name!r}", "name a file that SceneState.save wrote")
            groups[group][rest] = tensor
        frame = groups.pop("frame")
        scenes = header["scenes"]
        if {name: tuple(x.shape) for name, x in frame.items()} != {
            "model_from_world": (scenes, 4, 4),
            "scale": (scenes,),
        }:
            raise InputError(str(path), "no frame, or one of another number of scenes", "save the state again")
        state = SceneState(
            header["made_by"],
            scenes,
            Frame(frame["model_from_world"], frame["scale"]),
            tuple(header["sizes"]),
            separable=header["separable"],
            **groups,
        )
        _check_rows(str(path), state)
        return state


def _header(path: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        header = json.loads((metadata or {})["state"])
        version = header["format"]
        kinds = {"made_by": str, "scenes": int, "sizes": list, "separable": bool}
        sound = all(type(header[name]) is kind for name, kind in kinds.items())
        sound = sound and header["scenes"] > 0 and all(type(size) is int and size > 0 for size in header["sizes"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, "is not a saved scene state", "name a file that SceneState.save wrote") from error
    if version != FORMAT:
        raise InputError(path, f"format {version!r}", f"this version reads {FORMAT!r}: encode the views again")
    if not sound or not header["sizes"]:
        raise InputError(path, "its header is damaged", "encode the views again")
    return header


def _check_rows(path: str, state: SceneState) -> None:
    """Every tensor has the rows its header states."""
    total = sum(state.sizes)
    groups = [(state.tokens, 1, total), (state.poses, 1, state.views)]
    if state.separable:
        groups.append((state.memory, 2, total))
    for values, dim, rows in groups:
        for name, tensor in values.items():
            if tensor.ndim <= dim or tensor.shape[dim] != rows or len(tensor) != state.scenes:
                raise InputError(
                    path, f"{name} is {tuple(tensor.shape)}", f"expected {rows} rows: encode the views again"
                )


def _paired(a: Mapping[str, Tensor], b: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    return {name: torch.cat([value, b[name]], dim=dim) for name, value in a.items()}


def _cut(x: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """``x`` less rows ``start`` to ``stop``."""
    return torch.cat([x.narrow(dim, 0, start), x.narrow(dim, stop, x.shape[dim] - stop)], dim=dim)


def _map(values: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(value) for name, value in values.items()}
