"""A PSF moved by any fraction of a pixel, and by some pixels, is the PSF drawn there."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.moved_psf import moved_psfs
from tests.skies import Seeing

N = 41


@pytest.mark.parametrize("fwhm", [2.5, 4.5])
@pytest.mark.parametrize(("dx", "dy"), [(0.0, 0.0), (0.4, -0.3), (-0.5, 0.5), (3.3, -6.8), (-7.6, 2.1)])
def test_it_is_the_psf_drawn_there(fwhm, dx, dy):
    seeing = Seeing(fwhm=fwhm)
    found = moved_psfs(seeing.stamp(N), np.array([dx]), np.array([dy]), N)[0]
    wanted = seeing.stamp(N, dx, dy)
    assert np.abs(found - wanted).max() < 4e-3 * wanted.max()


def test_many_are_each_as_alone():
    psf = Seeing(fwhm=3.0, beta=3.0).stamp(N)
    dx, dy = np.array([0.2, -4.3, 0.0]), np.array([-0.1, 5.5, 0.0])
    together = moved_psfs(psf, dx, dy, 31)
    for k in range(3):
        np.testing.assert_array_equal(together[k], moved_psfs(psf, dx[k : k + 1], dy[k : k + 1], 31)[0])
    np.testing.assert_allclose(together[2], psf[5:36, 5:36], atol=1e-7)
