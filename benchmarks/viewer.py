"""The viewer's frame cost in software rendering against three's own splat renderer: same splats, flight and window.

    python benchmarks/viewer.py [--splats 200000] [--frames 40] [--updates 1000]

Needs Chromium, playwright and Node (scripts/build-viewer). Prints a JSON line and writes benchmarks/viewer.json; ratio
is ours over theirs, below 1 is faster. Then so many live updates on one page, a hundredth of the splats each: the
script's heap after a hundredth of them and at the end.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from viewer_page import Page, chromium  # noqa: E402

from scenetx.core import Gaussians, Scene  # noqa: E402
from scenetx.core.cameras import look_at  # noqa: E402
from scenetx.pipeline.page import contents_of, write_page  # noqa: E402

WINDOW = {"width": 800, "height": 600}
FOV = 50.0


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


OURS = """async ([matrices, tan]) => {
  const { stage, controls } = scenetx;
  for (const name of ["points", "frustums", "grid"]) scenetx.panel.switches[name].set(false);
  const Matrix = stage.camera.matrix.constructor, Vector = stage.eye.position.constructor;
  const Turn = stage.eye.quaternion.constructor, times = [];
  stage.adapt = () => undefined;  // all pixels in every frame
  let last = performance.now();
  for (const each of matrices) {
    const position = new Vector(), quaternion = new Turn();
    new Matrix().fromArray(each).decompose(position, quaternion, new Vector());
    stage.look({ position, quaternion, distance: 3, lens: { tanX: tan, tanY: tan, shiftX: 0, shiftY: 0 } });
    await new Promise((done) => requestAnimationFrame(done));
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times;
}"""


def growth(browser: Any, splats: int, updates: int) -> dict[str, Any]:
    """Heap and GPU objects of a page early and late in a long live run."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(views=(), source="cloud", gaussians=cloud(splats))
        page = Page(browser, write_page(scene, Path(folder) / "live.html").as_uri(), WINDOW).ready()
        early = page.held(max(updates // 100, 1))
        for _ in range(10):  # a long evaluation would run into the driver's patience
            late = page.held(updates // 10)
        page.close()
    names = ("heap_bytes", "textures", "geometries")
    return {
        "updates": updates,
        "early": dict(zip(names, early, strict=True)),
        "late": dict(zip(names, late, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splats", type=int, default=200_000)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--updates", type=int, default=1000)
    chosen = parser.parse_args()
    subprocess.run(
        ["npx", "vite", "build", "--config", "bench/vite.config.ts", "--logLevel", "error"],
        cwd=ROOT / "viewer",
        check=True,
    )
    scene = Scene(views=(), source="cloud", gaussians=cloud(chosen.splats))
    splats = contents_of(scene).splats
    assert splats is not None
    matrices = flight(chosen.frames)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        native = Path(folder) / "native.html"
        script = (ROOT / "viewer" / "dist-bench" / "native.js").read_text()
        native.write_text(
            "<!doctype html><canvas style='position:fixed;inset:0;width:100%;height:100%'></canvas>"
            f"<script>{script}</script>"
        )
        mine = write_page(scene, Path(folder) / "ours.html")
        start = time.perf_counter()
        page = Page(browser, mine.as_uri(), WINDOW).ready()
        opened = time.perf_counter() - start
        ours = page.page.evaluate(OURS, [matrices, math.tan(math.radians(FOV / 2))])
        page.close()
        page = Page(browser, native.as_uri(), WINDOW)
        file = base64.b64encode(splats.data).decode()
        theirs = page.page.evaluate("(flight) => fly(flight)", {"file": file, "matrices": matrices, "fov": FOV})
        page.page.screenshot(path=str(Path(tempfile.gettempdir()) / "viewer-native.png"))
        page.close()
        live = growth(browser, chosen.splats // 100, chosen.updates)
    # The first frames compile shaders and sort for the first time.
    ours_ms, theirs_ms = (statistics.mean(times[5:]) for times in (ours, theirs))
    result = {
        "splats": chosen.splats,
        "window": f"{WINDOW['width']}x{WINDOW['height']}",
        "spz_bytes": len(splats.data),
        "first_picture_s": round(opened, 2),
        "ours_ms": round(ours_ms, 1),
        "three_ms": round(theirs_ms, 1),
        "ratio": round(ours_ms / theirs_ms, 3),
        "live": live,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
