"""The resampled template lies on the science image and keeps its surface brightness, masks and noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.errors import SkipChip
from ks4diff.products.image import PixelFlag
from ks4diff.stages.align import align
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.psf_model import PsfConfig
from tests import skies
from tests.aligned_pairs import SHAPE, aligned, exact, lone_scene


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
