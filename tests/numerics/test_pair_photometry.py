"""Weighted sums of one scene seen with two PSFs have the ratio of the images' scales, blends and all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.signal import convolve2d

from ks4diff.numerics.pair_photometry import common_weights, kernels_of, pair_sums
from tests.strategies import moffat

SHAPE = (122, 131)
FIRST, SECOND = moffat(25, 4.4), moffat(17, 2.9)
SCALE = 0.37
NARROW, WIDE = 3.0, 6.0
ONE = np.ones(1)
KERNELS = kernels_of(common_weights(FIRST[None], SECOND[None], NARROW, WIDE), ONE, ONE)
PLACES = np.array([[60, 71, 52], [58, 63, 66]])
NOISE = np.array([[16.0, 0.5], [1.0, 0.2]])


def scene():
    """Return two images of one scene: stars on pixels, blended, over a galaxy and a level of their own."""
    light = np.zeros(SHAPE)
    light[58, 60], light[60, 63], light[63, 71], light[66, 52] = 9000, 4000, 7000, 2500
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light += 60 * np.exp(-np.hypot(x - 66, y - 55) / 5.0)
    first, second = (convolve2d(light, psf, mode="same") for psf in (FIRST, SECOND))
    return (SCALE * first + 7.0).astype(np.float32), (second - 3.0).astype(np.float32)


def sums(images, flags=None, *, inner=8.0):
    flags = flags or (np.zeros(SHAPE, np.uint16),) * 2
    return pair_sums(images, flags, KERNELS, PLACES, NOISE, inner=inner)


def test_blends_and_levels_leave_the_ratio_alone():
    found = sums(scene())
    # cut at 2.5 sigma of the wide Gaussian instead of 4 the kernels lack 0.5 %
    np.testing.assert_allclose(found[0] / found[1], SCALE, rtol=5e-4)


def test_it_equals_filtering_both_images_with_the_others_psf():
    images = scene()
    half = KERNELS.shape[1] // 2
    offset = np.arange(-half - 20, half + 21)
    r2 = offset[:, None] ** 2 + offset**2
    weights = [np.exp(-0.5 * r2 / s**2) / (2 * np.pi * s**2) for s in (NARROW, WIDE)]
    weights = weights[0] - weights[1]
    for k, other in enumerate((SECOND, FIRST)):
        common = convolve2d(images[k] - np.median(images[k]), other, mode="same")
        there = [
            (weights * common[y + offset[0] : y + offset[-1] + 1, x + offset[0] : x + offset[-1] + 1]).sum()
            for x, y in PLACES.T[:1]
        ]
        own = convolve2d(weights, other[::-1, ::-1], mode="same")[20:-20, 20:-20]
        own -= own.mean()
        norm = (own / KERNELS[k])[half, half]
        assert sums(images)[k, 0] == pytest.approx(there[0] / norm, rel=0.01)


def test_a_star_of_flux_one_gives_one():
    images = tuple(np.zeros(SHAPE, np.float32) for _ in range(2))
    for image, psf in zip(images, (FIRST, SECOND), strict=True):
        half = psf.shape[0] // 2
        image[58 - half : 58 + half + 1, 60 - half : 60 + half + 1] = psf
    np.testing.assert_allclose(sums(images)[:2, 0], 1, rtol=2e-3)


def test_kernels_of_sums_are_those_of_the_summed_psfs():
    rng = np.random.default_rng(5)
    bases = [np.stack([psf, *rng.normal(0, 0.01, (2, *psf.shape))]) for psf in (FIRST, SECOND)]
    amplitudes = np.array([1.0, 0.3, -0.2]), np.array([1.0, -0.1, 0.4])
    summed = [np.tensordot(a, basis, 1)[None] for a, basis in zip(amplitudes, bases, strict=True)]
    found = kernels_of(common_weights(*bases, NARROW, WIDE), *amplitudes)
    own = kernels_of(common_weights(*summed, NARROW, WIDE), ONE, ONE)
    np.testing.assert_allclose(found, own, rtol=1e-9, atol=1e-12)


def test_errors_are_the_scatter():
    images = scene()
    clean = sums(images)
    pulls = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        noisy = [
            (a + rng.normal(0, np.sqrt(sky + per * np.maximum(a, 0)))).astype(np.float32)
            for a, (sky, per) in zip(images, NOISE, strict=True)
        ]
        found = sums(noisy)
        pulls.append((found[:2] - clean[:2]) / found[2:])
    pulls = np.array(pulls)
    assert np.abs(pulls.mean(axis=0)).max() < 4 / np.sqrt(80)
    assert pulls.std() == pytest.approx(1, abs=0.12)


def test_a_bad_pixel_near_forbids_and_a_far_one_counts_in_neither():
    images = scene()
    flags = np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, np.uint16)
    flags[1][58, 66] = 4
    images[1][58, 66] = np.nan
    found = sums(images, flags)
    # 6 px from the first, 7.1 from the second and 16 from the third
    assert np.isnan(found[:, :2]).all()
    assert found[0, 2] / found[1, 2] == pytest.approx(SCALE, rel=0.01)
    edge = pair_sums(images, flags, KERNELS, np.array([[5], [60]]), NOISE, inner=8.0)
    assert np.isnan(edge).all()


def test_threads_give_the_same_and_inputs_are_left_alone():
    images = scene()
    before = [a.copy() for a in images]
    alone = sums(images)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(sums, [images] * 8):
            np.testing.assert_array_equal(found, alone)
    for now, then in zip(images, before, strict=True):
        np.testing.assert_array_equal(now, then)
