"""Phases of dithers over an image, and fits of their waves that outliers do not bend."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.phase_waves import HARMONICS, PhaseMaps, columns, fitted

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


def stars(seed, blur, noise=0.02, n=200):
    """Return (x, y, value [2, n]): blurs p (1 - p) / 2 of ``blur`` = (dither, phases) and noise."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 2 * HALF, (2, n))
    number, start = blur
    p = (MAPS.at(x, y).straight[number] + np.array(start)[:, None]) % 1
    value = rng.normal(0, noise, (2, n)) + p * (1 - p) / 2
    return x, y, value - value.mean(axis=1, keepdims=True)


def test_a_frame_is_its_dither_moved_turned_and_later():
    x, y = np.random.default_rng(1).uniform(0, 2 * HALF, (2, 50))
    shift, turn, offset = np.array([14.0, -9.0]), 0.002, np.array([0.2, 0.7])
    frame = MAPS.frame(1, turn, shift, offset)
    straight = MAPS.at(x - 14.0, y + 9.0).straight[1]
    wanted = straight + turn * np.stack([-(y - HALF), x - HALF]) + offset[:, None]
    np.testing.assert_allclose(frame.at(x, y)[0], wanted, atol=1e-9)
    np.testing.assert_allclose(frame.later(np.array([[0.1, 0.0]])).at(x, y)[0, 0], wanted[0] + 0.1, atol=1e-9)


def test_harmonics_make_the_blur():
    p = np.linspace(0, 1, 101)
    cosines = columns(p).reshape(len(HARMONICS), 2, -1)[:, 0]
    made = 1 / 6 - sum(c / (np.pi * n) ** 2 for c, n in zip(cosines, HARMONICS, strict=True))
    # those beyond the second add up to 0.04 at p = 0
    np.testing.assert_allclose(made, p * (1 - p), atol=0.041)


def test_outliers_do_not_make_the_fit():
    x, y, value = stars(3, (1, (0.0, 0.5)), noise=0.004)
    wrong = value.copy()
    wrong[:, ::9] += 1.0
    shown = columns(MAPS.at(x, y).straight[1, 0])
    smooth = np.ones((len(x), 1))
    error, prior = np.full(len(x), 0.004), np.full(len(shown), 0.05)
    clean, dirty = (fitted(smooth, shown, v[0], error, prior)[0] for v in (value, wrong))
    np.testing.assert_allclose(dirty, clean, atol=0.004)
