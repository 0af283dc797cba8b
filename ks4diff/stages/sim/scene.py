"""The light that falls on one patch of a chip, without noise, and the list of what gave it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from ks4diff.numerics.stamps import add_sources
from ks4diff.stages.sim.config import ZEROPOINT_ADU_120S, ZEROPOINT_GAIN, SimulateConfig
from ks4diff.stages.sim.galaxies import BRIGHT_MAG, add_bright, add_faint, draw_library
from ks4diff.stages.sim.geometry import FULL_SIZE, Patch, Pointing, pixels, true_wcs
from ks4diff.stages.sim.psf import OpticalState, PsfField, draw_psf_field, optical_state
from ks4diff.stages.sim.sky import KINDS, at_time

REACH_ELECTRONS = 0.15  # per pixel: a hundredth of the sky noise of a dark B exposure
TRAIL_STEP_PIX = 1.0  # a moving object's streak is a row of points at most this far apart: a third of a FWHM


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One exposure's drawn circumstances; ``key`` seeds everything random about it."""

    key: tuple[int, ...]
    at: Pointing
    seeing_arcsec: float
    hours: float  # from the middle of the night's first exposure to this one's
    template: bool = False  # of the earlier epoch


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Noise-free light: ``light`` float32 [y, x] electrons; ``sources`` with x, y and flux (electrons)."""

    light: np.ndarray
    sources: np.ndarray
    psf: PsfField
    wcs: WCS
    patch: Patch
    zeropoint_e: float


def zeropoint_electrons(config: SimulateConfig) -> float:
    """Return the AB magnitude of one electron in one exposure."""
    scale = ZEROPOINT_GAIN * config.exptime_s / 120.0
    return ZEROPOINT_ADU_120S[config.band] + 2.5 * float(np.log10(scale))


def throughput(config: SimulateConfig, patch: Patch, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the relative response at pixels of the patch: a bowl and a tilt fixed to the real chip."""
    rng = np.random.default_rng([config.seed, 41, ord(patch.chip)])
    a, b, c = np.round(rng.uniform(-1, 1, 3) * config.optics.throughput_variation / 2, 6)
    u, v = 2 * (patch.x0 + x) / FULL_SIZE[0] - 1, 2 * (patch.y0 + y) / FULL_SIZE[1] - 1
    return 1 + a * u + b * v + c * (u * u + v * v - 2 / 3)


def draw_scene(
    config: SimulateConfig, exposure: Exposure, patch: Patch, catalog: np.ndarray, distortion
) -> Scene:
    """Return the light of ``catalog`` on the patch; the template's epoch when the exposure says so."""
    wcs = true_wcs(distortion, exposure.at, patch)
    chip_key = [config.seed, *exposure.key, ord(patch.chip)]
    state = optical_state(config.optics, exposure.seeing_arcsec, [config.seed, *exposure.key], chip_key)
    psf = draw_psf_field(config.optics, state, patch)
    now = at_time(catalog, exposure.hours)
    sources = _placed(config, exposure, patch, wcs, now)
    light = np.zeros((patch.rows, patch.columns), dtype=np.float32)
    galaxy = sources["kind"] == KINDS.index("galaxy")
    _add_points(light, psf, sources[~galaxy], config.exptime_s)
    _add_galaxies(
        light, psf, (state, patch, wcs), sources[galaxy], now[np.isin(now["id"], sources["id"][galaxy])]
    )
    return Scene(
        light=light,
        sources=sources,
        psf=psf,
        wcs=wcs,
        patch=patch,
        zeropoint_e=zeropoint_electrons(config),
    )


SOURCES = np.dtype(
    [
        ("id", "i8"), ("kind", "i2"), ("ra", "f8"), ("dec", "f8"), ("x", "f8"), ("y", "f8"),
        ("mag", "f8"), ("template_mag", "f8"), ("flux_e", "f8"), ("host", "i8"),
        ("rate_x", "f8"), ("rate_y", "f8"),
    ]
)  # fmt: skip


def _placed(
    config: SimulateConfig, exposure: Exposure, patch: Patch, wcs: WCS, now: np.ndarray
) -> np.ndarray:
    """Return `SOURCES` rows of what can reach the patch; rates in pixels per hour."""
    x, y = pixels(wcs, now["ra"], now["dec"])
    mag = now["template_mag"] if exposure.template else now["mag"]
    reach = np.where(mag < 16, 400.0, 60.0)
    near = (x > -reach) & (x < patch.columns + reach) & (y > -reach) & (y < patch.rows + reach)
    now, x, y, mag = now[near], x[near], y[near], mag[near]
    out = np.zeros(len(now), SOURCES)
    for name in ("id", "kind", "ra", "dec", "mag", "template_mag", "host"):
        out[name] = now[name]
    out["x"], out["y"] = x, y
    flux = 10 ** (0.4 * (zeropoint_electrons(config) - mag)) * throughput(config, patch, x, y)
    out["flux_e"] = np.round(flux, 4)
    moving = now["rate_east"] != 0
    if moving.any():
        later = at_time(now[moving], 1.0)
        x1, y1 = pixels(wcs, later["ra"], later["dec"])
        out["rate_x"][moving], out["rate_y"][moving] = x1 - x[moving], y1 - y[moving]
    return out


def _add_points(light: np.ndarray, psf: PsfField, sources: np.ndarray, exptime_s: float) -> None:
    """Draw point sources; moving ones as a row of points over the exposure, their x and y at its middle."""
    still = sources["rate_x"] == 0
    moving = sources[~still]
    hours = exptime_s / 3600
    length = np.hypot(moving["rate_x"], moving["rate_y"]) * hours
    count = np.ceil(length / TRAIL_STEP_PIX).astype(int) + 1
    each = np.repeat(np.arange(len(moving)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    when = ((np.arange(len(each)) - first + 0.5) / count[each] - 0.5) * hours
    streak = [
        moving["x"][each] + moving["rate_x"][each] * when,
        moving["y"][each] + moving["rate_y"][each] * when,
        moving["flux_e"][each] / count[each],
    ]
    points = np.concatenate([np.stack([sources[still][n] for n in ("x", "y", "flux_e")]), streak], axis=1)
    add_sources(
        light,
        np.concatenate([points, psf.reach(points[2], REACH_ELECTRONS)[None]]),
        psf.table,
        psf.grid,
        psf.wings,
    )


def _add_galaxies(
    light: np.ndarray,
    psf: PsfField,
    place: tuple[OpticalState, Patch, WCS],
    sources: np.ndarray,
    catalog: np.ndarray,
) -> None:
    """Draw galaxies; ``catalog`` are the same rows in the same order."""
    if not len(sources):
        return
    at = np.stack([sources[n] for n in ("x", "y", "flux_e")])
    bright = catalog["mag"] < BRIGHT_MAG
    add_bright(light, psf, place, catalog[bright], at[:, bright])
    if (~bright).any():
        library = draw_library(psf, place[0], place[1])
        add_faint(light, library, at[:, ~bright], library.nearest(catalog[~bright]))
