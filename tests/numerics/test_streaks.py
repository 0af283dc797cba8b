"""Runs along rows and columns against their twin, and growing."""

from __future__ import annotations

import numpy as np
import pytest

from ks4diff.numerics import streaks
from tests import oracles

OPTIONS = {"noise": 2.0, "window": 15, "limit": 4.0, "reach": 5}


def scene(shape, seed):
    """Return noise with a bright, a dark and a short run, and the cores that they may hold."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 2.0, shape)
    core = np.zeros(shape, dtype=bool)
    image[20, 10:70] += 5.0
    core[20, 30] = True
    image[33, 25:80] -= 4.0
    core[33, 77:79] = True
    image[40, 40:48] += 30.0  # a star's residual: no run
    core[40, 44] = True
    image[50, 5:75] += 5.0  # no core on it
    image[:, 60] += 6.0
    core[8, 60] = True
    core[0, 0] = core[-1, -1] = True
    return image.astype(np.float32), core


@pytest.mark.parametrize("shape", [(70, 90), (64, 101)])
@pytest.mark.parametrize("seed", [1, 2])
def test_runs_against_the_twin(shape, seed):
    image, core = scene(shape, seed)
    found = streaks.runs(image, np.flatnonzero(core), **OPTIONS)
    twin = oracles.row_runs(image, core, **OPTIONS)
    twin |= oracles.row_runs(image.T, core.T, **OPTIONS).T
    np.testing.assert_array_equal(found, twin)
    assert found[20, 20:60].all()
    assert found[33, 35:78].all()
    assert found[20:50, 60].all()
    assert not found[40, :55].any()
    assert not found[50, 10:50].any()


def test_nothing_is_found_without_a_core():
    image, _ = scene((70, 90), 3)
    assert not streaks.runs(image, np.flatnonzero([]), **OPTIONS).any()


@pytest.mark.parametrize("radius", [1.0, 2.5, 6.0])
def test_growing_against_the_twin(radius):
    found = np.random.default_rng(4).uniform(size=(40, 53)) > 0.995
    found[0, 0] = found[-1, 20] = True
    flags = np.full(found.shape, 2, dtype=np.uint16)
    streaks.grow(found, radius, 8, flags)
    np.testing.assert_array_equal(flags, np.where(oracles.grown(found, radius), 10, 2))
