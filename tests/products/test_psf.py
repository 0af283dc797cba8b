"""A PSF that changes over an image is the sum of a basis, wherever it is asked for."""

from __future__ import annotations

import numpy as np

from ks4diff.products.cells import Cells
from ks4diff.products.psf import PsfField

SHAPE = (90, 120)


def field(modes):
    """Return a PSF of random modes of sum 0 with random amplitudes."""
    rng = np.random.default_rng(4)
    mean = rng.random((7, 7)).astype(np.float32)
    change = rng.normal(size=(modes, 7, 7)).astype(np.float32)
    return PsfField(
        mean=mean / mean.sum(),
        modes=change - change.mean(axis=(1, 2), keepdims=True),
        amplitudes=Cells(values=rng.normal(0, 0.1, (modes, 3, 4)), shape=SHAPE),
        error=Cells.constant(0.01, SHAPE),
        fwhm=Cells.constant(3.0, SHAPE),
        n_stars=50,
    )


def test_shares_of_the_basis_add_up_to_the_stamps():
    x, y = np.array([0.0, 37.2, 119.0]), np.array([3.0, 80.5, 0.0])
    for modes in (0, 3):
        psf = field(modes)
        shares = psf.shares(x, y)
        assert shares.shape == (3, 1 + modes)
        summed = np.tensordot(shares, psf.basis(), 1)
        np.testing.assert_allclose(summed, psf.stamps(x, y), atol=1e-6)
        np.testing.assert_allclose(summed.sum(axis=(1, 2)), 1, atol=1e-5)
        np.testing.assert_array_equal(psf.stamps(x, y)[1], psf.at(37.2, 80.5))
