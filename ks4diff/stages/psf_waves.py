"""What bilinear interpolation did to a stack's PSF: it blurs each dither by its sub-pixel phase.

A value at a fraction p between two pixels is as broad as if blurred by a variance of p (1 - p). Phases run
over a stack in waves, 30 to 1000 px long, as its pixels are not quite as large as a chip's; their lengths and
directions follow from the camera's distortion, known but for the dithers' turn and place, which the stack's
noise tells. Stars scatter by 2 to 5 % of the peak by them. Waves longer than `BLUR_PIX` change the PSF over
the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.coordinates import Angle, SkyCoord
from astropy.wcs import WCS

from ks4diff.numerics.phase_waves import HARMONICS, Frames, PhaseMaps, columns, region_of
from ks4diff.numerics.polynomial import design as terms
from ks4diff.numerics.psf_borders import Borders
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.psf import PsfField
from ks4diff.products.registration import Registration
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_stars import Sample
from ks4diff.stages.register import template_position

EAST_ARCMIN, NORTH_ARCMIN = (-4.0, 0.0, 4.0), (-7.0, 0.0, 7.0)  # between KS4's dithers, facts/kmtnet.md 2
MOST_STEP = 0.1  # cycles a pixel: scales that differ by more make no waves
ORDER = 6  # of the maps: 1e-5 px over a 2k image
BEYOND_ARCSEC = 0.38  # the least side of a chip's pixel
GRID = 25  # places a side that they are fitted to
GAPS_PIX = (460.0, 933.0)  # between chips along x and y, section 4
BLUR_PIX = 96.0  # of the image over which a PSF is averaged
UNSEEN = 0.0005  # of the peak: changes that a PSF's modes may lack


@dataclass(frozen=True, kw_only=True)
class Waves:
    """How a stack's frames change its PSF by their phases: each as strong as its share of the stack.

    ``shares`` float64 [frames, 1 + regions]: of one that all regions have in common, then by how much it is
    another in each of ``regions`` (int [n], as `region_of` names them), in units of an equal share of the
    frames there. ``level`` [patterns] is the mean over the stars, ``lost`` the variance between stars of what
    `BLUR_PIX` averages away.
    """

    frames: Frames
    regions: np.ndarray
    shares: np.ndarray
    level: np.ndarray
    lost: np.ndarray

    def shares_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float64 [frames, n]: of the stack at pixels of the image."""
        covers = self.frames.covers(x, y)
        member = region_of(covers) == self.regions[:, None]
        strength = self.shares[:, :1] + self.shares[:, 1:] @ member
        return covers * strength / np.maximum(covers.sum(axis=0), 1)

    def at(self, x: np.ndarray, y: np.ndarray, *, averaged: bool) -> np.ndarray:
        """Return the strengths of `patterns` at pixels [p, n], about their mean over the stars.

        ``averaged`` over `BLUR_PIX`.
        """
        shares = self.shares_at(x, y)
        shown = waves_at(self.frames, x, y, averaged=averaged)
        return np.einsum("fn,fpn->pn", shares, shown) - self.level[:, None]


def waves_at(frames: Frames, x: np.ndarray, y: np.ndarray, *, averaged: bool) -> np.ndarray:
    """Return float64 [frames, p, n]: cosines and sines of the phases, in the order of `patterns`."""
    phases = frames.at(x, y)
    out = np.stack([columns(phases[:, k]) for k in (0, 1)])
    if averaged:
        for dx, dy in ((1, 0), (0, 1)):
            slope = frames.at(x + dx, y + dy) - phases
            for k in (0, 1):
                for n, harmonic in enumerate(HARMONICS):
                    out[k, 2 * n : 2 * n + 2] *= np.sinc(harmonic * BLUR_PIX * slope[:, k])
    return np.moveaxis(out.reshape(-1, *out.shape[2:]), 0, 1)


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


def likely_borders(maps: PhaseMaps, shape: tuple[int, int]) -> Borders:
    """Return where the dithers of `dither_phases` have an end of the chip or of its neighbour across the gap.

    Lines across an image of ``shape`` (rows, columns); each pointing errs, by 10" mostly.
    """
    upright, at = [], []
    for k, (n, gap) in enumerate(zip(shape[::-1], GAPS_PIX, strict=True)):
        along = np.arange(n, dtype=float)
        across = np.full(n, shape[k] / 2)
        design = maps.design(*((along, across) if k == 0 else (across, along)))
        for phases in maps.phases:
            there = design @ (phases[k] + maps.stack[k])
            for end in (-0.5 - gap, -0.5, n - 0.5, n - 0.5 + gap):
                if there.min() < end < there.max():
                    upright.append(k == 0)
                    at.append(float(np.interp(end, there, along)))
    return Borders(
        upright=np.array(upright, dtype=bool), at=np.array(at), slope=np.zeros(len(at)), shape=shape
    )


def _chip_pixels(science: WCS, stack: WCS, shape: tuple[int, int], move: tuple[float, float]):
    """Return the map [2, n] -> [2, n] from the stack's pixels to those of the chip pointed aside.

    ``move`` is to the east and north, degrees.
    """
    beyond = 1.1 * 60 / BEYOND_ARCSEC * np.array([EAST_ARCMIN[-1], NORTH_ARCMIN[-1]])
    sides = [np.linspace(-b, n - 1 + b, GRID) for n, b in zip(shape[::-1], beyond, strict=True)]
    x, y = (a.ravel() for a in np.meshgrid(*sides))
    dither = science.deepcopy()
    # on the sky and not in its coordinates: there is a field at Dec -90
    at = SkyCoord(*dither.wcs.crval, unit="deg").spherical_offsets_by(*Angle(list(move), "deg"))
    dither.wcs.crval = at.ra.deg, at.dec.deg
    there = np.stack(stack.all_world2pix(*dither.all_pix2world(x, y, 0), 0, quiet=True))
    middle, half = there.mean(axis=1, keepdims=True), np.ptp(there, axis=1).max() / 2
    found = np.linalg.lstsq(terms(*((there - middle) / half), ORDER), np.stack([x, y], axis=1), rcond=None)[0]
    return lambda place: (terms(*((place - middle) / half), ORDER) @ found).T


def patterns(psf: np.ndarray) -> np.ndarray:
    """Return [p, n, n]: by how much a PSF is another for a cosine or a sine of a phase of 1.

    For x and then y, for the first and the second harmonic a cosine and a sine. Interpolation at a fraction p
    between pixels weighs them by a triangle at p, p - 1, ...: of a frequency f it leaves the sum over n of
    sinc²(f + n) exp(2 pi i n p) (Poisson). Its mean over p, n = 0, is in ``psf`` already; the other terms
    over that are f² / (f + n)².
    """
    size = psf.shape[0]
    f = np.fft.rfftfreq(size)
    out = []
    for axis in (1, 0):
        light = np.fft.rfft(psf, axis=axis)
        for n in HARMONICS:
            up, down = (f / (f + n)) ** 2, (f / (f - n)) ** 2
            for change in (up + down, 1j * (up - down)):
                along = change[None, :] if axis == 1 else change[:, None]
                out.append(np.fft.irfft(light * along, size, axis=axis))
    return np.stack(out)


def without_waves(sample: Sample, mean: np.ndarray, waves: Waves) -> Sample:
    """Return the sample as if every star had the mean phases."""
    return sample.without(waves.at(sample.x, sample.y, averaged=False), patterns(mean))


def with_waves(field: PsfField, waves: Waves, config: PsfConfig) -> PsfField:
    """Return the field of a sample `without_waves` with the waves that are longer than `BLUR_PIX`.

    The shorter waves are in the field's error, as stars scatter by them.
    """
    shape = field.amplitudes.shape
    nodes = Cells(values=np.zeros(cell_grid(shape, config.border_node_pix)), shape=shape)
    x, y = (a.ravel() for a in nodes.middles())
    change = patterns(field.mean.astype(np.float64))
    strength = np.abs(change).max(axis=(1, 2)) / field.mean.max()
    waved = waves.at(x, y, averaged=True)
    seen = np.abs(waved).max(axis=1) * strength > UNSEEN
    alike = field.amplitudes.values.shape[-2:] == nodes.values.shape
    other = field.amplitudes.values.reshape(-1, len(x)) if alike else field.amplitudes.at(x, y)
    amplitudes = np.concatenate([other, waved[seen]])
    error = np.sqrt(field.error.values**2 + strength**2 @ waves.lost)
    return replace(
        field,
        modes=np.concatenate([field.modes, change[seen]]).astype(np.float32),
        amplitudes=Cells(values=amplitudes.reshape(-1, *nodes.values.shape).astype(np.float32), shape=shape),
        error=replace(field.error, values=error.astype(np.float32)),
    )
