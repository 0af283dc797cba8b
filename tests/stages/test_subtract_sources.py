"""Injected sources through the whole stage: resampled templates, holes and patches, on every shape.

Each pair is drawn twice, with its noise and with that noise's negative: what the two have in common is the
signal without any noise, so that fluxes and the S/N at which half are found are known far beyond what as
many sources would tell.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics import patches
from tests.known_pairs import Plan, Side, half_moved, run
from tests.stages.test_subtract_laws import HOW, SHAPES, holes_of
from tests.strategies import lopsided, moffat

PSFS = lopsided(moffat(25, 2.8)), lopsided(moffat(27, 3.2), (0, 1))
SPACING = 20
SIDES = Side(psf=PSFS[0]), Side(psf=PSFS[1], sky=500.0)
SCALE = 0.8


class Chip:
    """A chip with holes and a template resampled in one way, to be exposed with or without sources."""

    def __init__(self, how, shape):
        self.how, self.shape = how, shape
        self.flags = holes_of(shape, np.random.default_rng([70, *shape]))
        covariance = half_moved(how, np.zeros([n + 40 for n in shape]), shape)[1]
        left = covariance[len(covariance) // 2, len(covariance) // 2]
        # a resampled pixel has less Poisson noise too
        self.gain = SIDES[1].gain / left
        self.plan = Plan(
            science=SIDES[0],
            template=SIDES[1],
            scale=SCALE,
            correlations=(np.ones((1, 1)), covariance / left),
            variances=(1.0, left),
        )
        self.empty = self.exposed(np.zeros(shape), np.zeros(shape), [np.zeros(n) for n in self.noise_shapes])

    @property
    def noise_shapes(self):
        return self.shape, tuple(n + 40 for n in self.shape)

    def exposed(self, science, template, noise):
        """Return the difference of two lights with these unit noises, scaled and then resampled."""
        # the light that lay where the noise was drawn, half a pixel from where it is
        before = np.pad(template, ((12, 28), (10, 30)))
        if self.how != "white":
            before = 0.25 * sum(np.roll(before, at, (0, 1)) for at in ((0, 0), (0, 1), (1, 0), (1, 1)))
        scaled = [
            unit * np.sqrt(side.variance(part.shape)[0, 0] + part / side.gain)
            for side, part, unit in zip(SIDES, (science, before), noise, strict=True)
        ]
        moved, _ = half_moved(self.how, scaled[1], self.shape)
        known = self.plan.known(science + scaled[0], template + moved, (self.flags, None))
        return run(replace(known, template=replace(known.template, gain=self.gain)))


class Drawn:
    """Sources of one S/N on a pair and on its negative: half are new, half are gone from the template."""

    def __init__(self, chip, seed, snr):
        rng = np.random.default_rng([71, seed, *chip.shape])
        grid = np.meshgrid(*(np.arange(24, n - 24, SPACING) for n in chip.shape[::-1]))
        self.x, self.y = np.stack([at.ravel() for at in grid]) + rng.integers(-3, 4, (2, grid[0].size))
        self.flux = snr * chip.empty.flux_err[self.y, self.x]
        self.usable = chip.empty.flags[self.y, self.x] == 0
        self.clear = ndimage.distance_transform_edt(chip.flags == 0)[self.y, self.x]
        new = rng.random(len(self.x)) < 0.5
        self.sign = np.where(new, 1, -1)
        lights = [self.placed(p, self.flux * part, chip) for p, part in zip(PSFS, (new, ~new), strict=True)]
        noise = [rng.standard_normal(n) for n in chip.noise_shapes]
        self.done = [chip.exposed(lights[0], lights[1] / SCALE, [s * n for n in noise]) for s in (1, -1)]

    def placed(self, psf, fluxes, chip):
        out, half = np.zeros(chip.shape), len(psf) // 2
        for x, y, flux in zip(self.x, self.y, fluxes, strict=True):
            out[y - half : y + half + 1, x - half : x + half + 1] += flux * psf
        return out

    def at(self, name):
        """Return [2, n]: both draws' values at the sources, with the sources' sign."""
        return np.stack([self.sign * getattr(one, name)[self.y, self.x] for one in self.done])

    def bias(self):
        """Return [n]: the flux without its noise over the true one, less 1."""
        return self.at("flux").mean(axis=0) / self.flux - 1

    def pulls(self):
        return ((self.at("flux") - self.flux) / np.abs(self.at("flux_err")))[:, self.usable].ravel()


@pytest.fixture(scope="module", params=HOW)
def drawn(request):
    """Return {S/N: [Drawn of each shape and seed]}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "SMALLEST", 150)
        patch.setattr(patches, "LARGEST", 260)
        chips = [Chip(request.param, shape) for shape in SHAPES]
        return {
            snr: [Drawn(chip, seed, snr) for chip in chips for seed in range(n)]
            for snr, n in ((5.0, 1), (15.0, 2))
        }


def test_half_of_the_sources_of_five_sigma_are_above_five_sigma(drawn):
    """At 50 % the fraction changes by 0.399 per unit of S/N; the S/N itself is known to 0.001."""
    for one in drawn[5.0]:
        score = one.at("score_corr")[:, one.usable]
        assert one.usable.mean() > 0.95
        assert (score > 5).mean() == pytest.approx(0.5, abs=0.05 * 0.399)
        assert score.mean() == pytest.approx(5, abs=0.01)


def test_fluxes_are_unbiased(drawn):
    """In the mean within 0.05 %; of each whose light reaches no hole, within 0.01 %."""
    for one in drawn[15.0]:
        bias, clear = one.bias(), one.usable & (one.clear > len(PSFS[0]))
        assert bias[one.usable].mean() == pytest.approx(0, abs=5e-4)
        assert clear.sum() > 50
        np.testing.assert_allclose(bias[clear], 0, atol=1e-4)


def test_fluxes_are_unbiased_beside_holes(drawn):
    """Where a hole lies within a FWHM and nothing is flagged: 0.5 % in the mean, none by more than 3 %."""
    bias = np.concatenate([one.bias()[one.usable & (one.clear < 3.5)] for one in drawn[15.0]])
    assert len(bias) > 30
    assert bias.mean() == pytest.approx(0, abs=0.005)
    assert np.abs(bias).max() < 0.03


def test_pulls_are_of_unit_spread(drawn):
    """2,180 sources of S/N 15 with their own Poisson noise tell the std to 1.5 %."""
    pulls = np.concatenate([one.pulls() for one in drawn[15.0]])
    assert len(pulls) > 4300
    assert pulls.std() == pytest.approx(1, abs=0.02)
    assert abs(pulls.mean()) < 0.01
