"""A chip's candidates as the history keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ks4diff.products.alert import Alert
from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.products.coverage import ChipCoverage
from ks4diff.products.sightings import MEASURED, SIGHTING, ChipSightings
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.package import candid
from ks4diff.stages.photometry import magnitude
from ks4diff.stages.quality import pixel_arcsec
from ks4diff.stages.sky_cells import cells_of

UNMEASURED_ARCSEC = 1.0  # of a position whose error is not known: the widest gate


def chip_sightings(
    subtracted: SubtractedChip,
    alerts: Sequence[Alert],
    exposure: str,
    coverage: ChipCoverage | None,
    kept: str | None,
) -> ChipSightings:
    """Return what one chip adds to the history: every candidate, those of ``alerts`` as accepted.

    The error of a position is the root mean square of both axes', times the size of a pixel on the sky.
    """
    raw, measured = subtracted.chip.raw, subtracted.candidates.table
    scale = pixel_arcsec(raw)
    table = np.zeros(len(measured), dtype=SIGHTING)
    for name in MEASURED:
        table[name] = measured[name]
    table["candid"] = [candid(exposure, raw.chip, row) for row in range(len(measured))]
    table["accepted"] = np.isin(table["candid"], [alert.candid for alert in alerts])
    table["flags"], table["is_positive"] = measured["flags"], measured["is_positive"]
    table["rejected"] = (measured["flags"] & REJECTING_BITS) != 0
    errors = np.hypot(measured["x_err"].astype(np.float64), measured["y_err"]) / np.sqrt(2)
    errors = np.full(len(measured), np.nan) if scale is None else errors * scale
    table["err_arcsec"] = np.where(np.isfinite(errors), errors, UNMEASURED_ARCSEC)
    table["cell"] = cells_of(table["ra"], table["dec"])
    return ChipSightings(
        chip=raw.chip,
        table=table,
        flux_unit=subtracted.candidates.flux_unit,
        quality=subtracted.quality.verdict,
        zeropoint=raw.zeropoint,
        seeing_arcsec=None if scale is None else subtracted.chip.psf.fwhm_pix * scale,
        limiting_mag=magnitude(subtracted.limiting_flux, raw.zeropoint),
        coverage=coverage,
        kept=kept,
    )
