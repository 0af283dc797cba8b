"""The background that two matched images do not share: seen in block means, and how well it is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from ks4diff.numerics.jit import jit

BLOCK = 16  # px: four PSFs across, so that what is left of a masked star weighs little
LEAST_USED = 0.25  # of a block's pixels, or it tells nothing
FEWEST_BLOCKS = 64  # of a patch: fewer give a covariance to no better than 12 %
FARTHEST = 5  # blocks of lag whose covariance is looked at
WIDTHS = 2.0 ** np.arange(0, 3.1, 0.5)  # blocks: correlation lengths tried, 16 to 128 px
OWN = 1.5  # blocks around its middle have no say in a block's level
CLEAR = 5.0  # sigma that the fitted covariance must reach: noise alone is left alone
ROUNDS = 4  # in which blocks without sky take what the fit says
CLIP = 5.0  # sigma of a block's mean


class Left(NamedTuple):
    """A smooth background: ``level`` float32 [rows, columns] of blocks, and the variance of its error.

    ``variance`` counts² of one pixel's background that the fit does not know.
    """

    level: np.ndarray
    variance: float


@jit
def _block_sums(science, template, used, total, count):
    """Add up columns first, block by block: that is vector code, and one sum along a row is not."""
    rows, columns = used.shape
    nothing = np.float32(0)
    added, n = np.empty(columns), np.empty(columns, dtype=np.int32)
    for j in range(total.shape[0]):
        added[:], n[:] = 0, 0
        for y in range(j * BLOCK, min((j + 1) * BLOCK, rows)):
            n_row, r_row, u = science[y], template[y], used[y]
            for x in range(columns):
                added[x] += (n_row[x] - r_row[x]) if u[x] else nothing
            for x in range(columns):
                n[x] += u[x]
        for i in range(total.shape[1]):
            part = slice(i * BLOCK, min((i + 1) * BLOCK, columns))
            total[j, i], count[j, i] = added[part].sum(), n[part].sum()


@jit
def _convolved(padded, weights, out):
    """Do what `convolved` does with an image padded by the weights' reach."""
    n = len(weights)
    for y in range(len(out)):
        row = out[y]
        row[:] = 0
        for j in range(n):
            for i in range(n):
                weight = weights[n - 1 - j, n - 1 - i]
                if weight != 0:
                    near = padded[y + j][i : i + row.size]
                    for x in range(row.size):
                        row[x] += weight * near[x]


def convolved(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return `scipy.ndimage.convolve` of float64 [y, x] with weights [n, n], n odd, zeros around the image.

    Equal to the bit, since all is added in the same order, but row by row: in a third of the time.
    """
    out = np.empty_like(image)
    _convolved(np.pad(image, len(weights) // 2), weights, out)
    return out


def block_means(science: np.ndarray, template: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of science - template over the ``used`` pixels of each block, and their number.

    float32 images and bool [y, x]; float64 [rows, columns] of blocks of `BLOCK` px, the last ones cut.
    """
    shape = tuple(-(-n // BLOCK) for n in used.shape)
    total, count = np.empty(shape), np.empty(shape)
    _block_sums(science, template, used, total, count)
    return total / np.maximum(count, 1), count


def background_left(means: np.ndarray, count: np.ndarray) -> Left | None:
    """Return the background that block means show beyond their noise, None when they show none.

    Its covariance is taken as Gaussian in the lag, fitted to lags that hold no pixel's noise twice. Each
    block's level is then predicted from the blocks around it (kriging), neither its own pixels nor its
    neighbours' in it: so no source takes part in the level below itself, and the level's error adds to the
    noise there. Blocks without sky take what comes out.
    """
    told = count > LEAST_USED * BLOCK**2
    if told.sum() < FEWEST_BLOCKS:
        return None
    spread = 1.4826 * float(np.median(np.abs(means[told] - np.median(means[told]))))
    middle = float(np.median(means[told]))
    means = np.where(told, np.clip(means, middle - CLIP * spread, middle + CLIP * spread), 0.0)
    fitted = _fitted(*_covariance(means, told))
    if fitted is None:
        return None
    weights = _predictor(*fitted)
    known = np.pad(told, FARTHEST)
    filled = np.pad(means, FARTHEST)
    for _ in range(ROUNDS):
        level = convolved(filled, weights)
        filled = np.where(known, filled, level)
    level = level[FARTHEST:-FARTHEST, FARTHEST:-FARTHEST]
    return Left(level.astype(np.float32), _error_variance(np.where(told, means - level, 0.0), told))


def _error_variance(left: np.ndarray, told: np.ndarray) -> float:
    """Return the variance of the level's error, seen where no pixel's noise shows twice: in neighbours.

    Their covariance is carried on to lag 0, straight in the lag squared. Fringes are better known from
    around them than a Gaussian covariance says.
    """
    covariance, pairs, lag = _covariance(left, told)
    one, across = (
        np.average(covariance[at], weights=pairs[at]) for at in (lag == 1, (lag > 1) & (lag < 1.5))
    )
    return max(float(2 * one - across), 0.0)


def _predictor(amplitude: float, width: float, white: float) -> np.ndarray:
    """Return the weights [n, n] by which the blocks around one tell its background."""
    y, x = np.mgrid[-FARTHEST : FARTHEST + 1, -FARTHEST : FARTHEST + 1]
    near = np.hypot(y, x)
    use = (near > OWN) & (near <= FARTHEST)
    y, x = y[use], x[use]
    apart2 = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    between = amplitude * np.exp(-apart2 / (2 * width**2)) + white * np.eye(len(y))
    towards = amplitude * np.exp(-(near[use] ** 2) / (2 * width**2))
    weights = np.zeros(use.shape)
    weights[use] = np.linalg.solve(between, towards)
    return weights


def _covariance(means: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the covariance of blocks by lag, the pairs that tell it, and the lag, blocks, flat."""
    shape = tuple(fft.next_fast_len(n + FARTHEST, real=True) for n in means.shape)
    product, pairs = (
        fft.irfft2(np.abs(fft.rfft2(plane, shape)) ** 2, shape) for plane in (means, told.astype(float))
    )
    # half of the lags: the others are the same pairs
    y, x = np.mgrid[0 : FARTHEST + 1, -FARTHEST : FARTHEST + 1]
    half = ((y > 0) | (x >= 0)) & (np.hypot(y, x) <= FARTHEST)
    y, x = y[half], x[half]
    pairs = np.maximum(np.rint(pairs[y, x]), 1)
    return product[y, x] / pairs, pairs, np.hypot(y, x)


def _fitted(covariance: np.ndarray, pairs: np.ndarray, lag: np.ndarray) -> tuple[float, float, float] | None:
    """Return (amplitude, length in blocks, white variance), None when no length gives a clear amplitude."""
    total = float(covariance[lag == 0][0])
    apart = lag > 0
    best, sure = None, CLEAR
    for width in WIDTHS:
        shape = np.exp(-(lag[apart] ** 2) / (2 * width**2))
        weight = pairs[apart] * shape
        amplitude = float((weight * covariance[apart]).sum() / (weight * shape).sum())
        white = max(total - amplitude, 0.1 * total)
        clear = amplitude / white * float((weight * shape).sum()) ** 0.5
        if clear > sure:
            best, sure = (amplitude, float(width), white), clear
    return best


@jit
def _subtract(level, image):
    rows, columns = level.shape
    for y in range(image.shape[0]):
        v = min(max((y + 0.5) / BLOCK - 0.5, 0.0), rows - 1.0)
        j = min(int(v), max(rows - 2, 0))
        below, down = min(j + 1, rows - 1), np.float32(v - j)
        row = image[y]
        for i in range(-1, columns):
            left, right = max(i, 0), min(i + 1, columns - 1)
            low = level[j, left] + (level[below, left] - level[j, left]) * down
            high = level[j, right] + (level[below, right] - level[j, right]) * down
            step = (high - low) / np.float32(BLOCK)
            start = i * BLOCK + BLOCK // 2
            for x in range(max(start, 0), min(start + BLOCK, image.shape[1])):
                row[x] -= low + step * np.float32(x - start + 0.5)


def subtract_level(level: np.ndarray, image: np.ndarray) -> None:
    """Subtract a level of blocks, bilinear between their middles, from a float32 image in place."""
    _subtract(level, image)
