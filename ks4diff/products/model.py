"""A real/bogus model: a forest as plain arrays, its calibration, and what its card says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ks4diff.products.features import VECTOR_NAME


class RbFlag(NamedTuple):
    """One bit of the candidates' ``rb_flags`` column; a withholding flag leaves ``rb`` NaN."""

    bit: int
    name: str
    withholds: bool
    description: str


RB_FLAGS = (
    RbFlag(1, "masked", True, "the middle pixel, or half of the pixels within two FWHM, masked"),
    RbFlag(2, "edge", False, "closer to the border than the stamp reaches"),
    RbFlag(4, "saturated", False, "a saturated pixel within five FWHM"),
    RbFlag(8, "crosstalk", False, "a ghost of another amplifier may make up a tenth of it"),
    RbFlag(16, "out_of_range", False, "a feature beyond all that the model was trained on"),
    RbFlag(32, "no_model", False, "scored by rules: there is no model, or it was not asked"),
)
RB_BIT = {flag.name: flag.bit for flag in RB_FLAGS}


@dataclass(frozen=True, kw_only=True)
class Forest:
    """The arrays that `ks4diff.numerics.forest` walks, and breakpoints of the calibration.

    ``roots`` int32 [t]; per node ``feature`` int16, index into the model's features or -1; ``threshold``
    float32; ``right`` int32; ``nan_left`` uint8; ``value`` float64 in [0, 1]. ``calibration_x`` rising and
    ``calibration_y`` not falling, float64 in [0, 1]: the answer as a probability where real and bogus are
    equally many at every |S_corr|. ``prior_x`` rising |S_corr| and ``prior_y`` float64 in (0, 1): the share
    of real ones there before anything else is seen. ``lowest`` and ``highest`` float32 [features] of the
    training set.
    """

    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    right: np.ndarray
    nan_left: np.ndarray
    value: np.ndarray
    calibration_x: np.ndarray
    calibration_y: np.ndarray
    prior_x: np.ndarray
    prior_y: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    def walk(self) -> tuple[np.ndarray, ...]:
        """Return the arrays that walks need, in their order."""
        return self.roots, self.feature, self.threshold, self.right, self.nan_left, self.value

    def evidence(self, answer: np.ndarray) -> np.ndarray:
        """Return float64 [n]: the trees' mean answers as probabilities, whatever the |S_corr|; NaN stays."""
        return np.interp(answer, self.calibration_x, self.calibration_y)

    def probability(self, answer: np.ndarray, scorr: np.ndarray) -> np.ndarray:
        """Return float64 [n]: the probability to be real, by Bayes' rule from evidence and prior.

        ``answer`` [n] of the trees, ``scorr`` [n] of either sign, of the top between the pixels. Prior odds
        are interpolated in its logarithm and constant beyond the breakpoints. Peaks of noise fall tenfold
        from S_corr 5 to 5.6: trees, which see as many sources as bogus at each S_corr lest they learn how
        sources were drawn, cannot know that.
        """
        given = self.evidence(answer)
        strength = np.log(np.maximum(np.abs(scorr).astype(np.float64), 1e-30))
        odds = np.interp(strength, np.log(self.prior_x), np.log(self.prior_y / (1 - self.prior_y)))
        prior = 1 / (1 + np.exp(-odds))
        return given * prior / (given * prior + (1 - given) * (1 - prior))


@dataclass(frozen=True, kw_only=True)
class RbModel:
    """A model that scores candidates: ``features`` by name in the forest's order, and its whole card."""

    version: str  # ks4rb-1.2.0+<8 digits of the arrays' sha256>
    threshold: float  # the score that alerts need by default
    prior: float  # share of real candidates that the score, read as a probability, assumes
    features: tuple[str, ...]
    forest: Forest
    card: Mapping[str, Any]
    vector: str = VECTOR_NAME
