"""The viewer in a browser: pixels against our own rasterizer, every control, the page from disk with no network."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from viewer_page import Page, chromium, psnr, small_scene

from scenetx.core import Cameras, Scene
from scenetx.io.camera_path import read_camera_path
from scenetx.io.spz import read_spz
from scenetx.pipeline.page import contents_of, write_page
from scenetx.serve.page import write_viewer_page
from scenetx.splat import rasterize

pytestmark = pytest.mark.slow
AXE = Path(__file__).parents[1] / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
FREE_FRUSTUM = """(() => {
  for (const { view, apex } of scenetx.frustums.frustums) {
    const at = scenetx.stage.project(apex);
    const free = at && document.elementFromPoint(at.x, at.y) === scenetx.stage.canvas;
    if (free && scenetx.frustums.pick(at.x, at.y)?.name === view.name) return [at.x, at.y, view.name];
  }
})()"""
ADD_POINTS = """(places) => {
  const Vector = scenetx.stage.eye.position.constructor;
  for (const place of places) scenetx.measure.add(new Vector(...place));
}"""
FREE_HANDLE = """scenetx.crop.handles().map((handle) => scenetx.stage.project(handle.place)).find(
  (at) => at && document.elementFromPoint(at.x, at.y) === scenetx.stage.canvas)"""
UNIT_BOX = """((box) => {
  const vector = (value) => box.center.clone().set(value, value, value);
  scenetx.crop.set({ ...box, center: vector(0), half: vector(0.5) });
})(scenetx.crop.box)"""
VIOLATIONS = """axe.run(document, { resultTypes: ["violations"] }).then((found) =>
  found.violations.map((each) => [each.id, each.nodes.map((node) => node.html).slice(0, 3)]))"""
HIDE = 'for (const name of ["points", "frustums", "grid"]) scenetx.panel.switches[name].set(false)'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def scene() -> Scene:
    return small_scene()


@pytest.fixture(scope="module")
def address(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(scene, tmp_path_factory.mktemp("page") / "blobs.html", title="blobs").as_uri()


@pytest.fixture(scope="module")
def shared(browser: Any, address: str) -> Iterator[Page]:
    """One page for the tests that leave it as they found it."""
    page = Page(browser, address, offline=True).ready()
    yield page
    page.close()


@pytest.fixture
def page(shared: Page) -> Iterator[Page]:
    yield shared
    shared.js("scenetx.measure.stop(), scenetx.crop.set(null), scenetx.path.stop(), scenetx.photo.leave()")
    shared.js(
        "scenetx.panel.switches.splats.set(true), scenetx.panel.switches.frustums.set(true),"
        "scenetx.panel.switches.points.set(false), scenetx.panel.switches.grid.set(false), scenetx.path.keys = [],"
        "scenetx.path.update(), scenetx.frameAll(0)"
    )
    assert shared.errors == []


def ours(scene: Scene, camera: Cameras) -> torch.Tensor:
    assert scene.gaussians is not None
    with torch.no_grad():
        rgb = rasterize(scene.gaussians, camera.to(torch.float32), backend="cpu").rgb[0]
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("antialiased", [False, True])
def test_pixels_are_those_of_our_rasterizer(browser: Any, scene: Scene, antialiased: bool, tmp_path: Path) -> None:
    assert scene.gaussians is not None
    scene = replace(scene, gaussians=replace(scene.gaussians, antialiased=antialiased))
    page = Page(browser, write_page(scene, tmp_path / "page.html").as_uri(), {"width": 384, "height": 288}).ready()
    page.js(HIDE)
    page.js('scenetx.stage.background("#000000")')
    for index in (0, 5):
        page.js(f"scenetx.photo.enter(scenetx.info.views[{index}], 0).then(() => null)")
        camera = scene.views[index].camera
        assert camera is not None
        seen, wanted = page.pixels(), ours(scene, camera.resized(288, 384))
        assert seen.shape == wanted.shape
        assert psnr(seen, wanted) > 30
    page.close()


def test_the_page_asks_nothing_of_the_network(page: Page, address: str) -> None:
    asked = [url for url in page.requests if not url.startswith(("data:", "blob:"))]
    assert asked == [address]
    assert "default-src 'none'" in page.page.content()


def test_layers_can_be_switched(page: Page) -> None:
    both = page.pixels()
    page.page.keyboard.press("3")
    assert page.js("scenetx.panel.switches.frustums.input.checked") is False
    splats = page.pixels()
    page.page.keyboard.press("1")
    nothing = page.pixels()
    page.page.keyboard.press("2")
    points = page.pixels()
    page.page.keyboard.press("4")
    grid = page.pixels()
    pictures = [both, splats, nothing, points, grid]
    for a, b in pairwise(pictures):
        assert int((a.int() - b.int()).abs().sum(-1).gt(20).sum()) > 60
    assert len(nothing.reshape(-1, 3).unique(dim=0)) == 1
    page.js("scenetx.points.setSize(10)")
    assert int((page.pixels() != grid).any(-1).sum()) > 500
    page.js("scenetx.points.setLeastConfidence(1)")
    fewer = page.pixels()
    page.js("scenetx.points.setLeastConfidence(0), scenetx.points.setSize(3)")
    assert int((fewer != nothing).any(-1).sum()) < int((grid != nothing).any(-1).sum())


def test_opacity_and_depth_filters_take_splats_away(page: Page) -> None:
    page.js(HIDE)
    full = page.pixels().double().mean()
    page.js("scenetx.splats.setLeastOpacity(0.7)")
    strong = page.pixels().double().mean()
    page.js("scenetx.splats.setLeastOpacity(0), scenetx.stage.clip.far = 0.01, scenetx.stage.draw()")
    none = page.pixels()
    page.js("scenetx.stage.clip.far = 200, scenetx.stage.draw()")
    assert strong < full
    assert len(none.reshape(-1, 3).unique(dim=0)) == 1
    assert abs(float(page.pixels().double().mean() - full)) < 0.5


def test_mouse_keys_and_touch_move_the_eye(page: Page) -> None:
    def eye() -> list[float]:
        return page.js("[...scenetx.stage.eye.position.toArray(), scenetx.stage.eye.distance]")

    mouse, keyboard = page.page.mouse, page.page.keyboard
    page.js("scenetx.panel.switches.frustums.set(false), scenetx.frameAll(0)")
    start = eye()
    mouse.move(120, 150)
    mouse.down()
    mouse.move(190, 170, steps=3)
    mouse.up()
    page.page.wait_for_timeout(600)
    orbited = eye()
    assert orbited[:3] != start[:3]
    assert orbited[3] == pytest.approx(start[3])
    mouse.wheel(0, -300)
    page.until(f"scenetx.stage.eye.distance < {start[3] * 0.9}")
    before = eye()
    page.js("scenetx.stage.canvas.focus()")
    keyboard.press("ArrowLeft")
    assert eye()[:3] != before[:3]
    keyboard.down("w")
    page.page.wait_for_timeout(400)
    keyboard.up("w")
    assert eye()[:3] != before[:3]
    keyboard.press("v")
    assert page.js("scenetx.controls.mode") == "fly"
    keyboard.press("v")
    keyboard.press("f")
    page.until(f"Math.abs(scenetx.stage.eye.distance - {start[3]}) < 1e-3")


def test_places_are_asked_from_where_the_eye_is_before_it_is_drawn(page: Page) -> None:
    """A slow machine draws later than a click comes: its ray must not begin in one place and point from another."""
    off, turned, away = page.js(
        """(() => {
          const { stage } = scenetx;
          scenetx.frameAll(0);
          const [x, y] = [0.3 * stage.width, 0.6 * stage.height];
          const before = stage.ray(x, y).direction;
          scenetx.controls.turn(0.2, 0.05);
          const { origin, direction } = stage.ray(x, y);
          const at = stage.project(origin.clone().addScaledVector(direction, stage.eye.distance));
          return [Math.hypot(at.x - x, at.y - y), before.angleTo(direction), origin.distanceTo(stage.eye.position)];
        })()"""
    )
    assert off < 1e-2
    assert turned > 0.05
    assert away == 0


def test_a_double_click_centres_and_two_fingers_pinch(page: Page) -> None:
    page.js("scenetx.panel.switches.frustums.set(false), scenetx.frameAll(0)")
    x, y = page.until(
        """(async () => {
          for (let x = 300; x < 480; x += 20) {
            const free = document.elementFromPoint(x, 240) === scenetx.stage.canvas;
            if (free && await scenetx.pick(x, 240)) return [x, 240];
          }
        })()"""
    )
    point = page.js(f"scenetx.pick({x}, {y}).then((at) => at.toArray())")
    page.page.mouse.dblclick(x, y)
    middle = "scenetx.stage.project(scenetx.stage.eye.position.clone().set(...POINT))".replace("POINT", str(point))
    page.until(f"Math.hypot({middle}.x - scenetx.stage.width / 2, {middle}.y - scenetx.stage.height / 2) < 1")
    before = page.js("scenetx.stage.eye.distance")
    fingers = page.context.new_cdp_session(page.page)
    for kind, apart in (("touchStart", 30), ("touchMove", 60), ("touchMove", 90), ("touchEnd", None)):
        places = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    fingers.detach()
    page.until(f"Math.abs(scenetx.stage.eye.distance / {before} - 1 / 3) < 0.02")


def test_clicking_a_camera_leads_into_its_photo(page: Page) -> None:
    page.js("scenetx.frameAll(0)")
    page.still()
    at = page.js(FREE_FRUSTUM)
    assert at, "a frustum is in the free part of the window"
    page.page.mouse.click(at[0], at[1])
    page.until(f"scenetx.photo.current?.name === {json.dumps(at[2])} && !scenetx.photo.layer.hidden")
    page.page.get_by_role("group", name="Photo and render").wait_for()
    page.js("scenetx.photo.setShare(100)")
    assert page.js("scenetx.photo.layer.querySelector('img').style.clipPath") == "inset(0px 0% 0px 0px)"
    page.page.keyboard.press("b")
    shares = {page.js("scenetx.photo.share.value")}
    for _ in range(40):
        page.page.wait_for_timeout(50)
        shares.add(page.js("scenetx.photo.share.value"))
    assert {"0", "100"} <= shares
    page.page.keyboard.press("]")
    page.until(f"scenetx.photo.current?.name !== {json.dumps(at[2])}")
    page.page.keyboard.press("Escape")
    assert page.js("scenetx.photo.current") is None


def test_photo_lies_exactly_over_the_render(page: Page, scene: Scene) -> None:
    """The photo is our own render of the same splats, so the two halves of the slider agree."""
    page.js("scenetx.photo.enter(scenetx.info.views[2], 0).then(() => null)")
    page.until("scenetx.photo.layer.querySelector('img').complete && !scenetx.photo.layer.hidden")
    page.js("scenetx.photo.setShare(0)")
    box = page.js(
        "(() => { const r = scenetx.photo.layer.getBoundingClientRect(); return [r.left, r.top, r.width, r.height] })()"
    )
    assert box[2] / box[3] == pytest.approx(192 / 144, rel=1e-2)
    left, top, width, height = (round(value) for value in box)
    seen = page.pixels()[top : top + height, left : left + width]
    small = torch.nn.functional.interpolate(
        seen.permute(2, 0, 1)[None].float(), (144, 192), mode="bilinear", antialias=True, align_corners=False
    )[0].permute(1, 2, 0)
    assert psnr(small, scene.views[2].image) > 24


def test_the_view_is_in_the_address(browser: Any, page: Page, address: str) -> None:
    page.js("scenetx.photo.enter(scenetx.info.views[3], 0).then(() => scenetx.panel.switches.grid.set(true))")
    hash_ = page.until("location.hash.includes('grid=1') && location.hash")
    other = Page(browser, address + hash_).ready()
    here, there = (each.js("scenetx.stage.eye.position.toArray()") for each in (page, other))
    assert there == pytest.approx(here, abs=1e-5)
    assert other.js("scenetx.panel.switches.grid.input.checked") is True
    other.close()


def test_measuring_finds_the_surface(page: Page, scene: Scene) -> None:
    """The picked depth is the rasterizer's depth, and the length is that between the two picks."""
    page.js("scenetx.photo.enter(scenetx.info.views[0], 0).then(() => null)")
    page.page.keyboard.press("m")
    page.page.get_by_text("Click two points of the scene.").wait_for()
    picks = [page.until(f"scenetx.pick({x}, {y}).then((p) => p && p.toArray())") for x, y in ((380, 210), (420, 220))]
    assert all(picks)
    camera = scene.views[0].camera
    assert camera is not None
    assert scene.gaussians is not None
    with torch.no_grad():
        depth = rasterize(scene.gaussians, camera.to(torch.float32).resized(420, 560), backend="cpu").depth[0]
    center, ahead = camera.centers[0], camera.forward[0]
    for pick, (x, y) in zip(picks, ((380, 210), (420, 220)), strict=True):
        along = float((torch.tensor(pick, dtype=torch.float64) - center) @ ahead)
        assert along == pytest.approx(float(depth[y, x - 100]), abs=0.35)
    page.page.mouse.click(380, 210)
    page.page.mouse.click(420, 220)
    length = page.until("scenetx.measure.length")
    assert length == pytest.approx(float(torch.dist(torch.tensor(picks[0]), torch.tensor(picks[1]))), rel=1e-3)


def test_scale_and_up_axis_come_as_a_file(page: Page) -> None:
    page.js("scenetx.measure.start('length')")
    page.page.evaluate(ADD_POINTS, [[0, 0, 0], [0.5, 0, 0]])
    page.js("scenetx.openPanel(true)")
    page.page.get_by_label("True length").fill("2")
    with page.page.expect_download() as saved:
        page.page.get_by_role("button", name="Set the scale").click()
    assert json.loads(Path(saved.value.path()).read_text())["scale"] == pytest.approx(4)
    assert page.js("scenetx.measure.length") == pytest.approx(2)
    page.js("scenetx.measure.scale = 1, scenetx.measure.start('up')")
    page.page.evaluate(ADD_POINTS, [[0, 0, 0.2], [1, 0, 0.2], [0, 1, 0.4]])
    with page.page.expect_download() as saved:
        page.page.get_by_role("button", name="Set the up axis").click()
    frame = json.loads(Path(saved.value.path()).read_text())
    rotation = torch.tensor(frame["rotation"]).reshape(3, 3)
    normal = torch.nn.functional.normalize(torch.tensor([0.0, -0.2, 1.0]), dim=0)
    assert torch.allclose(rotation @ normal, torch.tensor([0.0, 0, 1]), atol=1e-5)
    ground = rotation @ torch.tensor([0.0, 0.0, 0.2]) + torch.tensor(frame["translation"])
    assert abs(float(ground[2])) < 1e-6
    page.js("scenetx.controls.up.set(0, 0, 1)")


def test_a_crop_is_saved_without_loss(page: Page, scene: Scene, tmp_path: Path) -> None:
    page.js("scenetx.crop.toggle()")
    before = page.js("scenetx.crop.box.half.toArray()")
    handle = page.js(FREE_HANDLE)
    page.page.mouse.move(handle["x"], handle["y"])
    page.page.mouse.down()
    page.page.mouse.move(handle["x"] + 25, handle["y"] + 25, steps=3)
    page.page.mouse.up()
    assert page.js("scenetx.crop.box.half.toArray()") != before
    page.js(UNIT_BOX)
    page.js("scenetx.crop.root.open = true, scenetx.openPanel(true)")
    with page.page.expect_download() as saved:
        page.page.get_by_role("button", name="Save the crop").click()
    target = tmp_path / "crop.spz"
    saved.value.save_as(target)
    contents = contents_of(scene)
    assert contents.splats is not None
    whole = tmp_path / "whole.spz"
    whole.write_bytes(contents.splats.data)
    every, kept = read_spz(whole), read_spz(target)
    axes = torch.tensor(page.js("scenetx.crop.box.axes.map(a => a.toArray())"), dtype=torch.float32)
    inside = ((every.means @ axes.T).abs() <= 0.5).all(-1)
    assert 0 < len(kept) < len(every)
    wanted = every[inside]
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(kept, name), getattr(wanted, name))


def test_camera_path_goes_out_and_comes_back(page: Page, tmp_path: Path) -> None:
    for index in (0, 2, 4):
        page.js(f"scenetx.photo.enter(scenetx.info.views[{index}], 0).then(() => null)")
        page.page.keyboard.press("k")
    assert page.js("scenetx.path.keys.length") == 3
    page.js("scenetx.openPanel(true), scenetx.path.root.open = true, scenetx.path.duration.set(2)")
    with page.page.expect_download() as saved:
        page.page.get_by_role("button", name="Save", exact=True).click()
    target = tmp_path / "path.json"
    saved.value.save_as(target)
    cameras = read_camera_path(target)
    assert len(cameras) == 60
    first = torch.tensor(page.js("scenetx.info.views[0].world_from_cam")).reshape(4, 4).double()
    assert torch.allclose(cameras.world_from_cam[0], first, atol=1e-6)
    keys = page.js("scenetx.path.keys.map(k => k.position.toArray())")
    page.js("scenetx.path.keys = []")
    page.page.locator("input[type=file]").set_input_files(target)
    page.until("scenetx.path.keys.length === 3")
    again = page.js("scenetx.path.keys.map(k => k.position.toArray())")
    assert torch.allclose(torch.tensor(again), torch.tensor(keys), atol=1e-6)
    page.js("scenetx.path.at = 0")
    page.page.get_by_role("button", name="Play").click()
    page.until("scenetx.path.at > 0.05")
    page.page.keyboard.press("Escape")
    (tmp_path / "bad.json").write_text('{"frames": 3}')
    page.page.locator("input[type=file]").set_input_files(tmp_path / "bad.json")
    page.page.get_by_text("bad.json is no camera path").wait_for()


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_a_path_becomes_a_video(page: Page, suffix: str, codec: str, tmp_path: Path) -> None:
    """H.264 where the browser has an encoder for it; without it VP9."""
    import av

    for index in (0, 1):
        page.js(f"scenetx.photo.enter(scenetx.info.views[{index}], 0).then(() => scenetx.path.add())")
    page.js("scenetx.openPanel(true), scenetx.path.root.open = true, scenetx.path.seconds = 0.3")
    page.js(
        "VideoEncoder.every ??= VideoEncoder.isConfigSupported,"
        "VideoEncoder.isConfigSupported = async (config) =>"
        f"  config.codec.startsWith('avc') && {str(suffix == 'webm').lower()} ? {{}} : VideoEncoder.every(config), null"
    )
    if suffix == "mp4" and not page.js(
        "VideoEncoder.every({ codec: 'avc1.64001f', width: 640, height: 480 }).then((answer) => answer.supported)"
    ):
        pytest.skip("this browser has no H.264 encoder")
    page.js("scenetx.stage.steady(scenetx.path.sample(0))")
    drawn = page.pixels()
    with page.page.expect_download(timeout=90_000) as saved:
        page.page.get_by_role("button", name="Video").click()
    assert saved.value.suggested_filename == f"blobs-path.{suffix}"
    target = tmp_path / f"path.{suffix}"
    saved.value.save_as(target)
    with av.open(str(target)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate or 0)) == (codec, pytest.approx(30, abs=0.5))
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(frames) == 9
    assert frames[0].shape == (drawn.shape[0] & ~1, drawn.shape[1] & ~1, 3)
    assert psnr(torch.from_numpy(frames[0]), drawn[: frames[0].shape[0], : frames[0].shape[1]]) > 25
    assert abs(frames[0].astype(int) - frames[-1]).mean() > 1


def test_screenshot(page: Page, tmp_path: Path) -> None:
    with page.page.expect_download() as saved:
        page.page.keyboard.press("p")
    assert Path(saved.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_keyboard_reaches_everything_and_axe_finds_nothing(page: Page) -> None:
    assert AXE.is_file(), "run scripts/build-viewer: it installs axe-core"
    page.js("scenetx.openPanel(true), document.querySelectorAll('details').forEach(d => d.open = !d.hidden)")
    page.js("scenetx.photo.enter(scenetx.info.views[1], 0).then(() => null)")
    page.js(AXE.read_text())
    found = page.js(VIOLATIONS)
    assert found == []
    page.page.keyboard.press("h")
    page.page.get_by_role("dialog").wait_for()
    assert page.js("axe.run('dialog').then(r => r.violations.map(v => v.id))") == []
    page.page.keyboard.press("Escape")
    page.js("document.activeElement.blur()")
    seen = set()
    for _ in range(60):
        page.page.keyboard.press("Tab")
        seen.add(
            page.js("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()")
        )
    assert {"Show everything (F)", "Settings", "Measure", "Next photo (])"} <= seen


def test_a_phone_sized_window(browser: Any, address: str) -> None:
    page = Page(browser, address, {"width": 390, "height": 780}, has_touch=True, is_mobile=True).ready()
    assert page.js("document.documentElement.scrollWidth") <= 390
    assert page.page.get_by_role("complementary").is_hidden()
    page.page.get_by_role("button", name="Settings").tap()
    page.page.get_by_role("complementary").wait_for()
    box = page.page.get_by_role("complementary").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert page.page.get_by_role("toolbar").bounding_box()["y"] > 700
    page.page.get_by_role("button", name="Settings").tap()
    before = page.js("scenetx.stage.eye.position.toArray()")
    page.page.get_by_role("button", name="Show everything (F)").tap()
    page.page.wait_for_timeout(1200)
    assert page.js("scenetx.stage.eye.position.toArray()") != before
    assert page.errors == []
    page.close()


def test_large_scenes_lie_beside_the_page(browser: Any, scene: Scene, tmp_path: Path) -> None:
    files = write_viewer_page(contents_of(scene), tmp_path / "big & odd.html", split_above=1000)
    assert len(files) > 3
    page = Page(browser, files[0].as_uri()).ready()
    assert page.js("scenetx.splats.count") == 400
    assert page.errors == []
    page.close()
    files[2].unlink()
    broken = Page(browser, files[0].as_uri())
    broken.page.get_by_text("parts of the scene are missing").wait_for()
    broken.close()


@pytest.mark.parametrize("harm", ["truncated", "noise", "bomb", "no scene"])
def test_a_broken_page_says_what_to_do(browser: Any, scene: Scene, tmp_path: Path, harm: str) -> None:
    contents = contents_of(scene)
    assert contents.splats is not None
    data = contents.splats.data
    target = tmp_path / "broken.html"
    if harm == "no scene":
        write_viewer_page(contents, target)
        text = target.read_text()
        start = text.index('<script type="application/x-scenetx">')
        target.write_text(text[: start + 300] + text[start + 900 :])
    else:
        bomb = gzip.compress(gzip.decompress(data)[:8] + b"\xff\xff\xff\xff" + bytes(1 << 24))  # 4 billion splats
        bad = {"truncated": data[: len(data) // 2], "noise": bytes(range(256)) * 20, "bomb": bomb}[harm]
        write_viewer_page(replace(contents, splats=replace(contents.splats, data=bad)), target)
    page = Page(browser, target.as_uri())
    page.page.get_by_text(re.compile("could (not )?be opened")).first.wait_for(timeout=PATIENCE_MS)
    page.close()


def test_without_webgl2_the_page_says_so(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(address)
    page.get_by_text("offers no WebGL2").wait_for()
    context.close()


PATIENCE_MS = 60_000
