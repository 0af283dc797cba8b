"""Stars of a stack that was interpolated bilinearly are blurred in waves, which the PSF follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.register_pairs import FIELD, Case, make, solution_of
from ks4diff.numerics.phase_waves import Frames, PhaseMaps, columns
from ks4diff.numerics.psf_borders import LIKELY_PIX, apart, no_borders
from ks4diff.numerics.psf_modes import radii
from ks4diff.products.cells import Cells
from ks4diff.products.chip import StarList
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.psf_clean import star_weights
from ks4diff.stages.psf_errors import _light_error, with_unseen_steps
from ks4diff.stages.psf_field import _regressed
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.psf_stars import Sample
from ks4diff.stages.psf_wave_fit import find_waves
from ks4diff.stages.psf_waves import (
    _chip_pixels,
    dither_phases,
    likely_borders,
    patterns,
    waves_at,
    without_waves,
)
from ks4diff.stages.register import RegisterConfig, register, template_position
from ks4diff.stages.sim.geometry import FULL_SIZE, Patch, Pointing, shifted, tangent_plane, true_wcs
from ks4diff.stages.stack_frames import MOST_TURN, Dithers
from tests import skies

SHAPE = (1100, 1560)
SEEING = skies.Seeing(fwhm=2.9, beta=3.5)
SKY, GAIN, START = 400.0, 1.6, (0.3, 0.6)
PLACES = [(x, y) for x in (130, 390, 800, 1180, 1450) for y in (150, 560, 970)]


def interpolated(x, y, slopes, half):
    """Return a star's stamp on the stack around the pixel nearest to (x, y): bilinear from a dither's pixels.

    The dither's pixel of stack pixel (i, j) is (i + START[0] + slopes[0] i, j + START[1] + slopes[1] j).
    """
    i, j = round(x), round(y)
    at = [n * (1 + s) + c for n, s, c in zip((x, y), slopes, START, strict=True)]
    whole = [round(v) for v in at]
    dither = SEEING.stamp(2 * half + 9, at[0] - whole[0], at[1] - whole[1])
    places = [
        (n + np.arange(-half, half + 1)) * (1 + s) + c - w + half + 4
        for n, s, c, w in zip((i, j), slopes, START, whole, strict=True)
    ]
    v, u = np.meshgrid(places[1], places[0], indexing="ij")
    return ndimage.map_coordinates(dither, [v, u], order=1)


def stack(seed, slopes, n=320):
    """Return (image, stars) of one dither."""
    rng = np.random.default_rng(seed)
    clean = np.zeros(SHAPE)
    flux = np.sort(np.exp(rng.uniform(*np.log((1e4, 2e5)), n)))[::-1]
    x, y = skies.apart(seed, SHAPE, n, skies.NO_STARS, distance=40)
    for px, py, light in zip(x, y, flux, strict=True):
        half, i, j = 24, round(px), round(py)
        part = np.s_[max(j - half, 0) : j + half + 1, max(i - half, 0) : i + half + 1]
        stamp = interpolated(px, py, slopes, half)[max(half - j, 0) :, max(half - i, 0) :]
        rows, columns = clean[part].shape
        clean[part] += light * stamp[:rows, :columns]
    data = (rng.poisson((clean + SKY) * GAIN) / GAIN - SKY).astype(np.float32)
    variance = Cells.constant(SKY / GAIN, SHAPE)
    image = MaskedImage(data=data, flags=np.zeros(SHAPE, dtype=np.uint16), sky_variance=variance)
    whole = np.ones(n, dtype=bool)
    return image, StarList(x=x, y=y, flux=flux, fwhm=np.full(n, 3.1), clean=whole)


def dithers(slopes, box=(-np.inf, np.inf, -np.inf, np.inf), *, found=True):
    """Return that dither, where it lies and at which phases; not ``found``: only one that is not there."""
    half = max(SHAPE) / 2
    own = np.zeros((1, 2, 3))
    own[0, 0], own[0, 1] = [0.0, 0.031 * half, 0.0], [0.0, 0.0, 0.027 * half]
    stack_ = np.array([[half, half, 0.0], [half, 0.0, half]])
    middle = (SHAPE[1] / 2, SHAPE[0] / 2)
    maps = PhaseMaps(middle=middle, half=half, order=1, stack=stack_, phases=own)
    phases = np.zeros((1, 2, 3))
    for k in (0, 1):
        phases[0, k, 0] = START[k] + slopes[k] * middle[k]
        phases[0, k, 1 + k] = slopes[k] * half
    frames = Frames(middle=middle, half=half, order=1, phases=phases, boxes=np.array([box]))
    return Dithers(maps=maps, frames=frames if found else None)


def errors(psf, slopes):
    """Return [k]: the largest errors within one FWHM over the peak, places' phases averaged over 48 px.

    Free of shifts: interpolation makes stars lopsided, so that where their middle is depends on its meaning.
    """
    out = []
    offset = np.arange(-12, 13)
    core = np.hypot(offset[:, None], offset) <= SEEING.fwhm
    for x, y in PLACES:
        around = [(x + dx, y + dy) for dx in range(-24, 25, 8) for dy in range(-24, 25, 8)]
        truth = np.mean([interpolated(*place, slopes, 12) for place in around], axis=0)
        model = psf.at(x, y).astype(float)
        half = len(model) // 2
        model = model[half - 12 : half + 13, half - 12 : half + 13]
        off = (model / model.sum() - truth / truth.sum())[core]
        moved = np.stack([slope[core] for slope in np.gradient(truth)], axis=1)
        off -= moved @ np.linalg.lstsq(moved, off, rcond=None)[0]
        out.append(np.abs(off).max() / truth.max() * truth.sum())
    return np.array(out)


def test_waves_are_followed_where_they_are_long():
    slopes = (0.0041, -0.0025)
    image, stars = stack(1, slopes)
    plain, _ = model_psf(image, stars, GAIN, PsfConfig())
    followed, _ = model_psf(image, stars, GAIN, PsfConfig(), dithers(slopes))
    before, after = (np.sqrt(np.mean(errors(psf, slopes) ** 2)) for psf in (plain, followed))
    assert before > 0.025
    # one dither alone is the worst case
    assert after < min(0.01, 0.3 * before)


def test_short_waves_are_averaged_and_stated_as_error():
    slopes = (0.021, 0.027)
    image, stars = stack(2, slopes)
    plain, _ = model_psf(image, stars, GAIN, PsfConfig())
    followed, _ = model_psf(image, stars, GAIN, PsfConfig(), dithers(slopes))
    x, y = (np.array(v, dtype=float) for v in zip(*PLACES, strict=True))
    waved = followed.modes[len(plain.modes) :]
    strength = np.abs(waved).max(axis=(1, 2)) / followed.mean.max()
    # the mean phases of the stars are left
    assert (np.abs(followed.amplitudes.at(x, y)[-len(waved) :]) * strength[:, None]).max() < 0.01
    assert np.sqrt(np.mean(errors(followed, slopes) ** 2)) < 0.01
    # single stars still differ by 3 % of the peak
    assert followed.error.values.min() > 0.02
    assert followed.error.values.min() > 0.5 * plain.error.values.min()


def parted_stars(seed, at, slopes, k=300, share=1.0):
    """Return (stars changed by the waves of one dither left of x = ``at`` alone; their PSF)."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], k), rng.uniform(0, SHAPE[0], k)
    psf = SEEING.stamp(31)
    psf /= psf.sum()
    waved = waves_at(dithers(slopes).frames, x, y, averaged=False)[0] * (x < at) * share
    flux = np.exp(rng.uniform(*np.log((1e5, 1e6)), k))
    stamps = psf + np.einsum("pn,pij->nij", waved, patterns(psf))
    noise = np.sqrt((SKY / flux[:, None, None] + np.maximum(psf, 0)) / GAIN / flux[:, None, None])
    stamps = (stamps + noise * rng.standard_normal(stamps.shape)).astype(np.float32)
    sample = Sample(
        stamps=stamps,
        known=np.ones(stamps.shape, dtype=bool),
        row=np.arange(k),
        x=x,
        y=y,
        flux=flux,
        sky=np.full(k, SKY / GAIN),
        region=np.zeros(k, dtype=np.int64),
        gain=GAIN,
    )
    return sample, psf


@pytest.mark.parametrize("share", [0.75, 1.2])
def test_a_frame_has_the_share_that_stars_show(share):
    slopes, at = (0.0101, -0.0087), 700.0
    sample, psf = parted_stars(4, at, slopes, share=share)
    frames = dithers(slopes, (-np.inf, at, -np.inf, np.inf)).frames
    waves = find_waves(sample, psf, SEEING.fwhm, frames, no_borders(SHAPE))
    beyond = sample.x > at
    told = waves.shares_at(sample.x, sample.y)[0]
    assert (told[beyond] == 0).all()
    np.testing.assert_allclose(told[~beyond], share, atol=0.06)
    left = without_waves(sample, psf, waves)
    even = left.stamps - left.stamps[beyond].mean(axis=0)
    middle = psf.shape[0] // 2
    assert even[~beyond, middle, middle].std() < 1.2 * even[beyond, middle, middle].std()


def test_where_stars_do_not_tell_shares_are_equal():
    slopes = (0.0101, -0.0087)
    sample, psf = parted_stars(5, 700.0, slopes)
    sample = replace(sample, flux=sample.flux * 1e-4)  # as noisy as that
    one, other = dithers(slopes).frames, dithers((0.004, 0.003), (-np.inf, 500.0, -np.inf, np.inf)).frames
    waves = find_waves(sample, psf, SEEING.fwhm, one.and_frame(other), no_borders(SHAPE))
    shares = waves.shares_at(np.array([200.0, 900.0]), np.array([300.0, 300.0]))
    np.testing.assert_allclose(shares, [[0.5, 1.0], [0.5, 0.0]], atol=0.15)


def test_regions_are_learnt_though_every_star_is_far_off_the_first_model():
    rng = np.random.default_rng(6)
    sample, _ = parted_stars(6, 700.0, (0.0, 0.0), k=50)
    truth = np.stack([skies.Seeing(fwhm=f, beta=3.5).stamp(31) for f in (2.9, 4.6)])
    truth /= truth.sum(axis=(1, 2), keepdims=True)
    region = (sample.x > 700).astype(np.int64)
    psf = truth[region]
    noise = np.sqrt((SKY / sample.flux[:, None, None] + psf) / GAIN / sample.flux[:, None, None])
    sample = replace(
        sample, stamps=(psf + noise * rng.standard_normal(psf.shape)).astype(np.float32), region=region
    )
    inside = (region == np.array([[0], [1]])) * 1.0
    amplitudes = inside - inside.mean(axis=1, keepdims=True)
    before = np.concatenate([truth.mean(axis=0)[None], np.zeros((2, 31, 31))])
    found, _ = _regressed(sample, before, amplitudes, radii(31) <= 5.0)
    for r in (0, 1):
        model = found[0] + np.einsum("m,mij->ij", amplitudes[:, region == r][:, 0], found[1:])
        assert np.abs(model - truth[r]).max() < 0.01 * truth[r].max()


def test_where_no_star_is_a_step_may_be():
    sample, psf = parted_stars(7, 0.0, (0.0, 0.0), k=40)
    sample = replace(sample, x=sample.x * 700 / SHAPE[1])
    field = PsfField.uniform(Psf(stamp=psf, fwhm_pix=SEEING.fwhm, n_stars=40), SHAPE, error=0.01)
    likely = no_borders(SHAPE).and_line(True, 750.0)
    x, y = np.array([200.0, 1350.0]), np.array([500.0, 500.0])
    field = replace(field, error=Cells(values=np.full((2, 3), 0.01), shape=SHAPE))
    known, unknown = with_unseen_steps(field, sample, likely).error.at(x, y)
    assert known == pytest.approx(0.01, rel=0.1)
    assert unknown == pytest.approx(np.hypot(0.01, 0.05), rel=0.01)


def test_near_lines_are_one():
    borders = no_borders(SHAPE)
    for upright, at in ((True, 700.0), (True, 120.0), (True, 150.0), (False, 130.0)):
        borders = borders.and_line(upright, at)
    found = apart(borders)
    assert list(zip(found.upright.tolist(), found.at.tolist(), strict=True)) == [
        (True, 120.0),
        (True, 700.0),
        (False, 130.0),
    ]


def test_the_light_of_a_mean_errs_as_it_says():
    light, said = [], []
    for seed in range(150):
        sample, psf = parted_stars(seed, 0.0, (0.0, 0.0), k=12)
        core = radii(31) <= 1.5 * SEEING.fwhm
        weight = star_weights(sample, psf, core)
        mean = np.average(sample.stamps, axis=0, weights=weight)
        light.append((mean - psf)[~core].sum())
        said.append(_light_error(sample, psf, core))
    # Poisson noise of the wings' own light is not in it: a tenth here
    assert np.std(light) == pytest.approx(np.mean(said), rel=0.25)


def test_without_waves_nothing_changes():
    image, stars = stack(3, (0.0, 0.0))
    plain, _ = model_psf(image, stars, GAIN, PsfConfig())
    same, _ = model_psf(image, stars, GAIN, PsfConfig(), dithers((0.0123, -0.0171), found=False))
    assert len(same.modes) == len(plain.modes)
    np.testing.assert_array_equal(same.mean, plain.mean)


@pytest.mark.parametrize("axis", [1, 0])
def test_patterns_are_what_interpolation_at_a_phase_changes(axis):
    offset = np.arange(-20, 21)
    v, u = np.meshgrid(offset, offset, indexing="ij")
    sigma2 = (2.3 / 2.3548) ** 2

    def interpolated_at(p):
        along, across = (u, v) if axis == 1 else (v, u)
        parts = [
            w * np.exp(-0.5 * ((along + s) ** 2 + across**2) / sigma2) for w, s in ((1 - p, -p), (p, 1 - p))
        ]
        return sum(parts) / (2 * np.pi * sigma2)

    all_p = (np.arange(64) + 0.5) / 64
    stamps = np.stack([interpolated_at(p) for p in all_p])
    mean = stamps.mean(axis=0)
    half = slice(0, 4) if axis == 1 else slice(4, 8)
    assert np.abs(stamps - mean).max() > 0.08 * mean.max()
    # cosines and sines of one harmonic are orthogonal to all others
    made = 2 / len(all_p) * np.einsum("pn,nij->pij", columns(all_p), stamps)
    np.testing.assert_allclose(patterns(mean)[half], made, atol=1e-3 * mean.max())


@pytest.mark.parametrize(("number", "east", "north"), [(4, 0, 0), (7, 4, 0), (5, 0, 7), (0, -4, -7)])
def test_phases_are_those_of_a_dither_taken_there(number, east, north):
    case = Case(seed=5, corner=True, density=8000, pointing_arcsec=8.0, rotation_deg=0.05)
    pair = make(case)
    registration = register(pair.science, pair.template, RegisterConfig())
    maps_ = dither_phases(pair.science, pair.template, registration)
    at = Pointing(claimed=FIELD, true=shifted(FIELD, east / 60, north / 60), rotation_deg=0.06)
    patch = Patch(chip="M", x0=0, y0=FULL_SIZE[1] - 2048, columns=2048, rows=2048)
    dither = true_wcs(solution_of("CTIO", "M"), at, patch)
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 2047, 9)))
    stack_ = template_position(registration, x, y)
    seen = np.stack(dither.wcs_world2pix(*pair.wcs[1].wcs_pix2world(*stack_, 0), 0)) - stack_
    phases = maps_.at(x, y)
    off = (seen - phases.straight[number]).ravel()
    ones = np.repeat(np.eye(2), len(x), axis=1)
    free = np.concatenate([ones, phases.turning.reshape(1, -1)]).T
    found, *_ = np.linalg.lstsq(free, off, rcond=None)
    assert np.abs(off - free @ found).max() < 0.05
    assert abs(found[2]) < MOST_TURN

    ends = likely_borders(maps_, (2048, 2048))
    for k in (0, 1):
        # where the dither's own chip begins, on a line through the middle of the image
        line = np.arange(2048.0)
        across = np.full(2048, 1024.0)
        sky = pair.wcs[1].wcs_pix2world(*template_position(registration, *((line, across)[:: 1 - 2 * k])), 0)
        at_dither = np.asarray(dither.wcs_world2pix(*sky, 0))[k]
        for end in (-0.5, 2047.5):
            if at_dither.min() + LIKELY_PIX < end < at_dither.max() - LIKELY_PIX:
                nominal = ends.at[ends.upright == (k == 0)]
                assert np.abs(nominal - np.interp(end, at_dither, line)).min() < LIKELY_PIX


def at_sky(pair, place):
    """Return both chips of a pair as if taken elsewhere on the sky, each about the same point of its own."""
    chips = []
    for chip, wcs in zip((pair.science, pair.template), pair.wcs, strict=True):
        moved = wcs.deepcopy()
        moved.wcs.crval = place
        chips.append(replace(chip, raw=replace(chip.raw, wcs=moved)))
    return chips


def test_a_dither_of_ordinary_fields_is_that_of_its_coordinates():
    pair = make(Case(seed=5, density=8000))
    science, stack = (chip.raw.wcs for chip in at_sky(pair, (115.3, -30.0)))
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, 2047, 9), np.linspace(0, 2047, 9)))
    for east, north in [(4 / 60, 0), (0, -7 / 60), (-4 / 60, 7 / 60), (4 / 60, -7 / 60)]:
        moved = science.deepcopy()
        moved.wcs.crval = 115.3 + east / np.cos(np.radians(30.0)), -30.0 + north
        found = _chip_pixels(science, stack, (2048, 2048), (east, north))(np.stack([x, y]))
        off = found - _chip_pixels(moved, stack, (2048, 2048), (0.0, 0.0))(np.stack([x, y]))
        # pointings err by 25 px, and a turn of 0.05 degrees is 1.8 px over the image
        assert np.abs(off).max() < 1
        assert np.ptp(off, axis=1).max() < 0.02


@pytest.mark.parametrize("dec", [-90.0, -89.95, -89.0, 89.9])
def test_there_are_fields_at_the_pole(dec):
    """Nearer to it than a dither is long the camera turns from one to the next: no waves are looked for."""
    pair = make(Case(seed=5, density=8000))
    registration = register(pair.science, pair.template, RegisterConfig())
    maps = dither_phases(*at_sky(pair, (115.3, dec)), registration)
    assert (maps is None) == (abs(dec) > 89.5)
    assert maps is None or np.isfinite(maps.phases).all()


def test_other_cameras_have_no_phases():
    pair = make(Case(seed=5, density=8000))
    other = replace(pair.science, raw=replace(pair.science.raw, exposure=None))
    registration = register(pair.science, pair.template, RegisterConfig())
    assert dither_phases(other, pair.template, registration) is None
    coarse = replace(pair.template, raw=replace(pair.template.raw, wcs=tangent_plane(FIELD, 0.6 / 3600)))
    assert dither_phases(pair.science, coarse, registration) is None
