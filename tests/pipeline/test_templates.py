"""Tiles from file to the part under a chip: the whole story on small stacks of one sky."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_tables import read_issues
from ks4diff.pipeline.ingest import TileOptions, add_tile, add_tiles
from ks4diff.pipeline.templates import (
    TemplateConfig,
    cover,
    exposure_footprint,
    read_part,
    template_for,
    template_tiles,
)
from ks4diff.products.errors import ConfigError, InputError, SkipChip
from ks4diff.products.image import PixelFlag
from ks4diff.products.template import PixelBox
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.footprint import chip_footprint, position_footprint, tile_corners
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.variance import ALL
from tests.tiles import CENTRE, SCALE, draw, star_sky, tan_wcs, write_tile

SHAPE = (520, 760)
EAST = (CENTRE[0] + 0.055 / np.cos(np.radians(50)), CENTRE[1] + 0.01)  # another tangent point, 500 px away
STARS = star_sky()
NAME = "ks4.2149.115-50.R.480sec.stack.fits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture(scope="module")
def images(folder):
    """Write two overlapping R tiles, of zero points 30 and 29, and an I tile; return (west, east) pixels."""
    west = draw(tan_wcs(SHAPE), SHAPE, STARS, seed=1)
    west[:60, :] = 0
    west[200, 100] = 4e5
    east = draw(tan_wcs(SHAPE, EAST), SHAPE, STARS, seed=2, scale=10**-0.4, sigma=2.0)
    write_tile(folder / NAME, west, tan_wcs(SHAPE), saturate=3e5, exptime=480.0)
    write_tile(folder / "east.fits", east, tan_wcs(SHAPE, EAST), zeropoint=29.0, exptime=240.0)
    write_tile(folder / "infrared.fits", east, tan_wcs(SHAPE, EAST), band="I")
    return west, east


@pytest.fixture(scope="module")
def store(folder, images):
    made = TemplateStore(folder / "store", create=True)
    for name in (NAME, "east.fits", "infrared.fits"):
        add_tile(made, folder / name, TileOptions())
    return made


@pytest.fixture(scope="module")
def tiles(store):
    found = {record.file.rsplit("/", 1)[-1]: record for record in map(store.record, store.cards())}
    return found[NAME], found["east.fits"], found["infrared.fits"]


class TestAdd:
    def test_the_record_says_what_the_header_did(self, tiles):
        west, east, infrared = tiles
        assert (west.band, west.zeropoint, west.exptime, west.field) == ("R", 30.0, 480.0, "2149.115-50")
        assert (east.zeropoint, infrared.band) == (29.0, "I")
        assert west.saturation == 3e5
        assert west.fwhm_pix == pytest.approx(3.2, rel=0.06)
        assert west.noise.sigma == pytest.approx(5.0, rel=0.06)
        assert west.n_stars > 50

    def test_adding_twice_makes_one_tile(self, store, folder):
        before = list(store.cards())
        add_tile(store, folder / NAME, TileOptions())
        assert list(store.cards()) == before

    def test_a_copy_does_not_need_the_original(self, tmp_path, folder, images):
        path = write_tile(tmp_path / "a.fits", images[0], tan_wcs(SHAPE))
        made = TemplateStore(tmp_path / "store", create=True)
        record = add_tile(made, path, TileOptions(copy=True))
        path.unlink()
        assert [result.problem for result in made.check()] == [None]
        assert made.pixels(record).path.is_relative_to(made.root)

    def test_position_counts_when_the_name_says_another_field(self, tmp_path, images, caplog):
        path = write_tile(tmp_path / "ks4.0001.004-62.R.fits", images[0], tan_wcs(SHAPE))
        record = add_tile(TemplateStore(tmp_path / "s", create=True), path, TileOptions())
        assert record.field == "2149.115-50"
        assert "says field 0001.004-62" in caplog.text

    @pytest.mark.parametrize(
        ("cards", "options", "match"),
        [
            ({"band": "g"}, {}, "FILTER is g"),
            ({"zeropoint": None}, {}, "no MAGZERO"),
            ({"ctype1": "PIXEL"}, {}, "no usable WCS"),
        ],
    )
    def test_what_cannot_serve_is_refused(self, tmp_path, images, cards, options, match):
        path = write_tile(tmp_path / "a.fits", images[0], tan_wcs(SHAPE), **cards)
        with pytest.raises(InputError, match=match):
            add_tile(TemplateStore(tmp_path / "s", create=True), path, TileOptions(**options))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"band": "../R"}, "no name of a filter"),
            ({"zeropoint": 300}, "zero point"),
            ({"field": "M31"}, "no field"),
        ],
    )
    def test_wrong_options_are_refused(self, tmp_path, images, options, match):
        path = write_tile(tmp_path / "a.fits", images[0], tan_wcs(SHAPE))
        with pytest.raises(ConfigError, match=match):
            add_tile(TemplateStore(tmp_path / "s", create=True), path, TileOptions(**options))

    def test_an_empty_tile_is_refused_and_the_next_one_added(self, tmp_path, images):
        empty = write_tile(tmp_path / "empty.fits", np.zeros(SHAPE, "f4"), tan_wcs(SHAPE))
        good = write_tile(tmp_path / "good.fits", images[0], tan_wcs(SHAPE))
        made = TemplateStore(tmp_path / "s", create=True)
        (_, first), (_, second) = add_tiles(made, [empty, good], TileOptions())
        assert "no part of the tile has enough sky" in str(first)
        assert second.band == "R"


class TestPart:
    def test_a_box_holds_the_file_s_pixels(self, store, tiles, images):
        part = read_part(store, [tiles[0]], PixelBox(90, 150, 300, 250))
        np.testing.assert_array_equal(part.image.data, images[0][150:250, 90:300])
        flagged = np.argwhere(part.image.flags)
        assert {tuple(p) for p in flagged} == {
            (50 + dy, 10 + dx) for dy in range(-2, 3) for dx in range(-2, 3) if abs(dy) + abs(dx) <= 2
        }
        assert part.image.flags[50, 10] == PixelFlag.SATURATED
        np.testing.assert_allclose(part.image.sky_variance.values, 25.0, rtol=0.3)
        sky = tiles[0].wcs.all_pix2world([[100, 170]], 0)
        np.testing.assert_allclose(part.wcs.all_world2pix(sky, 0), [[10, 20]], atol=1e-6)

    def test_beyond_the_tile_and_at_zeros_there_is_no_data(self, store, tiles):
        part = read_part(store, [tiles[0]], PixelBox(-10, 50, 50, 80))
        no_data = part.image.flags == PixelFlag.NO_DATA
        assert no_data[:, :10].all()
        assert no_data[:10].all()
        assert not part.image.flags[10:, 10:].any()
        assert not part.image.data[no_data].any()

    def test_a_polygon_of_sky_becomes_a_box(self, store, tiles):
        chip = tan_wcs((200, 300), rotation=1.0)
        part = read_part(store, [tiles[0]], tile_corners(chip, (200, 300)), margin_pix=4)
        x, y = part.wcs.all_world2pix(tile_corners(chip, (200, 300)), 0).T
        assert (min(x.min(), y.min())) == pytest.approx(3.5, abs=1.1)
        assert part.image.shape[1] - x.max() == pytest.approx(4.5, abs=1.1)

    def test_stars_lie_on_stars(self, store, tiles):
        part = read_part(store, [tiles[0]], PixelBox(100, 100, 600, 500))
        bright = part.stars.flux > 3000
        x, y = (np.rint(v[bright]).astype(int) for v in (part.stars.x, part.stars.y))
        inside = (x > 1) & (y > 1) & (x < 498) & (y < 398)
        assert inside.sum() > 20
        assert np.median(part.image.data[y[inside], x[inside]]) > 100

    def test_a_part_can_be_calibrated_as_an_image(self, store, tiles):
        part = read_part(store, [tiles[0]], PixelBox(0, 0, 700, 520))
        bad = (part.image.flags & int(~PixelFlag.SATURATED)) != 0
        pixels = {"data": np.where(bad, np.float32(0), part.image.data), "flags": part.image.flags}
        chip = calibrate(replace(as_template(part).raw, **pixels), CalibrateConfig())
        assert chip.psf.fwhm_pix == pytest.approx(3.2, rel=0.06)
        assert ((chip.image.flags & PixelFlag.NO_DATA) != 0)[:60].all()

    def test_an_absurd_region_is_refused(self, store, tiles):
        with pytest.raises(InputError, match="none that a chip needs"):
            read_part(store, [tiles[0]], PixelBox(0, 0, 2**20, 2**20))

    def test_the_zero_point_map_is_applied_transposed(self, tmp_path, images, tiles, store):
        zp = np.full((8, 5), 30.0)  # [x, y]
        zp[6, 1] = 29.5
        np.save(tmp_path / "zp.npy", zp)
        path = write_tile(tmp_path / "a.fits", images[0], tan_wcs(SHAPE))
        made = TemplateStore(tmp_path / "s", create=True)
        record = add_tile(made, path, TileOptions(zp_map=tmp_path / "zp.npy"))
        box = PixelBox(0, 0, SHAPE[1], SHAPE[0])
        plain, mapped = read_part(store, [tiles[0]], box), read_part(made, [record], box)
        y, x = 156, 617  # the middle of cell x 6, y 1
        assert mapped.image.data[y, x] / plain.image.data[y, x] == pytest.approx(10**0.2, rel=4e-3)
        factor = mapped.image.data / np.where(plain.image.data == 0, np.nan, plain.image.data)
        noise = mapped.image.sky_variance.values / plain.image.sky_variance.values
        at = plain.image.sky_variance.middles()
        for x, y, found in zip(*(v.ravel() for v in (*at, noise)), strict=True):
            around = factor[int(y) : int(y) + 2, int(x) : int(x) + 2]
            if np.isfinite(around).all():
                assert found == pytest.approx(around.mean() ** 2, rel=8e-3)
        assert noise.max() > 1.5
        assert mapped.image.data[468, 142] == plain.image.data[468, 142]  # and nothing at x 1, y 4

    def test_sky_left_in_a_stack_is_subtracted(self, tmp_path, images):
        y = np.arange(SHAPE[0], dtype="f4")[:, None]
        path = write_tile(tmp_path / "a.fits", images[0] + (images[0] != 0) * (300 + 0.2 * y), tan_wcs(SHAPE))
        made = TemplateStore(tmp_path / "s", create=True)
        part = read_part(made, [add_tile(made, path, TileOptions())], PixelBox(100, 100, 700, 500))
        assert abs(np.median(part.image.data)) < 2.0


class TestMosaic:
    def test_the_first_tile_s_pixels_stay(self, store, tiles, images):
        part = read_part(store, tiles[:2], PixelBox(-100, 60, 500, 500))
        np.testing.assert_array_equal(part.image.data[:, 100:], images[0][60:500, :500])

    def test_the_gap_is_filled_with_the_same_sky(self, store, tiles):
        box = PixelBox(-300, 60, 200, 450)
        part = read_part(store, tiles[:2], box)
        assert part.tile_ids == (tiles[0].id, tiles[1].id)
        filled = np.zeros(part.image.shape, dtype=bool)
        filled[:, :300] = part.image.flags[:, :300] == 0
        assert filled[:, 110:290].mean() > 0.9
        truth = draw(part.wcs, part.image.shape, STARS, sigma=0.0, correlated=False)
        residual = (part.image.data - truth)[filled]
        quiet = truth[filled] < 20
        # what is left is the east tile's noise, 2 counts at zero point 29, less a bit for the resampling
        assert residual[quiet].std() == pytest.approx(
            np.sqrt(np.median(part.image.sky_variance.over(ALL, ALL)[filled])), rel=0.1
        )
        assert residual[quiet].std() == pytest.approx(2.0 * 10**0.4, rel=0.15)
        bright = truth[filled] > 500
        assert bright.sum() > 30
        assert np.abs(residual[bright] / truth[filled][bright]).mean() < 0.03

    def test_stars_of_the_filled_part_are_listed_on_the_grid(self, store, tiles):
        part = read_part(store, tiles[:2], PixelBox(-300, 60, 200, 450))
        x, y = part.wcs.all_world2pix(STARS[:, 0], STARS[:, 1], 0)
        wanted = (STARS[:, 2] > 2500) & (x > 120) & (x < 285) & (y > 15) & (y < 375)
        distance, at = cKDTree(np.stack([part.stars.x, part.stars.y], axis=1)).query(
            np.stack([x, y], axis=1)[wanted]
        )
        assert wanted.sum() > 8
        assert np.median(distance) < 0.15
        assert np.median(part.stars.flux[at] / STARS[wanted, 2]) == pytest.approx(0.97, abs=0.06)

    def test_a_mosaic_is_the_single_tile_where_one_is_enough(self, store, tiles):
        box = PixelBox(200, 100, 400, 300)
        one, two = read_part(store, tiles[:1], box), read_part(store, tiles[:2], box)
        np.testing.assert_array_equal(one.image.data, two.image.data)
        assert two.tile_ids == (tiles[0].id,)
        assert two.filled == 0

    def test_filled_says_how_much(self, store, tiles):
        part = read_part(store, tiles[:2], PixelBox(-300, 60, 200, 450))
        outside = np.zeros(part.image.shape, dtype=bool)
        outside[:, :300] = True
        assert part.filled == pytest.approx(
            (outside & part.image.good).sum() / part.image.good.sum(), abs=0.002
        )


class TestFind:
    def test_an_exposure_file_is_covered_by_both(self, store, tiles, folder):
        shape = (300, 400)
        path = write_tile(
            folder / "exposure.fits", np.ones(shape, "f4"), tan_wcs(shape, (CENTRE[0] + 0.04, CENTRE[1]))
        )
        found = cover(store, exposure_footprint(path), "R")
        assert {item.id for item in found} == {tiles[0].id, tiles[1].id}
        assert 0.95 < sum(item.gained for item in found) <= 1.0

    def test_no_tile_is_a_stated_skip(self, store):
        with pytest.raises(SkipChip, match="no template tile covers this field"):
            template_tiles(store, position_footprint(10.0, 20.0), "R", TemplateConfig())

    def test_another_filter_is_a_stated_skip(self, store):
        with pytest.raises(SkipChip, match="no V template here, only I, R"):
            template_tiles(store, position_footprint(*EAST), "V", TemplateConfig())

    def test_too_little_coverage_is_a_stated_skip(self, store):
        away = (CENTRE[0] - 0.085, CENTRE[1])
        footprint = chip_footprint(tan_wcs((300, 300), away), (300, 300))
        with pytest.raises(SkipChip, match="hardly covers the chip"):
            template_for(store, footprint, "R", TemplateConfig(min_coverage=0.9))

    def test_a_flagged_tile_is_a_stated_skip_unless_allowed(self, tmp_path, folder, images):
        table = tmp_path / "flags.csv"
        table.write_text("FIELD,RA,DEC,StrayLightContam_R,TrackIssue_R\n2149.115-50,114.8,-50,1,0\n")
        made = TemplateStore(tmp_path / "s", create=True)
        record = add_tile(made, folder / NAME, TileOptions(issues=read_issues(table)))
        assert record.issues == ("StrayLightContam",)
        footprint = position_footprint(*CENTRE)
        with pytest.raises(SkipChip, match="the R template is flagged: StrayLightContam"):
            template_tiles(made, footprint, "R", TemplateConfig())
        allowed = TemplateConfig(allowed_issues=("StrayLightContam",))
        assert [tile.id for tile in template_tiles(made, footprint, "R", allowed)] == [record.id]

    def test_the_template_under_a_chip_is_read_with_a_margin(self, store):
        shape = (200, 240)
        part = template_for(store, chip_footprint(tan_wcs(shape), shape), "R", TemplateConfig(margin_pix=10))
        assert part.image.shape == (220, 260)
        assert abs(SCALE - 0.4) < 1e-9


@pytest.mark.realdata
class TestRealStacks:
    def test_an_sdss_stack_at_kmtnet_s_sampling(self, realdata, tmp_path):
        path = realdata / "steveschulze+Photometry" / "Example" / "SN2015bn_SDSS_r_wcs.fits.fz"
        made = TemplateStore(tmp_path / "s", create=True)
        record = add_tile(made, path, TileOptions(band="R", zeropoint=22.5))
        assert record.shape == (2423, 2423)
        assert 1.0 < record.fwhm_pix * 0.396 < 1.6
        assert record.n_stars > 200
        footprint = chip_footprint(record.wcs, record.shape)
        part = template_for(made, footprint, "R", TemplateConfig())
        assert part.image.shape[0] >= 2423 + 64
        assert (part.image.flags == 0).mean() > 0.9
        assert [result.problem for result in made.check()] == [None]

    @pytest.mark.parametrize("name", ["DES_r", "PS1_i", "SDSS_i"])
    def test_small_cut_outs_of_other_surveys(self, realdata, tmp_path, name):
        path = realdata / "temuller+hostphot" / "images" / "SN2006bh" / f"{name}.fits"
        made = TemplateStore(tmp_path / "s", create=True)
        record = add_tile(made, path, TileOptions(band=name[-1], zeropoint=25.0))
        part = read_part(made, [record], PixelBox(10, 20, 200, 220))
        assert np.isfinite(part.image.data).all()
        assert (part.image.sky_variance.values > 0).all()
        assert record.noise.sigma > 0
