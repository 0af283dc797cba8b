"""What is left between two images on one flux scale where no source is: the differential background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ks4diff.numerics import polynomial
from ks4diff.numerics.levels import levels, paint_discs
from ks4diff.numerics.pools import pool
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.errors import SkipChip
from ks4diff.stages.amplifier_levels import AmplifierLevelConfig, amplifier_levels


@dataclass(frozen=True, kw_only=True)
class BackgroundMatchConfig:
    """At what scale, and how surely, the differential background is followed."""

    cell_pix: int = 256  # 1000 times a point source's area: none is eaten
    small_cell_pix: int = 128  # of images smaller than ``small_pix``
    small_pix: int = 1500
    degree: int = 2  # of the smooth part
    every_row: int = 2  # neighbouring rows say half the same
    wing_sigma: float = 0.1  # a star is masked out to where it adds this many sigma to a pixel
    farthest_fwhm: float = 20.0  # but no farther
    least_pixels: int = 500  # of a cell's piece on one amplifier
    reach_cells: float = 1.5  # over which background structure is alike
    steps: AmplifierLevelConfig = field(default_factory=AmplifierLevelConfig)
    most_poor: float = 0.5  # with more cells too full of sources than this, sources decide


@dataclass(frozen=True, kw_only=True)
class DifferentialBackground:
    """Counts of the science image: smooth ``background`` and (level, error) of each amplifier."""

    background: Cells
    levels: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Cells cut at the borders of amplifiers: boxes [k, 4] x0, x1, y0, y1, cell, amplifier, measures."""

    boxes: np.ndarray
    cell: np.ndarray
    amplifier: np.ndarray
    level: np.ndarray
    error: np.ndarray

    def centres(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        x0, x1, y0, y1 = self.boxes.T
        return (x0 + x1) / shape[1] - 1, (y0 + y1) / shape[0] - 1


def differential_background(
    chip: CalibratedChip,
    template: AlignedTemplate,
    scale: Cells,
    amplifiers: Sequence[tuple[tuple[int, int, int, int], float]],
    config: BackgroundMatchConfig,
) -> DifferentialBackground:
    """Return science / factor - scale * template where neither image shows a source.

    Steps at the borders of ``amplifiers`` ((x0, x1, y0, y1), factor) make their levels. Clipped means of
    cells, cut there, are fitted by a polynomial; what is left is followed as far as neighbouring cells agree:
    the mean of a Gaussian process whose variance is their mean product, so that a cell's own noise, which its
    neighbours do not share, is not injected.

    Raises
    ------
    SkipChip
        When sources leave too little sky.

    """
    shape = chip.image.shape
    size = config.cell_pix if min(shape) >= config.small_pix else config.small_cell_pix
    grid = cell_grid(shape, size)
    parts = list(amplifiers) or [((0, shape[1], 0, shape[0]), 1.0)]
    measure = _measurer(chip, template, scale, parts, config)
    boxes = [box for box, _ in parts]
    level, level_error = amplifier_levels(measure, boxes, config.steps)
    pieces = _pieces(measure, shape, parts, grid, config)
    pieces = replace(pieces, level=pieces.level - level[pieces.amplifier])
    found = np.unique(pieces.cell)
    if len(found) < (1 - config.most_poor) * grid[0] * grid[1]:
        raise SkipChip("sources leave too little sky", cells=float(len(found)))
    u, v = pieces.centres(shape)
    degree = min(config.degree, max(int(np.sqrt(len(found))) - 1, 0))
    design = polynomial.design(u, v, degree)
    solution = _robust(design, pieces)
    cells = Cells(values=np.zeros(grid), shape=shape)
    mx, my = cells.middles()
    at = polynomial.design(2 * (mx + 0.5) / shape[1] - 1, 2 * (my + 0.5) / shape[0] - 1, degree)
    own = _followed(_merged(pieces.level - design @ solution, pieces, grid), grid, config)
    return DifferentialBackground(
        background=Cells(values=(at @ solution + own).reshape(grid).astype(np.float32), shape=shape),
        levels=tuple(zip(level.tolist(), level_error.tolist(), strict=True)) if amplifiers else (),
    )


def _pieces(measure, shape, parts, grid, config) -> _Pieces:
    """Return the cells, cut at the borders of amplifiers, that hold enough sky."""
    boxes = []
    for j, i, rows, columns in Cells(values=np.zeros(grid), shape=shape).boxes():
        for k, ((x0, x1, y0, y1), _) in enumerate(parts):
            box = (max(x0, columns.start), min(x1, columns.stop), max(y0, rows.start), min(y1, rows.stop))
            if box[0] < box[1] and box[2] < box[3]:
                boxes.append((*box, k, j * grid[1] + i))
    table = np.array(boxes, dtype=np.int64)
    level, error = measure(table[:, :5])
    kept = np.isfinite(level)
    return _Pieces(
        boxes=table[kept, :4],
        cell=table[kept, 5],
        amplifier=table[kept, 4],
        level=level[kept],
        error=error[kept],
    )


def _measurer(chip, template, scale: Cells, parts, config):
    """Return a function from boxes [k, 5] (x0, x1, y0, y1, amplifier) to (level, error), NaN without sky."""
    radius = _mask_radius(chip, template, config)
    factors = np.array([factor for _, factor in parts])
    inflation = _inflation(chip, template, scale, config.every_row)
    shape = chip.image.shape

    def band(boxes: np.ndarray) -> np.ndarray:
        left, right, low, high = (int(f(boxes[:, k])) for k, f in enumerate((np.min, np.max) * 2))
        part = slice(low, high), slice(left, right)
        masked = (chip.image.flags[part] | template.image.flags[part]) != 0
        if chip.sky is not None:
            masked |= ~chip.sky[part]
        x, y = chip.stars.x, chip.stars.y
        near = (y > low - radius) & (y < high + radius) & (x > left - radius) & (x < right + radius)
        paint_discs(masked, x[near] - left, y[near] - low, radius[near])
        factor = factors[boxes[:, 4]]
        own = scale.at((boxes[:, 0] + boxes[:, 1]) / 2, (boxes[:, 2] + boxes[:, 3]) / 2)
        inner = boxes[:, :4] - np.array([left, left, low, low])
        data, other = chip.image.data[part], template.image.data[part]
        return levels(data, other, masked, inner, own * factor, every=config.every_row) / np.stack(
            [factor, factor, np.ones_like(factor)]
        )

    def measure(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = boxes.copy()
        inside[:, :2] = np.clip(boxes[:, :2], 0, shape[1])
        inside[:, 2:4] = np.clip(boxes[:, 2:4], 0, shape[0])
        starts = np.unique(inside[:, 2])
        groups = [np.flatnonzero(inside[:, 2] == start) for start in starts]
        out = np.empty((3, len(boxes)))
        with pool() as threads:
            for group, found in zip(groups, threads.map(lambda g: band(inside[g]), groups), strict=True):
                out[:, group] = found
        level, spread, count = out
        with np.errstate(invalid="ignore"):
            enough = np.isfinite(level) & (count >= config.least_pixels) & (spread > 0)
            error = spread * np.sqrt(inflation / np.maximum(count, 1))
        return np.where(enough, level, np.nan), np.where(enough, error, np.nan)

    return measure


def _mask_radius(chip: CalibratedChip, template: AlignedTemplate, config) -> np.ndarray:
    """Return pixels from each star of the science list to where it is lost in the noise of both images."""
    width = max(chip.psf.fwhm_pix, template.psf.fwhm_pix)
    sigma = chip.noise.sigma
    # seeing wings fall as r^-3 or steeper: 0.02 of a Moffat's light per FWHM² at 1.5 FWHM
    central = 0.02 * np.maximum(chip.stars.flux, 0.0) / width**2
    reach = 1.5 * (central / (config.wing_sigma * sigma)) ** (1 / 3)
    return width * np.clip(reach, 1.5, config.farthest_fwhm)


def _inflation(chip, template, scale: Cells, every: int) -> float:
    """Return by how much correlated noise raises the variance of a mean over that of white noise."""
    total, weight = 0.0, 0.0
    for noise, factor in ((chip.noise, 1.0), (template.noise, float(np.median(scale.values)))):
        middle = noise.correlation.shape[0] // 2
        variance = (factor * noise.sigma) ** 2
        total += variance * max(float(noise.correlation[middle % every :: every].sum()), 1.0)
        weight += variance
    return total / weight


def _robust(design: np.ndarray, pieces: _Pieces) -> np.ndarray:
    """Return the solution by Huber's weights, scatter beyond noise allowed."""
    scatter, solution = 0.0, np.zeros(design.shape[1])
    solution[0] = np.median(pieces.level)
    for _ in range(10):
        residual = pieces.level - design @ solution
        spread = 1.4826 * float(np.median(np.abs(residual)))
        scatter = np.sqrt(max(spread**2 - float(np.median(pieces.error)) ** 2, 0.0))
        sigma = np.hypot(pieces.error, scatter)
        weight = np.minimum(1.0, 1.5 * sigma / np.maximum(np.abs(residual), 1e-30)) / sigma**2
        normal = design.T @ (weight[:, None] * design)
        normal += 1e-9 * np.diag(np.diag(normal).clip(1e-30))
        solution = np.linalg.solve(normal, design.T @ (weight * pieces.level))
    return solution


def _merged(left: np.ndarray, pieces: _Pieces, grid) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, error) of each cell over its pieces, flat; error inf where there is none."""
    weight = 1 / pieces.error**2
    total = np.bincount(pieces.cell, weights=weight, minlength=grid[0] * grid[1])
    summed = np.bincount(pieces.cell, weights=weight * left, minlength=grid[0] * grid[1])
    known = total > 0
    mean, error = np.zeros(len(total)), np.full(len(total), np.inf)
    mean[known], error[known] = summed[known] / total[known], 1 / np.sqrt(total[known])
    return mean, error


def _followed(measured, grid, config) -> np.ndarray:
    """Return the structure of each cell: as much of what is left as neighbouring cells share."""
    mean, error = measured
    known = np.flatnonzero(np.isfinite(error))
    row, column = np.divmod(np.arange(len(mean)), grid[1])
    clipped = np.zeros(len(mean))
    if len(known):
        limit = 5 * max(1.4826 * float(np.median(np.abs(mean[known]))), 1e-30)
        clipped[known] = np.clip(mean[known], -limit, limit)
    field = np.where(np.isfinite(error), clipped, np.nan).reshape(grid)
    products = np.concatenate([(field[1:] * field[:-1]).ravel(), (field[:, 1:] * field[:, :-1]).ravel()])
    products = products[np.isfinite(products)]
    alike = np.exp(-0.5 / config.reach_cells**2)
    if len(products) < 8:
        return np.zeros(len(mean))
    variance = float(products.mean()) / alike
    # chance alone: the product of two independent cells scatters by their variance
    if variance <= 2 * float(np.mean(clipped[known] ** 2)) / np.sqrt(len(products)):
        return np.zeros(len(mean))
    distance2 = (row[:, None] - row[known]) ** 2 + (column[:, None] - column[known]) ** 2
    prior = variance * np.exp(-0.5 * distance2 / config.reach_cells**2)
    inner = prior[known] + np.diag(error[known] ** 2)
    return prior @ cho_solve(cho_factor(inner, overwrite_a=True), clipped[known])
