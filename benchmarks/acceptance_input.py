"""Bad input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits

from benchmarks.acceptance_rows import ROOT, Row

SAMPLE = ROOT / "templates" / "sample"
GOOD = SAMPLE / "AKB13475I0028.fits"
OTHER_FIELD = "quatrope+ProperImage/data/aligned_eso085-030-004.fit"


def bad_files(folder: Path, realdata: Path) -> Iterator[tuple[str, Path]]:
    """Yield (what is wrong, file) for each kind of bad input, written into ``folder``."""
    noise = np.random.default_rng(20261123).normal(1000.0, 30.0, (3, 256, 256)).astype(np.float32)
    whole = (SAMPLE / "AKB13475I0096.fits").read_bytes()
    yield "missing file", folder / "missing.fits"
    for name, content in (
        ("not FITS", noise.tobytes()[:50_000]),
        ("truncated FITS", whole[: len(whole) // 2]),
        ("text with FITS suffix", b"once upon a midnight dreary\n" * 200),
    ):
        path = folder / f"{name.replace(' ', '-')}.fits"
        path.write_bytes(content)
        yield name, path
    for name, data in (
        ("all NaN", np.full((256, 256), np.nan, dtype=np.float32)),
        ("constant image", np.full((256, 256), 7, dtype=np.float32)),
        ("3-D cube", noise),
        ("8x8 image", noise[0, :8, :8]),
        ("noise without stars", noise[0]),
    ):
        path = folder / f"{name.replace(' ', '-')}.fits"
        fits.writeto(path, data)
        yield name, path
    yield "unrelated field", realdata / OTHER_FIELD


def refusal(science: Path, reference: Path, out: Path) -> tuple[int, str, bool]:
    """Return (exit code, stderr, whether anything was written) of ``ks4diff subtract``."""
    command = [sys.executable, "-m", "ks4diff", "subtract", str(science), str(reference), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    return done.returncode, done.stderr.strip(), out.exists()


def bad_input(realdata: Path) -> list[Row]:
    """Give each bad file as science and as reference image."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for wrong, path in bad_files(folder, realdata):
            answers = [refusal(path, GOOD, folder / "out"), refusal(GOOD, path, folder / "out")]
            holds = all(
                code == 2 and len(text.splitlines()) == 1 and "Traceback" not in text and not written
                for code, text, written in answers
            )
            said = (
                answers[0][1].removeprefix("ks4diff: ").replace(f"{folder}/", "").replace(f"{realdata}/", "")
            )
            rows.append(Row(f"bad input: {wrong}", "one line, exit 2, nothing written", said, holds))
    return rows
