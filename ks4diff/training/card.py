"""What a model's card says, and vectors by which a machine can tell that it walks the forest rightly."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import sklearn

from ks4diff import __version__
from ks4diff.products.features import VECTOR_NAME, definitions_hash
from ks4diff.products.model import Forest
from ks4diff.training.fit import FitConfig, feature_names, raw_scores, row_weights, samples_of
from ks4diff.training.measures import false_share_threshold, sets_of
from ks4diff.training.table import Table

GOLDEN = "golden.npz"
N_GOLDEN = 256
LICENCE = "BSD-3-Clause"


def card_of(
    *,
    config: Mapping[str, Any],
    split: Mapping[str, list[int]],
    table: Table,
    model,
    held,
    threshold: float,
    metrics: Mapping[str, Any],
    digest: str,
) -> dict[str, Any]:
    """Return the card of a fitted ``model``: ``table`` its training fields, ``held`` those it never saw."""
    names = feature_names()
    order = np.argsort(-model.feature_importances_, kind="stable")
    rows = table.rows
    used = row_weights(table, FitConfig(**config["fit"]), config["seed"]) > 0
    tags, counts = np.unique(rows["tag"][table.unflagged], return_counts=True)
    return {
        "name": config["name"],
        "version": config["version"],
        "vector": VECTOR_NAME,
        "definitions": definitions_hash(),
        "features": list(names),
        "threshold": float(threshold),
        "prior": float(config["fit"]["prior"]),
        "thresholds": thresholds(held) | {"shipped": float(threshold)},
        "licence": LICENCE,
        "training": {
            "sha256": digest,
            "made_of": "simulated KMTNet fields only (ks4diff.stages.sim); no real pixel",
            "fields": dict(split),
            "rows": len(rows),
            "fitted": int(used.sum()),
            "fitted_real": int(rows["real"][used].sum()),
            "real": int(rows["real"].sum()),
            "bogus": int((~rows["real"]).sum()),
            "unflagged_by_kind": dict(zip(tags.tolist(), counts.tolist(), strict=True)),
            "mpix": round(table.mpix(), 1),
        },
        "trees": len(model.estimators_),
        "nodes": int(sum(tree.tree_.node_count for tree in model.estimators_)),
        "importances": {names[k]: round(float(model.feature_importances_[k]), 4) for k in order},
        "metrics": dict(metrics),
        "software": {
            "ks4diff": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "config": dict(config),
    }


def thresholds(held) -> dict[str, float]:
    """Return scores that 1 % and 0.1 % of the bogus pass, and that 1 % of the added sources miss."""
    sets = sets_of(*held)
    real = np.sort(sets.added)
    return {
        "false_1pct": false_share_threshold(sets.bogus, 0.01),
        "false_0.1pct": false_share_threshold(sets.bogus, 0.001),
        "missed_1pct": float(max(real[int(0.01 * len(real))], 0.0)) if len(real) else 0.0,
    }


def golden_vectors(model, forest: Forest, table: Table) -> dict[str, np.ndarray]:
    """Return samples from bogus to real, the answers of scikit-learn to them, and their calibrated scores."""
    raw = raw_scores(model, table)
    known = np.flatnonzero(table.known)
    order = known[np.argsort(raw[known], kind="stable")]
    chosen = order[np.linspace(0, len(order) - 1, min(N_GOLDEN, len(order))).astype(int)]
    scorr = table.rows["scorr"][chosen]
    return {
        "samples": samples_of(table)[chosen],
        "raw": raw[chosen],
        "scorr": scorr,
        "rb": forest.probability(raw[chosen], scorr),
    }
