"""Score real changes and real artefacts that no model has trained on, by rules and by a model.

    python -m benchmarks.real_scores [--model DIR] [--frames 0096 0097 ...] [--json FILE]

The microlensing event MOA-2013-BLG-475 in every frame in which forced photometry finds it with S/N > 10, the
DECam transient and its five dipoles, the null pair ESO 085-030, and ZTF's triplets (`ztf_triplets`: another
instrument, drb > 0.9 against drb < 0.3). The images are in ../shared/realdata.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.acceptance import DIPOLES, ESO, EVENT_IN_0028, MOA, mean_of_five
from benchmarks.acceptance_rows import shared_realdata
from benchmarks.ztf_triplets import BOGUS, REAL, Triplets, triplets
from ks4diff.io.fits_image import read_chip
from ks4diff.numerics.forest import predicted
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import PairResult, process_pair
from ks4diff.pipeline.rb import RULES, model_for, model_id, scored, threshold
from ks4diff.products.candidates import flag_names
from ks4diff.products.errors import SkipChip
from ks4diff.products.features import FEATURE_NAMES
from ks4diff.products.model import RbModel
from ks4diff.stages.features import scene_of
from ks4diff.stages.forced import forced_flux, science_position
from ks4diff.stages.package import select
from ks4diff.stages.recover import unflagged
from ks4diff.stages.score import ScoreConfig

TRANSIENT = (129, 128)
TELLING_SNR = 10.0
EVENT_REACH_PIX, DIPOLE_REACH_PIX = 3.0, 6.0
QUARTERS = (25, 50, 75)
PLAIN = PipelineConfig(score=ScoreConfig(model=RULES))


class Place(NamedTuple):
    """A place on a pair of real images, and whether something changed there."""

    name: str
    real: bool
    snr: float  # forced; NaN where a flag covers the place, or not measured
    result: PairResult
    x: float
    y: float
    reach: float


def event_places(realdata: Path, frames: list[str]) -> Iterator[Place]:
    """Yield the event in each frame less 0028 where forced photometry at its place has |S/N| > 10."""
    reference = read_chip(realdata / MOA / "AKB13475I0028.fits")
    for path in sorted((realdata / MOA).glob("*.fits")):
        frame = path.stem[-4:]
        if frame == "0028" or (frames and frame not in frames):
            continue
        try:
            result = process_pair(read_chip(path), reference, PLAIN)
        except SkipChip as skip:
            print(f"MOA {frame}: skipped: {skip}")
            continue
        flux, error = forced_flux(result.subtracted, *EVENT_IN_0028)
        if not abs(flux) <= TELLING_SNR * error:  # NaN where a flag covers it: told too
            x, y = science_position(result.subtracted.registration, *EVENT_IN_0028)
            yield Place(f"MOA {frame} event", True, flux / error, result, x, y, EVENT_REACH_PIX)


def decam_places(realdata: Path) -> Iterator[Place]:
    """Yield the transient and the dipoles of the DECam minis, stacks of five."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [mean_of_five(realdata, epoch, Path(folder)) for epoch in ("04", "18")]
        result = process_pair(*(read_chip(path) for path in paths), PLAIN)
    flux, error = forced_flux(result.subtracted, *TRANSIENT)
    yield Place("DECam transient", True, flux / error, result, *TRANSIENT, EVENT_REACH_PIX)
    for x, y in DIPOLES:
        yield Place(f"DECam dipole {x},{y}", False, np.nan, result, x, y, DIPOLE_REACH_PIX)


def null_result(realdata: Path) -> PairResult:
    """Return the subtraction of a pair in which nothing changed."""
    first, second = (read_chip(realdata / ESO / f"aligned_eso085-030-{n}.fit") for n in ("004", "005"))
    return process_pair(first, second, PLAIN)


def verdict(place: Place, model: str) -> dict[str, Any]:
    """Return what a model ("rules" or a folder) makes of the candidate nearest to a place.

    Of a place where nothing changed, of the candidate in reach that is taken for real most. "real": without
    rejecting flag and above the model's threshold; an alert needs a quality that is not "fail", too.
    """
    table, alerts = scored_by(place.result, model)
    distance = np.hypot(table["x"] - place.x, table["y"] - place.y)
    near = np.flatnonzero(distance <= place.reach)
    if not len(near):
        return {"found": False, "real": False, "alert": False}
    accepted = unflagged(table[near]) & (table["rb"][near] >= threshold(ScoreConfig(model=model), None))
    worth = -distance[near] if place.real else accepted + np.nan_to_num(table["rb"][near]) / 2
    best = int(np.argmax(worth))
    row = table[near[best]]
    return {
        "found": True,
        "scorr": float(row["scorr"]),
        "flags": flag_names(int(row["flags"])),
        "rb": float(row["rb"]),
        "real": bool(accepted[best]),
        "alert": int(near[best]) in alerts,
    }


def scored_by(result: PairResult, model: str) -> tuple[np.ndarray, set[int]]:
    """Return (a pair's candidate table as a model scores it, the rows that become alerts)."""
    done, config = result.subtracted, ScoreConfig(model=model)
    candidates, _ = scored(done.candidates, scene_of(done), config)
    rows, _ = select(replace(done, candidates=candidates), min_rb=threshold(config, None))
    return candidates.table, set(rows.tolist())


def print_places(places: Iterator[Place], models: list[str]) -> list[dict[str, Any]]:
    """Print one line per place and model as they come; return the same."""
    out = []
    for place in places:
        for model in models:
            told = verdict(place, model)
            right = told["real"] == place.real
            name = model_id(ScoreConfig(model=model))
            print(_line(place, name, told, right=right), flush=True)
            out.append({"place": place.name, "snr": place.snr, "model": name, **told, "right": right})
    return out


def _line(place: Place, model: str, told: dict[str, Any], *, right: bool) -> str:
    snr = "-" if np.isnan(place.snr) else f"{place.snr:.1f}"
    words = "no candidate"
    if told["found"]:
        flags = ",".join(told["flags"]) or "-"
        words = f"S_corr {told['scorr']:+7.1f}  rb {told['rb']:.3f}  flags {flags}"
    quality = place.result.report.quality
    taken = f"{'real' if told['real'] else 'bogus'}, {'right' if right else 'WRONG'}"
    alert = "alert" if told["alert"] else "no alert"
    return f"{place.name:22s} S/N {snr:>6s}  {model:24s} {words}: {taken}; quality {quality}, {alert}"


def print_null(realdata: Path, models: list[str]) -> list[dict[str, Any]]:
    """Print how many alerts the null pair gives, and its highest score without a rejecting flag."""
    result, out = null_result(realdata), []
    for model in models:
        table, alerts = scored_by(result, model)
        good = unflagged(table)
        best = float(np.nan_to_num(table["rb"][good]).max(initial=0.0))
        name = model_id(ScoreConfig(model=model))
        counts = f"{len(alerts)} alerts of {len(table)} candidates, {good.sum()} unflagged"
        print(f"ESO 085-030            {name:24s} {counts}, best rb {best:.3f}")
        out.append({"place": "ESO 085-030", "model": name, "alerts": len(alerts), "best": best})
    return out


def auc(values: np.ndarray, real: np.ndarray) -> float:
    """Return the area under the ROC curve: the chance that a real one has the higher value."""
    u = stats.mannwhitneyu(values[real], values[~real]).statistic
    return float(u / (real.sum() * (~real).sum()))


def print_triplets(seen: Triplets, models: list[RbModel]) -> dict[str, Any]:
    """Print the AUC on ZTF's triplets of each model, of ZTF's forest and of one feature; return them."""
    real = seen.drb > REAL
    known = np.isfinite(seen.vector[:, 0])
    pull = np.abs(seen.scorr[real & known]) / seen.ztf_scorr[real & known]
    withheld = int((~known).sum())
    print(f"ZTF: {real.sum()} with drb > {REAL}, {(~real).sum()} with drb < {BOGUS}; {withheld} withheld")
    quarters = " ".join(f"{v:.2f}" for v in np.percentile(pull, QUARTERS))
    print(f"S_corr made here over ZTF's, quartiles of the real ones: {quarters}")
    values = {
        "ZTF's forest (rb)": seen.rb,
        "psf_corr alone": np.where(known, seen.vector[:, FEATURE_NAMES.index("psf_corr")], -1),
    }
    for model in models:
        samples = np.ascontiguousarray(seen.vector[:, [FEATURE_NAMES.index(name) for name in model.features]])
        raw = np.zeros(len(samples))
        raw[known] = predicted(*model.forest.walk(), samples[known])  # calibration only ties values
        values[model.version] = raw
    areas = {name: auc(value, real) for name, value in values.items()}
    for name, area in areas.items():
        print(f"AUC {area:.4f}  {name}")
    counts = {"real": int(real.sum()), "bogus": int((~real).sum()), "withheld": withheld}
    return {"auc": areas, **counts}


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model (the one that ships, if any)")
    parser.add_argument("--frames", nargs="*", default=[], help="of the MOA series, all by default")
    parser.add_argument("--only", choices=("moa", "decam", "eso", "ztf"), nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = str(options.model or "")
    models = [RULES] if model_for(model) is None else [RULES, model]
    realdata = shared_realdata()
    wanted = options.only or ("moa", "decam", "eso", "ztf")
    told: dict[str, Any] = {"places": []}
    if "moa" in wanted:
        told["places"] += print_places(event_places(realdata, options.frames), models)
    if "decam" in wanted:
        told["places"] += print_places(decam_places(realdata), models)
    if "eso" in wanted:
        told["null"] = print_null(realdata, models)
    if "ztf" in wanted:
        seen = triplets(realdata / "derived" / "ztf_stamps_open.npz")
        told["ztf"] = print_triplets(seen, [one for one in map(model_for, models) if one is not None])
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
