"""Stars drawn from tables against the profile integrated by brute force; bleeding; bilinear resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics.detector import add_tracks, bleed, resample_bilinear
from ks4diff.numerics.stamps import add_sources
from ks4diff.stages.sim.config import OpticsConfig
from ks4diff.stages.sim.geometry import Patch
from ks4diff.stages.sim.psf import OpticalState, draw_psf_field

NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)


def integrated(wing, dx, dy):
    """Return the light in unit pixels at offsets, 6x6 Gauss-Legendre points in each."""
    total = 0.0
    for wy, ny in zip(WEIGHTS / 2, NODES / 2, strict=True):
        for wx, nx in zip(WEIGHTS / 2, NODES / 2, strict=True):
            x, y = dx + nx, dy + ny
            r2 = wing[6] * x * x + 2 * wing[7] * x * y + (1 + wing[7] ** 2) / wing[6] * y * y
            density = wing[0] * (1 + r2 / wing[1]) ** -wing[2] + wing[3] * (1 + r2 / wing[4]) ** -wing[5]
            total = total + wx * wy * density
    return total


@pytest.fixture(scope="module")
def psf():
    pytest.importorskip("galsim")
    state = OpticalState(fwhm_pix=2.3, bend=(0.0, 0.0, 0.0), shear=np.array([[0.05, 0, 0], [0.03, 0, 0]]))
    return draw_psf_field(OpticsConfig(), state, Patch(chip="K", x0=4000, y0=4000, columns=400, rows=300))


class TestAddSources:
    @pytest.mark.parametrize(("fx", "fy"), [(0.0, 0.0), (0.5, -0.5), (0.37, 0.11), (-0.123, 0.499)])
    def test_pixels_hold_the_integrated_profile(self, psf, fx, fy):
        half = 40
        offset = np.arange(-half, half + 1)
        stamp = psf.stamp(200, 150, half, off=(fx, fy))
        exact = integrated(psf.wings[0, 0], offset[None, :] - fx, offset[:, None] - fy)
        assert np.abs(stamp - exact).max() < 1e-3 * exact.max()
        ring = np.hypot(offset[:, None], offset[None, :])
        assert np.abs(stamp - exact)[ring > 6].max() < 2e-5 * exact.max()
        assert stamp.sum() == pytest.approx(exact.sum(), abs=1e-3)

    def test_flux_scales_and_sources_add_up(self, psf):
        image = np.zeros((300, 400), np.float32)
        places = np.array([[100.2, 210.7], [80.4, 120.1], [1000.0, 3000.0], [60, 60]])
        add_sources(image, places, psf.table, psf.grid, psf.wings)
        one, other = (np.zeros_like(image) for _ in range(2))
        add_sources(one, places[:, :1], psf.table, psf.grid, psf.wings)
        add_sources(other, places[:, 1:] * np.array([[1], [1], [2], [1]]), psf.table, psf.grid, psf.wings)
        np.testing.assert_allclose(image, one + other / 2, rtol=1e-4, atol=1e-3)

    def test_a_star_off_the_image_sheds_its_wing_on_it(self, psf):
        image = np.zeros((50, 50), np.float32)
        add_sources(image, np.array([[-20.0], [25.0], [1e6], [60]]), psf.table, psf.grid, psf.wings)
        assert image[25, 0] > 10 * image[25, 30] > 0

    def test_a_table_of_the_wrong_shape_is_refused(self, psf):
        with pytest.raises(ValueError, match="shape"):
            add_sources(np.zeros((9, 9), np.float32), np.zeros((4, 1)), psf.table[:1], psf.grid, psf.wings)


class TestBleed:
    def test_charge_is_conserved_and_runs_one_way(self):
        charge = np.full((60, 3), 5.0, np.float32)
        charge[30, 1] = 1000
        full = np.full(3, 100.0)
        for upwards in (True, False):
            spilt = charge.copy()
            bleed(spilt, full, upwards)
            assert spilt.sum() == pytest.approx(charge.sum())
            changed = np.flatnonzero(spilt[:, 1] != charge[:, 1])
            assert (changed >= 30).all() if upwards else (changed <= 30).all()
            np.testing.assert_array_equal(spilt[:, [0, 2]], charge[:, [0, 2]])


class TestTracks:
    def test_a_track_deposits_its_charge_per_length(self):
        image, mark = np.zeros((50, 50), np.float32), np.zeros((50, 50), bool)
        add_tracks(image, np.array([[10.3], [20.6], [12.0], [5.0], [400.0], [0.0]]), mark)
        assert image.sum() == pytest.approx(400 * 13, rel=1e-4)
        assert (mark == (image > 0)).all()
        assert np.flatnonzero(mark.any(axis=0)).min() >= 10


class TestResampleBilinear:
    def test_equals_scipys_linear_spline(self):
        rng = np.random.default_rng(3)
        image = rng.normal(size=(70, 80)).astype(np.float32)
        bad = np.zeros(image.shape, bool)
        y, x = np.mgrid[0:80:16, 0:96:16].astype(float)
        nodes = np.stack([3.2 + 0.97 * x + 0.01 * y, 2.7 + 0.98 * y - 0.01 * x])
        out = resample_bilinear(image, bad, nodes, 16, (50, 60))
        gy, gx = np.mgrid[:50, :60]
        places = [2.7 + 0.98 * gy - 0.01 * gx, 3.2 + 0.97 * gx + 0.01 * gy]
        np.testing.assert_allclose(out, ndimage.map_coordinates(image, places, order=1), atol=1e-5)

    def test_bad_pixels_and_the_outside_are_nan(self):
        image, bad = np.ones((40, 40), np.float32), np.zeros((40, 40), bool)
        bad[20, 20] = True
        y, x = np.mgrid[0:80:16, 0:80:16].astype(float)
        out = resample_bilinear(image, bad, np.stack([x + 0.5, y + 0.5]), 16, (45, 45))
        assert np.isnan(out[19:21, 19:21]).all()
        assert np.isnan(out[:, 39:]).all()
        assert np.isfinite(out[:19, :19]).all()
