"""Holes: how deep, how filled, what they cost."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics import holes
from tests import oracles
from tests.strategies import SHAPES, gaussian


def spotted(shape, seed=1):
    """Return bool [y, x] of blobs, single pixels, a column and a corner."""
    rng = np.random.default_rng(seed)
    bad = rng.random(shape) < 0.01
    bad[20:33, 30:52] = True
    bad[:, 70] = True
    bad[:4, :5] = True
    return bad


def depths(bad):
    return holes.depths(bad.shape, holes.listed(bad))


@pytest.mark.parametrize("shape", SHAPES)
def test_depth_is_the_chessboard_distance_to_a_good_pixel(shape):
    bad = spotted(shape)
    expected = ndimage.distance_transform_cdt(bad, metric="chessboard")
    np.testing.assert_array_equal(holes.listed(bad), np.flatnonzero(bad))
    np.testing.assert_array_equal(depths(bad), np.minimum(expected, holes.DEEPEST + 1))
    wide = np.ones(shape, dtype=np.uint16)
    wide[0, 0] = 0
    assert depths(wide).max() == holes.DEEPEST + 1


class TestFill:
    def test_only_holes_change_and_what_they_held_does_not_matter(self):
        shape = (97, 131)
        bad, rng = spotted(shape), np.random.default_rng(2)
        image = rng.normal(0, 1, shape).astype(np.float32)
        one, other = image.copy(), np.where(bad, np.float32(np.nan), image)
        holes.fill((one, other), depths(bad), holes.listed(bad))
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one[~bad], image[~bad])
        assert np.isfinite(one).all()

    def test_a_plane_is_nearly_kept_in_narrow_holes_and_faded_in_wide_ones(self):
        shape = (111, 111)
        bad = np.zeros(shape, dtype=bool)
        bad[50, 30] = bad[60:62, 70] = True
        bad[10:50, 60:105] = True
        plane = (100 + 0.1 * np.arange(shape[1])[None, :] * np.ones(shape)).astype(np.float32)
        done = plane.copy()
        holes.fill((done,), depths(bad), holes.listed(bad))
        assert done[50, 30] == pytest.approx(plane[50, 30], rel=0.05)
        assert done[60, 70] == pytest.approx(plane[60, 70], rel=0.1)
        assert abs(done[30, 82]) < 0.02 * plane[30, 82]
        inside = done[10:50, 60:105]
        assert (inside <= plane[10:50, 60:105] * 1.01).all()
        assert (inside >= -0.01 * 110).all()


class TestLosses:
    SHARE = np.stack(
        [gaussian(13, 3.0) / gaussian(13, 3.0).sum(), gaussian(13, 2.4) / gaussian(13, 2.4).sum()]
    )

    @pytest.mark.parametrize("shape", SHAPES)
    def test_against_a_convolution(self, shape):
        flags = spotted(shape).astype(np.uint16) * 4
        bad = holes.listed(flags)
        depth = holes.depths(shape, bad)
        parts = np.random.default_rng(2).uniform(-1, 1, (2, len(bad))).astype(np.float32)
        lost, bits = holes.losses(flags, depth, bad, parts, self.SHARE.astype(np.float32))
        for out, part, stamp in zip(lost, parts, self.SHARE, strict=True):
            plane = np.zeros(shape)
            plane.ravel()[bad] = np.where(depth.ravel()[bad] <= 6, part, 0)
            np.testing.assert_allclose(out, oracles.convolve(plane, stamp), atol=1e-5)
        assert set(np.unique(bits)) == {0, 4}
        assert (bits[flags != 0] == 4).all()

    def test_beyond_the_image_everything_is_lost(self):
        flags = np.zeros((60, 70), dtype=np.uint16)
        flags[:, :20] = holes.OUTSIDE
        lost, _ = holes.losses(
            flags,
            depths(flags),
            holes.listed(flags),
            np.ones((2, 60 * 20), np.float32),
            self.SHARE.astype(np.float32),
        )
        # half of a score's own row lies outside, but for half of its own pixel
        assert lost[0, 30, 20] == pytest.approx(0.5 * (1 - self.SHARE[0][:, 6].sum()), abs=1e-4)
        assert lost[0, 30, 30] == 0

    def test_stamps_that_reach_deeper_than_holes_are_known_are_refused(self):
        flags = np.zeros((60, 70), dtype=np.uint16)
        with pytest.raises(ValueError, match="deeper"):
            holes.losses(
                flags,
                depths(flags),
                holes.listed(flags),
                np.zeros((2, 0), np.float32),
                np.zeros((2, 41, 41), np.float32),
            )

    @pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 40), (12, 9), (38, 36)])
    def test_the_noise_that_a_fill_adds_against_its_own_weights(self, size):
        """1 - 2 F 1 - F F' 1, F by filling images of one good pixel each; and nothing from silent pixels."""
        shape = (44, 45)
        flags = np.zeros(shape, dtype=np.uint16)
        flags[3 : 3 + size[0], 4 : 4 + size[1]] = 4
        bad, depth = holes.listed(flags), depths(flags)
        rim = np.flatnonzero(ndimage.binary_dilation(flags, np.ones((3, 3))) & (flags == 0))
        weights = np.zeros((len(bad), len(rim)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(holes, "SWEEPS", 0)
            for k, at in enumerate(rim):
                image = np.zeros(shape, dtype=np.float32)
                image.ravel()[at] = 1
                holes.fill((image,), depth, bad)
                weights[:, k] = image.ravel()[bad]
        for silent in (rim[:0], rim[::2]):
            heard = ~np.isin(rim, silent)
            twin = 1 - 2 * weights.sum(axis=1) - weights[:, heard] @ weights[:, heard].sum(axis=0)
            np.testing.assert_allclose(holes.noise_taken(depth, bad, silent), twin, atol=1e-5)

    def test_errors_of_fills_add_up(self):
        shape = (60, 71)
        rng = np.random.default_rng(3)
        flags = (rng.random(shape) < 0.02).astype(np.uint16) * 8
        bad = holes.listed(flags)
        amplitude = rng.uniform(1, 2, len(bad)).astype(np.float32)
        plane = np.zeros(shape)
        plane[flags != 0] = amplitude
        stamp = gaussian(15, 3.0).astype(np.float32)
        bits = np.zeros(shape, dtype=np.uint16)
        errors = holes.fill_errors(flags, bad, amplitude, stamp, 1e-9, bits)
        np.testing.assert_allclose(errors, oracles.convolve(plane, stamp), atol=1e-5)
        assert (bits[flags != 0] == 8).all()
        none = holes.fill_errors(flags, bad, amplitude, stamp, 10.0, bits)
        assert not none.any()
