"""Everything one image can say about itself: mask, background, stars, PSF and noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ks4diff.products.chip import CalibratedChip, RawChip
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.noise import NoiseConfig, measure_noise
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.stars import StarsConfig, find_stars


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """The configurations of the steps that look at one image alone."""

    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    stars: StarsConfig = field(default_factory=StarsConfig)
    psf: PsfConfig = field(default_factory=PsfConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)


def calibrate(raw: RawChip, config: CalibrateConfig) -> CalibratedChip:
    """Return the chip ready to be matched: counts without background, PSF, star list and noise.

    The sky's variance is the noise that was measured, varying over the chip as the reduced chip's does.
    What sources add is not in it. The fits take their Poisson noise from the smoothed image
    (`ks4diff.stages.variance`), the score takes it from the pixels' own values where there is light beyond
    doubt, never in the sky, where it would weight low pixels up and skew the score
    (`ks4diff.numerics.score_variance.terms`).

    Raises
    ------
    SkipChip
        When the image has too few usable pixels, sky or stars.

    """
    reduced = reduce_chip(raw, config.background)
    psf, stars = model_psf(reduced.image, find_stars(reduced, config.stars), reduced.gain, config.psf)
    noise = measure_noise(reduced, psf, config.noise)
    relative = reduced.image.sky_variance
    variance = replace(relative, values=relative.values * np.float32((noise.sigma / reduced.rms) ** 2))
    return CalibratedChip(
        raw=raw,
        image=replace(reduced.image, sky_variance=variance),
        sky=reduced.sky,
        stars=stars,
        psf=psf,
        noise=noise,
        gain=reduced.gain,
        gain_source=reduced.gain_source,
    )
