"""What all stars show beside themselves is found, and explains a candidate there and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.chip import StarList
from ks4diff.stages.star_images import StarImagesConfig, star_images
from tests.stages.test_star_residuals import ERROR, FWHM, SCALE, SHAPE, flagged, scene, star_list

OFFSET = (22, -9)
SHARE = 0.012  # of each star's flux, as in frame 0098 of the MOA series
CONFIG = StarImagesConfig()


def doubled(among, share=SHARE):
    """Return (Difference, AlignedTemplate) of which some stars, bool [n], have a second image at OFFSET."""
    difference, template = scene(0.0)
    stars = template.stars
    row, column = np.indices(SHAPE)
    for x, y, flux in zip(stars.x[among], stars.y[among], stars.flux[among] * SCALE, strict=True):
        r2 = (column - np.rint(x) - OFFSET[0]) ** 2 + (row - np.rint(y) - OFFSET[1]) ** 2
        difference.score_corr[:] += share * flux / ERROR * np.exp(-0.5 * r2 / 2.1**2)
    return difference, template


def place(template, k=10):
    """Return where the second image of a star lies, and its S/N."""
    stars = template.stars
    snr = SHARE * float(stars.flux[k]) * SCALE / ERROR
    return float(np.rint(stars.x[k])) + OFFSET[0], float(np.rint(stars.y[k])) + OFFSET[1], snr


@pytest.mark.parametrize("sign", [1, -1])
def test_second_images_are_measured(sign):
    difference, template = doubled(np.ones(48, dtype=bool), sign * SHARE)
    found = star_images(difference, template, CONFIG)
    half = found.share.shape[0] // 2
    j, i = np.unravel_index(np.abs(found.share).argmax(), found.share.shape)
    assert (i - half, j - half) == OFFSET
    assert found.share[j, i] == pytest.approx(sign * SHARE, rel=0.05)
    away = np.hypot(*(np.argwhere(found.share != 0) - half - OFFSET[::-1]).T)
    assert away.max() < FWHM
    x, y, snr = place(template)
    assert found.at(np.array([x]), np.array([y]))[0] == pytest.approx(sign * snr * ERROR, rel=0.05)


def test_a_candidate_that_they_explain_is_flagged():
    difference, template = doubled(np.ones(48, dtype=bool))
    x, y, snr = place(template)
    assert flagged(difference, template, x, y, snr)
    assert flagged(difference, template, x + 1, y, 2 * snr)
    assert not flagged(difference, template, x, y, -snr)
    assert not flagged(difference, template, x, y, 5 * snr)
    assert not flagged(difference, template, x + 4 * FWHM, y, snr)


def test_stars_of_one_image_have_no_second():
    difference, template = scene(0.0)
    assert not star_images(difference, template, CONFIG).share.any()


def test_neighbours_of_fewer_than_half_of_the_stars_are_no_images():
    difference, template = doubled(np.arange(48) % 3 == 0, 5 * SHARE)
    assert not star_images(difference, template, CONFIG).share.any()


def test_too_few_stars_say_nothing():
    difference, template = doubled(np.ones(48, dtype=bool))
    x, y, snr = place(template)
    stars = template.stars
    first = {name: getattr(stars, name)[:19] for name in ("x", "y", "flux", "fwhm", "clean")}
    few = replace(template, stars=StarList(**first))
    assert not star_images(difference, few, CONFIG).share.any()
    for stars in (None, star_list(*np.empty((3, 0)))):
        assert not flagged(difference, replace(template, stars=stars), x, y, snr)
