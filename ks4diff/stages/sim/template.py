"""KS4-like tiles: dithered exposures of an earlier epoch, resampled bilinearly to 0.4" and combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import sep
from astropy.wcs import WCS
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline

from ks4diff.numerics.detector import resample_bilinear
from ks4diff.products.ids import CHIPS
from ks4diff.products.simulated import SimulatedTile
from ks4diff.stages.sim.config import SimulateConfig
from ks4diff.stages.sim.detector import amplifiers, expose, sky_electrons
from ks4diff.stages.sim.geometry import (
    FULL_SIZE,
    STRETCH,
    Distortion,
    Patch,
    pixel_area_arcsec2,
    pixels,
    template_nodes,
    true_wcs,
)
from ks4diff.stages.sim.psf import PsfField
from ks4diff.stages.sim.scene import Exposure, draw_scene, zeropoint_electrons

ROWS = 512  # combined at a time
EDGE_PIX = 40  # drawn around a tile, so that its border is not a chip's
# variance of the median of n normal deviates over that of their mean
MEDIAN_LOSS = {1: 1.0, 2: 1.0, 3: 1.35, 4: 1.19, 5: 1.43, 6: 1.29, 7: 1.47, 8: 1.34}


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """One chip of one exposure in a tile: what was true; ``variance_e`` of a sky pixel, electrons²."""

    exposure: int
    patch: Patch
    wcs: WCS
    psf: PsfField
    variance_e: float
    seeing_arcsec: float


@dataclass(frozen=True, kw_only=True)
class MadeTile:
    """A tile and its truth."""

    tile: SimulatedTile
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Where a tile lies: its name, pixels, and how the camera was pointed for it."""

    name: str
    field: str
    wcs: WCS
    shape: tuple[int, int]
    exposures: tuple[Exposure, ...]


def patches_under(plan: TilePlan, exposure: Exposure, distortion: Mapping[str, Distortion]) -> list[Patch]:
    """Return the part of each real chip that falls on the tile in one exposure."""
    step = max(min(plan.shape) / 48, 1.0)
    xs, ys = (np.arange(0, n + step, step) for n in plan.shape[::-1])
    gx, gy = (a.ravel() for a in np.meshgrid(xs, ys))
    ra, dec = plan.wcs.wcs_pix2world(gx, gy, 0)
    out = []
    for chip in CHIPS:
        whole = Patch(chip=chip, x0=0, y0=0, columns=FULL_SIZE[0], rows=FULL_SIZE[1])
        wcs = true_wcs(distortion[chip], exposure.at, whole)
        x, y = pixels(wcs, ra, dec)
        inside = (x > -step) & (x < FULL_SIZE[0] + step) & (y > -step) & (y < FULL_SIZE[1] + step)
        # far from the chip the cubic folds back onto it
        back = np.stack(wcs.all_pix2world(np.where(inside, x, 0), np.where(inside, y, 0), 0))
        inside &= np.abs(back - np.stack([ra, dec])).max(axis=0) < 1e-6
        if not inside.any():
            continue
        grow = EDGE_PIX + 1.1 * step
        x0, y0 = (int(max(v[inside].min() - grow, 0)) for v in (x, y))
        x1 = int(min(x[inside].max() + grow, FULL_SIZE[0]))
        y1 = int(min(y[inside].max() + grow, FULL_SIZE[1]))
        if min(x1 - x0, y1 - y0) >= 64:
            out.append(Patch(chip=chip, x0=x0, y0=y0, columns=x1 - x0, rows=y1 - y0))
    return out


def make_tile(
    config: SimulateConfig,
    plan: TilePlan,
    catalog: np.ndarray,
    distortion: Mapping[str, Distortion],
    allocate: Callable[[tuple[int, ...]], np.ndarray],
) -> MadeTile:
    """Return the tile; ``allocate`` gives float32 memory for its exposures' planes (on disk when large)."""
    planes = allocate((len(plan.exposures), *plan.shape))
    contributions = []
    for k, exposure in enumerate(plan.exposures):
        planes[k] = np.nan
        for patch in patches_under(plan, exposure, distortion):
            contribution, light, bad = _frame(config, exposure, patch, catalog, distortion[patch.chip], k)
            contributions.append(contribution)
            _lay(planes[k], plan, contribution.wcs, light, bad)
    data = _combine(planes, config.template.combine)
    scale = _to_zeropoint(config)
    tile = SimulatedTile(
        name=plan.name,
        field=plan.field,
        band=config.band,
        data=data,
        wcs=plan.wcs,
        exptime=config.exptime_s * len(plan.exposures),
        mjd=0.0,
        fwhm_arcsec=float(np.mean([e.seeing_arcsec for e in plan.exposures])),
        saturation=round(config.detector.saturation_adu * amplifier_gain(config) * scale, 1),
        zeropoint=config.template.zeropoint,
        facts={"n_images": float(len(plan.exposures)), "n_chips": float(len(contributions))},
    )
    return MadeTile(tile=tile, contributions=tuple(contributions))


def amplifier_gain(config: SimulateConfig) -> float:
    """Return the lowest gain of the site: the first amplifier to saturate sets a stack's SATURATE."""
    whole = [Patch(chip=chip, x0=0, y0=0, columns=FULL_SIZE[0], rows=FULL_SIZE[1]) for chip in CHIPS]
    return min(strip.gain for patch in whole for strip in amplifiers(config, patch, _edges(patch)))


def _edges(patch: Patch) -> tuple[int, ...]:
    """Return the column edges, in the patch, of the real amplifiers that it touches."""
    first, last = patch.x0, patch.x0 + patch.columns
    inner = [x for x in range(1152, FULL_SIZE[0], 1152) if first < x < last]
    return tuple(x - first for x in (first, *inner, last))


def _to_zeropoint(config: SimulateConfig) -> float:
    return float(10 ** (0.4 * (config.template.zeropoint - zeropoint_electrons(config))))


def _frame(
    config: SimulateConfig,
    exposure: Exposure,
    patch: Patch,
    catalog: np.ndarray,
    distortion: Distortion,
    number: int,
) -> tuple[Contribution, np.ndarray, np.ndarray]:
    """Return one reduced chip, in units of the tile per tile pixel, and where it may not be used."""
    key = [*exposure.key, ord(patch.chip), patch.x0, patch.y0]
    scene = draw_scene(config, exposure, patch, catalog, distortion)
    strips = amplifiers(config, patch, _edges(patch))
    exposed = expose(config, scene, key, strips)
    rng = np.random.default_rng([config.seed, 81, *key])
    light = exposed.charge
    for strip in strips:
        part = light[:, strip.x0 : strip.x1]
        part += np.float32(strip.read_noise) * rng.standard_normal(part.shape, dtype=np.float32)
        part *= np.float32(1 + config.template.gain_error * np.clip(rng.normal(), -2, 2))
    bad = _cleaned(exposed.struck, rng, config.template.cosmic_rays_kept)
    mesh = config.template.background_mesh_pix
    light -= sep.Background(light, mask=bad, bw=mesh, bh=mesh, fw=3, fh=3).back()
    error = 10 ** (0.4 * config.template.zeropoint_error * np.clip(rng.normal(), -2, 2))
    light *= (_to_zeropoint(config) * error * _area_ratio(config, scene.wcs, patch)).astype(np.float32)
    contribution = Contribution(
        exposure=number,
        patch=patch,
        wcs=scene.wcs,
        psf=scene.psf,
        variance_e=sky_electrons(config) + strips[0].read_noise ** 2,
        seeing_arcsec=exposure.seeing_arcsec,
    )
    return contribution, light, bad


def _cleaned(struck: np.ndarray, rng: np.random.Generator, kept: float) -> np.ndarray:
    """Return where cosmic rays were recognised: all tracks but a fraction ``kept``."""
    label, n = ndimage.label(struck, structure=np.ones((3, 3)))
    known = rng.random(n + 1) >= kept
    known[0] = False
    return known[label]


def _area_ratio(config: SimulateConfig, wcs: WCS, patch: Patch) -> np.ndarray:
    """Return [y, x] the sky area of a tile pixel over that of each pixel of the patch: flux is conserved."""
    xs, ys = np.linspace(0, patch.columns - 1, 9), np.linspace(0, patch.rows - 1, 9)
    gx, gy = np.meshgrid(xs, ys)
    area = pixel_area_arcsec2(wcs, gx.ravel(), gy.ravel()).reshape(gx.shape)
    ratio = np.round(config.template.pixel_arcsec**2 / area, 7)
    return RectBivariateSpline(ys, xs, ratio)(np.arange(patch.rows), np.arange(patch.columns))


def _lay(plane: np.ndarray, plan: TilePlan, wcs: WCS, light: np.ndarray, bad: np.ndarray) -> None:
    """Resample one chip onto the tile's plane, strip by strip; pixels that have data already keep it."""
    for start in range(0, plan.shape[0], ROWS):
        shape = (min(ROWS, plan.shape[0] - start), plan.shape[1])
        nodes = template_nodes(plan.wcs, wcs, (0, start), shape)
        x, y = nodes
        if x.max() < 0 or y.max() < 0 or x.min() > light.shape[1] or y.min() > light.shape[0]:
            continue
        new = resample_bilinear(light, bad, nodes, int(STRETCH), shape)
        part = plane[start : start + shape[0]]
        use = np.isnan(part) & ~np.isnan(new)
        part[use] = new[use]


def _combine(planes: np.ndarray, how: str) -> np.ndarray:
    """Return the median or mean of the planes where they have data, 0 where none has."""
    out = np.zeros(planes.shape[1:], dtype=np.float32)
    for start in range(0, out.shape[0], ROWS):
        stack = np.array(planes[:, start : start + ROWS])
        count = np.isfinite(stack).sum(axis=0)
        if how == "mean":
            out[start : start + ROWS] = np.nansum(stack, axis=0) / np.maximum(count, 1)
            continue
        stack.sort(axis=0)
        stack[~np.isfinite(stack)] = 0
        low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(stack) - 1)
        pair = [np.take_along_axis(stack, k[None], axis=0)[0] for k in (low, high)]
        out[start : start + ROWS] = np.where(count > 0, 0.5 * (pair[0] + pair[1]), 0)
    return out
