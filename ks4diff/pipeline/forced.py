"""Forced photometry: the flux at a position in every difference that is still kept."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ks4diff.io.history import History, looked_from
from ks4diff.io.kept import KEPT, open_kept, write_kept
from ks4diff.products.coverage import Looked
from ks4diff.products.errors import InputError
from ks4diff.products.history import ForcedFlux
from ks4diff.products.image import PixelFlag
from ks4diff.products.kept import KeptPart
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.keep import REACH_PIX, flux_at, kept_planes, typical_error
from ks4diff.stages.past import covering
from ks4diff.stages.photometry import magnitude, njy_per_count
from ks4diff.stages.sky_cells import COARSE_ORDER, cells_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A position, ICRS degrees, in one chip of one exposure."""

    ra: float
    dec: float
    chip: Looked

    @property
    def key(self) -> tuple[str, str, float, float]:
        """What tells it from others."""
        return self.chip.exposure, self.chip.chip, self.ra, self.dec


@dataclass(frozen=True, kw_only=True)
class LightCurve:
    """Forced fluxes at a position, by time, and how many exposures that covered it are not kept any more."""

    fluxes: tuple[ForcedFlux, ...]
    n_not_kept: int


def keep(subtracted: SubtractedChip, folder: Path, exposure: str) -> Path | None:
    """Write a chip's kept difference into a folder and return it; None without a WCS: none could find it."""
    raw, difference = subtracted.chip.raw, subtracted.difference
    if raw.wcs is None:
        return None
    typical = typical_error(difference)
    cards = {
        "EXPID": (exposure, "exposure id"),
        "CHIP": (raw.chip, "chip"),
        "FILTER": (raw.filter, "band"),
        "MJDMID": (raw.mjd_mid, "mid-exposure, UTC"),
        "ZPMAG": (raw.zeropoint, "AB magnitude of one count"),
        "FLUXERR": (typical, "flux error that ERROR counts from, counts"),
        "FWHM": (difference.psf.fwhm_pix, "of PSF, pixels"),
    }
    path = folder / KEPT
    planes = kept_planes(difference, typical)
    write_kept(path, planes, wcs=raw.wcs, psf=difference.psf.stamp, cards=cards)
    return path


Again = Callable[[Sequence[Looked]], Mapping[tuple[str, str], Path]]  # kept differences by exposure and chip


def light_curve(
    history: History, out: Path | None, ra: float, dec: float, *, again: Again | None = None
) -> LightCurve:
    """Return the forced fluxes at a position in all differences that are kept, or that ``again`` makes.

    Raises
    ------
    HistoryUnavailable
        When the database is away.

    """
    at = np.array([ra]), np.array([dec])
    with history.reading() as reader:
        looked = [looked_from(row) for row in reader.chips_over(cells_of(*at, COARSE_ORDER).tolist())]
    places = [Place(ra=ra, dec=dec, chip=chip) for chip, _ in covering(looked, *at)[0]]
    gone = [place.chip for place in places if _find(place.chip, out) is None]
    made = {} if again is None else again(gone)
    fluxes = measure_places(places, out, made)
    found = [fluxes[place.key] for place in places if place.key in fluxes]
    return LightCurve(fluxes=tuple(found), n_not_kept=len(gone) - len(made))


def measure_places(
    places: Iterable[Place], out: Path | None, made: Mapping[tuple[str, str], Path] = MappingProxyType({})
) -> dict[tuple, ForcedFlux]:
    """Return the flux at each place whose difference is kept or made, by its key; each file is opened once.

    Left out are places on pixels without data, and chips without a zero point: their counts are no nJy. A
    kept difference is looked for under ``out`` first, since a run's folder may have moved, then where it was
    written.
    """
    by_file: dict[Path, list[Place]] = defaultdict(list)
    for place in places:
        path = _find(place.chip, out) or made.get((place.chip.exposure, place.chip.chip))
        if path is not None:
            by_file[path].append(place)
    fluxes: dict[tuple, ForcedFlux] = {}
    for path, here in by_file.items():
        try:
            parts, zeropoint = _read(path, here)
        except InputError as error:
            log.warning("%s", error)
            continue
        for place, (part, x, y) in zip(here, parts, strict=True):
            if part is not None and zeropoint is not None:
                flux = _measured(place, part, (x, y), zeropoint)
                if np.isfinite(flux.flux):
                    fluxes[place.key] = flux
    return fluxes


def _find(chip: Looked, out: Path | None) -> Path | None:
    roots = ([] if out is None else [out]) + ([Path(chip.root)] if chip.root else [])
    paths = [root / chip.kept for root in roots if chip.kept]
    return next((path for path in paths if path.is_file()), None)


def _read(
    path: Path, places: Sequence[Place]
) -> tuple[list[tuple[KeptPart | None, float, float]], float | None]:
    """Return (piece of the chip around it, x, y) of each place, and the zero point."""
    with open_kept(path) as kept:
        if kept.wcs is None:
            return [(None, 0.0, 0.0)] * len(places), None
        x, y = kept.wcs.all_world2pix([p.ra for p in places], [p.dec for p in places], 0, quiet=True)
        known = np.isfinite(x) & np.isfinite(y)
        parts = [
            (kept.part(x[k], y[k], REACH_PIX) if known[k] else None, float(x[k]), float(y[k]))
            for k in range(len(places))
        ]
        return parts, kept.cards.get("ZPMAG")


def _measured(place: Place, part: KeptPart, at: tuple[float, float], zeropoint: float) -> ForcedFlux:
    flux, error, bits = flux_at(part, *at)
    unit = njy_per_count(zeropoint)
    flags = [flag.name.lower() for flag in PixelFlag if bits & flag]
    if place.chip.quality == "fail":
        flags.append("quality_fail")
    return ForcedFlux(
        exposure=place.chip.exposure,
        mjd=place.chip.mjd,
        filter=place.chip.filter or "",
        site=place.chip.site or "",
        chip=place.chip.chip,
        flux=flux * unit,
        flux_err=error * unit,
        diffmaglim=magnitude(5 * error, zeropoint),
        flags=tuple(flags),
    )
