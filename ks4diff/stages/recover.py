"""Hold what was found against what was injected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.products.candidates import REJECTING_BITS, Candidates
from ks4diff.products.difference import Difference


@dataclass(frozen=True, kw_only=True)
class RecoverConfig:
    """What counts as found."""

    match_pix: float = 2.5  # five errors of the position of a 5-sigma source at 2" seeing
    edges: tuple[float, ...] = (5.0, 6.0, 8.0, 12.0, 20.0, 1e9)  # of the bins of expected S/N


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """One bin of expected S/N: how many of how many were found unflagged, with 68 % Wilson limits.

    ``flagged`` were detected and then rejected. ``flux_bias`` is the median of found over true flux less 1,
    ``pull`` the std of flux errors in units of their own, ``offset`` the mean (x, y) error in pixels; NaN of
    fewer than 3 found.
    """

    low: float
    high: float
    injected: int
    found: int
    flagged: int
    limits: tuple[float, float]
    flux_bias: float
    pull: float
    offset: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """All bins, and of each injected source whether it was found and its S/N expected in the difference."""

    bins: tuple[Efficiency, ...]
    expected: np.ndarray
    found: np.ndarray
    flagged: np.ndarray


def recover(
    injected: np.ndarray,
    candidates: Candidates,
    difference: Difference,
    config: RecoverConfig,
    *,
    unit: float,
) -> Recovery:
    """Return how the injected sources (rows with x, y and flux) came back; a flagged one is missed.

    The S/N to expect is the flux over the difference's own error at the place. ``unit`` is the candidates'
    flux unit per count.
    """
    table = candidates.table
    x, y = np.rint(injected["x"]).astype(int), np.rint(injected["y"]).astype(int)
    expected = injected["flux"] / difference.flux_err[y, x]
    good = (table["flags"] & REJECTING_BITS) == 0
    near, distance = _nearest(injected, table, good)
    found = distance < config.match_pix
    flagged = ~found & (_nearest(injected, table, ~good)[1] < config.match_pix)
    bins = []
    for low, high in zip(config.edges[:-1], config.edges[1:], strict=True):
        of_it = (expected >= low) & (expected < high)
        rows = injected[of_it & found]
        seen = table[near[of_it & found]]
        enough = len(rows) >= 3
        error = seen["flux"] / unit - rows["flux"]
        bins.append(
            Efficiency(
                low=low,
                high=high,
                injected=int(of_it.sum()),
                found=len(rows),
                flagged=int((of_it & flagged).sum()),
                limits=wilson(len(rows), int(of_it.sum())),
                flux_bias=float(np.median(error / rows["flux"])) if enough else np.nan,
                pull=float((error * unit / seen["flux_err"]).std()) if enough else np.nan,
                offset=tuple(
                    float((seen[axis] - rows[axis]).mean()) if enough else np.nan for axis in ("x", "y")
                ),
            )
        )
    return Recovery(bins=tuple(bins), expected=expected, found=found, flagged=flagged)


def _nearest(injected: np.ndarray, table: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, distance) of the nearest positive candidate of ``which`` to each injected source."""
    rows = np.flatnonzero(which & table["is_positive"])
    if not len(rows):
        return np.zeros(len(injected), dtype=int), np.full(len(injected), np.inf)
    d = np.hypot(table["x"][rows][None] - injected["x"][:, None], table["y"][rows] - injected["y"][:, None])
    k = d.argmin(axis=1)
    return rows[k], d[np.arange(len(injected)), k]


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
    bogus = ~real & ((table["flags"] & REJECTING_BITS) == 0)
    return {t: int((bogus & (np.abs(table["scorr"]) >= t)).sum()) for t in thresholds}
