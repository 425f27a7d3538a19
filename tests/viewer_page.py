"""What the viewer's tests share: a small scene, and Debian's Chromium driven by Playwright with software WebGL2."""

from __future__ import annotations

import base64
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from scenetx.core import Cameras, Gaussians, Original, Points, Scene, View
from scenetx.core.cameras import look_at
from scenetx.splat import rasterize

FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    "--ignore-gpu-blocklist",
]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
WINDOW = {"width": 760, "height": 420}
PATIENCE = 60.0  # seconds; software rendering on a busy machine is slow


def small_scene(count: int = 400, views: int = 8, degree: int = 1) -> Scene:
    """Soft blobs about the origin, +z up, seen by a ring of cameras; the pictures are our own renders."""
    gen = torch.Generator().manual_seed(5)
    means = (torch.rand(count, 3, generator=gen) * 2 - 1) * torch.tensor([1.0, 1.0, 0.6])
    sh = 0.15 * torch.randn(count, (degree + 1) ** 2, 3, generator=gen)
    sh[:, 0] = (torch.rand(count, 3, generator=gen) - 0.5) / 0.282
    scales = 0.03 + 0.12 * torch.rand(count, 3, generator=gen)
    gaussians = Gaussians(
        means, torch.randn(count, 4, generator=gen), scales, 0.3 + 0.65 * torch.rand(count, generator=gen), sh
    )
    angle = torch.arange(views, dtype=torch.float64) * 2 * math.pi / views
    eyes = torch.stack([4 * angle.cos(), 4 * angle.sin(), 1.5 + 0.3 * (2 * angle).sin()], -1)
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), up)
    K = torch.tensor([[[180.0, 0, 97], [0, 180, 70], [0, 0, 1]]], dtype=torch.float64)
    made = []
    for i in range(views):
        camera = Cameras(poses[i : i + 1], K, 144, 192)
        with torch.no_grad():
            rgb = rasterize(gaussians, camera.to(torch.float32), backend="cpu").rgb[0]
        pixels = (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
        made.append(View(f"{i:02d}.png", pixels, Original(f"{i:02d}.png", 144, 192), camera, held_out=i % 4 == 1))
    points = Points(means, (gaussians.rgb * 255).to(torch.uint8), torch.rand(count, generator=gen))
    return Scene(tuple(made), "blobs", points, gaussians, "input")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright (it uses Debian's chromium)")
    if not CHROMIUM:
        pytest.skip("no chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Page:
    """A page with the viewer: polls instead of waiting in the page, whose policy forbids evaluated strings."""

    def __init__(self, browser: Any, address: str, window: dict[str, int] | None = None, **more: Any) -> None:
        self.context = browser.new_context(
            viewport=window or WINDOW, accept_downloads=True, **{"reduced_motion": "reduce", **more}
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self.requests.append(request.url))
        if address != "about:blank":
            self.go(address)

    def go(self, address: str) -> None:
        self.page.goto(address)
        self.until("window.scenetx || document.querySelector('.failure')")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    def until(self, code: str, patience: float = PATIENCE) -> Any:
        """The value of ``code`` once it is true."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            value = self.js(code)
            if value:
                return value
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {code}; errors: {self.errors}")

    def ready(self) -> Page:
        """With its splats on the screen."""
        self.until("window.scenetx?.times?.picture")
        self.still()
        return self

    def still(self) -> None:
        """Until nothing more is sorted or drawn."""
        self.js("scenetx.stage.steady(scenetx.stage.eye)")

    def held(self, updates: int) -> tuple[int, int, int, int]:
        """Objects of the page, bytes of script heap, textures and geometries after so many live updates more.

        An update is splats and cameras. The heap holds what the engine compiles too, which comes and goes; the number
        of objects that can still be reached is exact.
        """
        self.page.evaluate(
            """async (count) => {
              for (let i = 0; i < count; i++) {
                await scenetx.splats.load({ ...scenetx.splats.file });
                scenetx.take(scenetx.info);
                await scenetx.stage.steady(scenetx.stage.eye);
              }
            }""",
            updates,
        )
        client = self.context.new_cdp_session(self.page)
        every = client.send("Runtime.evaluate", {"expression": "Object.prototype"})["result"]["objectId"]
        found = client.send("Runtime.queryObjects", {"prototypeObjectId": every})["objects"]["objectId"]
        asked = {"objectId": found, "functionDeclaration": "function () { return this.length }", "returnByValue": True}
        objects = client.send("Runtime.callFunctionOn", asked)["result"]["value"]
        client.send("Runtime.releaseObject", {"objectId": found})
        client.send("HeapProfiler.collectGarbage")
        heap = client.send("Runtime.getHeapUsage")["usedSize"]
        client.detach()
        memory = self.js("[scenetx.stage.renderer.info.memory.textures, scenetx.stage.renderer.info.memory.geometries]")
        return objects, heap, memory[0], memory[1]

    def pixels(self) -> torch.Tensor:
        """The picture of all splats that a screenshot has, uint8 [h w 3]."""
        return self._read("await scenetx.stage.steady(scenetx.stage.eye)")

    def shown(self) -> torch.Tensor:
        """What the next frame at rest shows: as many splats as the budget lets through."""
        return self._read(
            "const { stage } = scenetx; await stage.settle(false); await new Promise((done) => {"
            "const seen = () => { stage.afterDraw.delete(seen); done() }; stage.afterDraw.add(seen); stage.draw() })"
        )

    def _read(self, drawn: str) -> torch.Tensor:
        # A canvas may be empty once the browser has shown it: it is copied before.
        data = self.js(
            f"""async () => {{
              {drawn};
              const source = scenetx.stage.canvas, copy = document.createElement("canvas");
              [copy.width, copy.height] = [source.width, source.height];
              const context = copy.getContext("2d");
              context.drawImage(source, 0, 0);
              const bytes = context.getImageData(0, 0, copy.width, copy.height).data;
              let text = "";
              for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
              return [copy.height, copy.width, btoa(text)];
            }}"""
        )
        height, width, text = data
        flat = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        return flat.reshape(height, width, 4)[..., :3]

    def close(self) -> None:
        self.context.close()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = float((a.double() - b.double()).square().mean()) / 255**2
    return -10 * math.log10(max(error, 1e-12))
