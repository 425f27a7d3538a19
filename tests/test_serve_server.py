"""The server: files and nothing else, this machine only, the newest message, slow pages, lost pages."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install fastapi uvicorn websockets")
from viewer_page import small_scene
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from scenetx.core import Cameras, InputError, Render
from scenetx.serve.hub import Hub, Mailbox, send_all
from scenetx.serve.messages import CameraRequest, Notice, Progress, Similarity, SplatData, encode
from scenetx.serve.pictures import PictureMaker, PictureSettings, camera_of
from scenetx.serve.server import ServerSettings, ViewerServer, file_inside

ANY_PORT = ServerSettings(port=0)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def header(frame: bytes) -> dict:
    length = int.from_bytes(frame[:4], "little")
    return json.loads(frame[4 : 4 + length])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "scene"
    (inside / "images").mkdir(parents=True)
    (inside / "scene.json").write_text("{}")
    (inside / "images" / "a b.jpg").write_bytes(bytes(range(200)))
    (inside / ".work").mkdir()
    (inside / ".work" / "secret").write_text("no")
    (tmp_path / "outside.txt").write_text("no")
    (inside / "link.txt").symlink_to(tmp_path / "outside.txt")
    (inside / "up").symlink_to(tmp_path)
    return inside


@pytest.fixture
def server(folder: Path) -> Iterator[ViewerServer]:
    with ViewerServer("test", folder, settings=ANY_PORT) as running:
        yield running


def get(server: ViewerServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    got = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return got


def test_page_and_files(server: ViewerServer, folder: Path):
    status, headers, body = get(server, "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b'data-socket="live"' in body
    status, headers, body = get(server, "/files/images/a%20b.jpg")
    assert (status, body) == (200, bytes(range(200)))
    assert headers["x-content-type-options"] == "nosniff"
    status, headers, body = get(server, "/files/images/a%20b.jpg", Range="bytes=10-19")
    assert (status, body) == (206, bytes(range(10, 20)))
    assert headers["content-range"] == "bytes 10-19/200"
    assert get(server, "/files/images/a%20b.jpg", Range="bytes=900-")[0] == 416


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt", "%2e%2e/outside.txt", "..%2foutside.txt", "images/../../outside.txt", "/etc/passwd",
        "%2fetc/passwd", "link.txt", "up/outside.txt", ".work/secret", "images", "", "images//a b.jpg", "%00",
        "..\\outside.txt", "scene.json/", "images/./a%20b.jpg", "%252e%252e/outside.txt", "a" * 5000,
    ],
)  # fmt: skip
def test_nothing_else_is_given_out(server: ViewerServer, path: str):
    assert get(server, f"/files/{path.replace(' ', '%20')}")[0] == 404


def test_a_hidden_parent_does_not_hide_the_scene(tmp_path: Path):
    inside = tmp_path / ".hidden" / "scene"
    inside.mkdir(parents=True)
    (inside / "a.txt").write_text("yes")
    assert file_inside(inside, "a.txt") == inside / "a.txt"
    if hasattr(os, "mkfifo"):
        os.mkfifo(inside / "pipe")
        assert file_inside(inside, "pipe") is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1:1", ""])
def test_other_names_are_refused(server: ViewerServer, host: str):
    assert get(server, "/", Host=host)[0] in (400, 403)
    assert get(server, "/files/scene.json", Host=host)[0] in (400, 403)


def test_other_sites_are_refused(server: ViewerServer):
    address = f"ws://127.0.0.1:{server.port}/live"
    with pytest.raises((InvalidStatus, ConnectionClosed)):
        connect(address, origin="http://evil.example", proxy=None).recv(timeout=30)
    with pytest.raises((InvalidStatus, ConnectionClosed)):
        connect(address, origin="null", proxy=None).recv(timeout=30)
    server.publish(Notice("info", "x"))
    server.publish(Progress("a", "A", 0.5, "", 1.0))
    with connect(address, origin=f"http://127.0.0.1:{server.port}", proxy=None) as page:
        assert header(page.recv(timeout=30))["type"] == "Progress"


def test_a_new_page_is_told_what_is_known_once(server: ViewerServer):
    for step in range(5):
        server.publish(SplatData(step, False, "spz", bytes(step)))
        server.publish(Progress("s", "S", step / 10, "", 1.0))
    with connect(f"ws://127.0.0.1:{server.port}/live", proxy=None) as page:
        got = [header(page.recv(timeout=30)) for _ in range(2)]
        assert [each["type"] for each in got] == ["Progress", "SplatData"]
        assert got[1]["count"] == 4
        server.publish(Notice("info", "now"))
        assert header(page.recv(timeout=30))["text"] == "now"


def test_a_hostile_message_ends_only_its_own_page(server: ViewerServer):
    address = f"ws://127.0.0.1:{server.port}/live"
    with (
        connect(address, proxy=None) as good,
        connect(address, proxy=None) as bad,
        connect(address, proxy=None) as text,
    ):
        bad.send(b"\xff" * 100)
        text.send("hello")
        for page in (bad, text):
            with pytest.raises(ConnectionClosed):
                page.recv(timeout=30)
        server.publish(Notice("info", "still here"))
        assert header(good.recv(timeout=30))["text"] == "still here"


def test_a_slow_page_slows_nobody_and_gets_the_newest():
    """The slow page takes nothing while a hundred frames come; then it gets the last one of each kind."""

    async def run() -> tuple[list[bytes], int]:
        hub = Hub()
        hub.attach(asyncio.get_running_loop())
        slow, fast = hub.open(), hub.open()
        gate, taken, fast_taken = asyncio.Event(), [], []

        async def send_slowly(frame: bytes) -> None:
            taken.append(frame)
            await gate.wait()

        async def send_at_once(frame: bytes) -> None:
            fast_taken.append(frame)

        tasks = [asyncio.create_task(send_all(slow, send_slowly)), asyncio.create_task(send_all(fast, send_at_once))]
        for step in range(100):
            hub.publish(SplatData(step, False, "spz", b""))
            hub.publish(Progress("s", "S", step / 100, "", 0.0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(slow) <= 2
        gate.set()
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        return taken, len(fast_taken)

    taken, fast = asyncio.run(run())
    assert fast > 100
    assert len(taken) <= 4
    assert {header(frame).get("count") for frame in taken[-2:]} == {99, None}


def test_publishing_before_and_after_the_server_is_harmless(folder: Path):
    server = ViewerServer("t", folder, settings=ANY_PORT)
    server.publish(Progress("a", "A", 0.0, "", 0.0))
    with server:
        assert server.hub.pages == 0
    server.publish(Progress("a", "A", 1.0, "", 0.0))


def test_the_port_is_free_again_and_taken_ones_are_passed_over(folder: Path):
    with ViewerServer("one", folder, settings=ANY_PORT) as one:
        port = one.port
        with ViewerServer("two", folder, settings=ServerSettings(port=port)) as two:
            assert two.port > port
        with pytest.raises(InputError, match="taken"):
            ViewerServer("three", folder, settings=ServerSettings(port=port, tries=1))
    with ViewerServer("four", folder, settings=ServerSettings(port=port, tries=1)) as four:
        assert four.port == port
    with pytest.raises(InputError, match="port"):
        ViewerServer("five", folder, settings=ServerSettings(port=70000))
    with pytest.raises(InputError, match="host"):
        ViewerServer("six", folder, settings=ServerSettings(host="203.0.113.7", port=0))


def test_it_listens_on_this_machine_only(server: ViewerServer):
    assert server.address == f"http://127.0.0.1:{server.port}/"
    assert server._socket.getsockname()[0] == "127.0.0.1"


def test_it_ends_while_a_page_is_open(folder: Path):
    server = ViewerServer("t", folder, settings=ANY_PORT)
    before = threading.active_count()
    with server:
        page = connect(f"ws://127.0.0.1:{server.port}/live", proxy=None)
        page.ping().wait(30)
        start = time.monotonic()
    assert time.monotonic() - start < 8
    with pytest.raises(ConnectionClosed):
        page.recv(timeout=30)
    page.close()
    assert threading.active_count() <= before + 1
    with pytest.raises(OSError, match=r".*"):
        socket.create_connection(("127.0.0.1", server.port), timeout=0.5)


def test_edits_reach_their_taker_and_errors_the_page(folder: Path):
    edits: list[Similarity] = []

    def edit(change: Similarity) -> None:
        edits.append(change)
        if change.scale > 2:
            raise InputError("scale", change.scale, "be gentle")

    with (
        ViewerServer("t", folder, on_edit=edit, settings=ANY_PORT) as server,
        connect(f"ws://127.0.0.1:{server.port}/live", proxy=None) as page,
    ):
        page.send(encode(Similarity(1.5, IDENTITY, (0.0, 0.0, 0.0))))
        page.send(encode(Similarity(3.0, IDENTITY, (0.0, 0.0, 0.0))))
        assert "be gentle" in header(page.recv(timeout=30))["text"]
    assert [edit.scale for edit in edits] == [1.5, 3.0]


def request(number: int, moving: bool, **changes: object) -> CameraRequest:
    scene = small_scene(count=1, views=1)
    camera = scene.views[0].camera
    assert camera is not None
    pose = tuple(camera.world_from_cam[0].flatten().tolist())
    fields = {"world_from_cam": pose, "lens": (400.0, 400.0, 320.0, 240.0), "width": 640, "height": 480, **changes}
    return CameraRequest(number, moving=moving, **fields)


def test_pictures_are_small_while_moving_and_full_at_rest():
    small, full = camera_of(request(1, True), 240), camera_of(request(1, False), 960)
    assert (small.height, small.width) == (180, 240)
    assert (full.height, full.width) == (480, 640)
    assert float(small.K[0, 0, 0]) == pytest.approx(150)
    assert torch.equal(small.world_from_cam, full.world_from_cam)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0},
        {"height": 1 << 20},
        {"lens": (0.0, 1.0, 1.0, 1.0)},
        {"world_from_cam": (1.0,) * 16},
        {"world_from_cam": (1.0,) * 3},
    ],
)
def test_cameras_that_make_no_sense_are_refused(changes: dict):
    with pytest.raises(InputError):
        camera_of(request(1, False, **changes), 100)


def test_a_model_is_drawn_by_the_server_newest_request_first(folder: Path):
    """While the first picture is made nine more are asked for: only the last of them is drawn."""
    drawn: list[tuple[int, int]] = []
    gate = threading.Event()

    def renderer(cameras: Cameras) -> Render:
        gate.wait(60)
        drawn.append((cameras.height, cameras.width))
        rgb = torch.zeros(1, cameras.height, cameras.width, 3)
        return Render(rgb, rgb[..., 0], rgb[..., 0])

    with (
        ViewerServer("t", folder, renderer=renderer, settings=ANY_PORT) as server,
        connect(f"ws://127.0.0.1:{server.port}/live", proxy=None) as page,
    ):
        for number in range(1, 11):
            page.send(encode(request(number, moving=number < 10)))
        page.send(encode(Similarity(1.0, IDENTITY, (0.0, 0.0, 0.0))))
        assert "cannot be changed" in header(page.recv(timeout=30))["text"]  # so all requests have arrived
        gate.set()
        numbers = []
        while not numbers or numbers[-1] != 10:
            picture = header(page.recv(timeout=30))
            numbers.append(picture["request"])
    assert len(drawn) == len(numbers) <= 2
    assert drawn[-1] == (480, 640)


def test_a_renderer_that_fails_is_a_notice():
    def renderer(cameras: Cameras) -> Render:
        raise RuntimeError(f"out of memory at {cameras.width}")

    maker = PictureMaker(renderer, PictureSettings(moving_side=32))
    got: list[bytes] = []

    async def ask() -> None:
        mailbox = Mailbox()
        maker.ask(request(1, True), mailbox, asyncio.get_running_loop())
        got.append(await asyncio.wait_for(mailbox.get(), 30))

    asyncio.run(ask())
    maker.close()
    assert "out of memory at 32" in header(got[0])["text"]
