"""Find a stack's dithers in its noise: bilinear interpolation calms it by each pixel's sub-pixel phase.

A value at a fraction p between two pixels keeps 1 - 2 p (1 - p) of their variance along an axis, the second
difference of such values along it 6 - 20 p (1 - p) of it: waves that for a lone dither are half of the mean.
Millions of pixels show them, where some hundred stars show the same phases in their widths.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ks4diff.numerics.phase_waves import Frames, PhaseMaps, Phases, region_of

BIN_PIX = 8.0  # over which a turn of 1 degree moves a phase by a seventh of a cycle
CELLS = 12  # a side of the image, over which a phase that is 10" off by a cubic distortion still adds up
SEARCHED = (
    (30.0, 13, 0.25),
    (5.0, 11, 0.1),
    (1.0, 9, 0.03),
)  # shift in pixels, steps, turn in cycles at a corner
TURNS = 9  # tried with each shift
LEAST_SCORE = 30.0  # noise reaches 15 once in a thousand images
LEAST_AMPLITUDE = 0.08  # of the mean power: three dithers' waves have 0.2, beats of others less
STRONGEST = 0.3  # of the mean power: what waves are taken to be within where few samples tell ...
SCATTER = 0.6  # ... which scatter by this
LEAST_SAMPLES = 400  # in a frame's box
EDGE = 3.0  # steps between samples: so far from an image's border a frame that covers all may seem to end
MOST_TRIES = 12


def find_frames(maps: PhaseMaps, place: np.ndarray, power: np.ndarray, most_turn: float) -> Frames | None:
    """Return the dithers' frames over an image of which samples of a stack's noise are given.

    ``place`` [2, n] are pixels of the image, ``power`` [2, n] the mean squares of second
    differences along the stack's x and y there. None when no wave stands out.
    """
    nominal = maps.at(*place)
    found: Frames | None = None
    left = power / power.mean(axis=1, keepdims=True) - 1
    for _ in range(MOST_TRIES):
        score, wave = _strongest(nominal, left, most_turn)
        if score < LEAST_SCORE:
            break
        new = _refined(maps, wave, place, left)
        more = new if found is None else found.and_frame(new)
        if not _stands_out(new, place, left):
            break
        found = more
        left, found = _explained(found, place, power)
    return None if found is None else _boxed_again(found, place, power)


def _strongest(phases: Phases, left: np.ndarray, most_turn: float) -> tuple[float, tuple[int, float]]:
    """Return (how far it stands out, (dither, turn)) of the wave that both axes show most.

    A turn changes a phase along x by y and one along y by x alone: samples that share that are summed, and
    one Fourier transform tries all turns.
    """
    bins = [np.floor((t - t.min()) / BIN_PIX).astype(np.int64) for t in phases.turning]
    many = 1 << int(np.ceil(np.log2(4 * (max(b.max() for b in bins) + 1))))
    turns = np.fft.fftfreq(many, BIN_PIX)
    tried = np.abs(turns) <= most_turn
    best = (0.0, (0, 0.0))
    for number, straight in enumerate(phases.straight):
        both = []
        for b, phase, value in zip(bins, straight, left, strict=True):
            both.append(np.abs(np.fft.fft(_summed(phase, value, b), many)[tried]) ** 2 / (value @ value))
        score = 2 * np.minimum(*both)
        top = int(np.argmax(score))
        if score[top] > best[0]:
            best = (float(score[top]), (number, float(turns[tried][top])))
    return best


def _refined(maps: PhaseMaps, wave: tuple[int, float], place: np.ndarray, left: np.ndarray) -> Frames:
    """Return the frame of a wave: how far its dither was pointed aside, its turn, its phase and its box."""
    number, turn = wave
    size = place.max(axis=1, keepdims=True) + 1
    cell = np.minimum((place / size * CELLS).astype(np.int64), CELLS - 1)
    held, cell = np.unique(cell[1] * CELLS + cell[0], return_inverse=True)
    many = np.bincount(cell)
    middle = np.stack([np.bincount(cell, p) / many for p in place])
    turning = maps.at(*middle).turning
    shift = np.zeros(2)
    for reach, steps, cycles in SEARCHED:
        phases = maps.moved(number, turn, shift, place)
        sums = [_summed(p, v, cell) for p, v in zip(phases, left, strict=True)]
        start = maps.moved(number, turn, shift, middle)
        sides = [maps.moved(number, turn, shift + d, middle) - start for d in np.eye(2)]
        moves = np.linspace(-reach, reach, steps)
        turns = np.linspace(-1, 1, TURNS) * cycles / np.abs(turning).max()
        power = 0.0
        for k in (0, 1):
            across, down = (np.exp(-2j * np.pi * moves[:, None] * side[k]) for side in sides)
            turned = np.exp(-2j * np.pi * turns[:, None] * turning[k]) * sums[k]
            both = (across[:, None] * down).reshape(steps * steps, len(held))
            power = power + np.abs(both @ turned.T) ** 2
        top = np.unravel_index(int(np.argmax(power)), power.shape)
        shift = shift + moves[[top[0] // steps, top[0] % steps]]
        turn += float(turns[top[1]])
    phase = maps.moved(number, turn, shift, place)
    offset = [
        np.angle((np.exp(-2j * np.pi * p) * v).sum()) / (2 * np.pi) for p, v in zip(phase, left, strict=True)
    ]
    frame = maps.frame(number, turn, shift, np.array(offset))
    return replace(frame, boxes=_likely_box(frame, place, left)[None])


def _summed(phase: np.ndarray, value: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Return complex [bins]: values turned back by their phases, summed ``into`` bins."""
    turned = np.exp(-2j * np.pi * phase) * value
    return np.bincount(into, turned.real) + 1j * np.bincount(into, turned.imag)


def _boxed_again(frames: Frames, place: np.ndarray, power: np.ndarray) -> Frames:
    """Return the frames with each one's box as it is once the others are known.

    Noise is weaker where more dithers lie: among three a wave has a third of a lone one's strength.
    """
    for k in range(len(frames.boxes)):
        left = power / power.mean(axis=1, keepdims=True) - 1
        if len(frames.boxes) > 1:
            left, _ = _explained(frames.only(np.arange(len(frames.boxes)) != k), place, power)
        boxes = frames.boxes.copy()
        boxes[k] = _likely_box(frames.only([k]), place, left)
        frames = replace(frames, boxes=boxes)
    return frames


def _likely_box(frame: Frames, place: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return (x0, x1, y0, y1) within which values are most likely a wave as strong as it is there on average.

    Sides are infinite beyond which hardly a sample lies.
    """
    wave = np.cos(2 * np.pi * frame.at(*place)[0])
    product, square = (left * wave).sum(axis=0), (wave**2).sum(axis=0)
    box = np.array([-np.inf, np.inf, -np.inf, np.inf])
    for _ in range(3):
        inside = (place >= box[::2, None]) & (place <= box[1::2, None])
        both = inside.all(axis=0)
        strength = product[both].sum() / square[both].sum()
        # the logarithm of how much likelier values are with the wave than without, but for a factor
        gain = product - 0.5 * strength * square
        for k in (0, 1):
            some = np.flatnonzero(inside[1 - k])
            some = some[np.argsort(place[k, some])]
            sums = np.concatenate([[0.0], np.cumsum(gain[some])])
            last = int(np.argmax(sums - np.minimum.accumulate(sums)))
            first = int(np.argmin(sums[: last + 1]))
            at = place[k, some]
            few = EDGE * np.sqrt(len(at))
            box[2 * k] = at[first] if first > few else -np.inf
            box[2 * k + 1] = at[last - 1] if last < len(at) - few else np.inf
            inside[k] = (place[k] >= box[2 * k]) & (place[k] <= box[2 * k + 1])
    return box


def _stands_out(frame: Frames, place: np.ndarray, left: np.ndarray) -> bool:
    """Return whether the wave is as strong along both axes as a dither's is."""
    inside = frame.covers(*place)[0]
    if inside.sum() < LEAST_SAMPLES:
        return False
    shown = np.cos(2 * np.pi * frame.at(*place)[0][:, inside])
    return bool((2 * (left[:, inside] * shown).mean(axis=1)).min() > LEAST_AMPLITUDE)


def _explained(frames: Frames, place: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, Frames]:
    """Return (what the frames leave of the power over its mean [2, n], the frames with better phases).

    Where the same frames cover the image their waves, these' second harmonics and the products along x and y
    are fitted together with the level. Waves may become stronger along a slope, as where more dithers lie
    than are found yet.
    """
    angle = 2 * np.pi * frames.at(*place)
    covers = frames.covers(*place)
    key = region_of(covers)
    along = place / place.max(axis=1, keepdims=True) * 2 - 1
    left = np.zeros(power.shape)
    seen = np.zeros((len(covers), 2), dtype=complex)
    for own in np.unique(key):
        mine = np.flatnonzero(key == own)
        members = np.flatnonzero(covers[:, mine[0]])
        first = np.cos(angle[members][:, :, mine])
        for k in (0, 1):
            sines = np.sin(angle[members][:, k, mine])
            more = [2 * first[:, k] ** 2, first[:, 1 - k], first[:, 0] * first[:, 1]]
            sloped = [first[:, k] * a[mine] for a in along]
            design = np.concatenate([first[:, k], sines, *more, *sloped, np.ones((1, len(mine)))]).T
            if len(mine) <= 2 * design.shape[1]:
                continue
            value = power[k, mine] / power[k, mine].mean()
            known = np.full(design.shape[1], STRONGEST**-2)
            known[-1] = 0.0
            gram = design.T @ design / SCATTER**2 + np.diag(known)
            fit = np.linalg.solve(gram, design.T @ value / SCATTER**2)
            left[k, mine] = value - design @ fit
            waves = fit[: 2 * len(members)].reshape(2, -1)
            seen[members, k] += (waves[0] - 1j * waves[1]) * len(mine)
    return left, frames.later(np.angle(seen) / (2 * np.pi))
