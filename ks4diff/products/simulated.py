"""What a simulated exposure is made of, on its way from the drawing to the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.ids import ExposureId

PRESCAN, OVERSCAN = 27, 32  # columns of each amplifier of the legacy electronics
MASK_BITS = {
    "bad_column": 1,
    "hot_pixel": 1,
    "dead_strip": 1,
    "saturated": 2,
    "crosstalk": 8,
}


@dataclass(frozen=True, kw_only=True)
class SimulatedAmplifier:
    """One readout strip of a chip: columns [x0, x1); gain electrons per count, read noise electrons."""

    x0: int
    x1: int
    gain: float
    read_noise: float
    bias: float  # counts without signal
    dead: bool = False


@dataclass(frozen=True, kw_only=True)
class SimulatedChip:
    """One chip as read out and what is true about it.

    ``counts`` uint16 [y, x] holds the trimmed pixels with their bias, ``bias`` float32 [amplifiers, rows]
    what was added to each row, ``overscan`` uint16 [amplifiers, rows, OVERSCAN] and ``prescan`` likewise.
    ``truth`` are structured arrays and images by name: sources, artefacts, psf, psf_grid,
    fwhm_pix, and struck: bool [y, x], where particles left charge.
    """

    chip: str
    corner: tuple[int, int]  # 0-based corner of the cut-out on the real chip
    counts: np.ndarray
    bias: np.ndarray
    overscan: np.ndarray
    prescan: np.ndarray
    amplifiers: tuple[SimulatedAmplifier, ...]
    true_cards: Mapping[str, str | float]  # of the true TPV WCS
    header_wcs: WCS
    truth: Mapping[str, np.ndarray]
    facts: Mapping[str, float]  # seeing, zero point, sky level and the like, for the truth file's header
    solved_wcs: WCS | None = None  # TAN-SIP, for forms that come with a solution

    def trimmed(self) -> np.ndarray:
        """Return float32 [y, x] counts without bias, as KASI's preprocessing leaves them."""
        out = self.counts.astype(np.float32)
        for amplifier, bias in zip(self.amplifiers, self.bias, strict=True):
            out[:, amplifier.x0 : amplifier.x1] -= bias[:, None]
        return out

    def electrons(self) -> np.ndarray:
        """Return float32 [y, x] electrons without bias, as level 1 of the new electronics gives them."""
        out = self.trimmed()
        for amplifier in self.amplifiers:
            out[:, amplifier.x0 : amplifier.x1] *= np.float32(amplifier.gain)
        return out

    def mask(self) -> np.ndarray:
        """Return uint8 [y, x] of KASI's bits: 1 bad, 2 saturated, 8 crosstalk, 16 seam, 64 cosmic ray."""
        out = np.zeros(self.counts.shape, dtype=np.uint8)
        for row in self.truth["artefacts"]:
            bit = MASK_BITS.get(row["kind"].decode())
            if bit:
                out[max(row["y0"], 0) : max(row["y1"], 0), max(row["x0"], 0) : max(row["x1"], 0)] |= bit
        out[self.truth["struck"]] |= 64
        for amplifier in self.amplifiers[1:]:
            out[:, amplifier.x0 - 1 : amplifier.x0 + 1] |= 16
        return out


@dataclass(frozen=True, kw_only=True)
class ExposureFacts:
    """What every file of an exposure says in its header."""

    id: ExposureId
    object: str
    band: str
    exptime: float  # seconds
    start_mjd: float  # UTC
    pointing: tuple[float, float]  # claimed, ICRS degrees


@dataclass(frozen=True, kw_only=True)
class SimulatedTile:
    """A KS4-like stack: float32 [y, x] at zero point 30, background-free, zeros where there is no data."""

    name: str  # FFFF.RRR-DD, with the chip's letter behind it when each chip has its own
    field: str
    band: str
    data: np.ndarray
    wcs: WCS
    exptime: float
    mjd: float
    fwhm_arcsec: float
    saturation: float
    zeropoint: float
    facts: Mapping[str, float]
