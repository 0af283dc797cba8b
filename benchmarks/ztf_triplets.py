"""ZTF's triplets as feature inputs of ours: what a stamp tells is measured, the rest is set and said.

What stands in an alert or on its stamps: the three images, the sign, and the FWHM of the difference's PSF
(ZTF's ``fwhm`` times ``seeratio``). What is assumed: Moffat PSFs of beta 3, round, the same in all three
images; white noise, of the ring beyond 12 px; 6.2 electrons per count; no saturated pixel, ghost, border or
other candidate near; both images of equal seeing; no streak and no dipole fitted.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal

from ks4diff.numerics.features import SIDE, Context, Stamps, features
from ks4diff.numerics.track_fit import Gains, explained
from ks4diff.numerics.track_tables import light_table
from ks4diff.stages.hits import HitsConfig

MIDDLE = SIDE // 2
RING_PIX = 12.0
GAIN = 6.2  # electrons per count of ZTF's camera (Bellm+ 2019, PASP 131, 018002)
MOFFAT_BETA = 3.0
PSF_SIDE = 31
SHARPEST, WIDEST = 1.2, 6.0  # pixels: seeing that a stamp of 1.01" pixels can have
REAL, BOGUS = 0.9, 0.3  # drb above and below


class Triplets(NamedTuple):
    """Feature vectors float32 [n, 66], the S_corr made here, and what ZTF said: scorr, drb and rb [n]."""

    vector: np.ndarray
    scorr: np.ndarray
    ztf_scorr: np.ndarray
    drb: np.ndarray
    rb: np.ndarray


def triplets(path: Path) -> Triplets:
    """Return ZTF's triplets with drb above 0.9 or below 0.3."""
    with np.load(path, allow_pickle=False) as file:
        meta = dict(zip(file["meta_names"].tolist(), file["meta"].T, strict=True))
        every = np.asarray(file["stamps"], dtype=np.float32)
    rows = np.flatnonzero((meta["drb"] > REAL) | (meta["drb"] < BOGUS))
    vector, own = [], []
    for row in rows:
        width = float(np.clip(meta["fwhm"][row] * meta["seeratio"][row], SHARPEST, WIDEST))
        stamps, context = inputs(every[row], positive=meta["isdiffpos"][row] > 0, fwhm=width)
        vector.append(features(stamps, context)[0])
        own.append(float(stamps.score[0, MIDDLE, MIDDLE]))
    return Triplets(np.array(vector), np.array(own), meta["scorr"][rows], meta["drb"][rows], meta["rb"][rows])


def inputs(triplet: np.ndarray, *, positive: bool, fwhm: float) -> tuple[Stamps, Context]:
    """Return the inputs of one triplet float32 [3, 63, 63] of science, template and difference.

    ZTF turns the difference of a source that faded: it is turned back.
    """
    sign = np.float32(1 if positive else -1)
    bad = ~np.isfinite(triplet).all(axis=0)
    planes, sigma = zip(*(_level(plane, bad) for plane in triplet), strict=True)
    science, template, difference = planes[0], planes[1], sign * planes[2]
    psf = moffat(fwhm)
    blank = signal.fftconvolve(difference, psf[::-1, ::-1], mode="same") / sigma[2]
    blank /= np.sqrt((psf**2).sum())
    light = np.maximum(science, 0) + np.maximum(template, 0)
    own = signal.fftconvolve(light, (psf**2)[::-1, ::-1], mode="same") / (psf**2).sum() / GAIN
    excess = np.maximum(own, 0) / (np.maximum(own, 0) + sigma[2] ** 2)
    score = (blank * np.sqrt(1 - excess)).astype(np.float32)
    near = sign * score[MIDDLE - 1 : MIDDLE + 2, MIDDLE - 1 : MIDDLE + 2]
    step = np.array(np.unravel_index(near.argmax(), near.shape)) - 1  # the stamp's middle is rounded
    images = [ndimage.shift(plane, -step, order=0) for plane in (science, template, difference, score)]
    stamps = Stamps(
        *(image[None].astype(np.float32) for image in images),
        bad=ndimage.shift(bad.astype(np.uint8), -step, order=0, cval=1).astype(bool)[None],
        sigma=np.array([sigma], dtype=np.float64),
        offset=_sub_pixel(sign * images[3])[None],
        cell=np.zeros(1, dtype=np.int64),
        psfs=np.repeat(psf[None, None], 3, axis=0).astype(np.float32),
        fwhm=np.array([fwhm]),
    )
    far, none, unknown = np.full(1, 100.0), np.zeros(1), np.full(1, np.nan)
    at = np.array([excess[tuple(MIDDLE + step)]])
    gains = hypotheses(sign * images[2], ~stamps.bad[0], psf, sigma[2], fwhm)
    charge = np.maximum(gains.pixels, gains.track)
    known = (gains.point, gains.light, charge, gains.struck)
    return stamps, Context(at, far, far, none, none, np.ones(1), unknown, *known, unknown, unknown)


def hypotheses(image: np.ndarray, good: np.ndarray, psf: np.ndarray, sigma: float, fwhm: float) -> Gains:
    """Return what light and charge explain of a positive difference, as `ks4diff.stages.hits` would."""
    settings = HitsConfig()
    half = max(int(np.ceil(1.5 * fwhm)) + 1, 5)
    near = slice(MIDDLE - half, MIDDLE + half + 1)
    smooth = ndimage.uniform_filter(np.maximum(image[near, near], 0), 3, mode="nearest")
    variance = sigma**2 + smooth / GAIN + (settings.model_error * smooth) ** 2
    weight = np.where(good[near, near], 1 / variance, 0)
    table = light_table(psf.astype(np.float32), fwhm, 2 * half + 1)
    data = image[near, near][None]
    return explained(data, weight[None], table, price=settings.pixel_price, own_radius=fwhm)


def moffat(fwhm: float) -> np.ndarray:
    """Return float64 [31, 31] of sum 1: a Moffat profile, averaged over pixels."""
    fine = 5
    offset = (np.arange(PSF_SIDE * fine) - (PSF_SIDE * fine - 1) / 2) / fine
    r2 = offset[:, None] ** 2 + offset[None, :] ** 2
    core2 = (fwhm / 2) ** 2 / (2 ** (1 / MOFFAT_BETA) - 1)
    psf = (1 + r2 / core2) ** -MOFFAT_BETA
    psf = psf.reshape(PSF_SIDE, fine, PSF_SIDE, fine).mean(axis=(1, 3))
    return psf / psf.sum()


def _level(plane: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (the stamp less its ring's median, bad pixels 0; the ring's sigma from its lower half)."""
    offset = np.arange(SIDE) - MIDDLE
    ring = (offset[:, None] ** 2 + offset[None, :] ** 2 > RING_PIX**2) & ~bad
    sky, low = np.percentile(plane[ring], [50, 15.87])  # stars raise only the upper half
    return np.where(bad, 0, plane - sky).astype(np.float32), max(float(sky - low), 1e-3)


def _sub_pixel(score: np.ndarray) -> np.ndarray:
    """Return (dx, dy) of the peak from the middle pixel, by parabolas, at most half a pixel."""
    c = MIDDLE
    out = []
    for low, high in ((score[c, c - 1], score[c, c + 1]), (score[c - 1, c], score[c + 1, c])):
        bend = 2 * score[c, c] - low - high
        out.append(0.5 * (high - low) / bend if bend > 0 else 0.0)
    return np.clip(out, -0.5, 0.5)
