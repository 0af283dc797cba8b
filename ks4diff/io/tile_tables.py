"""Small tables around tiles: the field grid, known distortions, zero-point maps and field-issue flags."""

from __future__ import annotations

import csv
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ks4diff.io.fits_header import one_line
from ks4diff.io.share import shared_path
from ks4diff.products.errors import InputError
from ks4diff.products.fields import FieldGrid
from ks4diff.products.ids import BANDS

_MAX_MAP_BYTES = 2**25
_MAX_TABLE_BYTES = 2**25
_MAX_ZP_OFFSET = 2.0  # a cell farther from the tile's zero point holds no measurement (the maps write 0)


@dataclass(frozen=True, kw_only=True)
class ChipDistortion:
    """TPV solution of one chip: CRPIX, CD [2, 2] in degrees per pixel, PV coefficients by axis and term."""

    crpix: tuple[float, float]
    cd: np.ndarray
    pv: tuple[tuple[float, ...], tuple[float, ...]]


def read_field_grid(path: Path | None = None) -> FieldGrid:
    """Return the KMTNet field grid, by default our own table.

    Raises
    ------
    InputError
        When the table is missing or damaged.

    """
    path = path or shared_path("templates/ks4-fields.csv")
    try:
        rows = [line.split(",") for line in path.read_text(encoding="ascii").splitlines()[3:]]
        ra, dec, dithers = np.array(rows, dtype=np.float64).T
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a table of fields ({one_line(error)})") from error
    return FieldGrid(ra=ra, dec=dec, dithers=dithers.astype(np.int16))


def read_distortions(path: Path | None = None) -> dict[tuple[str, str], ChipDistortion]:
    """Return {(site, chip): solution}; site "any" is independent of the site and serves SAAO.

    Raises
    ------
    InputError
        When the table is missing or damaged.

    """
    path = path or shared_path("templates/distortion.toml")
    try:
        sites = tomllib.loads(path.read_text(encoding="utf-8"))
        return {
            (site, chip): ChipDistortion(
                crpix=(float(values["crpix"][0]), float(values["crpix"][1])),
                cd=np.array(values["cd"], dtype=np.float64).reshape(2, 2),
                pv=(tuple(map(float, values["pv1"])), tuple(map(float, values["pv2"]))),
            )
            for site, chips in sites.items()
            for chip, values in chips.items()
        }
    except (
        OSError,
        UnicodeDecodeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        raise InputError(f"{path}: not a table of distortions ({one_line(error)})") from error


def read_zp_map(path: Path, zeropoint: float) -> np.ndarray:
    """Return the factor float32 [y, x] that brings a stack's counts to one zero point.

    The survey's maps hold the zero point of square cells, indexed [x, y]: they are transposed here. The
    factor is 10^((zeropoint - zp) / 2.5); a cell without a measurement (not finite, or more than 2 mag away)
    takes that of the nearest cell with one.

    Raises
    ------
    InputError
        When the file is no such map.

    """
    try:
        if path.stat().st_size > _MAX_MAP_BYTES:
            raise InputError(f"{path}: is larger than any zero-point map ({path.stat().st_size} bytes)")
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise InputError(f"{path}: not a zero-point map in .npy ({one_line(error)})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f" or not values.size:
        raise InputError(f"{path}: not a zero-point map: want a 2-D array of floats")
    offset = zeropoint - values.T.astype(np.float64)
    known = np.isfinite(offset) & (np.abs(offset) <= _MAX_ZP_OFFSET)
    if not known.any():
        raise InputError(f"{path}: no cell has a zero point within {_MAX_ZP_OFFSET:g} mag of {zeropoint:g}")
    return (10 ** (_nearest_known(offset, known) / 2.5)).astype(np.float32)


def _nearest_known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return ``values`` with each unknown cell replaced by the nearest known one."""
    filled = values.copy()
    rows, columns = np.nonzero(known)
    for row, column in zip(*np.nonzero(~known), strict=True):
        nearest = int(np.argmin((rows - row) ** 2 + (columns - column) ** 2))
        filled[row, column] = values[rows[nearest], columns[nearest]]
    return filled


def read_issues(path: Path) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Return {(field, band): names of its known defects} from KS4_DR1_Field_Issue_Flags.csv.

    Columns: FIELD, then one 0/1 column per defect and band, such as StrayLightContam_R; those of other
    bands than BVRI (..._ANY) and unknown columns are passed over.

    Raises
    ------
    InputError
        When the file is no such table.

    """
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise InputError(f"{path}: is larger than any table of field issues")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _issues(path, csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a table of field issues ({one_line(error)})") from error


def _issues(path: Path, rows: csv.DictReader) -> Mapping[tuple[str, str], tuple[str, ...]]:
    flags = [name for name in rows.fieldnames or () if name.rpartition("_")[2] in BANDS and "_" in name]
    if "FIELD" not in (rows.fieldnames or ()) or not flags:
        raise InputError(f"{path}: not a table of field issues: no FIELD or no column such as TrackIssue_R")
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for line, row in enumerate(rows, start=2):
        for name in flags:
            issue, _, band = name.rpartition("_")
            key = (row["FIELD"], band)
            found.setdefault(key, ())
            if _is_raised(path, line, name, row[name]):
                found[key] += (issue,)
    return found


def _is_raised(path: Path, line: int, name: str, text: str | None) -> bool:
    try:
        value = float(text) if text and text.strip() else 0.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: {name} = {text!r} is not 0 or 1")
    return value != 0
