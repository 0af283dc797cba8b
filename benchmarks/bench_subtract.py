"""Time and weigh the subtraction of a full chip beside its floor: 16 real float32 FFTs of its pixels."""

from __future__ import annotations

import argparse
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import fft

from benchmarks.timing import machine
from ks4diff.numerics.pools import set_threads
from ks4diff.products.cells import Cells
from ks4diff.products.psf import PsfField
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig
from tests.known_pairs import Doubt, Plan, Side
from tests.strategies import moffat

PIECE = 1024  # px: the floor's FFTs are of squares this large, which is kind to it


def varying(fwhm: float, shape: tuple[int, int]) -> PsfField:
    """Return a PSF field that widens by a tenth from the middle to the corners, errors 0.5 %."""
    mean, mode = moffat(41, fwhm), moffat(41, 1.1 * fwhm) - moffat(41, fwhm)
    y, x = np.mgrid[-1:1:9j, -1:1:9j]
    return PsfField(
        mean=mean.astype(np.float32),
        modes=mode[None].astype(np.float32),
        amplitudes=Cells(values=(0.5 * (x**2 + y**2))[None].astype(np.float32), shape=shape),
        error=Cells.constant(0.005, shape),
        fwhm=Cells.constant(fwhm, shape),
        n_stars=500,
    )


def pair(shape: tuple[int, int]):
    """Return a chip of noise with 20 bright pixels and 5 holes in 10,000, 3 dead columns, all terms on."""
    rng = np.random.default_rng(1)
    images = [rng.standard_normal(shape, dtype=np.float32) * np.float32(s) for s in (17.0, 10.0)]
    flags = np.zeros(shape, dtype=np.uint16)
    flags[:, rng.integers(0, shape[1], 3)] = 256
    y, x = (rng.integers(0, n - 4, int(5e-4 * flags.size)) for n in shape)
    flags[y, x] = flags[y, x + 1] = 2048
    plan = Plan(
        science=Side(psf=varying(4.0, shape)),
        template=Side(psf=varying(3.2, shape), sky=120.0),
        doubt=Doubt(scale=0.003, shift=0.03),
    )
    return plan.known(*images, (flags, None))


def floor(shape: tuple[int, int], threads: int) -> None:
    """Do 16 real float32 FFTs of as many pixels, on as many threads."""
    piece = np.random.default_rng(1).standard_normal((PIECE, PIECE), dtype=np.float32)
    n = round(16 * shape[0] * shape[1] / PIECE**2)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: fft.rfft2(piece) is None, range(n)))


def resident() -> float:
    """Return the memory that this process holds now, GB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e9


def watched(work) -> tuple[float, float, float]:
    """Return the seconds of ``work()``, its CPU seconds, and the most memory beyond what there was, GB."""
    before, most, done = resident(), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], resident() - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    kept = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    del kept
    return seconds, cpu, most[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=9232)
    parser.add_argument("--columns", type=int, default=9216)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    shape = given.rows, given.columns
    config = SubtractConfig()
    set_threads(given.threads)
    small = pair((700, 800))
    subtract(small.chip, small.template, small.match, small.registration, config)  # compiles
    known = pair(shape)
    print(machine())
    for _ in range(2):
        least, least_cpu, _ = watched(lambda: floor(shape, given.threads))
        seconds, cpu, memory = watched(
            lambda: subtract(known.chip, known.template, known.match, known.registration, config)
        )
        print(
            f"subtract {shape[1]}x{shape[0]}, {given.threads} threads: {seconds:.2f} s ({cpu:.2f} s of CPU), "
            f"{memory:.2f} GB beyond its inputs"
        )
        print(f"  floor {least:.2f} s ({least_cpu:.2f}), ratio {seconds / least:.2f} ({cpu / least_cpu:.2f})")


if __name__ == "__main__":
    main()
