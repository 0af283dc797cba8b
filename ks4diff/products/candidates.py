"""Detections and measured candidates: columns and flags are data, from which files are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class CandidateFlag(NamedTuple):
    """One bit of the candidates' ``flags`` column; a rejecting flag keeps a candidate from alerts."""

    bit: int
    name: str
    rejecting: bool
    description: str


CANDIDATE_FLAGS = (
    CandidateFlag(1, "saturated", True, "science saturated within one FWHM"),
    CandidateFlag(2, "template_saturated", True, "template saturated within one FWHM"),
    CandidateFlag(4, "no_data", True, "pixels without data within one FWHM, in either image"),
    CandidateFlag(8, "edge", True, "cut-off by the border of the image or of the template"),
    CandidateFlag(16, "dipole", True, "a lobe of the other sign beside it of at least 60 % of its score"),
    CandidateFlag(32, "sharp", True, "narrower than the PSF: a cosmic ray or hot pixel"),
    CandidateFlag(64, "bleed", True, "on a row or column that a saturated star has spilt into"),
    CandidateFlag(128, "near_saturated", False, "a saturated star within five FWHM"),
    CandidateFlag(256, "on_source", False, "a template source at the position: variable, host or residual"),
    CandidateFlag(512, "cosmic_ray", True, "charge, not light through the PSF, or not in another exposure"),
    CandidateFlag(1024, "alone", False, "not in another exposure of the visit that should show it; may move"),
    CandidateFlag(2048, "trail", True, "on a straight trail, of a satellite, that explains it"),
    CandidateFlag(4096, "crosstalk", True, "where a bright source of another amplifier may leave a ghost"),
    CandidateFlag(8192, "residual", True, "within what a bright star leaves around itself"),
    CandidateFlag(16384, "masked", True, "filled pixels amid it, so that its score is no measurement"),
)
FLAG_BIT = {flag.name: flag.bit for flag in CANDIDATE_FLAGS}
REJECTING_BITS = sum(flag.bit for flag in CANDIDATE_FLAGS if flag.rejecting)


def flag_names(bits: int) -> tuple[str, ...]:
    """Return the names of the raised bits, lowest bit first."""
    return tuple(flag.name for flag in CANDIDATE_FLAGS if bits & flag.bit)


class Column(NamedTuple):
    """One column of candidates.fits; unit "flux" means the run's flux unit (nJy or count)."""

    name: str
    dtype: str
    unit: str
    description: str


COLUMNS = (
    Column("id", "i8", "", "number of the candidate within this chip, by falling |scorr|"),
    Column("ra", "f8", "deg", "ICRS right ascension, NaN without a WCS"),
    Column("dec", "f8", "deg", "ICRS declination, NaN without a WCS"),
    Column("x", "f8", "pix", "0-based column of the science chip, pixel centres at integers"),
    Column("y", "f8", "pix", "0-based row of the science chip"),
    Column("x_err", "f4", "pix", "standard error of x"),
    Column("y_err", "f4", "pix", "standard error of y"),
    Column("xy_cov", "f4", "pix2", "covariance of x and y"),
    Column("scorr", "f4", "", "signed S_corr at its sub-pixel peak, unit normal on blank sky"),
    Column("snr", "f4", "", "|flux| / flux_err"),
    Column("flux", "f4", "flux", "signed PSF flux, science minus template"),
    Column("flux_err", "f4", "flux", "standard error of flux, source noise included"),
    Column("mag", "f4", "mag", "AB magnitude of |flux|, NaN without a zero point"),
    Column("mag_err", "f4", "mag", "standard error of mag"),
    Column("is_positive", "?", "", "brighter in the science image than in the template"),
    Column("rb", "f4", "", "real/bogus score, 0 bogus to 1 real, NaN when withheld"),
    Column("flags", "i4", "", "candidate flags, bits named in the header"),
    Column("ap_flux", "f4", "flux", "difference flux in a circle of one FWHM radius"),
    Column("ap_flux_err", "f4", "flux", "standard error of ap_flux"),
    Column("sci_flux", "f4", "flux", "PSF flux in the science image at the position"),
    Column("sci_flux_err", "f4", "flux", "standard error of sci_flux"),
    Column("tmpl_psf_flux", "f4", "flux", "PSF flux in the template at the position, on the science scale"),
    Column("tmpl_psf_flux_err", "f4", "flux", "standard error of tmpl_psf_flux"),
    Column("sci_ap_flux", "f4", "flux", "science flux in the circle of ap_flux"),
    Column("sci_ap_flux_err", "f4", "flux", "standard error of sci_ap_flux"),
    Column("template_flux", "f4", "flux", "template flux in the same circle, on the science scale"),
    Column("template_flux_err", "f4", "flux", "standard error of template_flux"),
    Column("psf_chi2", "f4", "", "chi² per pixel of the PSF fit to the difference"),
    Column("psf_corr", "f4", "", "Pearson correlation of the difference with its PSF"),
    Column("fwhm", "f4", "pix", "width of the difference source from Gaussian-weighted moments"),
    Column("elongation", "f4", "", "major over minor axis of the same moments"),
    Column("ixx", "f4", "pix2", "second moment along x, of which fwhm and elongation are made"),
    Column("iyy", "f4", "pix2", "second moment along y"),
    Column("ixy", "f4", "pix2", "mixed second moment"),
    Column("sharpness", "f4", "", "peak over its neighbours, divided by the same of the PSF"),
    Column("sharpness_err", "f4", "", "standard error of sharpness"),
    Column("opposite", "f4", "", "largest score of the other sign within two FWHM, over |scorr|"),
    Column("dipole_pos_flux", "f4", "flux", "flux of the positive of two points of opposite sign"),
    Column("dipole_neg_flux", "f4", "flux", "flux, below 0, of the negative one"),
    Column("dipole_sep", "f4", "pix", "distance between the two, 0.5 pix to 2.5 FWHM"),
    Column("dipole_angle", "f4", "deg", "direction from the negative to the positive one, +x to +y"),
    Column("dipole_dchi2", "f4", "", "chi² that two points of opposite sign explain beyond one point"),
    Column("trail_length", "f4", "pix", "length of the best even streak through the PSF, 0 to 60"),
    Column("trail_angle", "f4", "deg", "direction of the streak, from +x towards +y, 0 to 180"),
    Column("trail_dchi2", "f4", "", "chi² that the streak explains beyond one point"),
    Column("point_chi2", "f4", "", "chi² that a point source explains of the brighter image less the other"),
    Column("light_chi2", "f4", "", "the same of a point source or a short streak"),
    Column("charge_chi2", "f4", "", "the same of charge in a few pixels that did not pass the PSF"),
    Column("struck_chi2", "f4", "", "the same of a point source with such charge on it"),
    Column("motion", "f4", "", "translient Z² at the position, chi² of 2 where nothing moved, NaN unknown"),
    Column("masked_fraction", "f4", "", "fraction of flagged pixels within one FWHM"),
    Column("saturated_distance", "f4", "pix", "distance to the nearest saturated pixel, at most 100"),
    Column("edge_distance", "f4", "pix", "distance to the nearest border of the science image"),
    Column("source_distance", "f4", "pix", "distance to the nearest source of the template, NaN of none"),
    Column("source_distance_arcsec", "f4", "arcsec", "the same on the sky, NaN without a WCS"),
    Column("source_flux", "f4", "flux", "flux of that source, on the science scale"),
    Column("source_mag", "f4", "mag", "AB magnitude of source_flux, NaN without a zero point"),
    Column("source_extent", "f4", "", "its FWHM over that of the template's stars: 1 star, > 1.25 galaxy"),
    Column("crosstalk_ratio", "f4", "", "largest ghost of another amplifier expected here, over |flux|"),
    Column("density", "f4", "arcmin-2", "other candidates within 3', NaN without a WCS"),
    Column("rb_flags", "i4", "", "why rb is withheld or weak, bits named with the model"),
)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Peaks of |S_corr| above threshold, strongest first: 0-based pixel positions and signed peaks."""

    x: np.ndarray
    y: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Measured detections, one row each.

    ``table`` is a structured array with the dtype of `COLUMNS`; ``cutouts`` is float32 [m, 3, k, k]
    (science, template on the science flux scale, difference), masked pixels NaN, of the rows ``shown``
    int64 [m], ascending, None where of all; ``flux_unit`` "nJy" or "count".
    """

    table: np.ndarray
    cutouts: np.ndarray
    flux_unit: str
    shown: np.ndarray | None = None

    def cutout(self, row: int) -> np.ndarray:
        """Return the cut-outs of one row, [3, k, k]."""
        if self.shown is None:
            return self.cutouts[row]
        (at,) = np.flatnonzero(self.shown == row)
        return self.cutouts[at]

    def __len__(self) -> int:
        return len(self.table)


def empty_table(n: int) -> np.ndarray:
    """Return n zeroed rows with the dtype of `COLUMNS`."""
    return np.zeros(n, dtype=[(column.name, column.dtype) for column in COLUMNS])
