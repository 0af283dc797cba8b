"""Cell by cell the sky's level and noise are those of its pixels, whatever shines in the cell."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.mesh import mesh_levels, pixel_noise


def clipped(values):
    """Return (mean, median, sigma), the slow obvious way."""
    values = values.astype(float)
    kept = np.ones(len(values), dtype=bool)
    for _ in range(50):
        middle, spread = np.median(values[kept]), values[kept].std()
        now = np.abs(values - middle) <= 3 * spread
        if (now == kept).all():
            break
        kept = now
    return values[kept].mean(), np.median(values[kept]), values[kept].std()


@pytest.mark.parametrize("outliers", [0, 60])
def test_against_sorting(outliers):
    rng = np.random.default_rng(3)
    image = rng.normal(400, 7, (64, 192)).astype(np.float32)
    at = rng.choice(image.size, outliers, replace=False)
    image.ravel()[at] += rng.exponential(3000, outliers)
    used = rng.random(image.shape) > 0.2
    found = mesh_levels(image, used, (0, 64), np.array([0, 60, 130, 192]))
    for k, part in enumerate((slice(0, 60), slice(60, 130), slice(130, 192))):
        mean, median, sigma = clipped(image[:, part][used[:, part]])
        assert found[0, k] == pytest.approx(mean, abs=0.02 * 7)
        assert found[1, k] == pytest.approx(median, abs=0.02 * 7)
        assert found[2, k] == pytest.approx(sigma, rel=0.02)
        assert found[3, k] == used[:, part].sum()


def test_a_cell_without_pixels_or_without_noise():
    image = np.full((16, 32), 5.0, dtype=np.float32)
    used = np.ones(image.shape, dtype=bool)
    used[:, 16:] = False
    found = mesh_levels(image, used, (0, 16), np.array([0, 16, 32]))
    np.testing.assert_array_equal(found, [[5, 0], [5, 0], [0, 0], [256, 0]])


def test_the_noise_from_pixel_to_pixel_sees_neither_slope_nor_hole():
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:300, :310]
    image = (rng.normal(0, 9, y.shape) + 0.3 * x - 2.0 * y).astype(np.float32)
    used = np.ones(image.shape, dtype=bool)
    used[100:120, 50:90] = False
    image[~used] = 1e6
    sigma, n = pixel_noise(image, used, slice(0, 300), slice(0, 310))
    # clipping at 3 sigma takes 1.5 % off
    assert sigma == pytest.approx(9 * 0.985, rel=0.015)
    assert n == 298 * 308 - 22 * 42


def test_starlight_of_three_pixels_hardly_counts_as_noise():
    # for a Gaussian spectrum of FWHM 3 px: a field of unresolved stars of 10 times the noise's variance
    rng = np.random.default_rng(5)
    k = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None, :])
    light = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(512, 512))) * np.exp(-2 * (np.pi * k * 1.274) ** 2))
    light *= np.sqrt(10) * 5 / light.std()
    image = (rng.normal(0, 5, light.shape) + light).astype(np.float32)
    sigma, _ = pixel_noise(image, np.ones(image.shape, dtype=bool), slice(0, 512), slice(0, 512))
    assert 1.0 < (sigma / (5 * 0.985)) ** 2 < 1.3
