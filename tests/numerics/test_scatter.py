"""The scatter beyond noise comes back, whatever a third of the values does."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.scatter import excess_scatter


@pytest.mark.parametrize("put", [0.0, 0.5, 3.0])
def test_what_was_put_in_comes_back(put):
    rng = np.random.default_rng(3)
    noise = rng.uniform(0.5, 2.0, 20_000)
    residual = np.hypot(noise, put) * rng.standard_normal(20_000)
    assert excess_scatter(residual, noise) == pytest.approx(put, abs=0.12)
    pull = residual / np.hypot(noise, excess_scatter(residual, noise))
    assert np.median(pull**2) == pytest.approx(0.455, abs=0.02)


def test_outliers_do_not_set_it():
    rng = np.random.default_rng(4)
    noise = np.full(3000, 1.0)
    residual = np.hypot(1.0, 2.0) * rng.standard_normal(3000)
    residual[::10] *= 1000
    assert excess_scatter(residual, noise) == pytest.approx(2.0, rel=0.25)
