"""Harvested fields: tags against made-up truth, and a small field drawn, subtracted and tagged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")

from ks4diff.products.candidates import empty_table
from ks4diff.stages.inject import INJECTED
from ks4diff.stages.sim.artefacts import ARTEFACT
from ks4diff.stages.sim.night import TRUTH
from ks4diff.training.harvest import HarvestConfig, harvest, set_digest
from ks4diff.training.skies import SITES, SkiesConfig, field_config, night_config
from ks4diff.training.table import read_table
from ks4diff.training.tags import BOGUS, REAL, TagsConfig, tag_candidates

FWHM = 3.0


def candidates(*places):
    """Return a table of candidates at (x, y, sign), 100 px from saturated pixels."""
    table = empty_table(len(places))
    for row, (x, y, sign) in zip(table, places, strict=True):
        row["x"], row["y"], row["is_positive"], row["saturated_distance"] = x, y, sign > 0, 100.0
    return table


def truth(sources=(), artefacts=(), struck=()):
    """Return a truth of sources (kind, x, y, mag, S_corr), artefact rows and struck (x, y)."""
    rows = np.zeros(len(sources), TRUTH)
    for row, (kind, x, y, mag, expected) in zip(rows, sources, strict=True):
        row["kind"], row["x"], row["y"], row["mag"], row["expected_scorr"] = kind, x, y, mag, expected
    found = np.zeros(len(artefacts), ARTEFACT)
    for row, (kind, x0, x1, y0, y1, angle) in zip(found, artefacts, strict=True):
        row["kind"], row["x0"], row["x1"], row["y0"], row["y1"], row["angle"] = kind, x0, x1, y0, y1, angle
    return {
        "sources": rows,
        "artefacts": found,
        "struck": np.array([(y, x) for x, y in struck], dtype=np.int32).reshape(-1, 2),
    }


def tagged(table, about, injected=None):
    added = np.zeros(0, INJECTED) if injected is None else injected
    return tag_candidates(table, about, added, TagsConfig(), fwhm=FWHM, exptime_s=120.0)


def test_each_kind_is_told():
    about = truth(
        [
            (b"variable", 100, 100, 19, 30.0),
            (b"fading", 200, 100, 99, -20.0),
            (b"star", 300, 100, 18, np.nan),
        ],
        [(b"trail", 0, 400, 196, 204, 0.0), (b"bad_column", 350, 351, 0, 400, 0.0)],
        [(50, 50), (51, 50)],
    )
    at = [
        (100.5, 100, 1),
        (200, 100, -1),
        (302, 100, 1),
        (120, 203, 1),
        (351, 300, 1),
        (52, 51, 1),
        (20, 20, 1),
    ]
    tags = tagged(candidates(*at), about).tag
    assert tags.tolist() == ["variable", "fading", "star", "trail", "defect", "cosmic", "noise"]
    assert set(tags) <= {*REAL, *BOGUS}


def test_a_change_of_the_other_sign_is_none_and_lobes_beside_one_are_unclear():
    about = truth([(b"hostless", 100, 100, 19, 30.0)])
    tags = tagged(candidates((100, 100, -1), (105, 100, 1), (109, 100, 1)), about)
    assert tags.tag.tolist() == ["unclear", "unclear", "noise"]
    assert tags.changes["row"].tolist() == [-1]


def test_the_stronger_of_two_changes_takes_the_candidate():
    injected = np.zeros(2, INJECTED)
    injected["x"], injected["y"], injected["snr"], injected["place"] = (100, 101), 100, (6.0, 12.0), (0, 2)
    tags = tagged(candidates((100.4, 100, 1)), truth(), injected)
    assert tags.tag.tolist() == ["added_galaxy"]
    assert tags.changes["row"].tolist() == [0, -1]
    assert tags.changes["expected"].tolist() == [12.0, 6.0]


def test_a_change_too_weak_for_its_candidate_leaves_it_unclear():
    tags = tagged(candidates((100, 100, 1)), truth([(b"hosted", 100, 100, 23, 1.0)]))
    assert tags.tag.tolist() == ["unclear"]


def test_fields_are_their_own_and_nights_differ():
    config = SkiesConfig()
    one, again, other = (field_config(config, 1, n) for n in (3, 3, 4))
    assert one == again
    assert (one.seed, one.fields, one.night) != (other.seed, other.fields, other.night)
    assert [field_config(config, 1, n).site for n in range(6)] == list(SITES)
    nights = [night_config(config, one, k).detector for k in range(4)]
    assert len({night.cosmic_rays_mpix for night in nights}) == 4
    assert min(night.cosmic_rays_mpix for night in nights) >= 30
    # the template has the trails of its own time, not as many as are wanted to learn from
    assert one.detector.trails < config.trails == nights[0].trails


SMALL = HarvestConfig(
    skies=SkiesConfig(size=(512, 512), nights=2, density_deg2=(30_000.0, 40_000.0)),
    rounds=2,
    spoilt_share=1.0,
)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harvest")
    path = harvest(folder, SMALL, 1, 0)
    return folder, path, read_table([path])[0]


def test_a_drawn_field_has_rows_of_all_its_nights(field):
    _, _, table = field
    assert table.nights["reason"].tolist() == ["", ""]
    assert table.mpix() == pytest.approx(2 * 0.512**2)
    rows = table.rows
    assert set(rows["night"]) == {0, 1}
    assert set(rows["round"]) == {-1, 0, 1}
    assert set(np.unique(rows["tag"])) <= {*REAL, *BOGUS}
    assert (rows["real"] == np.isin(rows["tag"], REAL)).all()
    assert (~rows["real"][rows["round"] == -1]).all()
    # later rounds show the same bogus again: only what was added counts
    assert np.char.startswith(rows["tag"][rows["round"] == 1], "added_").all()
    assert table.features.shape == (len(rows), 66)


def test_candidates_of_changes_lie_where_these_are(field):
    _, _, table = field
    changes = table.changes[table.changes["row"] >= 0]
    rows = table.rows[changes["row"]]
    assert len(changes) > 5
    assert (rows["tag"] == changes["tag"]).all()
    assert (rows["night"] == changes["night"]).all()
    away = np.hypot(rows["x"] - changes["x"], rows["y"] - changes["y"])
    assert (away < TagsConfig().match_pix + changes["streak"] / 2).all()


def test_what_was_added_brightly_is_found(field):
    _, _, table = field
    changes = table.changes
    bright = np.char.startswith(changes["tag"], "added_") & (changes["expected"] > 10)
    assert bright.sum() >= 5
    assert (changes["row"][bright] >= 0).mean() >= 0.8


def test_a_field_is_drawn_once(field):
    folder, path, _ = field
    before = path.stat().st_mtime_ns
    assert harvest(folder, SMALL, 1, 0) == path
    assert path.stat().st_mtime_ns == before


def test_another_configuration_is_another_set():
    digests = {
        set_digest(SMALL, 1),
        set_digest(SMALL, 2),
        set_digest(replace(SMALL, rounds=1), 1),
        set_digest(replace(SMALL, skies=SkiesConfig()), 1),
    }
    assert len(digests) == 4
