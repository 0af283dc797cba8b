"""Choose which candidates become alerts, and pack those."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ks4diff.products.alert import Alert, AlertCandidate, Cutouts, Provenance
from ks4diff.products.candidates import CANDIDATE_FLAGS, Candidates, flag_names
from ks4diff.products.chip import RawChip
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.photometry import magnitude

MJD_TO_JD = 2400000.5
_ROWS = 0xFFFFF  # a million candidates a chip
_CHIP_NUMBER = {"0": 0, "K": 1, "M": 2, "N": 3, "T": 4}


def select(subtracted: SubtractedChip, *, min_rb: float) -> tuple[np.ndarray, dict[str, int]]:
    """Return (row numbers that become alerts, how many were dropped by reason).

    Every candidate of either sign with no rejecting flag and ``rb >= min_rb``; none when the chip's quality
    is "fail". A dropped candidate counts once: by its first rejecting flag, else by its score.
    """
    table = subtracted.candidates.table
    failed = subtracted.quality.verdict == "fail"
    chosen: list[int] = []
    dropped: Counter[str] = Counter()
    for row, (flags, rb) in enumerate(zip(table["flags"], table["rb"], strict=True)):
        rejecting = next((flag.name for flag in CANDIDATE_FLAGS if flag.rejecting and flags & flag.bit), None)
        if rejecting is not None:
            dropped[rejecting] += 1
        elif np.isnan(rb):
            dropped["rb_withheld"] += 1
        elif rb < min_rb:
            dropped["rb_below_threshold"] += 1
        elif failed:
            dropped["quality_fail"] += 1
        else:
            chosen.append(row)
    return np.array(chosen, dtype=np.int64), dict(sorted(dropped.items()))


def package(
    subtracted: SubtractedChip,
    rows: Iterable[int],
    provenance: Provenance,
    *,
    exposure: str,
    min_rb: float,
) -> list[Alert]:
    """Return the alerts of the given rows of the candidate table, in their order."""
    raw, candidates = subtracted.chip.raw, subtracted.candidates
    limit = magnitude(subtracted.limiting_flux, raw.zeropoint)
    return [
        Alert(
            alert_id=_alert_id(exposure, raw.chip, int(row), provenance),
            candid=candid(exposure, raw.chip, int(row)),
            object_id=None,  # names come with association, which needs a history
            alert_type="new",
            exposure=exposure,
            candidate=_candidate(candidates, int(row), raw, (provenance.model_id, min_rb), limit),
            cutouts=Cutouts(
                science=candidates.cutouts[row, 0],
                template=candidates.cutouts[row, 1],
                difference=candidates.cutouts[row, 2],
            ),
            provenance=provenance,
        )
        for row in rows
    ]


def row_of(alert: Alert) -> int:
    """Return the row of the candidate table that an alert was made of."""
    return alert.candid & _ROWS


def _candidate(
    candidates: Candidates, row: int, raw: RawChip, rb: tuple[str, float], limiting_mag: float | None
) -> AlertCandidate:
    measured = candidates.table[row]

    def value(name: str) -> float | None:
        number = float(measured[name])
        return number if np.isfinite(number) else None

    return AlertCandidate(
        mjd=raw.mjd_mid,
        jd=None if raw.mjd_mid is None else raw.mjd_mid + MJD_TO_JD,
        exptime=raw.exptime,
        filter=raw.filter,
        site=raw.site,
        chip=raw.chip,
        x=float(measured["x"]),
        y=float(measured["y"]),
        xerr=float(measured["x_err"]),
        yerr=float(measured["y_err"]),
        ra=value("ra"),
        dec=value("dec"),
        scorr=float(measured["scorr"]),
        snr=float(measured["snr"]),
        flux=float(measured["flux"]),
        flux_err=float(measured["flux_err"]),
        flux_unit=candidates.flux_unit,
        ap_flux=float(measured["ap_flux"]),
        magpsf=value("mag"),
        sigmapsf=value("mag_err"),
        diffmaglim=limiting_mag,
        isdiffpos=bool(measured["is_positive"]),
        fwhm=float(measured["fwhm"]),
        elong=float(measured["elongation"]),
        rb=value("rb"),
        rbversion=rb[0],
        rbthreshold=rb[1],
        flags=flag_names(int(measured["flags"])),
    )


def _alert_id(exposure: str, chip: str, row: int, provenance: Provenance) -> str:
    """Return 32 hex digits: equal for the same candidate of the same processing, whenever it runs."""
    processing = (
        provenance.software,
        provenance.config_digest,
        *provenance.template_ids,
        provenance.model_id,
    )
    text = "\0".join((exposure, chip, str(row), "ks4.alert/0", *processing))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def candid(exposure: str, chip: str, row: int) -> int:
    """Return a positive 63-bit number: 40 bits of the exposure, 3 of the chip, 20 of the row."""
    number = int.from_bytes(hashlib.sha256(exposure.encode()).digest()[:5], "big")
    return (number << 23) | (_CHIP_NUMBER[chip] << 20) | (row & _ROWS)
