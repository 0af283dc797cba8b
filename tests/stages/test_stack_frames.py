"""A stack's own pixels tell its frames: noise of dithers, interpolated bilinearly and combined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ks4diff.numerics.phase_waves import PhaseMaps
from ks4diff.products.cells import Cells
from ks4diff.products.image import MaskedImage
from ks4diff.stages.stack_frames import Dithers, frames_of

SHAPE, HALF, EDGE = (900, 900), 450.0, 40
# of each dither: phases along x and y per pixel, where they start, x and y at which it ends
MADE = [
    ((0.013, 0.009), (0.3, 0.8), (np.inf, np.inf)),
    ((0.022, -0.017), (0.6, 0.1), (610.0, np.inf)),
    ((-0.008, 0.031), (0.1, 0.4), (np.inf, 420.0)),
]


def maps():
    phases = np.zeros((len(MADE), 2, 3))
    for own, (slopes, _, _) in zip(phases, MADE, strict=True):
        own[0, 1], own[1, 2] = slopes[0] * HALF, slopes[1] * HALF
    stack = np.array([[HALF, HALF, 0.0], [HALF, 0.0, HALF]])
    return PhaseMaps(middle=(HALF, HALF), half=HALF, order=1, stack=stack, phases=phases)


def stack(combine, seed=1):
    """Return the stack of dithers of pure noise, with stars and a bad block, and true phases [d, 2, y, x]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    planes, phases = [], []
    for slopes, start, (last_x, last_y) in MADE:
        phase = np.stack([start[0] + slopes[0] * x, start[1] + slopes[1] * y])
        pixels = rng.normal(0, 10, (SHAPE[0] + 2 * EDGE, SHAPE[1] + 2 * EDGE))
        plane = ndimage.map_coordinates(pixels, [y + phase[1] + EDGE, x + phase[0] + EDGE], order=1)
        planes.append(np.where((x <= last_x) & (y <= last_y), plane, np.nan))
        phases.append(phase)
    data = combine(planes, axis=0)
    for px, py, light in zip(*rng.uniform(20, 880, (2, 150)), rng.uniform(300, 9000, 150), strict=True):
        part = np.s_[int(py) - 12 : int(py) + 13, int(px) - 12 : int(px) + 13]
        data[part] += light * np.exp(-0.5 * ((x[part] - px) ** 2 + (y[part] - py) ** 2) / 1.7)
    flags = np.zeros(SHAPE, dtype=np.uint16)
    data[300:340, 100:200], flags[300:340, 100:200] = 1e6, 1
    variance = Cells.constant(30.0, SHAPE)
    image = MaskedImage(data=data.astype(np.float32), flags=flags, sky_variance=variance)
    return image, np.array(phases)


@pytest.mark.parametrize("combine", [np.nanmean, np.nanmedian])
def test_a_stack_shows_its_frames(combine):
    image, phases = stack(combine)
    found = frames_of(image, maps(), SHAPE)
    assert len(found.boxes) == len(MADE)
    y, x = np.mgrid[10 : SHAPE[0] : 20, 10 : SHAPE[1] : 20]
    near = found.at(x.ravel(), y.ravel())
    for phase, (_, _, ends) in zip(phases[:, :, y, x].reshape(len(MADE), 2, -1), MADE, strict=True):
        alike = np.abs(np.exp(2j * np.pi * (near - phase)).mean(axis=2)).min(axis=1)
        own = int(np.argmax(alike))
        assert alike[own] > 0.97
        off = np.angle(np.exp(2j * np.pi * (near[own] - phase)).mean(axis=1)) / (2 * np.pi)
        assert np.abs(off).max() < 0.03
        for side, end in zip(found.boxes[own][1::2], ends, strict=True):
            assert abs(min(side, SHAPE[0]) - min(end, SHAPE[0])) < 35

    borders = Dithers(maps=maps(), frames=found).borders(SHAPE)
    # a wave that is weakest there may seem to end just within the image
    inside = (borders.at > 60) & (borders.at < SHAPE[0] - 60)
    assert sorted(borders.upright[inside].tolist()) == [False, True]


def test_noise_that_was_not_interpolated_shows_none():
    image, _ = stack(np.nanmean)
    noise = np.random.default_rng(2).normal(0, 5, SHAPE).astype(np.float32)
    white = MaskedImage(data=noise, flags=image.flags, sky_variance=image.sky_variance)
    assert frames_of(white, maps(), SHAPE) is None


def test_without_pixels_free_of_stars_there_are_none():
    image, _ = stack(np.nanmean)
    full = MaskedImage(data=image.data, flags=np.ones_like(image.flags), sky_variance=image.sky_variance)
    assert frames_of(full, maps(), SHAPE) is None
