"""What becomes of the memory of freed arrays."""

from __future__ import annotations

import numpy as np

MOST_KEPT = 31 << 20  # bytes: glibc takes no block of 32 MiB or more for a sign


def keep_freed() -> None:
    """Let freed arrays of some MB be used again, where glibc would give them back to the system.

    What it gives back is zeroed by the system for the next array: 1.6 s of the 12 s of CPU that subtracting a
    full chip took. It keeps blocks as large as the largest one below 32 MiB that was ever freed, and twice
    that of each thread (mallopt(3), M_MMAP_THRESHOLD), so one is freed here. Elsewhere nothing happens.
    """
    block = np.empty(MOST_KEPT, dtype=np.uint8)
    del block
