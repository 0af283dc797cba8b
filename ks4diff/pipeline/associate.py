"""From one exposure's sightings to named objects and alerts with their past: the history's one writer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ks4diff.io.history import History, HistoryReader, HistoryWriter, looked_from
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.forced import Place, measure_places
from ks4diff.products.alert import Alert
from ks4diff.products.coverage import Looked
from ks4diff.products.history import ObjectHistory
from ks4diff.products.sightings import ExposureSightings
from ks4diff.stages.associate import ACCEPTED, FOUND, REJECTED, AssociateConfig, Spots, associate
from ks4diff.stages.package import with_history
from ks4diff.stages.past import covering, mean_position, object_history, object_row
from ks4diff.stages.sky_cells import COARSE_ORDER, cells_of, next_name, object_names, with_neighbours

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Associated:
    """One exposure in the history: its alerts with names and past, and how many objects it touched."""

    alerts: tuple[Alert, ...]
    n_associated: int  # candidates that belong to an object
    n_new_objects: int


@dataclass(frozen=True, kw_only=True)
class _Named:
    """Whom each candidate of an exposure belongs to, in the order of its table."""

    objects: list[str | None]
    primary: np.ndarray
    founders: np.ndarray  # rows


def associate_exposure(
    history: History, sightings: ExposureSightings, out: Path, config: PipelineConfig
) -> Associated:
    """Store an exposure, in place of an earlier version of it, and return its alerts with their past.

    Raises
    ------
    HistoryUnavailable
        When the database is away; nothing has been stored then.

    """
    with history.writing() as writer:
        named, members = _store(writer, sightings, str(out.resolve()), config.associate)
        pasts = _pasts(writer, sightings, members, config) if sightings.mjd is not None else {}
    forced = measure_places([place for _, places in pasts.values() for place in places], out)
    alerts = []
    for alert in sightings.alerts:
        if alert.candid in pasts:
            past, places = pasts[alert.candid]
            seen = tuple(forced[place.key] for place in places if place.key in forced)
            alert = with_history(alert, replace(past, forced=seen))
        alerts.append(alert)
    return Associated(
        alerts=tuple(alerts),
        n_associated=sum(name is not None for name in named.objects),
        n_new_objects=len(named.founders),
    )


def _store(
    writer: HistoryWriter, sightings: ExposureSightings, root: str, config: AssociateConfig
) -> tuple[_Named, dict[str, list[Row]]]:
    """Write an exposure; return its candidates' objects and all candidates of those."""
    before = writer.forget(sightings.exposure)
    touched = {row["object_id"] for row in before} - {None}
    table = sightings.table
    if sightings.mjd is None:
        none = _Named(
            objects=[None] * len(table), primary=np.zeros(len(table), bool), founders=np.empty(0, int)
        )
        named = none
    else:
        cells = with_neighbours(table["cell"])
        known = {row["object_id"]: row for row in writer.objects(cells) + writer.objects_named(touched)}
        objects = [known[name] for name in sorted(known)]
        named = _name(writer, sightings, objects, before, config)
    writer.add(sightings, named.objects, named.primary, root)
    _precover(writer, table, named, config)
    names = touched | (set(named.objects) - {None})
    members = writer.detections_of(names)
    rows = {name: object_row(name, members[name]) for name in sorted(names)}
    gone = [name for name, row in rows.items() if row is None]
    writer.remove_objects(gone)
    writer.attach([row["candid"] for name in gone for row in members[name]], None, primary=False)
    writer.put_objects([row for row in rows.values() if row is not None])
    return named, members


def _name(
    writer: HistoryReader,
    sightings: ExposureSightings,
    objects: Sequence[Row],
    before: Sequence[Row],
    config: AssociateConfig,
) -> _Named:
    """Return whom an exposure's candidates belong to.

    A candidate that an earlier version of the exposure had at the same place keeps its object: a rerun gives
    the same names, whatever later exposures have moved since.
    """
    table, index = sightings.table, {row["object_id"]: k for k, row in enumerate(objects)}
    names: list[str | None] = [None] * len(table)
    primary = np.zeros(len(table), dtype=bool)
    spoken_for = np.zeros(len(objects), dtype=bool)
    old = {row["candid"]: row for row in before if row["object_id"] in index}
    for k, (number, ra, dec) in enumerate(table[["candid", "ra", "dec"]].tolist()):
        row = old.get(number)
        if row is not None and (row["ra"], row["dec"]) == (ra, dec):
            names[k], primary[k] = row["object_id"], row["is_primary"]
            spoken_for[index[row["object_id"]]] |= row["is_primary"]
    rest = np.array([k for k, name in enumerate(names) if name is None], dtype=np.int64)
    found = associate(_spots(table[rest]), _rank(table[rest]), _spots(objects), config, spoken_for=spoken_for)
    founders = table[rest[found.founders]]
    new = _free_names(writer, object_names(founders["ra"], founders["dec"], sightings.mjd))
    every = [row["object_id"] for row in objects] + new
    for k, target in zip(rest, found.target, strict=True):
        names[k] = None if target < 0 else every[target]
    primary[rest] = found.primary
    return _Named(objects=names, primary=primary, founders=rest[found.founders])


def _free_names(reader: HistoryReader, names: list[str]) -> list[str]:
    """Return the names, the next ones in place of those that other objects have."""
    taken = {row["object_id"] for row in reader.objects_named(names)}
    free: list[str] = []
    for name in names:
        while name in taken:
            name = next_name(name)
            taken |= {row["object_id"] for row in reader.objects_named([name])}
        taken.add(name)
        free.append(name)
    return free


def _precover(writer: HistoryWriter, table: np.ndarray, named: _Named, config: AssociateConfig) -> None:
    """Put stored candidates that belonged to no object down to the new ones, exposure by exposure.

    What was seen at the place before it was good enough for an alert is the object's past too.
    """
    if len(named.founders) == 0:
        return
    new = table[named.founders]
    by_exposure: dict[str, list[Row]] = defaultdict(list)
    for row in writer.loose_detections(with_neighbours(new["cell"])):
        by_exposure[row["exposure"]].append(row)
    own = {int(number) for number in table["candid"]}
    for rows in by_exposure.values():
        if rows[0]["candid"] in own:
            continue  # this exposure's own are settled
        found = associate(_spots(rows), np.minimum(_rank(rows), FOUND), _spots(new), config)
        for row, target, stands in zip(rows, found.target, found.primary, strict=True):
            if target >= 0:
                name = named.objects[named.founders[target]]
                writer.attach([row["candid"]], name, primary=bool(stands))


def _pasts(
    reader: HistoryReader,
    sightings: ExposureSightings,
    members: Mapping[str, list[Row]],
    config: PipelineConfig,
) -> dict[int, tuple[ObjectHistory, list[Place]]]:
    """Return, for each alert, its object's past and where that is to be measured again."""
    until = (sightings.mjd, sightings.exposure)
    known = {
        name: [row for row in rows if (row["mjd"], row["exposure"]) <= until]
        for name, rows in members.items()
    }
    now = {row["candid"]: row for rows in known.values() for row in rows}
    wanted = [now[alert.candid] for alert in sightings.alerts if alert.candid in now]
    names = [row["object_id"] for row in wanted]
    means = [
        mean_position([member for member in known[row["object_id"]] if member["is_primary"]] or [row])
        for row in wanted
    ]
    ra, dec = (np.array([mean[k] for mean in means], np.float64) for k in (0, 1))
    looked = list(_looked(reader, ra, dec, sightings))
    pasts = {}
    for k, (row, covered) in enumerate(zip(wanted, covering(looked, ra, dec), strict=True)):
        past = object_history(names[k], known[names[k]], covered, row, config.history)
        kept = [chip for chip, _ in covered if chip.kept and chip.exposure != sightings.exposure]
        kept = [chip for chip in kept if chip.mjd >= sightings.mjd - config.history.days]
        n = min(config.history.forced, len(kept))
        places = [Place(ra=float(ra[k]), dec=float(dec[k]), chip=chip) for chip in kept[len(kept) - n :]]
        pasts[row["candid"]] = (past, places)
    return pasts


def _looked(
    reader: HistoryReader, ra: np.ndarray, dec: np.ndarray, sightings: ExposureSightings
) -> Iterable[Looked]:
    cells = cells_of(ra, dec, COARSE_ORDER).tolist()
    for row in reader.chips_over(cells, until=sightings.mjd):
        if (row["mjd"], row["exposure"]) <= (sightings.mjd, sightings.exposure):
            yield looked_from(row)


def _spots(rows: np.ndarray | Sequence[Row]) -> Spots:
    columns = (np.array([row[name] for row in rows], np.float64) for name in ("ra", "dec", "err_arcsec"))
    return Spots(**dict(zip(("ra", "dec", "err"), columns, strict=True)))


def _rank(rows: np.ndarray | Sequence[Row]) -> np.ndarray:
    return np.array(
        [REJECTED if row["rejected"] else ACCEPTED if row["accepted"] else FOUND for row in rows], np.int64
    )
