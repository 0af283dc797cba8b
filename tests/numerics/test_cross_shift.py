"""Laws of the comparison of two images around a place, and its slow twin."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.cross_shift import matching_places
from tests.oracles_cross_shift import matching_place
from tests.skies import Geometry, Seeing, draw, star_field

SHAPE = (150, 210)
SEEINGS = Seeing(fwhm=4.6, beta=3.5), Seeing(fwhm=3.0, ratio=0.9, angle_deg=20)
PSFS = SEEINGS[0].stamp(31), SEEINGS[1].stamp(25)
NOISE = (100.0, 0.5)


def pair(seed, geometry, n=500, margin=60):
    """Return (images, places): a crowd through two PSFs, and 40 of its brightest as the map has them."""
    stars = star_field(seed, SHAPE, n, margin=margin, brightest=1e5)
    there = geometry.template(stars.x, stars.y)
    images = tuple(
        draw(SHAPE, x, y, stars.flux, seeing, radius=5).astype(np.float32)
        for (x, y), seeing in zip(((stars.x, stars.y), there), SEEINGS, strict=True)
    )
    inside = (np.minimum(stars.x, there[0]) > 25) & (np.maximum(stars.x, there[0]) < SHAPE[1] - 25)
    inside &= (np.minimum(stars.y, there[1]) > 25) & (np.maximum(stars.y, there[1]) < SHAPE[0] - 25)
    rows = np.flatnonzero(inside)[np.argsort(-stars.flux[inside])][:40]
    whole = np.rint(np.stack([stars.x, stars.y], axis=1)[rows])
    return images, np.concatenate([whole, geometry.template(*whole.T).T], axis=1)


def clean(images):
    return tuple(np.zeros(image.shape, dtype=np.uint16) for image in images)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_shift_between_two_seeings_comes_out_in_a_crowd(seed):
    geometry = Geometry(scale=1.0, rotation_deg=0, shift=(3.0, -2.0), bend=0)
    images, places = pair(seed, geometry)
    wrong = places + np.array([0, 0, 0.4, -0.3])
    found = matching_places(images, clean(images), PSFS, wrong, np.eye(2), 3, NOISE)
    error = found - places[:, 2:]
    assert np.isfinite(found).all()
    # the stamps' wings end at 3.4 FWHM, the stars' at 5
    assert np.abs(error).max() < 0.02
    assert np.median(np.abs(error)) < 0.003


def test_scale_and_rotation_are_taken_along():
    geometry = Geometry(scale=1.04, rotation_deg=1.5, shift=(3.0, -6.0), bend=0)
    images, places = pair(3, geometry)
    # each PSF as it looks on the other image's pixels
    psfs = (
        Seeing(fwhm=4.6 * 1.04, beta=3.5).stamp(31),
        Seeing(fwhm=3.0 / 1.04, ratio=0.9, angle_deg=20 - 1.5).stamp(25),
    )
    found = matching_places(images, clean(images), psfs, places, geometry.matrix, 3, NOISE)
    assert np.nanmedian(np.abs(found - places[:, 2:])) < 0.003


def test_swapped_images_lead_back():
    geometry = Geometry(scale=1.0, rotation_deg=0, shift=(2.3, -1.4), bend=0)
    images, places = pair(4, geometry)
    there = matching_places(images, clean(images), PSFS, places, np.eye(2), 3, NOISE)
    whole = np.rint(there)
    back = np.concatenate([whole, whole - geometry.shift], axis=1)
    here = matching_places(images[::-1], clean(images), PSFS[::-1], back, np.eye(2), 3, NOISE)
    assert np.nanmax(np.abs(here - whole + (there - places[:, :2]))) < 0.02


def test_brightness_and_a_level_move_nothing():
    images, places = pair(5, Geometry(scale=1.0, rotation_deg=0, shift=(1.2, 0.7), bend=0))
    plain = matching_places(images, clean(images), PSFS, places, np.eye(2), 3, (100.0, 0.0))
    other = images[0] * np.float32(0.3), images[1] + np.float32(50)
    found = matching_places(other, clean(images), PSFS, places, np.eye(2), 3, (9.0, 0.0))
    np.testing.assert_allclose(found, plain, atol=2e-3)


def test_slow_twin():
    geometry = Geometry(scale=1.02, rotation_deg=-1.0, shift=(4.3, 2.6), bend=0)
    images, places = pair(6, geometry)
    places[:, 2:] += [0.2, 0.1]
    found = matching_places(images, clean(images), PSFS, places, geometry.matrix, 3, NOISE)
    truth = [matching_place(images, PSFS, place, geometry.matrix, 3, NOISE) for place in places]
    np.testing.assert_allclose(found, truth, atol=3e-3)


@pytest.mark.parametrize("which", [0, 1])
def test_a_flagged_pixel_in_the_disc_leaves_it_unknown(which):
    images, places = pair(7, Geometry(scale=1.0, rotation_deg=0, shift=(0.0, 0.0), bend=0))
    flags = clean(images)
    x, y = places[0, :2].astype(int)
    flags[which][y + 2, x - 2] = 4
    found = matching_places(images, flags, PSFS, places, np.eye(2), 3, NOISE)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found).all(axis=1).sum() > 30


def test_places_at_the_border_far_off_or_empty_are_unknown():
    images, places = pair(8, Geometry(scale=1.0, rotation_deg=0, shift=(0.0, 0.0), bend=0))
    asked = np.array([[1.0, 70.0, 1.0, 70.0], [*places[0, :2], places[0, 2] + 6, places[0, 3]]])
    blank = tuple(np.zeros_like(image) for image in images)
    assert np.isnan(matching_places(blank, clean(blank), PSFS, places, np.eye(2), 3, NOISE)).all()
    found = matching_places(images, clean(images), PSFS, asked, np.eye(2), 3, NOISE)
    assert np.isnan(found[0]).all()
    assert not np.hypot(*(found[1] - places[0, 2:])) < 1
