"""Splat files as the page reads them: every version and format looks as our own reader and rasterizer show it."""

from __future__ import annotations

import base64
import gzip
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from viewer_page import Page, chromium, psnr, small_scene

from scenetx.core import Cameras, Gaussians
from scenetx.io.ply import read_splat_ply, write_splat_ply
from scenetx.io.spz import read_spz, write_spz
from scenetx.pipeline.page import write_page
from scenetx.splat import rasterize

pytestmark = pytest.mark.slow
LOAD = """([format, text]) => scenetx.takeSplats({
  type: "SplatData", count: 0, antialiased: false, format,
  data: Uint8Array.from(atob(text), (c) => c.charCodeAt(0)) })"""


def older(path: Path, gaussians: Gaussians, version: int) -> None:
    """The splats as SPZ version 1 (places as half floats) or 2; both keep x, y, z of a quaternion, a byte each."""
    write_spz(gaussians, path)
    raw = gzip.decompress(path.read_bytes())
    count = struct.unpack_from("<I", raw, 8)[0]
    bounds = 16 + count * np.cumsum([0, 9, 1, 3, 3, 4])
    places, alphas, colours, scales, _ = (raw[a:b] for a, b in pairwise(bounds))
    # SPZ's axes are right, up, back.
    flip = torch.tensor([1.0, -1, -1])
    if version == 1:
        places = (gaussians.means * flip).half().numpy().astype("<f2").tobytes()
    turn = torch.nn.functional.normalize(gaussians.quats, dim=-1)
    turn = turn * torch.where(turn[:, :1] < 0, -1.0, 1.0)
    turns = ((turn[:, 1:] * flip + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()
    head = raw[:4] + struct.pack("<I", version) + raw[8:16]
    path.write_bytes(gzip.compress(head + places + alphas + colours + scales + turns + raw[bounds[-1] :], mtime=0))


def shown(page: Page, path: Path) -> torch.Tensor:
    page.page.evaluate(LOAD, [path.suffix[1:], base64.b64encode(path.read_bytes()).decode()])
    return page.pixels()


def wanted(gaussians: Gaussians, camera: Cameras) -> torch.Tensor:
    with torch.no_grad():
        rgb = rasterize(gaussians, camera.to(torch.float32), backend="cpu").rgb[0]
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def test_every_kind_of_file_looks_as_it_should(tmp_path: Path) -> None:
    """Degree 3 shows whether the terms are turned as the file's axes are; files come after one another in one page,
    larger and smaller ones, and none leaves anything of itself behind."""
    scene = small_scene(count=150, views=2, degree=3)
    assert scene.gaussians is not None
    camera = scene.views[0].camera
    assert camera is not None
    camera = camera.resized(288, 384)
    many = small_scene(count=5000, views=1, degree=0).gaussians
    assert many is not None
    many = replace(many, scales=many.scales * 0.2)
    cases: dict[str, Gaussians] = {}
    for name, splats in (("v3.spz", scene.gaussians), ("many.spz", many)):
        write_spz(splats, tmp_path / name)
        cases[name] = read_spz(tmp_path / name)
    for version in (1, 2):
        older(tmp_path / f"v{version}.spz", scene.gaussians, version)
        cases[f"v{version}.spz"] = read_spz(tmp_path / f"v{version}.spz")
    for degree in (3, 2, 1):
        some = replace(scene.gaussians, sh=scene.gaussians.sh[:, : (degree + 1) ** 2])
        write_splat_ply(some, tmp_path / f"d{degree}.ply")
        cases[f"d{degree}.ply"] = read_splat_ply(tmp_path / f"d{degree}.ply")
    with chromium() as browser:
        address = write_page(scene, tmp_path / "page.html").as_uri()
        page: Any = Page(browser, address, {"width": 384, "height": 288}).ready()
        page.js('for (const name of ["points", "frustums", "grid"]) scenetx.panel.switches[name].set(false)')
        page.js('scenetx.stage.background("#000000")')
        page.js("scenetx.photo.enter(scenetx.info.views[0], 0).then(() => null)")
        seen = {name: shown(page, tmp_path / name) for name in cases}
        again = shown(page, tmp_path / "v3.spz")
        assert page.errors == []
        page.close()
    near = {name: psnr(seen[name], wanted(splats, camera)) for name, splats in cases.items()}
    assert min(near.values()) > 34, near
    assert torch.equal(again, seen["v3.spz"])
    flat = replace(scene.gaussians, sh=scene.gaussians.sh[:, :9])
    assert psnr(seen["d3.ply"], wanted(flat, camera)) < near["d3.ply"] - 6  # the third band is seen
