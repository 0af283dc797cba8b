"""One candidate, one object: the likeliest pairs, whatever the place on the sphere; cells and names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ks4diff.stages.associate import ACCEPTED, FOUND, REJECTED, AssociateConfig, Spots, associate
from ks4diff.stages.coverage import limit_at, pixels_of
from ks4diff.stages.past import mean_position
from ks4diff.stages.sky_cells import (
    FINE_ORDER,
    cells_of,
    next_name,
    object_names,
    positions_of,
    separation_arcsec,
    unit_vectors,
    with_neighbours,
)
from tests.seasons import PIXEL_ARCSEC, coverage, near

CONFIG = AssociateConfig()
# RA 0, both poles, a corner of HEALPix's base faces, and a field of KS4
PLACES = [(0.0, -30.0), (359.9999, 0.0), (10.0, 89.9999), (200.0, -89.9999), (45.0, 0.0), (123.4, -41.81031)]


def spots(ra, dec, err=0.1):
    ra, dec = np.atleast_1d(ra), np.atleast_1d(dec)
    return Spots(ra=ra, dec=dec, err=np.broadcast_to(np.asarray(err, np.float64), ra.shape).copy())


def around(place, east, north, err=0.1):
    east, north = np.atleast_1d(east), np.atleast_1d(north)
    return spots(*near(np.full(east.shape, place[0]), np.full(east.shape, place[1]), east, north), err)


def pair(one, i, other, j, config):
    """Return (-2 ln density, arcsec) of two positions by the haversine, None beyond the gate or unknown."""
    a1, d1, a2, d2 = np.radians([one.ra[i], one.dec[i], other.ra[j], other.dec[j]])
    half = np.sin((d1 - d2) / 2) ** 2 + np.cos(d1) * np.cos(d2) * np.sin((a1 - a2) / 2) ** 2
    distance = np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600
    variance = one.err[i] ** 2 + other.err[j] ** 2 + config.floor_arcsec**2
    inside = distance <= config.farthest_arcsec and distance**2 <= config.gate_sigma**2 * variance
    return (distance**2 / variance + 2 * np.log(variance), distance) if inside else None


def slowly(candidates, rank, objects, config):
    """`associate` as one would do it by hand: every pair, the likeliest first."""
    n, m = len(candidates), len(objects)
    target, primary = [-1] * n, [False] * n
    costs = {(i, j): pair(candidates, i, objects, j, config) for i in range(n) for j in range(m)}
    ranked = sorted((cost[0], i, j) for (i, j), cost in costs.items() if cost)
    for _, i, j in ranked:
        stands = {target[k] for k in range(n) if primary[k]}
        if rank[i] >= FOUND and not primary[i] and j not in stands:
            target[i], primary[i] = j, True
    for _, i, j in ranked:
        if target[i] < 0 and (rank[i] < ACCEPTED or costs[i, j][1] < config.one_source_arcsec):
            target[i] = j
    free = [i for i in range(n) if target[i] < 0 and rank[i] == ACCEPTED and np.isfinite(candidates.ra[i])]
    founders = []
    for i in sorted(free, key=lambda k: (candidates.err[k], k)):
        close = [pair(candidates, i, candidates, k, config) for k in founders]
        if not any(found and found[1] < config.one_source_arcsec for found in close):
            founders.append(i)
            target[i], primary[i] = m + len(founders) - 1, True
    new = {
        (i, k): pair(candidates, i, candidates, j, config) for i in range(n) for k, j in enumerate(founders)
    }
    for _, i, k in sorted((cost[0], i, k) for (i, k), cost in new.items() if cost):
        if target[i] < 0:
            target[i] = m + k
    return target, primary, founders


class TestAssociate:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), place=st.sampled_from(PLACES))
    def test_is_what_one_would_do_by_hand(self, seed, place):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(0, 14, 2)
        objects = around(place, *rng.uniform(-4, 4, (2, m)), rng.uniform(0.02, 0.4, m))
        candidates = around(place, *rng.uniform(-4, 4, (2, n)), rng.uniform(0.02, 0.4, n))
        if n > 3:
            candidates.ra[0] = np.nan
        rank = rng.integers(0, 3, n)
        found = associate(candidates, rank, objects, CONFIG)
        target, primary, founders = slowly(candidates, rank, objects, CONFIG)
        assert found.target.tolist() == target
        assert found.primary.tolist() == primary
        assert found.founders.tolist() == founders

    @pytest.mark.parametrize("place", PLACES)
    def test_pairs_what_is_near_and_no_more(self, place):
        objects = around(place, [0.0, 5.0], [0.0, 0.0])
        candidates = around(place, [0.3, 4.8, 9.0], [0.2, 0.1, 0.0])
        found = associate(candidates, np.full(3, ACCEPTED), objects, CONFIG)
        assert found.target.tolist() == [0, 1, 2]
        assert found.primary.all()
        assert found.founders.tolist() == [2]

    def test_of_two_the_likelier_stands_for_the_object(self):
        objects = around(PLACES[0], 0.0, 0.0)
        candidates = around(PLACES[0], [0.5, 0.1], [0.0, 0.0])
        found = associate(candidates, np.full(2, ACCEPTED), objects, CONFIG)
        assert found.target.tolist() == [0, 0]
        assert found.primary.tolist() == [False, True]

    def test_what_is_flagged_is_known_but_neither_founds_nor_stands(self):
        objects = around(PLACES[0], 0.0, 0.0)
        candidates = around(PLACES[0], [0.1, 9.0], [0.0, 0.0])
        found = associate(candidates, np.array([REJECTED, REJECTED]), objects, CONFIG)
        assert found.target.tolist() == [0, -1]
        assert not found.primary.any()
        assert len(found.founders) == 0

    def test_what_is_too_weak_for_an_alert_stands_but_does_not_found(self):
        objects = around(PLACES[0], 0.0, 0.0)
        candidates = around(PLACES[0], [0.1, 9.0], [0.0, 0.0])
        found = associate(candidates, np.array([FOUND, FOUND]), objects, CONFIG)
        assert found.target.tolist() == [0, -1]
        assert found.primary.tolist() == [True, False]

    def test_a_large_error_wins_no_source_from_a_near_object(self):
        # chi² alone would choose the second: 0.5/0.64 sigma against 0.4/0.23
        objects = around(PLACES[0], [0.0, 0.9], [0.0, 0.0], np.array([0.05, 0.6]))
        found = associate(around(PLACES[0], 0.4, 0.0), np.array([ACCEPTED]), objects, CONFIG)
        assert found.target.tolist() == [0]

    def test_an_object_spoken_for_takes_no_other(self):
        objects, candidates = around(PLACES[0], 0.0, 0.0), around(PLACES[0], 1.2, 0.0, 0.3)
        alone = associate(candidates, np.array([ACCEPTED]), objects, CONFIG)
        second = associate(candidates, np.array([ACCEPTED]), objects, CONFIG, spoken_for=np.array([True]))
        assert (alone.target.tolist(), second.target.tolist()) == ([0], [1])

    @pytest.mark.parametrize(
        "changes", [{"floor_arcsec": -1.0}, {"gate_sigma": 0.0}, {"farthest_arcsec": 3.0}]
    )
    def test_gates_out_of_range_are_refused(self, changes):
        with pytest.raises(ValueError, match="must"):
            AssociateConfig(**changes)


class TestCells:
    @pytest.mark.parametrize("place", PLACES)
    def test_the_ring_around_a_cell_holds_the_widest_gate(self, place):
        rng = np.random.default_rng(1)
        start = near(np.full(300, place[0]), np.full(300, place[1]), *rng.uniform(-3e4, 3e4, (2, 300)))
        angle = rng.uniform(0, 2 * np.pi, 300)
        reach = 2.0  # the largest that AssociateConfig allows
        end = near(*start, reach * np.sin(angle), reach * np.cos(angle))
        for k in range(300):
            ring = with_neighbours(cells_of(start[0][k : k + 1], start[1][k : k + 1]))
            assert cells_of(end[0][k : k + 1], end[1][k : k + 1])[0] in ring

    def test_unknown_positions_have_no_cell(self):
        cells = cells_of(np.array([np.nan, 1.0]), np.array([0.0, np.inf]))
        assert cells.tolist() == [-1, -1]
        assert with_neighbours(cells) == []
        assert with_neighbours(cells_of(np.array([1.0]), np.array([2.0]), FINE_ORDER)) != []

    @pytest.mark.parametrize("place", PLACES)
    def test_offsets_and_angles_agree(self, place):
        ra, dec = near(np.array([place[0]]), np.array([place[1]]), np.array([0.3]), np.array([-0.4]))
        apart = separation_arcsec(unit_vectors(*place), unit_vectors(ra, dec))
        assert apart == pytest.approx(0.5, abs=1e-6)
        back = positions_of(unit_vectors(ra, dec))
        assert np.allclose(np.stack(back), np.stack([ra % 360, dec]), atol=1e-9)

    def test_names_tell_the_year_and_the_cell(self):
        ra, dec = np.array([123.4, 123.4, 359.99]), np.array([-41.8, -41.8 + 2 / 3600, 88.0])
        names = object_names(ra, dec, 61368.2)
        assert all(len(name) == 15 and name.startswith("KS4-26") for name in names)
        assert set(names[0][6:]) <= set("abcdefghijklmnopqrstuvwxyz")
        assert len(set(names)) == 3
        assert object_names(ra[:1], dec[:1], 60000.0)[0] == "KS4-23" + names[0][6:]

    def test_the_next_name_is_another(self):
        assert next_name("KS4-26aaaaaaaaz") == "KS4-26aaaaaaaba"
        assert next_name("KS4-26zzzzzzzzz") == "KS4-26aaaaaaaaa"


@pytest.mark.parametrize("place", PLACES)
def test_the_mean_is_weighted_by_the_errors_on_the_sphere(place):
    ra, dec = near(np.full(2, place[0]), np.full(2, place[1]), np.array([-0.3, 0.6]), np.array([0.0, 0.0]))
    rows = [
        {"ra": a, "dec": d, "err_arcsec": e} for a, d, e in zip(ra, dec, (0.1, 0.1 * 2**0.5), strict=True)
    ]
    at_ra, at_dec, err = mean_position(rows)
    assert separation_arcsec(unit_vectors(at_ra, at_dec), unit_vectors(*place)) == pytest.approx(0, abs=1e-5)
    assert 0 <= at_ra < 360
    assert err == pytest.approx(0.1 / 1.5**0.5)


class TestCoverage:
    @pytest.mark.parametrize("place", PLACES)
    def test_a_chip_covers_its_pixels_and_no_others(self, place):
        chip = coverage(*place, shape=(2000, 2304))
        half = np.array([2304, 2000]) * PIXEL_ARCSEC / 2
        inside = np.array([[0, 0], [0.99, 0.99], [-0.99, 0.5], [0.3, -0.99]]) * half
        outside = np.array([[1.01, 0], [0, -1.01], [30, 2], [-400, 300]]) * half
        for offsets, covered in ((inside, True), (outside, False)):
            at = near(np.full(4, place[0]), np.full(4, place[1]), *offsets.T)
            found, limit = limit_at(chip, *at)
            assert (found == covered).all()
            assert np.isfinite(limit).all() == covered
        assert set(cells_of(*at_corners(place, half), 7)) <= set(chip.cells)

    def test_its_pixels_are_those_of_the_wcs(self):
        chip = coverage(10.0, -80.0, shape=(2000, 2304))
        ra, dec = near(np.array([10.0]), np.array([-80.0]), np.array([-100.0]), np.array([60.0]))
        x, y = pixels_of(chip, ra, dec)
        assert x[0] == pytest.approx(2304 / 2 - 0.5 + 100 / PIXEL_ARCSEC, abs=0.02)
        assert y[0] == pytest.approx(2000 / 2 - 0.5 + 60 / PIXEL_ARCSEC, abs=0.02)


def at_corners(place, half):
    east, north = half[0] * np.array([-1, 1, 1, -1]), half[1] * np.array([-1, -1, 1, 1])
    return near(np.full(4, place[0]), np.full(4, place[1]), east, north)
