"""The noise of both images at one place of a chip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ks4diff.numerics.lanczos import COORDINATE_STEP
from ks4diff.numerics.lanczos_noise import noise_variance
from ks4diff.numerics.mesh import pixel_noise
from ks4diff.numerics.pools import pool
from ks4diff.numerics.psf_grid import widened
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, Amplifier, CalibratedChip
from ks4diff.products.difference import AmplifierStep
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.align import noise_near

SHALLOWEST, LEAST_LEFT = 0.01, 0.3  # parts of the mean variance, and of a noise once the shared is gone
STEP_PIX = 32  # of the maps of depth: an amplifier's border is no wider than a PSF's reach
PIECE_PIX = 288  # an amplifier's variance is measured in pieces this large ...
PIECE_ROWS = 96  # ... from this many rows in their middle: 28 000 pixels tell it to 1 %
FEWEST_PIXELS = 1000  # of sky in such a piece, or the next one speaks for it


def depth(image: CalibratedChip | AlignedTemplate, steps: tuple[AmplifierStep, ...] = ()) -> Cells:
    """Return the sky's local variance over that of the image's noise model: what its sigma² leaves out.

    Where amplifiers have factors (``steps``) it is that of the counts divided by them.

    Of a resampled template it is that of its original pixels. Resampling by half a pixel halves a pixel's
    variance but not that of the score, which has its power at low frequencies where no weights take any;
    what they do to the others is in the correlation of the patch. Of a chip of several amplifiers it steps
    where they join: read noise and gain differ by 10 %.
    """
    sky = image.image.sky_variance
    values = np.array(sky.values, dtype=np.float64)
    if getattr(image, "nodes", None) is not None and image.original_noise is not None:
        left = noise_variance(image.nodes, image.original_noise.correlation)
        for j, i, rows, columns in sky.boxes():
            near = [slice(s.start // COORDINATE_STEP, -(-s.stop // COORDINATE_STEP)) for s in (rows, columns)]
            values[j, i] /= left[*near].mean()
        values /= image.original_noise.sigma**2
    else:
        values /= image.noise.sigma**2
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return Cells.constant(1.0, sky.shape)
    values = np.where(known, values, values[known].mean())
    cells = Cells(values=np.maximum(values, SHALLOWEST).astype(np.float32), shape=sky.shape)
    if isinstance(image, CalibratedChip) and len(image.raw.amplifiers) > 1 and image.sky is not None:
        return _stepped(image, cells, steps)
    return cells


def _stepped(chip: CalibratedChip, smooth: Cells, steps: tuple[AmplifierStep, ...]) -> Cells:
    """Return a chip's depth with a step where two amplifiers join, measured in each by itself.

    Only how they stand to each other is measured; the mean is that of the map ``smooth``.
    """
    shape = smooth.shape
    parts = [part for part in (_pieces(chip, a) for a in chip.raw.amplifiers) if part is not None]
    if not parts:
        return smooth
    fine = Cells(values=np.empty(cell_grid(shape, STEP_PIX), dtype=np.float32), shape=shape)
    x, y = fine.middles()
    fine.values[...] = smooth.at(x.ravel(), y.ravel()).reshape(x.shape)
    measured, there = np.zeros(x.shape), np.zeros(x.shape, dtype=bool)
    for (x0, x1, y0, y1), cells in parts:
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        measured[inside] = cells.at(x[inside] - x0, y[inside] - y0)
        there |= inside
    if there.any():
        scale = fine.values[there].mean() / measured[there].mean()
        fine.values[there] = scale * measured[there]
    for a in steps:
        fine.values[(x >= a.x0) & (x < a.x1) & (y >= a.y0) & (y < a.y1)] /= np.float32(a.factor**2)
    return fine


def _pieces(chip: CalibratedChip, amplifier: Amplifier) -> tuple[tuple[int, int, int, int], Cells] | None:
    """Return an amplifier's box (x0, x1, y0, y1) and its pixels' variance in pieces, None without sky."""
    shape = chip.image.shape
    x0, x1 = amplifier.x0, min(amplifier.x1, shape[1])
    y0, y1 = amplifier.y0, shape[0] if amplifier.y1 is None else min(amplifier.y1, shape[0])
    if x1 <= x0 or y1 <= y0:
        return None
    size = y1 - y0, x1 - x0
    cells = Cells(values=np.zeros(cell_grid(size, PIECE_PIX), dtype=np.float32), shape=size)

    def look(box: tuple[int, int, slice, slice]) -> None:
        j, i, rows, columns = box
        middle = (rows.start + rows.stop) // 2
        rows = slice(max(rows.start, middle - PIECE_ROWS // 2), min(rows.stop, middle + PIECE_ROWS // 2))
        part = slice(y0 + rows.start, y0 + rows.stop), slice(x0 + columns.start, x0 + columns.stop)
        sigma, count = pixel_noise(chip.image.data, chip.sky, *part)
        cells.values[j, i] = sigma**2 if count >= FEWEST_PIXELS else 0.0

    with pool() as threads:
        list(threads.map(look, cells.boxes()))
    known = cells.values > 0
    if not known.any():
        return None
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return (x0, x1, y0, y1), replace(cells, values=cells.values[tuple(nearest)])


def science_noise(chip: CalibratedChip, unshared: NoiseModel, ratio: float) -> NoiseModel:
    """Return the science image's noise where its variance is ``ratio`` times the mean.

    ``unshared`` is its noise over the chip without what both images share.
    """
    return _without_shared(chip.noise, ratio, chip.noise, unshared)


def template_noise(
    template: AlignedTemplate, unshared: NoiseModel, ratio: float, rows: slice, columns: slice
) -> NoiseModel:
    """Return the template's noise in a rectangle, with the correlation that resampling gave it there.

    The sub-pixel phases of the resampling beat over the chip, and with them the correlation; what both images
    share (``unshared`` is the template's noise over the chip without it) lies in the sky and does not.
    """
    return _without_shared(noise_near(template, rows, columns), ratio, template.noise, unshared)


def _without_shared(here: NoiseModel, ratio: float, mean: NoiseModel, unshared: NoiseModel) -> NoiseModel:
    """Return the noise ``here``, its variance times ``ratio``, less what ``unshared`` lacks of ``mean``."""
    n = max(len(model.correlation) for model in (here, mean, unshared))
    own, full, rest = (_covariance(model, n) for model in (here, mean, unshared))
    own = ratio * own
    covariance = own + rest - full
    middle = n // 2
    if covariance[middle, middle] < LEAST_LEFT * own[middle, middle]:
        covariance = own
    variance = float(covariance[middle, middle])
    return NoiseModel(sigma=variance**0.5, correlation=covariance / variance, method=here.method)


def _covariance(model: NoiseModel, n: int) -> np.ndarray:
    """Return the covariance by lag, counts², [n, n], zero beyond what is known."""
    return widened(model.sigma**2 * np.asarray(model.correlation), n)
