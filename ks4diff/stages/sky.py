"""The sky of a chip: its level, where it shows between the sources, and how its noise varies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy import ndimage

from ks4diff.numerics.defects import clear_above, grow_seeds
from ks4diff.numerics.mesh import classify, mesh_levels, pixel_noise, subtract_lines
from ks4diff.numerics.pools import pool
from ks4diff.numerics.smooth import gaussian_smooth
from ks4diff.products.cells import Cells, cell_grid

STRIP_ROWS = 128  # worked on at a time: 4.7 MB of a chip's width
SMOOTH_PIX = 1.5  # sources are looked for in the image smoothed by this Gaussian
SPREAD_CELL_PIX = 512  # thresholds follow the noise of amplifiers, 1152 px wide, and of vignetting
SPREAD_PATCH_PIX = 128  # looked at in the middle of each such cell: its spread comes out to 2 %
NOISE_CELL_PIX = 288  # a quarter of an amplifier: 80 000 pixels give the variance to 1 %
FEWEST_PIXELS = 1000  # of sky in such a cell, or its neighbours speak for it
SAMPLE_PIXELS = 4_000_000  # of the sky give the spread of all of it to 0.04 %

SKEW_OF_POISSON = 0.012  # mean less median in sigma: 0.007 at 600 electrons; 0.03 with stars in the sky
SKEW_OF_CROWDS = 0.3  # beyond, half of the pixels are sources

T = TypeVar("T")


def over_strips(work: Callable[[slice], T], n_rows: int, strip: int = STRIP_ROWS) -> list[T]:
    """Return what ``work`` gives for each strip of rows, top strip first; two threads."""
    strips = [slice(top, min(top + strip, n_rows)) for top in range(0, n_rows, strip)]
    with pool() as threads:
        return list(threads.map(work, strips))


def sky_level(data: np.ndarray, used: np.ndarray, mesh_pix: int, taken: Cells | None = None) -> Cells:
    """Return the level of the used pixels (bool [y, x]) in cells of about ``mesh_pix``, median filtered.

    ``taken`` is what has been subtracted already, in the same cells; it is part of the level. Cells with
    less than half of the usual number of used pixels, as under a galaxy, take the level of the nearest
    others.
    """
    mesh = min(mesh_pix, max(min(data.shape) // 4, 16))
    cells = Cells(values=np.empty(cell_grid(data.shape, mesh), dtype=np.float32), shape=data.shape)
    rows, columns = cells.values.shape
    y = np.rint(np.linspace(0, data.shape[0], rows + 1)).astype(np.int64)
    x = np.rint(np.linspace(0, data.shape[1], columns + 1)).astype(np.int64)
    with pool() as threads:
        found = list(
            threads.map(lambda j: mesh_levels(data, used, (int(y[j]), int(y[j + 1])), x), range(rows))
        )
    mean, median, sigma, count = np.stack(found, axis=1)
    level = _level(mean, median, sigma)
    if taken is not None:
        level += taken.values
    level = _from_neighbours(level, count >= max(0.5 * np.median(count), 1))
    # a plane goes through the filter unchanged, at the border too: there it is continued
    padded = np.pad(level, 1, mode="reflect" if min(level.shape) > 1 else "edge", **_odd(level))
    cells.values[...] = ndimage.median_filter(padded, 3)[1:-1, 1:-1]
    return cells


def _level(mean: np.ndarray, median: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return the sky's level in cells of these clipped statistics [rows, columns].

    The mean, or where faint stars skew the pixels the mode, 2.5 median - 1.5 mean (as in SExtractor), or the
    median, where that rule fails. Without stars the mode is a bad guess: Poisson noise alone, skewed by 0.04
    at 600 electrons, moves it by -0.016 sigma, and it scatters twice as much.
    """
    skew = (mean - median) / np.maximum(sigma, 1e-30)
    around = ndimage.median_filter(skew, 5, mode="nearest")
    weight = np.clip(around / SKEW_OF_POISSON - 1, 0.0, 1.0)
    mode = np.where(np.abs(skew) < SKEW_OF_CROWDS, 2.5 * median - 1.5 * mean, median)
    return mean + weight * (mode - mean)


def _odd(level: np.ndarray) -> dict[str, str]:
    return {"reflect_type": "odd"} if min(level.shape) > 1 else {}


def _from_neighbours(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the map with each cell that is not known given the value of the nearest that is."""
    if known.all() or not known.any():
        return values
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def subtract_level(data: np.ndarray, level: Cells, used: np.ndarray) -> None:
    """Subtract a map from an image in place; pixels that are not ``used`` (bool [y, x]) become 0."""
    lines, place = _lines(level)
    over_strips(lambda rows: subtract_lines(data, used, lines, place, (rows.start, rows.stop)), len(data))


def _lines(cells: Cells) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return a map on every column at the middles of its rows of cells, and each row's place among them.

    As `Cells.over` interpolates, but the columns once for all rows.
    """
    n = cells.values.shape[0]
    lines = Cells(values=cells.values, shape=(n, cells.shape[1])).over(slice(None), slice(None))
    at = np.clip((np.arange(cells.shape[0]) + 0.5) / cells.size[0] - 0.5, 0, n - 1)
    before = np.floor(at).astype(np.int64)
    return np.ascontiguousarray(lines), (before, (at - before).astype(np.float32))


def mask_sources(data: np.ndarray, used: np.ndarray, *, threshold: float, peak: float) -> None:
    """Clear in place the used pixels (bool [y, x]) of sources and two pixels around them.

    A source is a patch above ``threshold`` that rises above ``peak`` somewhere, both in units of the spread
    of the smoothed image there. Only what peaks higher than noise does: masking the noise's own peaks would
    take 0.035 sigma off the level and 2 % off the noise; summed over a PSF's stamp that level is 2 % of a
    star of S/N 300.
    """
    spread = _smoothed_spread(data, used)
    levels = np.empty(data.shape, dtype=np.uint8)
    lines, (before, part) = _lines(spread)

    def compare(rows: slice) -> None:
        smooth = gaussian_smooth(data, SMOOTH_PIX, rows)
        classify(smooth, lines, (before[rows], part[rows]), (threshold, peak), levels[rows])

    over_strips(compare, len(data))
    grow_seeds(levels)
    marked = np.full((1, 1), 3.0)
    over_strips(lambda rows: clear_above(levels, marked, (rows.start, rows.stop), 2, used), len(data))


def _smoothed_spread(data: np.ndarray, used: np.ndarray) -> Cells:
    """Return the spread of the smoothed image's clean core, cell by cell."""
    cells = Cells(values=np.empty(cell_grid(data.shape, SPREAD_CELL_PIX), dtype=np.float32), shape=data.shape)
    alone = cells.values.size <= 4  # small enough to look at every pixel

    def work(box: tuple[int, int, slice, slice]) -> None:
        j, i, rows, columns = box
        if not alone:
            rows, columns = _middle(rows), _middle(columns)
        smooth = gaussian_smooth(data, SMOOTH_PIX, rows, columns)
        cells.values[j, i] = robust_std(smooth[used[rows, columns]])

    with pool() as threads:
        list(threads.map(work, cells.boxes()))
    values = _from_neighbours(cells.values, cells.values > 0)
    # in a cell full of one galaxy its neighbours' noise counts
    values = ndimage.median_filter(values, 3, mode="nearest")
    return Cells(values=np.maximum(values, 1e-30).astype(np.float32), shape=data.shape)


def _middle(part: slice) -> slice:
    low = (part.start + part.stop - SPREAD_PATCH_PIX) // 2
    return slice(low, low + SPREAD_PATCH_PIX)


def relative_variance(data: np.ndarray, sky: np.ndarray) -> Cells:
    """Return the variance of the sky's pixels (bool [y, x]) in cells, relative to the mean of them all.

    Sky brightness, gain and read noise differ from amplifier to amplifier. Measured from pixel to pixel, so
    that stars too faint to mask do not pass for noise where there are more of them.
    """
    cells = Cells(values=np.ones(cell_grid(data.shape, NOISE_CELL_PIX), dtype=np.float32), shape=data.shape)
    if cells.values.size == 1:
        return cells

    def work(box: tuple[int, int, slice, slice]) -> tuple[float, int]:
        return pixel_noise(data, sky, box[2], box[3])

    with pool() as threads:
        found = np.array(list(threads.map(work, cells.boxes()))).reshape(*cells.values.shape, 2)
    variance, count = found[..., 0] ** 2, found[..., 1]
    known = (count >= FEWEST_PIXELS) & (variance > 0)
    if not known.any():
        return cells
    mean = np.average(variance[known], weights=count[known])
    values = _from_neighbours(variance / mean, known)
    return Cells(values=values.astype(np.float32), shape=data.shape)


def sky_spread(data: np.ndarray, sky: np.ndarray) -> float:
    """Return the spread of the sky's pixels (bool [y, x]), of a sample of whole rows in a large image."""
    step = max(data.size // SAMPLE_PIXELS, 1)
    return robust_std(data[::step][sky[::step]])


def robust_std(values: np.ndarray) -> float:
    """Return the standard deviation of a clean core: from percentiles, then clipped at 4; 0 of nothing."""
    if values.size == 0:
        return 0.0
    low, middle, high = np.percentile(values, [15.87, 50.0, 84.13])
    spread = 0.5 * (high - low)
    core = values[np.abs(values - middle) < 4 * max(spread, 1e-30)]
    return float(core.std(dtype=np.float64)) if core.size else 0.0
