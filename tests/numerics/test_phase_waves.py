"""Waves of sub-pixel phases are found with their dither and turn where there are any, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics.phase_waves import (
    LIKELY_RATE,
    LIKELY_TURN,
    PhaseMaps,
    columns,
    fitted,
    next_wave,
)
from ks4diff.numerics.polynomial import design as terms

HALF = 1000.0


def maps(slopes):
    """Return maps of dithers whose phases have these slopes [d][2][2], and a curvature of half a cycle."""
    phases = np.zeros((len(slopes), 2, 6))
    phases[:, :, 1:3] = np.array(slopes) * HALF
    phases[:, :, 3] = 0.5
    stack = np.zeros((2, 6))
    stack[0, 1] = stack[1, 2] = HALF
    return PhaseMaps(middle=(HALF, HALF), half=HALF, order=2, stack=stack, phases=phases)


MAPS = maps([[[0.012, 0.001], [-0.001, 0.012]], [[0.004, 0.0], [0.0, 0.007]]])


def stars(seed, blur=None, noise=0.02, n=200):
    """Return (x, y, value [2, n]): blurs p (1 - p) / 2 of ``blur`` = (dither, turn, phases) and noise."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 2 * HALF, (2, n))
    value = rng.normal(0, noise, (2, n))
    if blur is not None:
        number, turn, start = blur
        u, v = x / HALF - 1, y / HALF - 1
        p = np.einsum("kt,tn->kn", MAPS.phases[number], np.stack([u**0, u, v, u**2, u * v, v**2]))
        p = (p + turn * np.stack([-(y - HALF), x - HALF]) + np.array(start)[:, None]) % 1
        value += p * (1 - p) / 2
    return x, y, value - value.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(("number", "turn"), [(0, 0.0031), (1, -0.0008)])
def test_a_wave_is_found_with_its_dither_and_turn(number, turn):
    x, y, value = stars(1, (number, turn, (0.2, 0.7)))
    found = next_wave(MAPS.at(x, y), value, np.full(value.shape, 0.02**-2), 0.005)
    assert found[0] == number
    assert found[1] == pytest.approx(turn, abs=2e-4)


def test_noise_has_waves_as_rarely_as_is_said():
    found = []
    for seed in range(60):
        x, y, value = stars(seed)
        found.append(next_wave(MAPS.at(x, y), value, np.full(value.shape, 0.02**-2), 0.005))
    turns = np.array([abs(wave[1]) for wave in found if wave is not None])
    # 6 expected
    assert len(turns) <= 60 * LIKELY_RATE + 2 * np.sqrt(60 * LIKELY_RATE)
    assert (turns <= LIKELY_TURN * 1.1).all()


def test_what_is_found_explains_the_blur():
    x, y, value = stars(2, (0, 0.001, (0.4, 0.1)), noise=0.004)
    phases = MAPS.at(x, y)
    wave = next_wave(phases, value, np.full(value.shape, 0.004**-2), 0.005)
    smooth = terms(x / HALF - 1, y / HALF - 1, 2)
    for k in (0, 1):
        shown = columns(phases.of(wave)[k])
        prior = np.full(len(shown), 0.05)
        found, rest = fitted(smooth, shown, value[k], np.full(len(x), 0.004), prior)
        scatter = 1.4826 * np.median(np.abs(rest)) / 0.004
        # harmonics beyond the second have an rms of 0.0050; before, the waves had one of 0.037
        assert scatter < np.hypot(1, 0.0050 / 0.004)
        assert np.hypot(*found[:2]) == pytest.approx(0.5 / np.pi**2, rel=0.1)
        assert np.hypot(*found[2:]) == pytest.approx(0.125 / np.pi**2, rel=0.25)


def test_outliers_do_not_make_the_fit():
    x, y, value = stars(3, (1, 0.0, (0.0, 0.5)), noise=0.004)
    wrong = value.copy()
    wrong[:, ::9] += 1.0
    shown = columns(MAPS.at(x, y).of((1, 0.0))[0])
    smooth = np.ones((len(x), 1))
    error, prior = np.full(len(x), 0.004), np.full(len(shown), 0.05)
    clean, dirty = (fitted(smooth, shown, v[0], error, prior)[0] for v in (value, wrong))
    np.testing.assert_allclose(dirty, clean, atol=0.004)
