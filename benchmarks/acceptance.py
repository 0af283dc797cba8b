"""What ks4diff promises, measured on real images and a real broker: ``make acceptance`` prints one table.

The images are in ../shared/realdata (or $KS4DIFF_SHARED/realdata). Each check returns rows; the test suite
runs the same checks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from benchmarks import acceptance_alerts, acceptance_input
from benchmarks.acceptance_rows import Row, print_table, shared_realdata
from ks4diff.io.fits_image import read_chip
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import PairResult, process_pair
from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.products.errors import SkipChip
from ks4diff.stages.forced import forced_flux
from ks4diff.stages.score import rank

MOA = "MichaelDAlbrow+pyDIA/Example/Images"
SFFT = "thomasvrussell+sfft/test/difference_noise_decorrelation/input_data"
ESO = "quatrope+ProperImage/data"
DIPOLES = ((58, 180), (5, 126), (100, 73), (103, 233), (178, 203))
EVENT_IN_0028 = (257.1, 249.7)
PEAK_MJD = (56507.6, 56507.8)


def moa_event(realdata: Path) -> list[Row]:
    """Find MOA-2013-BLG-475 against a sharper and a blurrier reference."""
    rows = []
    for reference in ("0028", "0161"):
        result = _moa(realdata, "0096", reference)
        place, distance, scorr = _nearest(result, 278.7, 223.0)
        rows.append(
            Row(
                f"MOA 0096 / {reference}: event",
                "within 1 px, |Scorr| > 20, rank <= 3",
                f"{distance:.2f} px, Scorr {scorr:+.1f}, rank {place}",
                distance <= 1 and abs(scorr) > 20 and place <= 3,
            )
        )
    return rows


def moa_jump(realdata: Path) -> list[Row]:
    """Take the second images of stars, of a telescope that jumped, for what they are."""
    result = _moa(realdata, "0098", "0028")
    flags = result.subtracted.candidates.table["flags"]
    n = int((flags & REJECTING_BITS == 0).sum())
    return [Row("MOA 0098: second images", "<= 8 unflagged (41 before)", f"{n} unflagged", n <= 8)]


def decam_transient(realdata: Path) -> list[Row]:
    """Find the DECam transient above the five dipoles."""
    with tempfile.TemporaryDirectory() as folder:
        science = mean_of_five(realdata, "04", Path(folder))
        reference = mean_of_five(realdata, "18", Path(folder))
        result = process_pair(read_chip(science), read_chip(reference), PipelineConfig())
    place, distance, scorr = _nearest(result, 129, 128)
    above = [dipole for dipole in DIPOLES if _nearest(result, *dipole, within=6)[0] < place]
    return [
        Row("DECam minis: transient", "within 1 px", f"{distance:.2f} px, Scorr {scorr:+.1f}", distance <= 1),
        Row(
            "DECam minis: dipoles ranked above",
            "none of 5",
            f"{len(above)} (transient ranks {place})",
            not above,
        ),
    ]


def null_pair(realdata: Path) -> list[Row]:
    """Show that nothing comes of a pair in which nothing changed."""
    first, second = (read_chip(realdata / ESO / f"aligned_eso085-030-{n}.fit") for n in ("004", "005"))
    result = process_pair(first, second, PipelineConfig())
    report, table = result.report, result.subtracted.candidates.table
    unflagged = int(((table["flags"] & REJECTING_BITS) == 0).sum())
    return [
        Row(
            "ESO 085-030: std of S_corr, source-free",
            "1.00 +- 0.05, not rescaled",
            f"{report.scorr_std_sky:.3f}",
            abs(report.scorr_std_sky - 1) <= 0.05,
        ),
        Row(
            "ESO 085-030: unflagged candidates",
            "<= 3 with <= 5 % masked",
            f"{unflagged} with {100 * report.masked_fraction:.1f} % masked, {report.n_alerts} alerts",
            unflagged <= 3 and report.masked_fraction <= 0.05,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class LightPoint:
    """One epoch of the event's light curve, in counts of the reference frame."""

    frame: str
    mjd: float
    flux: float
    flux_err: float
    scorr_std: float
    quality: str


def light_curve(realdata: Path) -> tuple[list[LightPoint], list[str]]:
    """Return (points, skipped) of all 28 frames against 0028; each skip is 'frame: reason'."""
    reference = read_chip(realdata / MOA / "AKB13475I0028.fits")
    points, skipped = [], []
    for path in sorted((realdata / MOA).glob("*.fits")):
        frame = path.stem[-4:]
        if frame == "0028":
            continue
        science = read_chip(path)
        try:
            result = process_pair(science, reference, PipelineConfig())
        except SkipChip as skip:
            skipped.append(f"{frame}: {skip}")
            continue
        flux, error = forced_flux(result.subtracted, *EVENT_IN_0028)
        scale = result.subtracted.match.flux_scale
        points.append(
            LightPoint(
                frame=frame,
                mjd=science.mjd_mid,
                flux=flux / scale,
                flux_err=error / scale,
                scorr_std=result.report.scorr_std,
                quality=result.report.quality,
            )
        )
    return points, skipped


def moa_series(realdata: Path) -> list[Row]:
    """Subtract 0028 from every other frame and print the event's light curve."""
    points, skipped = light_curve(realdata)
    print("\nMOA-2013-BLG-475 minus frame 0028, counts of 0028")
    print("frame        MJD        flux     error  std(S_corr)")
    for p in points:
        print(f"{p.frame}  {p.mjd:12.4f}  {p.flux:10.0f}  {p.flux_err:8.0f}  {p.scorr_std:8.2f} {p.quality}")
    for line in skipped:
        print("skipped", line)
    peak = [p.flux for p in points if PEAK_MJD[0] < p.mjd < PEAK_MJD[1]]
    before = [p for p in points if p.mjd < PEAK_MJD[0]]
    rise = float(np.median(peak)) if peak else float("nan")
    highest = max((p.flux for p in before), default=float("nan"))
    return [
        Row(
            "MOA series: 28 pairs",
            "all run or skipped with a reason, <= 4 skipped",
            f"{len(points)} run, {len(skipped)} skipped",
            len(points) + len(skipped) == 28 and len(skipped) <= 4,
        ),
        Row(
            "MOA series: light curve",
            "rises to MJD 56507.7",
            f"median {rise:.0f} at peak, highest before {highest:.0f}",
            rise > 5 * abs(highest),
        ),
    ]


def _moa(realdata: Path, science: str, reference: str) -> PairResult:
    first, second = (read_chip(realdata / MOA / f"AKB13475I{n}.fits") for n in (science, reference))
    return process_pair(first, second, PipelineConfig())


def mean_of_five(realdata: Path, epoch: str, folder: Path) -> Path:
    """Write the mean of an epoch's five aligned frames, with the gain that a mean of five has."""
    paths = sorted((realdata / SFFT).glob(f"DEC-OBS{epoch}?.mini.fits"))
    header = fits.getheader(paths[0])
    header["GAIN"] = len(paths) * 0.5 * (header["GAINA"] + header["GAINB"])
    for name in ("GAINA", "GAINB", "RDNOISEA", "RDNOISEB"):
        header.pop(name, None)
    path = folder / f"DEC-OBS{epoch}.mean.fits"
    fits.writeto(path, np.mean([fits.getdata(p) for p in paths], axis=0).astype(np.float32), header)
    return path


def _nearest(result: PairResult, x: float, y: float, *, within: float = np.inf) -> tuple[float, float, float]:
    """Return (rank from 1, distance in pixels, S_corr) of the nearest candidate; rank inf if none."""
    table = result.subtracted.candidates.table
    order = rank(result.subtracted.candidates)
    if len(order) == 0:
        return np.inf, np.inf, np.nan
    distance = np.hypot(table["x"][order] - x, table["y"][order] - y)
    place = int(np.argmin(distance))
    if distance[place] > within:
        return np.inf, np.inf, np.nan
    return place + 1, float(distance[place]), float(table["scorr"][order[place]])


CHECKS: tuple[Callable[[Path], list[Row]], ...] = (
    moa_event,
    moa_jump,
    decam_transient,
    null_pair,
    moa_series,
    acceptance_alerts.kafka_round_trip,
    acceptance_input.bad_input,
)


def main() -> int:
    """Run the checks named on the command line, or all, and print one table; 1 when one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(check.__name__ for check in CHECKS)}")
    wanted = parser.parse_args().checks
    realdata = shared_realdata()
    rows = [row for check in CHECKS if not wanted or check.__name__ in wanted for row in check(realdata)]
    print_table(rows)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
