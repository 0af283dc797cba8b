"""Find and measure point sources in a wide image, a strip of rows at a time."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.smooth import gaussian_smooth, gaussian_weights

_WIDER = 1.6  # of the second Gaussian: their difference is close to the Laplacian of the first
_STRAY = 0.25  # widths: in a crowd the window wanders to neighbours, the filtered peak stays
_CHUNK = 64  # pixels of a row that are looked at together: in most none stands out
MEASURES = ("x", "y", "flux", "fwhm", "ratio", "angle", "peak", "contrast")


@jit
def _is_highest(response, y, x, reach):
    """Return whether no pixel within ``reach`` px is higher; of equals the first in reading order is."""
    height, width = response.shape
    top = response[y, x]
    for j in range(max(y - reach, 0), min(y + reach + 1, height)):
        for i in range(max(x - reach, 0), min(x + reach + 1, width)):
            if (j - y) ** 2 + (i - x) ** 2 > reach**2 + 1:
                continue
            if response[j, i] > top or (response[j, i] == top and (j < y or (j == y and i < x))):
                return False
    return True


@jit
def _top(r, y, x):
    """Return (y, x) of the top of the paraboloid through the nine pixels, within half a pixel."""
    gx = 0.5 * (r[y, x + 1] - r[y, x - 1])
    gy = 0.5 * (r[y + 1, x] - r[y - 1, x])
    xx = r[y, x + 1] + r[y, x - 1] - 2 * r[y, x]
    yy = r[y + 1, x] + r[y - 1, x] - 2 * r[y, x]
    xy = 0.25 * (r[y + 1, x + 1] + r[y - 1, x - 1] - r[y + 1, x - 1] - r[y - 1, x + 1])
    det = xx * yy - xy * xy
    if not (xx < 0 and yy < 0 and det > 0):
        return float(y), float(x)
    dx = min(max((gy * xy - gx * yy) / det, -0.5), 0.5)
    dy = min(max((gx * xy - gy * xx) / det, -0.5), 0.5)
    return y + dy, x + dx


@jit
def _noise(wide, variance, scale):
    """Return what a maximum must exceed: scale[1] times the noise of sky and source, all float32."""
    return np.sqrt(max(wide, np.float32(0)) * scale[0] + variance) * scale[1]


@jit
def _above(response, wide, variance, scale):
    """Return how many pixels of a part of a row exceed the noise."""
    n = 0
    for x in range(len(response)):
        n += response[x] > _noise(wide[x], variance[x], scale)
    return n


@jit
def _maxima(response, wide, variance, good, reach, rows, scale, spots):
    """Write (y, x) of the maxima above the noise in ``rows`` [first, last); return how many.

    ``variance`` and ``good`` are of these rows alone.
    """
    n = 0
    height, width = response.shape
    for y in range(max(rows[0], 1), min(rows[1], height - 1)):
        local = y - rows[0]
        for start in range(1, width - 1, _CHUNK):
            end = min(start + _CHUNK, width - 1)
            part = slice(start, end)
            if _above(response[y, part], wide[y, part], variance[local, part], scale) == 0:
                continue
            for x in range(start, end):
                if not good[local, x] or n == len(spots):
                    continue
                if response[y, x] <= _noise(wide[y, x], variance[local, x], scale):
                    continue
                if _is_highest(response, y, x, reach):
                    spots[n, 0], spots[n, 1] = _top(response, y, x)
                    n += 1
    return n


def find_maxima(
    image: np.ndarray,
    variance: np.ndarray,
    good: np.ndarray,
    rows: tuple[int, int],
    *,
    width_pix: float,
    threshold: float,
    per_source: float,
) -> np.ndarray:
    """Return float64 [n, 2], (y, x) in reading order: where the image peaks like a point source.

    The image is filtered by the difference of two Gaussians, of ``width_pix`` and 1.6 times that, which
    passes neither a level nor a slope; its maxima within about 1.4 ``width_pix`` that stand ``threshold``
    times above the noise there are the peaks. The noise is that of white pixels of ``variance`` [y, x] (of
    the strip) plus the sources' own, ``per_source`` (1 / gain) times the wider smoothed image.
    ``image`` float32 [y, x] all of it; ``good`` bool [y, x] of the strip: where peaks count; ``rows``
    [y0, y1).
    """
    reach = max(round(1.4 * width_pix), 1)
    low, high = max(rows[0] - reach, 0), min(rows[1] + reach, image.shape[0])
    narrow = gaussian_smooth(image, width_pix, slice(low, high))
    wide = gaussian_smooth(image, _WIDER * width_pix, slice(low, high))
    narrow -= wide
    scale = np.array([per_source, threshold * _filter_norm(width_pix)], dtype=np.float32)
    strip = rows[0] - low, rows[1] - low
    spots = np.empty((max(good.size // (reach * reach), 64), 2))
    n = _maxima(narrow, wide, variance.astype(np.float32, copy=False), good, reach, strip, scale, spots)
    found = spots[:n].copy()
    found[:, 0] += low
    return found


def _filter_norm(width_pix: float) -> float:
    """Return the noise that the filter leaves of white noise of 1."""
    wide = gaussian_weights(_WIDER * width_pix).astype(np.float64)
    narrow = np.zeros(len(wide))
    half = gaussian_weights(width_pix)
    narrow[: len(half)] = half
    wide, narrow = (np.concatenate([a[:0:-1], a]) for a in (wide, narrow))
    return float(np.sqrt(((np.outer(narrow, narrow) - np.outer(wide, wide)) ** 2).sum()))


@jit
def _moments(image, x, y, width, reach, wx, wy):
    """Return windowed (sum, mean dx, mean dy, mean dx², mean dy², mean dx dy) about (x, y)."""
    height, columns = image.shape
    ix, iy = int(np.rint(x)), int(np.rint(y))
    for k in range(2 * reach + 1):
        wx[k] = np.exp(-0.5 * ((ix - reach + k - x) / width) ** 2)
        wy[k] = np.exp(-0.5 * ((iy - reach + k - y) / width) ** 2)
    s = sx = sy = sxx = syy = sxy = 0.0
    for j in range(2 * reach + 1):
        b = iy - reach + j
        if b < 0 or b >= height:
            continue
        dy = b - y
        r = rx = rxx = 0.0
        for i in range(2 * reach + 1):
            a = ix - reach + i
            if 0 <= a < columns:
                v = wx[i] * image[b, a]
                dx = a - x
                r += v
                rx += v * dx
                rxx += v * dx * dx
        s += wy[j] * r
        sx += wy[j] * rx
        sy += wy[j] * r * dy
        sxx += wy[j] * rxx
        syy += wy[j] * r * dy * dy
        sxy += wy[j] * rx * dy
    if not s > 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    return s, sx / s, sy / s, sxx / s, syy / s, sxy / s


@jit
def _centred(image, spot, width, stray, wx, wy):
    """Return (x, y) and the windowed moments there: the centroid, or the spot where the window strays."""
    reach = len(wx) // 2
    y, x = spot
    for _ in range(30):
        m = _moments(image, x, y, width, reach, wx, wy)
        # the source is as wide as the window, so the windowed mean is half of the way
        x += 2 * m[1]
        y += 2 * m[2]
        if m[0] <= 0 or (x - spot[1]) ** 2 + (y - spot[0]) ** 2 > (stray * width) ** 2:
            # a brighter neighbour draws the window away: its own peak is the better place
            y, x = spot
            break
        if m[1] * m[1] + m[2] * m[2] < 1e-8:
            break
    s, dx, dy, xx, yy, xy = _moments(image, x, y, width, reach, wx, wy)
    return x, y, s, xx - dx * dx, yy - dy * dy, xy - dx * dy


@jit
def _peak(image, y, x, near):
    """Return (the highest pixel within 2 px, that over the smoothed image there)."""
    height, columns = image.shape
    top, ty, tx = -np.inf, y, x
    for b in range(max(y - 2, 0), min(y + 3, height)):
        for a in range(max(x - 2, 0), min(x + 3, columns)):
            if image[b, a] > top:
                top, ty, tx = image[b, a], b, a
    total = 0.0
    reach = len(near) - 1
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            b = min(max(ty + j, 0), height - 1)
            a = min(max(tx + i, 0), columns - 1)
            total += near[abs(j)] * near[abs(i)] * image[b, a]
    return top, top / max(total, 1e-30)


@jit
def _measure(image, spots, width, stray, near, out):
    """Measure each spot; see `measure_spots`."""
    reach = int(np.ceil(4 * width))
    wx, wy = np.empty(2 * reach + 1), np.empty(2 * reach + 1)
    least = 0.01 / width**2
    for k in range(len(spots)):
        spot = (spots[k, 0], spots[k, 1])
        x, y, s, xx, yy, xy = _centred(image, spot, width, stray, wx, wy)
        middle, spread = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
        major2 = 1 / max(1 / max(middle + spread, 1e-3) - 1 / width**2, least)
        minor2 = 1 / max(1 / max(middle - spread, 1e-3) - 1 / width**2, least)
        out[0, k], out[1, k] = x, y
        # what is far wider than the window, a galaxy or a piece of a halo, is not known well enough to add up
        first, second = min(major2 / width**2, 4.0), min(minor2 / width**2, 4.0)
        out[2, k] = s * np.sqrt((1 + first) * (1 + second))
        out[3, k] = 2.3548 * np.sqrt(0.5 * (major2 + minor2))
        out[4, k] = np.sqrt(minor2 / major2)
        out[5, k] = 0.5 * np.arctan2(2 * xy, xx - yy)
        out[6, k], out[7, k] = _peak(image, int(np.rint(spot[0])), int(np.rint(spot[1])), near)


def measure_spots(image: np.ndarray, spots: np.ndarray, width_pix: float) -> dict[str, np.ndarray]:
    """Return what a Gaussian window of ``width_pix`` (standard deviation) sees at each spot [n, 2] (y, x).

    ``x``, ``y``: the centroid, iterated to 1e-4 px (as SExtractor's XWIN, YWIN), or the spot itself where a
    neighbour draws the window farther than a quarter of its width. ``flux``, ``fwhm``, ``ratio`` (minor over
    major axis) and ``angle`` (of the major axis, radians from x towards y) of the Gaussian with the same
    windowed moments (1 / s² = 1 / m² - 1 / w²). ``peak`` is the highest pixel within 2 px, ``contrast`` that
    over the image smoothed by a Gaussian of FWHM 2.5 px there. All float64 [n]. ``image`` float32 [y, x],
    background subtracted.
    """
    out = np.zeros((len(MEASURES), len(spots)))
    near = gaussian_weights(2.5 / 2.3548).astype(np.float64)
    _measure(image, spots, float(width_pix), _STRAY, near, out)
    return dict(zip(MEASURES, out, strict=True))


@jit
def _touching(flags, x, y, reach, touching):
    height, width = flags.shape
    for k in range(len(x)):
        iy, ix = int(y[k]), int(x[k])
        for b in range(max(iy - reach, 0), min(iy + reach + 1, height)):
            far = reach - abs(b - iy)
            for a in range(max(ix - far, 0), min(ix + far + 1, width)):
                if flags[b, a] != 0:
                    touching[k] = True


def touches_flag(flags: np.ndarray, x: np.ndarray, y: np.ndarray, reach: int) -> np.ndarray:
    """Return bool [n]: whether a flag is raised within ``reach`` steps along rows and columns of (x, y)."""
    touching = np.zeros(len(x), dtype=np.bool_)
    _touching(flags, x, y, reach, touching)
    return touching
