"""What bright stars show beyond their cores is measured and subtracted: saturated ones, wings, halos."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from ks4diff.numerics.moved_psf import moved_psfs
from ks4diff.numerics.psf_grid import taper
from ks4diff.products.cells import Cells
from ks4diff.products.chip import StarList
from ks4diff.products.image import PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.stages import subtract as subtraction
from ks4diff.stages.bright_stars import BrightStars, bright_stars, psf_with_wings
from ks4diff.stages.full_stars import full_stars
from tests.known_pairs import Plan, Side, run
from tests.skies import Seeing

SHAPE = (620, 560)
N = 39
RADIUS = np.hypot(*np.indices((N, N)) - N // 2)
FULL = 8.0  # px around a saturated star that are lost
WEAK = 0.5  # of a PSF's wings: as bright as those of bright stars are


def unit(stamp):
    return stamp / stamp.sum()


SCIENCE = unit(Seeing(fwhm=4.5, beta=3.2).stamp(N))
TEMPLATE = unit(Seeing(fwhm=3.0, beta=3.2).stamp(N))


def weakened(psf, part):
    """Return a PSF with ``part`` of its wings from 8 to 12 px on."""
    return psf * (1 - (1 - part) * np.clip((RADIUS - 8) / 4, 0, 1))


def places(seed):
    rng = np.random.default_rng(seed)
    y, x = (v.ravel() + rng.uniform(-6, 6, v.size) for v in np.mgrid[45:600:88, 45:540:90])
    flux = np.exp(rng.uniform(np.log(4e4), np.log(3e5), len(x)))
    flux[::5] *= 12
    return x, y, flux


def light_of(stars, psf):
    out = np.zeros(SHAPE)
    n, half = len(psf), len(psf) // 2
    for x, y, flux in zip(*stars, strict=True):
        i, j = round(x), round(y)
        rows, columns = slice(max(j - half, 0), j + half + 1), slice(max(i - half, 0), i + half + 1)
        stamp = moved_psfs(psf, np.array([x - i]), np.array([y - j]), n)[0]
        part = out[rows, columns]
        part += (
            flux * stamp[rows.start - j + half :, columns.start - i + half :][: len(part), : part.shape[1]]
        )
    return out


@cache
def scene(part=WEAK, seed=1):
    """Return (known pair, stars [3, n], saturated [n]); the template's wings are ``part`` of its PSF's."""
    rng = np.random.default_rng(seed)
    stars = places(seed)
    saturated = stars[2] > 5e5
    flags = np.zeros(SHAPE, np.uint16)
    row, column = np.indices(SHAPE)
    for x, y in zip(stars[0][saturated], stars[1][saturated], strict=True):
        flags[np.hypot(column - x, row - y) < FULL] |= np.uint16(PixelFlag.SATURATED)
    plan = Plan(science=Side(psf=SCIENCE), template=Side(psf=TEMPLATE))
    light = light_of(stars, SCIENCE), light_of(stars, weakened(TEMPLATE, part))
    known = plan.exposed(SHAPE, rng, light=light, flags=(flags, None))
    for image in (known.chip.image, known.template.image):
        image.data[flags > 0] = 6e4  # full
    return listed(known, stars, ~saturated), np.array(stars), saturated


def listed(known, stars, which):
    x, y, flux = (v[which] for v in stars)
    found = StarList(x=x, y=y, flux=flux, fwhm=np.full(len(x), 4.5), clean=np.ones(len(x), dtype=bool))
    return replace(known, chip=replace(known.chip, stars=found))


def found_in(known):
    return bright_stars(known.chip, known.template, known.match)


def around(difference, stars):
    """Return S_corr of the unmasked pixels 8 to 26 px from stars."""
    row, column = np.indices(SHAPE)
    near = np.zeros(SHAPE, dtype=bool)
    for x, y in stars[:2].T:
        away = np.hypot(column - x, row - y)
        near |= (away > 8) & (away < 26)
    return difference.score_corr[near & (difference.flags == 0)].astype(np.float64)


class TestSaturatedStars:
    def test_their_wings_tell_place_and_flux(self):
        known, stars, saturated = scene()
        found = full_stars(known.chip, known.template, known.match)
        wanted = stars[:, saturated]
        assert found.shape == wanted.shape
        nearest = np.argmin(np.hypot(*(found[:2, :, None] - wanted[:2, None, :])), axis=1)
        assert np.abs(found[:2] - wanted[:2, nearest]).max() < 0.1
        assert np.abs(found[2] / wanted[2, nearest] - 1).max() < 0.02

    def test_what_one_image_alone_shows_is_no_star(self):
        known, stars, _ = scene()
        x, y = 5.0 + np.round(stars[:2, 1])
        data, flags = known.chip.image.data.copy(), known.chip.image.flags.copy()
        i, j = int(x) + 35, int(y) + 35
        data[j - 2 : j + 3, i - 2 : i + 3] += 3e4
        flags[j - 1 : j + 2, i - 1 : i + 2] |= np.uint16(PixelFlag.SATURATED)
        struck = replace(known.chip, image=replace(known.chip.image, data=data, flags=flags))
        found = full_stars(struck, known.template, known.match)
        assert np.hypot(found[0] - i, found[1] - j).min() > 5
        assert found.shape[1] == full_stars(known.chip, known.template, known.match).shape[1]

    @pytest.mark.parametrize("gone", [8.0, 11.0, 15.0, 17.0, 19.0, 20.0, 23.0])
    def test_a_flux_is_told_right_or_not_at_all(self, gone):
        """Light goes on where stamps fade, to 0 at 19.5 px; the template has no data within ``gone`` px."""
        x, y, flux = places(4)
        stars = np.array([x, y, flux])[:, ::5]
        flags = np.zeros((2, *SHAPE), np.uint16)
        row, column = np.indices(SHAPE)
        for x, y in stars[:2].T:
            away = np.hypot(column - x, row - y)
            flags[0][away < 5] = PixelFlag.SATURATED
            flags[1][away < gone] = PixelFlag.TEMPLATE_NO_DATA
            flags[1][away < 5] |= np.uint16(PixelFlag.TEMPLATE_SATURATED)
        wide = [unit(Seeing(fwhm=fwhm, beta=3.2).stamp(101)) for fwhm in (3.0, 3.4)]
        fade = taper(N, 0.85 * (N // 2), N // 2 + 0.5)
        sides = (Side(psf=unit(psf[31:-31, 31:-31] * fade)) for psf in wide)
        plan = Plan(**dict(zip(("science", "template"), sides, strict=True)))
        light = [light_of(stars, psf) for psf in wide]
        known = plan.exposed(SHAPE, np.random.default_rng(5), light=light, flags=flags)
        found = full_stars(known.chip, known.template, known.match)
        assert gone > 8 or found.shape[1] == stars.shape[1]
        if found.size:
            nearest = np.argmin(np.hypot(*(found[:2, :, None] - stars[:2, None, :])), axis=1)
            assert np.abs(found[2] / stars[2, nearest] - 1).max() < 0.2

    def test_their_light_is_known_as_well_as_psfs_are(self):
        known, *_ = scene()
        flagged = []
        for error in (0.0, 0.05):
            chip, template = (
                replace(part, psf=replace(part.psf, error=Cells.constant(error, SHAPE)))
                for part in (known.chip, known.template)
            )
            flagged.append(run(replace(known, chip=chip, template=template)).flags != 0)
        assert flagged[1][flagged[0]].all()
        assert flagged[1].sum() > 1.1 * flagged[0].sum()


class TestWings:
    def test_those_of_bright_stars_are_found(self):
        known, *_ = scene()
        wings = found_in(known).wings
        shown = psf_with_wings(known.template.psf, wings[1], 280.0, 310.0)
        far = (RADIUS > 13) & (RADIUS < 15)
        true, before = weakened(TEMPLATE, WEAK)[far].mean(), TEMPLATE[far].mean()
        assert abs(shown[far].mean() - true) < 0.25 * (before - true)
        core = RADIUS < 1.5 * 3.0
        np.testing.assert_array_equal(shown[core], known.template.psf.at(280.0, 310.0)[core])
        assert np.abs(wings[0]).max() < 0.05 * TEMPLATE[far].mean() + 2e-6

    def test_without_them_the_surroundings_are_loud_and_with_them_they_are_noise(self, monkeypatch):
        known, stars, _ = scene()
        mended = around(run(known), stars)
        monkeypatch.setattr(subtraction, "bright_stars", nothing)
        loud = around(run(known), stars)
        assert loud.std() > 1.5
        assert mended.std() == pytest.approx(1, abs=0.06)

    def test_right_psfs_stay_as_they_are(self):
        known, stars, _ = scene(part=1.0, seed=2)
        found = found_in(known)
        assert all(np.abs(wings).max() < 2e-6 for wings in found.wings)
        assert np.abs(found.halo).max() < 2e-6
        assert around(run(known), stars).std() == pytest.approx(1, abs=0.06)

    def test_a_halo_beyond_the_stamps_is_found_and_subtracted(self):
        known, stars, _ = scene(part=1.0, seed=3)
        row, column = np.indices(SHAPE)
        data = known.chip.image.data.copy()
        for x, y, flux in stars.T:
            away = np.hypot(column - x, row - y)
            data += (flux * 4e-6 * np.clip((away - 16) / 4, 0, 1) * np.clip((38 - away) / 8, 0, 1)).astype(
                "f4"
            )
        haloed = replace(known, chip=replace(known.chip, image=replace(known.chip.image, data=data)))
        assert found_in(haloed).halo[24] == pytest.approx(4e-6, abs=0.6e-6)
        assert around(run(haloed), stars).std() == pytest.approx(1, abs=0.08)

    def test_a_crowded_sky_and_too_few_stars_tell_nothing(self):
        known, *_ = scene()
        noise = known.chip.noise
        crowded = NoiseModel(sigma=noise.sigma, correlation=noise.correlation, method="high frequencies")
        assert not found_in(replace(known, chip=replace(known.chip, noise=crowded))).stars.size
        few = replace(known.chip.image, flags=np.full(SHAPE, int(PixelFlag.BAD_PIXEL), np.uint16))
        alone = found_in(replace(known, chip=replace(known.chip, image=few)))
        assert not alone.stars.size
        assert not alone.halo.any()
        assert not any(wings.any() for wings in alone.wings)


def nothing(chip, template, match):
    wings = tuple(np.zeros((1, N, N), dtype=np.float32) for _ in range(2))
    return BrightStars(np.empty((3, 0)), 0, wings, np.zeros(50))
