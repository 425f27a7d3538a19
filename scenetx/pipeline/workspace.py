"""The output folder while work is under way: what is done stays done, and nobody else's files are touched."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scenetx.core import InputError, Stage

LOCK = "lock"
CLOCK = ".seconds.json"
Report = Callable[[str, float, str], None]
"""Called with the stage's name, the share done in [0, 1] and a word on it; must return quickly."""


def silent(stage: str, fraction: float, message: str) -> None:
    """A `Report` that tells nobody."""


@dataclass
class Workspace:
    """``folder`` is the scene's; ``folder/.work`` holds what an interrupted run needs to go on."""

    folder: Path
    report: Report = silent
    stages: list[Stage] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / ".work"

    @contextmanager
    def held(self, *, again: bool = False) -> Iterator[None]:
        """The folder, open and ours alone for the block: a second run in it would mix its steps with these.

        ``again`` empties the work area. Raises `InputError` where the folder cannot be the scene's, or is held. When
        the block itself ends in an `InputError` and left no work behind, folders made for it go again.
        """
        made = [path for path in (self.work, *self.work.parents) if not path.exists()]
        self.open()
        lock = FileLock(self.work / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            do = "wait for it, or name another folder with --output"
            raise InputError(str(self.folder), "another run is at work in it", do) from error
        try:
            if again:
                self._empty()
            yield
        except InputError:
            self._undo(made)
            raise
        finally:
            lock.release()

    def open(self) -> None:
        if self.folder.is_file():
            raise InputError(str(self.folder), "is a file", "name a folder with --output")
        ours = not self.folder.exists() or (self.folder / "scene.json").exists() or self.work.exists()
        if not ours and any(self.folder.iterdir()):
            raise InputError(str(self.folder), "holds other files", "name a new or empty folder with --output")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(str(self.folder), error.strerror, "name a folder that can be written") from error

    def _undo(self, made: Sequence[Path]) -> None:
        """Without the folders ``made`` (innermost first), where nothing but the lock and clocks came into them."""
        inside = self.work.iterdir() if self.work.is_dir() else ()
        if not made or any(path.name != LOCK and not path.name.endswith(CLOCK) for path in inside):
            return
        self.close()
        with suppress(OSError):  # one that holds something stays, and those above it
            for folder in made[1:]:
                folder.rmdir()

    def _empty(self) -> None:
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()

    def close(self) -> None:
        """The scene is saved and no longer held: what was kept for going on can go."""
        shutil.rmtree(self.work, ignore_errors=True)

    @contextmanager
    def stage(self, name: str, settings: Mapping[str, Any] | None = None) -> Iterator[list[str]]:
        """Times a stage and remembers its seconds over interruptions; the body appends its notes to the list."""
        clock = self.work / f"{name}{CLOCK}"
        earlier = _read_seconds(clock)
        notes: list[str] = []
        start = time.monotonic()
        self.report(name, 0.0, "")
        try:
            yield notes
        finally:
            seconds = earlier + time.monotonic() - start
            if self.work.exists():
                clock.write_text(json.dumps(seconds))
        self.stages.append(Stage(name, round(seconds, 2), dict(settings or {}), tuple(notes)))
        self.report(name, 1.0, notes[-1] if notes else "")

    def progress(self, name: str) -> Callable[[str, float], None]:
        """A callback for rooms that report (message, share)."""
        return lambda message, fraction: self.report(name, fraction, message)


def _read_seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return 0.0


def default_output(source: str) -> Path:
    """``photos/`` -> ``photos-scene`` beside the working directory's files, whatever the source's own suffix."""
    base = Path(source.rstrip("/*").rstrip(os.sep) or ".")
    stem = base.stem if base.is_file() or any(c in base.name for c in "*?[") else base.name
    stem = stem if stem not in ("", ".", "..", "*") else Path.cwd().name
    return Path(f"{stem}-scene")
