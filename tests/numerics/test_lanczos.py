"""Resampling keeps surface brightness, moves stars by fractions, and its noise is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ks4diff.numerics import lanczos
from ks4diff.numerics.lanczos import COORDINATE_STEP, node_grid, noise_covariance, resample, tap_table
from tests import oracles
from tests.strategies import fractions, gaussian, resampled_noise, seeds, turned_nodes


def shift_nodes(shape, x, y):
    grid = node_grid(shape)
    return np.stack([grid[0] + x, grid[1] + y])


def resample_data(image, nodes, shape, bad=None):
    bad = np.zeros(image.shape, dtype=np.int32) if bad is None else bad
    return resample(image.astype(np.float32), np.ones(image.shape, dtype=np.float32), bad, nodes, shape)


class TestData:
    @settings(deadline=None, derandomize=True, max_examples=20)
    @given(seeds, st.floats(0.9, 1.1), st.floats(-180, 180))
    def test_a_constant_stays(self, seed, scale, angle):
        rng = np.random.default_rng(seed)
        bad = np.where(rng.random((150, 170)) < 0.01, 8, 0).astype(np.int32)
        image = np.where(bad, -1e6, 321.5)
        nodes = turned_nodes((61, 47), scale=scale, angle_deg=angle, start=(75, 75))
        data, variance, flags = resample_data(image, nodes, (61, 47), bad)
        used = flags == 0
        assert used.any()
        np.testing.assert_allclose(data[used], 321.5, rtol=1e-6)
        assert (variance[used] > 0).all()
        assert (variance[used] < 1.2).all()

    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(fractions, fractions, fractions, fractions)
    def test_a_star_moves_by_a_fraction(self, x, y, dx, dy):
        """Wherever it was in its pixel, to what the module says; its flux to 1e-4."""
        for fwhm, limit in ((2.5, 0.0145), (3.0, 0.0065)):
            image = gaussian(51, fwhm, dx=x, dy=y)
            data, _, flags = resample_data(image, shift_nodes((33, 37), 8 + dx, 9 + dy), (33, 37))
            expected = gaussian(51, fwhm, dx=x - dx, dy=y - dy)[9 : 9 + 33, 8 : 8 + 37]
            assert (flags == 0).all()
            assert np.abs(data - expected).max() < limit * gaussian(51, fwhm).max()
            assert data.sum() == pytest.approx(image.sum(), rel=1e-4)

    def test_whole_pixels_are_copied(self):
        image = np.random.default_rng(1).normal(size=(50, 60)).astype(np.float32)
        data, variance, flags = resample_data(image, shift_nodes((20, 30), 11, 13), (20, 30))
        np.testing.assert_array_equal(data, image[13:33, 11:41])
        np.testing.assert_array_equal(variance, 1.0)
        assert not flags.any()

    def test_against_a_direct_sum(self):
        rng = np.random.default_rng(3)
        image = rng.normal(100, 20, (70, 83)).astype(np.float32)
        variance = rng.uniform(1, 9, image.shape).astype(np.float32)
        bad = np.where(rng.random(image.shape) < 0.02, rng.choice([1, 4, 64], image.shape), 0).astype(
            np.int32
        )
        shape = (37, 41)
        nodes = turned_nodes(shape, scale=1.03, angle_deg=4.0, start=(11.3, 9.1))
        data, noise, flags = resample(image, variance, bad, nodes, shape)
        for row in range(0, 37, 3):
            for column in range(0, 41, 3):
                x, y = oracles.bilinear_nodes(nodes, COORDINATE_STEP, row, column)
                expected = oracles.masked_lanczos_sample(image, variance, bad, x, y)
                # positions are rounded to 1/4096 px, and pixels differ by tens
                assert flags[row, column] == expected[2]
                if expected[2] == 0:
                    assert data[row, column] == pytest.approx(expected[0], abs=0.05)
                    assert noise[row, column] == pytest.approx(expected[1], rel=2e-3)
        assert len(np.unique(flags)) > 3

    def test_bilinear_nodes_suffice_for_the_distortion_of_kmtnet(self):
        """A cubic of 54 arcsec at 12 900 px, as in a corner of the field, errs by at most 2e-4 px."""
        origin, coefficient = 9000.0, 54 / 0.4 / 12900**3
        x, y = node_grid((64, 64))

        def bent(x, y):
            u, v = x + origin, y + origin
            return np.stack([x + coefficient * u * (u**2 + v**2), y + coefficient * v * (u**2 + v**2)])

        nodes = bent(x, y)
        exact = bent(*np.meshgrid(np.arange(64.0), np.arange(64.0)))
        got = [[oracles.bilinear_nodes(nodes, COORDINATE_STEP, r, c) for c in range(64)] for r in range(64)]
        worst = np.abs(np.transpose(got, (2, 0, 1)) - exact).max()
        assert 5e-5 < worst < 2.5e-4


class TestFlags:
    def test_bits_of_bad_taps_pass_on(self):
        bad = np.zeros((60, 70), dtype=np.int32)
        bad[30, 40], bad[30, 41] = 4, 32
        _, _, flags = resample_data(np.ones(bad.shape), shift_nodes((60, 70), 0.5, 0.0), (60, 70), bad)
        assert flags[30, 40] == 4 | 32
        assert flags[30, 41] & 32
        assert flags[30, 45] == 0
        assert flags[33, 40] == 0

    def test_many_faint_bad_taps_count_together(self):
        bad = np.zeros((60, 70), dtype=np.int32)
        taps = tap_table()[lanczos.STEPS // 2]
        faint = np.abs(np.outer(taps, taps)) < 0.02
        bad[27:35, 37:45][faint] = 16
        _, _, flags = resample_data(np.ones(bad.shape), shift_nodes((60, 70), 0.5, 0.5), (60, 70), bad)
        assert flags[30, 40] == -2
        bad[27:30] = bad[:, 37:40] = 0
        _, _, flags = resample_data(np.ones(bad.shape), shift_nodes((60, 70), 0.5, 0.5), (60, 70), bad)
        assert flags[30, 40] == 0

    def test_what_needs_pixels_beyond_the_border_is_outside(self):
        data, variance, flags = resample_data(np.ones((30, 40)), shift_nodes((30, 40), 0.0, 0.25), (30, 40))
        inside = np.zeros((30, 40), dtype=bool)
        inside[3:-4, 3:-4] = True
        np.testing.assert_array_equal(flags == -1, ~inside)
        assert not data[~inside].any()
        assert not variance[~inside].any()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e9])
    def test_absurd_coordinates_are_outside(self, value):
        nodes = shift_nodes((20, 20), 10.0, 10.0)
        nodes[0] = value
        data, _, flags = resample_data(np.ones((50, 50)), nodes, (20, 20))
        assert (flags == -1).all()
        assert not data.any()

    def test_an_image_smaller_than_the_taps(self):
        _, _, flags = resample_data(np.ones((7, 30)), shift_nodes((7, 30), 0.0, 0.0), (7, 30))
        assert (flags == -1).all()

    def test_too_few_nodes_are_refused(self):
        with pytest.raises(ValueError, match=r"needs nodes of \(2, 3, 4\), got \(2, 3, 3\)"):
            resample_data(np.ones((60, 60)), shift_nodes((20, 40), 0, 0)[:, :3, :3], (20, 40))


class TestNoise:
    @pytest.mark.parametrize(
        "options", [{"scale": 1.0, "angle_deg": 0.0}, {}, {"scale": 0.985, "angle_deg": -2.0}]
    )
    def test_covariance_and_variance_are_those_of_resampled_noise(self, options):
        shape, half = (300, 341), 2 * lanczos.SUPPORT - 1
        nodes = turned_nodes(shape, **options)
        nodes -= np.floor(nodes.min(axis=(1, 2)))[:, None, None] - 5
        covariance = noise_covariance(nodes)
        rng = np.random.default_rng(8)
        noise, variance = zip(*(resampled_noise(rng, shape, nodes) for _ in range(6)), strict=True)
        # 600 000 pixels: each covariance to 0.0013
        noise = np.stack(noise).astype(np.float64)[:, :, :]
        for dy in range(4):
            for dx in range(-3, 4):
                low, high = max(0, -dx), shape[1] - max(0, dx)
                pairs = noise[:, : shape[0] - dy, low:high] * noise[:, dy:, low + dx : high + dx]
                assert covariance[half + dy, half + dx] == pytest.approx(pairs.mean(), abs=0.006), (dy, dx)
        assert covariance[half, half] == pytest.approx(variance[0].mean(), abs=0.004)
        assert noise.var() == pytest.approx(variance[0].mean(), rel=0.01)

    def test_whole_pixels_leave_noise_white(self):
        covariance = noise_covariance(shift_nodes((40, 50), 3.0, -2.0))
        expected = np.zeros((15, 15))
        expected[7, 7] = 1
        np.testing.assert_allclose(covariance, expected, atol=1e-12)

    @settings(deadline=None, derandomize=True, max_examples=20)
    @given(fractions, fractions)
    def test_covariance_is_symmetric_and_keeps_the_power_of_a_constant(self, dx, dy):
        covariance = noise_covariance(shift_nodes((40, 50), dx, dy))
        np.testing.assert_allclose(covariance, covariance[::-1, ::-1], atol=1e-12)
        assert covariance.sum() == pytest.approx(1.0, abs=1e-9)


def test_taps_sum_to_one_and_mirror():
    taps = tap_table()
    np.testing.assert_allclose(taps.sum(axis=1), 1.0, atol=1e-14)
    np.testing.assert_allclose(taps, taps[::-1, ::-1], atol=1e-14)
