"""A science image made of a template by a match's own numbers comes back as that template, anywhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ks4diff.products.cells import Cells
from ks4diff.products.difference import AmplifierStep, Match
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.on_scale import Place, science_on_scale, template_on_scale

SHAPE = (130, 176)
WHITE = NoiseModel(sigma=1.0, correlation=np.ones((1, 1)), method="sky")
BOXES = ((0, 60, 0, 130), (60, 120, 0, 70), (60, 120, 70, 130))  # the last columns belong to none


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(4)
    steps = tuple(
        AmplifierStep(x0=x0, x1=x1, y0=y0, y1=y1, factor=f, error=0.01, level=level, level_error=0.1)
        for (x0, x1, y0, y1), f, level in zip(BOXES, (1.02, 0.97, 1.4), (3.0, -7.0, 0.5), strict=True)
    )
    match = Match(
        flux_scale=0.7,
        flux_scale_error=0.01,
        scale=Cells(values=rng.uniform(0.6, 0.8, (2, 3)), shape=SHAPE),
        scale_error=Cells.constant(0.01, SHAPE),
        amplifiers=steps,
        background=Cells(values=rng.normal(0, 9, (3, 4)), shape=SHAPE),
        science_noise=WHITE,
        template_noise=WHITE,
    )
    light = rng.normal(0, 50, SHAPE).astype(np.float32)
    all_rows = slice(None)
    science = match.scale.over(all_rows, all_rows) * light + match.background.over(all_rows, all_rows)
    for step in steps:
        box = (slice(step.y0, step.y1), slice(step.x0, step.x1))
        science[box] = step.factor * science[box] + step.level
    return match, *(SimpleNamespace(image=SimpleNamespace(data=d, shape=SHAPE)) for d in (science, light))


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(None), slice(None)),
        (slice(20, 41), slice(3, 9)),
        (slice(50, 101), slice(40, 150)),
        (slice(70, 71), slice(120, 176)),
        (slice(69, 130), slice(59, 61)),
    ],
)
def test_both_images_are_equal_on_scale(made, rows, columns):
    match, science, template = made
    ours, theirs = (
        science_on_scale(science, match, rows, columns),
        template_on_scale(template, match, rows, columns),
    )
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape == science.image.data[rows, columns].shape
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_inputs_are_left_alone(made):
    match, science, template = made
    before = science.image.data.copy(), template.image.data.copy()
    science_on_scale(science, match)
    template_on_scale(template, match)
    np.testing.assert_array_equal(science.image.data, before[0])
    np.testing.assert_array_equal(template.image.data, before[1])


@pytest.mark.parametrize("on_scale", [science_on_scale, template_on_scale])
def test_a_rectangle_is_written_where_it_is_wanted_and_nowhere_else(made, on_scale):
    match, *images = made
    image = images[on_scale is template_on_scale]
    rows, columns = slice(50, 101), slice(40, 150)
    place = Place(np.full((70, 120), 5, dtype=np.float32), (9, 10))
    assert on_scale(image, match, rows, columns, place) is place.grid
    inside = slice(9, 60), slice(10, 120)
    np.testing.assert_array_equal(place.grid[inside], on_scale(image, match, rows, columns))
    place.grid[inside] = 5
    assert (place.grid == 5).all()
