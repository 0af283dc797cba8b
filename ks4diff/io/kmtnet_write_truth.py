"""Write what is true about a simulated chip, and KS4-like tiles with the header of the survey's stacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.atomic import atomic_path
from ks4diff.products.simulated import ExposureFacts, SimulatedChip, SimulatedTile

_UNITS = {
    "ra": "deg", "dec": "deg", "x": "pix", "y": "pix", "mag": "mag", "template_mag": "mag", "flux": "count",
    "flux_e": "electron", "rate_x": "pix/h", "rate_y": "pix/h", "gain": "electron/count",
    "read_noise": "electron", "bias": "count", "angle": "deg", "seeing": "arcsec",
}  # fmt: skip
_COMMENTS = {
    "kind": "star, galaxy, or how it changes",
    "x": "0-based pixel of the assembled chip, middle of the exposure",
    "mag": "AB of this epoch; 99 is absent",
    "template_mag": "AB of the template's epoch; 99 is absent",
    "flux": "counts in this exposure",
    "in_template": "shines in the template",
    "host": "id of the galaxy, or -1",
    "expected_scorr": "S_corr from true PSFs and noise, source noise included",
    "expected_snr": "the same where background is all the noise",
    "value": "electrons of a cosmic ray, hot pixel or trail ridge; counts of a ghost",
    "source": "aggressor's amplifier, 0-based from the left; -1 none",
}


def write_truth(path: Path, facts: ExposureFacts, chip: SimulatedChip) -> Path:
    """Write SOURCES, ARTEFACTS, AMPLIFIERS and PSF of a chip; the primary header has the true TPV WCS."""
    header = fits.Header(list(chip.true_cards.items()))
    header["RADESYS"], header["EQUINOX"] = "ICRS", 2000.0
    header["EXPOSURE"] = str(facts.id)
    header["CHIP"], header["FILTER"] = chip.chip, facts.band
    header["X0"], header["Y0"] = chip.corner
    for name, value in chip.facts.items():
        header[f"HIERARCH {name.upper()}"] = value
    amplifiers = np.array(
        [(a.x0, a.x1, a.gain, a.read_noise, a.bias, a.dead) for a in chip.amplifiers],
        dtype=[
            ("x0", "i4"),
            ("x1", "i4"),
            ("gain", "f8"),
            ("read_noise", "f8"),
            ("bias", "f8"),
            ("dead", "?"),
        ],
    )
    psf = fits.ImageHDU(chip.truth["psf"], name="PSF")
    for key, value in zip(("X0", "Y0", "DX", "DY"), chip.truth["psf_grid"], strict=True):
        psf.header[key] = (float(value), "node (0, 0) and step between nodes, pixels")
    hdus = [
        fits.PrimaryHDU(header=header),
        _table("SOURCES", chip.truth["sources"]),
        _table("ARTEFACTS", chip.truth["artefacts"]),
        _table("AMPLIFIERS", amplifiers),
        psf,
    ]
    return _write(path, hdus)


def write_tile(path: Path, tile: SimulatedTile, extra: Mapping[str, str | float]) -> Path:
    """Write a tile as a single float32 HDU with the cards that the survey's stacks have."""
    header = _tan_header(tile.wcs)
    cards = {
        "OBJECT": tile.field.split(".", 1)[1],
        "FIELD1": tile.field.split(".", 1)[0],
        "FIELD2": tile.field.split(".", 1)[1],
        "FILTER": tile.band,
        "NUMDITH": int(tile.facts["n_images"]),
        "NUMIMAGE": int(tile.facts["n_chips"]),
        "EXPTIME": tile.exptime,
        "MEANMJD": tile.mjd,
        "FWHM": round(tile.fwhm_arcsec, 3),
        "MAGZERO": tile.zeropoint,
        "CENTRA": float(tile.wcs.wcs.crval[0]),
        "CENTDEC": float(tile.wcs.wcs.crval[1]),
        "SATURATE": tile.saturation,
    }
    for name, value in {**cards, **extra}.items():
        header[name] = value
    return _write(path, [fits.PrimaryHDU(tile.data, header=header)])


def write_tile_truth(path: Path, rows: np.ndarray) -> Path:
    """Write one row for each chip of each exposure in a tile: where it lies and how sharp it is."""
    return _write(path, [fits.PrimaryHDU(), _table("CONTRIBUTIONS", rows)])


def _tan_header(wcs: WCS) -> fits.Header:
    """Return the cards of a TAN WCS with a CD matrix, as the survey's stacks have them."""
    w, header = wcs.wcs, fits.Header()
    for axis in (1, 2):
        header[f"CTYPE{axis}"] = w.ctype[axis - 1]
        header[f"CUNIT{axis}"] = "deg"
        header[f"CRVAL{axis}"] = float(w.crval[axis - 1])
        header[f"CRPIX{axis}"] = float(w.crpix[axis - 1])
        for other in (1, 2):
            header[f"CD{axis}_{other}"] = float(w.cd[axis - 1, other - 1])
    header["RADESYS"], header["EQUINOX"] = "ICRS", 2000.0
    return header


def _table(name: str, rows: np.ndarray) -> fits.BinTableHDU:
    hdu = fits.BinTableHDU(rows, name=name)
    for column in rows.dtype.names or ():
        if column in _UNITS:
            hdu.columns[column].unit = _UNITS[column]
        if column in _COMMENTS:
            number = hdu.columns.names.index(column) + 1
            hdu.header.comments[f"TTYPE{number}"] = _COMMENTS[column][:46]
    return hdu


def _write(path: Path, hdus: list) -> Path:
    with atomic_path(path) as temporary:
        fits.HDUList(hdus).writeto(temporary, overwrite=True)
    return path
