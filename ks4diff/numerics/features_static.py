"""Features 34 to 43: what stands at a candidate's place in the two images themselves."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

REACH_PIX = 12.0  # of the nearest static source
PEAK_SIGMA = 5.0


@jit
def _correlation(a, bad, p, c, m, fwhm):
    """Return Pearson's correlation of a stamp with a PSF within two FWHM, 0 where either is constant."""
    half = int(2 * fwhm)
    n, sa, sp, aa, pp, ap = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i > 4 * fwhm * fwhm or bad[c + j, c + i]:
                continue
            u, v = float(a[c + j, c + i]), float(p[m + j, m + i])
            n += 1
            sa += u
            sp += v
            aa += u * u
            pp += v * v
            ap += u * v
    norm = (aa - sa * sa / n) * (pp - sp * sp / n)
    return (ap - sa * sp / n) / np.sqrt(norm) if norm > 1e-12 * aa * pp else 0.0


@jit
def _nearest_peak(t, bad, c):
    """Return (row, column, squared distance) of the nearest local maximum of ``t``, distance -1 without."""
    reach = int(REACH_PIX)
    best, row, column = -1, 0, 0
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            r2 = j * j + i * i
            value = t[c + j, c + i]
            nearer = best < 0 or r2 < best or (r2 == best and value > t[row, column])
            if value < PEAK_SIGMA or r2 > REACH_PIX * REACH_PIX or bad[c + j, c + i] or not nearer:
                continue
            top = True
            for v in range(-1, 2):
                for u in range(-1, 2):
                    if t[c + j + v, c + i + u] > value and not bad[c + j + v, c + i + u]:
                        top = False
            if top:
                best, row, column = r2, c + j, c + i
    return row, column, best


@jit
def _concentration(a, bad, y, x, fwhm):
    """Return the light within half a FWHM of a pixel over that within 1.5."""
    half = int(1.5 * fwhm)
    core, body = 0.0, 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            r2 = j * j + i * i
            if r2 > 2.25 * fwhm * fwhm or bad[y + j, x + i]:
                continue
            body += a[y + j, x + i]
            if r2 <= 0.25 * fwhm * fwhm:
                core += a[y + j, x + i]
    return core / body


@jit
def _sum(a, bad, c, radius):
    """Return (sum, number) of the good pixels within a radius of pixel (c, c)."""
    half = int(radius)
    total, n = 0.0, 0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i <= radius * radius and not bad[c + j, c + i]:
                total += a[c + j, c + i]
                n += 1
    return total, n


@jit
def _sum_of_psf(p, bad, c, m, radius):
    """Return the sum of a PSF over the pixels that are good in the stamp."""
    half = int(radius)
    total = 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i <= radius * radius and not bad[c + j, c + i]:
                total += p[m + j, m + i]
    return total


@jit
def _slope(t, bad, c, fwhm):
    """Return the mean size of the gradient within a FWHM."""
    half = int(fwhm)
    total, n = 0.0, 0
    for j in range(c - half, c + half + 1):
        for i in range(c - half, c + half + 1):
            if (j - c) ** 2 + (i - c) ** 2 > fwhm * fwhm:
                continue
            if bad[j, i + 1] or bad[j, i - 1] or bad[j + 1, i] or bad[j - 1, i]:
                continue
            gx, gy = 0.5 * (t[j, i + 1] - t[j, i - 1]), 0.5 * (t[j + 1, i] - t[j - 1, i])
            total += np.sqrt(gx * gx + gy * gy)
            n += 1
    return total / max(n, 1)


@jit
def _brighter(d, t, bad, c, reach, limit):
    """Return how many more pixels of ``d`` than of ``t`` reach ``limit`` in a box."""
    count = 0
    for j in range(c - reach, c + reach + 1):
        for i in range(c - reach, c + reach + 1):
            if not bad[j, i]:
                count += int(d[j, i] >= limit) - int(t[j, i] >= limit)
    return count


@jit
def _excess(images, bad, psfs, sigma, radius):
    """Return how far the difference's light departs from that of the two images, in their noise."""
    c, m = images.shape[1] // 2, psfs[0].shape[0] // 2
    flux, var = 0.0, 0.0
    for k in range(3):
        held = _sum_of_psf(psfs[k], bad, c, m, radius)
        light, count = _sum(images[k], bad, c, radius)
        light *= sigma[k] / held
        flux += light if k != 0 else -light
        if k < 2:
            var += count * (sigma[k] / held) ** 2
    return flux / np.sqrt(var)


@jit
def static_features(out, images, bad, psfs, plain, sigma, fwhm):
    """Fill ``out`` float64 [k, 10]: features 34 to 43 in their order.

    ``images`` float32 [4, k, 63, 63], bright image n, faint image t, difference d and score, each in its
    noise sigmas; ``bad`` bool [k, 63, 63]; ``psfs`` three float32 [k, m, m], of n, t and d in place;
    ``plain`` float32 [k, m, m] the PSF of t on a pixel's middle; ``sigma`` float64 [k, 3] counts of n, t and
    d; ``fwhm`` pixels [k].
    """
    n, t, d = images[0], images[1], images[2]
    c, m = d.shape[1] // 2, plain.shape[1] // 2
    clean = np.zeros((plain.shape[1], plain.shape[1]), dtype=np.bool_)
    for k in range(len(d)):
        f = fwhm[k]
        total, count = _sum(t[k], bad[k], c, f)
        change = _sum(d[k], bad[k], c, f)[0] * sigma[k, 2]
        static = total * sigma[k, 1]
        out[k, 0] = total / np.sqrt(max(count, 1))
        out[k, 1] = change / (change + max(static, 0.0))
        change5 = _sum(d[k], bad[k], c, 5.0)[0] * sigma[k, 2]
        static5 = _sum(t[k], bad[k], c, 5.0)[0] * sigma[k, 1]
        out[k, 2] = (change5 - static5) / abs(static5)
        out[k, 3], out[k, 4] = (
            _brighter(d[k], t[k], bad[k], c, 2, 2.0),
            _brighter(d[k], t[k], bad[k], c, 3, 3.0),
        )
        row, column, r2 = _nearest_peak(t[k], bad[k], c)
        out[k, 5], out[k, 6] = 5.0, 0.0
        if r2 >= 0:
            out[k, 5] = min(np.sqrt(float(r2)) / f, 5.0)
            out[k, 6] = _concentration(t[k], bad[k], row, column, f) / _concentration(
                plain[k], clean, m, m, f
            )
        out[k, 7] = _slope(t[k], bad[k], c, f)
        out[k, 8] = _correlation(n[k], bad[k], psfs[0][k], c, m, f)
        out[k, 9] = _excess(images[:, k], bad[k], (psfs[0][k], psfs[1][k], psfs[2][k]), sigma[k], 1.5 * f)
