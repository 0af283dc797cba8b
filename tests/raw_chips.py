"""Raw chips with known truth: unequal amplifiers, overscan, a tilted sky with sources on the seams."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ks4diff.products.chip import Amplifier, RawChip


@dataclass(kw_only=True)
class Camera:
    """A chip's electronics; widths in pixels from left to right, never equal, the chip never square."""

    widths: tuple[int, ...] = (150, 170, 160, 140)
    rows: int = 900
    gains: tuple[float, ...] = (1.00, 1.09, 0.93, 1.04)  # counts per count of the mean amplifier
    bias: tuple[float, ...] = (2020.0, 1750.0, 1675.0, 1900.0)
    undershoot: tuple[float, ...] = (0.004, 0.012, 0.002, 0.008)  # of the row's signal, overscan only
    electrons: float = 1.8  # per count
    read_noise: float = 4.0  # counts
    overscan: int = 32
    chip: str = "M"
    dead: tuple[int, ...] = ()
    crosstalk: np.ndarray | None = None

    @property
    def edges(self):
        return np.concatenate([[0], np.cumsum(self.widths)])

    @property
    def shape(self):
        return self.rows, int(sum(self.widths))


@dataclass(kw_only=True)
class Sky:
    """What falls on the chip, in counts."""

    level: float = 180.0
    gradient: float = 0.06  # from corner to corner, of the level
    stars: int = 150
    flux: tuple[float, float] = (300.0, 30000.0)
    extra: list[tuple[float, float, float]] = field(default_factory=list)  # x, y, flux
    seed: int = 1


def light(camera: Camera, sky: Sky) -> tuple[np.ndarray, np.ndarray]:
    """Return (sky, sources) float64 [y, x]: stars everywhere, a quarter of them within 6 px of a seam."""
    rng = np.random.default_rng(sky.seed)
    height, width = camera.shape
    y, x = np.mgrid[:height, :width]
    smooth = sky.level * (1 + sky.gradient * (x / width - 0.7 * y / height) + 0.02 * (x / width) ** 2)
    sx, sy = rng.uniform(0, width, sky.stars), rng.uniform(0, height, sky.stars)
    quarter = sky.stars // 4
    sx[:quarter] = rng.choice(camera.edges[1:-1], quarter) + rng.uniform(-6, 6, quarter)
    flux = np.exp(rng.uniform(*np.log(sky.flux), sky.stars))
    sources = np.zeros(camera.shape)
    for px, py, f in [*zip(sx, sy, flux, strict=True), *sky.extra]:
        half = 60 if f > 1e5 else 25
        x0, x1 = max(0, int(px) - half), min(width, int(px) + half + 1)
        y0, y1 = max(0, int(py) - half), min(height, int(py) + half + 1)
        dx, dy = np.arange(x0, x1) - px, np.arange(y0, y1)[:, None] - py
        r2 = (dx**2 + dy**2) / 2.2**2
        sources[y0:y1, x0:x1] += f * (1.8 / (np.pi * 2.2**2)) * (1 + r2) ** -2.8
    return smooth, sources


def expose(
    camera: Camera, sky: Sky, *, flat=1.0, structure=0.0, full: float = 60000.0, trails=None
) -> RawChip:
    """Return the raw chip that the camera reads: flat, gain, crosstalk, bias structure, noise, overscan.

    ``trails`` are rectangles (x0, x1, y0, y1, counts) added on top: bled charge.
    """
    rng = np.random.default_rng(sky.seed + 1000)
    smooth, sources = light(camera, sky)
    electrons = rng.poisson(np.maximum((smooth + sources) * flat * camera.electrons, 0))
    signal = electrons / camera.electrons
    edges = camera.edges
    for x0, x1, y0, y1, counts in trails or ():
        signal[y0:y1, x0:x1] += counts
    heard = np.zeros_like(signal)
    if camera.crosstalk is not None:
        heard = hear(signal, camera)
    data = np.empty(camera.shape, np.float32)
    amplifiers = []
    for k, (x0, x1) in enumerate(pairwise(edges)):
        part = (signal[:, x0:x1] + heard[:, x0:x1]) * camera.gains[k]
        if k in camera.dead:
            part = np.zeros_like(part)
        extra = structure[:, x0:x1] if np.ndim(structure) else structure
        noise = 0.3 if k in camera.dead else camera.read_noise
        level = 200.0 if k in camera.dead else camera.bias[k] + 3 * np.sin(np.arange(camera.rows) / 300)
        level = np.broadcast_to(level, camera.rows)[:, None]
        data[:, x0:x1] = part + level + extra + rng.normal(0, noise, part.shape)
        strip = level + rng.normal(0, noise, (camera.rows, camera.overscan))
        strip = strip - camera.undershoot[k] * part[:, -40:].mean(axis=1, keepdims=True)
        amplifiers.append(
            Amplifier(
                name=f"{camera.chip}{k + 1:02d}",
                x0=int(x0),
                x1=int(x1),
                overscan=np.round(strip).astype(np.float32),
                gain=camera.electrons / camera.gains[k],
                read_noise=7.0,
            )
        )
    data = np.clip(np.round(data), 0, full).astype(np.float32)
    return RawChip(
        data=data, file="made.fits", hdu="0", chip=camera.chip, saturation=full, amplifiers=tuple(amplifiers)
    )


def hear(signal, camera):
    """Return the ghosts by a double loop over amplifiers and a step in readout order."""
    heard = np.zeros_like(signal)
    edges, n = camera.edges, len(camera.widths)
    for victim in range(n):
        for source in range(n):
            c = camera.crosstalk[victim, source]
            for step in range(min(camera.widths[victim], camera.widths[source]) if c else 0):
                here = edges[victim] + step if victim < n / 2 else edges[victim + 1] - 1 - step
                there = edges[source] + step if source < n / 2 else edges[source + 1] - 1 - step
                heard[:, here] += c * signal[:, there]
    return heard


def true_steps(chip: RawChip, camera: Camera, sky: Sky, columns: int = 50) -> np.ndarray:
    """Return each seam's step in sigma of a pixel, the true sky and stars taken away: no model of ours."""
    smooth, sources = light(camera, sky)
    clear = sources < 0.02 * np.sqrt(sky.level)
    # the chip's scale is free: one factor for all of it
    scale = np.median(chip.data[clear]) / np.median(smooth[clear])
    residual = chip.data - scale * smooth
    steps = []
    for x in camera.edges[1:-1]:
        left, right = slice(x - columns, x), slice(x, x + columns)
        good = [clear[:, s] & (chip.flags[:, s] == 0) for s in (left, right)]
        level = [np.mean(residual[:, s][g]) for s, g in zip((left, right), good, strict=True)]
        sigma = np.std(residual[:, left][good[0]])
        steps.append((level[1] - level[0]) / sigma)
    return np.array(steps)
