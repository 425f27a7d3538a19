"""A camera does not wait for its map: its frames queue while the map is made, and are caught up with in their order.

A map that is made on the way takes seconds to begin, and up to a second for a picture that joins it while the lens is
looked for. A camera that goes on meanwhile leaves the little that its map shows, and is lost before anything is said of
it. So whenever the map in the making does not place the newest frames, a thread of its own goes through those that
wait, each as patiently as files are gone through (`ClassicalSession.patient`), and the map grows along the way that the
camera took, until the newest frame is found in it. Frames that wait are thinned as they grow older, so the way is
walked in longer steps, and catching up takes less time than the camera did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scenetx.core import Sim3
from scenetx.core.cameras import focal_and_center
from scenetx.live.classical_session import ClassicalSession
from scenetx.live.intrinsics import GivenLens, Intrinsics
from scenetx.live.track import Tracker
from scenetx.live.update import Frame, Located


@dataclass(frozen=True)
class CatchUpSettings:
    """When frames wait, and how many."""

    waiting: int = 48
    """At most; of more, every second one goes;"""
    waiting_bytes: int = 128_000_000
    """and of fewer, if they are large."""
    missed: int = 4
    """Frames in a row that the map does not place before those that wait are gone through; and, of these, before all
    but the newest are given up."""
    dense: int = 12
    """So many frames that wait make keyframes twice as far apart as usual,"""
    sparing: float = 3.0
    """but never farther than so many times."""
    again: int = 6
    """Frames that are caught up with before the newest is tried again; a new keyframe is reason enough."""
    sure: float = 0.4
    """Confidence that the newest frame's pose needs for the camera to be caught up with."""


@dataclass(frozen=True)
class _Waiting:
    """A frame that waits, straightened if its lens is known, and its K."""

    frame: Frame
    K: Float[Tensor, "3 3"]


class CatchUp:
    """A `Locator` over a `ClassicalSession` for live sources. `locate` answers at once: None while it is behind.

    The session is the worker's while `behind`, and the caller's else; after `close` it is the caller's again.
    """

    def __init__(self, session: ClassicalSession, settings: CatchUpSettings | None = None) -> None:
        self.session = session
        self.settings = settings or CatchUpSettings()
        self.name = session.name
        self._change = threading.Condition()
        self._queue: list[_Waiting] = []
        self._count = self._missed = 0
        self._closed = False
        self._trouble: BaseException | None = None
        self._lens_line = ""
        self._tracker: Tracker | None = None  # the worker's, as is what follows
        self._since = self._failed = 0
        self._worker: threading.Thread | None = None
        self._fall_behind()

    @property
    def behind(self) -> bool:
        """Whether frames wait to be gone through."""
        return self._worker is not None

    @property
    def preparing(self) -> str:
        """See `Prepares`."""
        if not self.behind:
            return ""
        pictures, waiting, lens = self.keyframes, len(self._queue), self._lens_line
        if not pictures:
            return "a map is being begun"
        parts = [f"the map is being made: {pictures} pictures", lens, f"{waiting} frames behind" if waiting > 1 else ""]
        return ", ".join(part for part in parts if part)

    @property
    def added(self) -> bool:
        """The last frame became a keyframe."""
        return not self.behind and self.session.added

    @property
    def keyframes(self) -> int:
        """Pictures in the map now."""
        return self.session.keyframes

    @property
    def opening(self) -> bool:
        """See `ManyMaps`."""
        return self.session.opening

    @property
    def joins(self) -> Mapping[int, tuple[int, Sim3]]:
        """See `ManyMaps`."""
        return self.session.joins

    @property
    def K(self) -> Float[Tensor, "3 3"] | None:
        """See `TellsK`: nothing of the newest frame while it is behind."""
        return None if self.behind else self.session.K

    @property
    def K_settled(self) -> bool:
        """See `TellsK`."""
        return not self.behind and self.session.K_settled

    @property
    def lens_line(self) -> str:
        """See `TellsLens`."""
        return self._lens_line if self.behind else self.session.lens_line

    def locate(
        self, image: UInt8[Tensor, "h w 3"], K: Float[Tensor, "3 3"], guess: Float[Tensor, "4 4"] | None
    ) -> Located | None:
        """See `Locator.locate`."""
        if self._trouble is not None:
            raise self._trouble
        self._count += 1
        waiting = _Waiting(Frame(self._count, time.perf_counter(), image), K)
        with self._change:
            if self.behind:
                self._wait(waiting)
                self._change.notify_all()
                return None
        found = self.session.locate(image, K, guess)
        if self.session.added or (found is not None and not self.session.busy):
            self._queue.clear()  # the map goes as far as this frame, or needs none of them
        self._wait(waiting)
        self._missed = 0 if found is not None else self._missed + 1
        if self._missed >= self.settings.missed:
            self._fall_behind()
        return found

    def close(self) -> None:
        """Stops going through what waits (a frame that is being placed is finished first)."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        worker = self._worker
        if worker is not None:
            worker.join()

    def _wait(self, waiting: _Waiting) -> None:
        """The newest stays the last: of too many, every second of the others goes."""
        self._queue.append(waiting)
        fitting = self.settings.waiting_bytes // max(waiting.frame.image.nbytes, 1)
        if len(self._queue) > max(min(self.settings.waiting, fitting), 2):
            self._queue = self._queue[1::2] if len(self._queue) % 2 == 0 else self._queue[::2]

    def _fall_behind(self) -> None:
        self._missed = self._since = self._failed = 0
        self._tracker, self.session.patient = None, True
        self._worker = threading.Thread(target=self._run, name="catch-up", daemon=True)
        self._worker.start()

    def _run(self) -> None:
        """The thread: goes through what waits until the newest frame is placed."""
        trouble: BaseException | None = RuntimeError("catching up has ended by a mistake of the program, told above")
        try:
            with torch.inference_mode():
                while self._next():
                    pass
            trouble = None
        except (ValueError, RuntimeError, MemoryError, ArithmeticError, OSError) as error:
            trouble = error
        finally:
            with self._change:
                self._queue.clear()
                self._trouble = trouble  # it belongs to the thread that asks
                self.session.patient, self.session.sparing = False, 1.0
                self._worker = None

    def _next(self) -> bool:
        """Places the frame that is next; False: caught up, or closed.

        That is the oldest, from which the way goes on. Where there is no way to go on with, it is the newest: a map
        begins with what is seen now, and a place that is found again is found now.
        """
        settings = self.settings
        with self._change:
            self._change.wait_for(lambda: bool(self._queue) or self._closed)
            if self._closed:
                return False
            if not self.session.keyframes or self._failed >= settings.missed:
                del self._queue[:-1]
            waiting = self._queue.pop(0)
            self.session.sparing = min(1 + len(self._queue) / settings.dense, settings.sparing)
        if self._tracker is None:
            self._tracker = Tracker(self.session, self._intrinsics(waiting.K))
        update = self._tracker.step(waiting.frame)
        self._lens_line = "" if self.session.known_lens else self.session.lens_line
        if update.anchor is None:
            self._failed += 1
            return True
        self._failed, self._since = 0, self._since + 1
        if not self.session.steady or update.status not in ("tracking", "relocalised"):
            return True
        with self._change:
            newest = self._queue[-1] if self._queue else None
        if newest is not None and not (update.added or self._since >= settings.again):
            return True
        self._since = 0
        return newest is not None and not self._placed(newest)

    def _placed(self, newest: _Waiting) -> bool:
        """Whether the newest frame is found in the map as it is by now."""
        K = None if self.session.known_lens else self.session.K
        found = self.session.locate(newest.frame.image, newest.K if K is None else K, None)
        return found is not None and not found.rough and found.confidence >= self.settings.sure

    def _intrinsics(self, K: Float[Tensor, "3 3"]) -> Intrinsics:
        """Frames come straightened where the lens is known, and as they are else."""
        if not self.session.known_lens and not self.session.K_settled:
            return Intrinsics()
        return Intrinsics(GivenLens(K=focal_and_center(K)))
