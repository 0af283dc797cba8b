"""A model that is asked for scores candidates, and files and packets tell of it."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from ks4diff.cli.main import app
from ks4diff.io.packets import read_container
from ks4diff.pipeline.rb import RULES, features_id, model_for, model_id, threshold
from ks4diff.products.features import VECTOR_NAME
from ks4diff.products.model import RB_FLAGS
from ks4diff.stages.score import RULES_THRESHOLD, RULES_VERSION, ScoreConfig
from tests.forests import tiny_model


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return (model, candidates table, its header, alert records) of the shipped pair by a tiny model."""
    folder = tmp_path_factory.mktemp("rb")
    model = tiny_model(folder / "tiny")
    (folder / "a.toml").write_text(f'[score]\nmodel = "{folder / "tiny"}"\n')
    pair = [f"templates/sample/AKB13475I{n}.fits" for n in ("0096", "0028")]
    options = ["--config", str(folder / "a.toml"), "--min-rb", "0", "--out", str(folder / "out")]
    done = CliRunner().invoke(app, ["subtract", *pair, *options])
    assert done.exit_code == 0, done.output
    table, header = fits.getdata(folder / "out" / "candidates.fits", 1, header=True)
    return model, table, header, read_container(folder / "out" / "alerts.avro").records


def test_the_table_holds_scores_flags_reasons_and_the_model(told):
    model, table, header, _ = told
    assert (header["RBMODEL"], header["RBFEAT"]) == (model.version, VECTOR_NAME)
    known = np.isfinite(table["rb"])
    assert known.any()
    assert ((table["rb"][known] >= 0) & (table["rb"][known] <= 1)).all()
    masked = next(flag.bit for flag in RB_FLAGS if flag.name == "masked")
    assert (((table["rb_flags"] & masked) != 0) == ~known).all()
    for reasons, has in zip(table["rb_reasons"], known, strict=True):
        names = [reason[:-1] for reason in reasons.split(",") if reason]
        assert len(names) == (3 if has else 0)
        assert set(names) <= set(model.features)


def test_packets_hold_the_same(told):
    model, table, _, records = told
    assert records
    rows = {round(float(row["x"]), 2): row for row in table}
    for record in records:
        seen = record["candidate"]
        row = rows[round(seen["x"], 2)]
        assert seen["rb"] == pytest.approx(row["rb"], abs=1e-6)
        of_model = [seen[name] for name in ("rbversion", "rb_features", "rbthreshold")]
        assert of_model == [model.version, VECTOR_NAME, 0]
        assert seen["rb_flags"] == [flag.name for flag in RB_FLAGS if row["rb_flags"] & flag.bit]
        assert ",".join(seen["rb_reasons"]) == row["rb_reasons"]


def test_what_is_asked_for_is_used(told, tmp_path):
    rules = ScoreConfig(model=RULES)
    assert model_for(RULES) is None
    assert (model_id(rules), features_id(rules), threshold(rules, None)) == (
        RULES_VERSION,
        None,
        RULES_THRESHOLD,
    )
    tiny = ScoreConfig(model=str(tmp_path / "again"))
    model = tiny_model(tmp_path / "again")
    assert (model_id(tiny), features_id(tiny)) == (model.version, VECTOR_NAME)
    assert (threshold(tiny, None), threshold(tiny, 0.9)) == (model.threshold, 0.9)
