"""The live page: what the server says appears, the connection comes back, edits are written, models are streamed."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="pip install fastapi uvicorn websockets")
from viewer_page import PATIENCE, Page, chromium, small_scene

from scenetx.core import Cameras, Points, Render, Scene
from scenetx.fit import FitUpdate
from scenetx.io.scene_dir import load_scene, save_scene
from scenetx.live.update import Status, Update
from scenetx.pipeline.page import splat_data, write_page
from scenetx.pipeline.track_view import TrackView
from scenetx.pipeline.view import ViewSettings, apply_frame, served, served_file
from scenetx.pipeline.watch import TimeToGo, Watch, WatchSettings
from scenetx.serve.contents import describe, jpeg
from scenetx.serve.messages import Similarity, Track
from scenetx.serve.server import ServerSettings, ViewerServer
from scenetx.splat import rasterize

QUARTER = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0)  # about x: +y becomes +z


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def scene() -> Scene:
    return small_scene(count=120, views=6)


@pytest.fixture
def folder(scene: Scene, tmp_path: Path) -> Path:
    save_scene(scene, tmp_path / "blobs-scene")
    return tmp_path / "blobs-scene"


def update(step: int, scene: Scene, **changes: Any) -> FitUpdate:
    assert scene.gaussians is not None
    splats = scene.gaussians[: 20 * step]
    psnr = 20.0 + step if step % 2 == 0 else None
    return FitUpdate(step, 5, 1.0 / step, psnr, None, len(splats), float(step), snapshot=lambda: splats, **changes)


@pytest.mark.slow
def test_a_reconstruction_can_be_watched(browser: Any, scene: Scene) -> None:
    with ViewerServer("blobs", settings=ServerSettings(port=0)) as server:
        page = Page(browser, server.address)
        page.until("document.documentElement.dataset.connection === 'open'")
        watch = Watch(server, "blobs", settings=WatchSettings(splat_seconds=0.0, splat_share=1.0))
        watch.report("cameras", 0.4, "12 of 30 pictures")
        page.page.get_by_text("12 of 30 pictures").wait_for(timeout=PATIENCE * 1000)
        watch.scene(replace(scene, gaussians=None))
        page.until("scenetx.frustums.frustums.length === 6 && scenetx.points.count === 120")
        for step in (1, 2, 3, 4):
            watch.fitting(update(step, scene))
            page.until(f"scenetx.splats.count === {20 * step}")
        page.page.get_by_text("24.0 dB").wait_for()
        page.page.get_by_text("step 4 of 5").wait_for()
        watch.finished()
        page.until("scenetx.live.root.hidden")
        assert page.errors == []
        page.close()


@pytest.mark.slow
def test_a_lost_server_is_said_and_found_again(browser: Any, scene: Scene) -> None:
    with ViewerServer("blobs", settings=ServerSettings(port=0)) as server:
        port = server.port
        server.publish(describe(scene, title="before", live=True))
        page = Page(browser, server.address)
        page.until("scenetx.info?.title === 'before'")
    page.page.get_by_text("The server does not answer").wait_for(timeout=PATIENCE * 1000)
    with ViewerServer("blobs", settings=ServerSettings(port=port, tries=1)) as server:
        server.publish(describe(scene, title="after", live=True))
        page.until("scenetx.info?.title === 'after'")
        page.until("!document.querySelector('.notices').textContent.includes('does not answer')")
    page.close()


@pytest.mark.slow
def test_scale_set_in_the_page_is_written_to_the_scene(browser: Any, folder: Path) -> None:
    before = load_scene(folder)
    with served(folder, ViewSettings(port=0)) as server:
        page = Page(browser, server.address).ready()
        photo = page.js("fetch(scenetx.info.views[2].photo).then((answer) => answer.blob()).then((blob) => blob.type)")
        assert photo == "image/png"
        away = page.js("scenetx.stage.eye.position.length()")
        page.js("scenetx.measure.start('length')")
        page.page.evaluate(
            "(places) => { const V = scenetx.stage.eye.position.constructor;"
            "for (const place of places) scenetx.measure.add(new V(...place)) }",
            [[0, 0, 0], [0.5, 0, 0]],
        )
        page.js("scenetx.openPanel(true), scenetx.measure.root.open = true")
        page.page.get_by_label("True length").fill("1.5")
        page.page.get_by_role("button", name="Set the scale").click()
        page.until(f"Math.abs(scenetx.stage.eye.position.length() - {3 * away}) < 1e-6")
        deadline = threading.Event()
        for _ in range(200):
            after = load_scene(folder)
            if float(after.world_from_cams[0, 0, 3]) != float(before.world_from_cams[0, 0, 3]):
                break
            deadline.wait(0.1)
        page.close()
    assert torch.allclose(after.world_from_cams[:, :3, 3], 3 * before.world_from_cams[:, :3, 3])
    assert after.gaussians is not None
    assert before.gaussians is not None
    assert torch.allclose(after.gaussians.scales, 3 * before.gaussians.scales, rtol=1e-5)


def test_a_new_frame_looks_the_same(scene: Scene, folder: Path, tmp_path: Path) -> None:
    """The scene turned, scaled and shifted renders the same picture from its own cameras; depth grows by the scale."""
    assert scene.gaussians is not None
    write_page(scene, folder / "viewer.html")
    page = (folder / "viewer.html").read_bytes()
    frame = tmp_path / "frame.json"
    frame.write_text('{"scale": 2.5, "rotation": [1,0,0, 0,0,-1, 0,1,0], "translation": [1, 2, 3]}')
    apply_frame(folder, frame)
    moved = load_scene(folder)
    assert moved.gaussians is not None
    before, after = scene.registered[0].camera, moved.registered[0].camera
    assert before is not None
    assert after is not None
    a = rasterize(scene.gaussians, before.to(torch.float32), backend="cpu")
    b = rasterize(moved.gaussians, after.to(torch.float32), backend="cpu")
    assert float((a.rgb - b.rgb).abs().max()) < 2e-3
    assert float(((b.depth - 2.5 * a.depth).abs() * (a.alpha > 0.5)).max()) < 0.02
    assert describe(moved).up == pytest.approx((0, 0, 1))
    assert (folder / "viewer.html").read_bytes() != page
    frame.write_text('{"scale": 2.5, "rotation": [1,0,0, 0,0,2, 0,1,0], "translation": [1, 2, 3]}')
    with pytest.raises(ValueError, match="rotation"):
        apply_frame(folder, frame)


@pytest.mark.slow
def test_a_model_is_streamed(browser: Any, scene: Scene) -> None:
    """The picture behind the frustums is the renderer's, for the browser's own camera, small then full."""
    sizes: list[int] = []

    def renderer(cameras: Cameras) -> Render:
        assert scene.gaussians is not None
        sizes.append(cameras.width)
        return rasterize(scene.gaussians, cameras, backend="cpu")

    with ViewerServer("model", renderer=renderer, settings=ServerSettings(port=0)) as server:
        server.publish(describe(replace(scene, gaussians=None, points=None), title="model", rendered=True))
        page = Page(browser, server.address, {"width": 384, "height": 288})
        page.until("scenetx.stage.scene.background?.isTexture")
        page.js("scenetx.panel.switches.frustums.set(false)")
        page.js("scenetx.photo.enter(scenetx.info.views[2], 0).then(() => null)")
        camera = scene.views[2].camera
        assert camera is not None
        assert scene.gaussians is not None
        wanted = rasterize(scene.gaussians, camera.resized(288, 384).to(torch.float32), backend="cpu").rgb[0]
        error = 255.0
        for _ in range(100):
            error = float((page.pixels().float() / 255 - wanted.detach().clamp(0, 1)).abs().mean())
            if error < 0.02:
                break
            page.page.wait_for_timeout(100)
        assert error < 0.02
        for _ in range(4):
            page.js("scenetx.controls.turn(0.02, 0)")
            page.page.wait_for_timeout(50)
        page.until("scenetx.stream.asked > 3")
        for _ in range(100):
            if 240 in sizes and sizes[-1] == 384:
                break
            page.page.wait_for_timeout(100)
        page.close()
    assert set(sizes) == {240, 384}
    assert sizes[-1] == 384


@pytest.mark.slow
def test_tracking_is_shown(browser: Any, scene: Scene) -> None:
    with ViewerServer("track", settings=ServerSettings(port=0)) as server:
        server.publish(describe(scene, title="track", live=True))
        page = Page(browser, server.address)
        pose = scene.world_from_cams[0]
        line = np.linspace(0, 1, 30, dtype="<f4").reshape(10, 3)
        picture = jpeg(scene.views[0].image.numpy(), 64, 80)
        keyframes = pose.flatten().numpy().astype("<f4").tobytes()
        lens = (100.0, 100.0, 96.0, 72.0)
        numbers = tuple(pose.flatten().tolist())
        server.publish(
            Track(41, 1.5, "weak", "27 inliers", numbers, lens, 192, 144, picture, line.tobytes(), keyframes)
        )
        page.page.get_by_text("unsure: the place may be off").wait_for(timeout=PATIENCE * 1000)
        page.until("scenetx.live.path.geometry.attributes.position.count === 10")
        page.until("scenetx.live.keyframes.geometry.attributes.position.count === 16")
        server.publish(Track(42, 1.6, "lost", "", None, lens, 192, 144, b"", line.tobytes(), b""))
        page.page.get_by_text("Frame 42").wait_for()
        page.page.get_by_text("lost: go back to what was seen before").wait_for()
        page.page.get_by_text("the camera and its way").wait_for()
        assert page.js("scenetx.live.camera.visible") is False
        assert page.errors == []
        page.close()


def frame_update(index: int, status: Status, keyframes: int, note: str) -> Update:
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]], dtype=torch.float64)
    pose = None
    if status != "init":
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 0.1 * index
    image = torch.full((48, 64, 3), 90, dtype=torch.uint8)
    return Update(index, index / 10, status, pose, K, 1.0, keyframes > 0, keyframes, note=note, image=image)


@pytest.mark.slow
def test_a_map_that_grows_is_shown(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a map to start from: what to do, then the points as they come; the newest take the others' place."""
    monkeypatch.setattr("scenetx.pipeline.track_view.SECONDS", 0.0)
    monkeypatch.setattr("scenetx.pipeline.track_view.MAP_SECONDS", 0.0)
    known: list[Points] = []
    said: list[str] = []
    gen = torch.Generator().manual_seed(1)
    with TrackView(
        None, "walk.mp4", port=0, open_browser=False, say=said.append, growing=lambda: known[-1] if known else None
    ) as view:
        page = Page(browser, said[0].split()[-1])
        view.show(frame_update(0, "init", 0, "not found in the map"))
        page.page.get_by_text("Move slowly sideways").wait_for(timeout=PATIENCE * 1000)
        for step, count in ((1, 40), (2, 90), (3, 70)):
            places = torch.randn(count, 3, generator=gen) * 0.3 + torch.tensor([0.0, 0, 2])
            known.append(Points(places, torch.full((count, 3), 200, dtype=torch.uint8)))
            view.show(frame_update(step, "tracking", step + 1, "patches; zooming"))
            page.until(f"scenetx.points.count === {count}")
        page.page.get_by_text("70 points").wait_for()
        page.page.get_by_text("zooming", exact=True).wait_for()  # and not how the place was found
        page.until("scenetx.live.keyframes.geometry.attributes.position.count === 48")
        assert page.js("scenetx.photo.strip.hidden && scenetx.panel.switches.points.input.checked") is True
        assert int((page.pixels().min(-1).values > 150).sum()) > 30
        assert page.errors == []
        page.close()


def test_the_time_to_go_is_none_until_it_is_known_and_when_nothing_moves() -> None:
    slow_start = TimeToGo(0.0)
    told = [slow_start.told(step / 100, 60.0 + step) for step in range(1, 100)]
    assert told[:3] == [None, None, None]
    assert told[3:] == pytest.approx([100.0 - step for step in range(4, 100)])
    stalls = TimeToGo(0.0)
    for step in range(1, 51):
        last = stalls.told(step / 100, float(step))
    assert last == pytest.approx(50)
    standing = [stalls.told(0.5, 50.0 + seconds) for seconds in (1, 4, 6, 60, 36_000)]
    assert standing == [pytest.approx(49), pytest.approx(46), None, None, None]
    again = [stalls.told(0.5 + step / 100, 36_050.0 + step) for step in range(1, 6)]
    assert again == [None, None, None, pytest.approx(46), pytest.approx(45)]
    assert stalls.told(0.02, 36_060.0) is None  # the stage began anew
    assert TimeToGo(0.0).told(math.nan, 1.0) is None


@pytest.mark.slow
def test_a_splat_file_alone_opens(browser: Any, scene: Scene, tmp_path: Path) -> None:
    assert scene.gaussians is not None
    path = tmp_path / "splats.spz"
    path.write_bytes(splat_data(scene.gaussians).data)
    with served_file(path, ViewSettings(port=0)) as server:
        page = Page(browser, server.address).ready()
        assert float(page.pixels().double().std()) > 5
        assert page.errors == []
        page.close()


@pytest.mark.slow
def test_many_updates_leave_nothing_behind(browser: Any, scene: Scene) -> None:
    assert scene.gaussians is not None
    with ViewerServer("many", settings=ServerSettings(port=0)) as server:
        server.publish(describe(scene, title="many", live=True))
        server.publish(splat_data(scene.gaussians))
        page = Page(browser, server.address).ready()
        page.held(20)
        first, last = page.held(10), page.held(50)
        page.close()
    assert last[2:] == first[2:]
    assert abs(last[0] - first[0]) < 25  # of some 7,000 objects: an update that keeps one of its own shows
    assert last[1] - first[1] < 150_000  # bytes; code that the engine compiles meanwhile is among them


def test_similarity_without_turning_keeps_the_way_up(scene: Scene) -> None:
    from scenetx.pipeline.view import in_new_frame

    up = describe(scene).up
    assert describe(
        in_new_frame(scene, Similarity(3.0, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 5.0)))
    ).up == pytest.approx(up)
    turned = in_new_frame(scene, Similarity(1.0, QUARTER, (0.0, 0.0, 0.0)))
    assert describe(turned).up == (0.0, 0.0, 1.0)
