"""Stamps turned so that every candidate is positive, and PSFs moved to where each lies between the pixels."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def placed(bank, which, dx, dy, taps):
    """Return float32 [n, k, k]: ``bank`` [m, k, k] at ``which`` [n], moved by (dx, dy) pixels.

    By Lanczos interpolation with the table of `ks4diff.numerics.taps.tap_table`; 0 beyond the stamps.
    |dx| and |dy| are at most 1. Equal to `tests.oracles_features.placed`.
    """
    n, k = len(which), bank.shape[1]
    steps, support = taps.shape[0] - 1, taps.shape[1] // 2
    out = np.zeros((n, k, k), dtype=np.float32)
    along = np.empty((k, k))
    for c in range(n):
        stamp = bank[which[c]]
        # the sample of pixel i lies at i - dx: whole pixels below, and what is past them
        low = np.floor(-dx[c])
        weights = taps[int(np.rint((-dx[c] - low) * steps))]
        first = int(low) - support + 1
        for j in range(k):
            for i in range(k):
                total = 0.0
                for t in range(2 * support):
                    at = i + first + t
                    if 0 <= at < k:
                        total += weights[t] * stamp[j, at]
                along[j, i] = total
        low = np.floor(-dy[c])
        weights = taps[int(np.rint((-dy[c] - low) * steps))]
        first = int(low) - support + 1
        for j in range(k):
            for t in range(2 * support):
                at = j + first + t
                if 0 <= at < k:
                    for i in range(k):
                        out[c, j, i] += weights[t] * along[at, i]
    return out


@jit
def oriented(images, bad, sigma, negative):
    """Return float32 [4, n, k, k]: bright image, faint image, difference and score, in noise sigmas.

    ``images`` are float32 [n, k, k]: science, template, difference and score; of the ``negative`` (bool [n])
    the first two change places and the others their sign. ``sigma`` float64 [n, 3] counts of a pixel of the
    first three as given; ``bad`` (bool [n, k, k]) pixels become 0.
    """
    science, template, difference, score = images
    n, k, _ = score.shape
    out = np.zeros((4, n, k, k), dtype=np.float32)
    for c in range(n):
        first, second, sign = (1, 0, -1.0) if negative[c] else (0, 1, 1.0)
        a, b, e = np.float32(1 / sigma[c, 0]), np.float32(1 / sigma[c, 1]), np.float32(sign / sigma[c, 2])
        turn = np.float32(sign)
        for j in range(k):
            for i in range(k):
                if not bad[c, j, i]:
                    out[first, c, j, i] = science[c, j, i] * a
                    out[second, c, j, i] = template[c, j, i] * b
                    out[2, c, j, i] = difference[c, j, i] * e
                    out[3, c, j, i] = score[c, j, i] * turn
    return out
