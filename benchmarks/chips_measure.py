"""Run the pipeline on a drawn chip and hold what comes out against the truth."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage

from benchmarks.chips_changes import changes_figures
from benchmarks.chips_sky import Sky
from benchmarks.chips_stamps import TrueStamps, disc, groups_of, template_variance, true_stamps
from benchmarks.chips_truth import Geometry, cell_middles, signal_to_noise
from ks4diff.io.exposures import find_exposures
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.pipeline.isolate import isolated
from ks4diff.pipeline.pair import calibrated, match_chips, subtract_chips
from ks4diff.pipeline.report import Stopwatch
from ks4diff.pipeline.run import Edges, Prepared, prepared
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match
from ks4diff.products.registration import Registration
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.register import register, template_position

GRID = 8  # positions a side at which a cell's registration is compared
FAIR_SN = 10.0  # of a star that both images are said to show
TELLING_SN, TELLING_STARS = 50.0, 30  # issue 4: what a cell needs for the absolute limits to hold
PLACES_SAID = 16  # stars of a cell at whose places the PSFs' light is summed
UNFADED = 0.75  # of a stamp's half-width: within, PSF stamps hold all of the light that they model
WING_SMOOTH = 5  # pixels over which a PSF's wings are averaged before their largest error is taken


@dataclass(frozen=True, kw_only=True)
class Done:
    """One chip through the pipeline: its products (None when refused) and what else the truth needs."""

    ready: Prepared
    matched: tuple[CalibratedChip, AlignedTemplate, Registration, Match] | None
    subtracted: SubtractedChip | None
    status: str
    reason: str | None
    registers: bool  # when nothing came out: registration alone does
    seconds: dict[str, float]


def process(sky: Sky, config: PipelineConfig, *, until_match: bool = False) -> Done:
    """Return a drawn chip after the stages of `ks4diff.pipeline.run.process_chip`, by the same calls."""
    (chip,) = sky.config.chips
    clock = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        store = TemplateStore(Path(folder), create=True)
        with clock.step("ingest"):
            add_tile(store, sky.tile, TileOptions(band=sky.config.band))
        (files,) = find_exposures([sky.raw])
        with clock.step("prepare"):
            ready = prepared(files, chip, Edges(templates=store), config)
    template = as_template(ready.part)

    def work() -> tuple:
        with clock.step("calibrate"):
            science = calibrated(ready.raw, config)
        if until_match:
            return match_chips(science, template, config, clock), None
        done = subtract_chips(science, template, config, clock)
        return (done.chip, done.template, done.registration, done.match), done

    done = isolated(work, f"chip {sky.config.seed}")
    registers = True
    if done.result is None:
        again = isolated(lambda: register(calibrated(ready.raw, config), template, config.register), "")
        registers = again.result is not None
    matched, subtracted = done.result or (None, None)
    return Done(
        ready=ready,
        matched=matched,
        subtracted=subtracted,
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
    template_counts: np.ndarray  # the mean of the dithers
    cell: np.ndarray  # with ``dithers`` see `groups_of`
    dithers: np.ndarray

    def telling(self) -> np.ndarray:
        """Return bool [n]: S/N above 50 in both images."""
        return np.minimum(self.science_sn, self.template_sn) > TELLING_SN


def constant_stars(sky: Sky) -> np.ndarray:
    """Return the rows of SOURCES that are stars which did not change."""
    rows = sky.truth["sources"]
    return rows[rows["kind"] == b"star"]


def true_stars(sky: Sky, geometry: Geometry, stamps: TrueStamps) -> Stars:
    """Return the constant stars, and their S/N by the PSFs in the middle of the chip."""
    config, truth = sky.config, sky.truth
    rows = constant_stars(sky)
    middle = tuple(n // 2 for n in stamps.psf.shape[:2])
    psf, blurred = stamps.psf[middle].astype(float), np.nan_to_num(stamps.template_psf[middle].astype(float))
    strips = truth["amplifiers"]
    live = strips[~strips["dead"]]
    variance = float(truth["sky_e"]) + float(np.mean(live["read_noise"] ** 2))
    counts = geometry.template_counts(rows["ra"], rows["dec"], rows["template_mag"])
    electrons = np.nan_to_num(counts) * geometry.electrons_per_count
    depth = variance / template_variance(geometry)
    science_sn = signal_to_noise(rows["flux_e"], psf, variance)
    template_sn = signal_to_noise(electrons * depth, blurred, variance * depth)
    full = config.detector.saturation_adu * float(live["gain"].min()) * 0.9
    dead = np.zeros(len(rows), dtype=bool)
    for strip in strips[strips["dead"]]:
        dead |= (rows["x"] >= strip["x0"]) & (rows["x"] < strip["x1"])
    keep = ~dead & (
        np.maximum(rows["flux_e"] * psf.max(), electrons * blurred.max()) + float(truth["sky_e"]) < full
    )
    cell, dithers = groups_of(geometry, rows)
    return Stars(
        rows=rows[keep],
        science_sn=science_sn[keep],
        template_sn=np.where(np.isfinite(counts), template_sn, 0.0)[keep],
        template_counts=counts[keep],
        cell=cell[keep],
        dithers=dithers[keep],
    )


def measured(sky: Sky, config: PipelineConfig, *, until_match: bool = False) -> dict:
    """Return all figures of one chip as plain numbers: of the chip, and of each of its 1k cells."""
    start, cpu = time.perf_counter(), [time.process_time()]
    geometry = Geometry(sky.config)
    stamps = true_stamps(geometry, constant_stars(sky), sky.raw.parent)
    stars = true_stars(sky, geometry, stamps)
    cpu.append(time.process_time())
    done = process(sky, config, until_match=until_match)
    cpu.append(time.process_time())
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
    if done.matched is not None:
        chip, _, registration, _ = done.matched
        out["cells"] = _cells(geometry, stamps, stars, done, sky.truth["amplifiers"])
        out["method"] = registration.method
        out["n_matched"] = registration.n_matched
        if done.subtracted is not None:
            out |= changes_figures(sky, stars, done.subtracted, geometry.covered(chip.image.shape))
    cpu.append(time.process_time())
    took = np.diff(cpu).round(1).tolist()
    out["cpu_seconds"] = dict(zip(("truth", "pipeline", "figures"), took, strict=True))
    out["seconds_all"] = round(time.perf_counter() - start, 1)
    return out


def _cells(
    geometry: Geometry, stamps: TrueStamps, stars: Stars, done: Done, strips: np.ndarray
) -> list[dict]:
    """Return one row per 1k cell."""
    chip, template, registration, _ = done.matched
    x, y = cell_middles(chip.image.shape)
    corrected = np.ones(len(strips))
    if done.ready.signature.match is not None:
        corrected = done.ready.signature.match.gain
    rows = []
    for j, i in np.ndindex(x.shape):
        inside = stars.cell == j * x.shape[1] + i
        row = {"j": j, "i": i, "mixed": bool(stamps.mixed[j, i])}
        row["n_telling"] = int((inside & stars.telling()).sum())
        size = (chip.image.shape[1] / x.shape[1], chip.image.shape[0] / x.shape[0])
        row |= registration_row(geometry, (registration, done.ready.part.wcs), (x[j, i], y[j, i]), size)
        for name, field in (("psf", chip.psf), ("template_psf", template.psf)):
            error = float(field.error.at(x[j : j + 1, i], y[j : j + 1, i])[0])
            row[name] = psf_row(field.at(x[j, i], y[j, i]), getattr(stamps, name)[j, i]) | {"stated": error}
        rows.append(row | scale_row(geometry, stamps, (stars, inside), done.matched, (strips, corrected)))
    return rows


def registration_row(geometry: Geometry, found: tuple[Registration, WCS], middle, size) -> dict:
    """Return the registration's error in a cell: rms per axis over a grid, and what it says itself.

    ``found`` is the registration and the WCS of the template that it leads to.
    """
    registration, wcs = found
    shape = registration.error.shape
    along = (np.arange(GRID) + 0.5) / GRID - 0.5
    gx, gy = np.meshgrid(middle[0] + along * size[0], middle[1] + along * size[1])
    x, y = gx.ravel().clip(0, shape[1] - 1), gy.ravel().clip(0, shape[0] - 1)
    difference = template_position(registration, x, y) - geometry.template_position(wcs, x, y)
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

    Both are of sum 1 within `UNFADED` of the model's half-width, where no stamp fades yet, the light by which
    `scale_row` weighs too. The core is within one FWHM of the middle; in the wings, from 1.5 FWHM to the
    stamp's border, errors are averaged over 5x5 pixels; the annulus's mean error beside it.
    """
    whole = model.shape[0] // 2
    half = min(model.shape[0], truth.shape[0]) // 2
    model, truth = (_cut(stamp.astype(np.float64), half) for stamp in (model, truth))
    light = disc(UNFADED * whole, half)
    model, truth = model / model[light].sum(), truth / truth[light].sum()
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
        "half": int(whole),
        "in_stamp": float(truth.sum()),
    }


def _cut(stamp: np.ndarray, half: int) -> np.ndarray:
    middle = stamp.shape[0] // 2
    return stamp[middle - half : middle + half + 1, middle - half : middle + half + 1]


def scale_row(geometry: Geometry, stamps: TrueStamps, some, matched, amplifiers) -> dict:
    """Return the relative error of the flux scale in a cell: mean, and the largest of an amplifier's part.

    What a scale and two PSFs say of a star is the ratio of its light in both images within one disc, the
    widest in which neither stamp fades. The truth is that ratio at each star: science counts, amplifier gains
    as the signature left them, over what its flux gives free of noise in the tile as it was combined.
    ``scale_all`` compares the scale itself with the ratio of all light within `HALF` pixels: what the zero
    point errs by. ``some`` are the stars and which of them count, ``amplifiers`` the true strips and their
    corrected gains.
    """
    (stars, inside), (chip, template, _, match), (strips, gains) = some, matched, amplifiers
    rows = stars.rows
    half = UNFADED * min(chip.psf.mean.shape[0], template.psf.mean.shape[0]) // 2
    light = disc(half)
    kept = stars.cell * np.nan
    kept[inside] = stamps.kept_of(stars.cell[inside], stars.dithers[inside], light)
    use = inside & np.isfinite(stars.template_counts) & np.isfinite(kept)
    if not use.any():
        return {"scale": None, "scale_all": None, "scale_amplifier": None, "scale_stated": None}
    x, y = rows["x"][use], rows["y"][use]
    which = np.searchsorted(strips["x0"], x, side="right").clip(1) - 1
    counts = rows["flux"][use] / gains[which], stars.template_counts[use] / geometry.area(x, y)
    own = stamps.psf.reshape(-1, *light.shape)[stars.cell[use][0]]
    middle = (np.array([x.mean()]), np.array([y.mean()]))
    # here and there in the cell: a border of the stack may lie across it
    spread = np.linspace(0, len(x) - 1, min(len(x), PLACES_SAID)).astype(int)
    said = [
        np.array([_light(psf.at(float(x[k]), float(y[k])), half) for k in spread])
        for psf in (chip.psf, template.psf)
    ]
    claimed = float(np.mean(said[0] / said[1]))
    model = match.scale.at(x, y)
    for step in match.amplifiers:
        of_it = (x >= step.x0 - 0.5) & (x < step.x1 - 0.5) & (y >= step.y0 - 0.5) & (y < step.y1 - 0.5)
        model = np.where(of_it, model * step.factor, model)
    true = counts[0] * own[light].sum() / (counts[1] * kept[use])
    error = model * claimed / true - 1
    all_kept = stamps.kept_of(stars.cell[use], stars.dithers[use], np.ones_like(light))
    all_true = counts[0] * own.sum() / (counts[1] * all_kept)
    parts = [error[which == k].mean() for k in np.unique(which)]
    return {
        "scale": float(error.mean()),
        "scale_all": float((model / all_true - 1).mean()),
        "scale_amplifier": float(max(parts, key=abs)),
        "scale_stated": float(match.scale_error.at(*middle)[0]),
        "kept": float(np.mean(all_kept)),
    }


def _light(stamp: np.ndarray, radius: float) -> float:
    """Return the share of a stamp's light within ``radius`` pixels."""
    return float(stamp[disc(radius, stamp.shape[0] // 2)].sum(dtype=np.float64))
