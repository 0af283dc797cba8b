"""The flux scale over a chip from the flux ratios of its stars: a smooth field, cells, amplifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ks4diff.numerics import polynomial
from ks4diff.numerics.scatter import excess_scatter
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.stages.star_photometry import StarRatios

NODE_PIX = 256  # of the scale's map
CHIP_PIX = 9232.0


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How much structure the stars are allowed to show."""

    max_degree: int = 3  # optics and illumination; what is finer is left to the cells
    stars_per_term: int = 12  # of the polynomial
    slope: float = 0.02  # of the response over half a whole chip, believed where stars prove no polynomial
    gain_per_term: float = 4.0  # of chi²: a term of 2 sigma is kept
    # change of a ratio per 1 / (S/N), at most about: where one exposure's PSF is the highest, a median stack
    # holds the larger of two others, 0.56 sigma too much, where it is the lowest as much too little
    noise_term: float = 1.0
    reference_snr: float = 300.0  # the scale is that of stars of this S/N, of which PSFs are measured too
    clip_sigma: float = 3.5  # variables and galaxies are farther out
    tuning: float = 1.5  # Huber's: 96 % as good as the mean where all are normal
    least_scatter: float = 0.003  # of one star, fraction: pixel response and its residuals under a PSF
    systematic: float = 0.002  # fraction: light beyond the stamps
    systematic_seeing: float = 0.004  # more of it per unit of ln(FWHM ratio): 0.003 on 20 simulated chips
    stars_per_cell: int = 8  # fewer say nothing that the polynomial does not
    amplifier_sigma: float = 4.0  # a factor less significant is none
    # of what is left: then every amplifier has a factor, drawn towards 1; by chance 1 chip in 700 shows it
    joint_sigma: float = 3.0
    stars_per_amplifier: int = 10
    rounds: int = 12


@dataclass(frozen=True, kw_only=True)
class ScaleField:
    """The scale and its error as a fraction, cells; factor and error of each amplifier; stars kept.

    ``stamp_error`` is what of the error the PSFs' stamps make; see `Match`.
    """

    scale: Cells
    stamp_error: float
    error: Cells
    factors: tuple[tuple[float, float], ...]
    scatter: float  # of one star beyond its noise, fraction
    n_stars: int


def scale_field(
    stars: StarRatios,
    shape: tuple[int, int],
    amplifiers: Sequence[tuple[int, int, int, int]],
    config: ScaleConfig,
    *,
    width_ratio: float = 1.0,
    light_error: float = 0.0,
) -> ScaleField:
    """Return the scale over an image of ``shape`` (rows, columns) from at least 3 stars.

    A polynomial of the degree that the stars hold, by robust weighted regression; factors of ``amplifiers``
    (boxes x0, x1, y0, y1) that stand out of it, of all where they differ together; then each cell of 1024 px
    goes as far from the polynomial as its own stars prove, w = t² / (t² + e²) with t² the variance that cells
    show beyond their errors e. The map's own cells are of 256 px.
    Errors hold the star-to-star scatter, that of the polynomial, and what the two PSFs' stamps may lack
    differently: more the less alike the images are (``width_ratio``, of their FWHM), and the noise of their
    light (``light_error``, a fraction).
    """
    middle = float(np.median(stars.ratio))
    y, noise = stars.ratio / middle - 1, stars.error / middle
    u, v = 2 * stars.x / shape[1] - 1, 2 * stars.y / shape[0] - 1
    faint = 1 / stars.snr - 1 / config.reference_snr
    degree = _degree((u, v), y, (noise, faint), config)
    known = np.append(np.zeros(polynomial.n_terms(max(degree, 1))), config.noise_term**-2)
    if degree == 0:
        # not a constant: that would state the error of one
        known[1:3] = (config.slope * max(shape) / CHIP_PIX) ** -2.0
        degree = 1
    n = polynomial.n_terms(degree)
    design = np.concatenate([polynomial.design(u, v, degree), faint[:, None]], axis=1)
    strips = _membership(stars, amplifiers, config)
    fit, chosen = _with_amplifiers(design, y, noise, strips, config, known)
    factors = _factors(fit, chosen, n + 1, strips, len(amplifiers))
    grid = cell_grid(shape, CELL_PIX)
    cells = Cells(values=np.zeros(grid), shape=shape)
    own = _own_cells(y - fit.model, fit, cells.cell_of(stars.x, stars.y), grid, config)
    # finer than the cells: a map is level beyond its outermost middles, a polynomial is not
    fine = cell_grid(shape, NODE_PIX)
    mx, my = (a.ravel() for a in Cells(values=np.zeros(fine), shape=shape).middles())
    at = polynomial.design(2 * (mx + 0.5) / shape[1] - 1, 2 * (my + 0.5) / shape[0] - 1, degree)
    smooth = at @ fit.solution[:n]
    smooth_error = np.sqrt(np.einsum("ij,jk,ik->i", at, fit.covariance[:n, :n], at))
    own, error = (Cells(values=part.reshape(grid), shape=shape).at(mx, my) for part in own)
    value = (1 + smooth + own) * middle
    stamps = np.hypot(config.systematic, config.systematic_seeing * np.log(width_ratio))
    stamps = np.hypot(stamps, light_error)
    total = np.sqrt(smooth_error**2 + error**2 + stamps**2)
    return ScaleField(
        scale=Cells(values=value.reshape(fine).astype(np.float32), shape=shape),
        stamp_error=float(stamps),
        error=Cells(values=total.reshape(fine).astype(np.float32), shape=shape),
        factors=factors,
        scatter=fit.scatter,
        n_stars=int(fit.keep.sum()),
    )


def _with_amplifiers(
    design: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    strips: np.ndarray,
    config: ScaleConfig,
    known: np.ndarray,
) -> tuple[_Fit, list[int]]:
    """Return (fit, the amplifiers that have a factor in it, after the terms of ``design``)."""
    count = strips.shape[1]
    fit = _fitted(design, y, noise, config, known)
    chosen: list[int] = []
    while len(chosen) < count - 1:
        k = _most_significant(y - fit.model, fit, strips, chosen, config)
        if k is None:
            break
        chosen.append(k)
        prior = np.append(known, np.zeros(len(chosen)))
        fit = _fitted(np.concatenate([design, strips[:, chosen]], axis=1), y, noise, config, prior)
    spread, evidence = _spread(y, np.concatenate([design, strips[:, chosen]], axis=1), fit, strips)
    if 2 * evidence > config.joint_sigma**2:
        chosen = [k for k in range(count) if strips[:, k].any()]
        prior = np.append(known, np.full(len(chosen), spread**-2))
        fit = _fitted(np.concatenate([design, strips[:, chosen]], axis=1), y, noise, config, prior)
    return fit, chosen


@dataclass(frozen=True, kw_only=True)
class _Fit:
    solution: np.ndarray
    covariance: np.ndarray
    model: np.ndarray
    sigma: np.ndarray  # of each star, scatter included
    scatter: float
    keep: np.ndarray


def _degree(place, y: np.ndarray, errors: tuple[np.ndarray, np.ndarray], config: ScaleConfig) -> int:
    """Return the degree that the stars hold and ask for.

    One more is taken while it lowers the robust chi² by ``gain_per_term`` for each term that it adds.
    """
    noise, faint = errors
    chosen, best = 0, np.inf
    for degree in range(config.max_degree + 1):
        terms = polynomial.n_terms(degree)
        if degree and len(y) < config.stars_per_term * terms:
            break
        design = np.concatenate([polynomial.design(*place, degree), faint[:, None]], axis=1)
        known = np.append(np.zeros(terms), config.noise_term**-2)
        fit = _fitted(design, y, noise, config, known)
        if degree == 0:
            sigma = fit.sigma
        pull = np.minimum(np.abs(y - fit.model) / sigma, config.clip_sigma)
        cost = float((pull**2).sum()) + config.gain_per_term * terms
        if cost < best:
            chosen, best = degree, cost
    return chosen


def _fitted(
    design: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    config: ScaleConfig,
    prior: np.ndarray,
) -> _Fit:
    """Return a robust weighted fit whose stars scatter by their noise and as much more as they show.

    ``prior`` is the inverse variance about 0 that each term is known with beforehand.
    """
    keep = np.ones(len(y), dtype=bool)
    solution = np.zeros(design.shape[1])
    scatter = max(1.4826 * float(np.median(np.abs(y))), config.least_scatter)
    for _ in range(config.rounds):
        residual = y - design @ solution
        sigma = np.hypot(noise, scatter)
        pull = np.abs(residual) / sigma
        keep = pull < config.clip_sigma
        if keep.sum() <= design.shape[1]:
            keep = pull <= np.median(pull)
        # Huber
        weight = np.where(keep, np.minimum(1.0, config.tuning / np.maximum(pull, 1e-9)), 0.0) / sigma**2
        normal = design.T @ (weight[:, None] * design) + 1e-9 * np.diag((weight[:, None] * design**2).sum(0))
        normal += np.diag(prior)
        covariance = np.linalg.inv(normal)
        solution = covariance @ (design.T @ (weight * y))
        scatter = max(excess_scatter(y - design @ solution, noise), config.least_scatter)
    # outliers that Huber holds down leave the errors of the mean a tenth larger than the weights say
    return _Fit(
        solution=solution,
        covariance=1.1 * covariance,
        model=design @ solution,
        sigma=np.hypot(noise, scatter),
        scatter=scatter,
        keep=keep,
    )


def _membership(stars: StarRatios, amplifiers, config: ScaleConfig) -> np.ndarray:
    """Return [stars, amplifiers]: 1 where a star lies on it, 0 for amplifiers with too few."""
    out = np.zeros((len(stars), len(amplifiers)))
    for k, (x0, x1, y0, y1) in enumerate(amplifiers):
        on = (stars.x > x0 - 0.5) & (stars.x < x1 - 0.5) & (stars.y > y0 - 0.5) & (stars.y < y1 - 0.5)
        if on.sum() >= config.stars_per_amplifier:
            out[:, k] = on
    return out


def _mean(residual, weight) -> tuple[float, float]:
    total = weight.sum()
    return float((weight * residual).sum() / total), float(1 / np.sqrt(total))


def _most_significant(residual, fit: _Fit, strips: np.ndarray, chosen: list[int], config) -> int | None:
    """Return the amplifier, not chosen yet, whose stars stand off most; None where none does."""
    best, found = config.amplifier_sigma, None
    for k in range(strips.shape[1]):
        on = (strips[:, k] > 0) & fit.keep
        if k in chosen or not on.any():
            continue
        mean, error = _mean(residual[on], 1 / fit.sigma[on] ** 2)
        if abs(mean) > best * error:
            best, found = abs(mean) / error, k
    return found


def _spread(y: np.ndarray, design: np.ndarray, fit: _Fit, strips: np.ndarray) -> tuple[float, float]:
    """Return (spread of all amplifiers' factors, by how much it raises ln likelihood) beyond ``design``.

    Neighbours that all differ look like a slope, so that none stands out alone: random effects, the design's
    own terms free, their restricted likelihood in closed form.
    """
    weight = fit.keep / fit.sigma**2
    wz = weight[:, None] * strips
    wx = weight[:, None] * design
    gram = design.T @ wx
    gram[np.diag_indices(len(gram))] *= 1 + 1e-9
    project = np.linalg.solve(gram, np.concatenate([wx.T @ strips, (wx.T @ y)[:, None]], axis=1))
    a = strips.T @ wz - (wx.T @ strips).T @ project[:, :-1]
    b = wz.T @ y - (wx.T @ strips).T @ project[:, -1]
    best = (0.0, 0.0)
    for tau in np.geomspace(0.002, 0.2, 21).tolist():
        inner = np.eye(len(a)) + tau**2 * a
        gain = 0.5 * tau**2 * float(b @ np.linalg.solve(inner, b)) - 0.5 * float(np.linalg.slogdet(inner)[1])
        if gain > best[1]:
            best = (tau, gain)
    return best


def _factors(fit: _Fit, chosen: list[int], n: int, strips, count: int) -> tuple[tuple[float, float], ...]:
    """Return (factor, error) of every amplifier: 1 where none is significant."""
    out = []
    for k in range(count):
        if k in chosen:
            at = n + chosen.index(k)
            out.append((float(1 + fit.solution[at]), float(np.sqrt(fit.covariance[at, at]))))
            continue
        on = (strips[:, k] > 0) & fit.keep
        out.append((1.0, float(1 / np.sqrt((1 / fit.sigma[on] ** 2).sum())) if on.any() else float("nan")))
    return tuple(out)


def _own_cells(residual, fit: _Fit, at, grid, config) -> tuple[np.ndarray, np.ndarray]:
    """Return (deviation from the polynomial, its error) per cell, flat."""
    index = at[0] * grid[1] + at[1]
    deviation, error = np.zeros(grid[0] * grid[1]), np.full(grid[0] * grid[1], np.inf)
    for k in range(len(deviation)):
        on = (index == k) & fit.keep
        if on.sum() >= config.stars_per_cell:
            pull = np.abs(residual[on]) / fit.sigma[on]
            weight = np.minimum(1.0, config.tuning / np.maximum(pull, 1e-9)) / fit.sigma[on] ** 2
            deviation[k], error[k] = _mean(residual[on], weight)
    known = np.isfinite(error)
    spread2 = 0.0
    if known.sum() >= 4:
        inverse = 1 / error[known] ** 2
        spread2 = max(float((deviation[known] ** 2 - error[known] ** 2) @ inverse / inverse.sum()), 0.0)
    with np.errstate(invalid="ignore"):
        share = np.where(known, spread2 / (spread2 + error**2), 0.0)
        left = np.where(known, np.sqrt(share) * np.where(known, error, 0.0), np.sqrt(spread2))
    return share * deviation, left
