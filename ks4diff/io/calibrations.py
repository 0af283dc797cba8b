"""The calibration folder: master frames and crosstalk tables, written whole and found by night.

``FOLDER/<site>/<chip>/bias.<night>.fits``, ``flat-<band>.<night>.fits``, ``fringe-<band>.<night>.fits``,
``badpix.<night>.fits`` and ``FOLDER/crosstalk.csv``.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.atomic import atomic_path
from ks4diff.io.fits_header import header_facts, one_line, quiet_astropy
from ks4diff.io.fits_open import failing_as_input_error, open_fits
from ks4diff.products.errors import InputError
from ks4diff.products.masters import Masters

KINDS = ("bias", "flat", "fringe", "badpix")
_COLUMNS = ("site", "chip", "source", "victim", "coefficient")
_LARGEST_COEFFICIENT = 0.1  # real ones are a few 1e-3 at most (kmtnet.md section 7)


@dataclass(frozen=True, kw_only=True)
class MasterName:
    """Which master a file is; ``band`` None for bias and bad pixels, ``night`` YYYYMMDD."""

    kind: str
    site: str
    chip: str
    band: str | None
    night: str

    def path(self, folder: Path) -> Path:
        """Return its place in a calibration folder."""
        stem = self.kind if self.band is None else f"{self.kind}-{self.band}"
        return folder / self.site / self.chip / f"{stem}.{self.night}.fits"


def write_master(
    folder: Path, name: MasterName, image: np.ndarray, *, frames: Sequence[str], meta: Mapping[str, object]
) -> Path:
    """Write a master with its provenance and return its path; equal input gives equal bytes.

    ``image`` is float32 or bool [y, x]; ``frames`` are the exposures it was made from; ``meta`` more cards.

    Raises
    ------
    OSError
        When the folder cannot be written, or the disk is full.

    """
    hdu = fits.PrimaryHDU(image.astype(np.uint8) if image.dtype == bool else image)
    cards = {
        "KIND": name.kind,
        "SITE": name.site,
        "CHIP": name.chip,
        "NIGHT": name.night,
        "FILTER": name.band,
    }
    for key, value in {**cards, **meta, "NCOMBINE": len(frames)}.items():
        if value is not None:
            hdu.header[key] = value
    for number, frame in enumerate(frames, start=1):
        hdu.header[f"FRAME{number:03d}"] = one_line(frame, 60)
    hdu.add_checksum(when="")
    path = name.path(folder)
    with atomic_path(path) as temporary:
        hdu.writeto(temporary, overwrite=True)
    return path


def load_masters(folder: Path, site: str, chip: str, band: str | None, night: str | None) -> Masters:
    """Return what a folder holds for a chip: each kind's latest up to ``night``, else the first after it.

    ``night`` YYYYMMDD; None takes the latest. Kinds that are not there are None.

    Raises
    ------
    InputError
        When the folder does not exist, or a file in it cannot be read; one line naming it.

    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such calibration folder")
    paths = {kind: _find(folder / site / chip, kind, band, night) for kind in KINDS}
    images = {kind: None if path is None else _read(path) for kind, path in paths.items()}
    table = folder / "crosstalk.csv"
    bad = images["badpix"]
    return Masters(
        bias=images["bias"],
        flat=images["flat"],
        fringe=images["fringe"],
        bad=None if bad is None else bad != 0,
        crosstalk=read_crosstalk(table, site, chip) if table.is_file() else None,
        sources=tuple(str(path.relative_to(folder)) for path in paths.values() if path is not None),
    )


def read_crosstalk(path: Path, site: str, chip: str, *, amplifiers: int = 8) -> np.ndarray | None:
    """Return float64 [n, n], coefficient of victim i and source j of a chip; None when it has no row.

    The table is CSV with the columns site, chip, source, victim, coefficient; amplifiers are counted from the
    lowest column of the assembled chip, from 1 (file labels run backwards on K and N); an empty site or chip
    means all. Lines starting with # are comments.

    Raises
    ------
    InputError
        When the table cannot be read, or a value is out of its range; one line naming file and line.

    """
    matrix = np.zeros((amplifiers, amplifiers))
    found = False
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip() and line[0] != "#"]
    reader = csv.DictReader([line for _, line in numbered], skipinitialspace=True)
    if tuple(reader.fieldnames or ()) != _COLUMNS:
        raise InputError(f"{path}: the first line must be {','.join(_COLUMNS)}")
    for (number, _), row in zip(numbered[1:], reader, strict=False):
        try:
            source, victim = int(row["source"]), int(row["victim"])
            value = float(row["coefficient"])
        except (TypeError, ValueError):
            raise InputError(f"{path}, line {number}: not two amplifiers and a coefficient") from None
        if not (1 <= source <= amplifiers and 1 <= victim <= amplifiers and source != victim):
            raise InputError(f"{path}, line {number}: amplifiers must differ and be 1 to {amplifiers}")
        if not (math.isfinite(value) and abs(value) <= _LARGEST_COEFFICIENT):
            raise InputError(f"{path}, line {number}: coefficient {value:g} is beyond {_LARGEST_COEFFICIENT}")
        if row["site"].strip() in ("", site) and row["chip"].strip() in ("", chip):
            matrix[victim - 1, source - 1] = value
            found = True
    return matrix if found else None


def frame_header(path: Path) -> tuple[float | None, str | None]:
    """Return (exposure time in seconds, filter) of a raw file, None where its primary header has none.

    Raises
    ------
    InputError
        When it cannot be read.

    """
    failing = failing_as_input_error(f"{path}: header cannot be read")
    with quiet_astropy(str(path)), open_fits(path) as (hdus, _), failing:
        facts = header_facts([hdus[0].header])
    return facts["exptime"], facts["filter"]


def _find(folder: Path, kind: str, band: str | None, night: str | None) -> Path | None:
    stem = f"{kind}-{band}" if kind in ("flat", "fringe") else kind
    pattern = re.compile(rf"^{re.escape(stem)}\.(\d{{8}})\.fits$")
    found = {m[1]: path for path in folder.glob(f"{kind}*.fits") if (m := pattern.match(path.name))}
    if not found:
        return None
    before = [n for n in found if night is None or n <= night]
    return found[max(before) if before else min(found)]


def _read(path: Path) -> np.ndarray:
    """Return the image of a master file, native and contiguous, after comparing its checksum."""
    failing = failing_as_input_error(f"{path}: cannot be read")
    with quiet_astropy(str(path)), open_fits(path) as (hdus, _), failing:
        hdu = hdus[0]
        if hdu.data is None or hdu.data.ndim != 2:
            raise InputError(f"{path}: holds no image")
        kind = np.uint8 if hdu.header["BITPIX"] == 8 else np.float32
        image = np.ascontiguousarray(hdu.data, dtype=kind)
        if "DATASUM" in hdu.header and not hdu.verify_datasum():
            raise InputError(f"{path}: damaged: its checksum does not fit its pixels")
    return image
