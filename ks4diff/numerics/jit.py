"""The one Numba decorator: cached, GIL-free, serial; nobody else spells njit options."""

from __future__ import annotations

from numba import njit

# fastmath would let the compiler drop NaN checks that the masks rely on; parallel=True aborts the process
# when several Python threads call it under the workqueue layer (numba issue 8563).
jit = njit(cache=True, nogil=True, error_model="numpy")
