"""A scene painted by a view-synthesis model: which pictures it is shown for which view, and at what size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from scenetx.core import Cameras, InputError, Render, Scene, View, project
from scenetx.core.paths import camera_layout
from scenetx.models.scene_state import SceneState
from scenetx.models.view_model import ViewModel, Views
from scenetx.pipeline.workspace import Report, silent


@dataclass(frozen=True)
class PaintSettings:
    """How a scene is shown to a model."""

    context: int = 4
    """Pictures a view is painted from; published models were trained with 2."""
    side: int = 256
    """Shorter side, in pixels, at which pictures are shown and views painted (without a width of their own)."""
    samples: int = 2000
    """Points by which coverage is judged."""
    kept: int = 8
    """Encoded states kept for later views."""


class Painter:
    """Paints views of one scene: chooses context pictures by coverage, encodes each choice once."""

    def __init__(self, scene: Scene, model: ViewModel, settings: PaintSettings | None = None) -> None:
        """Raises InputError for a scene without posed pictures, and for models that do not take cameras."""
        self._settings = settings or PaintSettings()
        self._views = scene.training or scene.registered
        if not self._views:
            raise InputError(scene.source or "scene", "has no posed pictures", "reconstruct it first")
        if not model.posed:
            raise InputError("model", model.name, "paints latents, not cameras; use lvsm, svsm or srt")
        if self._settings.context < 1:
            raise InputError("context", self._settings.context, "show the model at least one picture")
        self._model = model
        self._points = landmarks(scene, self._settings.samples)
        self._seen = torch.stack([inside(self._points, _camera(view))[0] for view in self._views])
        self._states: OrderedDict[tuple[int, ...], SceneState] = OrderedDict()

    def size(self, cameras: Cameras, width: int | None) -> Cameras:
        """The cameras at the size they will be painted: ``width``, or ``side`` pixels on the shorter side."""
        scale = width / cameras.width if width else self._settings.side / min(cameras.height, cameras.width)
        height, across = round(cameras.height * scale), round(cameras.width * scale)
        return cameras.resized(max(2, height // 2 * 2), max(2, across // 2 * 2))

    def paint(self, cameras: Cameras, report: Report = silent) -> Iterator[Render]:
        """One picture a camera, in order. Depth and alpha are unknown to such models: 0 and 1."""
        for index in range(len(cameras)):
            camera = cameras[index]
            state = self._state(self.choose(camera))
            with torch.inference_mode():
                rgb = self._model.decode(state, camera)
            report("render", (index + 1) / len(cameras), f"{index + 1} of {len(cameras)}")
            flat = torch.zeros(rgb.shape[:3])
            yield Render(rgb.clamp(0, 1).float().cpu(), flat, flat + 1)

    def __call__(self, cameras: Cameras) -> Render:
        """All at once: what the viewer streams from."""
        renders = list(self.paint(cameras))
        rgb, depth, alpha = (torch.cat([getattr(one, name) for one in renders]) for name in ("rgb", "depth", "alpha"))
        return Render(rgb, depth, alpha)

    def choose(self, camera: Cameras) -> tuple[int, ...]:
        """The views to show for a target, by greedy coverage of what it looks at; in the scene's order.

        A landmark that is seen counts by how alike the two lines of sight are: in full for the best view that sees it,
        and a tenth for each other one. Among equals the closer view is taken.
        """
        visible = inside(self._points, camera)[0]
        sight = torch.nn.functional.normalize(self._points - camera.centers.double(), dim=-1)
        gains = []
        for view, seen in zip(self._views, self._seen, strict=True):
            other = torch.nn.functional.normalize(self._points - _camera(view).centers.double(), dim=-1)
            alike = (sight * other).sum(-1).clamp_min(0) ** 4
            gains.append(torch.where(seen & visible, alike, 0.0))
        worth = torch.stack(gains)
        centers = torch.cat([_camera(view).centers for view in self._views]).double()
        distance = (centers - camera.centers.double()).norm(dim=-1)
        near = distance / distance.max().clamp_min(1e-12)
        best, chosen = torch.zeros(worth.shape[1], dtype=worth.dtype), list[int]()
        while len(chosen) < min(self._settings.context, len(self._views)):
            added = (worth - best).clamp_min(0).sum(-1) + 0.1 * worth.sum(-1) - 1e-6 * near
            added[chosen] = -torch.inf
            chosen.append(int(added.argmax()))
            best = torch.maximum(best, worth[chosen[-1]])
        return tuple(sorted(chosen))

    def _state(self, chosen: tuple[int, ...]) -> SceneState:
        if chosen in self._states:
            self._states.move_to_end(chosen)
            return self._states[chosen]
        groups: dict[tuple[int, int], list[Views]] = {}
        for index in chosen:
            shown = self._shown(self._views[index])
            groups.setdefault((shown.images.shape[1], shown.images.shape[2]), []).append(shown)
        with torch.inference_mode():
            state = self._model.encode([_together(group) for group in groups.values()])
        self._states[chosen] = state
        if len(self._states) > self._settings.kept:
            self._states.popitem(last=False)
        return state

    def _shown(self, view: View) -> Views:
        """The picture and its camera at the size the model is shown."""
        scale = self._settings.side / min(view.height, view.width)
        height, width = max(1, round(view.height * scale)), max(1, round(view.width * scale))
        pixels = view.image.permute(2, 0, 1)[None].float() / 255
        small = interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
        return Views(small.clamp(0, 1).permute(0, 2, 3, 1), _camera(view).resized(height, width))


def landmarks(scene: Scene, count: int) -> Float[Tensor, "p 3"]:
    """Points by which coverage is judged: the scene's own, thinned; without any, points on the pictures' rays.

    The latter lie at four depths between the near and far of `camera_layout`, on a 5 x 5 grid of each picture's rays.
    """
    if scene.points is not None and len(scene.points) >= 50:
        pick = torch.linspace(0, len(scene.points) - 1, min(count, len(scene.points))).round().long()
        return scene.points.positions[pick].double()
    layout = camera_layout(scene)
    depths = 1 / torch.linspace(1 / layout.near, 1 / layout.far, 4, dtype=torch.float64)
    found = []
    for view in scene.registered:
        camera = _camera(view).resized(5, 5)
        grid = torch.stack(torch.meshgrid(torch.arange(5) + 0.5, torch.arange(5) + 0.5, indexing="xy"), -1)
        rays = torch.cat([grid.flatten(0, 1), torch.ones(25, 1)], -1).double()
        rays = rays @ torch.linalg.inv(camera.K[0].double()).T @ camera.world_from_cam[0, :3, :3].double().T
        found.append((camera.centers.double()[0] + depths[:, None, None] * rays).flatten(0, 1))
    return torch.cat(found)


def inside(points: Float[Tensor, "p 3"], cameras: Cameras) -> Bool[Tensor, "n p"]:
    """Whether points fall into the pictures."""
    double = Cameras(cameras.world_from_cam.double(), cameras.K.double(), cameras.height, cameras.width)
    pixels, depth = project(points, double)
    x, y = pixels.unbind(-1)
    return (depth > 0) & (x >= 0) & (x <= cameras.width) & (y >= 0) & (y <= cameras.height)


def _camera(view: View) -> Cameras:
    assert view.camera is not None
    return view.camera


def _together(group: list[Views]) -> Views:
    cameras = [views.cameras for views in group if views.cameras is not None]
    return Views(torch.cat([views.images for views in group]), Cameras.cat(cameras))
