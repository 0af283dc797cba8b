"""Join what the blocks and samples of a stack show into the measures of one tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ks4diff.products.chip import StarList
from ks4diff.products.errors import SkipChip
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf
from ks4diff.products.template import PixelBox
from ks4diff.stages.ingest import BlockMeasures, IngestConfig, Sample
from ks4diff.stages.stars import isolated


@dataclass(frozen=True, kw_only=True)
class TileMeasures:
    """What the pixels of a tile say of it; see `TileRecord`."""

    coverage: np.ndarray
    sigma: np.ndarray
    background: np.ndarray
    stars: StarList
    saturation: float | None
    noise: NoiseModel
    psf: Psf | None
    fwhm_map: np.ndarray


def join_blocks(
    measured: Sequence[Sequence[BlockMeasures]],
    samples: Sequence[tuple[int, int, PixelBox, Sample]],
    cell_pix: int,
    saturation: float | None,
    config: IngestConfig,
) -> TileMeasures:
    """Return the measures of a whole tile from those of its blocks and samples.

    The noise map of the blocks is the spread of pixels that may hold faint stars; it is scaled by what the
    samples' noise, measured with care, is to it there. The correlation is the samples' median.

    Raises
    ------
    SkipChip
        When nowhere in the tile is enough sky to measure its noise.

    """
    coverage, sigma, background = (
        np.block([[getattr(block, name) for block in row] for row in measured]).astype(np.float32)
        for name in ("coverage", "sigma", "background")
    )
    if not samples:
        raise SkipChip("no part of the tile has enough sky to measure its noise", covered=coverage.mean())
    flat = [block for row in measured for block in row]
    spread = np.array([sample.noise.sigma for *_, sample in samples])
    around = np.array([_mean_at(sigma, box, cell_pix) for *_, box, _ in samples])
    ratio = float(np.nanmedian(np.where(around > 0, spread / np.maximum(around, 1e-30), np.nan)))
    sigma = _filled(sigma * np.float32(ratio if np.isfinite(ratio) else 1.0))
    psfs = sorted((s.psf for *_, s in samples if s.psf is not None), key=lambda psf: psf.fwhm_pix)
    fwhm_map = np.full((config.samples, config.samples), np.nan, dtype=np.float32)
    for i, j, _, sample in samples:
        fwhm_map[i, j] = np.nan if sample.psf is None else sample.psf.fwhm_pix
    level = saturation if saturation is not None else _plateau(flat, config)
    middle = psfs[len(psfs) // 2] if psfs else None
    return TileMeasures(
        coverage=coverage,
        sigma=sigma,
        background=_filled(background),
        stars=_joined_stars(flat, middle, level, config),
        saturation=level,
        noise=NoiseModel(
            sigma=float(np.median(spread)), correlation=_median_correlation(samples), method=_method(samples)
        ),
        psf=middle,
        fwhm_map=fwhm_map,
    )


def _joined_stars(
    flat: Sequence[BlockMeasures], psf: Psf | None, saturation: float | None, config: IngestConfig
) -> StarList:
    """Return all blocks' stars, brightest first; clean: bright, star-sized, whole, unsaturated and alone."""
    x, y, flux, fwhm, clean = (
        np.concatenate([getattr(block.stars, name) for block in flat])
        for name in ("x", "y", "flux", "fwhm", "clean")
    )
    peak, width = (np.concatenate([getattr(block, name) for block in flat]) for name in ("peak", "width"))
    order = np.lexsort((x, y, -flux))
    x, y, flux, fwhm, clean, peak, width = (v[order] for v in (x, y, flux, fwhm, clean, peak, width))
    bright = clean & (peak > config.clean_peak_sigma)
    if bright.any():
        size = psf.fwhm_pix if psf is not None else float(np.percentile(fwhm[bright], 30))
        usual = float(np.percentile(width[bright], 30))
        bright &= (width > 0.7 * usual) & (width < 1.5 * usual)
        noise = np.median([np.nanmedian(b.sigma) for b in flat if np.isfinite(b.sigma).any()])
        if saturation is not None:
            bright &= peak * noise < 0.9 * saturation
        bright &= isolated(x, y, flux, 2.0 * size)
    return StarList(x=x, y=y, flux=flux, fwhm=fwhm, clean=bright)


def _plateau(flat: Sequence[BlockMeasures], config: IngestConfig) -> float | None:
    """Return the level at which pixels clip, when several share the tile's maximum."""
    top = max(block.top for block in flat)
    background = config.calibrate.background
    n = sum(block.n_top for block in flat if block.top == top)
    return background.plateau_fraction * top if n >= background.plateau_count and top > 0 else None


def _median_correlation(samples: Sequence[tuple[int, int, PixelBox, Sample]]) -> np.ndarray:
    """Return the median correlation, all models brought to the largest one's lags."""
    models = [sample.noise.correlation for *_, sample in samples]
    n = max(len(model) for model in models)
    padded = [np.pad(model, (n - len(model)) // 2) for model in models]
    return np.median(padded, axis=0)


def _method(samples: Sequence[tuple[int, int, PixelBox, Sample]]) -> str:
    methods = [sample.noise.method for *_, sample in samples]
    return max(sorted(set(methods)), key=methods.count)


def _mean_at(cells: np.ndarray, box: PixelBox, cell_pix: int) -> float:
    part = cells[box.y0 // cell_pix : -(-box.y1 // cell_pix), box.x0 // cell_pix : -(-box.x1 // cell_pix)]
    return float(np.nanmean(part)) if np.isfinite(part).any() else float("nan")


def _filled(cells: np.ndarray) -> np.ndarray:
    """Return the cells with the median in place of those without data, where nobody looks."""
    known = np.isfinite(cells)
    return np.where(known, cells, np.median(cells[known]) if known.any() else 0).astype(np.float32)
