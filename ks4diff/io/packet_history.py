"""What an alert's record says of its object's past, and how values become Avro's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ks4diff.products.alert import MJD_TO_JD, AlertCandidate
from ks4diff.products.alert_ids import exposure_number
from ks4diff.products.history import ForcedFlux, ObjectHistory, PastDetection, PastLimit

Record = dict[str, Any]

# 1 to 3 are ZTF's g, r and i: a reader of ZTF must not take our R for its i.
FILTER_ID = {"B": 4, "V": 5, "R": 6, "I": 7}
NJY_ZEROPOINT = 31.4  # AB magnitude of 1 nJy


def history_fields(history: ObjectHistory | None) -> Record:
    """Return the four fields of an alert that tell of its object; None: nothing is known of it."""
    if history is None:
        return {"prv_candidates": None, "prv_nondetections": [], "fp_hists": [], "object": None}
    return {
        "prv_candidates": [_detection(past) for past in history.detections],
        "prv_nondetections": [_limit(past) for past in history.limits],
        "fp_hists": [_forced(past) for past in history.forced],
        "object": _object(history),
    }


def plain(value: Any) -> Any:
    """Return numpy scalars as Python's, tuples as lists, and numbers that are not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def counts_of(measured: AlertCandidate, history: ObjectHistory | None) -> Record:
    """Return ZTF's counts and dates of the object, this detection included."""
    if history is None:
        return {"ndethist": 1, "ncovhist": None, "jdstarthist": measured.jd, "jdendhist": measured.jd}
    summary = history.object
    return {
        "ndethist": int(summary.n_detections),
        "ncovhist": int(summary.n_covered),
        "jdstarthist": float(summary.first_mjd) + MJD_TO_JD,
        "jdendhist": float(summary.last_mjd) + MJD_TO_JD,
    }


def _when(past: PastDetection | PastLimit | ForcedFlux) -> Record:
    return {
        "pid": exposure_number(past.exposure),
        "exposure": past.exposure,
        "jd": float(past.mjd) + MJD_TO_JD,
        "mjd": float(past.mjd),
        "fid": FILTER_ID.get(past.filter),
        "filter": past.filter,
        "site": past.site,
        "chip": past.chip,
    }


def _detection(past: PastDetection) -> Record:
    return {
        "candid": int(past.candid),
        **_when(past),
        "exptime": plain(past.exptime),
        "ra": plain(past.ra),
        "dec": plain(past.dec),
        "psfFlux": plain(past.flux),
        "psfFluxErr": plain(past.flux_err),
        "snr": plain(past.snr),
        "scorr": plain(past.scorr),
        "magpsf": plain(past.magpsf),
        "sigmapsf": plain(past.sigmapsf),
        "isdiffpos": "t" if past.isdiffpos else "f",
        "diffmaglim": plain(past.diffmaglim),
        "rb": plain(past.rb),
        "alerted": bool(past.alerted),
    }


def _limit(past: PastLimit) -> Record:
    return {**_when(past), "diffmaglim": plain(past.diffmaglim)}


def _forced(past: ForcedFlux) -> Record:
    return {
        **_when(past),
        "forcediffimflux": plain(past.flux),
        "forcediffimfluxunc": plain(past.flux_err),
        "magzpsci": NJY_ZEROPOINT,
        "diffmaglim": plain(past.diffmaglim),
        "procstatus": "1" if past.flags else "0",
        "flags": list(past.flags),
    }


def _object(history: ObjectHistory) -> Record:
    summary = history.object
    return {
        "objectId": summary.object_id,
        "ra": plain(summary.ra),
        "dec": plain(summary.dec),
        "positionErr": plain(summary.position_err_arcsec),
        "nDetections": int(summary.n_detections),
        "nRejected": int(summary.n_rejected),
        "nCovered": int(summary.n_covered),
        "firstMjd": plain(summary.first_mjd),
        "lastMjd": plain(summary.last_mjd),
    }
