"""The camera's signature: what is put in must come out, and what cannot must be flagged."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from ks4diff.products.errors import InputError
from ks4diff.products.image import PixelFlag
from ks4diff.products.masters import Masters
from ks4diff.stages.amplifiers import AmplifierConfig
from ks4diff.stages.crosstalk import CrosstalkConfig
from ks4diff.stages.overscan import OverscanConfig, overscan_level
from ks4diff.stages.signature import SignatureConfig, find_signature, remove_signature
from tests.raw_chips import Camera, Sky, expose, light, true_steps

CONFIG = SignatureConfig()


def flagged(chip, flag):
    return (chip.flags & flag) != 0


@pytest.fixture(scope="module")
def plain():
    camera, sky = Camera(), Sky()
    raw = expose(camera, sky)
    return camera, sky, raw, find_signature(raw, None, CONFIG)


class TestSeams:
    @pytest.mark.parametrize("level", [25, 180, 2000])
    @pytest.mark.parametrize("seed", [1, 2])
    def test_no_step_is_left_in_the_true_sky(self, level, seed):
        camera, sky = Camera(), Sky(level=level, seed=seed)
        chip = remove_signature(expose(camera, sky), None, CONFIG)
        assert np.abs(true_steps(chip, camera, sky)).max() < 0.15

    def test_the_truth_shows_the_steps_when_nothing_is_matched(self):
        camera, sky = Camera(), Sky()
        off = replace(CONFIG, amplifiers=AmplifierConfig(match_amplifiers=False))
        assert np.abs(true_steps(remove_signature(expose(camera, sky), None, off), camera, sky)).min() > 1

    def test_a_gradient_is_no_step(self):
        camera = Camera(gains=(1.0,) * 4, undershoot=(0.0,) * 4)
        sky = Sky(gradient=0.3, stars=0)
        found = find_signature(expose(camera, sky), None, CONFIG)
        assert all(abs(seam.before) < 5 * seam.error for seam in found.match.seams)

    def test_gain_and_offset_are_told_apart_by_the_sky(self):
        camera = Camera(undershoot=(0.0,) * 4)
        gains = np.array(camera.gains) / np.exp(np.log(camera.gains).mean())
        bright = find_signature(expose(camera, Sky(level=400)), None, CONFIG).match
        np.testing.assert_allclose(bright.gain, gains, rtol=0.01)
        no_sky = expose(camera, Sky(level=400))
        smooth, _ = light(camera, Sky(level=400))
        subtracted = no_sky.data - smooth
        for amplifier in no_sky.amplifiers:
            part = slice(amplifier.x0, amplifier.x1)
            subtracted[:, part] -= np.median(subtracted[:, part]) - 7 * amplifier.x0 / 100
        trimmed = tuple(replace(a, overscan=None) for a in no_sky.amplifiers)
        file = replace(no_sky, data=subtracted.astype(np.float32), amplifiers=trimmed)
        dark = find_signature(file, None, CONFIG).match
        np.testing.assert_allclose(dark.gain, 1, atol=0.03)
        assert np.ptp(dark.offset[:, 0]) > 20
        assert all(abs(seam.after) < 0.1 * seam.sigma for seam in dark.seams)

    def test_columns_beside_a_seam_move_no_gain(self):
        camera = Camera(undershoot=(0.0,) * 4)
        raw = expose(camera, Sky(level=40, stars=60))
        # weaker than the clipping, which sees single pixels: 2 % of gain without the search for them
        raw.data[:, int(camera.edges[2]) + 8] += 15
        raw.data[:, int(camera.edges[2]) + 14] += 15
        gains = np.array(camera.gains) / np.exp(np.log(camera.gains).mean())
        np.testing.assert_allclose(find_signature(raw, None, CONFIG).match.gain, gains, rtol=0.01)

    def test_a_column_off_its_surroundings_is_flagged_and_no_other(self):
        camera, sky = Camera(), Sky()
        raw = expose(camera, sky)
        x = int(camera.edges[2])
        raw.data[:, x] += 40
        flags = flagged(remove_signature(raw, None, CONFIG), PixelFlag.SEAM)
        assert flags[:, x].all()
        assert not np.delete(flags, x, axis=1).any()

    def test_a_step_along_part_of_a_seam_is_flagged_there(self):
        camera, sky = Camera(rows=2048), Sky(stars=200)
        raw = expose(camera, sky)
        x = int(camera.edges[1])
        raw.data[1500:, :x] += 15
        flags = flagged(remove_signature(raw, None, CONFIG), PixelFlag.SEAM)
        assert flags[1600:1950, x - 1 : x + 1].all()
        assert not flags[:, : x - 4].any()


class TestWhatIsReturned:
    def test_input_is_not_modified(self, plain):
        camera, sky, raw, _ = plain
        again = expose(camera, sky)
        np.testing.assert_array_equal(raw.data, again.data)
        assert raw.flags is None
        for a, b in zip(raw.amplifiers, again.amplifiers, strict=True):
            np.testing.assert_array_equal(a.overscan, b.overscan)

    def test_two_runs_give_the_same(self, plain):
        _, _, raw, found = plain
        again = remove_signature(copy.deepcopy(raw), None, CONFIG)
        np.testing.assert_array_equal(again.data, found.chip.data)
        np.testing.assert_array_equal(again.flags, found.chip.flags)

    def test_the_mean_level_and_types_stay(self, plain):
        camera, sky, _, found = plain
        assert found.chip.data.dtype == np.float32
        assert found.chip.flags.dtype == np.uint16
        assert np.median(found.chip.data) == pytest.approx(np.median(light(camera, sky)[0]), rel=0.03)
        assert all(a.overscan is None for a in found.chip.amplifiers)
        assert not found.chip.flags.any()

    def test_gains_belong_to_the_corrected_counts(self, plain):
        _, _, _, found = plain
        gains = [a.gain for a in found.chip.amplifiers]
        np.testing.assert_allclose(gains, np.mean(gains), rtol=0.02)

    def test_a_chip_without_amplifiers_only_gets_masks(self):
        raw = replace(expose(Camera(), Sky()), amplifiers=())
        raw.data[100:110, 200:203] = 60000
        chip = remove_signature(raw, None, CONFIG)
        np.testing.assert_array_equal(chip.data, raw.data)
        assert flagged(chip, PixelFlag.SATURATED)[100:110, 200:203].all()

    def test_a_master_of_another_shape_is_refused(self, plain):
        with pytest.raises(
            InputError, match=r"made.fits: the flat master has 10 x 20 pixels, the chip 620 x"
        ):
            remove_signature(plain[2], Masters(flat=np.ones((20, 10), np.float32)), CONFIG)


class TestOverscan:
    def test_level_is_found_to_its_noise(self):
        rng = np.random.default_rng(3)
        truth = 1800 + 5 * np.sin(np.arange(4000) / 500)
        strip = np.round(truth[:, None] + rng.normal(0, 4, (4000, 32)))
        level = overscan_level(strip.astype(np.float32), OverscanConfig())
        # a row alone is known to 4 / sqrt(28) = 0.76 counts
        assert np.std(level - truth) < 0.2

    def test_rows_under_a_bright_star_do_not_pull_it(self):
        rng = np.random.default_rng(4)
        strip = 1800 + rng.normal(0, 4, (2000, 32))
        strip[1000:1030] -= 200 * np.exp(-np.arange(32) / 20)
        strip[300:340, 5:9] += 5000
        level = overscan_level(strip.astype(np.float32), OverscanConfig())
        assert np.abs(level - 1800).max() < 0.7

    def test_missing_rows_take_their_neighbours(self):
        strip = np.full((300, 8), 1500.0, np.float32)
        strip[20:40] = np.nan
        np.testing.assert_allclose(overscan_level(strip, OverscanConfig()), 1500)
        assert np.isnan(overscan_level(np.full_like(strip, np.nan), OverscanConfig())).all()

    def test_no_row_of_the_sky_is_pulled(self, plain):
        camera, sky, _, found = plain
        smooth, sources = light(camera, sky)
        clear = sources < 0.3
        scale = np.median(found.chip.data[clear]) / np.median(smooth[clear])
        residual = np.where(clear, found.chip.data - scale * smooth, np.nan)
        sigma = np.nanstd(residual)
        rows = np.nanmean(residual, axis=1)
        assert np.std(rows) < 1.15 * sigma / np.sqrt(clear.sum(axis=1).mean())


class TestDeadAmplifier:
    @pytest.mark.parametrize("overscan", [True, False])
    def test_it_is_flagged_alone_and_bridged(self, overscan):
        camera, sky = Camera(dead=(1,)), Sky(gradient=0.02)
        raw = expose(camera, sky)
        if not overscan:
            raw = replace(raw, amplifiers=tuple(replace(a, overscan=None) for a in raw.amplifiers))
        found = find_signature(raw, None, CONFIG)
        assert found.dead == ("M02",)
        expected = np.zeros(camera.shape, dtype=bool)
        expected[:, 150:320] = True
        np.testing.assert_array_equal(flagged(found.chip, PixelFlag.DEAD_AMPLIFIER), expected)
        assert len(found.match.seams) == 2

    def test_the_gain_behind_it_is_still_found(self):
        camera, sky = Camera(dead=(1,), undershoot=(0.0,) * 4), Sky(level=400, gradient=0.03)
        match = find_signature(expose(camera, sky), None, CONFIG).match
        ratio = match.gain / np.array(camera.gains)
        assert ratio[[0, 2, 3]] == pytest.approx(ratio[0], rel=0.01)

    def test_an_amplifier_in_a_faint_sky_lives(self):
        assert find_signature(expose(Camera(), Sky(level=10, stars=10)), None, CONFIG).dead == ()


class TestBleeds:
    STAR = (235.0, 450.0, 4e6)

    @pytest.mark.parametrize(("chip", "rows"), [("M", (455, 700)), ("K", (200, 445))])
    def test_a_trail_is_flagged_to_its_end_in_the_chips_direction(self, chip, rows):
        camera, sky = Camera(chip=chip), Sky(extra=[self.STAR])
        trail = (234, 237, *rows, 900.0)
        result = remove_signature(expose(camera, sky, trails=[trail]), None, CONFIG)
        assert flagged(result, PixelFlag.SATURATED)[450, 235]
        bleed = flagged(result, PixelFlag.BLEED)
        far = slice(480, 700) if chip == "M" else slice(200, 420)
        assert bleed[far, 234:237].mean() > 0.99
        beyond = bleed[725:] if chip == "M" else bleed[:175]
        other = bleed[:420] if chip == "M" else bleed[480:]
        assert not beyond.any()
        assert not other.any()

    def test_a_star_that_does_not_bleed_has_no_trail_beyond_its_halo(self):
        camera, sky = Camera(chip="M"), Sky(extra=[self.STAR], stars=40)
        bleed = flagged(remove_signature(expose(camera, sky), None, CONFIG), PixelFlag.BLEED)
        assert not bleed[500:].any()
        assert not bleed[:440].any()

    def test_a_saturated_cosmic_ray_does_not_bleed(self):
        raw = expose(Camera(), Sky())
        raw.data[200, 100:104] = 60000
        chip = remove_signature(raw, None, CONFIG)
        assert flagged(chip, PixelFlag.SATURATED)[200, 100:104].all()
        assert not flagged(chip, PixelFlag.BLEED).any()

    def test_saturation_is_given_in_corrected_counts(self):
        camera, sky = Camera(), Sky(extra=[self.STAR])
        chip = remove_signature(expose(camera, sky), None, CONFIG)
        full = flagged(chip, PixelFlag.SATURATED)
        assert chip.saturation < 60000 - 2000
        assert full[chip.data >= chip.saturation].all()
        assert (chip.data[full] >= chip.saturation).sum() > 20


class TestBadColumns:
    def test_one_that_stands_out_is_flagged_from_its_trap_on(self, plain):
        _, _, raw, _ = plain
        data = raw.data.copy()
        rows = data.shape[0]
        data[rows // 3 :, 60] += 250
        chip = remove_signature(replace(raw, data=data), None, CONFIG)
        bad = flagged(chip, PixelFlag.BAD_PIXEL)
        assert bad[rows // 3 :, 60].mean() > 0.99
        assert bad.sum() < 1.03 * (rows - rows // 3)

    def test_clean_chips_have_none(self, plain):
        assert not flagged(plain[3].chip, PixelFlag.BAD_PIXEL).any()


class TestCrosstalk:
    def camera(self):
        matrix = np.zeros((4, 4))
        matrix[2, 0], matrix[0, 2], matrix[1, 3] = 8e-4, 5e-4, 1e-3
        return Camera(crosstalk=matrix, gains=(1.0,) * 4, undershoot=(0.0,) * 4, read_noise=2.0)

    def test_ghosts_are_removed(self):
        camera = self.camera()
        # a block of light in amplifier 1 makes a mirrored ghost of 32 counts in amplifier 3
        block = (60, 100, 300, 340, 40000.0)
        sky = Sky(stars=0, gradient=0.0)
        raw = expose(camera, sky, trails=[block])
        ghost = (slice(300, 340), slice(480 - 100, 480 - 60))
        aside = (slice(300, 340), slice(345, 375))
        depth = []
        for masters in (None, Masters(crosstalk=camera.crosstalk)):
            chip = remove_signature(raw, masters, CONFIG)
            depth.append(chip.data[ghost].mean() - chip.data[aside].mean())
        assert depth[0] == pytest.approx(32, abs=2)
        assert abs(depth[1]) < 0.1 * depth[0]

    @pytest.mark.parametrize("table", [True, False])
    def test_victims_of_saturated_pixels_are_flagged(self, table):
        camera = self.camera()
        raw = expose(camera, Sky(stars=0))
        raw.data[500:504, 20:23] = 60000
        masters = Masters(crosstalk=camera.crosstalk) if table else None
        victims = flagged(remove_signature(raw, masters, CONFIG), PixelFlag.CROSSTALK)
        expected = np.zeros(camera.shape, dtype=bool)
        expected[500:504, 480 - 23 : 480 - 20] = True
        np.testing.assert_array_equal(victims, expected)

    def test_victims_may_be_read_a_pixel_later(self):
        camera = self.camera()
        raw = expose(camera, Sky(stars=0))
        raw.data[500, 20] = 60000
        config = replace(CONFIG, crosstalk=CrosstalkConfig(crosstalk_shift_pix=1))
        victims = flagged(remove_signature(raw, None, config), PixelFlag.CROSSTALK)
        assert np.argwhere(victims).tolist() == [[500, 480 - 1 - 21]]

    def test_a_table_for_another_camera_is_refused(self):
        with pytest.raises(InputError, match="8 amplifiers, the chip has 4"):
            remove_signature(expose(Camera(), Sky()), Masters(crosstalk=np.zeros((8, 8))), CONFIG)


class TestMasters:
    def test_flat_bias_and_bad_pixels(self):
        camera, sky = Camera(), Sky()
        rng = np.random.default_rng(5)
        flat = rng.normal(1, 0.05, camera.shape)
        flat[40:45, 70:75] = 0.05
        structure = 20 * np.sin(np.arange(camera.shape[1]) / 9)[None, :] * np.ones((camera.rows, 1))
        bad = np.zeros(camera.shape, dtype=bool)
        bad[:, 33] = True
        raw = expose(camera, sky, flat=flat, structure=structure)
        gains = np.repeat(camera.gains, camera.widths)
        masters = Masters(flat=(flat * gains).astype(np.float32), bias=structure.astype(np.float32), bad=bad)
        chip = remove_signature(raw, masters, CONFIG)
        plain = remove_signature(expose(camera, sky), None, CONFIG)
        expected = bad.copy()
        expected[40:45, 70:75] = True
        np.testing.assert_array_equal(flagged(chip, PixelFlag.BAD_PIXEL), expected)
        assert np.abs(true_steps(chip, camera, sky)).max() < 0.15
        smooth, sources = light(camera, sky)
        clear = (sources < 0.3) & ~expected
        assert np.std((chip.data - smooth)[clear]) < 1.03 * np.std((plain.data - smooth)[clear])

    def test_fringes_are_scaled_to_the_exposure(self):
        camera, sky = Camera(), Sky(level=900)
        y, x = np.mgrid[: camera.rows, : camera.shape[1]]
        fringe = np.sin(x / 7 + y / 11 + 3e-4 * x * y).astype(np.float32)
        raw = expose(camera, sky, flat=1 + 0.011 * fringe)
        found = find_signature(raw, Masters(fringe=fringe), CONFIG)
        assert found.fringe_scale == pytest.approx(0.011 * 900, rel=0.05)
        clean = find_signature(expose(camera, sky), Masters(fringe=fringe), CONFIG)
        assert abs(clean.fringe_scale) < 0.5


def test_blocks_of_zeros_and_nans_are_named():
    raw = expose(Camera(), Sky())
    raw.data[700:720, 500:520] = 0
    raw.data[100, 100] = np.nan
    raw.data[5, 5] = 0
    chip = remove_signature(raw, None, CONFIG)
    expected = np.zeros(raw.data.shape, dtype=bool)
    expected[700:720, 500:520] = True
    np.testing.assert_array_equal(flagged(chip, PixelFlag.NO_DATA), expected)
    assert np.argwhere(flagged(chip, PixelFlag.NON_FINITE)).tolist() == [[100, 100]]


def test_two_bands_of_amplifiers_are_joined_in_both_directions():
    lower, sky = Camera(), Sky(level=300, gradient=0.0, stars=40)
    upper = Camera(gains=(0.95, 1.02, 1.1, 0.9), bias=(1500.0, 1600.0, 1700.0, 1800.0))
    first, second = expose(lower, sky), expose(upper, replace(sky, seed=2))
    amplifiers = [replace(a, y1=lower.rows) for a in first.amplifiers]
    amplifiers += [replace(a, name=f"{a.name}T", y0=900, y1=1800) for a in second.amplifiers]
    data = np.concatenate([first.data, second.data])
    raw = replace(first, data=data, amplifiers=tuple(amplifiers))
    found = find_signature(raw, None, CONFIG)
    assert len(found.match.seams) == 7
    assert all(abs(seam.after) < 0.1 * seam.sigma for seam in found.match.seams)
    halves = [
        replace(found.chip, data=d, flags=f)
        for d, f in zip(np.split(found.chip.data, 2), np.split(found.chip.flags, 2), strict=True)
    ]
    for half, camera, seed in zip(halves, (lower, upper), (1, 2), strict=True):
        assert np.abs(true_steps(half, camera, replace(sky, seed=seed))).max() < 0.15
    rows = [np.median(half.data[s]) for half, s in zip(halves, (slice(-60, None), slice(0, 60)), strict=True)]
    assert rows[1] - rows[0] == pytest.approx(0, abs=0.15 * found.match.seams[-1].sigma)
