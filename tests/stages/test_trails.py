"""Straight trails are found where they are, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from scipy import ndimage

from ks4diff.numerics.hough import strongest_line
from ks4diff.products.candidates import FLAG_BIT, Candidates, empty_table
from ks4diff.products.difference import Difference
from ks4diff.products.psf import Psf
from ks4diff.stages.trail_ridges import Trail, TrailsConfig, pieces
from ks4diff.stages.trails import find_trails, flag_trails
from tests import skies

SHAPE = (620, 560)
WIDTH = 1.6  # sigma of the PSF


def difference(white, flags=None):
    """Return a Difference of white noise, its score the matched filter of a Gaussian."""
    stamp = skies.Seeing(fwhm=2.3548 * WIDTH).stamp(25)
    score = ndimage.gaussian_filter(white, WIDTH) * np.sqrt(4 * np.pi) * WIDTH
    return Difference(
        difference=(30 * white).astype(np.float32),
        score_corr=score.astype(np.float32),
        flux_err=np.full(white.shape, 90, dtype=np.float32),
        flags=np.zeros(white.shape, dtype=np.uint16) if flags is None else flags,
        psf=Psf(stamp=stamp.astype(np.float32), fwhm_pix=2.3548 * WIDTH, n_stars=50),
        flux_scale=1.0,
        noise=30.0,
    )


def noise(seed):
    return np.random.default_rng(seed).normal(0, 1, SHAPE)


def ridge(peak, start, end, width=2.0):
    """Return a trail of this ridge from start to end (x, y)."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    away = Trail(x0=start[0], y0=start[1], x1=end[0], y1=end[1], reach=0, score=0).distance(x, y)
    return peak * np.exp(-0.5 * (away / width) ** 2)


def covered(trails, start, end):
    """Return the fraction of a line from start to end that lies on one of the trails."""
    along = np.linspace(0, 1, 200)
    x, y = start[0] + along * (end[0] - start[0]), start[1] + along * (end[1] - start[1])
    on = [t.distance(x, y) < 4 for t in trails]
    return np.any(on, axis=0).mean() if on else 0.0


@pytest.mark.parametrize(("peak", "start", "end"), [
    (1.0, (-50, 90), (640, 520)),
    (4.0, (300, -10), (318, 700)),
    (12.0, (560, 20), (-20, 80)),
    (2.5, (200, 300), (330, 345)),  # 138 px
])  # fmt: skip
def test_trails_are_found_from_end_to_end(peak, start, end):
    white = noise(1) + ridge(peak, start, end)
    trails = find_trails(difference(white), 1.0, TrailsConfig())
    inside = np.clip(start, 20, np.array(SHAPE[::-1]) - 20), np.clip(end, 20, np.array(SHAPE[::-1]) - 20)
    slope = (end[1] - start[1]) / (end[0] - start[0])
    if abs(slope) < 2:
        inside = [(x, start[1] + slope * (x - start[0])) for x in (inside[0][0], inside[1][0])]
    assert covered(trails, *inside) > 0.8
    assert all(2 <= t.reach <= 10 for t in trails)
    assert not find_trails(difference(white), -1.0, TrailsConfig())


def test_what_is_no_trail_is_not_found():
    rng = np.random.default_rng(2)
    white = noise(3)
    assert not find_trails(difference(white), 1.0, TrailsConfig())
    x, y = rng.uniform(0, SHAPE[1], 40), rng.uniform(0, SHAPE[0], 40)
    white += skies.draw(SHAPE, x, y, rng.uniform(50, 2000, 40), skies.Seeing(fwhm=3.8))
    white += ridge(15.0, (100, 100), (128, 121), 0.7)  # a cosmic ray of 35 px
    assert not find_trails(difference(white), 1.0, TrailsConfig())
    assert not find_trails(difference(white), -1.0, TrailsConfig())
    nothing = difference(white, np.ones(SHAPE, dtype=np.uint16))
    assert not find_trails(nothing, 1.0, TrailsConfig())


def test_candidates_on_it_are_flagged_unless_they_outshine_it():
    white = noise(4) + ridge(3.0, (-50, 90), (640, 520))
    table = empty_table(4)
    slope = 430 / 690
    for row, (x, off, scorr) in zip(
        table, [(200, 1, 12), (300, 40, 12), (250, 0, 90), (320, 0, -12)], strict=True
    ):
        row["x"], row["y"], row["scorr"] = x, 90 + slope * (x + 50) + off, scorr
    before = table.copy()
    found = Candidates(table=table, cutouts=np.empty((4, 0)), flux_unit="count")
    flagged = flag_trails(found, difference(white), TrailsConfig()).table["flags"] & FLAG_BIT["trail"]
    assert (flagged != 0).tolist() == [True, False, False, False]
    assert (table == before).all()


def test_votes_are_those_of_a_plain_sum():
    rng = np.random.default_rng(5)
    image = rng.normal(0, 1, (30, 41)).astype(np.float32)
    image[np.arange(30), np.arange(30) + 4] += 4
    image[3, 5] = np.nan
    line = strongest_line(image, floor=2.0, ceiling=5.0, n_angles=60)
    y, x = np.mgrid[:30, :41]
    weight = np.where(np.nan_to_num(image) > 2, np.minimum(np.nan_to_num(image), 5), 0)
    seen = np.isfinite(image).sum()
    best = -np.inf
    for angle in np.arange(60) * np.pi / 60:
        place = np.rint(x * np.cos(angle) + y * np.sin(angle))
        for offset in np.unique(place):
            on = abs(place - offset) <= 1
            spread = np.sqrt(max(on.sum() * (weight**2).sum() / seen, 25))
            best = max(best, (weight[on].sum() - on.sum() * weight.sum() / seen) / spread)
    assert line.excess == pytest.approx(best, rel=1e-4)
    assert abs(line.angle - 0.75 * np.pi) < 0.06


@pytest.mark.realdata
def test_a_real_trail(realdata):
    path = realdata / "dwkim78+ASTRiDE/astride/datasets/samples/long.fits"
    data = fits.getdata(path).astype(np.float64)
    white = (data - np.median(data)) / (1.4826 * np.median(np.abs(data - np.median(data))))
    # the stars were not subtracted: chains of them come after it
    trail = pieces(white.astype(np.float32), TrailsConfig())[0]
    true = Trail(x0=20, y0=338, x1=343, y1=310, reach=0, score=0)
    assert (
        trail.distance(np.array([60.0, 180, 300]), 338 - (np.array([60.0, 180, 300]) - 20) * 28 / 323) < 4
    ).all()
    assert (true.distance(np.array([trail.x0, trail.x1]), np.array([trail.y0, trail.y1])) < 40).all()
