"""How star stamps change over an image: modes above the noise, their smooth amplitudes, calm wings."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ks4diff.numerics.polynomial import design as terms

EDGE_FACTOR = 1.1  # a mode must beat the largest of pure noise by this: one largest value scatters by 3 %
SHRINK = 2.5  # noise powers taken off a local amplitude's power: none survives at 1.6 sigma
LEAST_LOCAL = 2.5  # stars in effect of a local average: one galaxy alone may look like a change
POLYNOMIAL_GAIN = 3.0  # by which chi² per further term must fall to raise the order


def radii(n: int) -> np.ndarray:
    """Return float64 [n, n]: the distance of each pixel from the middle one."""
    offset = np.arange(n) - n // 2
    return np.hypot(offset[:, None], offset[None, :])


def calm_wings(stamp: np.ndarray, fwhm: float) -> np.ndarray:
    """Return a stamp [n, n] with its wings smoothed: none within 1.5 FWHM, 3 px from 3.5 FWHM on.

    What is left after the mean profile with radius is smoothed, by a Gaussian that grows with radius, so
    that a steep profile stays and ellipticity and spikes do. Linear in the stamp.
    """
    radius = radii(stamp.shape[0])
    ring = np.rint(radius).astype(int)
    count = np.maximum(np.bincount(ring.ravel()), 1)
    mean = np.bincount(ring.ravel(), stamp.ravel()) / count
    middle = np.bincount(ring.ravel(), radius.ravel()) / count
    order = np.argsort(middle)
    profile = np.interp(radius, middle[order], mean[order])
    rest = stamp - profile
    # 0 within 1.5 FWHM, where the profile is too steep for rings one pixel wide
    outside = rest * np.clip(radius / fwhm - 1.0, 0.0, 1.0)
    level = np.clip(1.5 * (radius / fwhm - 1.5), 0.0, 3.0)
    out = rest.copy()
    previous = rest
    for k, sigma in enumerate((1.0, 2.0, 3.0)):
        smooth = ndimage.gaussian_filter(outside, sigma, mode="nearest")
        share = np.clip(level - k, 0.0, 1.0)
        out = np.where(share > 0, previous * (1 - share) + smooth * share, out)
        previous = smooth
    return profile + out


def change_basis(psf: np.ndarray, fwhm: float) -> np.ndarray:
    """Return float64 [q, n, n]: the smooth patterns in which a PSF may change.

    Gauss-Hermite functions to order 5 of the PSF's width; far fewer than pixels, so that far less noise hides
    a change. The last three are the PSF and its two gradients, in which a star's flux and place change.
    """
    n = psf.shape[0]
    u = (np.arange(n) - n // 2) / (fwhm / 2.3548)
    lines = [np.polynomial.hermite_e.HermiteE.basis(k)(u) * np.exp(-(u**2) / 4) for k in range(6)]
    shapes = [np.outer(lines[d - j], lines[j]) for d in range(6) for j in range(d + 1)]
    down, along = np.gradient(psf)
    return np.stack([*shapes, psf, down, along])


def modes_above_noise(
    halves: np.ndarray, basis: np.ndarray, place: np.ndarray, scale: np.ndarray, most: int
) -> np.ndarray:
    """Return float64 [m, p], orthonormal: the patterns in which groups of stars differ beyond noise.

    ``halves`` [2, g, p] holds means over the two halves of each group's stars, whitened to equal noise, which
    ``scale`` [g] did along groups; ``basis`` as `change_basis`, whitened too; ``place`` [2, g] in -1 .. 1.
    Half the halves' difference has the noise of half their sum and no signal: its largest singular value is
    the edge (Marchenko and Pastur's, measured instead of derived as resampled noise is correlated). First
    among changes that are polynomials of place, which have least noise, then group by group.
    """
    groups = halves.shape[1]
    if groups < 4:
        return np.empty((0, halves.shape[2]))
    nuisance, _ = np.linalg.qr(basis[-3:].T)
    free = basis[:-3] - (basis[:-3] @ nuisance) @ nuisance.T
    _, values, right = np.linalg.svd(free, full_matrices=False)
    patterns = right[values > 1e-3 * values[0]]
    signal, noise = (0.5 * (halves[0] + s * halves[1]) @ patterns.T for s in (1, -1))
    order = max(d for d in range(4) if d == 0 or groups >= (d + 1) * (d + 2))
    smooth, _ = np.linalg.qr(terms(*place, order) * scale[:, None])
    found = np.empty((0, len(patterns)))
    for rows in (smooth.T, np.eye(groups)):
        clear = np.eye(len(patterns)) - found.T @ found
        _, edge, _ = np.linalg.svd(rows @ noise @ clear, full_matrices=False)
        _, values, new = np.linalg.svd(rows @ signal @ clear, full_matrices=False)
        count = int((values > EDGE_FACTOR * edge[0]).sum())
        found = np.concatenate([found, new[:count]])[:most]
    return found @ patterns


def polynomial(
    place: np.ndarray, value: np.ndarray, error: np.ndarray, most: int, steps: np.ndarray | None = None
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return (order, coefficients, covariance) of the lowest polynomial that the values do not ask beyond.

    ``place`` [2, k] within -1 .. 1; ``value`` and ``error`` [k]; ``steps`` [k, s] are fitted with every
    order, their coefficients last. An order needs eight stars per term, and to lower chi² by three per term
    more than it costs, in units of chi² per degree of freedom.
    """
    best = None
    steps = np.empty((len(value), 0)) if steps is None else steps
    for order in range(most + 1):
        design = np.concatenate([terms(*place, order), steps], axis=1)
        k, t = design.shape
        if best is not None and k < 8 * t:
            break
        scaled = design / error[:, None]
        gram = scaled.T @ scaled
        gram[np.diag_indices(t)] *= 1 + 1e-9
        covariance = np.linalg.inv(gram)
        fit = covariance @ (scaled.T @ (value / error))
        chi2 = float((((value - design @ fit) / error) ** 2).sum())
        freedom = max(k - t, 1)
        # an order may need its neighbour to show: bowls do not lower chi² at order 1
        if best is None or best[3] - chi2 > POLYNOMIAL_GAIN * (t - best[4]) * max(chi2 / freedom, 1.0):
            best = (order, fit, covariance * max(chi2 / freedom, 1.0), chi2, t)
    return best[0], best[1], best[2]


def local_means(
    near: tuple[np.ndarray, np.ndarray], value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, its variance) [rows, columns]: values [k] averaged around nodes.

    A value counts at a node by ``near`` ([rows, k], [columns, k]), along y times along x. Each mean is shrunk
    towards 0 by its significance: the noise's share of the power of the 3 x 3 nodes around. Where fewer than
    `LEAST_LOCAL` stars share the weight, 0 with the variance of nothing known beyond it: 0.
    """
    down, across = near
    down2, across2 = down**2, across**2
    weight = 1 / error**2
    total = (down * weight) @ across.T
    many = total**2 / np.maximum((down2 * weight**2) @ across2.T, 1e-30)
    some = (total > 1e-3 * np.median(weight)) & (many >= LEAST_LOCAL)
    total = np.where(some, total, 1.0)
    mean = np.where(some, (down * (weight * value)) @ across.T / total, 0.0)
    variance = np.where(some, (down2 * weight) @ across2.T / total**2, 0.0)
    power = ndimage.uniform_filter(mean**2, 3, mode="nearest")
    noise = ndimage.uniform_filter(variance, 3, mode="nearest")
    share = np.clip(1 - SHRINK * noise / np.maximum(power, 1e-30), 0.0, 1.0)
    return share * mean, share * variance + (1 - share) * np.minimum(mean**2, variance)
