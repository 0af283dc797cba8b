"""Maps over an image that have one value per cell: PSF amplitudes, flux scales, errors, verdicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CELL_PIX = 1024  # of the cells that reports speak of


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A map of an image of ``shape`` (rows, columns) in equal cells that tile it exactly.

    ``values`` is [..., rows of cells, columns of cells]; a value belongs to its cell's middle. In between the
    map is bilinear, beyond the outermost middles level.
    """

    values: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def constant(cls, value: float | np.ndarray, shape: tuple[int, int]) -> Cells:
        """Return the map of one cell: ``value`` [...] everywhere."""
        return cls(values=np.asarray(value, dtype=np.float32)[..., None, None], shape=shape)

    @property
    def size(self) -> tuple[float, float]:
        """(rows, columns) of one cell, pixels."""
        n, m = self.values.shape[-2:]
        return self.shape[0] / n, self.shape[1] / m

    def middles(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (x, y), float64 [rows of cells, columns of cells]: 0-based pixels of the cells' middles."""
        high, wide = self.size
        n, m = self.values.shape[-2:]
        return np.meshgrid((np.arange(m) + 0.5) * wide - 0.5, (np.arange(n) + 0.5) * high - 0.5)

    def at(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Return the map at pixels (x, y) [n]: [..., n]."""
        high, wide = self.size
        row, down = _between(np.asarray(y, dtype=np.float64), high, self.values.shape[-2])
        column, along = _between(np.asarray(x, dtype=np.float64), wide, self.values.shape[-1])
        n, m = self.values.shape[-2:]
        below, right = np.minimum(row + 1, n - 1), np.minimum(column + 1, m - 1)
        # two thirds of the time that indices of both axes take
        flat = self.values.reshape(*self.values.shape[:-2], n * m)
        low, upper = (
            flat.take(at * m + column, axis=-1) * (1 - along) + flat.take(at * m + right, axis=-1) * along
            for at in (row, below)
        )
        return low * (1 - down) + upper * down

    def across(self, columns: slice) -> np.ndarray:
        """Return the map on some columns, in the middles of the rows of cells.

        Float32 [..., rows of cells, columns]; a slice without step.
        """
        x = np.arange(*columns.indices(self.shape[1]), dtype=np.float64)
        column, along = _between(x, self.size[1], self.values.shape[-1])
        right = np.minimum(column + 1, self.values.shape[-1] - 1)
        v = self.values.astype(np.float32, copy=False)
        return v[..., column] + (v[..., right] - v[..., column]) * along.astype(np.float32)

    def down(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return which row of cells has its middle at or before some rows, and the way on to the next one.

        Int64 and float32 [rows], of a slice without step: the map there lies between two rows of `across`.
        """
        y = np.arange(*rows.indices(self.shape[0]), dtype=np.float64)
        row, part = _between(y, self.size[0], self.values.shape[-2])
        return row, part.astype(np.float32)

    def over(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the map on the pixels of a rectangle, float32 [..., rows, columns]; slices without steps."""
        across, (row, part) = self.across(columns), self.down(rows)
        out = np.empty((*across.shape[:-2], len(row), across.shape[-1]), dtype=np.float32)
        # row by row of cells: no gathering of whole planes
        for start in np.flatnonzero(np.diff(row, prepend=-1)):
            stop = start + int(np.count_nonzero(row == row[start]))
            upper, lower = (across[..., [min(row[start] + k, across.shape[-2] - 1)], :] for k in (0, 1))
            np.multiply(lower - upper, part[start:stop, None], out=out[..., start:stop, :])
            out[..., start:stop, :] += upper
        return out

    def boxes(self) -> list[tuple[int, int, slice, slice]]:
        """Return (j, i, rows, columns) of every cell: its indices and the pixels that it holds."""
        n, m = self.values.shape[-2:]
        y = np.rint(np.linspace(0, self.shape[0], n + 1)).astype(int)
        x = np.rint(np.linspace(0, self.shape[1], m + 1)).astype(int)
        return [
            (j, i, slice(int(y[j]), int(y[j + 1])), slice(int(x[i]), int(x[i + 1])))
            for j in range(n)
            for i in range(m)
        ]

    def cell_of(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (j, i) of the cells that hold pixels (x, y); beyond the border, the nearest."""
        high, wide = self.size
        n, m = self.values.shape[-2:]
        j = np.floor((np.asarray(y) + 0.5) / high).astype(np.int64)
        i = np.floor((np.asarray(x) + 0.5) / wide).astype(np.int64)
        return np.clip(j, 0, n - 1), np.clip(i, 0, m - 1)


def cell_grid(shape: tuple[int, int], cell_pix: float) -> tuple[int, int]:
    """Return how many (rows, columns) of cells of about ``cell_pix`` tile an image: at least one each."""
    return max(round(shape[0] / cell_pix), 1), max(round(shape[1] / cell_pix), 1)


def _between(position: np.ndarray, cell: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (the cell whose middle is at or before each pixel, the fraction of the way to the next one)."""
    at = np.minimum(np.maximum((position + 0.5) / cell - 0.5, 0), n - 1)  # np.clip takes 10 us more
    before = at.astype(np.int64)
    return before, at - before
