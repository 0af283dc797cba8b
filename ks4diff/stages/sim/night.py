"""A night: which exposures and tiles there are, and one chip of one exposure with its truth."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.ids import ExposureId, Site
from ks4diff.products.simulated import ExposureFacts, SimulatedChip
from ks4diff.stages.sim.config import SimulateConfig
from ks4diff.stages.sim.detector import amplifiers, expose, read_out, sky_electrons
from ks4diff.stages.sim.geometry import (
    Distortion,
    Pointing,
    field_centre,
    header_wcs,
    outline,
    patch_of,
    pointing,
    sip_wcs,
    tangent_plane,
    tpv_cards,
    true_wcs,
)
from ks4diff.stages.sim.psf import seeing
from ks4diff.stages.sim.scene import Exposure, Scene, draw_scene, throughput
from ks4diff.stages.sim.sky import CHANGING, KINDS
from ks4diff.stages.sim.template import Contribution, TilePlan
from ks4diff.stages.sim.truth import expected_scores

UNIX_EPOCH_MJD = 40587.0
START_UTC_HOURS = {Site.CTIO: 3.0, Site.SAAO: 20.0, Site.SSO: 13.0}  # the middle of the night
TEMPLATE_KEY = 900  # exposures of the earlier epoch are numbered from here
PSF_STAMP_HALF = 24

TRUTH = np.dtype(
    [
        ("id", "i8"), ("kind", "S8"), ("ra", "f8"), ("dec", "f8"), ("x", "f8"), ("y", "f8"),
        ("mag", "f8"), ("template_mag", "f8"), ("flux", "f8"), ("flux_e", "f8"), ("in_template", "?"),
        ("host", "i8"), ("expected_scorr", "f8"), ("expected_snr", "f8"), ("rate_x", "f8"), ("rate_y", "f8"),
    ]
)  # fmt: skip


def start_mjd(config: SimulateConfig, number: int) -> float:
    """Return when an exposure starts, MJD UTC; CTIO names nights by their end, the others by their start."""
    site = Site(config.site)
    first = config.start_utc_hours if config.start_utc_hours >= 0 else START_UTC_HOURS[site]
    hours = first + number * config.cadence_s / 3600
    date = datetime.strptime(config.night, "%Y%m%d").replace(tzinfo=UTC)
    boundary = site.facts.night_boundary_ut_hours
    if boundary > 12 and hours >= boundary:
        date -= timedelta(days=1)
    elif boundary < 12 and hours < boundary:
        date += timedelta(days=1)
    return UNIX_EPOCH_MJD + (date.timestamp() + hours * 3600) / 86400


def plan_exposures(config: SimulateConfig, field: int) -> list[tuple[ExposureFacts, Exposure]]:
    """Return the science exposures of a field: what the header says and what is true."""
    centre = field_centre(config.fields[field])
    out = []
    for k in range(config.exposures):
        number = field * config.exposures + k
        key = (field, k)
        at = pointing(config, centre, k, list(key))
        rng = np.random.default_rng([config.seed, 12, *key])
        fwhm = config.optics.seeing_arcsec or seeing(config.optics, Site(config.site), rng)
        facts = ExposureFacts(
            id=ExposureId(Site(config.site), config.night, config.first_number + number),
            object=config.fields[field].split(".", 1)[1],
            band=config.band,
            exptime=config.exptime_s,
            start_mjd=start_mjd(config, number),
            pointing=at.claimed,
        )
        hours = (start_mjd(config, number) - start_mjd(config, 0)) * 24
        out.append((facts, Exposure(key=key, at=at, seeing_arcsec=fwhm, hours=hours)))
    return out


def plan_tiles(config: SimulateConfig, field: int, distortion: Mapping[str, Distortion]) -> list[TilePlan]:
    """Return the field's tiles: one on its centre, or one around each chip's cut-out."""
    name = config.fields[field]
    centre = field_centre(name)
    exposures = tuple(_template_exposure(config, field, k) for k in range(config.template.exposures))
    side = config.template.tile_pix
    step = config.template.pixel_arcsec / 3600
    nights = plan_exposures(config, field)
    if side:
        wcs = tangent_plane(centre, step, ((side - 1) / 2, (side - 1) / 2))
        return [TilePlan(name=name, field=name, wcs=wcs, shape=(side, side), exposures=exposures)]
    plane = tangent_plane(centre, step)
    plans = []
    for chip in config.chips:
        # on the grid of the field's own tile, as a cut-out of it that covers every dither would be
        u, v = np.concatenate([_outline_on(plane, config, e.at, chip, distortion) for _, e in nights], axis=1)
        low = np.floor([u.min(), v.min()]).astype(int) - config.template.margin_pix
        high = np.ceil([u.max(), v.max()]).astype(int) + config.template.margin_pix
        wcs = tangent_plane(centre, step, (float(-low[0]), float(-low[1])))
        shape = (int(high[1] - low[1]) + 1, int(high[0] - low[0]) + 1)
        plans.append(TilePlan(name=f"{name}.{chip}", field=name, wcs=wcs, shape=shape, exposures=exposures))
    return plans


def _outline_on(
    plane: WCS, config: SimulateConfig, at: Pointing, chip: str, distortion: Mapping[str, Distortion]
) -> np.ndarray:
    patch = patch_of(config, chip)
    ra, dec = outline(true_wcs(distortion[chip], at, patch), patch.columns, patch.rows)
    return np.stack(plane.wcs_world2pix(ra, dec, 0))


def _template_exposure(config: SimulateConfig, field: int, k: int) -> Exposure:
    key = (field, TEMPLATE_KEY + k)
    rng = np.random.default_rng([config.seed, 12, *key])
    fwhm = config.template.seeing_arcsec or seeing(config.optics, Site(config.site), rng, better=True)
    at = pointing(config, field_centre(config.fields[field]), k, list(key))
    return Exposure(key=key, at=at, seeing_arcsec=fwhm, hours=0.0, template=True)


def simulate_chip(
    config: SimulateConfig,
    exposure: Exposure,
    chip: str,
    catalog: np.ndarray,
    distortion: Distortion,
    contributions: tuple[Contribution, ...],
) -> SimulatedChip:
    """Return one chip of one exposure as read out, with its truth."""
    patch = patch_of(config, chip)
    key = [*exposure.key, ord(chip)]
    edges = tuple(k * patch.columns // 8 for k in range(9))
    strips = amplifiers(config, patch, edges)
    scene = draw_scene(config, exposure, patch, catalog, distortion)
    variance_e = sky_electrons(config) + float(np.mean([s.read_noise**2 for s in strips]))
    truth = truth_table(config, scene, strips, variance_e, contributions)
    n_y, n_x = len(scene.psf.shapes), len(scene.psf.shapes[0])
    x0, y0, dx, dy = scene.psf.grid
    stamps = [
        [scene.psf.stamp(x0 + i * dx, y0 + j * dy, PSF_STAMP_HALF) for i in range(n_x)] for j in range(n_y)
    ]
    exposed = expose(config, scene, key, strips)
    read = read_out(config, exposed, patch, key, strips)
    return SimulatedChip(
        chip=chip,
        corner=(patch.x0, patch.y0),
        counts=read.counts,
        bias=read.bias,
        overscan=read.overscan,
        prescan=read.prescan,
        amplifiers=strips,
        true_cards=tpv_cards(distortion, exposure.at, patch),
        header_wcs=header_wcs(exposure.at, patch),
        truth={
            "sources": truth,
            "artefacts": read.artefacts,
            "psf": np.array(stamps, dtype=np.float32),
            "psf_grid": scene.psf.grid,
            "struck": exposed.struck,
            "fwhm_pix": np.array([[s.fwhm for s in row] for row in scene.psf.shapes]),
        },
        facts={
            "seeing_arcsec": exposure.seeing_arcsec,
            "zeropoint_e": scene.zeropoint_e,
            "sky_e": sky_electrons(config),
            "read_noise_e": float(np.mean([s.read_noise for s in strips])),
        },
        solved_wcs=sip_wcs(scene.wcs, patch.columns, patch.rows) if config.form == "l1" else None,
    )


def truth_table(
    config: SimulateConfig,
    scene: Scene,
    strips: tuple,
    variance_e: float,
    contributions: tuple[Contribution, ...],
) -> np.ndarray:
    """Return `TRUTH` rows of everything on the chip, what has faded included."""
    rows = scene.sources
    on = (rows["x"] > -0.5) & (rows["x"] < scene.patch.columns - 0.5)
    on &= (rows["y"] > -0.5) & (rows["y"] < scene.patch.rows - 0.5)
    rows = rows[on]
    out = np.zeros(len(rows), TRUTH)
    for name in ("id", "ra", "dec", "x", "y", "mag", "template_mag", "flux_e", "host", "rate_x", "rate_y"):
        out[name] = rows[name]
    kinds = np.array(KINDS, dtype="S8")
    out["kind"] = kinds[rows["kind"]]
    gain = np.array([s.gain for s in strips])
    which = np.searchsorted([s.x0 for s in strips], rows["x"], side="right").clip(1) - 1
    out["flux"] = rows["flux_e"] / gain[which]
    out["in_template"] = rows["template_mag"] < 90
    out["expected_scorr"] = out["expected_snr"] = np.nan
    changing = np.flatnonzero(np.isin(rows["kind"], [KINDS.index(kind) for kind in CHANGING]))
    some = rows[changing]
    before = 10 ** (0.4 * (scene.zeropoint_e - some["template_mag"]))
    before *= throughput(config, scene.patch, some["x"], some["y"])
    tile = (contributions, config.template.combine)
    scores = expected_scores(scene, variance_e, some["flux_e"] - before, tile, some)
    out["expected_scorr"][changing], out["expected_snr"][changing] = scores
    return out
