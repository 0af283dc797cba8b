"""A tile's card and arrays as files: JSON for what people read, .npz for the rest, both checked when read."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, WcsError

from ks4diff.io.atomic import atomic_path, atomic_write_bytes
from ks4diff.io.fits_header import one_line, quiet_astropy
from ks4diff.products.chip import StarList
from ks4diff.products.errors import InputError
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf
from ks4diff.products.template import TileRecord

SCHEMA = 1
MAX_CARD_BYTES = 2**20
_MAX_ARRAY_BYTES = 2**29  # unpacked: 10 million stars
_STARS = ("x", "y", "flux", "fwhm", "clean")
_SCALARS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "file": (str,),
    "hdu": (str,),
    "sha256": (str,),
    "band": (str,),
    "field": (str, type(None)),
    "zeropoint": (float, int),
    "exptime": (float, int, type(None)),
    "mjd": (float, int, type(None)),
    "cell_pix": (int,),
    "fwhm_pix": (float, int, type(None)),
    "saturation": (float, int, type(None)),
    "n_stars": (int,),
}
_LISTS = ("shape", "corners", "issues")
_OTHERS = {
    "wcs": (str,),
    "arrays": (str,),
    "bytes": (int,),
    "sigma_counts": (float, int),
    "noise_method": (str,),
}


def card_of(record: TileRecord, *, arrays: str, size: int, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the card of a tile; ``arrays`` names the file of its arrays, ``size`` is its pixel file's."""
    card: dict[str, Any] = {"schema": SCHEMA, **{name: getattr(record, name) for name in _SCALARS}}
    card |= {"shape": list(record.shape), "issues": list(record.issues), "corners": record.corners.tolist()}
    card |= {"wcs": record.wcs.to_header_string(relax=True), "arrays": arrays, "bytes": size}
    card |= {"sigma_counts": record.noise.sigma, "noise_method": record.noise.method}
    card["covered"] = round(float(record.coverage.mean()), 5)
    return card | {"provenance": provenance}


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card atomically."""
    text = json.dumps(card, indent=1, allow_nan=False) + "\n"
    atomic_write_bytes(path, text.encode())


def read_card(path: Path) -> dict[str, Any]:
    """Return a card whose fields have the right types.

    Raises
    ------
    InputError
        When the card is damaged or of another schema; one line.

    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_CARD_BYTES + 1)
        if len(text) > MAX_CARD_BYTES:
            raise InputError(f"{path}: larger than any tile's card")
        card = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a tile's card ({one_line(error)})") from error
    problem = card_problem(card)
    if problem:
        raise InputError(f"{path}: damaged card: {problem}")
    return card


def card_problem(card: Any) -> str | None:
    """Return what is wrong with a card, or None."""
    if not isinstance(card, dict):
        return "not an object"
    if card.get("schema") != SCHEMA:
        return f"schema {card.get('schema')!r}, this version reads {SCHEMA}"
    for name, kinds in {**_SCALARS, **_OTHERS}.items():
        value = card.get(name, ...)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return f"{name} is {'missing' if value is ... else repr(value)[:60]}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
    lists = [card.get(name) for name in _LISTS]
    if not all(isinstance(value, list) for value in lists):
        return f"one of {', '.join(_LISTS)} is no list"
    if len(lists[0]) != 2 or not all(isinstance(n, int) and 0 < n < 2**20 for n in lists[0]):
        return f"shape is {lists[0]!r}"
    if not _is_corners(lists[1]) or not all(isinstance(text, str) for text in lists[2]):
        return "corners or issues have no meaning"
    if card["cell_pix"] < 1 or "/" in card["id"] or "/" in card["arrays"]:
        return "cell_pix, id or arrays is impossible"
    return None


def _is_corners(value: list[Any]) -> bool:
    flat = [number for pair in value if isinstance(pair, list) and len(pair) == 2 for number in pair]
    return len(flat) == 8 and all(isinstance(n, float | int) and math.isfinite(n) for n in flat)


def write_arrays(path: Path, record: TileRecord, stars: StarList) -> None:
    """Write the arrays of a tile, atomically, with nothing that would need unpickling."""
    arrays = {
        "coverage": record.coverage,
        "sigma": record.sigma,
        "background": record.background,
        "correlation": record.noise.correlation,
        "fwhm_map": record.fwhm_map,
        **{f"star_{name}": _column(getattr(stars, name)) for name in _STARS},
    }
    if record.flux_factor is not None:
        arrays["flux_factor"] = record.flux_factor
    if record.psf is not None:
        arrays |= {
            "psf": record.psf.stamp,
            "psf_numbers": np.array([record.psf.fwhm_pix, record.psf.n_stars]),
        }
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _column(values: np.ndarray) -> np.ndarray:
    # 1/500 of a pixel at x = 22000 in float32: too coarse for a registration
    return values if values.dtype == bool or values.max(initial=0) < 2**16 else values.astype(np.float32)


def read_record(card: dict[str, Any], path: Path, file: Path) -> TileRecord:
    """Return the tile of a card, with its arrays from ``path`` and its pixels in ``file``.

    Raises
    ------
    InputError
        When the arrays are damaged or do not fit the card.

    """
    shape = (card["shape"][0], card["shape"][1])
    cells = (-(-shape[0] // card["cell_pix"]), -(-shape[1] // card["cell_pix"]))

    def take(archive: Any) -> TileRecord:
        maps = {name: _array(archive, name, cells) for name in ("coverage", "sigma", "background")}
        correlation = _array(archive, "correlation")
        if correlation.ndim != 2 or len(correlation) % 2 == 0 or correlation.shape[0] != correlation.shape[1]:
            raise ValueError("the noise correlation is not square and odd")
        psf = None
        if "psf" in archive.files:
            numbers = _array(archive, "psf_numbers", (2,))
            psf = Psf(stamp=_array(archive, "psf"), fwhm_pix=float(numbers[0]), n_stars=int(numbers[1]))
        factor = _array(archive, "flux_factor") if "flux_factor" in archive.files else None
        values = {name: card[name] for name in _SCALARS}
        return TileRecord(
            **values | {"file": str(file), "issues": tuple(card["issues"])},
            shape=shape,
            wcs=_wcs(card["wcs"]),
            corners=np.array(card["corners"], dtype=np.float64),
            noise=NoiseModel(
                sigma=float(card["sigma_counts"]), correlation=correlation, method=card["noise_method"]
            ),
            psf=psf,
            flux_factor=factor,
            fwhm_map=_array(archive, "fwhm_map"),
            **maps,
        )

    return _from_archive(path, take)


def read_stars(path: Path) -> StarList:
    """Return the star list of a tile's arrays.

    Raises
    ------
    InputError
        When the arrays are damaged.

    """

    def take(archive: Any) -> StarList:
        columns = {name: _array(archive, f"star_{name}") for name in _STARS}
        if len({values.shape for values in columns.values()}) != 1 or columns["clean"].dtype != bool:
            raise ValueError("the star columns do not fit each other")
        kept = {name: values for name, values in columns.items() if name != "clean"}
        return StarList(**{n: v.astype(np.float64) for n, v in kept.items()}, clean=columns["clean"])

    return _from_archive(path, take)


def _from_archive(path: Path, take: Callable[[Any], Any]) -> Any:
    """Return what ``take`` makes of an .npz file; whatever is wrong with it becomes one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _MAX_ARRAY_BYTES:
            raise InputError(f"{path}: promises {size} bytes of arrays, more than any tile has")
        with np.load(path, allow_pickle=False) as archive:
            return take(archive)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged arrays of a tile ({one_line(error)})") from error
    except (NotImplementedError, RuntimeError, MemoryError, SyntaxError, WcsError) as error:
        raise InputError(f"{path}: damaged arrays of a tile ({one_line(error)})") from error


def _array(archive: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    values = archive[name]
    if values.dtype.kind not in "fb" or (shape is not None and values.shape != shape):
        raise ValueError(f"{name} is {values.dtype} {values.shape}, not {shape or 'an array of floats'}")
    return values


def _wcs(text: str) -> WCS:
    with quiet_astropy("card"):
        wcs = WCS(fits.Header.fromstring(text), naxis=2)
    if not wcs.has_celestial:
        raise ValueError("the card has no celestial WCS")
    return wcs
