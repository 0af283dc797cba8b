"""The fast subtraction of a patch against the plain one, and its by-products against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from ks4diff.numerics import score_variance, thin, zogy, zogy_patch
from ks4diff.numerics.noise import bilinear_covariance, power_spectrum
from ks4diff.numerics.psf_grid import transform
from tests import oracles
from tests.strategies import SHAPES, gaussian, lopsided, moffat

PSFS = tuple(
    lopsided(p, at).astype(np.float32) for p, at in ((moffat(25, 3.0), (1, 1)), (moffat(31, 4.2), (0, 1)))
)
COLOUR = bilinear_covariance(0.24, 0.21) / bilinear_covariance(0.24, 0.21)[1, 1]
FRAMED = slice(3, 67), slice(3, 80)  # what lies 3 px within the scores of `TestTerms`
MARGIN = 62  # twice the larger stamp: nothing wraps


def pair(shape, colour=None, psf_error=0.0):
    rng = np.random.default_rng(1)
    sides = [
        zogy_patch.PatchSide(PSFS[0], 9.0, None, 1.5, psf_error),
        zogy_patch.PatchSide(PSFS[1], 4.0, colour, 4.0, psf_error),
    ]
    images = [rng.normal(0, np.sqrt(side.sigma2), shape) for side in sides]
    for image, side in zip(images, sides, strict=True):
        half = len(side.psf) // 2
        image[45 - half : 46 + half, 48 - half : 49 + half] += 5000 * side.psf
    return sides, [image.astype(np.float32) for image in images]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", [None, COLOUR], ids=["white", "bilinear"])
def test_against_the_plain_subtraction(shape, colour):
    sides, images = pair(shape, colour)
    grid = tuple(n + MARGIN for n in shape)
    filters = zogy_patch.filters(*sides, grid, zogy.PSF_LIFT)
    put = []
    for image in images:
        put.append(np.zeros(grid, dtype=np.float32))
        put[-1][: shape[0], : shape[1]] = image
    d, s_n, s_r, light = (plane[: shape[0], : shape[1]] for plane in zogy_patch.apply(filters, *put))
    plain_grid = zogy.grid_shape(shape, 31)
    tints = [
        None
        if s.correlation is None
        else oracles.relative_power(power_spectrum(s.correlation, plain_grid), plain_grid)
        for s in sides
    ]
    plain = zogy.subtract(
        *(
            zogy.Side(image, np.full(shape, s.sigma2, np.float32), s.psf, 1.0, s.sigma2, tint)
            for image, s, tint in zip(images, sides, tints, strict=True)
        )
    )
    assert filters.flux == pytest.approx(plain.flux, rel=1e-5)
    assert filters.score_flux == pytest.approx(plain.score_flux, rel=1e-5)
    np.testing.assert_allclose(d, plain.difference, atol=2e-3)
    np.testing.assert_allclose(s_n - s_r, plain.score, atol=2e-4 * np.abs(s_n).max())
    np.testing.assert_allclose(filters.psf, plain.psf, atol=2e-6)
    # the Poisson variance: that of images whose variance is their light, taken as it is
    of_light = zogy.subtract(
        *(
            zogy.Side(image, image / s.gain, s.psf, 1.0, s.sigma2, tint)
            for image, s, tint in zip(images, sides, tints, strict=True)
        )
    )
    near = slice(35, 56)
    np.testing.assert_allclose(light[near, near], of_light.variance[near, near], atol=0.02 * light.max())


def test_the_sky_has_its_parts_and_the_shares_sum_to_one():
    sides, _ = pair((96, 96), COLOUR)
    f = zogy_patch.filters(*sides, (180, 200), zogy.PSF_LIFT)
    assert f.sky_n + f.sky_r == pytest.approx(f.score_flux)
    assert f.score_flux == pytest.approx(f.flux**2 * (f.psf.astype(float) ** 2).sum(), rel=1e-3)
    np.testing.assert_allclose(f.share.sum(axis=(1, 2)), 1, atol=1e-5)
    swapped = zogy_patch.filters(*sides[::-1], (180, 200), zogy.PSF_LIFT)
    np.testing.assert_allclose(swapped.share, f.share, atol=1e-6)
    assert swapped.slopes == pytest.approx(f.slopes, abs=1e-6)


@pytest.mark.parametrize("shape", [(90, 101), (228, 96), (77, 64)])
def test_a_thin_transform_tells_that_of_the_embedded_stamp(shape):
    for stamp in (
        PSFS[0],
        PSFS[1],
        gaussian(9, 2.0, dx=0.3),
        np.random.default_rng(2).normal(0, 1, (21, 21)),
    ):
        rows = thin.thin_rows(len(stamp))
        few = thin.thin_transform(stamp[None], shape[1], rows)[0]
        out = np.empty((shape[0], few.shape[1]), dtype=np.complex64)
        for k, (first, weights) in enumerate(zip(*thin.taps(shape[0], rows, len(stamp)), strict=True)):
            thin.thin_row(few.view(np.float32), first, weights, out[k].view(np.float32))
        twin = transform(stamp.astype(np.float64), shape)
        np.testing.assert_allclose(out, twin, atol=1e-6 * np.abs(twin).max())


def test_slopes_are_those_of_filtered_noise():
    sides, _ = pair((96, 96))
    shape = (600, 640)
    f = zogy_patch.filters(*sides, shape, zogy.PSF_LIFT)
    rng = np.random.default_rng(3)
    noise = [rng.normal(0, np.sqrt(s.sigma2), shape).astype(np.float32) for s in sides]
    _, s_n, s_r, _ = zogy_patch.apply(f, *noise)
    score = (s_n - s_r).astype(float)
    x, y = (0.5 * (np.roll(score, -1, axis) - np.roll(score, 1, axis)) for axis in (1, 0))
    found = np.array([(x * x).mean(), (y * y).mean(), (x * y).mean()]) / score.var()
    assert found == pytest.approx(f.slopes, abs=0.02 * f.slopes[0])


def test_slopes_and_motion_against_their_twins():
    sides, _ = pair((96, 96))
    f = zogy_patch.filters(*sides, (180, 200), zogy.PSF_LIFT)
    shape = (95, 117)
    nothing = np.zeros(shape)
    plain = (zogy.Side(nothing, nothing, side.psf, 1.0, side.sigma2, None) for side in sides)
    slopes = oracles.slopes(oracles.zogy(*plain, shape, lift=zogy.PSF_LIFT)["psf"])
    assert slopes == pytest.approx(f.slopes, abs=1e-5 * slopes[0])
    assert abs(slopes[2]) > 0.01 * slopes[0]  # these PSFs make x and y depend on each other
    rng = np.random.default_rng(9)
    score, error = rng.normal(0, 3, (43, 57)).astype(np.float32), rng.uniform(2, 3, (43, 57)).astype("f4")
    twin = oracles.translient(score.astype(float), error.astype(float), slopes)
    np.testing.assert_allclose(zogy_patch.translient(score, error, f.slopes), twin, rtol=1e-4, atol=1e-3)


def test_motion_of_noise_is_chi_squared_with_two_degrees_of_freedom():
    """Law 17: the mean to 0.5 %, and what lies beyond the 90, 99 and 99.9 % points, of 17 million pixels."""
    sides, _ = pair((96, 96))
    f = zogy_patch.filters(*sides, (180, 200), zogy.PSF_LIFT)
    shape, rng, points = (2048, 2048), np.random.default_rng(5), np.array([0.1, 0.01, 0.001])
    response = np.conj(fft.rfft2(f.psf, shape)).astype(np.complex64)
    mean, beyond, n = 0.0, np.zeros(3), 4
    for _ in range(n):
        score = fft.irfft2(fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * response, shape)
        score /= np.float32(np.sqrt((f.psf**2).sum()))
        z2 = zogy_patch.translient(score, np.ones(shape, dtype=np.float32), f.slopes)[1:-1, 1:-1]
        mean += z2.mean(dtype=np.float64) / n
        beyond += [(z2 > -2 * np.log(p)).mean() / n for p in points]
    assert mean == pytest.approx(2, rel=0.005)
    # a million patches of noise: their Poisson errors are 0.3, 1 and 3 %
    assert (np.abs(beyond / points - 1) < [0.01, 0.02, 0.06]).all(), beyond / points


def test_the_lift_leaves_what_either_psf_passes():
    a, b = (fft.rfft2(np.pad(psf, 40)) for psf in PSFS)
    for one, lifted in zip(
        (a, b[: len(a), : a.shape[1]]), zogy.lifted(a, b[: len(a), : a.shape[1]], 3e-4), strict=True
    ):
        seen = np.hypot(np.abs(a), np.abs(b[: len(a), : a.shape[1]])) > 3e-3
        assert np.abs(lifted - one)[seen].max() < 1e-9
        assert np.abs(lifted - one).max() <= 3e-4 * 1.001


class TestTerms:
    def scores(self):
        rng = np.random.default_rng(4)
        shape = (70, 83)
        star = 4000 * gaussian(31, 5.0)
        n, r = rng.normal(0, 1, shape), rng.normal(0, 1, shape)
        n[20:51, 25:56] += star
        r[20:51, 25:56] += star
        n[5:36, 50:81] += 0.1 * star
        return [image.astype(np.float32) for image in (n, r, rng.uniform(0, 3, shape))]

    def test_the_astrometric_term_against_its_twin(self):
        n, r, light = self.scores()
        twin = oracles.astrometric_variance(n.astype(float), r.astype(float), (0.2, 0.1))
        np.testing.assert_allclose(score_variance.astrometric(n, r, 0.2, 0.1), twin, rtol=1e-4, atol=1e-5)
        errors = score_variance.Errors(shift_x2=0.04, shift_y2=0.01)
        variance = score_variance.terms((n, r, 0 * light), FRAMED, errors, 1.0)
        np.testing.assert_allclose(variance, twin[3:-3, 3:-3], rtol=1e-4, atol=1e-5)

    def test_light_counts_where_there_is_light_beyond_doubt(self):
        n, r, light = self.scores()
        variance = score_variance.terms((n, r, light), FRAMED, score_variance.Errors(), 1.0)
        n, r, light = (image[3:-3, 3:-3] for image in (n, r, light))
        sure = (np.maximum(n, r) > 10) | (np.minimum(n, r) > 4.5)
        none = (np.maximum(n, r) < 6) & (np.minimum(n, r) < 2.5)
        assert sure.any()
        np.testing.assert_allclose(variance[sure], light[sure], rtol=1e-6)
        assert not variance[none].any()
        padded = tuple(np.pad(image, 3) for image in (n, r, 0 * light))
        scale = score_variance.terms(padded, FRAMED, score_variance.Errors(scale2=0.01), 1.0)
        np.testing.assert_allclose(scale, 0.01 * np.maximum(np.minimum(n, r), 0) ** 2, rtol=1e-5)

    @pytest.mark.parametrize("sigma", [0.7, 40.0])
    def test_the_gate_against_its_twin(self, sigma):
        rng, shape = np.random.default_rng(10), (71, 94)
        n, r = (sigma * rng.uniform(-3, 12, shape).astype(np.float32) for _ in range(2))
        light = rng.uniform(-1, 3, shape).astype(np.float32)
        inner = slice(3, 66), slice(5, 90)
        variance = score_variance.terms((n, r, light), inner, score_variance.Errors(), sigma)
        part = oracles.believed(n.astype(float), r.astype(float), sigma)
        assert ((part > 0) & (part < 1)).mean() > 0.2
        twin = (part * np.maximum(light, 0))[inner]
        np.testing.assert_allclose(variance, twin, rtol=1e-5, atol=1e-5)

    def test_the_term_of_psf_errors_against_its_twin(self):
        n, r, light = self.scores()
        twin = oracles.psf_variance(n.astype(float), r.astype(float), 0.3)
        variance = score_variance.terms((n, r, 0 * light), FRAMED, score_variance.Errors(bend2=0.3), 1.0)
        np.testing.assert_allclose(variance, twin[3:-3, 3:-3], rtol=1e-4, atol=1e-5)

    def test_the_corrected_score(self):
        n, r, more = self.scores()
        step = 16
        nodes = np.random.default_rng(6).uniform(1, 2, (6, 7)).astype(np.float32)
        y, x = np.mgrid[:70, :83] / step
        j, i = y.astype(int), x.astype(int)
        v, u = y - j, x - i
        sky = (nodes[j, i] * (1 - u) + nodes[j, i + 1] * u) * (1 - v) + (
            nodes[j + 1, i] * (1 - u) + nodes[j + 1, i + 1] * u
        ) * v
        # the rectangle lies somewhere in larger planes
        inner = slice(3, 73), slice(5, 88)
        planes = tuple(np.pad(image, ((3, 1), (5, 2)), constant_values=9) for image in (n, r))
        score, error, taken = score_variance.corrected(
            planes, inner, (nodes, step), more, None, flux=4.0, limit=0.1
        )
        np.testing.assert_allclose(score, (n - r) / np.sqrt(sky + more), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(error, np.sqrt(sky + more) / 4, rtol=1e-5)
        assert taken is None
        lost = np.random.default_rng(7).uniform(0, 0.5, (2, 70, 83)).astype(np.float32)
        fill = np.random.default_rng(8).uniform(0, 1.5, (70, 83)).astype(np.float32)
        holes = np.pad(lost, ((0, 0), (3, 1), (5, 2))), np.pad(fill, ((3, 1), (5, 2)))
        kept = more.copy()
        score, error, taken = score_variance.corrected(
            planes, inner, (nodes, step), more, holes, flux=4.0, limit=0.1
        )
        total = sky * (1 - lost[1]) + fill**2 + more
        np.testing.assert_allclose(score, (n - r) / np.sqrt(total), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(error, np.sqrt(total) / (4 * (1 - lost[0])), rtol=1e-4)
        np.testing.assert_array_equal(taken, (lost[0] > 0.1) | (fill**2 > sky * (1 - lost[1])))
        np.testing.assert_array_equal(more, kept)

    @pytest.mark.parametrize("hurt", [False, True])
    def test_the_corrected_score_against_its_twin(self, hurt):
        rng, shape, step = np.random.default_rng(11), (45, 67), 16
        planes = tuple(rng.normal(0, 9, (52, 71)).astype(np.float32) for _ in range(2))
        inner = slice(4, 49), slice(3, 70)
        nodes = rng.uniform(1, 5, (4, 6)).astype(np.float32)
        more = rng.uniform(0, 4, shape).astype(np.float32)
        losses = rng.uniform(0, 1.2, (2, 52, 71)).astype(np.float32)  # the floor is met
        fill = rng.uniform(0, 3, (52, 71)).astype(np.float32)
        found = score_variance.corrected(
            planes, inner, (nodes, step), more, (losses, fill) if hurt else None, flux=7.0, limit=0.4
        )
        holes = [plane[inner].astype(float) * hurt for plane in (*losses, fill)]
        scores = (plane[inner].astype(float) for plane in planes)
        twin = oracles.corrected(*scores, (nodes.astype(float), step), more.astype(float), holes, 7.0, 0.4)
        np.testing.assert_allclose(found[0], twin[0], rtol=2e-6, atol=1e-5)
        np.testing.assert_allclose(found[1], twin[1], rtol=1e-5)
        if hurt:
            np.testing.assert_array_equal(found[2], twin[2])
            assert 0.1 < twin[2].mean() < 0.95
        else:
            assert found[2] is None


def test_a_psf_error_leaves_what_a_stretched_star_does():
    """Law by law: the derivative by the width is that of stretched PSFs, and S of one less S of the other."""
    fwhm, step = 4.2, 0.01
    wide, narrow = (gaussian(45, fwhm * (1 + s)) for s in (step / 2, -step / 2))
    plain = gaussian(45, fwhm) / gaussian(45, fwhm).sum()
    change = (wide / wide.sum() - narrow / narrow.sum()) / step
    by_width = fft.irfft2(zogy_patch._by_width(plain, (90, 90)), (90, 90))
    seen = np.roll(by_width, (22, 22), (0, 1))[:45, :45]
    np.testing.assert_allclose(seen, change, atol=2e-3 * np.abs(change).max())
    sides = [
        zogy_patch.PatchSide(plain.astype(np.float32), 9.0, None, 1.5, 0.02),
        zogy_patch.PatchSide(PSFS[0], 4.0, COLOUR, 4.0, 0.0),
    ]
    f = zogy_patch.filters(*sides, (180, 200), zogy.PSF_LIFT)
    # a static star as wide as the science PSF's error of 2 % of the peak makes it
    science, template = (np.zeros((180, 200), dtype=np.float32) for _ in range(2))
    true = gaussian(45, fwhm * 1.01)
    science[58:103, 68:113] = 1e4 * true / true.sum()
    template[68:93, 78:103] = 1e4 * PSFS[0]
    _, s_n, s_r, _ = zogy_patch.apply(f, science, template)
    assert (s_n - s_r)[80, 90] ** 2 / s_r[80, 90] ** 2 == pytest.approx(f.left2, rel=0.05)
