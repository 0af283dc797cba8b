"""Draw the simulated chips that `benchmarks.chips` measures, each with its truth, and keep them on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from ks4diff.io.atomic import atomic_path
from ks4diff.io.kmtnet_write import write_exposure
from ks4diff.io.kmtnet_write_truth import write_tile
from ks4diff.pipeline.simulate import SKY_MARGIN_DEG, TEMPLATE_MJD, distortions
from ks4diff.products.ids import CHIPS
from ks4diff.stages.sim.config import (
    DetectorConfig,
    OpticsConfig,
    SimulateConfig,
    SkyConfig,
    TemplateConfig,
)
from ks4diff.stages.sim.geometry import Distortion, field_centre, patch_of, pointing, true_wcs
from ks4diff.stages.sim.night import TilePlan, plan_exposures, plan_tiles, simulate_chip
from ks4diff.stages.sim.sky import sky_around
from ks4diff.stages.sim.template import make_tile

VERSION = 2  # of what is kept; another number draws the chips with trails anew
DENSITIES = np.geomspace(500, 100_000, 60).round()
SITES, BANDS = ("CTIO", "SAAO", "SSO"), "RVIB"
CORNERS = ((-1, -1), (0, 0), (9216, 0), (0, 9232), (9216, 9232))  # the middle and the four corners
LARGEST_ROTATION_DEG = 1.0
# of KS4: what issue 4 lets a raw header err by, 2 arcminutes, is no dither's error; facts/kmtnet.md 5 has a
# repeatability a little worse than 6", 10" rms by specification
DITHER_ERROR_ARCSEC = (6.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Sky:
    """One drawn chip: its files, and the truth about it."""

    config: SimulateConfig
    raw: Path  # folder of the exposure
    tile: Path
    truth: Mapping[str, np.ndarray]


def chip_config(n: int) -> SimulateConfig:
    """Return what chip ``n`` of the sixty is: the properties go round with periods prime to each other.

    The template's own photometric errors (1 % per exposure, 0.3 % per amplifier) are left out: the simulator
    does not tell them; nor has it trails, which a lone dither would leave in it. Every second chip is without
    cosmic rays, trails and detector defects.
    """
    clean = n % 2 == 0
    config = SimulateConfig(
        seed=7000 + n,
        site=SITES[n % 3],
        band=BANDS[(n // 3) % 4],
        chips=(CHIPS[(n // 2) % 4],),
        size=(4096, 4096) if n % 8 == 5 else (2048, 2048),
        offset=CORNERS[n % 5],
        exposures=1,
        sky=SkyConfig(density_deg2=float(DENSITIES[(n * 37 + 11) % 60])),
        optics=OpticsConfig(
            pointing_error_arcsec=(60.0, 120.0) if n % 4 == 3 else (6.0, 10.0),
            rotation_deg=0.5 if n % 6 == 4 else 0.05,
        ),
        detector=DetectorConfig(cosmic_rays_mpix=0.0, trails=0.0, bad_columns=0.0, hot_pixels_mpix=0.0)
        if clean
        else DetectorConfig(cosmic_rays_mpix=70.0, trails=1.0),
        template=TemplateConfig(
            exposures=3,
            # trails and particles stay in a mean: no survey would make one
            combine="mean" if n % 4 == 0 else "median",
            zeropoint_error=0.0,
            gain_error=0.0,
        ),
    )
    return _within_rotation(config)


def _within_rotation(config: SimulateConfig) -> SimulateConfig:
    """Return the configuration with the next seed whose exposure is turned by no more than one degree."""
    centre = field_centre(config.fields[0])
    while abs(pointing(config, centre, 0, [0, 0]).rotation_deg) > LARGEST_ROTATION_DEG:
        config = replace(config, seed=config.seed + 1000)
    return config


def tile_plan(config: SimulateConfig, distortion: Mapping[str, Distortion]) -> TilePlan:
    """Return the chip's tile, its dithers pointed as KS4's are."""
    (plan,) = plan_tiles(config, 0, distortion)
    optics = replace(config.optics, pointing_error_arcsec=DITHER_ERROR_ARCSEC)
    (of_ks4,) = plan_tiles(replace(config, optics=optics), 0, distortion)
    return replace(plan, exposures=of_ks4.exposures)


def digest(config: SimulateConfig) -> str:
    """Return a name for what a configuration draws."""
    version = VERSION if config.detector.trails else 1  # 2 leaves trails out of the template
    if config.optics.pointing_error_arcsec != DITHER_ERROR_ARCSEC:
        version = 3  # its dithers are pointed as KS4's
    text = json.dumps([version, asdict(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sky_for(config: SimulateConfig, cache: Path) -> Sky:
    """Return the chip of a configuration, drawn unless ``cache`` holds it."""
    folder = cache / digest(config)
    if not (folder / "truth.npz").exists():
        _draw(config, folder)
    with np.load(folder / "truth.npz") as kept:
        truth = dict(kept)
    return Sky(config=config, raw=folder / "raw", tile=next(folder.glob("*.stack.fits")), truth=truth)


def _draw(config: SimulateConfig, folder: Path) -> None:
    """Draw the template and the exposure and write both, the truth last."""
    (chip,) = config.chips
    distortion = distortions(config)
    centre = field_centre(config.fields[0])
    plan = tile_plan(config, distortion)
    catalog = _sky(config, centre, plan.wcs, plan.shape[::-1])
    calm = replace(config, detector=replace(config.detector, trails=0.0))
    made = make_tile(calm, plan, catalog, distortion, lambda shape: np.empty(shape, dtype=np.float32))
    cards = {"MEANMJD": TEMPLATE_MJD}
    write_tile(folder / f"ks4.{plan.name}.{config.band}.360sec.reduced.scaled.stack.fits", made.tile, cards)
    ((facts, exposure),) = plan_exposures(config, 0)
    patch = patch_of(config, chip)
    wcs = true_wcs(distortion[chip], exposure.at, patch)
    catalog = _sky(config, centre, wcs, config.size)
    drawn = simulate_chip(config, exposure, chip, catalog, distortion[chip], made.contributions)
    write_exposure(folder / "raw", facts, [drawn], "trimmed")
    strips = np.array(
        [(a.x0, a.x1, a.gain, a.read_noise, a.dead) for a in drawn.amplifiers],
        dtype=[("x0", "i4"), ("x1", "i4"), ("gain", "f8"), ("read_noise", "f8"), ("dead", "?")],
    )
    truth = {
        "sources": drawn.truth["sources"],
        "artefacts": drawn.truth["artefacts"],
        "struck": np.argwhere(drawn.truth["struck"]).astype(np.int32),
        "amplifiers": strips,
        "sky_e": np.array(drawn.facts["sky_e"]),
        "seeing_arcsec": np.array(
            [exposure.seeing_arcsec, np.mean([c.seeing_arcsec for c in made.contributions])]
        ),
        "rotation_deg": np.array(exposure.at.rotation_deg),
    }
    with atomic_path(folder / "truth.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **truth)


def _sky(config: SimulateConfig, centre: tuple[float, float], wcs: WCS, size: tuple[int, int]) -> np.ndarray:
    return sky_around(config.sky, [config.seed, 0], centre, [(wcs, *size)], SKY_MARGIN_DEG)
