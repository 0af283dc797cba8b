"""Find satellite trails in the difference and flag the candidates on them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics.hough import Line, strongest_line
from ks4diff.products.candidates import FLAG_BIT, Candidates
from ks4diff.products.difference import Difference

WORKERS = 2
BIN = 4  # pixels: about the width of a trail, so that one bin holds most of its light across
TILE = 128  # bins: 512 px, in which a trail of 100 px still outvotes the noise
BOX = 4  # bins along a line that are judged together
CEILING = 5.0  # sigma: no pixel, no bin and no box counts more
PROFILE_PIX = 20  # to either side of a trail: twice the reach of the widest


@dataclass(frozen=True, kw_only=True)
class TrailsConfig:
    """When a straight ridge is a trail, and which candidates belong to it."""

    vote_floor: float = 2.0  # sigma of a bin that votes: one in 40 by chance
    line_excess: float = 6.0  # sigma of a line's votes; 10,000 lines a tile give less than one by chance
    box_level: float = 1.5  # sigma of a piece of 16 px that belongs to a trail
    shortest_pix: int = 96  # the longest cosmic rays in one direction are shorter
    filled: float = 0.75  # of its pieces that stand out; a chain of stars has gaps
    lowest_score: float = 1.0  # median S_corr of the ridge; below it a trail makes no candidates ...
    sure_score: float = 2.5  # ... and below this one it must be longer:
    faint_pix: int = 200
    longest_gap_pix: float = 700.0  # between two pieces of one trail
    outshines: float = 3.0  # a candidate of this many times the trail's score is not of the trail ...
    outshines_floor: float = 8.0  # ... and of this much more
    ringing: float = 0.5  # of a trail's score: what it leaves of the other sign beside it


@dataclass(frozen=True, kw_only=True)
class Trail:
    """A straight piece of a trail: from (x0, y0) to (x1, y1), pixels.

    ``reach`` is how far from its ridge it adds light, pixels; ``score`` the median |S_corr| of the ridge.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    reach: float
    score: float

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the distance of pixels (x, y) [n] from the piece."""
        dx, dy = self.x1 - self.x0, self.y1 - self.y0
        length = max(np.hypot(dx, dy), 1e-9)
        along = np.clip(((x - self.x0) * dx + (y - self.y0) * dy) / length**2, 0, 1)
        return np.hypot(x - self.x0 - along * dx, y - self.y0 - along * dy)


def flag_trails(candidates: Candidates, difference: Difference, config: TrailsConfig) -> Candidates:
    """Return the candidates with "trail" raised on those that a straight trail explains."""
    table = candidates.table.copy()
    for sign in (1.0, -1.0):
        for trail in find_trails(difference, sign, config):
            near = trail.distance(table["x"], table["y"]) < trail.reach + difference.psf.fwhm_pix
            own = np.maximum(config.outshines * trail.score, trail.score + config.outshines_floor)
            limit = np.where(sign * table["scorr"] > 0, own, config.ringing * trail.score)
            table["flags"][near & (np.abs(table["scorr"]) < limit)] |= FLAG_BIT["trail"]
    return replace(candidates, table=table)


def find_trails(difference: Difference, sign: float, config: TrailsConfig) -> list[Trail]:
    """Return the trails of the science image (``sign`` 1) or of the template (-1), piece by piece."""
    rows, columns = difference.difference.shape
    step = TILE * BIN // 2
    starts = [
        (y, x) for y in range(0, max(rows - step, 1), step) for x in range(0, max(columns - step, 1), step)
    ]

    def work(start: tuple[int, int]) -> list[Trail]:
        box = tuple(slice(s, s + 2 * step) for s in start)
        white = _white(difference, box) * np.float32(sign)
        found = [_placed(piece, start, difference, sign) for piece in pieces(white, config)]
        return [trail for trail in found if _believed(trail, config)]

    with ThreadPoolExecutor(WORKERS) as pool:
        every = [trail for found in pool.map(work, starts) for trail in found]
    return every + _bridges(every, config)


def _believed(trail: Trail, config: TrailsConfig) -> bool:
    if trail.score > config.sure_score:
        return True
    length = np.hypot(trail.x1 - trail.x0, trail.y1 - trail.y0)
    return trail.score > config.lowest_score and length >= config.faint_pix


def _white(difference: Difference, box: tuple[slice, slice]) -> np.ndarray:
    """Return the difference in units of its local noise, NaN where flagged, float32 [y, x]."""
    error = difference.flux_err[box]
    good = (difference.flags[box] == 0) & (error > 0)
    if not good.any():
        return np.full(error.shape, np.nan, dtype=np.float32)
    usual = np.median(error[good])
    noise = difference.noise if difference.noise_map is None else difference.noise_map.over(*box)
    level = noise * np.where(good, error / usual, 1)
    return np.where(good, difference.difference[box] / level, np.nan).astype(np.float32)


def pieces(white: np.ndarray, config: TrailsConfig) -> list[Trail]:
    """Return the straight bright ridges of an image of unit noise, NaN where unknown; scores are 0."""
    binned = _binned(white)
    found: list[Trail] = []
    for _ in range(4):  # more trails than that within 512 px are no trails
        line = strongest_line(
            binned, floor=config.vote_floor, ceiling=CEILING, n_angles=int(np.pi / 2 * TILE)
        )
        if line.excess < config.line_excess:
            break
        run = _run_along(binned, line, config)
        if run is not None:
            x0, y0, x1, y1 = ((v + 0.5) * BIN - 0.5 for v in run)
            trail = Trail(x0=x0, y0=y0, x1=x1, y1=y1, reach=0.0, score=0.0)
            found.append(_fitted(white, trail))
        _erase(binned, line)
    return found


def _binned(white: np.ndarray) -> np.ndarray:
    """Return float32 sums over `BIN`² pixels in units of their spread, at least the noise's; NaN unknown."""
    rows, columns = (n // BIN for n in white.shape)
    blocks = white[: rows * BIN, : columns * BIN].reshape(rows, BIN, columns, BIN)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, np.clip(blocks, -CEILING, CEILING), 0).sum(axis=(1, 3))
    mean = np.where(2 * count >= BIN * BIN, total / np.sqrt(np.maximum(count, 1)), np.nan)
    finite = np.isfinite(mean)
    # what the background left in the tile is no ridge
    level = np.median(mean[finite]) if finite.any() else 0.0
    spread = 1.4826 * np.median(np.abs(mean[finite] - level)) if finite.any() else 1.0
    return ((mean - level) / max(spread, 1.0)).astype(np.float32)


def _run_along(
    binned: np.ndarray, line: Line, config: TrailsConfig
) -> tuple[float, float, float, float] | None:
    """Return (x0, y0, x1, y1), bins, of the part of a line that is bright without gaps, None if too short."""
    c, s = np.cos(line.angle), np.sin(line.angle)
    reach = int(np.hypot(*binned.shape)) + 1
    along = np.arange(-reach, reach + 1)
    across = np.array([-1.0, 0.0, 1.0])
    x = np.rint(line.offset * c - along[:, None] * s + across * c).astype(int)
    y = np.rint(line.offset * s + along[:, None] * c + across * s).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < binned.shape[1]) & (y < binned.shape[0])
    values = np.where(inside, binned[y.clip(0, binned.shape[0] - 1), x.clip(0, binned.shape[1] - 1)], np.nan)
    n = len(along) // BOX
    boxes = np.clip(values[: n * BOX].reshape(n, -1), -CEILING, CEILING)
    known = np.isfinite(boxes).sum(axis=1)
    level = np.nansum(boxes, axis=1) / np.sqrt(np.maximum(known, 1))
    worth = np.where(known > BOX, np.clip(level, -CEILING, CEILING) - config.box_level, 0.0)
    first, last = _best_run(worth)
    bright = np.flatnonzero(worth[first:last] > 0)
    if not len(bright):
        return None
    first, last = first + int(bright[0]), first + int(bright[-1]) + 1
    used = known[first:last] > BOX
    long = (last - first) * BOX * BIN >= config.shortest_pix and used.sum() * BOX * BIN >= config.shortest_pix
    if not long or (worth[first:last][used] > 0).mean() < config.filled:
        return None
    ends = along[first * BOX], along[min(last * BOX, len(along)) - 1]
    return tuple(v for a in ends for v in (line.offset * c - a * s, line.offset * s + a * c))


def _best_run(worth: np.ndarray) -> tuple[int, int]:
    """Return (first, last + 1) of the run of the largest sum."""
    total = np.concatenate([[0.0], np.cumsum(worth)])
    lowest = np.minimum.accumulate(total)
    last = int(np.argmax(total - lowest))
    return int(np.argmin(total[: last + 1])), last


def _erase(binned: np.ndarray, line: Line) -> None:
    """Make a line and what is 3 bins from it unknown, in place."""
    y, x = np.mgrid[: binned.shape[0], : binned.shape[1]]
    away = np.abs(x * np.cos(line.angle) + y * np.sin(line.angle) - line.offset)
    binned[away <= 3] = np.nan


def _fitted(white: np.ndarray, trail: Trail) -> Trail:
    """Return the piece moved and turned onto the ridge, with its reach."""
    for _ in range(2):
        away, profile = _across(white, trail, 2)
        shift = [_middle(away, p) for p in profile]
        dx, dy = trail.x1 - trail.x0, trail.y1 - trail.y0
        length = np.hypot(dx, dy)
        nx, ny = -dy / length, dx / length
        # the halves' middles lie at a quarter and three quarters
        slope = 2 * (shift[1] - shift[0])
        start, end = shift[0] - slope / 4, shift[1] + slope / 4
        trail = replace(
            trail,
            x0=trail.x0 + start * nx,
            y0=trail.y0 + start * ny,
            x1=trail.x1 + end * nx,
            y1=trail.y1 + end * ny,
        )
    away, (profile,) = _across(white, trail, 1)
    bright = profile > 0.15 * profile[np.abs(away) <= 2].max()
    dark = np.abs(away[~bright])
    return replace(trail, reach=float(dark.min()) if len(dark) else float(PROFILE_PIX))


def _across(white: np.ndarray, trail: Trail, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (distance from the line, mean clipped profiles [parts, n]) of equal parts of a piece."""
    away = np.arange(-PROFILE_PIX, PROFILE_PIX + 1, dtype=float)
    dx, dy = trail.x1 - trail.x0, trail.y1 - trail.y0
    length = max(np.hypot(dx, dy), 1.0)
    along = np.linspace(0, 1, max(int(length), parts))
    x = np.rint(trail.x0 + along[:, None] * dx - away * dy / length).astype(int)
    y = np.rint(trail.y0 + along[:, None] * dy + away * dx / length).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < white.shape[1]) & (y < white.shape[0])
    value = np.where(inside, white[y.clip(0, white.shape[0] - 1), x.clip(0, white.shape[1] - 1)], np.nan)
    known = np.isfinite(value)
    value = np.where(known, np.clip(value, -2 * CEILING, 2 * CEILING), 0)
    split = np.array_split(np.arange(len(along)), parts)
    return away, np.array([value[k].sum(axis=0) / np.maximum(known[k].sum(axis=0), 1) for k in split])


def _middle(away: np.ndarray, profile: np.ndarray) -> float:
    """Return where a ridge's middle lies: the mean of its upper half around the highest of three."""
    smooth = np.convolve(profile, np.ones(3) / 3, mode="same")
    near = np.abs(away) <= 3 * BIN
    top = away[near][int(np.argmax(smooth[near]))]
    weight = np.where(np.abs(away - top) <= BIN, np.maximum(profile - 0.5 * smooth[near].max(), 0), 0)
    return float((weight * away).sum() / weight.sum()) if weight.sum() > 0 else 0.0


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
