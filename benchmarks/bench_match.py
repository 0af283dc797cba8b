"""How well the match finds scale, amplifier steps and background on simulated 2k chips, and how fast."""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy import ndimage

from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.templates import TemplateStore
from ks4diff.numerics.matching import convolve
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.ingest import TileOptions, add_tiles
from ks4diff.pipeline.run import POINTING_ERROR_PIX, exposures_of
from ks4diff.pipeline.simulate import simulate
from ks4diff.pipeline.templates import template_for
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, Amplifier, CalibratedChip, StarList
from ks4diff.stages.align import align
from ks4diff.stages.astrometry import nominal_wcs
from ks4diff.stages.calibrate import calibrate
from ks4diff.stages.differential_background import differential_background
from ks4diff.stages.footprint import chip_footprint
from ks4diff.stages.match import MatchConfig, match
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.on_scale import science_on_scale, template_on_scale
from ks4diff.stages.pixel_match import pixel_match
from ks4diff.stages.register import register
from ks4diff.stages.scale_field import scale_field
from ks4diff.stages.signature import remove_signature
from ks4diff.stages.sim.config import OpticsConfig, SimulateConfig, SkyConfig, TemplateConfig
from ks4diff.stages.star_photometry import star_ratios

CHIP = "K"
FACTORS = (1.0, 1.0, 1.02, 1.0, 1.0, 0.985, 1.0, 1.0)  # put on the reduced chip's eight amplifiers
LEVELS = (0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, -1.5)  # counts
WAVE = (1.0, 1500.0)  # counts and pixels of a background put on the chip


@dataclass(frozen=True, kw_only=True)
class Made:
    """One simulated chip up to the match, and the true scale of its 1k cells."""

    name: str
    chip: CalibratedChip
    template: AlignedTemplate
    truth: np.ndarray


def made(site: str, seed: int, density: float, folder: Path) -> Made:
    """Return a chip; gains, throughput and zero points of the template's exposures are without errors."""
    sim = SimulateConfig(
        seed=seed,
        site=site,
        chips=(CHIP,),
        exposures=1,
        sky=SkyConfig(density_deg2=density),
        optics=OpticsConfig(throughput_variation=0.0),
        # a median of unlike PSFs keeps another flux than theirs
        template=TemplateConfig(zeropoint_error=0.0, gain_error=0.0, combine="mean"),
    )
    name = f"{site}-{seed}-{density:g}"
    out = folder / name
    if not (out / "manifest.json").exists():
        simulate(sim, out)
    store_path = folder / f"{name}-store"
    if not store_path.exists():
        store = TemplateStore(store_path, create=True)
        list(add_tiles(store, sorted((out / "templates").rglob("*.fits")), TileOptions()))
    config = PipelineConfig()
    raw = read_exposure_chip(exposures_of([out / "raw"])[0], CHIP)
    raw = remove_signature(replace(raw, wcs=raw.wcs or nominal_wcs(raw)), None, config.signature)
    wanted = replace(config.template, margin_pix=POINTING_ERROR_PIX)
    part = template_for(
        TemplateStore(store_path), chip_footprint(raw.wcs, raw.data.shape), raw.filter, wanted
    )
    science, reference = calibrate(raw, config.calibrate), as_template(part)
    template = align(reference, science, register(science, reference, config.register), config.calibrate.psf)
    return Made(name=name, chip=science, template=template, truth=_truth(out, template))


def _truth(out: Path, template: AlignedTemplate) -> np.ndarray:
    """Return science counts per template count of surface brightness, per 1k cell."""
    path = next(p for p in (out / "truth").glob("*.truth.fits") if not p.name.startswith("ks4"))
    rows, strips = fits.getdata(path, "SOURCES"), fits.getdata(path, "AMPLIFIERS")
    same = (rows["kind"] == "star") & (rows["mag"] == rows["template_mag"])
    # the amplifiers are brought to the mean of their gains' logarithms
    counts = rows["flux_e"][same] / np.exp(np.mean(np.log(strips["gain"])))
    ratio = float(np.median(counts / 10 ** (0.4 * (30 - rows["template_mag"][same]))))
    shape = template.image.shape
    x, y = Cells(values=np.zeros(cell_grid(shape, CELL_PIX)), shape=shape).middles()
    return ratio * template.area.at(x, y)


def spoiled(chip: CalibratedChip) -> CalibratedChip:
    """Return the chip with `FACTORS`, `LEVELS` and `WAVE` put on it, its amplifiers told as strips."""
    columns = chip.image.shape[1]
    edges = np.linspace(0, columns, 9).astype(int)
    strips = tuple(Amplifier(name=f"A{k}", x0=int(edges[k]), x1=int(edges[k + 1])) for k in range(8))
    data = chip.image.data + wave(chip.image.shape)
    for strip, factor, level in zip(strips, FACTORS, LEVELS, strict=True):
        data[:, strip.x0 : strip.x1] *= np.float32(factor)
        data[:, strip.x0 : strip.x1] += np.float32(level)
    return replace(chip, image=replace(chip.image, data=data), raw=replace(chip.raw, amplifiers=strips))


def wave(shape: tuple[int, int]) -> np.ndarray:
    """Return the background of `WAVE`, float32 [y, x]."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    high, length = WAVE
    return (high * np.sin(2 * np.pi * x / length) * np.cos(2 * np.pi * y / length)).astype(np.float32)


def left_background(one: Made, found) -> float:
    """Return the rms background left in 128 px cells of sky, in sigma of what the score sees, less noise.

    Each image is seen through the other's PSF, as in the subtraction, so that stars' wings cancel; the noise
    of a cell's mean is that of the noise models.
    """
    chip, template = one.chip, one.template
    bad = (chip.image.flags != 0) | (template.image.flags != 0)
    science = np.where(bad, 0, science_on_scale(chip, found))
    reference = np.where(bad, 0, template_on_scale(template, found))
    left = convolve(science, template.psf.stamp) - convolve(reference, chip.psf.stamp)
    free = chip.sky & ~ndimage.binary_dilation(bad, iterations=6)
    sigma = 1.4826 * float(np.median(np.abs(left[free] - np.median(left[free]))))
    scaled = replace(found.template_noise, sigma=found.flux_scale * found.template_noise.sigma)
    pixel = sum(n.sigma**2 * float(n.correlation.sum()) for n in (found.science_noise, scaled))
    values, noise = [], []
    for y in range(0, left.shape[0], 128):
        for x in range(0, left.shape[1], 128):
            part = (slice(y, y + 128), slice(x, x + 128))
            own = left[part][free[part]]
            own = own[np.abs(own - np.median(own)) < 3.5 * sigma]
            if len(own) > 3000:
                values.append(own.mean())
                noise.append(pixel / len(own))
    excess = np.mean(np.square(values)) - np.mean(noise)
    return float(np.sign(excess) * np.sqrt(abs(excess)) / sigma)


def tiled(one: Made, n: int) -> tuple[CalibratedChip, AlignedTemplate]:
    """Return the pair repeated n times a side: a full chip's pixels and stars for timing."""
    shape = tuple(n * side for side in one.chip.image.shape)
    shift = [(i, j) for j in range(n) for i in range(n)]
    rows, columns = one.chip.image.shape
    s = one.chip.stars
    stars = StarList(
        x=np.concatenate([s.x + i * columns for i, _ in shift]),
        y=np.concatenate([s.y + j * rows for _, j in shift]),
        **{name: np.tile(getattr(s, name), n * n) for name in ("flux", "fwhm", "clean")},
    )

    def grown(image):
        variance = Cells.constant(float(np.median(image.sky_variance.values)), shape)
        return replace(
            image, data=np.tile(image.data, (n, n)), flags=np.tile(image.flags, (n, n)), sky_variance=variance
        )

    def wide(psf):
        return type(psf).uniform(psf.typical(), shape)

    chip = replace(
        one.chip,
        image=grown(one.chip.image),
        sky=np.tile(one.chip.sky, (n, n)),
        stars=stars,
        psf=wide(one.chip.psf),
        raw=replace(one.chip.raw, amplifiers=()),
    )
    return chip, replace(one.template, image=grown(one.template.image), psf=wide(one.template.psf))


def speed(one: Made, n: int, repeat: int) -> None:
    """Print the seconds of each part of the match of a chip of n x n times the pixels."""
    chip, template = tiled(one, n)
    config = MatchConfig()
    best: dict[str, float] = {}

    def timed(name, call):
        start = time.perf_counter()
        result = call()
        best[name] = min(best.get(name, np.inf), time.perf_counter() - start)
        return result

    for _ in range(repeat):
        stars = timed("star fluxes", lambda: star_ratios(chip, template, config.stars))
        scale = timed("scale field", lambda s=stars: scale_field(s, chip.image.shape, [], config.scale))
        timed(
            "background",
            lambda s=scale: differential_background(chip, template, s.scale, [], config.background),
        )
        timed("match, all", lambda: match(chip, template, config))
    print(f"speed: {chip.image.shape}, {len(chip.stars)} stars in the list, {len(stars)} compared")
    for name, seconds in best.items():
        print(f"  {name:12s} {seconds:6.2f} s, best of {repeat}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__ + "",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sites", nargs="+", default=["CTIO", "SAAO", "SSO"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13, 14])
    parser.add_argument(
        "--density", type=float, default=70_000.0, help="sources per square degree to 22.5 mag"
    )
    parser.add_argument("--cache", type=Path, help="keep simulated chips here")
    parser.add_argument(
        "--full", type=int, default=4, help="time a chip of this many 2k chips a side, 0: none"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chips = [(site, seed) for site in options.sites for seed in options.seeds]
        last = _accuracy(chips, options.density, folder)
        if options.full:
            speed(last, options.full, options.repeat)


def _accuracy(chips: list[tuple[str, int]], density: float, folder: Path) -> Made:
    config = MatchConfig()
    errors, pulls, pixel_errors, left = [], [], [], []
    print(
        "chip, FWHM px of both: scale error % per cell | stated | pixel method | background left, sigma of S"
    )
    for site, seed in chips:
        one = made(site, seed, density, folder)
        found = match(one.chip, one.template, config)
        x, y = Cells(values=one.truth, shape=one.chip.image.shape).middles()
        off = found.scale.at(x, y) / one.truth - 1
        pixels = pixel_match(one.chip, one.template, config.pixels)
        errors += off.ravel().tolist()
        pulls += (off / found.scale_error.at(x, y)).ravel().tolist()
        pixel_errors += (pixels.scale / one.truth - 1).ravel().tolist()
        left.append(left_background(one, found))
        print(
            f"{one.name:16s} {one.chip.psf.fwhm_pix:.2f} {one.template.psf.fwhm_pix:.2f}:",
            " ".join(f"{100 * v:+.2f}" for v in off.ravel()),
            f"| {100 * found.flux_scale_error:.2f} | {100 * (pixels.scale / one.truth.mean() - 1):+.2f}",
            f"| {left[-1]:+.3f}",
            flush=True,
        )
        _steps(one, config)
    size = np.abs(errors)
    print(
        f"{len(errors)} cells: rms {100 * np.sqrt(np.mean(np.square(errors))):.2f} %, median |error| ", end=""
    )
    print(f"{100 * np.median(size):.2f} %, within 0.5 %: {np.mean(size <= 0.005):.2f}", end="")
    print(
        f", within 3 stated errors: {np.mean(np.abs(pulls) < 3):.2f}, std of error/stated {np.std(pulls):.2f}"
    )
    print(f"pixel method: rms {100 * np.sqrt(np.mean(np.square(pixel_errors))):.2f} %")
    print(f"background left: rms {np.sqrt(np.mean(np.square(left))):.3f} sigma of S")
    return one


def _steps(one: Made, config: MatchConfig) -> None:
    """Print what comes back of steps put on the chip, and of a wave in its background."""
    before = match(replace(one.chip, raw=replace(one.chip.raw, amplifiers=())), one.template, config)
    found = match(spoiled(one.chip), one.template, config)
    if found.amplifiers:
        print(
            "   factors",
            " ".join(f"{100 * (s.factor - 1):+.2f}±{100 * s.error:.2f}" for s in found.amplifiers),
        )
        print("   levels ", " ".join(f"{s.level:+.2f}±{s.level_error:.2f}" for s in found.amplifiers))
    else:
        print("   no steps found")
    x, y = found.background.middles()
    put = wave(one.chip.image.shape)[np.rint(y).astype(int), np.rint(x).astype(int)]
    change = found.background.values - before.background.at(x, y) - put
    print(f"   wave of rms {put.std():.2f} counts comes back to {np.std(change):.2f} rms", flush=True)


if __name__ == "__main__":
    main()
