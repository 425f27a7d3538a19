"""Whether something kept in a scene's folder is still of that scene."""

from __future__ import annotations

import hashlib

from scenetx.core import Scene


def scene_mark(scene: Scene, how: object) -> str:
    """A digest of the posed pictures' names, sizes and cameras, and of ``how`` (settings) the kept thing was made."""
    lines = [str(how)]
    for view in scene.registered:
        assert view.camera is not None
        numbers = [*view.camera.world_from_cam.double().flatten().tolist(), *view.camera.K.double().flatten().tolist()]
        lines.append(f"{view.name} {view.height} {view.width} {view.held_out} {numbers}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
