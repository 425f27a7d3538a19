"""Ground floor: the nouns and the conventions every room shares.

Camera axes are OpenCV (+x right, +y down, +z forward); the first pixel's centre is (0.5, 0.5); transforms are named
target first (``x_world = world_from_cam @ x_cam``); depth is z in the camera frame, 0 = none; quaternions are wxyz.
"""

from scenetx.core.cameras import Cameras, project, unproject
from scenetx.core.errors import InputError
from scenetx.core.gaussians import Gaussians
from scenetx.core.rigid import Sim3, umeyama
from scenetx.core.scene import Original, Points, Render, Scene, Skipped, Stage, View

__all__ = [
    "Cameras",
    "Gaussians",
    "InputError",
    "Original",
    "Points",
    "Render",
    "Scene",
    "Sim3",
    "Skipped",
    "Stage",
    "View",
    "project",
    "umeyama",
    "unproject",
]
