"""The real/bogus score: by a trained forest, or by plain rules where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ks4diff.numerics.features import SIDE
from ks4diff.numerics.forest import contributions, predicted
from ks4diff.products.candidates import REJECTING_BITS, Candidates
from ks4diff.products.features import FEATURE_NAMES, PEAK
from ks4diff.products.model import RB_BIT, RbModel
from ks4diff.stages.features import FeaturesConfig, Scene, candidate_features

RULES_VERSION = "rules-0"
RULES_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which model scores, and how fast each factor of the rules falls."""

    model: str = ""  # folder of a model; empty takes the one that comes with ks4diff, "rules" none
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    reasons: int = 3  # features named with a score, those that moved it most
    crosstalk_share: float = 0.1  # of the flux: a larger ghost may explain enough to mislead
    near_saturated_fwhm: float = 5.0  # as the flag of candidates
    width_tolerance: float = 0.35  # of ln(FWHM over the PSF's) at high S/N
    opposite_scale: float = 0.45  # opposite lobe over peak at which the factor is 1/e
    strong_score: float = 7.0  # |S_corr| at which noise and residuals no longer outnumber real sources
    max_masked_fraction: float = 0.3  # with more pixels masked the score is withheld


def score(candidates: Candidates, fwhm_pix: float, config: ScoreConfig) -> Candidates:
    """Return the candidates with ``rb`` in [0, 1]: how much each looks like a point source that came or went.

    The product of four factors: the correlation with the PSF over that which its noise allows, the width's
    and the sharpness's agreement with the PSF, the lack of a lobe of the other sign, and the significance
    itself. NaN where too many pixels are masked to tell.
    """
    table = candidates.table.copy()
    snr = np.maximum(np.abs(table["scorr"].astype(np.float64)), 1.0)
    # a PSF of S/N s on n noisy pixels correlates to about s / sqrt(s² + n)
    pixels = np.pi * (2 * fwhm_pix) ** 2
    expected = snr / np.sqrt(snr**2 + pixels)
    alike = np.clip(table["psf_corr"] / expected, 0.0, 1.0) ** 2
    tolerance = np.hypot(config.width_tolerance, 2.0 / snr)
    narrow = (table["sharpness"] - 1) / np.hypot(0.4, 2 * table["sharpness_err"])
    width = np.log(np.maximum(table["fwhm"], 1e-3) / fwhm_pix) / tolerance
    agree = np.exp(-0.5 * (np.maximum(narrow, 0.0) ** 2 + width**2))
    noise_lobe = 3.0 / snr  # the deepest of some 50 independent noise values
    lobes = np.exp(-np.maximum(table["opposite"] - noise_lobe, 0.0) / config.opposite_scale)
    strong = 1 - np.exp(-((snr / config.strong_score) ** 2))
    rb = alike * agree * lobes * strong
    withheld = ~np.isfinite(rb) | (table["masked_fraction"] > config.max_masked_fraction)
    table["rb"] = np.where(withheld, np.nan, rb)
    table["rb_flags"] = RB_BIT["no_model"] | np.where(withheld, RB_BIT["masked"], 0)
    return replace(candidates, table=table)


def score_by_model(
    candidates: Candidates, scene: Scene, model: RbModel, config: ScoreConfig
) -> tuple[Candidates, tuple[tuple[str, ...], ...]]:
    """Return the candidates with ``rb`` and ``rb_flags``, and of each what moved its score most.

    ``rb`` is the forest's answer, calibrated: the probability to be real among candidates of which the
    model's ``prior`` is, and at their |S_corr| the share that its breakpoints say. NaN where the stamp cannot
    be trusted. A reason is a feature's name with + or -, as it moved the score up or down; what the share at
    the |S_corr| does is put to its feature.
    """
    table = candidates.table.copy()
    vector = candidate_features(candidates, scene, config.features)
    samples = np.ascontiguousarray(vector[:, [FEATURE_NAMES.index(name) for name in model.features]])
    known = np.isfinite(vector[:, 0])
    forest = model.forest
    rb = np.full(len(table), np.nan)
    raw = predicted(*forest.walk(), samples[known])
    rb[known] = forest.probability(raw, table["scorr"][known])
    table["rb"] = rb
    table["rb_flags"] = _rb_flags(table, samples, known, scene, model, config)
    reasons: list[tuple[str, ...]] = [()] * len(table)
    moved = contributions(*forest.walk(), samples[known])
    moved[:, model.features.index(PEAK)] += rb[known] - forest.evidence(raw)
    strongest = np.argsort(-np.abs(moved), axis=1, kind="stable")[:, : config.reasons]
    for row, by, order in zip(np.flatnonzero(known), moved, strongest, strict=True):
        reasons[row] = tuple(f"{model.features[k]}{'+' if by[k] > 0 else '-'}" for k in order if by[k] != 0)
    return replace(candidates, table=table), tuple(reasons)


def _rb_flags(table, samples, known, scene: Scene, model: RbModel, config: ScoreConfig) -> np.ndarray:
    """Return int32 [n]: why scores are withheld or weak, bits of `RB_FLAGS`."""
    rows, columns = scene.chip.image.shape
    x, y, reach = table["x"], table["y"], SIDE // 2
    beyond = (samples < model.forest.lowest) | (samples > model.forest.highest)
    raised = {
        "masked": ~known,
        "edge": (np.minimum(x, columns - 1 - x) < reach) | (np.minimum(y, rows - 1 - y) < reach),
        "saturated": table["saturated_distance"] < config.near_saturated_fwhm * scene.difference.psf.fwhm_pix,
        "crosstalk": table["crosstalk_ratio"] > config.crosstalk_share,
        "out_of_range": known & beyond.any(axis=1),
    }
    out = np.zeros(len(table), dtype=np.int32)
    for name, value in raised.items():
        out[value] |= RB_BIT[name]
    return out


def rank(candidates: Candidates) -> np.ndarray:
    """Return row numbers, most convincing first: unrejected before rejected, then by rb times |scorr|."""
    table = candidates.table
    rejected = (table["flags"] & REJECTING_BITS) != 0
    worth = np.nan_to_num(table["rb"]) * np.abs(table["scorr"])
    return np.lexsort((-worth, rejected))
