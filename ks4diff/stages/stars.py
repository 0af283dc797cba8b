"""Find stars for registration and PSFs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ks4diff.numerics.star_finder import find_maxima, measure_spots, touches_flag
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import ReducedChip, StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import PixelFlag
from ks4diff.stages.sky import over_strips

TRAILED_PIX = 64.0  # side of the squares that tell whether a frame is trailed
# of streaks' directions: trailed frames have 0.997 and more, stars that are rings 0.07 at most, one-sided 0.2
TRAILED_AGREEMENT = 0.5


@dataclass(frozen=True, kw_only=True)
class StarsConfig:
    """What counts as a star."""

    threshold_sigma: float = 7.0  # of a peak in the filtered image: in 85 Mpix no noise peak reaches it
    first_width_pix: float = 1.2  # Gaussian that seeing is first looked for with; fits FWHM 2 to 4
    filter_width: float = (
        0.75  # of the search's Gaussian in the stars' own widths: narrower than they, as ...
    )
    # ... the second Gaussian widens the response again and blends must come apart
    min_stars: int = 8  # fewer cannot be registered against chance
    clean_peak_sigma: float = 20.0  # of a clean star's peak, so that its own noise adds little to a PSF
    least_peak_sigma: float = 8.0  # ... where a cell of 1024 px would have fewer than `enough_in_cell`
    enough_in_cell: int = 20
    full_fraction: float = 0.9  # of the saturation level: from there response may bend
    max_ellipticity: float = 0.35  # of a clean star, above the median
    hit_contrast: float = 3.4  # peak over the smoothed peak: a star of FWHM 1.7 px has 3.2, one hot pixel 7
    least_ratio: float = 0.35  # of the axes: pieces of bad columns and tracks of cosmic rays have less
    trailed_ratio: float = 0.4  # of squares of the bright: a trailed frame has 0.2, one full of tracks 0.64
    column_ratio: float = 0.05  # thinner are bad columns, that no light makes
    trailed_contrast: float = 2.2  # a trail in seeing of 1.7 px has 1.8, a cosmic ray's line of pixels 2.6
    trailed_spots: int = 20  # ... told from so many of them
    core_fwhm: float = 8.0  # a full core may peak several times: within so many FWHM one of them is kept
    enough_clean: int = 6  # with fewer, blended stars are let in: their neighbours are fitted anyway


Table = dict[str, np.ndarray]


def find_stars(chip: ReducedChip, config: StarsConfig) -> StarList:
    """Return the detections of a chip, brightest first, with the clean ones marked.

    Raises
    ------
    SkipChip
        When most bright sources are streaks, by trailing or as pieces of rings that stars out of focus are,
        or there are fewer than ``min_stars``.

    """
    first = _detections(chip, config.first_width_pix, config, _sample(chip.image.shape))
    width = _seeing(first, chip, config) / 2.3548
    found = _detections(chip, width, config)
    n = len(found["x"])
    if n < config.min_stars:
        raise SkipChip("too few stars", n_stars=float(n), n_required=float(config.min_stars))
    return StarList(
        x=found["x"],
        y=found["y"],
        flux=found["flux"],
        fwhm=found["fwhm"],
        clean=_clean(found, chip, config),
    )


def _sample(shape: tuple[int, int]) -> list[slice]:
    """Return the strips of rows that tell the seeing: all of a small image, five of a large one."""
    strips = [slice(top, min(top + 128, shape[0])) for top in range(0, shape[0], 128)]
    return strips[:: max(len(strips) // 5, 1)] if len(strips) > 16 else strips


def _seeing(found: Table, chip: ReducedChip, config: StarsConfig) -> float:
    """Return the FWHM of the stars in pixels, from a sample measured again in a window of their own width."""
    fwhm = 2.3548 * config.first_width_pix
    for _ in range(2):
        if len(found["x"]) < config.min_stars:
            break
        bright = found["peak"] >= np.sort(found["peak"])[-min(len(found["peak"]), 500)]
        fwhm = float(np.clip(np.percentile(found["fwhm"][bright], 30), 1.7, 12.0))
        spots = np.stack([found["spot_y"], found["spot_x"]], axis=1)
        found = {**found, **measure_spots(chip.image.data, spots, fwhm / 2.3548)}
    return fwhm


def _detections(
    chip: ReducedChip, width: float, config: StarsConfig, strips: list[slice] | None = None
) -> Table:
    """Return what a Gaussian window of ``width`` px finds and measures, brightest first, hits left out."""
    image = chip.image
    # a gain that is only assumed says nothing: in units of nanomaggies no star would pass its own noise
    known = not chip.gain_source.startswith("assumed")
    per_source = 1 / max(chip.gain, 1e-6) if known else 0.0

    def work(rows: slice) -> Table:
        # saturated cores are kept: their stars help to see neighbours for what they are
        good = (image.flags[rows] & ~np.uint16(PixelFlag.SATURATED)) == 0
        spots = find_maxima(
            image.data,
            image.sky_variance.over(rows, slice(None)),
            good,
            (rows.start, rows.stop),
            width_pix=config.filter_width * width,
            threshold=config.threshold_sigma,
            per_source=per_source,
        )
        return {
            **measure_spots(image.data, spots, width),
            "spot_y": spots[:, 0],
            "spot_x": spots[:, 1],
        }

    parts = over_strips(work, image.shape[0]) if strips is None else [work(rows) for rows in strips]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # sharper than any star are cosmic rays and hot pixels: seventy a million pixels, brighter than most
    # stars, they would pass for the stars of very good seeing
    real = (found["contrast"] < config.hit_contrast) & (found["flux"] > 0)
    _refuse_streaks(found, real, image.sky_variance, config)
    real &= found["ratio"] > config.least_ratio
    order = np.flatnonzero(real)[np.argsort(-found["flux"][real], kind="stable")]
    found = {name: values[order] for name, values in found.items()}
    kept = _one_per_core(found, chip.image.flags, 2.3548 * width * config.core_fwhm)
    return {name: values[kept] for name, values in found.items()}


def _refuse_streaks(found: Table, real: np.ndarray, variance: Cells, config: StarsConfig) -> None:
    """Raise SkipChip where the bright sources are streaks.

    Of one direction where the telescope did not follow the sky, of all directions where they are pieces of
    rings. Each square of the image speaks once, by the median and the mean of its sources: a satellite's
    trail makes hundreds of peaks, more than a field has stars, but it crosses few squares.
    """
    bright = real & (found["ratio"] > config.column_ratio) & (found["contrast"] < config.trailed_contrast)
    bright &= found["peak"] > config.clean_peak_sigma * np.sqrt(variance.at(found["x"], found["y"]))
    if bright.sum() >= config.trailed_spots:
        squares = Cells(values=np.empty(cell_grid(variance.shape, TRAILED_PIX)), shape=variance.shape)
        j, i = squares.cell_of(found["x"][bright], found["y"][bright])
        square = j * squares.values.shape[1] + i
        ratio = float(np.median(ndimage.median(found["ratio"][bright], square, np.unique(square))))
        if ratio < config.trailed_ratio:
            long = found["ratio"][bright] < config.trailed_ratio
            agreement = _agreement(found["angle"][bright][long], square[long])
            reason = "trailed" if agreement > TRAILED_AGREEMENT else "out of focus"
            raise SkipChip(reason, axis_ratio=ratio, limit=config.trailed_ratio, agreement=agreement)


def _agreement(angle: np.ndarray, square: np.ndarray) -> float:
    """Return how much axes at angles [n] agree, 0 to 1, the mean of each square counted once."""
    # doubled: an axis has no head
    parts = [ndimage.mean(f(2 * angle), square, np.unique(square)) for f in (np.cos, np.sin)]
    return float(np.hypot(*np.mean(parts, axis=1)))


def _one_per_core(found: Table, flags: np.ndarray, radius: float) -> np.ndarray:
    """Return which detections to keep: of those on saturated pixels, ``radius`` px apart, the brightest."""
    kept = np.ones(len(found["x"]), dtype=bool)
    y, x = (np.rint(found[name]).astype(np.int64) for name in ("spot_y", "spot_x"))
    full = np.flatnonzero(flags[y, x] & np.uint16(PixelFlag.SATURATED))
    if len(full) > 1:
        tree = cKDTree(np.stack([x[full], y[full]], axis=1))
        # indices are in order of flux: the later one of a pair is the fainter
        kept[full[tree.query_pairs(radius, output_type="ndarray").max(axis=1, initial=0)]] = False
        kept[full[0]] = True
    return kept


def _clean(found: Table, chip: ReducedChip, config: StarsConfig) -> np.ndarray:
    """Return which detections may build a PSF: bright, star-sized, round, unsaturated, not at the edge.

    Each cell of 1024 px has its own stars' size, as the FWHM varies by 10 to 20 % over a chip, and is let go
    down to fainter stars where it has few.
    """
    x, y, peak, fwhm = (found[name] for name in ("x", "y", "peak", "fwhm"))
    rows, columns = chip.image.shape
    noise = np.sqrt(chip.image.sky_variance.at(x, y))
    bright = peak > config.clean_peak_sigma * noise
    bright = bright if bright.sum() >= 5 else np.ones(len(x), dtype=bool)
    size = float(np.percentile(fwhm[bright], 30))
    cells = Cells(values=np.empty(cell_grid(chip.image.shape, CELL_PIX)), shape=chip.image.shape)
    j, i = cells.cell_of(x, y)
    cell = j * cells.values.shape[1] + i
    local = _local_size(fwhm, bright, cell, cells.values.size, size)[cell]
    ellipticity = 1 - found["ratio"]
    usable = (fwhm > 0.7 * local) & (fwhm < 1.5 * local)
    usable &= ellipticity < np.median(ellipticity[bright]) + config.max_ellipticity
    margin = 2 * size
    usable &= (x > margin) & (y > margin) & (x < columns - 1 - margin) & (y < rows - 1 - margin)
    usable &= ~touches_flag(chip.image.flags, x, y, max(int(1.5 * size), 2)) & ~_full(found, chip, config)
    alone = usable & isolated(x, y, found["flux"], 2.0 * size)
    enough = _bright_enough(alone, peak / noise, cell, config)
    if (alone & enough).sum() >= config.enough_clean:
        return alone & enough
    return usable & _bright_enough(usable, peak / noise, cell, config)


def _local_size(fwhm: np.ndarray, bright: np.ndarray, cell: np.ndarray, n: int, size: float) -> np.ndarray:
    """Return the FWHM of the stars in each cell [n], ``size`` where fewer than ten bright ones tell."""
    local = np.full(n, size)
    for k in range(n):
        here = fwhm[bright & (cell == k)]
        if len(here) >= 10:
            local[k] = np.clip(np.percentile(here, 30), 0.7 * size, 1.5 * size)
    return local


def _full(found: Table, chip: ReducedChip, config: StarsConfig) -> np.ndarray:
    """Return which detections come near the saturation level, where it is known."""
    if chip.raw.saturation is None:
        return np.zeros(len(found["x"]), dtype=bool)
    level = found["peak"] + chip.background.at(found["x"], found["y"])
    return level > config.full_fraction * chip.raw.saturation


def _bright_enough(
    chosen: np.ndarray, signal: np.ndarray, cell: np.ndarray, config: StarsConfig
) -> np.ndarray:
    """Return which stars rise above the noise by enough, in each cell the brightest few in any case."""
    enough = signal > config.clean_peak_sigma
    fainter = chosen & ~enough & (signal > config.least_peak_sigma)
    n = int(cell.max()) + 1
    wanted = config.enough_in_cell - np.bincount(cell[chosen & enough], minlength=n)
    candidates = np.flatnonzero(fainter)
    candidates = candidates[np.lexsort((-signal[candidates], cell[candidates]))]
    first = np.searchsorted(cell[candidates], np.arange(n))
    place = np.arange(len(candidates)) - first[cell[candidates]]
    enough[candidates[place < wanted[cell[candidates]]]] = True
    return enough


def isolated(x: np.ndarray, y: np.ndarray, flux: np.ndarray, radius: float) -> np.ndarray:
    """Return which stars have no neighbour of a tenth of their flux within ``radius`` px."""
    alone = np.ones(len(x), dtype=bool)
    pairs = cKDTree(np.stack([x, y], axis=1)).query_pairs(radius, output_type="ndarray")
    swap = flux[pairs[:, 0]] < flux[pairs[:, 1]]
    faint, bright = np.where(swap, pairs.T, pairs.T[::-1])
    alone[faint] = False
    alone[bright[flux[faint] >= 0.1 * flux[bright]]] = False
    return alone


def star_kernel() -> np.ndarray:
    """Return a 5x5 Gaussian of FWHM 2.5 px: close to optimal for any seeing from 2 to 5 px."""
    offset = np.arange(5) - 2
    return np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * (2.5 / 2.3548) ** 2)).astype(
        np.float32
    )
