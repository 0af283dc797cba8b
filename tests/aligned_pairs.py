"""Pairs of images whose geometry is known, and the template aligned by it."""

from __future__ import annotations

import numpy as np

from ks4diff.products.cells import Cells
from ks4diff.products.registration import Registration
from ks4diff.stages.align import align
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.psf_model import PsfConfig
from tests import skies

SHAPE = (310, 350)


def exact(geometry):
    """Return the Registration that is a Geometry without its bend."""
    coefficients = np.column_stack([geometry.shift, geometry.matrix])
    return Registration(
        coefficients=coefficients,
        degree=1,
        centre=(0.0, 0.0),
        scale=1.0,
        n_matched=99,
        rms_pix=0.01,
        method="wcs",
        pairs=np.empty((2, 0), dtype=np.int64),
        n_stars=Cells.constant(99.0, SHAPE),
        residual_rms=Cells.constant(0.01, SHAPE),
        error=Cells.constant(0.001, SHAPE),
        bad=Cells.constant(0.0, SHAPE),
    )


def lone_scene(seed, **options):
    x, y = skies.apart(seed, SHAPE, 40, skies.NO_STARS, distance=34)
    stars = skies.Stars(x=x, y=y, flux=np.random.default_rng(seed).uniform(2e4, 1e5, 40))
    return skies.Scene(stars=stars, geometry=skies.Geometry(bend=0.0), **options)


def aligned(pair):
    science, template = (calibrate(raw, CalibrateConfig()) for raw in (pair.science, pair.template))
    return science, align(template, science, exact(pair.geometry), PsfConfig())
