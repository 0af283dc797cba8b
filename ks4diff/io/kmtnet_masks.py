"""The masks that come with KMTNet files, as our named bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ks4diff.products.image import PixelFlag

# KASI's level-1 bits. 32 (no overscan fit: the level comes from the master bias) says nothing of a pixel.
L1_BITS: Mapping[int, PixelFlag] = {
    1: PixelFlag.BAD_PIXEL,
    2: PixelFlag.SATURATED,
    4: PixelFlag.SATURATED,  # above the linear range
    8: PixelFlag.CROSSTALK,
    16: PixelFlag.SEAM,
    64: PixelFlag.COSMIC_RAY,
}
# Those of the masks that SNU's pipeline writes beside its single chips.
SNU_BITS: Mapping[int, PixelFlag] = {
    1: PixelFlag.COSMIC_RAY,
    2: PixelFlag.CROSSTALK,
    4: PixelFlag.BLEED,
    8: PixelFlag.BAD_PIXEL,
    16: PixelFlag.DEAD_AMPLIFIER,
}


_BLOCK_PIXELS = 2**22


def read_flags(item: object, shape: tuple[int, int], bits: Mapping[int, PixelFlag]) -> np.ndarray:
    """Return uint16 [y, x] PixelFlag bits of a mask HDU; bits without a meaning here are dropped.

    Raises
    ------
    ValueError
        When the HDU has another shape or holds no integers.

    """
    if tuple(item.shape) != tuple(shape):
        raise ValueError(f"mask of {item.shape[1]} x {item.shape[0]} pixels for {shape[1]} x {shape[0]}")
    if item.header.get("BITPIX", 0) < 0:
        raise ValueError(f"mask with BITPIX {item.header['BITPIX']}, not integer")
    table = np.zeros(256, np.uint16)
    for bit, flag in bits.items():
        table[(np.arange(256) & bit) != 0] |= np.uint16(flag)
    flags = np.empty(shape, np.uint16)
    step = max(1, _BLOCK_PIXELS // shape[1])
    for row in range(0, shape[0], step):
        band = item.section[row : min(row + step, shape[0]), 0 : shape[1]]
        flags[row : row + step] = table[band.astype(np.int64) & 255]
    return flags
