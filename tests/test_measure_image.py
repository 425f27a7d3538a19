"""PSNR and SSIM: laws, and a direct evaluation of the definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from scenetx.measure.image import color_corrected, gaussian_window, psnr, ssim


def picture(seed: int, height: int = 24, width: int = 31) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@given(st.floats(0.001, 0.5))
@settings(max_examples=20, deadline=None)
def test_psnr_of_a_constant_offset_is_minus_twenty_log(offset):
    a = torch.full((4, 5, 3), 0.25, dtype=torch.float64)
    assert psnr(a, a + offset) == pytest.approx(-20 * math.log10(offset), abs=1e-9)


def test_equal_pictures():
    a = picture(0)
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-9)


def test_ssim_is_the_definition_on_a_padded_free_window():
    a, b = picture(1).double().numpy(), picture(2).double().numpy()
    x = np.arange(-5, 6)
    taps = np.exp(-(x**2) / (2 * 1.5**2))
    taps /= taps.sum()
    np.testing.assert_allclose(gaussian_window(dtype=torch.float64).numpy(), taps, atol=1e-15)

    def blur(z):
        return correlate1d(correlate1d(z, taps, axis=0), taps, axis=1)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.0001, 0.0009
    wanted = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    wanted = wanted / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert ssim(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(wanted.mean(), abs=1e-12)


def test_masked_pixels_have_no_influence():
    a, b = picture(3), picture(4)
    mask = torch.zeros(24, 31, dtype=torch.bool)
    mask[4:20, 5:25] = True
    c = torch.where(mask[..., None], a, torch.rand_like(a))
    assert psnr(a, b, mask) == psnr(c, b, mask)
    assert ssim(a, b, mask) == ssim(c, b, mask)
    assert psnr(a, b, mask) != psnr(a, b)


def test_another_exposure_and_white_balance_are_taken_out_and_nothing_else_is():
    render = picture(9) * 0.5 + 0.2
    photo = (render @ torch.tensor([[1.1, 0.02, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 1.05]])) - 0.03
    assert psnr(color_corrected(render, photo), photo) > 100
    assert psnr(color_corrected(render, picture(10)), picture(10)) < 12  # of noise only the mean can be met
    mask = torch.zeros(24, 31, dtype=torch.bool)
    mask[4:20, 5:25] = True
    spoilt = torch.where(mask[..., None], photo, picture(11))
    assert psnr(color_corrected(render, spoilt, mask), spoilt, mask) > 100
    assert psnr(color_corrected(render, spoilt), spoilt, mask) < 40


def test_correcting_a_picture_of_one_colour_is_no_error():
    grey = torch.full((24, 31, 3), 0.5)
    mean = picture(12).mean((0, 1))
    torch.testing.assert_close(color_corrected(grey, picture(12))[0, 0], mean)
    assert color_corrected(grey, picture(12), torch.zeros(24, 31, dtype=torch.bool)).isfinite().all()


def test_a_mask_that_leaves_nothing_gives_nan():
    nothing = torch.zeros(24, 31, dtype=torch.bool)
    assert math.isnan(psnr(picture(5), picture(6), nothing))
    assert math.isnan(ssim(picture(5), picture(6), nothing))


def test_a_picture_below_the_window_is_refused():
    with pytest.raises(ValueError, match="11 px window"):
        ssim(picture(7, 10, 40), picture(8, 10, 40))
