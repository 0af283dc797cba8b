"""Pairs that several files of laws look at, each made and subtracted once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import PairResult, process_pair
from tests import skies

SHAPE, TEMPLATE_SHAPE = (420, 490), (486, 554)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pair with what the pipeline made of it."""

    pair: skies.Pair
    result: PairResult

    @property
    def subtracted(self):
        return self.result.subtracted

    @property
    def table(self):
        return self.result.subtracted.candidates.table

    def nearest(self, x, y):
        """Return the row number of the candidate nearest to a pixel, and its distance."""
        distance = np.hypot(self.table["x"] - x, self.table["y"] - y)
        return int(np.argmin(distance)), float(distance.min())


def changed_scene(seed):
    """Return a scene with 36 new and 30 vanished sources of S/N 8 to 80, clear of the brighter stars."""
    stars = skies.star_field(seed, SHAPE, 1300)
    bright = skies.Stars(**{n: getattr(stars, n)[stars.flux > 4000] for n in ("x", "y", "flux")})
    x, y = skies.apart([seed, 1], SHAPE, 66, bright)
    flux = np.random.default_rng([seed, 2]).uniform(1100, 11000, 66)
    new, gone = (skies.Stars(x=x[part], y=y[part], flux=flux[part]) for part in (slice(36), slice(36, None)))
    return skies.Scene(
        shape=SHAPE,
        template_shape=TEMPLATE_SHAPE,
        stars=stars,
        new=new,
        gone=gone,
        geometry=skies.Geometry(shift=(28.4, 19.3)),
    )


@pytest.fixture(scope="session")
def changed():
    """Return the Run of a pair with 66 known changes."""
    pair = changed_scene(31).make(31)
    return Run(pair=pair, result=process_pair(pair.science, pair.template, PipelineConfig()))


@pytest.fixture(scope="session", params=[(41, "blurred"), (42, "blurred"), (43, "sharp")], ids=str)
def static(request):
    """Return the Run of a pair in which nothing changed; science blurrier or sharper than the template."""
    seed, kind = request.param
    epochs = (skies.BLURRED, skies.SHARP) if kind == "blurred" else (skies.SHARP, skies.BLURRED)
    pair = skies.Scene(n_stars=1400, epochs=epochs).make(seed)
    return Run(pair=pair, result=process_pair(pair.science, pair.template, PipelineConfig()))


@pytest.fixture(scope="session")
def hurt():
    """Return the Run of a pair with a cosmic ray, a bleeding star, a zero block, NaNs and a new source."""
    shape = (330, 380)
    new = skies.Stars(x=np.array([96.3]), y=np.array([247.8]), flux=np.array([9000.0]))
    stars = skies.star_field(51, shape, 900)
    for x, y in ((96.3, 247.8), (250.0, 60.0), (300.0, 140.0)):
        far = np.hypot(stars.x - x, stars.y - y) > 25
        stars = skies.Stars(x=stars.x[far], y=stars.y[far], flux=stars.flux[far])
    saturated = skies.Stars(x=np.array([300.0]), y=np.array([140.0]), flux=np.array([9e5]))
    scene = skies.Scene(shape=shape, template_shape=(392, 441), stars=stars + saturated, new=new)
    pair = scene.make(51)
    data = skies.bleed(pair.science.data, 300, 140, 30000.0)
    data[58:61, 250] += np.float32([900.0, 4000.0, 700.0])  # a cosmic ray
    data[290:310, 20:33] = 0.0
    data[200:203, 330:334] = np.nan
    pair = replace(pair, science=replace(pair.science, data=data, saturation=30000.0))
    return Run(pair=pair, result=process_pair(pair.science, pair.template, PipelineConfig()))
