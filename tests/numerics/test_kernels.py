"""Kernels give the same in Python as compiled and from four threads as from one, and leave their inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ks4diff.numerics import inpaint, lanczos, stars_fit
from ks4diff.numerics.peaks import find_peaks, refine_peaks
from tests.strategies import moffat, turned_nodes

PSF = moffat(15, 3.0)


def sky(seed=1, shape=(53, 64)):
    rng = np.random.default_rng(seed)
    stars = np.stack([rng.uniform(0, shape[1], 12), rng.uniform(0, shape[0], 12), rng.uniform(200, 9000, 12)])
    image = (stars_fit.draw_stars(shape, PSF, stars) + rng.normal(0, 5, shape)).astype(np.float32)
    return image, rng.random(shape) > 0.02, np.full(shape, 25, dtype=np.float32), stars


def run_resample(image, good, variance, stars):
    nodes = turned_nodes((31, 29), start=(8.0, 6.0))
    return lanczos.resample(image, np.where(good, 0, 2).astype(np.uint16), nodes, (31, 29))


def run_fill(image, good, variance, stars):
    return (inpaint.fill(image, ~good, sweeps=5),)


def run_fit(image, good, variance, stars):
    return stars_fit.fit_stars(image, good, variance, PSF, stars, core=3, sweeps=2)


def run_stamps(image, good, variance, stars):
    return stars_fit.star_stamps(image.astype(np.float64), good, PSF, stars[:, :3])


def run_draw(image, good, variance, stars):
    return (stars_fit.draw_stars(image.shape, PSF, stars),)


def run_peaks(image, good, variance, stars):
    position = find_peaks(image, good, 50.0, 3)
    return position, *refine_peaks(image, position)


RUNS = [run_resample, run_fill, run_fit, run_stamps, run_draw, run_peaks]
KERNELS = [
    (module, name, kernel)
    for module in (inpaint, lanczos, stars_fit)
    for name, kernel in vars(module).items()
    if hasattr(kernel, "py_func")
]


def test_all_kernels_are_found():
    assert {name for _, name, _ in KERNELS} >= {"_relax", "_resample", "_sweep", "_collect", "_add_stars"}


@pytest.mark.parametrize("run", RUNS[:5])
def test_python_gives_what_the_compiled_kernel_gives(run, monkeypatch):
    compiled = run(*sky())
    for module, name, kernel in KERNELS:
        monkeypatch.setattr(module, name, kernel.py_func)
    plain = run(*sky())
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * max(np.abs(other).max(), 1))


@pytest.mark.parametrize("run", RUNS)
def test_inputs_stay_and_threads_agree(run):
    inputs = [sky(seed) for seed in range(4)]
    copies = [[array.copy() for array in arrays] for arrays in inputs]
    alone = [run(*arrays) for arrays in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: run(*inputs[k % 4]), range(24)))
    for k, result in enumerate(together):
        for one, other in zip(result, alone[k % 4], strict=True):
            np.testing.assert_array_equal(one, other)
    for arrays, copied in zip(inputs, copies, strict=True):
        for one, other in zip(arrays, copied, strict=True):
            np.testing.assert_array_equal(one, other)


def test_three_unknowns_are_solved():
    rng = np.random.default_rng(4)
    for _ in range(20):
        design = rng.normal(size=(6, 3))
        a, b = design.T @ design, rng.normal(size=3)
        np.testing.assert_allclose(
            stars_fit._solved(a[np.triu_indices(3)], b), np.linalg.solve(a, b), rtol=1e-9
        )
    assert np.isnan(stars_fit._solved(np.ones(6), np.ones(3))).all()
