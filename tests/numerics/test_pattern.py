"""Star patterns are matched across an unknown map, and chance is never taken for a match."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ks4diff.numerics import pattern
from ks4diff.numerics.neighbours import mutual_matches
from ks4diff.products.cells import Cells
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.register import RegisterConfig, register, template_position
from tests.skies import Seeing
from tests.strategies import field, seeds

WIDTH, HEIGHT = 1100, 900
LIMITS = pattern.Limits(scale=0.02, rotation=float(np.radians(2.0)), shift=400.0)


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
    """Return what `register` reads of a calibrated chip, one of empty pixels."""
    x, y = points.T
    return SimpleNamespace(
        stars=SimpleNamespace(x=x, y=y, flux=np.linspace(2000, 1000, len(x))),
        image=MaskedImage(
            data=np.zeros(shape, dtype=np.float32),
            flags=np.zeros(shape, dtype=np.uint16),
            sky_variance=Cells.constant(100.0, shape),
        ),
        raw=SimpleNamespace(wcs=None),
        psf=PsfField.uniform(Psf(stamp=Seeing(fwhm=3.0).stamp(15), fwhm_pix=3.0, n_stars=9), shape),
        noise=SimpleNamespace(sigma=10.0),
        gain=1.0,
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
        i, _ = mutual_matches(moved, template, 2.5)
        inside = ((moved > 0) & (moved < [WIDTH, HEIGHT])).all(axis=1).sum()
        assert pattern.log_chance(len(i), inside, len(template), WIDTH * HEIGHT, 2.5) < -100

    def test_the_best_vote_is_the_true_map(self):
        rng = np.random.default_rng(3)
        science = field(rng, 40, WIDTH, HEIGHT)
        for angle, scale in ((-1.5, 1.015), (1.5, 0.985), (0.0, 1.0)):
            a, b = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
            truth = np.array([[a, b, 140.0, -160.0]])
            template = pattern.apply_similarity(truth, science)[0]
            best = pattern.propose(science, template, LIMITS, 6.0)[:1]
            off = pattern.apply_similarity(best, science) - pattern.apply_similarity(truth, science)
            # half a box of votes, and half a step of scale and rotation at the corners
            assert np.hypot(*off[0].T).max() < 2 * 6.0

    def test_a_shift_beyond_the_limit_is_not_found(self):
        science = field(np.random.default_rng(4), 40, WIDTH, HEIGHT)
        limits = pattern.Limits(scale=0.02, rotation=0.02, shift=50.0)
        found = pattern.propose(science, science + np.array([140.0, 0.0]), limits, 6.0)
        landed = pattern.apply_similarity(found, science.mean(axis=0)[None])[:, 0] - science.mean(axis=0)
        assert np.abs(landed).max() < 70.0


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


class TestVotes:
    @settings(deadline=None, derandomize=True, max_examples=25)
    @given(seeds, st.floats(-40, 40), st.floats(-40, 40))
    def test_a_shift_of_the_template_shifts_the_answer(self, seed, dx, dy):
        """By whole bins: the votes are the same ones."""
        rng = np.random.default_rng(seed)
        science, template = field(rng, 30, 900, 700), field(rng, 30, 900, 700)
        template[:20] = science[:20]
        step = np.round(np.array([dx, dy]) / 5.0) * 5.0
        limits = pattern.Limits(scale=0.0, rotation=0.0, shift=200.0)
        one = pattern.propose(science, template, limits, 5.0)[0]
        other = pattern.propose(science, template + step, limits, 5.0)[0]
        np.testing.assert_allclose(other - one, [0, 0, *step], atol=1e-6)

    def test_votes_are_those_of_a_slow_count(self):
        rng = np.random.default_rng(8)
        science, template = field(rng, 15, 300, 200) - 150, field(rng, 25, 300, 200) - 150
        template[:8] = science[:8] + np.array([21.0, -13.0])
        votes, shift = pattern._vote(science, template, np.array([[1.0, 0.0]]), 25, 8.0)
        bins = np.floor((template[None] - science[:, None] + 100.0) / 8.0).astype(int).reshape(-1, 2)
        boxes = {
            (i, j): sum((b >= (i, j)).all() and (b <= (i + 1, j + 1)).all() and (b < 25).all() for b in bins)
            for i in range(25)
            for j in range(25)
        }
        best = max(boxes, key=boxes.get)
        assert votes[0, 0] == boxes[best] >= 8
        assert np.abs(shift[0, 0] - [21.0, -13.0]).max() <= 8.0

    @pytest.mark.parametrize("n", [0, 1])
    def test_too_few_stars_have_none(self, n):
        points = field(np.random.default_rng(1), n, 100, 100)
        assert pattern.propose(points, points, LIMITS, 5.0).shape == (0, 4)

    def test_coincident_stars_do_no_harm(self):
        points = np.repeat([[50.0, 60.0], [300.0, 80.0]], 12, axis=0)
        assert np.isfinite(pattern.propose(points, points, LIMITS, 5.0)).all()

    def test_spread_takes_the_brightest_of_every_part_first(self):
        rng = np.random.default_rng(5)
        cluster = 10 + rng.uniform(0, 5, (100, 2))
        others = field(rng, 60, 400, 400)
        chosen = pattern.spread(np.concatenate([cluster, others]), 32)
        assert len(set(chosen.tolist())) == 32
        assert (chosen < 100).sum() <= 3
        assert sorted(pattern.spread(others, 60).tolist()) == list(range(60))
        assert pattern.spread(others[:0], 5).shape == (0,)
