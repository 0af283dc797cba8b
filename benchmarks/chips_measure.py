"""Run the pipeline on a drawn chip and hold what comes out against the truth."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.chips_changes import changes_figures
from benchmarks.chips_sky import Sky
from benchmarks.chips_truth import Geometry, cell_middles, signal_to_noise
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.pipeline.isolate import isolated
from ks4diff.pipeline.pair import calibrated, subtract_chips
from ks4diff.pipeline.report import Stopwatch
from ks4diff.pipeline.run import POINTING_ERROR_PIX
from ks4diff.pipeline.templates import template_for
from ks4diff.products.cells import CELL_PIX, cell_grid
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.products.template import TilePart
from ks4diff.stages.astrometry import nominal_wcs
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.register import register, template_position
from ks4diff.stages.signature import Signature, find_signature

GRID = 8  # positions a side at which a cell's registration is compared
FAIR_SN = 10.0  # of a star that both images are said to show
TELLING_SN, TELLING_STARS = 50.0, 30  # issue 4: what a cell needs for the absolute limits to hold
WING_SMOOTH = 5  # pixels over which a PSF's wings are averaged before their largest error is taken


@dataclass(frozen=True, kw_only=True)
class Done:
    """One chip through the pipeline: its products (None when refused) and what else the truth needs."""

    signature: Signature
    part: TilePart
    subtracted: SubtractedChip | None
    status: str
    reason: str | None
    registers: bool  # when nothing came out: registration alone does
    seconds: dict[str, float]


def process(sky: Sky, config: PipelineConfig) -> Done:
    """Return a drawn chip after all stages of `ks4diff.pipeline.run.process_chip`."""
    (chip,) = sky.config.chips
    clock = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        store = TemplateStore(Path(folder), create=True)
        with clock.step("ingest"):
            add_tile(store, sky.tile, TileOptions(band=sky.config.band))
        (files,) = find_exposures([sky.raw])
        with clock.step("read"):
            raw = read_exposure_chip(files, chip)
        if raw.wcs is None:
            raw = replace(raw, wcs=nominal_wcs(raw))
        with clock.step("signature"):
            signature = find_signature(raw, None, config.signature)
        raw = signature.chip
        wanted = replace(config.template, margin_pix=max(config.template.margin_pix, POINTING_ERROR_PIX))
        with clock.step("template"):
            part = template_for(store, chip_footprint(raw.wcs, raw.data.shape), raw.filter, wanted)
    template = as_template(part)

    def work() -> SubtractedChip:
        with clock.step("calibrate"):
            science = calibrated(raw, config)
        return subtract_chips(science, template, config, clock)

    done = isolated(work, f"chip {sky.config.seed}")
    registers = True
    if done.result is None:
        registers = (
            isolated(lambda: register(calibrated(raw, config), template, config.register), "").result
            is not None
        )
    return Done(
        signature=signature,
        part=part,
        subtracted=done.result,
        status=done.status,
        reason=done.reason,
        registers=registers,
        seconds={name: round(seconds, 3) for name, seconds in clock.seconds.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Stars:
    """True stars of a chip that are full in neither image: rows of SOURCES with S/N in both."""

    rows: np.ndarray
    science_sn: np.ndarray
    template_sn: np.ndarray
    template_counts: np.ndarray

    def telling(self) -> np.ndarray:
        """Return bool [n]: S/N above 50 in both images."""
        return np.minimum(self.science_sn, self.template_sn) > TELLING_SN


def true_stars(sky: Sky, geometry: Geometry) -> Stars:
    """Return the constant stars, and their S/N by the PSFs in the middle of the chip."""
    config, truth = sky.config, sky.truth
    rows = truth["sources"]
    rows = rows[rows["kind"] == b"star"]
    psf = truth["psf"][tuple(n // 2 for n in truth["psf"].shape[:2])]
    blurred = truth["template_psf"][tuple(n // 2 for n in truth["psf"].shape[:2])]
    strips = truth["amplifiers"]
    live = strips[~strips["dead"]]
    variance = float(truth["sky_e"]) + float(np.mean(live["read_noise"] ** 2))
    counts = geometry.template_counts(rows["ra"], rows["dec"], rows["template_mag"])
    electrons = np.nan_to_num(counts) * geometry.electrons_per_count
    depth = float(variance / np.nanmean(truth["template_var"]))
    science_sn = signal_to_noise(rows["flux_e"], psf, variance)
    template_sn = signal_to_noise(electrons * depth, np.nan_to_num(blurred), variance * depth)
    full = config.detector.saturation_adu * float(live["gain"].min()) * 0.9
    dead = np.zeros(len(rows), dtype=bool)
    for strip in strips[strips["dead"]]:
        dead |= (rows["x"] >= strip["x0"]) & (rows["x"] < strip["x1"])
    keep = ~dead & (
        np.maximum(rows["flux_e"] * psf.max(), electrons * blurred.max()) + float(truth["sky_e"]) < full
    )
    return Stars(
        rows=rows[keep],
        science_sn=science_sn[keep],
        template_sn=np.where(np.isfinite(counts), template_sn, 0.0)[keep],
        template_counts=counts[keep],
    )


def measured(sky: Sky, config: PipelineConfig) -> dict:
    """Return all figures of one chip as plain numbers: of the chip, and of each of its 1k cells."""
    start = time.perf_counter()
    geometry = Geometry(sky.config)
    stars = true_stars(sky, geometry)
    done = process(sky, config)
    common = np.minimum(stars.science_sn, stars.template_sn) > FAIR_SN
    facts = sky.config
    out = {
        "seed": facts.seed,
        "site": facts.site,
        "band": facts.band,
        "chip": facts.chips[0],
        "size": facts.size[0],
        "offset": list(facts.offset),
        "density": facts.sky.density_deg2,
        "clean": facts.detector.cosmic_rays_mpix == 0,
        "combine": facts.template.combine,
        "pointing_arcsec": facts.optics.pointing_error_arcsec[1],
        "rotation_deg": float(sky.truth["rotation_deg"]),
        "seeing_arcsec": sky.truth["seeing_arcsec"].tolist(),
        "common_stars": int(common.sum()),
        "status": done.status,
        "reason": done.reason,
        "registers": done.registers,
        "seconds": done.seconds,
        "cells": [],
    }
    if done.subtracted is not None:
        out["cells"] = _cells(sky, geometry, stars, done)
        out["method"] = done.subtracted.registration.method
        out["n_matched"] = done.subtracted.registration.n_matched
        covered = geometry.covered(done.subtracted.chip.image.shape)
        out |= changes_figures(sky, stars, done.subtracted, covered)
    out["seconds_all"] = round(time.perf_counter() - start, 1)
    return out


def _cells(sky: Sky, geometry: Geometry, stars: Stars, done: Done) -> list[dict]:
    """Return one row per 1k cell."""
    shape = (sky.config.size[1], sky.config.size[0])
    n, m = cell_grid(shape, CELL_PIX)
    x, y = cell_middles(shape)
    high, wide = shape[0] / n, shape[1] / m
    rows = []
    for j in range(n):
        for i in range(m):
            inside = (stars.rows["x"] // wide == i) & (stars.rows["y"] // high == j)
            row = {"j": j, "i": i, "mixed": bool(sky.truth["mixed"][j, i])}
            row["n_telling"] = int((inside & stars.telling()).sum())
            row |= registration_row(geometry, done, (x[j, i], y[j, i]), (wide, high))
            for name, field in (
                ("psf", done.subtracted.chip.psf),
                ("template_psf", done.subtracted.template.psf),
            ):
                stamp = field.at(x[j, i], y[j, i])
                error = float(field.error.at(np.array([x[j, i]]), np.array([y[j, i]]))[0])
                row[name] = psf_row(stamp, sky.truth[name][j, i]) | {"stated": error}
            row |= scale_row(sky, geometry, stars, done, inside)
            rows.append(row)
    return rows


def registration_row(geometry: Geometry, done: Done, middle, size) -> dict:
    """Return the registration's error in a cell: rms per axis over a grid, and what it says itself."""
    registration = done.subtracted.registration
    shape = done.subtracted.chip.image.shape
    along = (np.arange(GRID) + 0.5) / GRID - 0.5
    gx, gy = np.meshgrid(middle[0] + along * size[0], middle[1] + along * size[1])
    x, y = gx.ravel().clip(0, shape[1] - 1), gy.ravel().clip(0, shape[0] - 1)
    difference = template_position(registration, x, y) - geometry.template_position(done.part.wcs, x, y)
    rms = np.sqrt((difference**2).mean(axis=1))
    at = (np.array([middle[0]]), np.array([middle[1]]))
    j, i = registration.bad.cell_of(*at)
    return {
        "register": float(rms.max()),
        "register_mean": difference.mean(axis=1).tolist(),
        "register_stated": float(registration.error.at(*at)[0]),
        "register_bad": bool(registration.bad.values[j[0], i[0]]),
    }


def psf_row(model: np.ndarray, truth: np.ndarray) -> dict:
    """Return the largest error in the core and in the wings, fractions of the true peak.

    Both stamps are cut to the smaller one and have sum 1 there. The core is within one FWHM of the middle;
    in the wings, from 1.5 FWHM to the stamp's border, errors are averaged over 5x5 pixels; the annulus's mean
    error beside it.
    """
    half = min(model.shape[0], truth.shape[0]) // 2
    model, truth = (_cut(stamp.astype(np.float64), half) for stamp in (model, truth))
    truth = truth / truth.sum()
    peak = truth.max()
    fwhm = 2 * np.sqrt((truth >= peak / 2).sum() / np.pi)
    error = (model - truth) / peak
    offset = np.arange(-half, half + 1)
    r = np.hypot(offset[:, None], offset[None, :])
    wings = (r > 1.5 * fwhm) & (r <= half)
    smooth = ndimage.uniform_filter(error, WING_SMOOTH, mode="nearest")
    core = r <= fwhm
    return {
        "core": float(np.abs(error[core]).max()),
        "peak_error": float(error[half, half]),
        "wings": float(np.abs(smooth[wings]).max()) if wings.any() else 0.0,
        "wings_mean": float(error[wings].mean()) if wings.any() else 0.0,
        "fwhm": float(fwhm),
        "half": int(half),
    }


def _cut(stamp: np.ndarray, half: int) -> np.ndarray:
    middle = stamp.shape[0] // 2
    return stamp[middle - half : middle + half + 1, middle - half : middle + half + 1]


def scale_row(sky: Sky, geometry: Geometry, stars: Stars, done: Done, inside: np.ndarray) -> dict:
    """Return the relative error of the flux scale in a cell: mean, and the largest of an amplifier's part.

    The truth at each star is its science counts, amplifier gains as corrected by the signature, over its
    surface brightness in the template.
    """
    match, rows = done.subtracted.match, stars.rows
    use = inside & np.isfinite(stars.template_counts)
    if not use.any():
        return {"scale": None, "scale_amplifier": None, "scale_stated": None}
    x, y = rows["x"][use], rows["y"][use]
    strips = sky.truth["amplifiers"]
    which = np.searchsorted(strips["x0"], x, side="right") - 1
    corrected = np.ones(len(strips)) if done.signature.match is None else done.signature.match.gain
    true = rows["flux"][use] / corrected[which] / stars.template_counts[use] * geometry.area(x, y)
    model = match.scale.at(x, y)
    for step in match.amplifiers:
        of_it = (x >= step.x0 - 0.5) & (x < step.x1 - 0.5) & (y >= step.y0 - 0.5) & (y < step.y1 - 0.5)
        model = np.where(of_it, model * step.factor, model)
    error = model / true - 1
    parts = [error[which == k].mean() for k in np.unique(which)]
    middle = (np.array([x.mean()]), np.array([y.mean()]))
    return {
        "scale": float(error.mean()),
        "scale_amplifier": float(max(parts, key=abs)),
        "scale_stated": float(match.scale_error.at(*middle)[0]),
    }
