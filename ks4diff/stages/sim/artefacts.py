"""Everything on an image that is no light from the sky: trails, particles, defects, ghosts."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.detector import add_tracks
from ks4diff.products.simulated import SimulatedAmplifier
from ks4diff.stages.sim.config import DetectorConfig, SimulateConfig
from ks4diff.stages.sim.geometry import Patch

ARTEFACT = np.dtype(
    [
        ("kind", "S16"),
        ("x0", "i4"),  # box [x0, x1) x [y0, y1), 0-based pixels of the assembled chip
        ("x1", "i4"),
        ("y0", "i4"),
        ("y1", "i4"),
        ("value", "f8"),  # trail: electrons of the ridge; cosmic ray and hot: electrons; crosstalk: counts
        ("angle", "f8"),  # trail: degrees from x towards y
        ("source", "i4"),  # crosstalk: aggressor's amplifier, 0 to 7; else -1
    ]
)


def _rows(kind: str, n: int) -> np.ndarray:
    out = np.zeros(n, ARTEFACT)
    out["kind"] = kind.encode()
    out["source"] = -1
    return out


def trails(config: DetectorConfig, rng: np.random.Generator, light: np.ndarray, sigma: float) -> np.ndarray:
    """Add satellite trails to the light in place and return their rows."""
    height, width = light.shape
    n = rng.poisson(config.trails)
    out = _rows("trail", n)
    for k in range(n):
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, np.pi)
        spread = rng.uniform(1.5, 3.5)  # seeing and the satellite's defocus, sigma in pixels
        peak = sigma * np.exp(rng.uniform(*np.log(config.trail_sigma)))
        out[k]["value"], out[k]["angle"] = np.round(peak, 3), np.degrees(angle)
        touched = np.zeros(light.shape[0], bool)
        reach = np.zeros(width, bool)
        for start in range(0, height, 128):
            rows = np.arange(start, min(start + 128, height))
            columns = _crossed(width, x, rows[[0, -1]] - y, angle, 6 * spread)
            away = (columns[None, :] - x) * np.sin(angle) - (rows[:, None] - y) * np.cos(angle)
            streak = np.where(np.abs(away) < 6 * spread, peak * np.exp(-0.5 * (away / spread) ** 2), 0)
            light[rows[0] : rows[-1] + 1, columns] += streak.astype(np.float32)
            touched[rows] = (streak > 0).any(axis=1)
            reach[columns] |= (streak > 0).any(axis=0)
        box_x, box_y = np.flatnonzero(reach), np.flatnonzero(touched)
        if len(box_x):
            out[k]["x0"], out[k]["x1"] = box_x[0], box_x[-1] + 1
            out[k]["y0"], out[k]["y1"] = box_y[0], box_y[-1] + 1
    return out


def _crossed(width: int, x: float, rise: np.ndarray, angle: float, half: float) -> np.ndarray:
    """Return the columns within ``half`` of a line through column ``x``, ``rise`` rows from that point."""
    slope = max(np.sin(angle), 1e-6)
    ends = x + (np.array([[-half], [half]]) + rise * np.cos(angle)) / slope
    return np.arange(max(int(min(ends.min(), width)), 0), max(min(int(ends.max()) + 2, width), 0))


def cosmic_rays(
    config: DetectorConfig, rng: np.random.Generator, charge: np.ndarray, struck: np.ndarray
) -> np.ndarray:
    """Add particle tracks to the charge in place, set ``struck`` there and return their rows."""
    height, width = charge.shape
    n = rng.poisson(config.cosmic_rays_mpix * height * width / 1e6)
    length = rng.exponential(config.cosmic_ray_length_pix, n)
    worm = rng.random(n) < 0.05
    length[worm] *= 5
    angle = rng.uniform(0, 2 * np.pi, n)
    bow = np.where(worm, rng.normal(0, 0.8, n) * length, 0.0)
    per_pixel = np.exp(rng.normal(config.cosmic_ray_log_electrons, config.cosmic_ray_log_sigma, n))
    x, y = rng.uniform(0, width, n), rng.uniform(0, height, n)
    dx, dy = length * np.cos(angle), length * np.sin(angle)
    add_tracks(charge, np.round(np.stack([x, y, dx, dy, per_pixel, bow]), 3), struck)
    out = _rows("cosmic_ray", n)
    sag = np.abs(bow) / 4
    out["x0"], out["x1"] = np.floor(np.minimum(x, x + dx) - sag), np.ceil(np.maximum(x, x + dx) + sag) + 1
    out["y0"], out["y1"] = np.floor(np.minimum(y, y + dy) - sag), np.ceil(np.maximum(y, y + dy) + sag) + 1
    out["value"] = np.round(per_pixel * np.maximum(length, 1), 2)
    return out


def defects(
    config: SimulateConfig, patch: Patch, adu: np.ndarray, strips: tuple[SimulatedAmplifier, ...]
) -> np.ndarray:
    """Put bad columns and hot pixels into the counts in place, the same in every exposure of the chip."""
    rng = np.random.default_rng([config.seed, 71, ord(patch.chip)])
    height, width = adu.shape
    share = width * height / (9216 * 9232)
    n = rng.poisson(config.detector.bad_columns * max(share, 0.1))
    columns = _rows("bad_column", n)
    columns["x0"] = rng.integers(0, width, n)
    columns["x1"] = columns["x0"] + rng.choice([1, 1, 2], n)
    start = rng.integers(0, height, n)
    for k in range(n):
        # a trap holds back what is clocked through it: the column is bad from there to the far end
        rows = slice(start[k], height) if rng.random() < 0.5 else slice(0, start[k] + 1)
        hot = rng.random() < 0.5
        level = rng.uniform(100, 3000)
        box = adu[rows, columns[k]["x0"] : columns[k]["x1"]]
        if hot:
            box += np.float32(level)
        else:
            box *= np.float32(0.3)
        columns[k]["y0"], columns[k]["y1"] = rows.start, rows.stop
        columns[k]["value"] = level if hot else -0.7
    m = rng.poisson(config.detector.hot_pixels_mpix * width * height / 1e6)
    hot = _rows("hot_pixel", m)
    hot["x0"], hot["y0"] = rng.integers(0, width, m), rng.integers(0, height, m)
    hot["x1"], hot["y1"] = hot["x0"] + 1, hot["y0"] + 1
    hot["value"] = np.round(np.exp(rng.normal(6, 1, m)), 2)
    np.add.at(adu, (hot["y0"], hot["x0"]), hot["value"].astype(np.float32))
    dead = [_box("dead_strip", s.x0, s.x1, height) for s in strips if s.dead]
    return np.concatenate([columns, hot, *dead])


def _box(kind: str, x0: int, x1: int, height: int) -> np.ndarray:
    out = _rows(kind, 1)
    out["x0"], out["x1"], out["y1"] = x0, x1, height
    return out


def coefficients(config: SimulateConfig, chip: str) -> np.ndarray:
    """Return [victim, aggressor] crosstalk of a chip: amplifiers of the same parity only."""
    rng = np.random.default_rng([config.seed, 72, ord(chip)])
    low, high = config.detector.crosstalk
    table = np.round(rng.uniform(low, high, (8, 8)), 7)
    k = np.arange(8)
    return table * ((k[:, None] - k[None, :]) % 2 == 0) * (k[:, None] != k[None, :])


def crosstalk(
    config: SimulateConfig, chip: str, adu: np.ndarray, strips: tuple[SimulatedAmplifier, ...], sky: float
) -> np.ndarray:
    """Add ghosts of bright pixels to other amplifiers in place; return rows for those of 2 counts and more.

    Amplifiers 1-4 are read from the left and 5-8 from the right, so that a ghost keeps its column within a
    half and is mirrored in the other.
    """
    if len(strips) != 8 or config.detector.crosstalk[1] <= 0:
        return _rows("crosstalk", 0)
    table = coefficients(config, chip)
    width = strips[0].x1 - strips[0].x0
    ghosts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    found = []
    for a, strip in enumerate(strips):
        part = adu[:, strip.x0 : strip.x1]
        ys, xs = np.nonzero(part - sky > config.detector.crosstalk_min_adu)
        excess = part[ys, xs] - sky
        for v in np.flatnonzero(table[:, a]):
            if strips[v].dead:
                continue
            column = xs if (a < 4) == (v < 4) else width - 1 - xs
            ghosts.append((ys, strips[v].x0 + column, table[v, a] * excess))
            found.append(_ghost_rows(ys, strips[v].x0 + column, table[v, a] * excess, a))
    for ys, xs, value in ghosts:
        adu[ys, xs] += value.astype(np.float32)
    return np.concatenate([_rows("crosstalk", 0), *found])


def _ghost_rows(ys: np.ndarray, xs: np.ndarray, value: np.ndarray, source: int) -> np.ndarray:
    """Return one row for each clump of ghost pixels above 2 counts, clumps being 24 pixel cells."""
    strong = value > 2
    if not strong.any():
        return _rows("crosstalk", 0)
    ys, xs, value = ys[strong], xs[strong], value[strong]
    cell, first = np.unique((ys // 24).astype(np.int64) * 100_000 + xs // 24, return_inverse=True)
    out = _rows("crosstalk", len(cell))
    out["source"] = source
    for name, low, high in (("x", xs, xs + 1), ("y", ys, ys + 1)):
        lowest, highest = np.full(len(cell), 2**30), np.zeros(len(cell), int)
        np.minimum.at(lowest, first, low)
        np.maximum.at(highest, first, high)
        out[f"{name}0"], out[f"{name}1"] = lowest, highest
    np.maximum.at(out["value"], first, value)
    return out
