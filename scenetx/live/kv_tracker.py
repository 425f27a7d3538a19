"""Placing pictures in a map of keys and values: one camera-only step, checked against what the map expects to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import Cameras, InputError, Scene, View
from scenetx.live.agreement import agreement, coarse_grey
from scenetx.live.keyframes import KeyframeSettings, spread
from scenetx.live.kv_map import CELL, Eye, KvMap, at_home, build_map, unplaced
from scenetx.live.update import Located
from scenetx.models.pictures import MOST_CROPPED, lost_share, to_model, window_for


@dataclass(frozen=True)
class KvSettings:
    """How a map is made and used."""

    keyframes: KeyframeSettings = field(default_factory=KeyframeSettings)
    dtype: torch.dtype = torch.float32
    """Of keys and values: bfloat16 halves the map, for devices that compute in it."""
    hopeless: float = 0.05
    """A pose that the map contradicts this much (agreement below) is no answer."""


@dataclass(frozen=True)
class Placed:
    """A picture in a map: camera (float64, K for the grid's cells) in the world, and what speaks for it."""

    camera: Cameras
    image: Float[Tensor, "h w 3"]
    grey: Float[Tensor, "r c"]
    confidence: float
    overlap: float


@torch.no_grad()
def place(eye: Eye, kv_map: KvMap, picture: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"]) -> Placed | None:
    """Where a picture was taken, by one camera-only step. None: the model's answer is no pose (not finite).

    K: of the picture's pixels. Raises InputError for a picture whose shape has little in common with the map's.
    """
    images, windows = to_model([picture], eye.rule, kv_map.size)
    geometry = at_home(eye.model.step(images[0].to(eye.device), kv_map.cache, dense=False))
    pose = geometry.cameras.world_from_cam.double()
    if not bool(pose.isfinite().all()):
        return None
    world_from_cam = kv_map.world_from_map.apply_to_poses(pose)
    own = geometry.cameras.K[0].double() if eye.tells_focal else windows[0].K_for_model(K.double())
    grey = coarse_grey(images[0], CELL)
    grid_lens = torch.diag(own.new_tensor([1 / CELL, 1 / CELL, 1.0])) @ own
    camera = Cameras(world_from_cam, grid_lens[None], *grey.shape)
    said = agreement(grey, camera, kv_map.keyframes)
    return Placed(camera, images[0], grey, said.confidence, said.overlap)


class KvTracker:
    """A finished map as a `Locator`. Every answer depends on the picture and the map alone, never on earlier frames:
    there is no drift by accumulation, and finding the place again after a loss is the same step as tracking.
    """

    def __init__(self, eye: Eye, kv_map: KvMap, settings: KvSettings | None = None) -> None:
        if kv_map.model != eye.name:
            raise InputError("map", f"made by {kv_map.model}, not {eye.name}", f"track with --model {kv_map.model}")
        self.eye, self.map, self.settings = eye, kv_map, settings or KvSettings()
        self.name = f"kv {eye.name}"

    @property
    def keyframes(self) -> int:
        """Pictures in the map."""
        return len(self.map.keyframes)

    def locate(
        self,
        image: UInt8[Tensor, "h w 3"],
        K: Float[Tensor, "3 3"],
        guess: Float[Tensor, "4 4"] | None,  # noqa: ARG002
    ) -> Located | None:
        """See `Locator.locate`; the guess is not needed. ``confidence`` is the picture's agreement with the map."""
        placed = place(self.eye, self.map, image, K)
        if placed is None or placed.confidence < self.settings.hopeless:
            return None
        return located(placed)


def located(placed: Placed, note: str = "") -> Located:
    """The answer of a step as the tracker wants it."""
    return Located(placed.camera.world_from_cam[0], placed.confidence, note=note)


def map_scene(scene: Scene, eye: Eye, settings: KvSettings | None = None) -> KvMap:
    """A map of a scene's pictures, in the frame and scale of the scene's cameras (robust Sim(3) to them).

    At most ``settings.keyframes.most`` of the posed pictures that share a shape, those that cover most. Held-out ones
    are left out. Raises InputError when the scene has no posed pictures.
    """
    settings = settings or KvSettings()
    views = [view for view in (scene.training or scene.registered) if view.camera is not None]
    if not views:
        raise InputError(scene.source or "scene", "no posed pictures", "reconstruct it first")
    size = eye.rule.common([(view.height, view.width) for view in views])
    views = [view for view in views if lost_share(window_for(view.height, view.width, size), size) <= MOST_CROPPED]
    poses = torch.cat([view.camera.world_from_cam for view in views if view.camera is not None]).double()
    depth = torch.full((len(views),), scene_depth(scene, views), dtype=torch.float64)
    chosen = spread(poses, depth, settings.keyframes.most, settings.keyframes)
    frames = []
    for index in chosen:
        view, camera = views[index], views[index].camera
        assert camera is not None
        frame = unplaced(index, view.image, camera.K[0], name=view.name)
        frames.append(replace(frame, world_from_cam=poses[index]))
    return build_map(eye, frames, [True] * len(frames), size=size, dtype=settings.dtype)


def scene_depth(scene: Scene, views: Sequence[View]) -> float:
    """Typical distance of what the pictures show, in the scene's unit: of depth maps, else points, else the cameras."""
    known = [view.depth[view.depth > 0].median() for view in views if view.depth is not None and (view.depth > 0).any()]
    if known:
        return float(torch.stack(known).median())
    centers = torch.cat([view.camera.centers for view in views if view.camera is not None]).double()
    if scene.points is not None and len(scene.points):
        points = scene.points.positions[:: max(1, len(scene.points) // 2000)].double()
        return float(torch.cdist(centers, points).median())
    return scene.extent
