"""Charge that did not come through the PSF is told from light that did, in one exposure."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.track_fit import explained
from ks4diff.numerics.track_tables import light_table, track_table
from ks4diff.products.candidates import FLAG_BIT, Candidates, empty_table
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, RawChip, StarList
from ks4diff.products.difference import Match
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.hits import HitsConfig, flag_hits
from tests import skies

SHAPE = (310, 390)
SIGMA, TEMPLATE_SIGMA, SCALE, GAIN = 20.0, 6.0, 1.6, 1.8
SPACING = 28


def field(seeing):
    stamp = seeing.stamp(31)
    psf = Psf(stamp=(stamp / stamp.sum()).astype(np.float32), fwhm_pix=seeing.fwhm, n_stars=99)
    return PsfField.uniform(psf, SHAPE)


def places(seed):
    """Return x, y of a grid of places, each off its pixel by a random fraction."""
    y, x = np.mgrid[SPACING : SHAPE[0] - SPACING : SPACING, SPACING : SHAPE[1] - SPACING : SPACING]
    rng = np.random.default_rng(seed)
    return x.ravel() + rng.uniform(-0.5, 0.5, x.size), y.ravel() + rng.uniform(-0.5, 0.5, x.size)


def noise_model(sigma):
    return NoiseModel(sigma=sigma, correlation=np.ones((1, 1)), method="sky")


class Made:
    """A calibrated pair with what the sky (``static``, ``new``) and particles (``struck``) put on it."""

    def __init__(self, fwhm=3.0, template_fwhm=2.6, seed=1):
        self.seeing, self.template_seeing = (
            skies.Seeing(fwhm=fwhm, beta=3.5),
            skies.Seeing(fwhm=template_fwhm),
        )
        self.rng = np.random.default_rng(seed)
        self.light, self.template_light = np.zeros(SHAPE), np.zeros(SHAPE)
        self.charge, self.template_charge = np.zeros(SHAPE), np.zeros(SHAPE)
        self.flags = np.zeros(SHAPE, dtype=np.uint16)

    def flux(self, snr):
        """Return counts of a source of this S/N on the sky."""
        stamp = self.seeing.stamp(31)
        return snr * SIGMA / np.sqrt((stamp**2).sum())

    def add(self, x, y, counts, *, science=True, template=False):
        if science:
            self.light += skies.draw(SHAPE, x, y, counts, self.seeing, radius=5)
        if template:
            self.template_light += skies.draw(SHAPE, x, y, counts, self.template_seeing, radius=5)
        return self

    def flagged(self, x, y, positive=True):
        rng = self.rng
        noisy = rng.poisson(np.maximum(self.light * GAIN, 0)) / GAIN + rng.normal(0, SIGMA, SHAPE)
        other = (self.template_light + self.template_charge) / SCALE + rng.normal(0, TEMPLATE_SIGMA, SHAPE)
        images = [
            MaskedImage(data=data.astype(np.float32), flags=flags, sky_variance=Cells.constant(s**2, SHAPE))
            for data, flags, s in (
                (noisy + self.charge, self.flags, SIGMA),
                (other, np.zeros(SHAPE, dtype=np.uint16), TEMPLATE_SIGMA),
            )
        ]
        none = np.empty(0)
        chip = CalibratedChip(
            raw=RawChip(data=images[0].data, file="made.fits", hdu="0"),
            image=images[0],
            sky=None,
            stars=StarList(x=none, y=none, flux=none, fwhm=none, clean=none),
            psf=field(self.seeing),
            noise=noise_model(SIGMA),
            gain=GAIN,
            gain_source="given",
        )
        template = AlignedTemplate(
            image=images[1],
            psf=field(self.template_seeing),
            noise=noise_model(TEMPLATE_SIGMA),
            gain=50.0,
            coverage=1.0,
            area=Cells.constant(1.0, SHAPE),
        )
        match = Match(
            flux_scale=SCALE,
            flux_scale_error=0.001,
            scale=Cells.constant(SCALE, SHAPE),
            scale_error=Cells.constant(0.001, SHAPE),
            amplifiers=(),
            background=Cells.constant(0.0, SHAPE),
            science_noise=noise_model(SIGMA),
            template_noise=noise_model(TEMPLATE_SIGMA),
        )
        table = empty_table(len(x))
        table["x"], table["y"], table["is_positive"] = x, y, positive
        before = table.copy()
        found = Candidates(table=table, cutouts=np.empty((len(x), 0)), flux_unit="count")
        out = flag_hits(found, chip, template, match, HitsConfig()).table
        assert (table == before).all()
        return (out["flags"] & FLAG_BIT["cosmic_ray"]) != 0


# 2.1 px is 0.84" seeing, the best there is; the template may be sharper or not
@pytest.mark.parametrize(("fwhm", "template_fwhm"), [(2.1, 2.6), (3.0, 2.5), (5.0, 2.4)])
class TestLight:
    @pytest.mark.parametrize("snr", [5.0, 8.0, 30.0, 300.0])
    def test_point_sources_are_no_hits(self, fwhm, template_fwhm, snr):
        made = Made(fwhm, template_fwhm)
        x, y = places(3)
        assert made.add(x, y, np.full(len(x), made.flux(snr))).flagged(x, y).sum() <= 1

    def test_static_stars_and_what_changes_on_them_are_none(self, fwhm, template_fwhm):
        made = Made(fwhm, template_fwhm)
        x, y = places(4)
        static = np.full(len(x), made.flux(150.0))
        made.add(x, y, 1.3 * static).add(x, y, static, science=False, template=True)
        assert made.flagged(x, y).sum() <= 1

    def test_what_moves_is_none(self, fwhm, template_fwhm):
        made = Made(fwhm, template_fwhm)
        x, y = places(5)
        angle = np.random.default_rng(6).uniform(0, np.pi, len(x))
        for step in np.linspace(-0.5, 0.5, 9) * 1.5 * fwhm:
            made.add(x + step * np.cos(angle), y + step * np.sin(angle), np.full(len(x), made.flux(40.0) / 9))
        assert made.flagged(x, y).sum() <= 1

    def test_what_is_broader_is_none(self, fwhm, template_fwhm):
        made = Made(fwhm, template_fwhm)
        x, y = places(7)
        made.light += skies.draw(SHAPE, x, y, np.full(len(x), made.flux(40.0)), skies.Seeing(fwhm=1.6 * fwhm))
        assert made.flagged(x, y).sum() == 0

    def test_a_hit_beside_a_source_leaves_it_alone(self, fwhm, template_fwhm):
        made = Made(fwhm, template_fwhm)
        x, y = places(8)
        made.add(x, y, np.full(len(x), made.flux(30.0)))
        reach = int(np.ceil(fwhm)) + 2
        made.charge[np.rint(y).astype(int), np.rint(x).astype(int) + reach] += 40 * SIGMA
        assert made.flagged(x, y).sum() <= 1

    def test_a_struck_source_is_none_and_a_bright_hit_is_no_struck_source(self, fwhm, template_fwhm):
        """A track of 4 px, 40 sigma in each, over the flank of a source of S/N 40, and alone."""
        x, y = places(14)
        for source in (40.0, 0.0):
            made = Made(fwhm, template_fwhm)
            made.add(x, y, np.full(len(x), made.flux(source)))
            for step in range(4):
                made.charge[np.rint(y).astype(int) + step, np.rint(x).astype(int) + 1] += 40 * SIGMA
            flagged = made.flagged(x, y + 0.5)
            assert flagged.mean() < 0.03 if source else flagged.mean() > 0.99

    @pytest.mark.parametrize("length", [0.0, 1.5, 4.0])
    def test_tracks_of_6_sigma_are_hits(self, fwhm, template_fwhm, length):
        made = Made(fwhm, template_fwhm)
        x, y = places(9)
        stamp, rng = made.seeing.stamp(31), np.random.default_rng(10)
        for px, py in zip(x, y, strict=True):
            angle, along = rng.uniform(0, np.pi), np.linspace(-0.5, 0.5, 41) * length
            charge = np.zeros((31, 31))
            np.add.at(
                charge,
                (
                    15 + np.rint(py - round(py) + along * np.sin(angle)).astype(int),
                    15 + np.rint(px - round(px) + along * np.cos(angle)).astype(int),
                ),
                1 / 41,
            )
            # what the matched filter makes of it, at its middle
            seen = (charge * stamp).sum() / np.sqrt((stamp**2).sum()) / SIGMA
            window = slice(round(py) - 15, round(py) + 16), slice(round(px) - 15, round(px) + 16)
            made.charge[window] += charge * 6 / seen
        # at 0.84" half of the pixels that a PSF lights hold all that a short track leaves
        assert made.flagged(x, y).mean() >= (0.85 if fwhm < 2.5 else 0.97)


@pytest.mark.parametrize(("fwhm", "template_fwhm"), [(2.1, 2.6), (3.0, 2.5)])
def test_a_hit_beside_what_changed_is_no_struck_source(fwhm, template_fwhm):
    """A pixel of 22 sigma, and 4 px away a source of S/N 70, which the hit does not make its own."""
    x, y = (np.rint(v) for v in places(16))
    for right, up in ((4, 0), (-4, 0), (0, 4), (0, -4)):
        made = Made(fwhm, template_fwhm)
        made.add(x + right, y + up, np.full(len(x), made.flux(70.0)))
        made.charge[y.astype(int), x.astype(int)] += 22 * SIGMA
        assert made.flagged(x, y).mean() > 0.5


def test_a_hit_in_the_template_is_a_negative_one():
    made = Made(3.0, 2.6)
    x, y = places(11)
    made.template_charge[np.rint(y).astype(int), np.rint(x).astype(int)] += 25 * TEMPLATE_SIGMA * SCALE
    assert made.flagged(x, y, positive=False).mean() > 0.97
    gone = Made(3.0, 2.6)
    gone.add(x, y, np.full(len(x), gone.flux(30.0)), science=False, template=True)
    assert gone.flagged(x, y, positive=False).sum() == 0


def test_masked_pixels_tell_nothing():
    made = Made()
    x, y = places(12)
    at = np.rint(y).astype(int), np.rint(x).astype(int)
    made.charge[at] += 50 * SIGMA
    assert made.flagged(x, y).all()
    made.flags[at] = PixelFlag.SATURATED
    assert not made.flagged(x, y).any()


def test_no_candidates_are_no_error():
    assert len(Made().flagged(np.empty(0), np.empty(0))) == 0


class TestGains:
    """The kernels against plain sums over every position, pixel and track."""

    def stamps(self):
        rng = np.random.default_rng(13)
        star = skies.Seeing(fwhm=2.4).stamp(11, 0.3, -0.45) * 300
        data = rng.normal(0, 1, (3, 11, 11)) + star * np.array([1, 0.2, 0])[:, None, None]
        data[2, 5, 4:7] += 9
        return data.astype(np.float32), rng.uniform(0.5, 1.5, (3, 11, 11)).astype(np.float32)

    def test_the_point_source_is_the_best_over_all_positions(self):
        data, weight = self.stamps()
        seeing = skies.Seeing(fwhm=2.4)
        table = light_table(seeing.stamp(31).astype(np.float32), 2.4, 11)
        gains = explained(data, weight, table, price=9.0, own_radius=9.0)
        for n in range(2):
            steps = np.arange(-1.25, 1.26, 0.05)
            trials = [seeing.stamp(11, a, b) for a in steps for b in steps]
            twin = max(
                max((weight[n] * data[n] * t).sum(), 0) ** 2 / (weight[n] * t * t).sum() for t in trials
            )
            assert gains.point[n] == pytest.approx(twin, rel=0.01)
        assert (gains.light >= gains.point).all()

    def test_free_pixels_pay_for_themselves(self):
        data, weight = self.stamps()
        table = light_table(skies.Seeing(fwhm=2.4).stamp(31).astype(np.float32), 2.4, 11)
        gains = explained(data, weight, table, price=9.0, own_radius=9.0)
        worth = data[2].astype(float) ** 2 * weight[2]
        three = worth[5, 4:7].sum() - 18
        assert gains.pixels[2] >= three - 1e-3
        assert gains.pixels[2] < three + 12  # at most a noise pixel beside them

    def test_the_track_is_the_best_of_all(self):
        data, weight = self.stamps()
        dy, dx, charge = track_table()
        table = light_table(skies.Seeing(fwhm=2.4).stamp(31).astype(np.float32), 2.4, 11)
        gains = explained(data, weight, table, price=9.0, own_radius=9.0)
        best = 0.0
        for k in range(len(charge)):
            for j in range(3, 8):
                for i in range(3, 8):
                    stamp = np.zeros((11, 11))
                    on = (charge[k] > 0) & (abs(dy[k] + j - 5) < 6) & (abs(dx[k] + i - 5) < 6)
                    stamp[j + dy[k, on], i + dx[k, on]] = charge[k, on]
                    product = (weight[2] * data[2] * stamp).sum()
                    best = max(best, max(product, 0) ** 2 / max((weight[2] * stamp**2).sum(), 1e-9))
        assert gains.track[2] == pytest.approx(best - 9, rel=1e-5)
