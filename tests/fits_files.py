"""Small FITS files for tests, also some that astropy would refuse to write."""

from __future__ import annotations

import numpy as np
from astropy.io import fits


def scene(rows=48, columns=64, seed=5):
    """Return float32 sky with one star; not square, so that swapped axes show."""
    y, x = np.mgrid[:rows, :columns]
    star = 4000 * np.exp(-((x - 20) ** 2 + (y - 31) ** 2) / 8)
    return (np.random.default_rng(seed).normal(500, 10, (rows, columns)) + star).astype(np.float32)


def write(path, data, header=None, cards=()):
    hdu = fits.PrimaryHDU(data, header)
    for name, value in cards:
        hdu.header[name] = value
    hdu.writeto(path)
    return path


def write_raw(path, lines, body=b""):
    """Write a FITS file card by card: what astropy would refuse to write."""
    text = "".join(line.ljust(80) for line in (*lines, "END"))
    path.write_bytes(text.ljust(-(-len(text) // 2880) * 2880).encode("ascii") + body)
    return path


def image_cards(columns, rows, bitpix=-32):
    return [
        "SIMPLE  =                    T",
        f"BITPIX  = {bitpix:20d}",
        "NAXIS   =                    2",
        f"NAXIS1  = {columns:20d}",
        f"NAXIS2  = {rows:20d}",
    ]
