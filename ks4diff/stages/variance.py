"""The variance of pixels from a model, never from the noisy pixel itself."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ks4diff.products.image import MaskedImage

ALL = slice(None)


def pixel_variance(
    image: MaskedImage, gain: float, *, smooth_pix: float, rows: slice = ALL, columns: slice = ALL
) -> np.ndarray:
    """Return float32 [y, x] of a rectangle: the sky's variance plus the Poisson noise of smoothed sources.

    Counts². ``gain`` electrons per count. The image is smoothed by a Gaussian of ``smooth_pix`` so that a
    pixel's variance does not follow its own noise: that would weight low pixels up and skew the score.
    """
    sky = image.sky_variance.over(rows, columns)
    reach = int(np.ceil(4 * smooth_pix)) + 1
    (y0, y1, _), (x0, x1, _) = rows.indices(image.shape[0]), columns.indices(image.shape[1])
    low, left = max(y0 - reach, 0), max(x0 - reach, 0)
    around = image.data[low : y1 + reach, left : x1 + reach]
    smooth = ndimage.gaussian_filter(around, smooth_pix)[y0 - low : y1 - low, x0 - left : x1 - left]
    return sky + np.maximum(smooth, 0.0) / np.float32(gain)
