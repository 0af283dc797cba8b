"""Two-dimensional polynomials for coordinate maps and smooth fields."""

from __future__ import annotations

import numpy as np

from ks4diff.numerics.jit import jit


def exponents(degree: int) -> list[tuple[int, int]]:
    """Return the (i, j) of every u^i v^j with i + j <= degree, lowest total order first."""
    return [(total - j, j) for total in range(degree + 1) for j in range(total + 1)]


def n_terms(degree: int) -> int:
    """Return how many monomials `exponents` lists."""
    return (degree + 1) * (degree + 2) // 2


def design(u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Return float64 [n_points, n_terms], the monomials of `exponents` at (u, v)."""
    u = np.asarray(u, dtype=np.float64).ravel()
    v = np.asarray(v, dtype=np.float64).ravel()
    columns = np.empty((n_terms(degree), len(u)))
    columns[0] = 1.0
    for total in range(1, degree + 1):
        first, before = n_terms(total - 1), n_terms(total - 2)
        columns[first : first + total] = columns[before : before + total] * u
        columns[first + total] = columns[before + total - 1] * v
    return columns.T


def evaluate(coefficients: np.ndarray, u: np.ndarray, v: np.ndarray, degree: int) -> np.ndarray:
    """Return float64 [n_outputs, n_points]: polynomials with coefficients [n_outputs, n_terms]."""
    coefficients = np.ascontiguousarray(coefficients, dtype=np.float64)
    u = np.ascontiguousarray(u, dtype=np.float64).ravel()
    v = np.ascontiguousarray(v, dtype=np.float64).ravel()
    return _evaluate(coefficients, u, v, degree)


@jit
def _evaluate(coefficients, u, v, degree):
    """Sum the terms of each point: a design matrix of a chip's 330,000 nodes would take 56 MB."""
    out = np.empty((len(coefficients), len(u)))
    powers_u, powers_v = np.ones(degree + 1), np.ones(degree + 1)
    for k in range(len(u)):
        for p in range(1, degree + 1):
            powers_u[p] = powers_u[p - 1] * u[k]
            powers_v[p] = powers_v[p - 1] * v[k]
        for o in range(len(coefficients)):
            value, term = 0.0, 0
            for total in range(degree + 1):
                for j in range(total + 1):
                    value += coefficients[o, term] * (powers_u[total - j] * powers_v[j])
                    term += 1
            out[o, k] = value
    return out


def fit(u: np.ndarray, v: np.ndarray, values: np.ndarray, degree: int) -> np.ndarray:
    """Return the least-squares coefficients [n_outputs, n_terms] of values [n_outputs, n_points]."""
    solution, *_ = np.linalg.lstsq(design(u, v, degree), np.asarray(values, dtype=np.float64).T, rcond=None)
    return solution.T


def nested_fits(
    columns: np.ndarray, values: np.ndarray, weight: np.ndarray, degrees: range
) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
    """Return {degree: (coefficients [n_outputs, n_terms], covariance [n_terms, n_terms], chi2)}.

    One weighted sum of products serves all degrees, since the terms of a lower degree come first.

    Parameters
    ----------
    columns
        `design` of at least the highest degree, float64 [n_points, n_terms].
    values
        Float64 [n_outputs, n_points].
    weight
        Inverse variance per output, float64 [n_points], 0 to leave a point out.
    degrees
        Those wanted; one that the points do not hold (singular) is left out of the answer.

    """
    weighted = columns * weight[:, None]
    normal, right = weighted.T @ columns, weighted.T @ values.T
    total = float((weight * (values**2).sum(axis=0)).sum())
    found = {}
    for degree in degrees:
        k = n_terms(degree)
        block = normal[:k, :k]
        diagonal = np.sqrt(np.diag(block))
        if not (diagonal > 0).all():
            continue
        scaled = block / diagonal[:, None] / diagonal
        # beyond 1e10 the points lie on a curve and some direction is not held at all
        if np.linalg.cond(scaled) > 1e10:
            continue
        covariance = np.linalg.inv(scaled) / diagonal[:, None] / diagonal
        solution = covariance @ right[:k]
        found[degree] = (solution.T, covariance, max(total - float((right[:k] * solution).sum()), 0.0))
    return found
