"""Cosmic rays: by comparison of aligned exposures, or by their sharp edges in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from scipy import ndimage

from ks4diff.products.chip import RawChip
from ks4diff.products.errors import ConfigError
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.stages.variance import pixel_variance


@dataclass(frozen=True, kw_only=True)
class CosmicsConfig:
    """When a pixel is too bright to be the sky's doing."""

    clean: bool = False  # full frames, by astroscrappy; candidates are told by shape and by comparison anyway
    comparison_sigma: float = 5.0  # above what the other exposures show, ...
    comparison_slope: float = 1.2  # ... plus this times their steepest step to a neighbour (seeing, shifts)
    comparison_grow_sigma: float = 3.0  # neighbours of a hit are hits above this
    cleaning_sigclip: float = (
        4.5  # of astroscrappy; SNU's pipeline uses it (shared facts: kmtnet.md section 7)
    )
    cleaning_objlim: float = 5.0  # of astroscrappy: contrast that tells a hit from a star


def flag_by_comparison(
    images: Sequence[MaskedImage], which: int, config: CosmicsConfig, *, scales: Sequence[float] | None = None
) -> np.ndarray:
    """Return bool [y, x]: pixels of one of n aligned exposures that the others do not confirm.

    The others' median (of two others their smaller value) is what the sky holds; a pixel is hit when it lies
    ``comparison_sigma`` above it beyond ``comparison_slope`` times the steepest step to a neighbour there,
    as in drizzlepac's driz_cr: a star that is sharper in this exposure differs only where it is steep. A
    source that moves more than its width between the exposures is flagged too: the flag says "not in the
    others", so use it for stacks and as a hint, never to reject what all exposures of a visit show.

    ``images`` are on one grid without their sky; flagged pixels of the others do not speak, and where none is
    left nothing is flagged. ``scales`` bring their counts together: exposure k times scales[k] (default 1).
    """
    factors = np.ones(len(images)) if scales is None else np.asarray(scales, dtype=float)
    others = [k for k in range(len(images)) if k != which]
    stack = np.stack(
        [np.where(images[k].flags == 0, images[k].data * factors[k], np.nan) for k in others]
    ).astype(np.float32)
    count = np.isfinite(stack).sum(axis=0)
    ordered = np.sort(stack, axis=0)  # NaN last
    place = np.maximum((count - 1) // 2, 0)
    reference = np.take_along_axis(ordered, place[None], axis=0)[0]
    reference = np.where(count > 0, reference, 0.0)
    high, low = (f(reference, size=3) for f in (ndimage.maximum_filter, ndimage.minimum_filter))
    slope = np.maximum(high - reference, reference - low)
    own = images[which]
    variance = _variance(own) * factors[which] ** 2
    # the reference's own noise: at most that of one exposure
    variance = variance + np.mean([_variance(images[k]) * factors[k] ** 2 for k in others], axis=0)
    excess = (own.data * factors[which] - reference - config.comparison_slope * slope) / np.sqrt(variance)
    excess[count == 0] = 0
    seeds = excess > config.comparison_sigma
    near = ndimage.binary_dilation(seeds, structure=np.ones((3, 3)))
    return seeds | (near & (excess > config.comparison_grow_sigma))


def _variance(image: MaskedImage) -> np.ndarray:
    """Return the variance of every pixel, float32 [y, x], in counts: those of a source as if of gain 1."""
    return pixel_variance(image, 1.0, smooth_pix=1.0)


def cleaned(raw: RawChip, config: CosmicsConfig) -> RawChip:
    """Return the chip with the cosmic rays flagged that `flag_by_shape` finds; its pixels stay."""
    hits = np.where(flag_by_shape(raw, config), np.uint16(PixelFlag.COSMIC_RAY), np.uint16(0))
    return replace(raw, flags=hits if raw.flags is None else raw.flags | hits)


def flag_by_shape(raw: RawChip, config: CosmicsConfig) -> np.ndarray:
    """Return bool [y, x]: cosmic rays found by astroscrappy (L.A.Cosmic, van Dokkum 2001) in one exposure.

    ``raw`` holds its sky; a gain or read noise that it does not tell is taken as 1.7 electrons per count
    and 8 electrons (shared facts: kmtnet.md section 6).

    Raises
    ------
    ConfigError
        When astroscrappy is not installed.

    """
    astroscrappy = _astroscrappy()
    bad = ~np.isfinite(raw.data)
    if raw.flags is not None:
        bad |= raw.flags != 0
    mask, _ = astroscrappy.detect_cosmics(
        np.where(bad, np.float32(np.nanmedian(raw.data)), raw.data),
        inmask=bad,
        gain=raw.gain or 1.7,
        readnoise=raw.read_noise or 8.0,
        satlevel=np.inf,  # saturation is flagged already
        sigclip=config.cleaning_sigclip,
        objlim=config.cleaning_objlim,
    )
    return mask & ~bad


def _astroscrappy() -> ModuleType:
    try:
        import astroscrappy
    except ImportError:
        raise ConfigError("full-frame cleaning needs astroscrappy: pip install 'ks4diff[cosmic]'") from None
    return astroscrappy
