"""A template made of one's own exposures: fluxes, positions and what only one exposure shows."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.build_tile import BuildOptions, build_tile
from ks4diff.pipeline.templates import TemplateConfig, template_for
from ks4diff.products.errors import ConfigError, InputError
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.stack import StackConfig, combine, stack_grid
from tests.tiles import CENTRE, draw, star_sky, tan_wcs, write_tile

SHAPE = (420, 500)
STARS = star_sky(n=1500, radius_deg=0.06)


def exposure(path, n, *, scale=1.0, error=(0.0, 0.0), sky=200.0, **cards):
    """Write exposure n of a dither: its header's WCS is off by ``error`` pixels."""
    centre = (CENTRE[0] + 0.006 * n, CENTRE[1] + 0.002 * n)
    turn = 0.1 * n
    image = draw(
        tan_wcs(SHAPE, centre, 0.395, rotation=turn),
        SHAPE,
        STARS,
        sigma=6.0,
        seed=50 + n,
        scale=scale,
        fwhm=3.0 + 0.2 * n,
        correlated=False,
    )
    image += sky
    image[100 + 40 * n, 200:210] += 5000  # a cosmic ray
    header_wcs = tan_wcs(SHAPE, centre, 0.395, offset=error, rotation=turn)
    return write_tile(path, image, header_wcs, exptime=120.0, gain=2.0, **cards)


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visit")
    files = [
        exposure(folder / "a.fits", 0, zeropoint=28.5),
        exposure(folder / "b.fits", 1, scale=0.8, error=(3.0, -2.0), zeropoint=25.0),  # a wrong zero point
        exposure(folder / "c.fits", 2, scale=1.1, error=(-1.0, 0.5), zeropoint=28.5),
    ]
    store = TemplateStore(folder / "store", create=True)
    built = build_tile(store, files, folder / "out" / "tile.fits", BuildOptions(band="R"))
    return store, built, folder


def test_the_tile_is_in_the_store_with_its_provenance(visit):
    store, built, folder = visit
    assert list(store.cards()) == [built.record.id]
    assert set(built.used) == {"a.fits", "b.fits", "c.fits"}
    assert all("corrected by" in built.used[name] for name in ("b.fits", "c.fits"))
    header = fits.getheader(folder / "out" / "tile.fits")
    assert (header["NUMIMAGE"], header["IMAGE2"], header["FILTER"]) == (3, "b.fits", "R")
    assert (header["MAGZERO"], header["EXPTIME"]) == (28.5, 360.0)
    assert "b.fits: counts x" in str(header["HISTORY"])
    assert not list(folder.glob("out/.*"))


def test_stars_keep_flux_and_place(visit):
    _, built, folder = visit
    record = built.record
    data = fits.getdata(folder / "out" / "tile.fits").astype(float)
    x, y = record.wcs.all_world2pix(STARS[:, 0], STARS[:, 1], 0)
    margin = (x > 60) & (y > 60) & (x < record.shape[1] - 60) & (y < record.shape[0] - 60)
    from scipy.spatial import cKDTree

    xy = np.stack([x, y], axis=1)
    alone = cKDTree(xy).query(xy, k=2)[0][:, 1] > 18
    chosen = np.flatnonzero(margin & alone & (STARS[:, 2] > 8000))
    assert len(chosen) > 5
    for n in chosen:
        cx, cy = round(x[n]), round(y[n])
        stamp = data[cy - 8 : cy + 9, cx - 8 : cx + 9]
        assert stamp.sum() / STARS[n, 2] == pytest.approx(1.0, abs=0.08)
        oy, ox = np.mgrid[cy - 8 : cy + 9, cx - 8 : cx + 9]
        core = np.hypot(ox - x[n], oy - y[n]) < 4
        assert (stamp * ox)[core].sum() / stamp[core].sum() == pytest.approx(x[n], abs=0.25)


def test_cosmic_rays_and_sky_are_gone_and_zeros_are_no_data(visit):
    _, built, folder = visit
    data = fits.getdata(folder / "out" / "tile.fits")
    clean = draw(built.record.wcs, built.record.shape, STARS, sigma=0.0, correlated=False)
    inside = np.zeros(data.shape, dtype=bool)
    inside[120:-120, 120:-120] = True
    assert np.abs(data - clean)[inside & (clean < 50)].max() < 60  # the rays were of 5000
    assert abs(np.median(data[inside & (clean < 5)])) < 1.5
    assert data[0, 0] == 0
    assert 0.5 < built.record.coverage.mean() < 1


def test_it_serves_the_next_visit(visit):
    store, built, _ = visit
    footprint = chip_footprint(tan_wcs(SHAPE, CENTRE, 0.395), SHAPE)
    part = template_for(store, footprint, "R", TemplateConfig())
    assert part.tile_ids == (built.record.id,)
    assert (part.image.flags == 0).mean() > 0.75


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path, visit):
    folder = visit[2]
    blind = tmp_path / "blind.fits"
    fits.PrimaryHDU(fits.getdata(folder / "a.fits")).writeto(blind)
    (tmp_path / "text.fits").write_text("SIMPLE")
    files = [blind, tmp_path / "text.fits", folder / "a.fits"]
    store = TemplateStore(tmp_path / "store", create=True)
    built = build_tile(store, files, tmp_path / "t.fits", BuildOptions(band="R", zeropoint=28.0))
    assert built.left_out[str(blind)] == "no usable WCS"
    assert "is not a FITS file" in built.left_out[str(tmp_path / "text.fits")]
    assert (list(built.used), built.record.zeropoint) == (["a.fits"], 28.0)


def test_nothing_usable_is_one_line(tmp_path):
    (tmp_path / "a.fits").write_text("SIMPLE")
    store = TemplateStore(tmp_path / "store", create=True)
    with pytest.raises(InputError, match=r"no exposure can be used: a\.fits"):
        build_tile(store, [tmp_path / "a.fits"], tmp_path / "t.fits", BuildOptions(band="R"))
    with pytest.raises(ConfigError, match="would overwrite"):
        build_tile(store, [tmp_path / "a.fits"], tmp_path / "a.fits", BuildOptions(band="R"))


def test_without_any_zero_point_it_is_refused(tmp_path):
    path = exposure(tmp_path / "a.fits", 0, zeropoint=None)
    store = TemplateStore(tmp_path / "store", create=True)
    with pytest.raises(InputError, match="say --zeropoint"):
        build_tile(store, [path], tmp_path / "t.fits", BuildOptions(band="R"))
    assert not (tmp_path / "t.fits").exists()


class TestCombine:
    sigma = np.array([1.0, 1.0, 2.0])

    def test_the_mean_is_weighted(self):
        values = np.array([1.0, 2.0, 3.0], "f4").reshape(3, 1, 1)
        mean, n = combine(values, self.sigma, StackConfig())
        assert mean[0, 0] == pytest.approx((1 + 2 + 0.75) / 2.25)
        assert n[0, 0] == 3

    def test_outliers_and_gaps_are_left_out(self):
        values = np.array([[1.0, np.nan, np.nan], [1.2, 5.0, np.nan], [90.0, 300.0, np.nan]], "f4")
        mean, n = combine(values[:, None, :], self.sigma, StackConfig())
        np.testing.assert_array_equal(n[0], [2, 1, 0])
        np.testing.assert_allclose(mean[0], [1.1, 5.0, 0.0], rtol=1e-6)

    def test_a_star_s_core_survives_different_seeing(self):
        values = np.array([1000.0, 1200.0, 900.0], "f4").reshape(3, 1, 1)
        assert combine(values, self.sigma, StackConfig())[1][0, 0] == 3


def test_exposures_far_apart_do_not_share_a_grid():
    images = [(tan_wcs(SHAPE), SHAPE), (tan_wcs(SHAPE, (CENTRE[0] + 20, CENTRE[1])), SHAPE)]
    with pytest.raises(InputError, match="do not fit on one grid"):
        stack_grid(images, None, StackConfig())
