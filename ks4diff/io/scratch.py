"""Frames parked on disk, so that many of them can be combined a few rows at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_STACK_BYTES = 2**27  # of one block of rows of all frames


class Scratch:
    """Frames of one shape as files of a folder that its maker removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []
        self.names: list[str] = []

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._paths)

    def add(self, frame: np.ndarray, name: str) -> None:
        """Park a frame [y, x] as float32."""
        path = self._folder / f"{len(self._paths):04d}.npy"
        np.save(path, np.ascontiguousarray(frame, dtype=np.float32), allow_pickle=False)
        self._paths.append(path)
        self.names.append(name)

    def blocks(self, which: list[int] | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, float32 [n, rows, columns]) from the bottom to the top, of all or some frames."""
        paths = self._paths if which is None else [self._paths[k] for k in which]
        frames = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        height, width = frames[0].shape
        step = max(1, _STACK_BYTES // (4 * width * len(frames)))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            yield rows, np.stack([frame[rows] for frame in frames])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the frames."""
        return np.load(self._paths[0], mmap_mode="r", allow_pickle=False).shape


@contextmanager
def scratch(folder: Path) -> Iterator[Scratch]:
    """Yield an empty `Scratch` in a hidden folder of ``folder``, removed at the end with all frames."""
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as name:
        yield Scratch(Path(name))
