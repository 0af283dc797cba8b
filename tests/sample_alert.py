"""One plausible synthetic alert, for tests and for alerts/sample (python -m tests.sample_alert writes it)."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ks4diff.cli.output import json_record
from ks4diff.io.packets import alert_record, container_bytes, exposure_record, latest_version
from ks4diff.products.alert import Alert, AlertCandidate, Cutouts, Provenance, StampGrid
from ks4diff.products.history import ForcedFlux, ObjectHistory, ObjectSummary, PastDetection, PastLimit

# Columns of the candidate table beside the attributes of an AlertCandidate.
MEASURED = {
    "ap_flux_err": 410.5,
    "sci_flux": 12010.5,
    "sci_flux_err": 321.25,
    "tmpl_psf_flux": 2887.0,
    "tmpl_psf_flux_err": 64.5,
    "sci_ap_flux": 14400.25,
    "sci_ap_flux_err": 402.5,
    "template_flux": 5190.0,
    "template_flux_err": 80.25,
    "psf_chi2": 1.06,
    "psf_corr": 0.93,
    "ixx": 3.1,
    "iyy": 2.9,
    "ixy": 0.1,
    "sharpness": 1.02,
    "sharpness_err": 0.11,
    "opposite": 0.14,
    "dipole_pos_flux": 9300.0,
    "dipole_neg_flux": -180.0,
    "dipole_sep": 4.5,
    "dipole_angle": 77.0,
    "dipole_dchi2": 0.8,
    "trail_length": 0.0,
    "trail_angle": 0.0,
    "trail_dchi2": 0.0,
    "motion": 1.7,
    "masked_fraction": 0.0,
    "saturated_distance": 100.0,
    "edge_distance": 1234.5,
    "source_distance": 3.4,
    "source_distance_arcsec": 1.36,
    "source_flux": 41200.0,
    "source_mag": 19.86,
    "source_extent": 1.71,
    "crosstalk_ratio": None,
    "density": 0.4,
}

SAMPLE = Path(__file__).resolve().parent.parent / "alerts" / "sample" / latest_version()


def make_cutouts(seed=1, size=63):
    """A point source of 30 sigma that the template has not, sky noise, and some bad pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size // 2
    source = 900.0 * np.exp(-(x**2 + y**2) / (2 * 1.7**2))
    science = rng.normal(0.0, 30.0, (size, size)) + source
    template = rng.normal(0.0, 8.0, (size, size))
    science[:, 5] = np.nan  # a bad column
    difference = science - template
    return Cutouts(
        science=science.astype(np.float32),
        template=template.astype(np.float32),
        difference=difference.astype(np.float32),
        grid=StampGrid(ra=123.456812, dec=-34.567932, cd=((-1.1e-4, 1e-6), (1.2e-6, 1.1e-4))),
        zeropoint=28.9,
        noise=(30.0, 8.0, 31.05),
    )


def make_candidate(**changes):
    candidate = AlertCandidate(
        mjd=60423.98765432,
        jd=2460424.48765432,
        exptime=120.0,
        filter="R",
        site="SAAO",
        chip="K",
        x=1234.56,
        y=7890.12,
        xerr=0.06,
        yerr=0.07,
        ra=123.456789,
        dec=-34.567891,
        scorr=28.4,
        snr=27.9,
        flux=9123.5,
        flux_err=327.0,
        flux_unit="nJy",
        ap_flux=9210.25,
        magpsf=21.4996,
        sigmapsf=0.0389,
        diffmaglim=23.366,
        isdiffpos=True,
        fwhm=4.1,
        elong=1.08,
        rb=0.97,
        rbversion="rb-2026a",
        rbthreshold=0.5,
        flags=("on_source",),
        xycov=-0.0004,
        raerr=6.7e-6,
        decerr=7.7e-6,
        radeccov=5e-12,
        magap=21.489,
        zeropoint=28.9,
        field=412,
        target_name="0412.123-34",
        nbad=0,
        rb_reasons=("psf_corr 0.93", "fwhm_ratio 1.02"),
        measured=MEASURED,
    )
    return replace(candidate, **changes)


def make_history(number=0, *, detections=3, limits=4, forced=5):
    """An object seen before: its past detections, the exposures that missed it, and its forced fluxes."""
    place = {"site": "SAAO", "chip": "K", "filter": "R"}

    def past(k):
        return {"exposure": f"kmts.202404{10 + k // 4:02d}.{12000 + k:06d}", "mjd": 60410.9 + 0.2537 * k}

    flux = [9000.5 + 210.25 * k for k in range(detections)]
    return ObjectHistory(
        object=ObjectSummary(
            object_id=f"KS4-24{number:06d}",
            ra=123.456791,
            dec=-34.56789,
            position_err_arcsec=0.021,
            n_detections=detections + 1,
            n_covered=detections + limits + 1,
            first_mjd=60410.9 + 0.2537 * limits,
            last_mjd=60423.98765432,
        ),
        limits=tuple(PastLimit(**past(k), **place, diffmaglim=23.1 + 0.01 * k) for k in range(limits)),
        detections=tuple(
            PastDetection(
                **past(limits + k),
                **place,
                candid=1234567890123456 + k,
                exptime=120.0,
                ra=123.45679 + 1e-6 * k,
                dec=-34.56789 - 2e-6 * k,
                scorr=27.0 + 0.37 * k,
                snr=26.5 + 0.35 * k,
                flux=flux[k],
                flux_err=330.125,
                magpsf=21.51 - 0.013 * k,
                sigmapsf=0.0391,
                diffmaglim=23.31 + 0.011 * k,
                isdiffpos=True,
                rb=0.95,
                alerted=k > 0,
            )
            for k in range(detections)
        ),
        forced=tuple(
            ForcedFlux(
                **past(k),
                **place,
                flux=12.5 - 3.25 * k,
                flux_err=321.5,
                diffmaglim=23.25,
                flags=("bad_pixel",) if k == 1 else (),
            )
            for k in range(forced)
        ),
    )


def make_alert(number=0, *, candidate=None, **changes):
    """The number-th of as many different alerts as you like; the same number gives the same alert."""
    digest = hashlib.sha256(f"sample {number}".encode()).digest()
    alert = Alert(
        alert_id=digest[:16].hex(),
        candid=int.from_bytes(digest[16:24], "big") >> 1,
        object_id=f"KS4-24{number:06d}",
        alert_type="update",
        exposure="kmts.20240423.012345",
        candidate=candidate or make_candidate(x=1234.56 + number),
        cutouts=make_cutouts(seed=number + 1),
        provenance=Provenance(
            software="ks4diff 0.1.0",
            config_digest=hashlib.sha256(b"sample configuration").hexdigest(),
            template_ids=("ks4_0412_R", "ks4_0413_R"),
            model_id="rb-2026a",
            rb_features="1",
            science_file="kmts.20240423.012345.kk.fits",
            seeing=4.0,
            template_seeing=3.1,
            flux_scale=0.83,
            astrometric_rms_pix=0.11,
            pixel_arcsec=0.4,
            depth=23.366,
            zeropoint=28.9,
            quality="warn",
            quality_reasons=("scorr_std 1.21 above 1.2",),
            t_shutter_close=60423.98834876,
            t_packed=60423.98911111,
        ),
        history=make_history(number),
    )
    return replace(alert, **changes)


def make_records(count, *, first=0, **changes):
    return [alert_record(make_alert(number, **changes)) for number in range(first, first + count)]


def make_report(**changes):
    """The report of one exposure of four chips: one with an alert, one without, one skipped, one failed."""
    chip = {
        "reason": None,
        "coverage": 0.97,
        "masked_fraction": 0.021,
        "limiting_mag": 23.4,
        "seeing_arcsec": 1.6,
        "n_candidates": 0,
        "n_alerts": 0,
        "dropped": {},
        "quality": "pass",
        "quality_reasons": [],
        "template_ids": ["ks4_0412_R"],
    }
    unknown = {"coverage": None, "masked_fraction": None, "limiting_mag": None, "seeing_arcsec": None}
    unknown |= {"quality": None, "template_ids": []}
    found = {"n_candidates": 7, "n_alerts": 1, "dropped": {"cosmic_ray": 4, "rb_below_threshold": 2}}
    warned = {"quality": "warn", "quality_reasons": ["scorr_std 1.21 above 1.2"], "limiting_mag": 23.2}
    report = {
        "software": "ks4diff 0.1.0",
        "config_digest": hashlib.sha256(b"sample configuration").hexdigest(),
        "exposure": "kmts.20240423.012345",
        "night": "20240423",
        "site": "SAAO",
        "filter": "R",
        "seconds_total": 61.25,
        "chips": [
            {"chip": "K", "status": "ok"} | chip | found | warned,
            {"chip": "M", "status": "ok"} | chip,
            {"chip": "N", "status": "skipped"} | chip | unknown | {"reason": "no template"},
            {"chip": "T", "status": "failed"} | chip | unknown | {"reason": "file cut off"},
        ],
    }
    return report | changes


def make_exposure(**changes):
    return exposure_record(make_report(**changes), mjd=60423.98765432, exptime=120.0, completed=60423.98932)


def write_sample(folder=SAMPLE):
    """Write the released sample packets; run it again only for a new schema version."""
    folder.mkdir(exist_ok=True)
    for name, record in (("alert", make_records(1)[0]), ("exposure", make_exposure())):
        (folder / f"{name}.avro").write_bytes(container_bytes([record]))
        text = json.dumps(json_record(record), indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_sample()
