"""What the detector does to every image of a chip, as the calibration folder holds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Masters:
    """Master frames of one site, chip and band, on the pixel grid of the assembled chip; None where not made.

    Arrays are [y, x]: ``bias`` float32 counts on top of the overscan level; ``flat`` float32 response, 1 for
    the chip's median, amplifier gains included; ``fringe`` float32 in parts of the sky; ``bad`` bool.
    ``crosstalk`` float64 [n, n]: the part of amplifier j's signal that appears in amplifier i, both counted
    from the left from 0. ``sources`` says which files these are, for the provenance of what they made.
    """

    bias: np.ndarray | None = None
    flat: np.ndarray | None = None
    fringe: np.ndarray | None = None
    bad: np.ndarray | None = None
    crosstalk: np.ndarray | None = None
    sources: tuple[str, ...] = ()
