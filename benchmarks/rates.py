"""False detections per Mpix and completeness over the fields of a harvest, by seeing, before any score.

    python -m benchmarks.rates FOLDER/field*.npz

`ks4diff train harvest` draws the fields: full pipelines on simulated exposures with particles and trails,
sources added to the images before registration. A flagged source is missed; images of quality `fail` are left
out, and so are added sources that blend with a change of the simulated sky's own. Beside the false detections
stands the floor of pure noise, both signs, of a Moffat PSF of the mean seeing.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.chips_changes import noise_floor
from ks4diff.products.psf import Psf
from ks4diff.stages.recover import wilson
from ks4diff.training.false_alerts import beside_changes
from ks4diff.training.measures import is_added
from ks4diff.training.table import ALERT_SCORE, Table, night_keys, read_table, searched
from tests import skies

PIXEL_ARCSEC = 0.4
SEEING_EDGES = (0.0, 0.95, 1.1, 1.3, 1.5, 1.8, 2.3, np.inf)
BETA = 3.5  # of the Moffat
SIDE_PIX = 61
FALSE_ABOVE = (5.0, 5.5, 6.0, 8.0)
SNR_BINS = ((6.0, 8.0), (8.0, np.inf))


def floor_of(fwhm: float) -> float:
    """Return noise's false detections per Mpix for a round Moffat PSF of this FWHM, pixels."""
    stamp = skies.Seeing(fwhm=fwhm, beta=BETA).stamp(SIDE_PIX)
    return noise_floor(Psf(stamp=stamp, fwhm_pix=fwhm, n_stars=0))


def found(table: Table) -> np.ndarray:
    """Return bool [changes]: a candidate was there, strong enough, that no flag rejects."""
    row = table.changes["row"]
    seen = table.unflagged & (np.abs(table.rows["scorr"]) >= ALERT_SCORE)
    return (row >= 0) & seen[np.maximum(row, 0)]


def line(table: Table, of: np.ndarray, name: str) -> str:
    """Return what the exposures ``of`` [nights] show."""
    nights, numbers = table.nights[of], night_keys(table.night_field, table.nights["night"])[of]
    mpix = float(nights["mpix"].sum())
    rows, changes = table.rows, table.changes
    false = table.unflagged & ~rows["real"] & (rows["round"] == 0)
    false &= np.isin(night_keys(table.field, rows["night"]), numbers)
    counts = [(false & (np.abs(rows["scorr"]) >= above)).sum() / mpix for above in FALSE_ABOVE]
    floor = np.average([floor_of(w) for w in nights["seeing"]], weights=nights["mpix"])
    added = is_added(changes["tag"]) & ~beside_changes(table)
    added &= np.isin(night_keys(table.change_field, changes["night"]), numbers)
    words = [
        f"{name:>10} {of.sum():4d} {mpix:6.0f} {np.average(nights['hits_mpix'], weights=nights['mpix']):5.0f}"
    ]
    words.append(f"{floor:6.2f}  " + " ".join(f"{count:5.2f}" for count in counts))
    hit = found(table)
    for low, high in SNR_BINS:
        use = added & (changes["expected"] >= low) & (changes["expected"] < high)
        share, bottom, top = (
            100 * v for v in (hit[use].mean(), *wilson(int(hit[use].sum()), int(use.sum())))
        )
        words.append(f"{share:5.1f} ({bottom:.1f} to {top:.1f}) of {use.sum()}")
    return "  ".join(words)


def main() -> None:
    """Print one line for each range of seeing, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fields", nargs="+", type=Path)
    table, _ = read_table(sorted(parser.parse_args().fields))
    seen = searched(table)
    good = (table.nights["mpix"] > 0) & (table.nights["quality"] != "fail")
    print(f"{seen.nights} exposures, {seen.mpix:.0f} Mpix, of {len(table.site)} fields")
    above = " ".join(f">={v:g}" for v in FALSE_ABOVE)
    print(f"    seeing    n   Mpix  hits  floor  false per Mpix {above}; found, %, at S/N 6-8 and >= 8")
    seeing = table.nights["seeing"] * PIXEL_ARCSEC
    for low, high in pairwise(SEEING_EDGES):
        of = good & (seeing >= low) & (seeing < high)
        if of.any():
            print(line(table, of, f'{low:g}-{high:g}"'))
    print(line(table, good, "all"))


if __name__ == "__main__":
    main()
