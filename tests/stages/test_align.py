"""The resampled template lies on the science image and keeps its surface brightness, masks and noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.products.cells import Cells
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.align import align, noise_near
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.psf_model import PsfConfig
from ks4diff.stages.register import template_position
from tests import skies
from tests.aligned_pairs import SHAPE, aligned, exact, lone_scene
from tests.strategies import gaussian


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


def test_a_star_s_flux_is_its_sum_times_the_area(lone):
    """Also under a map that stretches by 3 % from one side to the other; KMTNet's does by 7 % over a chip."""
    pair, _, template = lone
    area = template.area.at(pair.stars.x, pair.stars.y)
    np.testing.assert_allclose(area, pair.geometry.scale**2, rtol=1e-5)
    shape, bend = (300, 420), 4e-5
    x, y = np.random.default_rng(3).uniform(40, 260, (2, 40))
    places = np.transpose([x, y]) - 150
    image = sum(gaussian(301, 3.2, dx=dx, dy=dy) * 1e4 for dx, dy in places)
    stretched = replace(
        exact(pair.geometry),
        coefficients=np.array([[0, 1, 0, -bend, 0, 0], [0, 0, 1, 0, 0, 0]], dtype=float),
        degree=2,
    )
    gx, gy = node_grid(shape)
    nodes = template_position(stretched, gx.ravel(), gy.ravel()).reshape(2, *gx.shape)
    warped, _ = resample(image.astype(np.float32), np.zeros(image.shape, np.uint16), nodes, shape)
    exact_area = np.abs(1 - 2 * bend * np.arange(shape[1]))
    assert np.ptp(exact_area) > 0.03
    assert (warped * exact_area).sum() == pytest.approx(4e5, rel=1e-3)
    assert abs(warped.sum() / 4e5 - 1) > 0.01


def test_the_noise_of_a_patch_is_by_its_phases():
    """Of white noise resampled as KMTNet's pixels are on a KS4 tile; as a whole, and where it beats."""
    rng = np.random.default_rng(5)
    beats = skies.Geometry(scale=0.9875, rotation_deg=0.0, bend=0.0)
    pair = replace(lone_scene(66), geometry=beats).make(66)
    _, template = aligned(pair)
    shape = template.image.shape
    nodes, seen = template.nodes, []
    white = rng.normal(0, 1, (120, *pair.template.data.shape)).astype(np.float32)
    good = np.zeros(white.shape[1:], np.uint16)
    noise = np.stack([resample(one, good, nodes, shape)[0] for one in white])
    plain = NoiseModel(sigma=1.0, correlation=np.ones((1, 1)), method="sky")
    template = replace(template, original_noise=plain)
    for row, column in ((96, 96), (128, 144), (160, 112), (112, 192)):
        rows, columns = slice(row, row + 32), slice(column, column + 32)
        near = noise_near(template, rows, columns)
        part = noise[:, rows, columns]
        assert near.sigma**2 == pytest.approx((part**2).mean(), abs=0.02)
        middle = len(near.correlation) // 2
        beside = near.correlation[middle, middle + 1] * near.sigma**2
        assert beside == pytest.approx((part[:, :, 1:] * part[:, :, :-1]).mean(), abs=0.02)
        seen.append(near.sigma**2)
    assert np.ptp(seen) > 0.06


def test_the_sky_s_variance_is_carried_cell_by_cell():
    pair = lone_scene(67).make(67)
    science, template = (calibrate(raw, CalibrateConfig()) for raw in (pair.science, pair.template))
    shape = template.image.shape
    depth = Cells(values=np.array([[9.0, 49.0]], dtype=np.float32), shape=shape)
    plain = NoiseModel(sigma=5.0, correlation=np.ones((1, 1)), method="sky")
    template = replace(template, image=replace(template.image, sky_variance=depth), noise=plain)
    got = align(template, science, exact(pair.geometry), PsfConfig())
    rng = np.random.default_rng(6)
    sigma = np.sqrt(depth.over(slice(None), slice(None)))
    good = np.zeros(shape, np.uint16)
    white = rng.normal(0, 1, (40, *shape)).astype(np.float32)
    noise = np.stack([resample(one * sigma, good, got.nodes, SHAPE)[0] for one in white])
    x, y = got.image.sky_variance.middles()
    for cx, cy in zip(x.ravel().astype(int), y.ravel().astype(int), strict=True):
        found = noise[:, cy - 20 : cy + 21, cx - 20 : cx + 21].var()
        assert got.image.sky_variance.at(cx, cy) == pytest.approx(found, rel=0.06)


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
