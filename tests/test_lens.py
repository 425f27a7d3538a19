"""Distortion and its inverse are inverses, and straight pictures are where their camera says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenetx.core import InputError
from scenetx.core.cameras import pixel_grid
from scenetx.io.lens import distort, pinhole_for, straighten, straighten_nearest, undistort, valid_radius

LENSES = [
    ((-0.3, 0.1, 0.001, -0.002), "opencv"),
    ((0.0578421, -0.0805099, -0.000980296, 0.00015575), "opencv"),
    ((-0.4,), "opencv"),
    ((0.2, -0.05, 1e-3, 1e-3, 0.02), "opencv"),
    ((0.3, -0.05, 1e-3, 1e-3, 0.02, 0.2, 0.01, 0.001), "opencv"),
    ((0.01, -0.02, 0.003, -0.001), "fisheye"),
    ((), "fisheye"),
    ((), "opencv"),
]


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> torch.Tensor:
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def disk(radius: float, count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(count, generator=generator, dtype=torch.float64) * math.tau
    length = torch.rand(count, generator=generator, dtype=torch.float64).sqrt() * radius
    return torch.stack([angle.cos() * length, angle.sin() * length], -1)


@pytest.mark.parametrize("distortion, lens", LENSES)
def test_undistort_undoes_distort(distortion, lens):
    rays = disk(min(1.5, 0.95 * valid_radius(distortion, lens)))
    back = undistort(distort(rays, distortion, lens), distortion, lens)
    assert (back - rays).abs().max() < 1e-9


@given(k1=st.floats(-0.5, 0.5), k2=st.floats(-0.2, 0.2), p1=st.floats(-0.005, 0.005), p2=st.floats(-0.005, 0.005))
@settings(max_examples=20, deadline=None)
def test_undistort_is_the_inverse_or_nan(k1: float, k2: float, p1: float, p2: float):
    distortion = (k1, k2, p1, p2)
    rays = disk(0.6, 200)
    inside = rays[rays.norm(dim=-1) < 0.9 * valid_radius(distortion)]
    assert (undistort(distort(inside, distortion), distortion) - inside).abs().max() < 1e-9
    back = undistort(rays, distortion)
    finite = back[torch.isfinite(back).all(-1)]
    assert (distort(finite, distortion) - rays[torch.isfinite(back).all(-1)]).abs().max() < 1e-9


def test_distort_is_opencvs_formula():
    # cv2.projectPoints of (0.3, -0.2, 1) with these coefficients, K = identity: worked out by hand in rationals.
    x, y, (k1, k2, p1, p2, k3) = 0.3, -0.2, (0.1, -0.05, 0.01, -0.02, 0.03)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    expected = [
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    ]
    got = distort(torch.tensor([[x, y]], dtype=torch.float64), (k1, k2, p1, p2, k3))
    assert got[0].tolist() == pytest.approx(expected, abs=1e-15)


def test_fisheye_is_the_angle():
    got = distort(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64), (), "fisheye")
    assert got.tolist() == [pytest.approx([math.pi / 4, 0.0]), [0.0, 0.0]]


def test_folding_lens_knows_its_range():
    # r (1 - 0.4 r^2) turns at r = sqrt(1 / 1.2).
    radius = valid_radius((-0.4,))
    assert radius == pytest.approx(math.sqrt(1 / 1.2), abs=1e-9)
    peak = radius * (1 - 0.4 * radius**2)
    rays = undistort(torch.tensor([[peak * 0.999, 0.0], [peak * 1.001, 0.0]], dtype=torch.float64), (-0.4,))
    assert torch.isfinite(rays[0]).all()
    assert torch.isnan(rays[1]).all()


@pytest.mark.parametrize("distortion, lens", LENSES)
def test_pinhole_holds_no_blank_and_loses_little(distortion, lens):
    h, w, K = 720, 1280, intrinsics(900, 905, 655, 350)
    K_new, h_new, w_new = pinhole_for(K, distortion, lens, h, w, 640)
    assert max(h_new, w_new) == 640
    pixels = pixel_grid(h_new, w_new, dtype=torch.float64)
    rays = (pixels - K_new[:2, 2]) / K_new.diagonal()[:2]
    source = distort(rays, distortion, lens) * K.diagonal()[:2] + K[:2, 2]
    assert source.min() > -0.01
    assert source[..., 0].max() < w + 0.01
    assert source[..., 1].max() < h + 0.01
    # At least two borders of the original are touched: a larger rectangle would be blank there.
    gaps = [source[..., 0].min(), w - source[..., 0].max(), source[..., 1].min(), h - source[..., 1].max()]
    assert sum(float(gap) < 3 for gap in gaps) >= 2
    assert float(K_new[0, 0] / K_new[1, 1]) == pytest.approx(900 / 905, rel=3e-3)
    assert straighten(np.full((h, w, 3), 255, np.uint8), K, distortion, lens, K_new, h_new, w_new).min() == 255


def test_plain_pinhole_is_a_plain_resize():
    K_new, h, w = pinhole_for(intrinsics(1000, 1000, 650, 350), (), "opencv", 720, 1280, 640)
    assert (h, w) == (360, 640)
    assert torch.allclose(K_new, intrinsics(500, 500, 325, 175))
    K_new, h, w = pinhole_for(intrinsics(1000, 1000, 650, 350), (), "opencv", 720, 1280, 4000)
    assert (h, w) == (720, 1280)


def test_folding_lens_whose_picture_reaches_too_far_is_cut_not_mirrored():
    K = intrinsics(500, 500, 640, 360)
    K_new, _, _ = pinhole_for(K, (-0.4,), "opencv", 720, 1280, 1280)
    corner = -K_new[:2, 2] / K_new.diagonal()[:2]
    assert corner.norm() <= valid_radius((-0.4,))


@pytest.mark.parametrize("bad", [0.0, -5.0, math.nan, math.inf])
def test_bad_intrinsics_are_input_errors(bad: float):
    with pytest.raises(InputError):
        pinhole_for(intrinsics(bad, 500, 640, 360), (), "opencv", 720, 1280, 640)


def spots(pixels: torch.Tensor, centers: torch.Tensor, sigma: float) -> np.ndarray:
    distance = (pixels[:, :, None] - centers).square().sum(-1)
    value = (235 * torch.exp(-distance / (2 * sigma**2))).sum(-1) + 10
    return value.clamp(0, 255).round().byte()[..., None].expand(-1, -1, 3).contiguous().numpy()


@pytest.mark.parametrize("distortion, lens", [*LENSES[:2], LENSES[5], ((), "opencv")])
@pytest.mark.parametrize("longest", [240, 170])
def test_straight_pictures_are_where_the_camera_says(distortion, lens, longest):
    h, w, K = 270, 360, intrinsics(300, 302, 173, 142)
    K_new, h_new, w_new = pinhole_for(K, distortion, lens, h, w, longest)
    # Straight places, pictured through the lens; found again in the straight picture.
    places = torch.tensor([[x, y] for x in (0.2, 0.5, 0.8) for y in (0.22, 0.5, 0.8)], dtype=torch.float64)
    places = places * torch.tensor([w_new, h_new], dtype=torch.float64) + 0.3
    rays = (places - K_new[:2, 2]) / K_new.diagonal()[:2]
    # The whole pattern is a function of the ray, so that the lens bends the spots too.
    source_rays = undistort((pixel_grid(h, w, dtype=torch.float64) - K[:2, 2]) / K.diagonal()[:2], distortion, lens)
    photo = spots(torch.nan_to_num(source_rays, nan=9.0) * 300, rays * 300, 6.0)
    straight = straighten(photo, K, distortion, lens, K_new, h_new, w_new)[..., 0].astype(np.float64) - 10
    grid = pixel_grid(h_new, w_new, dtype=torch.float64)
    ideal = spots((grid - K_new[:2, 2]) / K_new.diagonal()[:2] * 300, rays * 300, 6.0)[..., 0].astype(np.float64) - 10
    down, right = np.gradient(ideal)
    for place in places.numpy():
        near = (np.abs(grid.numpy() - place) < 20 * longest / 360).all(-1)
        # How far the spot has moved, by least squares on the ideal picture's slopes (Lucas and Kanade, 1981).
        slopes = np.stack([right[near], down[near], ideal[near]], -1)
        shift = np.linalg.lstsq(slopes, straight[near] - ideal[near], rcond=None)[0][:2]
        assert np.abs(shift).max() < 0.02


def test_reducing_is_antialiased():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    K = intrinsics(400, 400, 200, 200)
    K_new, h, w = pinhole_for(K, (-0.05,), "opencv", 400, 400, 100)
    out = straighten(stripes, K, (-0.05,), "opencv", K_new, h, w)
    assert np.abs(out[5:-5, 5:-5].astype(int) - 127).max() < 8


def test_nearest_keeps_values_and_places():
    h, w, K = 120, 160, intrinsics(150, 150, 80, 60)
    distortion = (-0.1, 0.02, 0.0, 0.0)
    K_new, h_new, w_new = pinhole_for(K, distortion, "opencv", h, w, 160)
    labels = np.arange(h * w, dtype=np.int32).reshape(h, w)
    moved = straighten_nearest(labels, K, distortion, "opencv", K_new, h_new, w_new)
    rays = (pixel_grid(h_new, w_new, dtype=torch.float64) - K_new[:2, 2]) / K_new.diagonal()[:2]
    source = (distort(rays, distortion) * 150 + K[:2, 2]).numpy()
    assert np.array_equal(moved % w, np.floor(source[..., 0]).clip(0, w - 1))
    assert np.array_equal(moved // w, np.floor(source[..., 1]).clip(0, h - 1))
