"""One small simulated chip with everything measured, against the simulator's truth: issues 4 and 5.

``python -m benchmarks.chips`` measures sixty chips the same way; the limits are its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import fft
from scipy.stats import poisson

from benchmarks import chips, chips_measure
from benchmarks.chips_changes import noise_floor
from benchmarks.chips_sky import chip_config, sky_for
from benchmarks.chips_truth import signal_to_noise
from ks4diff.numerics.peaks import find_peaks, refine_peaks
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.products.psf import Psf
from tests.skies import Seeing
from tests.strategies import moffat

SIZE = (1024, 896)  # the least at which a cell has 30 telling stars at this density


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Return a drawn chip of 1024x896, 90,000 sources per square degree, without cosmic rays."""
    pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")
    config = chip_config(0)
    crowd = replace(config.sky, density_deg2=90_000.0, star_fraction=0.7)
    config = replace(config, seed=4, size=SIZE, sky=crowd)
    return sky_for(config, tmp_path_factory.mktemp("chips"))


@pytest.fixture(scope="module")
def figures(sky):
    """Return the figures of that chip."""
    return chips_measure.measured(sky, PipelineConfig())


@pytest.fixture(scope="module")
def cell(figures):
    """Return its only 1k cell, which has stars enough for the absolute limits."""
    (cell,) = figures["cells"]
    assert cell["n_telling"] >= chips.TELLING_STARS
    return cell


class TestAChipWithEverythingMeasured:
    def test_is_registered(self, figures, cell):
        assert figures["status"] == "ok", figures["reason"]
        assert figures["common_stars"] >= chips.LEAST_COMMON
        assert cell["register"] <= chips.REGISTER_PIX

    @pytest.mark.parametrize("image", ["psf", "template_psf"])
    def test_has_true_psfs(self, cell, image):
        assert cell[image]["core"] <= chips.CORE
        assert cell[image]["wings"] <= chips.WINGS

    def test_has_the_true_scale(self, cell):
        assert abs(cell["scale"]) <= chips.SCALE

    def test_has_a_unit_normal_score(self, figures):
        assert figures["std"] == pytest.approx(1, abs=chips.STD_TOLERANCE)
        assert figures["std_sky"] == pytest.approx(1, abs=chips.STD_TOLERANCE)
        assert figures["masked"] <= chips.MASKED

    def test_leaves_nothing_of_static_stars(self, figures):
        assert figures["static_stars"] > 300
        # one of 1,000 over sixty chips; one of some 500 here
        assert figures["static_bad"] <= 1

    def test_finds_what_changed(self, figures):
        assert sum(every for _, every in figures["completeness"].values()) >= 5
        found, every = figures["completeness"]["8"]
        assert found >= every - 1

    def test_finds_nothing_else(self, figures):
        allowed = (figures["floor_mpix"] + chips.BOGUS_CLEAN) * figures["mpix"]
        # one in twenty chips of just as many as are allowed has more than this by chance
        assert figures["bogus"] <= poisson.ppf(0.95, allowed)


class TestTheHarness:
    """Errors that are put in come out."""

    def test_tells_a_psf_too_wide(self):
        truth = Seeing(fwhm=3.4, beta=3.5).stamp(41)
        wide = Seeing(fwhm=3.5, beta=3.5).stamp(33)
        row = chips_measure.psf_row(wide / wide.sum(), truth)
        assert row["peak_error"] == pytest.approx((3.4 / 3.5) ** 2 - 1, abs=0.006)
        assert row["core"] >= abs(row["peak_error"])
        assert chips_measure.psf_row(truth[2:-2, 2:-2] / truth[2:-2, 2:-2].sum(), truth)["core"] < 1e-12

    def test_tells_a_pedestal_in_the_wings(self):
        truth = Seeing(fwhm=3.4, beta=3.5).stamp(33)
        truth /= truth.sum()
        offset = np.hypot(*np.mgrid[-16:17, -16:17])
        lifted = truth + 0.003 * truth.max() * (offset > chips_measure.UNFADED * 16)
        row = chips_measure.psf_row(lifted, truth)
        assert row["wings"] == pytest.approx(0.003, rel=1e-6)
        assert 0 < row["wings_mean"] < 0.003

    def test_weighs_a_star_as_counting_does(self):
        psf = Seeing(fwhm=3.0, beta=3.0).stamp(61)
        # far above the sky only the star's own electrons count
        assert signal_to_noise(np.array([1e7]), psf, 1.0)[0] == pytest.approx(np.sqrt(1e7), rel=0.05)
        faint = 100 * np.sqrt((psf**2).sum() / 400.0)
        assert signal_to_noise(np.array([100.0]), psf, 400.0)[0] == pytest.approx(faint, rel=0.05)

    def test_counts_the_peaks_of_noise(self):
        """17,000 peaks of 3 sigma, which tell their number to 0.8 %, and 1,300 of 4."""
        stamp = moffat(31, 4.0)
        rng = np.random.default_rng(8)
        transform = np.conj(np.fft.rfft2(stamp, (2048, 2048))).astype(np.complex64)
        levels, found, n = np.array([3.0, 4.0]), np.zeros(2), 6
        for _ in range(n):
            white = fft.rfft2(rng.standard_normal((2048, 2048), dtype=np.float32))
            score = fft.irfft2(white * transform) / np.float32(np.sqrt((stamp**2).sum()))
            position = find_peaks(score, np.ones(score.shape, dtype=bool), 0.9 * levels[0], 4)
            _, top = refine_peaks(score, position)
            found += (np.abs(top)[:, None] > levels).sum(axis=0)
        psf = Psf(stamp=stamp, fwhm_pix=4.0, n_stars=0)
        expected = [n * 2048**2 / 1e6 * noise_floor(psf, threshold=level) for level in levels]
        assert found[0] == pytest.approx(expected[0], rel=0.02)
        assert found[1] == pytest.approx(expected[1], abs=3 * np.sqrt(expected[1]))
