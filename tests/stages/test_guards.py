"""Guards see what was done wrong, and nothing where all is right."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.products.chip import StarList
from ks4diff.stages.guards import limiting_flux_map, scale_left, star_residuals
from ks4diff.stages.motion import motion
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig
from tests.known_pairs import Plan, Side
from tests.strategies import gaussian

SHAPE = (400, 450)
PSFS = [gaussian(31, f) / gaussian(31, f).sum() for f in (4.0, 3.2)]
X, Y = (grid.ravel() for grid in np.meshgrid(np.arange(40, 420, 40), np.arange(40, 370, 40)))
FLUX = 10 ** np.random.default_rng(1).uniform(4, 5.3, len(X))


def star_list():
    none = np.zeros(len(X))
    return StarList(x=X.astype(float), y=Y.astype(float), flux=FLUX, fwhm=none, clean=none == 0)


def difference(*, scale=1.0, shift=0.0, seed=1):
    """Return the difference of static stars, the science's ``scale`` times as bright and moved in x."""
    moved = gaussian(31, 4.0, dx=shift)
    images = []
    for psf, factor in ((moved / moved.sum(), scale), (PSFS[1], 1.0)):
        images.append(np.zeros(SHAPE))
        for x, y, flux in zip(X, Y, FLUX, strict=True):
            images[-1][y - 15 : y + 16, x - 15 : x + 16] += factor * flux * psf
    plan = Plan(science=Side(psf=PSFS[0]), template=Side(psf=PSFS[1]))
    known = plan.exposed(SHAPE, np.random.default_rng(seed), light=images)
    return subtract(known.chip, known.template, known.match, known.registration, SubtractConfig())


def test_a_right_scale_leaves_nothing_within_its_error():
    pulls = [(left := scale_left(difference(seed=s), star_list())).fraction / left.error for s in range(8)]
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=0.75)
    left = scale_left(difference(), star_list())
    assert left.n_stars > 60
    assert left.chi2 == pytest.approx(1, abs=0.5)
    assert left.error < 0.002


@pytest.mark.parametrize("wrong", [-0.03, 0.02])
def test_a_wrong_scale_is_found(wrong):
    left = scale_left(difference(scale=1 + wrong), star_list())
    assert left.fraction == pytest.approx(wrong, abs=5 * left.error + 0.002)


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
    assert np.median(limits.values) == pytest.approx(5 * np.median(one.flux_err), rel=0.02)
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
