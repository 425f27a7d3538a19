"""Vectors inside numba kernels: every operation lane by lane against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from scenetx.splat.cpu_lanes import (
    WIDTH,
    lane_numbers,
    load,
    magnitude,
    prefetch,
    some,
    spread,
    store,
    store_sums,
    where,
)

f32 = np.float32
TWO = f32(2)


@njit
def arithmetic(a, b, out):
    x, y = load(a, 0), load(b, 0)
    store(out, 0, (x + y) * TWO - y / x)
    store(out, WIDTH, where((x < y) & (y >= TWO), x, lane_numbers()))
    store(out, 2 * WIDTH, magnitude(x - y))
    store_sums(out, 3 * WIDTH, x, y, x * y, spread(TWO))


@njit
def any_above(a, limit):
    prefetch(a, 0)
    return some(load(a, 0) > limit)


floats = st.floats(0.125, 64, width=32) | st.floats(-64, -0.125, width=32)
vectors = st.lists(floats, min_size=WIDTH, max_size=WIDTH).map(lambda values: np.array(values, f32))


@settings(max_examples=50, deadline=None)
@given(vectors, vectors)
def test_lanes_are_numpy(a, b):
    out = np.zeros(3 * WIDTH + 4, f32)
    arithmetic(a, b, out)
    np.testing.assert_allclose(out[:WIDTH], (a + b) * 2 - b / a, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(out[WIDTH : 2 * WIDTH], np.where((a < b) & (b >= 2), a, np.arange(WIDTH)))
    np.testing.assert_array_equal(out[2 * WIDTH : 3 * WIDTH], np.abs(a - b))
    sums = [a.sum(), b.sum(), (a.astype(float) * b).sum(), 2 * WIDTH]
    np.testing.assert_allclose(out[3 * WIDTH :], sums, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("lane", range(WIDTH))
def test_one_lane_is_enough(lane):
    a = np.zeros(WIDTH, f32)
    assert not any_above(a, f32(0.5))
    a[lane] = 1
    assert any_above(a, f32(0.5))
    a[lane] = np.nan
    assert not any_above(a, f32(0.5)), "a comparison with NaN is false"
