"""Star patterns are matched across an unknown map, and chance is never taken for a match."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ks4diff.numerics import pattern
from ks4diff.products.errors import SkipChip
from ks4diff.stages.register import RegisterConfig, register, template_position
from tests.strategies import field, seeds

WIDTH, HEIGHT = 1100, 900
LIMITS = {"max_scale": 0.02, "max_rotation": np.radians(2.0)}


def sky_pair(rng):
    """Return (science [n, 2], template [m, 2], true map [4]) of one sky, 15 % of stars lost in each.

    Brightest first, with brightnesses that scatter by 0.3 mag and positions by 0.1 px.
    """
    n = int(rng.integers(120, 600))
    sky = rng.uniform(-300, 1400, (n, 2))
    flux = rng.pareto(1.0, n) + 1
    scale, angle = 1 + rng.uniform(-0.02, 0.02), np.radians(rng.uniform(-2, 2))
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    shift = rng.uniform(-300, 300, 2)
    middle = np.array([500.0, 500.0])
    start = middle + shift - [a * 500 - b * 500, b * 500 + a * 500]
    truth = np.array([a, b, *start])

    def seen(points):
        keep = (rng.random(n) > 0.15) & (points > 0).all(axis=1) & (points < [WIDTH, HEIGHT]).all(axis=1)
        extra = field(rng, n // 12, WIDTH, HEIGHT)
        shown = np.concatenate([points[keep] + rng.normal(0, 0.1, (keep.sum(), 2)), extra])
        light = np.concatenate([flux[keep], rng.pareto(1.0, len(extra)) + 1])
        return shown[np.argsort(-light * np.exp(rng.normal(0, 0.3, len(shown))))]

    return seen(sky), seen(pattern.apply_similarity(truth[None], sky)[0]), truth


def chip(points, shape=(HEIGHT, WIDTH)):
    """Return what `register` reads of a calibrated chip."""
    x, y = points.T
    return SimpleNamespace(
        stars=SimpleNamespace(x=x, y=y), image=SimpleNamespace(shape=shape), raw=SimpleNamespace(wcs=None)
    )


class TestRecovery:
    @pytest.mark.parametrize("seed", range(40))
    def test_a_similarity_is_among_the_proposals_and_registers(self, seed):
        science, template, truth = sky_pair(np.random.default_rng(seed))
        found = register(chip(science), chip(template), RegisterConfig())
        grid = np.stack(np.meshgrid(np.linspace(0, WIDTH, 7), np.linspace(0, HEIGHT, 6)), axis=-1).reshape(
            -1, 2
        )
        expected = pattern.apply_similarity(truth[None], grid)[0]
        overlap = ((expected > 0) & (expected < [WIDTH, HEIGHT])).all(axis=1)
        got = template_position(found, *grid[overlap].T).T
        assert np.median(np.hypot(*(got - expected[overlap]).T)) < 0.2
        assert found.method == "pattern"
        assert found.rms_pix == pytest.approx(0.1 * np.sqrt(2), rel=0.35)

    def test_odds_of_a_true_match_are_far_beyond_the_limit(self):
        science, template, truth = sky_pair(np.random.default_rng(100))
        moved = pattern.apply_similarity(truth[None], science)[0]
        i, _ = pattern.mutual_matches(moved, template, 2.5)
        inside = ((moved > 0) & (moved < [WIDTH, HEIGHT])).all(axis=1).sum()
        assert pattern.log_chance(len(i), inside, len(template), WIDTH * HEIGHT, 2.5) < -100

    def test_across_the_turn_of_the_angle(self):
        """Sides that point along -x have angles near +-180 degrees, which a rotation carries across."""
        rng = np.random.default_rng(3)
        x = np.linspace(50, 1000, 24)
        science = np.stack([x, 300 + rng.normal(0, 6.0, 24)], axis=1)
        for angle in (-1.5, 1.5):
            a, b = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            truth = np.array([[a, b, 40.0, -60.0]])
            template = pattern.apply_similarity(truth, science)[0]
            best = pattern.propose(science, template, **LIMITS)[0]
            np.testing.assert_allclose(best, truth[0], atol=1e-6)


class TestChance:
    def test_unrelated_lists_never_register(self):
        """100 pairs of fields that have nothing in common, as dense and as many as the real ones."""
        for seed in range(100):
            rng = np.random.default_rng(10_000 + seed)
            n, m = rng.integers(20, 300, 2)
            one, other = (chip(field(rng, k, 640, 512), (512, 640)) for k in (n, m))
            with pytest.raises(SkipChip, match="do not show the same stars"):
                register(one, other, RegisterConfig())

    def test_log_chance_is_the_tail_of_a_poisson(self):
        """Two of 10 stars matched where e = 0.1 is expected: 1 - exp(-e) (1 + e)."""
        area = np.pi * 2.0**2 * 100 * 100
        expected = 10 * -np.expm1(-0.01)
        assert pattern.log_chance(2, 10, 100, area, 2.0) == pytest.approx(
            np.log(1 - np.exp(-expected) * (1 + expected)), rel=1e-9
        )
        assert pattern.log_chance(0, 10, 100, area, 2.0) == 0.0
        assert pattern.log_chance(5, 0, 100, area, 2.0) == 0.0

    def test_more_matches_are_less_likely_chance(self):
        chances = [pattern.log_chance(k, 50, 80, 1e6, 2.5) for k in range(1, 50)]
        assert (np.diff(chances) < 0).all()


class TestTriangles:
    @settings(deadline=None, derandomize=True, max_examples=25)
    @given(seeds, st.floats(0.8, 1.25), st.floats(-0.5, 0.5))
    def test_a_similarity_adds_to_size_and_angle_and_keeps_the_shape(self, seed, scale, angle):
        points = field(np.random.default_rng(seed), 30, 900, 700)
        a, b = scale * np.cos(angle), scale * np.sin(angle)
        moved = pattern.apply_similarity(np.array([[a, b, 70.0, -30.0]]), points)[0]
        one, feature = pattern.triangles(*points.T)
        other, turned = pattern.triangles(*moved.T)
        both = {tuple(row): k for k, row in enumerate(other)}
        shared = [(k, both[tuple(row)]) for k, row in enumerate(one) if tuple(row) in both]
        assert len(shared) > 0.9 * len(one)
        i, j = np.array(shared).T
        np.testing.assert_allclose(turned[j, 0] - feature[i, 0], np.log(scale), atol=1e-9)
        change = turned[j, 1] - feature[i, 1] - angle
        np.testing.assert_allclose((change + np.pi) % (2 * np.pi) - np.pi, 0, atol=1e-9)
        np.testing.assert_allclose(turned[j, 2:], feature[i, 2:], atol=1e-9)

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_too_few_stars_have_none(self, n):
        points = field(np.random.default_rng(1), n, 100, 100)
        index, feature = pattern.triangles(*points.T)
        assert index.shape == (0, 3)
        assert feature.shape == (0, 4)
        assert pattern.propose(points, points, **LIMITS).shape == (0, 4)

    def test_coincident_stars_do_no_harm(self):
        points = np.repeat([[50.0, 60.0], [300.0, 80.0]], 12, axis=0)
        _, feature = pattern.triangles(*points.T)
        assert np.isfinite(feature).all()
        assert np.isfinite(pattern.propose(points, points, **LIMITS)).all()


class TestMutual:
    def test_each_is_the_others_nearest(self):
        a = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [50.0, 50.0]])
        b = np.array([[10.5, 0.0], [0.9, 0.0], [80.0, 80.0]])
        i, j = pattern.mutual_matches(a, b, 2.0)
        assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(1, 1), (2, 0)]

    def test_empty_lists_match_nothing(self):
        i, j = pattern.mutual_matches(np.empty((0, 2)), np.ones((3, 2)), 2.0)
        assert len(i) == len(j) == 0
