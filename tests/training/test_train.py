"""A model from harvested fields: laws of splits and weights, calibration, the arrays, and the whole twice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("sklearn", reason="pip install 'ks4diff[train]'")

from ks4diff.cli.main import app
from ks4diff.io.models import load_model
from ks4diff.numerics.forest import predicted
from ks4diff.products.errors import InputError
from ks4diff.training.fit import (
    FitConfig,
    as_arrays,
    calibration,
    fitted,
    kept_weights,
    prior_line,
    prior_weights,
    samples_of,
    scores_across,
    walked,
)
from ks4diff.training.harvest import set_folder
from ks4diff.training.measures import auc
from ks4diff.training.table import balanced_weights, folds, read_table, split_fields
from ks4diff.training.train import TrainConfig, train, train_config
from tests.forests import PRIOR
from tests.training_sets import write_field

FIT = FitConfig(trees=12, threads=2)
FIELDS = 12


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return [write_field(folder, n) for n in range(FIELDS)]


@pytest.fixture(scope="module")
def table(paths):
    return read_table(paths)[0]


@pytest.fixture(scope="module")
def trained(paths, tmp_path_factory):
    """Return the folders of two models of the same fields and configuration."""
    config = TrainConfig(fields=FIELDS, fit=FIT, challengers=False)
    out = [tmp_path_factory.mktemp("model") / name for name in ("one", "two")]
    for folder in out:
        train(paths, folder, config)
    return out


def test_no_field_is_in_two_sets_and_the_site_left_out_is_whole(table):
    training, test, other = split_fields(table, 1, 0.3)
    assert sorted([*training, *test, *other]) == list(range(FIELDS))
    assert {table.site[n] for n in other} == {"SSO"}
    assert "SSO" not in {table.site[n] for n in [*training, *test]}
    assert len(test) == 3


def test_fields_of_other_sets_train_only(paths, tmp_path):
    extra = [write_field(tmp_path, n, seed=5) for n in (1, 5)]  # the second of the site left out
    table, digest = read_table(paths, extra)
    training, test, other = split_fields(table, 1, 0.3)
    plain = split_fields(read_table(paths)[0], 1, 0.3)
    assert (training, test, other) == ([*plain[0], 100_000], plain[1], plain[2])
    assert digest != read_table(paths)[1]
    with pytest.raises(InputError, match="in two sets"):
        read_table(paths, paths[:1])


def test_folds_keep_fields_whole_and_are_alike_in_size(table):
    fold = folds(table.field, 4, 1)
    assert all(len(set(fold[table.field == n])) == 1 for n in range(FIELDS))
    assert np.bincount(fold).max() < 1.5 * np.bincount(fold).min()


def test_changes_keep_their_candidates_when_fields_are_chosen(table):
    some = table.of_fields([3, 7])
    seen = some.changes["row"] >= 0
    assert seen.any()
    assert (some.rows["tag"][some.changes["row"][seen]] == some.changes["tag"][seen]).all()
    assert set(some.field) == {3, 7}


def test_weights_give_real_and_bogus_one_distribution_of_scores(table):
    weights = balanced_weights(table, 1.0)
    score, real = np.abs(table.rows["scorr"]), table.rows["real"]
    plain = [np.median(score[real == kind]) for kind in (True, False)]
    assert abs(plain[0] / plain[1] - 1) > 0.3
    for k in (0.25, 0.5, 0.75):
        assert weighted_quantile(score[real], weights[real], k) == pytest.approx(
            weighted_quantile(score[~real], weights[~real], k), rel=0.05
        )
    assert weights[real].sum() == pytest.approx(weights[~real].sum())


def weighted_quantile(values, weights, share):
    order = np.argsort(values)
    return values[order][np.searchsorted(np.cumsum(weights[order]), share * weights.sum())]


def test_flagged_rows_count_less(table):
    few = balanced_weights(table, 0.1)
    flagged = ~table.unflagged
    near = (np.abs(table.rows["scorr"]) > 7) & (np.abs(table.rows["scorr"]) < 7.5) & ~table.rows["real"]
    assert few[near & flagged].mean() == pytest.approx(0.1 * few[near & ~flagged].mean(), rel=0.3)


def test_the_flagged_bogus_that_stay_stand_for_all(table):
    kept = kept_weights(table, 0.25, 1)
    flagged = ~table.unflagged & ~table.rows["real"]
    assert set(kept[flagged]) == {0.0, 4.0}
    assert set(kept[~flagged]) == {1.0}
    assert kept[flagged].mean() == pytest.approx(1.0, abs=0.25)


def test_scores_across_are_of_forests_that_never_saw_the_field(table):
    """With features of pure noise, a forest that had seen a field's rows would know them again."""
    noise = table.features.copy()
    known = np.isfinite(noise[:, 0])
    noise[known] = np.random.default_rng(1).normal(size=(known.sum(), noise.shape[1]))
    blind = replace(table, features=noise)
    across = scores_across(blind, FIT, 1)
    seen = samples_of(blind)[known], fitted(blind, FIT, 1)
    real = table.rows["real"]
    assert np.isnan(across[~known]).all()
    assert 0.4 < auc(across[known & real], across[known & ~real]) < 0.6
    own = seen[1].predict_proba(seen[0])[:, 1]
    assert auc(own[real[known]], own[~real[known]]) > 0.9


def test_calibration_rises_and_tells_the_share_of_real_ones():
    rng = np.random.default_rng(2)
    raw = rng.random(20_000)
    real = rng.random(len(raw)) < raw**2
    x, y = calibration(raw, real, prior_weights(real, float(real.mean())))
    assert np.minimum(np.diff(x), np.diff(y)).min() > 0
    assert (x[0], x[-1]) == (0, 1)
    assert 0 < y[0] < y[1]
    assert y[-2] < y[-1] < np.float32(1)  # a limit of 1 lets nothing pass
    grid = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.interp(grid, x, y) - grid**2).max() < 0.05


def test_the_prior_is_the_share_of_real_ones_at_each_score(table):
    rng = np.random.default_rng(4)
    rows = np.repeat(table.rows[:1], 200_000)
    half = len(rows) // 2
    rows["flags"], rows["round"], rows["real"] = 0, 0, np.arange(len(rows)) < half
    rows["scorr"] = np.r_[rng.uniform(5, 60, half), -5 * (1 - rng.random(half)) ** (-1 / 12)]
    many = replace(table, rows=rows, field=np.full(len(rows), table.field[0]))
    x, y = prior_line(many, 0.5)
    assert ((y > 0) & (y < 1)).all()
    assert (np.diff(y) >= 0).all()
    # bogus fall as the 13th power of the score; the sources that are there do not matter
    at = (x > 5) & (x < 12)
    density = 12 / 5 * (x[at] / 5) ** -13
    assert y[at] == pytest.approx(1 / 55 / (1 / 55 + density), rel=0.15)
    fewer = replace(many, rows=rows[half // 2 :], field=many.field[half // 2 :])
    assert np.array_equal(prior_line(fewer, 0.5)[1], y)
    odds = [value / (1 - value) for value in (prior_line(many, 0.2)[1], y)]
    assert odds[0] == pytest.approx(odds[1] / 4)


def test_arrays_answer_as_scikit_learn_does(table):
    model = fitted(table, FIT, 3)
    forest = as_arrays(model, table, (np.array([0.0, 1.0]), np.array([0.0, 1.0])), PRIOR)
    samples = samples_of(table)[table.known]
    # at the thresholds themselves, too: there a rounded threshold would send samples the other way
    edge = np.repeat(samples[:50], 3, axis=0)
    inner = forest.feature >= 0
    for k, (feature, threshold) in enumerate(
        zip(forest.feature[inner], forest.threshold[inner], strict=True)
    ):
        edge[k % len(edge), feature] = threshold
    for rows in (samples, edge):
        assert np.abs(predicted(*forest.walk(), rows) - model.predict_proba(rows)[:, 1]).max() < 1e-12


def test_equal_seeds_and_fields_give_equal_models(trained):
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in trained)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert {"card.json", "card.md", "model.npz", "golden.npz", "roc.png"} <= one.keys()


def test_the_card_says_what_it_must(trained):
    card = json.loads((trained[0] / "card.json").read_text())
    assert card["thresholds"].keys() == {"false_1pct", "false_0.1pct", "missed_1pct", "shipped"}
    assert card["thresholds"]["shipped"] == card["threshold"]
    held = card["metrics"]["test"]["telling"]
    assert held["added"]["auc"]["low"] <= held["added"]["auc"]["value"] <= held["added"]["auc"]["high"]
    assert held["added"]["auc"]["value"] > 0.85
    assert card["metrics"]["held_out"]["alerts"]["mpix"] == 10.0
    assert all((card["training"]["sha256"], card["licence"], card["software"]["scikit-learn"]))
    assert load_model(trained[0]).card == card


def test_golden_vectors_are_met(trained):
    model = load_model(trained[0])
    with np.load(trained[0] / "golden.npz", allow_pickle=False) as golden:
        raw = predicted(*model.forest.walk(), golden["samples"])
        assert len(raw) == 256
        assert np.abs(raw - golden["raw"]).max() < 1e-12
        rb = model.forest.probability(raw, golden["scorr"])
        assert np.abs(rb - golden["rb"]).max() < 1e-12
        assert np.ptp(golden["rb"]) > 0.5


def test_another_field_is_another_training_set(paths, tmp_path):
    digest = read_table(paths)[1]
    assert read_table(list(reversed(paths)))[1] == digest
    assert read_table(paths[1:])[1] != digest
    changed = [*paths[1:], write_field(tmp_path, 0, seed=1)]
    assert read_table(changed)[1] != digest


def test_the_command_trains_on_what_is_there(tmp_path):
    toml = tmp_path / "small.toml"
    toml.write_text("fields = 6\nchallengers = false\n[fit]\ntrees = 5\nthreads = 1\n")
    config = train_config(toml, {})
    for number in range(6):
        write_field(set_folder(tmp_path / "harvest", config.harvest, 1), number, n=30)
    words = ["train", str(tmp_path / "harvest"), "--out", str(tmp_path / "m"), "--config", str(toml)]
    done = CliRunner().invoke(app, [*words, "--no-draw", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trees"] == 5
    assert (tmp_path / "m" / "card.md").exists()


def test_too_little_is_refused_with_one_line(paths, tmp_path):
    config = TrainConfig(fields=FIELDS, fit=FIT)
    with pytest.raises(InputError, match="draw more"):
        train(paths[:2], tmp_path, config)
    with pytest.raises(ValueError, match="at least 6 fields"):
        TrainConfig(fields=3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_damaged_field_is_refused(paths, tmp_path, share):
    whole = paths[1].read_bytes()
    broken = tmp_path / "field00001.npz"
    broken.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"field00001\.npz: no harvested field"):
        read_table([broken])


def test_a_field_of_other_features_is_refused(paths, tmp_path):
    with np.load(paths[1], allow_pickle=False) as archive:
        arrays = dict(archive)
    other = tmp_path / "field00001.npz"
    np.savez(other, **arrays | {"definitions": np.array("0123456789abcdef")})
    with pytest.raises(InputError, match="holds features '0123456789abcdef'"):
        read_table([paths[0]], [other])


def test_one_class_or_one_field_is_too_little(paths, tmp_path):
    config = TrainConfig(fields=6, test_share=0.75, fit=FIT)
    with pytest.raises(InputError, match=r"1 fields with .* are too few"):
        train(paths[:6], tmp_path / "m", config)
    for path in paths[:8]:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        arrays["rows"]["real"] = True
        np.savez(tmp_path / path.name, **arrays)
    one_class = sorted(tmp_path.glob("field*.npz"))
    with pytest.raises(InputError, match="and 0 bogus candidates"):
        train(one_class, tmp_path / "m", replace(config, fields=8, test_share=0.3))


def test_a_folder_without_fields_is_named(paths, tmp_path):
    words = [
        "train",
        str(tmp_path / "harvest"),
        "--out",
        str(tmp_path / "m"),
        "--also",
        str(tmp_path / "typo"),
    ]
    done = CliRunner().invoke(app, [*words, "--no-draw"])
    assert "typo: holds no harvested field" in str(done.exception or done.output)


@pytest.mark.parametrize(
    ("made", "settings"),
    [
        *((FitConfig, {name: 0}) for name in ("trees", "min_samples_leaf", "threads", "flagged_share")),
        (FitConfig, {"folds": 1}),
        *((FitConfig, {"prior": value}) for value in (0.0, 1.0, float("nan"))),
        *((TrainConfig, {"false_per_chip": value}) for value in (-1.0, 0.0, float("nan"), float("inf"))),
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"name": "a b"}),
    ],
)
def test_settings_that_no_model_can_have_are_refused_at_once(made, settings):
    with pytest.raises(ValueError, match=r"must be|is no name"):
        made(**settings)


def test_scores_take_the_share_of_sources_at_the_top_between_pixels(table):
    model = fitted(table, FIT, 1)
    forest = as_arrays(model, table, (np.array([0.0, 1.0]), np.array([0.01, 0.99])), PRIOR)
    raw = predicted(*forest.walk(), samples_of(table)[table.known])
    told = forest.probability(raw, np.abs(table.rows["scorr"][table.known].astype(float)))
    assert walked(forest, table)[table.known] == pytest.approx(told, abs=1e-12)
