"""View synthesis: rays, frames, relative cameras, and the laws every model's state obeys."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from view_scenes import picture, ring

from scenetx.core import Cameras, InputError, Sim3, project
from scenetx.core.rigid import rotation_from_rotvec
from scenetx.models.attention import attend
from scenetx.models.gnt import Gnt, GntConfig
from scenetx.models.lvsm import Lvsm, LvsmConfig
from scenetx.models.prope import Prope, projections
from scenetx.models.rays import Frame, Rays, camera_rays, first_frame, mean_frame, octaves, world_frame
from scenetx.models.scene_state import SceneState
from scenetx.models.srt import ISRT, SRT_MSN, SRT_PAPER, Srt, SrtConfig
from scenetx.models.svsm import Svsm, SvsmConfig
from scenetx.models.view_layers import padded, padded_rays, patches, unpatched
from scenetx.models.view_model import LatentViews, ViewModel, Views

SMALL_SET = {"conv_blocks": 2, "conv_width": 8, "dim": 32, "heads": 2, "hidden": 48, "encoder_layers": 2, "octaves": 6}
SMALL_STREAM = SvsmConfig(dim=32, heads=2, patch=4, encoder_layers=2, decoder_layers=3)
SMALL_LVSM = LvsmConfig(dim=32, heads=2, patch=4, decoder_layers=3)


def models() -> dict[str, ViewModel]:
    torch.manual_seed(0)
    made: dict[str, ViewModel] = {
        "srt": Srt(replace(SRT_MSN, **SMALL_SET, grid=(3, 3))),
        "srt-paper": Srt(replace(SRT_PAPER, **SMALL_SET)),
        "isrt": Srt(replace(ISRT, **SMALL_SET, query_hidden=16, render=(24, 24))),
        "lvsm-decoder-only": Lvsm(SMALL_LVSM),
        "lvsm-encoder-decoder": Lvsm(replace(SMALL_LVSM, kind="encoder-decoder", encoder_layers=2, latents=12)),
        "gnt": Gnt(GntConfig(dim=16, heads=2, layers=2, features=8, samples=6, experts=3)),
        "gnt-plain": Gnt(GntConfig(dim=16, heads=2, layers=1, features=8, samples=6, experts=1)),
        "svsm": Svsm(SMALL_STREAM),
        "svsm-refine": Svsm(replace(SMALL_STREAM, co_refine=True)),
        "svsm-rays": Svsm(replace(SMALL_STREAM, prope=False)),
        "svsm-stream": Svsm(replace(SMALL_STREAM, mixing="per_view")),
        "svsm-stream-refine": Svsm(replace(SMALL_STREAM, mixing="per_view", co_refine=True)),
    }
    for model in made.values():
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.ndim == 2:  # start values are small: make every branch speak
                parameter.mul_(2)
    return made


MODELS = models()
each_model = pytest.mark.parametrize("name", list(MODELS))


def views(n: int, height: int = 12, width: int = 16, seed: int = 1) -> Views:
    cameras = ring(n, height, width, seed=seed)
    return Views(picture(cameras), cameras)


def moved(cameras: Cameras, motion: Sim3) -> Cameras:
    return replace(cameras, world_from_cam=motion.apply_to_poses(cameras.world_from_cam))


MOTION = Sim3(2.5, rotation_from_rotvec(torch.tensor([0.3, -0.8, 0.4])), torch.tensor([4.0, -2.0, 7.0]))


# --- rays -------------------------------------------------------------------------------------------------------------


def test_a_ray_goes_through_its_pixel():
    cameras = ring(3, 5, 7)
    rays = camera_rays(cameras)
    for camera in range(3):
        points = (rays.origins + 2.3 * rays.directions)[camera].flatten(0, 1)
        pixels, depth = project(points, cameras[camera])
        x, y = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(5) + 0.5, indexing="xy")
        torch.testing.assert_close(pixels[0], torch.stack([x, y], -1).flatten(0, 1), rtol=0, atol=1e-4)
        assert (depth > 0).all()
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(3, 5, 7))


def test_pluecker_does_not_know_the_point():
    rays = camera_rays(ring(2))
    along = Rays(rays.origins + 1.7 * rays.directions, rays.directions)
    torch.testing.assert_close(rays.pluecker, along.pluecker, rtol=0, atol=1e-5)


def test_octaves_against_the_formula():
    x = torch.tensor([[0.3, -0.7]])
    angles = [torch.pi * 2.0**k * v for v in (0.3, -0.7) for k in (-1, 0, 1)]
    expected = torch.tensor([[*map(torch.sin, map(torch.tensor, angles)), *map(torch.cos, map(torch.tensor, angles))]])
    torch.testing.assert_close(octaves(x, 3, -1), expected)


def test_a_frame_moves_cameras_and_their_rays_alike():
    cameras = ring(4)
    frame = mean_frame(ring(4, seed=3), 2)
    a, b = camera_rays(frame.of_cameras(cameras)), frame.of_rays(camera_rays(cameras))
    torch.testing.assert_close(a.origins, b.origins, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.directions, b.directions, rtol=0, atol=1e-5)


@pytest.mark.parametrize("find", [mean_frame])
def test_the_mean_frame_undoes_any_similarity(find):
    cameras = ring(4)
    here = find(cameras).of_cameras(cameras)
    there = moved(cameras, MOTION)
    torch.testing.assert_close(here.world_from_cam, find(there).of_cameras(there).world_from_cam, rtol=0, atol=1e-5)
    assert float(here.centers.abs().max()) == pytest.approx(1 / 1.35, rel=1e-5)


def test_the_first_frame_is_the_first_camera():
    cameras = moved(ring(4), MOTION)
    poses = first_frame(cameras, 2).of_cameras(cameras).world_from_cam
    torch.testing.assert_close(poses[[0, 2]], torch.eye(4).repeat(2, 1, 1), rtol=0, atol=1e-5)
    steps = (cameras.centers[1] - cameras.centers[0]).norm()
    torch.testing.assert_close(poses[1, :3, 3].norm(), steps)


def test_frames_of_places_that_give_none():
    one = ring(1)
    alone = mean_frame(one)
    assert float(alone.scale) == 1.0  # a single camera has no extent
    torch.testing.assert_close(alone.of_cameras(one).world_from_cam[0], torch.eye(4), rtol=0, atol=1e-6)
    turn = rotation_from_rotvec(torch.tensor([0.0, torch.pi, 0.0]))
    facing = torch.eye(4).repeat(2, 1, 1)
    facing[1, :3, :3] = turn  # two opposite directions have no mean
    frame = mean_frame(Cameras(facing, torch.eye(3).repeat(2, 1, 1), 4, 4))
    assert frame.model_from_world.isfinite().all()
    torch.testing.assert_close(torch.linalg.det(frame.model_from_world), torch.ones(1, dtype=torch.float64))


def test_far_worlds_lose_nothing():
    """Cameras in a national grid, a million metres from its origin, must not be rounded to centimetres."""
    cameras = ring(3)
    cameras = replace(cameras, world_from_cam=cameras.world_from_cam.double(), K=cameras.K.double())
    far = cameras.world_from_cam.clone()
    far[:, :3, 3] += torch.tensor([4e6, 5e6, 100.0], dtype=torch.float64)
    there = replace(cameras, world_from_cam=far)
    a = mean_frame(cameras).of_cameras(cameras).world_from_cam
    b = mean_frame(there).of_cameras(there).world_from_cam
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# --- relative cameras -------------------------------------------------------------------------------------------------


def place(cameras: Cameras, head_dim: int = 16) -> Prope:
    grid = torch.tensor([[0, 0], [0, 1], [1, 0]]).repeat(len(cameras), 1)
    return Prope.of(projections(cameras)[None], (3,) * len(cameras), grid, head_dim)


def test_relative_cameras_by_brute_force():
    """Against one dense matrix a token: block-diagonal projections, then rotations of channel pairs."""
    torch.manual_seed(0)
    cameras = ring(2)
    q, k, v = torch.randn(3, 1, 2, 6, 16)
    where = place(cameras)
    found = where.answer(attend(where.query(q), where.stored(k), where.stored(v)))
    matrices = []
    for token in range(6):
        P = projections(cameras)[token // 3]
        y, x = [(0, 0), (0, 1), (1, 0)][token % 3]
        D = torch.zeros(16, 16)
        D[:4, :4] = D[4:8, 4:8] = P
        for start, position in ((8, y), (12, x)):  # 4 channels an axis: pairs (0, 2) and (1, 3), frequencies 1 and 0.1
            for pair, frequency in ((0, 1.0), (1, 0.1)):
                angle = torch.tensor(position * frequency)
                i, j = start + pair, start + pair + 2
                D[i, i] = D[j, j] = angle.cos()
                # The projection meets q as its transpose: so does the turn.
                D[i, j], D[j, i] = angle.sin(), -angle.sin()
        matrices.append(D)
    D = torch.stack(matrices)
    left = torch.einsum("tji,bhtj->bhti", D, q)
    inverse = torch.linalg.inv(D)
    right, value = (torch.einsum("tij,bhtj->bhti", inverse, x) for x in (k, v))
    scores = (left @ right.transpose(-1, -2) / 4).softmax(-1)
    expected = torch.einsum("tij,bhtj->bhti", D, scores @ value)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_relative_cameras_do_not_know_the_world():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 16)
    rigid_motion = replace(MOTION, scale=1.0)
    results = []
    for cameras in (ring(3), moved(ring(3), rigid_motion)):
        where = place(cameras)
        results.append(where.answer(attend(where.query(q), where.stored(k), where.stored(v))))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="head_dim"):
        place(ring(1), head_dim=12)


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 9), (1, 5)])
def test_patches_and_back(height, width):
    pixels = torch.rand(2, height, width, 3)
    rows = patches(padded(pixels, 4), 4)
    torch.testing.assert_close(unpatched(rows, 4, height, width), pixels)
    assert rows.shape[1] == -(-height // 4) * -(-width // 4)


def test_rays_go_on_beyond_the_edge():
    cameras = ring(1, 7, 9)
    grown = padded_rays(cameras, 4)
    assert grown.origins.shape == (1, 8, 12, 3)
    torch.testing.assert_close(grown.directions[:, :7, :9], camera_rays(cameras).directions)
    assert not torch.equal(grown.directions[:, :, -1], grown.directions[:, :, -2])


# --- the laws of a state ----------------------------------------------------------------------------------------------


@each_model
def test_adding_views_is_encoding_them_at_once(name):
    model, a, b, c = MODELS[name], views(2), views(1, seed=5), views(2, 9, 13, seed=7)
    targets = ring(2, 10, 11, seed=9)
    grown = model.append(model.append(model.encode(a), b), c)
    whole = model.encode([a, b, c], grown.frame)
    assert grown.views == whole.views == 5
    torch.testing.assert_close(model.decode(grown, targets), model.decode(whole, targets), rtol=1e-4, atol=1e-5)


@each_model
def test_a_dropped_view_was_never_there(name):
    model, a, b = MODELS[name], views(2), views(1, 9, 13, seed=5)
    targets = ring(2, 10, 11, seed=9)
    state = model.encode([a, b])
    for view, kept in ((2, [a]), (0, [Views(a.images[1:], a.cameras[1:]), b])):  # type: ignore[index]
        expected = model.decode(model.encode(kept, state.frame), targets)
        torch.testing.assert_close(model.decode(model.drop(state, view), targets), expected, rtol=1e-4, atol=1e-5)


@each_model
def test_context_matters(name):
    model, targets = MODELS[name], ring(1, seed=9)
    a, b = views(3), views(3, seed=4)
    pictures = [model.decode(model.encode(x, mean_frame(a.cameras)), targets) for x in (a, b)]
    assert float((pictures[0] - pictures[1]).abs().max()) > 1e-4


@each_model
def test_decoding_after_loading_is_decoding_before(name, tmp_path: Path):
    model, targets = MODELS[name], ring(2, seed=9)
    state = model.encode([views(2), views(1, 9, 13, seed=5)])
    loaded = SceneState.load(state.save(tmp_path / "state.safetensors"))
    assert torch.equal(model.decode(state, targets), model.decode(loaded, targets))
    more = views(1, seed=8)
    assert torch.equal(
        model.decode(model.append(state, more), targets), model.decode(model.append(loaded, more), targets)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@each_model
def test_targets_do_not_see_each_other(name):
    model, targets = MODELS[name], ring(3, 10, 11, seed=9)
    state = model.encode(views(3))
    together = model.decode(state, targets)
    torch.testing.assert_close(model.decode(state, targets, at_once=2), together, rtol=1e-3, atol=1e-4)
    for index in range(3):
        torch.testing.assert_close(
            model.decode(state, targets[index]), together[index : index + 1], rtol=1e-3, atol=1e-4
        )


@each_model
def test_a_batch_of_scenes_is_each_scene(name):
    model, a, b = MODELS[name], views(2), views(2, seed=5)
    targets = ring(4, seed=9)
    both = Views(torch.cat([a.images, b.images]), Cameras.cat([a.cameras, b.cameras]), 2)  # type: ignore[list-item]
    together = model.decode(model.encode(both), targets)
    alone = torch.cat([model.decode(model.encode(x), targets[2 * i : 2 * i + 2]) for i, x in enumerate((a, b))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@each_model
@pytest.mark.parametrize(("height", "width"), [(9, 13), (16, 8), (31, 6)])
def test_any_size_in_and_out(name, height, width):
    model = MODELS[name]
    out = model.decode(model.encode(views(2, height, width)), ring(1, width, height, seed=2))
    assert out.shape == (1, width, height, 3)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["lvsm-decoder-only", "lvsm-encoder-decoder", "svsm", "svsm-stream", "srt"])
def test_the_world_does_not_matter(name):
    """Turned and moved worlds give the same pictures; where the frame has a unit of its own, scaled ones too."""
    model, a, targets = MODELS[name], views(3), ring(2, seed=9)
    motion = MOTION if name != "srt" else replace(MOTION, scale=1.0)
    there = Views(a.images, moved(a.cameras, motion))  # type: ignore[arg-type]
    expected = model.decode(model.encode(a), targets)
    found = model.decode(model.encode(there), moved(targets, motion))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["srt", "isrt", "lvsm-decoder-only", "svsm-rays"])
def test_rays_are_as_good_as_cameras(name):
    model, targets = MODELS[name], ring(2, 8, 12, seed=9)
    state = model.encode(views(2))
    torch.testing.assert_close(
        model.decode(state, camera_rays(targets)), model.decode(state, targets), rtol=1e-3, atol=1e-4
    )


def test_single_rays_are_the_pictures_pixels():
    model, targets = MODELS["srt"], ring(1, 6, 5, seed=9)
    state, rays = model.encode(views(2)), camera_rays(targets)
    some = Rays(rays.origins.flatten(1, 2)[:, None, ::7], rays.directions.flatten(1, 2)[:, None, ::7])
    whole = model.decode(state, targets).flatten(1, 2)[:, ::7]
    torch.testing.assert_close(model.decode(state, some)[:, 0], whole, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_painted_is_said():
    state = MODELS["svsm"].encode(views(2))
    with pytest.raises(TypeError, match="relative"):
        MODELS["svsm"].decode(state, camera_rays(ring(1)))
    with pytest.raises(TypeError, match="latents"):
        MODELS["srt"].decode(MODELS["srt"].encode(views(1)), LatentViews(torch.zeros(1, 8), 4, 4))


def test_per_view_streams_keep_nothing_they_do_not_need():
    state = MODELS["svsm-stream"].encode(views(2))
    assert state.separable
    assert not state.tokens
    kept = MODELS["svsm-stream"].append(state, views(1, seed=3))
    assert torch.equal(kept.memory["k0"][:, :, : sum(state.sizes)], state.memory["k0"])
    assert kept.nbytes * 2 == state.nbytes * 3


def test_targets_leave_the_frame_alone():
    """Decoding today does not depend on what is decoded tomorrow: poses are normalised by the context only."""
    model = MODELS["svsm"]
    state = model.encode(views(2))
    before = model.decode(state, ring(1, seed=9))
    model.decode(state, moved(ring(4), MOTION))
    assert torch.equal(model.decode(state, ring(1, seed=9)), before)


# --- bad input --------------------------------------------------------------------------------------------------------


def spoiled(change) -> Views:
    good = views(2)
    cameras = replace(good.cameras, world_from_cam=good.cameras.world_from_cam.clone(), K=good.cameras.K.clone())
    change(cameras)
    return Views(good.images, cameras)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.world_from_cam[1, :3, :3].mul_(1.2), "camera 1 is not rigid"),
        (lambda c: c.world_from_cam[0, :3, 0].neg_(), "camera 0 is not rigid"),
        (lambda c: c.world_from_cam[0, 3].fill_(1), "camera 0 is not rigid"),
        (lambda c: c.world_from_cam[1, 0, 3].fill_(torch.nan), "pose of camera 1"),
        (lambda c: c.K[1, 0, 0].fill_(torch.nan), "intrinsics of camera 1"),
        (lambda c: c.K[0, 1, 1].fill_(-3), "intrinsics of camera 0"),
        (lambda c: c.K[0, 0, 2].fill_(torch.inf), "intrinsics of camera 0"),
    ],
)
def test_bad_cameras_are_named(change, said):
    bad = spoiled(change)
    with pytest.raises(InputError, match=said):
        MODELS["svsm"].encode(bad)
    state = MODELS["svsm"].encode(views(2))
    with pytest.raises(InputError, match=said):
        MODELS["svsm"].decode(state, bad.cameras)


def test_bad_views_are_named():
    model, good = MODELS["svsm"], views(2)
    for bad, said in (
        ([], "none"),
        (Views(torch.zeros(0, 8, 8, 3), ring(1)[[]]), "none"),
        (Views(good.images), "no cameras"),
        (Views(good.images, good.cameras[0]), "match"),
        (Views(good.images[:, :8], good.cameras), "match"),
        (Views(good.images * torch.nan, good.cameras), "NaN"),
        (Views(good.images, good.cameras, 3), "equally many"),
        ([Views(good.images, good.cameras, 2), Views(good.images, good.cameras, 2)], "one by one"),
    ):
        with pytest.raises(InputError, match=said):
            model.encode(bad)
    state = model.encode(good)
    with pytest.raises(InputError, match="targets"):
        model.decode(state, ring(1)[[]])
    with pytest.raises(InputError, match="view 2"):
        model.drop(state, 2)
    with pytest.raises(InputError, match="at least one"):
        model.drop(model.drop(state, 0), 0)


def test_a_state_of_another_model_is_refused():
    state = MODELS["svsm"].encode(views(2))
    targets = ring(1)
    for other in ("svsm-stream", "srt"):
        with pytest.raises(InputError, match="made by svsm"):
            MODELS[other].decode(state, targets)
    twin = Svsm(SMALL_STREAM).eval()
    with pytest.raises(InputError, match="made by svsm"):
        twin.decode(state, targets)
    twin.load_state_dict(MODELS["svsm"].state_dict())
    torch.testing.assert_close(twin.decode(state, targets), MODELS["svsm"].decode(state, targets))
    with torch.no_grad():
        twin.head.weight.mul_(1.01)
    with pytest.raises(InputError, match="made by svsm"):
        twin.append(state, views(1))


def test_weights_made_in_inference_mode_have_an_identity_too():
    with torch.inference_mode():
        model = Svsm(SMALL_STREAM).eval()
        state = model.encode(views(2))
        assert model.decode(state, ring(1)).isfinite().all()
        model.head.weight.mul_(1.5)
        with pytest.raises(InputError, match="made by svsm"):
            model.decode(state, ring(1))


def test_damaged_states_are_refused(tmp_path: Path):
    state = MODELS["svsm"].encode(views(2))
    path = state.save(tmp_path / "state.safetensors")
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not the mapped file

    def metadata(**changes: object) -> dict[str, str]:
        header = {"format": "scenetx-state-1", "made_by": "svsm:x", "scenes": 1, "sizes": [12, 12], "separable": False}
        return {"state": json.dumps({**header, **changes})}

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="name a file"):
        SceneState.load(path)
    for about, said in (
        (None, "not a saved scene state"),
        ({"state": "{"}, "not a saved scene state"),
        (metadata(format="scenetx-state-0"), "this version reads"),
        (metadata(sizes=[12, -12]), "damaged"),
        (metadata(sizes=[]), "damaged"),
        (metadata(scenes=True), "damaged"),
        (metadata(sizes=[12, 13]), "expected 25 rows"),
        (metadata(scenes=2), "another number of scenes"),
    ):
        save_file(tensors, path, metadata=about)
        with pytest.raises(InputError, match=said):
            SceneState.load(path)
    save_file({**tensors, "evil": torch.zeros(1)}, path, metadata=metadata())
    with pytest.raises(InputError, match="evil"):
        SceneState.load(path)
    with pytest.raises(InputError, match="written"):
        state.save(path / "a file is no folder")


def test_states_move_and_detach():
    model = Svsm(SMALL_STREAM)
    state = model.encode(views(2))
    assert state.memory["k0"].requires_grad
    still = state.detach().to("cpu")
    assert not still.memory["k0"].requires_grad
    torch.testing.assert_close(model.decode(still, ring(1)), model.decode(state, ring(1)))


@each_model
def test_every_weight_learns(name):
    """Forward and backward: a finite gradient, not zero, for every weight."""
    torch.manual_seed(0)
    model = type(MODELS[name])(MODELS[name].config)
    model(views(2), ring(2, 8, 12, seed=4)).square().mean().backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.isfinite().all(), weight_name
        assert float(weight.grad.abs().max()) > 0, weight_name


def test_sizes_of_the_published_models():
    def millions(model: ViewModel) -> float:
        return sum(weight.numel() for weight in model.parameters()) / 1e6

    with torch.device("meta"):
        assert round(millions(Lvsm())) == 171
        assert round(millions(Lvsm(LvsmConfig(kind="encoder-decoder", decoder_layers=12)))) == 173
        assert round(millions(Srt(SrtConfig()))) == 74
        assert 24 < millions(Svsm()) < 28


def test_world_frame_changes_nothing():
    cameras = ring(2)
    assert isinstance(world_frame(2), Frame)
    torch.testing.assert_close(world_frame(2).of_cameras(cameras).world_from_cam, cameras.world_from_cam)
