"""Cosmic rays: hits are found, and nothing that the sky did is."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.products.cells import Cells
from ks4diff.products.chip import RawChip
from ks4diff.products.errors import ConfigError
from ks4diff.products.image import MaskedImage
from ks4diff.stages.cosmics import CosmicsConfig, flag_by_comparison, flag_by_shape

CONFIG = CosmicsConfig()
SHAPE = (260, 300)


def stars(fwhm):
    rng = np.random.default_rng(7)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.zeros(SHAPE)
    s = fwhm / 2.3548
    for _ in range(60):
        px, py, flux = rng.uniform(0, 300), rng.uniform(0, 260), np.exp(rng.uniform(6, 12))
        image += flux / (2 * np.pi * s**2) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * s**2))
    return image


def visit(n, hits=150, fwhms=(3.6, 3.9, 4.2, 3.8)):
    rng = np.random.default_rng(8)
    images, truths = [], []
    for k in range(n):
        source = stars(fwhms[k])
        data = source + rng.normal(0, 1, SHAPE) * np.sqrt(100 + source / 2)
        truth = np.zeros(SHAPE, dtype=bool)
        for _ in range(hits):
            truth[rng.integers(SHAPE[0]), rng.integers(SHAPE[1])] = True
        data[truth] += rng.uniform(200, 3000, truth.sum())
        images.append(
            MaskedImage(
                data=data.astype(np.float32),
                sky_variance=Cells.constant(100.0, SHAPE),
                flags=np.zeros(SHAPE, dtype=np.uint16),
            )
        )
        truths.append(truth)
    return images, truths


@pytest.mark.parametrize("n", [2, 3, 4])
def test_comparison_finds_hits_and_spares_stars_of_another_seeing(n):
    images, truths = visit(n)
    found = flag_by_comparison(images, 0, CONFIG)
    elsewhere = np.any(truths[1:], axis=0)
    assert found[truths[0] & ~elsewhere].mean() > 0.9
    assert (found & ~truths[0]).sum() < 10


def test_comparison_follows_the_scales():
    images, truths = visit(3)
    dimmed = replace(images[1], data=images[1].data / 4, sky_variance=Cells.constant(100 / 16, SHAPE))
    expected = flag_by_comparison(images, 0, CONFIG)
    found = flag_by_comparison([images[0], dimmed, images[2]], 0, CONFIG, scales=[1, 4, 1])
    assert (found != expected).sum() <= 1
    assert flag_by_comparison([images[0], dimmed], 0, CONFIG).sum() > truths[0].sum() + 20


def test_masked_pixels_of_the_others_do_not_speak():
    images, _ = visit(2)
    blind = replace(images[1], flags=np.ones(SHAPE, dtype=np.uint16))
    assert not flag_by_comparison([images[0], blind], 0, CONFIG).any()


def test_shape_finds_hits_in_one_exposure():
    pytest.importorskip("astroscrappy", reason="the extra [cosmic] is not installed")
    images, truths = visit(1)
    raw = RawChip(data=images[0].data + 200, file="a", hdu="0", gain=2.0, read_noise=5.0)
    before = raw.data.copy()
    found = flag_by_shape(raw, CONFIG)
    assert found[truths[0]].mean() > 0.9
    # its neighbours' share is taken along
    assert (found & ~ndimage.binary_dilation(truths[0], np.ones((3, 3)))).mean() < 1e-3
    np.testing.assert_array_equal(raw.data, before)


def test_without_astroscrappy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "astroscrappy", None)
    with pytest.raises(ConfigError, match=r"pip install 'ks4diff\[cosmic\]'"):
        flag_by_shape(RawChip(data=np.ones((9, 9), np.float32), file="a", hdu="0"), CONFIG)
