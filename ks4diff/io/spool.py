"""The queue before the history: exposures on disk until they are associated and their alerts stored."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.plain import from_bytes, to_bytes
from ks4diff.products.sightings import ExposureSightings

log = logging.getLogger(__name__)

_ASIDE = ".failed"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """One exposure of the queue and the file that it is in."""

    path: Path
    number: int  # of the file's inode
    sightings: ExposureSightings


class Spool:
    """Exposures waiting in ``OUT/spool``, one file each, named so that they sort by time.

    Any number of processes may put; one at a time takes out, in order. A file is removed only when all that
    it asks for is stored elsewhere, so that whatever ends a process, nothing is lost.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / "spool"

    def put(self, sightings: ExposureSightings) -> None:
        """Store an exposure, in place of the same one waiting; on disk when this returns."""
        path = self._folder / _name(sightings.mjd, sightings.exposure)
        atomic_write_bytes(path, to_bytes(sightings))
        for other in self._files():
            if other != path and _exposure_part(other.name) == _exposure_part(path.name):
                other.unlink(missing_ok=True)

    def waiting(self) -> int:
        """Return how many exposures wait, those put aside counted."""
        return len(self._files()) + len(list(self._folder.glob(f"*{_ASIDE}")))

    def put_aside(self, waiting: Waiting) -> None:
        """Keep an exposure that cannot be stored from holding up the others, until `bring_back`."""
        waiting.path.replace(waiting.path.with_suffix(_ASIDE))

    def bring_back(self) -> None:
        """Queue again what was put aside: this may be a version that can store it."""
        for path in self._folder.glob(f"*{_ASIDE}"):
            path.replace(path.with_suffix(".npz"))

    def holds(self, exposure: str) -> bool:
        """Return whether an exposure waits."""
        return any(
            _exposure_part(path.name) == _exposure_part(_name(0.0, exposure)) for path in self._files()
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process takes out of this spool, and keep others waiting meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)  # this also ends the lock

    def first(self) -> Waiting | None:
        """Return the earliest exposure, None when none waits.

        A file that cannot be read, from another version or a damaged disk, is put aside with an error in the
        log: it must not hold up the others, and is not thrown away.
        """
        for path in self._files():
            try:
                number = path.stat().st_ino
                sightings = from_bytes(ExposureSightings, path.read_bytes())
                return Waiting(path=path, number=number, sightings=sightings)
            except FileNotFoundError:
                continue  # replaced since it was listed
            except ValueError as error:
                aside = path.with_suffix(".unreadable")
                log.error("%s cannot be read (%s); kept as %s, run the exposure again", path, error, aside)
                path.replace(aside)
        return None

    def remove(self, waiting: Waiting) -> None:
        """Take an exposure out of the queue, unless it was put again since it was read."""
        if waiting.path.exists() and waiting.path.stat().st_ino == waiting.number:
            waiting.path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*.npz") if not path.name.startswith("."))


def _name(mjd: float | None, exposure: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda found: f"%{ord(found[0]):x}", exposure)
    return f"{mjd or 0.0:014.8f}_{safe}.npz"


def _exposure_part(name: str) -> str:
    return name.partition("_")[2]
