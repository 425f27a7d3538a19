"""Messages to many pages: the newest of a kind replaces what waits, so a slow page slows nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from scenetx.serve.messages import FromServer, encode, key_of

ORDER = ("SceneInfo", "Progress", "Curve", "SplatData", "PointData", "Track")
"""In which order a new page is told what is known."""


class Mailbox:
    """What waits for one page: at most one frame of a key. Lives on the server's event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._news = asyncio.Event()

    def put(self, key: str, frame: bytes) -> None:
        """Replaces a waiting frame of the same key in its place."""
        self._waiting[key] = frame
        self._news.set()

    async def get(self) -> bytes:
        """The oldest waiting frame, as soon as there is one."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    def __len__(self) -> int:
        return len(self._waiting)


class Hub:
    """The newest frame of every key, and the mailboxes of the pages that are open.

    `publish` may be called from any thread and never waits. What a person has yet to see is kept (the scene, its
    splats, the progress); passing things (`Notice`, `Picture`) are not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, bytes] = {}
        self._mailboxes: set[Mailbox] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """The loop on which the mailboxes live; None when it ends."""
        with self._lock:
            self._loop = loop
            if loop is None:
                self._mailboxes.clear()

    def publish(self, message: FromServer) -> None:
        key = key_of(message)
        frame = encode(message)
        with self._lock:
            if key not in ("Notice", "Picture"):
                self._newest[key] = frame
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver, key, frame)

    def _deliver(self, key: str, frame: bytes) -> None:
        for mailbox in self._mailboxes:
            mailbox.put(key, frame)

    def open(self) -> Mailbox:
        """A mailbox that holds all that is known. Call on the loop."""
        mailbox = Mailbox()
        with self._lock:
            first = [key for key in ORDER if key in self._newest]
            for key in (*first, *(key for key in self._newest if key not in ORDER)):
                mailbox.put(key, self._newest[key])
            self._mailboxes.add(mailbox)
        return mailbox

    def close(self, mailbox: Mailbox) -> None:
        self._mailboxes.discard(mailbox)

    @property
    def pages(self) -> int:
        """How many pages are open."""
        return len(self._mailboxes)


async def send_all(mailbox: Mailbox, send: Callable[[bytes], Awaitable[None]]) -> None:
    """Sends what comes, forever. ``send`` returns when the page has taken the frame; meanwhile news is merged."""
    while True:
        await send(await mailbox.get())
