"""How far one image is shifted from another around given places, both seen through both PSFs."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit

_STEPS = 5  # Gauss-Newton; a pixel of shift is found to 0.001 px in four
_REACH = 1.5  # px by which a place may turn out to lie elsewhere
_TAPS = 6  # of the interpolation
_BORDER = 2  # pixels beyond the disc that its derivatives take


@jit
def _through(image, psf, ix, iy, patch, out):
    """Fill out [n, n], about pixel (ix, iy), with the image correlated with ``psf`` [m, m]; 0 beyond borders.

    ``patch`` float32 [n + m - 1, n + m - 1] is room to work in.
    """
    n, m = out.shape[0], psf.shape[0]
    size = n + m - 1
    top, left = iy - size // 2, ix - size // 2
    height, width = image.shape
    for r in range(size):
        for c in range(size):
            y, x = top + r, left + c
            patch[r, c] = image[y, x] if 0 <= y < height and 0 <= x < width else np.float32(0.0)
    for r in range(n):
        to = out[r]
        to[:] = 0.0
        for v in range(m):
            row = patch[r + v]
            for u in range(m):
                p = psf[v, u]
                by = row[u:]
                for c in range(n):
                    to[c] += p * by[c]


@jit
def _quintic(t, weights):
    """Fill weights [6]: of the polynomial through pixels -2 to 3, a fraction t past pixel 0.

    Lanczos weights would not carry a slope unchanged: 0.004 px of shift, by the sub-pixel phase.
    """
    for i in range(_TAPS):
        weights[i] = 1.0
        for j in range(_TAPS):
            if j != i:
                weights[i] *= (t + 2 - j) / (i - j)


@jit
def _sampled(window, x, y, turn, out):
    """Fill out [k, k] with the window at (x, y) + turn @ (column, row) from its middle; x, y its pixels."""
    k = out.shape[0]
    wx, wy = np.empty(_TAPS), np.empty(_TAPS)
    for r in range(k):
        for c in range(k):
            u, v = c - k // 2, r - k // 2
            px = x + turn[0, 0] * u + turn[0, 1] * v
            py = y + turn[1, 0] * u + turn[1, 1] * v
            x0, y0 = int(np.floor(px)), int(np.floor(py))
            _quintic(px - x0, wx)
            _quintic(py - y0, wy)
            total = 0.0
            for j in range(_TAPS):
                row = window[y0 - 2 + j, x0 - 2 :]
                part = 0.0
                for i in range(_TAPS):
                    part += wx[i] * row[i]
                total += wy[j] * part
            out[r, c] = total


@jit
def _step(first, second, core, noise):
    """Return (factor, dx, dy): first(x) = factor * second(x - d) + level within the disc of radius ``core``.

    ``first`` and ``second`` [k, k] about one place, k = 2 core + 5; the factor is 0 where there is no answer.
    Weighted by the inverse of ``noise[0]`` + ``noise[1]`` * first.
    """
    middle = second.shape[0] // 2
    a = np.zeros((4, 4))
    b = np.zeros(4)
    row = np.ones(4)
    for v in range(-core, core + 1):
        for u in range(-core, core + 1):
            if u * u + v * v > core * core:
                continue
            r, c = middle + v, middle + u
            row[0] = second[r, c]
            # central differences of fourth order
            row[1] = (second[r, c + 2] - second[r, c - 2] - 8 * (second[r, c + 1] - second[r, c - 1])) / 12
            row[2] = (second[r + 2, c] - second[r - 2, c] - 8 * (second[r + 1, c] - second[r - 1, c])) / 12
            w = 1 / (noise[0] + noise[1] * max(first[r, c], 0.0))
            for k in range(4):
                b[k] += w * row[k] * first[r, c]
                for m in range(4):
                    a[k, m] += w * row[k] * row[m]
    scale = a[0, 0] * a[1, 1] * a[2, 2] * a[3, 3]
    if not np.linalg.det(a) > 1e-9 * scale:
        return 0.0, 0.0, 0.0
    f, g, h, _ = np.linalg.solve(a, b)
    return (f, g / f, h / f) if f > 0 else (0.0, 0.0, 0.0)


@jit
def _any_bad(flags, ix, iy, reach):
    """Return whether a pixel within ``reach`` of (ix, iy) is flagged or beyond the border."""
    height, width = flags.shape
    if ix < reach or iy < reach or ix >= width - reach or iy >= height - reach:
        return True
    for y in range(iy - reach, iy + reach + 1):
        for x in range(ix - reach, ix + reach + 1):
            if flags[y, x] != 0:
                return True
    return False


@jit
def _matched(images, flags, psfs, places, turn, disc, out):
    """Write where the second image shows what the first does at pixels; see `matching_places`."""
    core, noise = disc[0], (disc[1], disc[2])
    first, second = images
    stretch = max(abs(turn[0, 0]) + abs(turn[0, 1]), abs(turn[1, 0]) + abs(turn[1, 1]), 1.0)
    k = 2 * (core + _BORDER) + 1
    half = int(np.ceil((core + _BORDER) * stretch + _REACH)) + _TAPS // 2 + 1
    one, other = np.empty((k, k), dtype=np.float32), np.empty((k, k))
    window = np.empty((2 * half + 1, 2 * half + 1), dtype=np.float32)
    room = np.empty((k + psfs[1].shape[0] - 1, k + psfs[1].shape[0] - 1), dtype=np.float32)
    wide = 2 * half + psfs[0].shape[0]
    more = np.empty((wide, wide), dtype=np.float32)
    for s in range(places.shape[0]):
        out[s] = np.nan
        ix, iy = int(places[s, 0]), int(places[s, 1])
        tx, ty = places[s, 2], places[s, 3]
        jx, jy = int(np.floor(tx + 0.5)), int(np.floor(ty + 0.5))
        if _any_bad(flags[0], ix, iy, core) or _any_bad(flags[1], jx, jy, int(core * stretch) + 1):
            continue
        _through(first, psfs[1], ix, iy, room, one)
        if one[k // 2, k // 2] <= 0:
            continue
        _through(second, psfs[0], jx, jy, more, window)
        x, y = tx - jx + half, ty - jy + half
        for _ in range(_STEPS):
            _sampled(window, x, y, turn, other)
            f, dx, dy = _step(one, other, core, noise)
            length = np.hypot(dx, dy)
            if f == 0.0:
                break
            shorter = min(0.7 / max(length, 1e-9), 1.0)
            x -= shorter * (turn[0, 0] * dx + turn[0, 1] * dy)
            y -= shorter * (turn[1, 0] * dx + turn[1, 1] * dy)
            if np.hypot(x - half - tx + jx, y - half - ty + jy) > _REACH:
                f = 0.0
                break
            if length < 1e-3:
                break
        if f > 0.0 and length < 0.05:
            out[s, 0], out[s, 1] = x - half + jx, y - half + jy


def matching_places(
    images: tuple[np.ndarray, np.ndarray],
    flags: tuple[np.ndarray, np.ndarray],
    psfs: tuple[np.ndarray, np.ndarray],
    places: np.ndarray,
    turn: np.ndarray,
    core: int,
    noise: tuple[float, float],
) -> np.ndarray:
    """Return float64 [n, 2]: where the second image shows what the first shows at whole pixels.

    Each image is convolved with the other's PSF, so that both see the same neighbours of a star at the same
    width, detected or not; the shift, a factor of brightness and a level
    are fitted by least squares in a disc. NaN
    where a flagged pixel or the border is within the disc, where the fit does not settle, or farther than
    1.5 px from where it was expected.

    Parameters
    ----------
    images
        Float32 [y, x], background subtracted.
    flags
        Integers [y, x] of the same shapes, 0 of good pixels.
    psfs
        Of the first image on the second's pixels, and of the second on the first's: float [m, m], m odd,
        of any sum; their middles decide what counts as the same place.
    places
        Float64 [n, 4]: pixel (x, y) of the first image, whole, and where in the second (x, y) to look.
    turn
        Float64 [2, 2]: how the second's position changes with the first's.
    core
        Radius of the disc, px of the first image, at least 1.
    noise
        Variance of the first image's sky, counts², and that of a count of a source: 1 / gain.

    """
    out = np.empty((len(places), 2))
    # convolution is correlation with the PSF turned round
    turned = tuple(np.ascontiguousarray(psf[::-1, ::-1], dtype=np.float32) for psf in psfs)
    places, turn = (np.ascontiguousarray(values, dtype=np.float64) for values in (places, turn))
    _matched(images, flags, turned, places, turn, (core, *map(float, noise)), out)
    return out
