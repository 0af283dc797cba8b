"""Made-up harvests: fields of candidates whose features tell real from bogus, but not always."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ks4diff.products.candidates import FLAG_BIT
from ks4diff.products.features import FEATURE_NAMES, definitions_hash
from ks4diff.training.harvest import CHANGES, NIGHT, ROW, Part, packed
from ks4diff.training.skies import SITES

REAL_TAGS = ("added_field", "added_galaxy", "nuclear", "variable", "moving")
BOGUS_TAGS = ("cosmic", "noise", "star")
SIDE = 1000


def fake_night(rng: np.random.Generator, night: int, n: int, apart: float) -> Part:
    """Return ``n`` candidates of each kind whose features differ by ``apart`` sigma in five features."""
    real = np.arange(2 * n) < n
    rows = np.zeros(2 * n, ROW)
    rows["night"], rows["real"] = night, real
    rows["tag"] = np.where(real, rng.choice(REAL_TAGS, 2 * n), rng.choice(BOGUS_TAGS, 2 * n))
    rows["x"], rows["y"] = rng.uniform(0, SIDE, (2, 2 * n))
    # injections are stronger than bogus: the weights must take that out
    rows["scorr"] = rng.choice([-1, 1], 2 * n) * np.exp(rng.normal(np.where(real, 2.4, 1.9), 0.4))
    rows["flags"] = np.where(rng.random(2 * n) < np.where(real, 0.05, 0.3), FLAG_BIT["cosmic_ray"], 0)
    rows["rules"] = np.clip(rng.normal(np.where(real, 0.7, 0.3), 0.2), 0, 1)
    features = rng.normal(size=(2 * n, len(FEATURE_NAMES))).astype(np.float32)
    features[:, 5:10] += np.where(real, apart, 0)[:, None].astype(np.float32)
    # a pixel shows less than the top between pixels
    features[:, FEATURE_NAMES.index("s_peak")] = np.abs(rows["scorr"]) * rng.uniform(0.9, 1.0, 2 * n)
    features[:, FEATURE_NAMES.index("nexp_frac")] = np.nan
    features[rng.random(2 * n) < 0.02] = np.nan
    changes = np.zeros(n + 5, CHANGES)  # five more were never detected
    changes["night"], changes["row"] = night, np.r_[np.arange(n), np.full(5, -1)]
    changes["x"], changes["y"] = rng.uniform(0, SIDE, (2, n + 5))
    changes["x"][:n], changes["y"][:n] = rows["x"][:n], rows["y"][:n]
    changes["tag"][:n], changes["tag"][n:] = rows["tag"][:n], "added_field"
    changes["expected"][:n], changes["expected"][n:] = np.abs(rows["scorr"][:n]), 5.5
    return Part(features, rows, changes)


def write_field(folder: Path, number: int, *, seed: int = 0, n: int = 60, apart: float = 1.2) -> Path:
    """Write a field of two nights as `ks4diff.training.harvest.harvest` does and return its file."""
    rng = np.random.default_rng([seed, number])
    nights = np.zeros(2, NIGHT)
    nights["night"], nights["mpix"], nights["quality"] = (0, 1), SIDE**2 / 1e6, "pass"
    nights["group"], nights["seeing"] = f"{seed}.{number:04d}.K", rng.uniform(2.5, 5.0, 2)
    made = packed([fake_night(rng, night, n, apart) for night in (0, 1)])
    path = folder / f"field{number:05d}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        told = {"site": SITES[number % len(SITES)], "definitions": definitions_hash()}
        np.savez(file, nights=nights, **{name: np.array(text) for name, text in told.items()}, **made)
    return path
