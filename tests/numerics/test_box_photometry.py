"""Fluxes of chosen stars are unbiased to the errors that they come with, whatever stands beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ks4diff.numerics.box_photometry import box_fluxes
from tests import oracles
from tests.strategies import moffat

SHAPE = (61, 74)
PSF = moffat(21, 3.4)
STARS = np.array(
    [[20.3, 23.9, 50.6, 60.0], [30.8, 33.1, 31.2, 12.4], [9000.0, 3000.0, 5000.0, 800.0]]
)  # the first two are blended
NEAR = np.array([[1, -1], [0, -1], [-1, -1]])
TARGETS = np.array([0, 1, 2])
CORE = 7


def measured(image, flags=None, stars=STARS, *, sigma=5.0, per_count=0.0, fraction=0.0, targets=TARGETS):
    flags = np.zeros(SHAPE, np.uint16) if flags is None else flags
    noise = np.repeat([[sigma**2], [per_count], [fraction]], len(targets), axis=1)
    return box_fluxes(image, flags, PSF, stars[:2], targets, NEAR[: len(targets)], noise, core=CORE)


def light(level=0.0, stars=STARS):
    return oracles.draw_stars(SHAPE, PSF, stars) + level


def test_noiseless_fluxes_are_exact_and_the_level_is_taken_out():
    found = measured(light(level=37.0).astype(np.float32))
    # the oracle draws by Lanczos weights that are not rounded to 1/4096 px
    np.testing.assert_allclose(found[0], STARS[2, :3], rtol=2e-3)
    assert np.abs(found[2:4]).max() < 0.01
    np.testing.assert_array_equal(found[4], 1.0)


def test_a_star_beside_its_place_is_followed():
    moved = STARS.copy()
    moved[:2] += [[0.12], [-0.09]]
    found = measured(light(stars=moved).astype(np.float32))
    # slopes over 2 px are a tenth flatter than the PSF, so moves come out a tenth larger
    np.testing.assert_allclose(found[2, 2], 0.12, atol=0.02)
    np.testing.assert_allclose(found[3, 2], -0.09, atol=0.02)
    # a move of 0.15 px, linear only, keeps 99.5 % of the flux
    np.testing.assert_allclose(found[0, 2], STARS[2, 2], rtol=5e-3)


def test_errors_are_the_scatter():
    pulls = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        gain = 2.0
        image = light(level=3.0) + rng.normal(0, np.sqrt(25 + np.maximum(light(), 0) / gain))
        found = measured(image.astype(np.float32), per_count=1 / gain)
        pulls.append((found[0] - STARS[2, :3]) / found[1])
    pulls = np.array(pulls)
    assert np.abs(pulls.mean(axis=0)).max() < 4 / np.sqrt(60)
    assert pulls.std() == pytest.approx(1.0, abs=3 / np.sqrt(2 * pulls.size))


def test_it_equals_a_plain_least_squares_fit():
    rng = np.random.default_rng(5)
    image = (light(level=3.0) + rng.normal(0, 5, SHAPE)).astype(np.float32)
    found = measured(image, targets=np.array([2]))
    x, y = STARS[:2, 2]
    at = round(x), round(y)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disc = np.hypot(columns - at[0], rows - at[1]) <= CORE
    place = np.array([[x], [y], [1.0]])
    own = oracles.draw_stars(SHAPE, PSF, place)
    slope = [0.5 * (np.roll(own, 1, axis) - np.roll(own, -1, axis)) for axis in (1, 0)]
    design = np.stack([own, *slope, np.ones(SHAPE)])[:, disc].T
    solution, *_ = np.linalg.lstsq(design, image[disc].astype(float), rcond=None)
    error = 5 * np.sqrt(np.linalg.inv(design.T @ design)[0, 0])
    assert found[0, 0] == pytest.approx(solution[0], rel=1e-3)
    assert found[1, 0] == pytest.approx(error, rel=1e-3)
    assert found[2, 0] == pytest.approx(solution[1] / solution[0], abs=1e-3)


def test_masked_pixels_do_not_count():
    image = light().astype(np.float32)
    flags = np.zeros(SHAPE, np.uint16)
    flags[29:32, 47:50] = 4
    image[flags != 0] = np.nan
    found = measured(image, flags)
    assert found[0, 2] == pytest.approx(STARS[2, 2], rel=3e-3)
    assert 0.8 < found[4, 2] < 1
    flags[25:38, 44:57] = 4
    assert np.isnan(measured(image, flags)[0, 2])


def test_a_hole_in_the_sky_is_no_star():
    assert np.isnan(measured(-light().astype(np.float32))[0]).all()


def test_beyond_the_border_there_is_nothing():
    edge = np.array([[1.2], [60.3], [4000.0]])
    found = measured(light(stars=edge).astype(np.float32), stars=edge, targets=np.array([0]))
    assert found[4, 0] < 0.5
    assert np.isnan(found[0, 0])


def test_positions_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        measured(
            light().astype(np.float32), stars=np.where(STARS > 8999, np.nan, STARS) * [[np.nan], [1], [1]]
        )


def test_threads_give_the_same_and_inputs_are_left_alone():
    image = light(level=3.0).astype(np.float32)
    before, places = image.copy(), STARS.copy()
    alone = measured(image)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(measured, [image] * 8):
            np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(STARS, places)
