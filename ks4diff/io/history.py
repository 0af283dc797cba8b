"""The history in its database: every candidate of every exposure, the objects, and where chips looked."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from ks4diff.io.history_engine import Database, history_url
from ks4diff.io.history_tables import CHIP_CELLS, CHIPS, DETECTIONS, EXPOSURES, OBJECTS
from ks4diff.products.coverage import ChipCoverage, Looked
from ks4diff.products.errors import InputError
from ks4diff.products.sightings import ChipSightings, ExposureSightings

_AT_ONCE = 5000  # values in one IN: SQLite allows 32,766, PostgreSQL 65,535
_EXPOSURE = tuple(column.name for column in EXPOSURES.columns)
_DETECTED = tuple(column.name for column in DETECTIONS.columns)

Row = dict[str, Any]


class History:
    """One survey's history. Nothing is opened before it is needed.

    Raises
    ------
    ConfigError
        When ``database`` is malformed or of an unsupported kind.

    """

    def __init__(self, database: str | None, out: Path) -> None:
        self._database = Database(history_url(database, out))
        self.name = self._database.name

    def require(self) -> None:
        """Raise InputError when the history is a file that is not there: to look into it must not make it."""
        path = self._database.path
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such history")

    @contextmanager
    def reading(self) -> Iterator[HistoryReader]:
        """Yield one state of the history.

        Raises
        ------
        HistoryUnavailable
            When the database is away.
        InputError
            When it is there and is no history.

        """
        with self._database.reading() as connection:
            yield HistoryReader(connection)

    @contextmanager
    def writing(self) -> Iterator[HistoryWriter]:
        """Yield the history to its one writer: all of the body is stored, or nothing; raises as `reading`."""
        with self._database.writing() as connection:
            yield HistoryWriter(connection)


class HistoryReader:
    """What may be asked; rows are dictionaries in a stated order, so that all databases answer alike."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def exposures(self) -> list[Row]:
        """Return all exposures, by time and name."""
        rows = self._rows(sa.select(EXPOSURES))
        return sorted(rows, key=lambda row: (row["mjd"] or 0.0, row["exposure"]))

    def objects(self, cells: Iterable[int] | None = None) -> list[Row]:
        """Return the objects in some fine cells, or all, by name."""
        return self._in(OBJECTS, OBJECTS.c.cell, cells, "object_id")

    def objects_named(self, names: Iterable[str]) -> list[Row]:
        """Return the objects of some names, by name."""
        return self._in(OBJECTS, OBJECTS.c.object_id, names, "object_id")

    def detections(self, exposure: str | None = None) -> list[Row]:
        """Return the candidates of an exposure, or all, by number."""
        query = sa.select(DETECTIONS).order_by(DETECTIONS.c.candid)
        return self._rows(query if exposure is None else query.where(DETECTIONS.c.exposure == exposure))

    def detections_of(self, names: Iterable[str]) -> dict[str, list[Row]]:
        """Return the candidates of each of some objects, by time, with what their exposure and chip say."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self._with_exposure(DETECTIONS.c.object_id, names):
            found[row["object_id"]].append(row)
        return found

    def loose_detections(self, cells: Iterable[int]) -> list[Row]:
        """Return the candidates of no object in some fine cells, by time."""
        return [row for row in self._with_exposure(DETECTIONS.c.cell, cells) if row["object_id"] is None]

    def chips_over(self, cells: Iterable[int], *, until: float | None = None) -> list[Row]:
        """Return the chips that may touch some coarse cells, by time; ``until`` is the latest MJD."""
        keys: set[tuple[str, str]] = set()
        for part in _parts(cells):
            query = sa.select(CHIP_CELLS.c.exposure, CHIP_CELLS.c.chip).where(CHIP_CELLS.c.cell.in_(part))
            keys.update((row.exposure, row.chip) for row in self._connection.execute(query))
        rows: list[Row] = []
        for part in _parts(exposure for exposure, _ in keys):
            query = (
                sa.select(CHIPS, EXPOSURES.c.mjd, EXPOSURES.c.filter, EXPOSURES.c.site)
                .join(EXPOSURES, EXPOSURES.c.exposure == CHIPS.c.exposure)
                .where(CHIPS.c.exposure.in_(part), EXPOSURES.c.mjd.is_not(None))
            )
            rows += self._rows(query if until is None else query.where(EXPOSURES.c.mjd <= until))
        rows = [row for row in rows if (row["exposure"], row["chip"]) in keys]
        return sorted(rows, key=lambda row: (row["mjd"], row["exposure"], row["chip"]))

    def _with_exposure(self, column: sa.Column, values: Iterable[Any]) -> list[Row]:
        rows: list[Row] = []
        for part in _parts(values):
            query = (
                sa.select(
                    DETECTIONS,
                    *(EXPOSURES.c[name] for name in ("mjd", "filter", "site", "exptime")),
                    *(CHIPS.c[name] for name in ("flux_unit", "limiting_mag")),
                )
                .join(EXPOSURES, EXPOSURES.c.exposure == DETECTIONS.c.exposure)
                .join(
                    CHIPS,
                    (CHIPS.c.exposure == DETECTIONS.c.exposure) & (CHIPS.c.chip == DETECTIONS.c.chip),
                )
                .where(column.in_(part), EXPOSURES.c.mjd.is_not(None))
            )
            rows += self._rows(query)
        return sorted(rows, key=lambda row: (row["mjd"], row["exposure"], row["candid"]))

    def _in(self, table: sa.Table, column: sa.Column, values: Iterable[Any] | None, order: str) -> list[Row]:
        if values is None:
            return self._rows(sa.select(table).order_by(table.c[order]))
        rows: list[Row] = []
        for part in _parts(values):
            rows += self._rows(sa.select(table).where(column.in_(part)))
        return sorted(rows, key=lambda row: row[order])

    def _rows(self, query: sa.Select) -> list[Row]:
        return [dict(row) for row in self._connection.execute(query).mappings()]


class HistoryWriter(HistoryReader):
    """What the one writer may change."""

    def forget(self, exposure: str) -> list[Row]:
        """Remove an exposure, whose objects stay for now; return the candidates that it had, by number."""
        before = self.detections(exposure)
        for table in (DETECTIONS, CHIP_CELLS, CHIPS, EXPOSURES):
            self._connection.execute(sa.delete(table).where(table.c.exposure == exposure))
        return before

    def add(
        self, sightings: ExposureSightings, objects: Sequence[str | None], primary: np.ndarray, root: str
    ) -> None:
        """Store an exposure whose candidates, in the order of ``sightings.table``, belong to ``objects``."""
        exposure = {name: getattr(sightings, name) for name in _EXPOSURE}
        self._connection.execute(sa.insert(EXPOSURES), [exposure])
        start = 0
        for chip in sightings.chips:
            self._connection.execute(sa.insert(CHIPS), [_chip_row(sightings.exposure, chip, root)])
            cells = () if chip.coverage is None else chip.coverage.cells
            rows = [{"cell": cell, "exposure": sightings.exposure, "chip": chip.chip} for cell in cells]
            if rows:
                self._connection.execute(sa.insert(CHIP_CELLS), rows)
            rows = _detection_rows(sightings.exposure, chip)
            for k, row in enumerate(rows, start=start):
                row |= {"object_id": objects[k], "is_primary": bool(primary[k])}
            if rows:
                self._connection.execute(sa.insert(DETECTIONS), rows)
            start += len(rows)

    def attach(self, candids: Sequence[int], object_id: str | None, *, primary: bool) -> None:
        """Put stored candidates down to an object, or to none."""
        for part in _parts(candids):
            self._connection.execute(
                sa.update(DETECTIONS)
                .where(DETECTIONS.c.candid.in_(part))
                .values(object_id=object_id, is_primary=primary)
            )

    def put_objects(self, rows: Sequence[Row]) -> None:
        """Store objects, in place of those of the same names."""
        self.remove_objects([row["object_id"] for row in rows])
        if rows:
            self._connection.execute(sa.insert(OBJECTS), list(rows))

    def remove_objects(self, names: Sequence[str]) -> None:
        """Remove objects; their candidates must have been put down to others or to none."""
        for part in _parts(names):
            self._connection.execute(sa.delete(OBJECTS).where(OBJECTS.c.object_id.in_(part)))


def looked_from(row: Row) -> Looked:
    """Return one of the rows of `HistoryReader.chips_over`."""
    names = ("exposure", "chip", "mjd", "filter", "site", "quality", "root", "kept")
    return Looked(**{name: row[name] for name in names}, coverage=_coverage(row))


def _coverage(row: Row) -> ChipCoverage:
    limit = np.frombuffer(zlib.decompress(row["limits"]), dtype="<i2").astype(np.int16)
    return ChipCoverage(
        ra=row["ra"],
        dec=row["dec"],
        radius=row["radius"],
        to_pixel=np.frombuffer(row["to_pixel"], dtype="<f8").reshape(2, -1).astype(np.float64),
        shape=(row["rows"], row["columns"]),
        limit=limit.reshape(row["limit_rows"], -1),
        cells=(),
    )


def _chip_row(exposure: str, chip: ChipSightings, root: str) -> Row:
    names = ("chip", "quality", "flux_unit", "zeropoint", "seeing_arcsec", "limiting_mag", "kept")
    row = {name: getattr(chip, name) for name in names} | {"exposure": exposure, "root": root}
    coverage = chip.coverage
    none = ("ra", "dec", "radius", "rows", "columns", "to_pixel", "limits", "limit_rows")
    if coverage is None:
        return row | dict.fromkeys(none)
    return row | {
        "ra": coverage.ra,
        "dec": coverage.dec,
        "radius": coverage.radius,
        "rows": coverage.shape[0],
        "columns": coverage.shape[1],
        "to_pixel": coverage.to_pixel.astype("<f8").tobytes(),
        "limits": zlib.compress(coverage.limit.astype("<i2").tobytes()),
        "limit_rows": coverage.limit.shape[0],
    }


def _detection_rows(exposure: str, chip: ChipSightings) -> list[Row]:
    names = [name for name in chip.table.dtype.names if name in _DETECTED]
    rows = []
    for values in zip(*(chip.table[name].tolist() for name in names), strict=True):
        # NaN is no measurement, and the databases do not agree on what it is
        known = ((name, None if value != value else value) for name, value in zip(names, values, strict=True))
        rows.append(dict(known) | {"exposure": exposure, "chip": chip.chip})
    return rows


def _parts(values: Iterable[Any]) -> Iterator[list[Any]]:
    every = sorted(set(values))
    for start in range(0, len(every), _AT_ONCE):
        yield every[start : start + _AT_ONCE]
