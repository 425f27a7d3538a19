"""A scene on a local server: looked at in the browser, its frame set there and written back."""

from __future__ import annotations

import hashlib
import logging
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import torch

from scenetx.core import InputError, Scene, Sim3, Stage, View
from scenetx.io.json_value import JsonValue, read_json
from scenetx.io.scene_dir import load_scene, save_scene, scene_folder
from scenetx.io.scene_files import stored_name
from scenetx.io.splat_formats import read_gaussians
from scenetx.pipeline.page import splat_data, write_page
from scenetx.pipeline.watch import Watch
from scenetx.pipeline.workspace import Report
from scenetx.serve.contents import FRAME_STAGE, describe, point_data, up_of
from scenetx.serve.messages import Notice, Progress, Similarity
from scenetx.serve.pictures import Renderer
from scenetx.serve.server import ServerSettings, ViewerServer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewSettings:
    """How `view` serves."""

    host: str = "127.0.0.1"
    port: int = 8080
    open_browser: bool = True
    model: str | None = None
    """View-synthesis model (name or weight file) that draws the scene instead of its splats."""


def view(source: str | Path, settings: ViewSettings | None = None, say: Callable[[str], None] = log.info) -> None:
    """Serves a scene folder or a splat file until interrupted (Ctrl-C). A frame set there is written to the folder.

    Raises InputError when ``source`` is neither or no port is free.
    """
    settings = settings or ViewSettings()
    source = Path(source)
    serve = served_file if source.is_file() and source.name != "scene.json" else served
    with serve(source, settings) as server:
        say(f"{source.name} at {server.address} (Ctrl-C ends)")
        if settings.open_browser:
            webbrowser.open(server.address)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    say("closed")


class LiveView:
    """A context manager: the viewer's server beside a reconstruction that writes ``folder``."""

    def __init__(
        self, folder: Path, settings: ViewSettings | None = None, say: Callable[[str], None] = log.info
    ) -> None:
        settings = settings or ViewSettings()
        self._folder, self._say = folder, say
        self._title = folder.resolve().name.removesuffix("-scene")
        self._open_browser = settings.open_browser
        self._server = ViewerServer(self._title, folder, settings=ServerSettings(settings.host, settings.port))

    def __enter__(self) -> LiveView:
        self._server.__enter__()
        self._say(f"watch at {self._server.address}")
        if self._open_browser:
            webbrowser.open(self._server.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._server.publish(Notice("error", f"The reconstruction stopped: {error}"))
        self._server.close()

    def watch(self, also: Report) -> Watch:
        """The watcher to hand to `reconstruct`."""
        return Watch(self._server, self._title, also=also)

    def finished(self, scene: Scene) -> None:
        """Shows the result and stays until interrupted."""
        tell(self._server, scene, self._folder)
        self._server.publish(Progress("done", "Finished", 1.0, "", 0.0, None, finished=True))
        self._say(f"the scene stays at {self._server.address} (Ctrl-C ends)")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def served(folder: Path, settings: ViewSettings) -> ViewerServer:
    """A server (not yet entered) that knows the scene of a folder and writes changes of its frame back."""
    folder = scene_folder(folder)
    scene = load_scene(folder)
    server: ViewerServer | None = None

    def edit(change: Similarity) -> None:
        nonlocal scene
        assert server is not None
        scene = in_new_frame(scene, change)
        _save(scene, folder)
        tell(server, scene, folder)

    renderer = None if settings.model is None else painter_of(scene, settings.model)
    server = ViewerServer(
        title_of(scene, folder),
        folder,
        renderer=renderer,
        on_edit=None if renderer else edit,
        settings=ServerSettings(settings.host, settings.port),
    )
    if renderer is not None:
        scene = replace(scene, gaussians=None)
    tell(server, scene, folder, rendered=renderer is not None)
    return server


def painter_of(scene: Scene, model: str) -> Renderer:
    """A view-synthesis model as a renderer: pictures at the size it paints. Raises InputError where it cannot."""
    from scenetx.models.open_view_model import open_view_model
    from scenetx.pipeline.view_render import Painter

    painter = Painter(scene, open_view_model(model))
    return lambda cameras: painter(painter.size(cameras, None))


def served_file(path: Path, settings: ViewSettings) -> ViewerServer:
    """A server (not yet entered) for splats alone."""
    scene = Scene(views=(), source=str(path), gaussians=read_gaussians(path))
    server = ViewerServer(path.name, settings=ServerSettings(settings.host, settings.port))
    server.publish(describe(scene, title=path.name))
    assert scene.gaussians is not None
    server.publish(splat_data(scene.gaussians))
    return server


def apply_frame(folder: Path, frame: Path) -> None:
    """Gives the scene in ``folder`` the frame of a file that a static page saved, once: a second time only a warning
    comes of it. Raises InputError for other files.
    """
    root = read_json(frame)
    change = Similarity(root["scale"].number(), root["rotation"].numbers(), _three(root["translation"]))
    mark = hashlib.sha256(repr(change).encode()).hexdigest()[:16]
    folder = scene_folder(folder)
    scene = load_scene(folder)
    if mark in _applied(scene):
        log.warning("%s: %s has this frame already; nothing was changed", frame, folder)
        return
    _save(in_new_frame(scene, change, mark), folder)


def _applied(scene: Scene) -> list[str]:
    """The marks of the frame files that the scene was given. What a page saved speaks of the scene before any of it."""
    stages = [stage.settings.get("applied") for stage in scene.history if stage.name == FRAME_STAGE]
    return [str(mark) for marks in stages if isinstance(marks, list) for mark in marks]


def _save(scene: Scene, folder: Path) -> None:
    """The folder's page shows the scene too."""
    save_scene(scene, folder)
    if (folder / "viewer.html").is_file():
        write_page(scene, folder / "viewer.html", title=title_of(scene, folder))


def _three(value: JsonValue) -> tuple[float, float, float]:
    numbers = value.numbers()
    if len(numbers) != 3:
        raise value.wrong("three numbers")
    return numbers[0], numbers[1], numbers[2]


def tell(server: ViewerServer, scene: Scene, folder: Path, *, rendered: bool = False, live: bool = False) -> None:
    """Publishes all of a finished scene; photos stay files. ``live``: something goes on in it, and it is not edited."""
    addresses = {item.name: f"files/images/{quote(stored_name(item.name))}" for item in scene.registered}
    server.publish(
        describe(
            scene,
            title=title_of(scene, folder),
            photo_addresses=addresses,
            editable=not (rendered or live),
            rendered=rendered,
            live=live,
        )
    )
    if scene.gaussians is not None:
        server.publish(splat_data(scene.gaussians))
    if scene.points is not None:
        server.publish(point_data(scene.points))


def title_of(scene: Scene, folder: Path) -> str:
    """What people call the scene: its folder without the ending we gave it."""
    return folder.resolve().name.removesuffix("-scene") or scene.source or "Scene"


def in_new_frame(scene: Scene, change: Similarity, mark: str | None = None) -> Scene:
    """The scene in the frame a person has set in the viewer: x_new = scale * rotation @ x + translation.

    Cameras, points, splats and depths are moved; that up is now +z is kept in the history when it turned, and so is
    ``mark``, by which the change is known again. Raises InputError when the change is no similarity.
    """
    rotation = torch.tensor(change.rotation, dtype=torch.float64)
    if rotation.numel() != 9 or not 0 < change.scale < 1e9:
        raise InputError("frame", f"scale {change.scale}, {rotation.numel()} numbers of a rotation", "set it again")
    rotation = rotation.reshape(3, 3)
    if float((rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()) > 1e-4 or rotation.det() < 0:
        raise InputError("frame", "its rotation is none", "set it again")
    new_from_old = Sim3(change.scale, rotation, torch.tensor(change.translation, dtype=torch.float64))
    up = new_from_old.rotation @ torch.tensor(up_of(scene), dtype=torch.float64)
    turned = not torch.allclose(rotation, torch.eye(3, dtype=torch.float64), atol=1e-9)
    moved = replace(
        scene,
        views=tuple(_moved_view(item, new_from_old) for item in scene.views),
        points=None
        if scene.points is None
        else replace(scene.points, positions=new_from_old.apply(scene.points.positions.double()).to(torch.float32)),
        gaussians=None if scene.gaussians is None else scene.gaussians.transformed(new_from_old),
    )
    stated = [0.0, 0.0, 1.0] if turned else up.tolist()
    settings = {"up": stated, "applied": _applied(scene) + ([] if mark is None else [mark])}
    return moved.with_stage(Stage(FRAME_STAGE, 0.0, settings, (f"scaled by {change.scale:.6g}",)))


def _moved_view(item: View, new_from_old: Sim3) -> View:
    camera = item.camera
    if camera is not None:
        pose = new_from_old.apply_to_poses(camera.world_from_cam.double())
        camera = replace(camera, world_from_cam=pose.to(camera.world_from_cam))
    depth = None if item.depth is None else item.depth * float(new_from_old.scale)
    return replace(item, camera=camera, depth=depth)
