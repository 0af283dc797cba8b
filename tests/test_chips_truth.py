"""The harness's truth (benchmarks.chips_truth) against tiles that the simulator draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.chips_measure import disc
from benchmarks.chips_sky import chip_config, tile_plan
from benchmarks.chips_truth import HALF, Geometry, _noisy_median
from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.pipeline.simulate import distortions
from ks4diff.stages.sim.sky import CATALOG
from ks4diff.stages.sim.template import make_tile

MAG = 14.5  # a million times the sky's noise, below saturation
SHAPE = (256, 384)


def drawn(combine: str):
    """Return (geometry, the tile on the chip's pixels, star pixels x, y) of three bright stars."""
    config = chip_config(9)
    clean = replace(config.detector, cosmic_rays_mpix=0.0, trails=0.0, saturation_adu=1e9, fringe=0.0)
    # without the mesh of a real stack, which eats a bright star's wings
    template = replace(config.template, combine=combine, background_mesh_pix=4096, gain_error=0.0)
    config = replace(config, size=SHAPE[::-1], offset=(-1, -1), detector=clean, template=template)
    geometry = Geometry(config, true_sn=None)
    x, y = np.array([90.05, 201.0, 299.96]), np.array([120.0, 130.93, 128.04])
    ra, dec = geometry.wcs.all_pix2world(x, y, 0)
    catalog = np.zeros(3, CATALOG)
    catalog["ra"], catalog["dec"] = ra, dec
    catalog["mag"] = catalog["template_mag"] = MAG
    distortion = distortions(config)
    plan = tile_plan(config, distortion)
    made = make_tile(config, plan, catalog, distortion, lambda s: np.empty(s, dtype=np.float32))
    nx, ny = node_grid(SHAPE)
    nodes = geometry.template_position(plan.wcs, nx.ravel(), ny.ravel()).reshape(2, *nx.shape)
    tile = made.tile.data
    seen, _ = resample(tile, np.zeros(tile.shape, dtype=np.uint16), nodes, SHAPE)
    return geometry, seen, (x, y, ra, dec)


def test_the_mean_of_noisy_medians_is_the_expectation():
    rng = np.random.default_rng(3)
    r = np.hypot(*np.mgrid[-12:13, -12:13])
    planes = np.stack([np.exp(-0.5 * (r / s) ** 2) / (2 * np.pi * s**2) for s in (1.2, 1.6, 1.9)])
    share, sky, sn = np.full(planes.shape, 0.4), np.array([90.0, 100.0, 110.0]), 60.0
    expected = _noisy_median(planes, share, sky, sn)
    # the flux of that S/N, by bisection on its definition
    low, high = 1.0, 1e8
    for _ in range(60):
        flux = np.sqrt(low * high)
        light = flux * planes.mean(axis=0)
        reached = np.sqrt((3 * light**2 / (100.0 + light)).sum())
        low, high = (flux, high) if reached < sn else (low, flux)
    sigma = np.sqrt(share * (sky[:, None, None] + flux * planes)) / flux
    draws = np.median(planes[None] + sigma * rng.standard_normal((20_000, *planes.shape)), axis=1)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - expected) / error).max() < 5
    assert (np.abs(np.median(planes, axis=0) - expected) / error).max() > 20


@pytest.mark.parametrize("combine", ["mean", "median"])
def test_a_bright_star_of_a_tile_looks_as_the_truth_says(combine):
    pytest.importorskip("galsim", reason="pip install 'ks4diff[simulate]'")
    geometry, seen, (x, y, ra, dec) = drawn(combine)
    stamps = geometry.template_stamps(x, y)
    counts = geometry.template_counts(ra, dec, np.full(3, MAG)) / geometry.area(x, y)
    sky = np.median(seen)
    for k in range(3):
        px, py = int(np.rint(x[k])), int(np.rint(y[k]))
        # stamps are centred on the star, the drawn ones lie a twentieth of a pixel off: discs are compared
        for radius in (8.0, 16.0):
            light = (seen - sky)[py - HALF : py + HALF + 1, px - HALF : px + HALF + 1][disc(radius)].sum()
            true = counts[k] * stamps[k][disc(radius)].sum()
            assert light / true == pytest.approx(1, abs=0.002), (k, radius)
