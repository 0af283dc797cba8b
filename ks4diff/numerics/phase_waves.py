"""Waves over an image of the sub-pixel phases at which a stack's dithers were interpolated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from ks4diff.numerics.polynomial import design as terms

FALSE_RATE = 1e-4  # of one wave that is none, over all that are tried ...
LIKELY_RATE = 0.1  # ... and over those of `LIKELY_TURN`: every dither of a stack makes waves
LIKELY_TURN = 0.0026  # radians: three times what exposures are turned by, rms
CLIP = 2.5  # sigma of values about the waves: galaxies and blends
ROUNDS = 8
MOST_STARS = 600  # that a wave is sought with, those of least noise
TURN_STEP = 0.25  # cycles, at the star farthest from the middle, between the turns that are tried
TURNS_AT_ONCE = 32  # whose waves are those of the first of them times waves that all such groups share
HARMONICS = (1, 2)  # of p (1 - p) = 1/6 - sum cos(2 pi n p) / (pi n)²; the third is a ninth of the first


@dataclass(frozen=True, kw_only=True)
class PhaseMaps:
    """Where an image's pixels lie on the stack, and the phases of dithers there, if they were turned by 0.

    Polynomials of (x - middle) / half: ``stack`` float64 [2, terms], stack pixels; ``phases`` [dithers, 2,
    terms], along the stack's x and y: pixel of the dither less pixel of the stack.
    """

    middle: tuple[float, float]
    half: float
    order: int
    stack: np.ndarray
    phases: np.ndarray

    def design(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the polynomials' terms [n, terms] at pixels of the image."""
        return terms((x - self.middle[0]) / self.half, (y - self.middle[1]) / self.half, self.order)

    def at(self, x: np.ndarray, y: np.ndarray) -> Phases:
        """Return the phases of all dithers at pixels (x, y) [n] of the image."""
        design = self.design(x, y)
        along, down = (design @ self.stack.T).T - self.stack[:, :1]
        return Phases(straight=self.phases @ design.T, turning=np.stack([-down, along]))


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Phases at n places: ``straight`` float64 [dithers, 2, n], of those that are not turned.

    ``turning`` float64 [2, n]: by how much the phases change per radian that a dither is turned.
    """

    straight: np.ndarray
    turning: np.ndarray

    def of(self, wave: tuple[int, float]) -> np.ndarray:
        """Return float64 [2, n]: the phases of one dither (its number, its turn in radians)."""
        return self.straight[wave[0]] + wave[1] * self.turning

    def only(self, some: np.ndarray) -> Phases:
        """Return the phases at some of the places."""
        return Phases(straight=self.straight[:, :, some], turning=self.turning[:, some])


def columns(phase: np.ndarray) -> np.ndarray:
    """Return float64 [2 harmonics, n]: cosines and sines of a phase [n]."""
    first = np.exp(2j * np.pi * phase)
    waves = [first**k for k in HARMONICS]
    return np.stack([part for wave in waves for part in (wave.real, wave.imag)])


def next_wave(
    phases: Phases, value: np.ndarray, weight: np.ndarray, most_turn: float
) -> tuple[int, float] | None:
    """Return the dither (number, turn) whose first harmonics lower chi² most, None when chance does as well.

    ``value`` and ``weight`` [2, n]: what is to be explained along x and y, with its inverse variances.
    """
    # a search among a whole chip's 3000 stars would take five times as long
    some = np.sort(np.argsort(-weight.sum(axis=0), kind="stable")[:MOST_STARS])
    phases, value, weight = phases.only(some), value[:, some], weight[:, some]
    step = TURN_STEP / float(np.abs(phases.turning).max())
    turns = np.arange(-most_turn, most_turn + step, step)
    starts = np.exp(2j * np.pi * phases.straight)
    gain = _gains(turns, phases.turning, starts, value, weight)
    likely = np.abs(turns) <= LIKELY_TURN
    rate = np.where(likely, LIKELY_RATE / max(likely.sum(), 1), FALSE_RATE / len(turns)) / len(starts)
    spare = gain - chi2.isf(rate, 4)
    number, top = np.unravel_index(int(np.argmax(spare)), gain.shape)
    if spare[number, top] <= 0:
        return None
    near = turns[top] + np.linspace(-step, step, 21)
    gain = _gains(near, phases.turning, starts[number : number + 1], value, weight)
    return int(number), float(near[int(np.argmax(gain))])


def _gains(turns, turning, starts, value, weight) -> np.ndarray:
    """Return [dithers, turns]: by how much the first harmonics of both axes lower chi².

    ``turns`` [t] are equally spaced; ``starts`` [dithers, 2, n] the waves of dithers that are not turned.
    """
    out = np.zeros((len(starts), len(turns)))
    for k in (0, 1):
        groups = np.exp(2j * np.pi * turns[::TURNS_AT_ONCE, None] * turning[k])
        within = np.exp(2j * np.pi * (turns[:TURNS_AT_ONCE] - turns[0])[:, None] * turning[k])
        turned = (groups[:, None] * within).reshape(-1, len(turning[k]))[: len(turns)]
        first = turned @ (starts[:, k] * (weight[k] * value[k])).T
        second = turned**2 @ (starts[:, k] ** 2 * weight[k]).T
        out += _power(first, second, weight[k].sum()).T
    return out


def _power(first: np.ndarray, second: np.ndarray, total: float) -> np.ndarray:
    """Return by how much a cosine and a sine lower chi², of sums over exp(i a) and exp(2 i a)."""
    cc, ss, cs = 0.5 * (total + second.real), 0.5 * (total - second.real), 0.5 * second.imag
    c, s = first.real, first.imag
    return (c * c * ss - 2 * c * s * cs + s * s * cc) / np.maximum(cc * ss - cs * cs, 1e-12 * total**2)


def fitted(
    smooth: np.ndarray, waves: np.ndarray, value: np.ndarray, error: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (coefficients of the waves [w], residuals [n]); what is far off is clipped in the fit.

    ``smooth`` [n, t] and ``waves`` [w, n] are fitted together, waves as if known to be 0 within ``prior``.
    """
    design = np.concatenate([smooth, waves.T], axis=1) / error[:, None]
    known = np.diag(np.concatenate([np.full(smooth.shape[1], 1e-9), prior**-2]))
    solver = np.linalg.solve(design.T @ design + known, design.T)
    scaled = value / error
    # about the median at first: a first fit that chased outliers would need many rounds to come back
    found, fit = np.zeros(design.shape[1]), np.full(len(scaled), np.median(scaled))
    for _ in range(ROUNDS):
        rest = scaled - fit
        scatter = max(1.4826 * float(np.median(np.abs(rest))), 1.0)
        found = solver @ (fit + np.clip(rest, -CLIP * scatter, CLIP * scatter))
        fit = design @ found
    return found[smooth.shape[1] :], (scaled - fit) * error
