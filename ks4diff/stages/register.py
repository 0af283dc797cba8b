"""Find the map from science pixels to template pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.numerics import pattern, polynomial
from ks4diff.products.cells import Cells
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.registration import Registration


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Limits of the unknown geometry and of what is believed."""

    max_scale: float = 0.02  # fraction by which the two pixel scales may differ
    max_rotation_deg: float = 2.0
    depths: tuple[int, ...] = (30, 60, 120, 240)  # brightest stars tried in turn as patterns
    max_stars: int = 5000  # brightest; with many more, a wrong neighbour is always within the radius
    match_radius_pix: float = 2.5
    accept_log_chance: float = -25.0  # ln of the odds that an accepted match is chance
    min_matched: int = 6
    sure_fraction: float = 0.5  # of the shorter list: with so many matched no other guess is tried
    max_degree: int = 3
    stars_per_term: int = 6  # a polynomial term must be held by this many stars
    clip_sigma: float = 3.0


def register(science: CalibratedChip, template: CalibratedChip, config: RegisterConfig) -> Registration:
    """Return the map from science to template pixels, by the stars that both images show.

    First guesses are tried in order: both WCS, no shift at all, then star patterns. Those whose matches
    cannot be chance are refined, until one holds a fair share of all stars: a guess that is right in one
    corner alone is not chance either, and only a better one tells. Else the one with most matches is taken.

    Raises
    ------
    SkipChip
        When no guess matches: the images show different fields, or too few stars in common.

    """
    n = config.max_stars
    a = np.stack([science.stars.x[:n], science.stars.y[:n]], axis=1)
    b = np.stack([template.stars.x[:n], template.stars.y[:n]], axis=1)
    shape = science.image.shape
    found, best = None, 0
    for method, guess in _guesses(a, b, shape, (science.raw.wcs, template.raw.wcs), config):
        pairs, log_chance = _verify(guess, a, b, template.image.shape, config)
        best = max(best, len(pairs[0]))
        if not (log_chance < config.accept_log_chance and len(pairs[0]) >= config.min_matched):
            continue
        grown = _grown(a, b, pairs, shape, method, config)
        if found is None or grown.n_matched > found.n_matched:
            found = grown
        if found.n_matched >= config.sure_fraction * min(len(a), len(b)):
            break
    if found is not None:
        return found
    raise SkipChip(
        "the two images do not show the same stars",
        n_science=float(len(a)),
        n_template=float(len(b)),
        n_matched=float(best),
    )


def _guesses(a, b, shape, wcs, config):
    """Yield (method, affine [2, 3]) first guesses, cheapest first."""
    if wcs[0] is not None and wcs[1] is not None:
        guess = _from_wcs(wcs[0], wcs[1], shape)
        if guess is not None:
            yield "wcs", guess
    yield "identity", np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    limits = {"max_scale": config.max_scale, "max_rotation": np.radians(config.max_rotation_deg)}
    for depth in config.depths:
        for p, q, tx, ty in pattern.propose(a[:depth], b[:depth], **limits):
            yield "pattern", np.array([[p, -q, tx], [q, p, ty]])
        if depth >= max(len(a), len(b)):
            break


def _from_wcs(science: WCS, template: WCS, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the affine map that the two headers imply, or None when it is not finite."""
    rows, columns = shape
    x = np.array([0.0, columns - 1, 0.0, columns - 1, columns / 2])
    y = np.array([0.0, 0.0, rows - 1, rows - 1, rows / 2])
    tx, ty = template.all_world2pix(*science.all_pix2world(x, y, 0), 0, quiet=True)
    if not (np.isfinite(tx).all() and np.isfinite(ty).all()):
        return None
    design = np.stack([x, y, np.ones_like(x)], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.stack([tx, ty], axis=1), rcond=None)
    return solution.T


def _affine(guess: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ guess[:, :2].T + guess[:, 2]


def _verify(guess, a, b, template_shape, config):
    """Return ((i, j), ln chance): the matches of a guess after one affine refit, and their odds."""
    n = 300  # enough to decide, few enough to try a hundred guesses a second
    rows, columns = template_shape
    radius = max(3.0 * config.match_radius_pix, 0.004 * max(template_shape))
    expected = np.sqrt(abs(np.linalg.det(guess[:, :2])))  # two WCS may differ in scale as they like
    for step in range(4):
        moved = _affine(guess, a[:n])
        i, j = pattern.mutual_matches(moved, b[:n], radius)
        if len(i) < 4:
            return (i, j), 0.0
        if step < 3:
            guess = _fit_affine(a[i], b[j], guess)
            radius = max(radius / 2, config.match_radius_pix)
    inside = (moved > -radius).all(axis=1) & (moved[:, 0] < columns + radius) & (moved[:, 1] < rows + radius)
    scale = np.sqrt(abs(np.linalg.det(guess[:, :2])))
    if abs(scale / expected - 1) > 1.5 * config.max_scale:
        return (i, j), 0.0
    log_chance = pattern.log_chance(len(i), int(inside.sum()), min(len(b), n), float(rows * columns), radius)
    # all stars now, with the guess that the bright ones refined
    i, j = pattern.mutual_matches(_affine(guess, a), b, config.match_radius_pix)
    return (i, j), log_chance


def _fit_affine(a: np.ndarray, b: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Return the affine map a -> b by least squares, clipped once at twice the median distance."""
    design = np.concatenate([a, np.ones((len(a), 1))], axis=1)
    keep = np.ones(len(a), dtype=bool)
    solution = fallback.T
    for _ in range(3):
        if keep.sum() < 4:
            return fallback
        solution, *_ = np.linalg.lstsq(design[keep], b[keep], rcond=None)
        distance = np.hypot(*(b - design @ solution).T)
        keep = distance <= 2.5 * np.median(distance[keep]) + 0.05
    return solution.T


def _grown(a, b, pairs, shape, method, config) -> Registration:
    """Return the registration through all stars that it matches itself, starting from those of a first guess.

    An affine guess matches only the middle of a distorted field; each polynomial through the matches reaches
    farther out, until no more stars join.
    """
    registration = _refine((a, b), pairs, shape, method, config)
    for _ in range(8):
        moved = template_position(registration, a[:, 0], a[:, 1]).T
        i, j = pattern.mutual_matches(moved, b, config.match_radius_pix)
        if len(i) <= len(pairs[0]):
            break
        pairs = (i, j)
        registration = _refine((a, b), pairs, shape, method, config)
    return registration


def _refine(
    points: tuple[np.ndarray, np.ndarray],
    index: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
    method: str,
    config: RegisterConfig,
) -> Registration:
    """Return the polynomial through the matched stars, clipped until no outlier is left."""
    science, template = points[0][index[0]], points[1][index[1]]
    rows, columns = shape
    centre = ((columns - 1) / 2, (rows - 1) / 2)
    scale = max(rows, columns) / 2
    u, v = ((science - centre) / scale).T
    target = template.T
    keep = np.ones(len(science), dtype=bool)
    for _ in range(8):
        degree = _degree(int(keep.sum()), config)
        coefficients = polynomial.fit(u[keep], v[keep], target[:, keep], degree)
        residual = target - polynomial.evaluate(coefficients, u, v, degree)
        distance = np.hypot(*residual)
        # the median of a two-dimensional normal's distance is 1.177 sigma
        limit = config.clip_sigma * float(np.median(distance[keep])) / 1.1774
        new = distance <= max(limit, 0.02)
        if (new == keep).all():
            break
        keep = new
    if keep.sum() < config.min_matched:
        raise SkipChip("too few stars agree on one registration", n_matched=float(keep.sum()))
    rms = float(np.sqrt(0.5 * (distance[keep] ** 2).mean()))
    return Registration(
        coefficients=coefficients,
        degree=degree,
        centre=centre,
        scale=scale,
        n_matched=int(keep.sum()),
        rms_pix=rms,
        method=method,
        pairs=np.stack(index)[:, keep],
        n_stars=Cells.constant(float(keep.sum()), shape),
        residual_rms=Cells.constant(rms, shape),
        error=Cells.constant(rms / np.sqrt(keep.sum()), shape),
        bad=Cells.constant(0.0, shape),
    )


def _degree(n_stars: int, config: RegisterConfig) -> int:
    """Return the highest polynomial degree that n_stars can hold, at least 1."""
    for degree in range(config.max_degree, 1, -1):
        if n_stars >= config.stars_per_term * len(polynomial.exponents(degree)):
            return degree
    return 1


def template_position(registration: Registration, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return float64 [2, n]: template pixels of science pixels (x, y)."""
    u = (np.asarray(x) - registration.centre[0]) / registration.scale
    v = (np.asarray(y) - registration.centre[1]) / registration.scale
    return polynomial.evaluate(registration.coefficients, u, v, registration.degree)
