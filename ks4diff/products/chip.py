"""One chip's image on its way from the file to the subtraction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.cells import Cells
from ks4diff.products.ids import ExposureId
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import PsfField


@dataclass(frozen=True, kw_only=True)
class Amplifier:
    """One amplifier's part of an assembled chip: columns [x0, x1), rows [y0, y1), None for all rows.

    The new electronics read each strip from both ends: two amplifiers, lower half first.
    ``overscan`` float32 [rows, n] holds its overscan pixels, counts, None where the file was trimmed;
    ``gain`` electrons per count and ``read_noise`` electrons as the header says, None where it does not.
    """

    name: str  # of the file's extension, such as M01, or M1 ... M8 when the file names none
    x0: int
    x1: int
    y0: int = 0
    y1: int | None = None
    overscan: np.ndarray | None = None
    gain: float | None = None
    read_noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class RawChip:
    """An image as read: native float32 counts, nothing subtracted; header facts, None where absent.

    ``data`` is [y, x] float32, C-contiguous, sky included when the file has it.
    """

    data: np.ndarray
    file: str  # path as given
    hdu: str  # e.g. "0" or "2 (SCI)"
    chip: str = "0"
    wcs: WCS | None = None  # celestial and usable, else None
    gain: float | None = None  # electrons per count
    read_noise: float | None = None  # electrons
    saturation: float | None = None  # counts
    zeropoint: float | None = None  # AB magnitude of one count
    exptime: float | None = None  # seconds
    mjd_mid: float | None = None  # UTC
    filter: str | None = None
    site: str | None = None
    object: str | None = None
    exposure: ExposureId | None = None  # of KMTNet files
    amplifiers: tuple[Amplifier, ...] = ()  # left to right; empty when the instrument is unknown
    flags: np.ndarray | None = None  # uint16 [y, x] PixelFlag bits that the file itself knows
    pointing: tuple[float, float] | None = None  # telescope ICRS degrees, arcminutes wrong
    unit: str = "adu"  # or "electron"


@dataclass(frozen=True, kw_only=True)
class StarList:
    """Detections used for registration and PSFs, brightest first; 0-based pixels, counts."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    fwhm: np.ndarray
    clean: np.ndarray  # bool: isolated enough, round, unsaturated, away from masked pixels

    def __len__(self) -> int:
        """Return the number of stars."""
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class ReducedChip:
    """A chip without its background, masked, its variance known to first order.

    ``background`` is the smooth sky that was subtracted, ``rms`` the spread of the source-free pixels
    ``sky``, unresolved stars included; counts.
    """

    raw: RawChip
    image: MaskedImage
    background: Cells
    rms: float
    sky: np.ndarray  # bool [y, x]: good and free of detected sources
    gain: float  # electrons per count
    gain_source: str  # "given", or how it was guessed


@dataclass(frozen=True, kw_only=True)
class CalibratedChip:
    """A chip ready to be matched: its stars, PSF and noise are known.

    ``raw`` keeps what the header says; its pixels may be gone. ``sky`` bool [y, x]: free of sources.
    """

    raw: RawChip
    image: MaskedImage
    sky: np.ndarray | None  # None of a tile, where it was measured once and for all
    stars: StarList
    psf: PsfField
    noise: NoiseModel
    gain: float
    gain_source: str


@dataclass(frozen=True, kw_only=True)
class AlignedTemplate:
    """The template resampled to the science grid, so it has no WCS of its own.

    Surface brightness (counts per template pixel) is conserved, not flux. ``coverage`` is the fraction
    of science pixels that the template covers with good data; ``noise`` holds what resampling did to it and
    ``gain`` electrons per count as the resampled pixel's Poisson noise shows it. ``area`` is that of a
    science pixel in template pixels: a star of F template counts sums up to F / area here.

    ``nodes`` float64 [2, rows, columns]: template pixels (x, y) at every 16th science pixel, the map that it
    was resampled by; with ``original_noise``, the template's own, `ks4diff.stages.align.noise_near` gives the
    noise model of a patch: it beats over the chip with the sub-pixel phase.
    """

    image: MaskedImage
    psf: PsfField
    noise: NoiseModel
    gain: float
    coverage: float
    area: Cells
    nodes: np.ndarray | None = None  # None of a template made on the science grid: ``noise`` holds everywhere
    original_noise: NoiseModel | None = None
    stars: StarList | None = None  # the template's list on the science grid, fluxes as here; None if unknown
