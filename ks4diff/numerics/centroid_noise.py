"""How far two lists' positions of one star differ by noise alone, as a function of the expected noise."""

from __future__ import annotations

import numpy as np

FLOORS = np.geomspace(0.003, 0.8, 16)  # px: of blends, pixels' own scatter, proper motions
FACTORS = np.geomspace(0.6, 20.0, 12)  # times the expected noise; in a crowded field blends move faint stars
SAMPLE = 1000  # residuals looked at: sigma to 3 %
CHANCE = 0.05  # share of matches that may be of different stars
BLENDS = 0.2  # share of stars that blends or variability move by WIDER times the others' noise
WIDER = 4.0


def fit_noise(distance: np.ndarray, expected: np.ndarray, radius: float) -> tuple[float, float]:
    """Return (floor, factor) of the standard deviation per axis, sqrt(floor² + (factor * expected)²).

    The most likely values for distances [n] within ``radius`` px, most of which are two-dimensional normal
    and the rest chance; ``expected`` [n] px per axis, above 0.
    """
    step = max(len(distance) // SAMPLE, 1)
    r2, s2 = distance[::step] ** 2, expected[::step] ** 2
    inside = r2 <= radius**2
    r2, s2 = r2[inside], s2[inside]
    if len(r2) == 0:
        return float(radius), 1.0
    variance = FLOORS[:, None, None] ** 2 + FACTORS[:, None] ** 2 * s2
    pull = r2 / variance
    core = (1 - CHANCE - BLENDS) * np.exp(-0.5 * pull) + BLENDS / WIDER**2 * np.exp(-0.5 * pull / WIDER**2)
    likelihood = np.log(core / (2 * np.pi * variance) + CHANCE / (np.pi * radius**2)).sum(axis=2)
    # with a handful of stars the noise is not told from their luck: a factor of 1 is as good as its likes
    likelihood -= 2.0 * np.log(FACTORS) ** 2
    k = int(np.argmax(likelihood))
    floor, factor = float(FLOORS[k // len(FACTORS)]), float(FACTORS[k % len(FACTORS)])
    # the grid is coarse: the median of a two-dimensional normal's distance, 1.1774 sigma, sets the level
    level = float(np.median(np.sqrt(r2 / (floor**2 + factor**2 * s2)))) / 1.1774
    level = float(np.clip(level, 0.7, 1.4))
    return floor * level, factor * level


def biweight(pull: np.ndarray, limit: float) -> np.ndarray:
    """Return Tukey's weights, 1 at pull 0 and 0 from ``limit`` on."""
    return np.clip(1 - (pull / limit) ** 2, 0, None) ** 2
