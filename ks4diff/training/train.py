"""From harvested fields to a model with its card: split, fit, calibrate, measure, package."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ks4diff.io.models import NAME, save_arrays, save_model
from ks4diff.pipeline.config import build_config, read_toml
from ks4diff.products.errors import InputError
from ks4diff.products.model import RbModel
from ks4diff.training.card import GOLDEN, card_of, golden_vectors
from ks4diff.training.false_alerts import alerts_at, lowest_threshold
from ks4diff.training.fit import (
    CHALLENGERS,
    FitConfig,
    as_arrays,
    fitted,
    lines,
    raw_scores,
    scores_across,
    walked,
)
from ks4diff.training.harvest import HarvestConfig, harvest, set_folder
from ks4diff.training.measures import slices, telling
from ks4diff.training.page import write_page
from ks4diff.training.table import FIRST_EXTRA, HELD_OUT_SITE, Table, read_table, split_fields

log = logging.getLogger(__name__)

DOUBTED = (0.1, 0.9)  # scores of real and of bogus rows whose labels are worth a look
DOUBTS = "doubts.csv"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A model: what it is trained on, how, and how many false alerts it may let through."""

    name: str = "ks4rb"
    version: str = "1.0.0"
    seed: int = 1
    fields: int = 48  # a sixth of them of the site that is held out
    test_share: float = 0.3  # of the other fields
    false_per_chip: float = 5.0  # alerts that a full chip may bring, of 9216 x 9232 pixels
    challengers: bool = True
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        """Refuse what would fail only after hours of drawing fields."""
        if self.fields < 6 or not 0 < self.test_share < 1:
            raise ValueError(
                f"at least 6 fields and a test_share of 0 to 1, got {self.fields}, {self.test_share}"
            )
        if self.seed < 0 or not 0 < self.false_per_chip < np.inf:
            raise ValueError(
                f"seed must be 0 or more, false_per_chip above 0, got {self.seed}, {self.false_per_chip}"
            )
        for name in (self.name, self.version):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name[:40]!r} is no name of letters, digits, . _ and -")


def train_config(path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a TOML file with ``overrides`` on top.

    Raises
    ------
    ConfigError
        When the file cannot be read, or a key is unknown, of the wrong type or out of its range.

    """
    return build_config(TrainConfig, read_toml(path) | overrides, str(path) if path else "train")


class Held(NamedTuple):
    """Fields that the forest has not seen, with the scores that it gives them."""

    table: Table
    score: np.ndarray


def harvest_all(folder: Path, config: TrainConfig, processes: int) -> list[Path]:
    """Return the files of all fields of a configuration, drawn by some processes unless they are there."""
    numbers = range(config.fields)
    own = set_folder(folder, config.harvest, config.seed)
    missing = [n for n in numbers if not (own / f"field{n:05d}.npz").exists()]
    log.info("%s: %d of %d fields to draw", own, len(missing), config.fields)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(harvest, folder, config.harvest, config.seed, n) for n in missing]
        for done in as_completed(jobs):
            log.info("drawn: %s", done.result())
    return [own / f"field{n:05d}.npz" for n in numbers]


def harvested(folder: Path, config: TrainConfig) -> list[Path]:
    """Return the files of the configuration's fields that are there already.

    Raises
    ------
    InputError
        When there is none.

    """
    own = set_folder(folder, config.harvest, config.seed)
    there = [path for n in range(config.fields) if (path := own / f"field{n:05d}.npz").exists()]
    if not there:
        raise InputError(f"{own}: holds no field of this configuration and seed")
    return there


def train(paths: Sequence[Path], out: Path, config: TrainConfig, *, extra: Sequence[Path] = ()) -> RbModel:
    """Train on harvested fields and write the model, its card, golden vectors and page into ``out``.

    Fields of ``extra`` files, of other settings but of the same features, are for training only.

    Raises
    ------
    InputError
        When fields cannot be read, or too few of them are there to be split, or hold one class only.

    """
    table, digest = read_table(paths, extra)
    split = split_fields(table, config.seed, config.test_share)
    if not all(split) or split[0][0] >= FIRST_EXTRA:
        raise InputError(
            f"{len(table.site)} fields do not split into training, test and {HELD_OUT_SITE}; draw more"
        )
    training, test, other = (table.of_fields(fields) for fields in split)
    _can_train(training)
    log.info("%d fields train, %d test, %d of the other site", *(len(fields) for fields in split))
    across = scores_across(training, config.fit, config.seed)
    model = fitted(training, config.fit, config.seed)
    # extra fields are of other skies: how many bogus they have, and how well these are told, counts for none
    usual = training.field < FIRST_EXTRA
    ordinary = training.of_fields([number for number in split[0] if number < FIRST_EXTRA])
    forest = as_arrays(model, training, *lines(ordinary, across[usual], config.fit.prior))
    across = forest.probability(across, training.rows["scorr"])
    both = table.of_fields([*split[1], *split[2]])
    held = {
        name: Held(part, walked(forest, part))
        for name, part in (("test", test), ("other_site", other), ("held_out", both))
    }
    threshold = lowest_threshold(*held["held_out"], config.false_per_chip)
    metrics = _metrics(held, threshold, config)
    metrics["across_training_fields"] = {
        "telling": telling(training, across, config.fit.prior),
        "alerts": alerts_at(training, across, threshold),
    }
    if config.challengers:
        metrics["challengers"] = _challengers(training, test, config)
        metrics["without_prior"] = telling(test, raw_scores(model, test), config.fit.prior)
    doubts = write_doubts(paths[0].parent / DOUBTS, training, across)
    card = card_of(
        config=asdict(config),
        split=dict(zip(("training", "test", "other_site"), split, strict=True)),
        table=training,
        model=model,
        held=held["held_out"],
        threshold=threshold,
        metrics=metrics | {"doubted_labels": doubts},
        digest=digest,
    )
    made = save_model(out, forest, card)
    save_arrays(out / GOLDEN, golden_vectors(model, forest, both))
    write_page(out, made, held)
    return made


def _can_train(training: Table) -> None:
    """Refuse a table without two fields of its own, for `scores_across`, and both classes."""
    own = [number for number in training.site if number < FIRST_EXTRA]
    real = training.rows["real"][training.known]
    if len(own) < 2 or real.all() or not real.any():
        counts = f"{int(real.sum())} real and {int((~real).sum())} bogus candidates"
        raise InputError(f"{len(own)} fields with {counts} are too few to train on; draw more")


def _metrics(held: dict[str, Held], threshold: float, config: TrainConfig) -> dict[str, Any]:
    return {
        name: {
            "telling": telling(*one, config.fit.prior),
            "slices": slices(*one, threshold),
            "alerts": alerts_at(*one, threshold),
            "alerts_by_rules": alerts_at(one.table, one.table.rows["rules"].astype(np.float64), 0.5),
        }
        for name, one in held.items()
    }


def _challengers(training: Table, test: Table, config: TrainConfig) -> dict[str, Any]:
    """Return the measures of other classifiers, trained and tested on the same fields; as they answer."""
    return {
        kind: telling(
            test, raw_scores(fitted(training, config.fit, config.seed, kind), test), config.fit.prior
        )
        for kind in CHALLENGERS
    }


def write_doubts(path: Path, table: Table, score: np.ndarray) -> dict[str, int]:
    """Write the rows whose labels forests doubt that never saw their fields; return how many of each kind."""
    rows = table.rows
    real = rows["real"] & (score < DOUBTED[0])
    bogus = ~rows["real"] & (score > DOUBTED[1])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["field", "night", "round", "x", "y", "tag", "scorr", "flags", "score"])
        for k in np.flatnonzero(real | bogus):
            row = rows[k]
            place = [round(float(row[name]), 2) for name in ("x", "y")]
            what = (row["tag"], round(float(row["scorr"]), 2), row["flags"], round(float(score[k]), 4))
            writer.writerow([table.field[k], row["night"], row["round"], *place, *what])
    return {"real": int(real.sum()), "bogus": int(bogus.sum()), "of": len(rows)}
