"""Maps are built beside the tracking, in a thread of their own; the tracker takes the newest when it is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Wish = TypeVar("Wish")
Made = TypeVar("Made")


class Mapper(Generic[Wish, Made]):
    """One builder thread, at most one wish waiting and one result waiting: memory does not grow with time.

    A newer wish replaces one that has not been begun. `take` hands over the newest finished result as a whole: whoever
    tracks sees the old map or the new one, never a mixture. What goes wrong while building (too little memory, pictures
    that do not go together) is told by `trouble` and costs that wish only; what should never go wrong ends the thread,
    and raises RuntimeError where its work is asked for.
    """

    def __init__(self, build: Callable[[Wish], Made], *, name: str = "mapper") -> None:
        self._build = build
        self._change = threading.Condition()
        self._wish: list[Wish] = []
        self._made: list[Made] = []
        self._trouble = ""
        self._died = False
        self._working = self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Something is being built, waits to be built, or waits to be taken."""
        with self._change:
            self._check()
            return self._working or bool(self._wish) or bool(self._made)

    def ask(self, wish: Wish) -> None:
        """Have this built next. Raises RuntimeError after `close`."""
        with self._change:
            self._check()
            if self._closed:
                raise RuntimeError("the mapper is closed")
            self._wish = [wish]
            self._change.notify_all()

    def take(self) -> Made | None:
        """What was finished since the last call, once; None = nothing."""
        with self._change:
            self._check()
            return self._made.pop() if self._made else None

    def trouble(self) -> str:
        """What went wrong since the last call, in words; once."""
        with self._change:
            said, self._trouble = self._trouble, ""
            return said

    def settle(self, timeout: float | int | None = None) -> bool:
        """Wait until nothing is being built. False = it took longer than ``timeout`` seconds."""
        with self._change:
            done = self._change.wait_for(lambda: not self._working and not self._wish, timeout)
            self._check()
            return done

    def _check(self) -> None:
        if self._died:
            raise RuntimeError("the thread that builds maps has ended by a mistake of the program; it is told above")

    def close(self) -> None:
        """Forget waiting wishes and end the thread (what is being built is finished first)."""
        with self._change:
            self._closed = True
            self._wish.clear()
            self._change.notify_all()
        self._thread.join()

    def __enter__(self) -> Mapper[Wish, Made]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._wish) or self._closed)
                if self._closed:
                    return
                wish = self._wish.pop()
                self._working = True
            trouble, made, ended = "", [], False
            try:
                made = [self._build(wish)]
                ended = True
            except (ValueError, RuntimeError, MemoryError, ArithmeticError) as error:
                # InputError is a ValueError, and what a tensor library throws at full memory a RuntimeError.
                trouble, ended = " ".join(str(error).split())[:200] or type(error).__name__, True
            finally:
                if not ended:  # whoever waits must not wait for ever
                    with self._change:
                        self._died, self._working = True, False
                        self._wish.clear()
                        self._change.notify_all()
            del wish
            with self._change:
                self._made = made or self._made
                self._trouble = trouble or self._trouble
                self._working = False
                self._change.notify_all()
