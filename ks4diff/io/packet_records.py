"""Records of the newest schema: of an alert and of its withdrawal."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ks4diff.io.packet_exposure import publisher
from ks4diff.io.packet_history import FILTER_ID, Record, counts_of, history_fields, plain
from ks4diff.io.packet_schemas import alert_schema, latest_version
from ks4diff.io.stamps import encode_stamp, sky_cards
from ks4diff.products.alert import Alert, AlertCandidate, Cutouts, EventMatch, Provenance
from ks4diff.products.alert_ids import digest_of, exposure_number
from ks4diff.products.history import ObjectHistory

_STAMPS = {"cutoutScience": "science", "cutoutTemplate": "template", "cutoutDifference": "difference"}

# Fields of the candidate record by the columns of candidates.fits that they hold.
COLUMN_OF = {
    "apFluxErr": "ap_flux_err",
    "scienceFlux": "sci_flux",
    "scienceFluxErr": "sci_flux_err",
    "templateFlux": "tmpl_psf_flux",
    "templateFluxErr": "tmpl_psf_flux_err",
    "scienceApFlux": "sci_ap_flux",
    "scienceApFluxErr": "sci_ap_flux_err",
    "templateApFlux": "template_flux",
    "templateApFluxErr": "template_flux_err",
    "chipsf": "psf_chi2",
    "psfCorr": "psf_corr",
    "ixx": "ixx",
    "iyy": "iyy",
    "ixy": "ixy",
    "sharpness": "sharpness",
    "sharpnessErr": "sharpness_err",
    "oppositeRatio": "opposite",
    "dipolePosFlux": "dipole_pos_flux",
    "dipoleNegFlux": "dipole_neg_flux",
    "dipoleLength": "dipole_sep",
    "dipoleAngle": "dipole_angle",
    "dipoleDeltaChi2": "dipole_dchi2",
    "trailLength": "trail_length",
    "trailAngle": "trail_angle",
    "trailDeltaChi2": "trail_dchi2",
    "motion": "motion",
    "distnr": "source_distance_arcsec",
    "magnr": "source_mag",
    "sourceDistance": "source_distance",
    "sourceFlux": "source_flux",
    "sourceExtent": "source_extent",
    "saturatedDistance": "saturated_distance",
    "mindtoedge": "edge_distance",
    "maskedFraction": "masked_fraction",
    "crosstalkRatio": "crosstalk_ratio",
    "density": "density",
}
_OWN_FIELD = frozenset(COLUMN_OF.values())


def alert_record(alert: Alert) -> Record:
    """Return the record of an alert in the newest schema.

    Numbers that are not finite become null: NaN is not a measurement. Where the schema allows no
    null, encoding such a record fails.
    """
    history = alert.history
    return {
        "schemavsn": latest_version(),
        "publisher": publisher(alert.provenance.software),
        "alertId": alert.alert_id,
        "alertType": alert.alert_type,
        "objectId": alert.object_id,
        "candid": int(alert.candid),
        "exposure": alert.exposure,
        "candidate": _candidate(alert, alert.candidate, history),
        **history_fields(history),
        **_stamps(alert.candid, alert.cutouts),
        "provenance": _provenance(alert.provenance),
        "withdrawal": None,
        "multimessenger": None if alert.multimessenger is None else [_event(m) for m in alert.multimessenger],
    }


def withdrawal(record: Record, reason: str, when: float) -> Record:
    """Return the record that takes an alert back: the alert's own, with the reason and an id of its own.

    Parameters
    ----------
    record
        Record of the alert, of this version; it is not changed.
    reason
        Why, for people. The same alert and reason give the same id.
    when
        MJD, UTC.

    Raises
    ------
    ValueError
        When the record is of a withdrawal itself, or of another version.

    """
    if record["alertType"] == "withdrawn":
        raise ValueError(f"alert {record['alertId']}: is a withdrawal itself")
    if record["schemavsn"] != latest_version():
        raise ValueError(f"alert {record['alertId']}: of version {record['schemavsn']}: no withdrawal there")
    return {
        **record,
        "alertId": digest_of(record["alertId"], "withdrawn", reason),
        "alertType": "withdrawn",
        "withdrawal": {"alertId": record["alertId"], "reason": reason, "t_withdrawn": float(when)},
    }


def without_times(value: Any) -> Any:
    """Return a record without its fields ``t_...``: what two runs on the same input share."""
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if not name.startswith("t_")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@lru_cache(maxsize=1)
def _candidate_fields() -> tuple[str, ...]:
    fields = next(field for field in alert_schema()["fields"] if field["name"] == "candidate")
    return tuple(field["name"] for field in fields["type"]["fields"])


def _candidate(alert: Alert, measured: AlertCandidate, history: ObjectHistory | None) -> Record:
    """Return the candidate record: fields of their own first, then those that are columns of the table."""
    known = {**_own_fields(alert, measured), **counts_of(measured, history)}
    columns = measured.measured
    record = {
        name: plain(known[name]) if name in known else plain(columns.get(COLUMN_OF[name]))
        for name in _candidate_fields()
        if name != "measurements"
    }
    record["measurements"] = {
        name: float(value)
        for name, value in columns.items()
        if name not in _OWN_FIELD and value is not None and math.isfinite(value)
    }
    return record


def _own_fields(alert: Alert, measured: AlertCandidate) -> Record:
    def arcsec(degrees: float | None) -> float | None:
        return None if degrees is None else 3600 * degrees

    return {
        "candid": int(alert.candid),
        "pid": exposure_number(alert.exposure),
        "programid": 1,
        **{name: getattr(measured, name) for name in _SAME_NAME},
        **{name: getattr(measured, attribute) for name, attribute in _OTHER_NAME.items()},
        "fid": FILTER_ID.get(measured.filter or ""),
        "sigmara": arcsec(measured.raerr),
        "sigmadec": arcsec(measured.decerr),
        "isdiffpos": "t" if measured.isdiffpos else "f",
        "nbad": int(measured.nbad),
        "rb_features": alert.provenance.rb_features,
        **dict.fromkeys(_NOT_LOOKED_UP),
    }


# Null as yet; readers of ZTF select these columns, and fail where a packet lacks them.
_NOT_LOOKED_UP = ("ssdistnr", "ssmagnr", "ssnamenr", "sigmagnr", "sgscore1", "distpsnr1")
_SAME_NAME = (
    *("jd", "mjd", "exptime", "filter", "site", "chip", "field", "target_name", "x", "y", "ra", "dec"),
    *("snr", "scorr", "magpsf", "sigmapsf", "magap", "diffmaglim", "fwhm", "elong", "flags", "injected"),
    *("rb", "rbversion", "rbthreshold", "rb_flags", "rb_reasons"),
)
_OTHER_NAME = {
    "xErr": "xerr",
    "yErr": "yerr",
    "x_y_Cov": "xycov",
    "raErr": "raerr",
    "decErr": "decerr",
    "ra_dec_Cov": "radeccov",
    "fluxUnit": "flux_unit",
    "psfFlux": "flux",
    "psfFluxErr": "flux_err",
    "apFlux": "ap_flux",
    "magzpsci": "zeropoint",
}


def _stamps(number: int, cutouts: Cutouts) -> Record:
    cards = sky_cards(cutouts.science.shape, cutouts.grid, cutouts.zeropoint)
    noise = cutouts.noise or (None, None, None)
    return {
        field: {
            "fileName": f"{number}_{image}.fits.gz",
            "stampData": encode_stamp(getattr(cutouts, image), cards=cards, noise=sigma),
        }
        for (field, image), sigma in zip(_STAMPS.items(), noise, strict=True)
    }


def _provenance(made: Provenance) -> Record:
    def arcsec(pixels: float | None) -> float | None:
        return None if pixels is None or made.pixel_arcsec is None else plain(pixels * made.pixel_arcsec)

    return {
        "software": made.software,
        "config_digest": made.config_digest,
        "template_ids": list(made.template_ids),
        "model_id": made.model_id,
        "science_file": made.science_file,
        "seeing": arcsec(made.seeing),
        "template_seeing": arcsec(made.template_seeing),
        "seeing_pix": plain(made.seeing),
        "template_seeing_pix": plain(made.template_seeing),
        "depth": plain(made.depth),
        "zeropoint": plain(made.zeropoint),
        "flux_scale": plain(made.flux_scale),
        "astrometric_rms_pix": plain(made.astrometric_rms_pix),
        "astrometric_rms": arcsec(made.astrometric_rms_pix),
        "quality": made.quality,
        "quality_reasons": list(made.quality_reasons),
        "t_shutter_close": plain(made.t_shutter_close),
        "t_packed": plain(made.t_packed),
    }


def _event(match: EventMatch) -> Record:
    return {name: plain(getattr(match, name)) for name in match.__dataclass_fields__}
