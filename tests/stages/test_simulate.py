"""The simulated sky against its own truth: light, places, noise, artefacts and the S_corr to expect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import fft, ndimage

from ks4diff.io.tile_tables import read_distortions
from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.numerics.psf_grid import extract
from ks4diff.numerics.zogy import Side, grid_shape, subtract
from ks4diff.stages.sim import artefacts, detector, night, scene, sky, template, truth
from ks4diff.stages.sim.config import DetectorConfig, OpticsConfig, SimulateConfig, SkyConfig, TemplateConfig
from ks4diff.stages.sim.geometry import Distortion, field_centre, patch_of, pixels, true_wcs

pytest.importorskip("galsim")

QUIET = DetectorConfig(
    cosmic_rays_mpix=0,
    bad_columns=0,
    hot_pixels_mpix=0,
    trails=0,
    dead_strip=False,
    crosstalk=(0, 0),
    flat_residual=0,
)
NOTHING = SkyConfig(
    density_deg2=1e-6,
    hostless_mpix=0,
    hosted_mpix=0,
    nuclear_mpix=0,
    variable_mpix=0,
    moving_mpix=0,
    fading_mpix=0,
)
BASE = SimulateConfig(
    seed=5,
    size=(512, 512),
    chips=("K",),
    exposures=1,
    dither=False,
    detector=QUIET,
    optics=OpticsConfig(seeing_arcsec=1.3),
    template=TemplateConfig(margin_pix=40, seeing_arcsec=1.1),
)


def distortions(config):
    table = read_distortions()
    found = {c: table.get((config.site, c)) or table[("any", c)] for c in "KMNT"}
    return {c: Distortion(crpix=d.crpix, cd=d.cd, pv=d.pv) for c, d in found.items()}


def chip_of(config, chip="K", *, tile=False, number=0):
    """Return (chip, made tile or None) of one exposure."""
    table = distortions(config)
    _, exposure = night.plan_exposures(config, 0)[number]
    patch = patch_of(config, chip)
    images = [(true_wcs(table[chip], exposure.at, patch), patch.columns, patch.rows)]
    made = None
    if tile:
        plan = next(p for p in night.plan_tiles(config, 0, table) if p.name.endswith(chip))
        images.append((plan.wcs, *plan.shape[::-1]))
        catalog = sky.sky_around(config.sky, [config.seed, 0], field_centre(config.fields[0]), images, 0.05)
        made = template.make_tile(config, plan, catalog, table, lambda s: np.empty(s, np.float32))
    catalog = sky.sky_around(config.sky, [config.seed, 0], field_centre(config.fields[0]), images, 0.05)
    contributions = made.contributions if made else ()
    return night.simulate_chip(config, exposure, chip, catalog, table[chip], contributions), made


def isolated(sources, shape, *, apart, edge, flux):
    """Return rows brighter than ``flux`` electrons, no other light within ``apart`` px."""
    inside = (sources["x"] > edge) & (sources["x"] < shape[1] - edge)
    inside &= (sources["y"] > edge) & (sources["y"] < shape[0] - edge) & (sources["flux_e"] > flux)
    rows = []
    for k in np.flatnonzero(inside):
        near = np.hypot(sources["x"] - sources["x"][k], sources["y"] - sources["y"][k]) < apart
        near[k] = False
        if sources["flux_e"][near].sum() < 0.003 * sources["flux_e"][k]:
            rows.append(k)
    return sources[rows]


STARS = replace(
    NOTHING, density_deg2=15_000.0, star_fraction=0.999, faint_mag=20.0, density_mag=20.0, bright_mag=16.5
)


CHANGES_ONLY = replace(
    BASE,
    size=(768, 768),
    sky=replace(NOTHING, hostless_mpix=350.0, transient_bright_mag=20.3, transient_faint_mag=22.0),
    template=replace(BASE.template, combine="mean"),
)


@pytest.fixture(scope="module")
def field():
    return chip_of(replace(BASE, size=(1024, 1024), sky=STARS))[0]


@pytest.fixture(scope="module")
def stars(field):
    rows = isolated(field.truth["sources"], field.counts.shape, apart=32, edge=40, flux=1e4)
    assert len(rows) > 25
    return rows


@pytest.fixture(scope="module")
def blank():
    return chip_of(replace(BASE, sky=NOTHING, template=replace(BASE.template, combine="mean")), tile=True)


@pytest.fixture(scope="module", params=["mean", "median"])
def pair(request):
    combined = replace(CHANGES_ONLY, template=replace(CHANGES_ONLY.template, combine=request.param))
    return *chip_of(combined, tile=True), request.param


class TestStars:
    def test_light_in_an_aperture_is_the_true_flux(self, field, stars):
        image = field.electrons()
        psf = field.truth["psf"][0, 0].astype(float)
        offset = np.arange(-20, 21)
        ring = np.hypot(offset[:, None], offset[None, :])
        inside, around = ring <= 9, (ring > 13) & (ring <= 20)
        pulls = []
        for row in stars:
            x, y = round(row["x"]), round(row["y"])
            cut = image[y - 20 : y + 21, x - 20 : x + 21]
            level = np.median(cut[around])
            part = psf[4:45, 4:45]
            share = part[inside].sum() - np.median(part[around]) * inside.sum()
            light = (cut[inside] - level).sum()
            error = np.sqrt(
                row["flux_e"] + inside.sum() * field.facts["sky_e"] * 1.2 + (0.003 * row["flux_e"]) ** 2
            )
            pulls.append((light - share * row["flux_e"]) / error)
        assert abs(np.mean(pulls)) < 4 / np.sqrt(len(pulls))
        assert np.std(pulls) < 1.6

    def test_centroids_are_the_true_places(self, field, stars):
        image = field.electrons()
        offset = np.arange(-10, 11)
        errors = []
        for row in stars[stars["flux_e"] > 5e4]:
            i, j = round(row["x"]), round(row["y"])
            cut = image[j - 10 : j + 11, i - 10 : i + 11] - field.facts["sky_e"]
            x, y = row["x"] - i, row["y"] - j
            for _ in range(20):  # Gaussian-weighted centroid, twice the step for the weight's own pull
                weight = cut * np.exp(-((offset[None] - x) ** 2 + (offset[:, None] - y) ** 2) / (2 * 1.6**2))
                x += 2 * ((weight * (offset[None] - x)).sum() / weight.sum())
                y += 2 * ((weight * (offset[:, None] - y)).sum() / weight.sum())
            errors.append((x + i - row["x"], y + j - row["y"]))
        errors = np.array(errors)
        assert len(errors) > 10
        assert np.abs(np.median(errors, axis=0)).max() < 0.02
        assert np.sqrt((errors**2).mean()) < 0.05

    def test_the_true_wcs_says_where(self, field):
        from astropy.io import fits
        from astropy.wcs import WCS

        rows = field.truth["sources"]
        x, y = WCS(fits.Header(list(field.true_cards.items()))).wcs_world2pix(rows["ra"], rows["dec"], 0)
        np.testing.assert_allclose(x, rows["x"], atol=2e-4)
        np.testing.assert_allclose(y, rows["y"], atol=2e-4)

    def test_the_header_is_wrong_by_what_real_headers_are(self, field):
        rows = field.truth["sources"]
        x, y = field.header_wcs.wcs_world2pix(rows["ra"], rows["dec"], 0)
        off = np.hypot(x - rows["x"], y - rows["y"]) * 0.4
        assert 5 < np.median(off) < 120
        assert np.ptp(off) > 0.5  # not a shift alone


class TestNoise:
    def test_variance_of_the_sky(self, blank):
        chip, _ = blank
        for k, strip in enumerate(chip.amplifiers):
            part = chip.trimmed()[:, strip.x0 : strip.x1].astype(float) * strip.gain
            part -= part.mean(axis=1, keepdims=True)
            level = chip.facts["sky_e"]
            expected = level + strip.read_noise**2 + strip.gain**2 / 12
            assert part.var() * 64 / 63 == pytest.approx(expected, rel=0.05), k

    def test_overscan_holds_the_bias(self, blank):
        chip, _ = blank
        for bias, over in zip(chip.bias, chip.overscan, strict=True):
            assert (over - bias[:, None]).mean() == pytest.approx(0, abs=0.2)

    def test_the_template_is_as_noisy_and_as_correlated_as_bilinear_makes_it(self, blank):
        _, made = blank
        data = made.tile.data.astype(float)
        scale = 10 ** (0.4 * (30 - scene.zeropoint_electrons(BASE))) * (0.4 / 0.3952) ** 2
        white = np.sqrt(sum(c.variance_e for c in made.contributions)) / len(made.contributions) * scale
        data -= data.mean()
        # averaged over phases bilinear leaves (2/3)² of the variance and 1/4 of it to each neighbour
        assert data.std() == pytest.approx(white * 2 / 3, rel=0.05)
        for lag in ((0, 1), (1, 0)):
            other = np.roll(data, lag, axis=(0, 1))
            assert (data * other)[2:, 2:].mean() / data.var() == pytest.approx(0.25, abs=0.05)

    def test_no_data_is_zero_and_nothing_is_left_out_inside(self, blank):
        _, made = blank
        assert np.count_nonzero(made.tile.data == 0) == 0


class TestArtefacts:
    @pytest.mark.parametrize(("chip", "upwards"), [("K", False), ("N", False), ("M", True), ("T", True)])
    def test_bleeds_run_down_on_k_and_n_and_up_on_m_and_t(self, chip, upwards):
        config = replace(BASE, sky=NOTHING, chips=(chip,))
        patch = patch_of(config, chip)
        strips = detector.amplifiers(config, patch, tuple(range(0, 513, 64)))
        light = np.zeros((512, 512), np.float32)
        light[250:256, 100:103] = 8e5
        made = scene.Scene(light=light, sources=np.empty(0), psf=None, wcs=None, patch=patch, zeropoint_e=0.0)
        exposed = detector.expose(config, made, [0, ord(chip)], strips)
        full = np.flatnonzero(exposed.charge[:, 101] >= exposed.full[101])
        assert (full.max() > 280) == upwards
        assert (full.min() < 230) == (not upwards)
        assert exposed.charge.max() <= exposed.full.max() * (1 + 1e-6)
        boxes = exposed.artefacts[exposed.artefacts["kind"] == b"saturated"]
        assert boxes["y0"].min() == full.min()

    def test_ghosts_fall_on_amplifiers_of_the_same_parity_mirrored_across_the_middle(self):
        config = replace(BASE, detector=replace(QUIET, crosstalk=(2e-4, 4e-4)))
        strips = detector.amplifiers(config, patch_of(config, "K"), tuple(range(0, 513, 64)))
        adu = np.full((100, 512), 200.0, np.float32)
        adu[40, 64 + 10] = 50_200  # second amplifier, column 10
        rows = artefacts.crosstalk(config, "K", adu, strips, 200.0)
        bright = {tuple(p) for p in np.argwhere(adu > 205)}
        assert bright == {(40, 74), (40, 3 * 64 + 10), (40, 5 * 64 + 53), (40, 7 * 64 + 53)}
        assert set(rows["x0"]) == {202, 373, 501}
        table = artefacts.coefficients(config, "K")
        assert adu[40, 202] - 200 == pytest.approx(table[3, 1] * 50_000, rel=1e-4)

    def test_cosmic_rays_come_in_the_number_and_size_seen(self):
        config = DetectorConfig(cosmic_rays_mpix=50)
        charge, struck = np.zeros((2000, 2000), np.float32), np.zeros((2000, 2000), bool)
        rows = artefacts.cosmic_rays(config, np.random.default_rng(1), charge, struck)
        assert len(rows) == pytest.approx(200, abs=50)
        assert 2e-4 < struck.mean() < 7e-4  # facts: 0.03 to 0.05 % of pixels
        assert charge.sum() == pytest.approx(rows["value"].sum(), rel=0.05)

    def test_the_dead_strip_of_ctio_n_is_dark(self):
        config = replace(BASE, chips=("N",), detector=replace(QUIET, dead_strip=True))
        chip, _ = chip_of(replace(config, sky=NOTHING), "N")
        dead = chip.amplifiers[6]
        assert dead.dead
        assert chip.counts[:, dead.x0 : dead.x1].mean() == pytest.approx(200, abs=1)
        assert b"dead_strip" in chip.truth["artefacts"]["kind"]


class TestDeterminism:
    def test_equal_seeds_give_equal_pixels_and_others_do_not(self):
        config = replace(BASE, size=(256, 128), sky=STARS, detector=DetectorConfig())
        first, _ = chip_of(config)
        again, _ = chip_of(config)
        other, _ = chip_of(replace(config, seed=6))
        np.testing.assert_array_equal(first.counts, again.counts)
        assert first.truth["sources"].tobytes() == again.truth["sources"].tobytes()
        assert (first.counts != other.counts).mean() > 0.5

    def test_a_cell_of_sky_does_not_depend_on_what_else_is_drawn(self):
        config = replace(BASE, sky=SkyConfig())
        table = distortions(config)
        _, exposure = night.plan_exposures(config, 0)[0]
        images = []
        for size in ((256, 128), (512, 512)):
            patch = patch_of(replace(config, size=size), "K")
            images.append((true_wcs(table["K"], exposure.at, patch), *size))
        small, large = (
            sky.sky_around(config.sky, [5, 0], field_centre(config.fields[0]), [i], 0.0) for i in images
        )
        assert len(large) >= len(small)
        np.testing.assert_array_equal(small, large[np.isin(large["id"], small["id"])])


class TestExpectedScore:
    def test_zogy_with_true_psfs_finds_what_is_expected(self, pair):
        """A truly resampled template, warped back, subtracted with everything known: the pulls are normal."""
        chip, made, how = pair
        rows = chip.truth["sources"]
        rows = isolated(rows, chip.counts.shape, apart=30, edge=40, flux=100)
        assert len(rows) > 25
        shape = chip.counts.shape
        table = distortions(CHANGES_ONLY)
        _, exposure = night.plan_exposures(CHANGES_ONLY, 0)[0]
        wcs = true_wcs(table["K"], exposure.at, patch_of(CHANGES_ONLY, "K"))
        gx, gy = node_grid(shape)
        ra, dec = wcs.all_pix2world(gx.ravel(), gy.ravel(), 0)
        nodes = np.stack([v.reshape(gx.shape) for v in made.tile.wcs.wcs_world2pix(ra, dec, 0)])
        warped, _ = resample(made.tile.data, np.zeros(made.tile.data.shape, np.uint16), nodes, shape)
        warped = warped * (0.3952 / 0.4) ** 2 * 10 ** (-0.4 * (30 - scene.zeropoint_electrons(CHANGES_ONLY)))
        science = chip.electrons().astype(np.float32)
        key = [*exposure.key, ord("K")]
        science -= detector.sky_image(CHANGES_ONLY, patch_of(CHANGES_ONLY, "K"), key, slice(0, shape[0]))
        psf, power = self.reference(made, how, (384.0, 384.0), wcs)
        variance = chip.facts["sky_e"] + np.mean([s.read_noise**2 for s in chip.amplifiers])
        middle = chip.truth["psf"].mean(axis=(0, 1))
        done = self.subtracted(science, warped - np.median(warped), middle, variance, psf, power)
        score = ndimage.map_coordinates(done.score, [rows["y"], rows["x"]], order=5)
        pulls = score / np.sqrt(done.score_flux) - rows["expected_snr"]
        scaled = pulls * rows["expected_scorr"] / rows["expected_snr"]
        assert np.mean(pulls / rows["expected_snr"]) == pytest.approx(0, abs=0.03)
        assert abs(scaled.mean()) < 4 / np.sqrt(len(rows))
        assert 0.75 < scaled.std() < 1.25
        blank = done.score[60:-60, 60:-60] / np.sqrt(done.score_flux)
        spread = 1.4826 * np.median(np.abs(blank - np.median(blank)))
        assert spread == pytest.approx(1.0, abs=0.08)

    def test_source_noise_lowers_the_score_as_zogy_says(self, pair):
        """One bright source, its noise-free light as the variance map: eqs 25-27 give the expected S_corr."""
        chip, made, how = pair
        row = chip.truth["sources"][0:1].copy()
        wcs = true_wcs(
            distortions(CHANGES_ONLY)["K"],
            night.plan_exposures(CHANGES_ONLY, 0)[0][1].at,
            patch_of(CHANGES_ONLY, "K"),
        )
        row["x"], row["y"] = 256.0, 256.0
        row["ra"], row["dec"] = (v[0] for v in wcs.all_pix2world([256.0], [256.0], 0))
        config = replace(CHANGES_ONLY, sky=NOTHING)
        seen = scene.draw_scene(
            config,
            night.plan_exposures(config, 0)[0][1],
            patch_of(config, "K"),
            np.empty(0, sky.CATALOG),
            distortions(config)["K"],
        )
        flux = 40_000.0
        stamp = seen.psf.stamp(256, 256, 48)
        seen.light[208:305, 208:305] += flux * stamp
        variance = 360.0
        expected, limit = truth.expected_scores(
            seen, variance, np.array([flux]), (made.contributions, how), row
        )
        psf, power = self.reference(made, how, (384.0, 384.0), wcs)
        science = seen.light[192:321, 192:321]
        done = self.subtracted(
            science, np.zeros_like(science), seen.psf.stamp(256, 256, 24), variance, psf, power, light=science
        )
        assert limit[0] == pytest.approx(flux * np.sqrt(done.score_flux), rel=0.01)
        measured = done.score[64, 64] / np.sqrt(done.variance[64, 64])
        assert measured == pytest.approx(expected[0], rel=0.02)
        assert expected[0] < 0.8 * limit[0]

    def reference(self, made, how, place, wcs):
        """Return the template's true PSF stamp and its noise power on a grid, around a science pixel."""
        ra, dec = wcs.all_pix2world([place[0]], [place[1]], 0)
        seen = [(c, *(float(v[0]) for v in pixels(c.wcs, ra, dec))) for c in made.contributions]
        transform, power = truth._reference(seen, how)
        return extract(fft.irfft2(transform, (truth.GRID, truth.GRID)), 49), power

    def subtracted(self, science, warped, psf_n, variance, psf_r, power, light=None):
        shape = grid_shape(science.shape, 49)
        ky, kx = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None, :]
        relative = (1 - (1 - np.cos(2 * np.pi * ky)) / 3) * (1 - (1 - np.cos(2 * np.pi * kx)) / 3) / (4 / 9)
        sigma2 = power[0, 0] * 4 / 9
        noise = np.full(science.shape, variance, np.float32) + (0 if light is None else light)
        return subtract(
            Side(science.astype(np.float32), noise.astype(np.float32), psf_n.astype(float), 1.0, variance),
            Side(
                warped.astype(np.float32),
                np.full(science.shape, sigma2, np.float32),
                psf_r,
                1.0,
                sigma2,
                relative.astype(np.float32),
            ),
        )


def test_a_fast_asteroid_is_a_streak_through_its_place():
    movers = replace(NOTHING, moving_mpix=40.0, moving_arcsec_hour=(300.0, 301.0), transient_faint_mag=18.5)
    config = replace(BASE, sky=movers)
    chip, _ = chip_of(config)
    rows = chip.truth["sources"]
    inside = (np.abs(rows["x"] - 256) < 200) & (np.abs(rows["y"] - 256) < 200)
    assert inside.any()
    image = chip.electrons() - chip.facts["sky_e"]
    offset = np.arange(-28, 29)
    for row in rows[inside]:
        length = np.hypot(row["rate_x"], row["rate_y"]) * config.exptime_s / 3600
        assert length == pytest.approx(300 / 30 / 0.395, rel=0.05)  # 120 s are a thirtieth of an hour
        i, j = round(row["x"]), round(row["y"])
        near = np.hypot(rows["x"] - row["x"], rows["y"] - row["y"]) < 70
        if near.sum() > 1:
            continue
        cut = image[j - 28 : j + 29, i - 28 : i + 29]
        along = (offset[None] * row["rate_x"] + offset[:, None] * row["rate_y"]) / np.hypot(
            row["rate_x"], row["rate_y"]
        )
        bright = cut * (cut > 60)
        assert (bright * along).sum() / bright.sum() == pytest.approx(0, abs=1.0)
        spread = np.sqrt((bright * along**2).sum() / bright.sum())
        assert spread == pytest.approx(length / np.sqrt(12), rel=0.2)


def test_what_faded_is_expected_negative_and_what_brightened_positive():
    config = replace(
        BASE, sky=replace(NOTHING, fading_mpix=40.0, variable_mpix=60.0, transient_faint_mag=21.0)
    )
    rows = chip_of(config, tile=True)[0].truth["sources"]
    faded, variable = rows[rows["kind"] == b"fading"], rows[rows["kind"] == b"variable"]
    assert len(faded) > 2
    assert len(variable) > 4
    assert (faded["expected_scorr"] < -3).all()
    assert (faded["flux_e"] == 0).all()
    brighter = variable["mag"] < variable["template_mag"]
    assert ((variable["expected_scorr"] > 0) == brighter).all()
