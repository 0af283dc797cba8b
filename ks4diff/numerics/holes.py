"""Pixels that are missing: fill them smoothly, and count what each score loses by them."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

OUTSIDE = 1 << 15  # the flag of a pixel beyond the image
ANY = (1 << 16) - 1
DEEPEST = 16  # px from the rim; farther inside a hole the fill is 0
SWEEPS = 12
OVER_RELAXATION = 1.5
START, DAMPING = 0.75, 0.96  # per pixel inwards: light and noise fade within a PSF's width


@jit
def _listed(flags, bits):
    rows, columns = flags.shape
    n = 0
    for y in range(rows):
        row = flags[y]
        for x in range(columns):
            n += (row[x] & bits) != 0
    at = np.empty(n, dtype=np.int64)
    n = 0
    for y in range(rows):
        row = flags[y]
        for x in range(columns):
            if row[x] & bits:
                at[n] = y * columns + x
                n += 1
    return at


def listed(flags: np.ndarray, bits: int = ANY) -> np.ndarray:
    """Return int64 [n]: where the flat ``flags`` (uint16 [y, x]) has any of ``bits``, in order."""
    return _listed(flags, np.uint16(bits))


@jit
def _sweep(at, depth, cap):
    """Lower each bad pixel's depth to one more than the least of its neighbours above and to the left."""
    columns = depth.shape[1]
    for k in range(len(at)):
        y, x = at[k] // columns, at[k] % columns
        near = min(depth[y, x] - 1, cap - 1)
        if y > 0:
            for i in range(max(x - 1, 0), min(x + 2, columns)):
                near = min(near, depth[y - 1, i])
        if x > 0:
            near = min(near, depth[y, x - 1])
        depth[y, x] = near + 1


def depths(shape: tuple[int, int], bad: np.ndarray) -> np.ndarray:
    """Return uint8 [y, x]: how many pixels a bad one lies behind its rim (1 on it), at most DEEPEST + 1.

    ``bad`` of `listed`; the others have depth 0. Steps may be diagonal.
    """
    depth = np.zeros(shape, dtype=np.uint8)
    depth.reshape(-1)[bad] = DEEPEST + 1
    _sweep(bad, depth, DEEPEST + 1)
    _sweep(depth.size - 1 - bad[::-1], depth[::-1, ::-1], DEEPEST + 1)
    return depth


@jit
def _onion(image, depth, at, start):
    """Give each listed pixel, rim first, the mean of its neighbours that are nearer the rim."""
    height, width = image.shape
    for k in range(len(at)):
        y, x = at[k] // width, at[k] % width
        total, n = 0.0, 0
        for j in range(max(y - 1, 0), min(y + 2, height)):
            for i in range(max(x - 1, 0), min(x + 2, width)):
                if depth[j, i] < depth[y, x]:
                    total += image[j, i]
                    n += 1
        image[y, x] = start * total / n if n > 0 else 0.0


@jit
def _relax(image, at, sweeps, over, damping):
    """Move each listed pixel towards the mean of its four neighbours, ``sweeps`` times."""
    height, width = image.shape
    for _ in range(sweeps):
        for k in range(len(at)):
            y, x = at[k] // width, at[k] % width
            up, down = image[max(y - 1, 0), x], image[min(y + 1, height - 1), x]
            left, right = image[y, max(x - 1, 0)], image[y, min(x + 1, width - 1)]
            image[y, x] += over * (0.25 * damping * (up + down + left + right) - image[y, x])


def fill(images: tuple[np.ndarray, ...], depth: np.ndarray, bad: np.ndarray) -> None:
    """Fill the holes of images in place: from the rim inwards, then relaxed towards Laplace's equation.

    ``images`` float32 [y, x], whatever their bad pixels hold; ``depth`` of `depths`, of the pixels ``bad`` of
    `listed`. Holes up to 10 px wide come within 1 % of their rim of the solution; deeper than `DEEPEST` px
    from the rim stands 0, the sky.
    """
    behind = depth.reshape(-1)[bad]
    order = np.argsort(behind, kind="stable")
    at = bad[order[: np.count_nonzero(behind <= DEEPEST)]]
    for image in images:
        image.reshape(-1)[bad[behind > DEEPEST]] = 0
        _onion(image, depth, at, START)
        _relax(image, at, SWEEPS, OVER_RELAXATION, DAMPING)


@jit
def _fed(weight, depth, at, start):
    """Add to each pixel how much of the pixels behind it `_onion` makes of it: its transpose, on ones."""
    height, width = weight.shape
    for k in range(len(at) - 1, -1, -1):
        y, x = at[k] // width, at[k] % width
        n = 0
        for j in range(max(y - 1, 0), min(y + 2, height)):
            for i in range(max(x - 1, 0), min(x + 2, width)):
                n += depth[j, i] < depth[y, x]
        if n == 0:
            continue
        part = start * (1 + weight[y, x]) / n
        for j in range(max(y - 1, 0), min(y + 2, height)):
            for i in range(max(x - 1, 0), min(x + 2, width)):
                if depth[j, i] < depth[y, x]:
                    weight[j, i] += part


def noise_taken(depth: np.ndarray, bad: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """Return float32 [n]: the part that a bad pixel takes of its share of a variance; below 0 it adds.

    ``depth`` of `depths`, of the pixels ``bad`` of `listed`; ``silent`` int64, flat: pixels of depth 0 that
    carry no noise. A fill repeats the noise of the rim. With k the score's kernel, F the fill's weights and
    k + F' k what acts on the good pixels, the variance changes by the sum over the hole of
    k² (-1 + 2 F 1 + F F' 1) where k is smooth. With the weights of the fill before it is relaxed, scores
    next to a hole have their noise to 2 %; without them they would be 4 % (one pixel) to 14 % (3x3) too loud.
    """
    behind = depth.reshape(-1)[bad]
    order = np.argsort(behind, kind="stable")
    at = bad[order[: np.count_nonzero(behind <= DEEPEST)]]
    weight = np.zeros(depth.shape, dtype=np.float32)
    _fed(weight, depth, at, START)
    weight.reshape(-1)[silent] = 0
    weight.reshape(-1)[bad[behind > DEEPEST]] = 0
    _onion(weight, depth, at, START)
    given = np.where(behind <= DEEPEST, START ** behind.astype(np.float32), 0)
    return (1 - 2 * given - weight.reshape(-1)[bad]).astype(np.float32)


@jit
def _losses(flags, depth, bad, parts, stamps, least, out, bits):
    """Add to ``out`` [2, y, x] what each bad pixel takes around it, and to ``bits`` its flags."""
    rows, columns = flags.shape
    half = stamps.shape[1] // 2
    for k in range(len(bad)):
        y, x = bad[k] // columns, bad[k] % columns
        if depth[y, x] > half:
            continue
        light, noise = parts[0, k], parts[1, k]
        for j in range(max(y - half, 0), min(y + half + 1, rows)):
            for i in range(max(x - half, 0), min(x + half + 1, columns)):
                share = stamps[0, j - y + half, i - x + half]
                out[0, j, i] += light * share
                out[1, j, i] += noise * stamps[1, j - y + half, i - x + half]
                if share > least:
                    bits[j, i] |= flags[y, x]


def losses(
    flags: np.ndarray, depth: np.ndarray, bad: np.ndarray, parts: np.ndarray, stamps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what part of flux and variance every score lacks, float32 [2, y, x], and whose flags are near.

    ``flags`` uint16 [y, x]; ``bad`` of `listed`, ``depth`` of `depths`; ``parts`` float32 [2, n] of each bad
    pixel's light and noise that a score lacks: 1 beyond the image; ``stamps`` float32 [2, m, m], m odd: the
    share of one pixel in a score m // 2 px away, of its flux and of its variance, each with sum 1.
    """
    out = np.zeros((2, *flags.shape), dtype=np.float32)
    bits = np.zeros(flags.shape, dtype=np.uint16)
    if stamps.shape[1] // 2 > DEEPEST:
        raise ValueError(f"stamps of {stamps.shape[1]} px reach deeper than holes are known")
    _losses(flags, depth, bad, parts, stamps, np.float32(2e-3), out, bits)
    return out, bits


@jit
def _fill_errors(flags, bad, amplitude, stamp, least, out, bits):
    rows, columns = flags.shape
    half = stamp.shape[0] // 2
    for k in range(len(bad)):
        a = amplitude[k]
        if a * stamp[half, half] <= least:
            continue
        y, x = bad[k] // columns, bad[k] % columns
        for j in range(max(y - half, 0), min(y + half + 1, rows)):
            for i in range(max(x - half, 0), min(x + half + 1, columns)):
                error = a * stamp[j - y + half, i - x + half]
                out[j, i] += error
                if error > least:
                    bits[j, i] |= flags[y, x]


def fill_errors(
    flags: np.ndarray,
    bad: np.ndarray,
    amplitude: np.ndarray,
    stamp: np.ndarray,
    least: float,
    bits: np.ndarray,
) -> np.ndarray:
    """Return how far the fill's own error may move each score, float32 [y, x]; errors of a hole add up.

    ``amplitude`` float32 [n] is the fill's error at each pixel ``bad`` of `listed`; ``stamp`` [n, n] the
    score of one count. Pixels that move no score by ``least`` are passed over; ``bits`` uint16 [y, x] gets
    the flags of those that do, in place.
    """
    out = np.zeros(flags.shape, dtype=np.float32)
    _fill_errors(flags, bad, amplitude, stamp, np.float32(least), out, bits)
    return out
