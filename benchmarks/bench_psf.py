"""Measure PSF models of simulated chips, science and warped template, against the simulator's truth.

For every 1k cell: the largest |model - truth| in the core (within one FWHM) and in the wings (beyond two), as
a fraction of the peak, over nine places in the cell; both PSFs cut to the model's stamp, faded alike at its
border, and summing to 1. A median stack's truth is the median of its exposures' PSFs, that of bright stars.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import sep
from scipy import fft, ndimage

from benchmarks.timing import machine
from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.numerics.psf_grid import embed, extract, taper
from ks4diff.pipeline.simulate import distortions
from ks4diff.pipeline.simulate_config import simulate_config
from ks4diff.products.cells import CELL_PIX, Cells, cell_grid
from ks4diff.products.chip import RawChip, ReducedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.stages.psf_field import FADE
from ks4diff.stages.psf_model import PsfConfig, model_psf
from ks4diff.stages.sim.detector import amplifiers, expose
from ks4diff.stages.sim.geometry import field_centre, patch_of, pixels, true_wcs
from ks4diff.stages.sim.night import plan_exposures, plan_tiles
from ks4diff.stages.sim.scene import draw_scene
from ks4diff.stages.sim.sky import sky_around
from ks4diff.stages.sim.template import make_tile
from ks4diff.stages.sim.truth import GRID, HALF, _inside
from ks4diff.stages.stars import StarsConfig, find_stars


def reduced(light: np.ndarray, flags: np.ndarray, gain: float) -> ReducedChip:
    """Return an image without its background as the stages want it."""
    bad = flags != 0
    background = sep.Background(light, mask=bad, bw=128, bh=128, fw=3, fh=3)
    data = np.where(bad, np.float32(0), light - background.back())
    rms = float(background.globalrms)
    image = MaskedImage(data=data, flags=flags, sky_variance=Cells.constant(rms**2, data.shape))
    raw = RawChip(data=data, file="made/sky.fits", hdu="0")
    return ReducedChip(
        raw=raw,
        image=image,
        background=Cells.constant(0.0, data.shape),
        rms=rms,
        sky=~bad,
        gain=gain,
        gain_source="given",
    )


def science(config, chip: str):
    """Return (reduced chip, truth: (x, y, half) -> stamp, wcs, sources) of one exposure."""
    distortion = distortions(config)[chip]
    _, exposure = plan_exposures(config, 0)[0]
    patch = patch_of(config, chip)
    wcs = true_wcs(distortion, exposure.at, patch)
    centre = field_centre(config.fields[0])
    sky = sky_around(config.sky, [config.seed, 0], centre, [(wcs, patch.columns, patch.rows)], 0.06)
    scene = draw_scene(config, exposure, patch, sky, distortion)
    key = [*exposure.key, ord(chip)]
    strips = amplifiers(config, patch, tuple(k * patch.columns // 8 for k in range(9)))
    exposed = expose(config, scene, key, strips)
    light = exposed.charge
    light += np.random.default_rng([config.seed, 7]).standard_normal(light.shape, dtype=np.float32) * 7
    flags = np.zeros(light.shape, dtype=np.uint16)
    flags[light >= 0.97 * exposed.full[None, :].astype(np.float32)] |= np.uint16(PixelFlag.SATURATED)
    # one cosmic ray in ten is missed
    missed = np.random.default_rng([config.seed, 8]).random(light.shape) < 0.1
    flags[exposed.struck & ~missed] |= np.uint16(PixelFlag.COSMIC_RAY)
    return reduced(light, flags, 1.0), scene.psf.stamp, wcs, scene.sources


def template(config, chip: str, wcs, shape: tuple[int, int]):
    """Return (reduced tile on the chip's grid, truth: (x, y, half) -> stamp)."""
    distortion = distortions(config)
    plan = next(p for p in plan_tiles(config, 0, distortion) if p.name.endswith(chip))
    centre = field_centre(config.fields[0])
    sky = sky_around(config.sky, [config.seed, 0], centre, [(plan.wcs, *plan.shape[::-1])], 0.06)
    made = make_tile(config, plan, sky, distortion, lambda s: np.empty(s, dtype=np.float32))
    x, y = node_grid(shape)
    ra, dec = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    nodes = np.stack(pixels(plan.wcs, ra, dec))
    tile = made.tile.data
    bad = (tile == 0).astype(np.uint16)
    data, raised = resample(tile, bad, nodes.reshape(2, *x.shape), shape)
    flags = np.where(raised != 0, np.uint16(PixelFlag.TEMPLATE_NO_DATA), np.uint16(0))

    def truth(px: float, py: float, half: int) -> np.ndarray | None:
        # a place and its neighbours: what turns chip pixels into those of a contribution
        r, d = wcs.all_pix2world([px, px + 8, px - 8, px, px], [py, py, py, py + 8, py - 8], 0)
        found = {}
        for c in made.contributions:
            u, v = pixels(c.wcs, r, d)
            if _inside(c, u[0], v[0]):
                turn = np.array([[u[1] - u[2], u[3] - u[4]], [v[1] - v[2], v[3] - v[4]]]) / 16
                stamp = c.psf.stamp(float(u[0]), float(v[0]), HALF)
                found.setdefault(c.exposure, (stamp, bilinear_response(plan.wcs, c.wcs, r[0], d[0]), turn))
        if not found:
            return None
        blurred = [
            turned(
                extract(fft.irfft2(fft.rfft2(embed(s, (GRID, GRID))) * response, (GRID, GRID)), 2 * HALF + 1),
                m,
            )
            for s, response, m in found.values()
        ]
        # a median stack of bright stars is the median of their PSFs
        middle = (
            np.median(blurred, axis=0) if config.template.combine == "median" else np.mean(blurred, axis=0)
        )
        return middle[HALF - half : HALF + half + 1, HALF - half : HALF + half + 1]

    exposures = config.template.exposures
    zero = 10 ** (0.4 * (config.template.zeropoint - 28.6 - 2.5 * np.log10(1.88)))
    return reduced(data, flags, exposures / zero), truth


def bilinear_response(tile, image, ra: float, dec: float) -> np.ndarray:
    """Return the transform of bilinear interpolation onto the tile around a place, over phases found there.

    Where the tile's pixels are as large as the image's, phases hardly change over hundreds of pixels.
    """
    (x,), (y,) = pixels(tile, [ra], [dec])
    step = np.round(np.arange(-60, 61, 5.0))
    gx, gy = (a.ravel() for a in np.meshgrid(np.round(x) + step, np.round(y) + step))
    u, v = (a % 1.0 for a in pixels(image, *tile.wcs_pix2world(gx, gy, 0)))
    kx, ky = 2j * np.pi * fft.rfftfreq(GRID), 2j * np.pi * fft.fftfreq(GRID)
    across, down = (
        (1 - f)[:, None] * np.exp(-np.outer(f, k)) + f[:, None] * np.exp(np.outer(1 - f, k))
        for f, k in ((u, kx), (v, ky))
    )
    return down.T @ across / len(u)


def filtered(stamp: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return a stamp times a response in Fourier space."""
    light = fft.irfft2(fft.rfft2(embed(stamp, (GRID, GRID))) * response, (GRID, GRID))
    return extract(light, stamp.shape[0])


def turned(stamp: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return a stamp [n, n] seen in pixels of which ``matrix`` [2, 2] (of x, y) makes the stamp's own."""
    offset = np.arange(stamp.shape[0]) - stamp.shape[0] // 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    at = [matrix[1, 0] * x + matrix[1, 1] * y, matrix[0, 0] * x + matrix[0, 1] * y]
    return ndimage.map_coordinates(stamp, np.array(at) + stamp.shape[0] // 2, order=5, mode="constant")


def compare(psf, truth, shape, stars, noise: tuple[float, float]) -> list[dict]:
    """Return one row per 1k cell: the errors, the stated one, and the stars of S/N > 50."""
    rows, columns = cell_grid(shape, CELL_PIX)
    cells = Cells(values=np.zeros((rows, columns)), shape=shape)
    flux, x, y = stars
    stamp = psf.typical().stamp
    variance, gain = noise
    snr = flux / np.sqrt(variance / (stamp.astype(float) ** 2).sum() + np.maximum(flux, 0) / gain)
    j, i = cells.cell_of(x, y)
    out = []
    for cj, ci, ry, rx in cells.boxes():
        row = {"cell": (cj, ci), "n": int(((j == cj) & (i == ci) & (snr > 50)).sum())}
        core_error, wing_error, stated = [], [], []
        for fy in (0.17, 0.5, 0.83):
            for fx in (0.17, 0.5, 0.83):
                px = rx.start + fx * (rx.stop - rx.start)
                py = ry.start + fy * (ry.stop - ry.start)
                model = psf.at(px, py).astype(float)
                half = model.shape[0] // 2
                true = truth(px, py, half)
                if true is None:
                    continue
                true = true * taper(2 * half + 1, FADE * half, half + 0.5)
                true /= true.sum()
                off = np.arange(-half, half + 1)
                radius = np.hypot(off[:, None], off[None, :])
                fwhm = float(psf.fwhm.at(px, py))
                error = (model - true) / true.max()
                core = radius <= max(fwhm, 2)
                core_error.append(np.abs(error[core]).max())
                wing_error.append(np.abs(error[radius > 2 * fwhm]).max())
                stated.append(float(psf.error.at(px, py)))
        if core_error:
            row["core"], row["wing"] = np.array(core_error), np.array(wing_error)
            row["stated"] = np.array(stated)
            out.append(row)
    return out


def report(name: str, rows: list[dict]) -> None:
    """Print a summary over cells with >= 30 stars of S/N > 50, and over the others."""
    for label, some in (
        ("cells with >= 30 stars of S/N > 50", [r for r in rows if r["n"] >= 30]),
        ("other cells", [r for r in rows if r["n"] < 30]),
    ):
        if not some:
            continue
        core, wing = (np.concatenate([r[k] for r in some]) for k in ("core", "wing"))
        stated = np.concatenate([r["stated"] for r in some])
        print(
            f"  {name}, {len(some)} {label} (median {np.median([r['n'] for r in some]):.0f}): "
            f"core max |error| median {100 * np.median(core):.2f} %, worst {100 * core.max():.2f} %; "
            f"wings median {100 * np.median(wing):.3f} %, worst {100 * wing.max():.3f} %; "
            f"stated {100 * np.median(stated):.2f} %, "
            f"core max <= 3 stated in {100 * np.mean(core <= 3 * stated):.0f} % of places"
        )


def timed(image, stars, gain):
    """Return (psf, stars, seconds) of the second of two calls: the first compiles."""
    for _ in range(2):
        start = time.perf_counter()
        psf, fitted = model_psf(image, stars, gain, PsfConfig())
        seconds = time.perf_counter() - start
    return psf, fitted, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="2048x2048", help="columns x rows of the chip, 8 equal amplifiers")
    parser.add_argument("--density", type=float, default=70_000.0, help="sources per square degree")
    parser.add_argument("--seeing", type=float, default=0.0, help="arcseconds, 0 draws it")
    parser.add_argument("--chip", default="K")
    parser.add_argument("--offset", default="-1,-1", help="corner of the cut-out on the real chip, x,y")
    parser.add_argument("--combine", default="median", choices=["median", "mean"], help="of the template")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-template", action="store_true", help="the science image alone")
    options = parser.parse_args()
    overrides = {
        "seed": options.seed,
        "size": [int(v) for v in options.size.split("x")],
        "offset": [int(v) for v in options.offset.split(",")],
        "chips": [options.chip],
        "sky": {"density_deg2": options.density},
        "optics": {"seeing_arcsec": options.seeing},
        "template": {"combine": options.combine},
    }
    config = simulate_config(None, None, overrides)
    chip, truth, wcs, _ = science(config, options.chip)
    print(machine())
    try:
        stars = find_stars(chip, StarsConfig())
        psf, fitted, seconds = timed(chip.image, stars, chip.gain)
    except SkipChip as skip:
        print(f"skipped: {skip}")
        return
    where = (fitted.flux, fitted.x, fitted.y)
    print(
        f"{options.size}, {len(stars)} sources, FWHM {psf.fwhm_pix:.2f} px, {psf.n_stars} stars, "
        f"{len(psf.modes)} modes: {seconds:.2f} s"
    )
    report("science", compare(psf, truth, chip.image.shape, where, (chip.rms**2, 1.0)))
    if options.no_template:
        return
    part, truth = template(config, options.chip, wcs, chip.image.shape)
    psf, refitted, seconds = timed(part.image, fitted, part.gain)
    print(
        f"template: FWHM {psf.fwhm_pix:.2f} px, {psf.n_stars} stars, {len(psf.modes)} modes: {seconds:.2f} s"
    )
    where = (refitted.flux, fitted.x, fitted.y)
    report("template", compare(psf, truth, part.image.shape, where, (part.rms**2, part.gain)))


if __name__ == "__main__":
    main()
