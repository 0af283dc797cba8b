"""Stacks fetched from a service of our own on loopback: cuts, lies and limits."""

from __future__ import annotations

import pytest

pytest.importorskip("pyvo")

from ks4diff.io import sia
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.fetch_tiles import fetch_tiles
from ks4diff.products.errors import ConfigError, InputError, SkipChip
from tests.io.sia_server import SiaServer
from tests.tiles import draw, star_sky, tan_wcs, write_tile

SHAPE = (300, 340)
POSITION = (114.78, -50.0)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "stack.fits"
    wcs = tan_wcs(SHAPE)
    return write_tile(path, draw(wcs, SHAPE, star_sky()), wcs).read_bytes()


@pytest.fixture
def server(content):
    made = SiaServer()
    made.files = {"ks4.R.stack.fits": ("R", content), "ks4.I.stack.fits": ("I", content)}
    yield made
    made.close()


@pytest.fixture
def store(tmp_path):
    return TemplateStore(tmp_path / "store", create=True)


def fetch(store, server, **options):
    return fetch_tiles(store, POSITION, "R", service=f"{server.url}/sia", **options)


def files_asked(server):
    return [asked for path, asked in server.requests if path.startswith("/files/")]


def test_a_stack_becomes_a_tile(store, server, content):
    (record,) = fetch(store, server)
    assert (record.band, record.shape) == ("R", SHAPE)
    assert [result.problem for result in store.check()] == [None]
    assert store.pixels(record).path.read_bytes() == content
    assert store.cards()[record.id]["provenance"]["origin"] == "fetched"


def test_a_second_fetch_downloads_nothing(store, server):
    fetch(store, server)
    asked = len(files_asked(server))
    fetch(store, server)
    assert len(files_asked(server)) == asked
    assert len(store.cards()) == 1


def test_a_cut_transfer_goes_on_where_it_stopped(store, server, content):
    server.cut = 2
    (record,) = fetch(store, server)
    first, *later = files_asked(server)
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in later]
    assert first is None
    assert len(starts) == 2
    assert len(content) // 4 < starts[0] < starts[1] < len(content)
    assert store.pixels(record).path.read_bytes() == content
    assert not list(store.root.glob("pixels/*.part*"))


def test_a_run_that_gave_up_is_gone_on_with_by_the_next(store, server, content):
    server.cut = sia.ATTEMPTS
    with pytest.raises(InputError, match=r"run again to go on from byte \d+"):
        fetch(store, server)
    server.requests.clear()
    fetch(store, server)
    (first,) = files_asked(server)
    assert int(first.removeprefix("bytes=").removesuffix("-")) > len(content) // 2 - 2**16


def test_a_server_without_ranges_sends_it_all_again(store, server, content):
    server.cut, server.ranges = 1, False
    (record,) = fetch(store, server)
    assert store.pixels(record).path.read_bytes() == content


def test_a_file_that_changed_meanwhile_is_begun_anew(store, server, content):
    server.cut = sia.ATTEMPTS
    with pytest.raises(InputError):
        fetch(store, server)
    other = content[:-2880] + bytes(2880)
    server.files["ks4.R.stack.fits"] = ("R", other)
    (record,) = fetch(store, server)
    assert store.pixels(record).path.read_bytes() == other


def test_a_wrong_checksum_is_refused(store, server):
    server.checksum = lambda content: "0" * 64
    with pytest.raises(InputError, match="sha256 of what came is not"):
        fetch(store, server)
    assert not store.cards()
    assert not list(store.root.glob("pixels/*.fits*"))


def test_a_file_that_is_too_large_is_refused_before_it_comes(store, server):
    with pytest.raises(InputError, match="more than 1000"):
        fetch(store, server, max_bytes=1000)


def test_what_is_no_fits_is_refused(store, server):
    server.files = {"a.fits": ("R", b"<html>not today</html>")}
    with pytest.raises(InputError, match="not a FITS file"):
        fetch(store, server)


@pytest.mark.parametrize(("status", "match"), [(404, "answers 404"), (503, "answers 503")])
def test_a_server_that_fails_is_one_line(store, server, status, match):
    server.status = status
    with pytest.raises(InputError, match=match) as caught:
        fetch(store, server)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", [b"", b"<html><body>busy</body></html>", b"\xff\xfe\x00"])
def test_a_service_that_answers_nonsense_is_one_line(store, server, table):
    server.table = table
    with pytest.raises(InputError, match=server.url) as caught:
        fetch(store, server)
    assert "\n" not in str(caught.value)


def test_no_image_in_the_band_is_a_stated_skip(store, server):
    with pytest.raises(SkipChip, match="has no V image"):
        fetch_tiles(store, POSITION, "V", service=f"{server.url}/sia")


def test_a_service_that_is_away_is_one_line(store):
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9"):
        fetch_tiles(store, POSITION, "R", service="http://127.0.0.1:9/sia")


def test_the_service_is_configuration(store, server):
    with pytest.raises(ConfigError, match="no image service"):
        fetch_tiles(store, POSITION, "R")
    (store.root / "store.toml").write_text(f'[fetch]\nservice = "{server.url}/sia"\n')
    assert len(fetch_tiles(store, POSITION, "R")) == 1
    (store.root / "store.toml").write_text("[fetch")
    with pytest.raises(ConfigError, match=r"store\.toml"):
        fetch_tiles(store, POSITION, "R")


def test_addresses_of_other_kinds_are_refused(store):
    with pytest.raises(ConfigError, match="must begin with http"):
        fetch_tiles(store, POSITION, "R", service="file:///etc/passwd")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://x/a/../../etc/passwd", "passwd-"),
        ("http://x/get?file=a.fits", "get-"),
        ("http://x/%2e%2e%2fks4.fits.fz", "ks4-"),
        ("http://x/" + "a" * 500 + ".fits", "a" * 100),
    ],
)
def test_downloads_get_safe_names(url, name):
    made = sia._file_name(url)
    assert made.startswith(name)
    assert "/" not in made
    assert made.endswith((".fits", ".fits.fz"))
    assert len(made) < 140
