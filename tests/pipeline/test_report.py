"""The report has the contract's keys and is JSON whatever its numbers are."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from ks4diff.pipeline.report import ChipReport, RunReport, Stopwatch, peak_rss_mb

RUN_KEYS = {"schema", "software", "config_digest", "exposure", "night", "site", "filter"}
RUN_KEYS |= {"seconds_total", "peak_rss_mb", "chips"}
CHIP_KEYS = {"chip", "status", "reason", "seconds", "n_stars", "astrometric_rms_pix", "flux_scale"}
CHIP_KEYS |= {"seeing_arcsec", "template_seeing_arcsec", "template_ids", "coverage", "masked_fraction"}
CHIP_KEYS |= {"scorr_std", "limiting_mag", "n_candidates", "n_alerts", "dropped", "quality"}
CHIP_KEYS |= {"quality_reasons"}
FIELD_KEYS = {"zeropoint", "astrometric_rms_cells", "astrometric_error_worst", "astrometric_bad_cells"}
FIELD_KEYS |= {"flux_scale_range", "flux_scale_error_worst", "amplifier_factors", "amplifier_levels"}
FIELD_KEYS |= {"limiting_mag_cells", "scale_left", "scale_left_error", "star_rms", "star_dipoles"}
FIELD_KEYS |= {"background_range", "psf_error", "template_psf_error", "elongation", "template_elongation"}


def report(**facts):
    chip = ChipReport(chip="0", status="ok", **facts)
    return RunReport(
        software="ks4diff 0",
        config_digest="d",
        exposure="e",
        night=None,
        site=None,
        filter=None,
        seconds_total=1.5,
        peak_rss_mb=100.0,
        chips=(chip,),
    )


def test_the_contracts_keys_are_all_there():
    values = report().to_dict()
    assert set(values) >= RUN_KEYS
    assert set(values["chips"][0]) >= CHIP_KEYS | FIELD_KEYS


def test_cells_without_stars_are_null():
    text = report(astrometric_rms_cells=((0.03, float("nan")), (0.04, 0.05))).to_json()
    assert json.loads(text)["chips"][0]["astrometric_rms_cells"] == [[0.03, None], [0.04, 0.05]]


def test_what_is_not_finite_is_null():
    text = report(scorr_std=float("nan"), limiting_flux=float("inf"), seconds={"a": float("-inf")}).to_json()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    chip = values["chips"][0]
    assert (chip["scorr_std"], chip["limiting_flux"], chip["seconds"]) == (None, None, {"a": None})
    assert text.endswith("}\n")


def test_tuples_are_lists():
    chip = report(template_ids=("a", "b"), quality_reasons=()).to_dict()["chips"][0]
    assert (chip["template_ids"], chip["quality_reasons"]) == (["a", "b"], [])


def test_reports_are_not_shared():
    one = report()
    one.chips[0].dropped["x"] = 1
    assert report().chips[0].dropped == {}
    assert replace(one, exposure="f").chips is one.chips


def test_a_stopwatch_adds_up_and_tells_of_failures_too():
    clock = Stopwatch()
    for _ in range(2):
        with clock.step("a"):
            time.sleep(0.02)
    with pytest.raises(KeyError), clock.step("b"):
        raise KeyError
    assert 0.04 <= clock.seconds["a"] < 1
    assert set(clock.seconds) == {"a", "b"}


def test_peak_memory_is_in_megabytes():
    assert 20 < peak_rss_mb() < 20_000
