"""The same weighted sums over two images of one grid, around chosen places: fluxes that may be compared."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ks4diff.numerics.jit import jit


class CommonWeights(NamedTuple):
    """Kernels of PSFs that are sums of a basis; `kernels_of` adds them up.

    ``first`` float64 [b, m, m] for the first image, one of each PSF of the second's basis; ``second``
    [a, m, m] likewise; ``light`` [b, a] what ``first`` gives on the PSFs of the first's basis.
    """

    first: np.ndarray
    second: np.ndarray
    light: np.ndarray


def common_weights(first: np.ndarray, second: np.ndarray, narrow: float, wide: float) -> CommonWeights:
    """Return weights of two images whose sums of one static scene have one ratio.

    ``first`` [a, n, n] and ``second`` [b, n, n], n odd for each, are the bases of the images' PSFs. Convolved
    with the other's PSF both images show everything, blends and galaxies too, with one and the same PSF; of
    that image the weights take a Gaussian of ``narrow`` (standard deviation, pixels) less one of ``wide``,
    both of sum 1, so that a level counts for nothing.
    """
    half = int(np.ceil(4 * wide))
    kernels = [
        np.stack([_filtered(psf, narrow, half) - _filtered(psf, wide, half) for psf in basis])
        for basis in (second, first)
    ]
    kernels = [part - part.mean(axis=(1, 2), keepdims=True) for part in kernels]
    reach, middle = min(half, first.shape[1] // 2), first.shape[1] // 2
    outer, inner = (slice(at - reach, at + reach + 1) for at in (half, middle))
    light = np.einsum("bij,aij->ba", kernels[0][:, outer, outer], first[:, inner, inner].astype(np.float64))
    return CommonWeights(*kernels, light)


def kernels_of(weights: CommonWeights, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return float64 [2, m, m]: the weights of both images, a star of flux 1 giving 1 in either.

    ``first`` [a] and ``second`` [b] say how much of each of the basis their PSFs are.
    """
    kernels = np.stack([np.tensordot(second, weights.first, 1), np.tensordot(first, weights.second, 1)])
    return kernels / (second @ weights.light @ first)


def _filtered(psf: np.ndarray, sigma: float, half: int) -> np.ndarray:
    """Return [2 half + 1]²: a Gaussian correlated with a PSF."""
    reach = psf.shape[0] // 2
    offset = np.arange(-half - reach, half + reach + 1)
    profile = np.exp(-0.5 * (offset / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    weights = profile[np.add.outer(np.arange(2 * half + 1), np.arange(2 * reach + 1))]
    return weights @ psf.astype(np.float64) @ weights.T


@jit
def _sums(images, flags, kernels, places, inner, noise, out):
    first, second = images
    rows, columns = first.shape
    half = kernels.shape[1] // 2
    for k in range(places.shape[1]):
        out[:, k] = np.nan
        ix, iy = places[0, k], places[1, k]
        a = b = va = vb = 0.0
        whole = True
        for v in range(-half, half + 1):
            y = iy + v
            for u in range(-half, half + 1):
                x = ix + u
                if 0 <= y < rows and 0 <= x < columns and flags[0][y, x] == 0 and flags[1][y, x] == 0:
                    p, q = first[y, x], second[y, x]
                    wa, wb = kernels[0, v + half, u + half], kernels[1, v + half, u + half]
                    a += wa * p
                    b += wb * q
                    va += wa * wa * (noise[0, 0] + noise[0, 1] * max(p, 0.0))
                    vb += wb * wb * (noise[1, 0] + noise[1, 1] * max(q, 0.0))
                elif u * u + v * v <= inner * inner:
                    whole = False
            if not whole:
                break
        if whole:
            out[0, k], out[1, k] = a, b
            out[2, k], out[3, k] = np.sqrt(va), np.sqrt(vb)


def pair_sums(
    images: tuple[np.ndarray, np.ndarray],
    flags: tuple[np.ndarray, np.ndarray],
    kernels: np.ndarray,
    places: np.ndarray,
    noise: np.ndarray,
    *,
    inner: float,
) -> np.ndarray:
    """Return float64 [4, k]: the weighted sums in both images and their standard errors.

    NaN where a pixel within ``inner`` of the place is bad in either image or lies beyond the border; farther
    ones count in neither.

    Parameters
    ----------
    images, flags
        Float32 and integer [y, x]; pixels with a flag are bad.
    kernels
        Float64 [2, m, m], m odd, of `kernels_of`.
    places
        int64 [2, k]: x, y of pixels.
    noise
        Float64 [2, 2]: of either image, the variance of a pixel of sky and that added per count of light.
    inner
        Radius within which every pixel must be good, pixels.

    """
    out = np.empty((4, places.shape[1]))
    _sums(tuple(images), tuple(flags), kernels, places, float(inner), noise, out)
    return out
