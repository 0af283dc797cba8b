"""The feature vector by plain numpy, one candidate at a time, a line or two per feature: slow and obvious."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ks4diff.numerics.taps import tap_table

C = 31


def placed(psf, dx, dy):
    """Return a PSF moved by (dx, dy), by Lanczos weights along each axis in turn."""
    table = tap_table()
    steps, support = table.shape[0] - 1, table.shape[1] // 2
    for axis, move in ((1, dx), (0, dy)):
        low = int(np.floor(-move))
        weights = table[int(np.rint((-move - low) * steps))]
        out = np.zeros(psf.shape)
        for t in range(2 * support):
            shift = low - support + 1 + t
            out += weights[t] * ndimage.shift(psf, [-shift if a == axis else 0 for a in (0, 1)], order=0)
        psf = out
    return psf.astype(np.float32)


def grid(side):
    """Return (row, column, radius squared) from the middle of a square."""
    j, i = np.mgrid[:side, :side] - side // 2
    return j, i, j * j + i * i


def framed(psf):
    """Return a PSF in the middle of 63x63 zeros."""
    return np.pad(psf, C - psf.shape[0] // 2).astype(np.float64)


def ratio(a, b):
    """Return a / b, 0 of 0 / 0."""
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.float64(a) / np.float64(b), nan=0.0, posinf=50.0, neginf=-50.0))


def pearson(a, b, use):
    """Return the correlation of two images over a mask, 0 where either is constant."""
    if a[use].std() < 1e-7 * np.abs(a[use]).max(initial=0) or not a[use].any():
        return 0.0
    return float(np.corrcoef(a[use], b[use])[0, 1])


def moments(image, use, f, dx, dy):
    """Return (major width, minor width, |sin| of the major axis' angle)."""
    j, i, _ = grid(63)
    w = np.where(use, np.maximum(image, 0), 0) * np.exp(
        -0.5 * ((i - dx) ** 2 + (j - dy) ** 2) / (f / 2.3548) ** 2
    )
    if not w.sum() > 0:
        return 0.0, 0.0, 0.0
    mean = np.array([(w * i).sum(), (w * j).sum()]) / w.sum()
    u, v = i - mean[0], j - mean[1]
    second = np.array([[(w * u * u).sum(), (w * u * v).sum()], [(w * u * v).sum(), (w * v * v).sum()]])
    values, vectors = np.linalg.eigh(second / w.sum())
    return float(np.sqrt(values[1])), float(np.sqrt(max(values[0], 0))), float(abs(vectors[1, 1]))


def connected(image, bad, side):
    """Return the number of pixels above half of the middle one, 4-connected to it, in a box."""
    middle = image.shape[0] // 2
    box = slice(middle - side, middle + side + 1)
    label, _ = ndimage.label((image[box, box] > 0.5 * image[middle, middle]) & ~bad[box, box])
    return int((label == label[side, side]).sum())


def good_median(image, bad, j, i, reach):
    """Return the median of good pixels in a box."""
    box = slice(max(j - reach, 0), j + reach + 1), slice(max(i - reach, 0), i + reach + 1)
    values = image[box][~bad[box]]
    return float(np.median(values)) if values.size else 0.0


def vector(stamps, context, k):
    """Return the features that are never NaN of candidate k, not clipped; `features` on one at a time."""
    q = -1.0 if stamps.score[k, C, C] < 0 else 1.0
    order = (0, 1, 2) if q > 0 else (1, 0, 2)
    images = (stamps.science[k], stamps.template[k], stamps.difference[k])
    sigma = [float(stamps.sigma[k, o]) for o in order]
    bad = stamps.bad[k]
    n, t, d = (np.where(bad, 0, images[o] / s).astype(np.float64) for o, s in zip(order, sigma, strict=True))
    d, s = q * d, np.where(bad, 0, q * stamps.score[k]).astype(np.float64)
    cell = stamps.cell[k]
    f = min(float(stamps.fwhm[cell]), 11.0)
    dx, dy = stamps.offset[k]
    own = [stamps.psfs[o, cell].astype(np.float32) for o in order]
    p_n, p_t, p = (framed(placed(psf, dx, dy)) for psf in own)
    out = {}
    _of_score(out, s, bad, own[2], f, (dx, dy))
    _of_fit(out, d, s, bad, p, own[2], f, (dx, dy))
    _of_shape(out, d, bad, p, f, (dx, dy))
    _of_static(out, (n, t, d), bad, (p_n, p_t, p), framed(own[1]), sigma, f)
    _of_lines(out, d, bad, f)
    out["excess_var"] = float(context.excess[k])
    out["sat_dist"] = min(context.saturated[k] / f, 10)
    out["edge_dist"] = min(context.edge[k], 100)
    out["xtalk"] = float(context.crosstalk[k])
    out["log_dens"] = float(np.log10(max(context.density[k], 0.01)))
    out["see_rat"] = context.seeing[k] if q > 0 else 1 / context.seeing[k]
    point, light, charge, struck, trail, dipole = (float(part[k]) for part in context[7:])
    out["hit_ratio"] = ratio(charge, light)
    for name, chi2 in (
        ("hit_gain", charge - light),
        ("struck_gain", struck - max(charge, light)),
        ("streak_gain", light - point),
        ("trail_gain", trail),
        ("dipole_gain", dipole),
    ):
        out[name] = np.sign(chi2) * abs(chi2) ** 0.5
    return out


def _of_score(out, s, bad, psf, f, offset):
    j, i, r2 = grid(63)
    two, near = (r2 <= 4 * f * f) & ~bad, (r2 <= 2.25 * f * f) & ~bad & ~bad[::-1, ::-1]
    peak = s[C, C]
    out["s_peak"], out["s_neg"] = peak, -min(s[two].min(), 0) / peak
    full = np.zeros((psf.shape[0] * 2, psf.shape[0] * 2))
    full[: psf.shape[0], : psf.shape[0]] = psf
    twin = np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(full)) ** 2))
    middle, half = psf.shape[0], psf.shape[0] // 2
    twin = placed(twin[middle - half : middle + half + 1, middle - half : middle + half + 1], *offset)
    out["s_width"] = np.sqrt(connected(s, bad, 7) / connected(framed(twin), np.zeros_like(bad), 7))
    out["s_asym"] = ratio(np.abs(s - s[::-1, ::-1])[near].sum(), np.abs(s)[near].sum())
    top = s == ndimage.maximum_filter(np.where(bad, -np.inf, s), 3)
    ring = top & (r2 > 4 * f * f) & (r2 <= 16 * f * f) & ~bad & (np.abs(j) <= 30) & (np.abs(i) <= 30)
    out["s_second"] = max(s[ring].max(initial=0), 0) / peak


def _of_fit(out, d, s, bad, p, psf, f, offset):
    _, _, r2 = grid(63)
    two, one = (r2 <= 4 * f * f) & ~bad, (r2 <= f * f) & ~bad
    half, body = (r2 <= 0.25 * f * f) & ~bad, (r2 <= 2.25 * f * f) & ~bad
    dp, pp = (d * p)[two].sum(), (p * p)[two].sum()
    flux = dp / pp
    left = d - flux * p
    out["psf_s_ratio"] = dp / np.sqrt(pp) / s[C, C]
    out["psf_chi2"] = (left[two] ** 2).sum() / (two.sum() - 1)
    out["psf_corr"] = pearson(d, p, two)
    out["psf_resmax"] = ratio(np.abs(left[two]).max(), flux * p[two].max())
    out["cr_test"] = ratio(flux * dp - d[C, C] ** 2, (d[two] ** 2).sum())
    share = ratio(d[one].sum() / p[one].sum(), flux)
    out["ap_psf"] = -2.5 * np.log10(np.clip(share, 0.01, 100)) if flux > 0 else 5.0
    out["conc"] = ratio(ratio(d[half].sum(), d[body].sum()), p[half].sum() / p[body].sum())
    box = slice(C - 1, C + 2)

    def sharp(image, masked):
        ring = ~masked[box, box]
        ring[1, 1] = False
        return image[C, C] - image[box, box][ring].mean()

    out["sharp"] = ratio(sharp(d, bad), flux * sharp(p, np.zeros_like(bad)))
    r = np.hypot(*np.meshgrid((np.arange(45) - 22) / 9, (np.arange(45) - 22) / 9))
    disc = np.exp(-r / (f / 16)).reshape(5, 9, 5, 9).sum(axis=(1, 3))
    wide = framed(
        placed(ndimage.convolve(psf.astype(np.float64), disc / disc.sum(), mode="constant"), *offset)
    )
    out["spread"] = ratio((wide * d)[two].sum(), dp) - (wide * p)[two].sum() / pp
    up, down = np.maximum(d, 0)[two].sum(), np.maximum(-d, 0)[two].sum()
    out["neg_frac"] = ratio(down, up)
    out["dip_amp"] = ratio(-min(d[two].min(), 0), d[two].max())
    three = (r2 <= min(9 * f * f, C * C)) & ~bad
    high = np.unravel_index(np.argmax(np.where(three, d, -np.inf)), d.shape)
    low = np.unravel_index(np.argmin(np.where(three, d, np.inf)), d.shape)
    out["dip_sep"] = np.hypot(high[0] - low[0], high[1] - low[1]) / f
    gy, gx = np.gradient(p)
    design = np.stack([p[two], gx[two], gy[two]], axis=1)
    found, *_ = np.linalg.lstsq(design, d[two], rcond=None)
    before, after = (left[two] ** 2).sum(), ((d[two] - design @ found) ** 2).sum()
    out["dip_dchi2"] = (before - after) / before if before > 1e-9 * (d[two] ** 2).sum() else 0.0
    out["dip_shift"] = min(np.hypot(found[1], found[2]) / max(abs(found[0]), 1e-12), 5.0)
    both = body & ~bad[::-1, ::-1]
    out["rot_asym"] = ratio(np.abs(d - d[::-1, ::-1])[both].sum(), np.abs(d)[both].sum())


def _of_shape(out, d, bad, p, f, offset):
    j, i, r2 = grid(63)
    a, b, sine = moments(d, (r2 <= 4 * f * f) & ~bad, f, *offset)
    pa, pb, _ = moments(p, r2 <= 4 * f * f, f, *offset)
    out["fwhm_rat"] = np.sqrt((a * a + b * b) / (pa * pa + pb * pb))
    out["a_rat"], out["b_rat"] = a / pa, b / pb
    out["elong"] = a / max(b, 0.02 * a) if a > 0 else 1.0
    out["pa_col"] = (1 - b / a) * sine if a > 0 else 0.0
    box = np.maximum(np.abs(j), np.abs(i))
    light = np.where((box <= 3) & ~bad, np.maximum(d, 0), 0)
    middle = np.array([(light * i).sum(), (light * j).sum()])
    out["cen_off"] = np.hypot(*(middle / light.sum() - offset)) / f if light.sum() > 0 else 5.0
    at = np.argmax(np.where((box <= 4) & ~bad, d, -np.inf))
    out["peak_off"] = np.sqrt(float(r2.ravel()[at])) / f
    for reach, size in ((2, 5), (3, 7)):
        inside = (box <= reach) & ~bad
        out[f"n2neg{size}"] = int((d[inside] <= -2).sum())
        out[f"n3neg{size}"] = int((d[inside] <= -3).sum())
    out["nneg5"] = int((d[(box <= 2) & ~bad] < 0).sum())
    m = np.array([good_median(d, bad, C + y, C + x, 1) for y in range(-2, 3) for x in range(-2, 3)])
    out["sumrat"] = ratio(m.sum(), np.abs(m).sum())


def _of_static(out, images, bad, psfs, still, sigma, f):
    n, t, d = images
    j, i, r2 = grid(63)
    box = np.maximum(np.abs(j), np.abs(i))

    def total(image, radius):
        return image[(r2 <= radius * radius) & ~bad].sum()

    one = (r2 <= f * f) & ~bad
    out["t_snr"] = t[one].sum() / np.sqrt(one.sum())
    change, static = total(d, f) * sigma[2], total(t, f) * sigma[1]
    out["frac_var"] = ratio(change, change + max(static, 0))
    change, static = total(d, 5.0) * sigma[2], total(t, 5.0) * sigma[1]
    out["flux_ratio"] = ratio(change - static, abs(static))
    for name, reach, limit in (("n2shift5", 2, 2), ("n3shift7", 3, 3)):
        inside = (box <= reach) & ~bad
        out[name] = int((d[inside] >= limit).sum()) - int((t[inside] >= limit).sum())
    top = (t == ndimage.maximum_filter(np.where(bad, -np.inf, t), 3)) & (t >= 5) & ~bad & (r2 <= 144)
    out["t_dist"], out["t_conc"] = 5.0, 0.0
    if top.any():
        nearest = r2[top].min()
        y, x = np.unravel_index(np.argmax(np.where(top & (r2 == nearest), t, -np.inf)), t.shape)
        away = (j - j[y, x]) ** 2 + (i - i[y, x]) ** 2

        def conc(image, distance, masked):
            core, body = (image[(distance <= w * f * f) & ~masked].sum() for w in (0.25, 2.25))
            return ratio(core, body)

        out["t_dist"] = min(np.sqrt(nearest) / f, 5.0)
        out["t_conc"] = ratio(conc(t, away, bad), conc(still, r2, np.zeros_like(bad)))
    gy, gx = np.gradient(t)
    near_bad = ndimage.binary_dilation(bad, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    use = (r2 <= f * f) & ~near_bad
    out["t_grad"] = np.hypot(gx, gy)[use].mean() if use.any() else 0.0
    out["sci_corr"] = pearson(n, psfs[0], (r2 <= 4 * f * f) & ~bad)
    inside = (r2 <= 2.25 * f * f) & ~bad
    light = [im[inside].sum() * w / ps[inside].sum() for im, w, ps in zip(images, sigma, psfs, strict=True)]
    var = sum(inside.sum() * (sigma[k] / psfs[k][inside].sum()) ** 2 for k in (0, 1))
    out["sci_cons"] = (light[2] - (light[0] - light[1])) / np.sqrt(var)


def _of_lines(out, d, bad, f):
    j, i, r2 = grid(63)
    smooth = np.zeros((63, 63))
    for y in range(C - 8, C + 9):
        for x in range(C - 8, C + 9):
            smooth[y, x] = good_median(d, bad, y, x, 1)
    outside = bad | (np.maximum(np.abs(j), np.abs(i)) > 8)
    middle = [(y, x) for y in range(C - 5, C + 6) for x in range(C - 5, C + 6) if not bad[y, x]]
    fine = max(smooth[at] - good_median(smooth, outside, *at, 3) for at in middle)
    out["lacos"] = ratio(max(d[at] for at in middle), fine)

    def medians(image, masked):
        columns = [image[:, k][~masked[:, k]] for k in range(C - 15, C + 16)]
        return [float(np.median(c)) for c in columns if 4 * c.size >= 63]

    columns, rows = medians(d, bad), medians(d.T, bad.T)
    out["col_med"], out["row_med"], out["col_min"] = max(columns), max(rows), min(columns)
    best, out["line_c4"] = -np.inf, 0.0
    for a in range(16):
        angle = a * np.pi / 16
        k = np.arange(int(1.5 * f) + 1, 31)
        x, y = np.rint(k * np.round(np.cos(angle), 12)), np.rint(k * np.round(np.sin(angle), 12))
        at = np.concatenate([C + y, C - y]).astype(int), np.concatenate([C + x, C - x]).astype(int)
        values = d[at][~bad[at]]
        if len(values) >= 10 and values.sum() / np.sqrt(len(values)) > best:
            best, out["line_c4"] = values.sum() / np.sqrt(len(values)), np.round(np.cos(4 * angle), 12)
    out["line_max"] = best if best > -np.inf else 0.0
    good = d[~bad]
    sizes = np.abs(good).sum()
    out["l1"] = np.log10(min(sizes / max(abs(good.sum()), 1e-12), 1e6)) if sizes > 0 else 0.0
    ring = (r2 > min(4 * f, 20.0) ** 2) & (r2 <= C * C) & ((j + i) % 2 == 0) & ~bad
    values = d[ring]
    out["ring_rms"] = 1.4826 * np.median(np.abs(values - np.median(values))) if len(values) >= 20 else 1.0
    out["nbad5"], out["mask_frac"] = int(bad[C - 2 : C + 3, C - 2 : C + 3].sum()), bad.mean()
