"""Fewer, lighter splats: what the score means, what pruning keeps, and the verb."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from splat_scenes import make_scene

from scenetx.core import Cameras, Gaussians, InputError, Original, Scene, View
from scenetx.core.cameras import look_at
from scenetx.core.gaussians import SH_C0
from scenetx.fit.compress import (
    CompressSettings,
    compress_splats,
    most_significant,
    pseudo_cameras,
    significance,
)
from scenetx.fit.sensitivity import Sensitivity
from scenetx.fit.settle import STAGES, Settled, rounded
from scenetx.geometry.fuse import FuseSettings
from scenetx.io.least_turned import least_turned
from scenetx.io.sog import read_sog, write_sog
from scenetx.io.splat_formats import read_gaussians
from scenetx.pipeline.compress import CompressPlan, compress, parse_target
from scenetx.pipeline.export import export
from scenetx.pipeline.page import splat_data
from scenetx.splat import rasterize

UP = torch.tensor([0.0, -1.0, 0.0])


def photographed(count: int = 120, views: int = 4) -> Scene:
    """Pictures of random splats, and the scene that holds those splats; the last view is held out."""
    gaussians, cameras = make_scene(count, 40, 52, cameras=views, degree=1, size=0.15)
    pictures = rasterize(gaussians, cameras, backend="torch").rgb.clamp(0, 1).mul(255).round().byte()
    shots = tuple(
        View(
            f"{index}.png",
            pictures[index],
            Original(f"{index}.png", 40, 52),
            camera=cameras[index],
            held_out=index == views - 1,
        )
        for index in range(views)
    )
    return Scene(shots, gaussians=gaussians, posed_by="input")


def one(x: float, z: float, size: float, alpha: float) -> Gaussians:
    return Gaussians(
        torch.tensor([[x, 0.0, z]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), size),
        torch.tensor([alpha]),
        torch.zeros(1, 1, 3),
    )


def test_significance_is_the_light_a_splat_adds():
    """By the definition: how much the summed picture changes when only that splat turns from grey to a bit brighter."""
    gaussians, cameras = make_scene(12, 24, 30, cameras=2, degree=0, size=0.2)
    scores = significance(gaussians, [cameras[0], cameras[1]], volume_power=0.0, backend="torch")
    grey = replace(gaussians, sh=torch.zeros(12, 1, 3))
    base = rasterize(grey, cameras, backend="torch").rgb[..., 0].double().sum()
    for index in range(12):
        sh = grey.sh.clone()
        sh[index] += 0.5
        change = rasterize(replace(grey, sh=sh), cameras, backend="torch").rgb[..., 0].double().sum() - base
        assert float(scores[index]) == pytest.approx(float(change) / (0.5 * SH_C0), rel=2e-3, abs=1e-3)


def test_hidden_faint_and_broken_splats_do_not_matter():
    eye = look_at(torch.tensor([[0.0, 0, -4]]), torch.zeros(3), UP)
    camera = Cameras(eye, torch.tensor([[[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]]), 40, 40)
    wall = [one(0.0, 0.0, 0.5, 0.99)] * 6
    parts = [*wall, one(0.0, 1.5, 0.1, 0.9), one(1.5, 0.0, 0.1, 0.9)]
    parts += [one(1.5, 0.1, 0.1, 0.01), one(0.0, -9.0, 0.1, 0.9)]
    gaussians = Gaussians.cat([*parts, one(float("nan"), 0.0, 1.0, 1.0)])
    scores = significance(gaussians, [camera], backend="torch")
    assert bool((scores >= 0).all())
    assert scores[9] == 0  # behind the camera
    assert scores[10] == 0  # not finite
    assert scores[7] > 20 * scores[8]  # faint
    assert scores[7] > 20 * scores[6]  # behind the wall
    larger = significance(gaussians[6:8], [camera], volume_power=0.0, backend="torch")
    assert bool((larger >= significance(gaussians[6:8], [camera], backend="torch")).all())


def test_the_most_significant_stay():
    scores = torch.tensor([3.0, 1, 2, 2, 0])
    assert most_significant(scores, 3).tolist() == [True, False, True, True, False]
    assert most_significant(scores, 99).all()
    assert not most_significant(scores, 0).any()


def test_pseudo_cameras_stay_near_the_photos():
    _, cameras = make_scene(1, cameras=5)
    poses = pseudo_cameras(cameras, 200, jitter=0.1, generator=torch.Generator().manual_seed(0))
    apart = torch.cdist(cameras.centers, cameras.centers)
    moved = torch.cdist(poses[:, :3, 3], cameras.centers).min(1).values
    assert 0 < moved.median() < 0.5 * apart.max()
    rotations = (
        torch.cdist(poses[:, :3, :3].flatten(1).double(), cameras.world_from_cam[:, :3, :3].flatten(1).double())
        .min(1)
        .values
    )
    assert bool((rotations < 1e-5).all())
    alone = pseudo_cameras(cameras[0], 3, jitter=0.1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone, cameras[0].world_from_cam.repeat(3, 1, 1))


def psnr(scene: Scene, gaussians: Gaussians) -> float:
    errors = []
    for view in scene.training:
        assert view.camera is not None
        rgb = rasterize(gaussians, view.camera, backend="torch").rgb[0].clamp(0, 1)
        errors.append((rgb - view.image.float() / 255).square().mean())
    return float(-10 * torch.stack(errors).mean().log10())


def last(scene: Scene, settings: CompressSettings, price: float | None = None) -> tuple[Gaussians, torch.Tensor]:
    updates = list(compress_splats(scene, settings, None if price is None else lambda gaussians, weights: price))
    assert updates[-1].gaussians is not None
    assert updates[-1].scores is not None
    assert updates[-1].step == updates[-1].steps == settings.steps + (0 if price is None else settings.settle)
    return updates[-1].gaussians, updates[-1].scores


PRUNED = CompressSettings(fewer="prune", keep=0.5, steps=40, rounds=2, exposure=False)


def test_pruning_by_score_beats_chance_and_recovery_helps():
    scene = photographed()
    full = scene.gaussians
    assert full is not None
    cut, scores = last(scene, replace(PRUNED, steps=0, rounds=1))
    assert len(cut) == len(scores) == 60
    chance = full[torch.randperm(120, generator=torch.Generator().manual_seed(1))[:60]]
    assert psnr(scene, cut) > psnr(scene, chance) + 1
    recovered, _ = last(scene, replace(PRUNED, sh_degree=0))
    assert len(recovered) == 60
    assert recovered.sh_degree == 0
    flat = replace(cut, sh=cut.sh[:, :1])
    assert psnr(scene, recovered) > psnr(scene, flat) + 0.1
    again, _ = last(scene, replace(PRUNED, sh_degree=0))
    torch.testing.assert_close(again.means, recovered.means, atol=0, rtol=0)


def test_merging_recovers_and_repeats_itself():
    scene = photographed()
    settings = replace(PRUNED, fewer="merge", keep=0.4)
    cut, scores = last(scene, replace(settings, steps=0))
    assert len(cut) == len(scores) == 48
    recovered, _ = last(scene, settings)
    assert psnr(scene, recovered) > psnr(scene, cut) + 0.5
    again, _ = last(scene, settings)
    torch.testing.assert_close(again.means, recovered.means, atol=0, rtol=0)


def test_what_does_not_show_goes_before_anything_is_merged():
    scene = photographed()
    full = scene.gaussians
    assert full is not None
    hidden = replace(full, opacities=torch.where(torch.arange(120) < 40, 1e-4, full.opacities))
    kept, _ = last(replace(scene, gaussians=hidden), replace(PRUNED, fewer="merge", keep=80 / 120, steps=0))
    assert len(kept) == 80
    nearest = torch.cdist(hidden.means[40:], kept.means).min(1).values
    assert float((nearest < 1e-5).float().mean()) > 0.8


def alike(gaussians: Gaussians) -> Sensitivity:
    """Every number as important as any other."""
    ones = {name: torch.ones_like(getattr(gaussians, name)) for name in ("means", "quats", "opacities", "sh")}
    return Sensitivity(**ones, log_scales=torch.ones_like(gaussians.scales))


def test_rounded_splats_are_stored_exactly(tmp_path):
    """A .sog of them holds the very numbers the fit saw, in far fewer bytes."""
    gaussians, _ = make_scene(900, degree=1, size=0.1)
    kept = rounded(gaussians, alike(gaussians), 1e-4)
    colors = torch.unique(kept.sh[:, 1:].flatten(1), dim=0)
    assert 2 <= len(colors) <= 32
    write_sog(gaussians, tmp_path / "fine.sog", entries=32)
    write_sog(kept, tmp_path / "a.sog", entries=32)
    assert (tmp_path / "a.sog").stat().st_size < 0.75 * (tmp_path / "fine.sog").stat().st_size
    back = read_sog(tmp_path / "a.sog")
    back = back[torch.cdist(kept.means.double(), back.means.double()).argmin(1)]
    torch.testing.assert_close(back.means, kept.means, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.scales, kept.scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(back.opacities, kept.opacities, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.sh[:, 0], kept.sh[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(back.sh[:, 1:], kept.sh[:, 1:], rtol=0, atol=0.02)
    assert ((back.quats * kept.quats).sum(-1).abs() > 0.999999).float().mean() > 0.99


def test_numbers_get_coarser_and_files_smaller_with_the_price(tmp_path):
    gaussians = least_turned(make_scene(900, degree=1, size=0.1)[0])
    sizes, errors = [], []
    for price in (1e-13, 1e-5, 1e-3, 1e-2):
        kept = rounded(gaussians, alike(gaussians), price)
        write_sog(kept, tmp_path / "a.sog")
        sizes.append((tmp_path / "a.sog").stat().st_size)
        errors.append([float((getattr(kept, n) - getattr(gaussians, n)).abs().max()) for n in ("means", "opacities")])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]
    far = gaussians.means.abs().max()
    assert errors[0][0] < 2 * far.log1p() / 65535 * (1 + far)  # 16 bits of sign(x) ln(1 + |x|), at its coarsest
    assert errors[0][1] < 0.5 / 255 + 1e-6
    turned = (rounded(gaussians, alike(gaussians), 1e-13).quats * gaussians.quats).sum(-1).abs()
    assert float(turned.min()) > 0.9999
    # A number that pictures feel more is kept better than others that share its bytes.
    weights = alike(gaussians)
    felt = replace(weights, opacities=torch.where(torch.arange(900) < 100, 1e4, 1e-2))
    off = (rounded(gaussians, felt, 1e-3).opacities - gaussians.opacities).abs()
    assert float(off[:100].max()) < 0.01 < float(off[100:].mean())


def test_least_turned_splats_are_the_same_splats():
    gaussians, _ = make_scene(300, degree=1, size=0.1)
    gaussians.quats[0] = torch.tensor([0.0, 0, 0, -2])
    turned = least_turned(gaussians)
    torch.testing.assert_close(turned.covariances, gaussians.covariances, rtol=1e-4, atol=1e-6)
    assert turned.quats[:, 0].min() >= math.cos(math.radians(62.8) / 2) - 0.02
    assert torch.equal(least_turned(turned).quats, turned.quats)
    assert torch.equal(turned.means, gaussians.means)
    assert torch.equal(turned.sh, gaussians.sh)


def test_the_first_half_for_a_viewer_shows_more_than_a_random_half():
    """The viewer's splat budget draws the first splats of the page's file."""
    scene = photographed(200)
    data = splat_data(scene.gaussians)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.spz"
        path.write_bytes(data.data)
        ordered = read_gaussians(path)
    assert len(ordered) == 200
    chance = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for share in (50, 100):
        assert psnr(scene, ordered[:share]) > psnr(scene, ordered[chance[:share]]) + 1


def test_settling_hands_gradients_through():
    gaussians, _ = make_scene(40, degree=1, size=0.1)
    settled = Settled().then(gaussians, STAGES[0], alike(gaussians), 1e-4)
    free = replace(gaussians, means=gaussians.means.clone().requires_grad_(), sh=gaussians.sh.clone().requires_grad_())
    seen = settled.apply(free)
    assert torch.equal(seen.means, settled.fixed["means"])
    assert not torch.equal(seen.means, gaussians.means)
    assert torch.equal(seen.quats, gaussians.quats)
    assert len(torch.unique(seen.sh[:, 1:].detach().flatten(1), dim=0)) < 40
    (3 * seen.means.sum() + seen.sh.sum()).backward()
    torch.testing.assert_close(free.means.grad, torch.full_like(free.means, 3))
    torch.testing.assert_close(free.sh.grad[:, 0], torch.ones(40, 3))
    torch.testing.assert_close(free.sh.grad[:, 1:].sum(), torch.tensor(40.0 * 9))  # shared out, none lost


def test_settling_in_turn_wins_back_quality():
    scene = photographed()
    settings = CompressSettings(keep=1.0, steps=0, settle=0, exposure=False)
    rough, _ = last(scene, settings, 1e-6)
    settled, _ = last(scene, replace(settings, settle=60), 1e-6)
    assert psnr(scene, settled) > psnr(scene, rough) + 0.3
    torch.testing.assert_close(settled.means, rough.means)


def test_bad_requests_are_one_line():
    scene = photographed(20, 2)
    for broken in (replace(scene, gaussians=None), replace(scene, views=())):
        with pytest.raises(InputError, match="compress"):
            list(compress_splats(broken))
    for changes in ({"keep": 0.0}, {"keep": 1.5}, {"rounds": 0}, {"sh_degree": 4}, {"pseudo_views": 2.0}):
        with pytest.raises(InputError, match="compress setting"):
            CompressSettings(**changes)
    for text in ("", "x", "-3x", "1e9", "10 times", "nan"):
        with pytest.raises(InputError, match="--target"):
            parse_target(text)
    assert parse_target("10x") == parse_target(" 10 ") == 10
    with pytest.raises(InputError, match="--formats"):
        CompressPlan(formats=("ksplat",))
    with pytest.raises(InputError, match="--target"):
        CompressPlan(target=0.5)


def test_compress_writes_files_and_their_table(tmp_path):
    scene = photographed(600)
    scene.save(tmp_path / "scene")
    plan = CompressPlan(target=12.0, fit=CompressSettings(steps=4, rounds=1, settle=3))
    seen = []
    curve = compress(tmp_path / "scene", None, plan, lambda *said: seen.append(said))
    folder = tmp_path / "scene/compressed"
    names = ["rate_distortion.json", "splats.compressed.ply", "splats.sog", "splats.spz"]
    assert sorted(path.name for path in folder.iterdir()) == names
    table = json.loads((folder / "rate_distortion.json").read_text())
    assert [point["name"] for point in table["points"]][:2] == ["splats.ply", "splats.sog"]
    assert table["judged_by"] == "1 held-out picture"
    first, *rest = curve.points
    assert first.ratio == 1
    assert first.psnr > 45  # the scene's own splats made the pictures
    assert all(point.ratio > 1.5 for point in rest)
    assert curve.best.bytes == (folder / "splats.sog").stat().st_size
    assert curve.best.psnr <= first.psnr
    assert curve.line().startswith("splats.sog: ")
    assert seen[-1][1] == 1.0
    replace(scene, gaussians=None).save(tmp_path / "empty")
    with pytest.raises(InputError, match="has no splats"):
        compress(tmp_path / "empty")


def test_room_goes_to_finer_numbers_before_splats_are_merged(tmp_path):
    """A target that all splats meet is met with all of them, in numbers that fill the room."""
    photographed(600).save(tmp_path / "scene")
    fit = CompressSettings(steps=0, settle=0)
    points = {}
    for target in (5.0, 9.0):
        plan = CompressPlan(target=target, formats=("sog",), fit=fit)
        points[target] = compress(tmp_path / "scene", tmp_path / "out", plan).points[1:]
    full, fine = points[5.0]
    coarse = points[9.0][1]
    assert full.gaussians == 600
    assert fine.gaussians > 590  # but for those that hardly show
    assert coarse.gaussians < 400
    assert 5 <= fine.ratio < 6 < 9 <= coarse.ratio
    assert fine.psnr > coarse.psnr + 1
    assert fine.psnr > full.psnr + 1  # 16 splats to a colour of the palette cost more


def test_without_open3d_the_cure_is_named(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(InputError, match=r"pip install 'scenetx\[mesh\]'"):
        export(photographed(20, 2), tmp_path / "mesh.glb")
    with pytest.raises(InputError, match="above 0"):
        FuseSettings(voxel=-1.0)
    with pytest.raises(InputError, match="votes"):
        FuseSettings(votes=-1)
    with pytest.raises(InputError, match="poisson"):
        FuseSettings(poisson_depth=99)
