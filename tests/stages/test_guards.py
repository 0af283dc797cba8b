"""Guards see what was done wrong, and nothing where all is right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.chip import StarList
from ks4diff.stages.guards import limiting_flux_map, scale_left, star_residuals
from ks4diff.stages.motion import motion
from tests.known_pairs import Plan, Side, run
from tests.strategies import gaussian

SHAPE = (400, 450)
PSFS = [gaussian(31, f) / gaussian(31, f).sum() for f in (4.0, 3.2)]
X, Y = (grid.ravel() for grid in np.meshgrid(np.arange(40, 420, 40), np.arange(40, 370, 40)))
FLUX = 10 ** np.random.default_rng(1).uniform(4, 5.3, len(X))


def star_list():
    none = np.zeros(len(X))
    return StarList(x=X.astype(float), y=Y.astype(float), flux=FLUX, fwhm=none, clean=none == 0)


def difference(*, scale=1.0, shift=0.0, seed=1):
    """Return the difference of static stars, the science's ``scale`` times as bright and moved in x.

    Without any noise where ``seed`` is None.
    """
    moved = gaussian(31, 4.0, dx=shift)
    images = []
    for psf, factor in ((moved / moved.sum(), scale), (PSFS[1], 1.0)):
        images.append(np.zeros(SHAPE))
        for x, y, flux in zip(X, Y, FLUX, strict=True):
            images[-1][y - 15 : y + 16, x - 15 : x + 16] += factor * flux * psf
    plan = Plan(science=Side(psf=PSFS[0]), template=Side(psf=PSFS[1]))
    return run(
        plan.known(*images)
        if seed is None
        else plan.exposed(SHAPE, np.random.default_rng(seed), light=images)
    )


def test_a_right_scale_leaves_nothing_within_its_error():
    left = scale_left(difference(), star_list())
    assert abs(left.fraction) < 4 * left.error
    assert left.n_stars > 60
    assert left.chi2 == pytest.approx(1, abs=0.5)
    assert left.error < 0.002


def test_its_error_is_that_of_a_score_of_unit_noise():
    """Law 13: 4,000 draws of the scores at the stars tell the spread to 1.1 %; stars are 40 px apart."""
    quiet, rng, stars = difference(seed=None), np.random.default_rng(2), star_list()
    pulls = []
    for _ in range(4000):
        score = np.zeros(SHAPE, dtype=np.float32)
        score[Y, X] = rng.standard_normal(len(X))
        left = scale_left(replace(quiet, score_corr=score), stars)
        pulls.append(left.fraction / left.error)
    assert np.std(pulls) == pytest.approx(1, abs=0.035)
    assert abs(np.mean(pulls)) < 0.05


@pytest.mark.parametrize("wrong", [-0.03, 0.003, 0.02])
def test_a_wrong_scale_is_found(wrong):
    """Law 13: to 0.1 % of it without noise, within four errors with it."""
    assert scale_left(difference(scale=1 + wrong, seed=None), star_list()).fraction == pytest.approx(
        wrong, rel=1e-3
    )
    left = scale_left(difference(scale=1 + wrong), star_list())
    assert left.fraction == pytest.approx(wrong, abs=4 * left.error)


def test_stars_that_cancel_leave_noise_and_moved_ones_dipoles():
    still, moved = (star_residuals(difference(shift=s), star_list()) for s in (0.0, 0.3))
    assert still.rms == pytest.approx(1, abs=0.1)
    assert still.dipoles == 0
    assert moved.rms > 5
    assert moved.dipoles > 0.7
    empty = star_list()
    none = StarList(**{n: getattr(empty, n)[:0] for n in ("x", "y", "flux", "fwhm", "clean")})
    assert np.isnan(star_residuals(difference(), none).rms)
    assert np.isnan(scale_left(difference(), none).fraction)


def test_the_limiting_flux_is_five_errors():
    one = difference()
    limits = limiting_flux_map(one, cell_pix=100)
    assert limits.values.shape == (4, 4)
    # law 6: 5 / sqrt(F_S), F_S of D and its PSF; sources stand on few pixels
    least = 5 * one.noise / np.sqrt((one.psf.stamp.astype(np.float64) ** 2).sum())
    assert np.median(limits.values) == pytest.approx(least, rel=2e-3)
    one.flags[:] = 1
    assert np.isnan(limiting_flux_map(one).values).all()


def test_motion_of_a_part_is_that_of_the_whole():
    one = difference(shift=0.3)
    whole = motion(one, slice(None), slice(None))
    part = motion(one, slice(100, 160), slice(0, 50))
    assert part.shape == (60, 50)
    np.testing.assert_allclose(part[:, 1:], whole[100:160, 1:50], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="slopes"):
        motion(one.__class__(**{**one.__dict__, "slopes": None}), slice(None), slice(None))


def test_a_star_that_varies_does_not_speak_for_all():
    plain = difference()
    score = plain.score_corr.copy()
    score[Y[7], X[7]] = 200.0
    around = star_residuals(replace(plain, score_corr=score), star_list())
    assert around.rms > 2
    # the twentieth that noise alone makes highest is left out too
    assert around.usual_rms == pytest.approx(0.92, abs=0.1)
