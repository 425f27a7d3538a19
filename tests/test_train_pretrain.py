"""Pretraining: what it hides, what matches what, that it learns, resumes, and hands its trunk on; splats as a loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scenetx.core import Cameras, InputError
from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.data.sample import procedural_samples
from scenetx.data.shards import write_shard
from scenetx.models.da3 import Da3Config
from scenetx.train import checkpoint, losses
from scenetx.train.feed import Batches
from scenetx.train.loop import train
from scenetx.train.matching import patch_matches
from scenetx.train.pretrain import hidden, in_patches
from scenetx.train.settings import DataSettings, LossSettings, OptimSettings, PretrainSettings, TrainSettings
from scenetx.train.tasks import build_model, build_task

pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")

CONFIG = Da3Config(
    dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8), patch=8
)
WORLD = ProceduralConfig(height=32, width=32, difficulty=0.1, blur=1, shadows=False, views=3)
KINDS = ("completion", "masked_depth", "matching", "cameras")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainSettings:
    folder: Path = tmp_path_factory.mktemp("shards")
    write_shard(folder / "a.tar", procedural_samples(procedural_views([0, 1], WORLD), ["0", "1"]))
    data = DataSettings(source="shards", path=(folder,), height=32, width=32, context=2)
    optim = OptimSettings(lr=3e-3, warmup=1, steps=4, ema=0.0)
    return TrainSettings(model="da3", da3=CONFIG, data=data, optim=optim, batch=2, accelerator="cpu", save_every=2)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("views", [2, 4])
def test_scenes_at_once_are_each_scene_alone(views, told):
    model = build_model(TrainSettings(model="da3", da3=CONFIG)).eval()
    pictures = procedural_views(range(3), replace(WORLD, views=views))
    images, K = pictures.rgb.float().flatten(0, 1) / 255, pictures.K.float().flatten(0, 1)
    cameras = Cameras(pictures.world_from_cam.float().flatten(0, 1), K, 32, 32)
    together = model.of_scenes(images, 3, cameras if told else None)
    for scene in range(3):
        which = torch.arange(scene * views, (scene + 1) * views)
        alone = model(images[which], cameras[which] if told else None)
        for name, value in alone.published.items():
            assert torch.allclose(together.published[name][which], value, atol=1e-5), name


def test_patches_are_cut_row_by_row_and_the_share_is_hidden():
    picture = torch.arange(2 * 4 * 6.0).reshape(1, 4, 6, 2)
    cut = in_patches(picture, 2)
    assert cut.shape == (1, 6, 8)
    assert torch.equal(cut[0, 4], picture[0, 2:4, 2:4].flatten())
    hide = hidden(torch.Generator().manual_seed(1), 3, 20, 0.9)
    assert hide.sum(1).tolist() == [18, 18, 18]
    assert not torch.equal(hide[0], hide[1])


def test_patches_match_where_they_see_the_same_point():
    # Fronto-parallel plane at depth 2, focal 16: half a unit to the right is 4 pixels, one patch.
    K = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]).expand(1, 2, 3, 3)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 0.5
    depth = torch.full((1, 2, 16, 16), 2.0)
    match = patch_matches(depth, K, poses, 4).reshape(4, 4)
    assert match[1].tolist() == [-1, 4, 5, 6]
    nearer = depth.clone()
    nearer[:, 1] = 1.0  # something stands before it
    assert bool((patch_matches(nearer, K, poses, 4) == -1).all())


def test_contrast_is_least_for_the_right_match_and_none_is_no_loss():
    a = torch.eye(4)[None]
    right, wrong = torch.tensor([[0, 1, 2, -1]]), torch.tensor([[1, 2, 0, -1]])
    assert float(losses.contrastive_loss(a, a, right)) < 1e-4 < float(losses.contrastive_loss(a, a, wrong))
    assert float(losses.contrastive_loss(a, a, torch.full((1, 4), -1))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_each_pretraining_learns_and_repeats_itself(kind, settings):
    asked = replace(settings, pretrain=PretrainSettings(kind, 0.75))
    task = build_task(asked, build_model(asked))
    batch = Batches(asked).batch(0, (0, 1))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    assert torch.equal(task(batch, 2)["loss"], task(batch, 2)["loss"])
    history = []
    for _ in range(12):
        loss = task(batch, 2)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


def test_what_is_hidden_is_not_seen(settings):
    asked = replace(settings, pretrain=PretrainSettings("completion", 1.0))
    model = build_model(asked)
    images = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    everything = torch.ones(2, 16, dtype=torch.bool)
    assert torch.equal(model(images, 1, everything), model(1 - images, 1, everything))


def test_a_pretraining_is_resumed_and_its_trunk_begins_geometry(settings, tmp_path):
    first = replace(settings, pretrain=PretrainSettings("completion"))
    whole = train(first, tmp_path / "a").weights
    model = build_model(settings)
    checkpoint.start_from(whole, model)
    learned = checkpoint.read_weights(whole)
    assert all(torch.equal(value, learned[f"geometry.{name}"]) for name, value in model.state_dict().items())
    train(replace(first, seconds=0.0), tmp_path / "b")
    assert torch.equal(
        checkpoint.read_weights(train(first, tmp_path / "b").weights)["end.weight"], learned["end.weight"]
    )
    outcome = train(replace(settings, start_from=whole, optim=OptimSettings(steps=1)), tmp_path / "c")
    assert outcome.done


def test_splats_of_the_truth_cost_less_than_of_wrong_depth_and_cameras_learn():
    views = procedural_views([4], replace(WORLD, height=40, width=40))
    rgb, depth = views.rgb[0].float() / 255, views.depth[0].clone().requires_grad_()
    poses = views.world_from_cam[0].clone().requires_grad_()
    right = losses.splat_loss(rgb, depth, Cameras(poses, views.K[0], 40, 40))
    right.backward()
    assert bool(depth.grad[:-1].isfinite().all())
    assert float(depth.grad.abs().sum()) > 0
    assert float(poses.grad.abs().sum()) > 0
    wrong = losses.splat_loss(rgb, 1.3 * depth.detach(), Cameras(poses.detach(), views.K[0], 40, 40))
    assert float(wrong) > 1.2 * right.item()


def test_geometry_is_told_by_splats_too(settings):
    asked = replace(settings, loss=LossSettings(splat=1.0))
    parts = build_task(asked, build_model(asked))(Batches(asked).batch(0, (0, 1)), 2)
    parts["loss"].backward()
    assert "splat" in parts
    assert bool(parts["loss"].isfinite())


def test_pretraining_that_does_not_fit_is_refused(settings):
    with pytest.raises(InputError, match="da3"):
        replace(settings, model="svsm", pretrain=PretrainSettings("completion")).checked()
    with pytest.raises(InputError, match="masked"):
        replace(settings, pretrain=PretrainSettings("completion", 1.5))
