"""First guesses of the map between two images, from what their headers say."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS

from ks4diff.numerics.pixel_map import PixelMap, fitted

GRID = 21  # positions a side at which two WCS are compared
DEGREE = 7  # TPV's terms in r are no polynomial: degree 5 is off by 0.018 px rms of a whole chip, 7 by 0.006


def identity(shape: tuple[int, int]) -> PixelMap:
    """Return the map of an image of ``shape`` onto itself."""
    points = _grid(shape)
    return fitted(points, points, shape, 1)


def through_sky(
    science: WCS, template: WCS, shape: tuple[int, int], turn: np.ndarray | None = None
) -> PixelMap | None:
    """Return the map that two WCS imply, or None where fewer than half of the image has a finite one.

    ``turn`` is a rotation of the sky, float64 [3, 3], between them: what a wrong pointing and position angle
    are, exactly, where a shift of pixels would be wrong by 0.2 px over a chip.
    """
    points = _grid(shape)
    vectors = _vectors(*science.all_pix2world(*points.T, 0))
    if turn is not None:
        vectors = turn @ vectors
    landed = np.stack(template.all_world2pix(*_angles(vectors), 0, quiet=True), axis=1)
    good = np.isfinite(landed).all(axis=1)
    if good.sum() < 0.5 * len(points):
        return None
    return fitted(points[good], landed[good], shape, DEGREE)


def sky_turn(found: PixelMap, science: WCS, template: WCS, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the rotation [3, 3] of the sky that brings the science WCS closest to a map that was found.

    None when a WCS has no finite position there. By Kabsch 1976 Acta Cryst. A32, 922.
    """
    points = _grid(shape)
    one = _vectors(*science.all_pix2world(*points.T, 0))
    other = _vectors(*template.all_pix2world(*found.at(points).T, 0))
    good = np.isfinite(one).all(axis=0) & np.isfinite(other).all(axis=0)
    if good.sum() < 0.5 * len(points):
        return None
    left, _, right = np.linalg.svd(other[:, good] @ one[:, good].T)
    return left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right


def _grid(shape: tuple[int, int]) -> np.ndarray:
    # Chebyshev nodes: a polynomial through equal steps is worst in the corners
    t = 0.5 - 0.5 * np.cos(np.pi * np.arange(GRID) / (GRID - 1))
    x, y = np.meshgrid(t * (shape[1] - 1), t * (shape[0] - 1))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def _angles(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = vectors
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))
