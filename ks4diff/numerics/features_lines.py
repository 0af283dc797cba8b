"""Features 45 to 54: hits, columns, rows, lines and the noise around a candidate."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

ANGLES = 16  # over half a turn, 11.25 degrees apart


@jit
def _select(values, n, rank):
    """Return the element of this rank of the first n values, which are put in another order."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            return values[rank]
    return values[rank]


@jit
def _median(values, n):
    """Return the median of the first n values, n >= 1, which are put in another order."""
    upper = _select(values, n, n // 2)
    if n % 2:
        return upper
    below = values[0]
    for k in range(1, n // 2):
        below = max(below, values[k])
    return 0.5 * (below + upper)


@jit
def _box_median(image, bad, j, i, reach, values):
    """Return the median of the good pixels within ``reach`` of (j, i), 0 without any."""
    n = 0
    for v in range(max(j - reach, 0), min(j + reach + 1, image.shape[0])):
        for u in range(max(i - reach, 0), min(i + reach + 1, image.shape[1])):
            if not bad[v, u]:
                values[n] = image[v, u]
                n += 1
    return _median(values, n) if n else 0.0


@jit
def _median_of_nine(image, j, i):
    """Return the median of the 3x3 pixels around (j, i): the middle of three sorted columns' extremes."""
    low, mid, high = -np.inf, np.empty(3), np.inf
    for k in range(3):
        a, b, c = image[j - 1, i - 1 + k], image[j, i - 1 + k], image[j + 1, i - 1 + k]
        a, b = min(a, b), max(a, b)
        b, c = min(b, c), max(b, c)
        a, b = min(a, b), max(a, b)
        low, high, mid[k] = max(low, a), min(high, c), b
    m = max(min(mid[0], mid[1]), min(max(mid[0], mid[1]), mid[2]))
    return max(min(low, m), min(max(low, m), high))


@jit
def _smoothed(d, bad, c, grown, values):
    """Return (3x3 medians within ``grown`` of the middle, a bound that no 7x7 median of them is below)."""
    side = 2 * grown + 1
    smooth = np.empty((side, side))
    whole = not bad[c - grown - 1 : c + grown + 2, c - grown - 1 : c + grown + 2].any()
    for j in range(side):
        for i in range(side):
            y, x = c - grown + j, c - grown + i
            smooth[j, i] = _median_of_nine(d, y, x) if whole else _box_median(d, bad, y, x, 1, values)
    if not whole:
        return smooth, -np.inf
    for k in range(side * side):
        values[k] = smooth[k // side, k % side]
    # the 25th smallest of 49 is no smaller than the 25th smallest of all
    return smooth, _select(values, side * side, 24)


@jit
def _fine_structure(d, bad, c, values):
    """Return the highest pixel of the middle 11x11 over the highest of med3 - med7(med3) there."""
    reach, grown = 5, 8
    smooth, floor = _smoothed(d, bad, c, grown, values)
    near = bad[c - grown : c + grown + 1, c - grown : c + grown + 1]
    top, fine, peak, row, column = -np.inf, -np.inf, -np.inf, grown, grown
    box = range(grown - reach, grown + reach + 1)
    for j in box:
        for i in box:
            if not near[j, i]:
                top = max(top, d[c - grown + j, c - grown + i])
                if smooth[j, i] > peak:
                    peak, row, column = smooth[j, i], j, i
    if peak > -np.inf:
        fine = peak - _box_median(smooth, near, row, column, 3, values)
    for j in box:
        for i in box:
            # most pixels cannot hold the highest: their 7x7 median is not worth its time
            if not near[j, i] and smooth[j, i] - floor > fine:
                fine = max(fine, smooth[j, i] - _box_median(smooth, near, j, i, 3, values))
    return top / fine


@jit
def _strip(strip, bad, values, high, low):
    """Return (high, low), raised and lowered to a strip's median if it is beyond them."""
    n, above, below = 0, 0, 0
    for k in range(len(strip)):
        if not bad[k]:
            values[n] = strip[k]
            n += 1
            above += strip[k] > high
            below += strip[k] < low
    # a median is beyond only if half of the strip is: few are worth sorting
    if 4 * n >= len(strip) and (2 * above >= n or 2 * below >= n):
        middle = _median(values, n)
        return max(high, middle), min(low, middle)
    return high, low


@jit
def _strips(d, bad, c, values):
    """Return (highest median of the middle 31 columns, of the rows, and the columns' lowest)."""
    column, row, lowest = -np.inf, -np.inf, np.inf
    for k in range(c - 15, c + 16):
        column, lowest = _strip(d[:, k], bad[:, k], values, column, lowest)
        row, _ = _strip(d[k], bad[k], values, row, -np.inf)
    return max(column, -50.0), max(row, -50.0), min(lowest, 50.0)


@jit
def _line(d, bad, c, fwhm, ways):
    """Return (highest significance of a line through the middle, cos 4 theta of its angle)."""
    best, at = -np.inf, 0
    for a in range(len(ways)):
        total, n = 0.0, 0
        for k in range(int(1.5 * fwhm) + 1, 31):
            x, y = np.rint(k * ways[a, 0]), np.rint(k * ways[a, 1])
            for sign in (-1, 1):
                j, i = c + sign * int(y), c + sign * int(x)
                if not bad[j, i]:
                    total += d[j, i]
                    n += 1
        if n >= 10 and total / np.sqrt(n) > best:
            best, at = total / np.sqrt(n), a
    return (best, ways[at, 2]) if best > -np.inf else (0.0, 0.0)


@jit
def line_features(out, d, bad, fwhm, ways):
    """Fill ``out`` float64 [n, 10]: features 45 to 54 in their order.

    ``d`` float32 [n, 63, 63] in noise sigmas, ``bad`` bool likewise, ``fwhm`` pixels [n], ``ways`` float64
    [ANGLES, 3]: cosine and sine of each angle, and the cosine of four times it.
    """
    side = d.shape[1]
    c = side // 2
    values = np.empty(side * side)
    for k in range(len(d)):
        out[k, 0] = _fine_structure(d[k], bad[k], c, values)
        out[k, 1], out[k, 2], out[k, 3] = _strips(d[k], bad[k], c, values)
        out[k, 4], out[k, 5] = _line(d[k], bad[k], c, fwhm[k], ways)
        plain, sizes, n, masked = 0.0, 0.0, 0, 0
        inner = min(4 * fwhm[k], 20.0)
        for j in range(side):
            for i in range(side):
                if bad[k, j, i]:
                    masked += 1
                    continue
                plain += d[k, j, i]
                sizes += abs(d[k, j, i])
                r2 = (j - c) ** 2 + (i - c) ** 2
                if inner * inner < r2 <= c * c and (j + i) % 2 == 0:
                    values[n] = d[k, j, i]
                    n += 1
        # 0 means that everything is of one sign
        out[k, 6] = np.log10(min(sizes / max(abs(plain), 1e-12), 1e6)) if sizes > 0 else 0.0
        out[k, 7] = 1.0
        if n >= 20:
            middle = _median(values, n)
            for t in range(n):
                values[t] = abs(values[t] - middle)
            out[k, 7] = 1.4826 * _median(values, n)
        near = 0
        for j in range(c - 2, c + 3):
            for i in range(c - 2, c + 3):
                near += bad[k, j, i]
        out[k, 8], out[k, 9] = near, masked / (side * side)
