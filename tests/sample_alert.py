"""One plausible synthetic alert, for tests and for alerts/sample (python -m tests.sample_alert writes it)."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ks4diff.cli.output import json_record
from ks4diff.io.packets import alert_record, container_bytes
from ks4diff.products.alert import Alert, AlertCandidate, Cutouts, Provenance

SAMPLE = Path(__file__).resolve().parent.parent / "alerts" / "sample"


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
    )
    return replace(candidate, **changes)


def make_alert(number=0, *, candidate=None, **changes):
    """The number-th of as many different alerts as you like; the same number gives the same alert."""
    digest = hashlib.sha256(f"sample {number}".encode()).digest()
    alert = Alert(
        alert_id=digest[:16].hex(),
        candid=int.from_bytes(digest[16:24], "big") >> 1,
        object_id=f"KS424{number:06d}",
        alert_type="new",
        exposure="kmts.20240423.012345",
        candidate=candidate or make_candidate(x=1234.56 + number),
        cutouts=make_cutouts(seed=number + 1),
        provenance=Provenance(
            software="ks4diff 0.1.0",
            config_digest=hashlib.sha256(b"sample configuration").hexdigest(),
            template_ids=("ks4_0412_R", "ks4_0413_R"),
            model_id="rb-2026a",
            science_file="kmts.20240423.012345.kk.fits",
            seeing=4.0,
            template_seeing=3.1,
            flux_scale=0.83,
            astrometric_rms_pix=0.11,
        ),
    )
    return replace(alert, **changes)


def make_records(count, *, first=0, **changes):
    return [alert_record(make_alert(number, **changes)) for number in range(first, first + count)]


def write_sample(folder=SAMPLE):
    """Write the released sample packet; run it again only for a new schema version."""
    records = make_records(1)
    (folder / "alert.avro").write_bytes(container_bytes(records))
    text = json.dumps(json_record(records[0]), indent=2) + "\n"
    (folder / "alert.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_sample()
