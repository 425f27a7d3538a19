"""Frames as a tracker wants them: the newest one of a live source, every one of a file; black and frozen ones said."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from jaxtyping import UInt8

from scenetx.core import InputError
from scenetx.live.source import Reader, Shot, open_reader, seconds_of
from scenetx.live.update import Frame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptureSettings:
    """How a source is read."""

    fps: float | int | None = None
    """Replay files at this rate as if they were live (frames that come too fast are dropped); cameras are asked for
    it."""
    realtime: bool = False
    """Replay files at their own rate, as if they were live."""
    size: tuple[int, int] | None = None
    """(width, height) to ask a camera for."""
    loop: bool = False
    """Start files again at their end."""
    patience: float = 300.0
    """Seconds a live source may be gone before it is given up."""
    first_wait: float = 0.5
    """Seconds before the first try to reach it again; doubled up to `last_wait`."""
    last_wait: float = 8.0
    frozen_after: int = 5
    """Equal pictures in a row that mean the camera hangs."""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0.1 <= self.fps <= 1000:
            raise InputError("fps", self.fps, "give 0.1 to 1000 frames a second")


class Capture:
    """A context manager and iterator of `Frame`. Live sources are read by a thread of their own: the newest picture
    waits, older ones are dropped and counted; files give every picture, unless they are replayed in real time.

    A live source that breaks off is tried again with growing pauses (``say`` is told); so is a file's end when it
    loops. Raises InputError when the source cannot be opened the first time, or stays away for too long.
    """

    def __init__(
        self,
        source: str | Reader,
        settings: CaptureSettings | None = None,
        say: Callable[[str], None] = log.info,
    ) -> None:
        self.settings = settings or CaptureSettings()
        if isinstance(source, str):
            source = open_reader(source, size=self.settings.size, fps=self.settings.fps)
        self.reader: Reader = source
        self.live = source.live or self.settings.realtime or self.settings.fps is not None
        self._say = say
        self._news = threading.Condition()
        self._waiting: Frame | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._looks = _Looks(self.settings.frozen_after)

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading. The thread is a daemon: a driver that hangs in a read does not keep the program."""
        self._stop.set()
        with self._news:
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def __iter__(self) -> Iterator[Frame]:
        if not self.live:
            yield from self._frames()
            return
        self._thread = threading.Thread(target=self._fill, name="capture", daemon=True)
        self._thread.start()
        while True:
            with self._news:
                # A time-out lets Ctrl-C through on systems where a wait without one would not.
                while self._waiting is None and not self._ended and not self._stop.is_set():
                    self._news.wait(timeout=0.5)
                frame, self._waiting = self._waiting, None
            if frame is not None:
                yield frame
            elif self._error is not None:
                raise self._error
            else:
                return

    def _fill(self) -> None:
        """The thread: keeps `_waiting` the newest frame."""
        try:
            for frame in self._frames():
                with self._news:
                    before = self._waiting
                    lost = before.dropped + 1 if before is not None else 0
                    self._waiting = replace(frame, dropped=frame.dropped + lost)
                    self._news.notify_all()
                if self._stop.is_set():
                    break
        except (InputError, OSError, ValueError, RuntimeError, MemoryError) as error:
            # It belongs to the thread that asks for frames.
            self._error = error
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _frames(self) -> Iterator[Frame]:
        """Every picture of the source as a frame, across interruptions and loops."""
        started, offset, last, note = time.perf_counter(), 0.0, 0.0, ""
        for index, shot in enumerate(self._shots()):
            if _LOOPED in shot.note and shot.time is not None:
                offset = last + 1e-3  # the file's own times start again
            seconds = seconds_of(shot, index, started, live=self.reader.live, fps=self.settings.fps)
            if not self.reader.live:
                seconds = seconds if self.settings.fps is not None else max(seconds + offset, last + 1e-6 * (index > 0))
                if self.live and not self._pace(started + seconds):
                    return
            last = seconds
            note = "; ".join(part for part in (shot.note, self._looks.of(shot.image)) if part)
            image = torch.from_numpy(np.ascontiguousarray(shot.image))
            yield Frame(index, seconds, image, shot.name, captured=time.perf_counter(), note=note)

    def _pace(self, due: float) -> bool:
        """Waits until a replayed frame is due; False when reading was stopped meanwhile."""
        wait = due - time.perf_counter()
        return not (self._stop.wait(wait) if wait > 0 else self._stop.is_set())

    def _shots(self) -> Iterator[Shot]:
        """The reader's pictures; live readers are opened again when they break off, files when they loop."""
        note, came = "", 0
        gone_since: float | None = None
        wait = self.settings.first_wait
        while not self._stop.is_set():
            trouble: InputError | None = None
            before = came
            try:
                for shot in self.reader.shots():
                    if gone_since is not None:
                        note = f"{_AGAIN} after {time.perf_counter() - gone_since:.1f} s"
                        self._say(f"{self.reader.name}: {note}")
                        gone_since, wait = None, self.settings.first_wait
                    yield replace(shot, note="; ".join(part for part in (note, shot.note) if part)) if note else shot
                    note, came = "", came + 1
                    if self._stop.is_set():
                        return
            except InputError as error:
                trouble = error
            if came == 0:
                raise trouble or InputError(self.reader.name, "gave no picture", "check that it can be played")
            finite = not self.reader.live or (trouble is None and getattr(self.reader, "finite", False))
            if finite:
                if trouble is not None:
                    self._say(str(trouble))
                if not self.settings.loop or came == before:
                    return
                note = _LOOPED
                continue
            if gone_since is None:
                gone_since = time.perf_counter()
                self._say(f"{self.reader.name} is gone ({trouble or 'no more pictures'}); trying to reach it again")
            if time.perf_counter() - gone_since > self.settings.patience:
                raise InputError(
                    self.reader.name, f"was gone for {self.settings.patience:.0f} s", "plug it in again and start anew"
                ) from trouble
            self._stop.wait(wait)
            wait = min(2 * wait, self.settings.last_wait)


_AGAIN, _LOOPED = "back", "from the start again"
BLACK, FROZEN = "black", "frozen"


class _Looks:
    """What a picture looks like, at a glance: black, or the same as those before."""

    def __init__(self, frozen_after: int) -> None:
        self._frozen_after = frozen_after
        self._before: UInt8[np.ndarray, "h w 3"] | None = None
        self._equal = 0

    def of(self, image: UInt8[np.ndarray, "h w 3"]) -> str:
        sample = image[::8, ::8].copy()
        same = self._before is not None and np.array_equal(sample, self._before)
        self._before = sample
        self._equal = self._equal + 1 if same else 0
        # Sensor noise lifts a covered lens a little above zero; a dark room still has contrast.
        if float(sample.mean()) < 12 and float(sample.std()) < 6:
            return BLACK
        return FROZEN if self._equal >= self._frozen_after else ""
