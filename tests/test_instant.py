"""Splats in one pass: from depth, from stereo, from points alone; the short fit after it; and the table of the ways."""

import json
from dataclasses import replace

import pytest
import torch
from wall_scene import textured

from scenetx.core import InputError, Points, Scene
from scenetx.fit import settings_for
from scenetx.geometry.lift import LiftSettings
from scenetx.geometry.sweep import SweepSettings
from scenetx.io.prepare import hold_out
from scenetx.pipeline.instant import InstantSettings, instant_splats, shortened, side_by_side
from scenetx.pipeline.reconstruct import reconstruct
from scenetx.pipeline.reconstruct import settings_for as all_settings
from scenetx.serve.report_tables import methods_section
from scenetx.splat import rasterize

FIT = replace(settings_for("draft"), max_splats=4000, width=64, sh_degree=0)
SETTINGS = InstantSettings(sweep=SweepSettings(width=64, planes=24, window=5))


def wall(*, depth: bool, points: bool = True) -> Scene:
    views, exact, cloud = textured()
    if depth:
        views = [replace(view, depth=one) for view, one in zip(views, exact, strict=True)]
    views = [replace(view, held_out=index == 1) for index, view in enumerate(views)]
    return Scene(tuple(views), points=cloud if points else None, posed_by="input")


def made(scene: Scene, settings: InstantSettings = SETTINGS) -> tuple[float, list[str]]:
    notes: list[str] = []
    gaussians = instant_splats(scene, settings, FIT, LiftSettings(), notes, lambda *_: None)
    assert len(gaussians) <= FIT.max_splats
    assert bool(gaussians.finite().all())
    (judge,) = scene.held_out or scene.views[:1]
    assert judge.camera is not None
    shown = rasterize(gaussians, judge.camera)
    seen = shown.alpha[0] > 0.95  # no training view shows all of the held-out one
    error = (shown.rgb[0].clamp(0, 1) - judge.image.float() / 255)[seen]
    return float(-10 * error.square().mean().log10()), notes


def test_depth_makes_splats_that_show_new_views():
    with_depth, notes = made(wall(depth=True))
    assert "depth that is there" in notes[-1]
    assert with_depth > 20
    by_stereo, notes = made(wall(depth=False))
    assert "plane-sweep" in notes[-1]
    assert by_stereo > 18
    _, notes = made(replace(wall(depth=False), views=wall(depth=False).views[:1]))
    assert "sparse points" in notes[-1]
    holes, chance = wall(depth=True), torch.Generator().manual_seed(0)
    views = [
        replace(view, depth=torch.where(torch.rand(48, 64, generator=chance) < 0.6, 0.0, view.depth))
        for view in holes.views
    ]
    assert made(replace(holes, views=tuple(views)))[0] > with_depth - 3


def test_masked_pixels_make_no_splats():
    scene = wall(depth=True)
    left = torch.arange(64).expand(48, 64) < 20
    views = tuple(replace(view, mask=left) for view in scene.views)
    notes: list[str] = []
    few = instant_splats(replace(scene, views=views), SETTINGS, FIT, LiftSettings(), notes, lambda *_: None)
    all_of_it = instant_splats(scene, SETTINGS, FIT, LiftSettings(), notes, lambda *_: None)
    span = [g.means[:, 0].max() - g.means[:, 0].min() for g in (few, all_of_it)]
    assert span[0] < 0.8 * span[1]


def test_nothing_to_start_from_is_one_line():
    empty = wall(depth=True)
    views = tuple(replace(view, camera=None) for view in empty.views)
    with pytest.raises(InputError, match="no training view"):
        instant_splats(replace(empty, views=views), SETTINGS, FIT, LiftSettings(), [], lambda *_: None)
    for name, word in (("lvsm-decoder-only-256", "kind splats"), ("nothing", "model"), ("mvp", "fetch")):
        with pytest.raises(InputError, match=word):
            instant_splats(empty, replace(SETTINGS, model=name), FIT, LiftSettings(), [], lambda *_: None)
    few = Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))
    _, notes = made(replace(wall(depth=False), points=few))
    assert any("no dense depth" in note for note in notes)


def test_the_table_keeps_other_runs(tmp_path):
    rows = [{"by": "instant", "seconds": 3.0, "psnr": 20.0, "ssim": 0.7, "gaussians": 10}]
    assert side_by_side(rows, tmp_path) == rows
    earlier = [{"by": "fitted", "seconds": 99.0, "psnr": 25.0, "ssim": 0.9, "gaussians": 20}, {"by": "instant"}, 7]
    (tmp_path / "metrics.json").write_text(json.dumps({"splats": earlier}))
    both = side_by_side(rows, tmp_path)
    assert [row["by"] for row in both] == ["instant", "fitted"]
    assert both[0]["psnr"] == 20
    page = methods_section({"splats": [*both, {"by": "<b>", "seconds": None, "psnr": None}]})
    assert page.index("instant</td>") < page.index("fitted</td>")
    assert "25.00" in page
    assert "&lt;b&gt;" in page
    assert "not measured" in page
    assert methods_section({}) == methods_section({"splats": []}) == methods_section({"splats": "x"}) == ""


@pytest.mark.slow
def test_the_ways_side_by_side(tmp_path):
    """instant, then refined into the same folder: one scene folder, a table of both, refined better."""
    hold_out(wall(depth=True), 3).save(tmp_path / "in")
    words = ["fit.max_splats=1500", "fit.steps=1000", "fit.sh_degree=0", "eval_every=3", "preview=false"]
    for by in ("instant", "refined"):
        settings = all_settings("draft", overrides=[*words, f"splats={by}"])
        scene = reconstruct(tmp_path / "in", tmp_path / "out", settings=settings, again=True)
        assert scene.gaussians is not None
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    rows = {row["by"]: row for row in metrics["splats"]}
    assert set(rows) == {"instant", "refined"}
    assert rows["refined"]["psnr"] > rows["instant"]["psnr"]
    assert rows["refined"]["psnr"] == pytest.approx(metrics["psnr"], abs=0.01)
    assert rows["refined"]["seconds"] >= rows["instant"]["seconds"]
    assert "Ways to the splats" in (tmp_path / "out/report.html").read_text()
    assert shortened(settings.fit, settings.instant).steps == 100
    none = reconstruct(tmp_path / "in", tmp_path / "bare", settings=all_settings("draft", overrides=["splats=none"]))
    assert none.gaussians is None
