"""The variance of the score at each pixel: sky, sources, and everything that is known only so well."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.jit import jit

# in sigma of the score, from no source noise to all of it: light in either image, and light in both
GATE, STATIC_GATE = (6.0, 10.0), (2.5, 4.5)
SHEAR2 = 0.25  # PSFs err in ellipticity half as much as in width, which leaves nothing two sigma from a star


class Errors(NamedTuple):
    """How well a patch is known.

    ``shift_x2`` and ``shift_y2`` px²: variance of the registration; ``scale2`` of the flux scale, as a
    fraction; ``bend2`` px⁴: what PSF errors leave of a star over its squared score's Laplacian.
    """

    shift_x2: float = 0.0
    shift_y2: float = 0.0
    scale2: float = 0.0
    bend2: float = 0.0


@jit
def _slope(before2, before, after, after2):
    """Return the derivative to fourth order: 1 % low at 0.13 cycles per pixel, where S has its power."""
    return np.float32(2 / 3) * (after - before) - np.float32(1 / 12) * (after2 - before2)


@jit
def _lesser(n, r):
    """Return the score of static light: the lesser of two, 0 where only one is positive or none."""
    return max(min(n, r), np.float32(0))


@jit
def _astrometric(s_n, s_r, x2, y2):
    rows, columns = s_n.shape
    out = np.empty((rows, columns), dtype=np.float32)
    for y in range(rows):
        u2, u1, d1, d2 = (y - 2) % rows, (y - 1) % rows, (y + 1) % rows, (y + 2) % rows
        for x in range(columns):
            l2, l1, r1, r2 = (x - 2) % columns, (x - 1) % columns, (x + 1) % columns, (x + 2) % columns
            n_x = _slope(s_n[y, l2], s_n[y, l1], s_n[y, r1], s_n[y, r2])
            r_x = _slope(s_r[y, l2], s_r[y, l1], s_r[y, r1], s_r[y, r2])
            n_y = _slope(s_n[u2, x], s_n[u1, x], s_n[d1, x], s_n[d2, x])
            r_y = _slope(s_r[u2, x], s_r[u1, x], s_r[d1, x], s_r[d2, x])
            of_n, of_r = x2 * n_x * n_x + y2 * n_y * n_y, x2 * r_x * r_x + y2 * r_y * r_y
            static = _lesser(s_n[y, x], s_r[y, x])
            squares = of_n if s_n[y, x] < s_r[y, x] else of_r
            out[y, x] = squares if static > 0 else np.float32(0)
    return out


def astrometric(s_n: np.ndarray, s_r: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Return the variance of S from a registration uncertain by (sigma_x, sigma_y) px, on a wrapped grid.

    Eqs 30-33 of Zackay, Ofek & Gal-Yam (2016) with one relative shift of the pair, and for static light only:
    the slopes are those of the lesser score, which holds no light that the other image has not. A transient
    shows in one image and no registration changes it.
    """
    return _astrometric(s_n, s_r, np.float32(sigma_x**2), np.float32(sigma_y**2))


@jit
def _bend(up, here, down, left, right, corners):
    """Return the squares of a score's second derivatives as widths and ellipticities of its PSF err."""
    two = np.float32(2)
    across, along = left - two * here + right, up - two * here + down
    round_, stretched = across + along, across - along
    return round_ * round_ + np.float32(SHEAR2) * (
        stretched * stretched + np.float32(0.25) * corners * corners
    )


@jit
def _terms(s_n, s_r, light, errors, gate, variance):
    """Fill the variance beyond the sky's of the inner pixels, 2 px from the border.

    Row by row and neighbour by neighbour as views: only so does the compiler use vectors.
    """
    rows, columns = variance.shape
    zero, one = np.float32(0), np.float32(1)
    shift_x2, shift_y2, scale2, bend2 = errors
    low, rise, low_both, rise_both = gate
    for y in range(rows):
        n, r = s_n[y + 2], s_r[y + 2]
        n_up2, n_up, n_down, n_down2 = s_n[y, 2:], s_n[y + 1, 2:], s_n[y + 3, 2:], s_n[y + 4, 2:]
        r_up2, r_up, r_down, r_down2 = s_r[y, 2:], s_r[y + 1, 2:], s_r[y + 3, 2:], s_r[y + 4, 2:]
        n_ul, n_ur, n_dl, n_dr = s_n[y + 1, 1:], s_n[y + 1, 3:], s_n[y + 3, 1:], s_n[y + 3, 3:]
        r_ul, r_ur, r_dl, r_dr = s_r[y + 1, 1:], s_r[y + 1, 3:], s_r[y + 3, 1:], s_r[y + 3, 3:]
        n1, n2, n3, n4, r1, r2, r3, r4 = n[1:], n[2:], n[3:], n[4:], r[1:], r[2:], r[3:], r[4:]
        shown = light[y + 2, 2:]
        out = variance[y]
        for x in range(columns):
            lesser = max(min(n2[x], r2[x]), zero)
            n_x, r_x = _slope(n[x], n1[x], n3[x], n4[x]), _slope(r[x], r1[x], r3[x], r4[x])
            n_y = _slope(n_up2[x], n_up[x], n_down[x], n_down2[x])
            r_y = _slope(r_up2[x], r_up[x], r_down[x], r_down2[x])
            n_corners = n_ul[x] - n_ur[x] - n_dl[x] + n_dr[x]
            r_corners = r_ul[x] - r_ur[x] - r_dl[x] + r_dr[x]
            of_n = shift_x2 * n_x * n_x + shift_y2 * n_y * n_y
            of_r = shift_x2 * r_x * r_x + shift_y2 * r_y * r_y
            of_n += bend2 * _bend(n_up[x], n2[x], n_down[x], n1[x], n3[x], n_corners)
            of_r += bend2 * _bend(r_up[x], r2[x], r_down[x], r1[x], r3[x], r_corners)
            derived = of_n if n2[x] < r2[x] else of_r
            v = scale2 * lesser * lesser + (derived if lesser > zero else zero)
            either, both = max(n2[x], r2[x]), min(n2[x], r2[x])
            t = min(max((either - low) * rise, (both - low_both) * rise_both, zero), one)
            out[x] = v + t * t * (3 - 2 * t) * max(shown[x], zero)


def terms(s_n: np.ndarray, s_r: np.ndarray, light: np.ndarray, errors: Errors, sigma: float) -> np.ndarray:
    """Return the variance of S beyond that of the sky, float32 of all pixels but two at each border.

    ``s_n`` and ``s_r`` are the scores of either image,
    ``light`` the Poisson variance of S as the images' own pixels show it, ``sigma`` that of S on sky.

    What the noisy pixels show of their own variance is believed only where there is light beyond doubt: in
    the sky it would weigh high pixels down and low ones up and skew the score (at 50 e- of sky 84 pixels
    above +4 sigma and 452 below -4). A peak of noise stands in one image only, so light in both is believed
    earlier. The price: a transient of 6 sigma or less brings no noise of its own, 2 % of its error at 400 e-
    of sky.
    """
    gate = [
        np.float32(value)
        for low, high in (GATE, STATIC_GATE)
        for value in (low * sigma, 1 / ((high - low) * sigma))
    ]
    variance = np.empty((s_n.shape[0] - 4, s_n.shape[1] - 4), dtype=np.float32)
    _terms(s_n, s_r, light, tuple(np.float32(e) for e in errors), tuple(gate), variance)
    return variance


@jit
def _sky_row(sky, step, y, row):
    """Fill the sky's variance of one row of pixels from the nodes."""
    j = y // step
    down = np.float32((y - j * step) / step)
    for i in range((len(row) + step - 1) // step):
        left = sky[j, i] + (sky[j + 1, i] - sky[j, i]) * down
        right = sky[j, i + 1] + (sky[j + 1, i + 1] - sky[j, i + 1]) * down
        slope = (right - left) / np.float32(step)
        for k in range(min(step, len(row) - i * step)):
            row[i * step + k] = left + slope * np.float32(k)


@jit
def _corrected(scores, sky, step, variance, flux, score, error):
    rows, columns = score.shape
    row = np.empty(columns, dtype=np.float32)
    inverse = np.float32(1) / flux
    for y in range(rows):
        _sky_row(sky, step, y, row)
        n, r, more, out_score, out_error = scores[0][y], scores[1][y], variance[y], score[y], error[y]
        for x in range(columns):
            deviation = np.sqrt(row[x] + more[x])
            out_score[x] = (n[x] - r[x]) / deviation
            out_error[x] = deviation * inverse


@jit
def _taken(sky, step, variance, holes, limit, left, taken):
    """Change ``variance`` by what holes do, fill what they leave of a source's flux, and what is lost."""
    rows, columns = variance.shape
    row = np.empty(columns, dtype=np.float32)
    one, least = np.float32(1), np.float32(0.01)
    losses, fill_error = holes
    for y in range(rows):
        _sky_row(sky, step, y, row)
        for x in range(columns):
            left[y, x] = max(one - losses[0, y, x], least)
            remains = row[x] * max(one - losses[1, y, x], least)
            squared = fill_error[y, x] ** 2
            taken[y, x] = left[y, x] < one - limit or squared > remains
            variance[y, x] += remains - row[x] + squared


def corrected(
    scores: tuple[np.ndarray, np.ndarray],
    sky: tuple[np.ndarray, int],
    variance: np.ndarray,
    holes: tuple[np.ndarray, np.ndarray] | None,
    *,
    flux: float,
    limit: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return S_corr, the error of the flux, and which pixels a hole has taken, each [y, x].

    ``scores`` S of either image; ``sky`` the sky's variance of S at nodes some px apart (and how many), one
    node more than the pixels need on each axis; ``variance`` what comes to it. ``holes`` of `holes.losses`
    and `holes.fill_errors`, None where there are none: nothing is taken. ``flux`` F_S. A pixel is taken when
    holes leave it less than 1 - ``limit`` of a source's flux, or their fill may move it by its noise.
    """
    score, error = np.empty(variance.shape, dtype=np.float32), np.empty(variance.shape, dtype=np.float32)
    if holes is None:
        _corrected(scores, *sky, variance, np.float32(flux), score, error)
        return score, error, None
    left, taken = np.empty(variance.shape, dtype=np.float32), np.empty(variance.shape, dtype=np.bool_)
    variance = variance.copy()
    _taken(*sky, variance, holes, np.float32(limit), left, taken)
    _corrected(scores, *sky, variance, np.float32(flux), score, error)
    error /= left
    return score, error, taken
