"""From a raw chip to a masked one without its background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sep
from scipy import ndimage

from ks4diff.numerics.inpaint import fill
from ks4diff.products.cells import Cells
from ks4diff.products.chip import RawChip, ReducedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag

ABSURD_COUNTS = 1e15


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """How a chip is masked and its background found."""

    background_mesh_pix: int = 64  # a few times the largest star, small enough for sky gradients
    source_threshold_sigma: float = 1.5  # pixels above this are no sky, grown by two, ...
    source_peak_sigma: float = 3.5  # ... where their patch rises above this somewhere
    zero_block_pix: int = 9  # exact zeros joined in at least this many pixels are no data
    plateau_count: int = 4  # this many pixels at the exact maximum betray the saturation level
    plateau_fraction: float = 0.95  # of that maximum: response bends before it clips
    max_bad_fraction: float = 0.7  # with more pixels bad there is nothing to subtract

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if self.background_mesh_pix < 16:
            raise ValueError(f"background_mesh_pix must be at least 16, got {self.background_mesh_pix}")
        if not 0 < self.plateau_fraction <= 1:
            raise ValueError(f"plateau_fraction must be in (0, 1], got {self.plateau_fraction}")


def reduce_chip(raw: RawChip, config: BackgroundConfig) -> ReducedChip:
    """Return the chip background-subtracted and masked, with a first variance of every pixel.

    Raises
    ------
    SkipChip
        When too many pixels are bad or no sky is left between the sources.

    """
    flags = _flag_pixels(raw, config)
    bad = flags != 0
    if bad.mean() > config.max_bad_fraction:
        raise SkipChip("too few usable pixels", bad_fraction=float(bad.mean()))
    data = np.where(bad, 0.0, raw.data).astype(np.float32)
    background, sources = _background(data, bad, config)
    data -= background.over(slice(None), slice(None))
    data = fill(data, bad)
    sky = ~sources & ~bad
    if sky.sum() < 500:
        raise SkipChip("no sky left between the sources", sky_pixels=float(sky.sum()))
    rms = _robust_std(data[sky])
    # one hot pixel of 1000 sigma in a million would double the variance that the sky shows
    sky &= ~ndimage.binary_dilation(np.abs(data) > 6 * rms)
    if not rms > 0:
        raise SkipChip("the sky shows no noise at all", sky_rms=rms)
    gain, source = _gain(raw, float(np.median(background.values)), rms)
    return ReducedChip(
        raw=raw,
        image=MaskedImage(data=data, flags=flags, sky_variance=Cells.constant(rms**2, data.shape)),
        background=background,
        rms=rms,
        sky=sky,
        gain=gain,
        gain_source=source,
    )


def _flag_pixels(raw: RawChip, config: BackgroundConfig) -> np.ndarray:
    """Return int32 PixelFlag bits: no data, non-finite, saturated and what saturation touches."""
    data = raw.data
    flags = np.zeros(data.shape, dtype=np.uint16) if raw.flags is None else raw.flags.astype(np.uint16)
    # sep 1.4 crashes the process on values near the largest float32
    flags[~(np.abs(data) < ABSURD_COUNTS)] |= np.uint16(PixelFlag.NON_FINITE)
    label, n = ndimage.label(data == 0)
    if n:
        size = np.bincount(label.ravel())
        block = size >= config.zero_block_pix
        block[0] = False
        flags[block[label]] |= np.uint16(PixelFlag.NO_DATA)
    level = raw.saturation if raw.saturation is not None else _plateau(data, config)
    if level is not None:
        saturated = np.nan_to_num(data, nan=0.0, posinf=np.inf, neginf=0.0) >= level
        # neighbours of a full pixel hold spilt charge
        flags[ndimage.binary_dilation(saturated, iterations=2)] |= np.uint16(PixelFlag.SATURATED)
    return flags


def _plateau(data: np.ndarray, config: BackgroundConfig) -> float | None:
    """Return the level at which the detector clips, or None when no pixels share the maximum."""
    finite = data[np.isfinite(data)]
    top = float(finite.max())
    if np.count_nonzero(finite == top) < config.plateau_count or top <= np.median(finite):
        return None
    return config.plateau_fraction * top


def _background(data: np.ndarray, bad: np.ndarray, config: BackgroundConfig) -> tuple[Cells, np.ndarray]:
    """Return (background, sources bool [y, x]): a mesh background, refined with the sources masked."""
    mesh = min(config.background_mesh_pix, max(min(data.shape) // 4, 16))
    first = sep.Background(data, mask=bad, bw=mesh, bh=mesh, fw=3, fh=3)
    residual = data - first.back()
    smooth = ndimage.gaussian_filter(residual, 1.5)
    spread = _robust_std(smooth[~bad])
    above = smooth > config.source_threshold_sigma * spread
    # only what peaks higher than noise does: masking the noise's own peaks would take 0.035 sigma off the
    # level and 2 % off the noise; summed over a PSF's stamp that level is 2 % of a star of S/N 300
    seeds = smooth > config.source_peak_sigma * spread
    sources = ndimage.binary_dilation(ndimage.binary_propagation(seeds, mask=above), iterations=2)
    second = sep.Background(data, mask=bad | sources, bw=mesh, bh=mesh, fw=3, fh=3)
    # one value per pixel, until the mesh itself is at hand
    return Cells(values=second.back().astype(np.float32), shape=data.shape), sources


def _robust_std(values: np.ndarray) -> float:
    """Return the standard deviation of a clean core: from percentiles, then clipped at 4."""
    low, middle, high = np.percentile(values, [15.87, 50.0, 84.13])
    spread = 0.5 * (high - low)
    core = values[np.abs(values - middle) < 4 * max(spread, 1e-30)]
    return float(core.std()) if core.size else 0.0


def _gain(raw: RawChip, level: float, rms: float) -> tuple[float, str]:
    """Return (electrons per count, where it came from).

    Without a known gain the sky itself tells: its variance in counts is level / gain plus read noise, so
    level / variance is the gain when the file still holds its sky and an upper limit with read noise.
    """
    if raw.gain is not None:
        return raw.gain, "given"
    if level > 3 * rms:
        return level / rms**2, "estimated from the sky"
    return 1.0, "assumed 1: no GAIN and no sky level in the file"
