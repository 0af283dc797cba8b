"""False alerts of a real/bogus model in the area that was searched, and the sources that become alerts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import chi2

from ks4diff.stages.sim.sky import CHANGING
from ks4diff.training.measures import SCORE_EDGES, is_added, rounded, share_row
from ks4diff.training.table import ALERT_SCORE, Searched, Table, good_nights, searched

FULL_CHIP_MPIX = 9216 * 9232 / 1e6
REDRAWN = 1000
BLENDED_PIX = 12.0  # two and a half FWHM of a bad night


def false_scores(table: Table, score: np.ndarray, seen: Searched) -> np.ndarray:
    """Return the scores of what would be false alerts with a threshold of 0, highest first."""
    return np.sort(score[_false(table, score, seen)])[::-1]


def _false(table: Table, score: np.ndarray, seen: Searched) -> np.ndarray:
    rows = table.rows
    use = seen.rows & table.unflagged & ~rows["real"] & (rows["round"] == 0)
    use &= np.abs(rows["scorr"]) >= ALERT_SCORE
    return use & np.isfinite(score)


def rate_by_fields(table: Table, score: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return the 2.5 and 97.5 % points of false alerts per full chip over fields drawn again.

    False alerts come in fields: Poisson's interval is that of one more night of these, not of other fields.
    """
    numbers = np.array(sorted(table.site))
    wrong = _false(table, score, searched(table)) & (np.nan_to_num(score, nan=-1.0) >= threshold)
    count = np.array([(table.field[wrong] == n).sum() for n in numbers])
    good = good_nights(table)
    mpix = np.array([table.nights["mpix"][good & (table.night_field == n)].sum() for n in numbers])
    drawn = np.random.default_rng(73).integers(0, len(numbers), (REDRAWN, len(numbers)))
    rate = count[drawn].sum(axis=1) / np.maximum(mpix[drawn].sum(axis=1), 1e-9) * FULL_CHIP_MPIX
    low, high = np.percentile(rate, [2.5, 97.5])
    return {"low": rounded(low), "high": rounded(high)}


def lowest_threshold(table: Table, score: np.ndarray, per_chip: float) -> float:
    """Return the lowest score that leaves at most ``per_chip`` false alerts in the area of a full chip."""
    seen = searched(table)
    falling = false_scores(table, score, seen)
    allowed = int(per_chip * seen.mpix / FULL_CHIP_MPIX)
    if allowed >= len(falling):
        return 0.0
    return float(np.nextafter(falling[allowed], 2.0))


def alerts_at(table: Table, score: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return false alerts per full chip at a threshold, and how many of the sources become alerts.

    Sources count by the S/N that the difference should show, whether detected or not. The false alerts'
    interval is Poisson's (Garwood 1936), shares' that of `share_row`, both of 95 %.
    """
    seen = searched(table)
    n = int((false_scores(table, score, seen) >= threshold).sum())
    chips = seen.mpix / FULL_CHIP_MPIX
    low, high = (chi2.ppf(0.025, 2 * n) / 2 if n else 0.0), chi2.ppf(0.975, 2 * n + 2) / 2
    passed = table.unflagged & (np.nan_to_num(score, nan=-1.0) >= threshold)
    passed &= np.abs(table.rows["scorr"]) >= ALERT_SCORE
    changes = table.changes
    found = np.zeros(len(changes), dtype=bool)
    has = changes["row"] >= 0
    found[has] = passed[changes["row"][has]]
    out: dict[str, Any] = {
        "mpix": round(seen.mpix, 1),
        "nights": seen.nights,
        "false_alerts": n,
        "per_full_chip": {
            "value": rounded(n / chips if chips else np.nan),
            "low": rounded(low / chips if chips else np.nan),
            "high": rounded(high / chips if chips else np.nan),
        },
        "per_full_chip_by_fields": rate_by_fields(table, score, threshold),
    }
    added = is_added(changes["tag"]) & seen.changes & ~beside_changes(table)
    for name, low, high in (*_bins(), ("8", 8, np.inf)):
        of = added & (changes["expected"] >= low) & (changes["expected"] < high)
        out.setdefault("added", {})[name] = share_row(found, of, table.change_field)
    for kind in CHANGING:
        of = seen.changes & (changes["tag"] == kind) & (changes["expected"] >= ALERT_SCORE)
        of &= np.isfinite(changes["expected"])
        out.setdefault("sky", {})[kind] = share_row(found, of, table.change_field)
    return out


def beside_changes(table: Table) -> np.ndarray:
    """Return bool [changes]: of added sources those that the simulated sky has a change of its own beside.

    Two blended sources make one candidate: neither missing nor found says anything about one source.
    """
    changes = table.changes
    at = np.stack([table.change_field, changes["night"], changes["x"], changes["y"]], axis=1)
    at = at * (1e6, 1e5, 1, 1)  # so that other fields and nights are far
    own = ~is_added(changes["tag"]) & (changes["expected"] > 3)
    if not own.any():
        return np.zeros(len(changes), dtype=bool)
    distance, _ = cKDTree(at[own]).query(at)
    return is_added(changes["tag"]) & (distance < BLENDED_PIX)


def _bins() -> list[tuple[str, float, float]]:
    return [(f"{low:g}-{high:g}", low, high) for low, high in pairwise(SCORE_EDGES)]
