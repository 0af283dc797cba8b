"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success it is renamed to ``path``.

    The folder is made if missing. The temporary name keeps all suffixes of ``path`` (writers
    such as astropy choose a format by them) and starts with a dot. When the body raises,
    ``path`` stays as it was and the temporary file is removed. The body must
    have closed the file; its bytes are on disk before the rename, and the rename before return.

    Raises
    ------
    OSError
        When the folder cannot be written, or the disk is full.

    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffixes = "".join(target.suffixes)
    stem = target.name.removesuffix(suffixes)
    handle, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=f".tmp{suffixes}", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp makes files private (0600); results are shared like any other file the user makes.
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
        _sync(target.parent, os.O_RDONLY)  # without this a power cut can undo the rename
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that no reader ever sees a part of it.

    Raises
    ------
    OSError
        When the folder cannot be written, or the disk is full; ``path`` is then unchanged.

    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's umask; POSIX only tells it by setting it, which would race between threads."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022
