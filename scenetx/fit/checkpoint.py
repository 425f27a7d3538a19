"""A fit's state on disk: one safetensors file, written atomically, that says which fit it belongs to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from scenetx.core import Scene
from scenetx.core.atomic import write_tensors
from scenetx.fit.settings import FitSettings

log = logging.getLogger(__name__)
_VERSION = "2"
# These change how a fit is run, not what it computes.
_WITHOUT_EFFECT = ("checkpoint_seconds", "eval_interval", "eval_views", "max_bad_steps")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and numbers of one moment between two steps."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]


def fingerprint(scene: Scene, settings: FitSettings) -> str:
    """A hash of everything the fit depends on: pixels, masks, cameras, points, first Gaussians, settings."""
    digest = hashlib.sha256(_VERSION.encode())
    kept = {name: value for name, value in asdict(settings).items() if name not in _WITHOUT_EFFECT}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    digest.update(scene.posed_by.encode())
    for view in scene.training:
        assert view.camera is not None
        digest.update(f"{view.name} {view.cutout}".encode())
        for tensor in (view.image, view.mask, view.camera.world_from_cam, view.camera.K):
            _add(digest, tensor)
    for held in scene.held_out:
        digest.update(held.name.encode())
    if scene.points is not None:
        _add(digest, scene.points.positions)
        _add(digest, scene.points.colors)
    if scene.gaussians is not None:
        for name in ("means", "quats", "scales", "opacities", "sh"):
            _add(digest, getattr(scene.gaussians, name))
    return digest.hexdigest()


def _add(digest: hashlib._Hash, tensor: Tensor | None) -> None:
    digest.update(b"none" if tensor is None else str((tensor.dtype, tuple(tensor.shape))).encode())
    if tensor is not None:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)


def write_checkpoint(path: Path, checkpoint: Checkpoint, owner: str) -> None:
    """Replace ``path`` in one step; an interruption leaves the earlier file."""
    write_tensors(path, checkpoint.tensors, {"owner": owner, "numbers": json.dumps(dict(checkpoint.numbers))})


def read_checkpoint(path: Path, owner: str) -> Checkpoint | None:
    """The checkpoint when it is whole and belongs to ``owner``; otherwise None, and a line in the log that says why."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("owner") != owner:
                log.warning("%s is of other pictures or settings; the fit starts over", path)
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(tensors, json.loads(metadata["numbers"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        log.warning("%s cannot be read (%s); the fit starts over", path, error)
        return None
