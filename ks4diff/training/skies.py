"""Draw the simulated chips that models are trained on: each of its own field, night, seeing and density."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet_write import write_exposure
from ks4diff.io.kmtnet_write_truth import write_tile
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.pipeline.run import Edges, Prepared, prepared
from ks4diff.pipeline.simulate import SKY_MARGIN_DEG, TEMPLATE_MJD, distortions
from ks4diff.products.ids import CHIPS
from ks4diff.stages.sim.config import (
    DetectorConfig,
    OpticsConfig,
    SimulateConfig,
    SkyConfig,
    TemplateConfig,
)
from ks4diff.stages.sim.geometry import field_centre, patch_of, true_wcs
from ks4diff.stages.sim.night import plan_exposures, plan_tiles, simulate_chip
from ks4diff.stages.sim.sky import sky_around
from ks4diff.stages.sim.template import make_tile

SITES = ("CTIO", "SAAO", "CTIO", "SAAO", "CTIO", "SSO")  # every sixth chip is of the site that is held out
BANDS = "RRVIRB"  # KS4 searches in R
CORNERS = ((-1, -1), (0, 0), (0.5, 0.0), (0.0, 0.5), (1.0, 1.0))  # of the cut-out, in shares of what is left
FULL = (9216, 9232)


@dataclass(frozen=True, kw_only=True)
class SkiesConfig:
    """What the chips are like; ranges are drawn from evenly, those of densities in their logarithm."""

    size: tuple[int, int] = (2048, 2048)  # columns, rows
    density_deg2: tuple[float, float] = (3000.0, 100_000.0)  # sources: sparse to the plane
    cosmic_rays_mpix: tuple[float, float] = (30.0, 70.0)  # KMTNet's 120 s bring about 50
    trails: float = 0.6  # per chip: a cut-out has as many as a whole chip, or too few are seen
    # of 20 changes per Mpix 35 % are hostless, 35 % on hosts, 15 % variables, 10 % fading, 5 % moving
    changes_mpix: tuple[float, float, float, float, float, float] = (7.0, 4.0, 3.0, 3.0, 2.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One drawn chip, read back and ready: its configuration, what the pipeline takes, and the truth."""

    config: SimulateConfig
    ready: Prepared
    truth: Mapping[str, np.ndarray]  # "sources", "artefacts" and "struck" [n, 2] pixels (row, column)
    group: str  # field, chip and night: never in two folds


def chip_config(config: SkiesConfig, seed: int, number: int) -> SimulateConfig:
    """Return what chip ``number`` of a set is; equal seeds and numbers give equal chips."""
    rng = np.random.default_rng([seed, number, 61])
    low, high = np.log(config.density_deg2)
    hostless, hosted, nuclear, variable, fading, moving = config.changes_mpix
    share = CORNERS[number % 5]
    offset = tuple(
        -1 if s < 0 else int(s * (f - n)) for s, f, n in zip(share, FULL, config.size, strict=True)
    )
    return SimulateConfig(
        seed=int(seed * 100_000 + number),
        site=SITES[number % 6],
        band=BANDS[int(rng.integers(6))],
        night=f"2025{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
        chips=(CHIPS[int(rng.integers(4))],),
        size=config.size,
        offset=offset,
        exposures=1,
        fields=(f"{number % 10_000:04d}.{rng.integers(0, 360):03d}-{rng.integers(15, 70):02d}",),
        sky=SkyConfig(
            density_deg2=float(np.exp(rng.uniform(low, high))),
            hostless_mpix=hostless,
            hosted_mpix=hosted,
            nuclear_mpix=nuclear,
            variable_mpix=variable,
            fading_mpix=fading,
            moving_mpix=moving,
        ),
        optics=OpticsConfig(rotation_deg=0.05),
        detector=DetectorConfig(
            cosmic_rays_mpix=float(rng.uniform(*config.cosmic_rays_mpix)), trails=config.trails
        ),
        template=TemplateConfig(
            exposures=int(rng.integers(3, 6)), combine="mean" if rng.random() < 0.25 else "median"
        ),
    )


def draw(config: SimulateConfig, pipeline: PipelineConfig, folder: Path) -> Drawn:
    """Return a chip drawn into ``folder``, which may go afterwards, and read back from its files.

    Raises
    ------
    SkipChip
        When the pipeline finds no position or template for it.

    """
    (chip,) = config.chips
    distortion = distortions(config)
    centre = field_centre(config.fields[0])
    (plan,) = plan_tiles(config, 0, distortion)
    catalog = _sky(config, centre, plan.wcs, plan.shape[::-1])
    made = make_tile(config, plan, catalog, distortion, lambda shape: np.empty(shape, dtype=np.float32))
    name = f"ks4.{plan.name}.{config.band}.360sec.reduced.scaled.stack.fits"
    tile = write_tile(folder / name, made.tile, {"MEANMJD": TEMPLATE_MJD})
    ((facts, exposure),) = plan_exposures(config, 0)
    wcs = true_wcs(distortion[chip], exposure.at, patch_of(config, chip))
    catalog = _sky(config, centre, wcs, config.size)
    drawn = simulate_chip(config, exposure, chip, catalog, distortion[chip], made.contributions)
    write_exposure(folder / "raw", facts, [drawn], "trimmed")
    store = TemplateStore(folder / "store", create=True)
    add_tile(store, tile, TileOptions(band=config.band))
    (files,) = find_exposures([folder / "raw"])
    return Drawn(
        config=config,
        ready=prepared(files, chip, Edges(templates=store), pipeline),
        truth={
            "sources": drawn.truth["sources"],
            "artefacts": drawn.truth["artefacts"],
            "struck": np.argwhere(drawn.truth["struck"]).astype(np.int32),
        },
        group=f"{config.fields[0]}.{chip}.{config.night}",
    )


def _sky(config: SimulateConfig, centre: tuple[float, float], wcs: WCS, size: tuple[int, int]) -> np.ndarray:
    return sky_around(config.sky, [config.seed, 0], centre, [(wcs, *size)], SKY_MARGIN_DEG)
