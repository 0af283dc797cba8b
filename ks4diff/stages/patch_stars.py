"""The light of bright stars on one patch: halos to subtract, saturated stars where pixels are lost."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.halos import subtract_halos
from ks4diff.numerics.moved_psf import moved_psfs
from ks4diff.products.psf import PsfField
from ks4diff.stages.bright_stars import BrightStars, psf_with_wings

Light = tuple[tuple[slice, slice], tuple[np.ndarray, np.ndarray]]


def less_halos(bright: BrightStars, corner: tuple[int, int], science: np.ndarray) -> None:
    """Subtract the stars' halos from a part of the science image whose first pixel is ``corner`` (x, y)."""
    if bright.halo.any():
        subtract_halos(science, _near(bright.stars, corner, science.shape, len(bright.halo)), bright.halo)


def lights(
    bright: BrightStars, fields: tuple[PsfField, PsfField], corner: tuple[int, int], shape: tuple[int, int]
) -> list[Light]:
    """Return where each saturated star near a patch lies, and its light in science image and template."""
    out = []
    half = max(len(field.mean) for field in fields) // 2
    for x, y, flux in _near(bright.full, corner, shape, half).T.tolist():
        i, j = round(x), round(y)
        y0, y1, x0, x1 = (
            max(j - half, 0),
            min(j + half + 1, shape[0]),
            max(i - half, 0),
            min(i + half + 1, shape[1]),
        )
        inside = slice(y0 - j + half, y1 - j + half), slice(x0 - i + half, x1 - i + half)
        light = []
        for field, wings in zip(fields, bright.wings, strict=True):
            psf = psf_with_wings(field, wings, x + corner[0], y + corner[1])
            moved = moved_psfs(psf, np.array([x - i]), np.array([y - j]), 2 * half + 1)[0]
            light.append(np.float32(flux) * moved[inside])
        out.append(((slice(y0, y1), slice(x0, x1)), tuple(light)))
    return out


def add(light: list[Light], images: tuple[np.ndarray, np.ndarray], sign: int) -> None:
    """Add (``sign`` 1) or subtract (-1) the light of `lights` in both images, in place."""
    for place, parts in light:
        for image, part in zip(images, parts, strict=True):
            image[place] += np.float32(sign) * part


def _near(stars: np.ndarray, corner: tuple[int, int], shape: tuple[int, int], reach: int) -> np.ndarray:
    """Return the stars [3, k] within ``reach`` px of a patch, at their pixels of it."""
    x, y = stars[0] - corner[0], stars[1] - corner[1]
    near = (x > -reach) & (x < shape[1] + reach) & (y > -reach) & (y < shape[0] + reach)
    return np.stack([x, y, stars[2]])[:, near]
