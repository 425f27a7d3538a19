"""The viewer's server: the page, the scene's files and a web socket, on this machine only unless asked otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import uvicorn
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, HTMLResponse, Response

from scenetx.core import InputError
from scenetx.serve.hub import Hub, send_all
from scenetx.serve.messages import MAX_REQUEST_BYTES, CameraRequest, FromServer, Notice, Similarity
from scenetx.serve.messages import decode_request as decode
from scenetx.serve.page import served_page
from scenetx.serve.pictures import PictureMaker, Renderer

log = logging.getLogger(__name__)
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
SHUTDOWN_SECONDS = 3
POLICY_VIOLATION = 1008


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    """The first port tried; 0 = any free one."""
    tries: int = 50
    """How many ports from there on are tried."""


class ViewerServer:
    """A context manager: serves from its own thread until it is left.

    folder: the scene's folder; only files inside it are given out (addresses ``/files/...``), with range requests.
    renderer: makes the pictures of scenes that have no splats. on_edit: takes the frame a person has set; what it
    raises as InputError is told to the page. Raises InputError when no port is free or the host is not ours.
    """

    def __init__(
        self,
        title: str,
        folder: str | Path | None = None,
        *,
        renderer: Renderer | None = None,
        on_edit: Callable[[Similarity], None] | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.hub = Hub()
        self._title = title
        self._folder = None if folder is None else Path(folder).resolve()
        self._on_edit = on_edit
        self._pictures = None if renderer is None else PictureMaker(renderer)
        self._socket = _bind(self.settings)
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def address(self) -> str:
        host = self.settings.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}/"

    def publish(self, message: FromServer) -> None:
        """Tells every page, now or when it opens. From any thread; never waits."""
        self.hub.publish(message)

    def __enter__(self) -> ViewerServer:
        config = uvicorn.Config(
            self._app(),
            log_level="critical",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=MAX_REQUEST_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._server, ready), name="viewer", daemon=True)
        self._thread.start()
        if not ready.wait(20) or not self._server.started:
            self.close()
            raise InputError(self.address, "the server did not start", "try another --port")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server; pages see a closed connection and wait for the next one."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(SHUTDOWN_SECONDS + 5)
        self.hub.attach(None)
        if self._pictures is not None:
            self._pictures.close()
        self._socket.close()

    def _run(self, server: uvicorn.Server, ready: threading.Event) -> None:
        async def serve() -> None:
            self.hub.attach(asyncio.get_running_loop())
            watcher = asyncio.create_task(_when_started(server, ready))
            try:
                await server.serve(sockets=[self._socket])
            finally:
                watcher.cancel()
                ready.set()

        # Signals belong to the main thread, which decides when to end.
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(serve())

    def _app(self) -> FastAPI:
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=_no_lifespan)
        app.add_api_route("/", self._page, methods=["GET", "HEAD"], response_class=HTMLResponse)
        app.add_api_route("/files/{path:path}", self._file, methods=["GET", "HEAD"], response_model=None)
        app.add_api_websocket_route("/live", self._live)
        return app

    async def _page(self, request: Request) -> Response:
        self._check_host(request.headers.get("host", ""))
        return HTMLResponse(served_page(self._title, "live"), headers=HEADERS)

    async def _file(self, path: str, request: Request) -> Response:
        self._check_host(request.headers.get("host", ""))
        found = None if self._folder is None else file_inside(self._folder, path)
        if found is None:
            raise HTTPException(404, "no such file in the scene")
        return FileResponse(found, headers={**HEADERS, "Content-Security-Policy": "sandbox"})

    def _check_host(self, host: str) -> None:
        """A page of another site could reach us under a name of its own that points here (DNS rebinding)."""
        if not self._is_ours(host):
            raise HTTPException(403, f"open {self.address} instead")

    def _is_ours(self, host: str) -> bool:
        """Only loopback is known by name; a server opened to the network is reached by many names."""
        if not _is_loopback(self.settings.host):
            return True
        return host in {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]", self.settings.host)}

    async def _live(self, page: WebSocket) -> None:
        host, origin = page.headers.get("host", ""), page.headers.get("origin")
        # Programs send no Origin; a browser always does, and only our own page may talk to us.
        if not self._is_ours(host) or (origin is not None and origin != f"http://{host}"):
            await page.close(POLICY_VIOLATION)
            return
        await page.accept()
        mailbox = self.hub.open()
        sender = asyncio.create_task(send_all(mailbox, page.send_bytes))
        try:
            while True:
                request = decode(await page.receive_bytes())
                if isinstance(request, CameraRequest):
                    if self._pictures is not None:
                        self._pictures.ask(request, mailbox, asyncio.get_running_loop())
                else:
                    await asyncio.to_thread(self._edit, request)
        except (WebSocketDisconnect, KeyError):
            pass  # KeyError: a text frame, which our page never sends
        except InputError as error:
            log.warning("a page was shut out: %s", error)
            with contextlib.suppress(RuntimeError):
                await page.close(POLICY_VIOLATION)
        finally:
            self.hub.close(mailbox)
            sender.cancel()
            if self._pictures is not None:
                self._pictures.forget(mailbox)
            with contextlib.suppress(asyncio.CancelledError, RuntimeError, WebSocketDisconnect):
                await sender

    def _edit(self, request: Similarity) -> None:
        if self._on_edit is None:
            self.publish(Notice("warning", "This scene cannot be changed from here."))
            return
        try:
            self._on_edit(request)
        except InputError as error:
            self.publish(Notice("error", str(error)))


@contextlib.asynccontextmanager
async def _no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


async def _when_started(server: uvicorn.Server, ready: threading.Event) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    ready.set()


def file_inside(folder: Path, path: str) -> Path | None:
    """The regular file ``path`` of ``folder``, or None: not there, hidden, or outside by dots, links or roots."""
    if "\0" in path or "\\" in path or any(part.startswith(".") or not part for part in path.split("/")):
        return None
    try:
        found = (folder / path).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return found if found.is_file() and found.is_relative_to(folder.resolve()) else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(settings: ServerSettings) -> socket.socket:
    """A listening socket on the first free port."""
    if not 0 <= settings.port < 65536:
        raise InputError("port", settings.port, "choose 0 to 65535")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    last = settings.port + (settings.tries if settings.port else 1)
    for port in range(settings.port, min(last, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
            listener.listen(64)
            return listener
        except OSError as error:
            listener.close()
            if not isinstance(error, PermissionError) and error.errno != errno.EADDRINUSE:
                raise InputError(f"host {settings.host}", error.strerror or error, "use 127.0.0.1") from error
    raise InputError("port", f"{settings.port} to {last - 1} are taken", "choose another --port")
