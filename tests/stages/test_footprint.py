"""Coverage of footprints, against counting pixels one by one."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.products.errors import InputError
from ks4diff.products.template import PixelBox
from ks4diff.stages.footprint import (
    box_footprint,
    chip_footprint,
    covered,
    enclosing_box,
    polygon_footprint,
    position_footprint,
    rank_tiles,
    shifted_wcs,
    tile_corners,
)
from tests.io.test_templates import make_record
from tests.tiles import CENTRE, tan_wcs

SHAPE = (1000, 1400)
CELL = 50


def tile(mask, offset=(0, 0), tile_id="a"):
    """Return the record of a tile whose pixels with data are ``mask`` bool [y, x]."""
    wcs = tan_wcs(SHAPE, offset=offset)
    cells = mask.reshape(SHAPE[0] // CELL, CELL, SHAPE[1] // CELL, CELL).mean(axis=(1, 3)).astype("f4")
    return make_record(
        "x", tile_id, shape=SHAPE, wcs=wcs, cell_pix=CELL, coverage=cells, sigma=cells, background=cells,
        corners=tile_corners(wcs, SHAPE),
    )  # fmt: skip


def brute_force(records_masks, wcs, shape):
    """Return the fraction of an image's pixels that fall on a pixel with data of some tile."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    sky = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    hit = np.zeros(x.size, dtype=bool)
    for record, mask in records_masks:
        i, j = (np.rint(v).astype(int) for v in record.wcs.all_world2pix(*sky, 0))
        on = (i >= 0) & (j >= 0) & (i < mask.shape[1]) & (j < mask.shape[0])
        hit[on] |= mask[j[on], i[on]]
    return hit.mean()


@pytest.fixture(scope="module")
def masks():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    left = (x > 170) & (y > 90) & ~((x > 600) & (x < 660))
    return left, (x + y < 1900)


@pytest.mark.parametrize(
    ("centre", "rotation"),
    [((0.0, 0.0), 0.0), ((0.04, 0.03), 0.7), ((-0.12, -0.05), -20.0), ((2.0, 0.0), 0.0)],
)
def test_fractions_are_those_of_counted_pixels(masks, centre, rotation):
    first, second = tile(masks[0]), tile(masks[1], offset=(900, 200), tile_id="b")
    shape = (700, 500)
    wcs = tan_wcs(shape, (CENTRE[0] + centre[0], CENTRE[1] + centre[1]), scale=0.395, rotation=rotation)
    ranked = rank_tiles([first, second], chip_footprint(wcs, shape))
    for item in ranked:
        record, mask = (first, masks[0]) if item.id == "a" else (second, masks[1])
        assert item.fraction == pytest.approx(brute_force([(record, mask)], wcs, shape), abs=0.015)
    total = brute_force([(first, masks[0]), (second, masks[1])], wcs, shape)
    assert sum(item.gained for item in ranked) == pytest.approx(total, abs=0.015)
    assert [item.gained for item in ranked] == sorted((item.gained for item in ranked), reverse=True)


def test_the_other_side_of_the_sky_is_not_covered(masks):
    record = tile(masks[0])
    assert not covered(record, position_footprint(CENTRE[0] + 180, -CENTRE[1], 1.0)).any()


def test_a_position_is_the_cell_it_lies_in(masks):
    record = tile(masks[0])
    (ra,), (dec,) = record.wcs.all_pix2world([610], [500], 0)  # a cell that is a fifth full
    assert covered(record, position_footprint(ra, dec))[0] == record.coverage[10, 12]


def test_across_the_zero_of_right_ascension():
    wcs = tan_wcs(SHAPE, (0.01, -62.0))
    record = make_record("x", shape=SHAPE, wcs=wcs, cell_pix=50, corners=tile_corners(wcs, SHAPE),
                         coverage=np.ones((20, 28), "f4"))  # fmt: skip
    assert covered(record, position_footprint(359.995, -62.0, 0.02)).all()


def test_polygons_enclose_what_their_corners_do():
    wcs = tan_wcs((400, 600), rotation=30)
    corners = tile_corners(wcs, (400, 600))
    polygon, chip = polygon_footprint(corners), chip_footprint(wcs, (400, 600))
    grid = tan_wcs(SHAPE)
    box, same = enclosing_box(grid, polygon, 3), enclosing_box(grid, chip, 3)
    assert np.abs(np.subtract(box, same)).max() <= 1
    x, y = wcs.all_world2pix(polygon.points, 0).T
    assert np.stack([x, y]).min() > -0.6
    assert x.max() < 599.6
    assert y.max() < 399.6


def test_a_box_round_trips():
    grid = tan_wcs(SHAPE)
    assert enclosing_box(grid, box_footprint(grid, PixelBox(-7, 30, 210, 90)), 0)[:2] == (-7, 30)


def test_the_wcs_of_a_part_moves_with_its_origin():
    grid = tan_wcs(SHAPE)
    np.testing.assert_allclose(
        shifted_wcs(grid, 100, -20).all_pix2world([[5, 40]], 0),
        grid.all_pix2world([[105, 20]], 0),
        atol=1e-12,
    )


@pytest.mark.parametrize("corners", [np.zeros((2, 2)), np.full((3, 2), np.nan), [[0, 0], [0, 0], [0, 0]]])
def test_polygons_without_an_inside_are_refused(corners):
    with pytest.raises(InputError, match="polygon"):
        polygon_footprint(corners)


@pytest.mark.parametrize("position", [(0, 91, 0), (np.nan, 0, 0), (0, 0, -1)])
def test_positions_off_the_sky_are_refused(position):
    with pytest.raises(InputError, match="no patch of sky"):
        position_footprint(*position)
