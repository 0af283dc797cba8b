"""What a real/bogus model is worth: missed and false shares and calibration, with intervals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from ks4diff.stages.recover import wilson
from ks4diff.training.fit import prior_weights
from ks4diff.training.table import Table, could_alert, searched

NORMAL_95 = 1.96
MISSED_SHARE = 0.01
BINS = 15  # of equal mass, of the calibration error
SCORE_EDGES = (5.0, 6.0, 7.0, 8.0, 10.0, 20.0, np.inf)
SEEING_EDGES = (0.0, 3.0, 4.0, np.inf)  # pixels: 1.2" and 1.6"
BOOTSTRAPS = 200
SHARES_REDRAWN = 1000


class Sets(NamedTuple):
    """Scores and fields of candidates that could become alerts; withheld ones are -1.

    Sources added to images and those of the simulated sky stand apart: the former are what the forest has
    mostly seen.
    """

    added: np.ndarray
    added_field: np.ndarray
    sky: np.ndarray
    sky_field: np.ndarray
    bogus: np.ndarray
    bogus_field: np.ndarray


def is_added(tags: np.ndarray) -> np.ndarray:
    """Return bool [n]: sources that were added to an image."""
    return np.char.startswith(tags, "added_")


def sets_of(table: Table, score: np.ndarray, which: np.ndarray | None = None) -> Sets:
    """Return the three sets of a table with its rows' scores (NaN withheld), of the rows ``which``."""
    rows = table.rows
    use = could_alert(table)
    use = use if which is None else use & which
    held = np.where(np.isnan(score), -1.0, score)
    added = is_added(rows["tag"])
    kinds = (use & added, use & rows["real"] & ~added, use & ~rows["real"])
    return Sets(*(value for kind in kinds for value in (held[kind], table.field[kind])))


def false_share_threshold(bogus: np.ndarray, share: float) -> float:
    """Return the score above which at most ``share`` of the bogus are."""
    if not len(bogus):
        return 0.0
    falling = np.sort(bogus)[::-1]
    return float(max(falling[min(int(share * len(bogus)), len(bogus) - 1)], 0.0))


def missed_share(real: np.ndarray, bogus: np.ndarray, share: float) -> float:
    """Return the share of the real ones not above the threshold that ``share`` of the bogus pass."""
    return float((real <= false_share_threshold(bogus, share)).mean()) if len(real) else float("nan")


def false_share(real: np.ndarray, bogus: np.ndarray, missed: float) -> float:
    """Return the share of bogus at the threshold that all but ``missed`` of the real ones reach."""
    if not len(real) or not len(bogus):
        return float("nan")
    return float((bogus >= np.sort(real)[int(missed * len(real))]).mean())


def auc(real: np.ndarray, bogus: np.ndarray) -> float:
    """Return the chance that a real one scores above a bogus one, ties by half (Mann & Whitney 1947)."""
    if not len(real) or not len(bogus):
        return float("nan")
    ranks = rankdata(np.r_[real, bogus])
    return float((ranks[: len(real)].sum() - len(real) * (len(real) + 1) / 2) / (len(real) * len(bogus)))


def calibration_error(real: np.ndarray, bogus: np.ndarray, prior: float) -> float:
    """Return the mean |score - share of real ones| over 15 bins of equal mass at a prior."""
    low, mean, share, mass = reliability(real, bogus, prior)
    return float((np.abs(mean - share) * mass).sum()) if len(low) else float("nan")


def reliability(
    real: np.ndarray, bogus: np.ndarray, prior: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return per bin of equal mass: lowest score, mean score, share of real ones, mass; withheld left out."""
    score = np.r_[real, bogus]
    kind = np.r_[np.ones(len(real), bool), np.zeros(len(bogus), bool)]
    score, kind = score[score >= 0], kind[score >= 0]
    if not kind.any() or kind.all():
        return (np.empty(0),) * 4
    weights = prior_weights(kind, prior)
    order = np.argsort(score, kind="stable")
    score, kind, weights = score[order], kind[order], weights[order]
    at = np.minimum((np.cumsum(weights) - weights / 2) * BINS, BINS - 1).astype(int)
    mass = np.bincount(at, weights, BINS)
    held = mass > 0
    mean = np.bincount(at, weights * score, BINS)[held] / mass[held]
    share = np.bincount(at, weights * kind, BINS)[held] / mass[held]
    low = np.array([score[at == k].min() for k in np.flatnonzero(held)])
    return low, mean, share, mass[held]


def with_interval(measure, real, real_field, bogus, bogus_field) -> dict[str, float]:
    """Return a measure of (real, bogus) with the 2.5 and 97.5 % points over drawn-again sets of fields."""
    value = measure(real, bogus)
    fields = np.union1d(real_field, bogus_field)
    rng = np.random.default_rng(73)
    drawn = []
    by = [
        [values[of == number] for number in fields]
        for values, of in ((real, real_field), (bogus, bogus_field))
    ]
    for _ in range(BOOTSTRAPS):
        chosen = rng.integers(0, len(fields), len(fields)) if len(fields) else []
        parts = [np.concatenate([kind[k] for k in chosen] or [np.empty(0)]) for kind in by]
        if len(parts[0]) and len(parts[1]):
            drawn.append(measure(*parts))
    drawn = [one for one in drawn if np.isfinite(one)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (np.nan, np.nan)
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def share_row(passed: np.ndarray, of: np.ndarray, field: np.ndarray) -> dict[str, float]:
    """Return which share of the rows ``of`` (bool [n]) passed, with its 95 % interval, over ``field`` [n].

    The wider of Wilson's and that of fields drawn again: rows of one field share its images and templates,
    but where none or all passed fields do not differ.
    """
    numbers, at = np.unique(field[of], return_inverse=True)
    n = np.bincount(at, minlength=len(numbers))
    hits = np.bincount(at, passed[of], minlength=len(numbers))
    low, high = wilson(int(hits.sum()), int(n.sum()), NORMAL_95)
    if len(numbers) > 1:
        drawn = np.random.default_rng(73).integers(0, len(numbers), (SHARES_REDRAWN, len(numbers)))
        redrawn = np.percentile(hits[drawn].sum(axis=1) / n[drawn].sum(axis=1), [2.5, 97.5])
        low, high = min(low, redrawn[0]), max(high, redrawn[1])
    value = hits.sum() / n.sum() if n.sum() else np.nan
    return {"n": int(n.sum()), "value": rounded(value), "low": rounded(low), "high": rounded(high)}


def rounded(value: float) -> float | None:
    """Return four digits of a number, None of what is none."""
    return None if not np.isfinite(value) else float(f"{value:.4g}")


def telling(table: Table, score: np.ndarray, prior: float) -> dict[str, Any]:
    """Return how well scores tell real from bogus: of added sources, of the sky's own, each against bogus."""
    sets = sets_of(table, score)
    strong = sets_of(table, score, np.abs(table.rows["scorr"]) >= 7)
    seen = searched(table)
    out: dict[str, Any] = {
        "fields": len(table.site),
        "nights": seen.nights,
        "mpix": round(seen.mpix, 1),
        "bogus": len(sets.bogus),
    }
    for name, real, of, bright in (
        ("added", sets.added, sets.added_field, (strong.added, strong.added_field)),
        ("sky", sets.sky, sets.sky_field, (strong.sky, strong.sky_field)),
    ):
        against = (real, of, sets.bogus, sets.bogus_field)
        out[name] = {
            "real": len(real),
            "withheld": int((real < 0).sum()),
            "missed_at_false_1pct": with_interval(lambda r, b: missed_share(r, b, 0.01), *against),
            "missed_at_false_0.1pct": with_interval(lambda r, b: missed_share(r, b, 0.001), *against),
            "missed_at_false_1pct_score_7": with_interval(
                lambda r, b: missed_share(r, b, 0.01), *bright, strong.bogus, strong.bogus_field
            ),
            "false_at_missed_1pct": with_interval(lambda r, b: false_share(r, b, MISSED_SHARE), *against),
            "auc": with_interval(auc, *against),
            "calibration_error": with_interval(lambda r, b: calibration_error(r, b, prior), *against),
        }
    return out


def slices(table: Table, score: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return shares that reach a threshold: by |S_corr|, seeing, kind of real source and kind of bogus."""
    rows = table.rows
    use = could_alert(table)
    added = is_added(rows["tag"])
    passed = np.nan_to_num(score, nan=-1.0) >= threshold
    seeing = _seeing(table)
    out: dict[str, Any] = {"kind": {}, "bogus": {}, "added_score": {}, "added_seeing": {}}
    for tag in np.unique(rows["tag"][use]):
        of = use & (rows["tag"] == tag)
        which = "kind" if rows["real"][of].any() else "bogus"
        out[which][str(tag)] = share_row(passed, of, table.field)
    for name, value, edges in (
        ("added_score", np.abs(rows["scorr"]), SCORE_EDGES),
        ("added_seeing", seeing, SEEING_EDGES),
    ):
        for low, high in pairwise(edges):
            of = use & added & (value >= low) & (value < high)
            out[name][f"{low:g}-{high:g}"] = share_row(passed, of, table.field)
    return out


def _seeing(table: Table) -> np.ndarray:
    seeing = {
        (field, night["night"]): night["seeing"]
        for field, night in zip(table.night_field.tolist(), table.nights, strict=True)
    }
    pairs = zip(table.field.tolist(), table.rows["night"], strict=True)
    return np.array([seeing[pair] for pair in pairs], dtype=np.float64)
