"""Exposures into the history: names that stay, a past that only looks back, nothing lost; both databases."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from ks4diff.io.history import History
from ks4diff.io.packets import alert_record, container_bytes
from ks4diff.pipeline.associate import associate_exposure
from ks4diff.stages.past import HistoryConfig
from ks4diff.stages.sky_cells import separation_arcsec, unit_vectors
from tests import sn2021rhu
from tests.seasons import CONFIG, HOME, MJD, at, contents, coverage, put, season, sightings, told


@pytest.fixture
def history(tmp_path):
    return History(None, tmp_path)


def names_of(history):
    with history.reading() as reader:
        return {row["candid"]: row["object_id"] for row in reader.detections()}


class TestNames:
    def test_a_repeat_has_the_name_of_the_first(self, history, tmp_path):
        alerts = put(history, tmp_path, sightings(0, MJD, *at(0)), sightings(1, MJD + 1, *at(0.2)))
        first, second = alerts.values()
        assert first.object_id == second.object_id
        assert first.object_id.startswith("KS4-25")
        assert (first.alert_type, second.alert_type) == ("new", "update")

    def test_every_candidate_is_kept_flagged_or_not(self, history, tmp_path):
        rejected = np.array([False, True, True, False])
        one = sightings(
            0, MJD, *at([0, 0.3, 60, 90]), rejected=rejected, accepted=[True, False, False, False]
        )
        put(history, tmp_path, one)
        with history.reading() as reader:
            rows, objects = reader.detections(), reader.objects()
        assert len(rows) == 4
        assert [row["object_id"] is None for row in rows] == [False, False, True, True]
        assert [(row["n_detections"], row["n_rejected"], row["n_alerts"]) for row in objects] == [(1, 1, 1)]

    def test_what_was_too_weak_before_is_the_past_of_what_is_alerted_later(self, history, tmp_path):
        weak = sightings(0, MJD, *at(0.1), accepted=False)
        alert = put(history, tmp_path, weak, sightings(1, MJD + 1, *at(0)))
        (past,) = next(iter(alert.values())).history.detections
        assert past.exposure == weak.exposure
        assert not past.alerted
        summary = next(iter(alert.values())).history.object
        assert (summary.n_detections, summary.first_mjd) == (2, MJD)

    def test_without_a_date_or_a_position_nothing_is_associated(self, history, tmp_path):
        nowhere = sightings(0, MJD, [np.nan], [np.nan])
        undated = sightings(1, None, *at(0))
        alerts = put(history, tmp_path, nowhere, undated, sightings(2, MJD, *at(0)))
        assert [alert.object_id is None for alert in alerts.values()] == [True, True, False]
        assert alert_record(next(iter(alerts.values())))["objectId"] is None
        assert len(contents(history)[2]) == 3

    def test_two_objects_in_one_cell_have_two_names(self, history, tmp_path):
        # 0.06" apart and 0.01 of a gate wide: what a floor of 0.2" forbids
        narrow = replace(CONFIG, associate=replace(CONFIG.associate, floor_arcsec=0.0, one_source_arcsec=0.0))
        one = sightings(0, MJD, *at([0.0, 0.02, 0.04]), err=1e-4)
        alerts = associate_exposure(history, one, tmp_path, narrow).alerts
        assert len({alert.object_id for alert in alerts}) == 3


class TestThePast:
    def test_looks_back_only(self, history, tmp_path):
        where = coverage(*HOME)
        nights = [sightings(k, MJD + k, *at(0.1 * k), where=where) for k in (0, 1, 2)]
        empty = sightings(9, MJD + 1.5, *at([]), where=where)
        later = sightings(8, MJD + 2.5, *at([]), where=where)
        alerts = put(history, tmp_path, nights[0], nights[1], empty, later, nights[2])
        pasts = [alert.history for alert in alerts.values()]
        assert [[row.mjd for row in past.detections] for past in pasts] == [[], [MJD], [MJD, MJD + 1]]
        assert [[row.mjd for row in past.limits] for past in pasts] == [[], [], [MJD + 1.5]]
        assert pasts[2].limits[0].diffmaglim == 22.5
        assert [past.object.n_covered for past in pasts] == [1, 2, 4]
        assert [past.object.n_detections for past in pasts] == [1, 2, 3]
        assert (pasts[2].object.first_mjd, pasts[2].object.last_mjd) == (MJD, MJD + 2)
        assert separation(pasts[2].object, *at(0.1)) < 1e-4
        assert pasts[2].object.position_err_arcsec == pytest.approx(0.1 / 3**0.5)

    def test_a_flagged_candidate_is_no_limit(self, history, tmp_path):
        where = coverage(*HOME)
        alerts = put(
            history,
            tmp_path,
            sightings(0, MJD, *at(0), where=where),
            sightings(1, MJD + 1, *at(0.1), rejected=True, where=where),
            sightings(2, MJD + 2, *at(0), where=where),
        )
        past = list(alerts.values())[-1].history
        assert past.limits == ()
        assert len(past.detections) == 1
        assert past.object.n_rejected == 1

    def test_a_failed_chip_has_no_limit(self, history, tmp_path):
        failed = sightings(0, MJD, *at([]), where=coverage(*HOME))
        failed = replace(failed, chips=(replace(failed.chips[0], quality="fail"),))
        (alert,) = put(history, tmp_path, failed, sightings(1, MJD + 1, *at(0))).values()
        assert alert.history.limits == ()
        assert alert.history.object.n_covered == 2

    def test_places_off_the_chip_have_no_limit(self, history, tmp_path):
        far = coverage(HOME[0] + 0.5, HOME[1])
        alerts = put(history, tmp_path, sightings(0, MJD, *at([]), where=far), sightings(1, MJD + 1, *at(0)))
        assert next(iter(alerts.values())).history.limits == ()

    def test_is_as_long_as_asked_for(self, history, tmp_path):
        config = replace(CONFIG, history=HistoryConfig(days=2.5, detections=2))
        for k in range(4):
            alerts = associate_exposure(history, sightings(k, MJD + k, *at(0)), tmp_path, config).alerts
        assert [row.mjd for row in alerts[0].history.detections] == [MJD + 1, MJD + 2]
        assert alerts[0].history.object.n_detections == 4
        put(history, tmp_path)

    def test_fluxes_that_are_no_njy_are_not_told_as_such(self, history, tmp_path):
        counts = sightings(0, MJD, *at(0))
        counts = replace(counts, chips=(replace(counts.chips[0], flux_unit="count"),))
        past = list(put(history, tmp_path, counts, sightings(1, MJD + 1, *at(0))).values())[-1].history
        assert past.detections == ()
        assert past.object.n_detections == 2


class TestAgain:
    def test_a_rerun_changes_nothing(self, history, tmp_path):
        run = season(3, n_sources=30, side_deg=0.1, nights=2).exposures
        first = put(history, tmp_path, *run)
        before = contents(history)
        again = put(history, tmp_path, run[0], run[-1], run[5], *run)
        assert {k: told(a) for k, a in again.items()} == {k: told(a) for k, a in first.items()}
        last = run[-1].table["candid"][0]
        assert record_bytes(again[last]) == record_bytes(first[last])
        assert contents(history) == before

    def test_a_rerun_that_finds_less_leaves_no_empty_object(self, history, tmp_path):
        put(history, tmp_path, sightings(0, MJD, *at([0, 30])), sightings(1, MJD + 1, *at([0])))
        put(history, tmp_path, sightings(0, MJD, *at([0.05])))
        with history.reading() as reader:
            objects = reader.objects()
        assert [row["n_detections"] for row in objects] == [2]

    def test_a_rerun_with_moved_positions_keeps_the_name(self, history, tmp_path):
        first = put(history, tmp_path, sightings(0, MJD, *at(0)))
        again = put(history, tmp_path, sightings(0, MJD, *at(0.4)))
        assert [alert.object_id for alert in again.values()] == [a.object_id for a in first.values()]

    def test_a_rerun_gives_the_same_name_wherever_the_object_has_moved(self, history, tmp_path):
        first = sightings(0, MJD, *at(0), err=0.3)
        later = [sightings(1, MJD + 1, *at(1.2), err=0.05), sightings(2, MJD + 2, *at(2.1), err=0.05)]
        alerts = put(history, tmp_path, first, *later)
        assert len({alert.object_id for alert in alerts.values()}) == 1
        (again,) = put(history, tmp_path, first).values()  # now 1.6" from the mean of the others
        assert told(again) == told(alerts[again.candid])
        assert len(contents(history)[1]) == 1

    def test_an_object_without_an_alert_is_let_go(self, history, tmp_path):
        put(history, tmp_path, sightings(0, MJD, *at(0), accepted=False), sightings(1, MJD + 1, *at(0)))
        put(history, tmp_path, sightings(1, MJD + 1, *at(0), rejected=True))
        assert set(names_of(history).values()) == {None}
        assert contents(history)[1] == []

    def test_what_comes_late_joins_the_object_and_sees_only_what_was_before(self, history, tmp_path):
        alerts = put(
            history,
            tmp_path,
            sightings(0, MJD, *at(0)),
            sightings(2, MJD + 2, *at(0)),
            sightings(1, MJD + 1, *at(0.1)),
        )
        late = list(alerts.values())[-1]
        assert len({alert.object_id for alert in alerts.values()}) == 1
        assert [row.mjd for row in late.history.detections] == [MJD]
        assert late.history.object.last_mjd == MJD + 1
        earliest = put(history, tmp_path, sightings(3, MJD - 1, *at(0.1)))
        assert next(iter(earliest.values())).object_id == late.object_id
        assert contents(history)[1][0]["first_mjd"] == MJD - 1


def separation(summary, ra, dec):
    return float(separation_arcsec(unit_vectors(summary.ra, summary.dec), unit_vectors(ra, dec)[0]))


def record_bytes(alert):
    return container_bytes([alert_record(alert)])


class TestTheSeason:
    """Three nights of variables, among movers and spurious detections, on RA 0 and on a pole."""

    @pytest.mark.parametrize(
        ("seed", "ra", "dec", "n", "side"), [(1, 359.95, -30.0, 450, 0.35), (2, 77.0, -89.95, 150, 0.2)]
    )
    def test_repeats_are_of_the_right_object(self, seed, ra, dec, n, side, history, tmp_path):
        drawn = season(seed, n_sources=n, side_deg=side, ra=ra, dec=dec)
        put(history, tmp_path, *drawn.exposures)
        names = names_of(history)
        of_source, of_object = defaultdict(Counter), defaultdict(set)
        for one, truth in zip(drawn.exposures, drawn.truth, strict=True):
            for number, source in zip(one.table["candid"].tolist(), truth.tolist(), strict=True):
                if source >= 0:
                    of_source[source][names[number]] += 1
                    of_object[names[number]].add(source)
        repeats = sum(found.total() - 1 for found in of_source.values())
        right = sum(found.most_common(1)[0][1] - 1 for found in of_source.values())
        assert repeats > 8 * n
        assert right / repeats >= 0.995
        assert None not in of_object
        lone = [source for source in of_source if drawn.nearest[source] > 2]
        assert len(lone) > 0.9 * n
        assert [source for source in lone if len(of_source[source]) > 1] == []  # split
        merged = {name for name, sources in of_object.items() if len(sources) > 1}
        assert [source for source in lone if merged & set(of_source[source])] == []


class TestSn2021rhu:
    def test_is_one_object_with_its_light_curve(self, realdata, history, tmp_path):
        packets, exposures = sn2021rhu.packets(realdata), sn2021rhu.exposures(realdata)
        assert len(packets) == 34
        in_time = sorted(exposures, key=lambda one: one.mjd)
        alerts = list(put(history, tmp_path, *in_time).values())
        assert {alert.object_id for alert in alerts} == {alerts[0].object_id}
        assert len(contents(history)[1]) == 1
        curve = alerts[-1].history.detections
        assert [row.mjd for row in curve] == [one.mjd for one in in_time[:-1]]
        truth = {p["candidate"]["jd"] - 2400000.5: p["candidate"] for p in packets}
        for row in curve:
            assert row.magpsf == pytest.approx(truth[row.mjd]["magpsf"], abs=1e-4)
            assert row.filter == sn2021rhu.BANDS[truth[row.mjd]["fid"]]
        assert min(row.magpsf for row in curve if row.filter == "r") < 12.6
        summary = alerts[-1].history.object
        assert summary.n_detections == 34
        offsets = [separation(summary, [p["candidate"]["ra"]], [p["candidate"]["dec"]]) for p in packets]
        assert max(offsets) < 0.5

    def test_is_the_same_object_in_any_order(self, realdata, history, tmp_path):
        exposures = sn2021rhu.exposures(realdata)
        assert [one.mjd for one in exposures] != sorted(one.mjd for one in exposures)
        put(history, tmp_path, *exposures)
        (found,) = contents(history)[1]
        assert found["n_detections"] == 34
        assert found["last_mjd"] - found["first_mjd"] > 60
