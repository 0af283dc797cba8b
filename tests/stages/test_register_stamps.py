"""In a crowd the pixels of two images agree on places where their centroids do not."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.io.fits_image import read_chip
from ks4diff.numerics.pixel_map import fitted
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.register import RegisterConfig, register
from ks4diff.stages.register_cells import told_rms
from ks4diff.stages.register_guess import expected_noise
from ks4diff.stages.register_stamps import StampConfig, on_pixels
from tests import skies

SHAPE = (420, 470)
GEOMETRY = skies.Geometry(shift=(11.4, 7.7), rotation_deg=-0.4, bend=0.0)
EPOCHS = (
    skies.Epoch(seeing=skies.Seeing(fwhm=6.5, beta=4), throughput=0.8),
    skies.Epoch(seeing=skies.Seeing(fwhm=4.0, beta=3.5, ratio=0.93, angle_deg=30), throughput=1.3),
)
MOA = "MichaelDAlbrow+pyDIA/Example/Images/AKB13475I{}.fits"


@pytest.fixture(scope="module")
def crowd():
    """Science and template of 10,000 stars per Mpix, of which the science image resolves a few hundred."""
    stars = skies.star_field(21, SHAPE, 2100, margin=60, faintest=1500.0, brightest=1e5)
    places = (stars.x, stars.y), GEOMETRY.template(stars.x, stars.y)
    return [
        calibrate(skies.raw_chip(skies.expose(SHAPE, *place, stars.flux, epoch, 50 + k)), CalibrateConfig())
        for k, (place, epoch) in enumerate(zip(places, EPOCHS, strict=True))
    ]


def test_places_are_truer_than_centroids(crowd):
    science, template = crowd
    plain = register(*crowd, RegisterConfig(stamps=StampConfig(per_square=0, in_all=0)))
    i, j = plain.pairs
    ours = np.stack([science.stars.x, science.stars.y], axis=1)[i]
    theirs = np.stack([template.stars.x, template.stars.y], axis=1)[j]
    corners = np.array([[0.0, 0.0], [469.0, 0.0], [0.0, 419.0], [469.0, 419.0]])
    true = fitted(corners, GEOMETRY.template(*corners.T).T, SHAPE, 1)
    noise = np.hypot(expected_noise(science)[i], expected_noise(template)[j])
    found = on_pixels(science, template, true, ours, noise, StampConfig())
    bright = np.isfinite(found).all(axis=1) & (noise < 0.05)
    assert bright.sum() > 40
    by_pixels, by_lists = (np.hypot(*(place - true.at(ours))[bright].T) for place in (found, theirs))
    assert np.median(by_pixels) < 0.5 * np.median(by_lists)


def test_the_stated_rms_is_that_of_bright_stars(crowd):
    plain = register(*crowd, RegisterConfig(stamps=StampConfig(per_square=0, in_all=0)))
    found = register(*crowd, RegisterConfig())
    assert plain.rms_pix == plain.rms_weighted_pix
    assert found.rms_pix < 0.05
    assert found.rms_pix < 0.7 * plain.rms_pix
    assert found.rms_weighted_pix < plain.rms_weighted_pix


def test_places_that_scatter_more_than_centroids_are_not_taken(crowd, monkeypatch):
    plain = register(*crowd, RegisterConfig(stamps=StampConfig(per_square=0, in_all=0)))

    def noisy(science, template, found, points, expected, config):
        return found.at(points) + np.random.default_rng(3).normal(0, 0.5, points.shape)

    monkeypatch.setattr("ks4diff.stages.register.on_pixels", noisy)
    found = register(*crowd, RegisterConfig())
    np.testing.assert_array_equal(found.coefficients, plain.coefficients)
    assert found.rms_pix == plain.rms_pix


def test_told_rms_is_the_normal_s_and_leaves_out_what_is_far():
    residual = np.random.default_rng(5).normal(0, 0.04, (4000, 2))
    telling = np.ones(4000, dtype=bool)
    telling[3000:] = False
    residual[3000:] = 1.0
    residual[:100] = 0.7
    # 1.1 % of a two-dimensional normal lie beyond 3 sigma, and hold 6 % of its square
    rms, scatter = told_rms(residual, telling, np.full(4000, 0.02))
    assert rms == pytest.approx(0.04 * np.sqrt(0.94), rel=0.03)
    assert scatter == pytest.approx(np.sqrt(rms**2 - 0.02**2), rel=0.03)
    assert told_rms(residual, telling, np.full(4000, 0.04))[1] < 0.01
    few = told_rms(residual, telling & (np.arange(4000) < 9), np.full(4000, 0.02))
    assert np.isnan(few[0])
    assert few[1] == 0


def test_few_or_empty_pixels_leave_the_lists(crowd):
    science, template = crowd
    points = np.array([[100.0, 120.0], [200.2, 210.7]])
    identity = fitted(points, points, SHAPE, 1)
    blank = np.zeros(SHAPE, dtype=np.float32)
    empty = [
        type(chip)(**{**vars(chip), "image": type(chip.image)(**{**vars(chip.image), "data": blank})})
        for chip in crowd
    ]
    assert np.isnan(on_pixels(*empty, identity, points, np.ones(2), StampConfig())).all()
    assert on_pixels(science, template, identity, points[:0], np.ones(0), StampConfig()).shape == (0, 2)


@pytest.mark.parametrize("frame", ["0025", "0036", "0094"])
def test_open_moa_frames_register_within_six_hundredths(realdata, frame):
    """Seeing 7.7, 6.6 and 4.0 px on 4.2; 28 of 28 in `benchmarks.bench_register --moa`."""
    science, template = (
        calibrate(read_chip(realdata / MOA.format(name)), CalibrateConfig()) for name in (frame, "0028")
    )
    found = register(science, template, RegisterConfig())
    assert found.rms_pix <= 0.06
    assert found.rms_weighted_pix <= 0.075
    assert float(np.nanmax(found.error.values)) < 0.03
