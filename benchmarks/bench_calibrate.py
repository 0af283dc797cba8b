"""Time what one full chip goes through before its PSF: mask, background, stars, noise; and peak memory.

The chip is one drawn field repeated over it, with noise of its own everywhere. ``--sep`` times, on the same
chip, the calls of sep that these steps replaced.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import machine
from ks4diff.products.psf import Psf, PsfField
from ks4diff.stages.background import BackgroundConfig, reduce_chip
from ks4diff.stages.noise import NoiseConfig, measure_noise
from ks4diff.stages.stars import StarsConfig, find_stars
from tests import skies

EPOCH = skies.Epoch(seeing=skies.Seeing(fwhm=3.2, beta=3.5), sky=165.0, gain=1.8, read_noise=7.0)
FIELD = (1154, 1152)  # eight times eight of them make a chip
SOURCES = 70_000 // 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", type=int, default=8, help="drawn fields along one side")
    parser.add_argument("--sep", action="store_true", help="time sep too")
    options = parser.parse_args()
    warm_up()
    data = chip(options.fields)
    print(f"{machine()}\n{data.shape[1]} x {data.shape[0]} px, about {SOURCES * options.fields**2} sources")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reduced = timed("mask and background", reduce_chip, skies.raw_chip(data, EPOCH), BackgroundConfig())
    stars = timed("stars", find_stars, reduced, StarsConfig())
    noise = timed("noise", measure_noise, reduced, psf(data.shape), NoiseConfig())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(stars)} stars, {stars.clean.sum()} clean; sigma {noise.sigma:.3f} of {EPOCH.sky_sigma:.3f}")
    print(
        f"peak memory above the raw chip: {(after - before) / 1024:.0f} MB ({data.nbytes / 2**20:.0f} MB raw)"
    )
    if options.sep:
        with_sep(data)


def chip(fields: int) -> np.ndarray:
    """Return float32 counts of fields x fields copies of one field, the noise of each its own."""
    rng = np.random.default_rng(1)
    stars = skies.star_field(1, FIELD, int(SOURCES * 1.6))
    clean = EPOCH.sky + skies.draw(FIELD, stars.x, stars.y, stars.flux, EPOCH.seeing)
    out = np.empty((FIELD[0] * fields, FIELD[1] * fields), dtype=np.float32)
    sigma = np.sqrt(clean / EPOCH.gain + (EPOCH.read_noise / EPOCH.gain) ** 2).astype(np.float32)
    for j in range(fields):
        for i in range(fields):
            box = np.s_[j * FIELD[0] : (j + 1) * FIELD[0], i * FIELD[1] : (i + 1) * FIELD[1]]
            out[box] = clean + sigma * rng.standard_normal(FIELD, dtype=np.float32)
    return out


def psf(shape: tuple[int, int]) -> PsfField:
    stamp = EPOCH.seeing.stamp(25).astype(np.float32)
    return PsfField.uniform(Psf(stamp=stamp, fwhm_pix=EPOCH.seeing.fwhm, n_stars=50), shape)


def warm_up() -> None:
    """Compile the kernels on a small image."""
    data = chip(1)[:400, :420].copy()
    reduced = reduce_chip(skies.raw_chip(data, EPOCH), BackgroundConfig())
    find_stars(reduced, StarsConfig())


def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
    start, used = time.perf_counter(), time.process_time()
    result = work(*arguments)
    print(
        f"{name:22} {time.perf_counter() - start:6.2f} s, processors {time.process_time() - used:6.2f} s",
        flush=True,
    )
    return result


def with_sep(data: np.ndarray) -> None:
    """Time two backgrounds and one extraction by sep, without the masks in between."""
    import sep

    background = timed("sep.Background", sep.Background, data)
    level = timed("sep background's map", background.back)
    timed("sep.Background again", sep.Background, data)
    sep.set_extract_pixstack(data.size // 4)
    found = timed("sep.extract", sep.extract, data - level, 3.0 * background.globalrms)
    print(f"{len(found)} objects")


if __name__ == "__main__":
    main()
