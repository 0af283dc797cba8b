"""Add sources of known flux and place to an image as read, as if the sky had held them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from ks4diff.numerics.moments import moved
from ks4diff.products.chip import CalibratedChip, RawChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.psf import PsfField

PLACES = ("field", "star", "galaxy")
MOST_PER_MPIX = 1000.0  # 25 px apart, there is room for no more
INJECTED = np.dtype(
    [
        ("x", "f8"),  # 0-based pixels
        ("y", "f8"),
        ("flux", "f8"),  # counts expected
        ("drawn", "f8"),  # counts that the Poisson noise made of it
        ("snr", "f8"),  # on the sky of the science image alone
        ("place", "i1"),  # index in `PLACES`
    ]
)


@dataclass(frozen=True, kw_only=True)
class InjectConfig:
    """How many sources, how bright and where."""

    seed: int = 1
    per_mpix: float = 20.0  # more would meet each other: 20 leave 220 px between neighbours
    snr_range: tuple[float, float] = (4.0, 60.0)  # on the science image's sky
    even_in_log: bool = True  # as many per step of the S/N's logarithm; else per step of the S/N
    star_share: float = 0.25  # of them within `star_reach_pix` of a star
    galaxy_share: float = 0.25  # of them on galaxies, following their light
    star_reach_pix: float = 5.0  # 2"
    galaxy_width: float = 1.25  # of a star's FWHM: wider objects are galaxies
    apart_pix: float = 25.0  # between any two: a candidate's stamp and then some
    border_pix: int = 30

    def __post_init__(self) -> None:
        """Refuse shares that do not add up, and numbers and S/N that no sources have."""
        if not 0 <= self.star_share + self.galaxy_share <= 1:
            raise ValueError("star_share and galaxy_share must add up to 0 to 1")
        if not 0 < self.snr_range[0] <= self.snr_range[1] < np.inf:
            raise ValueError(f"snr_range must be positive and rising, got {self.snr_range}")
        if not 0 <= self.per_mpix <= MOST_PER_MPIX:
            raise ValueError(f"per_mpix must be from 0 to {MOST_PER_MPIX:g}, got {self.per_mpix}")


def inject(
    raw: RawChip,
    chip: CalibratedChip,
    config: InjectConfig,
    *,
    psf: PsfField | None = None,
    galaxies: np.ndarray | None = None,
) -> tuple[RawChip, np.ndarray]:
    """Return the image with sources added, and their table, `INJECTED`.

    ``chip`` is the same image calibrated: its stars, galaxies and noise say where and how bright; ``psf`` is
    the PSF to use, by default the measured one. ``galaxies`` float64 [3, n] are hosts to use: x, y and FWHM
    in pixels; by default all that is wider than a star, which in a struck image is particles too. Each
    pixel's light is drawn from a Poisson distribution with the gain of the pixel's amplifier; sky and read
    noise are in the image already.
    """
    rng = np.random.default_rng(config.seed)
    psf = chip.psf if psf is None else psf
    stars = chip.stars
    every = np.array([stars.x, stars.y, stars.fwhm])
    wide = every[:, stars.fwhm > config.galaxy_width * chip.psf.fwhm_pix]
    hosts = (every[:, stars.clean], wide if galaxies is None else galaxies)
    table = _places(chip, hosts, config, rng)
    snr = _snr(config, len(table), rng)
    data = raw.data.copy()
    for row, wanted in zip(table, snr, strict=True):
        x, y = round(float(row["x"])), round(float(row["y"]))
        stamp = psf.at(row["x"], row["y"]).astype(np.float64)
        stamp = moved(stamp, row["x"] - x, row["y"] - y, stamp.shape[0])
        gain = _gain(raw, chip, x, y)
        row["snr"], row["flux"] = wanted, _flux(wanted, stamp, chip.noise.sigma, gain)
        electrons = row["flux"] * stamp * gain
        # the little that a measured PSF has below 0 is taken as it is
        light = (rng.poisson(np.maximum(electrons, 0)) + np.minimum(electrons, 0)) / gain
        row["drawn"] = light.sum()
        _add(data, light, x, y)
    return replace(raw, data=data), table


def _gain(raw: RawChip, chip: CalibratedChip, x: int, y: int) -> float:
    """Return electrons per count at a pixel: its amplifier's, where the file tells it."""
    for amplifier in raw.amplifiers:
        in_rows = amplifier.y0 <= y < (amplifier.y1 or raw.data.shape[0])
        if amplifier.x0 <= x < amplifier.x1 and in_rows and amplifier.gain and raw.unit == "adu":
            return amplifier.gain
    return chip.gain


def _snr(config: InjectConfig, n: int, rng: np.random.Generator) -> np.ndarray:
    if config.even_in_log:
        return np.exp(rng.uniform(*np.log(config.snr_range), n))
    return rng.uniform(*config.snr_range, n)


def _flux(snr: float, stamp: np.ndarray, sigma: float, gain: float) -> float:
    """Return the counts of a source of this S/N: sky noise ``sigma`` and its own Poisson noise."""
    light = np.maximum(stamp, 0).astype(np.float64)
    square = stamp.astype(np.float64) ** 2

    def short(log_counts: float) -> float:
        counts = np.exp(log_counts)
        return np.log(counts / snr) + 0.5 * np.log((square / (sigma**2 + counts * light / gain)).sum())

    low, high = np.log(0.01 * snr * sigma), np.log(1e5 * snr * sigma)
    return float(np.exp(brentq(short, low, high, xtol=1e-6)))


def _add(data: np.ndarray, light: np.ndarray, x: int, y: int) -> None:
    """Add a stamp around pixel (x, y), in place, where the image has pixels."""
    half = light.shape[0] // 2
    top, left = y - half, x - half
    rows = slice(max(top, 0), min(y + half + 1, data.shape[0]))
    columns = slice(max(left, 0), min(x + half + 1, data.shape[1]))
    data[rows, columns] += light[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ].astype(np.float32)


def _places(chip: CalibratedChip, hosts, config: InjectConfig, rng: np.random.Generator) -> np.ndarray:
    """Return `INJECTED` rows with places only, none nearer to another than `apart_pix`."""
    rows, columns = chip.image.shape
    wanted = int(rng.poisson(config.per_mpix * rows * columns / 1e6))
    share = [1 - config.star_share - config.galaxy_share, config.star_share, config.galaxy_share]
    kinds = rng.choice(len(PLACES), wanted, p=share)
    table = np.zeros(wanted, INJECTED)
    n = 0
    for kind in kinds:
        for _ in range(20):  # in a crowd some never find room: then there are fewer
            place = _place(kind, chip, hosts, config, rng)
            if place is None:
                break
            x, y = place
            margin = config.border_pix
            inside = margin <= x < columns - margin and margin <= y < rows - margin
            free = np.hypot(table["x"][:n] - x, table["y"][:n] - y).min(initial=np.inf) > config.apart_pix
            if inside and free and chip.image.flags[round(y), round(x)] == 0:
                table["x"][n], table["y"][n], table["place"][n] = x, y, kind
                n += 1
                break
    return table[:n]


def _place(kind, chip, hosts, config, rng) -> tuple[float, float] | None:
    """Return one place (x, y) of a kind, None without a host of it."""
    rows, columns = chip.image.shape
    if PLACES[kind] == "field":
        return float(rng.uniform(0, columns - 1)), float(rng.uniform(0, rows - 1))
    group = hosts[kind - 1]
    if not group.size:
        return None
    x, y, fwhm = (float(v) for v in group[:, rng.integers(group.shape[1])])
    if PLACES[kind] == "star":
        radius, angle = config.star_reach_pix * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        return x + radius * np.cos(angle), y + radius * np.sin(angle)
    return _on_light(chip.image, x, y, round(2 * fwhm), rng)


def _on_light(image: MaskedImage, x: float, y: float, half: int, rng) -> tuple[float, float] | None:
    """Return a place drawn from the light around (x, y)."""
    i, j = round(x), round(y)
    left, low = max(i - half, 0), max(j - half, 0)
    light = np.maximum(image.data[low : j + half + 1, left : i + half + 1].astype(np.float64), 0)
    if not light.sum() > 0:
        return None
    k = int(rng.choice(light.size, p=(light / light.sum()).ravel()))
    row, column = np.unravel_index(k, light.shape)
    return left + column + rng.uniform(-0.5, 0.5), low + row + rng.uniform(-0.5, 0.5)
