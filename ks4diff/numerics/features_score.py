"""Features 1 to 5: the score image around a candidate."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _half_pixels(image, bad, middle, reach, stack):
    """Return how many pixels above half of the middle one are connected to it, within ``reach``."""
    limit = 0.5 * image[middle, middle]
    side = 2 * reach + 1
    seen = np.zeros((side, side), dtype=np.bool_)
    seen[reach, reach] = True
    stack[0] = reach * side + reach
    waiting, count = 1, 0
    while waiting > 0:
        waiting -= 1
        j, i = stack[waiting] // side, stack[waiting] % side
        count += 1
        for step in range(4):
            y = j + (1 if step == 0 else -1 if step == 1 else 0)
            x = i + (1 if step == 2 else -1 if step == 3 else 0)
            if 0 <= y < side and 0 <= x < side and not seen[y, x]:
                seen[y, x] = True
                v, u = middle - reach + y, middle - reach + x
                if not bad[v, u] and image[v, u] > limit:
                    stack[waiting] = y * side + x
                    waiting += 1
    return count


@jit
def _second_peak(s, bad, c, fwhm):
    """Return the highest local maximum of ``s`` from 2 to 4 FWHM off the middle, 0 without one."""
    outer = min(int(4 * fwhm), c - 1)
    highest = 0.0
    for j in range(-outer, outer + 1):
        for i in range(-outer, outer + 1):
            r2 = j * j + i * i
            value = s[c + j, c + i]
            if r2 <= 4 * fwhm * fwhm or r2 > 16 * fwhm * fwhm or bad[c + j, c + i] or value <= highest:
                continue
            top = True
            for v in range(-1, 2):
                for u in range(-1, 2):
                    if not bad[c + j + v, c + i + u] and s[c + j + v, c + i + u] > value:
                        top = False
            if top:
                highest = value
    return highest


@jit
def score_features(out, s, bad, twin, fwhm):
    """Fill ``out`` float64 [n, 5]: s_peak, s_neg, s_width, s_asym and s_second.

    ``s`` float32 [n, k, k] of positive middle, ``bad`` bool likewise, ``twin`` float32 [n, m, m] the score of
    a perfect point source, ``fwhm`` pixels [n].
    """
    c, m = s.shape[1] // 2, twin.shape[1] // 2
    reach = min(7, m)
    stack = np.empty((2 * reach + 1) ** 2, dtype=np.int64)
    clean = np.zeros((twin.shape[1], twin.shape[1]), dtype=np.bool_)
    for k in range(len(s)):
        f, peak = fwhm[k], s[k, c, c]
        half = int(2 * f)
        lowest, odd, total = 0.0, 0.0, 0.0
        for j in range(-half, half + 1):
            for i in range(-half, half + 1):
                r2 = j * j + i * i
                if r2 > 4 * f * f or bad[k, c + j, c + i]:
                    continue
                value = s[k, c + j, c + i]
                lowest = min(lowest, value)
                if r2 <= 2.25 * f * f and not bad[k, c - j, c - i]:
                    odd += abs(value - s[k, c - j, c - i])
                    total += abs(value)
        out[k, 0] = peak
        out[k, 1] = -lowest / peak
        own = _half_pixels(twin[k], clean, m, reach, stack)
        out[k, 2] = np.sqrt(_half_pixels(s[k], bad[k], c, reach, stack) / own)
        out[k, 3] = odd / total
        out[k, 4] = _second_peak(s[k], bad[k], c, f) / peak
