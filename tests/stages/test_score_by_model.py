"""Scores by a forest: withheld where the stamp cannot be trusted, doubted by flags, explained by features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.numerics.forest import contributions, predicted
from ks4diff.products.features import FEATURE_NAMES
from ks4diff.products.image import PixelFlag
from ks4diff.products.model import RB_BIT
from ks4diff.stages.features import candidate_features, scene_of
from ks4diff.stages.score import ScoreConfig, score_by_model
from tests.forests import tiny_model

CONFIG = ScoreConfig()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scene(changed):
    return scene_of(changed.subtracted)


def vector_of(candidates, scene, model):
    every = candidate_features(candidates, scene, CONFIG.features)
    return np.ascontiguousarray(every[:, [FEATURE_NAMES.index(name) for name in model.features]])


def test_rb_is_the_calibrated_answer(changed, scene, model):
    candidates = changed.subtracted.candidates
    scored, _ = score_by_model(candidates, scene, model, CONFIG)
    samples = vector_of(candidates, scene, model)
    known = np.isfinite(samples[:, 0])
    raw = predicted(*model.forest.walk(), samples[known])
    forest = model.forest
    evidence = np.interp(raw, forest.calibration_x, forest.calibration_y)
    peak = np.abs(candidates.table["scorr"][known]).astype(float)
    odds = np.log(forest.prior_y / (1 - forest.prior_y))
    prior_odds = np.exp(np.interp(np.log(peak), np.log(forest.prior_x), odds))
    odds = evidence / (1 - evidence) * prior_odds
    told = odds / (1 + odds)
    assert known.sum() > 40
    assert scored.table["rb"][known] == pytest.approx(told, abs=1e-6)
    assert np.abs(evidence - told).max() > 0.1
    assert np.abs(raw - evidence).max() > 1e-3


def test_reasons_are_what_moved_it_most_with_their_sign(changed, scene, model):
    scored, reasons = score_by_model(changed.subtracted.candidates, scene, model, CONFIG)
    samples = vector_of(changed.subtracted.candidates, scene, model)
    row = int(np.flatnonzero(np.isfinite(scored.table["rb"]))[3])
    one = samples[row : row + 1]
    (by,) = contributions(*model.forest.walk(), one)
    # what is known of this |S_corr| before the image is seen moves the score as its feature does
    evidence = model.forest.evidence(predicted(*model.forest.walk(), one))
    by[model.features.index("s_peak")] += scored.table["rb"][row] - evidence[0]
    assert len(reasons[row]) == 3
    for place, reason in enumerate(reasons[row]):
        value = by[model.features.index(reason[:-1])]
        assert abs(value) == pytest.approx(np.sort(np.abs(by))[-1 - place])
        assert reason[-1] == ("+" if value > 0 else "-")


def test_a_score_is_withheld_where_the_middle_or_half_of_the_stamp_is_masked(changed, scene, model):
    table = changed.table
    x, y = (np.rint(table[name]).astype(int) for name in ("x", "y"))
    inner = np.flatnonzero(np.minimum(x, y) > 60)
    middle, half, clear = inner[:3]
    flags = scene.difference.flags.copy()
    flags[y[middle], x[middle]] = PixelFlag.NO_DATA
    flags[y[half] - 20 : y[half] + 21, x[half] + 1 : x[half] + 21] = PixelFlag.NO_DATA
    flags[y[half] - 20 : y[half], x[half] - 20 : x[half] + 1] = PixelFlag.NO_DATA
    struck = scene._replace(difference=replace(scene.difference, flags=flags))
    scored, reasons = score_by_model(changed.subtracted.candidates, struck, model, CONFIG)
    assert np.isnan(scored.table["rb"][[middle, half]]).all()
    assert np.isfinite(scored.table["rb"][clear])
    masked = (scored.table["rb_flags"] & RB_BIT["masked"]) != 0
    assert (masked == np.isnan(scored.table["rb"])).all()
    assert reasons[middle] == reasons[half] == ()


def test_flags_say_why_a_score_is_weak(changed, scene, model):
    candidates = changed.subtracted.candidates
    table = candidates.table.copy()
    fwhm = scene.difference.psf.fwhm_pix
    rows, columns = scene.chip.image.shape
    inner = np.minimum.reduce([table["x"], table["y"], columns - 1 - table["x"], rows - 1 - table["y"]]) >= 31
    table["saturated_distance"], table["crosstalk_ratio"] = 100.0, 0.0
    first, second = np.flatnonzero(inner)[:2]
    table["saturated_distance"][first], table["crosstalk_ratio"][second] = 4.9 * fwhm, 0.11
    scored, _ = score_by_model(replace(candidates, table=table), scene, model, CONFIG)
    raised = {name: np.flatnonzero(scored.table["rb_flags"] & RB_BIT[name]).tolist() for name in RB_BIT}
    assert raised["saturated"] == [first]
    assert raised["crosstalk"] == [second]
    assert raised["edge"] == np.flatnonzero(~inner).tolist()
    assert raised["no_model"] == []
    # a sky of counts is beyond made-up features of unit scatter
    assert len(raised["out_of_range"]) == np.isfinite(scored.table["rb"]).sum()


def test_within_the_range_of_the_training_set_nothing_is_said(changed, scene, model):
    wide = {name: np.full(65, value, np.float32) for name, value in (("lowest", -1e9), ("highest", 1e9))}
    wide = replace(model, forest=replace(model.forest, **wide))
    scored, _ = score_by_model(changed.subtracted.candidates, scene, wide, CONFIG)
    assert not (scored.table["rb_flags"] & RB_BIT["out_of_range"]).any()
