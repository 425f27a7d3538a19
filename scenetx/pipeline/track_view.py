"""Tracking in the browser: the map, the camera in it, the picture it sees and the way it came."""

from __future__ import annotations

import re
import time
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from scenetx.core import Cameras, Original, Points, Scene, View
from scenetx.core.cameras import focal_and_center
from scenetx.io.scene_dir import load_scene
from scenetx.live.update import Status as Live
from scenetx.live.update import Update
from scenetx.pipeline.view import tell
from scenetx.serve.contents import ContentSettings, describe, jpeg, point_data
from scenetx.serve.messages import Status, Track
from scenetx.serve.server import ServerSettings, ViewerServer

SHOWN: dict[Live, Status] = {
    "init": "starting", "tracking": "tracking", "unsure": "weak", "lost": "lost", "relocalised": "tracking",
}  # fmt: skip
SECONDS = 0.1  # between pictures: more is not seen, and each costs the tracker a JPEG
PICTURE_SIDE = 480
MAP_SECONDS = 1.0  # between the points of a map that grows
MAP_POINTS = ContentSettings(max_points=60_000)  # under a megabyte
METHOD = re.compile(r"(few )?patches|features \(.*")
"""Notes that say how a place was found: nothing that a person who looks can use."""
Growing = Callable[[], Points | None]
"""The points of a map that is made on the way; None before there is one."""
MOST_PLACES = 20_000  # of the trajectory that is sent; of more, every other one goes


class TrackView:
    """A context manager: a viewer's server that shows updates. Raises InputError when no port is free."""

    def __init__(
        self,
        scene: Path | None,
        source: str,
        *,
        port: int,
        open_browser: bool,
        say: Callable[[str], None],
        growing: Growing | None = None,
    ) -> None:
        self._folder = scene.parent if scene is not None and scene.name == "scene.json" else scene
        self._open_browser, self._say = open_browser, say
        shown = source if "://" in source else Path(source).name
        title = self._folder.resolve().name.removesuffix("-scene") if self._folder else f"Tracking {shown}"
        self._server = ViewerServer(title, self._folder, settings=ServerSettings(port=port))
        self._title = title
        self._places: list[tuple[float, float, float]] = []
        self._stride, self._count = 1, 0
        self._keyframes: list[np.ndarray] = []
        self._due = 0.0
        self._last: Update | None = None
        self._growing = growing if scene is None else None
        self._begun: Scene | None = None
        self._map_due = 0.0
        self._mapped = self._described = self._map = 0

    def __enter__(self) -> TrackView:
        self._server.__enter__()
        if self._folder is not None:
            tell(self._server, load_scene(self._folder), self._folder, live=True)
        self._say(f"watch at {self._server.address}")
        if self._open_browser:
            webbrowser.open(self._server.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._map_due = 0.0
            self._show_map(self._last)
            self._server.publish(self.message(self._last, done=True))
        self._server.close()

    def show(self, update: Update) -> None:
        """Publishes an update, if the last one is long enough ago. Never waits. The page shows one map at a time."""
        if update.world_from_cam is not None and self._folder is None and update.map != self._map:
            self._map, self._begun, self._places, self._keyframes = update.map, None, [], []
            self._mapped = self._described = 0
        if self._folder is None and update.world_from_cam is not None and self._begun is None:
            self._begun = _start(update)
            self._describe(self._begun)
        if update.world_from_cam is not None:
            self._remember(update)
            self._last = update
            self._show_map(update)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + SECONDS
            self._server.publish(self.message(update))

    def _show_map(self, update: Update) -> None:
        """The points of a map that grows, when it has grown; how large the scene is, when it has grown a lot."""
        now = time.monotonic()
        if self._growing is None or self._begun is None or update.keyframes == self._mapped or now < self._map_due:
            return
        points = self._growing()
        if points is None:
            return
        self._map_due, self._mapped = now + MAP_SECONDS, update.keyframes
        if update.keyframes >= 2 * self._described:
            self._described = update.keyframes
            self._describe(replace(self._begun, points=points))
        self._server.publish(point_data(points, MAP_POINTS))

    def _said(self, update: Update) -> str:
        if update.status == "init" and self._folder is None:
            return "Move slowly sideways: the map begins when things were seen from two places."
        return "; ".join(note for note in update.note.split("; ") if not METHOD.fullmatch(note))

    def _describe(self, scene: Scene) -> None:
        """The first camera says what is up, and is no photo of a scene."""
        self._server.publish(replace(describe(scene, title=self._title, live=True), views=()))

    def _remember(self, update: Update) -> None:
        assert update.world_from_cam is not None
        if update.added:
            self._keyframes.append(update.world_from_cam.numpy().astype(np.float32).ravel())
        if self._count % self._stride == 0 and update.status in ("tracking", "relocalised"):
            x, y, z = update.world_from_cam[:3, 3].tolist()
            self._places.append((x, y, z))
            if len(self._places) > MOST_PLACES:
                self._places, self._stride = self._places[::2], 2 * self._stride
        self._count += 1

    def message(self, update: Update, *, done: bool = False) -> Track:
        """The update as the page takes it."""
        pose, K = update.world_from_cam, update.K
        height, width = (0, 0) if update.image is None else update.image.shape[:2]
        picture = b"" if update.image is None else jpeg(update.image.numpy(), PICTURE_SIDE, 70)
        keyframes = np.concatenate(self._keyframes) if self._keyframes else np.zeros(0, np.float32)
        return Track(
            frame=update.index,
            seconds=update.time,
            status="done" if done else SHOWN[update.status],
            message=self._said(update),
            world_from_cam=None if pose is None else tuple(map(float, pose.flatten())),
            lens=focal_and_center(K),
            width=int(width),
            height=int(height),
            picture=picture,
            trajectory=np.array(self._places, np.float32).tobytes(),
            keyframes=keyframes.tobytes(),
        )


def _start(update: Update) -> Scene:
    """Without a map, the first camera is all there is to show: it says what is up and how large things are."""
    image = update.image if update.image is not None else torch.zeros(2, 2, 3, dtype=torch.uint8)
    assert update.world_from_cam is not None
    height, width = int(image.shape[0]), int(image.shape[1])
    camera = Cameras(update.world_from_cam[None], update.K[None], height, width)
    return Scene(views=(View("start", image, Original("start", height, width), camera),))
