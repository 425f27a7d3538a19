"""The viewer's frame cost in software rendering against three's own splat renderer: same splats, flight and window.

    python benchmarks/viewer.py [--splats 200000] [--frames 12] [--updates 1000]
    python benchmarks/viewer.py --budget fox-scene skull-scene

Needs Chromium, playwright and Node (scripts/build-viewer). Both pages are open in one browser and draw in turn, ours
and theirs from each camera; a frame ends when a pixel of it can be read, and ours has its splats in their own order.
Prints a JSON line and writes benchmarks/viewer.json: medians of milliseconds and of the processors' seconds (which
other programs on the machine disturb less), ratios of ours over theirs (below 1 is faster), PSNR of both pictures to
the CPU rasterizer's. Then so many live updates on one page, a hundredth of the splats each: objects and heap after a
hundredth of them and at the end.

The first picture is that of a server on this machine, in an empty page of a browser that has just been started and is
idle: the clock starts with the navigation and stops when the graphics commands of the first picture with splats are
done (it has half the pixels each way), and once more when those of the full picture are. Medians of `OPENINGS`
browsers.

`--budget`: pictures of real scenes from fewer splats and pixels, seen by `VIEWS` of their cameras: PSNR to the full
picture of merged splats (what the page draws) and of as many of the most important ones, and what a frame costs.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from viewer_page import Page, chromium, psnr  # noqa: E402

from scenetx.core import Cameras, Gaussians, Scene  # noqa: E402
from scenetx.core.cameras import look_at  # noqa: E402
from scenetx.io.scene_dir import load_scene  # noqa: E402
from scenetx.pipeline.page import contents_of, write_page  # noqa: E402
from scenetx.serve.contents import Contents, by_importance  # noqa: E402
from scenetx.serve.server import ServerSettings, ViewerServer  # noqa: E402
from scenetx.splat import rasterize  # noqa: E402

RESULT = Path(__file__).with_suffix(".json")
OPENINGS = 5
WINDOW = {"width": 800, "height": 600}
FOV = 50.0
VIEWS = 5
QUALITIES = ((1.0, 1.0), (1.0, 1 / 2), (1.0, 1 / 4), (1.0, 1 / 8), (0.5, 1.0), (0.5, 1 / 4), (0.5, 1 / 16))
"""Share of the pixels each way, share of the splats."""


def cloud(count: int) -> Gaussians:
    """Splats on a bumpy ground and a few balls, as small as a scene of that many would have them; SH of degree 2."""
    gen = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=gen), dim=-1)
    radius = torch.where(torch.rand(count, generator=gen) < 0.5, 1.0, 0.55)
    means = directions * radius[:, None] * (1 + 0.08 * torch.sin(9 * directions)).prod(-1, keepdim=True)
    size = 1.6 / math.sqrt(count)
    scales = size * torch.exp(0.5 * torch.randn(count, 3, generator=gen)) * torch.tensor([1.0, 1.0, 0.3])
    sh = 0.1 * torch.randn(count, 9, 3, generator=gen)
    sh[:, 0] = 1.5 * torch.sin(4 * means)
    quats = torch.randn(count, 4, generator=gen)
    return Gaussians(means, quats, scales, 0.2 + 0.75 * torch.rand(count, generator=gen), sh)


def flight(frames: int) -> list[list[float]]:
    """World matrices of three's camera, column by column: once around."""
    angle = torch.arange(frames, dtype=torch.float64) * 2 * math.pi / frames
    eyes = torch.stack([3 * angle.cos(), 3 * angle.sin(), 0.8 + 0 * angle], -1)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64))
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    return [(pose @ flip).T.flatten().tolist() for pose in poses]


OURS = """async ([matrix, tan]) => {
  const { stage } = scenetx;
  const Matrix = stage.camera.matrix.constructor, Vector = stage.eye.position.constructor;
  const position = new Vector(), quaternion = new stage.eye.quaternion.constructor();
  new Matrix().fromArray(matrix).decompose(position, quaternion, new Vector());
  const context = stage.renderer.getContext(), start = performance.now();
  await stage.steady({ position, quaternion, distance: 3, lens: { tanX: tan, tanY: tan, shiftX: 0, shiftY: 0 } });
  context.readPixels(0, 0, 1, 1, context.RGBA, context.UNSIGNED_BYTE, new Uint8Array(4));
  return performance.now() - start;
}"""
BARE = """(() => {
  for (const name of ["points", "frustums", "grid"]) scenetx.panel.switches[name].set(false);
  scenetx.stage.background("#000000");
})()"""
# Drawn and copied in one go: a canvas may be empty once the browser has shown it.
COPY = """async (given) => {
  await (DRAW)(given);
  const source = document.querySelector("canvas"), copy = document.createElement("canvas");
  [copy.width, copy.height] = [source.width, source.height];
  copy.getContext("2d").drawImage(source, 0, 0);
  return copy.toDataURL("image/png").split(",")[1];
}"""


def processor_seconds() -> float:
    """Of all processes that this one has started, and theirs."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else []
        except OSError:
            continue
        if fields:
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    open_, total = [os.getpid()], 0
    while open_:
        below = children.get(open_.pop(), [])
        total += sum(ticks[child] for child in below)
        open_ += below
    return total / os.sysconf("SC_CLK_TCK")


@dataclass
class Side:
    """A page, how it draws a frame, and what its frames have cost."""

    page: Page
    draw: str
    given: Callable[[list[float]], Any]
    milliseconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def frame(self, matrix: list[float]) -> None:
        self.page.page.bring_to_front()
        before = processor_seconds()
        self.milliseconds.append(self.page.page.evaluate(self.draw, self.given(matrix)))
        self.seconds.append(processor_seconds() - before)

    def likeness(self, matrix: list[float], wanted: torch.Tensor) -> float:
        code = COPY.replace("DRAW", self.draw)
        data = base64.b64decode(self.page.page.evaluate(code, self.given(matrix)))
        seen = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
        return round(psnr(seen, wanted), 2)


def ours_by_cpu(splats: Gaussians, matrix: list[float]) -> torch.Tensor:
    """The rasterizer's picture from a camera of the flight, uint8."""
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    pose = torch.tensor(matrix, dtype=torch.float64).reshape(4, 4).T @ flip
    height, width = WINDOW["height"], WINDOW["width"]
    focal = height / 2 / math.tan(math.radians(FOV / 2))
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    with torch.no_grad():
        camera = Cameras(pose[None], K[None], height, width).to(torch.float32)
        rgb = rasterize(splats, camera, backend="cpu").rgb[0]
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def opening(contents: Contents) -> dict[str, float]:
    """Seconds from the navigation to the first picture with splats, and to the full one; medians."""
    times: dict[str, list[float]] = {"picture": [], "full": []}
    with ViewerServer("cloud", settings=ServerSettings(port=0)) as server:
        assert contents.splats is not None
        server.publish(contents.info)
        server.publish(contents.splats)
        for _ in range(OPENINGS):
            with chromium() as browser:
                page = Page(browser, "about:blank", WINDOW)
                page.page.wait_for_timeout(1500)
                page.go(server.address)
                page.until("scenetx.times.full")
                for name, found in times.items():
                    found.append(page.js(f"scenetx.times.{name}") / 1000)
                page.close()
    names = {"picture": "first_picture_s", "full": "full_picture_s"}
    return {names[name]: round(statistics.median(found), 2) for name, found in times.items()}


# Nothing is drawn but this: a frame of so many pixels from so many splats, in their order, the eye turned a little.
FEWER = """async ([detail, share, count, turn]) => {
  const { stage, splats, controls } = scenetx, context = stage.renderer.getContext();
  stage.hold(1e9);
  splats.setBudget(share);
  while (splats.drawn !== count) {
    stage.drawNow(false);
    await new Promise((done) => { setTimeout(done, 20); });
  }
  if (turn !== 0) controls.turn(turn, 0);
  stage.setQuality({ detail, share: 1 });
  stage.apply();
  const start = performance.now();
  await stage.settle(false);
  stage.drawNow(false);
  context.readPixels(0, 0, 1, 1, context.RGBA, context.UNSIGNED_BYTE, new Uint8Array(4));
  return performance.now() - start;
}"""


def picture(page: Page, given: list[float]) -> torch.Tensor:
    """As large as the window, uint8."""
    data = base64.b64decode(page.page.evaluate(COPY.replace("DRAW", FEWER), given))
    seen = Image.open(io.BytesIO(data)).convert("RGB")
    return torch.from_numpy(np.array(seen.resize((WINDOW["width"], WINDOW["height"]), Image.Resampling.BILINEAR)))


def seen_from(page: Page, index: int, given: list[float]) -> torch.Tensor:
    page.js(f"scenetx.photo.enter(scenetx.info.views[{index}], 0).then(() => null)")
    return picture(page, given)


def fewer(browser: Any, scene: Scene, frames: int) -> dict[str, Any]:
    """Likeness and cost of pictures from fewer splats and pixels."""
    assert scene.gaussians is not None
    splats, count = scene.gaussians, len(scene.gaussians)
    first = by_importance(splats)
    chosen = range(0, len(scene.registered), -(-len(scene.registered) // VIEWS))
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def opened(shown: Scene) -> Page:
            page = Page(browser, write_page(shown, Path(folder) / "page.html").as_uri(), WINDOW).ready()
            page.js(BARE)
            return page

        page = opened(scene)
        full = [seen_from(page, index, [1.0, 1.0, count, 0.0]) for index in chosen]
        for detail, share in QUALITIES:
            kept = math.ceil(count * share)
            found = [seen_from(page, index, [detail, share, kept, 0.0]) for index in chosen]
            row: dict[str, Any] = {"pixels": detail, "splats": kept}
            if (detail, share) != (1.0, 1.0):
                row["psnr"] = round(statistics.mean(map(psnr, found, full)), 1)
            before, times = processor_seconds(), []
            for frame in range(frames):
                times.append(page.page.evaluate(FEWER, [detail, share, kept, 0.01 if frame % 2 else -0.01]))
            row["frame_ms"] = round(statistics.median(times), 1)
            row["processor_s"] = round((processor_seconds() - before) / frames, 3)
            if detail == 1.0 and share < 1:
                prefix = opened(replace(scene, gaussians=splats[first[:kept]]))
                found = [seen_from(prefix, index, [1.0, 1.0, kept, 0.0]) for index in chosen]
                row["most_important_psnr"] = round(statistics.mean(map(psnr, found, full)), 1)
                prefix.close()
            rows.append(row)
        page.close()
    return {"splats": count, "views": len(full), "qualities": rows}


def growth(browser: Any, splats: int, updates: int) -> dict[str, Any]:
    """Heap and GPU objects of a page early and late in a long live run."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(views=(), source="cloud", gaussians=cloud(splats))
        page = Page(browser, write_page(scene, Path(folder) / "live.html").as_uri(), WINDOW).ready()
        early = page.held(max(updates // 100, 1))
        for _ in range(10):  # a long evaluation would run into the driver's patience
            late = page.held(updates // 10)
        page.close()
    names = ("objects", "heap_bytes", "textures", "geometries")
    return {
        "updates": updates,
        "early": dict(zip(names, early, strict=True)),
        "late": dict(zip(names, late, strict=True)),
    }


def write(result: dict[str, Any]) -> None:
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def both(browser: Any, scene: Scene, folder: Path) -> tuple[Side, Side]:
    """Our page and three's, with the scene's splats in both."""
    native = folder / "native.html"
    script = (ROOT / "viewer" / "dist-bench" / "native.js").read_text()
    native.write_text(
        "<!doctype html><canvas style='position:fixed;inset:0;width:100%;height:100%'></canvas>"
        f"<script>{script}</script>"
    )
    page = Page(browser, write_page(scene, folder / "ours.html").as_uri(), WINDOW).ready()
    page.js(BARE)
    tan = math.tan(math.radians(FOV / 2))
    ours = Side(page, OURS, lambda matrix: [matrix, tan])
    theirs = Side(Page(browser, "about:blank", WINDOW), "(matrix) => frame(matrix)", lambda matrix: matrix)
    theirs.page.page.goto(native.as_uri())
    theirs.page.page.set_default_timeout(0)
    splats = contents_of(scene).splats
    assert splats is not None
    file = base64.b64encode(splats.data).decode()
    theirs.page.page.evaluate("([file, fov]) => openNative(file, fov)", [file, FOV])
    return ours, theirs


def flown(browser: Any, scene: Scene, frames: int) -> dict[str, Any]:
    """What frames of both cost, in turn."""
    matrices = flight(frames)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = both(browser, scene, Path(folder))
        assert scene.gaussians is not None
        wanted = ours_by_cpu(scene.gaussians, matrices[0])
        # The first frames compile shaders, too.
        likeness = [side.likeness(matrices[0], wanted) for side in (ours, theirs)]
        for matrix in matrices:
            for side in (ours, theirs):
                side.frame(matrix)
        ours.page.close()
        theirs.page.close()
    ours_ms, theirs_ms = (statistics.median(side.milliseconds) for side in (ours, theirs))
    ours_s, theirs_s = (statistics.median(side.seconds) for side in (ours, theirs))
    return {
        "ours_ms": round(ours_ms, 1),
        "three_ms": round(theirs_ms, 1),
        "ratio": round(ours_ms / theirs_ms, 3),
        "ours_processor_s": round(ours_s, 2),
        "three_processor_s": round(theirs_s, 2),
        "processor_ratio": round(ours_s / theirs_s, 3),
        "ours_psnr": likeness[0],
        "three_psnr": likeness[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splats", type=int, default=200_000)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--opening", action="store_true", help="the first picture alone; keeps the other results")
    parser.add_argument("--budget", nargs="+", type=Path, help="scene folders; keeps the other results")
    chosen = parser.parse_args()
    if chosen.budget:
        with chromium() as browser:
            found = {path.name: fewer(browser, load_scene(path), chosen.frames) for path in chosen.budget}
        write({**json.loads(RESULT.read_text()), "budget": found})
        return
    scene = Scene(views=(), source="cloud", gaussians=cloud(chosen.splats))
    contents = contents_of(scene)
    if chosen.opening:
        write({**json.loads(RESULT.read_text()), **opening(contents)})
        return
    subprocess.run(
        ["npx", "vite", "build", "--config", "bench/vite.config.ts", "--logLevel", "error"],
        cwd=ROOT / "viewer",
        check=True,
    )
    assert contents.splats is not None
    result = {
        "splats": chosen.splats,
        "window": f"{WINDOW['width']}x{WINDOW['height']}",
        "spz_bytes": len(contents.splats.data),
        **opening(contents),
    }
    with chromium() as browser:
        result |= flown(browser, scene, chosen.frames)
        result["live"] = growth(browser, chosen.splats // 100, chosen.updates)
    write(result)


if __name__ == "__main__":
    main()
