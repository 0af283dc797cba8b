"""How much of each mode of a PSF is where: steps at borders, polynomials, and averages of stars near by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.polynomial import design as terms
from ks4diff.numerics.psf_borders import Borders
from ks4diff.numerics.psf_modes import local_means, polynomial
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.stages.psf_clean import stamp_variance
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_stars import Sample

SCALES_PIX = (300.0, 130.0)  # sigma of the local averages
ENOUGH = 6  # stars of a region whose mean stamp is looked at
WANDER = 0.005  # of the peak: what sub-pixel sampling adds to the scatter between stars


@dataclass(frozen=True, kw_only=True)
class Amplitudes:
    """Modes' strengths at the stars, float64 [m, k], and what they are elsewhere, region by region.

    ``coarse`` holds for each region float64 [2, m, rows, columns]: strengths and variances as they would be
    were the whole image in it.
    """

    at_stars: np.ndarray
    coarse: dict[int, np.ndarray]
    borders: Borders

    def only(self, keep: np.ndarray) -> Amplitudes:
        """Return the same with the values at some of the stars."""
        return replace(self, at_stars=self.at_stars[:, keep])

    def drawn(self, config: PsfConfig) -> np.ndarray:
        """Return float64 [m, rows, columns]: strengths over the image.

        A step is drawn as sharp as the nodes are dense, which they are only where there are borders.
        """
        if len(self.coarse) == 1:
            return next(iter(self.coarse.values()))[0]
        shape = self.borders.shape
        nodes = Cells(values=np.zeros(cell_grid(shape, config.border_node_pix)), shape=shape)
        x, y = (a.ravel() for a in nodes.middles())
        return self._at(0, x, y).reshape(-1, *nodes.values.shape)

    def variance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float64 [m, n]: the variances of the strengths at pixels."""
        return self._at(1, x, y)

    def _at(self, which: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = _nearest_known(self.borders.region(x, y), (x, y), set(self.coarse))
        out = np.zeros((len(self.at_stars), len(x)))
        for r, values in self.coarse.items():
            mine = np.flatnonzero(nearest == r)
            out[:, mine] = Cells(values=values[which], shape=self.borders.shape).at(x[mine], y[mine])
        return out


def _nearest_known(region: np.ndarray, place, known: set[int]) -> np.ndarray:
    """Return the regions of points, those without stars replaced by that of the nearest point with some."""
    some = np.isin(region, list(known))
    if some.all() or not some.any():
        return region
    out = region.copy()
    _, nearest = cKDTree(np.stack(place, axis=1)[some]).query(np.stack(place, axis=1)[~some])
    out[~some] = region[some][nearest]
    return out


def with_regions(amplitudes: Amplitudes, sample: Sample) -> Amplitudes:
    """Return the amplitudes and, one more for each region of `ENOUGH` stars, 1 in it and 0 elsewhere.

    Their modes show what a region's stars have in common beyond the other modes: those come from noisy
    amplitudes, which makes steps too small, and from few patterns. They are about the mean star too.
    """
    region, many = np.unique(sample.region, return_counts=True)
    if len(region) == 1:
        return amplitudes
    own = region[many >= ENOUGH]
    inside = (sample.region == own[:, None]) * 1.0
    middle = inside.mean(axis=1)
    coarse = {}
    for r, values in amplitudes.coarse.items():
        new = np.zeros((2, len(own), *values.shape[2:]))
        new[0] += ((own == r) - middle)[:, None, None]
        coarse[r] = np.concatenate([values, new], axis=1)
    at_stars = np.concatenate([amplitudes.at_stars, inside - middle[:, None]])
    return replace(amplitudes, at_stars=at_stars, coarse=coarse)


def no_amplitudes(sample: Sample, borders: Borders) -> Amplitudes:
    """Return what belongs to a PSF without modes."""
    regions = np.unique(sample.region).tolist()
    return Amplitudes(
        at_stars=np.empty((0, len(sample.x))),
        coarse={region: np.empty((2, 0, 1, 1)) for region in regions},
        borders=borders,
    )


def fit_amplitudes(
    sample: Sample, mean: np.ndarray, modes: np.ndarray, borders: Borders, config: PsfConfig
) -> Amplitudes:
    """Return the amplitudes of ``modes`` [m, n, n] over the image from their fit to every star.

    Each mode's is a polynomial with a step at every border, and what the stars near by, on the same side of
    all borders, show beyond it, shrunk by significance.
    """
    shape = borders.shape
    if len(modes) == 0:
        return no_amplitudes(sample, borders)
    fit, error = _fitted(sample, mean, modes)
    nodes = Cells(values=np.zeros(cell_grid(shape, config.node_pix)), shape=shape)
    grid = nodes.values.shape
    size = np.array(shape[::-1])[:, None] / 2
    place = np.stack([sample.x, sample.y])
    node = np.stack([a.ravel() for a in nodes.middles()]) / size - 1
    steps = borders.beyond(*place).T
    own = {int(r): np.flatnonzero(sample.region == r) for r in np.unique(sample.region)}
    around = {r: [_near(nodes, place[:, of], sigma) for sigma in SCALES_PIX] for r, of in own.items()}
    coarse = {r: np.zeros((2, len(modes), node.shape[1])) for r in own}
    at_stars = np.zeros(fit.shape)
    for a, (value, sigma) in enumerate(zip(fit, error, strict=True)):
        order, coefficients, covariance = polynomial(place / size - 1, value, sigma, config.max_order, steps)
        held = np.concatenate([terms(*(place / size - 1), order), steps], axis=1)
        at_stars[a] = held @ coefficients
        smooth = terms(*node, order)
        for r, of in own.items():
            design = np.concatenate([smooth, np.tile(steps[of[0]], (len(smooth), 1))], axis=1)
            # where no star is, a polynomial goes no farther than at the stars
            coarse[r][0, a] = np.clip(design @ coefficients, at_stars[a].min(), at_stars[a].max())
            coarse[r][1, a] = ((design @ covariance) * design).sum(axis=1)
        for scale in range(len(SCALES_PIX)):
            rest = value - at_stars[a]
            wide = sigma * max(1.4826 * np.median(np.abs(rest / sigma)), 1.0)
            # a galaxy left over must not bend the map
            rest = np.clip(rest, -4 * wide, 4 * wide)
            for r, of in own.items():
                means = np.stack(local_means(around[r][scale], rest[of], wide[of]))
                coarse[r][:, a] += means.reshape(2, -1)
                at_stars[a, of] += Cells(values=means[0], shape=shape).at(*place[:, of])
    # about the mean star, so that the mean of the regression is a PSF and not an extrapolation
    middle = at_stars.mean(axis=1)
    for values in coarse.values():
        values[0] -= middle[:, None]
    return Amplitudes(
        at_stars=at_stars - middle[:, None],
        coarse={r: values.reshape(2, -1, *grid) for r, values in coarse.items()},
        borders=borders,
    )


def _fitted(sample: Sample, mean: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 (amplitudes, errors) [m, k]: each star's own, its flux left free."""
    m = len(modes)
    inside = (modes != 0).any(axis=0)
    v = modes[:, inside]
    off = sample.stamps[:, inside] - mean[inside].astype(np.float32)
    weight = sample.known[:, inside] / stamp_variance(sample, mean[inside])
    design = np.concatenate([mean[None, inside], v])
    gram = np.einsum("kp,ap,bp->kab", weight, design, design, optimize=True)
    gram[:, np.arange(m + 1), np.arange(m + 1)] *= 1 + 1e-6
    covariance = np.linalg.inv(gram)
    fit = np.einsum("kab,kb->ka", covariance, (weight * off) @ design.T)[:, 1:].T
    error2 = np.einsum("kaa->ka", covariance)[:, 1:].T
    return fit, np.sqrt(error2 + WANDER**2)


def _near(nodes: Cells, stars: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 ([rows, k], [columns, k]): Gaussians of the distance of nodes to stars along y and x.

    0 beyond 3 sigma.
    """
    nx, ny = nodes.middles()
    down, across = (
        np.exp(-0.5 * ((at[:, None] - star) / sigma) ** 2)
        for at, star in ((ny[:, 0], stars[1]), (nx[0], stars[0]))
    )
    down[down < 0.011] = 0
    across[across < 0.011] = 0
    return down, across
