"""Borders are found where values step, nowhere else, and by the chi² that a plain fit gives."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics import psf_borders
from ks4diff.numerics.polynomial import design as terms
from ks4diff.numerics.psf_borders import Borders, find_borders, no_borders

SHAPE = (1800, 2300)


def stars(seed, k=250):
    """Return (places [2, k], values [1, k] of errors alone, errors [1, k])."""
    rng = np.random.default_rng(seed)
    place = np.stack([rng.uniform(0, SHAPE[1], k), rng.uniform(0, SHAPE[0], k)])
    error = rng.uniform(0.01, 0.04, (1, k))
    return place, rng.normal(0, error), error


def smooth(place):
    u, v = place[0] / SHAPE[1] - 0.5, place[1] / SHAPE[0] - 0.5
    return 0.1 * u - 0.05 * v + 0.08 * u * v


class TestFindBorders:
    def test_smooth_changes_have_none(self):
        for seed in range(20):
            place, value, error = stars(seed)
            assert len(find_borders(place, value + smooth(place), error, SHAPE)) == 0

    def test_galaxies_make_none(self):
        # of 100 images with one galaxy in ten one has a false border, with one in five three
        for seed in range(20):
            place, value, error = stars(seed)
            rng = np.random.default_rng(500 + seed)
            value = value + (rng.random(value.shape) < 0.1) * rng.exponential(0.3, value.shape)
            assert len(find_borders(place, value, error, SHAPE)) == 0

    @pytest.mark.parametrize("upright", [True, False])
    def test_a_step_is_found_where_it_is(self, upright):
        for seed in range(5):
            place, value, error = stars(seed)
            across, along = place if upright else place[::-1]
            middle = (SHAPE[0] if upright else SHAPE[1]) / 2
            true = 700 + 60 * seed + 0.007 * (along - middle)
            found = find_borders(place, value + smooth(place) + 0.1 * (across > true), error, SHAPE)
            assert found.upright.tolist() == [upright]
            at = found.at[0] + found.slope[0] * (along - middle)
            # a star every 9 px
            assert np.abs(at - true).max() < 45

    def test_small_steps_are_found_where_they_are_likely(self):
        counts = {"likely": 0, "unknown": 0, "false": 0}
        for seed in range(20):
            place, value, error = stars(seed)
            likely = no_borders(SHAPE).and_line(True, 1210.0)
            step = value + smooth(place) + 0.022 * (place[0] > 1190)
            counts["likely"] += len(find_borders(place, step, error, SHAPE, likely=likely))
            counts["unknown"] += len(find_borders(place, step, error, SHAPE))
            counts["false"] += len(find_borders(place, value + smooth(place), error, SHAPE, likely=likely))
        assert counts["likely"] >= 12
        assert counts["unknown"] <= 0.5 * counts["likely"]
        assert counts["false"] <= 1

    def test_a_narrow_strip_and_a_crossing_line(self):
        place, value, error = stars(3, 500)
        x, y = place
        value = value - 0.15 * (x > 1200) + 0.2 * (x > 1420) + 0.12 * (y > 640)
        found = find_borders(place, value, error, SHAPE)
        assert sorted(found.upright.tolist()) == [False, True, True]
        np.testing.assert_allclose(np.sort(found.at[found.upright]), [1200, 1420], atol=30)
        np.testing.assert_allclose(found.at[~found.upright], [640], atol=30)
        assert len(np.unique(found.region(x, y))) == 6

    def test_the_scale_of_values_and_an_unmoved_input_do_not_matter(self):
        place, value, error = stars(4)
        value += 0.1 * (place[0] > 900)
        before = [a.copy() for a in (place, value, error)]
        one = find_borders(place, value, error, SHAPE)
        two = find_borders(place, 50 * value, 50 * error, SHAPE)
        for a, b in zip(before, (place, value, error), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.at, two.at)

    def test_few_stars_have_none(self):
        place, value, error = stars(5, psf_borders.FEWEST - 1)
        assert len(find_borders(place, value + (place[0] > 900), error, SHAPE)) == 0

    def test_gains_are_those_of_plain_fits(self):
        place, value, error = stars(6, 120)
        value += 0.02 * (place[0] > 900)
        design = terms(*(place / (np.array(SHAPE[::-1])[:, None] / 2) - 1), 2)
        lines = Borders(
            upright=np.array([True, False, True]),
            at=np.array([900.0, 700.0, 1500.0]),
            slope=np.array([0.0, 0.01, -0.01]),
            shape=SHAPE,
        )
        sides = lines.beyond(*place)
        drawn = psf_borders._Sides.of(lines.upright, lines.at, lines.slope, place, SHAPE)
        np.testing.assert_array_equal(drawn.sums(np.eye(120)), sides)
        gains = psf_borders._gains(design, np.zeros((0, 120), dtype=bool), value, error, drawn)

        def chi2(columns):
            scaled = columns / error[0][:, None]
            fit = np.linalg.lstsq(scaled, value[0] / error[0], rcond=None)[0]
            return (((value[0] - columns @ fit) / error[0]) ** 2).sum()

        rest = value[0] / error[0]
        rest = (
            rest
            - design / error[0][:, None] @ np.linalg.lstsq(design / error[0][:, None], rest, rcond=None)[0]
        )
        # chi² is in units of the scatter, which is not let below the errors; a few values are clipped
        unit = max(1.4826 * np.median(np.abs(rest)), 1.0) ** 2
        plain = [chi2(design) - chi2(np.concatenate([design, side[:, None]], axis=1)) for side in sides]
        np.testing.assert_allclose(gains, np.array(plain) / unit, rtol=0.12, atol=0.3)


def test_few_stars_show_more_steps_where_a_border_is_known():
    shape, k = (2048, 2048), 60
    place = np.random.default_rng(5).uniform(0, 2048, (2, k))
    likely, error = no_borders(shape).and_line(True, 1000.0), np.full((1, k), 0.02)

    def found(seed, step, known):
        value = np.random.default_rng(seed).normal(0, 0.02, k) + step * (place[0] > 1010)
        return len(find_borders(place, value[None], error, shape, likely=likely, known=known)) > 0

    seeds = range(12)
    assert (
        sum(found(s, 0.04, known=True) for s in seeds) >= sum(found(s, 0.04, known=False) for s in seeds) + 3
    )
    # a thousandth of them, and some more by their scatter being measured
    assert sum(found(s, 0.0, known=True) for s in range(40)) <= 1
