"""Bring the amplifiers of a chip to one gain and one sky, and find those that are dead.

Why both: an amplifier's counts are g (S + f) + b. What its gain g does wrong grows with the sky S, which
changes tenfold between exposures and scales every star; what its bias level b does wrong stays. Real residual
steps scale with the sky (shared facts: kmtnet.md section 7). One exposure has one sky, so a step alone
cannot say which it is: each seam's step is split by what is known beforehand, as the most probable pair
(delta, beta) of step = delta S + beta, with Gaussian priors of width ``gain_prior`` and ``offset_prior``. At
a sky of 300 counts and the default priors 99.95 % of a step are taken as gain; with no sky left, all of it
as offset. The overscan's undershoot leaves part of the sky in the image, so it is taken as gain too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ks4diff.products.chip import Amplifier
from ks4diff.products.image import PixelFlag
from ks4diff.stages.seams import SeamConfig, Steps, measure_steps


@dataclass(frozen=True, kw_only=True)
class AmplifierConfig:
    """How amplifiers are judged and matched."""

    match_amplifiers: bool = True
    match_passes: int = 2  # the second sees the sources across seams that already join
    gain_prior: float = 0.15  # relative, unit-free; header gains of one chip scatter so (kmtnet.md section 6)
    gain_prior_flat: float = 0.006  # after a flat field, which holds the gains: month-to-month change
    offset_prior: float = 1.0  # counts; overscan levels and the tilt along the seam
    step_limit_sigma: float = 0.15  # a longer step is a sigma in the score image (subtraction.md section 5)
    column_limit_sigma: float = 0.5  # a column off by this is 0.7 sigma in the score at FWHM 4 px
    seam_mask_pix: int = 2  # columns masked to each side where a step remains
    dead_noise: float = 0.5  # of the other amplifiers' pixel-to-pixel noise: below, nothing arrives
    dead_level: float = 0.2  # of their sky above the overscan, likewise
    dead_bright: float = 0.02  # of their share of pixels above 8 sigma, likewise
    seam: SeamConfig = field(default_factory=SeamConfig)


@dataclass(frozen=True, kw_only=True)
class Seam:
    """One seam as found and as left; counts of the corrected chip, ``sigma`` the noise of its sky's pixel."""

    left: str
    right: str
    x: int  # first column of the right amplifier, or row of the upper band
    before: float
    after: float
    error: float  # of ``after``
    sigma: float


@dataclass(frozen=True, kw_only=True)
class Match:
    """What to do to each amplifier: (counts - offset) / gain; offsets are c0 + c1 t, t = -1 ... 1 upwards."""

    gain: np.ndarray  # [n], mean of the logarithm 0 over live amplifiers
    offset: np.ndarray  # [n, 2] counts before the division
    seams: tuple[Seam, ...]


def dead_amplifiers(
    data: np.ndarray, amplifiers: Sequence[Amplifier], *, overscan: bool, config: AmplifierConfig
) -> np.ndarray:
    """Return bool [n]: amplifiers without noise, sky or bright pixels where the others have them.

    The sky tells only where the ``overscan`` was subtracted. ``data`` float [y, x] counts.
    """
    level, noise, bright, count = np.zeros((4, len(amplifiers)))
    for k, amplifier in enumerate(amplifiers):
        part = data[amplifier.y0 : amplifier.y1, amplifier.x0 : amplifier.x1]
        part = part[:: max(1, len(part) // 1024)]
        if not np.isfinite(part).all(axis=1).any():
            continue  # no noise: dead
        part = part[np.isfinite(part).all(axis=1)]
        level[k] = np.median(part)
        noise[k] = 1.4826 * np.median(np.abs(np.diff(part, axis=1))) / np.sqrt(2)
        above = part - np.median(part, axis=1)[:, None] > 8 * max(noise[k], 1e-6)
        count[k] = np.count_nonzero(above)
        bright[k] = count[k] / part.size
    if len(amplifiers) < 2:
        return np.zeros(len(amplifiers), dtype=bool)
    dead = noise < config.dead_noise * np.median(noise)
    if overscan and np.median(level) > np.median(noise):
        dead |= level < config.dead_level * np.median(level)
    if np.median(count) >= 200:
        dead |= bright < config.dead_bright * np.median(bright)
    return dead


def bands(amplifiers: Sequence[Amplifier], rows: int) -> list[tuple[slice, list[int]]]:
    """Return (rows, amplifiers of these rows) from the bottom; one band but for the new electronics' two."""
    spans = sorted({(a.y0, rows if a.y1 is None else a.y1) for a in amplifiers})
    return [
        (slice(*span), [k for k, a in enumerate(amplifiers) if (a.y0, a.y1 or rows) == span])
        for span in spans
    ]


def join_amplifiers(
    data: np.ndarray,
    flags: np.ndarray,
    amplifiers: Sequence[Amplifier],
    *,
    dead: np.ndarray,
    gain_prior: float,
    config: AmplifierConfig,
) -> Match:
    """Bring all of a chip to one gain and one sky, in place, and return what was done.

    Amplifiers are matched along each band of rows; where there are several bands, these follow as wholes
    (the offsets returned then leave out their tilt along the rows). SEAM is raised in ``flags``.
    """
    gain, offset, seams = np.ones(len(amplifiers)), np.zeros((len(amplifiers), 2)), []
    parts = bands(amplifiers, len(data))
    options = {"gain_prior": gain_prior, "config": config}
    for rows, members in parts:
        some = [amplifiers[k] for k in members]
        match = match_amplifiers(data[rows], flags[rows], some, dead=dead[members], **options)
        apply_match(data[rows], match, some)
        gain[members], offset[members] = match.gain, match.offset
        seams += match.seams
    if len(parts) > 1:
        wholes = [Amplifier(name=f"rows {r.start}-{r.stop - 1}", x0=r.start, x1=r.stop) for r, _ in parts]
        empty = np.array([dead[members].all() for _, members in parts])
        match = match_amplifiers(data.T, flags.T, wholes, dead=empty, **options)
        apply_match(data.T, match, wholes)
        for (_, members), factor, shift in zip(parts, match.gain, match.offset, strict=True):
            offset[members, 0] += gain[members] * shift[0]
            gain[members] *= factor
        seams += match.seams
    return Match(gain=gain, offset=offset, seams=tuple(seams))


def match_amplifiers(
    data: np.ndarray,
    flags: np.ndarray,
    amplifiers: Sequence[Amplifier],
    *,
    dead: np.ndarray,
    gain_prior: float,
    config: AmplifierConfig,
) -> Match:
    """Return each amplifier's gain and offset relative to the chip's mean; ``data`` [y, x] is not changed.

    The amplifiers, left to right, hold all rows of ``data``. Over a dead one the sky is bridged by wider
    strips. Pixels with a flag are not looked at. SEAM is raised in ``flags``, in place.
    """
    gain, offset = np.ones(len(amplifiers)), np.zeros((len(amplifiers), 2))
    live = np.flatnonzero(~dead)
    pairs = list(pairwise(live))
    before: list[Steps] = []
    for turn in range(config.match_passes):
        # the last turn decides; the others only bring the steps below the noise, a quarter of the rows does
        thin = 4 if turn < config.match_passes - 1 and len(data) >= 4096 else 1
        steps = [_steps(data, flags, amplifiers, pair, (gain, offset), config, thin) for pair in pairs]
        before = before or steps
        prior = (gain_prior if _holds_sky(before) else 0.0, config.offset_prior)
        gain, offset = _chain(steps, live, gain, offset, rows=len(data), prior=prior)
    after = [_steps(data, flags, amplifiers, pair, (gain, offset), config) for pair in pairs]
    seams = []
    for (i, j), first, last in zip(pairs, before, after, strict=True):
        step, error = last.mean()
        seams.append(
            Seam(
                left=amplifiers[i].name,
                right=amplifiers[j].name,
                x=amplifiers[j].x0,
                before=first.mean()[0],
                after=step,
                error=error,
                sigma=last.sigma,
            )
        )
        if j == i + 1:
            _flag_seam(flags, last, amplifiers[j].x0, config)
    return Match(gain=gain, offset=offset, seams=tuple(seams))


def apply_match(data: np.ndarray, match: Match, amplifiers: Sequence[Amplifier]) -> None:
    """Bring ``data`` float32 [y, x] to one gain and one sky, in place."""
    t = _height(np.arange(len(data)), len(data))
    for amplifier, gain, offset in zip(amplifiers, match.gain, match.offset, strict=True):
        part = data[:, amplifier.x0 : amplifier.x1]
        part -= (offset[0] + offset[1] * t)[:, None].astype(np.float32)
        part /= np.float32(gain)


def _height(row: np.ndarray, rows: int) -> np.ndarray:
    return 2.0 * (row + 0.5) / rows - 1.0


def _steps(data, flags, amplifiers, pair, correction, config, thin=1) -> Steps:
    """Return the steps between two live amplifiers with the correction so far applied to their strips.

    With ``thin`` only every so manyth block of rows is looked at.
    """
    gain, offset = correction
    i, j = pair
    a, b = amplifiers[i], amplifiers[j]
    width = config.seam.strip_pix if j == i + 1 else config.seam.gap_strip_pix
    width = min(width, a.x1 - a.x0, b.x1 - b.x0)
    block = config.seam.block_rows
    rows = np.arange(len(data))
    if thin > 1:
        rows = rows[(rows // block) % thin == 0]
    t = _height(rows, len(data))[:, None].astype(np.float32)
    strips, good = [], []
    for k, columns in ((i, slice(a.x1 - width, a.x1)), (j, slice(b.x0, b.x0 + width))):
        strips.append((data[rows, columns] - (offset[k, 0] + offset[k, 1] * t)) / np.float32(gain[k]))
        good.append(flags[rows, columns] == 0)
    steps = measure_steps(*strips, (a.x1 - width, b.x0), config.seam, np.concatenate(good, axis=1))
    return replace(steps, row=rows[steps.row.astype(int)].astype(float)) if thin > 1 else steps


def _holds_sky(steps: Sequence[Steps]) -> bool:
    """Return whether the level is the sky's and no pedestal: as bright as its noise asks for.

    A sky of S counts has the variance S/gain + read noise²; where the level is below 30 % of what that
    leaves after 12 electrons of read noise at 1.7 electrons per count (kmtnet.md section 6), the sky was
    subtracted, and a step has nothing to be a part of.
    """
    levels = [float(np.nanmedian(s.level)) for s in steps if np.isfinite(s.level).any()]
    if not levels:
        return False
    variance = float(np.median([s.sigma for s in steps])) ** 2
    return float(np.median(levels)) > 0.3 * 1.7 * max(variance - (12 / 1.7) ** 2, 0.0)


def _chain(steps, live, gain, offset, *, rows, prior) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and offset after joining the live amplifiers from left to right, their means kept."""
    ratio, shift = np.ones(len(live)), np.zeros((len(live), 2))
    for k, step in enumerate(steps, start=1):
        delta, beta = _split(step, rows, prior)
        rho = (1 + 0.5 * delta) / (1 - 0.5 * delta)  # the level is the mean of both sides
        ratio[k] = rho * ratio[k - 1]
        shift[k] = rho * shift[k - 1] + beta
    mean = np.exp(np.log(gain[live] * ratio).mean()) if len(live) else 1.0
    gain, offset = gain.copy(), offset.copy()
    offset[live] += gain[live, None] * shift
    gain[live] *= ratio / mean
    # what all share is the sky's own level: only differences are known
    offset[live] -= gain[live, None] * (offset[live] / gain[live, None]).mean(axis=0)
    return gain, offset


def _split(steps: Steps, rows: int, prior: tuple[float, float]) -> tuple[float, np.ndarray]:
    """Return (delta, [c0, c1]): the step's part that grows with the sky and the rest, by Tukey's weights."""
    known = np.isfinite(steps.step)
    if not known.any():
        return 0.0, np.zeros(2)
    d, level = steps.step[known], _true_level(steps.level[known], steps.error[known])
    t = _height(steps.row[known] - 0.5, rows)
    design = np.stack([level, np.ones_like(t), t], axis=1)
    widths = np.array([prior[0], prior[1], prior[1]])
    error = steps.error[known]
    fit = np.zeros(3)
    fit[1] = np.median(d)
    for _ in range(10):
        residual = d - design @ fit
        scale = np.maximum(error, 1.4826 * np.median(np.abs(residual - np.median(residual))))
        # blocks full of a bright star's light are 10 spreads off: Huber's weights would still follow them
        weight = np.clip(1 - (residual / (5 * scale)) ** 2, 0, None) ** 2 / scale**2
        scaled = design * widths  # in units of the priors: well conditioned, and ridge 1
        normal = scaled.T @ (weight[:, None] * scaled) + np.eye(3)
        fit = widths * np.linalg.solve(normal, scaled.T @ (weight * d))
    return float(np.clip(fit[0], -0.5, 0.5)), fit[1:]  # the gains of one site differ by a factor 1.45 at most


def _true_level(level: np.ndarray, step_error: np.ndarray) -> np.ndarray:
    """Return the level without what noise scatters it by, which would draw every slope to 0.

    Nor is a bright star beside the seam sky. The level's variance is 9/64 of the step's (`measure_steps`).
    """
    off = level - np.median(level)
    scatter = max(1.4826 * float(np.median(np.abs(off))), 1e-9)
    real = max(1 - 9 / 64 * (float(np.median(step_error)) / scatter) ** 2, 0.0)
    return np.median(level) + np.clip(off, -3 * scatter, 3 * scatter) * real


def _flag_seam(flags: np.ndarray, steps: Steps, x: int, config: AmplifierConfig) -> None:
    """Raise SEAM, in place, on columns that stand off their surroundings and rows where a step remains."""
    limit = max(config.column_limit_sigma * steps.sigma, 5 * steps.excess_error)
    near = np.abs(steps.columns - x + 0.5) <= config.seam.edge_skip_pix
    for column in steps.columns[near & (np.abs(steps.excess) > limit)]:
        flags[:, column] |= np.uint16(PixelFlag.SEAM)
    blocks, margin = 8, config.seam_mask_pix  # eight blocks together: the error of one hides small steps
    for start in range(0, len(steps.step), blocks):
        part = slice(start, start + blocks)
        known = np.isfinite(steps.step[part])
        if known.sum() < blocks // 2:
            continue
        step = np.median(steps.step[part][known])
        error = 1.2533 * np.median(steps.error[part][known]) / np.sqrt(known.sum())
        if abs(step) > config.step_limit_sigma * steps.sigma + 3 * error:
            low, high = (round(steps.row[part][k] + s * steps.row[0]) for k, s in ((0, -1), (-1, 1)))
            flags[low:high, x - margin : x + margin] |= np.uint16(PixelFlag.SEAM)
