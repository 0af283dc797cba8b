"""What one exposure found, as the history keeps it: all of its candidates, and where it looked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.products.alert import Alert
from ks4diff.products.coverage import ChipCoverage

# Columns of candidates.fits that the history keeps; fixed here, so that a database outlives new columns.
MEASURED = (
    "ra",
    "dec",
    "x",
    "y",
    "x_err",
    "y_err",
    "xy_cov",
    "scorr",
    "snr",
    "flux",
    "flux_err",
    "mag",
    "mag_err",
    "rb",
    "ap_flux",
    "ap_flux_err",
    "sci_flux",
    "sci_flux_err",
    "tmpl_psf_flux",
    "tmpl_psf_flux_err",
    "template_flux",
    "psf_chi2",
    "fwhm",
    "elongation",
    "sharpness",
    "opposite",
    "dipole_dchi2",
    "trail_length",
    "trail_dchi2",
    "motion",
    "masked_fraction",
    "source_distance_arcsec",
    "source_mag",
    "source_extent",
)
SIGHTING = np.dtype(
    [("candid", "i8"), ("err_arcsec", "f8"), ("flags", "i8"), ("cell", "i8")]
    + [("rejected", "?"), ("accepted", "?"), ("is_positive", "?")]
    + [(name, "f8") for name in MEASURED]
)


@dataclass(frozen=True, kw_only=True)
class ChipSightings:
    """One chip's candidates and what they are to be judged by.

    ``table`` has dtype `SIGHTING`: ``err_arcsec`` the standard error per axis, ``cell`` the HEALPix cell (-1
    without a position), ``rejected`` a rejecting flag is raised, ``accepted`` it becomes an alert.
    """

    chip: str
    table: np.ndarray
    flux_unit: str  # nJy or count
    quality: str
    zeropoint: float | None  # AB magnitude of one count
    seeing_arcsec: float | None
    limiting_mag: float | None
    coverage: ChipCoverage | None  # None without a WCS
    kept: str | None = None  # the kept difference, relative to the run's folder


@dataclass(frozen=True, kw_only=True)
class ExposureSightings:
    """One exposure on its way into the history, with the alerts that wait for their objects' names."""

    exposure: str
    night: str | None
    site: str | None
    filter: str | None
    mjd: float | None  # mid-exposure, UTC; nothing is associated without
    exptime: float | None
    chips: tuple[ChipSightings, ...]
    alerts: tuple[Alert, ...]

    @property
    def table(self) -> np.ndarray:
        """All chips' rows, chip after chip."""
        return np.concatenate([np.empty(0, SIGHTING), *(chip.table for chip in self.chips)])
