"""Fluxes of candidates by PSF and aperture on all three images, and the errors of their positions."""

from __future__ import annotations

import numpy as np
from scipy import fft, signal

from ks4diff.numerics.moments import stamps
from ks4diff.numerics.moved_psf import moved_psfs
from ks4diff.numerics.peaks import refine_peaks
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.photometry import NJY_ZEROPOINT
from ks4diff.stages.place import Place, noise_at

PSF_REACH_FWHM = 1.5  # of a PSF flux in one image: 97 % of the signal that its matched filter sees
FLUX_COLUMNS = (
    "flux",
    "flux_err",
    "ap_flux",
    "ap_flux_err",
    "sci_flux",
    "sci_flux_err",
    "tmpl_psf_flux",
    "tmpl_psf_flux_err",
    "sci_ap_flux",
    "sci_ap_flux_err",
    "template_flux",
    "template_flux_err",
    "dipole_pos_flux",
    "dipole_neg_flux",
)


def add_fluxes(
    rows: np.ndarray,
    place: Place,
    chip: CalibratedChip,
    template: AlignedTemplate,
    difference: Difference,
) -> None:
    """Fill the columns of flux, in science counts, and of position errors; in place."""
    scale = difference.scale_at(rows["x"], rows["y"])
    position = np.rint(np.stack([rows["x"], rows["y"]])).astype(np.int64)
    _, flux = refine_peaks(difference.score_corr, position, difference.flux_err)
    error = difference.flux_err[position[1], position[0]].astype(np.float64)
    rows["flux"], rows["flux_err"] = flux, error
    rows["snr"] = np.abs(flux) / np.maximum(error, 1e-30)
    sides = (
        ("sci_flux", chip.image, chip.psf, chip.noise, chip.gain, 1.0),
        ("tmpl_psf_flux", template.image, template.psf, template.noise, template.gain, scale),
    )
    for name, image, field, noise, electrons, factor in sides:
        value, error = psf_flux(rows, image, field.at(place.x, place.y), field.fwhm_pix, (noise, electrons))
        rows[name], rows[f"{name}_err"] = value * factor, error * factor
    # counts² of the light under the PSF, the source's own and its host's
    poisson = np.where(rows["is_positive"], np.abs(flux) / chip.gain, np.abs(flux) * scale / template.gain)
    light = rows["sci_flux"] / chip.gain + rows["tmpl_psf_flux"] * scale / template.gain
    poisson = np.maximum(poisson, np.nan_to_num(light))
    blank = noise_at(difference, rows["x"], rows["y"])
    covariance = position_covariance(place.psf, flux, rows["flux_err"].astype(np.float64), blank, poisson)
    rows["x_err"], rows["y_err"] = np.sqrt(covariance[:, 0, 0]), np.sqrt(covariance[:, 1, 1])
    rows["xy_cov"] = covariance[:, 0, 1]
    _add_apertures(rows, place, chip, template, difference)


def position_covariance(
    psf: np.ndarray, flux: np.ndarray, error: np.ndarray, noise: np.ndarray, poisson: np.ndarray
) -> np.ndarray:
    """Return float64 [n, 2, 2]: the covariance (x, y) of the peaks of a matched filter, px².

    Where noise moves the peak of S by -H^-1 grad(noise of S), H its curvature. ``psf`` [m, m] the
    difference's, ``noise`` [n] the std of its blank pixels; ``flux`` and ``error`` [n] with all noise. What
    the error holds beyond the blank noise is that of light with the PSF's shape (``poisson`` [n] its
    variance in all, squared counts), where the PSF's slope is small, and the rest, taken as even around it.
    """
    p = psf.astype(np.float64)
    gx, gy = slopes(p)
    square = float((p**2).sum())
    inner = np.array([[(gx * gx).sum(), (gx * gy).sum()], [(gx * gy).sum(), (gy * gy).sum()]])
    light = np.maximum(p, 0)
    own = np.array(
        [
            [(gx * gx * light).sum(), (gx * gy * light).sum()],
            [(gx * gy * light).sum(), (gy * gy * light).sum()],
        ]
    )
    strength = np.maximum(np.abs(flux), 1e-30)
    beyond = np.maximum(error**2 - noise**2 / square, 0)
    of_light = poisson * float((p**2 * light).sum()) / square**2
    share = np.minimum(beyond, of_light) / np.maximum(of_light, 1e-30)
    even = noise**2 + (beyond - share * of_light) * square
    inverse = np.linalg.inv(inner)
    spread = inverse @ own @ inverse
    own_noise = share * poisson
    return (even[:, None, None] * inverse + own_noise[:, None, None] * spread) / strength[:, None, None] ** 2


def slopes(psf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (d/dx, d/dy) of a stamp [n, n], by its transform: differences lose a tenth at FWHM 3 px."""
    n = psf.shape[0]
    wide = np.pad(psf, n // 2)
    k = fft.fftfreq(wide.shape[0]) * 2j * np.pi
    hat = fft.fft2(wide)
    inner = slice(n // 2, n // 2 + n)
    along, down = (fft.ifft2(hat * step).real[inner, inner] for step in (k[None, :], k[:, None]))
    return along, down


def psf_flux(
    rows: np.ndarray, image: MaskedImage, psf: np.ndarray, fwhm: float, of_noise: tuple[NoiseModel, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (flux, error) float64 [n] in an image's counts of the PSF fitted at each row's place.

    ``of_noise`` the image's noise and its electrons per count. NaN where half the light or more is masked.
    The light under the PSF, whatever it is, gives its Poisson noise.
    """
    noise, gain = of_noise
    half = int(np.ceil(PSF_REACH_FWHM * fwhm))
    x, y = rows["x"], rows["y"]
    data = stamps(image.data, x, y, half).astype(np.float64)
    good = np.isfinite(data) & (stamps(image.flags, x, y, half, 1) == 0) & disc(half, PSF_REACH_FWHM * fwhm)
    shapes = moved_psfs(psf, x - np.rint(x), y - np.rint(y), 2 * half + 1).astype(np.float64)
    weight = np.where(good, shapes, 0)
    data = np.where(good, data, 0)
    square = (weight**2).sum(axis=(1, 2))
    flux = (weight * data).sum(axis=(1, 2)) / np.maximum(square, 1e-30)
    blank = image.sky_variance.at(x, y) * correlated(shapes[0], noise.correlation) * square
    light = np.maximum((weight**2 * data).sum(axis=(1, 2)), 0) / gain
    error = np.sqrt(blank + light) / np.maximum(square, 1e-30)
    enough = square > 0.5 * (np.where(disc(half, PSF_REACH_FWHM * fwhm), shapes, 0) ** 2).sum(axis=(1, 2))
    return np.where(enough, flux, np.nan), np.where(enough, error, np.nan)


def masked_psf_flux(
    template: AlignedTemplate, at: np.ndarray, listed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (flux [n] in template counts, bool [n]: its core is masked) of stars at places ``at`` [2, n].

    Where pixels within one FWHM are masked, the flux is fitted to the good ones of the PSF's whole stamp and
    the list's is not believed: a saturated star's may be too low by far; elsewhere it is the listed one.
    """
    x, y = at
    core = stamps(template.image.flags, x, y, int(np.ceil(template.psf.fwhm_pix)), 0)
    full = (core != 0).any(axis=(1, 2))
    flux = np.array(listed, dtype=np.float64)
    half = template.psf.stamp.shape[0] // 2
    for k in np.flatnonzero(full):
        place = x[k : k + 1], y[k : k + 1]
        good = stamps(template.image.flags, *place, half, 1)[0] == 0
        weight = np.where(good, np.maximum(template.psf.at(x[k], y[k]), 0), 0).astype(np.float64)
        data = np.where(good, stamps(template.image.data, *place, half, 0.0)[0], 0)
        if weight.any():
            # what is next to the masked core rules: farther out the stamp is faded
            flux[k] = max(flux[k], float((weight * data).sum() / (weight**2).sum()))
    return flux, full


def disc(half: int, radius: float) -> np.ndarray:
    """Return bool [2 half + 1, 2 half + 1]: within ``radius`` of the middle."""
    offset = np.arange(-half, half + 1)
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2


def correlated(weights: np.ndarray, correlation: np.ndarray) -> float:
    """Return how many times the variance of a weighted sum is that in white noise of the same pixels."""
    n, m = weights.shape[0], correlation.shape[0] // 2
    square = signal.fftconvolve(weights, weights[::-1, ::-1])
    reach = min(m, n - 1)
    inner = slice(n - 1 - reach, n + reach)
    near = correlation[m - reach : m + reach + 1, m - reach : m + reach + 1]
    return float((square[inner, inner] * near).sum() / square[n - 1, n - 1])


def _add_apertures(rows, place, chip, template, difference) -> None:
    """Fill the fluxes within one FWHM of the nearest pixel, masked pixels as they are, and their errors."""
    half = int(np.ceil(place.fwhm))
    within = disc(half, place.fwhm)
    x, y = rows["x"], rows["y"]
    scale, pixels = difference.scale_at(x, y), within.sum()

    def total(image: np.ndarray) -> np.ndarray:
        return np.where(within, np.nan_to_num(stamps(image, x, y, half, 0.0)), 0).sum(axis=(1, 2))

    science, reference = total(chip.image.data), total(template.image.data)
    poisson = np.maximum(science, 0) / chip.gain, np.maximum(reference, 0) / template.gain * scale**2
    rows["ap_flux"] = total(difference.difference)
    blank = pixels * noise_at(difference, x, y) ** 2
    rows["ap_flux_err"] = np.sqrt(blank + poisson[0] + poisson[1])
    shape = within.astype(np.float64)
    for name, value, image, noise, of_light, factor in (
        ("sci_ap_flux", science, chip.image, chip.noise, poisson[0], 1.0),
        ("template_flux", reference, template.image, template.noise, poisson[1], scale),
    ):
        sky = pixels * image.sky_variance.at(x, y) * correlated(shape, noise.correlation) * factor**2
        rows[name], rows[f"{name}_err"] = value * factor, np.sqrt(sky + of_light)


def add_magnitudes(table: np.ndarray, unit: float, *, calibrated: bool) -> None:
    """Turn all fluxes from science counts to ``unit`` per count, and add AB magnitudes where calibrated."""
    for name in FLUX_COLUMNS:
        table[name] *= unit
    table["mag"], table["mag_err"] = np.nan, np.nan
    if calibrated:
        table["mag"] = NJY_ZEROPOINT - 2.5 * np.log10(np.maximum(np.abs(table["flux"]), 1e-30))
        table["mag_err"] = 1.0857 / np.maximum(table["snr"], 1e-3)
