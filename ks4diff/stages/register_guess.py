"""Where the map between two star lists may start, and whether the matches of a start could be chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics import pattern, polynomial
from ks4diff.numerics.neighbours import mutual_matches
from ks4diff.numerics.pattern import Limits
from ks4diff.numerics.pixel_map import PixelMap, followed_by, plus
from ks4diff.products.chip import CalibratedChip
from ks4diff.stages.starting_map import identity

BRIGHT = 400  # science stars that decide: enough against any chance, few enough for 300 guesses a second
WINDOW = 3000  # px of a part of a chip in which an unknown distortion bends less than a vote's bin
WIDTH = 0.006  # of a vote's bin, of the image's size: half a degree of rotation moves the corners so far


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Two star lists, brightest first; positions float64 [n, 2], all finite.

    ``rows_a`` and ``rows_b`` are their rows in the chips' own lists, ``noise_a`` and ``noise_b`` the expected
    errors of the positions per axis, px; ``order_a`` and ``order_b`` sort them bright and spread. ``by_wcs``
    is the map that the headers imply.
    """

    a: np.ndarray
    b: np.ndarray
    rows_a: np.ndarray
    rows_b: np.ndarray
    noise_a: np.ndarray
    noise_b: np.ndarray
    order_a: np.ndarray
    order_b: np.ndarray
    shape: tuple[int, int]
    template_shape: tuple[int, int]
    by_wcs: PixelMap | None
    wcs_method: str
    used: tuple[int, int]  # rows and columns of the part of the science image that ``order_a`` speaks of

    def windows(self) -> list[Lists]:
        """Return the lists for the middle and the quarters of a large image, none for a small one."""
        rows, columns = self.shape
        if min(rows, columns) < 1.5 * WINDOW:
            return []
        found = []
        for down, along in ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
            away = np.abs(self.a - (along * columns, down * rows)).max(axis=1)
            order = self.order_a[away[self.order_a] <= WINDOW / 2]
            found.append(replace(self, order_a=order, used=(WINDOW, WINDOW)))
        return found

    def bright(self, n: int, deeper: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of n bright science stars and of template stars ``deeper`` times as dense."""
        unit = 1.0 if self.by_wcs is None else self.by_wcs.area()
        ratio = np.prod(self.template_shape) / (np.prod(self.used) * unit)
        return self.order_a[:n], self.order_b[: max(int(n * deeper * ratio), 4)]

    def points(self, pairs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of pairs (i, j) in both images."""
        return self.a[pairs[0]], self.b[pairs[1]]

    def expected(self, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Return the noise per axis that the two positions of each pair differ by, px."""
        return np.hypot(self.noise_a[pairs[0]], self.noise_b[pairs[1]])


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A map that may be right to ``radius`` px; ``log_trials`` is ln of how many such maps there are."""

    map: PixelMap
    lists: Lists
    base: PixelMap  # before the stars voted; ``limits`` are those about it
    limits: Limits
    radius: float
    log_trials: float
    method: str

    @property
    def from_wcs(self) -> bool:
        """Whether the headers' WCS are in it."""
        return self.method in ("wcs", "ahead")


def star_lists(science: CalibratedChip, template: CalibratedChip, by_wcs: PixelMap | None) -> Lists:
    """Return what registration reads of two chips."""
    kept = []
    for chip in (science, template):
        points = np.stack([chip.stars.x, chip.stars.y], axis=1).astype(np.float64)
        rows = np.flatnonzero(np.isfinite(points).all(axis=1))
        kept.append((points[rows], rows, expected_noise(chip)[rows]))
    (a, rows_a, noise_a), (b, rows_b, noise_b) = kept
    name = "" if by_wcs is None else str(science.raw.wcs.wcs.name)
    return Lists(
        a=a,
        b=b,
        rows_a=rows_a,
        rows_b=rows_b,
        noise_a=noise_a,
        noise_b=noise_b,
        order_a=pattern.spread(a, len(a)),
        order_b=pattern.spread(b, len(b)),
        shape=science.image.shape,
        template_shape=template.image.shape,
        by_wcs=by_wcs,
        wcs_method="ahead" if name == "ahead" else "wcs",
        used=science.image.shape,
    )


def expected_noise(chip: CalibratedChip) -> np.ndarray:
    """Return the standard error of the stars' positions per axis, px: FWHM / 2.35 over their S/N.

    King 1983 PASP 95, 163: the noise under a star is that of 4 pi s² pixels, s the PSF's sigma.
    """
    s = chip.psf.fwhm_pix / 2.3548
    flux = np.clip(np.nan_to_num(chip.stars.flux), 1e-30, None)
    noise = np.sqrt(flux / chip.gain + 4 * np.pi * (s * chip.noise.sigma) ** 2)
    return np.clip(s * noise / flux, 1e-4, 10.0)


def guesses(
    lists: Lists, limits: tuple[Limits, Limits], depths: tuple[int, ...], radius: float
) -> Iterator[Guess]:
    """Yield first guesses, the most likely first: both WCS, those moved, no shift at all, any pattern.

    ``limits`` are those about the two WCS and those without any; ``radius`` px of a final match.
    """
    still = identity(lists.shape)
    starts = [(lists.wcs_method, lists.by_wcs, limits[0])] if lists.by_wcs is not None else []
    starts.append(("identity", still, limits[1]))
    width = _width(lists, radius)
    for method, base, limit in starts:
        # six numbers of an affine map, each free by the ratio of the radii
        trials = 6 * np.log(width / radius)
        yield Guess(
            map=base, lists=lists, base=base, limits=limit, radius=width, log_trials=trials, method=method
        )
        name = "pattern" if base is still else method
        yield from _voted(name, base, lists, limit, depths, radius)
    # nothing so far: what the headers say of the distortion is wrong, and only parts of the image fit
    for method, base, limit in starts:
        wide = Limits(scale=limits[1].scale, rotation=limits[1].rotation, shift=limit.shift)
        for part in lists.windows():
            name = "pattern" if base is still else method
            yield from _voted(name, base, part, wide, depths[1:2], radius)


def _width(lists: Lists, radius: float) -> float:
    return max(WIDTH * max(lists.used), radius)


def _voted(
    method: str,
    base: PixelMap,
    lists: Lists,
    limits: Limits,
    depths: tuple[int, ...],
    radius: float,
) -> Iterator[Guess]:
    """Yield the base map moved as the brightest stars vote, at several depths."""
    width = _width(lists, radius)
    largest = 0.5 * max(lists.shape) + max(lists.template_shape)
    reach = float(np.hypot(*lists.used)) / 2
    shift = min(limits.shift, largest)
    trials = 2 * np.log(2 * shift / radius) + 2 * np.log(width / radius)
    trials += sum(np.log1p(2 * limit * reach / radius) for limit in (limits.scale, limits.rotation))
    if len(lists.order_a) < 4 or len(lists.order_b) < 4:
        return
    allowed = Limits(scale=limits.scale, rotation=limits.rotation, shift=shift)
    for depth in depths:
        i, j = lists.bright(depth)
        for similarity in pattern.propose(base.at(lists.a[i]), lists.b[j], allowed, width):
            yield Guess(
                map=followed_by(base, similarity),
                lists=lists,
                base=base,
                limits=limits,
                radius=1.5 * width,
                log_trials=trials,
                method=method,
            )
        if depth >= len(lists.order_a):
            break


def settled(
    start: PixelMap, lists: Lists, radius: float, final: float
) -> tuple[PixelMap, tuple[np.ndarray, np.ndarray]]:
    """Return a guess after affine steps of its bright matches, from ``radius`` to ``final`` px; the pairs."""
    rows = lists.bright(BRIGHT, deeper=2.0)
    a, b = lists.a[rows[0]], lists.b[rows[1]]
    current = start
    while True:
        i, j = mutual_matches(current.at(a), b, radius)
        if radius <= final or len(i) < 4:
            return current, (rows[0][i], rows[1][j])
        current = _nudged(current, a[i], b[j])
        radius = max(0.6 * radius, final)


def _nudged(current: PixelMap, a: np.ndarray, b: np.ndarray) -> PixelMap:
    """Return the map with the affine change that its matches want, clipped at 2.5 times their median."""
    offset = (b - current.at(a)).T
    u, v = current.unit(a)
    keep = np.ones(len(a), dtype=bool)
    change = np.zeros((2, 3))
    for _ in range(3):
        if keep.sum() < 4:
            break
        change = polynomial.fit(u[keep], v[keep], offset[:, keep], 1)
        distance = np.hypot(*(offset - polynomial.evaluate(change, u, v, 1)))
        keep = distance <= 2.5 * np.median(distance[keep]) + 0.05
    return plus(current, change, 1)


def verified(guess: Guess, radius: float, min_share: float) -> tuple[PixelMap, int, float]:
    """Return (the settled map, bright matches, ln of the odds that they are chance).

    Every map that was tried counts against it, and so does too small a share of the bright stars: 0 then.
    """
    lists = guess.lists
    moved, pairs = settled(guess.map, lists, guess.radius, radius)
    n = len(pairs[0])
    rows = lists.bright(BRIGHT, deeper=2.0)
    landed = moved.at(lists.a[rows[0]])
    high = np.array(lists.template_shape[::-1])
    inside = int(((landed > -radius) & (landed < high + radius)).all(axis=1).sum())
    if n < 4 or n < min_share * inside:
        return moved, n, 0.0
    odds = pattern.log_chance(n, inside, len(rows[1]), float(np.prod(high)), radius)
    return moved, n, odds + guess.log_trials
