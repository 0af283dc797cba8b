"""Choose which candidates become alerts, and pack those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ks4diff.products.alert import (
    MJD_TO_JD,
    Alert,
    AlertCandidate,
    Cutouts,
    Provenance,
    Scoring,
    StampGrid,
)
from ks4diff.products.alert_ids import candid, digest_of, row_of_candid
from ks4diff.products.candidates import CANDIDATE_FLAGS, Candidates, flag_names
from ks4diff.products.chip import RawChip
from ks4diff.products.fields import find_field_name
from ks4diff.products.history import ObjectHistory
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.photometry import NJY_ZEROPOINT, magnitude
from ks4diff.stages.quality import pixel_arcsec

MAJOR = "1"  # of the alert's schema: a new one gives new alert ids

# Columns that are attributes of AlertCandidate; the others go into its ``measured``.
_ATTRIBUTES = (
    *("id", "x", "y", "x_err", "y_err", "xy_cov", "ra", "dec", "scorr", "snr", "flux", "flux_err", "ap_flux"),
    *("mag", "mag_err", "is_positive", "fwhm", "elongation", "rb", "flags", "rb_flags"),
)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all alerts of one chip have in common."""

    raw: RawChip
    unit: str
    limit: float | None  # AB
    field: int | None
    model: str
    min_rb: float
    scoring: Scoring


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
    scoring: Scoring | None = None,
    now: float | None = None,
) -> list[Alert]:
    """Return the alerts of the given rows of the candidate table, in their order.

    Their objects are not known yet: see `with_history`. ``now`` is the time of packing, MJD UTC.
    """
    raw, candidates = subtracted.chip.raw, subtracted.candidates
    rows = [int(row) for row in rows]
    shared = _Shared(
        raw=raw,
        unit=candidates.flux_unit,
        limit=magnitude(subtracted.limiting_flux, raw.zeropoint),
        field=_field_number(raw),
        model=provenance.model_id,
        min_rb=min_rb,
        scoring=scoring or Scoring(),
    )
    provenance = _completed(provenance, subtracted, shared.limit, now)
    noise = _pixel_noise(subtracted)
    grids = _grids(raw, candidates.table["x"][rows], candidates.table["y"][rows])
    return [
        Alert(
            alert_id=_alert_id(exposure, raw.chip, row, provenance),
            candid=candid(exposure, raw.chip, row),
            object_id=None,
            alert_type="new",
            exposure=exposure,
            candidate=_candidate(candidates, row, shared, grid),
            cutouts=Cutouts(
                science=candidates.cutout(row)[0],
                template=candidates.cutout(row)[1],
                difference=candidates.cutout(row)[2],
                grid=grid,
                zeropoint=raw.zeropoint,
                noise=noise,
            ),
            provenance=provenance,
        )
        for row, grid in zip(rows, grids, strict=True)
    ]


def with_history(alert: Alert, history: ObjectHistory) -> Alert:
    """Return the alert with its object's name and past; an "update" where that object was alerted before."""
    before = any(detection.alerted for detection in history.detections)
    return replace(
        alert,
        object_id=history.object.object_id,
        alert_type="update" if before else "new",
        history=history,
    )


def row_of(alert: Alert) -> int:
    """Return the row of the candidate table that an alert was made of."""
    return row_of_candid(alert.candid)


def _completed(
    provenance: Provenance, subtracted: SubtractedChip, limit: float | None, now: float | None
) -> Provenance:
    """Return the provenance with what the chip tells: scale on the sky, depth, zero point, quality, times."""
    raw = subtracted.chip.raw
    closed = None
    if raw.mjd_mid is not None and raw.exptime is not None:
        closed = raw.mjd_mid + 0.5 * raw.exptime / 86400
    return replace(
        provenance,
        pixel_arcsec=pixel_arcsec(raw),
        depth=limit,
        zeropoint=raw.zeropoint,
        quality=subtracted.quality.verdict,
        quality_reasons=subtracted.quality.reasons,
        t_shutter_close=closed,
        t_packed=now,
    )


def _candidate(candidates: Candidates, row: int, shared: _Shared, grid: StampGrid | None) -> AlertCandidate:
    raw, scoring = shared.raw, shared.scoring
    names = candidates.table.dtype.names
    column = dict(zip(names, candidates.table[row].tolist(), strict=True))

    def value(name: str) -> float | None:
        number = column.get(name)
        return float(number) if number is not None and np.isfinite(number) else None

    xy_cov = value("xy_cov") or 0.0
    ra_err, dec_err, ra_dec_cov = _on_sky(grid, column["x_err"], column["y_err"], xy_cov)
    raised = int(column.get("rb_flags", 0))
    return AlertCandidate(
        mjd=raw.mjd_mid,
        jd=None if raw.mjd_mid is None else raw.mjd_mid + MJD_TO_JD,
        exptime=raw.exptime,
        filter=raw.filter,
        site=raw.site,
        chip=raw.chip,
        field=shared.field,
        target_name=raw.object,
        x=column["x"],
        y=column["y"],
        xerr=column["x_err"],
        yerr=column["y_err"],
        xycov=value("xy_cov"),
        ra=value("ra"),
        dec=value("dec"),
        raerr=ra_err,
        decerr=dec_err,
        radeccov=ra_dec_cov,
        scorr=column["scorr"],
        snr=column["snr"],
        flux=column["flux"],
        flux_err=column["flux_err"],
        flux_unit=shared.unit,
        ap_flux=column["ap_flux"],
        magpsf=value("mag"),
        sigmapsf=value("mag_err"),
        magap=None if raw.zeropoint is None else magnitude(abs(column["ap_flux"]), NJY_ZEROPOINT),
        diffmaglim=shared.limit,
        zeropoint=raw.zeropoint,
        isdiffpos=bool(column["is_positive"]),
        fwhm=value("fwhm"),
        elong=value("elongation"),
        nbad=_bad_in_middle(candidates.cutout(row)[2]),
        rb=value("rb"),
        rbversion=shared.model,
        rbthreshold=shared.min_rb,
        rb_flags=tuple(name for bit, name in sorted(scoring.flag_names.items()) if raised & bit),
        rb_reasons=scoring.reasons[row] if scoring.reasons else (),
        flags=flag_names(int(column["flags"])),
        injected=bool(column.get("injected", False)),
        measured={name: value(name) for name in names if name not in _ATTRIBUTES},
    )


def _on_sky(
    grid: StampGrid | None, x_err: float, y_err: float, xy_cov: float
) -> tuple[float | None, float | None, float | None]:
    """Return the errors of ra cos(dec) and dec, degrees, and their covariance, of those in pixels."""
    if grid is None:
        return None, None, None
    jacobian = np.array(grid.cd)
    covariance = jacobian @ np.array([[x_err**2, xy_cov], [xy_cov, y_err**2]]) @ jacobian.T
    errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return float(errors[0]), float(errors[1]), float(covariance[0, 1])


def _grids(raw: RawChip, x: np.ndarray, y: np.ndarray) -> list[StampGrid | None]:
    """Return the sky around the nearest pixel of each position, from its differences to the next pixels."""
    if raw.wcs is None or len(x) == 0:
        return [None] * len(x)
    x, y = np.rint(x), np.rint(y)
    columns, rows = np.stack([x, x + 1, x]), np.stack([y, y, y + 1])
    ra, dec = raw.wcs.all_pix2world(columns.ravel(), rows.ravel(), 0)
    ra, dec = ra.reshape(3, -1), dec.reshape(3, -1)
    xi = ((ra[1:] - ra[0] + 180) % 360 - 180) * np.cos(np.radians(dec[0]))
    eta = dec[1:] - dec[0]
    return [
        StampGrid(
            ra=float(ra[0, i]),
            dec=float(dec[0, i]),
            cd=((float(xi[0, i]), float(xi[1, i])), (float(eta[0, i]), float(eta[1, i]))),
        )
        for i in range(len(x))
    ]


def _pixel_noise(subtracted: SubtractedChip) -> tuple[float, float, float] | None:
    """Return the noise of a pixel of science, template and difference, science counts; None if not known."""
    match, difference = subtracted.match, subtracted.difference
    template = match.template_noise.sigma * match.flux_scale
    noise = (float(match.science_noise.sigma), float(template), float(difference.noise))
    return noise if all(np.isfinite(noise)) and min(noise) > 0 else None


def _bad_in_middle(stamp: np.ndarray) -> int:
    row, column = stamp.shape[0] // 2, stamp.shape[1] // 2
    middle = stamp[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
    return int(np.isnan(middle).sum())


def _field_number(raw: RawChip) -> int | None:
    """Return the number of the KMTNet field that the image's OBJECT names, None when it names none."""
    name = find_field_name(raw.object or "")
    return None if name is None else int(name[:4])


def _alert_id(exposure: str, chip: str, row: int, provenance: Provenance) -> str:
    """Return 32 hex digits: equal for the same candidate of the same processing, whenever it runs."""
    processing = (
        provenance.software,
        provenance.config_digest,
        *provenance.template_ids,
        provenance.model_id,
    )
    return digest_of(exposure, chip, str(row), f"ks4.alert/{MAJOR}", *processing)
