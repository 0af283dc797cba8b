"""Everything that one science image against one template has given, before alerts are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.products.candidates import Candidates
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference, Match, Quality
from ks4diff.products.registration import Registration


@dataclass(frozen=True, kw_only=True)
class SubtractedChip:
    """One chip after its subtraction: what went in, what came out and how good it is."""

    chip: CalibratedChip
    template: AlignedTemplate
    registration: Registration
    match: Match
    difference: Difference
    candidates: Candidates
    quality: Quality
    limiting_flux: float  # median 5-sigma flux of a point source over the unmasked pixels, science counts
    rb_reasons: tuple[tuple[str, ...], ...] = ()  # of each candidate what moved its score most; () by rules


def without_pixels(subtracted: SubtractedChip) -> SubtractedChip:
    """Return the same without its images: what alerts and reports are made of, a thousandth of the memory.

    PSFs, stars, candidates and cut-outs stay; every pixel array is empty.
    """
    none, no_flags = np.empty((0, 0), dtype=np.float32), np.empty((0, 0), dtype=np.uint16)
    chip, template = subtracted.chip, subtracted.template
    image = replace(chip.image, data=none, flags=no_flags)
    difference = replace(
        subtracted.difference, difference=none, score_corr=none, flux_err=none, flags=no_flags
    )
    return replace(
        subtracted,
        chip=replace(chip, raw=replace(chip.raw, data=none, flags=None), image=image, sky=none.astype(bool)),
        template=replace(template, image=image),
        difference=difference,
    )
