"""What bilinear interpolation did to a stack's PSF: it blurs each dither by its sub-pixel phase.

A value at a fraction p between two pixels is as broad as if blurred by a variance of p (1 - p). Phases run
over a stack in waves, 30 to 1000 px long, as its pixels are not quite as large as a chip's; their lengths and
directions follow from the camera's distortion, known but for the dithers' turn and sub-pixel place. Stars
scatter by 2 to 5 % of the peak by them. Waves longer than `BLUR_PIX` change the PSF over the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from ks4diff.numerics.phase_waves import HARMONICS, PhaseMaps, columns, fitted, next_wave
from ks4diff.numerics.psf_modes import radii, terms
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.psf import PsfField
from ks4diff.products.registration import Registration
from ks4diff.stages.psf_clean import WIDTH_FLOOR, as_wide_as_neighbours, stamp_variance, widths
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_stars import Sample
from ks4diff.stages.register import template_position

EAST_ARCMIN, NORTH_ARCMIN = (-4.0, 0.0, 4.0), (-7.0, 0.0, 7.0)  # between KS4's dithers, facts/kmtnet.md 2
MOST_TURN = 0.0175  # radians between a dither and its header: the camera is turned by up to 1 degree
MOST_WAVES = 4
MOST_STEP = 0.1  # cycles a pixel: scales that differ by more make no waves
ORDER = 6  # of the maps: 1e-5 px over a 2k image
BEYOND_ARCSEC = 0.38  # the least side of a chip's pixel
GRID = 25  # places a side that they are fitted to
LARGEST = 0.5 / np.pi**2  # amplitude of a first harmonic, pixels², of a stack that is one dither
FEW = 60  # stars
BLUR_PIX = 96.0  # of the image over which a PSF is averaged


@dataclass(frozen=True, kw_only=True)
class Waves:
    """Blur by phases along x and y: ``found`` dithers, ``coefficients`` [2, columns], their mean ``level``.

    ``lost`` [2] is the variance between stars of what `BLUR_PIX` averages away, pixels⁴.
    """

    maps: PhaseMaps
    found: tuple[tuple[int, float], ...]
    coefficients: np.ndarray
    level: np.ndarray
    lost: np.ndarray

    def at(self, x: np.ndarray, y: np.ndarray, *, averaged: bool) -> np.ndarray:
        """Return the blur at pixels [2, n], about its mean over the stars; ``averaged`` over `BLUR_PIX`."""
        design = self.maps.design(x, y)
        aside = [self.maps.design(x + dx, y + dy) for dx, dy in ((1, 0), (0, 1))] if averaged else []
        out = np.zeros((2, len(x)))
        for number, wave in enumerate(self.found):
            phase = self.maps.phase(wave, design)
            slopes = [self.maps.phase(wave, there) - phase for there in aside]
            for k in (0, 1):
                shown = columns(phase[k]).reshape(len(HARMONICS), 2, -1)
                for n, harmonic in enumerate(HARMONICS):
                    for slope in slopes:
                        shown[n] *= np.sinc(harmonic * BLUR_PIX * slope[k])
                size = shown.shape[0] * 2
                own = self.coefficients[k, number * size : (number + 1) * size]
                out[k] += own @ shown.reshape(size, -1)
        return out - self.level[:, None]


def dither_phases(
    chip: CalibratedChip, template: CalibratedChip, registration: Registration
) -> PhaseMaps | None:
    """Return the phases of dithers taken where the camera's dithers put them beside a science exposure.

    None for images of no KMTNet exposure, whose template is no such stack, and where one's pixels are not
    those of the other to `MOST_STEP`.
    """
    science, stack, shape = chip.raw.wcs, template.raw.wcs, chip.image.shape
    if chip.raw.exposure is None or science is None or stack is None:
        return None
    x, y = (a.ravel() for a in np.meshgrid(*(np.linspace(0, n - 1, GRID) for n in shape[::-1])))
    middle, half = (shape[1] / 2, shape[0] / 2), max(shape) / 2
    design = terms((x - middle[0]) / half, (y - middle[1]) / half, ORDER)
    place = template_position(registration, x, y)
    moves = [(e / 60, n / 60) for e in EAST_ARCMIN for n in NORTH_ARCMIN]
    phases = np.concatenate([_chip_pixels(science, stack, shape, move)(place) - place for move in moves])
    found = np.linalg.lstsq(design, np.concatenate([phases, place]).T, rcond=None)[0].T
    slopes = found[:-2, 1:3] / half
    if not np.isfinite(found).all() or np.median(np.abs(slopes)) > MOST_STEP:
        return None
    return PhaseMaps(
        middle=middle,
        half=half,
        order=ORDER,
        stack=found[-2:],
        phases=found[:-2].reshape(len(moves), 2, -1),
    )


def _chip_pixels(science: WCS, stack: WCS, shape: tuple[int, int], move: tuple[float, float]):
    """Return the map [2, n] -> [2, n] from the stack's pixels to those of the chip pointed aside.

    ``move`` is to the east and north, degrees.
    """
    beyond = 1.1 * 60 / BEYOND_ARCSEC * np.array([EAST_ARCMIN[-1], NORTH_ARCMIN[-1]])
    sides = [np.linspace(-b, n - 1 + b, GRID) for n, b in zip(shape[::-1], beyond, strict=True)]
    x, y = (a.ravel() for a in np.meshgrid(*sides))
    dither = science.deepcopy()
    ra, dec = dither.wcs.crval
    dither.wcs.crval = ra + move[0] / np.cos(np.radians(dec)), dec + move[1]
    there = np.stack(stack.all_world2pix(*dither.all_pix2world(x, y, 0), 0, quiet=True))
    middle, half = there.mean(axis=1, keepdims=True), np.ptp(there, axis=1).max() / 2
    found = np.linalg.lstsq(terms(*((there - middle) / half), ORDER), np.stack([x, y], axis=1), rcond=None)[0]
    return lambda place: (terms(*((place - middle) / half), ORDER) @ found).T


def find_waves(
    sample: Sample, mean: np.ndarray, fwhm: float, maps: PhaseMaps, shape: tuple[int, int]
) -> Waves | None:
    """Return the waves in the widths of stars about a ``mean`` stamp [n, n], None when there are none."""
    core = radii(mean.shape[0]) <= 1.5 * fwhm
    value, error = widths(sample, mean, core)
    stars = sample.only(as_wide_as_neighbours(sample, value, error, shape))
    if len(stars.x) < FEW:
        return None
    value, error = _blurs(stars, mean, core)
    error = np.sqrt(error**2 + WIDTH_FLOOR**2)
    design = maps.design(stars.x, stars.y)
    smooth = terms(*(np.stack([stars.x, stars.y]) / np.array(shape[::-1])[:, None] * 2 - 1), 3)
    prior = np.repeat([LARGEST / n**2 for n in HARMONICS], 2)
    found, shown, coefficients = [], np.empty((2, 0, len(stars.x))), np.empty((2, 0))
    while len(found) <= MOST_WAVES:
        fits = [fitted(smooth, shown[k], value[k], error[k], np.tile(prior, len(found))) for k in (0, 1)]
        coefficients = np.stack([fit[0] for fit in fits])
        weight = np.stack([(e * fit[2]) ** -2.0 for e, fit in zip(error, fits, strict=True)])
        rest = np.stack([fit[1] for fit in fits]) / np.sqrt(weight)
        wave = next_wave(maps, design, rest, weight, MOST_TURN) if len(found) < MOST_WAVES else None
        if wave is None:
            break
        found.append(wave)
        phase = maps.phase(wave, design)
        shown = np.concatenate([shown, np.stack([columns(phase[k]) for k in (0, 1)])], axis=1)
    if not found:
        return None
    own = np.einsum("kw,kwn->kn", coefficients, shown)
    waves = Waves(
        maps=maps,
        found=tuple(found),
        coefficients=coefficients,
        level=own.mean(axis=1),
        lost=np.zeros(2),
    )
    lost = own - waves.level[:, None] - waves.at(stars.x, stars.y, averaged=True)
    return replace(waves, lost=lost.var(axis=1))


def patterns(psf: np.ndarray) -> np.ndarray:
    """Return [2, n, n]: how a stamp changes when blurred by a variance of 2 pixels² along x, and along y."""
    p = np.pad(psf, 1)
    return np.stack([p[1:-1, 2:] + p[1:-1, :-2], p[2:, 1:-1] + p[:-2, 1:-1]]) - 2 * psf


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


def without_waves(sample: Sample, mean: np.ndarray, waves: Waves) -> Sample:
    """Return the sample as if every star had the mean blur."""
    blur = waves.at(sample.x, sample.y, averaged=False).astype(np.float32)
    change = np.einsum("kn,kij->nij", blur, patterns(mean).astype(np.float32))
    return replace(sample, stamps=sample.stamps - change)


def with_waves(field: PsfField, waves: Waves, config: PsfConfig) -> PsfField:
    """Return the field of a sample `without_waves` with the waves that are longer than `BLUR_PIX`.

    The shorter ones are in its error, as stars scatter by them.
    """
    shape = field.amplitudes.shape
    nodes = Cells(values=np.zeros(cell_grid(shape, config.border_node_pix)), shape=shape)
    x, y = (a.ravel() for a in nodes.middles())
    blur = np.concatenate([field.amplitudes.at(x, y), waves.at(x, y, averaged=True)])
    change = patterns(field.mean)
    strength = np.abs(change).max(axis=(1, 2)) / field.mean.max()
    error = np.sqrt(field.error.values**2 + strength**2 @ waves.lost)
    return replace(
        field,
        modes=np.concatenate([field.modes, change]).astype(np.float32),
        amplitudes=Cells(values=blur.reshape(-1, *nodes.values.shape).astype(np.float32), shape=shape),
        error=replace(field.error, values=error.astype(np.float32)),
    )
