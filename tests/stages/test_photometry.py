"""Zero points, magnitudes, depth and forced fluxes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.image import PixelFlag
from ks4diff.stages.forced import forced_flux
from ks4diff.stages.photometry import NJY_ZEROPOINT, limiting_flux, magnitude, njy_per_count, star_scale
from ks4diff.stages.register import template_position
from tests import skies


class TestPhotometry:
    def test_the_area_of_pixels_does_not_enter_zero_points(self):
        """Scale and area change alike over a chip, stars' counts do not: the middle tells them wrong."""
        x, y = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9))
        area = Cells(values=1 - 0.035 * (x**2 + y**2), shape=(9216, 9216))
        scale = Cells(values=2.5 * area.values, shape=area.shape)
        assert star_scale(scale, area) == pytest.approx(2.5, rel=1e-6)
        middle = np.median(scale.values) / area.at(np.array([4607.5]), np.array([4607.5]))[0]
        assert 2.5 * np.log10(middle / 2.5) < -0.02

    def test_nanojansky(self):
        assert njy_per_count(NJY_ZEROPOINT) == pytest.approx(1)
        assert njy_per_count(23.9) == pytest.approx(1000)  # 23.9 AB is a microjansky

    def test_magnitudes(self):
        assert magnitude(100.0, 25.0) == pytest.approx(20)
        assert magnitude(100.0, None) is None
        assert magnitude(-1.0, 25.0) is None
        assert magnitude(float("nan"), 25.0) is None

    def test_the_limit_is_five_median_errors(self, changed):
        difference = changed.subtracted.difference
        good = difference.flags == 0
        assert limiting_flux(difference) == pytest.approx(5 * np.median(difference.flux_err[good]))
        assert np.isnan(
            limiting_flux(replace(difference, flags=difference.flags | np.uint16(PixelFlag.EDGE)))
        )

    def test_forced_fluxes_where_there_is_no_data(self, hurt):
        at = hurt.pair.geometry.template(np.array([26.0, 160.0, -30.0]), np.array([300.0, 210.0, 50.0]))
        assert np.isnan(forced_flux(hurt.subtracted, *at[:, 0])).all()
        assert np.isfinite(forced_flux(hurt.subtracted, *at[:, 1])).all()
        assert np.isnan(forced_flux(hurt.subtracted, *at[:, 2])).all()

    def test_forced_fluxes_are_read_between_pixels(self, changed):
        difference = changed.subtracted.difference
        y, x = np.mgrid[: difference.flux.shape[0], : difference.flux.shape[1]]
        peak = 1000 * np.exp(-((x - 200.5) ** 2 + (y - 150.5) ** 2) / (2 * 1.9**2))
        flat = np.ones_like(difference.flux_err)
        made = replace(difference, flux_err=flat, score_corr=peak.astype(np.float32))
        made = replace(made, flags=np.zeros_like(difference.flags))
        subtracted = replace(changed.subtracted, difference=made)
        at = template_position(subtracted.registration, np.array([200.5]), np.array([150.5]))[:, 0]
        assert forced_flux(subtracted, *at)[0] == pytest.approx(1000, rel=0.01)

    def test_forced_fluxes_of_empty_places_are_noise(self, changed):
        everything = changed.pair.stars + changed.pair.new + changed.pair.gone
        bright = skies.Stars(**{n: getattr(everything, n)[everything.flux > 900] for n in ("x", "y", "flux")})
        shape = changed.subtracted.difference.flux.shape
        x, y = skies.apart(77, shape, 40, bright, distance=9)
        at = changed.pair.geometry.template(x, y)
        flux, error = np.array([forced_flux(changed.subtracted, *p) for p in at.T]).T
        pull = flux / error
        assert abs(pull.mean()) < 3 / np.sqrt(40)
        assert pull.std() == pytest.approx(1, abs=3 / np.sqrt(80))
