"""Registration of made KMTNet star lists against their true geometry, and of unrelated ones: the small
version of benchmarks/bench_register.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from benchmarks.bench_register import made, unrelated
from benchmarks.register_pairs import FIELD, Case, make, score, solution_of
from ks4diff.io.fits_wcs import celestial_wcs
from ks4diff.io.tile_tables import read_distortions
from ks4diff.products.cells import Cells
from ks4diff.products.errors import SkipChip
from ks4diff.stages.astrometry import chip_wcs, first_wcs, nominal_wcs
from ks4diff.stages.register import RegisterConfig, register, template_position
from ks4diff.stages.sim.geometry import FULL_SIZE, Patch, Pointing, tpv_cards


def test_made_chips_register_and_the_rest_is_refused_by_name():
    registered, refused, cells = made(30)
    assert len(registered) >= 28
    assert all(pair.n_common < 18 for _, pair in refused)
    rms, stated, bright, _ = np.concatenate(cells, axis=1)
    rich = bright >= 30
    assert rich.sum() > 50
    assert rms[rich].max() < 0.04
    assert np.median(rms[rich]) < 0.02
    assert (rms[~rich] < 3 * stated[~rich]).all()
    # and the stated errors are no excuse: they follow what the errors are
    assert 0.2 < np.median((rms / stated)[~rich]) < 1.2


def test_unrelated_lists_are_not_matched():
    assert unrelated(20) == []


@pytest.mark.parametrize("start", ["own", "none"])
def test_a_whole_chip_registers_from_its_corners_on(start):
    pair = make(Case(seed=31, chip="T", site="SSO", size=0, density=6000, start=start))
    found = register(pair.science, pair.template, RegisterConfig())
    assert found.n_matched > 0.9 * pair.n_common
    assert score(found, pair).rms.max() < 0.06


def test_few_common_stars_are_refused_with_their_number():
    pair = make(Case(seed=3, density=2000))
    # nine true pairs among stars that the other list does not have
    found = register(pair.science, pair.template, RegisterConfig())
    i = found.pairs[0][:9]
    rest = np.setdiff1d(np.arange(len(pair.science.stars)), found.pairs[0])
    few = replace(pair.science, stars=_rows(pair.science.stars, np.sort(np.concatenate([i, rest]))))
    with pytest.raises(SkipChip, match=r"too few stars in common|do not show the same stars") as refusal:
        register(few, pair.template, RegisterConfig())
    assert refusal.value.numbers["n_matched"] < 15


def _rows(stars, rows):
    return replace(
        stars, **{name: getattr(stars, name)[rows] for name in ("x", "y", "flux", "fwhm", "clean")}
    )


def test_variables_and_wrong_stars_do_not_move_the_map():
    pair = make(Case(seed=5, density=20_000))
    clean = register(pair.science, pair.template, RegisterConfig())
    rng = np.random.default_rng(1)
    stars = pair.template.stars
    hit = rng.random(len(stars)) < 0.1
    moved = replace(
        stars,
        x=stars.x + hit * rng.uniform(0.3, 2.0, len(stars)),
        flux=stars.flux * np.where(hit, rng.uniform(0.2, 5, len(stars)), 1.0),
    )
    dirty = register(pair.science, replace(pair.template, stars=moved), RegisterConfig())
    x, y = np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 2047, 9))
    off = template_position(dirty, x, y) - template_position(clean, x, y)
    assert np.abs(off).max() < 0.015


def test_a_local_shift_is_followed_where_many_stars_agree():
    pair = make(Case(seed=6, size=4096, density=40_000))
    plain = register(pair.science, pair.template, RegisterConfig())
    assert plain.correction is None
    stars = pair.science.stars
    # a border in the template's stack: a part of 1000 px is 0.06 px off
    inside = (abs(stars.x - 1536) < 512) & (abs(stars.y - 2560) < 512)
    bent = replace(pair.science, stars=replace(stars, x=stars.x + 0.06 * inside))
    found = register(bent, pair.template, RegisterConfig())
    assert found.correction is not None
    at = (np.array([1536.0, 3500.0]), np.array([2560.0, 700.0]))
    shift = template_position(found, *at) - template_position(plain, *at)
    scale = pair.wcs[0].wcs.cd[0, 0] / pair.wcs[1].wcs.cd[0, 0]
    assert shift[0, 0] == pytest.approx(-0.06 * scale, abs=0.015)
    assert abs(shift[0, 1]) < 0.01


def missed_by_wcs(pair, found, per_axis):
    """Return by how much a chip's WCS misses its registration at most, template pixels."""
    wcs = chip_wcs(pair.science.image.shape, found, pair.wcs[1])
    assert list(wcs.wcs.ctype) == ["RA---TAN-SIP", "DEC--TAN-SIP"]
    x, y = (
        axis.ravel() for axis in np.meshgrid(np.linspace(0, 9215, per_axis), np.linspace(0, 9231, per_axis))
    )
    landed = template_position(found, x, y)
    through = pair.wcs[1].all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
    return np.hypot(*(np.stack(through) - landed)).max()


def test_the_chips_wcs_is_the_registration_to_its_corners():
    pair = make(Case(seed=8, chip="M", site="SSO", size=0, density=3000))
    found = register(pair.science, pair.template, RegisterConfig())
    assert found.correction is None
    assert missed_by_wcs(pair, found, 12) < 0.005
    # a local correction is finer than the WCS can be
    one, opposite = np.zeros((2, 9, 9)), np.zeros((2, 9, 9))
    one[0, 4, 4] = 0.05
    opposite[0, 4, 4:6] = 0.05, -0.05
    for values, limit in ((one, 0.045), (opposite, 0.105)):
        correction = Cells(values=values, shape=pair.science.image.shape)
        assert missed_by_wcs(pair, replace(found, correction=correction), 70) < limit


class TestFirstWcs:
    def test_the_known_distortion_is_right_but_for_pointing_and_angle(self):
        case = Case(seed=9, corner=True, pointing_arcsec=0.0, rotation_deg=0.0, start="none")
        pair = make(case)
        wcs = first_wcs(pair.science.raw, read_distortions(), "ahead")
        assert wcs.wcs.name == "ahead"
        x, y = np.array([0.0, 2047.0, 1000.0]), np.array([5.0, 2000.0, 1000.0])
        back = pair.wcs[0].all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
        # the simulator's CRPIX is exact, that of a header whole pixels
        assert np.hypot(back[0] - x, back[1] - y).max() < 0.01

    def test_where_it_came_from_is_said(self):
        pair = make(Case(seed=9, density=20_000, start="none"))
        raw = pair.science.raw
        science = replace(pair.science, raw=replace(raw, wcs=first_wcs(raw, read_distortions(), "ahead")))
        assert register(science, pair.template, RegisterConfig()).method == "ahead"

    def test_solved_and_foreign_wcs_stay(self):
        pair = make(Case(seed=9, size=0, density=500))
        raw = replace(pair.science.raw, wcs=pair.wcs[0])
        assert first_wcs(raw, read_distortions()) is pair.wcs[0]
        other = replace(make(Case(seed=9, start="none", density=500)).science.raw, exposure=None)
        assert first_wcs(other, read_distortions()) is other.wcs

    @pytest.mark.parametrize("site", ["CTIO", "SSO"])
    @pytest.mark.parametrize("chip", ["K", "M", "N", "T"])
    def test_a_solved_header_of_any_chip_stays(self, site, chip):
        """In TPV the scale of SSO's K and M is by chance that of raw headers."""
        case = Case(seed=9, chip=chip, site=site, size=0, density=500)
        at = Pointing(claimed=FIELD, true=FIELD, rotation_deg=0.0)
        patch = Patch(chip=chip, x0=0, y0=0, columns=FULL_SIZE[0], rows=FULL_SIZE[1])
        header = fits.Header(tpv_cards(solution_of(site, chip), at, patch))
        wcs = celestial_wcs(header, FULL_SIZE[::-1])
        raw = replace(make(case).science.raw, wcs=wcs)
        assert first_wcs(raw, read_distortions()) is wcs

    def test_a_raw_header_is_replaced(self):
        raw = make(Case(seed=9, size=0, density=500, start="none")).science.raw
        assert list(first_wcs(raw, read_distortions()).wcs.crpix) != list(raw.wcs.wcs.crpix)

    def test_without_wcs_the_pointing_serves(self):
        raw = replace(make(Case(seed=9, size=0, density=500)).science.raw, wcs=None)
        assert first_wcs(raw, read_distortions()) is None
        assert first_wcs(replace(raw, chip="0", pointing=(10.0, -30.0)), {}) is None
        pointed = replace(raw, pointing=(115.3, -38.2))
        found = first_wcs(pointed, read_distortions())
        middle = found.all_pix2world([4608], [4616], 0)
        plain = nominal_wcs(pointed).all_pix2world([4608], [4616], 0)
        # the plain TAN has no distortion: 1.6 % of 0.77 degrees
        assert 3600 * np.hypot((middle[0] - plain[0]) * np.cos(np.radians(38.2)), middle[1] - plain[1]) < 90
