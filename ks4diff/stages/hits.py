"""Tell cosmic rays from sources in one exposure: by whether the light went through the PSF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from ks4diff.numerics.moments import stamps
from ks4diff.numerics.pools import pool
from ks4diff.numerics.psf_grid import transform
from ks4diff.numerics.track_fit import Gains, explained
from ks4diff.numerics.track_tables import light_table
from ks4diff.products.candidates import FLAG_BIT, Candidates
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match
from ks4diff.stages.on_scale import science_on_scale, template_on_scale

GRID = 64  # pixels of the stamps that are predicted from the other image; its kernels fade within 20


@dataclass(frozen=True, kw_only=True)
class HitsConfig:
    """When charge in a few pixels explains a candidate better than light through the PSF."""

    margin: float = 9.0  # of chi²: stars have at most 0 down to 5 sigma, nearly all hits more than 30
    template_margin: float = 20.0  # likewise of hits in the template, whose noise is correlated
    pixel_price: float = 9.0  # chi² that a further pixel of free charge must explain
    model_error: float = 0.03  # of the PSF, per pixel: a star of S/N 1000 is no worse than one of 100
    static_error: float = 0.1  # of what the other image predicts, per pixel
    struck_source: float = (
        60.0  # chi² of light beyond all charge: a source that was struck; hits alone have < 40
    )
    prediction_floor: float = 0.02  # of the squared transfer: where the other image shows less, it is silent


class _Side(NamedTuple):
    """One image of the pair in a rectangle: what it shows, science counts, and what may have struck it."""

    own: np.ndarray
    other: np.ndarray
    good: np.ndarray
    psf: np.ndarray
    other_psf: np.ndarray
    fwhm: float
    sigma: float
    other_sigma: float
    gain: float


def flag_hits(
    candidates: Candidates,
    chip: CalibratedChip,
    template: AlignedTemplate,
    match: Match,
    config: HitsConfig,
) -> Candidates:
    """Return the candidates with "cosmic_ray" raised where the charge did not come through the PSF.

    Their columns "point_chi2", "light_chi2", "charge_chi2" and "struck_chi2" tell what decided, NaN where the
    middle pixels are masked.

    Around each candidate the image that is the brighter one, less what the other predicts, is explained
    twice: as a point source or a short streak, convolved with the PSF, and as charge in a few pixels, free or
    along a track. The likelihood ratio decides. A source that is broader than the PSF is never a hit, nor is
    one that a particle struck, "sharp" as it looks: then light and charge together explain far more.
    """
    table = candidates.table.copy()
    gains = gains_of(table, chip, template, match, config)
    charge = np.maximum(gains.pixels, gains.track)
    table["point_chi2"], table["light_chi2"] = gains.point, gains.light
    table["charge_chi2"], table["struck_chi2"] = charge, gains.struck
    limit = np.where(table["is_positive"], config.margin, config.template_margin)
    hit = charge - gains.light > limit  # NaN where nothing can be said
    struck = hit & (gains.struck - charge > config.struck_source)
    table["flags"][hit & ~struck] |= FLAG_BIT["cosmic_ray"]
    table["flags"][struck] &= ~FLAG_BIT["sharp"]
    return replace(candidates, table=table)


def gains_of(table, chip, template, match, config: HitsConfig) -> Gains:
    """Return the `Gains` of each candidate, NaN where the middle pixels are masked."""
    out = np.full((5, len(table)), np.nan)

    def work(part: tuple[np.ndarray, tuple[slice, slice]]) -> None:
        rows, box = part
        both = _sides(box, chip, template, match)
        for positive, side in zip((True, False), both, strict=True):
            of_sign = rows[table["is_positive"][rows] == positive]
            if len(of_sign):
                x, y = table["x"][of_sign] - box[1].start, table["y"][of_sign] - box[0].start
                out[:, of_sign] = _explain(side, x, y, config)

    with pool() as threads:
        list(threads.map(work, _parts(table, chip.image.shape)))
    return Gains(*out)


def _parts(table, shape) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
    """Yield (row numbers, rectangle of pixels around them) by cells of one PSF."""
    cells = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape)
    j, i = cells.cell_of(table["x"], table["y"])
    for row, column, ys, xs in cells.boxes():
        box = tuple(
            slice(max(s.start - GRID, 0), min(s.stop + GRID, n)) for s, n in zip((ys, xs), shape, strict=True)
        )
        rows = np.flatnonzero((j == row) & (i == column))
        if len(rows):
            yield rows, box


def _sides(box, chip, template, match) -> tuple[_Side, _Side]:
    """Return the science image with the template beside it, as positive candidates see them, and reversed."""
    y, x = (0.5 * (s.start + s.stop - 1) for s in box)
    science = science_on_scale(chip, match, *box)
    reference = template_on_scale(template, match, *box)
    scale = float(match.scale.at(x, y))
    good = (chip.image.flags[box] == 0, template.image.flags[box] == 0)
    images = (np.where(good[0], science, np.float32(0)), np.where(good[1], reference, np.float32(0)))
    psfs = (chip.psf.at(x, y), template.psf.at(x, y))
    sigmas = (match.science_noise.sigma, match.template_noise.sigma * scale)
    gains = (chip.gain, template.gain / scale)
    widths = (chip.psf.fwhm_pix, template.psf.fwhm_pix)
    return tuple(
        _Side(
            own=images[own],
            other=images[other],
            good=good[own],
            psf=psfs[own],
            other_psf=psfs[other],
            fwhm=widths[own],
            sigma=sigmas[own],
            other_sigma=sigmas[other],
            gain=gains[own],
        )
        for own, other in ((0, 1), (1, 0))
    )


def _explain(side: _Side, x: np.ndarray, y: np.ndarray, config: HitsConfig) -> Gains:
    """Return the `Gains` of candidates at pixels (x, y) of the rectangle."""
    half = min(max(int(np.ceil(1.5 * side.fwhm)) + 1, 5), GRID // 2 - 1)
    kernel, noise, lost = _prediction(side, config.prediction_floor)
    around = stamps(side.other, x, y, GRID // 2, 0.0)[:, :GRID, :GRID]
    static = fft.irfft2(fft.rfft2(around) * kernel.astype(np.complex64), (GRID, GRID))
    middle = slice(GRID // 2 - half, GRID // 2 + half + 1)
    static = static[:, middle, middle]
    data = stamps(side.own, x, y, half, 0.0) - static
    used = stamps(side.good, x, y, half, False)
    smooth = ndimage.uniform_filter(np.maximum(data, 0), (1, 3, 3), mode="nearest")
    light = np.maximum(static, 0)
    variance = side.sigma**2 + noise * side.other_sigma**2 + (light + smooth) / side.gain
    # what the prediction lacks rings around a source, over about a FWHM
    ringing = ndimage.maximum_filter(light, (1, *2 * (int(side.fwhm) | 1,)))
    variance += (
        (config.static_error * light) ** 2 + (lost * ringing) ** 2 + (config.model_error * smooth) ** 2
    )
    weight = np.where(used, 1 / variance, 0.0)
    table = light_table(side.psf, side.fwhm, 2 * half + 1)
    gains = np.stack(explained(data, weight, table, price=config.pixel_price, own_radius=side.fwhm))
    core = used[:, half - 1 : half + 2, half - 1 : half + 2]
    return Gains(*np.where(core.all(axis=(1, 2)), gains, np.nan))


def _prediction(side: _Side, floor: float) -> tuple[np.ndarray, float, float]:
    """Return (transform on `GRID`², noise power, peak lost) of the kernel that brings the other image here.

    The last is the largest error of a star so predicted, a fraction of its peak.
    """
    a = transform(_fit_grid(side.psf), (GRID, GRID))
    b = transform(_fit_grid(side.other_psf), (GRID, GRID))
    kernel = (1 + floor) * a * np.conj(b) / (np.abs(b) ** 2 + floor)
    left = fft.irfft2(a - kernel * b, (GRID, GRID))
    lost = float(np.abs(left).max() / side.psf.max())
    return kernel, float((fft.irfft2(kernel, (GRID, GRID)) ** 2).sum()), lost


def _fit_grid(psf: np.ndarray) -> np.ndarray:
    """Return the middle of a PSF no larger than the grid."""
    low = max((psf.shape[0] - (GRID - 1)) // 2, 0)
    return psf[low : psf.shape[0] - low, low : psf.shape[0] - low].astype(np.float64)
