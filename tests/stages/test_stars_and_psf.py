"""Stars are found where they are, and the PSF built from them is the one they were drawn with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ks4diff.products.errors import SkipChip
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.stars import StarsConfig, find_stars
from tests import skies

SHAPE = (310, 350)


def lone_stars(seed, n=36):
    x, y = skies.apart(seed, SHAPE, n, skies.NO_STARS, distance=38)
    return skies.Stars(x=x, y=y, flux=np.random.default_rng(seed).uniform(3e4, 1.2e5, n))


def reduced(stars, epoch, seed, **facts):
    data = skies.expose(SHAPE, stars.x, stars.y, stars.flux, epoch, seed)
    return reduce_chip(skies.raw_chip(data, epoch, **facts), BackgroundConfig())


def measured(stars, epoch, seed):
    chip = reduced(stars, epoch, seed)
    return model_psf(chip.image, find_stars(chip, StarsConfig()), PsfConfig())


def centroid(stamp):
    offset = np.arange(len(stamp)) - len(stamp) // 2
    core = np.where(stamp > 0.1 * stamp.max(), stamp, 0)
    return (core.sum(axis=0) @ offset) / core.sum(), (core.sum(axis=1) @ offset) / core.sum()


@pytest.mark.parametrize("epoch", [skies.BLURRED, skies.SHARP], ids=["gauss", "moffat"])
def test_lone_stars_are_all_found_where_they_are(epoch):
    stars = lone_stars(5)
    found = find_stars(reduced(stars, epoch, 5), StarsConfig())
    assert len(found) == len(stars.x)
    distance, which = cKDTree(np.stack([found.x, found.y], 1)).query(np.stack([stars.x, stars.y], 1))
    assert distance.max() < 0.15
    assert len(set(which)) == len(stars.x)
    assert (np.diff(found.flux) <= 0).all()


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


def test_too_few_stars_are_refused():
    with pytest.raises(SkipChip, match="too few stars"):
        find_stars(reduced(lone_stars(7, n=5), skies.SHARP, 7), StarsConfig())


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize(
    "epoch",
    [
        skies.BLURRED,
        skies.SHARP,
        skies.Epoch(seeing=skies.Seeing(fwhm=2.5, beta=4.5, ratio=0.9, angle_deg=-60)),
        skies.Epoch(seeing=skies.Seeing(fwhm=5.8, ratio=0.8, angle_deg=10), throughput=3.0),
    ],
    ids=["gauss 4.3", "moffat 3.1", "moffat 2.5", "gauss 5.8"],
)
def test_the_psf_is_that_of_the_stars(epoch, seed):
    psf, _ = measured(lone_stars(seed), epoch, seed)
    truth = epoch.seeing.stamp(len(psf.stamp))
    assert psf.stamp.sum(dtype=float) == pytest.approx(1, abs=1e-5)
    assert np.abs(psf.stamp - truth).max() < 0.02 * truth.max()
    assert np.hypot(*np.subtract(centroid(psf.stamp), centroid(truth))) < 0.05
    assert psf.n_stars > 20


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_the_psf_of_a_crowded_field(seed):
    # 1000 stars on 310x350 px, 450 of them found
    stars = skies.star_field(seed, SHAPE, 4000)
    psf, _ = measured(stars, skies.SHARP, seed)
    truth = skies.SHARP.seeing.stamp(len(psf.stamp))
    assert np.abs(psf.stamp - truth).max() < 0.05 * truth.max()
    assert np.hypot(*np.subtract(centroid(psf.stamp), centroid(truth))) < 0.05


def test_faint_neighbours_leave_no_pedestal():
    # 360 stars on 310x350 px, 60 of them found: the rest must not become the PSF's wings
    error = []
    for seed in (11, 12, 13):
        psf, _ = measured(skies.star_field(seed, SHAPE, 1400), skies.BLURRED, seed)
        truth = skies.BLURRED.seeing.stamp(len(psf.stamp))
        core = truth > 0.1 * truth.max()
        error.append(psf.stamp[core].sum(dtype=float) / truth[core].sum() - 1)
    assert abs(np.mean(error)) < 0.015


def test_fitted_stars_have_their_fluxes_and_places():
    stars = lone_stars(14)
    _, fitted = measured(stars, skies.SHARP, 14)
    distance, which = cKDTree(np.stack([stars.x, stars.y], 1)).query(np.stack([fitted.x, fitted.y], 1))
    # S/N is 300 and more: 0.02 px and 0.4 % are three standard errors
    assert np.median(distance) < 0.02
    ratio = fitted.flux / (skies.SHARP.throughput * stars.flux[which])
    assert np.median(ratio) == pytest.approx(1, abs=0.01)


def test_too_few_clean_stars_are_refused():
    chip = reduced(lone_stars(15), skies.SHARP, 15)
    found = find_stars(chip, StarsConfig())
    found.clean[3:] = False
    with pytest.raises(SkipChip, match="too few clean stars"):
        model_psf(chip.image, found, PsfConfig())
