"""Splats by comparing views: the geometry of it, the laws of the model, its file, its training, its doors."""

from dataclasses import replace

import pytest
import torch
from view_scenes import picture, ring
from wall_scene import textured

from scenetx.config import to_dict
from scenetx.core import Cameras, InputError, Points, Scene, Sim3, project, unproject
from scenetx.core.cameras import pixel_grid
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.data.procedural import ProceduralConfig
from scenetx.fit import settings_for
from scenetx.geometry.lift import LiftSettings
from scenetx.models import own
from scenetx.models import stereo_splats as model_file
from scenetx.models.da3 import Da3Config
from scenetx.models.open_geometry import find_geometry
from scenetx.models.own import Stated, open_own, read_stated, write_own
from scenetx.models.splat_head import SplatHeadConfig
from scenetx.models.stereo_splats import StereoSplats, StereoSplatsConfig, scene_splats
from scenetx.pipeline.choose import choose_model
from scenetx.pipeline.instant import InstantSettings, instant_splats
from scenetx.pipeline.reconstruct import makes_splats, reconstruct
from scenetx.pipeline.reconstruct import settings_for as all_settings
from scenetx.pipeline.stereo import StereoSettings
from scenetx.train.evaluate import held_out, score
from scenetx.train.feed import Batches
from scenetx.train.settings import DataSettings, LossSettings, TrainSettings
from scenetx.train.splat_task import SplatTask, depth_parts, depth_range
from scenetx.train.tasks import build_model, build_task

DA3 = Da3Config(
    dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8), patch=8
)
HEAD = SplatHeadConfig(features=8, layers=1, extra=model_file.HIDDEN)
CONFIG = StereoSplatsConfig(da3=DA3, head=HEAD, channels=8, planes=12, width=16, look=32)
SETTINGS = TrainSettings(
    model="stereo_splats",
    stereo_splats=CONFIG,
    data=DataSettings(
        height=32, width=32, context=2, context_most=3, targets=1,
        procedural=ProceduralConfig(difficulty=0.1, blur=1, shadows=False, views=4),
    ),
    loss=LossSettings(mse=5.0, gradient=0.5, planes=0.05, far=0.5),
    batch=2,
    accelerator="cpu",
)  # fmt: skip


def tiny(**changes) -> StereoSplats:
    return build_model(replace(SETTINGS, stereo_splats=replace(CONFIG, **changes))).eval()


def wall(cameras: Cameras, distance: float = 1.5) -> torch.Tensor:
    """z-depth of the plane z = ``distance`` of the world."""
    pixels = pixel_grid(cameras.height, cameras.width).flatten(0, 1).expand(len(cameras), -1, -1)
    ray = unproject(pixels, torch.ones(pixels.shape[:2]), cameras).unflatten(1, (cameras.height, cameras.width))
    center = cameras.centers[:, None, None, :]
    return (distance - center[..., 2]) / (ray - center)[..., 2]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mini-splat.safetensors"
    return write_own(path, tiny().state_dict(), Stated("stereo_splats", to_dict(CONFIG), (32, 32), "mini-splat"))


def test_pixels_are_seen_where_projection_says():
    cameras = ring(3, 12, 20)
    depth = wall(cameras)
    views = torch.arange(3)
    sources = model_file.neighbours(cameras, 1, 2)
    assert all(int(k) not in row.tolist() for k, row in zip(views, sources, strict=True))
    motion = model_file.homographies(cameras, views, sources, (12, 20))
    grid, inside = model_file.seen_at(motion, (1 / depth)[:, None])
    pixels = pixel_grid(12, 20).flatten(0, 1)
    for view in range(3):
        points = unproject(pixels[None], depth[view].flatten()[None], cameras[view])[0]
        for place, other in enumerate(sources[view].tolist()):
            where, _ = project(points, cameras[other])
            found = (grid[view, place, 0].flatten(0, 1) + 1) / 2 * torch.tensor([20.0, 12.0])
            sure = inside[view, place, 0].flatten() > 0
            assert sure.sum() > 50
            torch.testing.assert_close(found[sure], where[0][sure], atol=1e-3, rtol=0)


def test_neighbours_stay_in_their_scene():
    cameras = ring(8, 8, 8)
    near = model_file.neighbours(cameras, 2, 3)
    assert near.shape == (8, 3)
    assert bool((near[:4] < 4).all())
    assert bool((near[4:] >= 4).all())


def test_learned_doubling_is_a_mean_of_neighbours():
    x = torch.rand(2, 1, 5, 7)
    wild = model_file.convex_double(x, 5 * torch.randn(2, 36, 5, 7))
    assert wild.shape == (2, 1, 10, 14)
    assert x.min() <= wild.min() <= wild.max() <= x.max()
    middle = torch.full((2, 9, 4, 5, 7), -99.0)
    middle[:, 4] = 99
    plain = model_file.convex_double(x, middle.flatten(1, 2))
    torch.testing.assert_close(plain, x.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_between_two_likely_surfaces_one_is_taken():
    planes = torch.linspace(0, 1, 11)[None]
    scores = torch.full((1, 11, 1, 1), -20.0)
    scores[0, [1, 9], 0, 0] = torch.tensor([1.0, 1.1])
    inverse, share = model_file.around_peak(scores, planes)
    assert float(inverse) == pytest.approx(0.9, abs=1e-4)
    assert float(share) == pytest.approx(0.525, abs=1e-2)


def test_the_answer_does_not_know_the_world_and_keeps_its_range():
    cameras = ring(3, 32, 40)
    images, model = picture(cameras), tiny()
    torch.nn.init.normal_(model.head.last.weight, std=0.3)
    ranges = torch.tensor([[2.0, 8.0]]).repeat(3, 1)
    turn = rotation_from_rotvec(torch.tensor([[0.2, 0.5, -1.0]], dtype=torch.float64))[0]
    motion = Sim3(3.0, turn, torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64))
    moved = replace(cameras, world_from_cam=motion.apply_to_poses(cameras.world_from_cam))
    with torch.no_grad():
        here, there = model(images, cameras, ranges), model(images, moved, 3 * ranges)
        larger = model(images.repeat_interleave(2, 1), cameras.resized(64, 40), ranges)
    assert bool(here.splats.gaussians.finite().all())
    assert len(here.splats.gaussians) == 3 * 32 * 40
    assert float(here.inverse.min()) >= 0.2 / 8 / 2 - 1e-6
    assert float(here.inverse.max()) < 1
    torch.testing.assert_close(here.depth, there.depth / 3, rtol=1e-3, atol=1e-3)
    turned = here.splats.gaussians.transformed(motion)
    for name in ("means", "scales", "opacities", "sh", "covariances"):
        torch.testing.assert_close(
            getattr(there.splats.gaussians, name), getattr(turned, name), rtol=5e-3, atol=5e-3, msg=name
        )
    assert len(larger.splats.gaussians) == 2 * len(here.splats.gaussians)


def test_scenes_of_a_batch_do_not_see_each_other():
    cameras, model = ring(6, 16, 16), tiny(look=16)
    images, ranges = picture(cameras), torch.tensor([[1.0, 6.0]]).repeat(6, 1)
    with torch.no_grad():
        both = model(images, cameras, ranges, scenes=2)
        alone = [model(images[k : k + 3], cameras[slice(k, k + 3)], ranges[:3]) for k in (0, 3)]
        many = model(images, cameras, ranges)  # more than da3 sees at once
    torch.testing.assert_close(both.depth, torch.cat([one.depth for one in alone]), rtol=1e-4, atol=1e-4)
    parts = scene_splats(both, 2)
    torch.testing.assert_close(parts[1].gaussians.means, alone[1].splats.gaussians.means, rtol=1e-3, atol=1e-3)
    assert len(parts[0].eyes) == 3
    assert many.depth.shape == both.depth.shape


def test_what_it_cannot_look_at_is_one_line():
    cameras, model = ring(3, 16, 16), tiny()
    images, good = picture(cameras), torch.tensor([[1.0, 6.0]]).repeat(3, 1)
    for shown, cams, ranges, word in (
        (images[:1], cameras[:1], good[:1], "two views"),
        (images[:, :15], cameras.resized(15, 16), good, "multiples of 4"),
        (images, cameras, good.flip(-1), "near < far"),
        (images, cameras, good * torch.nan, "near < far"),
    ):
        with pytest.raises(InputError, match=word):
            model(shown, cams, ranges)
    with pytest.raises(InputError, match="groups"):
        replace(CONFIG, groups=3)
    with pytest.raises(InputError, match="extra"):
        replace(CONFIG, head=SplatHeadConfig(features=8))
    with pytest.raises(InputError, match="extra"):
        model.head(images, torch.ones(3, 16, 16), cameras)


def test_its_file_opens_strictly(file, tmp_path):
    stated = read_stated(file)
    assert stated.config(StereoSplatsConfig()) == CONFIG
    loaded = open_own(file, stated).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tiny().state_dict().items())
    short = {key: value for key, value in loaded.items() if not key.startswith("settle")}
    broken = write_own(tmp_path / "short.safetensors", short, stated)
    with pytest.raises(InputError, match=r"missing settle\."):
        open_own(broken, stated)
    with pytest.raises(InputError, match="not geometry"):
        find_geometry(str(file))


def test_known_depth_costs_nothing_and_unknown_is_far():
    depth = 2 + torch.rand(2, 2, 8, 8)
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[0, 0, :4] = False
    valid[1] = False
    ranges = depth_range(depth, valid)
    assert bool((ranges[1] == torch.tensor([1.0, 2.0])).all())
    assert 1.3 < float(ranges[0, 1, 0]) < 2.1 < 2.9 < float(ranges[0, 1, 1])
    low, high = 0.2 / ranges[..., 1].flatten()[:, None], 1 / ranges[..., 0].flatten()[:, None]
    planes = low + torch.linspace(0, 1, 8) * (high - low)
    far = planes.view(2, 2, 8)[..., 0, None, None].expand_as(depth)
    inverse = torch.where(valid, 1 / depth, far).flatten(0, 1)
    cameras = ring(4, 8, 8)
    with torch.no_grad():
        answer = tiny(look=8)(picture(cameras), cameras, torch.tensor([[1.0, 6.0]]).repeat(4, 1))
    answer = replace(answer, inverse=inverse, scores=torch.zeros(4, 8, 2, 2), planes=planes)
    known, entropy, unknown, relative = depth_parts(answer, depth, valid)
    assert max(float(known), float(unknown), float(relative)) < 1e-5
    # Nothing is known of the second scene; the first scene's planes are all alike to it.
    assert float(entropy) == pytest.approx(torch.tensor(8.0).log().item() / 2, rel=1e-4)
    assert float(depth_parts(replace(answer, inverse=2 * inverse), depth, valid)[2]) > 0.01


def test_training_steps_lower_the_loss_and_leave_the_geometry_alone():
    settings = replace(SETTINGS, data=replace(SETTINGS.data, context_most=0))
    task = build_task(settings, build_model(settings))
    assert isinstance(task, SplatTask)
    before = {name: value.clone() for name, value in task.model.da3.state_dict().items()}
    batch = Batches(settings).batch(0, (0, 1))
    assert batch["rgb"].shape[1] == 3
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(12):
        parts = task(batch, 2)
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: float(value.detach()) for name, value in parts.items()})
    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    assert history[-1]["depth"] < history[0]["depth"]
    assert all(torch.equal(before[name], value) for name, value in task.model.da3.state_dict().items())
    scores = score(task.model, held_out(settings, 1), 2, 1)
    assert {"psnr", "nearest_psnr", "warped_psnr", "absrel"} <= scores.keys()


def test_training_begins_with_the_geometry_model(tmp_path):
    pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")
    from scenetx.train.checkpoint import start_from

    geometry = build_model(TrainSettings(model="da3", da3=DA3, seed=5))
    path = write_own(tmp_path / "g.safetensors", geometry.state_dict(), Stated("da3", to_dict(DA3), (32, 32)))
    model = tiny()
    start_from(path, model)
    assert all(torch.equal(model.da3.state_dict()[key], value) for key, value in geometry.state_dict().items())
    with pytest.raises(InputError, match="does not fit"):
        start_from(path, build_model(TrainSettings(model="da3", da3=replace(DA3, dim=64))))
    with pytest.raises(InputError, match="two views"):
        replace(SETTINGS, data=DataSettings(context=1)).checked()


def posed_wall() -> Scene:
    views, _, cloud = textured()
    views = [replace(view, held_out=index == 1) for index, view in enumerate(views)]
    return Scene(tuple(views), points=cloud, posed_by="input")


def test_a_scene_takes_its_splats(file, monkeypatch):
    scene, notes = posed_wall(), []
    fit = replace(settings_for("draft"), max_splats=3000, width=64, sh_degree=1)
    settings = InstantSettings(model=str(file), stereo=StereoSettings(side=64))
    found = instant_splats(scene, settings, fit, LiftSettings(), notes, lambda *_: None)
    assert 100 < len(found) <= 3000
    assert bool(found.finite().all())
    assert "mini-splat in one pass" in notes[-1]
    left = torch.arange(64).expand(48, 64) < 20
    masked = replace(scene, views=tuple(replace(view, mask=left) for view in scene.views))
    roomy = replace(fit, max_splats=20_000)
    few, all_of_it = (
        instant_splats(one, settings, roomy, LiftSettings(), notes, lambda *_: None) for one in (masked, scene)
    )
    assert len(few) < 0.6 * len(all_of_it)
    for bad, word in (
        (replace(scene, points=None), "points"),
        (replace(scene, views=scene.views[:2]), "two or more views"),
        (replace(scene, points=Points(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8))), "points"),
    ):
        with pytest.raises(InputError, match=word):
            instant_splats(bad, settings, fit, LiftSettings(), notes, lambda *_: None)
    with pytest.raises(InputError, match="stereo side"):
        StereoSettings(side=8)


def test_reconstruct_takes_it_by_name_and_says_where_it_cannot(file, monkeypatch, tmp_path):
    monkeypatch.setattr(own, "SHIPPED", file.parent)
    assert choose_model("mini-splat")[0] == "sfm"
    assert "mini-splat" in choose_model(str(file))[2]
    assert "mini" not in choose_model("auto")[0]
    for by in ("instant", "refined"):
        for name in ("mini", "mini-splat", str(file)):
            assert makes_splats(all_settings("draft", overrides=[f"model={name}", f"splats={by}"])) == str(file)
    assert makes_splats(all_settings("draft", overrides=["splats=instant"])) == ""
    assert makes_splats(all_settings("draft", overrides=["model=mini"])) == ""
    posed_wall().save(tmp_path / "in")
    with pytest.raises(InputError, match="--splats instant or refined"):
        reconstruct(tmp_path / "in", tmp_path / "no", settings=all_settings("draft", overrides=["model=mini-splat"]))
    words = ["model=mini-splat", "splats=instant", "eval_every=3", "preview=false", "instant.stereo.side=64"]
    scene = reconstruct(tmp_path / "in", tmp_path / "out", settings=all_settings("draft", overrides=words))
    assert scene.gaussians is not None
    assert scene.metrics["psnr"] > 5
