"""Draw the simulated chips that models are trained on: fields of their own, each seen on several nights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from ks4diff.products.errors import SkipChip
from ks4diff.products.ids import CHIPS
from ks4diff.stages.sim.config import (
    OpticsConfig,
    SimulateConfig,
    SkyConfig,
    TemplateConfig,
)
from ks4diff.stages.sim.geometry import field_centre, patch_of, true_wcs
from ks4diff.stages.sim.night import plan_exposures, plan_tiles, simulate_chip
from ks4diff.stages.sim.sky import sky_around
from ks4diff.stages.sim.template import make_tile

SITES = ("CTIO", "SAAO", "CTIO", "SAAO", "CTIO", "SSO")  # every sixth field is of the site that is held out
BANDS = "RRVIRB"  # KS4 searches in R
CORNERS = ((-1, -1), (0, 0), (0.5, 0.0), (0.0, 0.5), (1.0, 1.0))  # of the cut-out, in shares of what is left
FULL = (9216, 9232)


@dataclass(frozen=True, kw_only=True)
class SkiesConfig:
    """What the chips are like; ranges are drawn from evenly, those of densities in their logarithm.

    A field's template is drawn once and compared with ``nights`` exposures: it costs as much as two of them.
    """

    # columns, rows: so large that PSFs vary, dithers' borders cross and few pixels are near the edge
    size: tuple[int, int] = (4096, 4096)
    nights: int = 10  # exposures of a field, each with its own seeing, pointing, sky and particles
    moon: tuple[float, float] = (0.0, 0.15)  # of full moon's sky; half of the nights are dark
    density_deg2: tuple[float, float] = (3000.0, 100_000.0)  # sources: sparse to the plane
    cosmic_rays_mpix: tuple[float, float] = (30.0, 140.0)  # KMTNet's 120 s bring about 50
    trails: float = 1.5  # per night: a cut-out has more than a whole chip, or too few are seen
    # of 10 changes per Mpix 35 % are hostless, 35 % on hosts, 15 % variables, 10 % fading, 5 % moving
    changes_mpix: tuple[float, float, float, float, float, float] = (3.5, 2.0, 1.5, 1.5, 1.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One drawn exposure, read back and ready: its configuration, what the pipeline takes, and the truth."""

    config: SimulateConfig
    ready: Prepared
    truth: Mapping[str, np.ndarray]  # "sources", "artefacts" and "struck" [n, 2] pixels (row, column)
    group: str  # field, chip and night: never in two folds
    night: int  # of the field's, from 0


def field_config(config: SkiesConfig, seed: int, number: int) -> SimulateConfig:
    """Return what field ``number`` of a set is; equal seeds and numbers give equal fields."""
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
        exposures=config.nights,
        dither=False,
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
        template=TemplateConfig(
            exposures=int(rng.integers(3, 6)), combine="mean" if rng.random() < 0.25 else "median"
        ),
    )


def night_config(config: SkiesConfig, field: SimulateConfig, night: int) -> SimulateConfig:
    """Return the field's configuration on one of its nights: its own sky and particles, and trails."""
    rng = np.random.default_rng([field.seed, night, 64])
    moon = float(rng.uniform(*config.moon)) if rng.random() < 0.5 else 0.0
    rate = float(rng.uniform(*config.cosmic_rays_mpix))
    own = replace(field.detector, moon=moon, cosmic_rays_mpix=rate, trails=config.trails)
    return replace(field, detector=own)


def draw_field(
    config: SkiesConfig, field: SimulateConfig, pipeline: PipelineConfig, folder: Path
) -> Iterator[Drawn | SkipChip]:
    """Yield each night of a field, drawn into ``folder`` and read back, or why the pipeline has none."""
    (chip,) = field.chips
    distortion = distortions(field)
    centre = field_centre(field.fields[0])
    # nights point at one place, so that a tile little larger than a chip holds all; the tile's own do not
    (dithered,) = plan_tiles(replace(field, dither=True), 0, distortion)
    (plan,) = plan_tiles(field, 0, distortion)
    plan = replace(plan, exposures=dithered.exposures)
    catalog = _sky(field, centre, plan.wcs, plan.shape[::-1])
    made = make_tile(field, plan, catalog, distortion, lambda shape: np.empty(shape, dtype=np.float32))
    name = f"ks4.{plan.name}.{field.band}.360sec.reduced.scaled.stack.fits"
    tile = write_tile(folder / name, made.tile, {"MEANMJD": TEMPLATE_MJD})
    store = TemplateStore(folder / "store", create=True)
    add_tile(store, tile, TileOptions(band=field.band))
    for night, (facts, exposure) in enumerate(plan_exposures(field, 0)):
        one = night_config(config, field, night)
        wcs = true_wcs(distortion[chip], exposure.at, patch_of(one, chip))
        catalog = _sky(one, centre, wcs, one.size)
        drawn = simulate_chip(one, exposure, chip, catalog, distortion[chip], made.contributions)
        raw = folder / f"raw{night}"
        write_exposure(raw, facts, [drawn], "trimmed")
        (files,) = find_exposures([raw])
        try:
            ready = prepared(files, chip, Edges(templates=store), pipeline)
        except SkipChip as skip:
            yield skip
            continue
        yield Drawn(
            config=one,
            ready=ready,
            truth={
                "sources": drawn.truth["sources"],
                "artefacts": drawn.truth["artefacts"],
                "struck": np.argwhere(drawn.truth["struck"]).astype(np.int32),
            },
            group=f"{one.fields[0]}.{chip}.{one.night}.{night}",
            night=night,
        )


def _sky(config: SimulateConfig, centre: tuple[float, float], wcs: WCS, size: tuple[int, int]) -> np.ndarray:
    return sky_around(config.sky, [config.seed, 0], centre, [(wcs, *size)], SKY_MARGIN_DEG)
