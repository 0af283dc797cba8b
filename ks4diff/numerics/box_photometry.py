"""PSF fluxes of chosen stars, each fitted in a small disc together with its neighbours and a local level."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.lanczos import SUPPORT, tap_table

MAX_NEIGHBOURS = 8  # fitted with a target, the nearest: beyond, their light is as smooth as the level


@jit
def _sample(padded, taps, x, y, line, out):
    """Fill out [m, m] with the PSF whose middle lies (x, y) px right of and above the middle of ``out``.

    ``padded`` is the PSF in a frame of zeros so wide that no tap leaves it; ``line`` is room to work in.
    """
    m = out.shape[0]
    steps = taps.shape[0] - 1
    span = taps.shape[1]
    middle = padded.shape[0] // 2
    x0 = int(np.floor(-x))
    y0 = int(np.floor(-y))
    wx = taps[int((-x - x0) * steps + 0.5)]
    wy = taps[int((-y - y0) * steps + 0.5)]
    left = middle - m // 2 + x0 - (span // 2 - 1)
    low = middle - m // 2 + y0 - (span // 2 - 1)
    for r in range(m + span - 1):
        p = padded[low + r, left:]
        to = line[r]
        for c in range(m):
            total = 0.0
            for k in range(8):
                total += wx[k] * p[c + k]
            to[c] = total
    for r in range(m):
        to = out[r]
        for c in range(m):
            to[c] = 0.0
        for k in range(8):
            w = wy[k]
            p = line[r + k]
            for c in range(m):
                to[c] += w * p[c]


@jit
def _factored(a, n):
    """Replace the lower triangle of a[:n, :n] by its Cholesky factor; False where it is degenerate."""
    for j in range(n):
        for i in range(j, n):
            for k in range(j):
                a[i, j] -= a[i, k] * a[j, k]
            if i > j:
                a[i, j] /= a[j, j]
            elif a[j, j] > 0.0:
                a[j, j] = np.sqrt(a[j, j])
            else:
                return False
    return True


@jit
def _solve(a, b, n):
    """Replace the columns of b [n, 2] by the solutions of a x = b, a factored."""
    for side in range(2):
        for i in range(n):
            for k in range(i):
                b[i, side] -= a[i, k] * b[k, side]
            b[i, side] /= a[i, i]
        for i in range(n - 1, -1, -1):
            for k in range(i + 1, n):
                b[i, side] -= a[k, i] * b[k, side]
            b[i, side] /= a[i, i]


@jit
def _normal(data, flags, model, at, variance, room):
    """Fill the normal equations of one target at pixel ``at`` (x, y); return the share of pixels used.

    ``model`` [columns, m, m]; ``variance`` (sky, per count of light, error as a fraction of light, and the
    light itself [m, m]); ``room`` holds a [n, n], of which the lower triangle is filled, and b [n, 2]: the
    data's side and a unit vector.
    """
    sky, per_count, fraction, light = variance
    a, b = room
    core = model.shape[1] // 2
    a[:] = 0.0
    b[:] = 0.0
    b[0, 1] = 1.0
    used, total = 0, 0
    for v in range(-core, core + 1):
        for u in range(-core, core + 1):
            if u * u + v * v > core * core:
                continue
            total += 1
            x, y = at[0] + u, at[1] + v
            if not (0 <= y < data.shape[0] and 0 <= x < data.shape[1]) or flags[y, x] != 0:
                continue
            used += 1
            own = max(light[v + core, u + core], 0.0)
            w = 1.0 / (sky + per_count * own + (fraction * own) ** 2)
            _add_pixel(a, b, model[:, v + core, u + core], w, data[y, x])
    return used / total


@jit
def _add_pixel(a, b, row, w, value):
    """Add one pixel of weight w to the normal equations."""
    for i in range(len(row)):
        wi = w * row[i]
        b[i, 0] += wi * value
        for j in range(i + 1):
            a[i, j] += wi * row[j]


@jit
def _columns(psf, stars, target, near, room, model):
    """Fill model [columns, m, m] for one target and its neighbours; return how many columns there are."""
    padded, taps = psf
    wide, line = room
    ix = int(np.floor(stars[0, target] + 0.5))
    iy = int(np.floor(stars[1, target] + 0.5))
    m = model.shape[1]
    _sample(padded, taps, stars[0, target] - ix, stars[1, target] - iy, line, wide)
    for r in range(m):
        for c in range(m):
            model[0, r, c] = wide[r + 1, c + 1]
            model[1, r, c] = 0.5 * (wide[r + 1, c] - wide[r + 1, c + 2])
            model[2, r, c] = 0.5 * (wide[r, c + 1] - wide[r + 2, c + 1])
            model[3, r, c] = 1.0
    n = 4
    for k in near:
        if k < 0:
            continue
        _sample(padded, taps, stars[0, k] - ix, stars[1, k] - iy, line, wide)
        inner = wide[1 : m + 1, 1 : m + 1]
        if inner.sum() > 1e-3:
            model[n] = inner
            n += 1
    return n


@jit
def _fitted(image, model, at, noise, light, room):
    """Return (whether it worked, share of good pixels); the solution and its unit column are left in room."""
    data, flags = image
    a, b = room
    n = model.shape[0]
    light[:] = 0.0
    share = 0.0
    # the second turn weights by the light that the first one found
    for _ in range(2):
        share = _normal(data, flags, model, at, (noise[0], noise[1], noise[2], light), room)
        if share <= 0.5 or not _factored(a, n):
            return False, share
        _solve(a, b, n)
        light[:] = 0.0
        for i in range(n):
            if i != 3:
                light += b[i, 0] * model[i]
    return b[0, 0] > 0.0, share


@jit
def _fluxes(image, psf, stars, chosen, core, noise, out):
    """Fill out [5, targets] with flux, error, dx, dy and the share of good pixels; NaN where none fits."""
    targets, near = chosen
    m = 2 * core + 1
    most = 4 + near.shape[1]
    views = (np.empty((m + 2, m + 2)), np.empty((m + 2 + psf[1].shape[1], m + 2)))
    room = (np.empty((most, most)), np.empty((most, 2)))
    model = np.empty((most, m, m))
    light = np.empty((m, m))
    for t in range(targets.shape[0]):
        s = targets[t]
        at = (int(np.floor(stars[0, s] + 0.5)), int(np.floor(stars[1, s] + 0.5)))
        n = _columns(psf, stars, s, near[t], views, model)
        good, share = _fitted(image, model[:n], at, noise[:, t], light, room)
        out[:4, t] = np.nan
        out[4, t] = share
        if good:
            b = room[1]
            out[0, t] = b[0, 0]
            out[1, t] = np.sqrt(b[0, 1])
            out[2, t] = b[1, 0] / b[0, 0]
            out[3, t] = b[2, 0] / b[0, 0]


def box_fluxes(
    data: np.ndarray,
    flags: np.ndarray,
    psf: np.ndarray,
    stars: np.ndarray,
    targets: np.ndarray,
    near: np.ndarray,
    noise: np.ndarray,
    *,
    core: int,
) -> np.ndarray:
    """Return float64 [5, k]: flux, its error, offset dx, dy (pixels) and share of good pixels of k targets.

    Each target is fitted within ``core`` pixels of its pixel: flux, a small move, a level of its own and the
    fluxes of its neighbours, by weighted least squares. Light that the PSF's stamp does not hold is no part
    of a flux. NaN where more than half of the disc is bad or the flux comes out negative.

    Parameters
    ----------
    data, flags
        Float32 and integer [y, x]; pixels with a flag do not count.
    psf
        Float [n, n], n odd, sum 1.
    stars
        Float64 [2, m]: x, y of all stars, pixels.
    targets, near
        int64 [k] and [k, j]: which stars to measure, and the neighbours of each, -1 for none.
    noise
        Float64 [3, k]: at each target the variance of a pixel of sky, that added per count of light, and the
        standard error of the PSF as a fraction of it.
    core
        Radius of the disc, pixels.

    Raises
    ------
    ValueError
        When a star is not finite.

    """
    if not np.isfinite(stars).all():
        raise ValueError("positions of stars must be finite")
    padded = np.pad(np.asarray(psf, dtype=np.float64), 2 * core + 3 * SUPPORT)
    out = np.empty((5, len(targets)))
    place = np.ascontiguousarray(stars, dtype=np.float64)
    own = np.ascontiguousarray(noise, dtype=np.float64)
    _fluxes((data, flags), (padded, tap_table()), place, (targets, near), core, own, out)
    return out
