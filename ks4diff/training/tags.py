"""Say of each candidate of a simulated chip what it is: something that changed, or which kind of bogus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.stages.inject import PLACES
from ks4diff.stages.sim.sky import CHANGING

BOGUS = ("cosmic", "trail", "defect", "ghost", "bright", "star", "galaxy", "noise", "shifted", "blurred")
REAL = (*CHANGING, *(f"added_{place}" for place in PLACES))
UNCLEAR = "unclear"  # neither for training nor for tests


@dataclass(frozen=True, kw_only=True)
class TagsConfig:
    """How near is the same."""

    match_pix: float = 2.5  # five errors of the position of a 5-sigma source at 2" seeing
    beside_fwhm: float = 2.5  # lobes of a true change, neither real nor bogus
    least_expected: float = 2.0  # |S_corr|: a fainter change does not make its candidate
    telling_expected: float = 3.0  # |S_corr| of a change whose surroundings are unclear
    struck_pix: float = 2.5
    trail_pix: float = 12.0  # four sigma of the widest satellite trail
    defect_pix: float = 3.0
    bright_fwhm: float = 6.0  # from a saturated pixel
    source_mag: float = 22.5  # of static sources that residuals are blamed on: the depth of an exposure


CHANGE = np.dtype(
    [
        ("tag", "U16"),  # of `REAL`
        ("x", "f8"),
        ("y", "f8"),
        ("streak", "f8"),  # pixels that it moves during the exposure
        ("expected", "f8"),  # |S_corr|
        ("positive", "?"),
        ("row", "i4"),  # of its candidate; -1 without one
    ]
)


class Tags(NamedTuple):
    """What n candidates are (str, of `REAL`, `BOGUS` or "unclear"), and all `CHANGE` rows by strength."""

    tag: np.ndarray
    changes: np.ndarray


def tag_candidates(
    table: np.ndarray,
    truth: Mapping[str, np.ndarray],
    injected: np.ndarray,
    config: TagsConfig,
    *,
    fwhm: float,
    exptime_s: float,
) -> Tags:
    """Return what the candidates ``table`` of a chip are.

    ``truth`` holds the simulator's "sources", "artefacts" and "struck" pixels; ``injected`` has columns x, y,
    place and snr, that which the difference should show; ``fwhm`` pixels.
    """
    n = len(table)
    tags = np.full(n, "noise", dtype="U16")
    _tag_bogus(tags, table, truth, config, fwhm)
    changes = _changes(truth["sources"], injected, exptime_s)
    x, y = table["x"].astype(np.float64), table["y"].astype(np.float64)
    taken = np.zeros(n, dtype=bool)
    beside = np.zeros(n, dtype=bool)
    for change in changes if n else ():
        distance = np.hypot(x - change["x"], y - change["y"]) - change["streak"] / 2
        same = table["is_positive"] == change["positive"]
        near = np.flatnonzero((distance < config.match_pix) & same & ~taken)
        if change["expected"] > config.telling_expected:
            beside |= distance < config.beside_fwhm * fwhm
        if not len(near):
            continue
        row = near[np.argmin(distance[near])]
        if change["expected"] < config.least_expected:
            beside[row] = True  # helped by noise: who knows
            continue
        taken[row] = True
        tags[row], change["row"] = change["tag"], row
    tags[beside & ~taken] = UNCLEAR
    return Tags(tags, changes)


def _changes(sources: np.ndarray, injected: np.ndarray, exptime_s: float) -> np.ndarray:
    """Return what changed, strongest first."""
    rows = sources[np.isin(sources["kind"], [kind.encode() for kind in CHANGING])]
    out = np.zeros(len(rows) + len(injected), dtype=CHANGE)
    out["row"] = -1
    first, rest = out[: len(rows)], out[len(rows) :]
    first["tag"] = [name.decode() for name in rows["kind"]]
    first["x"], first["y"] = rows["x"], rows["y"]
    first["streak"] = np.hypot(rows["rate_x"], rows["rate_y"]) * exptime_s / 3600
    known = np.isfinite(rows["expected_scorr"])
    # too near the border for the simulator to say: taken for strong
    first["expected"] = np.where(known, np.abs(rows["expected_scorr"]), np.inf)
    first["positive"] = np.where(known, rows["expected_scorr"] > 0, rows["kind"] != b"fading")
    rest["tag"] = [f"added_{PLACES[place]}" for place in injected["place"]]
    rest["x"], rest["y"], rest["expected"], rest["positive"] = (
        injected["x"],
        injected["y"],
        injected["snr"],
        True,
    )
    return out[np.argsort(-out["expected"], kind="stable")]


def _tag_bogus(tags: np.ndarray, table: np.ndarray, truth, config: TagsConfig, fwhm: float) -> None:
    """Tag all as bogus of the likeliest cause, in place: the last that fits is the first to blame."""
    if not len(table):
        return
    x, y = table["x"].astype(np.float64), table["y"].astype(np.float64)
    sources, artefacts = truth["sources"], truth["artefacts"]
    for kind in ("galaxy", "star"):
        static = sources[(sources["kind"] == kind.encode()) & (sources["mag"] < config.source_mag)]
        tags[_near(x, y, static["x"], static["y"], fwhm)] = kind
    tags[table["saturated_distance"] < config.bright_fwhm * fwhm] = "bright"
    for name, kinds in (("ghost", (b"crosstalk",)), ("defect", (b"bad_column", b"hot_pixel", b"dead_strip"))):
        for row in artefacts[np.isin(artefacts["kind"], kinds)]:
            wide = (x > row["x0"] - config.defect_pix) & (x < row["x1"] - 1 + config.defect_pix)
            high = (y > row["y0"] - config.defect_pix) & (y < row["y1"] - 1 + config.defect_pix)
            tags[wide & high] = name
    for row in artefacts[artefacts["kind"] == b"trail"]:
        angle = np.radians(row["angle"])
        rising = np.cos(angle) * np.sin(angle) > 0
        corner = (row["x0"], row["y0"] if rising else row["y1"])
        away = np.abs((x - corner[0]) * np.sin(angle) - (y - corner[1]) * np.cos(angle))
        # the box is as wide as the trail: its corner lies up to six sigma beside the ridge
        tags[away < 3 * config.trail_pix] = "trail"
    struck = truth["struck"]
    tags[_near(x, y, struck[:, 1], struck[:, 0], config.struck_pix)] = "cosmic"


def _near(x: np.ndarray, y: np.ndarray, other_x: np.ndarray, other_y: np.ndarray, reach: float) -> np.ndarray:
    """Return bool [n]: one of the others within ``reach``."""
    if not len(other_x):
        return np.zeros(len(x), dtype=bool)
    distance, _ = cKDTree(np.stack([other_x, other_y], axis=1)).query(np.stack([x, y], axis=1))
    return distance < reach
