"""Pictures show what they promise: right side up, one stretch, missing pixels apart, sources uncovered."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ks4diff.io import pictures
from ks4diff.io.pictures import write_overview, write_triplet

K, ZOOM, GAP, TOP = 63, 4, 8, 24


def stamps(seed=1):
    science, template, difference = np.random.default_rng(seed).normal(0, 10, (3, K, K)).astype(np.float32)
    y, x = np.mgrid[:K, :K]
    star = 2000 * np.exp(-((x - 31) ** 2 + (y - 31) ** 2) / 6)
    return np.stack([science + star, template, difference + star]).astype(np.float32)


def panel(path, number, size=K * ZOOM):
    """Return one panel as int [y, x, 3] with row 0 at the bottom."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    left = GAP + number * (size + GAP)
    return picture[TOP : TOP + size, left : left + size][::-1]


def pixel(shown, x, y):
    return shown[y * ZOOM + ZOOM // 2, x * ZOOM + ZOOM // 2]


class TestTriplet:
    def test_size_and_format(self, tmp_path):
        write_triplet(tmp_path / "t.png", stamps(), caption="x 1.0 y 2.0")
        with Image.open(tmp_path / "t.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (3 * K * ZOOM + 4 * GAP, K * ZOOM + 2 * TOP))

    def test_y_is_upwards_and_x_to_the_right(self, tmp_path):
        cutouts = stamps()
        cutouts[0, 5, 50] = 5000
        write_triplet(tmp_path / "t.png", cutouts)
        science = panel(tmp_path / "t.png", 0)
        assert pixel(science, 50, 5).min() > 250
        assert pixel(science, 5, 50).max() < 200
        assert pixel(science, 50, 57).max() < 200

    def test_science_and_template_share_a_stretch(self, tmp_path):
        cutouts = stamps()
        cutouts[0, 10, 10] = cutouts[1, 10, 10] = 400
        write_triplet(tmp_path / "t.png", cutouts)
        shown = [pixel(panel(tmp_path / "t.png", k), 10, 10) for k in (0, 1)]
        np.testing.assert_array_equal(*shown)
        assert 128 < shown[0][0] < 255

    def test_sky_noise_is_visible_beside_a_bright_source(self, tmp_path):
        write_triplet(tmp_path / "t.png", stamps())
        corner = panel(tmp_path / "t.png", 1)[:60, :60, 0]
        assert corner.std() > 8
        assert 10 < corner.mean() < 120

    def test_signs_have_their_colours(self, tmp_path):
        cutouts = stamps()
        cutouts[2, 10, 10], cutouts[2, 10, 20], cutouts[2, 10, 30] = 900, -900, 0
        write_triplet(tmp_path / "t.png", cutouts, noise=10.0)
        difference = panel(tmp_path / "t.png", 2)
        red, blue, zero = (pixel(difference, x, 10) for x in (10, 20, 30))
        assert red[0] - red[2] > 80
        assert blue[2] - blue[0] > 80
        assert np.ptp(zero) < 5

    def test_missing_pixels_have_a_colour_of_their_own(self, tmp_path):
        cutouts = stamps()
        cutouts[:, 40:, :8] = np.nan
        write_triplet(tmp_path / "t.png", cutouts)
        for number in range(3):
            shown = panel(tmp_path / "t.png", number)
            assert tuple(pixel(shown, 3, 50)) == pictures._NO_DATA
            assert (shown == pictures._NO_DATA).all(axis=2).sum() == 23 * 8 * ZOOM**2

    def test_ticks_leave_the_source_alone(self, tmp_path):
        write_triplet(tmp_path / "t.png", stamps())
        marked = (panel(tmp_path / "t.png", 0) == pictures._MARKER).all(axis=2)
        assert marked.sum() > 20
        centre = (K // 2) * ZOOM
        assert not marked[centre - 5 * ZOOM : centre + 6 * ZOOM, centre - 5 * ZOOM : centre + 6 * ZOOM].any()

    @pytest.mark.parametrize("value", [np.nan, 0.0, 5.0, np.inf])
    def test_featureless_stamps_make_a_picture(self, tmp_path, value):
        write_triplet(tmp_path / "t.png", np.full((3, K, K), value, np.float32))
        assert (tmp_path / "t.png").exists()

    @pytest.mark.parametrize("size", [1, 21, 63, 401])
    def test_any_stamp_size(self, tmp_path, size):
        cutouts = np.random.default_rng(2).normal(size=(3, size, size))
        write_triplet(tmp_path / "t.png", cutouts, caption="long caption " * 40)
        with Image.open(tmp_path / "t.png") as picture:
            assert picture.height >= 252 + 2 * TOP

    def test_same_input_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            write_triplet(tmp_path / f"{name}.png", stamps(), caption="same")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_wrong_shape(self, tmp_path):
        with pytest.raises(ValueError, match=r"\(2, 63, 63\)"):
            write_triplet(tmp_path / "t.png", stamps()[:2])

    def test_input_is_not_modified(self, tmp_path):
        cutouts = stamps()
        before = cutouts.copy()
        write_triplet(tmp_path / "t.png", cutouts)
        np.testing.assert_array_equal(cutouts, before)


class TestOverview:
    def images(self, rows, columns):
        science, difference, score = np.random.default_rng(6).normal(size=(3, rows, columns))
        return {"science": science, "difference": difference, "score": score}

    def test_circles_stand_where_the_candidates_are(self, tmp_path):
        images = self.images(500, 450)
        write_overview(
            tmp_path / "o.png",
            **images,
            x=np.array([100.0, 300.0]),
            y=np.array([400.0, 50.0]),
            accepted=np.array([True, False]),
        )
        picture = np.asarray(Image.open(tmp_path / "o.png"))[TOP : TOP + 500, GAP : GAP + 450][::-1]
        for colour, x, y in ((pictures._MARKER, 100, 400), (pictures._REJECTED, 300, 50)):
            rows, columns = np.nonzero((picture == colour).all(axis=2))
            assert abs(rows.mean() - y) < 1.5
            assert abs(columns.mean() - x) < 1.5

    def test_large_images_shrink_without_losing_a_peak(self, tmp_path):
        images = self.images(2000, 1500)
        images["score"][700, 400] = -60.0
        images["science"][:, 1490:] = np.nan
        nothing = np.array([])
        write_overview(tmp_path / "o.png", **images, x=nothing, y=nothing, accepted=nothing.astype(bool))
        with Image.open(tmp_path / "o.png") as picture:
            assert picture.width < 2000
            width = (picture.width - 4 * GAP) // 3
            score = np.asarray(picture).astype(int)[TOP:-TOP, 3 * GAP + 2 * width : 3 * GAP + 3 * width][::-1]
        block = 1500 / width
        blue = score[..., 2] - score[..., 0]
        assert np.unravel_index(blue.argmax(), blue.shape) == (int(700 / block), int(400 / block))
        assert blue.max() > 100

    def test_blocks(self):
        image = np.arange(24.0).reshape(4, 6)
        image[0, 0] = np.nan
        image[2:, 4:] = np.nan
        image[3, 0] = -99
        mean = pictures._shrunk(image, 2, extreme=False)
        np.testing.assert_allclose(mean, [[14 / 3, 5.5, 7.5], [(12 + 13 - 99 + 19) / 4, 17.5, np.nan]])
        extreme = pictures._shrunk(image, 2, extreme=True)
        np.testing.assert_allclose(extreme, [[7, 9, 11], [-99, 21, np.nan]])

    def test_images_of_different_shapes(self, tmp_path):
        images = self.images(40, 50) | {"score": np.zeros((50, 40))}
        with pytest.raises(ValueError, match="different shapes"):
            write_overview(
                tmp_path / "o.png", **images, x=np.array([]), y=np.array([]), accepted=np.array([])
            )
