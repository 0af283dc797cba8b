"""Fit forests with scikit-learn, calibrate their scores, and lay them out as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.isotonic import IsotonicRegression

from ks4diff.numerics.forest import predicted
from ks4diff.products.features import FEATURE_NAMES
from ks4diff.products.model import Forest
from ks4diff.training.table import (
    ALERT_SCORE,
    Table,
    balanced_weights,
    could_alert,
    equal_weights,
    folds,
    searched,
)

LEFT_OUT = ("nexp_frac",)  # KMTNet's exposures are no stacks: it is NaN in all of them
CHALLENGERS = ("extra_trees", "hist_gradient_boosting")
# |S_corr| between which bogus are counted: noise falls steeply from 4.5 on, residuals and particles slowly
PRIOR_EDGES = (4.5, 4.75, 5.0, 5.25, 5.5, 5.75, 6.0, 6.5, 7.0, 8.0, 10.0, 15.0, 25.0, 60.0, 200.0)
STRONGEST = 60.0  # real sources are taken to be equally many at each |S_corr| from ALERT_SCORE to here


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The forest, and how rows count in it.

    Classes need no weights of their own: `balanced_weights` has made them equal at every |S_corr|. Rows need
    no copies turned or mirrored: features are the same then, or may not be turned.
    """

    trees: int = 200
    min_samples_leaf: int = 5
    # of rows that flags keep from alerts: over nine fields, 1456 added sources missed at 1 % false are 7.8 %
    # with 1, 8.6 % with 0.3 and 5.8 % with 0.05, the share of bogus at 1 % missed 43, 33 and 23 %
    flagged_weight: float = 0.05
    flagged_share: float = 0.1  # of flagged bogus rows that are used at all: they are nine of ten rows
    folds: int = 5  # of fields: each row's score by a forest that never saw its field
    prior: float = 0.5  # share of real ones that a score, read as a probability, assumes
    threads: int = 2

    def __post_init__(self) -> None:
        """Refuse what no forest can be grown or no score be calibrated with, before fields are drawn."""
        least = {"trees": 1, "min_samples_leaf": 1, "folds": 2, "threads": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if not (0 < self.flagged_share <= 1 and 0 <= self.flagged_weight <= 1 and 0 < self.prior < 1):
            raise ValueError(
                "flagged_share, flagged_weight and prior must be shares, got "
                f"{self.flagged_share}, {self.flagged_weight}, {self.prior}"
            )


def feature_names() -> tuple[str, ...]:
    """Return the model's features, in order."""
    return tuple(name for name in FEATURE_NAMES if name not in LEFT_OUT)


def samples_of(table: Table) -> np.ndarray:
    """Return float32 [n, features] what the forest sees of a table."""
    return np.ascontiguousarray(table.features[:, [FEATURE_NAMES.index(name) for name in feature_names()]])


def new_classifier(kind: str, config: FitConfig, seed: int):
    """Return an unfitted classifier: "forest", or one of `CHALLENGERS`."""
    if kind == "hist_gradient_boosting":
        return HistGradientBoostingClassifier(random_state=seed, max_iter=150, learning_rate=0.1)
    made = RandomForestClassifier if kind == "forest" else ExtraTreesClassifier
    return made(
        n_estimators=config.trees,
        min_samples_leaf=config.min_samples_leaf,
        max_features="sqrt",
        n_jobs=config.threads,
        random_state=seed,
    )


def fitted(table: Table, config: FitConfig, seed: int, kind: str = "forest"):
    """Return a classifier fitted to the rows of a table that can be trusted."""
    weights = row_weights(table, config, seed)
    use = weights > 0
    model = new_classifier(kind, config, seed)
    model.fit(samples_of(table)[use], table.rows["real"][use], sample_weight=weights[use])
    # threads would add the trees' answers in the order in which they come: other last bits in each run
    return model.set_params(n_jobs=1) if hasattr(model, "n_jobs") else model


def row_weights(table: Table, config: FitConfig, seed: int) -> np.ndarray:
    """Return float64 [n]: how much rows count in a fit, 0 for those left out."""
    weights = balanced_weights(table, config.flagged_weight) * kept_weights(table, config.flagged_share, seed)
    return np.where(table.known, weights, 0.0)


def kept_weights(table: Table, share: float, seed: int) -> np.ndarray:
    """Return float64 [n]: 0 for flagged bogus rows that are left out, and what the others stand for."""
    flagged = ~table.unflagged & ~table.rows["real"]
    stays = np.random.default_rng([seed, 74]).random(len(flagged)) < share
    return np.where(flagged, np.where(stays, 1 / share, 0.0), 1.0)


def raw_scores(model, table: Table) -> np.ndarray:
    """Return float64 [n]: the classifier's answers, NaN where a score is withheld."""
    out = np.full(len(table.rows), np.nan)
    if table.known.any():
        out[table.known] = model.predict_proba(samples_of(table)[table.known])[:, 1]
    return out


def scores_across(table: Table, config: FitConfig, seed: int, kind: str = "forest") -> np.ndarray:
    """Return float64 [n]: of each row the answer of a classifier fitted without its field."""
    fold = folds(table.field, config.folds, seed)
    out = np.full(len(table.rows), np.nan)
    numbers = np.array(sorted(table.site))
    for k in range(config.folds):
        inside = np.unique(table.field[fold == k])
        if not len(inside):
            continue
        outside = table.of_fields(numbers[~np.isin(numbers, inside)])
        out[fold == k] = raw_scores(fitted(outside, config, seed, kind), table.of_fields(inside))
    return out


def prior_weights(real: np.ndarray, prior: float) -> np.ndarray:
    """Return float64 [n], sum 1: weights that make ``prior`` of the rows real."""
    share = np.where(real, prior, 1 - prior)
    return share / np.maximum(np.where(real, real.sum(), (~real).sum()), 1)


def lines(table: Table, raw: np.ndarray, prior: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return (x, y) of the calibration of answers ``raw`` [n], and (x, y) of the prior, of a table's rows."""
    use = np.flatnonzero(could_alert(table) & np.isfinite(raw))
    rows = table.rows[use]
    weights = equal_weights(rows["scorr"], rows["real"], np.ones(len(use)))
    use, weights = use[weights > 0], weights[weights > 0]
    return calibration(raw[use], table.rows["real"][use], weights / weights.sum()), prior_line(table, prior)


def prior_line(table: Table, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Return breakpoints: |S_corr|, and the share of real ones among unflagged candidates there.

    Of those of `ALERT_SCORE` and more ``prior`` are real. Bogus are as many as the table has, and fewer the
    higher the |S_corr|; real ones equally many at each: how they were drawn does not enter.
    """
    rows = table.rows
    score = np.abs(rows["scorr"]).astype(np.float64)
    bogus = searched(table).rows & table.unflagged & ~rows["real"] & (rows["round"] >= 0)
    edges = np.array(PRIOR_EDGES)
    number, _ = np.histogram(score[bogus], edges)
    # half a row where there is none: no |S_corr| is certain
    density = np.maximum.accumulate(((number + 0.5) / np.diff(edges))[::-1])[::-1]
    density *= (1 - prior) / max(int((bogus & (score >= ALERT_SCORE)).sum()), 1)
    real = prior / (STRONGEST - ALERT_SCORE)
    return np.sqrt(edges[1:] * edges[:-1]), real / (real + density)


def calibration(raw: np.ndarray, real: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return breakpoints x, y of a rising line from raw score to the probability to be real; weights' sum 1.

    Isotonic regression (Zadrozny & Elkan 2002), whose steps are joined from middle to middle: on a step all
    scores would be one. The line ends half a row's weight from 0 and from 1: no sample makes certain, and a
    limit of 1 lets nothing pass.
    """
    fit = IsotonicRegression().fit(raw, real.astype(np.float64), sample_weight=weights)
    step = fit.predict(raw)
    levels, at = np.unique(step, return_inverse=True)
    total = np.bincount(at, weights)
    middle = np.bincount(at, weights * raw) / total
    least = 0.5 * weights.min()
    inside = (middle > 1e-9) & (middle < 1 - 1e-9) & (levels > least) & (levels < 1 - least)
    x, first = np.unique(np.r_[0.0, middle[inside], 1.0], return_index=True)
    return x, np.r_[least, levels[inside], 1 - least][first]


def as_arrays(
    model, table: Table, line: tuple[np.ndarray, np.ndarray], prior: tuple[np.ndarray, np.ndarray]
) -> Forest:
    """Return a fitted forest of scikit-learn as plain arrays, with the breakpoints of `lines`.

    Thresholds are rounded down to float32, which leaves each float32 sample on its side. The range of each
    feature is that of the training set's trusted rows.
    """
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("feature", "threshold", "right", "nan_left", "value")
    }
    roots, first = [], 0
    for estimator in model.estimators_:
        tree = estimator.tree_
        inner = tree.children_left >= 0
        if (tree.children_left[inner] != np.flatnonzero(inner) + 1).any():
            raise ValueError("scikit-learn no longer lays trees out depth first")
        share = tree.value[:, 0, 1] / tree.value[:, 0, :].sum(axis=1)
        columns["feature"].append(np.where(inner, tree.feature, -1).astype(np.int16))
        columns["threshold"].append(np.where(inner, _rounded_down(tree.threshold), 0).astype(np.float32))
        columns["right"].append(np.where(inner, tree.children_right + first, 0).astype(np.int32))
        columns["nan_left"].append(np.where(inner, tree.missing_go_to_left, 0).astype(np.uint8))
        columns["value"].append(np.clip(share, 0.0, 1.0))
        roots.append(first)
        first += tree.node_count
    samples = samples_of(table)[table.known]
    return Forest(
        roots=np.array(roots, dtype=np.int32),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        calibration_x=line[0],
        calibration_y=line[1],
        prior_x=prior[0],
        prior_y=prior[1],
        lowest=samples.min(axis=0),
        highest=samples.max(axis=0),
    )


def _rounded_down(threshold: np.ndarray) -> np.ndarray:
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def walked(forest: Forest, table: Table) -> np.ndarray:
    """Return float64 [n]: the scores that candidates would get, NaN where withheld."""
    out = np.full(len(table.rows), np.nan)
    samples = samples_of(table)[table.known]
    out[table.known] = forest.probability(
        predicted(*forest.walk(), samples), table.rows["scorr"][table.known]
    )
    return out
