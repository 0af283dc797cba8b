"""Alerts that come of nothing: crowded pairs of images in which nothing changed, with stars and noise alone.

    python -m benchmarks.quiet [--scenes 60] [--first 100]

Scenes are those of `tests/stages/conftest.py::static`, 310 x 350 px with some 350 stars in view, three times
the density of the fullest field that models are measured on; each seed twice, the science image blurred or
sharp. Prints what was not flagged and what became an alert by the model that ships.
"""

from __future__ import annotations

import argparse

import numpy as np

from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import process_pair
from ks4diff.pipeline.rb import model_id, threshold
from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.training.false_alerts import FULL_CHIP_MPIX
from tests import skies

STARS = 1400


def main() -> None:
    """Subtract and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--first", type=int, default=100, help="seed of the first scene")
    options = parser.parse_args()
    config = PipelineConfig()
    mpix, unflagged, alerts = 0.0, 0, 0
    for seed in range(options.first, options.first + options.scenes):
        for epochs in ((skies.BLURRED, skies.SHARP), (skies.SHARP, skies.BLURRED)):
            pair = skies.Scene(n_stars=STARS, epochs=epochs).make(seed)
            result = process_pair(pair.science, pair.template, config)
            table = result.subtracted.candidates.table
            mpix += result.subtracted.difference.flags.size / 1e6
            unflagged += int((((table["flags"] & REJECTING_BITS) == 0) & np.isfinite(table["rb"])).sum())
            alerts += len(result.alerts)
            for alert in result.alerts:
                print(
                    f"seed {seed}: S_corr {alert.candidate.scorr:+.1f}, rb {alert.candidate.rb:.3f}",
                    flush=True,
                )
    print(
        f"{model_id(config.score)} at {threshold(config.score, None):.3f}: {mpix:.1f} Mpix, {unflagged}"
        f" unflagged, {alerts} alerts, {alerts * FULL_CHIP_MPIX / mpix:.1f} in the area of a full chip"
    )


if __name__ == "__main__":
    main()
