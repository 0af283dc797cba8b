"""Hold what was found against what was injected."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.products.candidates import REJECTING_BITS, Candidates
from ks4diff.products.difference import Difference

# what became of an injected source, each more than the one before
MISSED, FLAGGED, UNFLAGGED, ALERT = range(4)
ENOUGH = 3  # found sources, for a bias
RECOVERED = np.dtype(
    [
        ("place", "i1"),  # as injected
        ("flux", "f8"),  # as injected, counts
        ("snr", "f8"),  # expected: the flux over the difference's own error at the place
        ("became", "i1"),  # MISSED to ALERT
        ("found", "f8"),  # flux that was measured, counts; this and what follows NaN of missed ones
        ("error", "f8"),
        ("dx", "f8"),  # pixels, measured less injected
        ("dy", "f8"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class RecoverConfig:
    """What counts as found, and how it is counted."""

    match_pix: float = 2.5  # five errors of the position of a 5-sigma source at 2" seeing
    snr_edges: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 25.0, np.inf)  # of bins
    mag_step: float = 0.5
    sigmas: float = 1.96  # of Wilson intervals: 95 %


class Share(NamedTuple):
    """How many of a bin, which fraction that is, and its Wilson interval."""

    count: int
    fraction: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What became of the sources injected in one bin.

    ``detected`` have a candidate, ``unflagged`` one without rejecting flag, ``alerts`` one that is an alert.
    Of the unflagged ones ``flux_bias`` is the median of measured over true flux less 1 with its standard
    error, ``pull`` the std of flux errors in units of their own, ``offset`` the mean (x, y) error and
    ``scatter`` the rms distance, pixels; NaN of fewer than 3.
    """

    low: float
    high: float
    injected: int
    detected: Share
    unflagged: Share
    alerts: Share
    flux_bias: float
    flux_bias_error: float
    pull: float
    offset: tuple[float, float]
    scatter: float


def recover(
    injected: np.ndarray,
    candidates: Candidates,
    difference: Difference,
    config: RecoverConfig,
    *,
    unit: float,
    alerts: np.ndarray | None = None,
) -> np.ndarray:
    """Return `RECOVERED` [n]: how each injected source (rows with x, y, flux and place) came back.

    ``unit`` is the candidates' flux unit per count; ``alerts`` are the rows that become alerts, none without.
    """
    table = candidates.table
    x, y = np.rint(injected["x"]).astype(int), np.rint(injected["y"]).astype(int)
    out = np.zeros(len(injected), RECOVERED)
    out["place"], out["flux"] = injected["place"], injected["flux"]
    out["snr"] = injected["flux"] / difference.flux_err[y, x]
    for name in ("found", "error", "dx", "dy"):
        out[name] = np.nan
    of_it = {
        FLAGGED: table["is_positive"],
        UNFLAGGED: table["is_positive"] & unflagged(table),
        ALERT: np.isin(np.arange(len(table)), [] if alerts is None else alerts) & table["is_positive"],
    }
    for became, which in of_it.items():
        row, distance = _nearest(injected, table, which)
        near = distance < config.match_pix
        seen = table[row[near]]
        out["became"][near] = became
        out["found"][near], out["error"][near] = seen["flux"] / unit, seen["flux_err"] / unit
        out["dx"][near], out["dy"][near] = seen["x"] - injected["x"][near], seen["y"] - injected["y"][near]
    return out


def unflagged(table: np.ndarray) -> np.ndarray:
    """Return bool [n]: candidates without a rejecting flag."""
    return (table["flags"] & REJECTING_BITS) == 0


def near_any(table: np.ndarray, x: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
    """Return bool [n]: rows with columns x and y that lie within ``reach`` pixels of one of the places."""
    if not len(x):
        return np.zeros(len(table), dtype=bool)
    distance, _ = cKDTree(np.stack([x, y], axis=1)).query(_places(table))
    return distance < reach


def efficiency(
    rows: np.ndarray, values: np.ndarray, edges: np.ndarray | tuple[float, ...], sigmas: float
) -> tuple[Efficiency, ...]:
    """Return what became of `RECOVERED` rows in bins of ``values`` [n] between ``edges``."""
    bins = []
    for low, high in pairwise(edges):
        part = rows[(values >= low) & (values < high)]
        counts = [int((part["became"] >= least).sum()) for least in (FLAGGED, UNFLAGGED, ALERT)]
        detected, clean, alerts = (share(count, len(part), sigmas) for count in counts)
        bins.append(
            Efficiency(
                low=float(low),
                high=float(high),
                injected=len(part),
                detected=detected,
                unflagged=clean,
                alerts=alerts,
                **_biases(part[part["became"] >= UNFLAGGED]),
            )
        )
    return tuple(bins)


def _biases(seen: np.ndarray) -> dict:
    if len(seen) < ENOUGH:
        nan = float("nan")
        return {"flux_bias": nan, "flux_bias_error": nan, "pull": nan, "offset": (nan, nan), "scatter": nan}
    relative = seen["found"] / seen["flux"] - 1
    quarter = np.percentile(relative, [25, 75])
    # of a median of n normal values: sqrt(pi / 2 n) of their std, which quartiles tell without outliers
    spread = float(np.diff(quarter)[0]) / 1.349
    return {
        "flux_bias": float(np.median(relative)),
        "flux_bias_error": spread * float(np.sqrt(np.pi / 2 / len(seen))),
        "pull": float(((seen["found"] - seen["flux"]) / seen["error"]).std()),
        "offset": (float(seen["dx"].mean()), float(seen["dy"].mean())),
        "scatter": float(np.sqrt((seen["dx"] ** 2 + seen["dy"] ** 2).mean())),
    }


def _nearest(injected: np.ndarray, table: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, distance) of the nearest candidate of ``which`` to each injected source."""
    rows = np.flatnonzero(which)
    if not len(rows):
        return np.zeros(len(injected), dtype=int), np.full(len(injected), np.inf)
    distance, nearest = cKDTree(_places(table[rows])).query(_places(injected))
    return rows[nearest], distance


def _places(table: np.ndarray) -> np.ndarray:
    return np.stack([table["x"], table["y"]], axis=1).astype(np.float64)


def share(count: int, trials: int, sigmas: float) -> Share:
    """Return a count as a fraction of the trials, NaN of none, with its Wilson interval."""
    return Share(count, count / trials if trials else float("nan"), *wilson(count, trials, sigmas))


def wilson(successes: int, trials: int, z: float = 1.0) -> tuple[float, float]:
    """Return the Wilson score interval of a fraction (JASA 22, 209, 1927), (0, 1) of no trials."""
    if trials == 0:
        return 0.0, 1.0
    p, zz = successes / trials, z * z / trials
    middle, half = p + zz / 2, z * np.sqrt(p * (1 - p) / trials + zz / (4 * trials))
    return float(max((middle - half) / (1 + zz), 0.0)), float(min((middle + half) / (1 + zz), 1.0))


def false_counts(
    candidates: Candidates, real: np.ndarray, thresholds: tuple[float, ...] = (5.0, 6.0, 8.0, 12.0)
) -> dict[float, int]:
    """Return how many unflagged candidates above each |S_corr| are not ``real`` (bool [n])."""
    table = candidates.table
    bogus = ~real & unflagged(table)
    return {t: int((bogus & (np.abs(table["scorr"]) >= t)).sum()) for t in thresholds}
