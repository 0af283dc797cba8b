"""The sky: stars, galaxies and what changes, drawn cell by cell so that every chip sees the same."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS
from scipy.special import gammaincinv

from ks4diff.stages.sim.config import SkyConfig
from ks4diff.stages.sim.geometry import outline, tangent_plane

CELL_DEG = 0.05  # side of one independently drawn cell of a field's tangent plane
MPIX_DEG2 = 0.395**2 * 1e6 / 3600**2
KINDS = ("star", "galaxy", "hostless", "hosted", "nuclear", "variable", "moving", "fading")
CHANGING = KINDS[2:]
SERSIC_N = (1.0, 1.5, 2.5, 4.0)  # GalSim keeps one table per index
SERSIC_SHARE = (0.55, 0.2, 0.1, 0.15)
ABSENT = 99.0  # magnitude of what is not there

CATALOG = np.dtype(
    [
        ("id", "i8"),
        ("kind", "i2"),  # index into KINDS
        ("ra", "f8"),  # degrees; of moving objects in the middle of the night's first exposure
        ("dec", "f8"),
        ("mag", "f8"),  # AB, science epoch
        ("template_mag", "f8"),
        ("half_light", "f8"),  # arcsec, 0 for points
        ("sersic_n", "f8"),
        ("axis_ratio", "f8"),
        ("angle", "f8"),  # degrees, north to east
        ("host", "i8"),  # id, or -1
        ("rate_east", "f8"),  # arcsec per hour
        ("rate_north", "f8"),
    ]
)


def sky_around(
    config: SkyConfig,
    seed: int,
    centre: tuple[float, float],
    images: list[tuple[WCS, int, int]],
    margin: float,
) -> np.ndarray:
    """Return the `CATALOG` rows of every cell within ``margin`` degrees of one of the images.

    ``images`` are (WCS, columns, rows); equal seeds give equal cells whatever is asked for.
    """
    plane = tangent_plane(centre, CELL_DEG)
    wanted: set[tuple[int, int]] = set()
    for wcs, columns, rows in images:
        u, v = plane.wcs_world2pix(*outline(wcs, columns, rows), 0)
        grow = margin / CELL_DEG
        low = np.floor([u.min() - grow, v.min() - grow]).astype(int)
        high = np.floor([u.max() + grow, v.max() + grow]).astype(int)
        wanted |= {(i, j) for i in range(low[0], high[0] + 1) for j in range(low[1], high[1] + 1)}
    parts = [_cell(config, seed, plane, i, j) for i, j in sorted(wanted)]
    return np.concatenate(parts) if parts else np.empty(0, CATALOG)


def _cell(config: SkyConfig, seed: list[int], plane: WCS, i: int, j: int) -> np.ndarray:
    """Return one cell's sources, static ones first."""
    rng = np.random.default_rng([*seed, 21, i + 500_000, j + 500_000])
    static = _static(config, rng, plane, (i, j))
    changing = [_changing(config, rng, plane, (i, j), static, kind) for kind in CHANGING]
    everything = np.concatenate([static, *changing])
    # the host's id is its place in the cell until here
    base = ((i + 5_000) * 10_000 + (j + 5_000)) * 100_000
    everything["id"] = base + np.arange(len(everything))
    hosted = everything["host"] >= 0
    everything["host"][hosted] += base
    return everything


def _blank(n: int, kind: str) -> np.ndarray:
    out = np.zeros(n, CATALOG)
    out["kind"] = KINDS.index(kind)
    out["host"] = -1
    out["axis_ratio"] = 1.0
    out["template_mag"] = ABSENT
    return out


def _place(out: np.ndarray, plane: WCS, u: np.ndarray, v: np.ndarray) -> None:
    """Set positions, rounded to 1e-10 degrees, from those in cells."""
    ra, dec = plane.wcs_pix2world(u, v, 0)
    out["ra"], out["dec"] = np.round(ra, 10), np.round(dec, 10)


def _counts(rng: np.random.Generator, slope: float, bright: float, faint: float, n: int) -> np.ndarray:
    """Return n magnitudes with log10 N growing by ``slope`` per magnitude between two limits."""
    low, high = 10 ** (slope * bright), 10 ** (slope * faint)
    return np.round(np.log10(low + rng.random(n) * (high - low)) / slope, 6)


def _static(config: SkyConfig, rng: np.random.Generator, plane: WCS, cell: tuple[int, int]) -> np.ndarray:
    parts = []
    for kind, share, slope, bright in (
        ("star", config.star_fraction, config.star_slope, config.bright_mag),
        ("galaxy", 1 - config.star_fraction, config.galaxy_slope, config.galaxy_bright_mag),
    ):
        deeper = 10 ** (slope * (config.faint_mag - config.density_mag))
        n = rng.poisson(config.density_deg2 * share * deeper * CELL_DEG**2)
        out = _blank(n, kind)
        _place(out, plane, cell[0] + rng.random(n), cell[1] + rng.random(n))
        out["mag"] = out["template_mag"] = _counts(rng, slope, bright, config.faint_mag, n)
        if kind == "galaxy":
            size = config.galaxy_r20_arcsec * 10 ** (-0.045 * (out["mag"] - 20) + rng.normal(0, 0.2, n))
            out["half_light"] = np.round(np.clip(size, 0.1, 6.0), 4)
            out["sersic_n"] = rng.choice(SERSIC_N, n, p=SERSIC_SHARE)
            out["axis_ratio"] = np.round(rng.uniform(0.3, 1.0, n), 4)
            out["angle"] = np.round(rng.uniform(0, 180, n), 3)
        parts.append(out)
    return np.concatenate(parts)


def _changing(  # the six ways to differ share position and magnitude
    config: SkyConfig,
    rng: np.random.Generator,
    plane: WCS,
    cell: tuple[int, int],
    static: np.ndarray,
    kind: str,
) -> np.ndarray:
    n = rng.poisson(getattr(config, f"{kind}_mpix") * CELL_DEG**2 / MPIX_DEG2)
    out = _blank(n, kind)
    _place(out, plane, cell[0] + rng.random(n), cell[1] + rng.random(n))
    out["mag"] = np.round(rng.uniform(config.transient_bright_mag, config.transient_faint_mag, n), 4)
    if kind in ("hosted", "nuclear"):
        galaxies = np.flatnonzero((static["kind"] == KINDS.index("galaxy")) & (static["mag"] < 22.5))
        if not len(galaxies):
            return out[:0]
        light = 10 ** (-0.4 * static["mag"][galaxies])
        # square root: neither only the brightest galaxies nor mostly invisible ones
        chosen = rng.choice(galaxies, n, p=np.sqrt(light) / np.sqrt(light).sum())
        out["host"] = chosen
        _follow_light(out, static[chosen], rng, 0.0 if kind == "nuclear" else 1.0)
    elif kind == "variable":
        step = np.round(rng.choice([-1.0, 1.0], n) * rng.uniform(0.05, 1.5, n), 4)
        out["template_mag"] = out["mag"] + step
    elif kind == "moving":
        rate, angle = rng.uniform(*config.moving_arcsec_hour, n), rng.uniform(0, 2 * np.pi, n)
        out["rate_east"], out["rate_north"] = (
            np.round(rate * np.cos(angle), 4),
            np.round(rate * np.sin(angle), 4),
        )
    elif kind == "fading":
        out["template_mag"], out["mag"] = out["mag"], ABSENT
    return out


def _follow_light(out: np.ndarray, host: np.ndarray, rng: np.random.Generator, spread: float) -> None:
    """Move ``out`` to positions drawn from the light of its hosts; to their centres with ``spread`` 0."""
    n = len(out)
    # the light within radius r of a Sersic profile is the incomplete gamma function P(2 n, b (r / r_e)^(1/n))
    index = host["sersic_n"]
    b = gammaincinv(2 * index, 0.5)
    share = rng.uniform(0, 0.95, n)
    radius = spread * host["half_light"] * (gammaincinv(2 * index, share) / b) ** index
    theta = rng.uniform(0, 2 * np.pi, n)
    root = np.sqrt(host["axis_ratio"])
    major, minor = radius * np.cos(theta) / root, radius * np.sin(theta) * root
    angle = np.radians(host["angle"])
    north = major * np.cos(angle) - minor * np.sin(angle)
    east = major * np.sin(angle) + minor * np.cos(angle)
    out["dec"] = np.round(host["dec"] + north / 3600, 10)
    out["ra"] = np.round((host["ra"] + east / 3600 / np.cos(np.radians(host["dec"]))) % 360, 10)


def at_time(catalog: np.ndarray, hours: float) -> np.ndarray:
    """Return a copy with moving objects where they are ``hours`` after the middle of the first exposure."""
    out = catalog.copy()
    out["dec"] += catalog["rate_north"] * hours / 3600
    out["ra"] = (
        catalog["ra"] + catalog["rate_east"] * hours / 3600 / np.cos(np.radians(catalog["dec"]))
    ) % 360
    return out
