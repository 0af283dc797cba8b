"""What lies around candidates: masked and saturated pixels, borders, sources, each other; and the flags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics.cutouts import outline
from ks4diff.numerics.moments import stamps
from ks4diff.products.candidates import FLAG_BIT
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference
from ks4diff.products.image import PixelFlag
from ks4diff.stages.detect import VOID
from ks4diff.stages.measure_flux import disc
from ks4diff.stages.photometry import NJY_ZEROPOINT

SATURATED_REACH_PIX = 100.0  # distances beyond it are not told apart
DENSITY_ARCMIN = 3.0  # candidates are counted within
# reasons without a flag of their own
MASKED = PixelFlag.BAD_PIXEL | PixelFlag.SEAM | PixelFlag.CROSSTALK | PixelFlag.COSMIC_RAY
SLICES = 64  # of that circle, to tell how much of it lies on the chip: to 0.3 %


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Sizes of stamps and the limits of flags."""

    cutout_pix: int = 63
    dipole_ratio: float = 0.6  # opposite lobe over peak: a moved star leaves 0.5 to 1
    sharp_limit: float = 1.6  # a star gives 1, a single pixel 3 or more ...
    sharp_sigma: float = 5.0  # ... and is sure of it: of nine pixels of noise the highest counts
    near_saturated_fwhm: float = 5.0
    template_sigma: float = 5.0  # a template source under the candidate
    model_error: float = 0.03  # of the PSF: floor of the chi² of bright sources


def add_context(
    table: np.ndarray,
    chip: CalibratedChip,
    template: AlignedTemplate,
    difference: Difference,
    unit: float,
) -> np.ndarray:
    """Fill what lies around the rows, in place; return uint16 [2, n]: pixel flags around and amid them.

    Those of either image within one FWHM, and those of the middle nine pixels.
    ``unit`` is the table's flux unit per science count.
    """
    fwhm = difference.psf.fwhm_pix
    half = int(np.ceil(fwhm))
    within = disc(half, fwhm)
    raised = np.zeros((len(table), *within.shape), dtype=np.uint16)
    for flags in (chip.image.flags, template.image.flags):
        raised |= stamps(flags, table["x"], table["y"], half, PixelFlag.EDGE)
    raised[:, ~within] = 0
    table["masked_fraction"] = (raised != 0).sum(axis=(1, 2)) / within.sum()
    _add_saturated(table, chip, template)
    rows, columns = chip.image.shape
    x, y = table["x"], table["y"]
    table["edge_distance"] = np.minimum(np.minimum(x, columns - 1 - x), np.minimum(y, rows - 1 - y))
    _add_source(table, chip, template, difference.scale_at(x, y) * unit)
    _add_density(table, chip)
    amid = raised[:, half - 1 : half + 2, half - 1 : half + 2]
    return np.stack([np.bitwise_or.reduce(part, axis=(1, 2)) for part in (raised, amid)])


def _add_saturated(table: np.ndarray, chip: CalibratedChip, template: AlignedTemplate) -> None:
    table["saturated_distance"] = SATURATED_REACH_PIX
    full = (int(PixelFlag.SATURATED), int(PixelFlag.TEMPLATE_SATURATED))
    border = outline(chip.image.flags, full[0], template.image.flags, full[1])
    if not len(border) or not len(table):
        return
    at = np.rint(np.stack([table["x"], table["y"]], axis=1)).astype(np.int64)
    distance, _ = cKDTree(border).query(at, distance_upper_bound=SATURATED_REACH_PIX)
    on = (chip.image.flags[at[:, 1], at[:, 0]] & full[0]) | (
        template.image.flags[at[:, 1], at[:, 0]] & full[1]
    )
    table["saturated_distance"] = np.where(on != 0, 0, np.minimum(distance, SATURATED_REACH_PIX))


def _add_source(table: np.ndarray, chip: CalibratedChip, template: AlignedTemplate, unit: np.ndarray) -> None:
    """Fill the columns of the nearest source of the template's list; its extent hints at a galaxy.

    ``unit`` [n] is the table's flux unit per template count.
    """
    names = ("source_distance", "source_distance_arcsec", "source_flux", "source_mag", "source_extent")
    for name in names:
        table[name] = np.nan
    stars = template.stars
    if stars is None or not len(stars) or not len(table):
        return
    distance, nearest = cKDTree(np.stack([stars.x, stars.y], axis=1)).query(
        np.stack([table["x"], table["y"]], axis=1)
    )
    table["source_distance"] = distance
    table["source_flux"] = stars.flux[nearest] * unit
    usual = float(np.median(stars.fwhm[stars.clean])) if stars.clean.any() else np.nan
    table["source_extent"] = stars.fwhm[nearest] / usual
    if chip.raw.zeropoint is not None:
        table["source_mag"] = NJY_ZEROPOINT - 2.5 * np.log10(np.maximum(table["source_flux"], 1e-30))
    if chip.raw.wcs is not None:
        # stars beyond the border have sky coordinates too
        ra, dec = chip.raw.wcs.all_pix2world(stars.x[nearest], stars.y[nearest], 0)
        table["source_distance_arcsec"] = _apart(table["ra"], table["dec"], ra, dec)


def _apart(ra1: np.ndarray, dec1: np.ndarray, ra2: np.ndarray, dec2: np.ndarray) -> np.ndarray:
    """Return the distance of sky positions in degrees, arcsec."""
    a, b, c, d = (np.radians(v) for v in (ra1, dec1, ra2, dec2))
    half = np.sin((d - b) / 2) ** 2 + np.cos(b) * np.cos(d) * np.sin((c - a) / 2) ** 2
    return np.degrees(2 * np.arcsin(np.sqrt(half))) * 3600


def _add_density(table: np.ndarray, chip: CalibratedChip) -> None:
    """Fill how many other candidates lie within 3' per square arcminute of the chip there."""
    table["density"] = np.nan
    if chip.raw.wcs is None or not len(table):
        return
    rows, columns = chip.image.shape
    middle = np.array([columns / 2, columns / 2 + 1]), np.array([rows / 2, rows / 2])
    ra, dec = chip.raw.wcs.all_pix2world(*middle, 0)
    pixel = float(_apart(ra[:1], dec[:1], ra[1:], dec[1:])[0]) / 60  # arcmin
    at = np.stack([table["x"], table["y"]], axis=1)
    radius = DENSITY_ARCMIN / pixel
    others = cKDTree(at).query_ball_point(at, radius, return_length=True) - 1
    table["density"] = others / (_area(at, radius, rows, columns) * pixel**2)


def _area(at: np.ndarray, radius: float, rows: int, columns: int) -> np.ndarray:
    """Return how many pixels of a circle around each place [n, 2] lie on the image."""
    y = at[:, 1, None] + radius * ((np.arange(SLICES) + 0.5) / SLICES * 2 - 1)
    reach = np.sqrt(np.maximum(radius**2 - (y - at[:, 1, None]) ** 2, 0))
    wide = np.minimum(at[:, 0, None] + reach, columns - 0.5) - np.maximum(at[:, 0, None] - reach, -0.5)
    inside = (y > -0.5) & (y < rows - 0.5)
    return np.maximum(np.where(inside, wide, 0).sum(axis=1) * 2 * radius / SLICES, 1.0)


def add_flags(
    table: np.ndarray,
    around: np.ndarray,
    template: AlignedTemplate,
    difference: Difference,
    unit: float,
    config: MeasureConfig,
) -> None:
    """Raise the flags that follow from the measured columns, in place; ``around`` of `add_context`."""
    near, amid = around
    fwhm = difference.psf.fwhm_pix
    pixels = disc(int(np.ceil(fwhm)), fwhm).sum()
    noise = template.noise.sigma * difference.flux_scale * unit * np.sqrt(pixels)
    position = np.rint(np.stack([table["y"], table["x"]])).astype(np.int64)
    on_grown = difference.flags[tuple(position)]
    raise_flag = {
        "saturated": (near | on_grown) & PixelFlag.SATURATED != 0,
        "bleed": on_grown & PixelFlag.BLEED != 0,
        "template_saturated": (near | on_grown) & PixelFlag.TEMPLATE_SATURATED != 0,
        "no_data": near & VOID != 0,
        "edge": (on_grown & PixelFlag.EDGE) != 0,
        # where holes leave no measurement the difference has them, to 14 px from holes in bright stars
        "masked": on_grown & amid & MASKED != 0,
        "dipole": table["opposite"] > config.dipole_ratio,
        "sharp": table["sharpness"] - config.sharp_sigma * table["sharpness_err"] > config.sharp_limit,
        "near_saturated": table["saturated_distance"] < config.near_saturated_fwhm * fwhm,
        "on_source": table["template_flux"] > config.template_sigma * noise,
    }
    for name, value in raise_flag.items():
        table["flags"][value] |= FLAG_BIT[name]
