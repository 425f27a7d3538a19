"""RUST and DyST: no cameras anywhere; what a latent may and may not know."""

from dataclasses import replace

import pytest
import torch
from view_scenes import picture, ring

from scenetx.core import InputError
from scenetx.models.dyst import Dyst, DystConfig
from scenetx.models.rust import (
    UNPOSED,
    PoseProbe,
    Rust,
    RustConfig,
    other,
    peek,
    principal_directions,
    rotation_from_axes,
    traversal,
)
from scenetx.models.scene_state import SceneState
from scenetx.models.view_model import LatentViews, Views

SET = replace(UNPOSED, conv_blocks=2, conv_width=8, dim=32, heads=2, hidden=48, encoder_layers=2)
SMALL = RustConfig(set=SET, estimator_layers=2, query_dim=32)


def rust() -> Rust:
    torch.manual_seed(0)
    return Rust(SMALL).eval()


def views(n: int = 3, seed: int = 1) -> Views:
    return Views(picture(ring(n, 12, 16, seed=seed)))


def test_the_estimator_sees_one_half_only():
    model, targets = rust(), picture(ring(2, 12, 16, seed=5))
    state = model.encode(views())
    for half, hidden in (("left", slice(8, None)), ("right", slice(0, 8))):
        changed = targets.clone()
        changed[:, :, hidden] = 0.5
        same = model.estimate(state, targets, half).latents
        assert torch.equal(same, model.estimate(state, changed, half).latents)
        assert not torch.equal(same, model.estimate(state, 1 - targets, half).latents)
        torch.testing.assert_close(other(targets, half), targets[:, :, hidden])


def test_halves_of_odd_pictures_meet():
    wide = torch.rand(1, 4, 7, 3)
    left, right = peek(wide, "left"), peek(wide, "right")
    assert left[0].shape[2] + other(wide, "left").shape[2] == 7
    assert right[0].shape[2] + other(wide, "right").shape[2] == 7
    assert float(left[2][..., 0].max()) < 0 < float(right[2][..., 0].min())


def test_latents_are_about_the_first_view():
    model, targets = rust(), picture(ring(2, 12, 16, seed=5))
    a, b = views(), views(seed=4)
    swapped = Views(torch.cat([b.images[:1], a.images[1:]]))
    latents = [model.estimate(model.encode(x), targets).latents for x in (a, swapped)]
    assert not torch.allclose(*latents)


def test_a_picture_is_its_latent(tmp_path):
    model, targets = rust(), picture(ring(3, 12, 16, seed=5))
    state = model.encode(views())
    latents = model.estimate(state, targets)
    whole = model.decode(state, latents)
    assert whole.shape == (3, 12, 16, 3)
    torch.testing.assert_close(model.decode(state, latents, at_once=2), whole, rtol=1e-5, atol=1e-6)
    loaded = SceneState.load(state.save(tmp_path / "state.safetensors"))
    assert torch.equal(model.decode(loaded, model.estimate(loaded, targets)), whole)
    larger = model.decode(state, replace(latents, height=24, width=32))
    assert larger.shape == (3, 24, 32, 3)


def test_a_batch_of_scenes_is_each_scene():
    model, a, b = rust(), views(), views(seed=4)
    targets = picture(ring(4, 12, 16, seed=5))
    both = model.encode(Views(torch.cat([a.images, b.images]), None, 2))
    together = model.decode(both, model.estimate(both, targets))
    states = [model.encode(x) for x in (a, b)]
    alone = [model.decode(s, model.estimate(s, targets[2 * i : 2 * i + 2])) for i, s in enumerate(states)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_cameras_mean_nothing_to_rust():
    model, v = rust(), views()
    with pytest.raises(TypeError, match="latents"):
        model.decode(model.encode(v), ring(1))
    posed = Views(v.images, ring(3, 12, 16))
    a, b = model.encode(v).memory, model.encode(posed).memory
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(InputError, match="targets"):
        model.estimate(model.encode(v), v.images[:0])


def test_traversal_walks_the_main_direction():
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(8), dim=0)
    latents = torch.randn(50, 1) * direction * 3 + 0.01 * torch.randn(50, 8)
    deviations, rows = principal_directions(latents)
    assert float((rows[0] @ direction).abs()) == pytest.approx(1, abs=1e-3)
    assert deviations[0] > 10 * deviations[1]
    walk = traversal(LatentViews(latents[:1], 4, 6), latents, 0, 5)
    assert len(walk) == 5
    torch.testing.assert_close(walk.latents[2], latents[0])
    torch.testing.assert_close((walk.latents[4] - walk.latents[0]).norm(), 4 * deviations[0])
    assert principal_directions(latents[:2])[0].shape == (8,)  # fewer latents than numbers


def test_axes_make_rotations():
    torch.manual_seed(0)
    rotation = rotation_from_axes(torch.randn(5, 3), torch.randn(5, 3))
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).repeat(5, 1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5))
    torch.testing.assert_close(rotation_from_axes(rotation[:, :, 0], rotation[:, :, 1]), rotation)


def test_the_probe_reads_poses_that_are_in_the_latent():
    """Latents that are a linear function of a pose: the probe finds the pose of latents it has not seen."""
    torch.manual_seed(0)
    cameras = ring(256, seed=3)
    first_from_cam = cameras[0].cam_from_world @ cameras.world_from_cam
    mixing = torch.randn(8, 3)
    latents = first_from_cam[:, :3, 3] @ mixing.T
    probe = PoseProbe(8, 64)
    optimizer = torch.optim.Adam(probe.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        (probe(latents[:200]) - first_from_cam[:200]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (probe(latents[200:])[:, :3, 3] - first_from_cam[200:, :3, 3]).norm(dim=-1)
    assert float(error.median()) < 0.05 * float(first_from_cam[:, :3, 3].norm(dim=-1).median())


def test_dyst_takes_camera_and_moment_from_different_pictures():
    torch.manual_seed(0)
    model = Dyst(DystConfig(set=SET, estimator_layers=2, query_dim=32, latent=5, dynamics=3)).eval()
    state, targets = model.encode(views()), picture(ring(2, 12, 16, seed=5))
    latents = model.estimate(state, targets)
    assert latents.latents.shape == (2, 8)
    mixed = model.combined(latents, LatentViews(latents.latents.flip(0), 12, 16))
    assert torch.equal(mixed.latents[0, :5], latents.latents[0, :5])
    assert torch.equal(mixed.latents[0, 5:], latents.latents[1, 5:])
    assert not torch.equal(model.decode(state, mixed), model.decode(state, latents))
    with pytest.raises(InputError, match="equally many"):
        model.combined(latents, LatentViews(latents.latents[:1], 12, 16))


def test_swapping_never_shows_the_target():
    torch.manual_seed(0)
    model = Dyst(DystConfig(set=SET, estimator_layers=2, query_dim=32)).eval()
    cameras = ring(2, 12, 16, seed=5)
    grid = torch.stack([picture(cameras, shift) for shift in (-0.3, 0.0, 0.3)], dim=1)
    order = torch.tensor([[0, 1], [1, 2]])
    painted = model.swapped(views(), grid, order, "all")
    hidden = grid.clone()
    hidden[0, 1] = hidden[1, 2] = 0.5  # blank the very pictures that are painted
    assert torch.equal(model.swapped(views(), hidden, order, "all"), painted)
    with pytest.raises(InputError, match="two of each"):
        model.swapped(views(), grid[:1], order[:1], "all")


@pytest.mark.parametrize("kind", ["rust", "dyst"])
def test_every_weight_learns(kind):
    torch.manual_seed(0)
    if kind == "rust":
        model, targets = Rust(SMALL), picture(ring(2, 12, 16, seed=5))
        model.reconstruct(views(), targets, "left").square().mean().backward()
    else:
        model = Dyst(DystConfig(set=SET, estimator_layers=2, query_dim=32))
        grid = torch.stack([picture(ring(2, 12, 16), shift) for shift in (-0.3, 0.3)], dim=1)
        model.swapped(views(), grid, torch.tensor([[0, 1]]), "all").square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert float(weight.grad.abs().max()) > 0, name
