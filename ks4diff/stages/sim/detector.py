"""From photons to counts: sky, noise, bleeding, crosstalk, bias and overscan of one chip."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from ks4diff.numerics.detector import bleed
from ks4diff.products.ids import Site
from ks4diff.products.simulated import OVERSCAN, PRESCAN, SimulatedAmplifier
from ks4diff.stages.detector import GAIN_MEDIAN, READ_NOISE_E
from ks4diff.stages.sim import artefacts
from ks4diff.stages.sim.config import (
    BIAS_ADU,
    DARK_SKY_ADU_120S,
    MOON_SKY_ADU_120S,
    ZEROPOINT_GAIN,
    SimulateConfig,
)
from ks4diff.stages.sim.geometry import FULL_SIZE, Patch
from ks4diff.stages.sim.scene import Scene

BLOCK_ROWS = 256  # each block of rows has its own random stream, so that blocks may be drawn in any order
DEAD_STRIP = (Site.CTIO, "N", 6)  # facts/kmtnet.md section 7: N02, x 6913-8064
DEAD_ADU = 200.0
UPWARDS = ("M", "T")  # chips whose saturated columns bleed to higher rows
CEILING = 65535


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """Charge collected by one patch, before readout, with what was done to it.

    ``charge`` float32 electrons [y, x]; ``sky_e`` the mean sky; ``artefacts`` rows of `artefacts.ARTEFACT`;
    ``struck`` bool [y, x] where particles left charge; ``full`` electrons [x].
    """

    charge: np.ndarray
    sky_e: float
    artefacts: np.ndarray
    struck: np.ndarray
    full: np.ndarray


def amplifiers(
    config: SimulateConfig, patch: Patch, edges: tuple[int, ...]
) -> tuple[SimulatedAmplifier, ...]:
    """Return the strips of a patch between the column ``edges``, eight of them equal on a cut-out chip."""
    site = Site(config.site)
    rng = np.random.default_rng([config.seed, 51, ord(patch.chip)])
    middle = GAIN_MEDIAN[site][patch.chip]
    read_noise = 11.5 if (site, patch.chip) == (Site.SAAO, "T") else READ_NOISE_E[site]
    out = []
    for k, (x0, x1) in enumerate(pairwise(edges)):
        z = np.clip(rng.normal(size=3), -2, 2)
        dead = config.detector.dead_strip and (site, patch.chip, k) == DEAD_STRIP and len(edges) == 9
        out.append(
            SimulatedAmplifier(
                x0=x0,
                x1=x1,
                gain=float(np.round(middle * (1 + config.detector.gain_sigma * z[0]), 4)),
                read_noise=float(np.round(read_noise * (1 + 0.1 * z[1]), 3)),
                bias=DEAD_ADU
                if dead
                else float(np.round(BIAS_ADU[site] + config.detector.bias_sigma_adu * z[2], 2)),
                dead=dead,
            )
        )
    return tuple(out)


def sky_electrons(config: SimulateConfig) -> float:
    """Return the sky of one exposure, electrons per pixel."""
    dark, moon = DARK_SKY_ADU_120S[config.band], MOON_SKY_ADU_120S[config.band]
    return (dark + config.detector.moon * (moon - dark)) * ZEROPOINT_GAIN * config.exptime_s / 120.0


def sky_image(config: SimulateConfig, patch: Patch, key: list[int], rows: slice) -> np.ndarray:
    """Return float32 electrons of the sky on some rows: a gradient, and fringes in I."""
    rng = np.random.default_rng([config.seed, 52, *key])
    size, angle = config.detector.sky_gradient * rng.uniform(0.3, 1.0) / 2, rng.uniform(0, 2 * np.pi)
    u = (2 * (patch.x0 + np.arange(patch.columns)) / FULL_SIZE[0] - 1)[None, :]
    v = (2 * (patch.y0 + np.arange(rows.start, rows.stop)) / FULL_SIZE[1] - 1)[:, None]
    shape = 1 + size * (np.cos(angle) * u + np.sin(angle) * v)
    if config.band == "I":
        shape = shape + config.detector.fringe * _fringe(config.seed, patch.chip, u, v)
    return (sky_electrons(config) * shape).astype(np.float32)


def _fringe(seed: int, chip: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the chip's own fringes, rms about 0.7: contours of a lumpy thickness of the silicon."""
    rng = np.random.default_rng([seed, 53, ord(chip)])
    thickness = 0.0
    for _ in range(6):
        kx, ky, phase = rng.uniform(-6, 6), rng.uniform(-6, 6), rng.uniform(0, 2 * np.pi)
        thickness = thickness + rng.uniform(0.5, 1.5) * np.cos(kx * u + ky * v + phase)
    return np.cos(2 * np.pi * 3 * thickness)


def expose(
    config: SimulateConfig, scene: Scene, key: list[int], strips: tuple[SimulatedAmplifier, ...]
) -> Exposed:
    """Return the charge that the scene leaves: photons counted, particles, bleeding."""
    patch, detector = scene.patch, config.detector
    rng = np.random.default_rng([config.seed, 54, *key])
    sigma = np.sqrt(sky_electrons(config) + strips[0].read_noise ** 2)
    charge = scene.light
    found = [artefacts.trails(detector, rng, charge, sigma)]
    for start in range(0, patch.rows, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, patch.rows))
        block = np.random.default_rng([config.seed, 55, *key, start])
        flat = _flat(config, patch, start, rows.stop - start)
        mean = (charge[rows] + sky_image(config, patch, key, rows)) * flat
        # rounding hides the last bits of other machines' transforms from the random draws
        charge[rows] = block.poisson(np.rint(np.maximum(mean, 0) * 1024.0) / 1024.0)
    struck = np.zeros(charge.shape, dtype=bool)
    found.append(artefacts.cosmic_rays(detector, rng, charge, struck))
    full = np.concatenate([np.full(s.x1 - s.x0, detector.saturation_adu * s.gain) for s in strips])
    columns = np.random.default_rng([config.seed, 56, ord(patch.chip)])
    full *= 1 + detector.saturation_sigma * np.clip(columns.normal(size=len(full)), -3, 3)
    full = full.astype(np.float32).astype(np.float64)  # so that a full pixel equals it
    bleed(charge, full, patch.chip in UPWARDS)
    found.append(_bleeds(charge, full))
    return Exposed(
        charge=charge,
        sky_e=sky_electrons(config),
        artefacts=np.concatenate(found),
        struck=struck,
        full=full,
    )


def _flat(config: SimulateConfig, patch: Patch, start: int, rows: int) -> np.ndarray:
    """Return what flat-fielding left of the pixels' own response, the same in every exposure."""
    rng = np.random.default_rng([config.seed, 57, ord(patch.chip), patch.x0, patch.y0 + start])
    noise = rng.standard_normal((rows, patch.columns), dtype=np.float32)
    return 1 + np.float32(config.detector.flat_residual) * noise


def _bleeds(charge: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Return an artefact row for each group of full pixels."""
    label, n = ndimage.label(charge >= full[None, :])
    boxes = ndimage.find_objects(label)
    out = np.zeros(n, artefacts.ARTEFACT)
    out["kind"] = b"saturated"
    for k, (rows, columns) in enumerate(boxes):
        out[k]["x0"], out[k]["x1"], out[k]["y0"], out[k]["y1"] = (
            columns.start,
            columns.stop,
            rows.start,
            rows.stop,
        )
        out[k]["value"] = charge[rows, columns].max()
    return out


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """Counts uint16 [y, x], their bias [amplifier, row], pre- and overscan [amplifier, row, n]."""

    counts: np.ndarray
    bias: np.ndarray
    overscan: np.ndarray
    prescan: np.ndarray
    artefacts: np.ndarray


def read_out(
    config: SimulateConfig,
    exposed: Exposed,
    patch: Patch,
    key: list[int],
    strips: tuple[SimulatedAmplifier, ...],
) -> ReadOut:
    """Return the chip as its electronics deliver it."""
    rng = np.random.default_rng([config.seed, 61, *key])
    adu = exposed.charge
    for strip in strips:
        adu[:, strip.x0 : strip.x1] *= 0.0 if strip.dead else 1.0 / strip.gain
    found = [exposed.artefacts, artefacts.defects(config, patch, adu, strips)]
    for strip in strips:
        if strip.dead:
            adu[:, strip.x0 : strip.x1] = 0.0
    found.append(artefacts.crosstalk(config, patch.chip, adu, strips, exposed.sky_e / strips[0].gain))
    rows = adu.shape[0]
    n = len(strips)
    bias = np.empty((n, rows), dtype=np.float32)
    overscan, prescan = np.empty((n, rows, OVERSCAN), np.uint16), np.empty((n, rows, PRESCAN), np.uint16)
    counts = np.empty(adu.shape, np.uint16)
    for k, strip in enumerate(strips):
        part = adu[:, strip.x0 : strip.x1]
        sag = ndimage.uniform_filter1d(part.mean(axis=1, dtype=np.float64), 65) * config.detector.undershoot
        bias[k] = np.round(strip.bias - sag, 3)
        noise = strip.read_noise / strip.gain
        for out, level, width in ((overscan, 0.0, OVERSCAN), (prescan, 0.0, PRESCAN), (counts, part, 0)):
            shape = (rows, width) if width else part.shape
            drawn = level + bias[k][:, None] + noise * rng.standard_normal(shape, dtype=np.float32)
            whole = np.clip(np.rint(drawn), 0, CEILING).astype(np.uint16)
            if width:
                out[k] = whole
            else:
                counts[:, strip.x0 : strip.x1] = whole
    return ReadOut(
        counts=counts, bias=bias, overscan=overscan, prescan=prescan, artefacts=np.concatenate(found)
    )
