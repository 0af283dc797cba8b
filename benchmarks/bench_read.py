"""Read a full-size raw exposure (32 amplifiers of 1211 x 9232) chip by chip; writes it before."""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests import kmtnet_files

ROWS, WIDTH = 9232, 1152
NAME = "kmta.20170209.044131.fits"
ALLOWED_GB, WANTED_RATE = 1.5, 150.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where to write the 720 MB file (/tmp)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--read", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        return read(options.read, options.threads, options.runs)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="ks4diff-bench-") as folder:
        path = write(Path(folder) / NAME)
        print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()},", end=" ")
        print(f"numpy {np.__version__}, {options.threads} threads, {path.stat().st_size / 1e6:.0f} MB")
        # In a process of its own, so that the peak memory is that of reading.
        words = [sys.executable, "-m", "benchmarks.bench_read", "--read", str(path)]
        words += ["--threads", str(options.threads), "--runs", str(options.runs)]
        return subprocess.run(words, check=False).returncode


def write(path: Path) -> Path:
    """Write the exposure, one chip in memory at a time."""
    ramp = (1000 + np.arange(8 * WIDTH) % 5000).astype(np.float32)
    sky = np.broadcast_to(ramp, (ROWS, 8 * WIDTH))
    return kmtnet_files.raw_mef(path, dict.fromkeys(kmtnet_files.ORDER, sky))


def read(path: Path, threads: int, runs: int) -> int:
    from ks4diff.io.exposures import find_exposures
    from ks4diff.io.kmtnet import read_exposure_chip

    (files,) = find_exposures(path)
    pixels = len(files.chips) * ROWS * 8 * WIDTH
    baseline = min(bare_read(path) for _ in range(runs))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        for chip in files.chips:
            data = read_exposure_chip(files, chip, threads=threads).data
            if data.shape != (ROWS, 8 * WIDTH):
                raise SystemExit(f"chip {chip} has shape {data.shape}")
            del data
        seconds.append(time.perf_counter() - start)
    best = min(seconds)
    rate, peak = pixels / best / 1e6, peak_gb()
    print(f"read, trimmed and assembled: {best:.2f} s of {[round(s, 2) for s in seconds]}, {rate:.0f} Mpix/s")
    print(f"reading the bytes alone: {baseline:.2f} s; ratio {best / baseline:.1f}; peak RSS {peak:.2f} GB")
    good = rate >= WANTED_RATE and peak < ALLOWED_GB
    print(f"{'PASS' if good else 'FAIL'}: wanted {WANTED_RATE:.0f} Mpix/s and less than {ALLOWED_GB} GB")
    return 0 if good else 1


def peak_gb() -> float:
    """Return this process's own peak; getrusage would count the parent that started it."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def bare_read(path: Path) -> float:
    """Return the seconds that reading the file into one small buffer takes."""
    start = time.perf_counter()
    buffer = bytearray(2**22)
    with path.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
