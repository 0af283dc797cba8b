"""Stars are found where they are, and what is no clean star is not called one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from ks4diff.numerics.star_finder import find_maxima, measure_spots, touches_flag
from ks4diff.products.errors import SkipChip
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.stars import StarsConfig, find_stars, isolated
from tests import skies

SHAPE = (310, 350)


def lone_stars(seed, n=36):
    x, y = skies.apart(seed, SHAPE, n, skies.NO_STARS, distance=38)
    return skies.Stars(x=x, y=y, flux=np.random.default_rng(seed).uniform(3e4, 1.2e5, n))


def reduced(stars, epoch, seed, **facts):
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, epoch, seed)
    return reduce_chip(skies.raw_chip(data, epoch, **facts), BackgroundConfig())


def nearest(found, x, y):
    return cKDTree(np.stack([found.x, found.y], 1)).query(np.stack([x, y], 1))


@pytest.mark.parametrize("epoch", [skies.BLURRED, skies.SHARP], ids=["gauss", "moffat"])
def test_lone_stars_are_all_found_where_they_are(epoch):
    stars = lone_stars(5)
    found = find_stars(reduced(stars, epoch, 5), StarsConfig())
    assert len(found) == len(stars.x)
    distance, which = nearest(found, stars.x, stars.y)
    assert distance.max() < 0.05
    assert len(set(which)) == len(stars.x)
    assert (np.diff(found.flux) <= 0).all()


@pytest.mark.parametrize(
    "seeing",
    [
        skies.Seeing(fwhm=2.2, beta=3.5, ratio=0.9, angle_deg=20),
        skies.Seeing(fwhm=3.3, beta=3.0),
        skies.Seeing(fwhm=5.0, ratio=0.85, angle_deg=-50),
        skies.Seeing(fwhm=8.0, beta=4.0),
    ],
    ids=lambda seeing: str(seeing.fwhm),
)
def test_bright_stars_have_their_places_without_bias_and_their_width(seeing):
    # 36 stars at all places within a pixel, S/N 1000: the noise of one is 0.005 px at worst
    stars = lone_stars(8)
    epoch = skies.Epoch(seeing=seeing, throughput=20.0, gain=1.5, sky=100.0)
    found = find_stars(reduced(stars, epoch, 8), StarsConfig())
    distance, which = nearest(found, stars.x, stars.y)
    assert distance.max() < 0.03
    assert np.median(distance) < 0.01
    error = np.stack([found.x[which] - stars.x, found.y[which] - stars.y])
    assert np.abs(error.mean(axis=1)).max() < 0.003
    # the pixel widens a star of FWHM 2.2 px by 7 %, a Moffat's wings by up to 10 %
    assert 0.99 < np.median(found.fwhm[which]) / seeing.fwhm < 1.2
    assert found.clean.sum() >= 30


def test_the_centre_within_the_pixel_is_no_matter():
    seeing = skies.Seeing(fwhm=2.2)
    for x, y in ((20.0, 21.0), (20.25, 21.4), (20.5, 20.5), (19.7, 21.1)):
        image = skies.draw((41, 43), [x], [y], [1e5], seeing).astype(np.float32)
        spots = np.array([[y + 0.15, x - 0.12]])
        got = measure_spots(image, spots, 1.1)
        assert np.hypot(got["x"][0] - x, got["y"][0] - y) < 2e-3


def test_moments_of_a_gaussian_are_its_own():
    seeing = skies.Seeing(fwhm=6.0, ratio=0.7, angle_deg=30)
    image = skies.draw((81, 91), [44.3], [40.6], [1e5], seeing).astype(np.float32)
    got = measure_spots(image, np.array([[40.5, 44.4]]), 2.4)
    assert got["flux"][0] == pytest.approx(1e5, rel=0.01)
    assert got["ratio"][0] == pytest.approx(0.7, abs=0.01)
    assert got["fwhm"][0] ** 2 == pytest.approx(0.5 * 36 * (0.7 + 1 / 0.7), rel=0.03)
    assert got["peak"][0] == image.max()


def test_noise_has_no_stars_and_strips_change_nothing():
    noise = np.random.default_rng(9).normal(0, 3.0, (700, 820)).astype(np.float32)
    good = np.ones(noise.shape, dtype=bool)
    variance = np.full(noise.shape, 9.0, dtype=np.float32)

    def find(threshold, *borders):
        parts = [
            find_maxima(
                noise,
                variance[a:b],
                good[a:b],
                (a, b),
                width_pix=1.2,
                threshold=threshold,
                per_source=0.0,
            )
            for a, b in pairwise(borders)
        ]
        return np.concatenate(parts)

    assert len(find(6.0, 0, 700)) == 0
    some = find(3.0, 0, 700)
    # the rate of peaks above 3 sigma: each of some 6 px² of a maximum's own
    assert 50 < len(some) < 1000
    np.testing.assert_allclose(find(3.0, 0, 1, 97, 98, 300, 700), some, atol=1e-9)


def test_two_stars_one_width_apart_are_two():
    seeing = skies.Seeing(fwhm=5.0)
    pair = skies.Stars(x=np.array([100.2, 105.9]), y=np.array([150.4, 152.0]), flux=np.array([6e4, 4e4]))
    others = lone_stars(10, n=20)
    far = np.hypot(others.x - 103, others.y - 151) > 40
    stars = skies.Stars(x=others.x[far], y=others.y[far], flux=others.flux[far]) + pair
    found = find_stars(reduced(stars, skies.Epoch(seeing=seeing), 10), StarsConfig())
    distance, which = nearest(found, pair.x, pair.y)
    assert which[0] != which[1]
    assert distance.max() < 0.5


def test_what_may_not_build_a_psf_is_not_clean():
    lone = lone_stars(6)
    # a close pair, a star cut by the border and a saturated one
    pair = skies.Stars(x=lone.x[:1] + 5.1, y=lone.y[:1] - 2.6, flux=lone.flux[:1] * 0.7)
    cut = skies.Stars(x=np.array([2.3]), y=np.array([171.4]), flux=np.array([1e5]))
    full = int(np.argmax(lone.flux))
    level = 0.9 * skies.SHARP.throughput * lone.flux[full] * skies.SHARP.seeing.stamp(5).max()
    chip = reduced(lone + pair + cut, skies.SHARP, 6, saturation=level + skies.SHARP.sky)
    found = find_stars(chip, StarsConfig())
    assert found.clean.sum() > 20
    clean = np.stack([found.x, found.y], 1)[found.clean]
    for x, y in ((lone.x[0], lone.y[0]), (pair.x[0], pair.y[0]), (2.3, 171.4), (lone.x[full], lone.y[full])):
        assert np.hypot(*(clean - (x, y)).T).min() > 3


def test_hits_and_galaxies_are_not_clean():
    stars = lone_stars(11)
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, skies.SHARP, 11)
    rng = np.random.default_rng(11)
    hits = skies.apart(12, SHAPE, 40, stars, distance=12)
    for x, y in np.rint(hits.T).astype(int):
        data[y, x] += rng.uniform(500, 20000)
    galaxies = skies.apart(13, SHAPE, 3, stars, distance=20)
    data = data + skies.draw(SHAPE, *galaxies, [1e5] * 3, skies.Seeing(fwhm=7.5)).astype(np.float32)
    chip = reduce_chip(skies.raw_chip(data, skies.SHARP), BackgroundConfig())
    found = find_stars(chip, StarsConfig())
    distance, _ = nearest(found, *hits)
    assert (distance > 2).mean() > 0.9
    clean = replace(found, x=found.x[found.clean], y=found.y[found.clean])
    assert len(clean.x) > 20
    assert nearest(clean, *galaxies)[0].min() > 5


def test_a_bad_column_a_track_and_a_full_core_are_not_many_stars():
    stars = lone_stars(16)
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, skies.SHARP, 16)
    x = int(max(range(40, 300), key=lambda column: np.abs(stars.x - column).min()))
    data[:, x] += 2000  # of hot pixels, which no bad-pixel map knows
    track = skies.apart(17, SHAPE, 1, stars, distance=25)[:, 0].astype(int)
    data[track[1], track[0] : track[0] + 9] += 900
    middle = skies.apart(18, SHAPE, 1, stars, distance=30)[:, 0].astype(int)
    data = skies.bleed(data, *middle, 30000.0, radius=8, length=8)
    chip = reduce_chip(skies.raw_chip(data, skies.SHARP, saturation=30000.0), BackgroundConfig())
    found = find_stars(chip, StarsConfig())
    assert np.count_nonzero(np.abs(found.x - x) < 2) <= 2
    assert np.hypot(found.x - track[0] - 4, found.y - track[1]).min() > 5
    assert np.count_nonzero(np.hypot(found.x - middle[0], found.y - middle[1]) < 12) <= 1
    far = np.abs(stars.x - x) > 12
    assert nearest(found, stars.x[far], stars.y[far])[0].max() < 0.1


def test_every_cell_has_clean_stars_though_the_brightest_are_elsewhere():
    """Right half: bright stars; left half: only stars below the usual limit of 20 sigma."""
    shape = (700, 2048)
    x, y = skies.apart(14, shape, 120, skies.NO_STARS, distance=40)
    flux = np.where(x < 1000, 4500.0, 8e4)
    seeing = skies.Seeing(fwhm=3.5)
    data = skies.expose(shape, x, y, flux, skies.Epoch(seeing=seeing), 14)
    chip = reduce_chip(skies.raw_chip(data, skies.Epoch(seeing=seeing)), BackgroundConfig())
    found = find_stars(chip, StarsConfig())
    peak = 4500.0 * seeing.stamp(3).max() / skies.Epoch(seeing=seeing).sky_sigma
    assert 8.5 < peak < 20
    assert np.count_nonzero(found.clean & (found.x < 1000)) >= 10
    assert np.count_nonzero(found.clean & (found.x > 1024)) >= 30


def test_too_few_stars_are_refused():
    with pytest.raises(SkipChip, match="too few stars"):
        find_stars(reduced(lone_stars(7, n=5), skies.SHARP, 7), StarsConfig())


def streaked(seed, *, trailed, angle_deg=0.0):
    """Return a chip of 30 slanted tracks and 12 stars, or of 30 stars trailed over 24 px."""
    stars = lone_stars(seed, n=12)
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, skies.SHARP, seed)
    rng = np.random.default_rng(seed)
    along = np.arange(-12, 12.5, 0.5)
    seeing = skies.SHARP.seeing if trailed else skies.Seeing(fwhm=1.0)
    for x, y in skies.apart(seed + 1, SHAPE, 30, stars, distance=25).T:
        angle = np.radians(angle_deg) if trailed else rng.uniform(0, np.pi)
        line = x + along * np.cos(angle), y + along * np.sin(angle), 0 * along + 1e3
        data = data + skies.draw(SHAPE, *line, seeing).astype(np.float32)
    return reduce_chip(skies.raw_chip(data, skies.SHARP), BackgroundConfig())


def test_a_trailed_frame_is_refused_and_one_with_more_tracks_than_stars_is_not():
    with pytest.raises(SkipChip, match="trailed"):
        find_stars(streaked(61, trailed=True), StarsConfig())
    found = find_stars(streaked(61, trailed=False), StarsConfig())
    stars = lone_stars(61, n=12)
    assert nearest(found, stars.x, stars.y)[0].max() < 0.2


def rings(seed, outer, inner, n=80):
    """Return a chip of n stars out of focus: rings of radii ``inner`` to ``outer`` px in seeing of 2.5 px."""
    shape, rng = (420, 460), np.random.default_rng(seed)
    offset = np.arange(-int(outer) - 10, int(outer) + 11)
    light = np.zeros(shape)
    places = zip(*(rng.uniform(30, size - 30, n) for size in shape), rng.uniform(2e5, 1e6, n), strict=True)
    for y, x, flux in places:
        distance = np.hypot(offset + round(x) - x, (offset + round(y) - y)[:, None])
        ring = ((distance < outer) & (distance > inner)) * flux / (np.pi * (outer**2 - inner**2))
        light[np.ix_(offset + round(y), offset + round(x))] += ring
    light = ndimage.gaussian_filter(light, 2.5 / 2.3548) + skies.SHARP.sky
    return reduce_chip(skies.raw_chip(noisy(rng, light), skies.SHARP), BackgroundConfig())


def noisy(rng, light):
    return (rng.poisson(light * skies.SHARP.gain) / skies.SHARP.gain).astype(np.float32)


@pytest.mark.parametrize(("outer", "inner"), [(6, 2.5), (8, 3.5), (10, 4.5), (16, 7)])
def test_rings_are_out_of_focus_and_not_trailed(outer, inner):
    with pytest.raises(SkipChip, match="out of focus") as refusal:
        find_stars(rings(67, outer, inner), StarsConfig())
    assert refusal.value.numbers["agreement"] < 0.2


@pytest.mark.parametrize("angle_deg", [0, 35, 90, 140])
def test_trailing_is_named_whatever_its_direction(angle_deg):
    with pytest.raises(SkipChip, match="trailed") as refusal:
        find_stars(streaked(61, trailed=True, angle_deg=angle_deg), StarsConfig())
    assert refusal.value.numbers["agreement"] > 0.9


def test_bad_columns_are_no_trailing():
    """Dozens of peaks on one line, beside 12 stars: counted one by one they were most bright sources."""
    stars = lone_stars(61, n=12)
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, skies.SHARP, 61)
    column = 20 + int(np.argmin([np.abs(stars.x - x).min() < 12 for x in range(20, 330)]))
    data[15:, column : column + 3] += 2400
    found = find_stars(reduce_chip(skies.raw_chip(data, skies.SHARP), BackgroundConfig()), StarsConfig())
    assert nearest(found, stars.x, stars.y)[0].max() < 0.2


def test_isolated_against_the_loops():
    rng = np.random.default_rng(15)
    x, y, flux = rng.uniform(0, 60, 80), rng.uniform(0, 60, 80), rng.exponential(1.0, 80)
    expected = np.ones(80, dtype=bool)
    for i in range(80):
        for j in range(80):
            if i != j and np.hypot(x[i] - x[j], y[i] - y[j]) <= 4.0:
                expected[i] &= flux[j] < 0.1 * flux[i]
    np.testing.assert_array_equal(isolated(x, y, flux, 4.0), expected)
    assert 0 < expected.sum() < 80


def test_flags_touch_within_their_reach():
    flags = np.zeros((20, 30), dtype=np.uint16)
    flags[10, 12] = 4
    x = np.array([12.0, 15.9, 16.0, 14.0, 15.0])
    y = np.array([10.0, 10.0, 10.0, 11.0, 12.0])
    np.testing.assert_array_equal(touches_flag(flags, x, y, 3), [True, True, False, True, False])
