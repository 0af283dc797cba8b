"""Injected sources are what their table says, and recovery counts them as they came back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.candidates import FLAG_BIT, Candidates, empty_table
from ks4diff.products.chip import Amplifier, StarList
from ks4diff.products.difference import Difference
from ks4diff.products.psf import Psf
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.crosstalk import CrosstalkConfig
from ks4diff.stages.ghosts import GhostsConfig, flag_ghosts
from ks4diff.stages.inject import INJECTED, PLACES, InjectConfig, inject
from ks4diff.stages.recover import (
    ALERT,
    FLAGGED,
    MISSED,
    UNFLAGGED,
    RecoverConfig,
    efficiency,
    false_counts,
    near_any,
    recover,
    wilson,
)
from tests import skies

SHAPE = (310, 350)


@pytest.fixture(scope="module")
def taken():
    """Return (RawChip, CalibratedChip) of a field of stars whose left half has twice the gain."""
    x, y = skies.apart(4, SHAPE, 50, skies.NO_STARS, distance=30)
    data = skies.expose(SHAPE, x, y, np.full(50, 9e3), skies.BLURRED, 5)
    raw = skies.raw_chip(data, skies.BLURRED)
    strips = (Amplifier(name="M1", x0=0, x1=175, gain=2.8), Amplifier(name="M2", x0=175, x1=350, gain=1.4))
    raw = replace(raw, amplifiers=strips)
    return raw, calibrate(raw, CalibrateConfig())


MANY = InjectConfig(seed=3, per_mpix=900, apart_pix=18, galaxy_share=0.0, snr_range=(8, 60))


class TestInjected:
    def test_what_is_added_is_what_the_table_says(self, taken):
        raw, chip = taken
        before = raw.data.copy()
        out, table = inject(raw, chip, MANY)
        assert (raw.data == before).all()
        assert len(table) > 40
        for row in table:
            x, y = round(row["x"]), round(row["y"])
            box = (slice(y - 9, y + 10), slice(x - 9, x + 10))
            light = (out.data - raw.data)[box].astype(np.float64)
            alone = np.hypot(table["x"] - row["x"], table["y"] - row["y"])
            if np.sort(alone)[1] < 30:
                continue
            assert light.sum() == pytest.approx(row["drawn"], rel=0.1)
            rows, columns = np.mgrid[y - 9 : y + 10, x - 9 : x + 10]
            sigma = 3 * chip.psf.fwhm_pix / 2.35 / np.sqrt(row["flux"])
            assert (light * columns).sum() / light.sum() == pytest.approx(row["x"], abs=0.1 + 3 * sigma)
            assert (light * rows).sum() / light.sum() == pytest.approx(row["y"], abs=0.1 + 3 * sigma)

    def test_the_flux_has_the_sn_asked_for_and_the_noise_of_its_gain(self, taken):
        raw, chip = taken
        _, table = inject(raw, chip, MANY)
        inner = chip.psf.stamp.astype(np.float64)
        for row in table[:10]:
            gain = 2.8 if row["x"] < 174.5 else 1.4
            signal = row["flux"] * inner
            snr = np.sqrt((signal**2 / (chip.noise.sigma**2 + np.maximum(signal, 0) / gain)).sum())
            assert snr == pytest.approx(row["snr"], rel=0.08)
            assert 8 <= row["snr"] <= 60
        left = table["x"] < 174.5
        gain = np.where(left, 2.8, 1.4)
        pull = (table["drawn"] - table["flux"]) / np.sqrt(table["flux"] / gain)
        assert 0.75 < pull.std() < 1.25  # 60 draws

    def test_equal_seeds_give_equal_pixels(self, taken):
        one, two, other = (inject(*taken, c) for c in (MANY, MANY, replace(MANY, seed=4)))
        assert (one[0].data == two[0].data).all()
        assert len(one[1]) != len(other[1]) or (one[1]["x"] != other[1]["x"]).any()

    def test_places_are_of_their_kind_and_apart(self, taken):
        raw, chip = taken
        galaxies = np.array([[60.0, 250.0], [80.0, 200.0], [6.0, 6.0]])
        config = replace(MANY, per_mpix=400, star_share=0.5, galaxy_share=0.2, apart_pix=8)
        _, table = inject(raw, chip, config, galaxies=galaxies)
        assert set(table["place"]) == set(range(len(PLACES)))
        stars = table[table["place"] == PLACES.index("star")]
        near = np.hypot(stars["x"][:, None] - chip.stars.x, stars["y"][:, None] - chip.stars.y).min(axis=1)
        assert (near <= 5).all()
        hosted = table[table["place"] == PLACES.index("galaxy")]
        away = np.hypot(hosted["x"][:, None] - galaxies[0], hosted["y"][:, None] - galaxies[1]).min(axis=1)
        assert (away < 18).all()
        apart = np.hypot(table["x"][:, None] - table["x"], table["y"][:, None] - table["y"])
        assert apart[~np.eye(len(table), dtype=bool)].min() > 8

    def test_no_host_no_source(self, taken):
        raw, chip = taken
        none = np.empty(0)
        empty = replace(chip, stars=StarList(x=none, y=none, flux=none, fwhm=none, clean=none.astype(bool)))
        _, table = inject(raw, empty, replace(MANY, star_share=1.0))
        assert len(table) == 0

    @pytest.mark.parametrize(
        "bad",
        [
            {"star_share": 0.8, "galaxy_share": 0.3},
            {"snr_range": (5.0, 2.0)},
            {"snr_range": (4.0, np.inf)},
            *({"per_mpix": value} for value in (-1.0, np.nan, 1e12)),
        ],
    )
    def test_nonsense_is_refused(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            InjectConfig(**bad)


def scored(error=10.0):
    flat = np.zeros((100, 120), dtype=np.float32)
    psf = Psf(stamp=skies.Seeing(fwhm=3).stamp(15).astype(np.float32), fwhm_pix=3.0, n_stars=9)
    return Difference(
        difference=flat,
        score_corr=flat,
        flux_err=flat + np.float32(error),
        flags=flat.astype(np.uint16),
        psf=psf,
        flux_scale=1.0,
        noise=3.0,
    )


def found(rows):
    """Return Candidates of (x, y, flux, flags)."""
    table = empty_table(len(rows))
    for out, (x, y, flux, flags) in zip(table, rows, strict=True):
        out["x"], out["y"], out["flux"], out["flags"] = x, y, flux, flags
        out["flux_err"], out["scorr"], out["is_positive"] = 20, flux / 20, flux > 0
    return Candidates(table=table, cutouts=np.empty((len(rows), 0)), flux_unit="nJy")


class TestRecovered:
    def test_counts_flags_and_biases(self):
        injected = np.zeros(5, INJECTED)
        injected["x"], injected["y"], injected["flux"] = [10, 30, 50, 70, 90], 50, [100, 100, 100, 100, 70]
        back = recover(
            injected,
            found([
                (10.5, 50, 220, 0),
                (30.5, 50, 180, FLAG_BIT["on_source"]),
                (50.5, 50, 260, 0),
                (70, 51, 200, FLAG_BIT["cosmic_ray"]),
                (90, 50, -140, 0),
            ]),
            scored(),
            RecoverConfig(),
            unit=2.0,
            alerts=np.array([1, 2]),
        )  # fmt: skip
        assert back["snr"].tolist() == [10, 10, 10, 10, 7]
        assert back["became"].tolist() == [UNFLAGGED, ALERT, ALERT, FLAGGED, MISSED]
        low, high = efficiency(back, back["snr"], (5.0, 8.0, 20.0), 1.96)
        assert (low.injected, low.detected.count, low.alerts.count) == (1, 0, 0)
        assert (high.injected, high.detected.count, high.unflagged.count, high.alerts.count) == (4, 4, 3, 2)
        assert high.alerts.fraction == 0.5
        assert high.alerts[2:] == pytest.approx(wilson(2, 4, 1.96))
        assert high.flux_bias == pytest.approx(0.1)
        assert high.flux_bias_error == pytest.approx(0.2 / 1.349 * np.sqrt(np.pi / 6))
        assert high.pull == pytest.approx(np.std([1, -1, 3]))
        assert high.offset == pytest.approx((0.5, 0.0))
        assert high.scatter == pytest.approx(0.5)
        assert np.isnan(low.flux_bias)

    def test_the_best_candidate_near_a_source_counts(self):
        injected = np.zeros(1, INJECTED)
        injected["x"], injected["y"], injected["flux"] = 10, 50, 100
        rows = [(10, 50, 100, FLAG_BIT["dipole"]), (11.5, 50, 90, 0), (60, 60, 100, 0)]
        (back,) = recover(injected, found(rows), scored(), RecoverConfig(), unit=1.0)
        assert (back["became"], back["found"], back["dx"]) == (UNFLAGGED, 90, 1.5)

    def test_near_is_nearer_than_the_reach(self):
        table = found([(10, 10, 1, 0), (20, 10, 1, 0)]).table
        assert near_any(table, np.array([12.0]), np.array([10.0]), 2.1).tolist() == [True, False]
        assert near_any(table, np.zeros(0), np.zeros(0), 9.0).tolist() == [False, False]

    def test_wilson_is_the_textbooks(self):
        # Agresti & Coull 1998: 0 of 10 and 5 of 10 at 95 %
        assert wilson(0, 10, 1.96) == pytest.approx((0.0, 0.2775), abs=5e-4)
        assert wilson(5, 10, 1.96) == pytest.approx((0.2366, 0.7634), abs=5e-4)
        assert wilson(0, 0) == (0.0, 1.0)

    def test_false_ones_are_counted_above_each_threshold(self):
        rows = [(1, 1, 110, 0), (2, 2, -130, 0), (3, 3, 500, 0), (4, 4, 170, FLAG_BIT["trail"])]
        real = np.array([False, False, True, False])
        assert false_counts(found(rows), real, (5.0, 6.0, 8.0)) == {5.0: 2, 6.0: 1, 8.0: 0}


class TestGhosts:
    def flagged(self, taken, x, y, flux, bright=(20, 100), counts=4e4, **options):
        raw, chip = taken
        data = chip.image.data.copy()
        data[bright[1] - 1 : bright[1] + 2, bright[0] - 1 : bright[0] + 2] += counts
        chip = replace(chip, image=replace(chip.image, data=data))
        chip = replace(chip, raw=replace(raw, zeropoint=None))
        table = found([(x, y, flux, 0)])
        crosstalk = CrosstalkConfig(crosstalk_same_parity=False, **options)
        out = flag_ghosts(table, chip, GhostsConfig(), crosstalk).table
        return bool(out["flags"][0] & FLAG_BIT["crosstalk"])

    def test_the_mirrored_place_of_the_other_half_is_where_they_are(self, taken):
        assert self.flagged(taken, 349 - 20, 100, 400)
        assert not self.flagged(taken, 175 + 20, 100, 400)
        assert self.flagged(taken, 175 + 20, 100, 400, crosstalk_mirrored=False)
        assert not self.flagged(taken, 349 - 20, 130, 400)

    def test_a_source_too_bright_for_a_ghost_is_none(self, taken):
        assert not self.flagged(taken, 349 - 20, 100, 4000)

    def test_without_amplifiers_nothing_is_said(self, taken):
        raw, chip = taken
        lone = replace(chip, raw=replace(raw, amplifiers=()))
        assert flag_ghosts(found([(9, 9, 9, 0)]), lone, GhostsConfig(), CrosstalkConfig()).table["flags"] == 0
