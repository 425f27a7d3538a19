"""A reconstruction that can be watched: what it does goes to the viewer's pages as it happens."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise
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


class TimeToGo:
    """How long a stage will last, from how it goes lately: nothing while that is not known, and nothing when it stands.

    The first step counts for nothing (what is loaded and compiled there comes once). The pace is that of the last half
    of the way, and has to agree within a factor of `AGREE` with that of the whole.
    """

    LEAST_STEPS, LEAST_SECONDS, LEAST_SHARE = 4, 3.0, 0.03
    AGREE = 3.0
    STILL = 5.0
    """Times the longest step so far without news: it stands, and begins anew when it goes on."""

    def __init__(self, now: float) -> None:
        self.begun = now
        self.seconds = 0.0
        self._way: list[tuple[float, float]] = []

    def told(self, fraction: float, now: float) -> float | None:
        """Seconds to go at such a share of the way; None = that cannot be said."""
        self.seconds, way = now - self.begun, self._way
        longest = max((b[0] - a[0] for a, b in pairwise(way)), default=0.0)
        stands = len(way) >= self.LEAST_STEPS and now - way[-1][0] > self.STILL * longest
        moved = fraction > 0 and (not way or fraction != way[-1][1])
        if moved:
            if stands or (way and fraction < way[-1][1]):
                way.clear()  # what was before a stop says nothing of what comes after it
            way.append((now, fraction))
            if len(way) > 64:
                del way[1:-1:2]
        if len(way) < self.LEAST_STEPS or fraction >= 1 or (stands and not moved):
            return None
        start, (latest, there) = way[0], way[-1]
        if now - start[0] < self.LEAST_SECONDS or there - start[1] < self.LEAST_SHARE:
            return None
        half = way[len(way) // 2]
        pace = (there - start[1]) / (latest - start[0])
        lately = (there - half[1]) / max(latest - half[0], 1e-9)
        if not 1 / self.AGREE < lately / pace < self.AGREE:
            return None
        return max(0.0, (1 - there) / lately - (now - latest))


class Watch:
    """A `Watcher` that tells a `Publisher`, and passes reports on to ``also`` (the terminal's bars)."""

    def __init__(
        self, publisher: Publisher, title: str, *, also: Report = silent, settings: WatchSettings | None = None
    ) -> None:
        self._publisher = publisher
        self._title = title
        self._also = also
        self._settings = settings or WatchSettings()
        self._stages: dict[str, TimeToGo] = {}
        self._loss: list[tuple[int, float]] = []
        self._psnr: list[tuple[int, float]] = []
        self._stride = 1
        self._updates = 0
        self._splats_due = 0.0

    def report(self, stage: str, fraction: float, message: str) -> None:
        self._also(stage, fraction, message)
        clock = self._stages.setdefault(stage, TimeToGo(time.monotonic()))
        remaining = clock.told(fraction, time.monotonic())
        title = TITLES.get(stage, stage)
        self._publisher.publish(
            Progress(
                stage, title[:1].upper() + title[1:], min(max(fraction, 0.0), 1.0), message, clock.seconds, remaining
            )
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
