"""Which raw frames are biases, flats and science, by what their headers say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ks4diff.io.calibrations import frame_header
from ks4diff.products.errors import InputError
from ks4diff.products.exposure import ExposureFiles
from ks4diff.stages.masters import MastersConfig

log = logging.getLogger(__name__)

BIAS_TYPES = ("BIAS", "ZERO")
FLAT_TYPES = ("FLAT", "DOMEFLAT", "SKYFLAT", "TWILIGHT")
SCIENCE_TYPES = ("OBJECT", "SCIENCE")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The raw frames of one site, sorted by what they are for; science is what may show fringes."""

    site: str
    bias: list[ExposureFiles]
    flats: dict[str, list[ExposureFiles]]
    science: dict[str, list[ExposureFiles]]
    notes: list[str]

    @property
    def night(self) -> str:
        """The last night, which names the masters."""
        return max(exposure.id.night for exposure in self.every)

    @property
    def every(self) -> list[ExposureFiles]:
        """All of them."""
        banded = [*self.flats.values(), *self.science.values()]
        return [*self.bias, *(exposure for some in banded for exposure in some)]


def sort_frames(exposures: Sequence[ExposureFiles], config: MastersConfig) -> list[Frames]:
    """Return the frames of each site by what IMAGETYP and the exposure time say they are."""
    sites: dict[str, Frames] = {}
    for exposure in exposures:
        if not exposure.chips:
            continue
        site = str(exposure.id.site)
        frames = sites.setdefault(site, Frames(site=site, bias=[], flats={}, science={}, notes=[]))
        kind = (exposure.image_type or "").upper()
        try:
            exptime, band = frame_header(next(iter(exposure.chips.values())))
        except InputError as error:
            frames.notes.append(str(error))
            continue
        if kind in BIAS_TYPES and (exptime or 0.0) <= config.bias_longest_s:
            frames.bias.append(exposure)
        elif kind in FLAT_TYPES and band:
            frames.flats.setdefault(band, []).append(exposure)
        elif kind in SCIENCE_TYPES and band and band in config.fringe_bands:
            if (exptime or 0.0) >= config.fringe_shortest_s:
                frames.science.setdefault(band, []).append(exposure)
        else:
            log.info("%s: not used (IMAGETYP %s, EXPTIME %s, FILTER %s)", exposure.id, kind, exptime, band)
    return [f for _, f in sorted(sites.items()) if f.bias or f.flats or f.science or f.notes]
