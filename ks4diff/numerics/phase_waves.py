"""Waves over an image of the sub-pixel phases at which a stack's dithers were interpolated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ks4diff.numerics.polynomial import design as terms

CLIP = 2.5  # sigma of values about the waves: galaxies and blends
ROUNDS = 8
HARMONICS = (1, 2)  # of p (1 - p) = 1/6 - sum cos(2 pi n p) / (pi n)²; the third is a ninth of the first
GRID = 25  # places a side that a frame's polynomials are fitted to


@dataclass(frozen=True, kw_only=True)
class PhaseMaps:
    """Where an image's pixels lie on the stack, and the phases of dithers there, if they were turned by 0.

    Polynomials of (x - middle) / half: ``stack`` float64 [2, terms], stack pixels; ``phases`` [dithers, 2,
    terms], along the stack's x and y: pixel of the dither less pixel of the stack.
    """

    middle: tuple[float, float]
    half: float
    order: int
    stack: np.ndarray
    phases: np.ndarray

    def design(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the polynomials' terms [n, terms] at pixels of the image."""
        return terms((x - self.middle[0]) / self.half, (y - self.middle[1]) / self.half, self.order)

    def moved(self, number: int, turn: float, shift: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Return the phases [2, n] at places [2, n] of a dither pointed aside by ``shift`` and turned."""
        straight = self.phases[number] @ self.design(*(place - np.reshape(shift, (2, 1)))).T
        return straight + turn * self._turning(self.design(*place))

    def frame(self, number: int, turn: float, shift: np.ndarray, offset: np.ndarray) -> Frames:
        """Return that dither as a frame all over the image, its phases later by ``offset`` [2] cycles."""
        along = np.linspace(-1, 1, GRID)
        place = np.stack([a.ravel() for a in np.meshgrid(along, along)]) * self.half
        place += np.reshape(self.middle, (2, 1))
        values = self.moved(number, turn, shift, place) + np.reshape(offset, (2, 1))
        found = np.linalg.lstsq(self.design(*place), values.T, rcond=None)[0].T
        box = np.array([-np.inf, np.inf, -np.inf, np.inf])
        return Frames(
            middle=self.middle, half=self.half, order=self.order, phases=found[None], boxes=box[None]
        )

    def at(self, x: np.ndarray, y: np.ndarray) -> Phases:
        """Return the phases of all dithers at pixels (x, y) [n] of the image."""
        design = self.design(x, y)
        return Phases(straight=self.phases @ design.T, turning=self._turning(design))

    def _turning(self, design: np.ndarray) -> np.ndarray:
        along, down = (design @ self.stack.T).T - self.stack[:, :1]
        return np.stack([-down, along])


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Phases at n places: ``straight`` float64 [dithers, 2, n], of those that are not turned.

    ``turning`` float64 [2, n]: by how much the phases change per radian that a dither is turned.
    """

    straight: np.ndarray
    turning: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Dithers' chips over an image: phases and where each lies.

    ``phases`` float64 [frames, 2, terms]: polynomials as those of `PhaseMaps`, along the stack's x and y; a
    phase of 0 is a pixel of the stack that is one of the dither. ``boxes`` [frames, 4]: x0, x1, y0, y1.
    """

    middle: tuple[float, float]
    half: float
    order: int
    phases: np.ndarray
    boxes: np.ndarray

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the phases at pixels of the image, float64 [frames, 2, n]."""
        u, v = ((np.asarray(p) - m) / self.half for p, m in zip((x, y), self.middle, strict=True))
        return self.phases @ terms(u, v, self.order).T

    def covers(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return bool [frames, n]: which frames a pixel of the image is made of."""
        x0, x1, y0, y1 = self.boxes.T[:, :, None]
        return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)

    def and_frame(self, other: Frames) -> Frames:
        """Return the frames with one more."""
        return replace(
            self,
            phases=np.concatenate([self.phases, other.phases]),
            boxes=np.concatenate([self.boxes, other.boxes]),
        )

    def only(self, some: np.ndarray | list[int]) -> Frames:
        """Return some of the frames."""
        return replace(self, phases=self.phases[some], boxes=self.boxes[some])

    def later(self, offset: np.ndarray) -> Frames:
        """Return the frames with phases moved by ``offset`` [frames, 2] cycles."""
        phases = self.phases.copy()
        phases[:, :, 0] += offset
        return replace(self, phases=phases)


def region_of(covers: np.ndarray) -> np.ndarray:
    """Return int64 [n]: alike for places that the same frames cover (bool [frames, n])."""
    return (covers * (1 << np.arange(len(covers)))[:, None]).sum(axis=0)


def columns(phase: np.ndarray) -> np.ndarray:
    """Return float64 [2 harmonics, n]: cosines and sines of a phase [n]."""
    first = np.exp(2j * np.pi * phase)
    waves = [first**k for k in HARMONICS]
    return np.stack([part for wave in waves for part in (wave.real, wave.imag)])


def fitted(
    smooth: np.ndarray, waves: np.ndarray, value: np.ndarray, error: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (coefficients of the waves [w], residuals [n]); what is far off is clipped in the fit.

    ``smooth`` [n, t] and ``waves`` [w, n] are fitted together, waves as if known to be 0 within ``prior``.
    """
    design = np.concatenate([smooth, waves.T], axis=1) / error[:, None]
    known = np.diag(np.concatenate([np.full(smooth.shape[1], 1e-9), prior**-2]))
    solver = np.linalg.solve(design.T @ design + known, design.T)
    scaled = value / error
    # about the median at first: a first fit that chased outliers would need many rounds to come back
    found, fit = np.zeros(design.shape[1]), np.full(len(scaled), np.median(scaled))
    for _ in range(ROUNDS):
        rest = scaled - fit
        scatter = max(1.4826 * float(np.median(np.abs(rest))), 1.0)
        found = solver @ (fit + np.clip(rest, -CLIP * scatter, CLIP * scatter))
        fit = design @ found
    return found[smooth.shape[1] :], (scaled - fit) * error
