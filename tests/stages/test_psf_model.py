"""The PSF built from stars is the one that they were drawn with, wherever on the image it is asked for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.nddata import NDData
from astropy.table import Table
from scipy.spatial import cKDTree

from ks4diff.numerics.psf_grid import taper
from ks4diff.products.cells import Cells
from ks4diff.products.chip import StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.stages import psf_errors
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.psf_field import FADE
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.stars import StarsConfig, find_stars
from tests import skies

SHAPE = (310, 350)
WIDE = (1120, 1580)  # two cells of 1024 px side by side
SKY, GAIN = 900.0, 1.6


def lone_stars(seed, n=36):
    x, y = skies.apart(seed, SHAPE, n, skies.NO_STARS, distance=38)
    return skies.Stars(x=x, y=y, flux=np.random.default_rng(seed).uniform(3e4, 1.2e5, n))


def reduced(stars, epoch, seed, **facts):
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, epoch, seed)
    return reduce_chip(skies.raw_chip(data, epoch, **facts), BackgroundConfig())


def measured(stars, epoch, seed):
    chip = reduced(stars, epoch, seed)
    return model_psf(chip.image, find_stars(chip, StarsConfig()), chip.gain, PsfConfig())


def centroid(stamp):
    offset = np.arange(len(stamp)) - len(stamp) // 2
    core = np.where(stamp > 0.1 * stamp.max(), stamp, 0)
    return (core.sum(axis=0) @ offset) / core.sum(), (core.sum(axis=1) @ offset) / core.sum()


class TestOnePsf:
    """Images of one cell: one PSF."""

    @pytest.mark.parametrize("seed", [11, 12])
    @pytest.mark.parametrize(
        "epoch",
        [
            skies.BLURRED,
            skies.SHARP,
            skies.Epoch(seeing=skies.Seeing(fwhm=2.5, beta=4.5, ratio=0.9, angle_deg=-60)),
            skies.Epoch(seeing=skies.Seeing(fwhm=5.8, ratio=0.8, angle_deg=10), throughput=3.0),
        ],
        ids=["gauss 4.3", "moffat 3.1", "moffat 2.5", "gauss 5.8"],
    )
    def test_the_psf_is_that_of_the_stars(self, epoch, seed):
        psf, _ = measured(lone_stars(seed), epoch, seed)
        truth = epoch.seeing.stamp(len(psf.stamp))
        assert psf.stamp.sum(dtype=float) == pytest.approx(1, abs=1e-5)
        assert np.abs(psf.stamp - truth).max() < 0.02 * truth.max()
        assert np.hypot(*np.subtract(centroid(psf.stamp), centroid(truth))) < 0.05
        assert psf.n_stars > 20

    @pytest.mark.parametrize("seed", [11, 12, 13])
    def test_a_crowded_field(self, seed):
        # 1000 stars on 310x350 px, 450 of them found
        stars = skies.star_field(seed, SHAPE, 4000)
        psf, _ = measured(stars, skies.SHARP, seed)
        truth = skies.SHARP.seeing.stamp(len(psf.stamp))
        assert np.abs(psf.stamp - truth).max() < 0.05 * truth.max()
        assert np.hypot(*np.subtract(centroid(psf.stamp), centroid(truth))) < 0.05

    def test_faint_neighbours_leave_no_pedestal(self):
        # 360 stars on 310x350 px, 60 of them found: the rest must not become the PSF's wings
        error = []
        for seed in (11, 12, 13):
            psf, _ = measured(skies.star_field(seed, SHAPE, 1400), skies.BLURRED, seed)
            truth = skies.BLURRED.seeing.stamp(len(psf.stamp))
            core = truth > 0.1 * truth.max()
            error.append(psf.stamp[core].sum(dtype=float) / truth[core].sum() - 1)
        assert abs(np.mean(error)) < 0.015

    def test_fitted_stars_have_their_fluxes_and_places(self):
        stars = lone_stars(14)
        _, fitted = measured(stars, skies.SHARP, 14)
        tree = cKDTree(np.stack([stars.x, stars.y], 1))
        distance, which = tree.query(np.stack([fitted.x, fitted.y], 1))
        # S/N is 300 and more: 0.02 px and 0.4 % are three standard errors
        assert np.median(distance) < 0.02
        ratio = fitted.flux / (skies.SHARP.throughput * stars.flux[which])
        assert np.median(ratio) == pytest.approx(1, abs=0.01)

    def test_too_few_clean_stars_are_refused(self):
        chip = reduced(lone_stars(15), skies.SHARP, 15)
        found = find_stars(chip, StarsConfig())
        found.clean[3:] = False
        with pytest.raises(SkipChip, match="too few clean stars"):
            model_psf(chip.image, found, chip.gain, PsfConfig())

    def test_stars_too_broad_for_the_stamps_of_hits_are_refused(self):
        chip = reduced(lone_stars(15), skies.SHARP, 15)
        found = find_stars(chip, StarsConfig())
        model_psf(chip.image, found, chip.gain, PsfConfig())
        found.fwhm[:] = 20.5
        with pytest.raises(SkipChip, match="stars are too broad"):
            model_psf(chip.image, found, chip.gain, PsfConfig())

    def test_it_states_the_error_of_its_light(self):
        """Twelve skies tell a scatter to a fifth: within a factor of 2 of what is stated."""
        off, stated = [], []
        for seed in range(12):
            chip = reduced(lone_stars(seed), skies.SHARP, seed)
            psf, _ = model_psf(chip.image, find_stars(chip, StarsConfig()), chip.gain, PsfConfig())
            truth = skies.SHARP.seeing.stamp(psf.stamp.shape[0])
            off.append((psf.stamp * truth).sum() / (truth**2).sum())
            stated.append(psf.light_error)
        assert 0.5 < np.std(off) / np.median(stated) < 2


def even(seeing):
    """Return the law of a PSF that is the same everywhere."""
    return lambda x, y: seeing


def sweeping(x, y):
    """FWHM and angle that change smoothly: by 12 % and 50 degrees over the image."""
    u, v = x / WIDE[1], y / WIDE[0]
    return skies.Seeing(fwhm=3.0 + 0.4 * u * (1 - 0.5 * v), beta=3.2, ratio=0.9, angle_deg=20 + 50 * v)


def stepped(x, y):
    """A border of a stack at x = 600: one more exposure of better seeing on its right."""
    return skies.Seeing(fwhm=3.6, beta=3.5) if x < 600 else skies.Seeing(fwhm=3.3, beta=3.5, ratio=0.93)


def wide_field(law, seed, n, *, faint=600, galaxies=0, flux=(8e3, 2e5)):
    """Return (image, stars as a finder would list them, truth [3, n]) of bright and ``faint`` unlisted stars.

    Listed places err by 0.15 px and fluxes by 10 %; ``galaxies`` of the bright ones are 20 % broader.
    """
    rng = np.random.default_rng(seed)
    clean = np.zeros(WIDE)
    bright = np.exp(rng.uniform(*np.log(flux), n))
    light = np.concatenate([np.sort(bright)[::-1], rng.pareto(1.0, faint) * 60 + 60])
    x, y = rng.uniform(-4, WIDE[1] + 3, n + faint), rng.uniform(-4, WIDE[0] + 3, n + faint)
    broad = np.zeros(n + faint, dtype=bool)
    broad[rng.choice(n, galaxies, replace=False)] = True
    for k in range(n + faint):
        seeing = law(x[k], y[k])
        if broad[k]:
            seeing = skies.Seeing(fwhm=1.2 * seeing.fwhm, beta=seeing.beta)
        half = int((8 if k < n else 4) * seeing.fwhm)
        i, j = round(x[k]), round(y[k])
        stamp = light[k] * seeing.stamp(2 * half + 1, x[k] - i, y[k] - j)
        rows = slice(max(j - half, 0), min(j + half + 1, WIDE[0]))
        columns = slice(max(i - half, 0), min(i + half + 1, WIDE[1]))
        clean[rows, columns] += stamp[
            rows.start - j + half : rows.stop - j + half, columns.start - i + half : columns.stop - i + half
        ]
    data = rng.poisson((clean + SKY) * GAIN) / GAIN - SKY
    image = MaskedImage(
        data=data.astype(np.float32),
        flags=np.zeros(WIDE, dtype=np.uint16),
        sky_variance=Cells.constant(SKY / GAIN, WIDE),
    )
    # as the finder has it: what has a neighbour within two FWHM is not clean
    tree = cKDTree(np.stack([x[:n], y[:n]], 1))
    alone = tree.query(np.stack([x[:n], y[:n]], 1), k=2)[0][:, 1] > 8
    inside = (x[:n] > 8) & (y[:n] > 8) & (x[:n] < WIDE[1] - 9) & (y[:n] < WIDE[0] - 9)
    stars = StarList(
        x=x[:n] + rng.normal(0, 0.15, n),
        y=y[:n] + rng.normal(0, 0.15, n),
        flux=light[:n] * rng.normal(1, 0.1, n),
        fwhm=np.full(n, law(800, 500).fwhm) * rng.normal(1.1, 0.05, n),
        clean=alone & inside,
    )
    return image, stars, np.stack([x[:n], y[:n], light[:n]])


def errors_at(psf, law, places):
    """Return (core, wing) [k]: the largest errors as fractions of the peak within 1 and beyond 2 FWHM."""
    core, wing = [], []
    for x, y in places:
        seeing = law(x, y)
        model = psf.at(x, y).astype(float)
        n = len(model)
        truth = seeing.stamp(n) * taper(n, FADE * (n // 2), n // 2 + 0.5)
        off = np.arange(n) - n // 2
        radius = np.hypot(off[:, None], off[None, :])
        error = np.abs(model - truth / truth.sum()) / truth.max()
        core.append(error[radius <= seeing.fwhm].max())
        wing.append(error[radius > 2 * seeing.fwhm].max())
    return np.array(core), np.array(wing)


PLACES = [(x, y) for x in (130, 390, 800, 1180, 1450) for y in (150, 560, 970)]


class TestField:
    """Images of more cells: a PSF that varies."""

    @pytest.mark.parametrize(
        "law",
        [
            even(skies.Seeing(fwhm=2.6, beta=3.5)),
            even(skies.Seeing(fwhm=3.4, beta=2.6, ratio=0.85, angle_deg=35)),
            even(skies.Seeing(fwhm=6.0, ratio=0.9, angle_deg=-50)),
            sweeping,
        ],
        ids=["moffat 2.6", "wide wings", "gauss 6", "sweeping"],
    )
    def test_the_psf_is_that_of_the_stars_everywhere(self, law):
        image, stars, _ = wide_field(law, 21, 320)
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        core, wing = errors_at(psf, law, PLACES)
        assert core.max() < 0.01
        assert wing.max() < 0.002

    def test_undersampled(self):
        # the Lanczos kernel errs by 2 % of the peak of a star of FWHM 2.2 px
        law = even(skies.Seeing(fwhm=2.2, beta=3.5))
        image, stars, _ = wide_field(law, 22, 320)
        core, wing = errors_at(model_psf(image, stars, GAIN, PsfConfig())[0], law, PLACES)
        assert core.max() < 0.02
        assert wing.max() < 0.002

    def test_a_constant_psf_shows_no_change(self):
        law = even(skies.Seeing(fwhm=3.2, beta=3.2))
        image, stars, _ = wide_field(law, 23, 320)
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        peaks = [psf.at(*place).max() for place in PLACES]
        assert np.ptp(peaks) < 0.006 * np.mean(peaks)

    def test_a_step_is_followed(self):
        image, stars, _ = wide_field(stepped, 24, 500)
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        near = [(x, y) for x in (120, 250, 500, 700, 950, 1200, 1450) for y in (150, 560, 970)]
        core, wing = errors_at(psf, stepped, near)
        # the PSFs differ by 15 % of the peak; these places are 100 px and more from the border
        assert core.max() < 0.015
        assert np.median(core) < 0.01
        assert wing.max() < 0.002

    def test_galaxies_do_not_broaden_it(self):
        law = even(skies.Seeing(fwhm=3.2, beta=3.2))
        image, stars, _ = wide_field(law, 25, 400, galaxies=130)
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        core, wing = errors_at(psf, law, PLACES)
        assert core.max() < 0.01
        assert wing.max() < 0.002

    def test_a_crowded_field(self):
        law = even(skies.Seeing(fwhm=3.2, beta=3.2))
        image, stars, _ = wide_field(law, 26, 7000, faint=3000, flux=(600, 2e5))
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        core, wing = errors_at(psf, law, PLACES)
        assert core.max() < 0.015
        assert wing.max() < 0.003

    def test_few_stars_give_one_psf(self):
        law = even(skies.Seeing(fwhm=3.2, beta=3.2))
        image, stars, _ = wide_field(law, 27, 12, faint=100)
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        assert len(psf.modes) == 0
        core, _ = errors_at(psf, law, PLACES[:1])
        assert core.max() < 0.03
        stars.clean[3:] = False
        with pytest.raises(SkipChip, match="too few clean stars"):
            model_psf(image, stars, GAIN, PsfConfig())

    def test_every_psf_sums_to_one_and_widths_are_right(self):
        image, stars, _ = wide_field(sweeping, 28, 320)
        psf, _ = model_psf(image, stars, GAIN, PsfConfig())
        for x, y in PLACES:
            assert psf.at(x, y).sum(dtype=float) == pytest.approx(1, abs=1e-5)
        x, y = psf.fwhm.middles()
        truth = [sweeping(a, b).fwhm for a, b in zip(x.ravel(), y.ravel(), strict=True)]
        # a pixel widens a star of 3.2 px by 2 %
        np.testing.assert_allclose(psf.fwhm.values.ravel(), truth, rtol=0.04)

    def test_stars_have_their_fluxes_and_places(self):
        image, stars, truth = wide_field(sweeping, 29, 320)
        _, fitted = model_psf(image, stars, GAIN, PsfConfig())
        assert len(fitted) == len(stars)
        good = stars.clean & (truth[2] > 2e4)
        # a S/N of 100 and more: 0.015 px; the list was 0.15 px off
        for mine, true in ((fitted.x, truth[0]), (fitted.y, truth[1])):
            off = (mine - true)[good]
            assert 1.4826 * np.median(np.abs(off)) < 0.015
            assert abs(np.median(off)) < 0.004
        assert np.median(fitted.flux[good] / truth[2, good]) == pytest.approx(1, abs=0.015)

    def test_inputs_stay_and_answers_repeat(self):
        image, stars, _ = wide_field(sweeping, 30, 200)
        image.flags[300:330, 400:420] = PixelFlag.SATURATED
        before = [np.array(a) for a in (image.data, image.flags, stars.x, stars.y, stars.flux, stars.clean)]
        first, one = model_psf(image, stars, GAIN, PsfConfig())
        second, two = model_psf(image, stars, GAIN, PsfConfig())
        after = (image.data, image.flags, stars.x, stars.y, stars.flux, stars.clean)
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(first.mean, second.mean)
        np.testing.assert_array_equal(first.amplitudes.values, second.amplitudes.values)
        np.testing.assert_array_equal(one.x, two.x)

    def test_the_scale_of_the_list_does_not_matter(self):
        image, stars, _ = wide_field(sweeping, 31, 200)
        scaled = StarList(x=stars.x, y=stars.y, flux=stars.flux * 137.0, fwhm=stars.fwhm, clean=stars.clean)
        first, second = (model_psf(image, s, GAIN, PsfConfig())[0] for s in (stars, scaled))
        np.testing.assert_allclose(first.stamp, second.stamp, atol=1e-4 * first.stamp.max())

    def test_the_stated_error_is_that_of_a_jackknife(self):
        """Ten times a tenth of the stars is left out: the PSF's core scatters as its error says.

        The error speaks of the worst pixel; to noise it adds what sampling costs and what was thought of the
        stars' scatter before any was seen.
        """
        law = even(skies.Seeing(fwhm=3.2, beta=3.2))
        image, stars, _ = wide_field(law, 32, 200)
        whole, _ = model_psf(image, stars, GAIN, PsfConfig())
        rng = np.random.default_rng(1)
        part = rng.integers(0, 10, len(stars))
        stamps = []
        for k in range(10):
            some = StarList(
                x=stars.x, y=stars.y, flux=stars.flux, fwhm=stars.fwhm, clean=stars.clean & (part != k)
            )
            stamps.append(model_psf(image, some, GAIN, PsfConfig())[0].at(800, 560).astype(float))
        off = np.arange(len(stamps[0])) - len(stamps[0]) // 2
        core = np.hypot(off[:, None], off[None, :]) <= 3.2
        deviations = np.sqrt(0.9 * ((np.array(stamps) - np.mean(stamps, axis=0)) ** 2).sum(axis=0))
        worst = deviations[core].max() / whole.stamp.max()
        known = psf_errors.SAMPLING**2
        known += psf_errors.PRIOR_STARS * psf_errors.PRIOR_SCATTER**2 / whole.n_stars
        assert 0.5 < float(whole.error.at(800, 560)) / np.sqrt(worst**2 + known) < 2

    def test_few_stars_that_scatter_state_a_large_error(self):
        """Widths drawn star by star: no model can follow, and the error says by how much stars differ."""
        rng = np.random.default_rng(5)
        fwhm = iter(rng.normal(3.3, 0.2, 4000))
        image, stars, _ = wide_field(lambda x, y: skies.Seeing(fwhm=next(fwhm), beta=3.2), 34, 150, faint=0)
        calm, _ = model_psf(
            *wide_field(even(skies.Seeing(fwhm=3.3, beta=3.2)), 34, 150, faint=0)[:2], GAIN, PsfConfig()
        )
        few = StarList(**{**vars(stars), "clean": stars.clean & (np.arange(len(stars)) < 30)})
        for some in (stars, few):
            psf, _ = model_psf(image, some, GAIN, PsfConfig())
            # a peak goes with 1 / FWHM squared: 12 %
            assert 0.05 < float(psf.error.at(800, 560)) < 0.3
        assert float(calm.error.at(800, 560)) < 0.01

    def test_against_epsf_of_photutils(self):
        """The independent implementation of Anderson and King's effective PSF finds the same core."""
        psf_tools = pytest.importorskip("photutils.psf")
        law = even(skies.Seeing(fwhm=3.2, beta=3.2))
        image, stars, _ = wide_field(law, 33, 150, faint=0)
        ours, fitted = model_psf(image, stars, GAIN, PsfConfig())
        use = stars.clean & (fitted.x > 20) & (fitted.y > 20) & (fitted.x < 1560) & (fitted.y < 1100)
        use &= fitted.flux > 2e4
        table = Table({"x": fitted.x[use], "y": fitted.y[use]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cut_out = psf_tools.extract_stars(NDData(image.data.astype(float)), table, size=25)
            builder = psf_tools.EPSFBuilder(oversampling=2, maxiters=8, progress_bar=False)
            epsf, _ = builder(cut_out)
        offset = np.arange(-3, 4.0)
        v, u = np.meshgrid(offset, offset, indexing="ij")
        theirs = epsf.evaluate(u, v, flux=1.0, x_0=0.0, y_0=0.0)
        middle = len(ours.stamp) // 2
        mine = ours.stamp[middle - 3 : middle + 4, middle - 3 : middle + 4].astype(float)
        # they smooth by a kernel of 5 samples, and their normalisation is that of another stamp
        np.testing.assert_allclose(
            mine / mine.sum(), theirs / theirs.sum(), atol=0.015 * (mine / mine.sum()).max()
        )
