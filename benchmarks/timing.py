"""Times for the kernel benchmarks: best of five, and the line that they print."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np


def timed(work: Callable[[], object]) -> np.ndarray:
    """Return the seconds of one call, and the processor seconds of all its threads."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - start, time.process_time() - cpu])


def least_of_five(work: Callable[[], object]) -> np.ndarray:
    """Return the least of five calls' `timed` numbers, after one call that compiles and warms caches."""
    work()
    return np.min([timed(work) for _ in range(5)], axis=0)


def best_of_five(work: Callable[[], object]) -> float:
    """Return the shortest of five timed calls, seconds, after one call that compiles and warms caches."""
    return float(least_of_five(work)[0])


def machine() -> str:
    """Return the machine and the versions that the numbers belong to."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "numba"))
    return f"{platform.machine()}, Python {platform.python_version()}, {versions}"


def line(name: str, ours: float, other: str, theirs: float) -> str:
    """Return one line of a report: both times and how many times as fast ours is."""
    return f"{name}: {1e3 * ours:.1f} ms; {other}: {1e3 * theirs:.1f} ms; ratio {theirs / ours:.1f}"
