"""Flux ratios of stars whose PSF steps at a border of the template's stack."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, RawChip, StarList
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.star_photometry import StarRatioConfig, _alike, star_ratios
from tests import skies

SHAPE = (520, 512)
BORDER, LEFT, RIGHT = 150.0, skies.Seeing(fwhm=2.6, beta=3.5), skies.Seeing(fwhm=4.2, beta=3.5)
SCIENCE = skies.Seeing(fwhm=3.2, beta=3.5)
HALF, SKY, RATIO = 16, 100.0, 0.7
NOISE = NoiseModel(sigma=np.sqrt(SKY), correlation=np.ones((1, 1)), method="sky")


def stamp(seeing, dx=0.0, dy=0.0):
    return seeing.stamp(2 * HALF + 1, dx, dy)


def stepping():
    """Return the template's PSF: LEFT, and RIGHT beyond x = BORDER."""
    both = np.stack([stamp(s) / stamp(s).sum() for s in (LEFT, RIGHT)])
    # nodes of 32 px, none of whose middles is nearer to the border than 10 px
    side = np.where((np.arange(16) + 0.5) * 32 > BORDER, 1.0, -1.0)
    return PsfField(
        mean=both.mean(axis=0).astype(np.float32),
        modes=(both[1:] - both.mean(axis=0)).astype(np.float32),
        amplitudes=Cells(values=np.tile(side, (1, 16, 1)).astype(np.float32), shape=SHAPE),
        error=Cells.constant(0.01, SHAPE),
        fwhm=Cells.constant(3.4, SHAPE),
        n_stars=99,
    )


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(3)
    x, y = skies.apart(3, SHAPE, 60, skies.NO_STARS, distance=42)
    # bilinear in between, as `Cells` is
    keep = np.abs(x - BORDER) > 40
    x, y = x[keep], y[keep]
    flux = np.sort(rng.uniform(2e5, 4e5, len(x)))[::-1]
    images = []
    for seeing_at, scale in ((lambda _: SCIENCE, RATIO), (lambda px: RIGHT if px > BORDER else LEFT, 1.0)):
        data = rng.normal(0, np.sqrt(SKY), SHAPE)
        for px, py, light in zip(x, y, flux, strict=True):
            i, j = round(px), round(py)
            rows, columns = (slice(max(v - HALF, 0), v + HALF + 1) for v in (j, i))
            seen = stamp(seeing_at(px), px - i, py - j)[max(HALF - j, 0) :, max(HALF - i, 0) :]
            part = data[rows, columns]
            part += scale * light * seen[: part.shape[0], : part.shape[1]]
        images.append(
            MaskedImage(
                data=data.astype(np.float32),
                flags=np.zeros(SHAPE, dtype=np.uint16),
                sky_variance=Cells.constant(SKY, SHAPE),
            )
        )
    stars = StarList(
        x=x, y=y, flux=RATIO * flux, fwhm=np.full(len(x), 3.2), clean=np.ones(len(x), dtype=bool)
    )
    own = stamp(SCIENCE) / stamp(SCIENCE).sum()
    psf = PsfField.uniform(Psf(stamp=own.astype(np.float32), fwhm_pix=3.2, n_stars=99), SHAPE)
    raw = RawChip(data=images[0].data, file="a.fits", hdu="0")
    chip = CalibratedChip(
        raw=raw, image=images[0], sky=None, stars=stars, psf=psf, noise=NOISE, gain=1e6, gain_source="given"
    )
    template = AlignedTemplate(
        image=images[1], psf=stepping(), noise=NOISE, gain=1e6, coverage=1.0, area=Cells.constant(1.0, SHAPE)
    )
    return chip, template


def test_ratios_are_right_on_both_sides_of_a_border(pair):
    found = star_ratios(*pair, StarRatioConfig())
    left = found.x < BORDER
    # blocks are of 256 px: 10 stars of each side and more are in those that the border crosses
    assert min(left.sum(), (~left & (found.x < 256)).sum()) >= 4
    for side in (left, ~left & (found.x < 256), ~left):
        assert found.ratio[side].mean() == pytest.approx(RATIO, rel=0.003)
        assert found.ratio[side].std() < 0.006 * RATIO


def test_one_psf_for_each_side_and_no_more(pair):
    chip, template = pair
    s = chip.stars
    place = np.stack([s.x, s.y])
    middles = np.array([[128.0, 384.0, 128.0, 384.0], [130.0, 130.0, 390.0, 390.0]])
    block = (s.y > 260).astype(np.int64) * 2 + (s.x > 256)
    part, at = _alike((chip.psf, template.psf), place, block, middles, StarRatioConfig())
    assert at.shape == (2, 6)
    np.testing.assert_array_equal(at[:, :4], middles)
    for k in range(6):
        own = np.append(place[0, part == k], at[0, k])
        assert len(set(own > BORDER)) == 1
    # the first of the list, the brightest, lends its PSF
    for k in (4, 5):
        np.testing.assert_array_equal(at[:, k], place[:, part == k][:, 0])
    same, _ = _alike((chip.psf, chip.psf), place, block, middles, StarRatioConfig())
    np.testing.assert_array_equal(same, block)
