"""Smoothing a part is the same part of scipy's smoothing of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics.smooth import gaussian_smooth, gaussian_weights


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.3, 2.9])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), slice(None)),
        (slice(3, 20), slice(0, 30)),
        (slice(25, 37), slice(40, 51)),
        (slice(10, 11), slice(7, 8)),
    ],
)
def test_against_scipy(sigma, rows, columns):
    image = np.random.default_rng(1).normal(50, 10, (37, 51)).astype(np.float32)
    expected = ndimage.gaussian_filter(image.astype(float), sigma)[rows, columns]
    np.testing.assert_allclose(gaussian_smooth(image, sigma, rows, columns), expected, rtol=2e-6)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 1), (2, 5)])
def test_images_smaller_than_the_kernel(shape):
    image = np.random.default_rng(2).normal(50, 10, shape).astype(np.float32)
    expected = ndimage.gaussian_filter(image.astype(float), 2.0)
    np.testing.assert_allclose(gaussian_smooth(image, 2.0), expected, rtol=2e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 4.0])
def test_the_weights_of_both_sides_sum_to_one(sigma):
    half = gaussian_weights(sigma).astype(float)
    assert 2 * half.sum() - half[0] == pytest.approx(1, abs=1e-6)
