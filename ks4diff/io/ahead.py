"""SCAMP's .ahead files: astrometric solutions of chips that serve as first guesses."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.fits_header import card, one_line
from ks4diff.io.tile_tables import ChipDistortion
from ks4diff.products.errors import InputError

_NAME = re.compile(r"(?:.*_)?global(?:_([a-z]+))?\.([mknt])\2\.ahead$", re.IGNORECASE)
_MAX_BYTES = 2**20
_N_PV = 40  # terms of a TPV axis


def read_ahead_folder(folder: Path) -> dict[tuple[str, str], ChipDistortion]:
    """Return {(site, chip): solution} of the files kmtnet_global[_SITE].CC.ahead in a folder.

    SITE is ctio, saao or sso in any case, CC the chip's letter twice; without a site it is "any". Other files
    are passed over.

    Raises
    ------
    InputError
        When the folder has none, or one is damaged.

    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: not a folder of .ahead files ({one_line(error)})") from error
    named = [(match, path) for path in paths if (match := _NAME.match(path.name))]
    if not named:
        raise InputError(f"{folder}: no file like kmtnet_global_ctio.kk.ahead")
    return {
        ((match[1] or "any").upper().replace("ANY", "any"), match[2].upper()): read_ahead(path)
        for match, path in named
    }


def read_ahead(path: Path) -> ChipDistortion:
    """Return the solution of the first header of an .ahead file.

    Raises
    ------
    InputError
        When the file cannot be read or holds no TPV or TAN solution.

    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: is larger than any .ahead file")
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    lines = [line.rstrip("\r")[:80].ljust(80) for line in text.split("\n")]
    end = next((k for k, line in enumerate(lines) if line.strip() == "END"), len(lines))
    # SCAMP writes its author's name in Latin-1, which FITS does not allow
    plain = ["".join(c if c.isprintable() and c.isascii() else " " for c in line) for line in lines[:end]]
    try:
        header = fits.Header.fromstring("".join(line for line in plain if line.strip()))
        return _solution(header)
    except (ValueError, TypeError, KeyError, fits.VerifyError) as error:
        raise InputError(f"{path}: not a SCAMP solution ({one_line(error)})") from error


def _solution(header: fits.Header) -> ChipDistortion:
    kinds = {str(card(header, f"CTYPE{axis}") or "").strip()[-4:] for axis in (1, 2)}
    if not kinds <= {"-TPV", "-TAN"}:
        raise ValueError(f"CTYPE {', '.join(sorted(kinds))} is not TPV")
    pv = []
    for axis in (1, 2):
        terms = [_number(header, f"PV{axis}_{k}", 1.0 if k == 1 else 0.0) for k in range(_N_PV)]
        last = max((k for k, value in enumerate(terms) if value != 0), default=1)
        pv.append(tuple(terms[: last + 1]))
    cd = np.array([[_number(header, f"CD{i}_{j}") for j in (1, 2)] for i in (1, 2)])
    if abs(np.linalg.det(cd)) < 1e-14:
        raise ValueError("the CD matrix is singular")
    return ChipDistortion(
        crpix=(_number(header, "CRPIX1"), _number(header, "CRPIX2")), cd=cd, pv=(pv[0], pv[1])
    )


def _number(header: fits.Header, name: str, default: float | None = None) -> float:
    value = card(header, name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r} is not a number")
    return float(value)
