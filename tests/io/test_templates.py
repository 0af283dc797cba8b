"""The store: cards and arrays that come back as they went in, and every way in which they can be damaged."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from ks4diff.io.templates import TemplateStore
from ks4diff.products.chip import StarList
from ks4diff.products.errors import ConfigError, InputError
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf
from ks4diff.products.template import PixelBox, TileRecord
from ks4diff.stages.footprint import tile_corners, unit_vectors
from tests.tiles import CENTRE, tan_wcs, write_tile

SHAPE = (60, 100)
CELLS = (3, 5)


def make_record(path, tile_id="one", **changes):
    rng = np.random.default_rng(4)
    wcs = tan_wcs(SHAPE)
    maps = {name: rng.random(CELLS).astype("f4") for name in ("coverage", "sigma", "background")}
    values = {
        "id": tile_id, "file": str(path), "hdu": "0", "sha256": "0" * 64, "band": "R", "field": "2149.115-50",
        "shape": SHAPE, "wcs": wcs, "zeropoint": 30.0, "exptime": 480.0, "mjd": None, "cell_pix": 20,
        "corners": tile_corners(wcs, SHAPE), "flux_factor": np.ones((2, 3), "f4"), "fwhm_pix": 3.0,
        "noise": NoiseModel(sigma=5.0, correlation=np.eye(5), method="sky"),
        "psf": Psf(stamp=np.full((3, 3), 1 / 9, "f4"), fwhm_pix=3.0, n_stars=9),
        "fwhm_map": np.full((4, 4), np.nan, "f4"), "saturation": 1e5, "n_stars": 2, "issues": ("TrackIssue",),
    }  # fmt: skip
    return TileRecord(**values | maps | changes)


STARS = StarList(
    x=np.array([20.123456789, 3.0]),
    y=np.array([7.0, 50.5]),
    flux=np.array([1e6, 10.0]),
    fwhm=np.array([3.0, 4.0]),
    clean=np.array([True, False]),
)


@pytest.fixture
def store(tmp_path):
    path = write_tile(tmp_path / "tile.fits", np.ones(SHAPE, "f4"), tan_wcs(SHAPE))
    made = TemplateStore(tmp_path / "store", create=True)
    made.add(make_record(path), STARS, {"origin": "test"})
    return made


def arrays(store):
    (path,) = (store.root / "tiles").glob("*.npz")
    return path


def test_a_tile_comes_back_as_it_went_in(store):
    found, expected = store.record("one"), make_record(store.record("one").file)
    for name in (
        "id",
        "band",
        "field",
        "shape",
        "zeropoint",
        "exptime",
        "mjd",
        "cell_pix",
        "issues",
        "saturation",
    ):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("coverage", "sigma", "background", "flux_factor", "fwhm_map", "corners"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.noise.correlation, expected.noise.correlation)
    assert (found.noise.sigma, found.psf.fwhm_pix, found.psf.n_stars) == (5.0, 3.0, 9)
    assert found.file == expected.file
    corner = [[0, 0], [99, 59]]
    np.testing.assert_allclose(
        found.wcs.all_pix2world(corner, 0), expected.wcs.all_pix2world(corner, 0), rtol=0, atol=1e-10
    )


def test_stars_keep_their_positions(store):
    stars = store.stars(store.record("one"))
    assert stars.x[0] == 20.123456789
    np.testing.assert_array_equal(stars.clean, STARS.clean)
    np.testing.assert_allclose(stars.flux, STARS.flux)


def test_absent_facts_stay_absent(tmp_path, store):
    path = store.record("one").file
    store.add(make_record(path, "two", psf=None, flux_factor=None, fwhm_pix=None, field=None), STARS, {})
    found = store.record("two")
    assert (found.psf, found.flux_factor, found.fwhm_pix, found.field) == (None, None, None, None)


def test_adding_again_replaces(store):
    store.add(make_record(store.record("one").file, band="I"), STARS, {})
    assert store.record("one").band == "I"
    assert len(list((store.root / "tiles").iterdir())) == 2


def test_the_index_follows_the_cards(store):
    assert list(store.cards()) == ["one"]
    store.add(make_record(store.record("one").file, "two"), STARS, {})
    assert list(store.cards()) == ["one", "two"]
    (store.root / "index.json").write_text("{")
    assert list(store.cards()) == ["one", "two"]
    index = json.loads((store.root / "index.json").read_text())
    index["tiles"]["two"]["card"]["shape"] = "wide"
    (store.root / "index.json").write_text(json.dumps(index))
    assert store.cards()["two"]["shape"] == list(SHAPE)
    (store.root / "tiles" / "one.json").unlink()
    assert list(store.cards()) == ["two"]


def test_near_is_by_position_and_band(store):
    here = unit_vectors([CENTRE])[0]
    away = unit_vectors([(CENTRE[0], CENTRE[1] + 1)])[0]
    assert [r.id for r in store.near(here, 0.0)] == ["one"]
    assert [r.id for r in store.near(here, 0.0, "I")] == []
    assert [r.id for r in store.near(away, 0.5)] == []
    assert [r.id for r in store.near(away, 1.1)] == ["one"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", 2), ("shape", [10]), ("shape", [10, -1]), ("shape", None), ("zeropoint", "30"),
        ("zeropoint", ...), ("corners", [[0, 0]]), ("cell_pix", 0), ("band", 3), ("arrays", "../../etc"),
        ("n_stars", True), ("issues", [3]), ("wcs", "SIMPLE"), ("sigma_counts", None),
    ],
)  # fmt: skip
def test_damaged_cards_are_refused_in_one_line(store, name, value, caplog):
    path = store.root / "tiles" / "one.json"
    card = json.loads(path.read_text())
    card[name] = value
    if value is ...:
        del card[name]
    path.write_text(json.dumps(card))
    with pytest.raises(InputError, match="damaged") as caught:
        store.record("one")
    assert "\n" not in str(caught.value)
    (result,) = store.check()
    assert result.problem


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"7"])
def test_cards_that_are_no_json_are_refused(store, content, caplog):
    (store.root / "tiles" / "one.json").write_bytes(content)
    with pytest.raises(InputError, match=r"one\.json"):
        store.record("one")
    assert store.cards() == {}
    assert "one is left out" in caplog.text


def test_damaged_arrays_are_refused_in_one_line(store):
    path = arrays(store)
    good = path.read_bytes()
    rng, said = np.random.default_rng(11), []
    for trial in range(60):
        content = bytearray(good)
        if trial % 3 == 0:
            content = content[: rng.integers(0, len(content))]
        else:
            for place in rng.integers(0, len(content), 1 + 20 * (trial % 3)):
                content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        for read in (store.record, lambda name: store.stars(make_record("x", name))):
            try:
                read("one")  # a flipped bit in a zip's unused fields does no harm
            except InputError as error:
                said.append(str(error))
    assert len(said) > 30
    assert not any("\n" in line for line in said)


def test_arrays_that_would_fill_the_memory_are_refused(store):
    with (
        zipfile.ZipFile(arrays(store), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("coverage.npy", "w", force_zip64=True) as stream,
    ):
        for _ in range(600):
            stream.write(bytes(2**20))
    with pytest.raises(InputError, match="more than any tile has"):
        store.record("one")


def test_pickled_arrays_are_refused(store):
    np.savez(arrays(store), coverage=np.array([None, {}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="damaged arrays"):
        store.record("one")


def test_arrays_of_another_tile_are_refused(store):
    card = json.loads((store.root / "tiles" / "one.json").read_text())
    card["shape"] = [600, 1000]
    (store.root / "tiles" / "one.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="coverage"):
        store.record("one")


def test_a_changed_file_is_noticed(store, tmp_path):
    record = store.record("one")
    (result,) = store.check(checksums=False)
    assert result.problem is None
    (result,) = store.check()
    assert "checksum" in result.problem
    write_tile(tmp_path / "tile.fits", np.ones((61, 100), "f4"), tan_wcs(SHAPE))
    with pytest.raises(InputError, match="has changed"):
        store.pixels(record)
    (tmp_path / "tile.fits").unlink()
    (result,) = store.check()
    assert "no such file" in result.problem


def test_a_moved_store_finds_its_own_pixels(store, tmp_path):
    inside = store.pixel_path("own.fits")
    inside.parent.mkdir()
    write_tile(inside, np.ones(SHAPE, "f4"), tan_wcs(SHAPE))
    store.add(make_record(inside, "own"), STARS, {})
    store.root.rename(tmp_path / "elsewhere")
    moved = TemplateStore(tmp_path / "elsewhere")
    assert moved.pixels(moved.record("own")).shape == SHAPE


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a template store"):
        TemplateStore(tmp_path)
    with pytest.raises(InputError, match="has no tile"):
        TemplateStore(tmp_path, create=True).record("../x")


def test_boxes_know_their_shape():
    assert PixelBox(-2, 3, 10, 8).shape == (5, 12)
