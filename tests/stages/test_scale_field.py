"""The scale over a chip follows what stars prove, with errors as large as the scatter of the answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.stages.scale_field import ScaleConfig, scale_field
from ks4diff.stages.star_photometry import StarRatios

SHAPE = (4200, 3100)
STRIPS = [(k * 775, (k + 1) * 775, 0, SHAPE[0]) for k in range(4)]
CONFIG = ScaleConfig(systematic=0.0)


def bowl(x, y):
    u, v = 2 * x / SHAPE[1] - 1, 2 * y / SHAPE[0] - 1
    return 0.8 * (1 + 0.02 * u - 0.01 * v + 0.02 * (u * u + v * v))


def stars(seed, truth, *, n=900, noise=0.02, scatter=0.0, variables=0.05):
    """Return ratios of n stars: errors up to twice ``noise``, some variables far off."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    error = noise * rng.uniform(0.3, 2.0, n)
    value = truth(x, y) * (1 + np.hypot(error, scatter) * rng.normal(size=n))
    odd = rng.random(n) < variables
    value[odd] *= rng.choice([0.4, 0.7, 1.5, 3.0], odd.sum())
    return StarRatios(x=x, y=y, ratio=value, error=error * value, snr=1 / error)


def pulls(truth, runs=40, **options):
    out = []
    for seed in range(runs):
        found = scale_field(stars(seed, truth, **options), SHAPE, [], CONFIG)
        out.append((found.scale.values / truth(*found.scale.middles()) - 1) / found.error.values)
    return np.array(out)


@pytest.mark.parametrize("scatter", [0.0, 0.03])
def test_errors_are_honest_where_the_scale_is_constant(scatter):
    found = pulls(lambda x, y: 0.31 + 0 * x, scatter=scatter, n=300)
    assert 0.7 < found.std() < 1.2
    assert np.abs(found).max() < 5


def test_the_scale_is_that_of_bright_stars_where_noise_bends_ratios():
    """As in a median stack: a star of S/N s shows 1 + k / s times the ratio."""
    offs = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(0, SHAPE[1], 400), rng.uniform(0, SHAPE[0], 400)
        snr = np.exp(rng.uniform(np.log(40), np.log(600), 400))
        ratio = 0.5 * (1 + 0.8 / snr + np.hypot(1 / snr, 0.004) * rng.normal(size=400))
        given = StarRatios(x=x, y=y, ratio=ratio, error=0.5 / snr, snr=snr)
        found = scale_field(given, SHAPE, [], CONFIG)
        offs.append(np.median(found.scale.values) / (0.5 * (1 + 0.8 / CONFIG.reference_snr)) - 1)
        # 0.8 / 600 to 0.8 / 40, weighted: 0.4 % without the term
        assert abs(offs[-1]) < 4 * np.median(found.error.values)
    assert abs(np.mean(offs)) < 0.001


def test_a_bowl_is_followed():
    found = scale_field(stars(3, bowl, n=3000, noise=0.01), SHAPE, [], CONFIG)
    np.testing.assert_allclose(found.scale.values, bowl(*found.scale.middles()), rtol=0.003)
    assert 0.6 < pulls(bowl).std() < 1.3


def test_a_step_of_the_template_is_followed_by_cells():
    def stepped(x, y):
        return np.where(y > 2100, 0.8, 0.816)

    found = scale_field(stars(4, stepped, n=6000, noise=0.01), SHAPE, [], CONFIG)
    # in the middles of the cells of 1024 px; in between the step is a ramp
    x, y = (a.ravel() for a in Cells(values=np.zeros(cell_grid(SHAPE, CELL_PIX)), shape=SHAPE).middles())
    np.testing.assert_allclose(found.scale.at(x, y), stepped(x, y), rtol=0.004)


def test_amplifiers_that_all_differ_are_told_from_a_slope_up_to_the_border():
    factors = np.array([0.985, 0.99, 0.99, 0.98, 0.98, 0.97, 1.06, 1.045])
    edges = np.linspace(0, SHAPE[1], 9).astype(int)
    boxes = [(int(a), int(b), 0, SHAPE[0]) for a, b in itertools.pairwise(edges)]

    def stepped(x, y):
        return 0.5 * factors[np.clip(np.searchsorted(edges, x, side="right") - 1, 0, 7)] + 0 * y

    found = scale_field(stars(9, stepped, n=1500, noise=0.015), SHAPE, boxes, CONFIG)
    for k, (x0, x1, _, _) in enumerate(boxes):
        x, y = np.full(5, (x0 + x1) / 2), np.linspace(0.1, 0.9, 5) * SHAPE[0]
        model = found.scale.at(x, y) * found.factors[k][0]
        assert abs(model.mean() / (0.5 * factors[k]) - 1) < 0.006


def test_few_stars_hold_no_more_than_a_believable_slope():
    found = scale_field(stars(5, bowl, n=11, variables=0.0), SHAPE, [], CONFIG)
    values = found.scale.values
    assert np.abs(np.diff(values, 2, axis=0)).max() < 1e-6
    assert np.abs(np.diff(values, 2, axis=1)).max() < 1e-6
    # two standard deviations of either slope
    believed = CONFIG.slope * SHAPE[0] / 9232
    assert np.ptp(values) / np.median(values) < 2 * 2 * 2 * believed
    # the corners are known worse than the middle, by what no star has shown
    assert found.error.values[0, 0] > np.hypot(found.error.values[8, 6], believed / 2)
    assert (found.error.values > 0.004).all()


def test_variables_do_not_count():
    clean = scale_field(stars(6, bowl, variables=0.0), SHAPE, [], CONFIG)
    spoiled = scale_field(stars(6, bowl, variables=0.25), SHAPE, [], CONFIG)
    off = (spoiled.scale.values / clean.scale.values - 1) / clean.error.values
    assert np.abs(off).max() < 3


def test_an_amplifier_that_stands_off_is_found_and_no_other():
    def gains(x, y):
        return bowl(x, y) * np.where((x >= 1550) & (x < 2325), 1.03, 1.0)

    found = scale_field(stars(7, gains, n=4000), SHAPE, STRIPS, CONFIG)
    factor, error = np.array(found.factors).T
    assert factor[2] == pytest.approx(1.03, abs=4 * error[2])
    assert error[2] < 0.005
    assert factor[[0, 1, 3]].tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(found.scale.values, bowl(*found.scale.middles()), rtol=0.006)


def test_equal_amplifiers_have_no_factors():
    false = 0
    for seed in range(30):
        found = scale_field(stars(seed, bowl, n=1500), SHAPE, STRIPS, CONFIG)
        false += sum(factor != 1 for factor, _ in found.factors)
    assert false <= 2


def test_unlike_images_have_larger_errors():
    same, unlike = (
        scale_field(stars(8, bowl), SHAPE, [], ScaleConfig(), width_ratio=ratio) for ratio in (1.0, 1.6)
    )
    assert (unlike.error.values > same.error.values).all()
    np.testing.assert_array_equal(unlike.scale.values, same.scale.values)
