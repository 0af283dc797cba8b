"""What the history says of an object: its summary, and the past that an alert tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ks4diff.products.coverage import Looked
from ks4diff.products.history import ObjectHistory, ObjectSummary, PastDetection, PastLimit
from ks4diff.stages.coverage import limit_at
from ks4diff.stages.sky_cells import cells_of, positions_of, unit_vectors

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """How much of the past an alert tells; the newest of what there is."""

    days: float = 365.0  # before the exposure: LSST's packets tell twelve months
    detections: int = 100  # rows; 250 bytes each in a packet
    limits: int = 100
    forced: int = 20  # exposures measured again at the object's place; each opens a file per chip

    def __post_init__(self) -> None:
        """Refuse negative lengths."""
        if min(self.days, self.detections, self.limits, self.forced) < 0:
            raise ValueError("history lengths must not be negative")


Covered = tuple[Looked, float]  # a chip that covers a place, and its 5-sigma AB limit there, NaN unknown


def covering(looked: Iterable[Looked], ra: np.ndarray, dec: np.ndarray) -> list[list[Covered]]:
    """Return, for each of the positions [n], which of the chips cover it, in their order."""
    found: list[list[Covered]] = [[] for _ in range(len(ra))]
    for chip in looked:
        covered, limit = limit_at(chip.coverage, ra, dec)
        for k in np.flatnonzero(covered):
            found[k].append((chip, float(limit[k])))
    return found


def object_row(object_id: str, detections: Sequence[Row]) -> dict[str, Any] | None:
    """Return an object's row of the database of its candidates; None when no alert ever came of them."""
    members = [row for row in detections if row["is_primary"]]
    if not any(row["accepted"] for row in members):
        return None
    ra, dec, err = mean_position(members)
    bright = [row for row in members if row["mag"] is not None]
    best = min(bright, key=lambda row: row["mag"], default=None)
    return {
        "object_id": object_id,
        "ra": ra,
        "dec": dec,
        "err_arcsec": err,
        "cell": int(cells_of(np.array([ra]), np.array([dec]))[0]),
        "n_detections": len(members),
        "n_rejected": sum(row["rejected"] for row in detections),
        "n_alerts": sum(row["accepted"] for row in detections),
        "first_mjd": min(row["mjd"] for row in members),
        "last_mjd": max(row["mjd"] for row in members),
        "brightest_mag": None if best is None else best["mag"],
        "brightest_mjd": None if best is None else best["mjd"],
    }


def mean_position(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Return (ra, dec, standard error per axis in arcsec): the mean weighted by 1 / error².

    On the sphere, so neither a pole nor RA 0 is a special place.
    """
    ra, dec, err = (np.array([row[name] for row in rows], np.float64) for name in ("ra", "dec", "err_arcsec"))
    weight = 1 / np.maximum(err, 1e-3) ** 2
    mean = (weight[:, None] * unit_vectors(ra, dec)).sum(axis=0)
    at_ra, at_dec = positions_of(mean)
    return float(at_ra), float(at_dec), float(weight.sum() ** -0.5)


def object_history(
    object_id: str, known: Sequence[Row], looked: Iterable[Covered], now: Row, config: HistoryConfig
) -> ObjectHistory:
    """Return what was known of an object when the candidate ``now`` was taken, this one counted.

    ``known`` are the candidates of the object and ``looked`` the chips that cover it, in order of time and
    none later than ``now``. Limits are of exposures that covered the place, did not fail, and have no
    candidate of the object, not even a rejected one: a flagged source is no proof of darkness.
    """
    members = [row for row in known if row["is_primary"]]
    ra, dec, err = mean_position(members or [now])
    seen = {row["exposure"] for row in known} | {now["exposure"]}
    covered = {now["exposure"]} | {row["exposure"] for row in members}
    limits: dict[str, PastLimit] = {}
    for chip, limit in looked:
        covered.add(chip.exposure)
        if chip.exposure not in seen and np.isfinite(limit) and chip.quality != "fail":
            limits[chip.exposure] = PastLimit(
                exposure=chip.exposure,
                mjd=chip.mjd,
                filter=chip.filter or "",
                site=chip.site or "",
                chip=chip.chip,
                diffmaglim=limit,
            )
    earliest = now["mjd"] - config.days
    before = [row for row in members if row["exposure"] != now["exposure"] and row["flux_unit"] == "nJy"]
    return ObjectHistory(
        object=ObjectSummary(
            object_id=object_id,
            ra=ra,
            dec=dec,
            position_err_arcsec=err,
            n_detections=max(len(members), 1),
            n_covered=len(covered),
            first_mjd=min((row["mjd"] for row in members), default=now["mjd"]),
            last_mjd=max((row["mjd"] for row in members), default=now["mjd"]),
            n_rejected=sum(row["rejected"] for row in known),
        ),
        detections=_newest([past_detection(row) for row in before], earliest, config.detections),
        limits=_newest(list(limits.values()), earliest, config.limits),
    )


def past_detection(row: Row) -> PastDetection:
    """Return a stored candidate as a packet tells it."""
    return PastDetection(
        candid=row["candid"],
        exposure=row["exposure"],
        mjd=row["mjd"],
        exptime=row["exptime"],
        filter=row["filter"] or "",
        site=row["site"] or "",
        chip=row["chip"],
        ra=row["ra"],
        dec=row["dec"],
        scorr=row["scorr"],
        snr=row["snr"],
        flux=row["flux"],
        flux_err=row["flux_err"],
        magpsf=row["mag"],
        sigmapsf=row["mag_err"],
        diffmaglim=row["limiting_mag"],
        isdiffpos=row["is_positive"],
        rb=row["rb"],
        alerted=row["accepted"],
    )


def _newest(items: list, earliest: float, n: int) -> tuple:
    recent = [item for item in items if item.mjd >= earliest]
    return tuple(recent[len(recent) - min(n, len(recent)) :])
