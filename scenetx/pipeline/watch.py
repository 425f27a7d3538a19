"""A reconstruction that can be watched: what it does goes to the viewer's pages as it happens."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from scenetx.core import Gaussians, Scene
from scenetx.fit import FitUpdate
from scenetx.pipeline.page import splat_data
from scenetx.pipeline.progress import TITLES
from scenetx.pipeline.workspace import Report, silent
from scenetx.serve.contents import describe, photos, point_data
from scenetx.serve.messages import Curve, FromServer, PhotoData, Progress

MAX_CURVE = 400
"""Points of the loss curve that are sent; of more, every other one goes."""


@runtime_checkable
class Watcher(Protocol):
    """Who is told of a reconstruction. Calls come from its thread and return quickly."""

    def report(self, stage: str, fraction: float, message: str) -> None:
        """As `scenetx.pipeline.workspace.Report`."""

    def scene(self, scene: Scene) -> None:
        """Cameras and points are known, or have changed."""

    def fitting(self, update: FitUpdate) -> None:
        """A step of the fit."""


@runtime_checkable
class Publisher(Protocol):
    """Takes messages for pages (`scenetx.serve.server.ViewerServer`, or a list in a test)."""

    def publish(self, message: FromServer) -> None: ...


@dataclass(frozen=True)
class WatchSettings:
    """How often splats are sent: they cost the fit time."""

    splat_seconds: float = 6.0
    splat_share: float = 0.04  # of the time at most


class Watch:
    """A `Watcher` that tells a `Publisher`, and passes reports on to ``also`` (the terminal's bars)."""

    def __init__(
        self, publisher: Publisher, title: str, *, also: Report = silent, settings: WatchSettings | None = None
    ) -> None:
        self._publisher = publisher
        self._title = title
        self._also = also
        self._settings = settings or WatchSettings()
        self._started: dict[str, float] = {}
        self._loss: list[tuple[int, float]] = []
        self._psnr: list[tuple[int, float]] = []
        self._stride = 1
        self._updates = 0
        self._splats_due = 0.0

    def report(self, stage: str, fraction: float, message: str) -> None:
        self._also(stage, fraction, message)
        now = time.monotonic()
        seconds = now - self._started.setdefault(stage, now)
        remaining = seconds * (1 - fraction) / fraction if fraction > 0.03 and seconds > 2 else None
        title = TITLES.get(stage, stage)
        self._publisher.publish(
            Progress(stage, title[:1].upper() + title[1:], min(max(fraction, 0.0), 1.0), message, seconds, remaining)
        )

    def scene(self, scene: Scene) -> None:
        self._publisher.publish(describe(scene, title=self._title, live=True))
        if scene.points is not None:
            self._publisher.publish(point_data(scene.points))
        for name, data in photos(scene).items():
            self._publisher.publish(PhotoData(name, data))

    def fitting(self, update: FitUpdate) -> None:
        if update.psnr is not None:
            self._psnr.append((update.step, update.psnr))
        if self._updates % self._stride == 0 and math.isfinite(update.loss):
            self._loss.append((update.step, update.loss))
            if len(self._loss) > MAX_CURVE:
                self._loss, self._stride = self._loss[::2], self._stride * 2
        self._updates += 1
        self._publisher.publish(
            Curve(
                steps=tuple(step for step, _ in self._loss),
                loss=tuple(loss for _, loss in self._loss),
                psnr_steps=tuple(step for step, _ in self._psnr),
                psnr=tuple(psnr for _, psnr in self._psnr),
                total=update.steps,
                splats=update.num_gaussians,
            )
        )
        if update.gaussians is not None:
            self._splats(update.gaussians)
        elif update.snapshot is not None and time.monotonic() >= self._splats_due:
            self._splats(update.snapshot())

    def _splats(self, gaussians: Gaussians) -> None:
        start = time.monotonic()
        self._publisher.publish(splat_data(gaussians))
        cost = time.monotonic() - start
        self._splats_due = start + max(self._settings.splat_seconds, cost / self._settings.splat_share)

    def finished(self) -> None:
        """The last word: pages put their progress away."""
        self._publisher.publish(Progress("done", "Finished", 1.0, "", 0.0, None, finished=True))


class _Unwatched:
    """A `Watcher` that nobody hears."""

    def report(self, stage: str, fraction: float, message: str) -> None:
        del stage, fraction, message

    def scene(self, scene: Scene) -> None:
        del scene

    def fitting(self, update: FitUpdate) -> None:
        del update


UNWATCHED = _Unwatched()
