"""Straight borders across an image where what its stars show steps: those of a stack's chips and dithers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2

from ks4diff.numerics.polynomial import design as terms

FALSE_RATE = 1e-6  # of one line that is no border: some 200 independent lines are tried an image ...
LIKELY_RATE = 1e-3  # ... and of one where borders are likely: every second or third of those is one
LIKELY_PIX = 40.0  # 10" of a dither's pointing, and its turn
MOST = 12  # borders: four dithers of a chip and its neighbours have at most 16, of which few cross one chip
SLOPES = (-0.014, -0.007, 0.0, 0.007, 0.014)  # chips of one camera are turned by less than 0.8 deg
STEP_PIX = 24.0  # between the lines of the first search, or a 150th of the image
CLIP = 2.5  # sigma: galaxies and blends
LEAST_STARS = 6  # that a border sets apart
FEWEST = 80  # stars in all: among fewer, galaxies on one side pass for a step ...
FEWEST_LIKELY = 24  # ... but where borders are likely, though not at a higher rate


@dataclass(frozen=True, kw_only=True)
class Borders:
    """Lines x = at + slope (y - middle), where ``upright``, or y = at + slope (x - middle); arrays [n]."""

    upright: np.ndarray
    at: np.ndarray
    slope: np.ndarray
    shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.at)

    def beyond(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return bool [n, k]: which points lie right of, or above, each line."""
        return _beyond(self.upright, self.at, self.slope, (x, y), self.shape)

    def region(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return int64 [k]: a number for the side of every line that each point is on."""
        return (self.beyond(x, y) * (1 << np.arange(len(self)))[:, None]).sum(axis=0)

    def and_line(self, upright: bool, at: float) -> Borders:
        """Return the same and one more, of no slope."""
        return _with(self, (np.array([upright]), np.array([at]), np.zeros(1)))


def no_borders(shape: tuple[int, int]) -> Borders:
    """Return none."""
    return Borders(upright=np.zeros(0, dtype=bool), at=np.zeros(0), slope=np.zeros(0), shape=shape)


def apart(likely: Borders) -> Borders:
    """Return upright and level lines of which none is within `LIKELY_PIX` of the one before."""
    out = no_borders(likely.shape)
    for upright in (True, False):
        last = -np.inf
        for at in np.sort(likely.at[likely.upright == upright]).tolist():
            if at > last + LIKELY_PIX:
                out, last = out.and_line(upright, at), at
    return out


def find_borders(
    place: np.ndarray,
    value: np.ndarray,
    error: np.ndarray,
    shape: tuple[int, int],
    order: int = 2,
    likely: Borders | None = None,
    *,
    known: bool = False,
) -> Borders:
    """Return the straight lines across an image at which values step beyond their noise.

    Parameters
    ----------
    place
        Float [2, k]: x, y in pixels.
    value, error
        Float [m, k]: what the stars show, and its standard errors.
    shape
        (rows, columns) of the image.
    order
        Of the polynomial over the image that is fitted with the steps.
    likely
        Where borders are to be expected, to `LIKELY_PIX`.
    known
        Whether each of those is where a dither is known to end.

    Returns
    -------
    Borders
        Greedily: the line whose step lowers chi² most, as long as fewer than ``FALSE_RATE`` such lines
        (``LIKELY_RATE`` of the likely ones) were better by chance, chi² in units of the values' own scatter
        about the model, which is clipped. Among fewer than `FEWEST` stars only likely ones, and at
        ``FALSE_RATE`` unless they are ``known``.

    """
    k = place.shape[1]
    found = no_borders(shape)
    likely = found if likely is None else likely
    order = max((d for d in range(order + 1) if k >= 8 * (d + 1) * (d + 2) / 2), default=0)
    if not len(value) or k < (FEWEST_LIKELY if len(likely) else FEWEST):
        return found
    smooth = terms(*(place / (np.array(shape[::-1])[:, None] / 2) - 1), order)
    tried = _every_line(shape)
    sides = _Sides.of(*tried, place, shape)
    needed = _turned(tried[2]) + _needed(tried, likely, value.shape, known)
    while len(found) < MOST:
        gain = _gains(smooth, found.beyond(*place), value, error, sides) - needed
        best = int(np.argmax(gain))
        if gain[best] < 0:
            break
        new = tuple(part[best : best + 1] for part in tried)
        found = _refined(_with(found, new), (place, value, error), smooth, turns=1)
    found = _refined(found, (place, value, error), smooth, turns=len(found))
    return _without_needless(found, (place, value, error), smooth, (likely, known))


def _needed(lines, likely: Borders, shape: tuple[int, int], known: bool) -> np.ndarray:
    """Return by how much the step at each of ``lines`` (upright, at, slope) must lower chi².

    ``shape`` is that of the values, (how many a star has, stars).
    """
    upright, at, _ = lines
    near = np.abs(at[:, None] - likely.at) <= LIKELY_PIX
    near = (near & (upright[:, None] == likely.upright)).any(axis=1)
    if shape[1] < FEWEST:
        return np.where(near, chi2.isf(LIKELY_RATE if known else FALSE_RATE, shape[0]), np.inf)
    return chi2.isf(np.where(near, LIKELY_RATE, FALSE_RATE), shape[0])


def _without_needless(found: Borders, data, smooth: np.ndarray, likely) -> Borders:
    """Return the borders without those that the others have made needless."""
    place, value, error = data
    none = tuple(part[:0] for part in (found.upright, found.at, found.slope))
    while len(found):
        gains = []
        for k in range(len(found)):
            rest = _with(found, none, skip=k)
            line = (part[k : k + 1] for part in (found.upright, found.at, found.slope))
            sides = _Sides.of(*line, place, found.shape)
            gains.append(float(_gains(smooth, rest.beyond(*place), value, error, sides)[0]))
        spare = np.array(gains) - _needed(
            (found.upright, found.at, found.slope), likely[0], value.shape, likely[1]
        )
        if spare.min() >= 0:
            break
        found = _with(found, none, skip=int(np.argmin(spare)))
    return found


def _turned(slope: np.ndarray) -> np.ndarray:
    """Return the chi² that a slope must earn: exposures are turned by 0.05 deg rms, rarely by 0.5."""
    return 4.0 * np.abs(slope) / SLOPES[-1]


def _every_line(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lines = []
    for upright, n in ((True, shape[1]), (False, shape[0])):
        step = max(STEP_PIX, n / 150)
        at, slope = np.meshgrid(np.arange(step, n - step / 2, step), SLOPES, indexing="ij")
        lines.append((np.full(at.size, upright), at.ravel(), slope.ravel()))
    return tuple(np.concatenate(parts) for parts in zip(*lines, strict=True))


def _beyond(upright, at, slope, place, shape) -> np.ndarray:
    """Return bool [lines, k]."""
    out = np.empty((len(at), place[0].size), dtype=bool)
    for k in range(len(at)):
        out[k] = _along(upright[k], slope[k], place, shape) > np.float32(at[k])
    return out


def _along(upright: bool, slope: float, place, shape: tuple[int, int]) -> np.ndarray:
    """Return float32 [k]: where the parallel through each point crosses the middle of the image."""
    x, y = (np.asarray(v, dtype=np.float32) for v in place)
    along, across = (x, y - np.float32(shape[0] / 2)) if upright else (y, x - np.float32(shape[1] / 2))
    return along - np.float32(slope) * across


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Which of k points lie beyond each of n lines: those from ``first`` [n] on in their family's order.

    ``order`` int [families, k] sorts the points across the lines of each family of parallels, ``family`` [n].
    """

    order: np.ndarray
    family: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, upright, at, slope, place, shape) -> _Sides:
        """Return those of lines x = at + slope (y - middle), where ``upright``, or y = ..."""
        kinds, family = np.unique(np.stack([upright, slope]), axis=1, return_inverse=True)
        order = np.empty((kinds.shape[1], place[0].size), dtype=np.int64)
        first = np.empty(len(at), dtype=np.int64)
        for k, (level, tilt) in enumerate(kinds.T):
            along = _along(bool(level), tilt, place, shape)
            order[k] = np.argsort(along, kind="stable")
            mine = family == k
            first[mine] = np.searchsorted(along[order[k]], at[mine].astype(np.float32), side="right")
        return cls(order=order, family=family, first=first)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return float64 [n, c]: the sum of values [k, c] of the points beyond each line.

        By cumulative sums: of the 1500 lines of a chip one by one they took ten times as long.
        """
        beyond = np.zeros((len(self.order), len(values) + 1, values.shape[1]))
        np.cumsum(values[self.order[:, ::-1]], axis=1, out=beyond[:, 1:])
        return beyond[self.family, len(values) - self.first]


def _with(found: Borders, new, skip: int = -1) -> Borders:
    """Return the borders with those of ``new`` (upright, at, slope), without number ``skip``."""
    keep = np.arange(len(found)) != skip
    parts = [
        np.concatenate([old[keep], more])
        for old, more in zip((found.upright, found.at, found.slope), new, strict=True)
    ]
    return Borders(upright=parts[0], at=parts[1], slope=parts[2], shape=found.shape)


def _gains(
    smooth: np.ndarray, steps: np.ndarray, value: np.ndarray, error: np.ndarray, sides: _Sides
) -> np.ndarray:
    """Return by how much chi² falls, over all values, when a step at each of the lines of ``sides`` is added.

    0 where the line sets too few stars apart from the steps that there are.
    """
    design = np.concatenate([smooth, steps.T], axis=1)
    _, region = np.unique((steps * (1 << np.arange(len(steps)))[:, None]).sum(axis=0), return_inverse=True)
    # how many stars a line cuts off within the regions that it crosses
    member = np.eye(region.max() + 1)[region]
    high = sides.sums(member)
    apart = np.minimum(high, member.sum(axis=0) - high).sum(axis=1)
    total = np.zeros(len(apart))
    for v, e in zip(value, error, strict=True):
        q, rest = _residual(design, v, e)
        # a step over its errors is the side times 1 / error
        parts = sides.sums(np.concatenate([1 / e[:, None] ** 2, (rest / e)[:, None], q / e[:, None]], axis=1))
        power, hits = parts[:, 0], parts[:, 1]
        free = power - (parts[:, 2:] ** 2).sum(axis=1)
        total += np.where(free > 1e-3 * power, hits**2 / np.maximum(free, 1e-12), 0.0)
    return np.where(apart >= LEAST_STARS, total, 0.0)


def _residual(design: np.ndarray, value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (the design over errors made orthonormal, what it leaves of the values).

    That is over the scatter of the residuals, which are clipped.
    """
    q, r = np.linalg.qr(design / error[:, None])
    q = q[:, np.abs(np.diag(r)) > 1e-6 * np.abs(np.diag(r)).max()]
    scaled = value / error
    now = scaled
    for _ in range(4):
        fit = q @ (q.T @ now)
        rest = scaled - fit
        scatter = max(1.4826 * float(np.median(np.abs(rest))), 1.0)
        now = fit + np.clip(rest, -CLIP * scatter, CLIP * scatter)
    return q, (now - q @ (q.T @ now)) / scatter


def _refined(found: Borders, data, smooth: np.ndarray, turns: int) -> Borders:
    """Return the borders, the last ``turns`` of them moved to where their steps lower chi² most."""
    place, value, error = data
    for _ in range(turns):
        for reach, count in ((64.0, 33), (12.0, 25)):
            line = (found.upright[-1:], found.at[-1:], found.slope[-1:])
            rest = _with(found, tuple(part[:0] for part in line), skip=len(found) - 1)
            at, slope = np.meshgrid(line[1] + np.linspace(-reach, reach, count), SLOPES)
            near = np.full(at.size, line[0][0]), at.ravel(), slope.ravel()
            sides = _Sides.of(*near, place, found.shape)
            gain = _gains(smooth, rest.beyond(*place), value, error, sides) - _turned(near[2])
            # of equally good ones the middle
            top = np.flatnonzero(gain >= gain.max() * (1 - 1e-6))
            best = top[np.argmin(np.abs(near[1][top] - np.median(near[1][top])))]
            found = _with(rest, tuple(part[best : best + 1] for part in near))
        # to the front, so that the next one is the last
        order = np.roll(np.arange(len(found)), 1)
        found = replace(found, upright=found.upright[order], at=found.at[order], slope=found.slope[order])
    return found
