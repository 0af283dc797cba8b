"""Find stars for registration and PSFs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from scipy import ndimage
from scipy.spatial import cKDTree

from ks4diff.products.chip import ReducedChip, StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import PixelFlag


@dataclass(frozen=True, kw_only=True)
class StarsConfig:
    """What counts as a star."""

    threshold_sigma: float = 3.0  # per pixel of the smoothed image
    min_pixels: int = 5
    deblend_contrast: float = 0.005
    min_stars: int = 8  # fewer cannot be registered against chance
    clean_peak_sigma: float = 20.0  # of a clean star's peak, so that its own noise adds little to a PSF
    max_ellipticity: float = 0.35  # of a clean star, above the median
    hit_contrast: float = 3.4  # peak over the smoothed peak: a star of FWHM 1.7 px has 3.2, one hot pixel 7
    enough_clean: int = 6  # with fewer, blended stars are let in: their neighbours are fitted anyway


def find_stars(chip: ReducedChip, config: StarsConfig) -> StarList:
    """Return the detections of a chip, brightest first, with the clean ones marked.

    Raises
    ------
    SkipChip
        With fewer than ``min_stars`` detections.

    """
    data = np.ascontiguousarray(chip.image.data)
    # saturated cores are kept: their stars help to see neighbours for what they are
    mask = (chip.image.flags & ~PixelFlag.SATURATED) != 0
    sep.set_extract_pixstack(max(300_000, data.size // 4))
    sep.set_sub_object_limit(4096)
    objects = sep.extract(
        data,
        config.threshold_sigma,
        err=chip.rms,
        mask=mask,
        minarea=config.min_pixels,
        filter_kernel=star_kernel(),
        deblend_cont=config.deblend_contrast,
    )
    objects = objects[np.isfinite(objects["flux"]) & (objects["flux"] > 0) & (objects["b"] > 0)]
    objects = objects[~_hits(objects, data, config)]
    if len(objects) < config.min_stars:
        raise SkipChip("too few stars", n_stars=float(len(objects)), n_required=float(config.min_stars))
    objects = objects[np.argsort(-objects["flux"], kind="stable")]
    fwhm = 2.3548 * np.sqrt(0.5 * (objects["a"] ** 2 + objects["b"] ** 2))
    return StarList(
        x=objects["x"].astype(np.float64),
        y=objects["y"].astype(np.float64),
        flux=objects["flux"].astype(np.float64),
        fwhm=fwhm,
        clean=_clean(objects, fwhm, chip, config),
    )


def _hits(objects: np.ndarray, data: np.ndarray, config: StarsConfig) -> np.ndarray:
    """Return which detections are sharper than any star: cosmic rays and hot pixels.

    Seventy a million pixels, brighter than most stars: they would pass for the stars of very good seeing.
    """
    smooth = ndimage.gaussian_filter(data, 2.5 / 2.3548)
    y, x = objects["ypeak"], objects["xpeak"]
    return data[y, x] > config.hit_contrast * np.maximum(smooth[y, x], 1e-30)


def star_kernel() -> np.ndarray:
    """Return a 5x5 Gaussian of FWHM 2.5 px: close to optimal for any seeing from 2 to 5 px."""
    offset = np.arange(5) - 2
    return np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * (2.5 / 2.3548) ** 2)).astype(
        np.float32
    )


def _clean(objects: np.ndarray, fwhm: np.ndarray, chip: ReducedChip, config: StarsConfig) -> np.ndarray:
    """Return which detections may build a PSF: bright, star-sized, round, unsaturated, not at the edge."""
    x, y = objects["x"], objects["y"]
    bright = objects["peak"] > config.clean_peak_sigma * chip.rms
    sample = bright if bright.sum() >= 5 else np.ones(len(objects), dtype=bool)
    size = float(np.percentile(fwhm[sample], 30))
    width = (fwhm > 0.7 * size) & (fwhm < 1.5 * size)
    ellipticity = 1 - objects["b"] / objects["a"]
    round_enough = ellipticity < np.median(ellipticity[sample]) + config.max_ellipticity
    margin = 2 * size
    rows, columns = chip.image.shape
    inside = (x > margin) & (y > margin) & (x < columns - 1 - margin) & (y < rows - 1 - margin)
    bad = ndimage.binary_dilation(chip.image.flags != 0, iterations=max(int(1.5 * size), 2))
    on_bad = bad[y.astype(int), x.astype(int)]
    usable = bright & width & round_enough & inside & ~on_bad
    alone = usable & isolated(x, y, objects["flux"], 2.0 * size)
    return alone if alone.sum() >= config.enough_clean else usable


def isolated(x: np.ndarray, y: np.ndarray, flux: np.ndarray, radius: float) -> np.ndarray:
    """Return which stars have no neighbour of a tenth of their flux within ``radius`` px."""
    tree = cKDTree(np.stack([x, y], axis=1))
    alone = np.ones(len(x), dtype=bool)
    for i, j in tree.query_pairs(radius):
        faint, bright = (i, j) if flux[i] < flux[j] else (j, i)
        alone[faint] = False
        alone[bright] &= flux[faint] < 0.1 * flux[bright]
    return alone
