"""The resampled template lies on the science image and, once scaled, equals it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import PixelFlag
from ks4diff.products.registration import Registration
from ks4diff.stages.align import align
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.match import MatchConfig, match
from ks4diff.stages.psf_model import PsfConfig
from tests import skies

SHAPE = (310, 350)


def exact(geometry):
    """Return the Registration that is a Geometry without its bend."""
    coefficients = np.column_stack([geometry.shift, geometry.matrix])
    return Registration(
        coefficients=coefficients,
        degree=1,
        centre=(0.0, 0.0),
        scale=1.0,
        n_matched=99,
        rms_pix=0.01,
        method="wcs",
    )


def lone_scene(seed, **options):
    x, y = skies.apart(seed, SHAPE, 40, skies.NO_STARS, distance=34)
    stars = skies.Stars(x=x, y=y, flux=np.random.default_rng(seed).uniform(2e4, 1e5, 40))
    return skies.Scene(stars=stars, geometry=skies.Geometry(bend=0.0), **options)


def aligned(pair):
    science, template = (calibrate(raw, CalibrateConfig()) for raw in (pair.science, pair.template))
    return science, align(template, science, exact(pair.geometry), PsfConfig())


@pytest.fixture(scope="module", params=["blurred", "sharp"])
def lone(request):
    epochs = (skies.BLURRED, skies.SHARP) if request.param == "blurred" else (skies.SHARP, skies.BLURRED)
    pair = lone_scene(61, epochs=epochs).make(61)
    return pair, *aligned(pair)


def box_centroid(image, x, y, half=7):
    i, j = round(x), round(y)
    box = image[j - half : j + half + 1, i - half : i + half + 1].astype(float)
    offset = np.arange(-half, half + 1)
    return i + (box.sum(axis=0) @ offset) / box.sum(), j + (box.sum(axis=1) @ offset) / box.sum()


def test_stars_land_on_their_science_pixels(lone):
    pair, _, template = lone
    off = [
        np.subtract(box_centroid(template.image.data, x, y), (x, y))
        for x, y in zip(pair.stars.x, pair.stars.y, strict=True)
        if 20 < x < SHAPE[1] - 20 and 20 < y < SHAPE[0] - 20
    ]
    assert len(off) > 25
    # single centroids within 15 px boxes are good to 0.05 px at these fluxes
    assert np.abs(np.mean(off, axis=0)).max() < 0.03
    assert np.hypot(*np.transpose(off)).max() < 0.25


def test_surface_brightness_is_kept(lone):
    pair, _, template = lone
    total = sum(
        template.image.data[round(y) - 13 : round(y) + 14, round(x) - 13 : round(x) + 14].sum(dtype=float)
        for x, y in zip(pair.stars.x, pair.stars.y, strict=True)
    )
    truth = pair.epochs[1].throughput * pair.stars.flux.sum() / pair.geometry.scale**2
    assert total == pytest.approx(truth, rel=0.01)


def test_the_resampled_noise_is_what_its_pixels_show(lone):
    _, science, template = lone
    quiet = science.sky & template.image.good
    quiet[:15], quiet[-15:], quiet[:, :15], quiet[:, -15:] = False, False, False, False
    low, high = np.percentile(template.image.data[quiet], [15.87, 84.13])
    assert template.noise.sigma == pytest.approx(0.5 * (high - low), rel=0.02)


def test_masks_travel_with_their_pixels():
    pair = lone_scene(62).make(62)
    data = pair.template.data.copy()
    data[120:131, 200:213] = np.nan
    data[261, 320] = 40000.0
    pair = replace(pair, template=replace(pair.template, data=data, saturation=40000.0))
    _, template = aligned(pair)
    back = np.linalg.inv(pair.geometry.matrix)
    for (x, y), flag in (
        ((206, 125), PixelFlag.TEMPLATE_NO_DATA),
        ((320, 261), PixelFlag.TEMPLATE_SATURATED),
    ):
        column, row = np.rint(back @ (np.array([x, y]) - pair.geometry.shift)).astype(int)
        assert template.image.flags[row, column] == flag
    assert np.isfinite(template.image.data).all()
    assert template.coverage == pytest.approx((template.image.flags == 0).mean())


def test_coverage_is_the_covered_fraction():
    beside = skies.Geometry(scale=1.0, rotation_deg=0, shift=(-90, 31), bend=0)
    _, template = aligned(replace(lone_scene(63), geometry=beside).make(63))
    assert template.coverage == pytest.approx(1 - 90 / 350, abs=0.02)
    assert (template.image.flags[:, :85] == PixelFlag.TEMPLATE_NO_DATA).all()
    assert (template.image.flags[:, 95:] == 0).all()


def test_a_template_beside_the_image_is_refused():
    pair = lone_scene(64).make(64)
    science, template = (calibrate(raw, CalibrateConfig()) for raw in (pair.science, pair.template))
    beside = exact(replace(pair.geometry, shift=(390.0, 20.0)))
    with pytest.raises(SkipChip, match="hardly covers"):
        align(template, science, beside, PsfConfig())


def test_the_flux_scale_of_lone_stars(lone):
    pair, science, template = lone
    found = match(science, template, MatchConfig())
    assert found.flux_scale == pytest.approx(pair.flux_scale, rel=0.01)


@pytest.mark.parametrize("seed", [71, 72, 73])
def test_the_flux_scale_of_a_field(seed):
    pair = skies.Scene(n_stars=900, geometry=skies.Geometry(bend=0.0)).make(seed)
    found = match(*aligned(pair), PipelineConfig().match)
    assert found.flux_scale == pytest.approx(pair.flux_scale, rel=0.01)


def test_a_difference_of_backgrounds_is_followed():
    pair = lone_scene(65).make(65)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    # in the science image only, and steep enough that a 64 px mesh leaves some of it
    ramp = 4.0 * np.sin(x / 90.0) + 0.02 * y
    tilted = replace(pair.science, data=(pair.science.data + ramp).astype(np.float32))
    science, template = aligned(replace(pair, science=tilted))
    found = match(science, template, MatchConfig())
    left = science.image.data - found.flux_scale * template.image.data - found.background
    quiet = science.sky & template.image.good
    noise = np.hypot(science.noise.sigma, found.flux_scale * template.noise.sigma)
    for rows in np.array_split(np.arange(20, SHAPE[0] - 20), 4):
        for columns in np.array_split(np.arange(20, SHAPE[1] - 20), 4):
            part = np.ix_(rows, columns)
            # 4 standard errors of the mean, and a tenth of the ramp
            values = left[part][quiet[part]]
            assert abs(values.mean()) < 4 * noise / np.sqrt(len(values)) + 0.4


def test_too_little_in_common_is_refused(lone):
    _, science, template = lone
    flags = np.full(SHAPE, int(PixelFlag.TEMPLATE_NO_DATA), dtype=np.int32)
    flags[100:120, 100:140] = 0
    with pytest.raises(SkipChip, match="too few pixels in common"):
        match(science, replace(template, image=replace(template.image, flags=flags)), MatchConfig())


def test_a_template_of_something_else_is_refused(lone):
    _, science, template = lone
    negative = replace(template.image, data=-template.image.data)
    with pytest.raises(SkipChip, match="explains none"):
        match(science, replace(template, image=negative), MatchConfig())
