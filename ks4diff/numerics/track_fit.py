"""How much of a stamp's chi² light through the PSF explains, and how much charge in a few pixels does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.jit import jit
from ks4diff.numerics.track_tables import PHASES, TRACK_LENGTHS, track_table

REACH = 5  # positions are sought this many phases to either side: 1.25 px
TRACK_REACH = 2  # pixels from the middle at which a track's middle may lie
TRACK_FARTHEST = TRACK_REACH + int(max(TRACK_LENGTHS) / 2 + 1)  # pixels from the middle that one may touch
# phases, the table's last: at 0.84" seeing 5 lose half of the sources of S/N 40 struck 2 px away, 7 a quarter
STRUCK_REACH = 7
STRUCK_ROUNDS = 5  # of a fit without the pixels that stand out of it


class Gains(NamedTuple):
    """Per stamp, float64 [n]: the chi² that each hypothesis takes away.

    ``light`` a point source or a short streak through the PSF, ``point`` the point source alone; ``pixels``
    free charge in connected pixels less a price for each beyond the first; ``track`` even charge on a line,
    less one price; ``struck`` a point source with free charge on it, less a price for each of its pixels.
    """

    light: np.ndarray
    point: np.ndarray
    pixels: np.ndarray
    track: np.ndarray
    struck: np.ndarray


def explained(
    data: np.ndarray, weight: np.ndarray, light: np.ndarray, *, price: float, own_radius: float
) -> Gains:
    """Return the `Gains` of stamps.

    Parameters
    ----------
    data, weight
        Float32 [n, side, side], side odd; the weight is one over the variance, 0 of pixels not to be used.
    light
        As `light_table` returns it for this side.
    price
        Chi² that each free pixel beyond the first must take away to be worth its freedom.
    own_radius
        Pixels; farther from the middle a source may have a hit beside it, at the same price.

    """
    out = np.zeros((5, len(data)))
    _explained(
        np.ascontiguousarray(data, dtype=np.float32),
        np.ascontiguousarray(weight, dtype=np.float32),
        light,
        track_table(),
        price,
        own_radius,
        out,
    )
    return Gains(*out)


@jit
def _explained(data, weight, light, track, price, own_radius, out):
    for n in range(data.shape[0]):
        best, j, i = _best_position(data[n], weight[n], light[0], 0, 0, REACH, REACH)
        out[1, n] = best
        shape, bj, bi = 0, j, i
        for k in range(1, light.shape[0]):
            gain, kj, ki = _best_position(data[n], weight[n], light[k], j, i, 1, REACH + 1)
            if gain > best:
                best, shape, bj, bi = gain, k, kj, ki
        out[0, n] = best + _beside(data[n], weight[n], light[shape], bj, bi, price, own_radius)
        out[2, n] = _connected(data[n], weight[n], price, own_radius)
        # the best of thousands of tracks: as free as one more pixel
        out[3, n] = _best_track(data[n], weight[n], track[0], track[1], track[2]) - price
        out[4, n] = _struck(data[n], weight[n], light[0], j, i, price)


@jit
def _best_position(data, weight, light, j0, i0, reach, farthest):
    """Return (refined gain, j, i): the best of the phases within ``reach`` of (j0, i0).

    None is farther than ``farthest`` from the middle, at most 7: the table has 2 px to spare.
    """
    best, bj, bi = 0.0, j0, i0
    for j in range(max(j0 - reach, -farthest), min(j0 + reach, farthest) + 1):
        for i in range(max(i0 - reach, -farthest), min(i0 + reach, farthest) + 1):
            gain = _gain(data, weight, light, j, i)
            if gain > best:
                best, bj, bi = gain, j, i
    top = best
    for dj, di in ((1, 0), (0, 1)):
        before = _gain(data, weight, light, bj - dj, bi - di)
        after = _gain(data, weight, light, bj + dj, bi + di)
        bend = 2 * best - before - after
        if bend > 0:
            top += min((after - before) ** 2 / (8 * bend), bend / 8)
    return top, bj, bi


@jit
def _gain(data, weight, light, j, i):
    """Return the chi² that a source of phases (j, i) from the middle takes away, 0 if it were negative."""
    whole_j, whole_i = j // PHASES, i // PHASES
    stamp = light[j - whole_j * PHASES, i - whole_i * PHASES]
    edge_y = (stamp.shape[0] - data.shape[0]) // 2 - whole_j
    edge_x = (stamp.shape[1] - data.shape[1]) // 2 - whole_i
    product, norm = 0.0, 0.0
    for y in range(data.shape[0]):
        for x in range(data.shape[1]):
            wt = weight[y, x] * stamp[y + edge_y, x + edge_x]
            product += wt * data[y, x]
            norm += wt * stamp[y + edge_y, x + edge_x]
    return product * product / norm if product > 0 and norm > 0 else 0.0


@jit
def _beside(data, weight, light, j, i, price, own_radius):
    """Return the chi² of pixels beyond ``own_radius`` that a source leaves, each paid for."""
    whole_j, whole_i = j // PHASES, i // PHASES
    stamp = light[j - whole_j * PHASES, i - whole_i * PHASES]
    edge_y = (stamp.shape[0] - data.shape[0]) // 2 - whole_j
    edge_x = (stamp.shape[1] - data.shape[1]) // 2 - whole_i
    flux = _flux(data, weight, stamp, edge_y, edge_x)
    middle = data.shape[0] // 2
    total = 0.0
    for y in range(data.shape[0]):
        for x in range(data.shape[1]):
            if (y - middle) ** 2 + (x - middle) ** 2 > own_radius * own_radius:
                left = data[y, x] - flux * stamp[y + edge_y, x + edge_x]
                if left > 0:
                    total += max(left * left * weight[y, x] - price, 0.0)
    return total


@jit
def _flux(data, weight, stamp, edge_y, edge_x):
    product, norm = 0.0, 0.0
    for y in range(data.shape[0]):
        for x in range(data.shape[1]):
            wt = weight[y, x] * stamp[y + edge_y, x + edge_x]
            product += wt * data[y, x]
            norm += wt * stamp[y + edge_y, x + edge_x]
    return product / norm if norm > 0 else 0.0


@jit
def _struck(data, weight, light, j, i, price):
    """Return the chi² of a point source near phases (j, i) and of what stands out of it, each pixel paid for.

    What stands out takes no part in the fit; the source is placed and measured anew without it, but never so
    far from the middle that it is a neighbour.
    """
    rest = weight.copy()
    charge = 0.0
    for _ in range(STRUCK_ROUNDS):
        _, j, i = _best_position(data, rest, light, j, i, 2, STRUCK_REACH)
        whole_j, whole_i = j // PHASES, i // PHASES
        stamp = light[j - whole_j * PHASES, i - whole_i * PHASES]
        edge_y = (stamp.shape[0] - data.shape[0]) // 2 - whole_j
        edge_x = (stamp.shape[1] - data.shape[1]) // 2 - whole_i
        flux = max(_flux(data, rest, stamp, edge_y, edge_x), 0.0)
        charge = 0.0
        for y in range(data.shape[0]):
            for x in range(data.shape[1]):
                left = data[y, x] - flux * stamp[y + edge_y, x + edge_x]
                stands_out = left > 0 and left * left * weight[y, x] > price
                rest[y, x] = 0.0 if stands_out else weight[y, x]
                if stands_out:
                    charge += data[y, x] * data[y, x] * weight[y, x] - price
    return _gain(data, rest, light, j, i) + charge


@jit
def _connected(data, weight, price, own_radius):
    """Return the chi² of the pixels connected to the brightest of the middle nine, each beyond it paid for.

    Beyond ``own_radius`` they need not be connected, as little as beside a source.
    """
    side = data.shape[0]
    middle = side // 2
    best, bj, bi = 0.0, -1, -1
    for j in range(middle - 1, middle + 2):
        for i in range(middle - 1, middle + 2):
            gain = data[j, i] * data[j, i] * weight[j, i]
            if data[j, i] > 0 and gain > best:
                best, bj, bi = gain, j, i
    total = _far(data, weight, price, own_radius)
    if bj < 0:
        return total
    used = np.zeros((side, side), dtype=np.bool_)
    queue = np.empty((side * side, 2), dtype=np.int64)
    queue[0, 0], queue[0, 1] = bj, bi
    used[bj, bi] = True
    first, last = 0, 1
    while first < last:
        y, x = queue[first, 0], queue[first, 1]
        first += 1
        for j in range(max(y - 1, 0), min(y + 2, side)):
            for i in range(max(x - 1, 0), min(x + 2, side)):
                gain = data[j, i] * data[j, i] * weight[j, i]
                near = (j - middle) ** 2 + (i - middle) ** 2 <= own_radius * own_radius
                if near and not used[j, i] and data[j, i] > 0 and gain > price:
                    used[j, i] = True
                    best += gain - price
                    queue[last, 0], queue[last, 1] = j, i
                    last += 1
    return best + total


@jit
def _far(data, weight, price, own_radius):
    """Return the chi² of pixels beyond ``own_radius``, each paid for."""
    middle = data.shape[0] // 2
    total = 0.0
    for y in range(data.shape[0]):
        for x in range(data.shape[1]):
            if (y - middle) ** 2 + (x - middle) ** 2 > own_radius * own_radius and data[y, x] > 0:
                total += max(data[y, x] * data[y, x] * weight[y, x] - price, 0.0)
    return total


@jit
def _best_track(data, weight, track_y, track_x, charge):
    """Return the largest chi² that a track through the middle pixels takes away.

    On flat stamps, so that one run of pixels serves all places of a track, and vectors do.
    """
    side, first = 2 * TRACK_FARTHEST + 1, TRACK_FARTHEST - TRACK_REACH
    weights, products = _flat(data, weight, side)
    places = 2 * TRACK_REACH + 1
    product, norm = np.empty((places - 1) * side + places), np.empty((places - 1) * side + places)
    best = 0.0
    for k in range(charge.shape[0]):
        product[:] = 0
        norm[:] = 0
        for m in range(charge.shape[1]):
            q = charge[k, m]
            if q <= 0:
                break
            start = (first + track_y[k, m]) * side + first + track_x[k, m]
            p, w = products[start : start + product.size], weights[start : start + product.size]
            for n in range(product.size):
                product[n] += q * p[n]
                norm[n] += q * q * w[n]
        for j in range(places):
            for n in range(j * side, j * side + places):
                if product[n] > 0 and product[n] * product[n] > best * norm[n]:
                    best = product[n] * product[n] / norm[n]
    return best


@jit
def _flat(data, weight, side):
    """Return the weights, and the data times them, of the middle ``side`` px, zeros beyond; flat float64."""
    weights, products = np.zeros(side * side), np.zeros(side * side)
    shift = data.shape[0] // 2 - side // 2
    for y in range(max(-shift, 0), min(data.shape[0] - shift, side)):
        for x in range(max(-shift, 0), min(data.shape[0] - shift, side)):
            weights[y * side + x] = weight[y + shift, x + shift]
            products[y * side + x] = weights[y * side + x] * data[y + shift, x + shift]
    return weights, products
