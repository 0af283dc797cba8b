"""Real pairs with a known event: its score, what bright stars leave, and how white the difference is.

    python -m benchmarks.real_pairs [--pictures DIR] [--chip DIR]

MOA-2013-BLG-475 against a sharper and a blurrier reference, and the DECam minis, whose authors' own
decorrelated difference is judged by the same pixels. --pictures draws a page of each: D, S_corr, Z² and their
histograms against those of noise; --chip is a folder of `benchmarks.recover --cache`, for a simulated one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage

from benchmarks.acceptance import MOA, mean_of_five
from benchmarks.acceptance_rows import shared_realdata
from benchmarks.chips_sky import sky_for
from benchmarks.recover import SEEINGS, prepared, sky_config
from ks4diff.io.fits_image import read_chip
from ks4diff.numerics.noise import autocovariance
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import calibrated, process_pair, subtract_chips
from ks4diff.pipeline.report import Stopwatch
from ks4diff.products.errors import SkipChip
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.guards import star_residuals
from ks4diff.stages.motion import motion
from ks4diff.stages.quality import scorr_std

DECORRELATED = "thomasvrussell+sfft/test/difference_noise_decorrelation/4check/FinalDifference.DeCorr.fits"
FIRST_LIGHT = {"MOA 0096 - 0028": 109.4, "MOA 0096 - 0161": 170.9, "DECam 04 - 18": 28.6}
BRIGHT, FEWEST = 100, 5  # stars: the brightest of the science image's list that nothing flags
LAGS = {"x": (0, 1), "y": (1, 0), "xy": (1, 1), "-xy": (1, -1), "2x": (0, 2), "2y": (2, 0)}
FAR_PIX = 12.0  # from an event: there the sky begins again
Z2_SHOWN = 25.0
PAGE_PIX = 600  # a larger image is shown by its middle


def pairs(realdata: Path) -> Iterator[tuple[str, SubtractedChip, tuple[float, float]]]:
    """Yield (name, subtraction, place of the event) of each real pair."""
    frame = {n: realdata / MOA / f"AKB13475I{n}.fits" for n in ("0028", "0096", "0161")}
    for reference in ("0028", "0161"):
        done = process_pair(read_chip(frame["0096"]), read_chip(frame[reference]), PipelineConfig())
        yield f"MOA 0096 - {reference}", done.subtracted, (278.7, 223.0)
    with tempfile.TemporaryDirectory() as folder:
        means = [read_chip(mean_of_five(realdata, epoch, Path(folder))) for epoch in ("04", "18")]
        yield "DECam 04 - 18", process_pair(*means, PipelineConfig()).subtracted, (129.0, 128.0)


def simulated(cache: Path) -> tuple[str, SubtractedChip]:
    """Return (name, subtraction) of the clean 1.2" chip of `benchmarks.recover`, nothing injected."""
    sky = sky_for(sky_config(SEEINGS[1], dirty=False, number=1, size=1536), cache)
    config = PipelineConfig()
    raw, template = prepared(sky, config)
    return "simulated chip, 1.2 arcsec", subtract_chips(
        calibrated(raw, config), template, config, Stopwatch()
    )


def star_rms(done: SubtractedChip) -> float:
    """Return the median over the brightest clean stars of the rms of D within a FWHM over the star's peak."""
    difference, stars = done.difference, done.chip.stars
    rows, columns = difference.flags.shape
    half = max(round(done.chip.psf.fwhm_pix), 2)
    offset = np.arange(-half, half + 1)
    within = offset[:, None] ** 2 + offset**2 <= half**2
    left = []
    for k in np.argsort(-stars.flux)[: 10 * BRIGHT]:
        x, y = round(float(stars.x[k])), round(float(stars.y[k]))
        box = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
        if not (half <= x < columns - half and half <= y < rows - half) or difference.flags[box].any():
            continue
        left.append(difference.difference[box][within].std() / done.chip.image.data[box].max())
        if len(left) == BRIGHT:
            break
    return float(np.median(left)) if len(left) >= FEWEST else float("nan")


def whiteness(image: np.ndarray, used: np.ndarray) -> dict[str, float]:
    """Return the correlation of used (bool [y, x]) pixels with their neighbours, by `LAGS`."""
    covariance = autocovariance(np.where(used, image - image[used].mean(), 0), used, 2)
    return {name: float(covariance[2 + dy, 2 + dx] / covariance[2, 2]) for name, (dy, dx) in LAGS.items()}


def sky_of(done: SubtractedChip, event: tuple[float, float] | None) -> np.ndarray:
    """Return bool [y, x]: unflagged pixels of both images' sky, away from the event."""
    used = done.difference.flags == 0
    if done.chip.sky is not None:
        used &= done.chip.sky
    if event is not None:
        y, x = np.indices(used.shape)
        used &= np.hypot(x - event[0], y - event[1]) > FAR_PIX
    return used


def line(name: str, done: SubtractedChip, event: tuple[float, float]) -> str:
    """Return one line of figures."""
    table = done.candidates.table
    away = np.hypot(table["x"] - event[0], table["y"] - event[1])
    k = int(np.argmin(away))
    left = star_residuals(done.difference, done.chip.stars)
    lags = whiteness(done.difference.difference, sky_of(done, event))
    words = " ".join(f"{lag} {value:+.3f}" for lag, value in lags.items())
    return (
        f"{name}: event S_corr {table['scorr'][k]:+.1f} at {away[k]:.2f} px "
        f"(first light {FIRST_LIGHT[name]:+.1f}); registration {done.registration.rms_pix:.3f} px; "
        f"S_corr std {scorr_std(done.difference):.3f}, "
        f"sky {scorr_std(done.difference, sky_of(done, event)):.3f}; "
        f"bright stars: D {100 * star_rms(done):.2f} % of the peak, "
        f"S_corr rms {left.rms:.2f}, dipoles {100 * left.dipoles:.0f} % of {left.n_stars}; "
        f"D's correlations {words}"
    )


def decorrelated_line(realdata: Path, done: SubtractedChip, event: tuple[float, float]) -> str:
    """Return the line of the difference that comes with the DECam minis, on the same pixels."""
    data = fits.getdata(realdata / DECORRELATED).astype(np.float64)
    used = sky_of(done, event) & ndimage.binary_erosion(np.isfinite(data) & (data != 0), iterations=2)
    words = " ".join(f"{lag} {value:+.3f}" for lag, value in whiteness(np.nan_to_num(data), used).items())
    return f"their decorrelated difference, the same {used.sum()} pixels: correlations {words}"


def page(path: Path, name: str, done: SubtractedChip) -> None:
    """Write D, S_corr, Z² and their histograms against noise as one PNG."""
    difference = done.difference
    rows, columns = (_middle(n) for n in difference.flags.shape)
    good = difference.flags[rows, columns] == 0
    noise = (
        difference.noise if difference.noise_map is None else float(np.median(difference.noise_map.values))
    )
    planes = (
        ("D / noise", difference.difference[rows, columns] / noise, 8.0),
        ("S_corr", difference.score_corr[rows, columns], 8.0),
        ("Z²", motion(difference, rows, columns), Z2_SHOWN),
    )
    figure = Figure(figsize=(17, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, height_ratios=(3, 2))
    figure.suptitle(f"{name}: S_corr std {scorr_std(difference):.3f}, {done.quality.verdict}")
    for (label, plane, top), above, below in zip(planes, axes[0], axes[1], strict=True):
        squared = label == "Z²"
        picture = above.imshow(
            np.where(good, plane, np.nan),
            origin="lower",
            cmap="magma" if squared else "RdBu_r",
            vmin=0 if squared else -top,
            vmax=top,
            interpolation="nearest",
        )
        above.set_facecolor("green")
        above.set_title(label)
        figure.colorbar(picture, ax=above, shrink=0.8)
        edges = np.linspace(0 if squared else -top, top, 81)
        middles, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
        expected = np.exp(-middles / 2) / 2 if squared else np.exp(-(middles**2) / 2) / np.sqrt(2 * np.pi)
        below.hist(plane[good], edges, log=True, color="0.6")
        below.plot(middles, good.sum() * width * expected, "r-", label="chi², 2" if squared else "N(0, 1)")
        below.set_ylim(0.5, None)
        below.set_title(f"std {plane[good].std():.3f}" if not squared else f"mean {plane[good].mean():.2f}")
        below.legend()
    figure.savefig(path, dpi=70)


def _middle(n: int) -> slice:
    low = max((n - PAGE_PIX) // 2, 0)
    return slice(low, min(low + PAGE_PIX, n))


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder to draw into")
    parser.add_argument("--chip", type=Path, help="cache of benchmarks.recover, to draw a simulated chip too")
    options = parser.parse_args()
    realdata = shared_realdata()
    pages = []
    for name, done, event in pairs(realdata):
        print(line(name, done, event), flush=True)
        if name.startswith("DECam"):
            print(decorrelated_line(realdata, done, event), flush=True)
        pages.append((name, done))
    if options.chip:
        try:
            pages.append(simulated(options.chip))
        except SkipChip as skip:
            print("simulated chip:", skip)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for k, (name, done) in enumerate(pages):
            page(options.pictures / f"pair-{k}.png", name, done)


if __name__ == "__main__":
    main()
