"""Columns of candidates against truth: everything about the pair is known, and what is at each place too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.chip import StarList
from ks4diff.products.image import PixelFlag
from ks4diff.stages.detect import DetectConfig, detect
from ks4diff.stages.measure import MeasureConfig, measure
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig
from tests import skies
from tests.known_pairs import Plan, Side

SHAPE = (620, 700)
SHARP = skies.Seeing(fwhm=3.4, ratio=0.85, angle_deg=30)
BLUNT = skies.Seeing(fwhm=4.2, ratio=0.85, angle_deg=30)
SCALE = 2.0  # science counts per template count
STEP = 46


def grid(n):
    """Return places well apart, n of them, at all phases of a pixel."""
    rng = np.random.default_rng(9)
    columns = (SHAPE[1] - 60) // STEP
    k = np.arange(n)
    assert n <= columns * ((SHAPE[0] - 60) // STEP)
    return 40 + STEP * (k % columns) + rng.uniform(0, 1, n), 40 + STEP * (k // columns) + rng.uniform(0, 1, n)


def measured(science, template, *, seed=1, flags=None, stars=None):
    """Return the candidate table of what two images of expected light (counts of each) make."""
    sides = Side(psf=BLUNT.stamp(41)), Side(psf=SHARP.stamp(41), sky=150.0)
    rng = np.random.default_rng(seed)
    images = [side.shown(SHAPE, light, rng) for side, light in zip(sides, (science, template), strict=True)]
    known = Plan(science=sides[0], template=sides[1], scale=SCALE).known(*images, (flags, None))
    if stars is not None:
        known = replace(known, template=replace(known.template, stars=stars))
    difference = subtract(*known.inputs, SubtractConfig())
    found = detect(difference, DetectConfig())
    return measure(found, known.chip, known.template, difference, MeasureConfig()).table


def nearest(table, x, y):
    """Return the row of the candidate nearest to each place, all within a pixel and a half."""
    away = np.hypot(table["x"][:, None] - x, table["y"][:, None] - y)
    assert away.min(axis=0).max() < 1.5
    return table[away.argmin(axis=0)]


@pytest.fixture(scope="module")
def changes():
    """Return (rows, x, y, change, host): sources that grew on hosts of every brightness."""
    x, y = grid(150)
    rng = np.random.default_rng(2)
    change, host = rng.uniform(6e3, 2e4, 150), rng.uniform(0, 2e4, 150)
    science = skies.draw(SHAPE, x, y, change + host, BLUNT)
    table = measured(science, skies.draw(SHAPE, x, y, host / SCALE, SHARP))
    return nearest(table, x, y), x, y, change, host


class TestFluxesAndPlaces:
    def test_errors_of_the_place_are_those_of_many_sources(self, changes):
        rows, x, y, _, _ = changes
        off = np.stack([rows["x"] - x, rows["y"] - y], axis=1)
        covariance = np.empty((len(rows), 2, 2))
        covariance[:, 0, 0], covariance[:, 1, 1] = rows["x_err"] ** 2, rows["y_err"] ** 2
        covariance[:, 0, 1] = covariance[:, 1, 0] = rows["xy_cov"]
        chi2 = np.einsum("ni,nij,nj->n", off, np.linalg.inv(covariance), off)
        assert chi2.mean() == pytest.approx(2, abs=0.6)  # 150 draws of a mean of 2: 0.16
        # an image longer along 30 degrees is placed worse along them
        assert (rows["xy_cov"] > 0).all()
        assert off.mean(axis=0) == pytest.approx([0, 0], abs=0.03)

    @pytest.mark.parametrize(
        ("name", "truth"),
        [
            ("flux", lambda change, host: change),
            ("sci_flux", lambda change, host: change + host),
            ("tmpl_psf_flux", lambda change, host: host),
        ],
    )
    def test_psf_fluxes_are_true_within_their_errors(self, changes, name, truth):
        rows, _, _, change, host = changes
        pull = (rows[name] - truth(change, host)) / rows[f"{name}_err"]
        assert pull.mean() == pytest.approx(0, abs=0.35)
        assert pull.std() == pytest.approx(1, abs=0.25)

    @pytest.mark.parametrize(
        ("name", "seeing", "truth"),
        [
            ("sci_ap_flux", BLUNT, lambda change, host: change + host),
            ("template_flux", SHARP, lambda change, host: host),
        ],
    )
    def test_aperture_fluxes_hold_the_light_within_their_circle(self, changes, name, seeing, truth):
        rows, _, _, change, host = changes
        share = rows[name] / np.maximum(truth(change, host), 1)
        bright = truth(change, host) > 1e4
        pull = (rows[name] - np.median(share[bright]) * truth(change, host)) / rows[f"{name}_err"]
        # the circle is centred on a pixel: how much light it holds depends on the place in it, by 2 %
        assert np.median(share[bright]) == pytest.approx(0.93, abs=0.06)
        assert np.median(np.abs(pull)) < 1.2
        assert pull.mean() == pytest.approx(0, abs=0.5)

    def test_the_aperture_of_the_difference_agrees_with_its_psf_flux(self, changes):
        rows, _, _, change, _ = changes
        assert np.median(rows["ap_flux"] / change) == pytest.approx(0.93, abs=0.07)
        pull = (rows["ap_flux"] - np.median(rows["ap_flux"] / change) * change) / rows["ap_flux_err"]
        assert 0.5 < pull.std() < 1.6

    def test_one_source_is_one_candidate_however_bright(self):
        x, y = grid(40)
        change = np.geomspace(1e4, 2e6, 40)
        table = measured(skies.draw(SHAPE, x, y, change, BLUNT), np.zeros(SHAPE))
        away = np.hypot(table["x"][:, None] - x, table["y"][:, None] - y)
        assert ((away < 20).sum(axis=0) == 1).all()
        assert table["scorr"].max() > 800


class TestFits:
    def test_a_star_that_moved_is_a_dipole_of_its_flux_length_and_direction(self):
        x, y = grid(60)
        angle, flux = np.linspace(0, 2 * np.pi, 60, endpoint=False), 2e5
        dx, dy = 2.5 * np.cos(angle), 2.5 * np.sin(angle)
        table = measured(
            skies.draw(SHAPE, x + dx, y + dy, np.full(60, flux), BLUNT),
            skies.draw(SHAPE, x, y, np.full(60, flux / SCALE), SHARP),
        )
        away = np.hypot(table["x"][:, None] - x, table["y"][:, None] - y)
        rows = table[away.argmin(axis=0)]
        assert away.min(axis=0).max() < 6
        assert np.median(rows["dipole_sep"]) == pytest.approx(2.5, abs=0.15)
        assert np.percentile(np.abs(rows["dipole_sep"] - 2.5), 95) < 0.4
        turn = (rows["dipole_angle"] - np.degrees(angle) + 180) % 360 - 180
        assert np.abs(turn).max() < 12
        assert np.median(rows["dipole_pos_flux"]) == pytest.approx(flux, rel=0.15)
        assert np.median(rows["dipole_neg_flux"]) == pytest.approx(-flux, rel=0.15)
        assert rows["dipole_dchi2"].min() > 50
        assert (rows["opposite"] > 0.4).mean() > 0.9

    def test_a_streak_has_its_length_and_direction_and_a_point_has_none(self, changes):
        x, y = grid(48)
        x, y = x[::2], y[::2]
        angle = np.linspace(0, 180, len(x), endpoint=False)
        steps = np.linspace(-9, 9, 37)
        along = np.radians(angle)
        places = [
            (px + s * np.cos(a), py + s * np.sin(a))
            for px, py, a in zip(x, y, along, strict=True)
            for s in steps
        ]
        light = np.full(len(places), 6e4 / len(steps))
        table = measured(skies.draw(SHAPE, *np.array(places).T, light, BLUNT), np.zeros(SHAPE))
        away = np.hypot(table["x"][:, None] - x, table["y"][:, None] - y)
        strongest = [int(np.flatnonzero(away[:, k] < 12)[0]) for k in range(len(x))]
        rows = table[strongest]
        assert np.median(rows["trail_length"]) == pytest.approx(18, abs=3)
        turn = (rows["trail_angle"] - angle + 90) % 180 - 90
        assert np.median(np.abs(turn)) < 4
        assert rows["trail_dchi2"].min() > 100
        points = changes[0]
        assert np.median(points["trail_length"]) < 3
        assert np.median(points["trail_dchi2"]) < 6
        assert np.median(points["dipole_dchi2"]) < 15

    def test_moments_are_those_of_the_psf_and_turn_with_it(self, changes):
        rows = changes[0]
        assert np.median(rows["elongation"]) == pytest.approx(1 / 0.85, abs=0.08)
        angle = 0.5 * np.degrees(np.arctan2(2 * rows["ixy"], rows["ixx"] - rows["iyy"]))
        assert np.median(angle) == pytest.approx(30, abs=6)


class TestSurroundings:
    def test_the_nearest_source_of_the_template_and_whether_it_is_wide(self):
        x, y = grid(20)
        flux = np.full(20, 1e4)
        own = np.linspace(500.0, 900.0, 20)
        width = np.where(np.arange(20) % 2, 3.4, 6.0)
        stars = StarList(x=x + 3.0, y=y - 4.0, flux=own, fwhm=width, clean=np.arange(20) % 2 == 1)
        rows = nearest(measured(skies.draw(SHAPE, x, y, flux, BLUNT), np.zeros(SHAPE), stars=stars), x, y)
        assert rows["source_distance"] == pytest.approx(5.0, abs=0.3)
        assert rows["source_flux"] == pytest.approx(own * SCALE, rel=1e-5)
        assert rows["source_extent"] == pytest.approx(width / 3.4, rel=1e-5)
        assert np.isnan(rows["source_distance_arcsec"]).all()

    def test_distances_to_saturation_and_border(self):
        x, y = grid(6)
        flags = np.zeros(SHAPE, dtype=np.uint16)
        flags[round(y[2]), round(x[2]) + 12] = PixelFlag.SATURATED
        light = skies.draw(SHAPE, x, y, np.full(6, 1e4), BLUNT)
        rows = nearest(measured(light, np.zeros(SHAPE), flags=flags), x, y)
        assert rows["saturated_distance"][2] == pytest.approx(12, abs=1.1)
        far = np.hypot(x - round(x[2]) - 12, y - round(y[2]))
        assert rows["saturated_distance"] == pytest.approx(np.minimum(far, 100), abs=1.1)
        border = np.minimum.reduce([x, y, SHAPE[1] - 1 - x, SHAPE[0] - 1 - y])
        assert rows["edge_distance"] == pytest.approx(border, abs=0.3)


def test_template_fluxes_take_the_scale_of_their_place():
    """A scale that rises by a fifth over the image: fluxes with the median's alone would not."""
    x, y = grid(40)
    sides = Side(psf=BLUNT.stamp(41)), Side(psf=SHARP.stamp(41), sky=150.0)
    rng = np.random.default_rng(5)
    images = (skies.draw(SHAPE, x, y, np.full(40, f), s) for f, s in ((2e4, BLUNT), (5e3, SHARP)))
    shown = [side.shown(SHAPE, light, rng) for side, light in zip(sides, images, strict=True)]
    known = Plan(science=sides[0], template=sides[1], scale=SCALE).known(*shown)
    even = subtract(*known.inputs, SubtractConfig())
    risen = replace(even, scale=Cells(values=SCALE * np.array([[0.9, 1.1]]), shape=SHAPE))
    found = detect(even, DetectConfig())
    one, two = (
        measure(found, known.chip, known.template, made, MeasureConfig()).table for made in (even, risen)
    )
    ratio = risen.scale.at(one["x"], one["y"]) / SCALE
    assert np.ptp(ratio) > 0.15
    for name in ("tmpl_psf_flux", "tmpl_psf_flux_err", "template_flux"):
        np.testing.assert_allclose(two[name], one[name] * ratio, rtol=1e-5)
