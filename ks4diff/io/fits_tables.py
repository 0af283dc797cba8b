"""The FITS files of one chip's result: candidates.fits and difference.fits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from ks4diff.io.atomic import atomic_path
from ks4diff.io.fits_header import one_line, quiet_astropy
from ks4diff.products.candidates import (
    CANDIDATE_FLAGS,
    COLUMNS,
    REJECTING_BITS,
    Candidates,
    Column,
    empty_table,
)
from ks4diff.products.difference import Difference
from ks4diff.products.errors import InputError
from ks4diff.products.image import PIXEL_FLAG_DESCRIPTION, PixelFlag
from ks4diff.products.model import RB_FLAGS

# Keys of ``meta`` that have a card of their own; others become their upper-case name.
META_CARDS = {
    "software": ("SOFTWARE", "what made this file"),
    "config_digest": ("CFGHASH", "sha256 of the configuration"),
    "template_ids": ("TEMPLATE", "template ids, comma-separated"),
    "model_id": ("RBMODEL", "model behind the rb column"),
    "rb_features": ("RBFEAT", "version of the features that it saw"),
    "science_file": ("SCIFILE", "science image"),
    "reference_file": ("REFFILE", "reference image"),
    "exposure": ("EXPID", "exposure id"),
    "flux_scale": ("FLXSCALE", "science counts per template count"),
    "quality": ("QUALITY", "pass, warn or fail"),
}
REASONS = Column("rb_reasons", "U", "", "features that moved rb most: name, and + up or - down")
_FORMATS = {"i8": "K", "i4": "J", "f8": "D", "f4": "E", "?": "L"}
_READ_ERRORS = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, fits.VerifyError)

MetaValue = str | int | float | bool | None | Iterable[str]


def write_candidates(
    path: str | os.PathLike[str],
    candidates: Candidates,
    *,
    meta: Mapping[str, MetaValue],
    reasons: Sequence[Sequence[str]] = (),
) -> None:
    """Write candidates.fits: one binary table CANDIDATES with the columns of `COLUMNS`, then rb_reasons.

    Each column has its unit (TUNITn; "flux" becomes the run's flux unit) and its description (TCOMMn). The
    header names the flag bits: FLAGn is the name of bit n, FREJn whether it keeps a candidate from
    alerts, FDESn what it means; likewise RBFn, RBWn (whether rb is withheld) and RBDn those of rb_flags.
    Cutouts are not written. Equal input gives equal bytes.

    Parameters
    ----------
    path
        The file; replaced whole.
    candidates
        Its table must have the dtype of `COLUMNS`.
    meta
        Provenance for the header: the keys of `META_CARDS`, or any FITS keyword of at most 8 characters.
        Sequences are joined by commas; None and non-finite numbers become cards without a value.
    reasons
        Of each row what moved its rb most, strongest first; none where that is not known.

    Raises
    ------
    ValueError
        When the table has another dtype, or a key of ``meta`` is no FITS keyword.
    OSError
        When the file cannot be written.

    """
    table = candidates.table
    if table.dtype != empty_table(0).dtype:
        raise ValueError(f"the table's columns are {table.dtype.names}, not those of COLUMNS")
    columns = [
        fits.Column(
            name=column.name,
            format=_FORMATS[column.dtype],
            unit=_unit(column.unit, candidates.flux_unit) or None,
            array=table[column.name],
        )
        for column in COLUMNS
    ]
    told = [",".join(one) for one in reasons] or [""] * len(table)
    width = max(map(len, told), default=0) or 1
    columns.append(fits.Column(name="rb_reasons", format=f"{width}A", array=np.array(told, f"U{width}")))
    hdu = fits.BinTableHDU.from_columns(columns, name="CANDIDATES")
    for number, column in enumerate((*COLUMNS, REASONS), start=1):
        after = f"TUNIT{number}" if column.unit else f"TFORM{number}"
        hdu.header.set(f"TCOMM{number}", _ascii(column.description), after=after)
    header = hdu.header
    header["FLUXUNIT"] = (candidates.flux_unit, "unit of the flux columns")
    header["FREJECT"] = (REJECTING_BITS, "flags bits that keep a candidate from alerts")
    for flag in CANDIDATE_FLAGS:
        bit = flag.bit.bit_length() - 1
        header[f"FLAG{bit}"] = (flag.name, f"bit {bit} (value {flag.bit}) of flags")
        header[f"FREJ{bit}"] = (flag.rejecting, "keeps a candidate from alerts")
        header[f"FDES{bit}"] = _ascii(flag.description)
    for flag in RB_FLAGS:
        bit = flag.bit.bit_length() - 1
        header[f"RBF{bit}"] = (flag.name, f"bit {bit} (value {flag.bit}) of rb_flags")
        header[f"RBW{bit}"] = (flag.withholds, "leaves rb NaN")
        header[f"RBD{bit}"] = _ascii(flag.description)
    _add_meta(header, meta)
    _write(path, fits.HDUList([fits.PrimaryHDU(), hdu]))


def read_candidates(path: str | os.PathLike[str]) -> Candidates:
    """Return the candidates of a file that `write_candidates` made; cutouts have shape [n, 3, 0, 0].

    Raises
    ------
    InputError
        When the file is missing, broken, or lacks a column; one line naming it.

    """
    data, header = _read_table(path)
    missing = [column.name for column in COLUMNS if column.name not in data]
    if missing:
        raise InputError(f"{path}, HDU 1 (CANDIDATES): lacks the columns {', '.join(missing)}")
    table = empty_table(len(data["id"]))
    for column in COLUMNS:
        table[column.name] = data[column.name]
    unit = str(header.get("FLUXUNIT", "count"))
    return Candidates(table=table, cutouts=np.empty((len(table), 3, 0, 0), np.float32), flux_unit=unit)


def read_meta(path: str | os.PathLike[str]) -> dict[str, str | int | float | bool | None]:
    """Return the provenance in a candidates file's header, under the keys of `META_CARDS`.

    Other cards are left out; ``template_ids`` comes back as its comma-separated text.

    Raises
    ------
    InputError
        When the file is missing or broken; one line naming it.

    """
    _, header = _read_table(path)
    values = {key: header[card] for key, (card, _) in META_CARDS.items() if card in header}
    return {key: None if isinstance(v, fits.card.Undefined) else v for key, v in values.items()}


def write_difference(
    path: str | os.PathLike[str],
    *,
    difference: Difference,
    wcs: WCS | None,
    meta: Mapping[str, MetaValue],
) -> None:
    """Write difference.fits: image HDUs DIFFERENCE, SCORR, MASK and PSF after an empty primary HDU.

    DIFFERENCE and SCORR are float32, MASK int32; these three carry the science WCS. The header of
    MASK names its bits (FLAGn, FDESn); that of DIFFERENCE has FLXSCALE (science counts per template count)
    and NOISE (std of one pixel). PSF is the PSF of DIFFERENCE, sum 1. Equal input gives equal bytes.

    Parameters
    ----------
    path
        The file; replaced whole.
    difference
        What to write.
    wcs
        The science WCS, or None.
    meta
        As in `write_candidates`; goes to the primary header.

    Raises
    ------
    ValueError
        When a key of ``meta`` is no FITS keyword.
    OSError
        When the file cannot be written.

    """
    sky = _wcs_header(wcs)
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(difference.difference.astype(np.float32, copy=False), sky, "DIFFERENCE"),
        fits.ImageHDU(difference.score_corr.astype(np.float32, copy=False), sky, "SCORR"),
        fits.ImageHDU(difference.flags.astype(np.int32, copy=False), sky, "MASK"),
        fits.ImageHDU(difference.psf.stamp.astype(np.float32, copy=False), name="PSF"),
    ]
    _add_meta(hdus[0].header, meta)
    image, score, mask, psf = (hdu.header for hdu in hdus[1:])
    image["BUNIT"] = ("count", "science counts")
    image["FLXSCALE"] = (_finite(difference.flux_scale), "science counts per template count")
    image["NOISE"] = (_finite(difference.noise), "std of one pixel without sources")
    score["BUNIT"] = ("", "unit normal where nothing changed")
    for flag in PixelFlag:
        bit = flag.value.bit_length() - 1
        mask[f"FLAG{bit}"] = (flag.name, f"bit {bit} (value {flag.value})")
        mask[f"FDES{bit}"] = _ascii(PIXEL_FLAG_DESCRIPTION[flag])
    psf["FWHM"] = (_finite(difference.psf.fwhm_pix), "pixels")
    psf["NSTARS"] = (int(difference.psf.n_stars), "stars behind it")
    _write(path, fits.HDUList(hdus))


def _write(path: str | os.PathLike[str], hdus: fits.HDUList) -> None:
    with quiet_astropy(str(path)), atomic_path(Path(path)) as temporary, open(temporary, "wb") as stream:
        hdus.writeto(stream)


def _read_table(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], fits.Header]:
    try:
        with quiet_astropy(str(path)), open(path, "rb") as stream, fits.open(stream, memmap=False) as hdus:
            hdu = hdus["CANDIDATES"]
            # By column: as a whole the array holds logical columns as the letters T and F.
            return {name: np.array(hdu.data[name]) for name in hdu.columns.names}, hdu.header
    except _READ_ERRORS as error:
        raise InputError(f"{path}: cannot be read as candidates ({one_line(error)})") from error


def _wcs_header(wcs: WCS | None) -> fits.Header | None:
    if wcs is None:
        return None
    with quiet_astropy("difference WCS"):
        return wcs.to_header(relax=True)  # relax keeps SIP and TPV terms


def _add_meta(header: fits.Header, meta: Mapping[str, MetaValue]) -> None:
    for key, value in meta.items():
        card, comment = META_CARDS.get(key, (key.upper(), ""))
        if not re.fullmatch(r"[A-Z0-9_-]{1,8}", card):
            raise ValueError(f"{key!r} is not a FITS keyword")
        if isinstance(value, str):
            value = _ascii(value)
        elif isinstance(value, float | np.floating):
            value = _finite(value)
        elif isinstance(value, Iterable):
            value = _ascii(",".join(value))
        header[card] = (value, comment)


def _finite(value: float) -> float | None:
    """Return the number, or None: FITS headers cannot say NaN."""
    return float(value) if np.isfinite(value) else None


def _unit(unit: str, flux_unit: str) -> str:
    return flux_unit if unit == "flux" else unit


def _ascii(text: str) -> str:
    """Return text that a FITS header can hold: printable ASCII; other characters as escapes."""
    plain = text.replace("²", "^2").encode("ascii", "backslashreplace").decode("ascii")
    return re.sub(r"[^ -~]+", " ", plain)
