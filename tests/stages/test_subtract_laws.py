"""The laws of the proper difference on even, odd and oblong chips: with holes, in patches, resampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import fft

from benchmarks.chips_changes import noise_floor
from ks4diff.numerics import patches, zogy
from ks4diff.numerics.noise import power_spectrum
from ks4diff.products.image import PixelFlag
from ks4diff.stages.detect import DetectConfig, detect
from ks4diff.stages.measure import measure
from ks4diff.stages.measure_context import MeasureConfig
from tests import oracles
from tests.known_pairs import WHITE, Plan, Side, resampled, run
from tests.strategies import gaussian, moffat

SHAPES = [(400, 400), (421, 421), (333, 612)]  # even, odd, oblong; of each four patches and more
PSFS = moffat(31, 4.0), moffat(35, 3.2)
INNER = (slice(12, -12), slice(12, -12))
LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
HOW = ("white", "lanczos", "bilinear", "spline")
RINGS = np.linspace(0, 0.5, 9)  # cycles per pixel


@pytest.fixture(autouse=True)
def _in_patches(monkeypatch):
    monkeypatch.setattr(patches, "SMALLEST", 150)
    monkeypatch.setattr(patches, "LARGEST", 260)


def holes_of(shape, rng):
    """Return flags: a column, a block and 40 single pixels, 3 % of the chip, below its upper third."""
    flags = np.zeros(shape, np.uint16)
    top = shape[0] // 3
    flags[top:, shape[1] // 2] = flags[top : top + 60, 40:90] = PixelFlag.BAD_PIXEL
    flags[rng.integers(top, shape[0], 40), rng.integers(0, shape[1], 40)] = PixelFlag.BAD_PIXEL
    return flags


def noise_pair(how, shape, rng, flags=None, psfs=PSFS):
    """Return a pair of pure noise; the template's was moved by half a pixel."""
    template, science = Side(psf=psfs[1], sky=500.0), Side(psf=psfs[0])
    shown = science.shown(shape, 0.0, rng)
    if how == "white":
        plan = Plan(science=science, template=template, scale=0.8)
        return plan.known(shown, template.shown(shape, 0.0, rng), (flags, None))
    data, covariance = resampled(how, template, shape, rng)
    left = covariance[len(covariance) // 2, len(covariance) // 2]
    plan = Plan(
        science=science,
        template=template,
        scale=0.8,
        correlations=(WHITE, covariance / left),
        variances=(1.0, left),
    )
    return plan.known(shown, data, (flags, None))


@pytest.fixture(scope="module", params=HOW)
def noise(request):
    """Return {shape: [(D over its noise, S_corr, usable)]} of three draws each, inner pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "SMALLEST", 150)
        patch.setattr(patches, "LARGEST", 260)
        return {shape: [_drawn(request.param, shape, seed) for seed in range(3)] for shape in SHAPES}


def _drawn(how, shape, seed):
    rng = np.random.default_rng([61, seed, *shape])
    done = run(noise_pair(how, shape, rng, holes_of(shape, rng)))
    planes = done.difference / done.noise, done.score_corr
    return *(plane[INNER].astype(np.float64) for plane in planes), done.flags[INNER] == 0


class TestPureNoise:
    def test_d_has_unit_variance_and_s_corr_unit_spread_on_every_shape(self, noise):
        """Laws 1 and 7; some 500,000 pixels in 20,000 PSFs a shape: the std of S_corr errs by 0.5 %."""
        for shape, draws in noise.items():
            d, score = (np.concatenate([one[k][one[2]] for one in draws]) for k in (0, 1))
            assert d.var() == pytest.approx(1, abs=0.01), shape
            assert score.std() == pytest.approx(1, abs=0.01), shape
            assert abs(score.mean()) < 0.02, shape

    def test_d_is_not_correlated(self, noise):
        """Law 1: at most 4 / sqrt(N)."""
        for shape, draws in noise.items():
            for dy, dx in LAGS:
                total, n = 0.0, 0
                for d, _, good in draws:
                    moved = (slice(dy, None), slice(max(dx, 0), d.shape[1] + min(dx, 0)))
                    back = (slice(0, d.shape[0] - dy), slice(max(-dx, 0), d.shape[1] - max(dx, 0)))
                    both = good[moved] & good[back]
                    total, n = total + (d[moved] * d[back])[both].sum(), n + both.sum()
                assert abs(total / n) < 4 / np.sqrt(n), (shape, dy, dx)

    def test_d_has_as_much_power_at_every_frequency(self, noise):
        """Law 1, in rings of |k|, where there is no hole: 1 within 1.5 % and three errors."""
        for shape, draws in noise.items():
            power = []
            for d, *_ in draws:
                part = d[: shape[0] // 3 - 40]
                power.append(np.abs(fft.fft2(part)) ** 2 / part.size)
            k = np.hypot(fft.fftfreq(part.shape[0])[:, None], fft.fftfreq(part.shape[1])[None, :])
            ring = np.digitize(k, RINGS[1:]).ravel()
            level = np.bincount(ring, np.mean(power, axis=0).ravel()) / np.bincount(ring)
            # a frequency and its negative are one
            error = np.sqrt(2 / (len(draws) * np.bincount(ring)))
            for j in range(len(RINGS)):
                assert level[j] == pytest.approx(1, abs=0.015 + 3 * error[j]), (shape, j)

    def test_the_scores_tails_are_those_of_a_normal(self, noise):
        """Law 7: beyond +2.5 as many as beyond -2.5, and as many as there should be; no kurtosis."""
        score = np.concatenate([one[1][one[2]] for draws in noise.values() for one in draws])
        above, below = (score > 2.5).mean(), (score < -2.5).mean()
        # 1.5 million pixels in 60,000 PSFs, of which 370 are beyond on either side: 5 %
        assert above / below == pytest.approx(1, abs=0.15)
        assert above + below == pytest.approx(0.01242, rel=0.08)
        assert ((score - score.mean()) ** 4).mean() / score.var() ** 2 == pytest.approx(3, abs=0.06)


@pytest.mark.parametrize("how", HOW)
def test_swapping_the_images_turns_every_sign(how):
    """Law 9, with holes, in patches, whatever the noise's colour."""
    shape, rng = SHAPES[2], np.random.default_rng(62)
    known = noise_pair(how, shape, rng, holes_of(shape, rng))
    known = replace(known, match=replace(known.match, flux_scale=1.0, scale=_ones(known.match.scale)))
    chip, template = known.chip, known.template
    other = replace(
        known,
        chip=replace(chip, image=template.image, psf=template.psf, noise=template.noise, gain=template.gain),
        template=replace(template, image=chip.image, psf=chip.psf, noise=chip.noise, gain=chip.gain),
        match=replace(
            known.match,
            science_noise=known.match.template_noise,
            template_noise=known.match.science_noise,
        ),
    )
    one, two = run(known), run(other)
    np.testing.assert_allclose(two.score_corr, -one.score_corr, atol=2e-4)
    np.testing.assert_allclose(two.difference, -one.difference, atol=5e-4 * one.noise)
    np.testing.assert_allclose(two.flux_err, one.flux_err, rtol=1e-4)
    np.testing.assert_array_equal(two.flags, one.flags)


def _ones(cells):
    return replace(cells, values=np.ones_like(cells.values))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_source_has_its_flux_in_d_and_under_the_psf(shape):
    """Laws 2, 3 and 6: D sums to the flux, so does P_D to 1; alpha at the source is the flux."""
    x, y, flux = shape[1] // 2 + 3, shape[0] // 2 - 5, 1e5
    light = np.zeros(shape)
    light[y - 15 : y + 16, x - 15 : x + 16] = flux * PSFS[0]
    side = Side(psf=PSFS[0]), Side(psf=PSFS[1], sky=500.0)
    done = run(Plan(science=side[0], template=side[1], scale=0.8).known(light, np.zeros(shape)))
    assert done.difference.sum(dtype=np.float64) == pytest.approx(flux, rel=1e-3)
    assert done.flux[y, x] == pytest.approx(flux, rel=1e-3)
    assert np.unravel_index(done.score_corr.argmax(), shape) == (y, x)


def test_the_same_sky_in_image_and_background_changes_nothing():
    """Law 10."""
    known = noise_pair("white", SHAPES[1], np.random.default_rng(63))
    lifted = replace(
        known,
        chip=replace(known.chip, image=replace(known.chip.image, data=known.chip.image.data + 37.5)),
        match=replace(
            known.match,
            background=replace(
                known.match.background, values=known.match.background.values + np.float32(37.5)
            ),
        ),
    )
    one, two = run(known), run(lifted)
    np.testing.assert_allclose(two.score_corr, one.score_corr, atol=2e-3)
    np.testing.assert_allclose(two.difference, one.difference, atol=2e-3 * one.noise)


@pytest.mark.parametrize(("how", "widths"), [*((how, (4.0, 3.2)) for how in HOW), ("white", (2.1, 2.4))])
class TestFoundBlind:
    """Sources at places below the pixel that nobody tells, against an oracle that knows all.

    In patches, with holes, on every shape; the oracle has no holes and sees between the pixels too.
    """

    def drawn(self, how, shape, seed, snr):
        """Return (pair, x, y, flux) of some 250 sources of one S/N on the sky."""
        rng = np.random.default_rng([64, seed, *shape])
        flags = holes_of(shape, rng)
        empty = noise_pair(how, shape, rng, flags, self.psfs)
        flux = snr * float(np.median(run(empty).flux_err))
        grid = np.array([(x, y) for x in range(30, shape[1] - 25, 25) for y in range(30, shape[0] - 25, 25)])
        light, off = np.zeros(shape), rng.uniform(-0.5, 0.5, grid.shape)
        for (x, y), (dx, dy) in zip(grid, off, strict=True):
            light[y - 15 : y + 16, x - 15 : x + 16] += flux * gaussian(31, self.fwhm, dx=dx, dy=dy)
        noise = np.random.default_rng([65, seed]).normal(0, np.sqrt(light / empty.chip.gain))
        data = empty.chip.image.data + (light + noise).astype(np.float32)
        known = replace(empty, chip=replace(empty.chip, image=replace(empty.chip.image, data=data)))
        return known, *(grid + off).T, flux

    @pytest.fixture(autouse=True)
    def _round_psfs(self, widths):
        self.fwhm, both = widths[0], [gaussian(31, fwhm) for fwhm in widths]
        self.psfs = [psf / psf.sum() for psf in both]

    def oracle(self, known, x, y):
        """Return the highest S / sqrt(F_S) within 2 px of each place, exactly between pixels too."""
        scale, shape = known.match.flux_scale, known.chip.image.shape
        grid = zogy.grid_shape(shape, len(self.psfs[0]))
        correlation = oracles.relative_power(power_spectrum(known.template.noise.correlation, grid), grid)
        plain = zogy.subtract(
            *(
                zogy.Side(side.image.data, np.full(shape, v, np.float32), psf, flux, v, tint)
                for side, psf, flux, v, tint in (
                    (known.chip, self.psfs[0], 1.0, known.chip.noise.sigma**2, None),
                    (known.template, self.psfs[1], 1 / scale, known.template.noise.sigma**2, correlation),
                )
            )
        )
        hat, fine = fft.rfft2(plain.score / np.sqrt(plain.score_flux)), 4
        rows, columns = (fine * n for n in shape)
        wide = np.zeros((rows, columns // 2 + 1), complex)
        half = shape[0] // 2
        wide[:half, : hat.shape[1]], wide[-half:, : hat.shape[1]] = hat[:half], hat[-half:]
        score = fft.irfft2(wide, (rows, columns)) * fine**2
        reach = np.arange(-2 * fine, 2 * fine + 1)
        v, u = np.meshgrid(reach, reach, indexing="ij")
        near = np.hypot(u, v) <= 2 * fine
        row, column = (np.rint(fine * a).astype(int)[:, None] for a in (y, x))
        return score[row + v[near], column + u[near]].max(axis=1)

    def test_half_are_found_at_the_oracles_signal_to_noise(self, how):
        """Of S/N 5, draw by draw the same noise: at 50 % the fraction changes by 0.4 per unit of S/N."""
        ours, best, n = 0, 0, 0
        for seed, shape in enumerate(SHAPES):
            known, x, y, _ = self.drawn(how, shape, seed, 5.0)
            done = run(known)
            clear = done.flags[np.rint(y).astype(int), np.rint(x).astype(int)] == 0
            x, y = x[clear], y[clear]
            found = detect(done, DetectConfig())
            away = np.hypot(found.x - x[:, None], found.y - y[:, None])
            ours += ((away < 2) & (found.score > 5)).any(axis=1).sum()
            best += (self.oracle(known, x, y) > 5).sum()
            n += len(x)
        assert 0.4 < best / n < 0.8
        assert abs(ours - best) / n < 0.05 * 0.4

    def test_their_fluxes_are_unbiased(self, how):
        """Of S/N 25, measured where they were found; 700 of them tell the mean to 0.15 %."""
        ratio = []
        for seed, shape in enumerate(SHAPES):
            known, x, y, flux = self.drawn(how, shape, 100 + seed, 25.0)
            done = run(known)
            clear = done.flags[np.rint(y).astype(int), np.rint(x).astype(int)] == 0
            table = measure(
                detect(done, DetectConfig()), known.chip, known.template, done, MeasureConfig()
            ).table
            away = np.hypot(table["x"] - x[clear][:, None], table["y"] - y[clear][:, None])
            nearest = away.argmin(axis=1)
            assert away.min(axis=1).max() < 1
            ratio.append(table["flux"][nearest] / flux)
        ratio = np.concatenate(ratio)
        assert ratio.mean() == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("how", ["white", "bilinear"])
def test_noise_makes_as_many_peaks_as_its_psf_says(how):
    """Law 16 from 3 to 5 sigma, both signs: as many as the P_D of the patches says, within Poisson.

    4,200 peaks of 3 sigma tell their number to 1.6 %, 180 of 4 sigma to 7 %.
    """
    psfs, levels, found, expected = (moffat(25, 3.0), moffat(27, 3.4)), (3.0, 3.5, 4.0, 4.5, 5.0), [], 0.0
    for seed, shape in enumerate([(1200, 1200), (1221, 1201), (1033, 1402)]):
        done = run(noise_pair(how, shape, np.random.default_rng([66, seed]), psfs=psfs))
        found.append(np.abs(detect(done, DetectConfig(threshold=levels[0])).score))
        expected += done.flags.size / 1e6 * np.array([noise_floor(done.psf, level) for level in levels])
    found = [(np.concatenate(found) > level).sum() for level in levels]
    assert expected[2] > 150
    assert (np.abs(found - expected) <= 3 * np.sqrt(expected)).all(), (found, expected)
    assert found[0] == pytest.approx(expected[0], rel=0.03)
