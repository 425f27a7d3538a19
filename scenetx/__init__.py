"""scenetx: photos, a video or a webcam to cameras, geometry, Gaussian splats and a page that shows them.

import scenetx
scene = scenetx.reconstruct("photos/")
picture = scenetx.render(scene, scene.registered[0].camera)
scene.save("out/")
scene = scenetx.load("out/")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Name -> where it lives. Loaded on first use, so that `scenetx --help` does not wait for torch.
_FACE = {
    "Cameras": "scenetx.core",
    "Gaussians": "scenetx.core",
    "InputError": "scenetx.core",
    "Render": "scenetx.core",
    "Scene": "scenetx.core",
    "View": "scenetx.core",
    "evaluate": "scenetx.pipeline",
    "export": "scenetx.pipeline",
    "load": "scenetx.io.scene_dir:load_scene",
    "load_model": "scenetx.models.zoo",
    "localize": "scenetx.pipeline.localize",
    "rasterize": "scenetx.splat",
    "reconstruct": "scenetx.pipeline",
    "render": "scenetx.pipeline",
    "track": "scenetx.pipeline.track",
}

__all__ = sorted(_FACE)


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'scenetx' has no attribute {name!r}")
    module, _, attribute = _FACE[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
