"""What is true about a simulated chip: its PSFs, its geometry, its flux scale, and which stars tell."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage

from ks4diff.pipeline.simulate import distortions
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.simulated import SimulatedChip
from ks4diff.stages.sim.config import SimulateConfig
from ks4diff.stages.sim.geometry import patch_of, pixels, true_wcs
from ks4diff.stages.sim.night import plan_exposures, plan_tiles
from ks4diff.stages.sim.scene import throughput, zeropoint_electrons
from ks4diff.stages.sim.template import Contribution, MadeTile, TilePlan, patches_under

HALF = 24  # of the PSFs kept, pixels
REACH = 40  # of the stars drawn on the way, so that no border is near
PLACES = 24  # star positions over which a PSF's sub-pixel phases are averaged: 0.05 % of the peak
SPREAD = 60  # pixels around a cell's middle in which they lie
COVER_STEP = 16  # pixels
COVER = 4  # pixels from its border within which an exposure is not used


def cell_middles(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y) [rows, columns] of the middles of the 1k cells of an image."""
    n, m = cell_grid(shape, CELL_PIX)
    return Cells(values=np.zeros((n, m)), shape=shape).middles()


def psf_truth(
    config: SimulateConfig, chip: SimulatedChip, wcs: WCS, made: MadeTile, plan: TilePlan
) -> dict[str, np.ndarray]:
    """Return per 1k cell the PSFs of both images as they are on the chip's pixels, [rows, columns, n, n].

    ``psf`` is that of the exposure. ``template_psf`` went the way of the template's light: each dither's PSF
    at its sub-pixel place, bilinear to the tile, combined as the tile was (free of noise), Lanczos-4 to the
    chip; the mean over `PLACES`. ``template_var`` electrons² of a tile pixel, ``mixed`` bool: not the same
    dithers everywhere in the cell.
    """
    shape = (config.size[1], config.size[0])
    x, y = cell_middles(shape)
    stamps = chip.truth["psf"]
    x0, y0, dx, dy = chip.truth["psf_grid"]
    rng = np.random.default_rng(1)
    out: dict[str, list] = {"psf": [], "template_psf": [], "template_var": [], "mixed": []}
    for cx, cy in zip(x.ravel(), y.ravel(), strict=True):
        at = [[(cy - y0) / dy], [(cx - x0) / dx]]
        flat = stamps.reshape(*stamps.shape[:2], -1)
        blend = [
            ndimage.map_coordinates(flat[..., k], at, order=1, mode="nearest")[0]
            for k in range(flat.shape[-1])
        ]
        out["psf"].append(np.reshape(blend, stamps.shape[2:]))
        places = np.rint([cx, cy]) + rng.integers(-SPREAD, SPREAD + 1, (PLACES, 2))
        each = [_template_stamp(config, place, wcs, made, plan) for place in places]
        used = [stamp for stamp, _, _ in each if stamp is not None]
        out["template_psf"].append(np.mean(used, axis=0) if used else np.full((2 * HALF + 1,) * 2, np.nan))
        out["template_var"].append(np.mean([variance for _, variance, _ in each]))
        half = CELL_PIX * 0.48
        corners = [(cx + i * half, cy + j * half) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        sets = {_covering_at(c, wcs, made.contributions)[1] for c in corners}
        out["mixed"].append(len(sets) > 1)
    return {name: np.reshape(values, (*x.shape, *np.shape(values[0]))) for name, values in out.items()}


def _covering_at(place, wcs: WCS, contributions: tuple[Contribution, ...]):
    """Return the contributions that the tile uses at a chip pixel, and their names as a tuple."""
    ra, dec = wcs.all_pix2world([place[0]], [place[1]], 0)
    covering: dict[int, Contribution] = {}
    for c in contributions:
        cx, cy = (float(v[0]) for v in pixels(c.wcs, ra, dec))
        inside = COVER <= cx < c.patch.columns - COVER and COVER <= cy < c.patch.rows - COVER
        if inside:
            covering.setdefault(c.exposure, c)
    used = list(covering.values())
    return used, tuple((c.exposure, c.patch.chip) for c in used)


def _template_stamp(
    config: SimulateConfig, place: np.ndarray, wcs: WCS, made: MadeTile, plan: TilePlan
) -> tuple[np.ndarray | None, float, int]:
    """Return (PSF on the chip's pixels, electrons² of a tile pixel, dithers) for a star on ``place``."""
    used, _ = _covering_at(place, wcs, made.contributions)
    if not used:
        return None, np.nan, 0
    near = np.array([[0, 0], [8, 0], [-8, 0], [0, 8], [0, -8]], dtype=float)
    tile, to_tile = _linear(place, near, wcs, plan.wcs)
    whole = np.rint(tile)
    offset = np.arange(-REACH, REACH + 1)
    gx, gy = np.meshgrid(offset, offset)
    planes = []
    for c in used:
        at, to_chip = _linear(whole, near, plan.wcs, c.wcs)
        star = at + to_chip @ (tile - whole)
        middle = np.rint(star)
        stamp = c.psf.stamp(*star, REACH + 6, off=tuple(star - middle))
        px = (at - middle)[0] + to_chip[0, 0] * gx + to_chip[0, 1] * gy + REACH + 6
        py = (at - middle)[1] + to_chip[1, 0] * gx + to_chip[1, 1] * gy + REACH + 6
        light = ndimage.map_coordinates(stamp, [py, px], order=1) * abs(np.linalg.det(to_chip))
        planes.append(light * throughput(config, c.patch, *star))
    combine = np.median if config.template.combine == "median" else np.mean
    combined = combine(planes, axis=0)
    own = np.arange(-HALF, HALF + 1)
    ox, oy = np.meshgrid(own, own)
    sx = (tile - whole)[0] + to_tile[0, 0] * ox + to_tile[0, 1] * oy + REACH
    sy = (tile - whole)[1] + to_tile[1, 0] * ox + to_tile[1, 1] * oy + REACH
    out = _lanczos4(combined, sx, sy)
    variance = sum(c.variance_e for c in used) / len(used) ** 2
    return out / out.sum(), variance, len(used)


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
    weights = []
    for past in (x - left, y - low):
        d = past[..., None] - taps
        w = np.where(np.abs(d) < 4, np.sinc(d) * np.sinc(d / 4), 0.0)
        weights.append(w / w.sum(axis=-1, keepdims=True))
    values = image[(low[..., None] + taps)[..., :, None], (left[..., None] + taps)[..., None, :]]
    return np.einsum("...ji,...j,...i->...", values, weights[1], weights[0])


class Geometry:
    """The true maps of a drawn chip, rebuilt from its configuration."""

    def __init__(self, config: SimulateConfig) -> None:
        (chip,) = config.chips
        distortion = distortions(config)
        ((_, exposure),) = plan_exposures(config, 0)
        (plan,) = plan_tiles(config, 0, distortion)
        self.config = config
        self.wcs = true_wcs(distortion[chip], exposure.at, patch_of(config, chip))
        self.tile = plan.wcs
        self.frames = [
            (k, patch, true_wcs(distortion[patch.chip], e.at, patch))
            for k, e in enumerate(plan.exposures)
            for patch in patches_under(plan, e, distortion)
        ]

    def template_position(self, part: WCS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return float64 [2, n]: pixels of a part of the tile (its WCS given) of chip pixels."""
        return np.stack(part.all_world2pix(*self.wcs.all_pix2world(x, y, 0), 0))

    def area(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the area of chip pixels in template pixels."""
        right, left = (self.template_position(self.tile, x + d, y) for d in (0.5, -0.5))
        up, down = (self.template_position(self.tile, x, y + d) for d in (0.5, -0.5))
        a, b = right - left, up - down
        return np.abs(a[0] * b[1] - a[1] * b[0])

    def template_counts(self, ra: np.ndarray, dec: np.ndarray, mag: np.ndarray) -> np.ndarray:
        """Return the counts of sources in the tile: the mean over its dithers, NaN where none covers."""
        total, count = np.zeros(len(ra)), np.zeros(len(ra))
        taken = np.zeros((len(ra), 8), dtype=bool)
        for k, patch, wcs in self.frames:
            x, y = pixels(wcs, ra, dec)
            use = (x >= COVER) & (x < patch.columns - COVER) & (y >= COVER) & (y < patch.rows - COVER)
            use &= ~taken[:, k]
            taken[:, k] |= use
            total += np.where(use, throughput(self.config, patch, x, y), 0.0)
            count += use
        with np.errstate(invalid="ignore", divide="ignore"):
            response = np.where(count > 0, total / count, np.nan)
        return response * 10 ** (0.4 * (self.config.template.zeropoint - mag))

    def covered(self, shape: tuple[int, int]) -> np.ndarray:
        """Return bool [y, x]: some dither of the template shows this pixel; true to `COVER_STEP` pixels."""
        y, x = np.mgrid[: shape[0] : COVER_STEP, : shape[1] : COVER_STEP] + COVER_STEP / 2
        ra, dec = self.wcs.all_pix2world(x.ravel(), y.ravel(), 0)
        known = np.isfinite(self.template_counts(ra, dec, np.zeros(x.size))).reshape(x.shape)
        return known.repeat(COVER_STEP, axis=0).repeat(COVER_STEP, axis=1)[: shape[0], : shape[1]]

    @property
    def electrons_per_count(self) -> float:
        """Electrons of one exposure that a count of the tile stands for."""
        return float(10 ** (0.4 * (zeropoint_electrons(self.config) - self.config.template.zeropoint)))


def signal_to_noise(flux_e: np.ndarray, psf: np.ndarray, variance_e: float) -> np.ndarray:
    """Return the S/N of point sources by their PSF, their own Poisson noise included."""
    grid = np.geomspace(1.0, 1e9, 200)
    positive = np.maximum(psf, 0)
    ratio = [np.sqrt(((f * positive) ** 2 / (variance_e + f * positive)).sum()) for f in grid]
    return np.interp(np.log(np.maximum(flux_e, 1e-3)), np.log(grid), ratio)
