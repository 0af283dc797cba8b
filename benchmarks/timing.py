"""Times for the kernel benchmarks: best of five, and the line that they print."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version


def best_of_five(work: Callable[[], object]) -> float:
    """Return the shortest of five timed calls, seconds, after one call that compiles and warms caches."""
    work()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> str:
    """Return the machine and the versions that the numbers belong to."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "numba"))
    return f"{platform.machine()}, Python {platform.python_version()}, {versions}"


def line(name: str, ours: float, other: str, theirs: float) -> str:
    """Return one line of a report: both times and how many times as fast ours is."""
    return f"{name}: {1e3 * ours:.1f} ms; {other}: {1e3 * theirs:.1f} ms; ratio {theirs / ours:.1f}"
