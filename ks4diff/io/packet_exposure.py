"""The message that an exposure is done: consumers tell silence from failure by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ks4diff.io.packet_history import Record, plain
from ks4diff.io.packet_schemas import EXPOSURE_VERSION
from ks4diff.products.alert_ids import digest_of, exposure_number


def exposure_record(
    report: Mapping[str, Any],
    *,
    mjd: float | None = None,
    exptime: float | None = None,
    completed: float | None = None,
) -> Record:
    """Return the message that an exposure is done, whether or not it gave alerts.

    Parameters
    ----------
    report
        The exposure's report.json, as a dictionary.
    mjd
        Mid-exposure, UTC; None where no chip could be read.
    exptime
        Seconds.
    completed
        When it was done, MJD UTC.

    """
    chips = [_chip(chip) for chip in report["chips"]]
    done = [chip for chip in chips if chip["status"] == "ok"]
    tried = [chip for chip in report["chips"] if chip.get("reason") != "no file with this chip"]
    verdicts = [chip["quality"] for chip in done if chip["quality"] is not None]
    coverage = [chip["coverage"] for chip in done if chip["coverage"] is not None]
    depth = [chip["depth"] for chip in done if chip["depth"] is not None]
    return {
        "schemavsn": EXPOSURE_VERSION,
        "publisher": publisher(report["software"]),
        # of the chips too: a rerun that does more is told, one that does the same is a copy
        "messageId": digest_of(
            *(report["exposure"], "ks4.exposure/1", report["software"], report["config_digest"]),
            json.dumps(chips, sort_keys=True),
        ),
        "exposure": report["exposure"],
        "pid": exposure_number(report["exposure"]),
        "night": report["night"],
        "site": report["site"],
        "filter": report["filter"],
        "mjd": plain(mjd),
        "exptime": plain(exptime),
        "status": "none" if not done else "complete" if len(done) == len(tried) else "partial",
        "quality": max(verdicts, key=("pass", "warn", "fail").index, default="none"),
        "n_candidates": sum(chip["n_candidates"] for chip in chips),
        "n_alerts": sum(chip["n_alerts"] for chip in chips),
        "coverage": float(np.mean(coverage)) if coverage else None,
        "depth": float(np.median(depth)) if depth else None,
        "chips": chips,
        "software": report["software"],
        "config_digest": report["config_digest"],
        "t_completed": plain(completed),
        "t_seconds": float(report["seconds_total"]),
    }


def _chip(chip: Mapping[str, Any]) -> Record:
    return {
        "chip": chip["chip"],
        "status": chip["status"],
        "reason": chip["reason"],
        "coverage": plain(chip["coverage"]),
        "masked_fraction": plain(chip["masked_fraction"]),
        "depth": plain(chip["limiting_mag"]),
        "seeing": plain(chip["seeing_arcsec"]),
        "n_candidates": int(chip["n_candidates"]),
        "n_alerts": int(chip["n_alerts"]),
        "dropped": dict(chip["dropped"]),
        "quality": chip["quality"],
        "quality_reasons": list(chip["quality_reasons"]),
        "template_ids": list(chip["template_ids"]),
    }


def publisher(software: str) -> str:
    """Return who sends, as every message says."""
    return f"KS4/KMTNet {software}"
