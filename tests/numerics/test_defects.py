"""Flags stripwise are those that scipy's labels and dilations give the whole image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics.defects import clear_above, flag_pixels, grow_seeds, highest, mark_above

STRIPS = [((0, 61),), ((0, 7), (7, 8), (8, 40), (40, 61))]


@pytest.mark.parametrize("strips", STRIPS)
@pytest.mark.parametrize("density", [0.02, 0.35, 0.8])
def test_zero_blocks_against_labels(strips, density):
    rng = np.random.default_rng(6)
    data = rng.normal(size=(61, 47)).astype(np.float32)
    data[rng.random(data.shape) < density] = 0
    data[30:33, 10:13] = 0
    data[5, 5], data[6, 6], data[7, 7] = np.nan, np.inf, -2e15
    flags = np.full(data.shape, 64, dtype=np.uint16)
    for rows in strips:
        flag_pixels(data, flags, rows, block=9, absurd=1e15, bits=(1, 2))
    label, _ = ndimage.label(data == 0)
    block = np.bincount(label.ravel()) >= 9
    block[0] = False
    np.testing.assert_array_equal((flags & 1) != 0, block[label])
    np.testing.assert_array_equal(np.argwhere(flags & 2), [[5, 5], [6, 6], [7, 7]])
    assert (flags & 64).all()


@pytest.mark.parametrize("strips", STRIPS)
def test_what_is_above_against_dilation(strips):
    data = np.random.default_rng(7).normal(size=(61, 47)).astype(np.float32)
    data[20, 20] = np.nan
    flags, mask = np.zeros(data.shape, dtype=np.uint16), np.ones(data.shape, dtype=bool)
    limit = np.array([[2.2, 1.9], [2.5, 2.0]])
    for rows in strips:
        mark_above(data, 2.3, rows, 2, flags, 4)
        clear_above(data, limit, rows, 1, mask)
    above = ndimage.binary_dilation(data >= 2.3, iterations=2)
    np.testing.assert_array_equal(flags, 4 * above)
    cell = limit[np.arange(61)[:, None] * 2 // 61, np.arange(47)[None, :] * 2 // 47]
    np.testing.assert_array_equal(~mask, ndimage.binary_dilation(np.abs(data) >= cell))


def test_seeds_grow_as_in_propagation():
    rng = np.random.default_rng(8)
    for density in (0.1, 0.5, 0.9):
        above = rng.random((61, 47)) < density
        seeds = above & (rng.random(above.shape) < 0.02)
        levels = above.astype(np.uint8) + seeds
        grow_seeds(levels)
        np.testing.assert_array_equal(levels == 3, ndimage.binary_propagation(seeds, mask=above))


def test_the_highest_believable_value():
    data = np.random.default_rng(9).integers(0, 50, (61, 47)).astype(np.float32)
    data[3, 4:7], data[50, 2], data[0, 0] = 60, np.inf, np.nan
    assert highest(data, (0, 61), 1e15) == (60.0, 3, 61 * 47 - 2)
    assert highest(data, (50, 50), 1e15) == (-np.inf, 0, 0)
