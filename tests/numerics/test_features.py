"""The feature vector holds its laws and equals its plain twin, and nothing in it has moved unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ks4diff.numerics.features import LARGEST, Context, Stamps, features
from ks4diff.numerics.features_place import placed
from ks4diff.numerics.taps import tap_table
from ks4diff.products.features import FEATURE_NAMES, FEATURES, VECTOR_NAME, definitions_hash
from tests import oracles_features, skies

GOLDEN = Path(__file__).parent.parent / "golden" / "features_f2.csv"
SIZE = 41
COLUMN = {name: k for k, name in enumerate(FEATURE_NAMES)}
OVER_THE_PSF = ("s_width", "conc", "sharp", "fwhm_rat", "a_rat", "b_rat", "sumrat", "psf_corr", "sci_corr")
MEASURED = tuple(name for name in FEATURE_NAMES if name != "nexp_frac")  # that is NaN of no stack
TURNED = ("pa_col", "col_med", "row_med", "col_min")


def psfs(widths=(4.2, 3.1, 3.6)):
    """Return unequal PSFs of science, template and difference, one of them not round."""
    out = [
        skies.Seeing(fwhm=w, ratio=r, angle_deg=30.0).stamp(SIZE)
        for w, r in zip(widths, (0.9, 1.0, 0.95), strict=True)
    ]
    return np.stack(out)[:, None].astype(np.float32)


def seen(psf, amplitude, offset):
    """Return float32 [n, 63, 63]: a source of each amplitude at its sub-pixel place."""
    big = np.pad(psf, (63 - SIZE) // 2)[None].astype(np.float32)
    dx, dy = np.ascontiguousarray(offset[:, 0]), np.ascontiguousarray(offset[:, 1])
    return placed(big, np.zeros(len(offset), int), dx, dy, tap_table()) * amplitude[:, None, None]


def autocorrelated(psf):
    """Return how a point source looks in the score, on the PSF's own grid."""
    power = np.abs(np.fft.rfft2(psf, (2 * SIZE, 2 * SIZE))) ** 2
    full = np.fft.fftshift(np.fft.irfft2(power, (2 * SIZE, 2 * SIZE)))
    return full[SIZE - SIZE // 2 : SIZE + SIZE // 2 + 1, SIZE - SIZE // 2 : SIZE + SIZE // 2 + 1]


def candidates(n=12, *, noise=1.0, seed=3, masked=0.0, host=0.0):
    """Return (stamps, context) of point sources of both signs, the template holding a host beside each."""
    rng = np.random.default_rng(seed)
    p = psfs()
    # multiples of 1/4096 px: turned and unturned places use the same weights
    offset = np.rint(rng.uniform(-0.5, 0.5, (n, 2)) * 4096) / 4096
    amplitude = rng.uniform(30, 400, n)
    sign = np.where(np.arange(n) % 3 == 2, -1.0, 1.0)
    sigma = rng.uniform(0.5, 2, (n, 3))
    up, down = np.where(sign > 0, amplitude, 0), np.where(sign < 0, amplitude, 0)
    hosts = seen(p[0, 0], host * amplitude, offset + 0.2), seen(p[1, 0], host * amplitude, offset + 0.2)
    images = [
        seen(p[0, 0], up, offset) + hosts[0],
        seen(p[1, 0], down, offset) + hosts[1],
        seen(p[2, 0], sign * amplitude, offset),
        seen(autocorrelated(p[2, 0]), sign * amplitude / np.sqrt((p[2, 0] ** 2).sum()), offset),
    ]
    for k in range(4):
        scale = sigma[:, k, None, None] if k < 3 else 1.0
        images[k] = (images[k] + noise * scale * rng.normal(size=images[k].shape)).astype(np.float32)
    bad = rng.random((n, 63, 63)) < masked
    bad[:, 31, 31] = False
    stamps = Stamps(*images, bad, sigma, offset, np.zeros(n, np.int64), p, np.array([3.6]))
    context = Context(
        *(rng.uniform(0.1, 5, n) for _ in range(6)),
        np.full(n, np.nan),
        *(rng.uniform(0, 900, n) for _ in range(6)),
    )
    return stamps, context


def turned(stamps):
    """Return the stamps and their PSFs turned by 90 degrees, x to y and y to -x."""

    def turn(a):
        return np.ascontiguousarray(np.rot90(a, -1, axes=(-2, -1)))

    dx, dy = stamps.offset.T
    return stamps._replace(
        **{
            name: turn(getattr(stamps, name))
            for name in ("science", "template", "difference", "score", "bad", "psfs")
        },
        offset=np.stack([-dy, dx], axis=1),
    )


class TestLaws:
    @pytest.mark.parametrize("masked", [0.0, 0.05])
    def test_a_quarter_turn_changes_only_what_is_tied_to_the_rows(self, masked):
        stamps, context = candidates(masked=masked, host=2.0)
        upright, other = features(stamps, context), features(turned(stamps), context)
        for name in MEASURED:
            if name not in TURNED:
                assert other[:, COLUMN[name]] == pytest.approx(
                    upright[:, COLUMN[name]], rel=1e-4, abs=1e-4
                ), name
        assert other[:, COLUMN["row_med"]] == pytest.approx(upright[:, COLUMN["col_med"]], abs=1e-6)
        assert other[:, COLUMN["col_med"]] == pytest.approx(upright[:, COLUMN["row_med"]], abs=1e-6)

    def test_units_do_not_matter(self):
        stamps, context = candidates(host=1.0)
        scaled = stamps._replace(
            **{name: getattr(stamps, name) * np.float32(8) for name in ("science", "template", "difference")},
            sigma=stamps.sigma * 8,
        )
        assert features(scaled, context) == pytest.approx(features(stamps, context), rel=1e-5, nan_ok=True)

    def test_swapping_the_images_changes_nothing(self):
        stamps, context = candidates(host=1.0)
        swapped = stamps._replace(
            science=stamps.template,
            template=stamps.science,
            difference=-stamps.difference,
            score=-stamps.score,
            sigma=stamps.sigma[:, [1, 0, 2]],
            psfs=np.ascontiguousarray(stamps.psfs[[1, 0, 2]]),
        )
        other = features(swapped, context._replace(seeing=1 / context.seeing))
        assert other == pytest.approx(features(stamps, context), rel=1e-5, abs=1e-6, nan_ok=True)

    def test_a_noiseless_psf_gives_one_for_what_is_divided_by_the_psf(self):
        stamps, context = candidates(noise=0.0)
        found = features(stamps, context)
        for name in OVER_THE_PSF:
            assert found[:, COLUMN[name]] == pytest.approx(1.0, abs=1e-4), name
        for name in ("psf_chi2", "psf_resmax", "ap_psf", "spread", "sci_cons", "dip_dchi2"):
            assert found[:, COLUMN[name]] == pytest.approx(0.0, abs=2e-3), name

    def test_a_star_in_the_template_is_as_concentrated_as_its_psf(self):
        stamps, context = candidates(noise=0.0)
        middle = np.zeros((len(stamps.score), 2))
        star = seen(stamps.psfs[1, 0], np.full(len(middle), 1e4), middle)
        star[stamps.score[:, 31, 31] < 0] = 0
        found = features(stamps._replace(template=star), context)[:, COLUMN["t_conc"]]
        assert found[stamps.score[:, 31, 31] > 0] == pytest.approx(1.0, abs=1e-4)

    def test_valid_stamps_have_no_nan_but_that_of_single_exposures(self):
        found = features(*candidates(n=60, masked=0.1, host=3.0))
        assert np.isfinite(found[:, [COLUMN[name] for name in MEASURED]]).all()
        assert np.isnan(found[:, COLUMN["nexp_frac"]]).all()

    def test_rows_that_cannot_be_trusted_are_nan(self):
        stamps, context = candidates()
        stamps.bad[0, 31, 31] = True
        stamps.bad[1, :, :32] = True
        stamps.bad[1, 31, 31] = False
        stamps.bad[2, :, :25] = True
        found = features(stamps, context)
        assert np.isnan(found[:2]).all()
        assert np.isfinite(found[2:, [COLUMN[name] for name in MEASURED]]).all()

    def test_masked_pixels_do_not_count(self):
        stamps, context = candidates(masked=0.1)
        wild = [np.where(stamps.bad, np.float32(np.nan), image) for image in stamps[:4]]
        other = features(Stamps(*wild, *stamps[4:]), context)
        assert np.array_equal(other, features(stamps, context), equal_nan=True)

    def test_ratios_are_clipped_and_inputs_left_alone(self):
        stamps, context = candidates(noise=0.0)
        before = [np.array(part) for part in (*stamps, *context)]
        stamps.template[:] = 0
        found = features(stamps, context)
        assert found[0, COLUMN["flux_ratio"]] == LARGEST
        stamps.template[:] = before[1]
        for part, copy in zip((*stamps, *context), before, strict=True):
            assert np.array_equal(part, copy, equal_nan=True)

    def test_no_candidates_give_no_rows(self):
        stamps, context = candidates(n=1)
        none = Stamps(*(part[:0] for part in stamps[:8]), *stamps[8:])
        assert features(none, Context(*(part[:0] for part in context))).shape == (0, 66)

    def test_what_is_no_point_source_stands_out(self):
        stamps, context = candidates(noise=0.3)
        point = features(stamps, context)
        shifted = np.roll(stamps.difference, 3, axis=2)
        dipole = features(stamps._replace(difference=stamps.difference - shifted), context)
        assert (dipole[:, COLUMN["dip_amp"]] > 2 * point[:, COLUMN["dip_amp"]]).all()
        assert (dipole[:, COLUMN["dip_dchi2"]] > point[:, COLUMN["dip_dchi2"]]).all()
        hit = np.zeros_like(stamps.difference)
        hit[:, 31, 31] = np.sign(stamps.score[:, 31, 31]) * 100
        assert (features(stamps._replace(difference=hit), context)[:, COLUMN["cr_test"]] < 0).all()


@pytest.mark.parametrize(
    ("seed", "masked", "host", "noise"),
    [(3, 0.0, 0.0, 1.0), (4, 0.06, 3.0, 1.0), (5, 0.25, 0.5, 5.0), (6, 0.0, 1.0, 0.05)],
)
def test_it_equals_the_plain_twin(seed, masked, host, noise):
    stamps, context = candidates(n=9, seed=seed, masked=masked, host=host, noise=noise)
    found = features(stamps, context)
    for k in np.flatnonzero(np.isfinite(found[:, 0])):
        twin = oracles_features.vector(stamps, context, k)
        assert set(twin) == set(MEASURED)
        for name, value in twin.items():
            clipped = (
                value
                if abs(value) < LARGEST or name in ("s_peak", "psf_chi2", "edge_dist")
                else found[k, COLUMN[name]]
            )
            assert found[k, COLUMN[name]] == pytest.approx(clipped, rel=1e-4, abs=1e-5), (k, name)


class TestGolden:
    """A feature that moves without a new version makes every shipped model wrong."""

    def test_definitions(self):
        assert len(FEATURES) == len(set(FEATURE_NAMES)) == 66
        assert sum(feature.core for feature in FEATURES) == 32
        assert (VECTOR_NAME, definitions_hash()) == ("ks4rb-f2", "c593cbd623103187")

    def test_values(self):
        found = features(*candidates(n=3, masked=0.02, host=1.0))
        golden = np.loadtxt(GOLDEN, delimiter=",").T
        assert found == pytest.approx(golden, rel=1e-5, abs=1e-5, nan_ok=True)
