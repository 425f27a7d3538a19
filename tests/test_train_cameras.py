"""Learning cameras: a start from which a narrow model can, attention taught matches, errors that count alike."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from scenetx.core import Cameras
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.data.procedural import ProceduralConfig, procedural_views
from scenetx.data.sample import Sample, procedural_samples
from scenetx.data.samplers import SamplerSettings
from scenetx.models.backbone import normalized
from scenetx.models.da3 import Da3, Da3Config
from scenetx.train import losses
from scenetx.train.evaluate import score
from scenetx.train.feed import Batches, collate
from scenetx.train.matching import attention_loss, moves_loss, seen_at, shares, watched
from scenetx.train.pretrain import Pretraining, PretrainTask
from scenetx.train.settings import DataSettings, LossSettings, PretrainSettings, TrainSettings
from scenetx.train.tasks import GeometryTask, start_da3

CONFIG = Da3Config(
    dim=32, depth=4, heads=2, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, widths=(8, 8, 8, 8), patch=8
)


def started(config: Da3Config = CONFIG) -> Da3:
    torch.manual_seed(0)
    return start_da3(Da3(config))


def scenes(count: int, views: int = 2) -> dict[str, torch.Tensor]:
    world = ProceduralConfig(height=32, width=32, difficulty=0.1, blur=1, shadows=False, views=views)
    made = procedural_views(range(count), world)
    return collate(procedural_samples(made, [str(k) for k in range(count)]))


def test_patches_say_where_they_are_as_loudly_as_what_they_show():
    vit = started().backbone.pretrained
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    grey = torch.full_like(picture, 0.5)
    places, content = (float(vit.tokens(normalized(x)).detach()[0, 1:].std(0).mean()) for x in (grey, picture))
    assert places > 0.2 * content
    # A row's patches, and a column's, all differ.
    table = vit.positions(8, 8).detach()[0, 1:]
    apart = torch.cdist(table, table) + 9 * torch.eye(64)
    assert float(apart.min()) > 0.1 * float(table.norm(dim=-1).mean())


@pytest.mark.parametrize("dim", [32, 192])
def test_what_attention_brings_is_no_whisper_in_a_narrow_model(dim):
    block = started(replace(CONFIG, dim=dim)).backbone.pretrained.blocks[1]
    # One token's worth: an average over many would hide the size of a match.
    x = torch.randn(8, 1, dim, generator=torch.Generator().manual_seed(2))
    brought = block.ls1(block.attn.proj(block.attn.heads_of(block.norm1(x), None)[2].transpose(1, 2).flatten(2)))
    assert 0.2 < float(brought.detach().std() / x.std()) < 1


def test_at_the_start_views_are_compared_by_what_they_show():
    # A picture and itself: of all patches, a patch asks for the one that is equal.
    model = started()
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1, -1)
    with watched(model) as looks:
        model.of_scenes(picture, 1)
    assert len(looks) == len(model.global_layers()) == 2
    for queries, keys in looks:
        (q, _), (_, k) = (value[0].unflatten(0, (2, -1))[:, 1:] for value in (queries, keys))
        assert float(((q @ k.mT).argmax(-1) == torch.arange(64)).float().mean()) > 0.9
    # Nothing is watched any more.
    model.of_scenes(picture, 1)
    assert len(looks) == 2


def test_a_short_baseline_counts_as_a_long_one_and_angles_alike():
    angle = 0.2
    turn = rotation_from_rotvec(torch.tensor([0.0, 0.0, angle]))
    true = torch.eye(4).repeat(3, 2, 1, 1)
    for row, length in enumerate((0.3, 3.0)):
        true[row, 1, 0, 3] = length
    found = true.clone()
    found[:2, 1, :3, 3] = true[:2, 1, :3, 3] @ turn.T
    found[2, 1, :3, :3] = turn
    rotation, translation = zip(
        *(losses.relative_pose_loss(true[k : k + 1], found[k : k + 1]) for k in range(3)), strict=True
    )
    assert float(translation[0]) == pytest.approx(float(translation[1]), rel=0.2)
    assert float(translation[1]) == pytest.approx(angle, rel=0.1)
    assert float(rotation[2]) == pytest.approx(angle, rel=0.1)
    assert float(rotation[0]) == pytest.approx(0, abs=1e-4)


def test_shares_are_of_the_patches_around_and_their_mean_is_the_place():
    place = torch.tensor([[6.0, 10.0], [4.0, 4.0], [0.5, 31.0]])
    weights = shares(place, (4, 6), 8)
    assert torch.allclose(weights.sum(-1), torch.ones(3))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    middles = 8 * torch.stack([columns, rows], -1).flatten(0, 1) + 4.0
    assert torch.allclose(weights[:2] @ middles, place[:2])
    assert weights[0].nonzero()[:, 0].tolist() == [0, 1, 6, 7]
    # Beyond the outermost middles: the patch at the edge.
    assert weights[2].argmax() == 18


def test_attention_loss_is_least_where_each_patch_looks_at_its_match():
    # Fronto-parallel plane at depth 2, focal 16: a unit to the right is 8 pixels, one patch.
    K = torch.tensor([[16.0, 0, 16], [0, 16, 16], [0, 0, 1]]).expand(1, 2, 3, 3)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 1.0
    depth = torch.full((1, 2, 32, 32), 2.0)
    place, seen = seen_at(depth, K, poses, 8)
    assert torch.allclose(place[0, 5], torch.tensor([4.5, 12.5]))
    assert seen[0].reshape(4, 4)[:, 1:].all()
    assert not seen[0].reshape(4, 4)[:, 0].any()
    columns = torch.arange(16).reshape(4, 4)
    content = torch.nn.functional.one_hot(columns, 16).float()
    # The second view shows the content of the first, a patch further left.
    views = torch.stack([content, content.roll(-1, 1)]).flatten(1, 2)
    tokens = torch.nn.functional.pad(30 * views, (0, 0, 1, 0)).flatten(0, 1)[None]
    loss, right = attention_loss([(tokens, tokens)], depth, K, poses, 8)
    still, wrong = attention_loss([(tokens, tokens.flip(1))], depth, K, poses, 8)
    assert float(right) == 1
    assert float(wrong) == 0
    assert float(loss) < 0.2 * float(still)
    nothing, _ = attention_loss([(tokens, tokens)], torch.zeros_like(depth), K, poses, 8)
    assert float(nothing) == 0
    assert losses.ordered_pairs(3).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]


def test_moves_are_what_things_move_and_their_error_is_in_half_widths():
    # The plane of above: a patch to the left in the other view, a patch to the right back.
    K = torch.tensor([[16.0, 0, 16], [0, 16, 16], [0, 0, 1]]).expand(1, 2, 3, 3)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 1.0
    depth, moved = torch.full((1, 2, 32, 32), 2.0), torch.zeros(1, 2, 16, 2)
    moved[0, :, :, 0] = torch.tensor([-0.5, 0.5])[:, None]
    assert float(moves_loss(moved, depth, K, poses, 8)) == pytest.approx(0, abs=1e-6)
    assert float(moves_loss(0 * moved, depth, K, poses, 8)) == pytest.approx(0.25)
    assert float(moves_loss(moved, 0 * depth, K, poses, 8)) == 0


def test_geometry_too_is_taught_where_to_look():
    batch, model = scenes(2, 3), started()
    values = GeometryTask(model, LossSettings(matching=0.3))(batch, 3)
    assert 0 < values["matching"].item() < 10
    assert 0 <= float(values["matched"]) <= 1
    assert "matching" not in GeometryTask(model, LossSettings())(batch, 3)
    alone = GeometryTask(model, LossSettings(matching=0.3))(batch, 1)
    assert float(alone["matching"]) == 0
    assert math.isfinite(alone["loss"].item())


def test_views_of_a_geometry_model_come_in_any_order_whatever_the_sampler():
    data = DataSettings(height=16, width=16, context=2, sampler=SamplerSettings("gap", gap=(2, 2)))
    feed = Batches(TrainSettings(model="da3", da3=CONFIG, data=data))
    cameras = Cameras(torch.eye(4).repeat(4, 1, 1), torch.eye(3).repeat(4, 1, 1), 16, 16)
    drawn = [feed._views(index, cameras, 2, 0) for index in range(40)]
    assert {tuple(views) for views in drawn} == {(0, 2), (2, 0), (1, 3), (3, 1)}
    assert drawn == [feed._views(index, cameras, 2, 0) for index in range(40)]


def test_cameras_of_a_few_scenes_are_learned_and_the_dense_head_is_left_alone():
    # By heart: what would not even do this has a fault somewhere between the camera token and the loss.
    settings = PretrainSettings("cameras")
    torch.manual_seed(0)
    task, batch = PretrainTask(Pretraining(started(), settings), settings), scenes(3)
    optimizer = torch.optim.Adam(task.parameters(), lr=2e-3)
    values = []
    for _ in range(25):
        parts = task(batch, 2)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        values.append((parts["rotation"] + parts["translation"]).item())
    assert min(values[-5:]) < 0.6 * values[0]
    model = task.model.geometry
    assert all(parameter.grad is None for parameter in model.head.parameters())
    # They are the cameras that the geometry model says, when it is asked for all it knows.
    images = batch["rgb"].flatten(0, 1).float() / 255
    encoding, _ = task.model.eval().cameras(images, 3)
    found = model.of_scenes(images, 3)
    assert torch.allclose(found.published["pose_enc"], encoding, atol=1e-5)
    # And they are judged on the way.
    names = ("rgb", "world_from_cam", "K", "depth")
    scores = score(task.model, [Sample("0", **{name: batch[name][0] for name in names})], 2, 0)
    assert scores["rotation"] < scores["still_rotation"]
