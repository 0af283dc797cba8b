"""What all stars show at one offset: second images, of a telescope that moved or of a reflection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.moments import stamps
from ks4diff.products.chip import AlignedTemplate
from ks4diff.products.difference import Difference
from ks4diff.stages.photometry import limiting_flux


@dataclass(frozen=True, kw_only=True)
class StarImagesConfig:
    """Which stars are put on top of each other, and what of their mean image counts."""

    least_snr: float = 100.0  # flux over the difference's error
    most: int = 100  # stars, the brightest
    fewest: int = 20  # or nothing is said
    inner_fwhm: float = 3.0  # within it lie errors of the PSFs ...
    outer_fwhm: float = 12.0  # ... and so far are images looked for
    least_share: float = 0.005  # of a star's flux: PSFs' wings are known to 0.2 %, MOA 0098 shows 1.2 %
    least_sigma: float = 7.0  # of the scatter of the mean image


@dataclass(frozen=True, kw_only=True)
class StarImages:
    """The share of each star's flux that the difference shows at an offset from it.

    ``share`` float64 [k, k], k odd, the star in the middle: 0 where nothing stands out; ``x``, ``y`` and
    ``flux`` [n] of the stars, pixels and counts of the science image.
    """

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    share: np.ndarray

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the flux of all stars' images at pixels (x, y) [n], counts; negative in the template."""
        total = np.zeros(len(x))
        if not self.share.any() or not len(x):
            return total
        half = self.share.shape[0] // 2
        near = cKDTree(np.stack([x, y], axis=1)).sparse_distance_matrix(
            cKDTree(np.stack([self.x, self.y], axis=1)), half * np.sqrt(2), output_type="ndarray"
        )
        dx = np.rint(x[near["i"]] - self.x[near["j"]]).astype(int)
        dy = np.rint(y[near["i"]] - self.y[near["j"]]).astype(int)
        inside = (np.abs(dx) <= half) & (np.abs(dy) <= half)
        share = self.share[half + dy[inside], half + dx[inside]]
        np.add.at(total, near["i"][inside], share * self.flux[near["j"][inside]])
        return total


def star_images(difference: Difference, template: AlignedTemplate, config: StarImagesConfig) -> StarImages:
    """Return what the template's stars show beside themselves in the difference, all at the same place.

    The median over the brightest stars that are not flagged, of the PSF flux around each over its own flux:
    no neighbour, new source or hit is in half of them. A ring around the stars, or what differs from star to
    star, is `ks4diff.stages.star_residuals`' matter.
    """
    none = StarImages(x=np.empty(0), y=np.empty(0), flux=np.empty(0), share=np.zeros((1, 1)))
    stars, fwhm = template.stars, difference.psf.fwhm_pix
    if stars is None or not len(stars):
        return none
    flux = stars.flux * difference.flux_scale
    x, y = np.rint(stars.x).astype(np.int64), np.rint(stars.y).astype(np.int64)
    rows, columns = difference.flags.shape
    bright = (flux > config.least_snr * limiting_flux(difference) / 5) & (x >= 0) & (x < columns)
    bright &= (y >= 0) & (y < rows)
    bright[bright] &= difference.flags[y[bright], x[bright]] == 0
    chosen = np.flatnonzero(bright)[: config.most]
    if len(chosen) < config.fewest:
        return none
    half = int(config.outer_fwhm * fwhm)
    at = x[chosen], y[chosen], half
    shown = stamps(difference.score_corr, *at, 0.0) * stamps(difference.flux_err, *at, 0.0)
    shown[stamps(difference.flags, *at, 1) != 0] = 0.0
    image = np.median(shown / flux[chosen, None, None].astype(np.float32), axis=0).astype(np.float64)
    offset = np.arange(-half, half + 1)
    outside = np.hypot(offset[:, None], offset[None, :]) > config.inner_fwhm * fwhm
    image -= np.median(image[outside])
    scatter = 1.4826 * np.median(np.abs(image[outside]))
    stands_out = outside & (np.abs(image) > max(config.least_share, config.least_sigma * scatter))
    return StarImages(x=stars.x, y=stars.y, flux=flux, share=np.where(stands_out, image, 0.0))
