"""Find straight bright ridges in one tile of a white image: pieces of satellite trails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics.hough import Line, strongest_line
from ks4diff.numerics.white_bins import bin_sums

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


def pieces(white: np.ndarray, config: TrailsConfig) -> list[Trail]:
    """Return the straight bright ridges of an image of unit noise, NaN where unknown; scores are 0."""
    white = np.ascontiguousarray(white, dtype=np.float32)
    one, none = np.ones(white.shape, dtype=np.float32), np.zeros(white.shape, dtype=np.uint16)
    binned = levelled(*bin_sums(white, one, none, np.ones((1, 1)), side=BIN, ceiling=CEILING))
    return ridges(binned, lambda: white, config)


def ridges(binned: np.ndarray, white: Callable[[], np.ndarray], config: TrailsConfig) -> list[Trail]:
    """Return the ridges of a binned image, placed on the full one, which is made only where there is any."""
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
            found.append(_fitted(white(), trail))
        _erase(binned, line)
    return found


def levelled(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return float32 bins in units of their spread, at least the noise's; NaN where half is unknown."""
    mean = np.where(2 * counts >= BIN * BIN, sums / np.sqrt(np.maximum(counts, 1)), np.nan)
    finite = mean[np.isfinite(mean)]
    # what the background left in the tile is no ridge
    level = np.median(finite) if len(finite) else 0.0
    spread = 1.4826 * np.median(np.abs(finite - level)) if len(finite) else 1.0
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
    y, x = np.arange(binned.shape[0])[:, None], np.arange(binned.shape[1])
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
