"""Frames parked on disk, so that many of them can be combined a few rows at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_STACK_BYTES = 2**26  # of one block of rows of all frames


class Scratch:
    """Frames of one shape as files of a folder that its maker removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []
        self.shape: tuple[int, int] = (0, 0)  # (rows, columns) of the frames
        self.names: list[str] = []

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._paths)

    def add(self, frame: np.ndarray, name: str) -> None:
        """Park a frame [y, x] as float32.

        Raises
        ------
        ValueError
            When it has another shape than those before.

        """
        if self._paths and frame.shape != self.shape:
            raise ValueError(f"frame of shape {frame.shape} among others of {self.shape}")
        path = self._folder / f"{len(self._paths):04d}.f4"
        np.ascontiguousarray(frame, dtype=np.float32).tofile(path)
        self.shape = frame.shape
        self._paths.append(path)
        self.names.append(name)

    def blocks(self, which: list[int] | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, float32 [n, rows, columns]) from the bottom to the top, of all or some frames."""
        paths = self._paths if which is None else [self._paths[k] for k in which]
        height, width = self.shape
        step = max(1, _STACK_BYTES // (4 * width * len(paths)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            stack = np.empty((len(paths), rows.stop - start, width), np.float32)
            for frame, path in zip(stack, paths, strict=True):
                part = np.fromfile(path, np.float32, count=frame.size, offset=4 * start * width)
                frame[:] = part.reshape(frame.shape)
            yield rows, stack


@contextmanager
def scratch(folder: Path) -> Iterator[Scratch]:
    """Yield an empty `Scratch` in a hidden folder of ``folder``, removed at the end with all frames."""
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as name:
        yield Scratch(Path(name))


def park(path: Path, array: np.ndarray) -> None:
    """Write an array that `parked` opens again."""
    np.save(path, array, allow_pickle=False)


def parked(path: Path) -> np.ndarray:
    """Return a parked array as a read-only map of its file: only what is looked at is read."""
    return np.load(path, mmap_mode="r", allow_pickle=False)
