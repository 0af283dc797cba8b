"""A forest of plain arrays answers as scikit-learn and as plain numpy do, and says what moved it."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.forest import contributions, predicted
from ks4diff.products.features import FEATURE_NAMES
from ks4diff.training.fit import feature_names
from tests.forests import made_up, tiny_forest, walked


@pytest.fixture(scope="module")
def both():
    return tiny_forest()


def samples(seed, n):
    vector, _ = made_up(seed, n, missing=0.05)
    return np.ascontiguousarray(vector[:, [FEATURE_NAMES.index(name) for name in feature_names()]])


def test_it_answers_as_predict_proba(both):
    classifier, forest = both
    asked = samples(2, 1500)  # more than one block
    assert np.isnan(asked).any()
    answer = predicted(*forest.walk(), asked)
    assert np.abs(answer - classifier.predict_proba(asked)[:, 1]).max() < 1e-12
    assert answer.std() > 0.05


def test_samples_on_a_threshold_go_the_same_way(both):
    classifier, forest = both
    asked = np.zeros((200, len(feature_names())), dtype=np.float32)
    inner = np.flatnonzero(forest.feature >= 0)[:200]
    for row, node in zip(asked, inner, strict=False):
        row[forest.feature[node]] = forest.threshold[node]
    near = np.nextafter(asked, np.float32(np.inf))
    for one in (asked, near):
        assert predicted(*forest.walk(), one) == pytest.approx(classifier.predict_proba(one)[:, 1], abs=1e-12)


def test_it_equals_the_plain_twin_and_contributions_add_up(both):
    _, forest = both
    asked = samples(3, 300)
    total, moved = walked(forest, asked)
    answer, by = predicted(*forest.walk(), asked), contributions(*forest.walk(), asked)
    assert answer == pytest.approx(total, abs=1e-13)
    assert by == pytest.approx(moved, abs=1e-13)
    start = forest.value[forest.roots].mean()
    assert start + by.sum(axis=1) == pytest.approx(answer, abs=1e-12)


def test_no_samples_give_no_answers(both):
    none = np.zeros((0, len(feature_names())), dtype=np.float32)
    assert predicted(*both[1].walk(), none).shape == (0,)
    assert contributions(*both[1].walk(), none).shape == none.shape
