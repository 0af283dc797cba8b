"""The noise of a patch: amplifiers step, templates keep their own depth, shared power is taken off once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.chip import Amplifier
from ks4diff.products.difference import AmplifierStep
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.patch_noise import depth, science_noise, template_noise
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig
from tests import oracles
from tests.known_pairs import Plan, Side
from tests.strategies import moffat

SHAPE = (500, 640)
NOISY = 1.15  # of the left amplifier's noise
WIDE, SHARP = moffat(31, 4.0), moffat(35, 3.2)


def two_amplifiers(seed, factor=1.0):
    """Return a pair whose chip is read by two amplifiers, one noisier, ``factor`` times too high."""
    rng = np.random.default_rng(seed)
    known = Plan(science=Side(psf=WIDE), template=Side(psf=SHARP, gain=4.0, sky=300.0)).exposed(SHAPE, rng)
    data = known.chip.image.data.copy()
    data[:, :320] *= NOISY * factor
    amplifiers = Amplifier(name="M01", x0=0, x1=320), Amplifier(name="M02", x0=320, x1=640)
    mean = 0.5 * (1 + (NOISY * factor) ** 2)  # what a noise model and a map see that know no amplifiers
    noise = replace(known.chip.noise, sigma=known.chip.noise.sigma * mean**0.5)
    sky = known.chip.image.sky_variance
    chip = replace(
        known.chip,
        image=replace(
            known.chip.image, data=data, sky_variance=replace(sky, values=sky.values * np.float32(mean))
        ),
        noise=noise,
        sky=np.ones(SHAPE, dtype=bool),
        raw=replace(known.chip.raw, amplifiers=amplifiers),
    )
    steps = tuple(
        AmplifierStep(x0=a.x0, x1=a.x1, y0=0, y1=500, factor=f, error=0.001, level=0.0, level_error=0.1)
        for a, f in zip(amplifiers, (factor, 1.0), strict=True)
    )
    return replace(known, chip=chip, match=replace(known.match, amplifiers=steps, science_noise=noise))


class TestAmplifiers:
    def test_each_has_its_own_variance_up_to_its_border(self):
        known = two_amplifiers(1)
        found = depth(known.chip)
        left, right = found.at(np.array([300, 340]), np.array([250, 250]))
        assert left / right == pytest.approx(NOISY**2, rel=0.04)
        assert found.values.mean() == pytest.approx(1, rel=0.01)

    def test_the_score_is_unit_normal_in_each(self):
        """Nor does it matter whether the amplifier's counts had to be divided by a factor first."""
        scores = np.stack(
            [
                subtract(
                    known.chip, known.template, known.match, known.registration, SubtractConfig()
                ).score_corr[12:-12]
                for seed in range(3)
                for known in [two_amplifiers(seed, factor=1.1)]
            ]
        )
        # 100,000 pixels in 4,000 PSFs each, three times
        assert scores[..., 12:300].std() == pytest.approx(1, abs=0.03)
        assert scores[..., 340:-12].std() == pytest.approx(1, abs=0.03)


class TestTemplates:
    def test_a_part_deeper_than_the_whole_is_taken_as_that(self):
        """The model's sigma is of a whole tile; under the chip only its shallow border may lie."""
        known = Plan(science=Side(psf=WIDE), template=Side(psf=SHARP)).exposed(
            SHAPE, np.random.default_rng(1)
        )
        template = replace(
            known.template, noise=replace(known.template.noise, sigma=known.template.noise.sigma / 2)
        )
        assert depth(template).values == pytest.approx(4.0)

    def test_cells_that_nobody_knows_take_the_mean_of_the_others(self):
        known = Plan(science=Side(psf=WIDE), template=Side(psf=SHARP)).exposed(
            SHAPE, np.random.default_rng(1)
        )
        sigma2 = known.template.noise.sigma**2
        values = np.array([[sigma2, np.nan], [3 * sigma2, 0.0]], dtype=np.float32)
        image = replace(known.template.image, sky_variance=Cells(values=values, shape=SHAPE))
        found = depth(replace(known.template, image=image)).values
        np.testing.assert_allclose(found, [[1, 2], [3, 2]], rtol=1e-5)


class TestShared:
    """What both images share lies in the sky: it is the same in counts² however deep the patch is."""

    @staticmethod
    def model(covariance):
        n = len(covariance) // 2
        variance = covariance[n, n]
        return NoiseModel(sigma=variance**0.5, correlation=covariance / variance, method="sky")

    def parts(self):
        own = 16.0 * np.array([[0.01, 0.05, 0.01], [0.05, 1.0, 0.05], [0.01, 0.05, 0.01]])
        shared = np.full((5, 5), 0.3)
        shared[2, 2] = 0.5
        return own, shared

    @pytest.mark.parametrize("ratio", [0.7, 1.0, 1.9])
    def test_against_the_twin(self, ratio):
        own, shared = self.parts()
        full = np.pad(own, 1) + shared
        known = Plan(science=Side(psf=WIDE), template=Side(psf=SHARP)).exposed(
            SHAPE, np.random.default_rng(1)
        )
        chip = replace(known.chip, noise=self.model(full))
        template = replace(known.template, noise=self.model(full))
        unshared = self.model(np.pad(own, 1))
        everything = slice(0, 500), slice(0, 640)
        for found in (
            science_noise(chip, unshared, ratio),
            template_noise(template, unshared, ratio, *everything),
        ):
            twin = oracles.without_shared(full, ratio, full, np.pad(own, 1))
            np.testing.assert_allclose(found.sigma**2 * found.correlation, twin, rtol=1e-9, atol=1e-12)

    def test_a_noise_that_is_nearly_all_shared_is_left_as_it_is(self):
        own, shared = self.parts()
        full = np.pad(own, 1) + 40 * shared
        known = Plan(science=Side(psf=WIDE), template=Side(psf=SHARP)).exposed(
            SHAPE, np.random.default_rng(1)
        )
        chip = replace(known.chip, noise=self.model(full))
        found = science_noise(chip, self.model(np.pad(own, 1)), 0.5)
        np.testing.assert_allclose(found.sigma**2 * found.correlation, 0.5 * full)
