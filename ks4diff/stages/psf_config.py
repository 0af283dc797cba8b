"""What can be set about PSFs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PsfConfig:
    """How PSFs are measured from stars."""

    radius_fwhm: float = 3.5  # stamp half-width of one PSF: a Moffat beyond holds 1 % of its light
    field_radius_fwhm: float = 4.5  # the same of a PSF that varies: many stars hold its wings
    least_half_pix: int = 14  # of a stamp's half-width: what one image's lacks of a star's wings stays in D
    max_stars: int = 80  # brightest clean ones, of one PSF
    min_stars: int = 4
    max_modelled: int = 4000  # neighbours fitted together for one PSF, brightest first
    rounds: int = 4
    clip_sigma: float = 3.5
    stars_per_cell: int = 80  # clean ones measured per 1024 px square; 40 of S/N 100 give 0.3 % of the peak
    stars_in_all: int = 2500  # of which at least 40 per square: what a second of computing holds
    max_modes: int = 6  # patterns of change: width, two of ellipticity, two of coma, one more
    max_order: int = 3  # of the amplitudes' polynomial over the image
    node_pix: float = 256.0  # of the amplitudes' map
    border_node_pix: float = 32.0  # ... where it steps at the borders of a stack
