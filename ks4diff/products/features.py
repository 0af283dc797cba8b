"""The features of real/bogus models: names and definitions are data, and their hash is the version."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Feature(NamedTuple):
    """One number of a candidate; ``core`` ones make the short vector."""

    name: str
    core: bool
    definition: str


# N, R, D, S: science, template on its scale, difference, S_corr, 63x63 pixels around c, the pixel of the peak
# of S. If S[c] < 0, D and S change sign and N and R places. d, n, t: D, N, R over the noise of a sky pixel.
# p: PSF of D at the sub-pixel peak, f its FWHM (at most 11 px). W_k: k x k box, A_r: disc of radius r, on
# c, good pixels only. F = sum(p d) / sum(p²) in A_2f. "over p's": divided by the same of p. 0/0 is 0; ratios
# are clipped to +-50. chi² of charge, light and so on: what each explains of the brighter image less what the
# other predicts (`ks4diff.stages.hits`), 0 where unknown; a root keeps the sign of what is under it.
FEATURES = (
    Feature("s_peak", True, "S[c]"),
    Feature("s_neg", True, "-min(S, 0 in A_2f) / S[c]"),
    Feature("s_width", True, "sqrt of pixels 4-connected to c with S > S[c]/2 in W_15, over that of p*p"),
    Feature("s_asym", False, "sum|S(r) - S(-r)| / sum|S| in A_1.5f"),
    Feature("s_second", False, "highest other local maximum of S in 2f < r <= 4f / S[c]"),
    Feature("psf_s_ratio", True, "sum(p d) / sqrt(sum(p²)) / S[c]"),
    Feature("psf_chi2", True, "sum((d - F p)²) / (pixels - 1), A_2f"),
    Feature("psf_corr", True, "Pearson(d, p), A_2f"),
    Feature("psf_resmax", False, "max|d - F p| / (F max p), A_2f"),
    Feature("cr_test", True, "(F² sum(p²) - d[c]²) / sum(d²), A_2f"),
    Feature("ap_psf", True, "-2.5 log10 of (sum d / sum p in A_f) / F, held to +-5; 5 if F <= 0"),
    Feature("conc", True, "sum d in A_0.5f / in A_1.5f, over p's"),
    Feature("sharp", True, "(d[c] - mean of its 8 neighbours) / F, over p's"),
    Feature("spread", False, "SPREAD_MODEL: sum(g d)/sum(p d) - sum(g p)/sum(p²), g = p * exp. disc of f/16"),
    Feature("fwhm_rat", True, "rms width of max(d, 0) weighted by a Gaussian of f, A_2f, over p's"),
    Feature("a_rat", True, "major width of the same moments, over p's"),
    Feature("b_rat", True, "minor width, over p's"),
    Feature("elong", True, "major over minor width, at most 50"),
    Feature("pa_col", False, "(1 - minor/major) |sin(angle of the major axis from x)|"),
    Feature("cen_off", True, "|centroid of max(d, 0) in W_7 - sub-pixel peak of S| / f"),
    Feature("peak_off", False, "|argmax d in W_9 - c| / f"),
    Feature("n2neg5", True, "count d <= -2 in W_5"),
    Feature("n3neg5", True, "count d <= -3 in W_5"),
    Feature("n2neg7", True, "count d <= -2 in W_7"),
    Feature("n3neg7", True, "count d <= -3 in W_7"),
    Feature("nneg5", True, "count d < 0 in W_5"),
    Feature("sumrat", True, "sum m / sum|m| in W_5, m = 3x3 median of d"),
    Feature("neg_frac", True, "sum max(-d, 0) / sum max(d, 0), A_2f"),
    Feature("dip_amp", True, "-min(d, 0) / max d, A_2f"),
    Feature("dip_sep", False, "|argmax - argmin of d| / f, A_3f"),
    Feature("dip_dchi2", True, "share of the chi² of F p that F p + g.grad p takes off, A_2f"),
    Feature("dip_shift", False, "|g| / |F| px, at most 5"),
    Feature("rot_asym", False, "sum|d(r) - d(-r)| / sum|d|, A_1.5f"),
    Feature("t_snr", True, "sum t / sqrt(pixels), A_f"),
    Feature("frac_var", True, "sum D / (sum D + max(sum R, 0)), A_f"),
    Feature("flux_ratio", False, "(sum D - sum R) / |sum R|, radius 5 px"),
    Feature("n2shift5", True, "count d >= 2 - count t >= 2 in W_5"),
    Feature("n3shift7", False, "count d >= 3 - count t >= 3 in W_7"),
    Feature("t_dist", True, "distance to the nearest peak t >= 5 within 12 px / f, at most 5; else 5"),
    Feature("t_conc", True, "conc of t there, over that of R's PSF on a pixel; 0 without"),
    Feature("t_grad", False, "mean |grad t|, A_f"),
    Feature("sci_corr", True, "Pearson(n, PSF of N at the peak), A_2f"),
    Feature("sci_cons", True, "D - (N - R), sums in A_1.5f over their PSFs', over the noise of N and R"),
    Feature("excess_var", False, "share of the variance of S at c that is not the sky's"),
    Feature("lacos", False, "max d / max(med3 - med7(med3)), W_11"),
    Feature("col_med", False, "highest median d of the middle 31 columns"),
    Feature("row_med", False, "highest median d of the middle 31 rows"),
    Feature("col_min", False, "lowest median d of the middle 31 columns"),
    Feature("line_max", True, "highest sum d / sqrt(pixels) of 16 lines through c, 1.5f < |k| <= 30"),
    Feature("line_c4", False, "cos 4 theta of that line"),
    Feature("l1", False, "log10(sum|d| / |sum d|), 63x63"),
    Feature(
        "ring_rms",
        False,
        "1.4826 median |d - median|, every second pixel of min(4f, 20) < r <= 31",
    ),
    Feature("nbad5", False, "flagged pixels in W_5"),
    Feature("mask_frac", False, "flagged share of 63x63"),
    Feature("sat_dist", False, "distance to the nearest saturated pixel of N or R / f, at most 10"),
    Feature("edge_dist", False, "distance to the border of the image, at most 100 px"),
    Feature("xtalk", False, "ghost of another amplifier expected here, over |flux|"),
    Feature("log_dens", False, "log10 of other |S| >= 5 per (150 px)² within 450 px, at least 0.01"),
    Feature("see_rat", False, "FWHM of N over that of R"),
    Feature("nexp_frac", False, "share of single exposures >= 3 sigma at c, NaN of no stack"),
    Feature("hit_ratio", False, "chi² of charge over chi² of light"),
    Feature("hit_gain", False, "root of chi² of charge less that of light"),
    Feature("struck_gain", False, "root of chi² of a struck source less the larger of light's and charge's"),
    Feature("streak_gain", False, "root of chi² of light less that of a point source"),
    Feature("trail_gain", False, "root of chi² that a streak through p explains beyond a point source"),
    Feature("dipole_gain", False, "root of chi² that two points of opposite sign explain beyond one"),
)
FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
VECTOR_NAME = "ks4rb-f2"
PEAK = "s_peak"  # the feature that what the |S_corr| says is put to


def definitions_hash() -> str:
    """Return 16 hex digits of the sha256 of all names and definitions, in order."""
    text = "\n".join(f"{feature.name}\t{feature.definition}" for feature in FEATURES)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
