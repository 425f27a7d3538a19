"""Pose and depth errors: zero for equal scenes, the angle put in comes out, and the protocols' corner cases."""

import math

import pytest
import torch

from scenetx.core import Sim3
from scenetx.core.cameras import look_at
from scenetx.core.rigid import rotation_from_quat, rotation_from_rotvec
from scenetx.measure.shape import PoseErrors, depth_errors, pose_errors


def ring(n: int = 12) -> torch.Tensor:
    angle = torch.linspace(0, 2 * math.pi, n + 1, dtype=torch.float64)[:-1]
    eye = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0.3 * (3 * angle).sin()], -1)
    return look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0, 0, 1.0], dtype=torch.float64))


def moved(poses: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rotation = rotation_from_quat(torch.randn(4, generator=generator, dtype=torch.float64))
    return Sim3(0.3, rotation, torch.tensor([1.0, 2, 3], dtype=torch.float64)).apply_to_poses(poses)


def test_a_similarity_is_no_error():
    errors = pose_errors(ring(), moved(ring()))
    for value in (errors.rotation_deg, errors.center, errors.relative_rotation_deg, errors.relative_translation_deg):
        assert float(value.max()) < 1e-5
    assert errors.ate_rmse < 1e-9
    assert errors.auc() == {3.0: 1.0, 5.0: 1.0, 10.0: 1.0, 30.0: 1.0}


def test_a_turned_camera_shows_in_its_own_and_its_pairs_angles():
    estimate = ring()
    estimate[4, :3, :3] = estimate[4, :3, :3] @ rotation_from_rotvec(
        torch.tensor([0.0, math.radians(7.5), 0], dtype=torch.float64)
    )
    errors = pose_errors(ring(), moved(estimate))
    assert float(errors.rotation_deg[4]) == pytest.approx(7.5, abs=1e-6)
    assert float(errors.center.max()) < 1e-9
    assert int((errors.relative_rotation_deg > 7).sum()) == 11
    # 11 of 66 pairs are beyond 7 degrees and below 8: recall is 55/66 at 1..7 degrees and 1 from 8 on.
    assert errors.auc((10,))[10.0] == pytest.approx((7 * 55 / 66 + 3) / 10)


def test_center_errors_are_in_units_of_the_extent():
    estimate = ring()
    estimate[0, :3, 3] *= 1.25
    errors = pose_errors(ring(), estimate, reference_from_estimate=Sim3.identity())
    radius = float(ring()[0, :3, 3].norm())
    extent = float((ring()[:, :3, 3] - ring()[:, :3, 3].mean(0)).norm(dim=-1).max())
    assert float(errors.center[0]) == pytest.approx(0.25 * radius / extent)
    assert errors.ate_rmse == pytest.approx(0.25 * radius / math.sqrt(12))


def test_a_missing_baseline_is_an_error_of_ninety_degrees():
    reference, estimate = ring(3), ring(3)
    estimate[1, :3, 3] = estimate[0, :3, 3]
    errors = pose_errors(reference, estimate, reference_from_estimate=Sim3.identity())
    assert float(errors.relative_translation_deg[0]) == 90.0


def test_auc_by_hand_and_its_bad_thresholds():
    errors = PoseErrors(torch.zeros(3), torch.zeros(3), 0.0, torch.tensor([0.5, 1.5, 9.0]), torch.tensor([0.0, 2.5, 0]))
    assert errors.auc((3,))[3.0] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    with pytest.raises(ValueError, match=r"0\.5"):
        errors.auc((0.5,))


def test_too_few_cameras_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        pose_errors(ring()[:1], ring()[:1])


def test_depth_errors_by_hand():
    reference = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    estimate = torch.tensor([[1.1, 2.0, 6.0, 5.0]])
    errors = depth_errors(reference, estimate)
    assert errors.abs_rel == pytest.approx((0.1 + 0 + 0.5) / 3, rel=1e-6)
    assert errors.delta1 == pytest.approx(2 / 3)
    assert errors.pixels == 3
    only = depth_errors(reference, estimate, torch.tensor([[True, True, False, True]]))
    assert (only.pixels, only.delta1) == (2, 1.0)


@pytest.mark.parametrize("align", ["scale", "median"])
def test_a_scale_is_no_error_once_aligned(align):
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(20, 30, generator=generator) + 0.5
    assert depth_errors(reference, 3 * reference).delta1 == 0.0
    assert depth_errors(reference, 3 * reference, align=align).abs_rel < 1e-6


def test_the_scale_is_the_one_with_the_least_relative_error():
    generator = torch.Generator().manual_seed(2)
    reference = torch.rand(101, generator=generator) + 0.5
    estimate = 0.4 * reference * torch.exp(0.5 * torch.randn(101, generator=generator))
    best = depth_errors(reference, estimate, align="scale").abs_rel
    tried = [depth_errors(reference, estimate * scale).abs_rel for scale in torch.linspace(0.5, 6, 400).tolist()]
    assert best <= min(tried) + 1e-9
    assert best == pytest.approx(min(tried), abs=2e-3)


def test_no_common_pixel_is_refused():
    with pytest.raises(ValueError, match="no pixel"):
        depth_errors(torch.ones(2, 2), torch.zeros(2, 2))
