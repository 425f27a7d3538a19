"""Alignment laws: the similarity is found exactly, on lines, with two cameras, and in spite of outliers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import Sim3
from scenetx.core.rigid import rigid, rotation_angle, rotation_from_quat
from scenetx.geometry.align import align_cameras


def cameras(n: int, seed: int, *, line: bool = False):
    generator = torch.Generator().manual_seed(seed)
    rotation = rotation_from_quat(torch.randn(n, 4, generator=generator, dtype=torch.float64))
    centers = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    if line:
        centers = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None] * centers[:1]
    return rigid(rotation, centers)


def similarity(seed: int, scale: float) -> Sim3:
    generator = torch.Generator().manual_seed(seed + 1)
    rotation = rotation_from_quat(torch.randn(4, generator=generator, dtype=torch.float64))
    return Sim3(scale, rotation, 10 * torch.randn(3, generator=generator, dtype=torch.float64))


def assert_same(found: Sim3, true: Sim3, tolerance: float = 1e-6):
    assert found.scale == pytest.approx(true.scale, rel=tolerance)
    assert float(rotation_angle(found.rotation.T @ true.rotation)) < tolerance
    assert float((found.translation - true.translation).norm()) < tolerance * (1 + float(true.translation.norm()))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 12), seed=st.integers(0, 999), log_scale=st.floats(-3, 3), line=st.booleans())
def test_the_similarity_is_found_exactly(n, seed, log_scale, line):
    true = similarity(seed, math.exp(log_scale))
    estimate = cameras(n, seed, line=line)
    assert_same(align_cameras(true.apply_to_poses(estimate), estimate), true)


@pytest.mark.parametrize("line", [False, True])
def test_a_third_of_wild_cameras_has_no_say(line):
    true = similarity(5, 2.5)
    estimate = cameras(15, 5, line=line)
    reference = true.apply_to_poses(estimate)
    reference[:5] = cameras(5, 77)
    reference[0, :3, 3] = 1e4
    assert_same(align_cameras(reference, estimate), true)


def test_noise_averages_out():
    true = similarity(3, 0.5)
    estimate = cameras(60, 3)
    noisy = true.apply_to_poses(estimate)
    generator = torch.Generator().manual_seed(0)
    noisy[:, :3, 3] += 0.005 * torch.randn(60, 3, generator=generator, dtype=torch.float64)
    found = align_cameras(noisy, estimate)
    assert found.scale == pytest.approx(true.scale, rel=0.01)
    assert float(rotation_angle(found.rotation.T @ true.rotation)) < 0.005


def test_one_camera_or_one_place_leaves_the_scale_alone():
    true = similarity(8, 1.0)
    for n in (1, 4):
        estimate = cameras(n, 8)
        estimate[:, :3, 3] = estimate[:1, :3, 3]
        found = align_cameras(true.apply_to_poses(estimate), estimate)
        assert_same(found, true)


def test_different_numbers_are_refused():
    with pytest.raises((ValueError, TypeError)):
        align_cameras(cameras(2, 0), cameras(3, 0))
