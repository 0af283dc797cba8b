"""The template store: a folder with one card and one file of arrays per tile; pixels may lie elsewhere."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.tile_cards import (
    card_of,
    card_problem,
    read_card,
    read_record,
    read_stars,
    write_arrays,
    write_card,
)
from ks4diff.io.tile_files import TilePixels, copy_with_sha256, read_tile_header
from ks4diff.products.chip import StarList
from ks4diff.products.errors import ConfigError, InputError
from ks4diff.products.template import TileRecord

log = logging.getLogger(__name__)

_CARDS = "tiles"
_PIXELS = "pixels"
_INDEX = "index.json"
_INDEX_SCHEMA = 1
_MAX_INDEX_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class TileCheck:
    """Whether one tile of a store can be used: ``problem`` is one line, None when all is well."""

    id: str
    file: str | None
    problem: str | None


class TemplateStore:
    """Reference tiles in a folder.

    ``tiles/<id>.json`` and ``tiles/<id>.<n>.npz`` describe a tile, ``pixels/`` holds the files that were
    copied, unpacked, built or downloaded; ``index.json`` repeats the cards so that one file is read instead
    of thousands, and is rebuilt from those that changed.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = Path(root)
        if create:
            try:
                (self.root / _CARDS).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{self.root}: cannot be made ({error.strerror})") from None
        elif not (self.root / _CARDS).is_dir():
            raise ConfigError(f"{self.root}: not a template store; ks4diff templates add makes one")

    def pixel_path(self, name: str) -> Path:
        """Return where the store would keep a pixel file of its own."""
        return self.root / _PIXELS / name

    def cards(self) -> dict[str, dict[str, Any]]:
        """Return all readable cards by tile id; a damaged one is passed over with a warning."""
        return {name: card for name, card, problem in self._read_cards() if not _told(name, problem)}

    def _read_cards(self) -> Iterator[tuple[str, dict[str, Any], str | None]]:
        """Yield (id, card, problem), sorted; the index is written anew when a card has changed."""
        known = self._index()
        entries, changed = {}, False
        for path in sorted((self.root / _CARDS).glob("*.json")):
            try:
                stat = path.stat()
            except OSError:
                continue  # removed since the folder was listed
            stamp = [stat.st_mtime_ns, stat.st_size, stat.st_ino]
            old = known.get(path.stem)
            if isinstance(old, dict) and old.get("stamp") == stamp and not card_problem(old.get("card")):
                entries[path.stem] = old
                yield path.stem, old["card"], None
                continue
            changed = True
            try:
                card = read_card(path)
            except InputError as error:
                yield path.stem, {}, str(error)
                continue
            entries[path.stem] = {"stamp": stamp, "card": card}
            yield path.stem, card, None
        if changed or entries.keys() != known.keys():
            self._write_index(entries)

    def _index(self) -> dict[str, Any]:
        path = self.root / _INDEX
        try:
            if path.stat().st_size > _MAX_INDEX_BYTES:
                return {}
            index = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}  # it is only a copy
        fine = isinstance(index, dict) and index.get("schema") == _INDEX_SCHEMA
        return index["tiles"] if fine and isinstance(index.get("tiles"), dict) else {}

    def _write_index(self, entries: dict[str, Any]) -> None:
        text = json.dumps({"schema": _INDEX_SCHEMA, "tiles": entries}, separators=(",", ":"))
        try:
            atomic_write_bytes(self.root / _INDEX, text.encode())
        except OSError as error:
            log.debug("%s: index not written (%s)", self.root, error)  # a read-only store works without

    def near(self, centre: np.ndarray, radius_deg: float, band: str | None = None) -> list[TileRecord]:
        """Return the tiles whose corners reach within ``radius_deg`` of a direction, float [3], sorted by id.

        A tile whose arrays are damaged is passed over with a warning.
        """
        found = []
        for name, card in self.cards().items():
            if band is not None and card["band"] != band:
                continue
            if _separation(card["corners"], centre) > radius_deg:
                continue
            try:
                found.append(self._record(card))
            except InputError as error:
                _told(name, str(error))
        return found

    def record(self, tile_id: str) -> TileRecord:
        """Return one tile.

        Raises
        ------
        InputError
            When the store has no such tile, or it is damaged.

        """
        path = self.root / _CARDS / f"{tile_id}.json"
        if "/" in tile_id or not path.is_file():
            raise InputError(f"{self.root}: has no tile {tile_id!r}")
        return self._record(read_card(path))

    def _record(self, card: dict[str, Any]) -> TileRecord:
        return read_record(card, self.root / _CARDS / card["arrays"], self._file(card))

    def _file(self, card: dict[str, Any]) -> Path:
        return (self.root / card["file"]).absolute()  # an absolute file stays what it is

    def stars(self, record: TileRecord) -> StarList:
        """Return the star list of a tile, brightest first, in its pixels."""
        card = read_card(self.root / _CARDS / f"{record.id}.json")
        return read_stars(self.root / _CARDS / card["arrays"])

    def pixels(self, record: TileRecord) -> TilePixels:
        """Return where a tile's pixels are.

        Raises
        ------
        InputError
            When the file is gone, or is not the one that was measured.

        """
        path = Path(record.file)
        size = read_card(self.root / _CARDS / f"{record.id}.json")["bytes"]
        header = read_tile_header(path, int(record.hdu.split()[0]))
        if header.pixels is None or header.shape != record.shape or path.stat().st_size != size:
            raise InputError(f"{path}: has changed since tile {record.id} was added; add it again")
        return header.pixels

    def add(self, record: TileRecord, stars: StarList, provenance: dict[str, Any]) -> None:
        """Write a tile, over an earlier one of its id.

        Raises
        ------
        OSError
            When the store cannot be written; an earlier tile of this id is then unchanged.

        """
        folder = self.root / _CARDS
        path = Path(record.file)
        size = path.stat().st_size
        inside = path.absolute().is_relative_to(self.root.absolute())
        name = str(path.absolute().relative_to(self.root.absolute())) if inside else str(path.absolute())
        earlier = {old.name for old in folder.glob(f"{record.id}.*.npz")}
        number = 1 + max((int(m[1]) for old in earlier if (m := re.search(r"\.(\d+)\.npz$", old))), default=0)
        arrays = f"{record.id}.{number}.npz"
        write_arrays(folder / arrays, record, stars)
        card = card_of(record, arrays=arrays, size=size, provenance=provenance)
        write_card(folder / f"{record.id}.json", card | {"file": name})
        for old in earlier:  # only now: a reader between the two renames finds the old pair whole
            (folder / old).unlink(missing_ok=True)

    def check(self, *, checksums: bool = True) -> Iterator[TileCheck]:
        """Yield each tile with what is wrong with it: card, arrays, file, size, checksum."""
        for name, card, problem in self._read_cards():
            if problem is not None:
                yield TileCheck(id=name, file=None, problem=problem)
                continue
            try:
                self._check_one(card, checksums)
            except (InputError, OSError) as error:
                problem = str(error)
            yield TileCheck(id=name, file=str(self._file(card)), problem=problem)

    def _check_one(self, card: dict[str, Any], checksums: bool) -> None:
        record = self._record(card)
        read_stars(self.root / _CARDS / card["arrays"])
        self.pixels(record)
        if checksums and copy_with_sha256(Path(record.file), None) != record.sha256:
            raise InputError(f"{record.file}: its checksum is not that of tile {record.id}")


def _told(name: str, problem: str | None) -> bool:
    if problem is not None:
        log.warning("tile %s is left out: %s", name, problem)
    return problem is not None


def _separation(corners: list[list[float]], centre: np.ndarray) -> float:
    """Return degrees from a direction to the circle around a tile's corners; 0 inside."""
    ra, dec = np.radians(np.array(corners)).T
    vectors = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    middle = vectors.mean(axis=0)
    middle = middle / np.linalg.norm(middle)
    radius = np.degrees(np.arccos(np.clip((vectors @ middle).min(), -1, 1)))
    return max(float(np.degrees(np.arccos(np.clip(middle @ centre, -1, 1)))) - float(radius), 0.0)
