"""Build the PSF that varies over an image from the stamps of its stars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from ks4diff.numerics.far_pixels import clear_far, left_by
from ks4diff.numerics.phase_waves import fitted
from ks4diff.numerics.polynomial import design as terms
from ks4diff.numerics.psf_borders import Borders, apart, find_borders, no_borders
from ks4diff.numerics.psf_grid import centred, freed_of_shifts, taper
from ks4diff.numerics.psf_modes import calm_wings, change_basis, modes_above_noise, radii
from ks4diff.numerics.scatter import excess_scatter
from ks4diff.products.psf import PsfField
from ks4diff.stages.psf_amplitudes import fit_amplitudes, no_amplitudes, with_regions
from ks4diff.stages.psf_clean import (
    PIXEL_CUT,
    WIDTH_FLOOR,
    as_wide_as_neighbours,
    by_pixels,
    calibrated,
    groups,
    stamp_variance,
    star_weights,
    weighted_mean,
    widths,
)
from ks4diff.stages.psf_config import PsfConfig
from ks4diff.stages.psf_errors import packed, with_unseen_steps
from ks4diff.stages.psf_faint import faintness
from ks4diff.stages.psf_stars import Sample
from ks4diff.stages.psf_wave_fit import find_waves
from ks4diff.stages.psf_waves import Waves, with_waves, without_waves
from ks4diff.stages.stack_frames import Dithers

FADE = 0.85  # of the half-width: there a stamp begins to fade, or its border would ring through every filter
CHI2_CUT = 2.5  # times the median: galaxies and blends
PRIOR_AMPLITUDE = 0.005  # of the peak: a mode that changes by less is not seen well enough to be redrawn
REGION_CHANGE = 0.01  # of the peak: by how much a region is expected to be beyond what the modes say
FEW = 40  # stars: with fewer the PSF is one
LEAST_WIDTH_FLOOR = 0.005  # of the peak: what centring and sampling add to a star's own noise


def build_field(
    sample: Sample,
    before: PsfField,
    fwhm: float,
    config: PsfConfig,
    *,
    last: bool,
    dithers: Dithers | None = None,
) -> tuple[PsfField, Sample]:
    """Return (field, the stars that it rests on).

    Borders of a stack are sought in the stars' widths. Stars broader or sharper than their neighbours within
    them are dropped (galaxies, cosmic rays), then those that the model does not fit. Modes are the patterns
    in which groups of stars differ beyond their noise; their amplitudes are polynomials with steps at borders
    plus local averages, shrunk by significance. Mean and modes are at last regressed from the full stamps on
    those amplitudes, the wings smoothed. The ``last`` time modes, amplitudes and rejection take two rounds.
    """
    shape = before.amplitudes.shape
    n = before.mean.shape[0]
    core = radii(n) <= 1.5 * fwhm
    mean = weighted_mean(sample, before.mean, core)
    sample, waves, borders = _parted(sample, mean, fwhm, shape, dithers if last else None)
    value, error = widths(sample, mean, core)
    sample = sample.only(as_wide_as_neighbours(sample, value, error, shape))
    sample = calibrated(sample, mean, fwhm)
    coefficients = weighted_mean(sample, mean, core)[None]
    amplitudes = no_amplitudes(sample, borders)
    for _ in range(2 if last else 1):
        if len(sample.x) >= FEW:
            modes = _modes(sample, coefficients[0], fwhm, shape, config)
            amplitudes = fit_amplitudes(sample, coefficients[0], modes, borders, config)
            coefficients = np.concatenate([coefficients[:1], modes])
        coefficients, chi2 = _regressed(sample, coefficients, amplitudes.at_stars, core)
        keep = chi2 <= CHI2_CUT * max(np.median(chi2), 1.0)
        sample, amplitudes = sample.only(keep), amplitudes.only(keep)
    # stars come scaled by the flux of their cores; with every PSF of sum 1 the field is linear in amplitudes
    sums = _finished(coefficients, fwhm, level=False).sum(axis=(1, 2))
    total = (1 + (sums[1:] / sums[0]) @ amplitudes.at_stars).astype(np.float32)
    level = Sample(**{**vars(sample), "stamps": sample.stamps / total[:, None, None]})
    amplitudes = with_regions(amplitudes, sample)
    fresh = np.zeros((1 + len(amplitudes.at_stars) - len(coefficients), n, n))
    coefficients = np.concatenate([coefficients, fresh])
    if last and dithers is not None:
        level = _as_bright(level, coefficients, amplitudes.at_stars, fwhm)
    coefficients, _ = _regressed(level, coefficients, amplitudes.at_stars, core)
    field = packed(sample, _finished(coefficients, fwhm), amplitudes, core, config, last)
    if last and dithers is not None:
        field = with_unseen_steps(field, sample, apart(dithers.borders(shape)))
    return field if waves is None else with_waves(field, waves, config), sample


def _as_bright(sample: Sample, before: np.ndarray, amplitudes: np.ndarray, fwhm: float) -> Sample:
    """Return the sample as if every star had the S/N that `faintness` counts from.

    What changes with it is sought within 2.5 FWHM, where light is above the noise; ``before`` and
    ``amplitudes`` as `_regressed` takes them.
    """
    reach, middle = int(np.ceil(2.5 * fwhm)), before.shape[1] // 2
    inner = slice(max(middle - reach, 0), middle + reach + 1)
    part = replace(sample, stamps=sample.stamps[:, inner, inner], known=sample.known[:, inner, inner])
    model = before[:, inner, inner]
    n = model.shape[1]
    core = radii(n) <= 1.5 * fwhm
    faint = faintness(part, model, amplitudes, core)
    if not len(faint):
        return sample
    fresh = np.zeros((len(faint), n, n))
    found, _ = _regressed(part, np.concatenate([model, fresh]), np.concatenate([amplitudes, faint]), core)
    change = np.einsum("rk,rij->kij", faint, found[-len(faint) :] * taper(n, 1.5 * fwhm, 2.5 * fwhm))
    stamps = sample.stamps.copy()
    stamps[:, inner, inner] -= change.astype(np.float32)
    return replace(sample, stamps=stamps)


def _parted(
    sample: Sample, mean: np.ndarray, fwhm: float, shape: tuple[int, int], dithers: Dithers | None
) -> tuple[Sample, Waves | None, Borders]:
    """Return (the sample without waves, its regions told; the waves; the borders between regions).

    Each shows better once the other is known: waves make stars scatter that borders are sought in, and stars
    differ from region to region.
    """
    core = radii(len(mean)) <= 1.5 * fwhm
    place = np.stack([sample.x, sample.y])
    likely = None if dithers is None else dithers.borders(shape)
    known = dithers is not None and dithers.frames is not None
    borders, waves, clear, floor = no_borders(shape), None, sample, WIDTH_FLOOR
    for _ in (True,) if dithers is None else (False, True):
        if known:
            waves = find_waves(sample, mean, fwhm, dithers.frames, borders)
            clear = without_waves(sample, mean, waves)
        value, error = widths(clear, mean, core)
        wide = np.hypot(error, floor)
        borders = find_borders(place, value[None], wide[None], shape, likely=likely, known=known)
        floor = max(excess_scatter(_off_borders(place, value, error, borders), error), LEAST_WIDTH_FLOOR)
    return replace(clear, region=borders.region(*place)), waves, borders


def _off_borders(place: np.ndarray, value: np.ndarray, error: np.ndarray, borders: Borders) -> np.ndarray:
    """Return what is left of values [k] beyond a bent plane and the steps at the borders."""
    smooth = terms(*(place / np.array(borders.shape[::-1])[:, None] * 2 - 1), 2)
    none = np.empty((0, len(value)))
    _, rest = fitted(
        np.concatenate([smooth, borders.beyond(*place).T], axis=1),
        none,
        value,
        np.hypot(error, WIDTH_FLOOR),
        np.empty(0),
    )
    return rest


def _modes(
    sample: Sample, mean: np.ndarray, fwhm: float, shape: tuple[int, int], config: PsfConfig
) -> np.ndarray:
    """Return [m, n, n]: patterns of change within 2.5 FWHM, of largest value 1 each."""
    n = mean.shape[0]
    window = taper(n, 1.5 * fwhm, 2.5 * fwhm)
    inside = window > 0
    group, count = groups(sample, shape)
    weight = star_weights(sample, mean, radii(n) <= 1.5 * fwhm)
    known = sample.known[:, inside]
    off = np.where(known, sample.stamps[:, inside] - mean[inside].astype(np.float32), np.float32(0))
    sigma = np.sqrt(stamp_variance(sample, mean[inside]))
    off = np.clip(off, -5 * sigma, 5 * sigma)
    # every other star of a group, brightest first, to either half
    order = np.lexsort((-sample.flux, group))
    rank = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    side = np.empty(len(order), dtype=int)
    side[order] = rank % 2
    sums = np.zeros((2, count, off.shape[1]))
    totals = np.zeros((2, count))
    for s in (0, 1):
        mine = np.flatnonzero(side == s)
        part = sparse.csr_array((weight[mine], (group[mine], mine)), shape=(count, len(group)))
        totals[s] = part.sum(axis=1)
        sums[s] = part @ off
    both = (totals > 0).all(axis=0)
    totals, sums = totals[:, both], sums[:, both]
    scale = np.sqrt(4 / (1 / totals[0] + 1 / totals[1]))
    pixel = np.sqrt((weight[:, None] * sigma**2).mean(axis=0)) / window[inside]
    means = sums / totals[:, :, None] * scale[:, None] / pixel
    basis = change_basis(mean, fwhm)[:, inside] / pixel
    many = np.bincount(group, minlength=count)
    place = np.stack([np.bincount(group, at, count) / many for at in (sample.x, sample.y)])[:, both]
    place = place / np.array(shape[::-1])[:, None] * 2 - 1
    found = modes_above_noise(means, basis, place, scale, config.max_modes)
    out = np.zeros((len(found), n, n))
    out[:, inside] = found * pixel
    return out / np.abs(out).max(axis=(1, 2), keepdims=True) * mean.max() if len(out) else out


def _regressed(
    sample: Sample, before: np.ndarray, amplitudes: np.ndarray, core: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean and modes [1 + m, n, n], chi² per core pixel of each star) from the full stamps.

    Weighted least squares pixel by pixel; pixels that are masked or far off show the model of ``before``
    [1 + m, n, n], and modes keep to its as if every star had shown them with `PRIOR_AMPLITUDE`.
    """
    n = sample.stamps.shape[1]
    design = np.concatenate([np.ones((1, len(sample.x))), amplitudes]).astype(np.float32)
    weight = star_weights(sample, before[0], core)
    weighted = design.astype(np.float64) * weight
    gram = weighted @ design.T.astype(np.float64)
    prior = np.full(len(gram), PRIOR_AMPLITUDE**2 * weight.sum())
    prior[0] = 0.0
    # patterns of regions are not known before
    prior[~before.any(axis=(1, 2))] = (REGION_CHANGE * before[0].max()) ** -2
    solver = np.linalg.solve(gram + np.diag(prior), weighted).astype(np.float32)
    back = solver @ design.T
    flat = sample.stamps.reshape(len(sample.x), -1)
    known = sample.known.reshape(flat.shape)

    def part(pixels: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return (mean and modes at some pixels, chi² of each star summed over those of the core)."""
        model = before.reshape(len(before), -1)[:, pixels]
        variance = stamp_variance(sample, model[0])
        now = start = model.astype(np.float32)
        for _ in range(3):
            off = left_by(flat[:, pixels], design, now)
            clear_far(off, known[:, pixels], variance, PIXEL_CUT, sample.region)
            now = start + solver @ off + back @ (now - start)
        inside = core.ravel()[pixels]
        off = left_by(flat[:, pixels], design, now)[:, inside]
        return now, np.where(known[:, pixels][:, inside], off**2 / variance[:, inside], 0).sum(axis=1)

    now, chi2 = zip(*by_pixels(part, n * n), strict=True)
    return np.concatenate(now, axis=1).astype(np.float64).reshape(-1, n, n), sum(chi2) / core.sum()


def _finished(coefficients: np.ndarray, fwhm: float, *, level: bool = True) -> np.ndarray:
    """Return mean and modes with calm wings, faded to 0 at the border; ``level``: of sum 1 and 0."""
    n = coefficients.shape[1]
    fade = taper(n, FADE * (n // 2), n // 2 + 0.5)
    centre = centred(freed_of_shifts(coefficients, fwhm), fwhm)
    out = np.stack([calm_wings(stamp, fwhm) for stamp in centre]) * fade
    # a change of width by 5 % moves a Moffat's wings beyond 3 FWHM by 1e-4 of the peak: less than their noise
    if not level:
        return out
    out /= out[0].sum()
    out[1:] -= out[1:].sum(axis=(1, 2), keepdims=True) * out[0]
    return out
