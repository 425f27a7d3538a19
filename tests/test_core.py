"""Laws of the ground floor: group axioms, project undoes unproject, Gaussians move with their frame."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import Cameras, Gaussians, InputError, Original, Scene, Sim3, Stage, View, project, umeyama, unproject
from scenetx.core.cameras import look_at, pixel_grid
from scenetx.core.gaussians import rotate_sh, sh_basis
from scenetx.core.rigid import (
    invert_rigid,
    quat_from_rotation,
    rigid,
    rotation_angle,
    rotation_from_quat,
    rotation_from_rotvec,
)

SEEDS = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    return rotation_from_quat(torch.randn(count, 4, generator=generator(seed), dtype=torch.float64))


def random_sim3(seed: int) -> Sim3:
    gen = generator(seed)
    scale = float(torch.rand(1, generator=gen) * 3 + 0.1)
    return Sim3(scale, random_rotations(1, seed)[0], torch.randn(3, generator=gen, dtype=torch.float64))


def ring(count: int = 6, height: int = 48, width: int = 64) -> Cameras:
    angle = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    eye = torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.full_like(angle, 1.5)], -1)
    zero, up = torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64)
    K = torch.tensor([[60.0, 0, 31], [0, 61, 25], [0, 0, 1]], dtype=torch.float64).expand(count, 3, 3)
    return Cameras(look_at(eye, zero, up), K, height, width)


def gaussians(count: int = 20, degree: int = 3, seed: int = 0) -> Gaussians:
    gen = generator(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    return Gaussians(
        normal(count, 3),
        normal(count, 4),
        normal(count, 3).exp(),
        normal(count).sigmoid(),
        normal(count, (degree + 1) ** 2, 3),
    )


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_quaternion_and_matrix_are_one_rotation(seed: int):
    rotation = random_rotations(16, seed)
    quat = quat_from_rotation(rotation)
    assert torch.allclose(rotation_from_quat(quat), rotation, atol=1e-12)
    assert (quat[:, 0] >= 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_turns_are_no_special_case(axis: int):
    rotation = -torch.eye(3, dtype=torch.float64)
    rotation[axis, axis] = 1
    assert torch.allclose(rotation_from_quat(quat_from_rotation(rotation)), rotation, atol=1e-12)
    assert math.isclose(float(rotation_angle(rotation)), math.pi)


@given(st.floats(1e-9, math.pi - 1e-6), SEEDS)
@settings(max_examples=25, deadline=None)
def test_angle_of_the_exponential_map(angle: float, seed: int):
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator(seed), dtype=torch.float64), dim=0)
    assert math.isclose(float(rotation_angle(rotation_from_rotvec(axis * angle))), angle, rel_tol=1e-6)


def test_exponential_map_is_differentiable_at_zero():
    rotvec = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_from_rotvec, (rotvec,))


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_similarities_form_a_group(seed: int):
    a, b = random_sim3(seed), random_sim3(seed + 1)
    points = torch.randn(9, 3, generator=generator(seed), dtype=torch.float64)
    assert torch.allclose((a @ b).apply(points), a.apply(b.apply(points)), atol=1e-9)
    assert torch.allclose((a @ a.inverse()).apply(points), points, atol=1e-9)
    assert torch.allclose(umeyama(a.apply(points), points).apply(points), a.apply(points), atol=1e-9)


def test_umeyama_does_not_mirror():
    points = torch.randn(30, 3, generator=generator(1), dtype=torch.float64)
    mirrored = points * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert math.isclose(float(torch.linalg.det(umeyama(mirrored, points).rotation)), 1.0, rel_tol=1e-9)


def test_similarity_moves_cameras_with_the_world():
    cameras, sim = ring(), random_sim3(3)
    points = torch.randn(40, 3, generator=generator(4), dtype=torch.float64) * 0.3
    moved = Cameras(sim.apply_to_poses(cameras.world_from_cam), cameras.K, cameras.height, cameras.width)
    before, depth = project(points, cameras)
    after, moved_depth = project(sim.apply(points), moved)
    assert torch.allclose(before, after, atol=1e-8)
    assert torch.allclose(moved_depth, depth * sim.scale, atol=1e-9)


def test_project_undoes_unproject():
    cameras = ring()
    points = torch.randn(50, 3, generator=generator(0), dtype=torch.float64)
    pixels, depth = project(points, cameras)
    assert torch.allclose(unproject(pixels, depth, cameras), points.expand(6, 50, 3), atol=1e-10)


def test_inverse_of_a_rigid_motion():
    motion = rigid(random_rotations(5), torch.randn(5, 3, generator=generator(0), dtype=torch.float64))
    assert torch.allclose(invert_rigid(motion) @ motion, torch.eye(4, dtype=torch.float64).expand(5, 4, 4), atol=1e-12)


def test_look_at_puts_the_target_in_the_middle_and_up_is_up():
    cameras = ring()
    pixels, depth = project(torch.tensor([[0.0, 0, 0], [0, 0, 0.5]], dtype=torch.float64), cameras)
    assert torch.allclose(pixels[:, 0], cameras.K[:, :2, 2])
    assert (depth > 0).all()
    assert (pixels[:, 1, 1] < pixels[:, 0, 1]).all()


def test_look_straight_along_up_is_still_a_rotation():
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    world_from_cam = look_at(up[None] * 3, torch.zeros(3, dtype=torch.float64), up)
    assert math.isclose(float(torch.linalg.det(world_from_cam[0, :3, :3])), 1.0)


def test_resize_and_crop_keep_the_rays():
    cameras = ring()
    points = torch.randn(20, 3, generator=generator(2), dtype=torch.float64) * 0.3
    pixels, _ = project(points, cameras)
    larger, _ = project(points, cameras.resized(96, 192))
    assert torch.allclose(larger, pixels * torch.tensor([3.0, 2.0], dtype=torch.float64))
    cropped, _ = project(points, cameras.cropped(5, 7, 20, 30))
    assert torch.allclose(cropped, pixels - torch.tensor([7.0, 5.0], dtype=torch.float64))
    assert (cameras.cropped(5, 7, 20, 30).height, cameras.cropped(5, 7, 20, 30).width) == (20, 30)


def test_first_pixel_centre_is_a_half():
    grid = pixel_grid(3, 4)
    assert grid.shape == (3, 4, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[2, 3].tolist() == [3.5, 2.5]


def test_cameras_refuse_wrong_shapes():
    with pytest.raises(Exception, match=r"world_from_cam|shape|type"):
        Cameras(torch.eye(4), torch.eye(3)[None], 4, 4)


def test_rotated_harmonics_are_the_same_function():
    splats, rotation = gaussians(), random_rotations(1, 7)[0]
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator(8), dtype=torch.float64), dim=-1)
    turned = rotate_sh(splats.sh, rotation)
    before = torch.einsum("gkc,gk->gc", splats.sh, sh_basis(directions, 3))
    after = torch.einsum("gkc,gk->gc", turned, sh_basis(directions @ rotation.T, 3))
    assert torch.allclose(before, after, atol=1e-10)


def test_harmonics_are_orthonormal():
    """Mean over the sphere of Y_i Y_j is delta_ij / 4 pi (Monte Carlo on a Fibonacci lattice)."""
    count = 20000
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * index / count, index * math.pi * (1 + 5**0.5)
    radius = (1 - z * z).sqrt()
    basis = sh_basis(torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1), 3)
    gram = basis.T @ basis / count * 4 * math.pi
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=2e-3)


def test_gaussians_move_with_their_frame():
    splats, sim = gaussians(), random_sim3(5)
    there = splats.transformed(sim)
    expected = sim.scale**2 * sim.rotation @ splats.covariances @ sim.rotation.T
    assert torch.allclose(there.covariances, expected, atol=1e-9)
    back = there.transformed(sim.inverse())
    assert torch.allclose(back.means, splats.means, atol=1e-9)
    assert torch.allclose(back.sh, splats.sh, atol=1e-9)


def test_finite_names_the_broken_ones():
    splats = gaussians(4)
    splats.means[1, 0] = math.nan
    splats.sh[2, 3, 1] = math.inf
    splats.quats[3] = 0
    assert splats.finite().tolist() == [True, False, False, False]
    assert len(splats[splats.finite()]) == 1
    assert len(Gaussians.cat([splats, splats])) == 8


def test_gaussians_refuse_a_half_band():
    splats = gaussians(2, degree=1)
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        Gaussians(splats.means, splats.quats, splats.scales, splats.opacities, splats.sh[:, :3])


def test_scene_sorts_its_views():
    cameras = ring(3)
    image = torch.zeros(48, 64, 3, dtype=torch.uint8)
    views = tuple(
        View(f"{i}.jpg", image, Original(f"{i}.jpg", 48, 64), camera=cameras[i] if i < 3 else None, held_out=i == 0)
        for i in range(4)
    )
    scene = Scene(views).with_stage(Stage("a", 1.0)).with_stage(Stage("b", 2.0)).with_stage(Stage("a", 3.0))
    assert [len(scene.registered), len(scene.training), len(scene.held_out)] == [3, 2, 1]
    assert [(stage.name, stage.seconds) for stage in scene.history] == [("b", 2.0), ("a", 3.0)]
    assert scene.world_from_cams.shape == (3, 4, 4)
    assert scene.extent > 1
    assert Scene(()).extent == 1.0
    with pytest.raises(KeyError, match="no view named"):
        scene.view("z.jpg")


def test_input_error_is_one_line():
    assert str(InputError("a\nb", 3, "do\n  this")) == "a b: 3; do this"
