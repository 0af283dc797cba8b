"""What is true about a simulated chip: its geometry, its PSFs, the light of its stars in the template.

All of it follows from the configuration: nothing here looks at a drawn pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage
from scipy.special import ndtr

from benchmarks.chips_sky import tile_plan
from ks4diff.pipeline.simulate import distortions
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.stages.sim.config import SimulateConfig
from ks4diff.stages.sim.detector import amplifiers, sky_electrons
from ks4diff.stages.sim.geometry import Patch, patch_of, pixels, true_wcs
from ks4diff.stages.sim.night import plan_exposures
from ks4diff.stages.sim.psf import PsfField, draw_psf_field, optical_state
from ks4diff.stages.sim.scene import Exposure, throughput, zeropoint_electrons
from ks4diff.stages.sim.template import patches_under

HALF = 48  # of the stamps, pixels: 98.5 % of the light of the widest
REACH = 64  # of the stars drawn on the way, so that no border is near
# star positions a side, one in each square of a grid, over which a PSF's sub-pixel phases are averaged:
# single ones differ by 2 to 4 % of the peak, the mean of 64 errs by 0.2 % in its worst pixel (of 12 drawn
# at random by 0.4 to 1.3 %)
PLACES_ALONG = 8
SPREAD = 60  # pixels around a cell's middle in which they lie
# S/N in the template of the stars that the truth is about: a median of unlike PSFs shows a star of S/N 50
# with a core up to 4 % off that of one of S/N 1000 and with 2 % less light, as noise mixes their order;
# bright stars, whose residuals show, are what PSF and scale are measured from
TRUE_SN = 300.0
NODES = 48  # of the integral over a median's distribution
COVER_STEP = 16  # pixels
COVER = 4  # pixels from its border within which an exposure is not used


def cell_middles(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y) [rows, columns] of the middles of the 1k cells of an image."""
    n, m = cell_grid(shape, CELL_PIX)
    return Cells(values=np.zeros((n, m)), shape=shape).middles()


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One chip of one dither: which dither, its pixels and their WCS."""

    exposure: int
    patch: Patch
    wcs: WCS


class Geometry:
    """The true maps and PSFs of a drawn chip and of its template, rebuilt from its configuration."""

    def __init__(self, config: SimulateConfig, true_sn: float | None = TRUE_SN) -> None:
        (chip,) = config.chips
        distortion = distortions(config)
        ((_, exposure),) = plan_exposures(config, 0)
        plan = tile_plan(config, distortion)
        self.config = config
        self.true_sn = true_sn  # None: stars without noise
        self.patch = patch_of(config, chip)
        self.exposure = exposure
        self.wcs = true_wcs(distortion[chip], exposure.at, self.patch)
        self.tile = plan.wcs
        self.dithers = plan.exposures
        self.frames = [
            Frame(exposure=k, patch=patch, wcs=true_wcs(distortion[patch.chip], e.at, patch))
            for k, e in enumerate(plan.exposures)
            for patch in patches_under(plan, e, distortion)
        ]

    @cached_property
    def variances(self) -> np.ndarray:
        """Electrons² of a sky pixel of each of `frames`, float64 [frames]."""
        own = [amplifiers(self.config, f.patch, (0, f.patch.columns))[0].read_noise ** 2 for f in self.frames]
        return sky_electrons(self.config) + np.array(own)

    @cached_property
    def psf(self) -> PsfField:
        """The PSF of the exposure."""
        return self._psf(self.exposure, self.patch)

    @cached_property
    def frame_psfs(self) -> list[PsfField]:
        """The PSFs of `frames`."""
        return [self._psf(self.dithers[f.exposure], f.patch) for f in self.frames]

    def _psf(self, exposure: Exposure, patch: Patch) -> PsfField:
        key = [self.config.seed, *exposure.key]
        state = optical_state(self.config.optics, exposure.seeing_arcsec, key, [*key, ord(patch.chip)])
        return draw_psf_field(self.config.optics, state, patch)

    def template_position(self, part: WCS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float64 [2, n]: pixels of a part of the tile (its WCS given) of chip pixels."""
        return np.stack(part.all_world2pix(*self.wcs.all_pix2world(x, y, 0), 0))

    def area(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the area of chip pixels in template pixels."""
        right, left = (self.template_position(self.tile, x + d, y) for d in (0.5, -0.5))
        up, down = (self.template_position(self.tile, x, y + d) for d in (0.5, -0.5))
        a, b = right - left, up - down
        return np.abs(a[0] * b[1] - a[1] * b[0])

    def frames_at(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (bool [frames, n]: what the tile uses there, the frames' response float64 [frames, n]).

        Of each dither the first chip that reaches the place, as the tile is laid.
        """
        used = np.zeros((len(self.frames), len(ra)), dtype=bool)
        response = np.zeros(used.shape)
        taken = np.zeros((len(self.dithers), len(ra)), dtype=bool)
        for k, f in enumerate(self.frames):
            x, y = pixels(f.wcs, ra, dec)
            inside = (x >= COVER) & (x < f.patch.columns - COVER) & (y >= COVER) & (y < f.patch.rows - COVER)
            used[k] = inside & ~taken[f.exposure]
            taken[f.exposure] |= inside
            response[k] = throughput(self.config, f.patch, x, y)
        return used, response

    def template_counts(self, ra: np.ndarray, dec: np.ndarray, mag: np.ndarray) -> np.ndarray:
        """Return the counts that sources have in the mean of the tile's dithers, NaN where none covers.

        What a median of unlike PSFs keeps of them is the sum of `template_stamps`.
        """
        used, response = self.frames_at(ra, dec)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (used * response).sum(axis=0) / np.where(used.any(axis=0), used.sum(axis=0), np.nan)
        return mean * 10 ** (0.4 * (self.config.template.zeropoint - mag))

    def covered(self, shape: tuple[int, int]) -> np.ndarray:
        """Return bool [y, x]: some dither of the template shows this pixel; true to `COVER_STEP` pixels."""
        y, x = np.mgrid[: shape[0] : COVER_STEP, : shape[1] : COVER_STEP] + COVER_STEP / 2
        used, _ = self.frames_at(*self.wcs.all_pix2world(x.ravel(), y.ravel(), 0))
        known = used.any(axis=0).reshape(x.shape)
        return known.repeat(COVER_STEP, axis=0).repeat(COVER_STEP, axis=1)[: shape[0], : shape[1]]

    @property
    def electrons_per_count(self) -> float:
        """Electrons of one exposure that a count of the tile stands for."""
        return float(10 ** (0.4 * (zeropoint_electrons(self.config) - self.config.template.zeropoint)))

    def template_stamps(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float64 [k, n, n]: stars of flux 1 at chip pixels, as the template shows them on the mean.

        Each went the way of the template's light: every dither's PSF at its sub-pixel place, bilinear to the
        tile, combined as the tile was, Lanczos-4 to the chip. 1 is the mean response of the dithers there: a
        mean of dithers sums to 1 over a plane (to what lies beyond the stamp), a median does not: that of
        three is its expectation for a star of `TRUE_SN`. Surface brightness times the chip pixel's area: NaN
        where no dither covers.
        """
        ra, dec = self.wcs.all_pix2world(x, y, 0)
        used, response = self.frames_at(ra, dec)
        return np.stack(
            [
                self._template_stamp(np.array([px, py]), np.flatnonzero(used[:, k]), response[:, k])
                for k, (px, py) in enumerate(zip(x, y, strict=True))
            ]
        )

    def _template_stamp(self, place: np.ndarray, used: np.ndarray, response: np.ndarray) -> np.ndarray:
        if not len(used):
            return np.full((2 * HALF + 1,) * 2, np.nan)
        near = np.array([[0, 0], [8, 0], [-8, 0], [0, 8], [0, -8]], dtype=float)
        tile, to_tile = _linear(place, near, self.wcs, self.tile)
        whole = np.rint(tile)
        offset = np.arange(-REACH, REACH + 1)
        gx, gy = np.meshgrid(offset, offset)
        planes, noise = [], []
        for k in used:
            at, to_chip = _linear(whole, near, self.tile, self.frames[k].wcs)
            star = at + to_chip @ (tile - whole)
            middle = np.rint(star)
            stamp = self.frame_psfs[k].stamp(*star, REACH + 6, off=tuple(star - middle))
            px = (at - middle)[0] + to_chip[0, 0] * gx + to_chip[0, 1] * gy + REACH + 6
            py = (at - middle)[1] + to_chip[1, 0] * gx + to_chip[1, 1] * gy + REACH + 6
            light = ndimage.map_coordinates(stamp, [py, px], order=1) * abs(np.linalg.det(to_chip))
            planes.append(light * response[k] / response[used].mean())
            # bilinear weights squared: what interpolation leaves of the noise
            fx, fy = px % 1, py % 1
            noise.append(((1 - fx) ** 2 + fx**2) * ((1 - fy) ** 2 + fy**2))
        if self.config.template.combine == "mean":
            combined = np.mean(planes, axis=0)
        elif len(used) == 3 and self.true_sn is not None:
            combined = _noisy_median(np.stack(planes), np.stack(noise), self.variances[used], self.true_sn)
        else:
            combined = np.median(planes, axis=0)
        own = np.arange(-HALF, HALF + 1)
        ox, oy = np.meshgrid(own, own)
        sx = (tile - whole)[0] + to_tile[0, 0] * ox + to_tile[0, 1] * oy + REACH
        sy = (tile - whole)[1] + to_tile[1, 0] * ox + to_tile[1, 1] * oy + REACH
        return _lanczos4(combined, sx, sy) * abs(np.linalg.det(to_tile))


def _noisy_median(planes: np.ndarray, share: np.ndarray, sky: np.ndarray, sn: float) -> np.ndarray:
    """Return the expectation [y, x] of the median of three planes with noise, for a star of S/N ``sn``.

    ``planes`` [3, y, x] of a star of flux 1, ``share`` [3, y, x] what of a pixel's variance is left in them,
    ``sky`` [3] its part without the star, electrons². With F the median's distribution, E = ∫ (1 - F) dx
    from below all.
    """
    mean = np.maximum(planes.mean(axis=0), 0)
    fluxes = np.geomspace(10, 1e9, 100)
    light = fluxes[:, None] * mean[mean > 1e-3 * mean.max()]
    reached = np.sqrt((3 * light**2 / (sky.mean() + light)).sum(axis=1))
    flux = np.exp(np.interp(np.log(sn), np.log(reached), np.log(fluxes)))
    sigma = np.sqrt(share * (sky[:, None, None] + flux * np.maximum(planes, 0))) / flux
    out = planes.mean(axis=0)
    # where they differ by less than a tenth of their noise the median is the mean to 0.001 sigma
    unlike = np.ptp(planes, axis=0) > 0.1 * sigma.min(axis=0)
    m, s = planes[:, unlike], sigma[:, unlike]
    low, high = m.min(axis=0) - 4 * s.max(axis=0), m.max(axis=0) + 4 * s.max(axis=0)
    below = np.zeros(m.shape[1])
    for t in (np.arange(NODES) + 0.5) / NODES:
        a, b, c = ndtr((low + (high - low) * t - m) / s)
        below += a * b + a * c + b * c - 2 * a * b * c
    out[unlike] = low + (high - low) * (1 - below / NODES)
    return out


def _linear(place: np.ndarray, near: np.ndarray, here: WCS, there: WCS) -> tuple[np.ndarray, np.ndarray]:
    """Return (where ``place`` of one image lies in the other, the matrix [2, 2] of the map around it)."""
    ra, dec = here.all_pix2world(place[0] + near[:, 0], place[1] + near[:, 1], 0)
    x, y = there.wcs_world2pix(ra, dec, 0)
    at = np.array([x[0], y[0]])
    matrix = np.array([[x[1] - x[2], x[3] - x[4]], [y[1] - y[2], y[3] - y[4]]]) / 16.0
    return at, matrix


def _lanczos4(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the image at (x, y) by 8x8 taps of sinc(d) sinc(d / 4), each axis's weights of sum 1."""
    taps = np.arange(-3, 5)
    left, low = np.floor(x).astype(int), np.floor(y).astype(int)
    along, down = (_lanczos4_weights()[np.rint(past * 4096).astype(int)] for past in (x - left, y - low))
    values = image[(low[..., None] + taps)[..., :, None], (left[..., None] + taps)[..., None, :]]
    return np.einsum("...j,...j->...", np.einsum("...ji,...i->...j", values, along), down)


@cache
def _lanczos4_weights() -> np.ndarray:
    """Return [4097, 8] for places 0 to 1 past a pixel."""
    d = np.linspace(0, 1, 4097)[:, None] - np.arange(-3, 5)
    weights = np.where(np.abs(d) < 4, np.sinc(d) * np.sinc(d / 4), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def signal_to_noise(flux_e: np.ndarray, psf: np.ndarray, variance_e: float) -> np.ndarray:
    """Return the S/N of point sources by their PSF, their own Poisson noise included."""
    grid = np.geomspace(1.0, 1e9, 200)
    positive = np.maximum(psf, 0)
    ratio = [np.sqrt(((f * positive) ** 2 / (variance_e + f * positive)).sum()) for f in grid]
    return np.interp(np.log(np.maximum(flux_e, 1e-3)), np.log(grid), ratio)
