"""The aligned template, once scaled, equals the science image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import PixelFlag
from ks4diff.stages import match as match_stage
from ks4diff.stages.match import MatchConfig, match
from ks4diff.stages.noise import NoiseConfig
from ks4diff.stages.on_scale import science_on_scale, template_on_scale
from ks4diff.stages.pixel_match import MOST_PIXELS, PixelMatchConfig, pixel_match
from ks4diff.stages.scale_field import scale_field
from ks4diff.stages.star_photometry import star_ratios
from tests import skies
from tests.aligned_pairs import SHAPE, aligned, lone_scene


@pytest.fixture(scope="module", params=["blurred", "sharp"])
def lone(request):
    epochs = (skies.BLURRED, skies.SHARP) if request.param == "blurred" else (skies.SHARP, skies.BLURRED)
    pair = lone_scene(61, epochs=epochs).make(61)
    return pair, *aligned(pair)


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
    left = science_on_scale(science, found) - template_on_scale(template, found)
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
    flags = np.full(SHAPE, int(PixelFlag.TEMPLATE_NO_DATA), dtype=np.uint16)
    flags[100:120, 100:140] = 0
    with pytest.raises(SkipChip, match="too few pixels in common"):
        match(science, replace(template, image=replace(template.image, flags=flags)), MatchConfig())


def test_a_template_of_something_else_is_refused(lone):
    _, science, template = lone
    negative = replace(template.image, data=-template.image.data)
    with pytest.raises(SkipChip, match="explains none"):
        match(science, replace(template, image=negative), MatchConfig())


def test_noise_is_measured_where_the_template_is(lone, monkeypatch):
    """In squares 23 px apart, and a template that shows nothing but what is between them."""
    _, science, template = lone
    monkeypatch.setattr(match_stage, "SAMPLE_PIX", 70)
    found = match(science, template, MatchConfig())
    flags = np.full(SHAPE, int(PixelFlag.TEMPLATE_NO_DATA), dtype=np.uint16)
    for x in (70, 163, 256):
        flags[:, x : x + 23] = template.image.flags[:, x : x + 23]
    bands = replace(template, image=replace(template.image, flags=flags))
    there = match_stage._with_noise(science, bands, found, NoiseConfig())
    assert there.science_noise.sigma == pytest.approx(found.science_noise.sigma, rel=0.03)
    assert there.template_noise.sigma == pytest.approx(found.template_noise.sigma, rel=0.03)
    assert there.science_noise.sigma < science.noise.sigma
    flags[:] = int(PixelFlag.TEMPLATE_NO_DATA)
    nowhere = match_stage._with_noise(science, bands, found, NoiseConfig())
    assert nowhere.science_noise == science.noise
    assert nowhere.template_noise.sigma == pytest.approx(template.noise.sigma)


@pytest.fixture(scope="module")
def pair():
    made = lone_scene(66).make(66)
    return made, *aligned(made)


class TestStarsAndPixels:
    def test_they_agree(self, pair):
        made, science, template = pair
        config = MatchConfig()
        stars = star_ratios(science, template, config.stars)
        ratio = science.psf.fwhm_pix / template.psf.fwhm_pix
        field = scale_field(stars, SHAPE, [], config.scale, width_ratio=ratio)
        pixels = pixel_match(science, template, config.pixels)
        off = np.median(field.scale.values) / pixels.scale - 1
        assert abs(off) < 3 * np.hypot(np.median(field.error.values), pixels.error)
        for scale, error in (
            (np.median(field.scale.values), field.error.values),
            (pixels.scale, pixels.error),
        ):
            assert abs(scale / made.flux_scale - 1) < 3 * np.median(error)

    def test_stars_are_measured_to_their_errors(self, pair):
        made, science, template = pair
        stars = star_ratios(science, template, MatchConfig().stars)
        assert len(stars) > 20
        off = (stars.ratio - np.median(stars.ratio)) / np.hypot(stars.error, 0.005 * stars.ratio)
        assert 1.4826 * np.median(np.abs(off)) < 2
        assert np.median(stars.ratio) == pytest.approx(made.flux_scale, rel=0.01)

    def test_without_stars_pixels_decide(self, pair):
        made, science, template = pair
        found = match(science, template, MatchConfig(min_stars=10_000))
        assert found.amplifiers == ()
        assert found.flux_scale == pytest.approx(made.flux_scale, rel=0.015)
        assert found.background.values.shape == SHAPE

    def test_a_whole_chip_is_not_matched_by_its_pixels(self, pair):
        """It would take 11.6 GB; a strip of zeros has as many pixels and takes none."""
        _, science, template = pair
        for shape in ((9232, 9216), (1, MOST_PIXELS + 1)):
            empty = np.broadcast_to(np.float32(0), shape)
            large = replace(science, image=replace(science.image, data=empty))
            with pytest.raises(SkipChip, match="too few stars or too little sky in common") as refusal:
                pixel_match(large, template, PixelMatchConfig())
            assert refusal.value.numbers["pixels"] == shape[0] * shape[1]

    def test_inputs_are_left_alone(self, pair):
        _, science, template = pair
        before = science.image.data.copy(), template.image.data.copy(), science.sky.copy()
        match(science, template, MatchConfig())
        for now, then in zip((science.image.data, template.image.data, science.sky), before, strict=True):
            np.testing.assert_array_equal(now, then)
