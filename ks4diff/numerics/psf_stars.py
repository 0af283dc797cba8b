"""Fit the stars of one cell of an image with local PSFs, and cut them out centred and alone."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.taps import SUPPORT, tap_table

FRAME = 2 * SUPPORT  # zeros around a PSF, so that no tap needs a check


@jit
def _eight(taps, k):
    """Return the 8 weights in row k."""
    w = taps[k]
    return w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]


@jit
def _rows(line, r):
    """Return 8 rows from row r on."""
    return line[r], line[r + 1], line[r + 2], line[r + 3], line[r + 4], line[r + 5], line[r + 6], line[r + 7]


@jit
def _sampled(source, taps, x, y, side, line, out):
    """Fill out [side, side] with the source sampled from (x, y) on, every pixel; all taps are inside it."""
    steps = taps.shape[0] - 1
    x0 = int(np.floor(x))
    y0 = int(np.floor(y))
    left = x0 - 3
    low = y0 - 3
    # 8 taps written out become vector instructions
    w0, w1, w2, w3, w4, w5, w6, w7 = _eight(taps, int((x - x0) * steps + 0.5))
    for r in range(side + 7):
        p = source[low + r, left:]
        to = line[r]
        for c in range(side):
            to[c] = (w0 * p[c] + w1 * p[c + 1] + w2 * p[c + 2] + w3 * p[c + 3]) + (
                w4 * p[c + 4] + w5 * p[c + 5] + w6 * p[c + 6] + w7 * p[c + 7]
            )
    w0, w1, w2, w3, w4, w5, w6, w7 = _eight(taps, int((y - y0) * steps + 0.5))
    for r in range(side):
        p0, p1, p2, p3, p4, p5, p6, p7 = _rows(line, r)
        to = out[r]
        for c in range(side):
            to[c] = (w0 * p0[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c]) + (
                w4 * p4[c] + w5 * p5[c] + w6 * p6[c] + w7 * p7[c]
            )


@jit
def _drawn(psf, taps, x, y, half, line, out):
    """Fill out [2 half + 1]² with the framed PSF of a star at (x, y), around the pixel nearest to it."""
    middle = psf.shape[0] // 2
    dx = x - np.floor(x + 0.5)
    dy = y - np.floor(y + 0.5)
    _sampled(psf, taps, middle - half - dx, middle - half - dy, 2 * half + 1, line, out)


@jit
def _add(residual, stamp, x, y, half, flux):
    """Add flux * stamp to the residual around the pixel nearest to (x, y)."""
    left = int(np.floor(x + 0.5)) - half
    low = int(np.floor(y + 0.5)) - half
    by = np.float32(flux)
    for r in range(2 * half + 1):
        to = residual[low + r, left:]
        p = stamp[r]
        for c in range(2 * half + 1):
            to[c] += by * p[c]


@jit
def _step(residual, bad, stamp, star, half, core, noise):
    """Return (flux, dx, dy) of the least-squares fit to the residual, that star added back; NaN if it fails.

    ``noise`` is (sky variance, gain, move): without ``move`` the flux alone.
    """
    sky, gain, move = noise
    ix = int(np.floor(star[0] + 0.5))
    iy = int(np.floor(star[1] + 0.5))
    pp = px_ = py_ = xx = xy = yy = dp = dx = dy = 0.0
    for v in range(-core, core + 1):
        for u in range(-core, core + 1):
            if u * u + v * v > core * core or bad[iy + v, ix + u]:
                continue
            r = half + v
            c = half + u
            p = float(stamp[r, c])
            # the variance of the model, not of the noisy pixel: that would weight low pixels up
            w = 1.0 / (sky + max(star[2] * p, 0.0) / gain)
            gx = 0.5 * (stamp[r, c - 1] - stamp[r, c + 1])
            gy = 0.5 * (stamp[r - 1, c] - stamp[r + 1, c])
            d = residual[iy + v, ix + u] * w
            pp += w * p * p
            px_ += w * p * gx
            py_ += w * p * gy
            xx += w * gx * gx
            xy += w * gx * gy
            yy += w * gy * gy
            dp += d * p
            dx += d * gx
            dy += d * gy
    if not pp > 0.0:
        return np.nan, 0.0, 0.0
    if move:
        # of the flux freed
        sxx = xx - px_ * px_ / pp
        sxy = xy - px_ * py_ / pp
        syy = yy - py_ * py_ / pp
        bx = dx - dp * px_ / pp
        by = dy - dp * py_ / pp
        det = sxx * syy - sxy * sxy
        if det > 1e-6 * xx * yy:
            g = (bx * syy - by * sxy) / det
            h = (by * sxx - bx * sxy) / det
            flux = (dp - g * px_ - h * py_) / pp
            if flux > 0.0:
                # a step is held to 0.3 px: farther the linear model does not reach
                return flux, min(max(g / flux, -0.3), 0.3), min(max(h / flux, -0.3), 0.3)
    return max(dp / pp, 0.0), 0.0, 0.0


@jit
def _own(drawings, end, half):
    """Return one star's drawing [2 half + 1]² out of all."""
    side = 2 * half + 1
    return drawings[end - side * side : end].reshape((side, side))


@jit
def _fit(image, psfs, taps, stars, drawn, noise, plan):
    """Fit stars [3, k] in place, one after the other, on the residual, which lacks them all at the end.

    ``image`` (residual, bad), ``drawn`` (which, half), ``noise`` (sky, gain), ``plan`` (core, sweeps).
    """
    residual, bad = image
    which, half = drawn
    sky, gain = noise
    core, sweeps = plan
    n = psfs.shape[1] - 16
    line = np.empty((n + 7, n), dtype=np.float32)
    start = stars.copy()
    # each star as it was last drawn: drawing it again takes longer than the whole step
    ends = np.cumsum((2 * half + 1) ** 2)
    drawings = np.empty(ends[-1] if len(ends) else 0, dtype=np.float32)
    for s in range(stars.shape[1]):
        stamp = _own(drawings, ends[s], half[s])
        _drawn(psfs[which[s]], taps, stars[0, s], stars[1, s], half[s], line, stamp)
        _add(residual, stamp, stars[0, s], stars[1, s], half[s], -stars[2, s])
    for sweep in range(sweeps):
        for s in range(stars.shape[1]):
            psf = psfs[which[s]]
            stamp = _own(drawings, ends[s], half[s])
            star = (stars[0, s], stars[1, s], stars[2, s])
            _add(residual, stamp, star[0], star[1], half[s], star[2])
            flux, dx, dy = _step(residual, bad, stamp, star, half[s], core, (sky[s], gain, sweep > 0))
            if np.isnan(flux):
                flux = star[2]
            # farther from where it was found than 1.5 px it sits on a neighbour
            x = min(max(star[0] + dx, start[0, s] - 1.5), start[0, s] + 1.5)
            y = min(max(star[1] + dy, start[1, s] - 1.5), start[1, s] + 1.5)
            if dx != 0.0 or dy != 0.0:
                _drawn(psf, taps, x, y, half[s], line, stamp)
            _add(residual, stamp, x, y, half[s], -flux)
            stars[0, s], stars[1, s], stars[2, s] = x, y, flux


@jit
def _collect(residual, bad, psfs, taps, stars, which, stamps, known):
    """Fill stamps and known [k, n, n] of stars [3, k]: each star alone, centred, over its flux."""
    n = stamps.shape[1]
    half = n // 2
    line = np.empty((n + 7, n), dtype=np.float32)
    around = np.empty((n + 7, n + 7), dtype=np.float32)
    for s in range(stars.shape[1]):
        x = stars[0, s] - half
        y = stars[1, s] - half
        x0, y0 = int(np.floor(x)) - 3, int(np.floor(y)) - 3
        for r in range(n + 7):
            for c in range(n + 7):
                around[r, c] = 0.0 if bad[y0 + r, x0 + c] else residual[y0 + r, x0 + c]
        _sampled(around, taps, x - x0, y - y0, n, line, stamps[s])
        left = int(np.floor(x + 0.5))
        low = int(np.floor(y + 0.5))
        by = np.float32(1.0 / stars[2, s])
        psf = psfs[which[s]]
        for r in range(n):
            for c in range(n):
                stamps[s, r, c] = stamps[s, r, c] * by + psf[r + 8, c + 8]
                known[s, r, c] = not bad[low + r, left + c]


def cut(
    data: np.ndarray, flags: np.ndarray, box: tuple[slice, slice], margin: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (pixels float32, bad bool) of a box grown by ``margin`` px; beyond the image 0 and bad."""
    pixels = np.zeros([s.stop - s.start + 2 * margin for s in box], dtype=np.float32)
    bad = np.ones(pixels.shape, dtype=bool)
    inside = [
        slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, data.shape, strict=True)
    ]
    here = tuple(
        slice(i.start - s.start + margin, i.stop - s.start + margin) for i, s in zip(inside, box, strict=True)
    )
    pixels[here] = data[*inside]
    np.not_equal(flags[*inside], 0, out=bad[here])
    return pixels, bad


def framed(psfs: np.ndarray) -> np.ndarray:
    """Return PSFs [k, n, n] as float32 within a frame of zeros as wide as the taps."""
    return np.pad(psfs.astype(np.float32), ((0, 0), (FRAME, FRAME), (FRAME, FRAME)))


def fit_cell(
    pixels: np.ndarray,
    bad: np.ndarray,
    psfs: np.ndarray,
    stars: np.ndarray,
    which: np.ndarray,
    half: np.ndarray,
    noise: tuple[np.ndarray, float],
    plan: tuple[int, int],
) -> np.ndarray:
    """Return stars [3, k] (x, y, flux) fitted together to ``pixels``, which becomes what they leave.

    Gauss-Seidel as in `stars_fit.fit_stars`, the first sweep fluxes only, but with a PSF of each star's
    place, a variance from the sky and the star's own model, and faint stars drawn in small stamps.

    Parameters
    ----------
    pixels
        Float32 [y, x], background subtracted. Changed: it is the caller's own cut-out.
    bad
        Bool [y, x], pixels not to be fitted.
    psfs
        Float32 [p, n + 2 FRAME, n + 2 FRAME] of `framed`.
    stars, which, half
        Float64 [3, k] in pixels of the cut-out, none nearer to its border than n // 2 + 10; the PSF of each;
        the half-width int64 of the stamp that each is drawn in, ``core`` + 1 to n // 2.
    noise
        (float64 [k], the sky's variance at each star; electrons per count).
    plan
        (core, sweeps): radius in pixels of the disc that is fitted; passes over all stars.

    Raises
    ------
    ValueError
        When a star is not finite or too near to the border, or a half-width out of range.

    """
    core, sweeps = plan
    fitted = np.array(stars, dtype=np.float64, order="C")
    edge = psfs.shape[1] // 2 - FRAME + 10
    if not np.isfinite(fitted).all():
        raise ValueError("stars are not finite")
    upper = np.array(pixels.shape[::-1])[:, None] - 1 - edge
    if (fitted[:2] < edge).any() or (fitted[:2] > upper).any():
        raise ValueError(f"a star lies within {edge} px of the border")
    if len(half) and not (core < half.min() and half.max() <= psfs.shape[1] // 2 - FRAME):
        raise ValueError(f"half-widths {half.min()} .. {half.max()} do not suit a core of {core}")
    taps = tap_table().astype(np.float32)
    _fit((pixels, bad), psfs, taps, fitted, (which, half), (noise[0], float(noise[1])), (core, sweeps))
    return fitted


def centred_stamps(
    residual: np.ndarray, bad: np.ndarray, psfs: np.ndarray, stars: np.ndarray, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (stamps float32, known bool) [k, n, n]: each star alone, centred, divided by its flux.

    ``residual`` and the rest as `fit_cell` leaves them, fluxes above 0. Bad pixels show the PSF itself.
    """
    n = psfs.shape[1] - 2 * FRAME
    stamps = np.empty((stars.shape[1], n, n), dtype=np.float32)
    known = np.empty(stamps.shape, dtype=np.bool_)
    taps = tap_table().astype(np.float32)
    _collect(residual, bad, psfs, taps, np.ascontiguousarray(stars), which, stamps, known)
    return stamps, known
