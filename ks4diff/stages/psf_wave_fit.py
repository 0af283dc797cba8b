"""Find the waves that a stack's sub-pixel phases make in its stars' widths, and where they change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.linalg import solve_triangular

from ks4diff.numerics.phase_waves import (
    CLIP,
    HARMONICS,
    MOST_STARS,
    PhaseMaps,
    Phases,
    columns,
    fitted,
    next_wave,
)
from ks4diff.numerics.polynomial import design as terms
from ks4diff.numerics.psf_borders import Borders
from ks4diff.numerics.psf_modes import radii
from ks4diff.numerics.scatter import excess_scatter
from ks4diff.stages.psf_clean import WIDTH_FLOOR, as_wide_as_neighbours, stamp_variance, widths
from ks4diff.stages.psf_stars import WORKERS, Sample
from ks4diff.stages.psf_waves import Waves, patterns

MOST_TURN = 0.0175  # radians between a dither and its header: the camera is turned by up to 1 degree
MOST_WAVES = 4
LARGEST = 0.5 / np.pi**2  # amplitude of a first harmonic, pixels², of a stack that is one dither
OTHER = 0.5  # of that: by how much a region's may differ from the common one
STEP = 0.03  # pixels²: by how much the mean blur may differ at a border
FEW = 60  # stars
FEW_IN_REGION = 15  # of those
LEAST_SCATTER = 0.004  # pixels² that stars scatter by beyond their noise: a fifth of what a wave makes
ASIDE_PIX = (-25.0, 0.0, 25.0)  # of a likely border, at which one is tried
APART_PIX = 20.0  # two of those are at least
ODDS = 3.0  # against a border in any of these places


@dataclass(frozen=True, kw_only=True)
class _Stars:
    """Places and blurs [2, k] of stars, errors of these, and the terms of what changes smoothly [k, t]."""

    place: np.ndarray
    value: np.ndarray
    error: np.ndarray
    smooth: np.ndarray
    maps: PhaseMaps
    phases: Phases

    def only(self, some: np.ndarray) -> _Stars:
        """Return some of them, by their numbers."""
        return _Stars(
            place=self.place[:, some],
            value=self.value[:, some],
            error=self.error[:, some],
            smooth=self.smooth[some],
            maps=self.maps,
            phases=self.phases.only(some),
        )


def find_waves(
    sample: Sample,
    mean: np.ndarray,
    fwhm: float,
    maps: PhaseMaps,
    borders: Borders,
    likely: Borders | None = None,
) -> Waves | None:
    """Return the waves in the blur of stars about a ``mean`` stamp [n, n], None when there are none.

    On each side of ``borders`` they are as strong as the stars there say, as other dithers lie there; so they
    are on each side of those ``likely`` ones where they are seen to change.
    """
    core = radii(mean.shape[0]) <= 1.5 * fwhm
    value, error = widths(sample, mean, core)
    some = sample.only(as_wide_as_neighbours(sample, value, error, borders.shape))
    if len(some.x) < FEW:
        return None
    value, error = _blurs(some, mean, core)
    place = np.stack([some.x, some.y])
    stars = _Stars(
        place=place,
        value=value,
        error=error,
        smooth=terms(*(place / np.array(borders.shape[::-1])[:, None] * 2 - 1), 3),
        maps=maps,
        phases=maps.at(*place),
    )
    waves, fit = _searched(stars, borders, ())
    if waves.found and likely is not None:
        more = _where_waves_change(stars, waves, fit, likely)
        if len(more) > len(borders):
            waves, fit = _searched(stars, more, waves.found)
    if not waves.found:
        return None
    own = np.einsum("kw,kwn->kn", waves.coefficients, _shown(stars, waves))
    waves = replace(waves, level=own.mean(axis=1))
    lost = own - waves.level[:, None] - waves.at(*place, averaged=True)
    return replace(waves, lost=lost.var(axis=1))


def _searched(
    stars: _Stars, borders: Borders, found: tuple[tuple[int, float], ...]
) -> tuple[Waves, tuple[np.ndarray, np.ndarray]]:
    """Return (waves, (blurs without outliers, sigma) [2, k]): those ``found`` and what more there are."""
    waves = _with_borders(stars, borders, found)
    smooth = np.concatenate([stars.smooth, borders.beyond(*stars.place).T], axis=1)
    scatter = np.full(2, WIDTH_FLOOR)
    while True:
        sigma, shown, prior = np.hypot(stars.error, scatter[:, None]), _shown(stars, waves), _prior(waves)
        with ThreadPoolExecutor(WORKERS) as pool:
            fits = list(pool.map(partial(fitted, smooth, prior=prior), shown, stars.value, sigma))
        waves = replace(waves, coefficients=np.stack([fit[0] for fit in fits]))
        rest = np.stack([fit[1] for fit in fits])
        excess = [excess_scatter(r, e) for r, e in zip(rest, stars.error, strict=True)]
        scatter = np.maximum(excess, LEAST_SCATTER)
        sigma = np.hypot(stars.error, scatter[:, None])
        calm = np.clip(rest, -CLIP * sigma, CLIP * sigma)
        new = None
        if len(waves.found) < MOST_WAVES:
            new = next_wave(stars.phases, calm, sigma**-2.0, MOST_TURN)
        if new is None:
            return waves, (stars.value - rest + calm, sigma)
        waves = replace(waves, found=(*waves.found, new))


def _with_borders(stars: _Stars, borders: Borders, found: tuple[tuple[int, float], ...]) -> Waves:
    """Return waves of no strength yet, with the regions of ``borders`` that hold stars enough."""
    region, many = np.unique(borders.region(*stars.place), return_counts=True)
    own = region[many >= FEW_IN_REGION] if len(region) > 1 else region[:0]
    size = len(found) * (1 + len(own)) * 2 * len(HARMONICS)
    return Waves(
        maps=stars.maps,
        found=found,
        borders=borders,
        regions=own,
        coefficients=np.zeros((2, size)),
        level=np.zeros(2),
        lost=np.zeros(2),
    )


def _shown(stars: _Stars, waves: Waves) -> np.ndarray:
    """Return float64 [2, coefficients, k]: what each coefficient adds to the stars' blur."""
    member = waves.members(*stars.place)
    n = member.shape[1]
    parts = [np.empty((2, 0, n))]
    for wave in waves.found:
        phase = stars.phases.of(wave)
        parts.append(np.stack([(member[:, None] * columns(p)).reshape(-1, n) for p in phase]))
    return np.concatenate(parts, axis=1)


def _prior(waves: Waves) -> np.ndarray:
    """Return how large each coefficient may be: those common to all regions, then the regions' own."""
    sizes = [1.0] + [OTHER] * len(waves.regions)
    one = [size * LARGEST / n**2 for size in sizes for n in HARMONICS for _ in (0, 1)]
    return np.tile(one, len(waves.found))


def _where_waves_change(
    stars: _Stars, waves: Waves, calm: tuple[np.ndarray, np.ndarray], likely: Borders
) -> Borders:
    """Return the waves' borders with those of the likely ones across which they change, greedily."""
    # among a whole chip's 3000 stars it would take seconds
    some = np.sort(np.argsort((calm[1] ** 2).sum(axis=0), kind="stable")[:MOST_STARS])
    stars, calm = stars.only(some), tuple(part[:, some] for part in calm)
    best = _evidence(stars, waves, calm)
    while True:
        places = _places(likely, waves.borders)
        tried = [
            _with_borders(stars, waves.borders.and_line(upright, at), waves.found) for upright, at in places
        ]
        with ThreadPoolExecutor(WORKERS) as pool:
            evidence = list(pool.map(lambda changed: _evidence(stars, changed, calm), tried))
        if not tried or max(evidence) - best < np.log(ODDS * len(tried)):
            return waves.borders
        waves, best = tried[int(np.argmax(evidence))], max(evidence)


def _places(likely: Borders, known: Borders) -> list[tuple[bool, float]]:
    """Return (upright, at) of places near likely borders, alike ones once, that are not near known ones."""
    out: list[tuple[bool, float]] = []
    for upright in (True, False):
        old = known.at[known.upright == upright]
        for at in np.sort(likely.at[likely.upright == upright]):
            for place in at + np.array(ASIDE_PIX):
                apart = np.abs(old - place).min(initial=np.inf) > 3 * APART_PIX
                if apart and not (out and out[-1][0] == upright and place < out[-1][1] + APART_PIX):
                    out.append((upright, float(place)))
    return out


def _evidence(stars: _Stars, waves: Waves, calm: tuple[np.ndarray, np.ndarray]) -> float:
    """Return ln of the probability of the blurs, but for a constant, were waves as likely as their prior.

    Of linear models with normal priors (MacKay 1992, Neural Comp. 4, 415): more freedom costs by itself.
    """
    steps = waves.borders.beyond(*stars.place).T
    widest = np.concatenate([np.ones(stars.smooth.shape[1]), np.full(steps.shape[1], STEP), _prior(waves)])
    out = 0.0
    for value, sigma, shown in zip(*calm, _shown(stars, waves), strict=True):
        design = np.concatenate([stars.smooth, steps, shown.T], axis=1) / sigma[:, None]
        root = np.linalg.cholesky(design.T @ design + np.diag(widest**-2))
        half = solve_triangular(root, design.T @ (value / sigma), lower=True)
        out += 0.5 * float(half @ half) - float(np.log(np.diag(root) * widest).sum())
    return out


def _blurs(sample: Sample, mean: np.ndarray, core: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (by how much each star is blurred along x and y, errors) [2, k], its flux and place free."""
    down, along = np.gradient(mean)
    design = np.stack([mean, along, down, *patterns(mean)])[:, core]
    weight = sample.known[:, core] / stamp_variance(sample, mean[core])
    off = sample.stamps[:, core] - mean[core].astype(np.float32)
    gram = np.einsum("kp,ap,bp->kab", weight, design, design, optimize=True)
    gram[:, np.arange(5), np.arange(5)] *= 1 + 1e-6
    covariance = np.linalg.inv(gram)
    found = np.einsum("kab,kb->ka", covariance, (weight * off) @ design.T)
    return found[:, 3:].T, np.sqrt(np.einsum("kaa->ka", covariance)[:, 3:]).T
