"""Measure every detection: fluxes, errors, shape, context flags and cut-outs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ks4diff.numerics import moments
from ks4diff.numerics.peaks import refine_peaks
from ks4diff.products.candidates import FLAG_BIT, Candidates, Detections, empty_table
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference
from ks4diff.products.image import PixelFlag
from ks4diff.stages.photometry import NJY_ZEROPOINT, njy_per_count

SATURATED_REACH_PIX = 100.0  # distances beyond it are not told apart


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Sizes of stamps and the limits of flags."""

    cutout_pix: int = 63
    dipole_ratio: float = 0.6  # opposite lobe over peak: a moved star leaves 0.5 to 1
    sharp_limit: float = 1.6  # a star gives 1, a single pixel 3 or more
    near_saturated_fwhm: float = 5.0
    template_sigma: float = 5.0  # a template source under the candidate
    model_error: float = 0.03  # of the PSF: floor of the chi² of bright sources


def measure(
    detections: Detections,
    chip: CalibratedChip,
    template: AlignedTemplate,
    difference: Difference,
    config: MeasureConfig,
) -> Candidates:
    """Return one measured row per detection, strongest first, with its cut-outs.

    Fluxes are in nJy when the chip has a zero point, else in science counts.
    """
    table = empty_table(len(detections))
    unit = 1.0 if chip.raw.zeropoint is None else njy_per_count(chip.raw.zeropoint)
    table["id"] = np.arange(len(detections))
    table["x"], table["y"], table["scorr"] = detections.x, detections.y, detections.score
    table["is_positive"] = detections.score > 0
    table["rb"] = np.nan
    _add_sky(table, chip)
    _add_flux(table, difference, chip, unit)
    _add_shapes(table, chip, difference, config)
    _add_context(table, chip, template, difference, unit, config)
    return Candidates(
        table=table,
        cutouts=_cutouts(table, chip, template, difference, config),
        flux_unit="count" if chip.raw.zeropoint is None else "nJy",
    )


def _add_sky(table: np.ndarray, chip: CalibratedChip) -> None:
    if chip.raw.wcs is None or len(table) == 0:
        table["ra"], table["dec"] = np.nan, np.nan
        return
    table["ra"], table["dec"] = chip.raw.wcs.all_pix2world(table["x"], table["y"], 0)


def _add_flux(table: np.ndarray, difference: Difference, chip: CalibratedChip, unit: float) -> None:
    position = np.rint(np.stack([table["x"], table["y"]])).astype(np.int64)
    _, flux = refine_peaks(difference.flux, position)
    error = difference.flux_err[position[1], position[0]]
    table["flux"], table["flux_err"] = flux * unit, error * unit
    table["snr"] = np.abs(flux) / np.maximum(error, 1e-30)
    # Cramer-Rao bound of a PSF fit on white noise
    stamp = difference.psf.stamp.astype(np.float64)
    gradient = np.gradient(stamp)
    for axis, name in ((1, "x_err"), (0, "y_err")):
        sharpness = np.sqrt((gradient[axis] ** 2).sum() / (stamp**2).sum())
        table[name] = 1 / (np.maximum(table["snr"], 1e-3) * sharpness)
    if chip.raw.zeropoint is None:
        table["mag"], table["mag_err"] = np.nan, np.nan
    else:
        table["mag"] = NJY_ZEROPOINT - 2.5 * np.log10(np.maximum(np.abs(table["flux"]), 1e-30))
        table["mag_err"] = 1.0857 / np.maximum(table["snr"], 1e-3)


def _add_shapes(
    table: np.ndarray, chip: CalibratedChip, difference: Difference, config: MeasureConfig
) -> None:
    """Fill the columns that compare each difference stamp with the difference's PSF."""
    fwhm = difference.psf.fwhm_pix
    half = int(np.ceil(2 * fwhm))
    image = np.where(difference.flags == 0, difference.difference, np.nan)
    data = moments.stamps(image, table["x"], table["y"], half)
    score = moments.stamps(
        np.where(difference.flags == 0, difference.score_corr, 0.0), table["x"], table["y"], half, 0.0
    )
    offset = np.arange(-half, half + 1)
    disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= (2 * fwhm) ** 2
    own_width, _ = moments.gaussian_shape(moments.moved(difference.psf.stamp, 0, 0, 2 * half + 1), fwhm)
    for row, stamp, scores in zip(table, data, score, strict=True):
        sign = 1.0 if row["is_positive"] else -1.0
        psf = moments.moved(
            difference.psf.stamp, row["x"] - np.rint(row["x"]), row["y"] - np.rint(row["y"]), 2 * half + 1
        )
        used = disc & np.isfinite(stamp)
        row["opposite"] = max(-(sign * scores[disc]).min(), 0.0) / max(abs(row["scorr"]), 1e-6)
        if used.sum() < 0.5 * disc.sum():
            for name in ("psf_chi2", "psf_corr", "fwhm", "elongation", "sharpness", "sharpness_err"):
                row[name] = np.nan
            continue
        d = sign * stamp
        flux = (d[used] * psf[used]).sum() / (psf[used] ** 2).sum()
        model = flux * psf
        variance = difference.noise**2 + np.maximum(model, 0) / chip.gain + (config.model_error * model) ** 2
        row["psf_chi2"] = ((d - model)[used] ** 2 / variance[used]).mean()
        row["psf_corr"] = moments.correlation(d, psf, used)
        width, row["elongation"] = moments.gaussian_shape(d, fwhm)
        row["fwhm"] = width / own_width * fwhm
        of_psf = max(flux, 1e-30) * _sharpness(psf, half)
        row["sharpness"] = _sharpness(d, half) / of_psf
        row["sharpness_err"] = 1.06 * difference.noise / of_psf  # sqrt(1 + 1 / 8) pixels' noise


def _sharpness(stamp: np.ndarray, half: int) -> float:
    """Return the brightest of the middle 3x3 pixels less the mean of its eight neighbours."""
    middle = np.nan_to_num(stamp[half - 1 : half + 2, half - 1 : half + 2], nan=-np.inf)
    j, i = np.unravel_index(int(np.argmax(middle)), middle.shape)
    box = stamp[half - 2 + j : half + 1 + j, half - 2 + i : half + 1 + i]
    return float(box[1, 1] - (np.nansum(box) - box[1, 1]) / max(np.isfinite(box).sum() - 1, 1))


def _add_context(table, chip, template, difference, unit, config) -> None:
    """Fill aperture fluxes, what lies near, and the flags."""
    fwhm = difference.psf.fwhm_pix
    half = int(np.ceil(fwhm))
    offset = np.arange(-half, half + 1)
    disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= fwhm**2
    on_science_scale = template.image.data * difference.flux_scale
    for name, image in (("ap_flux", difference.difference), ("template_flux", on_science_scale)):
        stamp = moments.stamps(image, table["x"], table["y"], half, 0.0)
        table[name] = (stamp * disc).sum(axis=(1, 2)) * unit
    raised = moments.stamps(
        chip.image.flags | template.image.flags, table["x"], table["y"], half, PixelFlag.EDGE
    )
    table["masked_fraction"] = ((raised != 0) & disc).sum(axis=(1, 2)) / disc.sum()
    near = np.bitwise_or.reduce(np.where(disc, raised, 0), axis=(1, 2))
    saturated = (
        (chip.image.flags & PixelFlag.SATURATED) | (template.image.flags & PixelFlag.TEMPLATE_SATURATED)
    ) != 0
    distance = (
        ndimage.distance_transform_edt(~saturated) if saturated.any() else np.full(saturated.shape, np.inf)
    )
    position = np.rint(np.stack([table["y"], table["x"]])).astype(np.int64)
    table["saturated_distance"] = np.minimum(distance[tuple(position)], SATURATED_REACH_PIX)
    noise = template.noise.sigma * difference.flux_scale * unit * np.sqrt(disc.sum())
    on_grown = difference.flags[tuple(position)]
    void = PixelFlag.NO_DATA | PixelFlag.NON_FINITE | PixelFlag.TEMPLATE_NO_DATA | PixelFlag.DEAD_AMPLIFIER
    raise_flag = {
        "saturated": (near | on_grown) & PixelFlag.SATURATED != 0,
        "bleed": on_grown & PixelFlag.BLEED != 0,
        "template_saturated": (near | on_grown) & PixelFlag.TEMPLATE_SATURATED != 0,
        "no_data": near & void != 0,
        "edge": (on_grown & PixelFlag.EDGE) != 0,
        "dipole": table["opposite"] > config.dipole_ratio,
        "sharp": table["sharpness"] - 3 * table["sharpness_err"] > config.sharp_limit,
        "near_saturated": table["saturated_distance"] < config.near_saturated_fwhm * fwhm,
        "on_source": table["template_flux"] > config.template_sigma * noise,
    }
    for name, value in raise_flag.items():
        table["flags"][value] |= FLAG_BIT[name]


def _cutouts(table, chip, template, difference, config) -> np.ndarray:
    """Return float32 [n, 3, k, k]: science, template on the science scale, difference; masked pixels NaN."""
    half = config.cutout_pix // 2
    images = (
        np.where(chip.image.good, chip.image.data, np.nan),
        np.where(template.image.good, template.image.data * difference.flux_scale, np.nan),
        np.where(chip.image.good & template.image.good, difference.difference, np.nan),
    )
    planes = [moments.stamps(image, table["x"], table["y"], half) for image in images]
    return np.stack(planes, axis=1).astype(np.float32)
