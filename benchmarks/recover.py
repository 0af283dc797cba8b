"""Inject sources into simulated chips at four seeings and print what comes back, and what else does.

    python -m benchmarks.recover [--size 1536] [--chips 1] [--cache DIR] [--json FILE]

Per seeing and with or without cosmic rays and trails: completeness by expected S/N (a flagged source is
missed), unflagged detections that are no real source per Mpix, and the floor of pure noise, both signs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.chips_changes import noise_floor
from benchmarks.chips_sky import Sky, sky_for
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.templates import TemplateStore
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.efficiency import with_injected
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.pipeline.pair import calibrated
from ks4diff.pipeline.run import POINTING_ERROR_PIX
from ks4diff.pipeline.templates import template_for
from ks4diff.products.candidates import CANDIDATE_FLAGS
from ks4diff.products.chip import CalibratedChip, RawChip
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.astrometry import nominal_wcs
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.inject import PLACES, InjectConfig
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.photometry import njy_per_count
from ks4diff.stages.recover import (
    FLAGGED,
    UNFLAGGED,
    RecoverConfig,
    efficiency,
    false_counts,
    near_any,
    recover,
    wilson,
)
from ks4diff.stages.signature import find_signature
from ks4diff.stages.sim.config import DetectorConfig, OpticsConfig, SimulateConfig, TemplateConfig

SEEINGS = (0.85, 1.2, 1.55, 2.0)
BRIGHT_HOST_MAG = 21.5  # fainter galaxies hide nothing
HOST_FWHM_PIX = 5.0
BINS = ((6.0, 8.0), (8.0, np.inf))


def sky_config(seeing: float, dirty: bool, number: int, size: int) -> SimulateConfig:
    """Return the chip to draw: the densities of DR1, the sky's own changes among them."""
    clean = DetectorConfig(cosmic_rays_mpix=0, trails=0, bad_columns=0, hot_pixels_mpix=0)
    return SimulateConfig(
        seed=500 + number,
        chips=("K",),
        size=(size, size),
        exposures=1,
        optics=OpticsConfig(seeing_arcsec=seeing),
        detector=DetectorConfig(cosmic_rays_mpix=70.0, trails=1.0) if dirty else clean,
        template=TemplateConfig(exposures=3),
    )


def prepared(sky: Sky, config: PipelineConfig) -> tuple[RawChip, CalibratedChip]:
    """Return the science chip ready for injection and its template, calibrated."""
    (chip,) = sky.config.chips
    with tempfile.TemporaryDirectory() as folder:
        store = TemplateStore(Path(folder), create=True)
        add_tile(store, sky.tile, TileOptions(band=sky.config.band))
        (files,) = find_exposures([sky.raw])
        raw = read_exposure_chip(files, chip)
        raw = raw if raw.wcs is not None else replace(raw, wcs=nominal_wcs(raw))
        raw = find_signature(raw, None, config.signature).chip
        wanted = replace(config.template, margin_pix=max(config.template.margin_pix, POINTING_ERROR_PIX))
        part = template_for(store, chip_footprint(raw.wcs, raw.data.shape), raw.filter, wanted)
    return raw, as_template(part)


def real_ones(sky: Sky, done: SubtractedChip, injected: np.ndarray, match_pix: float) -> np.ndarray:
    """Return bool [n]: candidates on something that changed, in the sky's truth or injected."""
    rows, table = sky.truth["sources"], done.candidates.table
    rows = rows[np.isfinite(rows["expected_scorr"]) | np.isin(rows["kind"], [b"moving", b"fading"])]
    streak = np.hypot(rows["rate_x"], rows["rate_y"]) * sky.config.exptime_s / 3600
    away = np.hypot(table["x"][:, None] - rows["x"], table["y"][:, None] - rows["y"]) - streak / 2
    return (away < match_pix).any(axis=1) | near_any(table, injected["x"], injected["y"], match_pix)


def one(sky: Sky, config: PipelineConfig, seed: int) -> dict:
    """Return the figures of one chip."""
    raw, template = prepared(sky, config)
    recovery_config = RecoverConfig()
    hosts = sky.truth["sources"]
    hosts = hosts[(hosts["kind"] == b"galaxy") & (hosts["mag"] < BRIGHT_HOST_MAG)]
    galaxies = np.array([hosts["x"], hosts["y"], np.full(len(hosts), HOST_FWHM_PIX)])
    plain, wanted = calibrated(raw, config), InjectConfig(seed=seed)
    done, injected = with_injected(raw, plain, template, config, wanted, galaxies=galaxies)
    zeropoint = done.chip.raw.zeropoint
    unit = 1.0 if zeropoint is None else njy_per_count(zeropoint)
    back = recover(injected, done.candidates, done.difference, recovery_config, unit=unit)
    real = real_ones(sky, done, injected, recovery_config.match_pix)
    table = done.candidates.table
    lost = (back["became"] == FLAGGED) & (back["snr"] > BINS[0][0])
    near = near_any(table, injected["x"][lost], injected["y"][lost], recovery_config.match_pix)
    why = table["flags"][near]
    found = back["became"] >= UNFLAGGED
    bins = {
        f"{low:g}-{high:g}": [int((found & of_it).sum()), int(of_it.sum())]
        for low, high in BINS
        for of_it in [(back["snr"] >= low) & (back["snr"] < high)]
    }
    places = {
        name: [int((found & of_it).sum()), int(of_it.sum())]
        for k, name in enumerate(PLACES)
        for of_it in [(injected["place"] == k) & (back["snr"] >= BINS[1][0])]
    }
    return {
        "bins": bins,
        "places": places,
        "false": false_counts(done.candidates, real),
        "mpix": raw.data.size / 1e6,
        "floor_mpix": noise_floor(done.difference.psf),
        "candidates": len(table),
        "lost_flags": {
            f.name: int((why & f.bit > 0).sum())
            for f in CANDIDATE_FLAGS
            if f.rejecting and (why & f.bit).any()
        },
        "efficiency": [vars(b) for b in efficiency(back, back["snr"], recovery_config.snr_edges, 1.0)],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1536)
    parser.add_argument("--chips", type=int, default=1, help="of each kind")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ks4diff-recover")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    every = []
    for dirty in (False, True):
        for k, seeing in enumerate(SEEINGS):
            rows = []
            for n in range(options.chips):
                sky = sky_for(sky_config(seeing, dirty, 10 * n + k, options.size), options.cache)
                rows.append(one(sky, PipelineConfig(), 900 + 10 * n + k))
            every.append({"seeing": seeing, "dirty": dirty, "chips": rows})
            print(line(every[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(every, indent=1))


def line(row: dict) -> str:
    """Return one printed line of figures."""
    chips = row["chips"]
    mpix = sum(c["mpix"] for c in chips)
    words = [f'{row["seeing"]:.2f}" {"hits and trails" if row["dirty"] else "clean":>15s}']
    for name in chips[0]["bins"]:
        found, total = (sum(c["bins"][name][i] for c in chips) for i in (0, 1))
        low, high = wilson(found, total)
        words.append(f"S/N {name}: {found}/{total} ({100 * low:.0f}-{100 * high:.0f} %)")
    false = {t: sum(c["false"][t] for c in chips) / mpix for t in chips[0]["false"]}
    words.append("false/Mpix " + ", ".join(f"{v:.1f} >{t:g}" for t, v in false.items()))
    words.append(f"floor {np.mean([c['floor_mpix'] for c in chips]):.2f}")
    words.append("lost to " + (str([c["lost_flags"] for c in chips if c["lost_flags"]]) or "nothing"))
    return "; ".join(words)


if __name__ == "__main__":
    main()
