"""A stamp fitted through Lanczos shifts, and one off its centre, come back as what was sampled."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.psf_grid import centred, freed_of_shifts
from ks4diff.numerics.taps import STEPS, SUPPORT, tap_table
from tests import skies


def shift_matrix(n, at):
    """Return [n, n + 16]: Lanczos weights that sample a line at whole pixels plus ``at`` in 0 .. 1."""
    taps = tap_table()[round(at * STEPS)]
    out = np.zeros((n, n + 16))
    for r in range(n):
        out[r, r + 8 - SUPPORT + 1 : r + 8 + SUPPORT + 1] = taps
    return out[:, 8:-8]


def fitted(seeing, n):
    """Return the stamp whose Lanczos-shifted copies fit stars of all phases best, by plain least squares.

    Separable: a Gaussian PSF is a product of lines, and so is its fit.
    """
    phases = (np.arange(32) + 0.5) / 32
    lines = []
    for axis in (0, 1):
        gram, right = np.zeros((n, n)), np.zeros(n)
        for p in phases:
            star = seeing.stamp(n, *((-p, 0.0) if axis else (0.0, -p))).sum(axis=1 - axis if axis else 1)
            m = shift_matrix(n, p)
            gram += m.T @ m
            right += m.T @ star
        lines.append(np.linalg.solve(gram, right))
    return np.outer(*lines)


@pytest.mark.parametrize(("fwhm", "before"), [(2.6, 1.5e-3), (3.0, 1.5e-3), (3.6, 1e-3)])
def test_what_shifts_did_is_undone(fwhm, before):
    n = 31
    seeing = skies.Seeing(fwhm=fwhm)
    truth = seeing.stamp(n)
    stamp = fitted(seeing, n)
    peak = truth.max()
    wrong = np.abs(stamp - truth).max() / peak
    right = np.abs(freed_of_shifts(stamp, fwhm) - truth).max() / peak
    assert wrong > before
    assert right < 0.35 * wrong


def test_it_keeps_light_centre_and_input():
    stamp = skies.Seeing(fwhm=3.1, beta=3.0, ratio=0.8, angle_deg=30).stamp(41)
    before = stamp.copy()
    out = freed_of_shifts(stamp, 3.1)
    np.testing.assert_array_equal(stamp, before)
    assert out.sum() == pytest.approx(stamp.sum(), abs=2e-5)
    np.testing.assert_allclose(out, freed_of_shifts(stamp[::-1, ::-1], 3.1)[::-1, ::-1], atol=1e-12)
    both = freed_of_shifts(np.stack([stamp, 2 * stamp]), 3.1)
    np.testing.assert_allclose(both[1], 2 * out, atol=1e-12)


def test_a_stamp_off_its_centre_is_moved_back():
    seeing = skies.Seeing(fwhm=3.4, beta=3.5, ratio=0.9, angle_deg=20)
    truth = seeing.stamp(41)
    off = seeing.stamp(41, 0.03, -0.02)
    mode = np.gradient(truth)[0] * 0.1 + truth
    moved = centred(np.stack([off, mode]), 3.4)
    assert np.abs(off - truth).max() > 0.01 * truth.max()
    np.testing.assert_allclose(moved[0], truth, atol=0.0015 * truth.max())
    # the others go with the first
    again = centred(np.stack([truth, mode]), 3.4)
    np.testing.assert_allclose(again[1], mode, atol=1e-4 * truth.max())
