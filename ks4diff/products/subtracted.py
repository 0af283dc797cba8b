"""Everything that one science image against one template has given, before alerts are chosen."""

from __future__ import annotations

from dataclasses import dataclass

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
