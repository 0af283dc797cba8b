"""Features 6 to 14 and 28 to 33: a candidate's difference against its PSF, and against a dipole."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


@jit
def _dipole(d, bad, p, c, m, half, reach2):
    """Return (share of the PSF fit's chi² that a shifted PSF takes off, the shift in pixels).

    Normal equations of p and its two gradients over the disc of squared radius ``reach2``.
    """
    a = np.zeros((3, 3))
    b = np.zeros(3)
    square = 0.0
    row = np.empty(3)
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i > reach2 or bad[c + j, c + i]:
                continue
            row[0] = p[m + j, m + i]
            row[1] = 0.5 * (p[m + j, m + i + 1] - p[m + j, m + i - 1])
            row[2] = 0.5 * (p[m + j + 1, m + i] - p[m + j - 1, m + i])
            value = d[c + j, c + i]
            square += value * value
            for u in range(3):
                b[u] += row[u] * value
                for v in range(3):
                    a[u, v] += row[u] * row[v]
    if a[0, 0] <= 0:
        return 0.0, 0.0
    flux = b[0] / a[0, 0]
    before = square - flux * b[0]
    # elimination of p leaves two equations
    xx, yy = a[1, 1] - a[0, 1] ** 2 / a[0, 0], a[2, 2] - a[0, 2] ** 2 / a[0, 0]
    xy = a[1, 2] - a[0, 1] * a[0, 2] / a[0, 0]
    bx, by = b[1] - a[0, 1] * flux, b[2] - a[0, 2] * flux
    det = xx * yy - xy * xy
    if det <= 0 or before <= 0:
        return 0.0, 0.0
    gx, gy = (bx * yy - by * xy) / det, (by * xx - bx * xy) / det
    own = flux - (gx * a[0, 1] + gy * a[0, 2]) / a[0, 0]
    # without noise both are rounding
    gain = (gx * bx + gy * by) / before if before > 1e-9 * square else 0.0
    return gain, np.sqrt(gx * gx + gy * gy) / max(abs(own), 1e-12)


@jit
def _sharpness(stamp, bad, c):
    """Return the middle pixel less the mean of its good neighbours."""
    total, n = 0.0, 0
    for j in range(-1, 2):
        for i in range(-1, 2):
            if (j != 0 or i != 0) and not bad[c + j, c + i]:
                total += stamp[c + j, c + i]
                n += 1
    return stamp[c, c] - total / max(n, 1)


@jit
def _extremes(d, bad, c, reach2):
    """Return the distance between the highest and the lowest good pixel within a disc."""
    half = int(np.sqrt(reach2))
    top, low = -np.inf, np.inf
    ty = tx = ly = lx = 0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i > reach2 or bad[c + j, c + i]:
                continue
            value = d[c + j, c + i]
            if value > top:
                top, ty, tx = value, j, i
            if value < low:
                low, ly, lx = value, j, i
    return np.sqrt(float((ty - ly) ** 2 + (tx - lx) ** 2))


@jit
def _sums(d, bad, p, wide, fwhm):
    """Return what the features of the disc of two FWHM are made of.

    (number, dd, dp, pp, d, p, gd, gp, light above 0, below 0, highest d, lowest d, highest p) with g = wide.
    """
    c, m, half = d.shape[0] // 2, p.shape[0] // 2, int(2 * fwhm)
    n, dd, dp, pp, sd, sp, gd, gp = 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    up, down, top, low, pmax = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i > 4 * fwhm * fwhm or bad[c + j, c + i]:
                continue
            v, q, g = d[c + j, c + i], p[m + j, m + i], wide[m + j, m + i]
            n += 1
            dd += v * v
            dp += v * q
            pp += q * q
            sd += v
            sp += q
            gd += g * v
            gp += g * q
            up += max(v, 0.0)
            down += max(-v, 0.0)
            top, low, pmax = max(top, v), min(low, v), max(pmax, q)
    return n, dd, dp, pp, sd, sp, gd, gp, up, down, top, low, pmax


@jit
def _rings(d, bad, p, fwhm):
    """Return (d, p within 1 FWHM; within 0.5; within 1.5; the odd part of d there; its size)."""
    c, m, half = d.shape[0] // 2, p.shape[0] // 2, int(1.5 * fwhm)
    one_d, one_p, core_d, core_p, body_d, body_p = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    odd, total = 0.0, 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            r2 = j * j + i * i
            if r2 > 2.25 * fwhm * fwhm or bad[c + j, c + i]:
                continue
            v, q = d[c + j, c + i], p[m + j, m + i]
            body_d += v
            body_p += q
            if not bad[c - j, c - i]:
                odd += abs(v - d[c - j, c - i])
                total += abs(v)
            if r2 <= fwhm * fwhm:
                one_d += v
                one_p += q
            if r2 <= 0.25 * fwhm * fwhm:
                core_d += v
                core_p += q
    return one_d, one_p, core_d, core_p, body_d, body_p, odd, total


@jit
def _worst(d, bad, p, flux, fwhm):
    """Return the largest residual of the PSF fit within two FWHM."""
    c, m, half = d.shape[0] // 2, p.shape[0] // 2, int(2 * fwhm)
    worst = 0.0
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            if j * j + i * i <= 4 * fwhm * fwhm and not bad[c + j, c + i]:
                worst = max(worst, abs(d[c + j, c + i] - flux * p[m + j, m + i]))
    return worst


@jit
def fit_features(out, d, bad, p, wide, fwhm, peak):
    """Fill ``out`` float64 [n, 15]: features 6 to 14, then 28 to 33, in their order.

    ``d`` float32 [n, k, k] in noise sigmas, ``bad`` bool likewise, ``p`` and ``wide`` float32 [n, m, m] the
    PSF and the PSF of an extended source, m >= 4 FWHM + 3, ``fwhm`` pixels [n], ``peak`` score [n].
    """
    c, m = d.shape[1] // 2, p.shape[1] // 2
    clean = np.zeros((p.shape[1], p.shape[1]), dtype=np.bool_)
    for k in range(len(d)):
        f = fwhm[k]
        n, dd, dp, pp, sd, sp, gd, gp, up, down, top, low, pmax = _sums(d[k], bad[k], p[k], wide[k], f)
        one_d, one_p, core_d, core_p, body_d, body_p, odd, total = _rings(d[k], bad[k], p[k], f)
        flux = dp / pp
        ratio = one_d / one_p / flux
        out[k, 0] = dp / np.sqrt(pp) / peak[k]
        out[k, 1] = max(dd - flux * dp, 0.0) / max(n - 1, 1)
        out[k, 2] = (dp - sd * sp / n) / np.sqrt((dd - sd * sd / n) * (pp - sp * sp / n))
        out[k, 3] = _worst(d[k], bad[k], p[k], flux, f) / (flux * pmax)
        out[k, 4] = (flux * dp - d[k, c, c] ** 2) / dd
        out[k, 5] = -2.5 * np.log10(min(max(ratio, 0.01), 100.0)) if flux > 0 else 5.0
        out[k, 6] = (core_d / body_d) / (core_p / body_p)
        out[k, 7] = _sharpness(d[k], bad[k], c) / (flux * _sharpness(p[k], clean, m))
        out[k, 8] = gd / dp - gp / pp
        out[k, 9] = down / up
        out[k, 10] = -low / top
        out[k, 11] = _extremes(d[k], bad[k], c, min(9 * f * f, float(c * c))) / f
        out[k, 12], shift = _dipole(d[k], bad[k], p[k], c, m, int(2 * f), 4 * f * f)
        out[k, 13] = min(shift, 5.0)
        out[k, 14] = odd / total
