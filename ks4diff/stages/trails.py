"""Find satellite trails in the difference and flag the candidates on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from ks4diff.numerics.pools import pool
from ks4diff.numerics.white_bins import bin_sums
from ks4diff.products.candidates import FLAG_BIT, Candidates
from ks4diff.products.difference import Difference
from ks4diff.stages.trail_ridges import BIN, CEILING, TILE, Trail, TrailsConfig, levelled, ridges

STEP = 384  # px from tile to tile: the shortest trail lies whole in one of them
SAMPLE = 4  # px between those that tell the usual error of a flux


def flag_trails(candidates: Candidates, difference: Difference, config: TrailsConfig) -> Candidates:
    """Return the candidates with "trail" raised on those that a straight trail explains."""
    table = candidates.table.copy()
    for sign, trails in _both(difference, config).items():
        for trail in trails:
            near = trail.distance(table["x"], table["y"]) < trail.reach + difference.psf.fwhm_pix
            own = np.maximum(config.outshines * trail.score, trail.score + config.outshines_floor)
            limit = np.where(sign * table["scorr"] > 0, own, config.ringing * trail.score)
            table["flags"][near & (np.abs(table["scorr"]) < limit)] |= FLAG_BIT["trail"]
    return replace(candidates, table=table)


def find_trails(difference: Difference, sign: float, config: TrailsConfig) -> list[Trail]:
    """Return the trails of the science image (``sign`` 1) or of the template (-1), piece by piece."""
    return _both(difference, config)[sign]


def _both(difference: Difference, config: TrailsConfig) -> dict[float, list[Trail]]:
    """Return the trails of either sign."""
    rows, columns = difference.difference.shape
    strips = [slice(y, min(y + STEP, rows)) for y in range(0, rows, STEP)]
    starts = [
        (y, x)
        for y in range(0, max(rows - TILE * BIN + STEP, 1), STEP)
        for x in range(0, max(columns - TILE * BIN + STEP, 1), STEP)
    ]
    sums, counts = (np.zeros((rows // BIN, columns // BIN), kind) for kind in (np.float32, np.int32))

    def fill(strip: slice) -> None:
        found = _bins(difference, strip)
        for whole, part in zip((sums, counts), found, strict=True):
            whole[strip.start // BIN : strip.start // BIN + len(part)] = part

    def work(start: tuple[int, int]) -> list[tuple[float, Trail]]:
        part = tuple(slice(s // BIN, s // BIN + TILE) for s in start)
        binned = levelled(sums[part], counts[part])
        box = tuple(slice(s, s + TILE * BIN) for s in start)
        white = cache(lambda: _white(difference, box))
        out = []
        for sign in (np.float32(1), np.float32(-1)):
            found = ridges(sign * binned, lambda sign=sign: sign * white(), config)
            placed = [_placed(piece, start, difference, float(sign)) for piece in found]
            out += [(float(sign), trail) for trail in placed if _believed(trail, config)]
        return out

    with pool() as threads:
        list(threads.map(fill, strips))
        every = [one for found in threads.map(work, starts) for one in found]
    by_sign = {side: [trail for sign, trail in every if sign == side] for side in (1.0, -1.0)}
    return {sign: trails + _bridges(trails, config) for sign, trails in by_sign.items()}


def _bins(difference: Difference, strip: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return (clipped sums, good pixels) of the white difference in bins of a strip of rows."""
    columns = difference.difference.shape[1]
    blocks = [slice(x, min(x + STEP, columns)) for x in range(0, columns, STEP)]
    level = np.array([_noise_over_error(difference, (strip, block)) for block in blocks], dtype=np.float32)
    return bin_sums(
        difference.difference[strip],
        difference.flux_err[strip],
        difference.flags[strip],
        np.repeat(level, STEP)[:columns][None],
        side=BIN,
        ceiling=CEILING,
    )


def _noise_over_error(difference: Difference, box: tuple[slice, slice]) -> float:
    """Return a pixel's noise over the error of a flux there, both of blank sky; NaN without good pixels."""
    error, flags = (plane[box][::SAMPLE, ::SAMPLE] for plane in (difference.flux_err, difference.flags))
    good = error[(flags == 0) & (error > 0)]
    if not len(good):
        return np.nan
    y, x = (0.5 * (s.start + s.stop - 1) for s in box)
    noise = difference.noise if difference.noise_map is None else float(difference.noise_map.at(x, y))
    return noise / float(np.median(good))


def _believed(trail: Trail, config: TrailsConfig) -> bool:
    if trail.score > config.sure_score:
        return True
    length = np.hypot(trail.x1 - trail.x0, trail.y1 - trail.y0)
    return trail.score > config.lowest_score and length >= config.faint_pix


def _white(difference: Difference, box: tuple[slice, slice]) -> np.ndarray:
    """Return the difference in units of its local noise, NaN where flagged, float32 [y, x]."""
    rows, columns = difference.difference.shape
    inside = slice(box[0].start, min(box[0].stop, rows)), slice(box[1].start, min(box[1].stop, columns))
    error = difference.flux_err[inside]
    good = (difference.flags[inside] == 0) & (error > 0)
    level = np.float32(_noise_over_error(difference, inside))
    return np.where(
        good, difference.difference[inside] / (level * np.where(good, error, 1)), np.float32(np.nan)
    )


def _placed(trail: Trail, start: tuple[int, int], difference: Difference, sign: float) -> Trail:
    """Return a tile's piece on the chip, with the score that its ridge has."""
    y0, x0 = start
    trail = replace(trail, x0=trail.x0 + x0, x1=trail.x1 + x0, y0=trail.y0 + y0, y1=trail.y1 + y0)
    n = int(np.hypot(trail.x1 - trail.x0, trail.y1 - trail.y0)) + 1
    x = np.rint(np.linspace(trail.x0, trail.x1, n)).astype(int)
    y = np.rint(np.linspace(trail.y0, trail.y1, n)).astype(int)
    rows, columns = difference.score_corr.shape
    score = difference.score_corr[y.clip(0, rows - 1), x.clip(0, columns - 1)]
    return replace(trail, score=float(np.median(score)) * sign)


def _bridges(trails: list[Trail], config: TrailsConfig) -> list[Trail]:
    """Return pieces that join those in line with each other across gaps."""
    out = []
    ends = np.array([[(t.x0, t.y0), (t.x1, t.y1)] for t in trails]).reshape(-1, 2, 2)
    angle = np.arctan2(*(ends[:, 1] - ends[:, 0]).T[::-1])
    for k, a in enumerate(trails):
        later = np.arange(k + 1, len(trails))
        for m in later[_turn(angle[later], angle[k]) < 0.03]:
            b = trails[m]
            gaps = np.hypot(*(ends[k][:, None] - ends[m][None]).transpose(2, 0, 1))
            i, j = np.unravel_index(int(np.argmin(gaps)), (2, 2))
            (x0, y0), (x1, y1), gap = ends[k][i], ends[m][j], gaps[i, j]
            off = _turn(np.arctan2(y1 - y0, x1 - x0), angle[k]) * gap  # pixels beside the line
            alike = 0.5 < a.score / b.score < 2
            if alike and BIN < gap < config.longest_gap_pix and off < 2 * BIN + 0.02 * gap:
                reach, score = max(a.reach, b.reach), max(a.score, b.score)
                out.append(Trail(x0=x0, y0=y0, x1=x1, y1=y1, reach=reach, score=score))
    return out


def _turn(a: np.ndarray | float, b: float) -> np.ndarray | float:
    """Return the angle between two directions that have no sense, 0 to pi / 2."""
    return np.abs((a - b + np.pi / 2) % np.pi - np.pi / 2)
