"""Flag what a difference shows to be trails of saturated stars, and the border."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics.holes import listed
from ks4diff.numerics.streaks import grow, runs
from ks4diff.products.image import PixelFlag


@dataclass(frozen=True, kw_only=True)
class BleedConfig:
    """What is a trail and what a residual."""

    window_pix: int = 41  # a trail outlasts the residual of every star
    sigma: float = 5.0  # of the mean over that window
    growth_fwhm: float = 1.0  # beyond it a trail takes less than a tenth of a source's score


def flag_bleeds(
    difference: np.ndarray, noise: float, flags: np.ndarray, fwhm: float, config: BleedConfig
) -> None:
    """Raise BLEED in ``flags``, in place, along rows and columns that stand out beside a saturated star.

    Sought in the white difference ``difference`` (std ``noise``), where no star hides a trail of a tenth of
    the noise. A trail can be dark: an amplifier driven over its range takes hundreds of pixels to recover.
    """
    saturated = listed(flags, PixelFlag.SATURATED | PixelFlag.TEMPLATE_SATURATED)
    if not len(saturated):
        return
    found = runs(
        difference,
        saturated,
        noise=noise,
        window=config.window_pix,
        limit=config.sigma,
        reach=int(np.ceil(3 * fwhm)),
    )
    grow(found, config.growth_fwhm * fwhm, int(PixelFlag.BLEED), flags)


def flag_border(flags: np.ndarray, width: int) -> None:
    """Raise EDGE in ``flags``, in place, within ``width`` px of the border."""
    if width > 0:
        for strip in (flags[:width], flags[-width:], flags[:, :width], flags[:, -width:]):
            strip |= np.uint16(PixelFlag.EDGE)
