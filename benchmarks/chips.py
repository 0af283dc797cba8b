"""Sixty simulated chips through the pipeline, every figure against the simulator's truth (issues 4 and 5).

Three sites' seeing, 500 to 100,000 sources per square degree, 2k and 4k cut-outs of all four chips at centre
and corners, all bands, headers up to 2 arcminutes and 1 degree wrong, with and without cosmic rays. Skies are
drawn once (about 10 s each, 40 s the 4k ones) and kept in --cache; a second run only measures.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np

from benchmarks.acceptance_rows import Row, print_table
from benchmarks.chips_measure import TELLING_STARS, measured
from benchmarks.chips_sky import chip_config, sky_for
from ks4diff.io.atomic import atomic_path
from ks4diff.pipeline.config import PipelineConfig

QUICK = (0, 1, 2, 3, 4, 5, 7, 10, 11, 14, 16, 22)
LEAST_COMMON = 15  # stars: with fewer a chip may be refused
REGISTER_PIX, REGISTER_MEDIAN_PIX = 0.04, 0.02
LOST_PIX = 0.5  # registered this wrong is not registered
CORE, WINGS, SCALE = 0.01, 0.002, 0.005
TIMES_STATED = 3.0
STD_TOLERANCE, MASKED, STATIC = 0.03, 0.05, 1e-3
COMPLETE = {"6": 0.90, "8": 0.98}
BOGUS_CLEAN, BOGUS_STRUCK = 0.5, 2.0  # per Mpix above the noise floor


def line(n: int, f: dict) -> str:
    """Return one chip's figures on one line."""
    place = "centre" if f["offset"][0] < 0 else "corner"
    head = (
        f"{n:2d} {f['site']:4} {f['chip']} {f['band']} {f['size'] // 1024}k {place:6} "
        f"{f['density']:6.0f}/deg2 {'clean' if f['clean'] else 'struck':6} {f['combine']:6} "
        f'{f["seeing_arcsec"][0]:.2f}/{f["seeing_arcsec"][1]:.2f}" common {f["common_stars"]:4d}'
    )
    if not f["cells"]:
        return f"{head} {f['status'].upper()}: {f['reason']}"
    cells = f["cells"]
    telling = sum(c["n_telling"] >= TELLING_STARS for c in cells)

    def worst(*names: str) -> float:
        values = [_of(c, names) for c in cells]
        return max((abs(v) for v in values if v is not None), default=float("nan"))

    accuracy = (
        f"{head} cells {telling}/{len(cells)} | reg {worst('register'):.3f} px | "
        f"psf {100 * worst('psf', 'core'):.2f}/{100 * worst('psf', 'wings'):.2f} "
        f"tpl {100 * worst('template_psf', 'core'):.2f}/{100 * worst('template_psf', 'wings'):.2f} % | "
        f"scale {100 * worst('scale'):.2f} % (stated {100 * worst('scale_stated'):.2f}) | "
    )
    if "std" not in f:
        cpu = ", ".join(f"{name} {seconds:.0f}" for name, seconds in f["cpu_seconds"].items())
        return f"{accuracy}CPU s: {cpu}"
    found = " ".join(f"{a}/{b}" for a, b in f["completeness"].values())
    return accuracy + (
        f"std {f['std'] or np.nan:.3f} sky {f['std_sky'] or np.nan:.3f} "
        f"masked {100 * f['masked']:.1f} % static {f['static_bad']}/{f['static_stars']} "
        f"bogus {f['bogus'] / f['mpix']:.1f}-{f['floor_mpix']:.1f}/Mpix found {found} {f['verdict']} "
        f"{f['seconds_all']:.0f} s"
    )


def _of(row: dict, names: tuple[str, ...]):
    for name in names:
        row = row[name]
    return row


def limit_row(cells: list[dict], label: str, names: tuple[str, ...], limit: float, unit: str) -> Row:
    """Return how many of the telling cells hold a limit."""
    values = [(_of(c, names), c["chip"]) for c in cells if c["n_telling"] >= TELLING_STARS]
    values = [(abs(v), n) for v, n in values if v is not None]
    if not values:
        return Row(label, f"<= {limit:g}{unit}", "no cell has the stars", False)
    numbers = np.array([v for v, _ in values])
    bad = sorted({n for v, n in values if v > limit})
    measured_ = (
        f"{(numbers <= limit).sum()} of {len(numbers)} cells; median {np.median(numbers):.4f}, "
        f"worst {numbers.max():.4f}; fails on chips {_some(bad)}"
    )
    return Row(label, f"<= {limit:g}{unit}, >= {TELLING_STARS} stars", measured_, not bad)


def stated_row(cells: list[dict], label: str, names: tuple[str, ...], stated: tuple[str, ...]) -> Row:
    """Return how many of the other cells lie within three times the error that they state."""
    values = [
        (abs(_of(c, names)), _of(c, stated), c["chip"])
        for c in cells
        if c["n_telling"] < TELLING_STARS and _of(c, names) is not None
    ]
    ok = [v <= TIMES_STATED * s for v, s, _ in values]
    ratio = [v / max(s, 1e-9) for v, s, _ in values]
    bad = sorted({n for (_, _, n), o in zip(values, ok, strict=True) if not o})
    middle = float(np.median(ratio)) if ratio else np.nan
    text = f"{sum(ok)} of {len(ok)} cells; median ratio {middle:.1f}; fails on {_some(bad)}"
    return Row(label, f"<= {TIMES_STATED:g} x stated, fewer stars", text, bool(ok) and all(ok))


def _some(numbers: list[int]) -> str:
    """Return the first dozen numbers as words."""
    words = " ".join(str(n) for n in numbers[:12]) or "none"
    return words + (f" and {len(numbers) - 12} more" if len(numbers) > 12 else "")


def accuracy_rows(figures: dict[int, dict]) -> list[Row]:
    """Return the verdicts of issue 4."""
    cells = [c | {"chip": n} for n, f in figures.items() for c in f["cells"]]
    lost = {
        n for n, f in figures.items() if not f["cells"] or min(c["register"] for c in f["cells"]) > LOST_PIX
    }
    enough = [n for n, f in figures.items() if f["common_stars"] >= LEAST_COMMON]
    fewer = [n for n in figures if n not in enough]
    bad = [n for n in enough if n in lost]
    quiet = [n for n in fewer if n in lost and figures[n]["status"] != "skipped"]
    rows = [
        Row(
            f"registered, >= {LEAST_COMMON} common stars",
            "all",
            f"{len(enough) - len(bad)} of {len(enough)}; not {_some(bad)}",
            not bad,
        ),
        Row(
            "fewer common stars",
            "refused by name, or right",
            f"{len(fewer)} chips; {len(set(fewer) & lost)} lost; silently wrong or failed: {_some(quiet)}",
            not quiet,
        ),
    ]
    telling = [c["register"] for c in cells if c["n_telling"] >= TELLING_STARS]
    middle = float(np.median(telling)) if telling else np.nan
    rows.append(limit_row(cells, "registration, rms per axis", ("register",), REGISTER_PIX, " px"))
    rows.append(
        Row(
            "registration, median over cells",
            f"<= {REGISTER_MEDIAN_PIX} px",
            f"{middle:.4f}",
            middle <= REGISTER_MEDIAN_PIX,
        )
    )
    rows.append(stated_row(cells, "registration elsewhere", ("register",), ("register_stated",)))
    for name, words in (("psf", "science PSF"), ("template_psf", "template PSF")):
        rows.append(limit_row(cells, f"{words}, core", (name, "core"), CORE, " of peak"))
        rows.append(limit_row(cells, f"{words}, wings", (name, "wings"), WINGS, " of peak"))
        rows.append(stated_row(cells, f"{words} elsewhere", (name, "core"), (name, "stated")))
    for kind in ("mean", "median"):
        of_kind = [c for c in cells if figures[c["chip"]]["combine"] == kind and not c["mixed"]]
        rows.append(
            limit_row(
                of_kind, f"  template core, {kind} of dithers, no border", ("template_psf", "core"), CORE, ""
            )
        )
    rows.append(limit_row(cells, "flux scale", ("scale",), SCALE, ""))
    rows.append(limit_row(cells, "  all light within 48 px", ("scale_all",), SCALE, ""))
    rows.append(limit_row(cells, "flux scale, worst amplifier", ("scale_amplifier",), SCALE, ""))
    rows.append(stated_row(cells, "flux scale elsewhere", ("scale",), ("scale_stated",)))
    return rows


def subtraction_rows(figures: dict[int, dict]) -> list[Row]:
    """Return the verdicts of issue 5 on simulated chips."""
    done = {n: f for n, f in figures.items() if f["cells"]}
    rows = []
    for key, words in (("std", "all unmasked pixels"), ("std_sky", "sky")):
        off = [n for n, f in done.items() if f[key] is None or abs(f[key] - 1) > STD_TOLERANCE]
        values = [f[key] for f in done.values() if f[key] is not None]
        spread = f"median {np.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"
        text = f"{len(done) - len(off)} of {len(done)} chips; {spread}; off: {_some(off)}"
        rows.append(Row(f"std of S_corr, {words}", f"1 ± {STD_TOLERANCE}", text, not off))
    off = [n for n, f in done.items() if f["masked"] > MASKED]
    rows.append(
        Row(
            "masked fraction",
            f"<= {MASKED}",
            f"median {np.median([f['masked'] for f in done.values()]):.4f}; over: {_some(off)}",
            not off,
        )
    )
    bad, stars = (sum(f[k] for f in done.values()) for k in ("static_bad", "static_stars"))
    share = bad / max(stars, 1)
    rows.append(
        Row(
            "static stars with |S_corr| > 5", f"< {STATIC}", f"{bad} of {stars} = {share:.4f}", share < STATIC
        )
    )
    for low, wanted in COMPLETE.items():
        found, every = (sum(f["completeness"][low][k] for f in done.values()) for k in (0, 1))
        share = found / max(every, 1)
        rows.append(
            Row(
                f"completeness, S_corr from {low}",
                f">= {wanted}",
                f"{found} of {every} = {share:.3f}",
                share >= wanted,
            )
        )
    found, every = (sum(f["completeness"]["5"][k] for f in done.values()) for k in (0, 1))
    rows.append(Row("  completeness, S_corr 5 to 6", "", f"{found} of {every}", True))
    for clean, extra in ((True, BOGUS_CLEAN), (False, BOGUS_STRUCK)):
        some = {n: f for n, f in done.items() if f["clean"] == clean}
        if not some:
            continue
        area = sum(f["mpix"] for f in some.values())
        count = sum(f["bogus"] for f in some.values()) / area
        floor = sum(f["floor_mpix"] * f["mpix"] for f in some.values()) / area
        over = [n for n, f in some.items() if f["bogus"] / f["mpix"] > f["floor_mpix"] + extra]
        words = "clean chips" if clean else "cosmic rays and trails"
        beside: dict[str, int] = {}
        for name, k in (item for f in some.values() for item in f["bogus_on"].items()):
            beside[name] = beside.get(name, 0) + k
        rows.append(Row("  of these beside", "", " ".join(f"{k}: {v}" for k, v in beside.items()), True))
        rows.append(
            Row(
                f"unflagged that are nothing, {words}",
                f"<= floor + {extra} per Mpix",
                f"{count:.2f} per Mpix, floor {floor:.2f}; over: {_some(over)}",
                count <= floor + extra,
            )
        )
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chips", description=__doc__)
    parser.add_argument("--n", type=int, default=60, help="chips, the first of the sixty")
    parser.add_argument("--quick", action="store_true", help="a dozen chosen ones")
    parser.add_argument("--only", type=int, nargs="*", help="these numbers")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/harness/skies"), help="of drawn skies")
    parser.add_argument(
        "--until-match", action="store_true", help="no subtraction: registration, PSFs and scale alone"
    )
    parser.add_argument("--json", type=Path, help="write all figures here; those already there are kept")
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    numbers = options.only or (QUICK if options.quick else range(options.n))
    figures: dict[int, dict] = {}
    if options.json and options.json.exists():
        figures = {int(n): f for n, f in json.loads(options.json.read_text()).items()}
    for n in numbers:
        if n not in figures:
            start = time.process_time()
            sky = sky_for(chip_config(n), options.cache)
            drawn = time.process_time() - start
            figures[n] = measured(sky, PipelineConfig(), until_match=options.until_match)
            figures[n]["cpu_seconds"]["draw"] = round(drawn, 1)
            if options.json:
                with atomic_path(options.json) as temporary:
                    temporary.write_text(json.dumps(figures, indent=1))
        print(line(n, figures[n]), flush=True)
    print_table(accuracy_rows(figures) + ([] if options.until_match else subtraction_rows(figures)))


if __name__ == "__main__":
    main()
