"""Measure the PSF of an image, and its change over the image, from the stars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.numerics.moments import half_max_width
from ks4diff.products.cells import CELL_PIX, cell_grid
from ks4diff.products.chip import StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_field import build_field
from ks4diff.stages.psf_single import average, gaussian, single_psf
from ks4diff.stages.psf_stars import Measurer, Sample, chosen_stars
from ks4diff.stages.stack_frames import Dithers

__all__ = ["PsfConfig", "model_psf"]

ENOUGH = 60  # clean stars of a small image for more than `single_psf`
START_STARS = 120  # enough for a first PSF
BROADEST_PIX = 20.0  # FWHM of stars: particles are told from light in stamps of 64 px, 3 FWHM


def model_psf(
    image: MaskedImage,
    stars: StarList,
    gain: float,
    config: PsfConfig,
    dithers: Dithers | None = None,
) -> tuple[PsfField, StarList]:
    """Return (psf, stars): the PSF over an image, and its stars with positions and fluxes fitted with it.

    Small images, of one cell of 1024 px, get one PSF (`single_psf`). Larger ones: a first PSF from some
    cells, then twice: stars fitted cell by cell with the PSF of their place, the clean ones cut out
    and the field built from them (`build_field`). With few stars the field is constant. ``dithers`` are
    those of a stack, where it is one.

    Raises
    ------
    SkipChip
        With fewer than ``min_stars`` stars to average, or stars broader than `BROADEST_PIX`.

    """
    if stars.clean.sum() < config.min_stars:
        raise SkipChip("too few clean stars for a PSF", n_clean=float(stars.clean.sum()))
    if (width := float(np.median(stars.fwhm[stars.clean]))) > BROADEST_PIX:
        raise SkipChip("stars are too broad for a PSF", fwhm_pix=width)
    if cell_grid(image.shape, CELL_PIX) == (1, 1) and stars.clean.sum() < ENOUGH:
        return single_psf(image, stars, gain, config)
    cells = int(np.prod(cell_grid(image.shape, CELL_PIX)))
    # a whole chip has stars enough for less of each cell
    per_cell = min(config.stars_per_cell, max(config.stars_in_all // cells, 40))
    # half of them are enough to start from
    few, chosen = (chosen_stars(stars, image.shape, n) for n in (per_cell // 2, per_cell))
    fitted = np.stack([stars.x, stars.y, stars.flux]).astype(np.float64)
    fwhm = max(float(np.percentile(stars.fwhm[stars.clean], 25)), 1.5)
    fitted, field = _first(image, gain, (fitted, few, fwhm), config)
    fwhm = field.fwhm_pix
    # a third pass changed the median core error of 77 cells by 0.02 % of the peak at most
    for last in (False, True):
        shows = chosen if last else few
        measurer = Measurer(image=image, gain=gain, chosen=shows, core=max(round(fwhm), 2))
        # the first passes need only the stars that show the PSF and who shines into their stamps
        who = np.ones(len(stars), dtype=bool) if last else measurer.around(fitted, field)
        fitted[:, who], sample = replace(measurer, chosen=shows[who]).measure(
            fitted[:, who], field, measurer.cells(), 3
        )
        _enough(sample, config)
        field, used = build_field(sample, field, fwhm, config, last=last, dithers=dithers)
        _enough(used, config)
    return field, replace(stars, x=fitted[0], y=fitted[1], flux=fitted[2])


def _enough(sample: Sample, config: PsfConfig) -> None:
    if len(sample.x) < config.min_stars:
        raise SkipChip("too few clean stars for a PSF", n_clean=float(len(sample.x)))


def _first(image: MaskedImage, gain: float, start, config: PsfConfig) -> tuple[np.ndarray, PsfField]:
    """Return (stars fitted, the constant PSF) after rounds on the cells richest in chosen stars."""
    fitted, chosen, fwhm = start
    stamp = _stamp(gaussian, fwhm, config)
    fitted[2] = _fluxes(image, fitted, stamp.max(), chosen)
    for k in range(3):
        measurer = Measurer(image=image, gain=gain, chosen=chosen, core=max(round(fwhm), 2))
        psf = Psf(stamp=stamp, fwhm_pix=fwhm, n_stars=0)
        field = PsfField.uniform(psf, image.shape)
        boxes = _richest(measurer, fitted)
        fitted, sample = measurer.measure(fitted, field, boxes, 3)
        _enough(sample, config)
        weights = sample.known * np.minimum(sample.flux, np.percentile(sample.flux, 75))[:, None, None]
        stamp, error = average(sample.stamps, weights, stamp, config.clip_sigma)
        fwhm = half_max_width(stamp)
        if k == 0:
            stamp = _resized(stamp, fwhm, config)
    psf = Psf(stamp=stamp.astype(np.float32), fwhm_pix=fwhm, n_stars=len(sample.x))
    return fitted, PsfField.uniform(psf, image.shape, error=error)


def _stamp(draw, fwhm: float, config: PsfConfig) -> np.ndarray:
    return draw(2 * _half(fwhm, config) + 1, fwhm)


def _half(fwhm: float, config: PsfConfig) -> int:
    return max(int(np.ceil(config.field_radius_fwhm * max(fwhm, 2.0))), config.least_half_pix)


def _resized(stamp: np.ndarray, fwhm: float, config: PsfConfig) -> np.ndarray:
    """Return the stamp cut or filled with 0 to the size that its width asks for."""
    have, want = stamp.shape[0] // 2, _half(fwhm, config)
    if want > have:
        return np.pad(stamp, want - have)
    cut = stamp[have - want : have + want + 1, have - want : have + want + 1]
    return cut / cut.sum()


def _fluxes(image: MaskedImage, stars: np.ndarray, peak: float, chosen: np.ndarray) -> np.ndarray:
    """Return float64 [n]: the list's fluxes on this image's scale, which may be another's."""
    x, y = (np.clip(np.rint(stars[k]).astype(int), 0, image.shape[1 - k] - 1) for k in (0, 1))
    seen = chosen & (image.flags[y, x] == 0) & (stars[2] > 0)
    if not seen.any():
        return stars[2]
    ratio = float(np.median(image.data[y[seen], x[seen]] / peak / stars[2, seen]))
    return stars[2] * max(ratio, 0.0)


def _richest(measurer: Measurer, stars: np.ndarray) -> list[tuple[slice, slice]]:
    """Return the cells with most chosen stars, as many as hold enough of them for a first PSF."""
    x, y = stars[:2, measurer.chosen]
    boxes = measurer.cells()
    held = [int(((x >= c.start) & (x < c.stop) & (y >= r.start) & (y < r.stop)).sum()) for r, c in boxes]
    order = sorted(range(len(boxes)), key=lambda k: (-held[k], k))
    enough = int(np.searchsorted(np.cumsum([held[k] for k in order]), START_STARS)) + 1
    return [boxes[k] for k in order[:enough]]
