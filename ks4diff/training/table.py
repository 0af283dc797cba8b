"""A training set in memory: the rows of many fields, which belong together, and which are held out."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.products.errors import InputError
from ks4diff.products.features import definitions_hash
from ks4diff.training.harvest import CHANGES, NIGHT, ROW

HELD_OUT_SITE = "SSO"
FIRST_EXTRA = 100_000  # fields of other sets are numbered from here
ALERT_SCORE = 5.0  # |S_corr| of candidates that a run makes by default


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of fields: ``features`` float32 [n, 66], ``rows`` of `ROW`, ``field`` int32 [n] their fields.

    ``changes`` (of `CHANGES`, their "row" counted through all fields) and ``nights`` (of `NIGHT`) have
    ``change_field`` and ``night_field``; ``site`` is that of each field, by number.
    """

    features: np.ndarray
    rows: np.ndarray
    field: np.ndarray
    changes: np.ndarray
    change_field: np.ndarray
    nights: np.ndarray
    night_field: np.ndarray
    site: dict[int, str]

    @property
    def known(self) -> np.ndarray:
        """Bool [n]: rows whose stamp can be trusted; others get no score."""
        return np.isfinite(self.features[:, 0])

    @property
    def unflagged(self) -> np.ndarray:
        """Bool [n]: rows that could become alerts."""
        return (self.rows["flags"] & REJECTING_BITS) == 0

    def of_fields(self, fields: Sequence[int]) -> Table:
        """Return the rows, changes and nights of some fields; the changes' rows are counted anew."""
        keep = np.isin(self.field, fields)
        changes = self.changes[np.isin(self.change_field, fields)].copy()
        seen = changes["row"] >= 0
        changes["row"][seen] = (np.cumsum(keep) - 1)[changes["row"][seen]]
        return replace(
            self,
            features=self.features[keep],
            rows=self.rows[keep],
            field=self.field[keep],
            changes=changes,
            change_field=self.change_field[np.isin(self.change_field, fields)],
            nights=self.nights[np.isin(self.night_field, fields)],
            night_field=self.night_field[np.isin(self.night_field, fields)],
            site={field: site for field, site in self.site.items() if field in set(fields)},
        )

    def mpix(self) -> float:
        """Return the area that was searched for bogus, millions of pixels: each night once."""
        return float(self.nights["mpix"].sum())


class Searched(NamedTuple):
    """Images whose candidates may become alerts: their area (Mpix), and which rows and changes are theirs."""

    mpix: float
    nights: int
    rows: np.ndarray
    changes: np.ndarray


def searched(table: Table) -> Searched:
    """Return the images that were subtracted and not refused for their quality."""
    good = good_nights(table)
    nights = night_keys(table.night_field, table.nights["night"])[good]
    of = [
        np.isin(night_keys(fields, rows["night"]), nights)
        for fields, rows in ((table.field, table.rows), (table.change_field, table.changes))
    ]
    return Searched(float(table.nights["mpix"][good].sum()), int(good.sum()), *of)


def good_nights(table: Table) -> np.ndarray:
    """Return bool [nights]: those that were subtracted and not refused for their quality."""
    return (table.nights["mpix"] > 0) & (table.nights["quality"] != "fail")


def night_keys(fields: np.ndarray, nights: np.ndarray) -> np.ndarray:
    """Return one number for each exposure."""
    return fields.astype(np.int64) * 1000 + nights


def could_alert(table: Table) -> np.ndarray:
    """Return bool [n]: rows of images that may give alerts, that no flag rejects, of `ALERT_SCORE` and more.

    Rows of spoilt templates are none of them.
    """
    strong = np.abs(table.rows["scorr"]) >= ALERT_SCORE
    return searched(table).rows & table.unflagged & strong & (table.rows["round"] >= 0)


def read_table(paths: Sequence[Path], extra: Sequence[Path] = ()) -> tuple[Table, str]:
    """Return the table of harvested fields and 16 hex digits of the sha256 of all that is in it.

    Fields of ``extra`` files, of other sets, get numbers from `FIRST_EXTRA` on, in the order of their paths.

    Raises
    ------
    InputError
        When a file cannot be read or is none of a harvest.

    """
    names = ("features", "rows", "changes", "nights")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    of: dict[str, list[np.ndarray]] = {name: [] for name in names}
    site: dict[int, str] = {}
    digest, first = hashlib.sha256(), 0
    numbered = sorted((field_number(path), path) for path in paths)
    for number, path in [*numbered, *enumerate(sorted(extra), FIRST_EXTRA)]:
        one, site[number] = _read_field(path)
        one["changes"]["row"][one["changes"]["row"] >= 0] += first
        first += len(one["rows"])
        for name in names:
            digest.update(np.ascontiguousarray(one[name]).tobytes())
            parts[name].append(one[name])
            of[name].append(np.full(len(one[name]), number, dtype=np.int32))
    if not site:
        raise InputError("no field has been harvested")
    joined = {name: np.concatenate(parts[name]) for name in names}
    fields = {name: np.concatenate(of[name]) for name in names}
    group, is_extra = joined["nights"]["group"], fields["nights"] >= FIRST_EXTRA
    shared = np.setdiff1d(np.intersect1d(group[is_extra], group[~is_extra]), [""])
    if len(shared):
        raise InputError(f"{shared[0]} is in two sets: one would train on what another tests")
    table = Table(
        **joined,
        field=fields["rows"],
        change_field=fields["changes"],
        night_field=fields["nights"],
        site=site,
    )
    return table, digest.hexdigest()[:16]


def field_number(path: Path) -> int:
    """Return the number of the field whose file this is."""
    return int(path.stem.removeprefix("field"))


def _read_field(path: Path) -> tuple[dict[str, np.ndarray], str]:
    kinds = {"features": np.dtype(np.float32), "rows": ROW, "changes": CHANGES, "nights": NIGHT}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            one = {name: archive[name] for name in kinds}
            site, definitions = str(archive["site"]), str(archive["definitions"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: no harvested field: {error}") from None
    for name, kind in kinds.items():
        if one[name].dtype != kind:
            raise InputError(f"{path}: {name} is of another version of ks4diff; harvest it again")
    if definitions != definitions_hash():
        raise InputError(
            f"{path}: holds features {definitions[:16]!r}, this software has {definitions_hash()}; "
            "harvest it again"
        )
    return one, site


def split_fields(table: Table, seed: int, test_share: float) -> tuple[list[int], list[int], list[int]]:
    """Return (training, test, other site): numbers of fields, none in two.

    All nights of a field go together, and all fields of `HELD_OUT_SITE` are the third list; those of other
    sets train, or are in no list when they are of that site.
    """
    own = sorted(number for number in table.site if number < FIRST_EXTRA)
    other = [number for number in own if table.site[number] == HELD_OUT_SITE]
    rest = sorted(set(own) - set(other))
    extra = [n for n, site in table.site.items() if n >= FIRST_EXTRA and site != HELD_OUT_SITE]
    order = np.random.default_rng([seed, 71]).permutation(len(rest))
    n_test = round(test_share * len(rest))
    training = sorted(rest[k] for k in order[n_test:])
    return [*training, *sorted(extra)], sorted(rest[k] for k in order[:n_test]), other


def folds(fields: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return int [rows] the fold of each row, 0 to n-1: all rows of a field in one, folds alike in size."""
    numbers, counts = np.unique(fields, return_counts=True)
    order = np.random.default_rng([seed, 72]).permutation(len(numbers))
    size, fold = np.zeros(n), np.zeros(len(numbers), dtype=int)
    for k in order[np.argsort(-counts[order], kind="stable")]:
        fold[k] = int(size.argmin())
        size[fold[k]] += counts[k]
    return fold[np.searchsorted(numbers, fields)]


def balanced_weights(table: Table, flagged_weight: float) -> np.ndarray:
    """Return float64 [n], mean 1: real and bogus rows of equal total weight at every |S_corr|.

    Otherwise the score itself would tell them apart by the law that injections were drawn from. Flagged rows,
    which never become alerts, count ``flagged_weight`` as much as others.
    """
    own = np.where(table.unflagged, 1.0, flagged_weight)
    return equal_weights(table.rows["scorr"], table.rows["real"], own)


def equal_weights(scorr: np.ndarray, real: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return float64 [n], mean 1: ``own`` weights made equal in sum for both kinds at every |S_corr|.

    Bins of |S_corr| hold 5 % of all rows and weigh the geometric mean of their two kinds; rows of a bin with
    one kind only weigh nothing.
    """
    score = np.log(np.abs(scorr).astype(np.float64))
    edges = np.quantile(score, np.linspace(0, 1, 21)[1:-1])
    at = np.searchsorted(edges, score)
    out = np.zeros(len(score))
    for k in range(20):
        total = [own[(at == k) & (real == kind)].sum() for kind in (False, True)]
        if min(total) <= 0:
            continue
        share = np.sqrt(total[0] * total[1])
        for kind in (False, True):
            rows = (at == k) & (real == kind)
            out[rows] = own[rows] * share / total[int(kind)]
    return out / out.mean() if out.any() else np.ones(len(score))
