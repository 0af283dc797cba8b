"""How significant each change should be: S_corr from true PSFs and true noise (Zackay et al. 2016)."""

from __future__ import annotations

import numpy as np
from scipy import fft

from ks4diff.numerics.psf_grid import embed
from ks4diff.stages.sim.geometry import pixels
from ks4diff.stages.sim.scene import Scene
from ks4diff.stages.sim.template import MEDIAN_LOSS, Contribution

HALF = 24  # pixels of PSF that count; 99 % of the light of seeing 2"
GRID = 96  # FFT side: the filters reach about two PSFs
COVER_PIX = 4  # a source this close to a chip's border is not in that chip


def expected_scores(
    scene: Scene,
    variance_e: float,
    change_e: np.ndarray,
    tile: tuple[tuple[Contribution, ...], str],
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (S_corr with source noise, the same in the background limit) of the sources ``rows``.

    Parameters
    ----------
    scene
        Noise-free light of the science chip.
    variance_e
        Of a science sky pixel, electrons².
    change_e
        Flux that the science image has more than the template, electrons; negative for what faded.
    tile
        What the template is made of, and "median" or "mean".
    rows
        Rows of the scene's sources.

    Returns
    -------
    scores
        NaN where no exposure of the template covers the source.

    """
    contributions, how = tile
    out = np.full((2, len(rows)), np.nan)
    places = [pixels(c.wcs, rows["ra"], rows["dec"]) for c in contributions]
    for k, row in enumerate(rows):
        covering: dict[int, tuple[Contribution, float, float]] = {}
        for c, (xs, ys) in zip(contributions, places, strict=True):
            if _inside(c, xs[k], ys[k]):
                covering.setdefault(c.exposure, (c, float(xs[k]), float(ys[k])))
        if covering:
            reference, power = _reference(list(covering.values()), how)
            out[:, k] = _score(scene, variance_e, float(change_e[k]), (reference, power, len(covering)), row)
    return out[0], out[1]


def _inside(c: Contribution, x: float, y: float) -> bool:
    return COVER_PIX <= x < c.patch.columns - COVER_PIX and COVER_PIX <= y < c.patch.rows - COVER_PIX


def bilinear_transfer() -> tuple[np.ndarray, np.ndarray]:
    """Return (response to light, noise power) of bilinear interpolation averaged over sub-pixel phases.

    Over all phases f, (1 - f) δ(x + f) + f δ(x + f - 1) is a triangle: sinc². The noise has
    1 - 2 m (1 - cos k) with m = <f (1 - f)> = 1/6, along each axis.
    """
    ky, kx = fft.fftfreq(GRID)[:, None], fft.rfftfreq(GRID)[None, :]
    light = np.sinc(ky) ** 2 * np.sinc(kx) ** 2
    noise = (1 - (1 - np.cos(2 * np.pi * ky)) / 3) * (1 - (1 - np.cos(2 * np.pi * kx)) / 3)
    return light, noise


def _reference(covering: list[tuple[Contribution, float, float]], how: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (PSF transform, noise power electrons²) of the template around one place."""
    light, noise = bilinear_transfer()
    n = len(covering)
    psf = sum(_transform(c.psf.stamp(x, y, HALF)) for c, x, y in covering) / n
    loss = MEDIAN_LOSS[n] if how == "median" else 1.0
    return psf * light, noise * loss * sum(c.variance_e for c, _, _ in covering) / n**2


def _transform(stamp: np.ndarray) -> np.ndarray:
    return fft.rfft2(embed(stamp, (GRID, GRID)))


def _score(
    scene: Scene,
    variance: float,
    change: float,
    template: tuple[np.ndarray, np.ndarray, int],
    row: np.ndarray,
) -> tuple[float, float]:
    """Return one source's (S_corr, background-limited S_corr); eqs 28, 29, 42 and 26 with true light."""
    b, power, depth = template
    a = _transform(scene.psf.stamp(float(row["x"]), float(row["y"]), HALF))
    a2, b2 = np.abs(a) ** 2, np.abs(b) ** 2
    den = variance * b2 + power * a2 + 1e-30
    # without the conjugate, the kernels come out mirrored: as they weight the pixels around the source
    k_n = fft.irfft2(a * b2 / den, (GRID, GRID))
    k_r = fft.irfft2(b * a2 / den, (GRID, GRID))
    flux = _mean(a2 * b2 / den)
    light = _cut(scene.light, float(row["x"]), float(row["y"]))
    own = np.maximum(change, 0) * embed(scene.psf.stamp(float(row["x"]), float(row["y"]), HALF), (GRID, GRID))
    static = np.maximum(np.roll(light, (-(GRID // 2), -(GRID // 2)), axis=(0, 1)) - own, 0)
    faded = max(-change, 0.0) * np.maximum(fft.irfft2(b, (GRID, GRID)), 0)
    extra = ((static + own) * k_n**2).sum() + ((static + faded) * k_r**2).sum() / depth
    return change * flux / np.sqrt(flux + extra), change * np.sqrt(flux)


def _mean(half: np.ndarray) -> float:
    """Return the mean over all frequencies of a half plane."""
    return float((half[:, 0].sum() + half[:, -1].sum() + 2 * half[:, 1:-1].sum()) / GRID**2)


def _cut(light: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return the light [GRID, GRID] around the pixel of (x, y), 0 beyond the chip."""
    out = np.zeros((GRID, GRID))
    left, low = round(x) - GRID // 2, round(y) - GRID // 2
    rows = slice(max(low, 0), min(low + GRID, light.shape[0]))
    columns = slice(max(left, 0), min(left + GRID, light.shape[1]))
    out[rows.start - low : rows.stop - low, columns.start - left : columns.stop - left] = light[rows, columns]
    return out
