"""Time the subtraction of one frame: ours, its plain form, a numpy twin in complex128, and sfft on request.

``--sfft FOLDER`` names where sfft is installed (pip install --no-deps --target FOLDER sfft pyfftw).
"""

from __future__ import annotations

import argparse
import sys
import types

import numpy as np

from benchmarks.timing import least_of_five, line, machine, timed
from ks4diff.numerics import zogy
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig
from tests import oracles
from tests.known_pairs import Plan, Side
from tests.strategies import moffat


def by_sfft(folder: str, science: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Return the `timed` numbers of sfft's subtraction: numpy backend, constant kernel, compiled before."""
    package = types.ModuleType("sfft")  # its own __init__ wants all the tools around the subtraction
    package.__path__ = [f"{folder}/sfft"]
    sys.modules["sfft"] = package
    sys.path.append(folder)
    from sfft.sfftcore.SFFTConfigure import SingleSFFTConfigure
    from sfft.sfftcore.SFFTSubtract import GeneralSFFTSubtract

    def work() -> None:
        options = {"BACKEND_4SUBTRACT": "Numpy", "NUM_CPU_THREADS_4SUBTRACT": 2}
        configured = SingleSFFTConfigure.SSC(
            NX=science.shape[0],
            NY=science.shape[1],
            KerHW=8,
            KerPolyOrder=0,
            BGPolyOrder=0,
            ConstPhotRatio=True,
            **options,
        )
        GeneralSFFTSubtract.GSS(
            PixA_I=template.astype(np.float64),
            PixA_J=science.astype(np.float64),
            PixA_mI=template.astype(np.float64),
            PixA_mJ=science.astype(np.float64),
            SFFTConfig=configured,
            ContamMask_I=None,
            **options,
        )

    work()
    return timed(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="pixels along one side")
    parser.add_argument("--sfft", default=None, help="folder that sfft is installed in")
    given = parser.parse_args()
    size = given.size
    rng = np.random.default_rng(1)
    psfs = moffat(29, 4.0), moffat(29, 3.0)
    light = np.zeros((size, size))
    light[rng.integers(0, size, size), rng.integers(0, size, size)] = 10 ** rng.uniform(2, 5, size)
    spread = [
        np.fft.irfft2(np.fft.rfft2(light) * np.fft.rfft2(oracles.centred(p, light.shape))) for p in psfs
    ]
    plan = Plan(science=Side(psf=psfs[0]), template=Side(psf=psfs[1], sky=200.0))
    known = plan.exposed((size, size), rng, light=spread)
    pair = [
        zogy.Side(side.image.data, np.full((size, size), v, dtype=np.float32), psf, 1.0, float(v))
        for side, psf in zip((known.chip, known.template), psfs, strict=True)
        for v in side.image.sky_variance.values.ravel()
    ]
    grid = zogy.grid_shape((size, size), 29)
    inputs = known.chip, known.template, known.match, known.registration
    ours = least_of_five(lambda: subtract(*inputs, SubtractConfig()))
    plain = least_of_five(lambda: zogy.subtract(*pair, sigma_x=0.1, sigma_y=0.1))
    twin = timed(lambda: oracles.zogy(*pair, grid, sigma=(0.1, 0.1)))
    print(machine())
    rows = [
        (f"subtract {size}x{size}, two threads", ours, "numpy twin", twin),
        ("plain form, one thread", plain, "numpy twin", twin),
    ]
    if given.sfft is not None:
        seconds = by_sfft(given.sfft, known.chip.image.data, known.template.image.data)
        rows.append(("subtract, two threads", ours, "sfft, numpy, order 0", seconds))
    for k, clock in enumerate(("wall clock", "processor seconds of all threads")):
        print(f"{clock}:")
        for name, own, other, theirs in rows:
            print(" ", line(name, own[k], other, theirs[k]))


if __name__ == "__main__":
    main()
