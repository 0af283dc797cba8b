"""What a stack shows block by block, against the sky it was drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ks4diff.products.chip import RawChip
from ks4diff.products.template import PixelBox
from ks4diff.stages.ingest import (
    IngestConfig,
    blocks,
    cell_size,
    measure_block,
    measure_sample,
    sample_boxes,
    widened,
)
from ks4diff.stages.tile_measures import join_blocks
from tests.strategies import moffat
from tests.tiles import draw, star_sky, tan_wcs

SHAPE = (640, 900)
CONFIG = IngestConfig(cells_per_block=6)
CELL = cell_size(SHAPE, CONFIG)


@pytest.fixture(scope="module")
def drawn():
    """Return (image, star pixels, flux): noise 4 on the left, 8 on the right, no data in two strips."""
    wcs, stars = tan_wcs(SHAPE), star_sky()
    image = draw(wcs, SHAPE, stars, sigma=4.0)
    image[:, 500:] += draw(wcs, SHAPE, stars[:0], sigma=48**0.5, seed=2)[:, 500:]
    image[:70] = 0
    image[300:320, 100:400] = 0
    xy = np.stack(wcs.all_world2pix(stars[:, 0], stars[:, 1], 0), axis=1)
    return image, xy, stars[:, 2]


@pytest.fixture(scope="module")
def measured(drawn):
    image = drawn[0]
    return [[measure(image, core) for core in row] for row in blocks(SHAPE, CELL, CONFIG)]


def measure(image, core):
    read = widened(core, CONFIG.margin_pix, SHAPE)
    return measure_block(image[read.y0 : read.y1, read.x0 : read.x1], read, core, CELL, CONFIG)


@pytest.fixture(scope="module")
def tile(measured, drawn):
    return _joined(measured, drawn[0])


def _joined(measured, image):
    samples = []
    for n, box in enumerate([PixelBox(0, 340, 480, 640), PixelBox(520, 80, 900, 640)]):
        data = np.ascontiguousarray(image[box.y0 : box.y1, box.x0 : box.x1])
        samples.append((0, n, box, measure_sample(RawChip(data=data, file="x", hdu="0"), CONFIG)))
    return join_blocks(measured, samples, CELL, None, CONFIG)


def test_blocks_make_up_the_tile_once():
    seen = np.zeros(SHAPE, dtype=int)
    for row in blocks(SHAPE, CELL, CONFIG):
        for box in row:
            seen[box.y0 : box.y1, box.x0 : box.x1] += 1
    assert (seen == 1).all()


def test_coverage_is_counted(tile, drawn):
    image = drawn[0]
    rows, columns = -(-SHAPE[0] // CELL), -(-SHAPE[1] // CELL)
    assert tile.coverage.shape == (rows, columns)
    for j in range(rows):
        for i in range(columns):
            part = image[j * CELL : (j + 1) * CELL, i * CELL : (i + 1) * CELL]
            assert tile.coverage[j, i] == pytest.approx((part != 0).mean(), abs=1e-6)


def test_noise_is_known_on_both_sides_of_a_dither_border(tile):
    used = tile.coverage > 0.9
    left, right = used.copy(), used.copy()
    left[:, 14:] = False
    right[:, :18] = False
    assert np.median(tile.sigma[left]) == pytest.approx(4.0, rel=0.06)
    assert np.median(tile.sigma[right]) == pytest.approx(8.0, rel=0.06)


def test_correlation_is_that_of_the_resampling(tile):
    middle = len(tile.noise.correlation) // 2
    # [0.3, 0.7] along an axis: 0.21 / 0.58
    assert tile.noise.correlation[middle, middle + 1] == pytest.approx(0.362, abs=0.04)
    assert tile.noise.correlation[middle + 1, middle + 1] == pytest.approx(0.131, abs=0.04)
    assert abs(tile.noise.correlation[middle, middle + 3]) < 0.04


def test_every_bright_star_is_listed_once_with_its_flux(tile, drawn):
    image, xy, flux = drawn
    inside = (xy > 12).all(axis=1) & (xy[:, 0] < SHAPE[1] - 12) & (xy[:, 1] < SHAPE[0] - 12)
    x, y = np.rint(np.clip(xy, 0, [SHAPE[1] - 1, SHAPE[0] - 1])).astype(int).T
    whole = inside & np.array(
        [(image[max(b - 8, 0) : b + 9, max(a - 8, 0) : a + 9] != 0).all() for a, b in zip(x, y, strict=True)]
    )
    lonely = cKDTree(xy).query(xy, k=2)[0][:, 1] > 14
    wanted = np.flatnonzero(whole & lonely & (flux > 3000))
    assert len(wanted) > 50
    found = cKDTree(np.stack([tile.stars.x, tile.stars.y], axis=1))
    for n in wanted:
        near = found.query_ball_point(xy[n], 2.0)
        assert len(near) == 1, xy[n]
    at = found.query(xy[wanted])[1]
    assert np.median(tile.stars.flux[at] / flux[wanted]) == pytest.approx(0.97, abs=0.05)
    assert (np.diff(tile.stars.flux) <= 0).all()
    assert 20 < tile.stars.clean.sum() < len(tile.stars)


def test_stars_of_all_brightnesses_show_the_psf():
    """Unsaturated ones of peaks from 30 to 50,000 sigma, of Moffat's wings."""
    shape, psf = (480, 520), moffat(61, 3.0)
    image = np.random.default_rng(4).normal(0, 4, shape)
    places = [(x, y) for x in range(40, 490, 40) for y in range(40, 450, 40)]
    flux = np.geomspace(30, 5e4, len(places)) * 4 / psf.max()
    for (x, y), f in zip(places, flux, strict=True):
        image[y - 30 : y + 31, x - 30 : x + 31] += f * psf
    image, box = image.astype(np.float32), PixelBox(0, 0, shape[1], shape[0])
    block = measure_block(image, box, box, 20, CONFIG)
    sample = measure_sample(RawChip(data=image, file="x", hdu="0"), CONFIG)
    stars = join_blocks([[block]], [(0, 0, box, sample)], 20, None, CONFIG).stars
    near = cKDTree(np.stack([stars.x, stars.y], axis=1)).query(places)[1]
    assert stars.clean[near].mean() > 0.95


def test_the_psf_is_measured(tile):
    assert tile.psf.fwhm_pix == pytest.approx(3.2, rel=0.05)
    assert np.isfinite(tile.fwhm_map).sum() == 2


def test_a_block_border_doubles_no_star(tile):
    xy = np.stack([tile.stars.x, tile.stars.y], axis=1)
    assert cKDTree(xy).query(xy, k=2)[0][:, 1].min() > 1.5
    near = np.abs(xy - np.rint(xy / (CELL * 6)) * CELL * 6).min(axis=1) < 8
    assert near.sum() > 5  # and there are stars on the borders


def test_a_block_without_data_is_empty():
    box = PixelBox(0, 0, 96, 64)
    block = measure_block(np.zeros((64, 96), "f4"), box, box, 32, CONFIG)
    assert len(block.stars) == 0
    assert not block.coverage.any()
    assert np.isnan(block.sigma).all()


def test_samples_avoid_what_has_no_data():
    coverage = np.ones((40, 60), "f4")
    coverage[:10], coverage[:, :7] = 0, 0
    boxes = sample_boxes(coverage, 200, IngestConfig())
    assert len(boxes) == 12  # the first of four rows of squares has no data
    for *_, box in boxes:
        assert coverage[box.y0 // 200 : box.y1 // 200, box.x0 // 200 : box.x1 // 200].min() == 1
        assert box.shape == (800, 800)
    assert sample_boxes(np.ones((5, 6), "f4"), 12, IngestConfig()) == [(0, 0, PixelBox(0, 0, 72, 60))]


def test_values_that_are_no_counts_are_no_data():
    """Guards against a crash: sep dies when sums of such values overflow."""
    rng = np.random.default_rng(8)
    data = rng.normal(0, 5, (120, 134)).astype("f4")
    strange = rng.random(data.shape) < 0.05
    data[strange] = rng.choice(np.array([3.3e38, -3.3e36, 1e30, np.inf, np.nan], "f4"), strange.sum())
    box = PixelBox(0, 0, 134, 120)
    block = measure_block(data, box, box, 40, CONFIG)
    assert block.coverage.mean() == pytest.approx(1 - strange.mean(), abs=0.01)
    assert np.nanmax(block.sigma) < 8
