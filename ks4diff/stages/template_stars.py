"""The template's star list on the science image's grid."""

from __future__ import annotations

import numpy as np

from ks4diff.products.cells import Cells
from ks4diff.products.chip import StarList
from ks4diff.products.registration import Registration
from ks4diff.stages.register import template_position

BEYOND_PIX = 50.0  # of the border: a bright star there still reaches into the image
STEPS = 6  # of Newton's method with the slope of the middle: each shrinks the error by 30 and more


def on_chip(stars: StarList, registration: Registration, area: Cells, shape: tuple[int, int]) -> StarList:
    """Return the template's stars on and about an image of ``shape``, brightest first as they were.

    Positions and FWHM in science pixels, fluxes in template counts summed over science pixels, that is
    divided by ``area``, which is a science pixel's in template pixels.
    """
    x, y = science_positions(registration, stars.x, stars.y, shape)
    near = (x > -BEYOND_PIX) & (x < shape[1] - 1 + BEYOND_PIX)
    near &= (y > -BEYOND_PIX) & (y < shape[0] - 1 + BEYOND_PIX)
    of_pixel = area.at(x[near], y[near])
    return StarList(
        x=x[near],
        y=y[near],
        flux=stars.flux[near] / of_pixel,
        fwhm=stars.fwhm[near] / np.sqrt(of_pixel),
        clean=stars.clean[near],
    )


def science_positions(
    registration: Registration, x: np.ndarray, y: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the science pixels (x, y) [n] that lie on template pixels: the registration inverted."""
    middle = np.array([[0.5 * shape[1]], [0.5 * shape[0]]])
    step = 0.25 * min(shape)
    aside = [template_position(registration, *(middle + d)) for d in ([[step], [0]], [[0], [step]])]
    here = template_position(registration, *middle)
    inverse = np.linalg.inv(np.concatenate([(there - here) / step for there in aside], axis=1))
    wanted = np.stack([x, y]).astype(np.float64)
    guess = middle + inverse @ (wanted - here)
    for _ in range(STEPS):
        # far beyond the image the polynomial is not to be followed
        inside = np.clip(guess, -2 * BEYOND_PIX, np.array([[shape[1]], [shape[0]]]) + 2 * BEYOND_PIX)
        guess = inside + inverse @ (wanted - template_position(registration, *inside))
    return guess[0], guess[1]
