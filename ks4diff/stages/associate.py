"""Which object each candidate of an exposure belongs to: a pure function of positions and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.stages.sky_cells import ARCSEC, separation_arcsec, unit_vectors

REJECTED, FOUND, ACCEPTED = 0, 1, 2  # ranks of candidates: flagged; not flagged; becomes an alert


@dataclass(frozen=True, kw_only=True)
class AssociateConfig:
    """When a candidate and an object are one."""

    # Per axis, arcsec. A template's own astrometry scatters by 0.23-0.38" about Gaia (KMTNet, TAN-SIP of
    # degree 3; stars' noise included), and each band and field has its own template.
    floor_arcsec: float = 0.2
    gate_sigma: float = 5.0  # of both errors and the floor; chance loses exp(-12.5) = 4e-6 of pairs
    farthest_arcsec: float = 1.5  # whatever the errors; at S/N 5 in 2" seeing they are 0.25" per axis
    one_source_arcsec: float = 1.0  # nearer than the best seeing: two peaks of one exposure are of one source

    def __post_init__(self) -> None:
        """Refuse gates that the index could not serve, or that nothing passes."""
        if not 0 < self.farthest_arcsec <= 2.0:
            raise ValueError(f"farthest_arcsec must be above 0 and at most 2, got {self.farthest_arcsec}")
        if min(self.floor_arcsec, self.one_source_arcsec) < 0 or self.gate_sigma <= 0:
            raise ValueError("lengths must not be negative, and gate_sigma positive")


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Positions, float64 [n]: ICRS degrees, and the standard error per axis, arcsec."""

    ra: np.ndarray
    dec: np.ndarray
    err: np.ndarray

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.ra)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What `associate` decided, int64 and bool [n].

    ``target`` below m is an object's index, m + k the k-th new object, -1 none; ``primary`` whether the
    candidate stands for the object in its exposure (one at most); ``founders`` the rows that found the new
    objects.
    """

    target: np.ndarray
    primary: np.ndarray
    founders: np.ndarray


def associate(
    candidates: Spots,
    rank: np.ndarray,
    objects: Spots,
    config: AssociateConfig,
    *,
    spoken_for: np.ndarray | None = None,
) -> Assignment:
    """Return which of m objects, or of new ones, each of n candidates of one exposure belongs to.

    ``spoken_for`` bool [m]: objects that another candidate of the exposure stands for already.

    Unflagged candidates and objects are paired one to one, the likeliest pair first: by
    chi² + 2 ln(variance), which is -2 ln of the Gaussian density of their distance. Accepted candidates that
    are left over and no piece of another's source found objects, the best measured first. Whatever else lies
    in the gate of an object, flagged or second to another, is put down to the likeliest without standing for
    it: it never moves an object and never founds one.
    """
    target, primary = np.full(len(candidates), -1, dtype=np.int64), np.zeros(len(candidates), dtype=bool)
    row, column, cost, distance = _pairs(candidates, objects, config)
    taken = set() if spoken_for is None else set(np.flatnonzero(spoken_for).tolist())
    for k in np.lexsort((column, row, cost)):
        i, j = int(row[k]), int(column[k])
        if rank[i] >= FOUND and not primary[i] and j not in taken:
            target[i], primary[i] = j, True
            taken.add(j)
    may_found = (rank >= ACCEPTED)[row]
    _attach(target, row, column, cost, ~may_found | (distance < config.one_source_arcsec))
    founders = _founders(candidates, np.flatnonzero((target < 0) & (rank >= ACCEPTED)), config)
    target[founders], primary[founders] = len(objects) + np.arange(len(founders)), True
    loose = np.flatnonzero(target < 0)
    row, column, cost, distance = _pairs(_take(candidates, loose), _take(candidates, founders), config)
    row = loose[row]
    _attach(target, row, column + len(objects), cost, np.ones(len(row), dtype=bool))
    return Assignment(target=target, primary=primary, founders=founders)


def _founders(candidates: Spots, free: np.ndarray, config: AssociateConfig) -> np.ndarray:
    """Return which of the rows ``free`` found objects: the best measured of those that are of one source."""
    free = free[np.isfinite(candidates.ra[free]) & np.isfinite(candidates.dec[free])]
    some = _take(candidates, free)
    row, column, _, distance = _pairs(some, some, config)
    near: dict[int, list[int]] = {}
    for i, j in zip(
        row[distance < config.one_source_arcsec], column[distance < config.one_source_arcsec], strict=True
    ):
        near.setdefault(int(i), []).append(int(j))
    left = np.ones(len(free), dtype=bool)
    chosen = []
    for i in np.lexsort((free, some.err)):
        if left[i]:
            chosen.append(free[i])
            left[near.get(int(i), [])] = False
    return np.array(chosen, dtype=np.int64)


def _attach(
    target: np.ndarray, row: np.ndarray, column: np.ndarray, cost: np.ndarray, allowed: np.ndarray
) -> None:
    """Put every candidate without a target down to the likeliest object in reach."""
    for k in np.lexsort((column, row, cost)):
        if allowed[k] and target[row[k]] < 0:
            target[row[k]] = column[k]


def _take(spots: Spots, rows: np.ndarray) -> Spots:
    return Spots(ra=spots.ra[rows], dec=spots.dec[rows], err=spots.err[rows])


def _pairs(
    candidates: Spots, objects: Spots, config: AssociateConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (candidate, object, -2 ln density, arcsec) of all pairs within the gate."""
    known = np.flatnonzero(np.isfinite(candidates.ra) & np.isfinite(candidates.dec))
    none = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0), np.empty(0)
    if len(known) == 0 or len(objects) == 0:
        return none
    first = unit_vectors(candidates.ra[known], candidates.dec[known])
    second = unit_vectors(objects.ra, objects.dec)
    reach = 1.000001 * config.farthest_arcsec * ARCSEC  # a chord is shorter than its arc
    found = cKDTree(second).query_ball_point(first, reach)
    row = np.repeat(np.arange(len(known)), [len(one) for one in found])
    if len(row) == 0:
        return none
    column = np.concatenate([np.asarray(one, dtype=np.int64) for one in found if one])
    distance = separation_arcsec(first[row], second[column])
    row = known[row]
    variance = candidates.err[row] ** 2 + objects.err[column] ** 2 + config.floor_arcsec**2
    chi2 = distance**2 / variance
    inside = (distance <= config.farthest_arcsec) & (chi2 <= config.gate_sigma**2)
    return row[inside], column[inside], (chi2 + 2 * np.log(variance))[inside], distance[inside]
