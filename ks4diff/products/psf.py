"""Point-spread functions: one of an image, and one that changes over it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ks4diff.products.cells import Cells


@dataclass(frozen=True, kw_only=True)
class Psf:
    """A PSF sampled at pixels: float32 [n, n], n odd, sum 1, centred on the middle pixel."""

    stamp: np.ndarray
    fwhm_pix: float
    n_stars: int


@dataclass(frozen=True, kw_only=True)
class PsfField:
    """The PSF over an image: ``mean`` plus ``modes`` whose amplitudes change with position.

    ``mean`` float32 [n, n], n odd, sum 1; ``modes`` float32 [m, n, n], each sum 0, m may be 0; ``amplitudes``
    Cells of [m, rows, columns]. ``error`` is no bound but a standard deviation: the rms expected of the
    core's (within one FWHM) most wrong pixel, how stars scatter about the model included, as a fraction of
    the peak; ``fwhm`` pixels; both per cell. ``white``: pixels err independently, as in a mean of few stars,
    rather than as the width does; the error is then the rms of the core's pixels. ``n_stars`` of the whole
    image. ``light_error`` is the standard error of the light that the stamps hold, as a fraction, of noise
    that pixels do not share.
    """

    mean: np.ndarray
    modes: np.ndarray
    amplitudes: Cells
    error: Cells
    fwhm: Cells
    n_stars: int
    white: bool = False
    light_error: float = 0.0

    @classmethod
    def uniform(
        cls, psf: Psf, shape: tuple[int, int], *, error: float = 0.0, white: bool = False
    ) -> PsfField:
        """Return the field that has one PSF everywhere on an image of ``shape``."""
        n = psf.stamp.shape[0]
        return cls(
            mean=psf.stamp,
            modes=np.empty((0, n, n), dtype=np.float32),
            amplitudes=Cells.constant(np.empty(0), shape),
            error=Cells.constant(error, shape),
            fwhm=Cells.constant(psf.fwhm_pix, shape),
            n_stars=psf.n_stars,
            white=white,
        )

    def at(self, x: float, y: float) -> np.ndarray:
        """Return the PSF at pixel (x, y), float32 [n, n], sum 1."""
        return self._sum(self.amplitudes.at(np.array([x]), np.array([y]))[:, 0])

    def stamps(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the PSFs at pixels (x, y) [k], float32 [k, n, n], each of sum 1."""
        return np.stack([self._sum(amplitudes) for amplitudes in self.amplitudes.at(x, y).T])

    def basis(self) -> np.ndarray:
        """Return what PSFs are sums of, float32 [1 + m, n, n]: the mean and the modes."""
        return np.concatenate([self.mean[None], self.modes])

    def shares(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return how much of each of `basis` the PSFs at pixels (x, y) [k] are, float64 [k, 1 + m]."""
        amplitudes = self.amplitudes.at(x, y)
        return np.concatenate([np.ones((1, len(x))), amplitudes]).T

    @cached_property
    def stamp(self) -> np.ndarray:
        """The PSF of median amplitudes, float32 [n, n]: for what needs only one."""
        return self._sum(np.array([np.median(mode) for mode in self.amplitudes.values]))

    @cached_property
    def fwhm_pix(self) -> float:
        """The median FWHM over the image."""
        return float(np.median(self.fwhm.values))

    def typical(self) -> Psf:
        """Return `stamp` and its numbers as one PSF."""
        return Psf(stamp=self.stamp, fwhm_pix=self.fwhm_pix, n_stars=self.n_stars)

    def _sum(self, amplitudes: np.ndarray) -> np.ndarray:
        return (self.mean + np.einsum("m,mij->ij", amplitudes, self.modes)).astype(np.float32)
