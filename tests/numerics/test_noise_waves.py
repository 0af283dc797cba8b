"""The noise of a stack tells which dithers it is made of, where they lie and at which phases."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics import noise_waves
from ks4diff.numerics.noise_waves import find_frames
from ks4diff.numerics.phase_waves import Frames, PhaseMaps

SIZE, HALF = 1200.0, 600.0
MOST_TURN = 0.01
# phase of the dither less that of the stack, per pixel: along x of x and y, along y of x and y
SLOPES = [[[0.012, 0.001], [-0.001, 0.013]], [[0.005, 0.0], [0.0, 0.009]], [[-0.021, 0.0], [0.0, -0.018]]]


def maps():
    phases = np.zeros((len(SLOPES), 2, 6))
    phases[:, :, 1:3] = np.array(SLOPES) * HALF
    phases[:, :, 3] = 0.7
    stack = np.zeros((2, 6))
    stack[0, 1] = stack[1, 2] = HALF
    return PhaseMaps(middle=(HALF, HALF), half=HALF, order=2, stack=stack, phases=phases)


MAPS = maps()


def dither(number, turn, shift, offset, box=(-np.inf, np.inf, -np.inf, np.inf)):
    frame = MAPS.frame(number, turn, np.array(shift), np.array(offset))
    return Frames(**{**vars(frame), "boxes": np.array([box])})


def noise_of(frames, seed, n=18000):
    """Return (places [2, n], power [2, n]): second differences of a mean of dithers, over 16 pixels."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(0, SIZE, (2, n))
    total, many = np.zeros((2, n)), np.zeros(n)
    for frame in frames:
        p = frame.at(*place)[0] % 1
        bent, kept = 6 - 20 * p * (1 - p), 1 - 2 * p * (1 - p)
        covers = frame.covers(*place)[0]
        total += covers * bent * kept[::-1]
        many += covers
    power = np.where(many > 0, total / np.maximum(many, 1) ** 2, 1.0)
    return place, power * rng.chisquare(5, (2, n)) / 5


@pytest.mark.parametrize("seed", [1, 2])
def test_frames_are_found_with_phases_and_boxes(seed):
    inf = np.inf
    made = [
        dither(0, 0.0011, (12.0, -20.0), (0.3, 0.8)),
        dither(1, -0.0006, (-7.0, 9.0), (0.6, 0.1), (-inf, 800.0, -inf, inf)),
        dither(2, 0.0004, (0.0, 15.0), (0.05, 0.4), (-inf, inf, 430.0, inf)),
    ]
    place, power = noise_of(made, seed)
    found = find_frames(MAPS, place, power, MOST_TURN)
    phase, covers = found.at(*place), found.covers(*place)
    told = np.zeros(len(covers), dtype=bool)
    for frame in made:
        inside = frame.covers(*place)[0]
        off = np.exp(2j * np.pi * (phase - frame.at(*place)[0]))
        # one that is much stronger on one side may be found as two, side by side
        alike = [np.abs(o[:, c & inside].mean(axis=1)).min() for o, c in zip(off, covers, strict=True)]
        own = np.array(alike) > 0.9
        first = off[own][:, :, inside].mean(axis=(0, 2))
        assert np.abs(np.angle(first)).max() < 2 * np.pi * 0.05
        # where its strength steps, from that of a lone dither to that of one of three, a side errs by 4 %
        assert (covers[own].sum(axis=0) != inside).mean() < 0.06
        told |= own
    assert told.all()


def test_noise_without_waves_has_no_frames():
    assert all(find_frames(MAPS, *noise_of([], seed), MOST_TURN) is None for seed in range(20))


def test_stronger_noise_beyond_a_border_is_no_frame():
    place, power = noise_of([], 3)
    assert find_frames(MAPS, place, power * np.where(place[0] > 500, 1.5, 1.0), MOST_TURN) is None


def test_all_turns_at_once_are_each_turn_alone():
    place, power = noise_of([dither(1, 0.0021, (0.0, 0.0), (0.2, 0.5))], 4, n=3000)
    left = power / power.mean(axis=1, keepdims=True) - 1
    phases = MAPS.at(*place)
    score, (number, turn) = noise_waves._strongest(phases, left, MOST_TURN)
    best = (0.0, 0, 0.0)
    for k, straight in enumerate(phases.straight):
        for t in np.linspace(-MOST_TURN, MOST_TURN, 401):
            wave = np.exp(-2j * np.pi * (straight + t * phases.turning))
            best = max(
                best,
                (2 * float((np.abs((wave * left).sum(axis=1)) ** 2 / (left**2).sum(axis=1)).min()), k, t),
            )
    assert number == best[1] == 1
    assert turn == pytest.approx(best[2], abs=2e-4)
    assert score == pytest.approx(best[0], rel=0.1)
