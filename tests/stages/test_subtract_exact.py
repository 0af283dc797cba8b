"""What the whole stage makes of noise, without drawing any: from its responses to single pixels.

D and S are linear in faint pixels, so a unit pixel of either image, the template's moved by half a pixel as
its noise was, tells the covariance of D and of S_corr to rounding: no draw blurs these laws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy import fft

from ks4diff.numerics import patches
from ks4diff.stages.subtract_patch import SubtractConfig
from tests.known_pairs import Plan, Side, half_moved, run
from tests.strategies import gaussian, moffat

SHAPES = [(400, 400), (421, 421), (333, 612)]  # even, odd, oblong; of each four patches and more
HOW = ("white", "lanczos", "bilinear", "spline")
# FWHM in px of science and template: either the sharper, and the best seeing there is on a KS4-like template
SEEING = {"sharper": (4.0, 3.2), "broader": (3.0, 4.0), "best": (2.1, 3.4)}
LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
SCALE = 0.8


class Response(NamedTuple):
    """Covariances of D over its noise and of S_corr by lag, lag 0 first, and one of the differences."""

    d: np.ndarray
    score: np.ndarray
    done: object


def seam(shape, fwhm):
    """Return the pixel (y, x) amid the strips that four patches share."""
    margin = int(np.ceil(SubtractConfig().margin_fwhm * fwhm))
    first = [patches.spans(size, margin, SubtractConfig().overlap_pix)[0][0] for size in shape]
    return tuple(span.stop - span.ramp_out // 2 for span in first)


def responses(how, shape, seeing):
    """Return the covariances at a corner of four patches: of the responses there, scaled as the noise is."""
    stamps = [moffat(2 * int(4.5 * fwhm) + 1, fwhm) for fwhm in seeing]
    if seeing == SEEING["sharper"]:
        stamps[0] = gaussian(len(stamps[0]), seeing[0], axis_ratio=0.8, angle=0.5)
        stamps[0] /= stamps[0].sum()
    sides = Side(psf=stamps[0]), Side(psf=stamps[1], sky=500.0)
    y, x = seam(shape, max(seeing))
    pixel, big = np.zeros(shape), np.zeros((shape[0] + 40, shape[1] + 40))
    pixel[y, x] = big[y + 12, x + 10] = 1
    moved, covariance = half_moved(how, big, shape)
    left = covariance[len(covariance) // 2, len(covariance) // 2]
    plan = Plan(
        science=sides[0],
        template=sides[1],
        scale=SCALE,
        correlations=(np.ones((1, 1)), covariance / left),
        variances=(1.0, left),
    )
    grid = [fft.next_fast_len(size, real=True) for size in shape]
    d, score = 0.0, 0.0
    for images, side in zip(((pixel, 0 * pixel), (0 * pixel, moved)), sides, strict=True):
        done = run(plan.known(*images))
        of_one = side.variance(shape)[0, 0]
        d += of_one * np.abs(fft.rfft2(done.difference.astype(np.float64) / done.noise, grid)) ** 2
        score += of_one * np.abs(fft.rfft2(done.score_corr.astype(np.float64), grid)) ** 2
    return Response(fft.irfft2(d, grid), fft.irfft2(score, grid), done)


@pytest.fixture(scope="module", params=[(how, seeing) for how in HOW for seeing in SEEING], ids="-".join)
def made(request):
    """Return (how, seeing, [Response of each shape])."""
    how, seeing = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "SMALLEST", 150)
        patch.setattr(patches, "LARGEST", 260)
        return how, seeing, [responses(how, shape, SEEING[seeing]) for shape in SHAPES]


def test_d_is_white_with_unit_variance(made):
    """Law 1: the std within 0.5 %, 1.5 % of the best seeing; lags below 0.01 and 0.02; each k within 1 %.

    Where the template is the broader one, D is all template at high k, and where half a pixel's weights left
    no noise at all it stays below its due: see `noise.LEAST_POWER`.
    """
    how, seeing, found = made
    best = seeing == "best"
    for one in found:
        assert np.sqrt(one.d[0, 0]) == pytest.approx(1, abs=0.015 if best else 0.005)
        for lag in LAGS:
            assert abs(one.d[lag]) < (0.02 if best else 0.01), lag
        if how == "white" or seeing == "sharper":
            power = fft.rfft2(one.d).real
            np.testing.assert_allclose(power, 1, atol=0.01 if how != "white" else 1e-3)


def test_s_corr_has_unit_variance(made):
    """Laws 5 and 7, to 0.2 %: V of sky is the variance of S, and F_S that of D and P_D."""
    for one in made[2]:
        assert one.score[0, 0] == pytest.approx(1, abs=0.002)
        stamp = one.done.psf.stamp.astype(np.float64)
        error = np.median(one.done.flux_err)
        assert (stamp**2).sum() * (error / one.done.noise) ** 2 == pytest.approx(1, abs=0.002)
        assert stamp.sum() == pytest.approx(1, abs=0.002)  # law 3


def test_s_corr_is_correlated_as_p_d_with_itself(made):
    """Law 16: a normal field of the same covariance has as many peaks at any level, sampling and all."""
    for one in made[2]:
        stamp = one.done.psf.stamp.astype(np.float64)
        power = np.abs(fft.rfft2(stamp, one.score.shape)) ** 2
        same = fft.irfft2(power, one.score.shape) / (stamp**2).sum()
        near = np.arange(-8, 9)
        near = np.ix_(near, near)
        np.testing.assert_allclose(one.score[near], same[near], atol=0.003)


def test_motion_has_the_noise_that_it_is_divided_by(made):
    """Law 17, to 0.5 %: Z² of noise has the mean 2, by the covariance of S_corr's central differences."""
    for one in made[2]:
        c, found = one.score, one.done.slopes.values.reshape(3, -1)
        x2, y2, both = (c[0, 0] - c[0, 2]) / 2, (c[0, 0] - c[2, 0]) / 2, (c[1, -1] - c[1, 1]) / 2
        xx, yy, xy = found.astype(np.float64)
        mean = (yy * x2 - 2 * xy * both + xx * y2) / (xx * yy - xy**2)
        np.testing.assert_allclose(mean, 2, rtol=0.005)
        np.testing.assert_allclose(found, np.array([x2, y2, both])[:, None] * np.ones(found.shape), atol=1e-3)
