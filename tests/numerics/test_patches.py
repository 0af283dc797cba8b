"""Patches cover an image once and for all."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics import patches


@pytest.mark.parametrize("size", [60, 383, 700, 1501, 9216, 9232])
@pytest.mark.parametrize(("margin", "overlap"), [(8, 0), (21, 32), (45, 33)])
def test_weights_sum_to_one_and_all_fits_the_grid(size, margin, overlap):
    found, length = patches.spans(size, margin, overlap)
    total = np.zeros(size)
    for span in found:
        assert 0 <= span.start < span.stop <= size
        assert span.stop - span.start + 2 * margin <= length
        assert span.middle == pytest.approx((span.start + span.stop - 1) / 2)
        weight = patches.weights(span)
        assert (weight > 0).all()
        total[span.start : span.stop] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert length <= patches.LARGEST
    # of a full chip no more than half is read twice
    assert len(found) * length <= 1.25 * size + 2 * margin + overlap + 400 * (size < 2000)


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (-1, -1), (0, -1)])
def test_windows_put_the_patch_at_its_margin(place):
    image = np.arange(700 * 1501).reshape(700, 1501)
    (down, high), (along, wide) = (patches.spans(n, 21, 32) for n in image.shape)
    rows, columns = down[min(place[0], len(down) - 1)], along[place[1]]
    y, x, to_y, to_x = patches.window(image, rows, columns, 21)
    grid = np.full((high, wide), -1)
    grid[to_y, to_x] = image[y, x]
    inner = grid[21 : 21 + rows.stop - rows.start, 21 : 21 + columns.stop - columns.start]
    np.testing.assert_array_equal(inner, image[rows.start : rows.stop, columns.start : columns.stop])
