"""Slow, obvious twins of the kernels and formulas: plain loops and complex float64 FFTs."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.noise import LEAST_POWER, half_plane_mean


def lanczos_weight(distance, support=4):
    inside = np.abs(distance) < support
    return np.where(inside, np.sinc(distance) * np.sinc(distance / support), 0.0)


def lanczos_sample(image, x, y, support=4):
    """Return the image at one position by a sum over all its pixels, weights normalised along each axis."""
    rows, columns = image.shape
    wx = lanczos_weight(x - np.arange(columns), support)
    wy = lanczos_weight(y - np.arange(rows), support)
    return (wy / wy.sum()) @ image @ (wx / wx.sum())


def masked_lanczos_sample(image, bad, x, y):
    """Return (data, flags) as `lanczos.resample` promises them at one position inside the image."""
    rows, columns = image.shape
    wx = lanczos_weight(x - np.arange(columns))
    wy = lanczos_weight(y - np.arange(rows))
    weight = np.outer(wy / wy.sum(), wx / wx.sum())
    good = bad == 0
    total = weight[good].sum()
    flags = 0
    for raised in bad[~good & (np.abs(weight) > 0.02)]:
        flags |= int(raised)
    if flags == 0 and np.abs(weight[~good]).sum() > 0.1:
        flags = 1 << 14
    return (weight * image)[good].sum() / total, flags


def bilinear_nodes(nodes, step, row, column):
    """Return (x, y) at an output pixel, bilinear between nodes [2, rows, columns] ``step`` px apart."""
    j, i = row // step, column // step
    v, u = row / step - j, column / step - i
    corners = nodes[:, j : j + 2, i : i + 2]
    return np.einsum("kji,j,i->k", corners, [1 - v, v], [1 - u, u])


def autocovariance(image, good, max_lag):
    rows, columns = image.shape
    n = 2 * max_lag + 1
    result = np.zeros((n, n))
    for dy in range(-max_lag, max_lag + 1):
        for dx in range(-max_lag, max_lag + 1):
            products = []
            for y in range(max(0, -dy), min(rows, rows - dy)):
                for x in range(max(0, -dx), min(columns, columns - dx)):
                    if good[y, x] and good[y + dy, x + dx]:
                        products.append(image[y, x] * image[y + dy, x + dx])
            result[dy + max_lag, dx + max_lag] = np.mean(products) if products else 0.0
    return result


def power_spectrum(covariance, shape):
    """Return the full plane: the sum over lags of the symmetrised covariance times a cosine."""
    n = covariance.shape[0]
    ky, kx = np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij")
    power = np.zeros(shape)
    for j in range(n):
        for i in range(n):
            phase = 2 * np.pi * (ky * (j - n // 2) + kx * (i - n // 2))
            power += covariance[j, i] * np.cos(phase)
    return power


def find_peaks(score, usable, threshold, radius):
    """Return the set of (x, y) of the pixels that no usable pixel of their sign within radius exceeds."""
    rows, columns = score.shape
    found = set()
    for y in range(rows):
        for x in range(columns):
            if not usable[y, x] or abs(score[y, x]) <= threshold:
                continue
            sign = np.sign(score[y, x])
            rivals = [
                sign * score[j, i]
                for j in range(max(0, y - radius), min(rows, y + radius + 1))
                for i in range(max(0, x - radius), min(columns, x + radius + 1))
                if (j - y) ** 2 + (i - x) ** 2 <= radius**2 and usable[j, i]
            ]
            if sign * score[y, x] >= max(rivals):
                found.add((x, y))
    return found


def draw_stars(shape, psf, stars):
    """Return the sum of stars [3, k]: each pixel of a star's stamp samples the PSF by Lanczos."""
    image = np.zeros(shape)
    n = psf.shape[0]
    padded = np.pad(psf, 8)
    for x, y, flux in stars.T:
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        for r in range(n):
            for c in range(n):
                yy, xx = iy + r - n // 2, ix + c - n // 2
                if 0 <= yy < shape[0] and 0 <= xx < shape[1]:
                    image[yy, xx] += flux * lanczos_sample(padded, 8 + c - (x - ix), 8 + r - (y - iy))
    return image


def fit_fluxes(image, good, variance, psf, positions):
    """Return the fluxes of stars at fixed positions [2, k], all at once by dense weighted least squares."""
    shapes = [draw_stars(image.shape, psf, np.array([[x], [y], [1.0]]))[good] for x, y in positions.T]
    root = 1 / np.sqrt(variance[good])
    design = np.stack(shapes, axis=1) * root[:, None]
    solution, *_ = np.linalg.lstsq(design, image[good] * root, rcond=None)
    return solution


def laplace_residual(image, bad):
    """Return, at each bad pixel, the mean of its neighbours inside the image less its own value."""
    rows, columns = image.shape
    left = []
    for y, x in zip(*np.nonzero(bad), strict=True):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        near = [float(image[j, i]) for j, i in around if 0 <= j < rows and 0 <= i < columns]
        left.append(np.mean(near) - float(image[y, x]))
    return np.array(left)


def convolve(image, stamp):
    """Return the image convolved with an odd stamp, zeros beyond the border, by shifting and adding."""
    half = stamp.shape[0] // 2
    padded = np.pad(image, half)
    out = np.zeros(image.shape)
    for j in range(stamp.shape[0]):
        for i in range(stamp.shape[1]):
            y, x = 2 * half - j, 2 * half - i
            out += stamp[j, i] * padded[y : y + image.shape[0], x : x + image.shape[1]]
    return out


def centred(stamp, shape):
    """Return a stamp on a grid with its middle pixel at [0, 0]."""
    grid = np.zeros(shape)
    half = stamp.shape[0] // 2
    for j in range(stamp.shape[0]):
        for i in range(stamp.shape[1]):
            grid[(j - half) % shape[0], (i - half) % shape[1]] = stamp[j, i]
    return grid


def full_plane(half, shape):
    """Return the whole frequency plane of a real, symmetric spectrum given by its real-FFT half."""
    plane = np.empty(shape)
    for ky in range(shape[0]):
        for kx in range(shape[1]):
            inside = kx < half.shape[1]
            plane[ky, kx] = half[ky, kx] if inside else half[-ky % shape[0], shape[1] - kx]
    return plane


def astrometric_variance(s_n, s_r, sigma):
    """Return eqs 30-33 with the slopes of the lesser score, 0 where either score is not positive."""
    lesser_is_n = s_n < s_r
    total = 0.0
    for axis, s in ((1, sigma[0]), (0, sigma[1])):
        slopes = []
        for part in (s_n, s_r):
            one, two, three = (np.roll(part, -k, axis) - np.roll(part, k, axis) for k in (1, 2, 3))
            slopes.append((45 * one - 9 * two + three) / 60)
        total = total + s**2 * np.where(lesser_is_n, *slopes) ** 2
    return np.where((s_n > 0) & (s_r > 0), total, 0.0)


def psf_variance(s_n, s_r, bend2):
    """Return what errors of width, and half as large ones of ellipticity, leave of the lesser score."""

    def second(s):
        xx, yy = (np.roll(s, 1, axis) - 2 * s + np.roll(s, -1, axis) for axis in (1, 0))
        slope = (np.roll(s, -1, 1) - np.roll(s, 1, 1)) / 2
        xy = (np.roll(slope, -1, 0) - np.roll(slope, 1, 0)) / 2
        return (xx + yy) ** 2 + 0.5**2 * ((xx - yy) ** 2 + 4 * xy**2)

    left = bend2 * np.where(s_n < s_r, second(s_n), second(s_r))
    return np.where((s_n > 0) & (s_r > 0), left, 0.0)


def believed(s_n, s_r, sigma):
    """Return what part of the Poisson variance counts: none below the gate, all above, smooth between.

    The gate is open by light in either image, 6 to 10 sigma, or in both, 2.5 to 4.5.
    """
    out = np.zeros(s_n.shape)
    for place in np.ndindex(out.shape):
        pair = s_n[place] / sigma, s_r[place] / sigma
        part = min(max((max(pair) - 6) / 4, (min(pair) - 2.5) / 2, 0), 1)
        out[place] = 3 * part**2 - 2 * part**3
    return out


def corrected(s_n, s_r, sky, variance, holes, flux, limit):
    """Return S_corr, the flux's error and what holes have taken; ``sky`` (nodes, step), the rest [y, x].

    ``holes``: the part of the flux that is lost, that of the sky's variance, and how far the fill may err.
    Of flux and variance a hundredth is always left.
    """
    score, error, taken = np.zeros(s_n.shape), np.zeros(s_n.shape), np.zeros(s_n.shape, dtype=bool)
    nodes, step = sky
    for place in np.ndindex(score.shape):
        lost_flux, lost_variance, fill = (hole[place] for hole in holes)
        flux_left, variance_left = max(1 - lost_flux, 0.01), max(1 - lost_variance, 0.01)
        noise2 = bilinear_nodes(nodes[None], step, *place)[0] * variance_left
        sigma = np.sqrt(noise2 + variance[place] + fill**2)
        score[place] = (s_n[place] - s_r[place]) / sigma
        error[place] = sigma / (flux * flux_left)
        taken[place] = 1 - flux_left > limit or fill**2 > noise2
    return score, error, taken


def slopes(psf):
    """Return the variances (xx, yy, xy) of central differences of S on sky over that of S.

    ``psf`` P_D [y, x], wrapped around: S is white noise seen through it, correlated as P_D is with itself.
    """

    def alike(down, right):
        return (psf * np.roll(psf, (down, right), (0, 1))).sum() / (psf**2).sum()

    return (1 - alike(0, 2)) / 2, (1 - alike(2, 0)) / 2, (alike(1, -1) - alike(1, 1)) / 2


def translient(score_corr, flux_err, noise):
    """Return Z² = g C⁻¹ g of the flux's gradient g, C the covariance (xx, yy, xy) that noise gives it."""
    xx, yy, xy = noise
    flux = score_corr * flux_err
    out = np.zeros(flux.shape)
    for y in range(1, flux.shape[0] - 1):
        for x in range(1, flux.shape[1] - 1):
            g = np.array([flux[y, x + 1] - flux[y, x - 1], flux[y + 1, x] - flux[y - 1, x]]) / 2
            out[y, x] = g @ np.linalg.inv(flux_err[y, x] ** 2 * np.array([[xx, xy], [xy, yy]])) @ g
    return out


def without_shared(here, ratio, mean, unshared):
    """Return the covariance ``here`` times ``ratio`` less the one that ``mean`` holds beyond ``unshared``."""
    out = np.empty(here.shape)
    for place in np.ndindex(here.shape):
        out[place] = ratio * here[place] - (mean[place] - unshared[place])
    return out


def row_runs(image, core, *, noise, window, limit, reach):
    """Return bool [y, x]: what `streaks.runs` marks along the rows, run by run as its docstring says."""
    out = np.zeros(core.shape, dtype=bool)
    for y, row in enumerate(image):
        columns = len(row)
        clipped = np.clip(row / noise, -3, 3)
        cores = np.flatnonzero(core[y])
        if not len(cores):
            continue
        near = np.array([np.abs(cores - x).min() <= reach for x in range(columns)])
        stands = near.copy()
        for x in range(columns):
            part = clipped[max(x - window // 2, 0) : x + window // 2 + 1]
            stands[x] |= abs(part.sum()) / np.sqrt(len(part)) > limit
        edges = np.flatnonzero(np.diff(np.concatenate([[0], stands.astype(int), [0]])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            own = near[start:stop].sum()
            if core[y, start:stop].any() and stop - start - own > 1.2 * window:
                out[y, start:stop] = True
    return out


def grown(found, radius):
    """Return bool [y, x]: within ``radius`` px of a pixel found, the distance to each looked at."""
    y, x = np.nonzero(found)
    out = np.zeros(found.shape, dtype=bool)
    for j, i in np.ndindex(found.shape):
        out[j, i] = len(y) > 0 and ((y - j) ** 2 + (x - i) ** 2).min() <= radius**2
    return out


def zogy(science, template, shape, *, sigma=(0.0, 0.0), lift=0.0):
    """Return D, P_D, F_D, S, F_S and V by the equations of Zackay, Ofek & Gal-Yam 2016, on the whole grid.

    ``science`` and ``template`` as for `ks4diff.numerics.zogy.subtract`, ``shape`` the FFT grid. Equations
    12-17, 25-33 and 42 in complex float64, s² a spectrum where the noise is coloured; ``lift`` as in
    `zogy.lifted`.
    """
    a, b = (np.fft.fft2(centred(side.psf.astype(float), shape)) for side in (science, template))
    vanishing = lift / (1 + ((np.abs(a) ** 2 + np.abs(b) ** 2) / (2 * lift**2)) ** 4) if lift else 0.0
    a, b = a + vanishing, b + vanishing
    n, r = (np.fft.fft2(side.data.astype(float), shape) for side in (science, template))
    f_n, f_r = science.flux, template.flux
    colour = [
        np.ones(shape) if side.correlation is None else full_plane(side.correlation, shape)
        for side in (science, template)
    ]
    s2_n, s2_r = science.sigma2 * colour[0], template.sigma2 * colour[1]
    den = s2_n * f_r**2 * np.abs(b) ** 2 + s2_r * f_n**2 * np.abs(a) ** 2
    d = (f_r * b * n - f_n * a * r) / np.sqrt(den)  # 13
    f_d = f_r * f_n / np.sqrt(s2_n[0, 0] * f_r**2 + s2_r[0, 0] * f_n**2)  # 15
    p_d = f_r * f_n * a * b / (f_d * np.sqrt(den))  # 14
    score = np.fft.ifft2(f_d * d * np.conj(p_d)).real  # 17
    f_s = float((f_d**2 * np.abs(p_d) ** 2).mean())  # 42
    k_n = f_n * f_r**2 * np.conj(a) * np.abs(b) ** 2 / den  # 29
    k_r = f_r * f_n**2 * np.conj(b) * np.abs(a) ** 2 / den  # 28
    variance = np.zeros(shape)
    for side, kernel, tint in zip((science, template), (k_n, k_r), colour, strict=True):
        squared = np.fft.ifft2(kernel * np.sqrt(tint)).real ** 2
        variance += np.fft.ifft2(np.fft.fft2(squared) * np.fft.fft2(side.variance.astype(float), shape)).real
    rows, columns = science.data.shape
    s_n, s_r = np.fft.ifft2(k_n * n).real, np.fft.ifft2(k_r * r).real
    variance = (variance + astrometric_variance(s_n, s_r, sigma))[:rows, :columns]
    return {
        "difference": np.fft.ifft2(d).real,
        "psf": np.fft.ifft2(p_d).real,
        "flux": f_d,
        "score": score,
        "score_flux": f_s,
        "variance": variance,
    }


def proper_coadd(images, psfs, fluxes, sigmas):
    """Return R, P_R and F_R, the coadd of Zackay & Ofek 2017b (eqs 7, 8): white noise of variance 1.

    ``images`` [y, x] on one grid, PSFs odd stamps; R and P_R [y, x] on the grid, P_R centred at [0, 0].
    """
    shape = images[0].shape
    summed, square = np.zeros(shape, complex), np.zeros(shape)
    for image, psf, flux, sigma in zip(images, psfs, fluxes, sigmas, strict=True):
        p = np.fft.fft2(centred(psf, shape))
        summed += flux / sigma**2 * np.conj(p) * np.fft.fft2(image)
        square += flux**2 / sigma**2 * np.abs(p) ** 2
    f_r = np.sqrt(sum(flux**2 / sigma**2 for flux, sigma in zip(fluxes, sigmas, strict=True)))
    return np.fft.ifft2(summed / np.sqrt(square)).real, np.fft.ifft2(np.sqrt(square)).real / f_r, f_r


def delta_basis(science, template, half):
    """Return the kernel [n, n] that makes the science image of the template: constant, n = 2 half + 1.

    Least squares with one unknown per pixel of the kernel, over the pixels that it reaches from inside.
    """
    rows, columns = science.shape
    inner = slice(half, rows - half), slice(half, columns - half)
    moved = [
        template[half - v : rows - half - v, half - u : columns - half - u].ravel()
        for v in range(-half, half + 1)
        for u in range(-half, half + 1)
    ]
    kernel, *_ = np.linalg.lstsq(np.stack(moved, axis=1), science[inner].ravel(), rcond=None)
    return kernel.reshape(2 * half + 1, 2 * half + 1)


def relative_power(power: np.ndarray, shape: tuple[int, int], floor: float = LEAST_POWER) -> np.ndarray:
    """Return ``power`` divided by its mean over all frequencies and held above ``floor``, float32, mean 1.

    ``power`` [rows, columns // 2 + 1], the half plane of images of ``shape``. Without a floor the division
    that whitens would raise whatever stands where resampling left no noise.
    """
    relative = np.maximum(power / half_plane_mean(power, shape), floor)
    return (relative / half_plane_mean(relative, shape)).astype(np.float32)
