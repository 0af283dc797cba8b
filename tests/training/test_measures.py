"""Measures of a model against slow, obvious counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="pip install 'ks4diff[train]'")

from ks4diff.training.false_alerts import (
    FULL_CHIP_MPIX,
    alerts_at,
    false_scores,
    lowest_threshold,
)
from ks4diff.training.measures import (
    auc,
    calibration_error,
    false_share,
    false_share_threshold,
    missed_share,
    share_row,
)
from ks4diff.training.table import could_alert, read_table, searched
from tests.training_sets import write_field

scores = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=40)


@given(scores, st.sampled_from([0.001, 0.01, 0.1, 0.5]))
def test_no_more_of_the_bogus_pass_than_wanted_and_a_lower_threshold_lets_more(bogus, share):
    bogus = np.array(bogus)
    threshold = false_share_threshold(bogus, share)
    assert (bogus > threshold).mean() <= share
    lower = bogus[bogus < threshold]
    if len(lower):
        assert (bogus > lower.max()).mean() > share


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(real, bogus):
    pairs = [1.0 if r > b else 0.5 if r == b else 0.0 for r in real for b in bogus]
    assert auc(np.array(real), np.array(bogus)) == pytest.approx(np.mean(pairs))


def test_withheld_scores_are_missed():
    bogus = np.linspace(0, 0.5, 200)
    assert missed_share(np.array([0.9, 0.9, -1.0, 0.9]), bogus, 0.01) == 0.25
    assert missed_share(np.array([0.9, 0.9, -1.0, 0.9]), np.empty(0), 0.01) == 0.25


def test_false_share_at_a_missed_share():
    real = np.arange(100) / 100
    assert false_share(real, np.array([0.0, 0.005, 0.01, 0.5]), 0.01) == 0.5


def test_honest_scores_are_calibrated_and_exaggerated_ones_are_not():
    rng = np.random.default_rng(3)
    score = rng.random(40_000)
    real = rng.random(len(score)) < score
    assert calibration_error(score[real], score[~real], real.mean()) < 0.01
    bold = np.where(score > 0.5, 1.0, 0.0)
    assert calibration_error(bold[real], bold[~real], real.mean()) == pytest.approx(0.25, abs=0.01)


def test_a_prior_weighs_classes():
    """The same honest scores at another prior: odds shift, p' = odds (pi'/(1-pi')) / (pi/(1-pi))."""
    rng = np.random.default_rng(4)
    score = rng.random(40_000)
    real = rng.random(len(score)) < score
    odds = score / (1 - score) * (0.1 / 0.9)
    moved = odds / (1 + odds)
    assert calibration_error(moved[real], moved[~real], 0.1) < 0.01
    assert calibration_error(score[real], score[~real], 0.1) > 0.1


def test_intervals_of_shares():
    none, every, field = np.zeros(100, dtype=bool), np.ones(100, dtype=bool), np.arange(100) // 10
    row = share_row(none, every, field)
    assert row == {"n": 100, "value": 0, "low": 0, "high": pytest.approx(0.037, abs=0.001)}
    assert share_row(none, none, field)["value"] is None
    assert share_row(none, none, field)["n"] == 0


def test_shares_that_come_in_fields_are_known_as_fields_are():
    field = np.arange(1000) // 100
    alike, unlike = np.arange(1000) % 2 == 0, field % 2 == 0
    every = np.ones(1000, dtype=bool)
    one, two = (share_row(passed, every, field) for passed in (alike, unlike))
    assert one["value"] == two["value"] == 0.5
    assert one["high"] - one["low"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(1000), rel=0.02)
    # ten fields, all or nothing each
    assert two["high"] - two["low"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(10), rel=0.15)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return read_table([write_field(folder, n) for n in range(4)])[0]


def test_the_shipped_threshold_is_the_lowest_that_keeps_its_promise(table):
    rng = np.random.default_rng(5)
    score = rng.random(len(table.rows))
    for per_chip in (5.0, 100.0, 800.0):
        threshold = lowest_threshold(table, score, per_chip)
        rate = alerts_at(table, score, threshold)["false_alerts"] / table.mpix() * FULL_CHIP_MPIX
        assert rate <= per_chip
        below = false_scores(table, score, searched(table))
        below = below[below < threshold]
        if len(below):
            more = alerts_at(table, score, below[0])["false_alerts"] / table.mpix() * FULL_CHIP_MPIX
            assert more > per_chip


def test_false_alerts_of_one_field_say_less_than_those_of_many(table):
    score = np.ones(len(table.rows))
    of_all = alerts_at(table, score, 0.5)
    rate, by_fields = of_all["per_full_chip"]["value"], of_all["per_full_chip_by_fields"]
    assert by_fields["low"] < rate < by_fields["high"]
    one = np.where(table.field == sorted(table.site)[0], 1.0, 0.0)
    of_one = alerts_at(table, one, 0.5)
    by_fields = of_one["per_full_chip_by_fields"]
    assert by_fields["low"] == 0
    assert by_fields["high"] > 2 * of_one["per_full_chip"]["value"]


def test_completeness_counts_what_was_never_detected_or_was_flagged(table):
    at = alerts_at(table, np.ones(len(table.rows)), 0.5)
    counted = found = blended = 0
    for change, field in zip(table.changes, table.change_field, strict=True):
        if change["tag"].startswith("added_") and change["expected"] >= 8:
            same = (table.change_field == field) & (table.changes["night"] == change["night"])
            own = table.changes[same & ~np.char.startswith(table.changes["tag"], "added_")]
            if (np.hypot(own["x"] - change["x"], own["y"] - change["y"]) < 12).any():
                blended += 1
                continue
            counted += 1
            row = change["row"]
            found += row >= 0 and bool(table.unflagged[row]) and abs(table.rows["scorr"][row]) >= 5
    assert at["added"]["8"]["n"] == counted
    assert at["added"]["8"]["value"] == pytest.approx(found / counted, rel=1e-3)
    assert blended > 0
    never = (table.changes["row"] < 0).sum()
    assert at["added"]["5-6"]["n"] >= never > 0


def test_images_of_failed_quality_give_no_alerts_and_no_area(table):
    nights = table.nights.copy()
    nights["quality"][0] = "fail"
    fewer = replace(table, nights=nights)
    score = np.ones(len(table.rows))
    whole, part = alerts_at(table, score, 0.5), alerts_at(fewer, score, 0.5)
    assert part["mpix"] == pytest.approx(whole["mpix"] - 1.0)
    assert part["false_alerts"] < whole["false_alerts"]
    assert part["added"]["8"]["n"] < whole["added"]["8"]["n"]


def test_candidates_that_could_alert_are_those_of_images_that_may(table):
    nights = table.nights.copy()
    nights["quality"][0] = "fail"
    fewer = could_alert(replace(table, nights=nights))
    dropped = could_alert(table) & ~fewer
    of_failed = (table.field == table.night_field[0]) & (table.rows["night"] == nights["night"][0])
    assert dropped.any()
    assert not fewer[of_failed].any()
    assert (dropped == (could_alert(table) & of_failed)).all()
    assert (np.abs(table.rows["scorr"][fewer]) >= 5).all()
    assert table.unflagged[fewer].all()
