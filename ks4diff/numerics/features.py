"""The real/bogus feature vector of candidates; `ks4diff.products.features` says what is what."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.features_fit import fit_features
from ks4diff.numerics.features_lines import ANGLES, line_features
from ks4diff.numerics.features_place import oriented, placed
from ks4diff.numerics.features_score import score_features
from ks4diff.numerics.features_shape import shape_features
from ks4diff.numerics.features_static import static_features
from ks4diff.numerics.taps import tap_table

SIDE = 63  # pixels of a stamp
N_FEATURES = 66
EXPOSURES = 59  # the column of what no single exposure has: NaN
LARGEST = 50.0  # of any ratio
WIDEST_FWHM = 11.0  # pixels; a wider PSF's discs do not fit the stamp: they stop there
LEAST_GOOD = 0.5  # of the pixels within two FWHM, else a row is NaN
TWIN_HALF = 7


class Stamps(NamedTuple):
    """What n candidates are seen in; stamps are centred on the pixel of the score's peak.

    ``science``, ``template``, ``difference`` (counts of the science image) and ``score`` float32 [n, 63, 63];
    ``bad`` bool likewise; ``sigma`` float64 [n, 3] the noise of a pixel of the first three; ``offset``
    float64 [n, 2] the sub-pixel peak (dx, dy) from the middle pixel; ``cell`` int64 [n] which of the PSFs
    serves; ``psfs`` float32 [3, m, k, k] of science, template and difference, k odd, sums 1; ``fwhm``
    float64 [m] of the difference's.
    """

    science: np.ndarray
    template: np.ndarray
    difference: np.ndarray
    score: np.ndarray
    bad: np.ndarray
    sigma: np.ndarray
    offset: np.ndarray
    cell: np.ndarray
    psfs: np.ndarray
    fwhm: np.ndarray


class Context(NamedTuple):
    """What is looked up and not measured on the stamps, float64 [n] each.

    ``excess`` share of the score's variance that is not the sky's; ``saturated`` and ``edge`` distances in
    pixels; ``crosstalk`` expected ghost over flux; ``density`` other candidates per (150 px)²; ``seeing``
    FWHM of science over template; ``exposures`` fraction of single exposures that show it, NaN of no stack.
    The others are chi² that hypotheses explain, NaN unknown: ``point``, ``light``, ``charge`` and ``struck``
    in the brighter image (`ks4diff.numerics.track_fit.Gains`); ``trail`` and ``dipole`` in the difference,
    beyond a point source.
    """

    excess: np.ndarray
    saturated: np.ndarray
    edge: np.ndarray
    crosstalk: np.ndarray
    density: np.ndarray
    seeing: np.ndarray
    exposures: np.ndarray
    point: np.ndarray
    light: np.ndarray
    charge: np.ndarray
    struck: np.ndarray
    trail: np.ndarray
    dipole: np.ndarray


def features(stamps: Stamps, context: Context) -> np.ndarray:
    """Return float32 [n, 66], rows of NaN where too many pixels are masked; feature 60 NaN of no stack.

    A negative candidate is measured as the positive one that swapped images would show.
    """
    n = len(stamps.score)
    out = np.zeros((n, N_FEATURES))
    if n == 0:
        return out.astype(np.float32)
    negative = stamps.score[:, SIDE // 2, SIDE // 2] < 0
    sigma = np.where(negative[:, None], stamps.sigma[:, [1, 0, 2]], stamps.sigma)
    bad = stamps.bad
    images = (stamps.science, stamps.template, stamps.difference, stamps.score)
    seen = oriented(images, bad, stamps.sigma, negative)
    d, s = seen[2], seen[3]
    fwhm = np.minimum(stamps.fwhm, WIDEST_FWHM)[stamps.cell]
    place = _Placer(stamps)
    p = place(stamps.psfs[2], stamps.cell)
    wide = place(_extended(stamps.psfs[2], stamps.fwhm), stamps.cell)
    m = len(stamps.fwhm)
    both = np.concatenate([stamps.psfs[0], stamps.psfs[1]])
    psf_bright = place(both, stamps.cell + m * negative)
    psf_faint = place(both, stamps.cell + m * ~negative)
    twin = place(_autocorrelation(stamps.psfs[2]), stamps.cell)
    low = twin.shape[1] // 2 - min(TWIN_HALF, twin.shape[1] // 2)
    twin = np.ascontiguousarray(twin[:, low : twin.shape[1] - low, low : twin.shape[1] - low])
    dx, dy = (np.ascontiguousarray(v) for v in stamps.offset.T)
    fit = np.empty((n, 15))
    with np.errstate(all="ignore"):
        _fill(out, 0, score_features, s, bad, twin, fwhm)
        fit_features(fit, d, bad, p, wide, fwhm, s[:, SIDE // 2, SIDE // 2].astype(np.float64))
        out[:, 5:14], out[:, 27:33] = fit[:, :9], fit[:, 9:]
        _fill(out, 14, shape_features, d, bad, p, fwhm, dx, dy)
        still = np.ascontiguousarray(both[stamps.cell + m * ~negative][:, *place.cut])
        _fill(out, 33, static_features, seen, bad, (psf_bright, psf_faint, p), still, sigma, fwhm)
        _fill(out, 44, line_features, d, bad, fwhm, _ways())
        _look_up(out, context, negative, fwhm)
    out = np.clip(np.nan_to_num(out, posinf=LARGEST, neginf=-LARGEST), *_limits())
    out[:, EXPOSURES] = context.exposures
    out[~trusted(bad, fwhm)] = np.nan
    return out.astype(np.float32)


def trusted(bad: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Return bool [n]: the middle pixel is good, and half of those within two FWHM (pixels [n])."""
    reach = int(2 * WIDEST_FWHM)
    middle = slice(SIDE // 2 - reach, SIDE // 2 + reach + 1)
    offset = np.arange(-reach, reach + 1)
    r2 = offset[:, None] ** 2 + offset[None, :] ** 2
    out = ~bad[:, SIDE // 2, SIDE // 2]
    for width in np.unique(fwhm):
        disc = r2 <= (2 * width) ** 2
        rows = np.flatnonzero(fwhm == width)
        out[rows] &= (~bad[rows, middle, middle])[:, disc].mean(axis=1) >= LEAST_GOOD
    return out


class _Placer:
    """Moves PSFs to the candidates' sub-pixel places, on a grid no larger than their discs need."""

    def __init__(self, stamps: Stamps) -> None:
        wanted = int(2 * min(float(stamps.fwhm.max()), WIDEST_FWHM)) + 3
        self.half = min(wanted, 2 * (SIDE // 4))
        self.offset = np.ascontiguousarray(stamps.offset.T)
        have = stamps.psfs.shape[-1] // 2
        self.low = have - self.half
        self.cut = (slice(None), slice(None))
        if self.low > 0:
            self.cut = (slice(self.low, -self.low), slice(self.low, -self.low))

    def __call__(self, bank: np.ndarray, which: np.ndarray) -> np.ndarray:
        bank = bank.astype(np.float32)
        if self.low < 0:
            bank = np.pad(bank, ((0, 0), (-self.low, -self.low), (-self.low, -self.low)))
        bank = np.ascontiguousarray(bank[:, *self.cut])
        return placed(bank, which, self.offset[0], self.offset[1], tap_table())


def _fill(out: np.ndarray, first: int, kernel, *inputs) -> None:
    """Put a kernel's columns into the table from column ``first`` on."""
    width = {score_features: 5, shape_features: 13, static_features: 10, line_features: 10}[kernel]
    part = np.empty((len(out), width))
    kernel(part, *inputs)
    out[:, first : first + width] = part


def _autocorrelation(psfs: np.ndarray) -> np.ndarray:
    """Return each PSF correlated with itself, on its own grid: how a point source looks in the score."""
    k = psfs.shape[-1]
    power = np.abs(np.fft.rfft2(psfs, (2 * k, 2 * k))) ** 2
    full = np.fft.fftshift(np.fft.irfft2(power, (2 * k, 2 * k)), axes=(-2, -1))
    return full[:, k - k // 2 : k + k // 2 + 1, k - k // 2 : k + k // 2 + 1]


def _extended(psfs: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Return each PSF convolved with an exponential disc of scale FWHM / 16 (SExtractor's SPREAD_MODEL)."""
    k = psfs.shape[-1]
    fine = 9  # samples a pixel along each axis: the disc is a fraction of a pixel
    offset = (np.arange(-2 * fine - fine // 2, 2 * fine + fine // 2 + 1)) / fine
    r = np.hypot(offset[:, None], offset[None, :])
    out = np.empty(psfs.shape)
    for cell, width in enumerate(fwhm):
        disc = np.exp(-r / (width / 16)).reshape(5, fine, 5, fine).sum(axis=(1, 3))
        disc /= disc.sum()
        padded = np.pad(psfs[cell].astype(np.float64), 2)
        out[cell] = sum(disc[j, i] * padded[j : j + k, i : i + k] for j in range(5) for i in range(5))
    return out


def _ways() -> np.ndarray:
    """Return float64 [ANGLES, 3]: cosine, sine and cosine of four times each angle of half a turn."""
    angle = np.arange(ANGLES) * np.pi / ANGLES
    exact = np.round(np.stack([np.cos(angle), np.sin(angle), np.cos(4 * angle)], axis=1), 12)
    return np.ascontiguousarray(exact)


def _look_up(out: np.ndarray, context: Context, negative: np.ndarray, fwhm: np.ndarray) -> None:
    """Fill features 44, 55 to 59 and 61 to 66."""
    out[:, 43] = context.excess
    out[:, 54] = np.minimum(context.saturated / fwhm, 10.0)
    out[:, 55] = np.minimum(context.edge, 100.0)
    out[:, 56] = context.crosstalk
    out[:, 57] = np.log10(np.maximum(context.density, 0.01))
    out[:, 58] = np.where(negative, 1 / context.seeing, context.seeing)
    light, charge = context.light, context.charge
    out[:, 60] = charge / light
    out[:, 61] = _signed_root(charge - light)
    out[:, 62] = _signed_root(context.struck - np.maximum(charge, light))
    out[:, 63] = _signed_root(light - context.point)
    out[:, 64] = _signed_root(context.trail)
    out[:, 65] = _signed_root(context.dipole)


def _signed_root(value: np.ndarray) -> np.ndarray:
    return np.sign(value) * np.sqrt(np.abs(value))


def _limits() -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest value of each feature."""
    low, high = np.full(N_FEATURES, -LARGEST), np.full(N_FEATURES, LARGEST)
    # significances, a chi² and a distance are no ratios
    for k in (0, 6, 33, 42, 45, 46, 47, 48, 51, 55, 61, 62, 63, 64, 65):
        low[k], high[k] = -1e6, 1e6
    return low, high
