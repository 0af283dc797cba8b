"""Features 15 to 27: a candidate's width, direction and place, and the pixels beside it."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _moments(image, bad, c, fwhm, dx, dy):
    """Return (major width, minor width, |sin| of the major axis' angle) of the light above 0.

    Second moments within two FWHM, weighted by a Gaussian of the PSF's FWHM around (dx, dy).
    """
    half, width2 = int(2 * fwhm), (fwhm / 2.3548) ** 2
    t, mx, my, xx, yy, xy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            value = image[c + j, c + i]
            if value <= 0 or j * j + i * i > 4 * fwhm * fwhm or bad[c + j, c + i]:
                continue
            u, v = i - dx, j - dy
            w = value * np.exp(-0.5 * (u * u + v * v) / width2)
            t += w
            mx += w * u
            my += w * v
            xx += w * u * u
            yy += w * v * v
            xy += w * u * v
    if t <= 0:
        return 0.0, 0.0, 0.0
    mx, my = mx / t, my / t
    xx, yy, xy = xx / t - mx * mx, yy / t - my * my, xy / t - mx * my
    middle, part = 0.5 * (xx + yy), 0.5 * (xx - yy)
    spread = np.sqrt(part * part + xy * xy)
    # |sin| of half the angle whose cosine is part / spread
    sine = np.sqrt(max(0.5 * (1 - part / spread), 0.0)) if spread > 0 else 0.0
    return np.sqrt(max(middle + spread, 0.0)), np.sqrt(max(middle - spread, 0.0)), sine


@jit
def _median_sums(d, bad, c):
    """Return (sum, sum of sizes) of the 3x3 medians of the good pixels in the middle 5x5."""
    plain, sizes = 0.0, 0.0
    near = np.empty(9)
    for j in range(-2, 3):
        for i in range(-2, 3):
            n = 0
            for v in range(-1, 2):
                for u in range(-1, 2):
                    if bad[c + j + v, c + i + u]:
                        continue
                    value = d[c + j + v, c + i + u]
                    at = n
                    while at > 0 and near[at - 1] > value:
                        near[at] = near[at - 1]
                        at -= 1
                    near[at] = value
                    n += 1
            if n:
                middle = 0.5 * (near[(n - 1) // 2] + near[n // 2])
                plain += middle
                sizes += abs(middle)
    return plain, sizes


@jit
def shape_features(out, d, bad, p, fwhm, dx, dy):
    """Fill ``out`` float64 [n, 13]: features 15 to 27 in their order.

    ``d`` float32 [n, k, k] in noise sigmas, ``bad`` bool likewise, ``p`` float32 [n, m, m], ``fwhm``, ``dx``
    and ``dy`` pixels [n].
    """
    c, m = d.shape[1] // 2, p.shape[1] // 2
    clean = np.zeros((p.shape[1], p.shape[1]), dtype=np.bool_)
    for k in range(len(d)):
        f = fwhm[k]
        a, b, sine = _moments(d[k], bad[k], c, f, dx[k], dy[k])
        pa, pb, _ = _moments(p[k], clean, m, f, dx[k], dy[k])
        out[k, 0] = np.sqrt((a * a + b * b) / (pa * pa + pb * pb))
        out[k, 1], out[k, 2] = a / pa, b / pb
        out[k, 3] = a / max(b, 0.02 * a) if a > 0 else 1.0
        out[k, 4] = (1 - b / a) * sine if a > 0 else 0.0
        sx, sy, total, top, ty, tx = 0.0, 0.0, 0.0, -np.inf, 0, 0
        counts = np.zeros(5)
        for j in range(-4, 5):
            for i in range(-4, 5):
                if bad[k, c + j, c + i]:
                    continue
                value = d[k, c + j, c + i]
                if value > top:
                    top, ty, tx = value, j, i
                if max(abs(j), abs(i)) > 3:
                    continue
                if value > 0:
                    sx += value * i
                    sy += value * j
                    total += value
                counts[2] += value <= -2
                counts[3] += value <= -3
                if max(abs(j), abs(i)) <= 2:
                    counts[0] += value <= -2
                    counts[1] += value <= -3
                    counts[4] += value < 0
        out[k, 5] = np.hypot(sx / total - dx[k], sy / total - dy[k]) / f if total > 0 else 5.0
        out[k, 6] = np.sqrt(float(ty * ty + tx * tx)) / f
        for t in range(5):
            out[k, 7 + t] = counts[t]
        plain, sizes = _median_sums(d[k], bad[k], c)
        out[k, 12] = plain / sizes if sizes > 0 else 0.0
