"""Registration finds the map between two star lists, by header or by pattern, and refuses what is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.chip import CalibratedChip, StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.forced import science_position
from ks4diff.stages.register import RegisterConfig, register, template_position
from tests import skies

SHAPE = (900, 1100)
PSF = Psf(stamp=skies.Seeing(fwhm=3).stamp(15).astype(np.float32), fwhm_pix=3.0, n_stars=50)
NOISE = NoiseModel(sigma=1.0, correlation=np.ones((1, 1)), method="sky")
MAPS = {
    "similarity": skies.Geometry(scale=0.985, rotation_deg=1.6, shift=(-31.0, 44.0), bend=0.0),
    "far": skies.Geometry(scale=1.018, rotation_deg=-1.9, shift=(138.6, -113.2), bend=2e-7),
    "bent": skies.Geometry(scale=1.0, rotation_deg=0.3, shift=(12.3, 5.4), bend=2e-6),
}


def chip(x, y, flux, *, shape=SHAPE, wcs=None):
    """Return a calibrated chip that knows its stars alone."""
    inside = (x > 0) & (y > 0) & (x < shape[1] - 1) & (y < shape[0] - 1)
    order = np.flatnonzero(inside)[np.argsort(-flux[inside])]
    n = len(order)
    stars = {"x": x[order], "y": y[order], "flux": flux[order]}
    empty = np.zeros(shape, dtype=np.float32)
    return CalibratedChip(
        raw=skies.raw_chip(empty, wcs=wcs),
        image=MaskedImage(data=empty, flags=empty.astype(np.uint16), sky_variance=Cells.constant(1.0, shape)),
        sky=empty == 0,
        stars=StarList(**stars, fwhm=np.full(n, 3.0), clean=np.ones(n, dtype=bool)),
        psf=PsfField.uniform(PSF, shape),
        noise=NOISE,
        gain=1.0,
        gain_source="given",
    )


def lists(seed, geometry, *, jitter=0.02, n=1500, keep=0.85, wcs=(None, None)):
    """Return (science, template) chips: a tenth of the stars in one only, 5 % flux noise, centroid noise."""
    rng = np.random.default_rng(seed)
    stars = skies.star_field(seed, SHAPE, n, margin=400)
    seen = []
    for k, place in enumerate((np.stack([stars.x, stars.y]), geometry.template(stars.x, stars.y))):
        chosen = rng.random(n) < keep
        moved = place[:, chosen] + rng.normal(0, jitter, (2, chosen.sum()))
        seen.append(chip(*moved, stars.flux[chosen] * rng.normal(1, 0.05, chosen.sum()), wcs=wcs[k]))
    return seen


def error(registration, geometry, margin=40):
    """Return the distance, px, from the true map on a grid where the template covers the science image."""
    y, x = np.mgrid[margin : SHAPE[0] - margin : 25, margin : SHAPE[1] - margin : 25]
    truth = geometry.template(x.ravel(), y.ravel())
    covered = (truth > 0).all(axis=0) & (truth[0] < SHAPE[1]) & (truth[1] < SHAPE[0])
    found = template_position(registration, x.ravel(), y.ravel())
    return np.hypot(*(found - truth))[covered]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_maps_are_recovered(name, seed):
    found = register(*lists(seed, MAPS[name]), RegisterConfig())
    assert found.method == "pattern"
    assert error(found, MAPS[name]).max() < 0.05
    # both lists jitter by 0.02 px per axis
    assert found.rms_pix == pytest.approx(0.02 * np.sqrt(2), rel=0.15)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_first_guess_believed_is_right_everywhere(seed):
    # triangles of neighbours used to propose maps that were right in one corner alone for these two
    found = register(*lists(seed, MAPS["far"]), RegisterConfig(sure_fraction=0.0))
    assert error(found, MAPS["far"]).max() < 0.05


def test_images_of_one_field_are_registered():
    pair = skies.Scene(n_stars=1500).make(3)
    chips = [calibrate(raw, CalibrateConfig()) for raw in (pair.science, pair.template)]
    found = register(*chips, RegisterConfig())
    y, x = np.mgrid[20:290:15, 20:330:15]
    off = template_position(found, x.ravel(), y.ravel()) - pair.geometry.template(x.ravel(), y.ravel())
    assert np.sqrt((off**2).sum(axis=0).mean()) < 0.05


def test_headers_that_agree_are_believed():
    geometry = MAPS["far"]
    wcs = (skies.sky_wcs(), skies.sky_wcs(geometry))
    found = register(*lists(4, geometry, wcs=wcs), RegisterConfig())
    assert found.method == "wcs"
    assert error(found, geometry).max() < 0.05


def test_headers_that_err_by_a_shift_are_moved():
    geometry = MAPS["far"]
    wcs = (skies.sky_wcs(), skies.sky_wcs(replace(geometry, shift=(-50.0, 90.0))))
    found = register(*lists(4, geometry, wcs=wcs), RegisterConfig())
    assert found.method == "wcs"
    assert error(found, geometry).max() < 0.05


def test_headers_that_are_wrong_do_no_harm():
    geometry = MAPS["far"]
    wcs = (skies.sky_wcs(), skies.sky_wcs(replace(geometry, rotation_deg=35.0)))
    found = register(*lists(4, geometry, wcs=wcs), RegisterConfig())
    assert found.method == "pattern"
    assert error(found, geometry).max() < 0.05


def test_aligned_images_need_no_pattern():
    still = skies.Geometry(scale=1.0, rotation_deg=0.0, shift=(0.4, -0.7), bend=0.0)
    found = register(*lists(5, still), RegisterConfig())
    assert found.method == "identity"
    assert error(found, still).max() < 0.05


def test_the_map_is_inverted_exactly():
    found = register(*lists(6, MAPS["bent"]), RegisterConfig())
    for x, y in ((3.0, 880.0), (701.4, 12.9), (1090.0, 450.0)):
        back = science_position(found, *template_position(found, np.array([x]), np.array([y]))[:, 0])
        assert back == pytest.approx((x, y), abs=1e-6)


@pytest.mark.parametrize("n", [60, 400, 4000])
def test_unrelated_fields_are_refused(n):
    for seed in range(40 if n == 400 else 10):
        one, other = (lists([seed, k, n], MAPS["similarity"], n=n)[k] for k in (0, 1))
        with pytest.raises(SkipChip, match="do not show the same stars") as refusal:
            register(one, other, RegisterConfig())
        assert set(refusal.value.numbers) == {"n_science", "n_template", "n_matched"}


@pytest.mark.parametrize(
    "geometry",
    [replace(MAPS["similarity"], scale=1.06), replace(MAPS["similarity"], rotation_deg=6.0)],
    ids=["scale", "rotation"],
)
def test_maps_beyond_the_limits_are_refused(geometry):
    with pytest.raises(SkipChip):
        register(*lists(7, geometry), RegisterConfig())
