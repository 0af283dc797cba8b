"""Exposures as the history takes them, made of positions; a season of three nights whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.pipeline.associate import associate_exposure
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.report import ChipReport, RunReport
from ks4diff.products.alert import Alert, AlertCandidate, Cutouts, Provenance
from ks4diff.products.coverage import ChipCoverage
from ks4diff.products.sightings import MEASURED, SIGHTING, ChipSightings, ExposureSightings
from ks4diff.stages.coverage import footprint_coverage
from ks4diff.stages.package import candid
from ks4diff.stages.sky_cells import ARCSEC, cells_of, positions_of, separation_arcsec, unit_vectors

PIXEL_ARCSEC = 0.4
LIMIT_MMAG = 22500
NOTHING = np.full((1, 1), np.nan, dtype=np.float32)
CONFIG = PipelineConfig()
HOME = (150.0, -30.0)
MJD = 60735.8


def coverage(ra=150.0, dec=-30.0, *, shape=(2000, 2304), limit=LIMIT_MMAG) -> ChipCoverage:
    """The coverage of a chip without distortion around a position, of one depth everywhere."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    wcs.wcs.cdelt = [-PIXEL_ARCSEC / 3600, PIXEL_ARCSEC / 3600]
    return footprint_coverage(wcs, shape, np.full((4, 5), limit, dtype=np.int16))


def near(ra, dec, east_arcsec, north_arcsec):
    """The positions at offsets from one, exact on the sphere, at the poles too."""
    a, d = np.radians(ra), np.radians(dec)
    here = unit_vectors(ra, dec)
    east = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], axis=-1)
    north = np.stack([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)], axis=-1)
    offset = np.asarray(east_arcsec)[..., None] * east + np.asarray(north_arcsec)[..., None] * north
    return positions_of(here + offset * ARCSEC)


def at(east, north=0.0, place=HOME):
    """The positions at offsets in arcseconds from a place."""
    return near(
        *(np.full(np.shape(np.atleast_1d(east)), x) for x in place), np.atleast_1d(east), np.atleast_1d(north)
    )


def sightings(  # noqa: PLR0913 - each a fact of an exposure that some test changes
    number,
    mjd,
    ra,
    dec,
    *,
    err=0.1,
    accepted=True,
    rejected=False,
    flux=5000.0,
    chip="K",
    where=None,
    filter="R",
) -> ExposureSightings:
    """An exposure of SAAO with candidates at positions; scalars hold for all of them."""
    exposure = f"kmts.20250301.{number:06d}"
    ra = np.atleast_1d(np.asarray(ra, np.float64))
    table = np.zeros(len(ra), dtype=SIGHTING)
    for name in MEASURED:
        table[name] = 1.0
    table["ra"], table["dec"], table["err_arcsec"] = ra, dec, err
    table["x"] = np.arange(len(ra))
    table["flux"], table["flux_err"], table["mag"] = flux, 200.0, 31.4 - 2.5 * np.log10(np.abs(flux))
    table["is_positive"] = table["flux"] > 0
    table["snr"] = np.abs(table["flux"]) / 200.0
    table["scorr"], table["rb"] = table["flux"] / 200.0, 0.9
    table["rejected"] = rejected
    table["accepted"] = accepted & ~table["rejected"]
    table["cell"] = cells_of(table["ra"], table["dec"])
    table["candid"] = [candid(exposure, chip, row) for row in range(len(ra))]
    alerts = tuple(make_alert(row, exposure, mjd, chip) for row in table[table["accepted"]])
    return ExposureSightings(
        exposure=exposure,
        night="20250301",
        site="SAAO",
        filter=filter,
        mjd=mjd,
        exptime=120.0,
        chips=(
            ChipSightings(
                chip=chip,
                table=table,
                flux_unit="nJy",
                quality="pass",
                zeropoint=28.0,
                seeing_arcsec=1.2,
                limiting_mag=22.4,
                coverage=where,
            ),
        ),
        alerts=alerts,
    )


def make_alert(row, exposure, mjd, chip) -> Alert:
    """The alert of one row, with cut-outs of one pixel."""
    value = {name: float(row[name]) for name in MEASURED}
    return Alert(
        alert_id=f"{int(row['candid']):032x}",
        candid=int(row["candid"]),
        object_id=None,
        alert_type="new",
        exposure=exposure,
        candidate=AlertCandidate(
            mjd=mjd,
            jd=None if mjd is None else mjd + 2400000.5,
            exptime=120.0,
            filter="R",
            site="SAAO",
            chip=chip,
            x=value["x"],
            y=value["y"],
            xerr=0.1,
            yerr=0.1,
            ra=value["ra"],
            dec=value["dec"],
            scorr=value["scorr"],
            snr=value["snr"],
            flux=value["flux"],
            flux_err=value["flux_err"],
            flux_unit="nJy",
            ap_flux=1.0,
            magpsf=value["mag"],
            sigmapsf=0.01,
            diffmaglim=22.4,
            isdiffpos=bool(row["is_positive"]),
            fwhm=3.0,
            elong=1.0,
            rb=0.9,
            rbversion="test",
            rbthreshold=0.5,
            flags=(),
        ),
        cutouts=Cutouts(science=NOTHING, template=NOTHING, difference=NOTHING),
        provenance=Provenance(
            software="test",
            config_digest="0" * 64,
            template_ids=("t",),
            model_id="test",
            science_file="x.fits",
            seeing=3.0,
            template_seeing=3.0,
            flux_scale=1.0,
            astrometric_rms_pix=0.1,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Season:
    """Exposures in order of time; ``truth`` [of each] the source of each row, -1 of what repeats nowhere.

    ``nearest`` the arcsec from each source to the next one.
    """

    exposures: list[ExposureSightings]
    truth: list[np.ndarray]
    nearest: np.ndarray


def season(  # noqa: PLR0913 - the knobs of a simulation
    seed,
    *,
    n_sources=1500,
    nights=3,
    visits=4,
    spurious=0.05,
    ra=359.95,
    dec=-30.0,
    side_deg=0.6,
    seen=0.8,
) -> Season:
    """Variables seen now and then over some nights, among movers and spurious detections.

    Every exposure is off by 0.07" rms per axis as a whole, what a template's tie to Gaia leaves; errors of
    positions are 0.03 to 0.25", as of S/N 40 to 5 in 1.3 to 3" seeing. Sources are apart as they fall, some
    less than 2".
    """
    rng = np.random.default_rng(seed)
    span = side_deg * 3600 / 2
    home = near(np.full(n_sources, ra), np.full(n_sources, dec), *rng.uniform(-span, span, (2, n_sources)))
    faintness = rng.uniform(0.03, 0.25, n_sources)
    where = coverage(ra, dec, shape=(int(2 * span / PIXEL_ARCSEC) + 400,) * 2)
    exposures, truth = [], []
    for k in range(nights * visits):
        shown = np.flatnonzero(rng.random(n_sources) < seen)
        shift = rng.normal(0, 0.07, 2)
        err = np.clip(faintness[shown] * rng.uniform(0.8, 1.25, len(shown)), 0.03, 0.25)
        at = near(home[0][shown], home[1][shown], *(rng.normal(0, err, (2, len(err))) + shift[:, None]))
        extra = rng.poisson(spurious * len(shown))
        offsets = rng.uniform(-span, span, (2, extra))
        stray = near(np.full(extra, ra), np.full(extra, dec), *offsets)
        order = rng.permutation(len(shown) + extra)
        columns = [np.concatenate([a, b])[order] for a, b in zip(at, stray, strict=True)]
        mjd = 60735.8 + k // visits + 0.04 * (k % visits)
        errors = np.concatenate([err, rng.uniform(0.05, 0.25, extra)])[order]
        flux = 5000.0 * rng.lognormal(0, 0.5, len(order))
        exposures.append(sightings(k, mjd, *columns, err=errors, flux=flux, where=where))
        truth.append(np.concatenate([shown, np.full(extra, -1)])[order])
    at = unit_vectors(*home)
    apart = separation_arcsec(at[:, None], at[None]) + np.where(np.eye(n_sources), np.inf, 0.0)
    return Season(exposures=exposures, truth=truth, nearest=apart.min(axis=1))


def put(history, out, *exposures):
    """Associate exposures in the order given; return the alerts of all, by candid."""
    alerts = {}
    for one in exposures:
        alerts |= {alert.candid: alert for alert in associate_exposure(history, one, out, CONFIG).alerts}
    return alerts


def contents(history):
    """All that a history holds, but for the folder that it was written in."""
    with history.reading() as reader:
        return reader.exposures(), reader.objects(), reader.detections()


def told(alert):
    """What the history adds to an alert."""
    return alert.alert_id, alert.object_id, alert.alert_type, alert.history


def run_report(one: ExposureSightings) -> RunReport:
    """The report of an exposure before it is associated."""
    chip = ChipReport(chip="K", status="ok", n_candidates=len(one.table), n_alerts=len(one.alerts))
    return RunReport(
        software="test",
        config_digest="0" * 64,
        exposure=one.exposure,
        night=one.night,
        site=one.site,
        filter="R",
        seconds_total=0.0,
        peak_rss_mb=0.0,
        chips=(chip,),
    )
