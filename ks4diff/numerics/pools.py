"""How many threads share the work on one image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class _Setting:
    threads = 2


def set_threads(n: int) -> None:
    """Let every later `pool` of this process have ``n`` threads, at least 1: ``--threads`` of the commands.

    No setting of a stage: results do not depend on it, nor does the digest of a configuration.
    """
    if n < 1:
        raise ValueError(f"at least one thread is needed, got {n}")
    _Setting.threads = n


def n_threads() -> int:
    """Return how many threads a `pool` has now."""
    return _Setting.threads


def pool() -> ThreadPoolExecutor:
    """Return a new pool for the parts of one image; close it, by ``with``, when they are done."""
    return ThreadPoolExecutor(_Setting.threads)
