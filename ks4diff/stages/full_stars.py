"""Stars whose cores are saturated: where they are and how bright, by the light around the core."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.holes import listed
from ks4diff.numerics.moved_psf import moved_splines, splines
from ks4diff.numerics.pools import pool
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match
from ks4diff.products.image import PixelFlag
from ks4diff.stages.bleeds import patches
from ks4diff.stages.on_scale import science_on_scale, template_on_scale

ROUNDS = 8
STILL = 0.02  # px: a step that ends the fit
WIDEST = 0.7  # of a patch's widest row: rows narrower than that are of the trail, not of the star
FARTHEST = 5.0  # px from the middle of the full pixels that a star may lie
MODEL_ERROR = 0.05  # of a star's light in a pixel: PSFs are known no better beyond their cores
HUBER = 2.0  # sigma: neighbours are farther out
LEAST_PIXELS = 50
# of a PSF's light in the pixels that tell. Stamps fade where stars do not: fluxes from 0.001 of the light are
# 5 % too bright, no worse than `MODEL_ERROR`, those from 0.0001 twofold, from 4e-6 twentyfold
LEAST_SHARE = 0.001
SURE = 10.0  # of a flux's error that it exceeds in either image
ALIKE = 0.7  # ln of both fluxes' ratio: a median stack's wings may be half as bright, a particle has none

Cutout = tuple[np.ndarray, np.ndarray, np.ndarray]


def full_stars(chip: CalibratedChip, template: AlignedTemplate, match: Match) -> np.ndarray:
    """Return float64 [3, n]: x, y (0-based pixels) and flux (science counts) of static saturated stars.

    A star's place is fitted to what both images show around each patch of saturated pixels, its flux to the
    science image alone: one exposure's wings are in proportion to its stars, those of a median stack are not.
    What is no star, or not the same in both, is left out, as is a star of which too little is seen.
    """
    bits = int(PixelFlag.SATURATED | PixelFlag.TEMPLATE_SATURATED)
    flags = chip.image.flags | template.image.flags
    starts = [
        _middle(box, patch, flags[box] & bits == bits)
        for box, patch in patches(*np.divmod(listed(flags, bits), flags.shape[1]))
    ]
    with pool() as threads:
        found = list(threads.map(lambda start: _fitted(chip, template, match, start), starts))
    return np.array([star for star in found if star is not None]).reshape(-1, 3).T


def _middle(box: tuple[slice, slice], patch: np.ndarray, both: np.ndarray) -> tuple[float, float]:
    """Return (x, y) of the middle of a patch's wide rows, of what is full in both images if anything is."""
    core = patch & both if (patch & both).any() else patch
    wide = core.sum(axis=1)
    y, x = np.nonzero(core & (wide >= WIDEST * wide.max())[:, None])
    return box[1].start + float(x.mean()), box[0].start + float(y.mean())


def cutouts(chip: CalibratedChip, template: AlignedTemplate, match: Match, place, half: int) -> Cutout:
    """Return (science, template, good) [n, n] around the pixel ``place`` (x, y), n = 2 ``half`` + 1.

    Both images in science counts, 0 beyond the chip; ``good`` bool, no flag raised in either.
    """
    n = 2 * half + 1
    corner = [place[1] - half, place[0] - half]
    rows, columns = (
        slice(max(low, 0), max(min(low + n, size), 0))
        for low, size in zip(corner, chip.image.shape, strict=True)
    )
    inside = (
        slice(rows.start - corner[0], rows.stop - corner[0]),
        slice(columns.start - corner[1], columns.stop - corner[1]),
    )
    out = np.zeros((2, n, n), dtype=np.float32)
    good = np.zeros((n, n), dtype=bool)
    out[0][inside] = science_on_scale(chip, match, rows, columns)
    out[1][inside] = template_on_scale(template, match, rows, columns)
    good[inside] = (chip.image.flags[rows, columns] | template.image.flags[rows, columns]) == 0
    return out[0], out[1], good


def noises(chip: CalibratedChip, template: AlignedTemplate, match: Match, x: float, y: float) -> np.ndarray:
    """Return [2, 2]: the sky's variance (science counts²) and electrons per science count of both images."""
    place = np.array([x]), np.array([y])
    scale = float(match.scale.at(*place)[0])
    sky = (float(part.image.sky_variance.at(*place)[0]) for part in (chip, template))
    return np.array([[next(sky), chip.gain], [next(sky) * scale**2, template.gain / scale]])


def _fitted(chip, template, match, start: tuple[float, float]) -> tuple[float, float, float] | None:
    """Return (x, y, flux) of the star around ``start``, None where there is none."""
    i, j = round(start[0]), round(start[1])
    half = min(part.psf.mean.shape[0] for part in (chip, template)) // 2
    *images, good = cutouts(chip, template, match, (i, j), half)
    if good.sum() < LEAST_PIXELS:
        return None
    images = [image[good].astype(np.float64) for image in images]
    shapes = [splines(part.psf.at(*start), 2 * half + 1) for part in (chip, template)]
    noise = noises(chip, template, match, *start)
    at, flux = np.array(start) - (i, j), 0.0
    for _ in range(ROUNDS):
        normal, right, alone, sure = np.zeros((3, 3)), np.zeros(3), [], True
        for k, (image, shape, (sky, gain)) in enumerate(zip(images, shapes, noise, strict=True)):
            psf = moved_splines(shape, at[:1], at[1:], 2 * half + 1)[0].astype(np.float64)
            down, along = (slope[good] for slope in np.gradient(psf))
            shown = psf[good]
            if shown.sum() < LEAST_SHARE:
                return None
            light = flux * shown
            off = image - light
            sigma = np.sqrt(sky + np.maximum(light, 0) / gain + (MODEL_ERROR * light) ** 2)
            weight = np.minimum(1, HUBER * sigma / np.maximum(np.abs(off), 1e-9)) / sigma**2
            known = float((weight * shown**2).sum())  # one over the flux's variance
            alone.append(flux + float((weight * shown * off).sum()) / known)
            sure &= alone[-1] * np.sqrt(known) > SURE
            design = np.stack([shown if k == 0 else np.zeros_like(shown), -flux * along, -flux * down])
            normal += (design * weight) @ design.T
            right += (design * weight) @ off
        if flux == 0:  # the first round has no light to move
            flux = alone[0]
        else:
            step = np.linalg.solve(normal, right)
            flux, at = flux + step[0], at + np.clip(step[1:], -1, 1)
            if np.abs(step[1:]).max() < STILL:
                break
        away = np.abs([i + at[0] - start[0], j + at[1] - start[1]]).max()
        if not (flux > 0 and min(alone) > 0) or away > FARTHEST:
            return None
    if not sure or abs(np.log(alone[0] / alone[1])) > ALIKE:
        return None
    return float(i + at[0]), float(j + at[1]), float(flux)
