"""Damaged stacks: each becomes a tile or one line; never a traceback, whatever bytes are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.products.errors import ConfigError, InputError
from tests.tiles import draw, star_sky, tan_wcs, write_tile

SHAPE = (120, 150)
CARDS = (b"CRVAL1", b"CRPIX2", b"CDELT1", b"MAGZERO", b"SATURATE", b"EXPTIME", b"BITPIX", b"NAXIS2")
VALUES = (b"NaN", b"'x'", b"1E300", b"", b"-1", b"0")


def cut(content, rng):
    return content[: rng.integers(0, len(content))]


def flip_header(content, rng):
    for place in rng.integers(0, 2880, rng.integers(1, 30)):
        content[place] = rng.integers(32, 127)
    return content


def flip_pixels(content, rng):
    for place in rng.integers(2880, len(content), 200):
        content[place] = rng.integers(0, 256)
    return content


def change_width(content, rng):
    at = content.find(b"NAXIS1") + 10
    content[at : at + 20] = str(rng.integers(0, 10 ** rng.integers(1, 12))).rjust(20).encode()
    return content


def change_card(content, rng):
    at = content.find(CARDS[rng.integers(len(CARDS))]) + 10
    content[at : at + 20] = VALUES[rng.integers(len(VALUES))].rjust(20)
    return content


def lose_card(content, rng):
    at = 80 * rng.integers(0, 30)
    del content[at : at + 80]
    content[2800:2800] = b" " * 80
    return content


@pytest.mark.parametrize("damage", [cut, flip_header, flip_pixels, change_width, change_card, lose_card])
def test_damage_is_survived(tmp_path, damage):
    wcs = tan_wcs(SHAPE)
    path = write_tile(tmp_path / "a.fits", draw(wcs, SHAPE, star_sky()), wcs, saturate=3e5, exptime=100.0)
    good, rng, said = path.read_bytes(), np.random.default_rng(5), []
    store = TemplateStore(tmp_path / "store", create=True)
    for _ in range(12):
        path.write_bytes(damage(bytearray(good), rng))
        try:
            add_tile(store, path, TileOptions())
        except (InputError, ConfigError) as error:
            said.append(str(error))
    assert not any("\n" in line for line in said)
    assert all("a.fits" in line or "zero point" in line for line in said)
    for tile in store.cards():
        store.record(tile)
