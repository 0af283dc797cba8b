"""The gain of a KS4 stack is what the Poisson noise of its pixels shows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.chip import StarList
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.template import TilePart
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.tile_part import _gain
from tests.tiles import tan_wcs

SHAPE = (300, 340)
ZEROPOINT_V_ELECTRON = 28.9  # of 120 s (shared facts: kmtnet.md section 8)


def stacked(rng, electrons, n):
    """Return the median of n exposures of ``electrons`` per pixel of 0.395", on 0.4", zero point 30."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    planes = []
    for _ in range(n):
        frame = rng.poisson(electrons, (SHAPE[0] + 20, SHAPE[1] + 20)).astype(np.float32)
        dx, dy = rng.uniform(2, 4, 2)
        at = (x * 1.0127 + dx, y * 1.0127 + dy)
        planes.append(bilinear(frame, *at))
    return np.median(planes, axis=0) * 1.0127**2 * 10 ** (0.4 * (30 - ZEROPOINT_V_ELECTRON))


def bilinear(image, x, y):
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = x - i, y - j
    low = image[j, i] * (1 - u) + image[j, i + 1] * u
    return low * (1 - v) + (image[j + 1, i] * (1 - u) + image[j + 1, i + 1] * u) * v


def correlation(image):
    image = image - image.mean()
    pairs = [[(image * np.roll(image, (j, i), (0, 1))).mean() for i in (-1, 0, 1)] for j in (-1, 0, 1)]
    return np.array(pairs) / image.var()


def record_of(image, n, **changes):
    facts = {"band": "V", "field": "2149.115-50", "exptime": 120.0 * n, "zeropoint": 30.0}
    return SimpleNamespace(**facts | changes, noise=SimpleNamespace(correlation=correlation(image)))


@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_the_gain_is_what_poisson_noise_shows(n):
    image = stacked(np.random.default_rng(n), 900.0, n)
    # planes are unequally noisy by their phases, and the median leans to the quiet ones: by 13 % of three
    assert image.mean() / image.var() == pytest.approx(_gain(record_of(image, n)), rel=0.2)


@pytest.mark.parametrize("changes", [{"band": "g"}, {"field": None}, {"exptime": None}])
def test_of_other_stacks_it_is_not_known(changes):
    assert _gain(record_of(np.random.default_rng(1).normal(size=SHAPE), 4, **changes)) is None


@pytest.mark.parametrize(("gain", "expected", "source"), [(3.4, 3.4, "zero point"), (None, 1.0, "assumed")])
def test_a_template_says_where_its_gain_is_from(gain, expected, source):
    none = np.empty(0)
    part = TilePart(
        image=MaskedImage(
            data=np.zeros(SHAPE, np.float32),
            flags=np.zeros(SHAPE, np.uint16),
            sky_variance=Cells.constant(1.0, SHAPE),
        ),
        wcs=tan_wcs(SHAPE),
        zeropoint=30.0,
        noise=NoiseModel(sigma=1.0, correlation=np.ones((1, 1)), method="sky"),
        stars=StarList(x=none, y=none, flux=none, fwhm=none, clean=none.astype(bool)),
        saturation=None,
        tile_ids=("a",),
        band="V",
        fwhm_pix=3.0,
        gain=gain,
    )
    chip = as_template(part)
    assert chip.gain == expected
    assert source in chip.gain_source
