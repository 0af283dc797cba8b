"""The variance of pixels as fits to images take it: from the smoothed image, not from the noisy pixel itself.

The score's variance is another: from 2.5 sigma in both images or 6 in one it takes the Poisson noise that the
pixels' own values show, see `ks4diff.numerics.score_variance.terms`.
"""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.smooth import gaussian_smooth
from ks4diff.products.image import MaskedImage

ALL = slice(None)


def pixel_variance(
    image: MaskedImage, gain: float, *, smooth_pix: float, rows: slice = ALL, columns: slice = ALL
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle: the sky's variance plus the Poisson noise of smoothed sources.

    Counts². ``gain`` electrons per count. The image is smoothed by a Gaussian of ``smooth_pix`` so that a
    pixel's variance does not follow its own noise: that would weight low pixels up and skew the score.
    """
    variance = gaussian_smooth(np.ascontiguousarray(image.data), smooth_pix, rows, columns)
    np.maximum(variance, 0, out=variance)
    variance *= np.float32(1 / gain)
    variance += image.sky_variance.over(rows, columns)
    return variance
