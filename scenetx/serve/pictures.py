"""Pictures on demand for scenes that only a model can draw: small while the camera moves, full when it rests."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from scenetx.core import Cameras, InputError, Render
from scenetx.serve.hub import Mailbox
from scenetx.serve.messages import CameraRequest, Notice, Picture, encode

log = logging.getLogger(__name__)
Renderer = Callable[[Cameras], Render]


@dataclass(frozen=True)
class PictureSettings:
    """Sizes in pixels of the longest side."""

    moving_side: int = 240
    still_side: int = 960
    quality: int = 88


def camera_of(request: CameraRequest, longest: int) -> Cameras:
    """The browser's camera for a picture of at most ``longest`` pixels a side. Raises InputError for nonsense."""
    if not (1 <= request.width <= 16384 and 1 <= request.height <= 16384):
        raise InputError("picture size", f"{request.width} x {request.height}", "ask for 1 to 16384 pixels a side")
    fx, fy, cx, cy = request.lens
    if len(request.world_from_cam) != 16 or fx <= 0 or fy <= 0:
        raise InputError("camera", "no 4 x 4 matrix or no focal length", "send a camera of the viewer")
    world_from_cam = torch.tensor(request.world_from_cam, dtype=torch.float32).reshape(1, 4, 4)
    rotation = world_from_cam[0, :3, :3]
    if float((rotation @ rotation.T - torch.eye(3)).abs().max()) > 1e-3:
        raise InputError("camera", "no rotation", "send a camera of the viewer")
    K = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float32)
    camera = Cameras(world_from_cam, K, request.height, request.width)
    scale = min(1.0, longest / max(request.height, request.width))
    return camera.resized(max(1, round(request.height * scale)), max(1, round(request.width * scale)))


class PictureMaker:
    """One thread that renders the newest request of each page in turn; older ones are dropped unseen."""

    def __init__(self, renderer: Renderer, settings: PictureSettings | None = None) -> None:
        self._renderer = renderer
        self._settings = settings or PictureSettings()
        self._wanted: dict[Mailbox, tuple[CameraRequest, asyncio.AbstractEventLoop]] = {}
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)
        self._thread.start()

    def ask(self, request: CameraRequest, mailbox: Mailbox, loop: asyncio.AbstractEventLoop) -> None:
        """Renders soon and puts the picture into ``mailbox``. Raises InputError for a camera that makes no sense."""
        camera_of(request, 1)
        with self._news:
            self._wanted[mailbox] = (request, loop)
            self._news.notify()

    def forget(self, mailbox: Mailbox) -> None:
        with self._news:
            self._wanted.pop(mailbox, None)

    def close(self) -> None:
        with self._news:
            self._ended = True
            self._news.notify()
        self._thread.join(10)

    def _work(self) -> None:
        while True:
            with self._news:
                while not self._wanted and not self._ended:
                    self._news.wait()
                if self._ended:
                    return
                mailbox = next(iter(self._wanted))
                request, loop = self._wanted.pop(mailbox)
            frame = self._answer(request)
            if not loop.is_closed():
                loop.call_soon_threadsafe(mailbox.put, "Picture", frame)

    def _answer(self, request: CameraRequest) -> bytes:
        side = self._settings.moving_side if request.moving else self._settings.still_side
        try:
            camera = camera_of(request, side)
            with torch.no_grad():
                rgb = self._renderer(camera).rgb[0]
        except (InputError, RuntimeError, ValueError) as error:
            # RuntimeError: a model that is out of memory or given a shape it cannot take must not end the viewer.
            log.warning("a picture could not be rendered: %s", error)
            return encode(Notice("error", f"The picture could not be rendered: {error}"))
        pixels = (rgb.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=self._settings.quality)
        return encode(Picture(request.request, pixels.shape[1], pixels.shape[0], buffer.getvalue()))
