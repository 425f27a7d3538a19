"""Training: losses against their twins, batches by number, exact resume, bad losses, bad checkpoints."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scenetx.config import load_settings
from scenetx.core import Cameras, InputError
from scenetx.core.cameras import look_at
from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.data.sample import procedural_samples
from scenetx.data.shards import write_shard
from scenetx.measure.image import ssim
from scenetx.models.da3 import Da3Config
from scenetx.models.open_view_model import open_view_model
from scenetx.models.svsm import SvsmConfig
from scenetx.train import checkpoint, losses
from scenetx.train.evaluate import held_out, score, warped
from scenetx.train.feed import Batches, Feed, difficulty
from scenetx.train.loop import train
from scenetx.train.optim import build_optimizer, learning_rate
from scenetx.train.settings import HELD_OUT_SEEDS, DataSettings, LossSettings, OptimSettings, TrainSettings
from scenetx.train.tasks import GeometryTask, ViewTask, build_model, build_task

pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")

PROCEDURAL = ProceduralConfig(difficulty=0.1, blur=1, shadows=False, views=4)
SMALL = TrainSettings(
    svsm=SvsmConfig(dim=32, heads=2, encoder_layers=1, decoder_layers=1),
    da3=Da3Config(dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8)),
    data=DataSettings(height=16, width=16, context=2, targets=2, procedural=PROCEDURAL),
    optim=OptimSettings(lr=1e-3, warmup=2, steps=6, ema=0.9),
    batch=2,
    accelerator="cpu",
    save_every=2,
    log_every=1,
)
RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    config = replace(PROCEDURAL, height=16, width=16)
    write_shard(folder / "a.tar", procedural_samples(procedural_views([0, 1, 2], config), ["0", "1", "2"]))
    return folder


@pytest.fixture(scope="module")
def stored(shards: Path) -> TrainSettings:
    return replace(SMALL, data=replace(SMALL.data, source="shards", path=(shards,)))


def cameras(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    eye = torch.randn(count, 3, generator=generator) * 2
    return look_at(eye, torch.zeros(3), torch.tensor([0.0, 0, 1]))


def test_batched_ssim_is_the_measured_ssim():
    a, b = torch.rand(2, 3, 16, 20, 3, generator=torch.Generator().manual_seed(0))
    expected = sum(ssim(x, y) for x, y in zip(a, b, strict=True)) / 3
    assert float(losses.ssim_batch(a.double(), b.double())) == pytest.approx(expected, abs=1e-9)


def test_pose_loss_is_blind_to_the_world_and_zero_for_the_truth():
    poses = cameras(4).double()
    turned = cameras(5)[4].double() @ poses
    rotation, translation = losses.relative_pose_loss(poses, turned)
    assert abs(float(rotation)) < 1e-5
    assert float(translation) < 1e-9
    wrong = poses.clone()
    wrong[2] = poses[0]
    assert float(losses.relative_pose_loss(poses, wrong)[0]) > 0.1


def test_pose_loss_has_a_finite_gradient_at_the_truth():
    poses = cameras(3)
    found = poses.clone().requires_grad_()
    sum(losses.relative_pose_loss(poses, found)).backward()
    assert bool(found.grad.isfinite().all())


def test_losses_of_exact_depth_vanish_and_normals_agree():
    views = procedural_views([4], replace(PROCEDURAL, height=40, width=40, views=2))
    depth, K, normals = views.depth[0], views.K[0], views.normals[0]
    valid = depth > 0
    assert float(losses.depth_gradient_loss(depth, depth, valid)) == 0
    sure = torch.ones_like(depth)
    assert float(losses.confident_l1(torch.zeros_like(depth), sure, valid, 0.1)) == 0
    # Flat pieces of the world: the normal of three neighbouring points is the surface's.
    cosine = (losses.normals_of_depth(depth, K) * normals[:, :-1, :-1]).sum(-1)
    flat = valid[:, :-1, :-1] & ((normals[:, :-1, :-1] * normals[:, 1:, 1:]).sum(-1) > 0.9999)
    flat &= ((depth[:, :-1, :-1] - depth[:, 1:, 1:]).abs() < 0.1) & (
        (depth[:, :-1, :-1] - depth[:, :-1, 1:]).abs() < 0.1
    )
    assert flat.sum() > 50
    assert cosine[flat].quantile(0.1) > 0.99
    assert float(losses.scene_scale(2 * depth, K, valid)) == pytest.approx(
        2 * float(losses.scene_scale(depth, K, valid))
    )


def test_learning_rate_rises_then_falls_to_its_floor():
    settings = OptimSettings(lr=1.0, warmup=10, steps=100, floor=0.1)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_only_matrices_decay():
    optimizer = build_optimizer(build_model(replace(SMALL, model="da3")), SMALL.optim)
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert any(p.shape[-1] == 32 and p.ndim == 3 for p in free["params"])  # tokens


def test_batches_depend_on_their_number_alone(stored):
    whole, half = Batches(stored), Batches(stored)
    for step in (0, 5):
        batch = whole.batch(step, (0, 1))
        second = half.batch(step, (1,))
        assert all(torch.equal(batch[name][1:], second[name]) for name in batch)
    assert not torch.equal(whole.batch(0, (0,))["rgb"], whole.batch(1, (0,))["rgb"])


def test_a_pass_over_finite_data_sees_every_scene_once(stored):
    batches = Batches(stored)
    seen = {batches._stored(index, 2, 2).name for index in range(3)}
    assert seen == {"0", "1", "2"}


def test_training_seeds_are_never_held_out():
    batches = Batches(replace(SMALL, batch=1))
    names = [batches._procedural(step, [0])[0].name for step in (0, 7)]
    assert all(int(name) >= HELD_OUT_SEEDS for name in names)
    assert all(int(sample.name) < HELD_OUT_SEEDS for sample in held_out(SMALL, 2))


def test_scenes_are_used_again_and_a_late_start_sees_the_same(monkeypatch):
    made = []
    plain = Batches._made
    monkeypatch.setattr(
        Batches, "_made", lambda self, numbers, level: made.extend(numbers) or plain(self, numbers, level)
    )
    data = replace(SMALL.data, height=8, width=8, reuse=2, pool=4, extra_views=1)
    settings = replace(SMALL, batch=4, data=data)
    through, late = Batches(settings), Batches(settings)
    batches = [through.batch(step, range(4)) for step in range(6)]
    assert len(made) == len(set(made)) <= 4 + 2 * 5  # none twice; two new ones a step
    assert all(torch.equal(batches[5][name], value) for name, value in late.batch(5, range(4)).items())
    with pytest.raises(InputError, match="reuse"):
        Batches(replace(SMALL, batch=3, data=data))


def test_difficulty_rises_over_the_curriculum():
    data = replace(SMALL.data, difficulty_from=0.0, curriculum=10, procedural=replace(PROCEDURAL, difficulty=0.5))
    settings = replace(SMALL, data=data)
    assert [difficulty(settings, step) for step in (0, 5, 10, 50)] == [0.0, 0.25, 0.5, 0.5]


def test_a_lost_worker_is_replaced(stored, monkeypatch):
    feed = Feed(Batches(stored), 0, 1)
    plain, lost = feed._source, []

    def source(first: int, last: int):
        for count, batch in enumerate(plain(first, last)):
            if count == 1 and not lost:
                lost.append(first)
                raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")
            yield batch

    monkeypatch.setattr(feed, "_source", source)
    steps = list(feed.steps(0, 4))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert feed.restarts == 1
    assert torch.equal(steps[1][1][0]["rgb"], Batches(stored).batch(1, (0, 1))["rgb"])


def test_a_broken_sample_is_left_out_of_the_stream(shards, stored, tmp_path):
    data = bytearray((shards / "a.tar").read_bytes())
    at = data.index(b"\x89PNG")
    data[at : at + 8] = bytes(8)
    (tmp_path / "b.tar").write_bytes(bytes(data))
    batches = Batches(replace(stored, data=replace(stored.data, path=(tmp_path,))))
    assert {batches._stored(index, 2, 2).name for index in range(12)} == {"1", "2"}


class Killed(BaseException):
    pass


def killed_at(step: int):
    def at_step(done: int) -> None:
        if done == step:
            raise Killed

    return at_step


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    place = folder / "checkpoints" / f"step-{step:08d}"
    names = ("model", "average", "optimizer")
    return {f"{n}.{key}": value for n in names for key, value in load_file(place / f"{n}.safetensors").items()}


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "loss", "lr", "gradient_norm") if key in row} for row in rows]


def test_a_killed_run_goes_on_to_the_very_same_weights(stored, tmp_path):
    through = train(stored, tmp_path / "a")
    assert through.done
    with pytest.raises(Killed):
        train(stored, tmp_path / "b", at_step=killed_at(5))
    again = train(stored, tmp_path / "b")
    assert again.progress.step == 6
    one, two = tensors(tmp_path / "a", 6), tensors(tmp_path / "b", 6)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert len(checkpoint.found(tmp_path / "b" / "checkpoints")) == stored.keep
    assert (tmp_path / "a" / "pictures").is_dir() or stored.picture_every > 6
    model = open_view_model(through.weights)
    assert model.config == stored.svsm
    # A run of other settings does not go on from it.
    with pytest.raises(InputError, match=r"optim\.lr"):
        train(replace(stored, optim=replace(stored.optim, lr=5e-4)), tmp_path / "b")


def test_ctrl_c_ends_the_step_and_saves_it(stored, tmp_path):
    def at_step(done: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(replace(stored, save_every=100), tmp_path, at_step=at_step)
    assert [path.name for path in checkpoint.found(tmp_path / "checkpoints")] == ["step-00000003"]


def test_accumulated_parts_are_one_batch(stored, tmp_path):
    one, two = (
        train(replace(stored, accumulate=parts, optim=replace(stored.optim, steps=2, ema=0.0)), tmp_path / str(parts))
        for parts in (1, 2)
    )
    a, b = load_file(one.weights), load_file(two.weights)
    # Adam makes steps of the learning rate from the rounding of gradients near zero: a few weights differ by that.
    assert max(float((a[name] - b[name]).abs().mean()) for name in a) < 2e-5
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 3e-3


@pytest.mark.parametrize("model", ["svsm", "da3"])
def test_blocks_compute_in_bfloat16_and_nothing_else_does(model: str):
    data = replace(SMALL.data, height=28, width=28)
    plain = replace(SMALL, model=model, data=data)
    batch = Batches(plain).batch(0, (0, 1))
    losses_, kinds = [], set()
    for settings in (plain, replace(plain, precision="bf16-mixed")):
        task = build_task(settings, build_model(settings))
        for name, part in task.named_modules():
            if isinstance(part, torch.nn.Linear) and settings is not plain:
                part.register_forward_hook(lambda _, __, out, name=name: kinds.add((name, out.dtype)))
        values = task(batch, 2)
        values["loss"].backward()
        assert all(value.dtype == torch.float32 for value in values.values())
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in task.parameters())
        losses_.append(values["loss"].item())
    assert losses_[1] == pytest.approx(losses_[0], rel=0.03)
    assert {dtype for _, dtype in kinds} == {torch.float32, torch.bfloat16}
    assert all(dtype == torch.float32 for name, dtype in kinds if "cam_dec" in name or "tokens" in name)


def test_time_ends_a_run_and_it_goes_on(stored, tmp_path):
    first = train(replace(stored, seconds=0.0), tmp_path)
    assert not first.done
    assert first.progress.step == 1
    assert train(stored, tmp_path).done


def test_steps_without_a_finite_loss_are_left_out_and_counted(stored, tmp_path, monkeypatch):
    plain, calls = ViewTask.forward, []

    def forward(self, batch, context, told=False):
        calls.append(1)
        values = plain(self, batch, context, told)
        return values | {"loss": values["loss"] * float("nan")} if len(calls) in (2, 3) else values

    monkeypatch.setattr(ViewTask, "forward", forward)
    outcome = train(replace(stored, nan_limit=2), tmp_path / "a")
    assert outcome.done
    assert outcome.progress.bad == 2
    assert all(bool(value.isfinite().all()) for value in load_file(outcome.weights).values())
    calls.clear()
    with pytest.raises(InputError, match="lower optim"):
        train(replace(stored, nan_limit=1), tmp_path / "b")
    saved = list((tmp_path / "b").glob("bad-step-*.safetensors"))
    assert torch.equal(load_file(saved[0])["0.rgb"], Batches(stored).batch(2, (0, 1))["rgb"])


def test_a_gradient_far_too_large_is_left_out(stored, tmp_path):
    outcome = train(replace(stored, optim=replace(stored.optim, clip=1e-9, skip=1.0, steps=4)), tmp_path)
    assert outcome.progress.skipped == 2  # not in warm-up
    assert outcome.progress.bad == 0


def test_geometry_learns_on_one_scene_and_is_told_cameras_sometimes(tmp_path):
    data = replace(SMALL.data, height=28, width=28, context=3, context_most=4)
    settings = replace(SMALL, model="da3", data=data, loss=LossSettings(normals=0.1, rays=0.2, cameras_given=0.5))
    batches = Batches(settings)
    assert {batches.context(step) for step in range(20)} == {3, 4}
    assert {batches.told(step) for step in range(20)} == {True, False}
    task = GeometryTask(build_model(settings), settings.loss)
    batch = batches.batch(0, (0,))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    history = []
    for _ in range(12):
        loss = task(batch, 3)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    assert history[-1] < 0.8 * history[0]
    scores = score(task.model, held_out(settings, 1), 3, 0)
    assert {"auc30", "still_auc30", "absrel", "flat_absrel"} <= scores.keys()
    assert 0 <= scores["auc30"] <= 100


def test_every_scene_of_a_batch_counts_alike():
    data = replace(SMALL.data, height=28, width=28, context=3)
    settings = replace(SMALL, model="da3", data=data, loss=LossSettings(normals=0.1, rays=0.2, splat=0.5))
    task = GeometryTask(build_model(settings), settings.loss)
    batch = Batches(settings).batch(0, (0, 1))
    batch["depth"][0, :, ::2] = 0  # a scene of which half is unknown weighs no less
    with torch.no_grad():
        both = task(batch, 3)
        alone = [task({name: value[k : k + 1] for name, value in batch.items()}, 3) for k in range(2)]
    for name, value in both.items():
        assert float(value) == pytest.approx(sum(float(one[name]) for one in alone) / 2, rel=1e-4), name


def test_a_plane_is_warped_exactly():
    K = torch.tensor([[20.0, 0, 16], [0, 20, 16], [0, 0, 1]])[None]
    source, moved = torch.eye(4)[None], torch.eye(4)[None].clone()
    moved[0, 0, 3] = 0.5  # at depth 2: 5 pixels
    picture = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0))
    out = warped(picture, Cameras(source, K, 32, 32), Cameras(moved, K, 32, 32), 2.0)
    assert torch.allclose(out[:, :27], picture[:, 5:], atol=1e-4)
    assert torch.allclose(
        warped(picture, Cameras(source, K, 32, 32), Cameras(source, K, 32, 32), 1.0), picture, atol=1e-5
    )


def test_view_scores_stand_beside_baselines():
    scores = score(build_model(SMALL), held_out(SMALL, 2), 2, 2)
    assert {"psnr", "nearest_psnr", "warped_psnr", "mean_psnr", "ssim"} <= scores.keys()
    assert all(0 < scores[name] <= 60 for name in scores if name.endswith("psnr"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipes_are_settings(path: Path):
    settings = load_settings(TrainSettings(), file=path)
    assert settings.name == path.stem
    patch = getattr(settings, settings.model).patch
    assert settings.data.height % patch == 0
    assert settings.data.width % patch == 0
    assert settings.batch % settings.accumulate == 0


@pytest.mark.parametrize(("name", "low", "high"), [("mini-view", 15e6, 28e6), ("mini-geometry", 8e6, 14e6)])
def test_the_mini_models_have_the_stated_size(name: str, low: float, high: float):
    path = next(path for path in RECIPES if path.stem == name)
    with torch.device("meta"):
        model = build_model(load_settings(TrainSettings(), file=path))
    assert low <= sum(p.numel() for p in model.parameters()) <= high


@pytest.mark.parametrize(
    "change", [{"batch": 0}, {"optim": OptimSettings(ema=1.0)}, {"data": replace(SMALL.data, source="shards")}]
)
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError):
        replace(SMALL, **change).checked()


def test_a_batch_that_cannot_be_shared_is_refused(stored):
    with pytest.raises(InputError, match="multiple of 4"):
        Feed(Batches(replace(stored, accumulate=2)), 0, 2)
