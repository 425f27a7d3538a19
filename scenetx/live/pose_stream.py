"""Poses to other programs as they come: JSON in UDP datagrams, or from a WebSocket server.

    udp://HOST:PORT   each update is sent there as one datagram
    ws://HOST:PORT    programs connect here; each gets every update from then on as a text message

A message is one line of `outputs.as_json`: ``{"index", "time", "status", "world_from_cam": 16 numbers row by row or
null, "K": 9 numbers, "height", "width", "confidence", "added", "keyframes", "latency", "dropped", "locator", "note"}``.
A receiver that is not there, or slow, holds up nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from types import TracebackType
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from scenetx.core import InputError
from scenetx.live.outputs import as_json
from scenetx.live.update import Update

# A page of another site may not listen to where somebody's camera is.
OURS = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
MAX_WAITING = 1 << 20  # bytes that may wait for a slow reader before it is let go


@runtime_checkable
class PoseStream(Protocol):
    """A context manager that takes updates."""

    def __enter__(self) -> PoseStream: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, update: Update) -> None: ...


def open_stream(address: str) -> PoseStream:
    """The stream for an address. Raises InputError for anything but udp://HOST:PORT and ws://HOST:PORT."""
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("udp", "ws") or not host or port is None:
        raise InputError("stream", address, "give udp://HOST:PORT or ws://HOST:PORT, for example udp://127.0.0.1:9000")
    return UdpStream(host, port) if parts.scheme == "udp" else WebSocketStream(host, port)


def message(update: Update) -> str:
    """One update on one line."""
    return json.dumps(as_json(update), allow_nan=False, ensure_ascii=False, separators=(",", ":"))


class UdpStream:
    """One datagram an update."""

    def __init__(self, host: str, port: int) -> None:
        self._where = f"udp://{host}:{port}"
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise InputError("stream", f"{self._where} ({error})", "check the host's name") from error
        self._address: tuple[Any, ...] = address
        self._socket = socket.socket(family, kind)
        self._socket.setblocking(False)

    def __enter__(self) -> UdpStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, update: Update) -> None:
        # Nobody there, or a full buffer: the next pose is worth more than this one.
        with contextlib.suppress(OSError):
            self._socket.sendto(message(update).encode(), self._address)


class WebSocketStream:
    """A server in a thread of its own. Raises InputError when the port cannot be had."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: set[Any] = set()
        self._ready = threading.Event()
        self._done: asyncio.Event | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="poses", daemon=True)

    def __enter__(self) -> WebSocketStream:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            where = f"ws://{self._host}:{self._port} ({self._error.strerror or self._error})"
            raise InputError("stream", where, "choose a free port of this machine") from self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._done is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(timeout=5)

    @property
    def port(self) -> int:
        """Where it listens (of use after asking for port 0)."""
        return self._port

    def send(self, update: Update) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell, message(update))

    def _tell(self, text: str) -> None:
        from websockets.asyncio.server import broadcast

        for reader in list(self._readers):
            if reader.transport.get_write_buffer_size() > MAX_WAITING:
                reader.transport.abort()
        broadcast(self._readers, text)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from websockets.asyncio.server import serve

        self._done, self._loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            server = await serve(self._meet, self._host, self._port, origins=[None, OURS], max_size=1 << 12)
        except OSError as error:
            self._error = error
            return
        async with server:
            self._port = next(iter(server.sockets)).getsockname()[1]
            self._ready.set()
            await self._done.wait()

    async def _meet(self, reader: Any) -> None:
        self._readers.add(reader)
        try:
            await reader.wait_closed()
        finally:
            self._readers.discard(reader)
