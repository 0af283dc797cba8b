"""A small forest that scikit-learn made, as a model on disk, and how plain numpy walks it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from ks4diff.io.models import save_model
from ks4diff.products.features import FEATURE_NAMES, VECTOR_NAME, definitions_hash
from ks4diff.training.fit import as_arrays, feature_names

# at a |S_corr| of 4 a tenth is real, at 10 most are
PRIOR = (np.array([4.0, 10.0]), np.array([0.1, 0.8]))
LINE = (np.array([0.0, 0.4, 1.0]), np.array([0.0, 0.3, 1.0]))
CARD = {
    "name": "tiny",
    "version": "1.0.0",
    "vector": VECTOR_NAME,
    "definitions": definitions_hash(),
    "features": list(feature_names()),
    "threshold": 0.4,
    "prior": 0.5,
}


def made_up(seed, n, missing=0.0):
    """Return (float32 [n, 66], a share of it NaN, bool [n] real): five columns tell something."""
    rng = np.random.default_rng(seed)
    real = rng.random(n) < 0.5
    vector = rng.normal(size=(n, len(FEATURE_NAMES))).astype(np.float32)
    vector[:, 5:10] += np.where(real, 1.0, 0.0)[:, None].astype(np.float32)
    vector[rng.random(vector.shape) < missing] = np.nan
    return vector, real


def tiny_forest(seed=1, n=600, trees=12, leaf=2):
    """Return (scikit-learn's forest, the same as plain arrays)."""
    vector, real = made_up(seed, n)
    samples = vector[:, [FEATURE_NAMES.index(name) for name in feature_names()]]
    classifier = RandomForestClassifier(n_estimators=trees, min_samples_leaf=leaf, random_state=seed)
    classifier.fit(samples, real)
    table = SimpleNamespace(features=vector, known=np.ones(n, dtype=bool))
    return classifier, as_arrays(classifier, table, LINE, PRIOR)


def tiny_model(folder, **options):
    """Write a model of `tiny_forest` into a folder and return it."""
    return save_model(folder, tiny_forest(**options)[1], CARD)


def walked(forest, samples):
    """Return (float64 [n] mean of leaf values, float64 [n, f] what each feature moved it by)."""
    n = len(samples)
    total, moved = np.zeros(n), np.zeros(samples.shape)
    for root in forest.roots:
        node = np.full(n, root)
        while (forest.feature[node] >= 0).any():
            inner = forest.feature[node] >= 0
            asked = forest.feature[node]
            x = samples[np.arange(n), asked]
            left = np.where(np.isnan(x), forest.nan_left[node] == 1, x <= forest.threshold[node])
            child = np.where(left, node + 1, forest.right[node])
            step = forest.value[np.where(inner, child, node)] - forest.value[node]
            np.add.at(moved, (np.flatnonzero(inner), asked[inner]), step[inner])
            node = np.where(inner, child, node)
        total += forest.value[node]
    return total / len(forest.roots), moved / len(forest.roots)
