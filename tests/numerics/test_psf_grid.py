"""Stamps on wrapped grids, and back, against numpy's rolling and padding."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.psf_grid import embed, extract, widened


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("shape", [(7, 8), (12, 9)])
def test_a_stamp_lies_around_the_origin_and_comes_back(n, shape):
    stamp = np.random.default_rng(n).normal(size=(n, n))
    low = [(size - n) // 2 for size in shape]
    padded = np.zeros(shape)
    padded[low[0] : low[0] + n, low[1] : low[1] + n] = stamp
    rolled = np.roll(padded, [-(at + n // 2) for at in low], axis=(0, 1))
    np.testing.assert_array_equal(embed(stamp, shape), rolled)
    np.testing.assert_array_equal(extract(embed(stamp, shape), n), stamp)


@pytest.mark.parametrize(("m", "n"), [(1, 5), (4, 10), (3, 3)])
def test_a_widened_stamp_keeps_its_middle(m, n):
    stamp = np.random.default_rng(m).normal(size=(m, m)).astype(np.float32)
    out = widened(stamp, n)
    assert out.dtype == stamp.dtype
    np.testing.assert_array_equal(out, np.pad(stamp, (n - m) // 2))
