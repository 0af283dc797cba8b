"""Two-dimensional polynomials for coordinate maps and smooth fields."""

from __future__ import annotations

import numpy as np


def exponents(degree: int) -> list[tuple[int, int]]:
    """Return the (i, j) of every u^i v^j with i + j <= degree, lowest total order first."""
    return [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]


def design(u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Return float64 [n_points, n_terms], the monomials of `exponents` at (u, v)."""
    u = np.asarray(u, dtype=np.float64).ravel()
    v = np.asarray(v, dtype=np.float64).ravel()
    return np.stack([u**i * v**j for i, j in exponents(degree)], axis=1)


def evaluate(coefficients: np.ndarray, u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Return float64 [n_outputs, n_points]: polynomials with coefficients [n_outputs, n_terms]."""
    return coefficients @ design(u, v, degree).T


def fit(u: np.ndarray, v: np.ndarray, values: np.ndarray, degree: int) -> np.ndarray:
    """Return the least-squares coefficients [n_outputs, n_terms] of values [n_outputs, n_points]."""
    solution, *_ = np.linalg.lstsq(design(u, v, degree), np.asarray(values, dtype=np.float64).T, rcond=None)
    return solution.T
