"""Galaxies through the PSF: faint ones from a small library, bright ones one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.numerics.stamps import PHASES, add_sources, phase_table
from ks4diff.stages.sim.geometry import Patch
from ks4diff.stages.sim.psf import (
    SCALE_ARCSEC,
    OpticalState,
    PsfField,
    PsfShape,
    aureole,
    core_profile,
    fine_side,
    galsim_module,
    shape_at,
)

BRIGHT_MAG = 19.5  # brighter galaxies get their exact shape: at 20 mag a shape off by 10 % leaves 1 sigma
LIBRARY_HALF = 24  # pixels; faint galaxies are 0.2 to 1.5" large
LIBRARY = 36  # shapes: 3 sizes x 2 Sersic indices x 2 axis ratios x 3 angles


@dataclass(frozen=True, kw_only=True)
class GalaxyLibrary:
    """Tables as `add_sources` wants them, one for each shape (half-light arcsec, n, axis ratio, angle)."""

    shapes: np.ndarray
    tables: tuple[np.ndarray, ...]
    grid: np.ndarray
    wings: np.ndarray

    def nearest(self, catalog: np.ndarray) -> np.ndarray:
        """Return the index of the shape that resembles each galaxy most."""
        mine = _features(*(catalog[name] for name in ("half_light", "sersic_n", "axis_ratio", "angle")))
        own = _features(*self.shapes.T)
        best = np.zeros(len(catalog), dtype=int)
        for start in range(0, len(catalog), 20_000):
            part = slice(start, start + 20_000)
            best[part] = np.argmin(((mine[part, None, :] - own[None]) ** 2).sum(axis=2), axis=1)
        return best


def _features(size: np.ndarray, index: np.ndarray, ratio: np.ndarray, angle: np.ndarray) -> np.ndarray:
    flat, turn = 1 - ratio, np.radians(2 * angle)
    return np.stack([2 * np.log(size), 0.2 * index, flat * np.cos(turn), flat * np.sin(turn)], axis=1)


def draw_library(psf: PsfField, state: OpticalState, patch: Patch) -> GalaxyLibrary:
    """Return the library for one patch, on 2x2 nodes at its corners (3x3 on patches beyond 5000 pixels)."""
    shapes = np.array(
        [
            (size, index, ratio, angle)
            for size in (0.35, 0.6, 1.0)
            for index in (1.0, 2.5)
            for ratio in (0.45, 0.8)
            for angle in (0.0, 60.0, 120.0)
        ]
    )
    n = 3 if max(patch.columns, patch.rows) > 5000 else 2
    step = ((patch.columns - 1) / (n - 1), (patch.rows - 1) / (n - 1))
    places = [[shape_at(state, patch, i * step[0], j * step[1]) for i in range(n)] for j in range(n)]
    nearest_wing = [
        [
            psf.wings[
                round(j * (psf.wings.shape[0] - 1) / (n - 1)), round(i * (psf.wings.shape[1] - 1) / (n - 1))
            ]
            for i in range(n)
        ]
        for j in range(n)
    ]
    tables = tuple(
        np.array(
            [
                [_table(psf, place, wing, shape) for place, wing in zip(*rows, strict=True)]
                for rows in zip(places, nearest_wing, strict=True)
            ]
        )
        for shape in shapes
    )
    return GalaxyLibrary(
        shapes=shapes, tables=tables, grid=np.array([0.0, 0.0, *step]), wings=np.array(nearest_wing)
    )


def _table(psf: PsfField, place: PsfShape, wing: np.ndarray, shape: np.ndarray) -> np.ndarray:
    galsim = galsim_module()
    size, index, ratio, angle = (float(v) for v in shape)
    profile = galsim.Convolve(
        sersic(size / SCALE_ARCSEC, index, ratio, angle), core_profile(psf.optics, place), galsim.Pixel(1.0)
    )
    side = fine_side(LIBRARY_HALF + 1)
    core = profile.drawImage(nx=side, ny=side, scale=1 / PHASES, method="no_pixel", dtype=np.float64).array
    share = 1 - psf.optics.wing_fraction
    return phase_table(core * PHASES**2 * share + aureole(wing, side), LIBRARY_HALF + 1)


def sersic(size_pix: float, index: float, ratio: float, angle_deg: float):
    """Return GalSim's Sersic; ``angle_deg`` from north to east on an image with north up and east left."""
    galsim = galsim_module()
    disc = galsim.Sersic(n=index, half_light_radius=size_pix, trunc=8 * size_pix if index > 2 else 0)
    return disc.shear(q=ratio, beta=(angle_deg + 90) * galsim.degrees)


def add_faint(image: np.ndarray, library: GalaxyLibrary, sources: np.ndarray, shape: np.ndarray) -> None:
    """Add galaxies (x, y, flux) [3, n] in place, each with the library's ``shape`` [n]."""
    reach = np.full((1, sources.shape[1]), float(LIBRARY_HALF))
    full = np.concatenate([sources, reach])
    for k, table in enumerate(library.tables):
        mine = shape == k
        if mine.any():
            add_sources(image, full[:, mine], table, library.grid, library.wings)


def add_bright(
    image: np.ndarray, psf: PsfField, place: tuple[OpticalState, Patch, WCS], rows: np.ndarray, at: np.ndarray
) -> None:
    """Add galaxies of the catalogue ``rows`` at ``at`` = (x, y, flux) [3, n] in place, each drawn exactly.

    The sky's shape is carried to pixels by the WCS there: scale, rotation and distortion.
    """
    galsim = galsim_module()
    state, patch, wcs = place
    share = 1 - psf.optics.wing_fraction
    params = galsim.GSParams(folding_threshold=2e-3, maximum_fft_size=16384)
    for row, (x, y, flux) in zip(rows, at.T, strict=True):
        half = int(np.clip(np.ceil(10 * row["half_light"] / SCALE_ARCSEC * (flux / 3e4) ** 0.15), 24, 220))
        i, j = round(float(x)), round(float(y))
        if i + half < 0 or j + half < 0 or i - half >= image.shape[1] or j - half >= image.shape[0]:
            continue
        disc = sersic(
            float(row["half_light"]), float(row["sersic_n"]), float(row["axis_ratio"]), float(row["angle"])
        )
        profile = galsim.Convolve(
            disc.transform(*_sky_to_pixel(wcs, x, y).ravel()).withFlux(1.0),
            core_profile(psf.optics, shape_at(state, patch, x, y)),
            gsparams=params,
        )
        side = 2 * half + 1
        light = profile.drawImage(nx=side, ny=side, scale=1.0, offset=(x - i, y - j), dtype=np.float64).array
        wing = psf.wings[psf.wings.shape[0] // 2, psf.wings.shape[1] // 2]
        _paste(image, flux * (share * light + aureole(wing, side, 1.0)), i - half, j - half)


def _sky_to_pixel(wcs: WCS, x: float, y: float) -> np.ndarray:
    """Return [2, 2] from (west, north) arcseconds to pixels at a place."""
    ra, dec = wcs.all_pix2world([x, x + 1, x], [y, y, y + 1], 0)
    west = -(((ra[1:] - ra[0] + 180) % 360) - 180) * np.cos(np.radians(dec[0])) * 3600
    return np.linalg.inv(np.stack([west, (dec[1:] - dec[0]) * 3600]))


def _paste(image: np.ndarray, stamp: np.ndarray, left: int, low: int) -> None:
    rows = slice(max(low, 0), min(low + stamp.shape[0], image.shape[0]))
    columns = slice(max(left, 0), min(left + stamp.shape[1], image.shape[1]))
    image[rows, columns] += stamp[
        rows.start - low : rows.stop - low, columns.start - left : columns.stop - left
    ]
