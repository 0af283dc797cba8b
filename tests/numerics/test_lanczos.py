"""Resampling keeps surface brightness, moves stars by fractions, and its noise is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ks4diff.io.tile_tables import read_distortions
from ks4diff.numerics import lanczos
from ks4diff.numerics.lanczos import COORDINATE_STEP, node_grid, noise_covariance, resample, tap_table
from ks4diff.stages.sim import geometry
from tests import oracles
from tests.strategies import fractions, gaussian, resampled_noise, seeds, turned_nodes


def shift_nodes(shape, x, y):
    grid = node_grid(shape)
    return np.stack([grid[0] + x, grid[1] + y])


def resample_data(image, nodes, shape, bad=None):
    bad = np.zeros(image.shape, dtype=np.uint16) if bad is None else bad
    return resample(image.astype(np.float32), bad, nodes, shape)


class TestData:
    @settings(deadline=None, derandomize=True, max_examples=20)
    @given(seeds, st.floats(0.9, 1.1), st.floats(-180, 180))
    def test_a_constant_stays(self, seed, scale, angle):
        rng = np.random.default_rng(seed)
        bad = np.where(rng.random((150, 170)) < 0.01, 8, 0).astype(np.uint16)
        image = np.where(bad, -1e6, 321.5)
        nodes = turned_nodes((61, 47), scale=scale, angle_deg=angle, start=(75, 75))
        data, flags = resample_data(image, nodes, (61, 47), bad)
        used = flags == 0
        assert used.any()
        np.testing.assert_allclose(data[used], 321.5, rtol=1e-6)

    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(fractions, fractions, fractions, fractions)
    def test_a_star_moves_by_a_fraction(self, x, y, dx, dy):
        """Wherever it was in its pixel, to what the module says; its flux to 1e-4."""
        for fwhm, limit in ((2.5, 0.0145), (3.0, 0.0065)):
            image = gaussian(51, fwhm, dx=x, dy=y)
            data, flags = resample_data(image, shift_nodes((33, 37), 8 + dx, 9 + dy), (33, 37))
            expected = gaussian(51, fwhm, dx=x - dx, dy=y - dy)[9 : 9 + 33, 8 : 8 + 37]
            assert (flags == 0).all()
            assert np.abs(data - expected).max() < limit * gaussian(51, fwhm).max()
            assert data.sum() == pytest.approx(image.sum(), rel=1e-4)

    def test_whole_pixels_are_copied(self):
        image = np.random.default_rng(1).normal(size=(50, 60)).astype(np.float32)
        data, flags = resample_data(image, shift_nodes((20, 30), 11, 13), (20, 30))
        np.testing.assert_array_equal(data, image[13:33, 11:41])
        assert not flags.any()

    @pytest.mark.parametrize(
        "options", [{"scale": 1.03, "angle_deg": 4.0}, {"scale": 0.97, "angle_deg": -71.0}]
    )
    def test_against_a_direct_sum(self, options):
        rng = np.random.default_rng(3)
        image = rng.normal(100, 20, (170, 183)).astype(np.float32)
        bad = np.where(rng.random(image.shape) < 0.02, rng.choice([1, 4, 64], image.shape), 0).astype(
            np.uint16
        )
        bad[:, :60] = 0  # both with tests for bad taps and without
        shape = (137, 141)
        nodes = turned_nodes(shape, **options)
        nodes += np.array([85.0, 92.0])[:, None, None] - nodes[:, 4:6, 4:6].mean(axis=(1, 2))[:, None, None]
        data, flags = resample(image, bad, nodes, shape)
        inside = 0
        for row in range(0, 137, 5):
            for column in range(0, 141, 5):
                x, y = oracles.bilinear_nodes(nodes, COORDINATE_STEP, row, column)
                if not (3 <= x < 183 - 4 and 3 <= y < 170 - 4):
                    assert flags[row, column] == lanczos.OUTSIDE
                    continue
                # the twin at the position rounded to 1/4096 px, so that only rounding to float32 is left
                x, y = (np.floor(v * lanczos.STEPS + 0.5) / lanczos.STEPS for v in (x, y))
                expected = oracles.masked_lanczos_sample(image, bad, x, y)
                assert flags[row, column] == expected[1]
                if expected[1] == 0:
                    inside += 1
                    assert data[row, column] == pytest.approx(expected[0], abs=2e-4)
        assert inside > 150
        assert len(np.unique(flags)) > 4

    def test_positions_are_rounded_by_little(self):
        """Where a star of FWHM 2.5 px is steepest, to 7e-5 of its peak."""
        star = gaussian(41, 2.5)
        exact = oracles.lanczos_sample(star, 21.0, 20.0)
        for past in (0.5, 0.25, 0.125):
            between = (2048 + past) / lanczos.STEPS
            data, _ = resample_data(star, shift_nodes((1, 1), 20 + between, 20.0), (1, 1))
            exact = oracles.lanczos_sample(star, 20 + between, 20.0)
            assert abs(data[0, 0] - exact) < 7e-5 * star.max()

    def test_one_kind_of_bad_pixels_all_around(self):
        """Cells of the output over one block of missing data give what single pixels give."""
        bad = np.zeros((120, 150), dtype=np.uint16)
        bad[20:100, 30:120] = 2
        shape = (80, 100)
        nodes = turned_nodes(shape, scale=1.01, angle_deg=1.0, start=(25.0, 18.0))
        rng = np.random.default_rng(4)
        image = rng.normal(50, 3, bad.shape)
        image[bad != 0] = np.nan
        data, flags = resample_data(image, nodes, shape, bad)
        assert np.isfinite(data).all()
        for row in range(0, 80, 4):
            for column in range(0, 100, 4):
                x, y = oracles.bilinear_nodes(nodes, COORDINATE_STEP, row, column)
                near = bad[int(y) - 3 : int(y) + 5, int(x) - 3 : int(x) + 5] != 0
                if near.all():
                    assert (data[row, column], flags[row, column]) == (0, 2)
                elif not near.any():
                    assert flags[row, column] == 0
        assert (flags == 2).sum() > 2000

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

    @pytest.mark.parametrize("chip", "KMNT")
    @pytest.mark.parametrize("corner", [(0, 0), (9216 - 200, 0), (0, 9232 - 200), (9216 - 200, 9232 - 200)])
    def test_positions_under_a_real_chip(self, chip, corner):
        """From each corner of each chip onto the tile's tangent plane: to 0.002 px, mostly far better."""
        found = read_distortions()["any", chip]
        distortion = geometry.Distortion(crpix=found.crpix, cd=found.cd, pv=found.pv)
        at = geometry.Pointing(claimed=(115.0, -50.0), true=(115.02, -49.98), rotation_deg=0.7)
        patch = geometry.Patch(chip=chip, x0=corner[0], y0=corner[1], columns=200, rows=200)
        science = geometry.true_wcs(distortion, at, patch)
        tile = geometry.tangent_plane((115.0, -50.0), 0.4 / 3600, (11000.0, 11000.0))

        def there(x, y):
            sky = science.all_pix2world(np.ravel(x), np.ravel(y), 0)
            return np.stack(tile.wcs_world2pix(*sky, 0)).reshape(2, *np.shape(x))

        nodes = there(*node_grid((200, 200)))
        x, y = np.meshgrid(np.arange(0, 200, 3), np.arange(0, 200, 3))
        got = [
            oracles.bilinear_nodes(nodes, COORDINATE_STEP, r, c) for c, r in zip(x.flat, y.flat, strict=True)
        ]
        assert np.abs(np.transpose(got) - there(x, y).reshape(2, -1)).max() < 1e-3


class TestFlags:
    def test_bits_of_bad_taps_pass_on(self):
        bad = np.zeros((60, 70), dtype=np.uint16)
        bad[30, 40], bad[30, 41] = 4, 32
        _, flags = resample_data(np.ones(bad.shape), shift_nodes((60, 70), 0.5, 0.0), (60, 70), bad)
        assert flags[30, 40] == 4 | 32
        assert flags[30, 41] & 32
        assert flags[30, 45] == 0
        assert flags[33, 40] == 0

    def test_many_faint_bad_taps_count_together(self):
        bad = np.zeros((60, 70), dtype=np.uint16)
        taps = tap_table()[lanczos.STEPS // 2]
        faint = np.abs(np.outer(taps, taps)) < 0.02
        bad[27:35, 37:45][faint] = 16
        _, flags = resample_data(np.ones(bad.shape), shift_nodes((60, 70), 0.5, 0.5), (60, 70), bad)
        assert flags[30, 40] == lanczos.FAINT
        bad[27:30] = bad[:, 37:40] = 0
        _, flags = resample_data(np.ones(bad.shape), shift_nodes((60, 70), 0.5, 0.5), (60, 70), bad)
        assert flags[30, 40] == 0

    def test_what_needs_pixels_beyond_the_border_is_outside(self):
        data, flags = resample_data(np.ones((30, 40)), shift_nodes((30, 40), 0.0, 0.25), (30, 40))
        inside = np.zeros((30, 40), dtype=bool)
        inside[3:-4, 3:-4] = True
        np.testing.assert_array_equal(flags == lanczos.OUTSIDE, ~inside)
        assert not data[~inside].any()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e9])
    def test_absurd_coordinates_are_outside(self, value):
        nodes = shift_nodes((20, 20), 10.0, 10.0)
        nodes[0] = value
        data, flags = resample_data(np.ones((50, 50)), nodes, (20, 20))
        assert (flags == lanczos.OUTSIDE).all()
        assert not data.any()

    def test_an_image_smaller_than_the_taps(self):
        _, flags = resample_data(np.ones((7, 30)), shift_nodes((7, 30), 0.0, 0.0), (7, 30))
        assert (flags == lanczos.OUTSIDE).all()

    def test_too_few_nodes_are_refused(self):
        with pytest.raises(ValueError, match=r"needs nodes of \(2, 3, 4\), got \(2, 3, 3\)"):
            resample_data(np.ones((60, 60)), shift_nodes((20, 40), 0, 0)[:, :3, :3], (20, 40))


class TestNoise:
    @pytest.mark.parametrize(
        "options", [{"scale": 1.0, "angle_deg": 0.0}, {}, {"scale": 0.985, "angle_deg": -2.0}]
    )
    def test_covariance_is_that_of_resampled_noise(self, options):
        shape, half = (300, 341), 2 * lanczos.SUPPORT - 1
        nodes = turned_nodes(shape, **options)
        nodes -= np.floor(nodes.min(axis=(1, 2)))[:, None, None] - 5
        covariance = noise_covariance(nodes)
        rng = np.random.default_rng(8)
        noise = np.stack([resampled_noise(rng, shape, nodes)[0] for _ in range(6)]).astype(np.float64)
        # 600 000 pixels: each covariance to 0.0013
        for dy in range(4):
            for dx in range(-3, 4):
                low, high = max(0, -dx), shape[1] - max(0, dx)
                pairs = noise[:, : shape[0] - dy, low:high] * noise[:, dy:, low + dx : high + dx]
                assert covariance[half + dy, half + dx] == pytest.approx(pairs.mean(), abs=0.006), (dy, dx)

    def test_a_patch_has_the_noise_of_its_own_phases(self):
        """KMTNet's 0.395 px on 0.4: the noise beats, and a patch of 32 px is not as the chip is."""
        shape, half = (320, 320), 2 * lanczos.SUPPORT - 1
        nodes = turned_nodes(shape, scale=0.9875, angle_deg=0.0)
        overall = noise_covariance(nodes)[half, half]
        rng = np.random.default_rng(9)
        noise = np.stack([resampled_noise(rng, shape, nodes)[0] for _ in range(120)]).astype(np.float64)
        seen = []
        for j, i in ((0, 3), (3, 1), (6, 10), (16, 2)):
            patch = nodes[:, j : j + 3, i : i + 3]
            place = slice(16 * j, 16 * j + 33), slice(16 * i, 16 * i + 33)
            inside = noise[:, *place]
            found = noise_covariance(patch)
            # 120 000 pixels, correlated: to 0.005
            assert found[half, half] == pytest.approx((inside**2).mean(), abs=0.015)
            pairs = (inside[:, :, 1:] * inside[:, :, :-1]).mean()
            assert found[half, half + 1] == pytest.approx(pairs, abs=0.015)
            seen.append(found[half, half])
        assert np.ptp(seen) > 0.1
        assert 0.5 < overall < 1

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
