"""Where a chip looked and how deep: small enough to keep for every exposure of a survey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNCOVERED = -32768  # of `ChipCoverage.limit`: no good pixels there
UNKNOWN = 32767  # covered, but without a zero point


@dataclass(frozen=True, kw_only=True)
class ChipCoverage:
    """The sky that one chip covered with good pixels of science image and template.

    ``ra``, ``dec``, ``radius`` degrees of a circle around the chip; ``to_pixel`` float64 [2, 15] the
    polynomial of degree 4 from gnomonic degrees about its middle to pixels (x, y), see
    `ks4diff.stages.coverage`; ``shape`` (rows, columns) of the chip; ``limit`` int16 [rows, columns of cells]
    the 5-sigma AB limit of each cell, millimagnitudes, or `UNCOVERED`, `UNKNOWN`; ``cells`` the HEALPix
    cells that the chip may touch.
    """

    ra: float
    dec: float
    radius: float
    to_pixel: np.ndarray
    shape: tuple[int, int]
    limit: np.ndarray
    cells: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One chip of one exposure of the history, and where its difference is kept."""

    exposure: str
    chip: str
    mjd: float
    filter: str | None
    site: str | None
    quality: str  # pass, warn or fail
    coverage: ChipCoverage
    root: str  # folder of the run
    kept: str | None  # the kept difference, relative to it
