"""The viewer's levels of detail: merged as the Python side merges them, drawn when they should be, never kept; and the
3D context that a browser takes away comes back."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from viewer_page import Page, chromium, psnr, small_scene

from scenetx.core import Gaussians, Scene
from scenetx.core.levels import coarser
from scenetx.io.ply import read_splat_ply, write_splat_ply
from scenetx.pipeline.page import write_page
from scenetx.splat import rasterize

pytestmark = pytest.mark.slow
COUNT = 9000
LEVEL = """async ([format, text, filter, counts]) => {
  const { work } = scenetx.splats, data = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const { id } = await work.load({ format, data });
  const words = ({ buffer }) => btoa(Array.from(new Uint8Array(buffer), (byte) => String.fromCharCode(byte)).join(""));
  const found = [];
  for (const count of counts) {
    const { packed } = await work.level(id, "test", filter, count);
    found.push([packed.count, words(packed.places), words(packed.shapes), words(packed.sh)]);
  }
  await scenetx.splats.load(scenetx.splats.file);
  return found;
}"""
# What was wanted of every frame, and drawn: movement is over before a test can ask.
WATCH = """(() => {
  const { stage, splats } = scenetx;
  globalThis.frames = [];
  stage.afterDraw.add(() => frames.push([stage.quality.share, splats.drawn]));
})()"""
EVERYTHING = {"leastOpacity": 0, "box": []}


def dense_scene() -> Scene:
    """So many splats that there is a level for movement."""
    scene, many = small_scene(views=2), small_scene(count=COUNT, views=1).gaussians
    assert many is not None
    return replace(scene, gaussians=replace(many, scales=many.scales * 0.25), points=None)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return dense_scene()


@pytest.fixture(scope="module")
def page(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium() as browser:
        target = write_page(scene, tmp_path_factory.mktemp("page") / "dense.html")
        page = Page(browser, target.as_uri(), {"width": 384, "height": 288}).ready()
        page.js('for (const name of ["frustums", "grid"]) scenetx.panel.switches[name].set(false)')
        page.js('scenetx.stage.background("#000000")')
        page.js("scenetx.photo.enter(scenetx.info.views[0], 0).then(() => null)")
        yield page
        assert page.errors == []
        page.close()


def unpacked(count: int, *textures: str, degree: int) -> Gaussians:
    """Splats of the page's textures (splatpack.ts)."""
    places, shapes, sh = (np.frombuffer(base64.b64decode(texture), np.uint8) for texture in textures)
    place = places.reshape(-1, 16)[:count]
    colour = place[:, 12:].astype(np.float32) / 255
    shape = shapes.reshape(-1, 16)[:count]
    turn = shape[:, :8].copy().view(np.int16).astype(np.float32) / 32767
    scales = np.exp(shape[:, 8:14].copy().view(np.uint16).astype(np.float64) / 2048 - 20)
    terms = (degree + 1) ** 2 - 1
    rest = (sh.reshape(-1, 16 * degree)[:count, : 3 * terms].astype(np.float32) - 128) / 128
    every = np.concatenate([(colour[:, None, :3] - 0.5) / 0.15, rest.reshape(count, terms, 3)], 1)
    return Gaussians(
        torch.from_numpy(place[:, :12].copy().view(np.float32)),
        torch.from_numpy(np.roll(turn, 1, -1).copy()),
        torch.from_numpy(scales).float(),
        torch.from_numpy(colour[:, 3].copy()),
        torch.from_numpy(every.astype(np.float32)),
    )


def levels(page: Page, path: Path, filters: dict[str, Any], *counts: int) -> list[Gaussians]:
    text = base64.b64encode(path.read_bytes()).decode()
    return [unpacked(*found, degree=2) for found in page.page.evaluate(LEVEL, [path.suffix[1:], text, filters, counts])]


def assert_same(found: Gaussians, wanted: Gaussians) -> None:
    """To what a texture keeps of them."""
    assert len(found) == len(wanted)
    assert torch.allclose(found.means, wanted.means, atol=1e-5)
    apart = (found.covariances - wanted.covariances).flatten(1).norm(dim=-1)
    assert float((apart / wanted.covariances.flatten(1).norm(dim=-1)).max()) < 2e-3
    assert float((found.opacities - wanted.opacities).abs().max()) < 0.6 / 255
    assert float((found.sh[:, 0] - wanted.sh[:, 0]).abs().max()) < 1.1 / 255 / 0.15
    assert float((found.sh[:, 1:] - wanted.sh[:, 1:]).abs().max()) < 1.1 / 128


def test_levels_are_those_of_the_python_side(page: Page, tmp_path: Path) -> None:
    """One splat is broken: it has no part in them. Equal weights and equal coordinates, too."""
    many = small_scene(count=1500, views=1, degree=2).gaussians
    assert many is not None
    many.means[7, 1] = torch.nan
    many.means[20:60, 2] = 0.25
    many.means[100:120] = many.means[90].clone()
    many.sh[:] = many.sh.clamp(-0.9, 0.9)  # what a byte holds
    target = tmp_path / "many.ply"
    write_splat_ply(many, target)
    splats = read_splat_ply(target)
    counts = (1, 2, 37, 375)
    for count, found in zip(counts, levels(page, target, EVERYTHING, *counts), strict=True):
        assert_same(found, coarser(splats, count))
    box = {"leastOpacity": 0.5, "box": [0.1, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]}
    middle = splats.means - torch.tensor([0.1, 0, 0])
    inside = splats[(splats.opacities >= 0.5) & (middle.abs() <= 0.5).all(-1)]
    some, every = levels(page, target, box, len(inside) // 4, 1500)
    assert_same(some, coarser(inside, len(inside) // 4))
    assert len(every) == len(inside)
    assert len(levels(page, target, {"leastOpacity": 2, "box": []}, 10)[0]) == 0


def test_a_budget_draws_merged_splats(page: Page, scene: Scene) -> None:
    """At rest the page shows what the rasterizer makes of the Python side's level; screenshots show all splats."""
    full = page.pixels()
    page.js("scenetx.splats.setBudget(0.25)")
    page.until(f"scenetx.stage.quality.detail === 1 && scenetx.splats.drawn === {COUNT // 4}")
    seen = page.shown()
    assert scene.gaussians is not None
    camera = scene.views[0].camera
    assert camera is not None
    with torch.no_grad():
        level = rasterize(coarser(scene.gaussians, COUNT // 4), camera.resized(288, 384).to(torch.float32)).rgb[0]
    assert psnr(seen, (level.clamp(0, 1) * 255).round().to(torch.uint8)) > 30
    assert torch.equal(page.pixels(), full)
    page.js("scenetx.splats.setLeastOpacity(0.6)")
    page.until("scenetx.splats.drawn === scenetx.splats.resting.count && scenetx.splats.resting.source.includes('0.6')")
    page.js("scenetx.splats.setLeastOpacity(0)")
    page.js("scenetx.splats.load({ ...scenetx.splats.file })")
    page.until(f"scenetx.splats.drawn === {COUNT // 4}")
    page.js("scenetx.splats.setBudget(1)")
    page.until(f"scenetx.splats.drawn === {COUNT}")


def test_movement_is_coarse_where_that_is_needed_and_rest_is_full(page: Page) -> None:
    """On a machine whose full pictures take long: a level while the eye turns, all splats when it rests."""
    full = page.pixels()
    turn = "scenetx.controls.turn(0.02, 0)"
    # Asked until it is there: right after a change of the filter no level is made.
    page.until("(scenetx.stage.pace.go(3), void scenetx.stage.rest(), scenetx.splats.moving.count === 4096)")
    page.js(WATCH)
    # Turned until it is seen: the order of a level's splats may come after the first frame of a movement.
    page.until(f"(scenetx.stage.pace.go(3), {turn}, frames.some(([share, drawn]) => share === 0.25 && drawn === 4096))")
    page.until(f"scenetx.stage.quality.detail === 1 && scenetx.splats.drawn === {COUNT}")
    page.js("scenetx.photo.enter(scenetx.info.views[0], 0).then(() => null)")
    assert torch.equal(page.pixels(), full)
    drawn = page.page.evaluate(
        """async (turn) => {
          scenetx.controls.turn(0.02, 0);
          await scenetx.stage.steady(scenetx.stage.eye);
          const { drawn } = scenetx.splats;
          scenetx.controls.turn(-0.02, 0);
          return drawn;
        }"""
    )
    assert drawn == COUNT  # a video's frames come like this
    page.js("scenetx.stage.pace.go(0)")


def test_the_pace_goes_down_at_once_and_up_with_patience(page: Page) -> None:
    steps = page.js(
        """(() => {
          const pace = new scenetx.stage.pace.constructor(), seen = [];
          const frames = (count, seconds) => {
            for (let i = 0; i < count; i++) pace.took(seconds);
            seen.push(pace.step);
          };
          frames(1, 0.4), frames(60, 0.03), frames(80, 0.016), frames(200, 0.016), frames(5, 0.09);
          frames(80, 0.016), frames(80, 0.016);
          pace.full(9);
          seen.push(pace.step);
          return seen;
        })()"""
    )
    assert steps[0] == 3  # very slow: several steps in one
    assert steps[1] == 3  # neither slow nor quick: no change to and fro
    assert steps[2] == 2
    assert steps[3] == 0
    assert steps[4] == 1  # slower
    assert steps[5] == 1, "what failed once is tried again later than before"
    assert steps[6] == 0
    assert steps[7] == 0, "a full picture that took long says nothing once movement has been seen"


def test_a_lost_context_is_said_and_comes_back(page: Page) -> None:
    page.js("scenetx.photo.enter(scenetx.info.views[0], 0).then(() => null)")
    before = page.pixels()
    lose = "(globalThis.loss ??= scenetx.stage.renderer.getContext().getExtension('WEBGL_lose_context'))"
    page.js(f"{lose}.loseContext(), null")
    page.page.get_by_text("The graphics were interrupted").wait_for()
    page.page.get_by_text("reload the page").wait_for()
    page.js("scenetx.controls.turn(0.02, 0), scenetx.controls.turn(-0.02, 0)")
    page.js(f"{lose}.restoreContext(), null")
    page.until("!document.querySelector('.failure')")
    page.js("scenetx.photo.enter(scenetx.info.views[0], 0).then(() => null)")
    assert torch.equal(page.pixels(), before)
