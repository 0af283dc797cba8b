"""Made pairs of star lists with KMTNet's true geometry: what registration is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from ks4diff.io.tile_tables import read_distortions
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import CalibratedChip, RawChip, StarList
from ks4diff.products.ids import ExposureId, Site
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.products.registration import Registration
from ks4diff.stages.astrometry import first_wcs
from ks4diff.stages.register import template_position
from ks4diff.stages.sim.geometry import (
    FULL_SIZE,
    Distortion,
    Patch,
    Pointing,
    header_wcs,
    shifted,
    tangent_plane,
    true_wcs,
)

TILE_ARCSEC = 0.4
MARGIN_PIX = 320  # of a template around the chip's claimed place: less than `ks4diff run` reads
SLOPE = 0.3  # of log10 counts of stars per magnitude
DEEPER_MAG = 1.0  # of the template
LIMIT_SNR = 5.0
FIELD = (115.3, -38.2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One made pair: which chip, which part of it, how many stars, how wrong the header."""

    seed: int
    site: str = "CTIO"
    chip: str = "M"
    size: int = 2048  # of a side; 0 for a whole chip
    corner: bool = False  # the outer corner of the mosaic, else the middle of the chip
    density: float = 5000.0  # science stars above S/N 5 per square degree
    common: float = 0.75
    fwhm: float = 3.5
    start: str = "own"  # whose solution the first guess has: own, any, or none (the raw header)
    pointing_arcsec: float = 120.0
    rotation_deg: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """The two chips of a case, the true WCS of both, and how many stars the lists truly share."""

    science: CalibratedChip
    template: CalibratedChip
    wcs: tuple[WCS, WCS]
    n_common: int
    bright: np.ndarray  # float64 [2, n]: science positions of common stars of S/N > 50


def solution_of(site: str, chip: str) -> Distortion:
    """Return a chip's true solution; SAAO's is the one of no site."""
    table = read_distortions()
    known = table.get((site, chip), table["any", chip])
    return Distortion(crpix=known.crpix, cd=known.cd, pv=known.pv)


def make(case: Case) -> Made:
    """Return the star lists of one case."""
    rng = np.random.default_rng([20261124, case.seed])
    solution = solution_of(case.site, case.chip)
    columns, rows = FULL_SIZE if case.size == 0 else (case.size, case.size)
    patch = _patch(case, columns, rows)
    error, angle = case.pointing_arcsec / 3600 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    at = Pointing(
        claimed=FIELD,
        true=shifted(FIELD, error * np.cos(angle), error * np.sin(angle)),
        rotation_deg=case.rotation_deg * rng.uniform(-1, 1),
    )
    true, header = true_wcs(solution, at, patch), header_wcs(at, patch)
    raw = _raw((rows, columns), header, case)
    table = {
        key: value for key, value in read_distortions().items() if case.start == "own" or key[0] == "any"
    }
    guess = first_wcs(raw, table)
    if case.start != "none":
        raw = replace(raw, wcs=guess)
    tile = _tile(guess, columns, rows)
    return _filled(case, rng, raw, tile, true)


def _patch(case: Case, columns: int, rows: int) -> Patch:
    x0, y0 = (FULL_SIZE[0] - columns) // 2, (FULL_SIZE[1] - rows) // 2
    if case.corner:
        # columns grow to the west and rows to the north; M and N are east, M and K north
        x0 = 0 if case.chip in "MN" else FULL_SIZE[0] - columns
        y0 = FULL_SIZE[1] - rows if case.chip in "MK" else 0
    return Patch(chip=case.chip, x0=x0, y0=y0, columns=columns, rows=rows)


def _raw(shape, wcs, case):
    return RawChip(
        data=np.zeros(shape, dtype=np.float32),
        file="made",
        hdu="0",
        chip=case.chip,
        wcs=wcs,
        site=case.site,
        exposure=ExposureId(site=Site(case.site), night="20250207", number=1),
    )


def _tile(wcs: WCS, columns: int, rows: int) -> tuple[WCS, tuple[int, int]]:
    """Return the template's WCS and shape: a part of a TAN tile about the field with room around the chip."""
    tile = tangent_plane(FIELD, TILE_ARCSEC / 3600)
    x, y = np.meshgrid(np.linspace(0, columns - 1, 9), np.linspace(0, rows - 1, 9))
    tx, ty = tile.wcs_world2pix(*wcs.all_pix2world(x.ravel(), y.ravel(), 0), 0)
    low = np.floor([tx.min() - MARGIN_PIX, ty.min() - MARGIN_PIX])
    high = np.ceil([tx.max() + MARGIN_PIX, ty.max() + MARGIN_PIX])
    part = tangent_plane(FIELD, TILE_ARCSEC / 3600, (-low[0], -low[1]))
    return part, (int(high[1] - low[1]) + 1, int(high[0] - low[0]) + 1)


def _filled(case, rng, raw, tile, true):
    """Return the chips with their stars: drawn over the template, seen by both with their own noise."""
    wcs, (rows, columns) = tile
    area = rows * columns * (TILE_ARCSEC / 3600) ** 2
    n = rng.poisson(case.density * 10 ** (SLOPE * DEEPER_MAG) * area)
    place = np.stack([rng.uniform(0, columns - 1, n), rng.uniform(0, rows - 1, n)])
    # the faintest of the template is at magnitude 0 of S/N 5 there, the science limit DEEPER_MAG above it
    flux = 10 ** (-0.4 * (np.log10(rng.random(n)) / SLOPE + DEEPER_MAG))
    x, y = true.wcs_world2pix(*wcs.wcs_pix2world(*place, 0), 0)
    kind = rng.random(n)
    lost = 2 * (1 - case.common) / (2 - case.common)  # in one list only, of those in either
    seen = []
    for k, (positions, shape, depth) in enumerate(
        (((x, y), raw.data.shape, 1.0), (place, (rows, columns), 10 ** (-0.4 * DEEPER_MAG)))
    ):
        noise = depth / LIMIT_SNR
        snr = flux / np.sqrt(flux * noise * 0.02 + noise**2)
        with_noise = np.stack(positions) + rng.normal(0, 1, (2, n)) * case.fwhm / (2.3548 * snr)
        # saturated stars have centroids good to a pixel
        with_noise[:, snr > 2000] += rng.normal(0, 1, (2, int((snr > 2000).sum())))
        measured = flux * np.exp(rng.normal(0, 0.05, n)) + noise * rng.normal(0, 1, n)
        own = (kind < 1 - lost / 2) if k == 0 else ((kind < 1 - lost) | (kind >= 1 - lost / 2))
        inside = (with_noise > 0).all(axis=0) & (with_noise[0] < shape[1]) & (with_noise[1] < shape[0])
        shown = np.flatnonzero(inside & own & (measured > LIMIT_SNR * noise))
        shown = shown[np.argsort(-measured[shown], kind="stable")]
        seen.append((shown, with_noise[:, shown], measured[shown], snr, noise))
    both = np.intersect1d(seen[0][0], seen[1][0])
    good = both[seen[0][3][both] > 50]
    chips = [
        _chip(
            raw
            if k == 0
            else replace(raw, wcs=wcs, data=np.zeros((rows, columns), dtype=np.float32), exposure=None),
            case,
            *seen[k][1:3],
            seen[k][4],
        )
        for k in (0, 1)
    ]
    return Made(
        science=chips[0],
        template=chips[1],
        wcs=(true, wcs),
        n_common=len(both),
        bright=np.stack([x[good], y[good]]),
    )


def _chip(raw, case, place, flux, noise):
    shape, n = raw.data.shape, len(flux)
    s = case.fwhm / 2.3548
    stamp = np.ones((3, 3), dtype=np.float32) / 9
    return CalibratedChip(
        raw=raw,
        image=MaskedImage(
            data=raw.data,
            flags=np.zeros(shape, dtype=np.uint16),
            sky_variance=Cells.constant(1.0, shape),
        ),
        sky=None,
        stars=StarList(
            x=place[0], y=place[1], flux=flux, fwhm=np.full(n, case.fwhm), clean=np.ones(n, dtype=bool)
        ),
        psf=PsfField.uniform(Psf(stamp=stamp, fwhm_pix=case.fwhm, n_stars=n), shape),
        noise=NoiseModel(sigma=noise / np.sqrt(4 * np.pi * s**2), correlation=np.ones((1, 1)), method="sky"),
        gain=1 / (0.02 * noise),
        gain_source="given",
    )


@dataclass(frozen=True, kw_only=True)
class Score:
    """A registration against the truth, per cell of about 1024 px [n]."""

    rms: np.ndarray  # px per axis
    stated: np.ndarray  # px per axis
    bright: np.ndarray  # common stars of S/N > 50
    bad: np.ndarray


def score(found: Registration, made: Made) -> Score:
    """Return how well a registration of made lists does, where the template covers the science image."""
    shape = made.science.image.shape
    grid = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape)
    rows, columns = made.template.image.shape
    rms, inside = np.full(grid.values.shape, np.nan), np.zeros(grid.values.shape, dtype=bool)
    for j, i, ys, xs in grid.boxes():
        x, y = (
            axis.ravel()
            for axis in np.meshgrid(
                np.linspace(xs.start, xs.stop - 1, 8), np.linspace(ys.start, ys.stop - 1, 8)
            )
        )
        truth = np.stack(made.wcs[1].wcs_world2pix(*made.wcs[0].all_pix2world(x, y, 0), 0))
        on = (truth >= 0).all(axis=0) & (truth[0] < columns) & (truth[1] < rows)
        if on.mean() < 0.5:
            continue
        inside[j, i] = True
        rms[j, i] = np.sqrt(0.5 * ((template_position(found, x, y) - truth)[:, on] ** 2).sum(axis=0).mean())
    j, i = grid.cell_of(*made.bright)
    bright = np.zeros(grid.values.shape, dtype=int)
    np.add.at(bright, (j, i), 1)
    return Score(
        rms=rms[inside],
        stated=found.error.values[inside],
        bright=bright[inside],
        bad=found.bad.values[inside] > 0,
    )
