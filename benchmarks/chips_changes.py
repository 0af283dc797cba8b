"""What a subtraction shows where nothing changed, and what it finds of what did (issue 5)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from benchmarks.chips_sky import Sky
from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.products.psf import Psf
from ks4diff.products.subtracted import SubtractedChip

THRESHOLD = 5.0
BINS = ((5.0, 6.0), (6.0, 8.0), (8.0, np.inf))  # of |expected S_corr|
MATCH_PIX = 2.5  # half a FWHM: 5 times the position error of a 5-sigma source
AWAY_FWHM = 5.0  # around what changed, the score is no sample of nothing
BORDER_PIX = 24  # sources closer to the border are not counted: the simulator's truth stops at 4
STATIC_SN = 10.0  # of the stars that should leave nothing
LONGEST_TRAIL_FWHM = 0.5  # an asteroid that moves farther is no point source any more
BESIDE_PIX, BESIDE_MAG = 4.0, 22.5  # how near to what a false candidate must be to be blamed on it
TRAIL_REACH_PIX = 14.0  # four sigma of the widest satellite trail


def changes_figures(sky: Sky, stars, done: SubtractedChip, covered: np.ndarray) -> dict:
    """Return the figures of issue 5 of one chip; ``stars`` are `benchmarks.chips_measure.Stars`.

    Pixels of dead amplifiers and those that no dither of the template shows (not ``covered``) are not counted
    as masked.
    """
    difference = done.difference
    rows = sky.truth["sources"]
    changing = rows[np.isfinite(rows["expected_scorr"]) | np.isin(rows["kind"], [b"moving", b"fading"])]
    shape = difference.score_corr.shape
    fwhm = max(done.chip.psf.fwhm_pix, done.template.psf.fwhm_pix)
    unmasked = difference.flags == 0
    quiet = _far_from(changing, shape, AWAY_FWHM * fwhm) & ~_struck(sky, shape, 2 * fwhm)
    score = difference.score_corr
    sky_only = unmasked & quiet & (done.chip.sky if done.chip.sky is not None else True)
    strips = sky.truth["amplifiers"]
    alive = covered.copy()
    for strip in strips[strips["dead"]]:
        alive[:, strip["x0"] : strip["x1"]] = False
    out = {
        "verdict": done.quality.verdict,
        "reasons": list(done.quality.reasons),
        "std": _std(score[unmasked & quiet]),
        "std_sky": _std(score[sky_only]),
        "mean_sky": float(score[sky_only].mean()) if sky_only.any() else None,
        "masked": float((~unmasked)[alive].mean()),
        "floor_mpix": noise_floor(difference.psf),
    }
    out |= _static_stars(stars, changing, score, unmasked, fwhm)
    return out | _found(sky, done, changing, alive)


def _std(values: np.ndarray) -> float | None:
    return float(values.std(dtype=np.float64)) if values.size else None


def _far_from(rows: np.ndarray, shape: tuple[int, int], reach: float) -> np.ndarray:
    """Return bool [y, x]: no source of ``rows`` closer than ``reach``; moving ones with their streak."""
    marks = np.ones(shape, dtype=bool)
    hours = np.linspace(-1, 1, 9) * 60 / 3600
    x = np.rint(rows["x"][:, None] + rows["rate_x"][:, None] * hours).astype(int).ravel()
    y = np.rint(rows["y"][:, None] + rows["rate_y"][:, None] * hours).astype(int).ravel()
    on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    marks[y[on], x[on]] = False
    return ndimage.distance_transform_edt(marks) > reach if on.any() else marks


def _struck(sky: Sky, shape: tuple[int, int], reach: float) -> np.ndarray:
    """Return bool [y, x]: within ``reach`` of a particle's track, a trail or a detector defect."""
    marks = np.zeros(shape, dtype=bool)
    marks[tuple(sky.truth["struck"].T)] = True
    trails = []
    for row in sky.truth["artefacts"]:
        if row["kind"] == b"trail":
            trails.append(row)
        elif row["kind"] in (b"hot_pixel", b"bad_column"):
            marks[max(row["y0"], 0) : max(row["y1"], 0), max(row["x0"], 0) : max(row["x1"], 0)] = True
    near = ndimage.distance_transform_edt(~marks) <= reach if marks.any() else marks
    y, x = np.mgrid[: shape[0], : shape[1]]
    for row in trails:
        angle = np.radians(row["angle"])
        rising = np.cos(angle) * np.sin(angle) > 0
        corner = (row["x0"], row["y0"] if rising else row["y1"])
        # the box is as wide as the trail: its corner lies up to that far beside the ridge
        away = np.abs((x - corner[0]) * np.sin(angle) - (y - corner[1]) * np.cos(angle))
        near |= away < 3 * TRAIL_REACH_PIX
    return near


def _static_stars(stars, changing: np.ndarray, score: np.ndarray, unmasked: np.ndarray, fwhm: float) -> dict:
    """Return how many constant, unflagged stars stand out of the score, and how many there are."""
    rows = stars.rows[np.minimum(stars.science_sn, stars.template_sn) >= STATIC_SN]
    x, y = np.rint(rows["x"]).astype(int), np.rint(rows["y"]).astype(int)
    inside = (x >= 1) & (y >= 1) & (x < score.shape[1] - 1) & (y < score.shape[0] - 1)
    rows, x, y = rows[inside], x[inside], y[inside]
    free = unmasked[y, x] & _far_from(changing, score.shape, 2 * fwhm)[y, x]
    around = ndimage.maximum_filter(np.abs(score), size=3)[y, x]
    return {"static_stars": int(free.sum()), "static_bad": int((free & (around > THRESHOLD)).sum())}


def _found(sky: Sky, done: SubtractedChip, changing: np.ndarray, alive: np.ndarray) -> dict:
    """Return completeness per bin of expected S_corr, and the unflagged candidates that are nothing real.

    What changed where a dead amplifier or no dither looks (not ``alive``) is not counted.
    """
    table = done.candidates.table
    good = table[(table["flags"] & REJECTING_BITS) == 0]
    shape = alive.shape
    fwhm = done.chip.psf.fwhm_pix
    streak = np.hypot(changing["rate_x"], changing["rate_y"]) * sky.config.exptime_s / 3600
    distance = np.hypot(good["x"][:, None] - changing["x"], good["y"][:, None] - changing["y"])
    same_sign = good["is_positive"][:, None] == (changing["expected_scorr"] > 0)
    close = distance < MATCH_PIX
    found = (close & same_sign).any(axis=0)
    x, y = changing["x"], changing["y"]
    counted = (x > BORDER_PIX) & (y > BORDER_PIX) & (x < shape[1] - BORDER_PIX) & (y < shape[0] - BORDER_PIX)
    counted &= np.isfinite(changing["expected_scorr"]) & (streak <= LONGEST_TRAIL_FWHM * fwhm)
    row, column = (np.clip(np.rint(v).astype(int), 0, n - 1) for v, n in ((y, shape[0]), (x, shape[1])))
    counted &= alive[row, column]
    expected = np.abs(changing["expected_scorr"])
    bins = {}
    for low, high in BINS:
        of_it = counted & (expected >= low) & (expected < high)
        bins[f"{low:g}"] = [int((found & of_it).sum()), int(of_it.sum())]
    real = (distance < MATCH_PIX + streak / 2).any(axis=1)
    flagged = table[(table["flags"] & REJECTING_BITS) != 0]
    lost = counted & ~found & (expected >= BINS[1][0])
    near = np.hypot(flagged["x"][:, None] - x[lost], flagged["y"][:, None] - y[lost]) < MATCH_PIX
    bits = [int(b) for b in _bits(flagged["flags"][near.any(axis=1)])]
    return {
        "completeness": bins,
        "bogus": int((~real).sum()),
        "bogus_on": _beside(sky, good[~real]),
        "lost": int(lost.sum()),
        "lost_flagged": int(near.any(axis=0).sum()),
        "lost_flags": bits,
        "mpix": float(alive.sum() / 1e6),
        "recovered_ratio": _ratio(good, changing, counted & found & (expected > 20), distance),
    }


def _beside(sky: Sky, table: np.ndarray) -> dict[str, int]:
    """Return what the candidates that are nothing real lie on, the likeliest cause first asked for."""
    rows, left = sky.truth["sources"], np.ones(len(table), dtype=bool)
    out = {}
    marks = {"particle": (sky.truth["struck"][:, 1], sky.truth["struck"][:, 0])}
    for kind in ("hot_pixel", "bad_column", "saturated", "crosstalk", "trail"):
        boxes = sky.truth["artefacts"][sky.truth["artefacts"]["kind"] == kind.encode()]
        inside = np.zeros(len(table), dtype=bool)
        for box in boxes:
            inside |= (
                (table["x"] > box["x0"] - BESIDE_PIX)
                & (table["x"] < box["x1"] + BESIDE_PIX)
                & ((table["y"] > box["y0"] - BESIDE_PIX) & (table["y"] < box["y1"] + BESIDE_PIX))
            )
        out[kind] = inside
    for kind in (b"star", b"galaxy", b"moving"):
        bright = rows[(rows["kind"] == kind) & (rows["mag"] < BESIDE_MAG)]
        marks[kind.decode()] = (bright["x"], bright["y"])
    place = np.stack([table["x"], table["y"]], axis=1)
    for name, (x, y) in marks.items():
        near = np.zeros(len(table), dtype=bool)
        if len(x) and len(table):
            near = cKDTree(np.stack([x, y], axis=1)).query(place)[0] < BESIDE_PIX
        out[name] = near
    counts = {}
    for name in (
        "particle",
        "hot_pixel",
        "bad_column",
        "saturated",
        "crosstalk",
        "moving",
        "star",
        "galaxy",
        "trail",
    ):
        counts[name] = int((out[name] & left).sum())
        left &= ~out[name]
    return {**{k: v for k, v in counts.items() if v}, "nothing": int(left.sum())}


def _bits(flags: np.ndarray) -> np.ndarray:
    """Return how often each rejecting bit, from the lowest, is raised."""
    bits = [1 << k for k in range(12) if REJECTING_BITS >> k & 1]
    return np.array([np.count_nonzero(flags & bit) for bit in bits])


def _ratio(good: np.ndarray, changing: np.ndarray, which: np.ndarray, distance: np.ndarray) -> float | None:
    """Return the median of measured over expected S_corr of the bright changes that were found."""
    if not which.any():
        return None
    nearest = distance[:, which].argmin(axis=0)
    return float(np.median(good["scorr"][nearest] / changing["expected_scorr"][which]))


def noise_floor(psf: Psf, threshold: float = THRESHOLD) -> float:
    """Return how many peaks of pure noise pass ``threshold``, both signs, per million pixels.

    The score of white noise is correlated as P_D with itself; the maxima above u of a smooth normal field
    number sqrt(det L) (2 pi)^-3/2 u exp(-u²/2) per pixel, L the second moments of its power spectrum (Adler,
    The Geometry of Random Fields, 1981, section 6.6). Tops between pixels, as `detect` takes them, number
    0.99 to 1.01 times that from 3 to 5 sigma at FWHM 3 to 6 px and 0.93 at 2 px; highest pixels at 5 sigma
    0.46 (2 px) to 0.88 (6 px).
    """
    n = 128
    power = np.abs(np.fft.fft2(psf.stamp.astype(np.float64), (n, n))) ** 2
    k = 2 * np.pi * np.fft.fftfreq(n)
    ky, kx = k[:, None], k[None, :]
    total = power.sum()
    xx, yy, xy = ((power * a).sum() / total for a in (kx * kx + 0 * ky, ky * ky + 0 * kx, kx * ky))
    density = np.sqrt(xx * yy - xy**2) * (2 * np.pi) ** -1.5 * threshold * np.exp(-(threshold**2) / 2)
    return float(2e6 * density)
