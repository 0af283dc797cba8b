"""From a raw chip to a masked one without its background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics.defects import clear_above, flag_pixels, highest, mark_above
from ks4diff.numerics.inpaint import fill_holes
from ks4diff.products.cells import Cells
from ks4diff.products.chip import RawChip, ReducedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.stages.sky import (
    mask_sources,
    over_strips,
    relative_variance,
    sky_level,
    sky_spread,
    subtract_level,
)

ABSURD_COUNTS = 1e15  # squares of larger float32 overflow


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

    The sky's variance is a map: that of the source-free pixels of the whole chip, ``rms`` squared, times how
    the noise from pixel to pixel varies over it.

    Raises
    ------
    SkipChip
        When too many pixels are bad or no sky is left between the sources.

    """
    flags = _flag_pixels(raw, config)
    good = flags == 0
    bad_fraction = 1 - np.count_nonzero(good) / good.size
    if bad_fraction > config.max_bad_fraction:
        raise SkipChip("too few usable pixels", bad_fraction=bad_fraction)
    data, background, sky = _without_background(raw.data, good, config)
    if np.count_nonzero(sky) < 500:
        raise SkipChip("no sky left between the sources", sky_pixels=float(np.count_nonzero(sky)))
    fill_holes(data, ~good)
    rms = sky_spread(data, sky)
    if not rms > 0:
        raise SkipChip("the sky shows no noise at all", sky_rms=rms)
    relative = relative_variance(data, sky)
    # one hot pixel of 1000 sigma in a million would double the variance that the sky shows
    limit = 6 * rms * np.sqrt(relative.values.astype(np.float64))
    over_strips(lambda rows: clear_above(data, limit, (rows.start, rows.stop), 1, sky), len(data))
    gain, source = _gain(raw, float(np.median(background.values)), rms)
    variance = Cells(values=relative.values * np.float32(rms**2), shape=data.shape)
    return ReducedChip(
        raw=raw,
        image=MaskedImage(data=data, flags=flags, sky_variance=variance),
        background=background,
        rms=rms,
        sky=sky,
        gain=gain,
        gain_source=source,
    )


def _flag_pixels(raw: RawChip, config: BackgroundConfig) -> np.ndarray:
    """Return uint16 PixelFlag bits: no data, non-finite, saturated and what saturation touches."""
    data = raw.data
    flags = np.zeros(data.shape, dtype=np.uint16) if raw.flags is None else raw.flags.astype(np.uint16)
    bits = int(PixelFlag.NO_DATA), int(PixelFlag.NON_FINITE)
    level = raw.saturation if raw.saturation is not None else _plateau(data, config)

    def work(rows: slice) -> None:
        strip = rows.start, rows.stop
        flag_pixels(data, flags, strip, block=config.zero_block_pix, absurd=ABSURD_COUNTS, bits=bits)
        if level is not None:
            # neighbours of a full pixel hold spilt charge
            mark_above(data, level, strip, 2, flags, int(PixelFlag.SATURATED))

    over_strips(work, len(data))
    return flags


def _plateau(data: np.ndarray, config: BackgroundConfig) -> float | None:
    """Return the level at which the detector clips, or None when no pixels share the maximum."""
    found = over_strips(lambda rows: highest(data, (rows.start, rows.stop), ABSURD_COUNTS), len(data))
    top = max(level for level, _, _ in found)
    count = sum(n for level, n, _ in found if level == top)
    if count < config.plateau_count or 2 * count >= sum(n for _, _, n in found):
        return None
    return config.plateau_fraction * top


def _without_background(
    raw: np.ndarray, good: np.ndarray, config: BackgroundConfig
) -> tuple[np.ndarray, Cells, np.ndarray]:
    """Return (data, background, sky bool [y, x]): a mesh background, refined with the sources masked."""
    data = np.empty(raw.shape, dtype=np.float32)
    # what bad pixels hold, NaN included, does not matter
    over_strips(lambda rows: np.copyto(data[rows], np.where(good[rows], raw[rows], np.float32(0))), len(raw))
    sky = good.copy()
    first = sky_level(data, sky, config.background_mesh_pix)
    subtract_level(data, first, good)
    mask_sources(data, sky, threshold=config.source_threshold_sigma, peak=config.source_peak_sigma)
    background = sky_level(data, sky, config.background_mesh_pix, first)
    rest = Cells(values=background.values - first.values, shape=data.shape)
    subtract_level(data, rest, good)
    return data, background, sky


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
