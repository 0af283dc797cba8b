"""Proper subtraction of one patch, fast: six transforms, and one pass between them.

The equations are those of `ks4diff.numerics.zogy`, whose plain form is this one's twin. Both images are on
one flux scale, so F_n = F_r = 1; PSFs, noise powers and kernels come to the patch's grid row by row, from
thin transforms of small stamps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft

from ks4diff.numerics.jit import jit
from ks4diff.numerics.noise import LEAST_POWER, half_plane_mean
from ks4diff.numerics.psf_grid import embed, extract, widened
from ks4diff.numerics.thin import taps, thin_row, thin_rows, thin_transform
from ks4diff.numerics.zogy import lifted

FOOTPRINT = 13  # px: of a score's share in its neighbours; 6 px away a PSF of FWHM 6 px has 1e-4 left


class PatchSide(NamedTuple):
    """What is known of one image in a patch.

    ``psf`` float32 [n, n], n odd, sum 1; ``sigma2`` of a sky pixel, counts²; ``correlation`` [m, m] by lag or
    None when white; ``gain`` electrons per count; ``psf_error`` standard error of the worst pixel of the
    PSF's core as a fraction of its peak, ``white`` whether pixels err independently.
    """

    psf: np.ndarray
    sigma2: float
    correlation: np.ndarray | None
    gain: float
    psf_error: float
    white: bool = False


class Filters(NamedTuple):
    """All that turns the images of a patch into D and S.

    ``thin`` complex64 [5, rows, columns // 2 + 1], the transforms of stamps ``stamp`` px high: of both PSFs,
    of both correlations of the noise (as real and imaginary part, ``scales`` [2] turns them into powers),
    and of both squared kernels over gain.
    As stamps: P_D ``psf``, kernels ``kernel_n``, ``kernel_r``, a pixel's
    ``share`` [2, n, n] of flux and variance. Numbers: F_D, F_S, the sky's parts ``sky_n`` and ``sky_r`` of
    F_S, ``level2`` the squared score of a level of one count, ``slopes`` (xx, yy, xy) the variance of S's
    gradient over F_S, ``left2`` the variance that PSF errors leave in a static star's middle over its squared
    score, ``bend2`` the same over that of the score's Laplacian.
    """

    thin: np.ndarray
    stamp: int
    scales: np.ndarray
    psf: np.ndarray
    kernel_n: np.ndarray
    kernel_r: np.ndarray
    share: np.ndarray
    flux: float
    score_flux: float
    sky_n: float
    sky_r: float
    level2: float
    slopes: tuple[float, float, float]
    left2: float
    bend2: float
    lift: float


def filters(science: PatchSide, template: PatchSide, shape: tuple[int, int], lift: float) -> Filters:
    """Return the filters of a patch on an FFT grid of ``shape``; ``lift`` as for `zogy.lifted`."""
    size = max(science.psf.shape[0], template.psf.shape[0])
    n = fft.next_fast_len(3 * size, real=True)
    small = (n, n)
    sides = (science, template)
    colours = [_colour(side) for side in sides]
    # together: of a transform as small as this most is the call
    hats = _transforms([science.psf, template.psf, *colours], small)
    a, b = lifted(hats[0], hats[1], lift)
    tint = [np.maximum(power, LEAST_POWER) for power in hats[2:].real]
    means = [half_plane_mean(power, small) for power in tint]
    tint = [power / mean for power, mean in zip(tint, means, strict=True)]
    a2, b2 = np.abs(a) ** 2, np.abs(b) ** 2
    power_n, power_r = science.sigma2 * tint[0], template.sigma2 * tint[1]
    den = power_n * b2 + power_r * a2
    flux = float(abs(a[0, 0] * b[0, 0]) / np.sqrt(den[0, 0]))  # eq 15 at k = 0
    k_n, k_r = np.conj(a) * b2 / den, np.conj(b) * a2 / den  # eqs 28-29
    coloured = [k * np.sqrt(t) for k, t in zip((k_n, k_r), tint, strict=True)]
    both, response = a * b / (flux * np.sqrt(den)), a2 * b2 / den  # eq 14, and S of a unit star
    planes = fft.irfft2(np.stack([k_n, k_r, *coloured, both, response]), small)
    *kernels, kernel_n, kernel_r, psf, star = planes
    n2, r2 = kernel_n**2, kernel_r**2
    sky_n, sky_r = science.sigma2 * float(n2.sum()), template.sigma2 * float(r2.sum())  # eqs 26-27
    score_flux = sky_n + sky_r  # eq 42
    left2, bend2 = _left_of_a_star(sides, (k_n, k_r), kernels, star)
    squared = [extract(k2, size) / side.gain for k2, side in zip((n2, r2), sides, strict=True)]
    thin, stamp = _thin([science.psf, template.psf, *colours, *squared], shape[1])
    return Filters(
        thin=thin,
        stamp=stamp,
        scales=np.array([science.sigma2 / means[0], template.sigma2 / means[1]], dtype=np.float32),
        psf=extract(psf, 2 * size - 1).astype(np.float32),
        kernel_n=extract(kernels[0], size),
        kernel_r=extract(kernels[1], size),
        share=_share([extract(k, FOOTPRINT) for k in kernels], (n2, r2), sides),
        flux=flux,
        score_flux=score_flux,
        sky_n=sky_n,
        sky_r=sky_r,
        level2=float(abs(k_n[0, 0]) ** 2),
        slopes=_slopes(response, small),
        left2=left2,
        bend2=bend2,
        lift=lift,
    )


def _transforms(stamps: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the real FFTs of stamps [n, n], n odd, on a grid of ``shape``: complex128 [m, y, x // 2 + 1]."""
    return fft.rfft2(np.stack([embed(stamp.astype(np.float64), shape) for stamp in stamps]))


def _colour(side: PatchSide) -> np.ndarray:
    """Return the noise's correlation by lag, symmetric, 1 at lag 0."""
    if side.correlation is None:
        return np.ones((1, 1))
    middle = side.correlation.shape[0] // 2
    return 0.5 * (side.correlation + side.correlation[::-1, ::-1]) / side.correlation[middle, middle]


def _thin(stamps: list[np.ndarray], columns: int) -> tuple[np.ndarray, int]:
    """Return the thin transforms of six stamps and their common height; 3rd and 4th, symmetric, as one.

    The transform of what is symmetric is real, so that one complex plane holds two.
    """
    n = max(len(stamp) for stamp in stamps)
    found = thin_transform(np.stack([widened(s, n) for s in stamps]), columns, thin_rows(n))
    found[2] += 1j * found[3]
    return found[[0, 1, 2, 4, 5]], n


def _share(kernels, noise, sides) -> np.ndarray:
    """Return the part of one pixel in the scores around it: of a source's flux, and of the variance.

    Of the flux the mean of a source in the science image and of one in the template.
    """
    flux = np.zeros((FOOTPRINT, FOOTPRINT))
    for kernel, side in zip(kernels, sides, strict=True):
        core = extract(embed(side.psf, noise[0].shape), FOOTPRINT)
        flux += np.maximum(kernel * core[::-1, ::-1], 0)
    variance = sum(side.sigma2 * extract(k2, FOOTPRINT) for k2, side in zip(noise, sides, strict=True))
    return np.stack([flux / flux.sum(), variance / variance.sum()]).astype(np.float32)


def _slopes(power: np.ndarray, shape: tuple[int, int]) -> tuple[float, float, float]:
    """Return the variances (xx, yy, xy) of central differences of S over that of S itself."""
    y = np.sin(2 * np.pi * fft.fftfreq(shape[0]))[:, None]
    x = np.sin(2 * np.pi * fft.rfftfreq(shape[1]))[None, :]
    twice = np.full(power.shape[1], 2.0)
    twice[0] = 1.0
    if shape[1] % 2 == 0:
        twice[-1] = 1.0
    weight = power * twice / (power * twice).sum()
    return float((weight * x * x).sum()), float((weight * y * y).sum()), float((weight * x * y).sum())


def _left_of_a_star(sides, hats, kernels, response) -> tuple[float, float]:
    """Return what PSF errors leave of a static star: see ``left2`` and ``bend2`` of `Filters`.

    PSFs change and err most in their width, so an error of the core's worst pixel is taken for one: it leaves
    the kernel's response to the derivative of the PSF by the logarithm of its width, which takes 2 of the
    peak from the middle. On simulated chips at 0.85 to 2.0" that is 0.019, 0.016, 0.010 and 0.007 of a star,
    which leave 0.020, 0.013, 0.008 and 0.006. Errors that are ``white`` add up as any noise does. A
    Gaussian's derivative is its Laplacian times its variance: the score's Laplacian tells how the rest falls
    off around a star, or among many.
    """
    small, peak = response.shape, float(response[0, 0])
    left2 = 0.0
    for side, hat, kernel in zip(sides, hats, kernels, strict=True):
        if side.white:
            square = float((kernel**2).sum())
            left2 += (side.psf_error * float(side.psf.max()) / peak) ** 2 * square
        else:
            left = half_plane_mean((hat * _by_width(side.psf, small)).real, small)
            left2 += (0.5 * side.psf_error * left / peak) ** 2
    bend = (response[0, 1] + response[0, -1] + response[1, 0] + response[-1, 0]) / response[0, 0] - 4
    return left2, left2 / float(bend) ** 2


def _by_width(psf: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the transform of the derivative of a PSF, its sum kept, by the logarithm of its width.

    A stretched PSF has the transform of the PSF at stretched frequencies; the transform's slope is that of
    the PSF times -2 pi i x.
    """
    offset = np.arange(psf.shape[0]) - psf.shape[0] // 2
    x, y = _transforms([psf.astype(np.float64) * by for by in (offset[None, :], offset[:, None])], shape)
    k_x, k_y = fft.rfftfreq(shape[1])[None, :], fft.fftfreq(shape[0])[:, None]
    return -2j * np.pi * (k_x * x + k_y * y)


@jit
def _apply(n, r, thin, rows, scales, least, out):
    """Turn transforms into those of D, of S of either image (in place), and of V; rows of pairs of floats.

    ``least`` the lift of the PSFs, and the least power of the noises.
    """
    first, weights = rows
    known = np.empty((thin.shape[0], n.shape[1]), dtype=np.float32)
    power = np.empty((2, n.shape[1] // 2), dtype=np.float32)
    for y in range(n.shape[0]):
        for k in range(thin.shape[0]):
            thin_row(thin[k], first[y], weights[y], known[k])
        _apply_row(n[y], r[y], known, scales, least, power, (out[0, y], out[1, y]))


@jit
def _apply_row(n, r, known, scales, least, power, out):
    """Do what `_apply` does in one row; ``power`` [2, columns] is room for the noise powers.

    Flat arrays, one of them as long as the loop: only so does the compiler use vectors (2 ns against 22).
    """
    one, (lift, least_power) = np.float32(1), least
    a, b, noise_n, noise_r = known[0], known[1], known[3], known[4]
    d, light = out
    power_n, power_r = power[0], power[1]
    for k in range(power_n.size):
        power_n[k] = max(known[2, 2 * k], least_power) * scales[0]
        power_r[k] = max(known[2, 2 * k + 1], least_power) * scales[1]
    lift2 = one / (2 * lift * lift)
    for k in range(power_n.size):
        i, j = 2 * k, 2 * k + 1
        ar, ai, br, bi = a[i], a[j], b[i], b[j]
        ratio = (ar * ar + ai * ai + br * br + bi * bi) * lift2
        ratio = ratio * ratio
        added = lift / (one + ratio * ratio)
        ar += added
        br += added
        a2, b2 = ar * ar + ai * ai, br * br + bi * bi
        inverse = one / (power_n[k] * b2 + power_r[k] * a2)
        root = np.sqrt(inverse)
        nr, ni, rr, ri = n[i], n[j], r[i], r[j]
        d[i] = root * (br * nr - bi * ni - ar * rr + ai * ri)
        d[j] = root * (br * ni + bi * nr - ar * ri - ai * rr)
        light[i] = noise_n[i] * nr - noise_n[j] * ni + noise_r[i] * rr - noise_r[j] * ri
        light[j] = noise_n[i] * ni + noise_n[j] * nr + noise_r[i] * ri + noise_r[j] * rr
        of_n, of_r = b2 * inverse, a2 * inverse
        n[i] = of_n * (ar * nr + ai * ni)
        n[j] = of_n * (ar * ni - ai * nr)
        r[i] = of_r * (br * rr + bi * ri)
        r[j] = of_r * (br * ri - bi * rr)


def apply(
    f: Filters, science: np.ndarray, template: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return D, S of the science image, S of the template and the Poisson variance of S, on the whole grid.

    ``science`` and ``template`` float32 [y, x] on the grid of the filters, background subtracted, holes
    filled, zeros beyond the image. D is white with unit variance; S is the difference of the two scores.
    The Poisson variance is that of all pixels' own values, noise and all: see `score_variance.terms`.
    """
    n, r = fft.rfft2(science), fft.rfft2(template)
    out = np.empty((2, *n.shape), dtype=np.complex64)
    rows = taps(len(n), f.thin.shape[1], f.stamp)
    _apply(
        *(hat.view(np.float32) for hat in (n, r, f.thin)),
        rows,
        f.scales,
        (np.float32(f.lift), np.float32(LEAST_POWER)),
        out.view(np.float32),
    )
    s_n, s_r, difference, variance = (_back(hat, science.shape[1]) for hat in (n, r, *out))
    return difference, s_n, s_r, variance


def _back(hat: np.ndarray, columns: int) -> np.ndarray:
    """Return `fft.irfft2` of a half plane, which is overwritten: in place it takes two thirds of the time."""
    return fft.irfft(fft.ifft(hat, axis=0, overwrite_x=True), columns, axis=1)


def translient(
    score_corr: np.ndarray, flux_err: np.ndarray, slopes: tuple[float, float, float]
) -> np.ndarray:
    """Return Z² of Springer et al. (2022, translient), chi² with 2 degrees of freedom where nothing moved.

    Z is the gradient of the flux S / F_S over its own noise: where a source has moved, S is a dipole, whose
    gradient peaks in its middle. ``slopes`` the noise of the gradient, of `Filters`; float32 [y, x], 0 on
    the border pixels.
    """
    flux = score_corr * flux_err
    out = np.zeros_like(flux)
    x = 0.5 * (flux[1:-1, 2:] - flux[1:-1, :-2]) / flux_err[1:-1, 1:-1]
    y = 0.5 * (flux[2:, 1:-1] - flux[:-2, 1:-1]) / flux_err[1:-1, 1:-1]
    xx, yy, xy = slopes
    out[1:-1, 1:-1] = (yy * x * x - 2 * xy * x * y + xx * y * y) / (xx * yy - xy * xy)
    return out
