"""The model that ships: it loads, is found by default, and answers as it did where it was trained."""

from __future__ import annotations

import numpy as np

from ks4diff.io.models import load_model, shipped_model
from ks4diff.numerics.forest import predicted
from ks4diff.pipeline.rb import RULES, model_for, model_id, threshold
from ks4diff.products.features import FEATURE_NAMES
from ks4diff.stages.score import RULES_THRESHOLD, RULES_VERSION, ScoreConfig

LARGEST = 8_000_000  # bytes of a wheel's share


def test_it_scores_unless_another_is_asked_for():
    model = load_model(shipped_model())
    assert model_id(ScoreConfig()) == model.version
    assert threshold(ScoreConfig(), None) == model.threshold == model.card["thresholds"]["shipped"]
    assert model_for(RULES) is None
    assert model_id(ScoreConfig(model=RULES)) == RULES_VERSION
    assert threshold(ScoreConfig(model=RULES), None) == RULES_THRESHOLD


def test_it_answers_as_scikit_learn_did():
    folder = shipped_model()
    model = load_model(folder)
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        raw = predicted(*model.forest.walk(), golden["samples"])
        assert len(raw) == 256
        assert np.abs(raw - golden["raw"]).max() < 1e-12
        rb = model.forest.probability(raw, golden["scorr"])
        assert np.abs(rb - golden["rb"]).max() < 1e-12
        assert np.ptp(raw) > 0.9


def test_its_folder_is_whole_and_small():
    folder = shipped_model()
    names = {path.name for path in folder.iterdir()}
    pictures = {"roc.png", "reliability.png", "efficiency.png"}
    assert names == {"model.npz", "card.json", "card.md", "golden.npz", *pictures}
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST


def test_its_card_tells_how_it_was_made_and_measured():
    card = load_model(shipped_model()).card
    assert set(card["features"]) <= set(FEATURE_NAMES)
    assert card["training"]["fields"]["test"]
    assert card["training"]["fields"]["other_site"]
    alerts = card["metrics"]["held_out"]["alerts"]
    # the threshold is the lowest that keeps this promise over the fields held out
    assert alerts["per_full_chip"]["value"] <= card["config"]["false_per_chip"]
    assert set(card["metrics"]["challengers"]) == {"extra_trees", "hist_gradient_boosting"}
