"""Time one full chip stage by stage, and its peak memory, in a process of its own.

The chip (9216x9232, 70,000 sources per square degree, R, CTIO) and its tile are drawn when --sky has none
(150 s, 4 GB). Promised on two cores: registration + warp + PSFs + scale within 6 s and 3 GB; the subtraction
within 6 s and twice its floor, 16 real float32 FFTs of the chip's pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from benchmarks.timing import machine
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.templates import TemplateStore
from ks4diff.io.tile_tables import read_distortions
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ingest import TileOptions, add_tile
from ks4diff.pipeline.pair import calibrated, match_chips, subtract_chips
from ks4diff.pipeline.report import Stopwatch
from ks4diff.pipeline.run import POINTING_ERROR_PIX
from ks4diff.pipeline.simulate import simulate
from ks4diff.pipeline.simulate_config import simulate_config
from ks4diff.pipeline.templates import template_for
from ks4diff.stages import calibrate as calibrate_stage
from ks4diff.stages.astrometry import first_wcs
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.signature import remove_signature

PARTS = ("reduce_chip", "find_stars", "model_psf", "measure_noise")  # of calibrate, where they are so called
ACCURACY = ("calibrate.model_psf", "register", "align", "match")  # what the 6 s and 3 GB are promised for
FLOOR_FFTS, FLOOR_PATCH = 16, 1024
THREADS = 2
PROMISED_S, PROMISED_GB, PROMISED_FLOORS = 6.0, 3.0, 2.0


def sky(folder: Path, size: tuple[int, int]) -> Path:
    """Return the folder of a simulated chip of that size, drawn unless it is there."""
    if not (folder / "manifest.json").exists():
        settings: dict[str, Any] = {"seed": 11, "chips": ["K"], "exposures": 1, "size": list(size)}
        simulate(simulate_config(None, None, settings), folder)
    return folder


def peak_gb() -> float:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stages(Stopwatch):
    """A stopwatch that also notes each step's processor seconds and the peak memory after it."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the body under ``name``."""
        start = time.process_time()
        with super().step(name):
            yield
        self.cpu[name] = time.process_time() - start
        self.peaks[name] = round(peak_gb(), 2)


def timed(clock: dict[str, float], name: str, work: Callable) -> Callable:
    """Return ``work`` with its seconds added to ``clock``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            clock[name] = clock.get(name, 0.0) + time.perf_counter() - start

    return run


def one_pass(
    folder: Path, store: TemplateStore, config: PipelineConfig, *, until_match: bool
) -> dict[str, Any]:
    """Return seconds per stage and the peak memory before and after the subtraction of one chip."""
    clock, parts = Stages(), {}
    (files,) = find_exposures([folder / "raw"])
    with clock.step("read"):
        raw = read_exposure_chip(files, "K")
        raw = replace(raw, wcs=first_wcs(raw, read_distortions()))  # as `ks4diff.pipeline.run` does
    with clock.step("signature"):
        raw = remove_signature(raw, None, config.signature)
    wanted = replace(config.template, margin_pix=max(config.template.margin_pix, POINTING_ERROR_PIX))
    with clock.step("template"):
        part = template_for(store, chip_footprint(raw.wcs, raw.data.shape), raw.filter, wanted)
    template = as_template(part)
    del part
    plain = {name: getattr(calibrate_stage, name) for name in PARTS if hasattr(calibrate_stage, name)}
    for name, work in plain.items():
        setattr(calibrate_stage, name, timed(parts, f"calibrate.{name}", work))
    try:
        with clock.step("calibrate"):
            science = calibrated(raw, config)
    finally:
        for name, work in plain.items():
            setattr(calibrate_stage, name, work)
    del raw
    if until_match:
        _, _, registration, _ = match_chips(science, template, config, clock)
        candidates = 0
    else:
        done = subtract_chips(science, template, config, clock)
        registration, candidates = done.registration, len(done.candidates)
    return {
        "seconds": {**clock.seconds, **parts},
        "cpu": clock.cpu,
        "peaks": clock.peaks,
        "stars": len(science.stars),
        "matched": registration.n_matched,
        "candidates": candidates,
    }


def floor_seconds(shape: tuple[int, int], n: int) -> tuple[float, float]:
    """Return the best seconds of `FLOOR_FFTS` real float32 FFTs: in patches of 1024 px, of the whole chip."""
    rng = np.random.default_rng(1)
    count = round(shape[0] * shape[1] / FLOOR_PATCH**2)
    patches = rng.standard_normal((8, FLOOR_PATCH, FLOOR_PATCH), dtype=np.float32)
    fast = [fft.next_fast_len(side, real=True) for side in shape]
    whole = np.zeros(fast, dtype=np.float32)
    whole[:] = rng.standard_normal(fast[1], dtype=np.float32)
    best = [np.inf, np.inf]
    for _ in range(n):
        start = time.perf_counter()
        fft.rfft2(patches, workers=THREADS)
        best[0] = min(best[0], (time.perf_counter() - start) * FLOOR_FFTS * count / len(patches))
        start = time.perf_counter()
        fft.rfft2(whole, workers=THREADS, overwrite_x=False)
        best[1] = min(best[1], (time.perf_counter() - start) * FLOOR_FFTS)
    return best[0], best[1]


def child(folder: Path, n: int, *, until_match: bool) -> None:
    """Print the passes as JSON: the body of the process whose memory is measured."""
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        store = TemplateStore(Path(place), create=True)
        (tile,) = folder.glob("templates/*/*.fits")
        subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_chip", "--ingest", place, str(tile)], check=True
        )
        passes = [
            one_pass(folder, TemplateStore(Path(place)), PipelineConfig(), until_match=until_match)
            for _ in range(n)
        ]
    del store
    print(json.dumps(passes))


def report(folder: Path, n: int, label: str, *, until_match: bool) -> dict[str, float]:
    """Run the passes in a fresh process, print the table and return the best seconds per stage."""
    words = [sys.executable, "-m", "benchmarks.bench_chip", "--child", str(folder), "--passes", str(n)]
    words += ["--until-match"] if until_match else []
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    passes = json.loads(out.splitlines()[-1])
    names = list(passes[0]["seconds"])
    best = {name: min(p["seconds"].get(name, np.inf) for p in passes) for name in names}
    peaks, facts = passes[0]["peaks"], passes[0]
    print(f"{label}: {facts['stars']} stars, {facts['matched']} matched, {facts['candidates']} candidates")
    print(f"  {'':<28} {'wall':>8} {'cpu':>8} {'peak so far':>12}   seconds, GB; cpu counts both threads")
    for name in names:
        cpu = min((p["cpu"][name] for p in passes if name in p["cpu"]), default=np.nan)
        peak = f"{peaks[name]:12.2f}" if name in peaks else ""
        print(f"  {name:<28} {best[name]:8.2f} {cpu:8.2f} {peak}")
    return {**best, "peak": peaks["match"], "peak_all": max(peaks.values())}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_chip", description=__doc__)
    parser.add_argument("--sky", type=Path, default=Path("/tmp/full/sky"))
    parser.add_argument("--small", type=Path, default=Path("/tmp/full/sky2k"), help="a 2k chip beside it")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--full-only", action="store_true", help="leave the 2k chip out")
    parser.add_argument("--until-match", action="store_true", help="leave out the subtraction and all after")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ingest", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ingest:
        logging.disable(logging.ERROR)
        add_tile(TemplateStore(options.ingest[0]), options.ingest[1], TileOptions(band="R"))
        return
    if options.child:
        child(options.child, options.passes, until_match=options.until_match)
        return
    print(machine(), f"load {os.getloadavg()[0]:.2f}, best of {options.passes}")
    if not options.full_only:
        report(sky(options.small, (2048, 2048)), options.passes, "2048x2048", until_match=options.until_match)
    best = report(
        sky(options.sky, (9216, 9232)), options.passes, "9216x9232", until_match=options.until_match
    )
    accuracy = sum(best.get(name, 0.0) for name in ACCURACY)
    print(f"  load now {os.getloadavg()[0]:.2f}")
    print(
        f"registration + warp + PSFs + scale: {accuracy:.2f} s (promised {PROMISED_S:g}), "
        f"peak {best['peak']:.2f} GB (promised {PROMISED_GB:g})"
    )
    if options.until_match:
        return
    patches, whole = floor_seconds((9232, 9216), 3)
    print(
        f"subtract: {best['subtract']:.2f} s (promised {PROMISED_S:g}); {FLOOR_FFTS} real FFTs: "
        f"{patches:.2f} s in patches of {FLOOR_PATCH}, {whole:.2f} s whole; "
        f"{best['subtract'] / patches:.1f} floors "
        f"(promised {PROMISED_FLOORS:g}); peak of all {best['peak_all']:.2f} GB"
    )


if __name__ == "__main__":
    main()
