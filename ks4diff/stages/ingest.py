"""Measure a stack block by block: coverage, noise, stars and PSF of a tile too large to hold as float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import sep

from ks4diff.numerics.noise import autocovariance
from ks4diff.numerics.star_finder import measure_spots
from ks4diff.products.chip import RawChip, ReducedChip, StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf
from ks4diff.products.template import PixelBox
from ks4diff.stages.background import reduce_chip
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.stars import star_kernel

MAX_COUNTS = 1e15


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How finely a tile is looked at."""

    cell_pix: int = 200  # of the coverage, noise and sky maps: dither borders are drawn to 80 arcsec
    cells_per_block: int = 10  # a side: 2000 px, 16 MB as float32
    margin_pix: int = 64  # read around a block, so that its border stars are whole
    mesh_pix: int = 64
    threshold_sigma: float = 5.0  # per pixel of the smoothed image: for registration, not for depth
    min_pixels: int = 5
    clean_peak_sigma: float = 20.0
    sample_pix: int = 800  # squares whose noise correlation and PSF are measured in full
    samples: int = 4  # a side
    sample_coverage: float = 0.9  # of a sample: borders of dithers have another noise
    correlation_lag_pix: int = 4
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)


@dataclass(frozen=True, kw_only=True)
class BlockMeasures:
    """What one block of a tile shows; maps float32 [rows, columns] of cells, stars in the tile's pixels.

    ``peak`` of each star in sigma, ``width`` its FWHM in a Gaussian window, which brightness does not change
    as it does that of the list, by the moments above a threshold: 2.8 to 4.4 px over 5 magnitudes.
    """

    coverage: np.ndarray
    sigma: np.ndarray
    background: np.ndarray
    stars: StarList
    peak: np.ndarray
    width: np.ndarray
    top: float
    n_top: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The noise and PSF of one square of a tile."""

    noise: NoiseModel
    psf: Psf | None


def cell_size(shape: tuple[int, int], config: IngestConfig) -> int:
    """Return the side of a tile's cells in pixels: small tiles get at least 20 cells a side."""
    return int(min(config.cell_pix, max(8, min(shape) // 20)))


def blocks(shape: tuple[int, int], cell_pix: int, config: IngestConfig) -> list[list[PixelBox]]:
    """Return rows of the boxes, whole cells each, that together make up a tile."""
    side = cell_pix * config.cells_per_block
    rows, columns = shape
    return [
        [PixelBox(x, y, min(x + side, columns), min(y + side, rows)) for x in range(0, columns, side)]
        for y in range(0, rows, side)
    ]


def widened(box: PixelBox, margin: int, shape: tuple[int, int]) -> PixelBox:
    """Return a box with a margin, held inside the tile."""
    return PixelBox(
        max(box.x0 - margin, 0),
        max(box.y0 - margin, 0),
        min(box.x1 + margin, shape[1]),
        min(box.y1 + margin, shape[0]),
    )


def measure_block(
    data: np.ndarray, read: PixelBox, core: PixelBox, cell_pix: int, config: IngestConfig
) -> BlockMeasures:
    """Return what a block shows: ``data`` float32 [y, x] is the box ``read``, of which ``core`` counts.

    Exact zeros and values that cannot be counts are no data.
    """
    bad = (data == 0) | ~is_believable(data)
    inner = (slice(core.y0 - read.y0, core.y1 - read.y0), slice(core.x0 - read.x0, core.x1 - read.x0))
    coverage = _cell_means(~bad[inner], cell_pix)
    empty = np.full_like(coverage, np.nan)
    if bad.mean() > 0.99:
        none = np.zeros(0)
        stars = StarList(x=none, y=none, flux=none, fwhm=none, clean=none.astype(bool))
        return BlockMeasures(
            coverage=coverage,
            sigma=empty,
            background=empty,
            stars=stars,
            peak=none,
            width=none,
            top=0.0,
            n_top=0,
        )
    mesh = min(config.mesh_pix, max(min(data.shape) // 4, 16))
    clean = np.where(bad, np.float32(0), data)
    found = sep.Background(clean, mask=bad, bw=mesh, bh=mesh, fw=3, fh=3)
    back, rms = found.back(dtype=np.float32), found.rms(dtype=np.float32)
    no_cell = coverage == 0
    top = float(clean[inner][~bad[inner]].max()) if not bad[inner].all() else 0.0
    stars, peak, width = _find_stars(clean - back, bad, found.globalrms, (read, core), config)
    return BlockMeasures(
        coverage=coverage,
        sigma=np.where(no_cell, np.nan, _cell_means(rms[inner], cell_pix)),
        background=np.where(no_cell, np.nan, _cell_means(back[inner], cell_pix)),
        stars=stars,
        peak=peak / found.globalrms,
        width=width,
        top=top,
        n_top=int(np.count_nonzero(clean[inner] == top)),
    )


def is_believable(data: np.ndarray) -> np.ndarray:
    """Return which values may be counts: finite and below 1e15; sep 1.4 dies on sums of 3e38."""
    with np.errstate(invalid="ignore"):
        return np.abs(data) < MAX_COUNTS


def _find_stars(
    data: np.ndarray,
    bad: np.ndarray,
    rms: float,
    boxes: tuple[PixelBox, PixelBox],
    config: IngestConfig,
) -> tuple[StarList, np.ndarray, np.ndarray]:
    """Return (stars whose centres lie in the core, their peaks, their widths); none is clean yet."""
    read, core = boxes
    sep.set_extract_pixstack(max(300_000, data.size // 2))
    sep.set_sub_object_limit(4096)
    found = sep.extract(
        data,
        config.threshold_sigma,
        err=rms,
        mask=bad,
        minarea=config.min_pixels,
        filter_kernel=star_kernel(),
    )
    x, y = found["x"] + read.x0, found["y"] + read.y0
    keep = (x >= core.x0 - 0.5) & (x < core.x1 - 0.5) & (y >= core.y0 - 0.5) & (y < core.y1 - 0.5)
    keep &= np.isfinite(found["flux"]) & (found["flux"] > 0) & (found["b"] > 0)
    found, x, y = found[keep], x[keep], y[keep]
    # round and whole: what touches masked pixels or has two peaks is no model for a PSF
    whole = (found["flag"] == 0) & (found["b"] > 0.6 * found["a"])
    fwhm = 2.3548 * np.sqrt(0.5 * (found["a"] ** 2 + found["b"] ** 2))
    spots = np.stack([found["ypeak"], found["xpeak"]], axis=1)
    width = measure_spots(data, spots, config.calibrate.stars.first_width_pix)["fwhm"]
    return StarList(x=x, y=y, flux=found["flux"], fwhm=fwhm, clean=whole), found["peak"], width


def sample_boxes(
    coverage: np.ndarray, cell_pix: int, config: IngestConfig
) -> list[tuple[int, int, PixelBox]]:
    """Return (row, column, box) of the squares to measure in full, one in each of 4 x 4 parts of the tile.

    Each is the best covered square of its part, the nearest to the part's middle among equals; parts that
    have none of 90 % coverage are left out. A tile smaller than a few squares is one sample.
    """
    rows, columns = coverage.shape
    side = max(1, config.sample_pix // cell_pix)
    if min(rows, columns) < 2 * side:
        return [(0, 0, PixelBox(0, 0, columns * cell_pix, rows * cell_pix))]
    n = min(config.samples, rows // side, columns // side)
    total = np.pad(coverage.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    window = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    window = window / side**2
    chosen = []
    for i in range(n):
        for j in range(n):
            y = np.arange(i * rows // n, max((i + 1) * rows // n - side, i * rows // n) + 1)
            x = np.arange(j * columns // n, max((j + 1) * columns // n - side, j * columns // n) + 1)
            y, x = y[y < window.shape[0]], x[x < window.shape[1]]
            part = np.round(window[np.ix_(y, x)], 2)
            off = np.hypot(*np.meshgrid(y - y.mean(), x - x.mean(), indexing="ij"))
            best = np.unravel_index(np.argmax(part - 1e-4 * off), part.shape)
            if part[best] >= config.sample_coverage:
                x0, y0 = int(x[best[1]]) * cell_pix, int(y[best[0]]) * cell_pix
                box = PixelBox(x0, y0, x0 + side * cell_pix, y0 + side * cell_pix)
                chosen.append((i, j, box))
    return chosen


def measure_sample(raw: RawChip, config: IngestConfig) -> Sample | None:
    """Return the noise and PSF of a square of a tile; without PSF where stars are few, None without sky."""
    raw = replace(raw, data=np.where(is_believable(raw.data), raw.data, np.float32(np.nan)))
    try:
        chip = calibrate(raw, config.calibrate)
    except SkipChip:
        pass
    else:
        return Sample(noise=chip.noise, psf=chip.psf.typical())
    try:
        reduced = reduce_chip(raw, config.calibrate.background)
    except SkipChip:
        return None
    return Sample(noise=_plain_noise(reduced, config), psf=None)


def _plain_noise(reduced: ReducedChip, config: IngestConfig) -> NoiseModel:
    """Return the covariance of the sky less what far pixels share: starlight and errors of the background."""
    far = config.calibrate.noise.max_lag_pix
    covariance = autocovariance(reduced.image.data, reduced.sky, far)
    offset = np.arange(-far, far + 1)
    lag = np.hypot(offset[:, None], offset[None, :])
    shared = float(covariance[lag > 0.75 * far].mean())
    core = slice(far - config.correlation_lag_pix, far + config.correlation_lag_pix + 1)
    kept = covariance[core, core] - min(max(shared, 0.0), 0.9 * float(covariance[far, far]))
    variance = float(kept[config.correlation_lag_pix, config.correlation_lag_pix])
    return NoiseModel(sigma=variance**0.5, correlation=kept / variance, method="sky")


def _cell_means(values: np.ndarray, cell: int) -> np.ndarray:
    """Return float32 means over cells; those at the far borders may be smaller."""
    rows, columns = values.shape
    ry, rx = np.arange(0, rows, cell), np.arange(0, columns, cell)
    total = np.add.reduceat(np.add.reduceat(values, rx, axis=1, dtype=np.float32), ry, axis=0)
    size = np.outer(np.diff(np.append(ry, rows)), np.diff(np.append(rx, columns)))
    return (total / size).astype(np.float32)
