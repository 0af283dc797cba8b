"""Measure registration: chance matches, made KMTNet chips against their true geometry, real frames, and time.

Made pairs are star lists with KMTNet's own distortion (`benchmarks/register_pairs.py`); real lists are
detected on the open images in ../shared/realdata (or $KS4DIFF_SHARED/realdata).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.acceptance_rows import shared_realdata
from benchmarks.register_pairs import Case, Made, make, score
from benchmarks.timing import best_of_five, machine
from ks4diff.io.fits_image import read_chip
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import match_chips
from ks4diff.pipeline.report import Stopwatch
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.errors import InputError, SkipChip
from ks4diff.products.registration import Registration
from ks4diff.stages.calibrate import CalibrateConfig, calibrate
from ks4diff.stages.register import RegisterConfig, register
from ks4diff.stages.subtract import subtract

MOA = "MichaelDAlbrow+pyDIA/Example/Images"
DENSITIES = (500, 1500, 5000, 15_000, 40_000, 100_000)
BRIGHT_SN = 50.0
PART_PIX = 800  # real frames are cut into parts of at least this size


def cases(n: int, *, seed: int = 0) -> Iterator[Case]:
    """Yield made cases: every chip, site and density, both sizes and places, in turn."""
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        yield Case(
            seed=1000 * seed + k,
            site=("CTIO", "SSO", "SAAO")[k % 3],
            chip="MKNT"[k % 4],
            size=(2048, 4096)[(k // 4) % 2],
            corner=bool((k // 8) % 2),
            density=DENSITIES[(k // 2) % 6],
            fwhm=float(rng.uniform(2.3, 6.0)),
            start=("own", "own", "any", "none")[(k // 3) % 4],
        )


def tried(science: CalibratedChip, template: CalibratedChip) -> Registration | SkipChip:
    """Return the registration, or why there is none."""
    try:
        return register(science, template, RegisterConfig())
    except SkipChip as skip:
        return skip


def unrelated(n: int) -> list[tuple[Case, Registration]]:
    """Return those of n pairs of unrelated lists that are matched all the same: there should be none.

    Half have the WCS of KMTNet chips of one place on the sky, half none at all; each list belongs to the same
    chip as the other, so that only its stars tell.
    """
    wrong = []
    for k, case in enumerate(cases(n, seed=7)):
        density = DENSITIES[k % 3] if case.size == 4096 else case.density
        one, other = (
            make(replace(case, density=density)),
            make(replace(case, density=density, seed=10**6 + k)),
        )
        science, template = one.science, other.template
        if k % 2:
            science = replace(science, raw=replace(science.raw, wcs=None))
        answer = tried(science, template)
        if isinstance(answer, Registration):
            wrong.append((case, answer))
    return wrong


def made(n: int) -> tuple[list[tuple[Case, Made]], list[tuple[Case, Made]], list[np.ndarray]]:
    """Return (cases registered, cases refused, [rms px, stated px, bright stars, bad] of every cell)."""
    registered, refused, cells = [], [], []
    for case in cases(n):
        pair = make(case)
        answer = tried(pair.science, pair.template)
        if not isinstance(answer, Registration):
            refused.append((case, pair))
            continue
        registered.append((case, pair))
        found = score(answer, pair)
        cells.append(np.stack([found.rms, found.stated, found.bright, found.bad]))
    return registered, refused, cells


def told(n: int) -> None:
    """Print what n made cases show."""
    registered, refused, cells = made(n)
    print(f"{len(registered)} of {n} made chips registered; refused:")
    for case, pair in refused:
        print(
            f"  {pair.n_common} common stars of {len(pair.science.stars)}, {len(pair.template.stars)}: {case}"
        )
    rms, stated, bright, bad = np.concatenate(cells, axis=1)
    rich = bright >= 30
    if rich.any():
        print(
            f"{rich.sum()} cells with 30 stars of S/N > 50: rms {np.median(rms[rich]):.4f} px median, "
            f"{rms[rich].max():.4f} largest ({(rms[rich] > 0.04).sum()} above 0.04)"
        )
    print(
        f"{(~rich).sum()} other cells: rms over stated error {np.median((rms / stated)[~rich]):.2f} median, "
        f"{(rms / stated)[~rich].max():.2f} largest, {((rms > 3 * stated) & ~rich).sum()} above 3; "
        f"rms {np.median(rms[~rich]):.3f} px median, {rms[~rich].max():.3f} largest; "
        f"{int(bad.sum())} of {len(bad)} cells flagged bad"
    )


def real_lists(realdata: Path, n: int) -> list[tuple[str, CalibratedChip]]:
    """Return (field, chip) of up to n images or parts of them, each calibrated by the package."""
    found: list[tuple[str, CalibratedChip]] = []
    paths = sorted(p for p in realdata.rglob("*") if ".fit" in p.name.lower() and "moa" not in p.name.lower())
    for path in paths:
        try:
            raw = read_chip(path)
        except (InputError, SkipChip, OSError):
            continue
        for rows, columns in _parts(raw.data.shape):
            part = replace(raw, data=np.ascontiguousarray(raw.data[rows, columns]), wcs=None, flags=None)
            try:
                chip = calibrate(part, CalibrateConfig())
            except SkipChip:
                continue
            # one source's images may show one field: only those of different sources are certainly apart
            found.append((path.relative_to(realdata).parts[0], chip))
    step = max(len(found) / n, 1.0)
    return [found[int(k * step)] for k in range(min(n, len(found)))]


def _parts(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    n, m = (max(size // PART_PIX, 1) for size in shape)
    for j in range(n):
        for i in range(m):
            yield (
                slice(j * shape[0] // n, (j + 1) * shape[0] // n),
                slice(i * shape[1] // m, (i + 1) * shape[1] // m),
            )


def real(realdata: Path, n: int) -> None:
    """Print how many real lists match a wrong field."""
    lists = real_lists(realdata, n)
    fields = {name for name, _ in lists}
    matched = pairs = 0
    for k, (name, chip) in enumerate(lists):
        others = [item for item in lists[k + 1 :] if item[0] != name]
        for other_name, other in others[:: max(len(others) // 6, 1)]:
            pairs += 1
            answer = tried(chip, other)
            if isinstance(answer, Registration):
                matched += 1
                print(f"  MATCHED {name} and {other_name}: {answer.n_matched} stars")
    print(
        f"real lists: {len(lists)} of {len(fields)} sources, {pairs} pairs of wrong fields, {matched} matched"
    )


def moa(realdata: Path, *, subtracted: bool) -> None:
    """Print the registration of each open MOA frame to 0028, and the medians and worst of its two rms.

    `Registration.rms_pix`, and of all stars weighted by their noise, which was ``rms_pix`` until commit
    614c92e, when positions were centroids. ``subtracted``: what is left of bright stars too (`left_over`).
    """
    chips = {
        path.stem[-4:]: calibrate(read_chip(path), CalibrateConfig())
        for path in sorted((realdata / MOA).glob("*.fit*"))
    }
    found = []
    for name, chip in chips.items():
        if name == "0028":
            continue
        answer = tried(chip, chips["0028"])
        if isinstance(answer, SkipChip):
            print(f"  MOA {name}: {answer}")
            continue
        left = left_over(chip, chips["0028"]) if subtracted else ""
        print(
            f"  MOA {name} ({chip.psf.fwhm_pix:.1f} px): rms {answer.rms_pix:.3f} px of bright stars, "
            f"all weighted {answer.rms_weighted_pix:.3f}, {answer.n_matched} of {len(chip.stars)}, "
            f"map's error {np.median(answer.error.values):.3f} px, degree {answer.degree}{left}",
            flush=True,
        )
        found.append((answer.rms_pix, answer.rms_weighted_pix))
    for name, rms in zip(("bright", "weighted"), np.array(found).T, strict=True):
        held = f"{(rms <= 0.06).sum()} of {len(rms)} within 0.06"
        print(f"  rms {name}: {np.median(rms):.3f} px median, {rms.max():.3f} worst, {held}")


def left_over(chip: CalibratedChip, template: CalibratedChip) -> str:
    """Return what the difference shows at clean stars of S/N > 50, in words.

    D / sigma is the rms over the pixels within half a FWHM, sigma the noise of a pixel of D without the
    star's own light, so that a perfect difference of bright stars has more than 1; |S_corr| counts that
    light and every stated error.
    """
    config = PipelineConfig()
    chip, aligned, registration, match = match_chips(chip, template, config, Stopwatch())
    difference = subtract(chip, aligned, match, registration, config.subtract)
    stars = chip.stars
    half = int(np.ceil(0.5 * chip.psf.fwhm_pix))
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    inside = np.hypot(u, v) <= 0.5 * chip.psf.fwhm_pix
    height, width = difference.difference.shape
    x, y = np.rint(stars.x).astype(int), np.rint(stars.y).astype(int)
    area = 1 / float((chip.psf.stamp.astype(float) ** 2).sum())
    snr = stars.flux / np.sqrt(chip.noise.sigma**2 * area + np.maximum(stars.flux, 0) / chip.gain)
    use = stars.clean & (snr > BRIGHT_SN)
    use &= (x >= half) & (y >= half) & (x < width - half) & (y < height - half)
    rows, columns = y[use][:, None] + v[inside], x[use][:, None] + u[inside]
    good = (difference.flags[rows, columns] == 0).all(axis=1)
    sigma = difference.noise_map.at(stars.x[use], stars.y[use])
    left = np.sqrt((difference.difference[rows, columns] ** 2).mean(axis=1)) / sigma
    score = np.abs(difference.score_corr[y[use], x[use]])
    low, high = np.percentile(left[good], (50, 90))
    return (
        f"; {good.sum()} stars of S/N > {BRIGHT_SN:g}: D/sigma {low:.1f} median, {high:.1f} for 90 %; "
        f"|S_corr| {np.median(score[good]):.1f} median, {(score[good] > 5).mean():.2f} above 5"
    )


def timed() -> None:
    """Print the time for a whole chip."""
    pair = make(Case(seed=1, size=0, density=84_000, start="any"))
    seconds = best_of_five(lambda: register(pair.science, pair.template, RegisterConfig()))
    n, m = len(pair.science.stars), len(pair.template.stars)
    print(f"whole chip, {n} x {m} stars: {seconds:.2f} s (best of five)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unrelated", type=int, default=0, metavar="N", help="pairs of unrelated made lists")
    parser.add_argument("--made", type=int, default=0, metavar="N", help="made chips against the truth")
    parser.add_argument(
        "--real", type=int, default=0, metavar="N", help="real star lists against wrong fields"
    )
    parser.add_argument("--moa", action="store_true", help="the open MOA series, frame by frame")
    parser.add_argument(
        "--subtracted", action="store_true", help="what is left of the MOA frames' bright stars too"
    )
    parser.add_argument("--time", action="store_true", help="a whole chip of 70,000 stars")
    options = parser.parse_args()
    print(machine())
    start = time.perf_counter()
    if options.made:
        told(options.made)
    if options.unrelated:
        wrong = unrelated(options.unrelated)
        print(f"{options.unrelated} pairs of unrelated lists: {len(wrong)} matched")
        for case, found in wrong:
            print(f"  {found.n_matched} stars by {found.method}: {case}")
    if options.real:
        real(shared_realdata(), options.real)
    if options.moa:
        moa(shared_realdata(), subtracted=options.subtracted)
    if options.time:
        timed()
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
