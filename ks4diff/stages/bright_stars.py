"""Bright stars: their light beyond the cores, which PSFs of fainter stars hold too little of, or too much."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.signal import fftconvolve

from ks4diff.numerics.halos import ring_means
from ks4diff.numerics.moved_psf import moved_psfs
from ks4diff.numerics.psf_grid import taper
from ks4diff.numerics.psf_modes import calm_wings, radii
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match
from ks4diff.products.psf import PsfField
from ks4diff.stages.full_stars import cutouts, full_stars, noises

BRIGHT = 300.0  # flux over the sky's noise: of fainter stars' wings less than that noise is ever wrong
MOST = 60  # of each kind, unsaturated and saturated, that show the wings
FEWEST = 8  # with fewer nothing is told from their neighbours
SCATTER = 3e-6  # of the flux: by which wings scatter from star to star, by what shines next to them ...
PIXELS = 100  # ... in an area of so many pixels, over which wings are smoothed
MODE_PRIOR = 1.5e-5  # of a mode's wings, for a core that changes by its own peak: a third of a PSF's wings
CLIP = 3.5  # sigma: what shines next to them
MODEL_ERROR = 0.1  # of the light in a pixel that the PSF is believed to before its wings are known
# FWHM: within the first a PSF stays as it is, beyond the second all is as bright stars show
CORE, BEYOND = 1.5, 2.5
FADE = 0.85  # of the half-width: where stamps begin to fade, and the halo begins
REACH = 2.5  # half-widths of a stamp: to there halos are subtracted


class BrightStars(NamedTuple):
    """What `subtract_patch` has to know of bright stars.

    ``stars`` float64 [3, n]: x, y, flux in science counts; the first ``n_full`` are saturated. ``wings``
    (science, template): float32 [1 + m, n, n], what comes to a PSF's mean and modes beyond the core.
    ``halo`` float64 [reach + 1]: what the science image has beyond the stamps more than the template, per
    flux, by radius in pixels.
    """

    stars: np.ndarray
    n_full: int
    wings: tuple[np.ndarray, np.ndarray]
    halo: np.ndarray

    @property
    def full(self) -> np.ndarray:
        """The saturated ones."""
        return self.stars[:, : self.n_full]


def psf_with_wings(field: PsfField, wings: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return the PSF of bright stars at a pixel, float32 [n, n]; its core is that of `PsfField.at`."""
    amplitudes = np.append(1.0, field.amplitudes.at(np.array([x]), np.array([y]))[:, 0])
    return field.at(x, y) + np.einsum("m,mij->ij", amplitudes, wings).astype(np.float32)


def bright_stars(chip: CalibratedChip, template: AlignedTemplate, match: Match) -> BrightStars:
    """Return the bright stars of a pair, and what they show that their PSFs do not.

    PSFs are measured from all stars alike, so that their wings are noise beyond some 3 FWHM; and a median
    stack's wings are a mean's where they are below its exposures' noise, and a median's around bright stars:
    up to half as bright. Far out the brightest stars alone tell, weighted by flux². Their cores count for
    nothing: PSFs keep theirs and with it every scale of fluxes. What one half of the stars shows is taken
    as far as it is what the other half shows. In a crowded field, where the light next to a star is that of
    others, and where there are few bright stars, there is nothing to tell: no star is returned.
    """
    parts = chip, template
    half = min(part.psf.mean.shape[0] for part in parts) // 2
    reach = int(REACH * half)
    nothing = tuple(_no_wings(part.psf) for part in parts)
    none = BrightStars(np.empty((3, 0)), 0, nothing, np.zeros(reach + 1))
    if any(part.noise.method != "sky" for part in parts):
        return none
    full, whole = full_stars(chip, template, match), _unsaturated(chip, template)
    stars, n_full = np.concatenate([full, whole], axis=1), full.shape[1]
    shown = np.concatenate([_brightest(full), n_full + _brightest(whole)])
    seen = [_Seen.of(chip, template, match, stars, k, reach) for k in shown.tolist()]
    seen = [star for star in seen if star.alone.any()]
    if len(seen) < FEWEST:
        return none
    wings = tuple(_wings(part.psf, side, seen) for side, part in enumerate(parts))
    return BrightStars(stars, n_full, wings, _halo(parts, wings, seen, half, reach))


def _no_wings(field: PsfField) -> np.ndarray:
    return np.zeros((1 + len(field.modes), *field.mean.shape), dtype=np.float32)


def _brightest(stars: np.ndarray) -> np.ndarray:
    return np.argsort(-stars[2], kind="stable")[:MOST]


def _unsaturated(chip: CalibratedChip, template: AlignedTemplate) -> np.ndarray:
    """Return [3, n]: the bright stars of the science image's list that are flagged in neither image."""
    s = chip.stars
    sigma = chip.noise.sigma / float(np.sqrt((chip.psf.stamp.astype(np.float64) ** 2).sum()))
    rows, columns = chip.image.shape
    i, j = np.rint(s.x).astype(np.int64), np.rint(s.y).astype(np.int64)
    bright = (s.flux > BRIGHT * sigma) & (i >= 0) & (i < columns) & (j >= 0) & (j < rows)
    at = j[bright], i[bright]
    bright[bright] = (chip.image.flags[at] | template.image.flags[at]) == 0
    return np.stack([s.x[bright], s.y[bright], s.flux[bright]]).astype(np.float64)


class _Seen(NamedTuple):
    """A bright star: its place and flux, and both images around its pixel.

    ``images`` two [n, n] and ``noise`` as of `full_stars`; ``alone`` bool: good, and with more of its light
    than of another bright star; ``radius`` of the pixels from the star.
    """

    x: float
    y: float
    flux: float
    images: tuple[np.ndarray, np.ndarray]
    alone: np.ndarray
    noise: np.ndarray
    radius: np.ndarray

    @classmethod
    def of(cls, chip, template, match, stars: np.ndarray, k: int, reach: int) -> _Seen:
        x, y, flux = stars[:, k].tolist()
        i, j = round(x), round(y)
        science, reference, good = cutouts(chip, template, match, (i, j), reach)
        offset = np.arange(-reach, reach + 1)
        radius = np.hypot(offset[:, None] + j - y, offset + i - x)
        near = np.hypot(stars[0] - x, stars[1] - y) < 2.5 * reach
        near[k] = False
        for other in stars[:, near].T:
            # light falls with r⁻³: where another's is a tenth of it, nothing is told
            away = np.hypot(offset[:, None] + j - other[1], offset + i - other[0])
            good &= (away + 3) ** 3 * flux > 10 * (radius + 3) ** 3 * other[2]
        return cls(x, y, flux, (science, reference), good, noises(chip, template, match, x, y), radius)

    def beyond_psf(self, field: PsfField, wings: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ([n, n] what an image has beyond this star's PSF, bool: the pixels that tell), as counts."""
        image, (sky, gain) = self.images[side], self.noise[side]
        n = field.mean.shape[0]
        psf = psf_with_wings(field, wings, self.x, self.y)
        psf = moved_psfs(psf, *(np.array([v - round(v)]) for v in (self.x, self.y)), n)[0]
        light = np.zeros(image.shape)
        middle = len(image) // 2
        part = slice(middle - n // 2, middle + n // 2 + 1)
        light[part, part] = self.flux * psf
        off = image - light
        sigma2 = sky + np.maximum(light, 0) / gain + (MODEL_ERROR * light) ** 2
        return off, self.alone & (off**2 < CLIP**2 * sigma2)


def _wings(field: PsfField, side: int, seen: list[_Seen]) -> np.ndarray:
    """Return what the stars' wings have beyond the field's mean and modes, float32 [1 + m, n, n]."""
    n = field.mean.shape[0]
    outside = radii(n) > CORE * field.fwhm_pix
    stamps, known, weight, place = [], [], [], []
    none = _no_wings(field)
    for star in seen:
        off, used = star.beyond_psf(field, none, side)
        low = (len(off) - n) // 2
        part = slice(low, low + n)
        stamps.append((off[part, part] / star.flux)[outside])
        known.append(used[part, part][outside])
        weight.append(1 / (star.noise[side][0] / star.flux**2 / PIXELS + SCATTER**2))
        place.append((star.x, star.y))
    x, y = np.array(place).T
    design = np.concatenate([np.ones((1, len(x))), field.amplitudes.at(x, y)])
    weight = np.array(weight)[:, None] * np.array(known)
    stamps = np.array(stamps)
    here = np.concatenate([field.mean[None], field.modes])[:, outside]
    beyond = 1 - taper(n, CORE * field.fwhm_pix, BEYOND * field.fwhm_pix)
    fade = taper(n, FADE * (n // 2), n // 2 + 0.5)

    def shown(some: slice) -> np.ndarray:
        found = np.zeros((len(design), n, n))
        found[:, outside] = _regressed(stamps[some], weight[some], design[:, some], here)
        return np.stack([calm_wings(one * beyond, field.fwhm_pix) * fade for one in found])

    even, odd = slice(0, None, 2), slice(1, None, 2)
    share = [
        _agreed(stamps[some], weight[some], design[:, some].T @ shown(others)[:, outside])
        for some, others in ((even, odd), (odd, even))
    ]
    return (np.clip(np.mean(share), 0, 1) * shown(slice(None))).astype(np.float32)


def _regressed(stamps: np.ndarray, weight: np.ndarray, design: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Return [1 + m, p]: what comes to mean and modes ``here`` so that they tell the stamps [k, p] best.

    Least squares pixel by pixel; a mode's wings, this and what is here, are 0 within `MODE_PRIOR`.
    """
    gram = np.einsum("kp,ik,jk->pij", weight, design, design, optimize=True)
    told = np.einsum("kp,ik,kp->pi", weight, design, stamps, optimize=True)
    prior = np.append(1.0, np.full(len(design) - 1, MODE_PRIOR**-2))
    told[:, 1:] -= prior[1:] * here[1:].T
    return np.linalg.solve(gram + np.diag(prior), told[:, :, None])[:, :, 0].T


def _agreed(stamps: np.ndarray, weight: np.ndarray, model: np.ndarray) -> float:
    """Return the factor at which a model [k, p] tells the stamps best."""
    return float((weight * stamps * model).sum() / max(float((weight * model**2).sum()), 1e-30))


def _halo(parts, wings, seen: list[_Seen], half: int, reach: int) -> np.ndarray:
    """Return what the science image has more than the template from where stamps fade, float64 [reach + 1].

    Of both images, each seen through the other's PSF, lest neighbours that a clip catches in the sharper one
    alone be taken for a halo.
    """
    means, weights = [], []
    for star in seen:
        off = [
            np.where(star.alone, star.beyond_psf(part.psf, wing, side)[0], 0)
            for side, (part, wing) in enumerate(zip(parts, wings, strict=True))
        ]
        psfs = [part.psf.at(star.x, star.y) for part in parts]
        left = fftconvolve(off[0], psfs[1], mode="same") - fftconvolve(off[1], psfs[0], mode="same")
        usual = 1.4826 * float(np.median(np.abs(left[star.alone])))
        used = star.alone & (np.abs(left) < CLIP * usual)
        mean, count = ring_means(left / star.flux, used, star.radius.astype(np.int64), reach + 1)
        sky = star.noise[:, 0].sum() / star.flux**2
        means.append(mean)
        weights.append(np.where(count > 0, 1 / (sky / np.maximum(count, 1) + SCATTER**2), 0.0))
    means, weights = np.array(means), np.array(weights)
    every, *parts = (
        _weighted(means[some], weights[some]) for some in (slice(None), slice(0, None, 2), slice(1, None, 2))
    )
    radius = np.arange(reach + 1)
    rise = np.clip((radius - FADE * half) / ((1 - FADE) * half), 0, 1)
    fall = np.clip((reach - radius) / (0.2 * reach), 0, 1)
    share = _agreed(parts[0], rise * fall, parts[1])
    back = _agreed(parts[1], rise * fall, parts[0])
    return np.clip(0.5 * (share + back), 0, 1) * every * rise * fall


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights * values).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-30)
