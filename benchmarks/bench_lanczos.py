"""Time the warp of a template to a whole chip, beside SWarp's of the same pixels when asked for."""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy import ndimage

from benchmarks.timing import best_of_five, line, machine
from ks4diff.io.tile_tables import read_distortions
from ks4diff.numerics.lanczos import node_grid, noise_covariance, resample
from ks4diff.stages.sim import geometry

CENTRE = (115.0, -50.0)
MARGIN = 60  # of the template beyond the chip, pixels
SWARP_OPTIONS = {
    "RESAMPLING_TYPE": "LANCZOS4",
    "SUBTRACT_BACK": "N",
    "COMBINE": "N",
    "NTHREADS": "2",
    "FSCALASTRO_TYPE": "NONE",  # surface brightness, as ours
    "WRITE_XML": "N",
    "MEM_MAX": "8000",
    "VERBOSE_TYPE": "FULL",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=9216, help="of the output, a part of chip K")
    parser.add_argument("--rows", type=int, default=9232)
    parser.add_argument("--swarp", action="store_true", help="run SWarp (apt-get install swarp) on the same")
    parser.add_argument("--spline", action="store_true", help="time scipy's cubic spline on the same")
    options = parser.parse_args()
    shape = (options.rows, options.columns)
    at, patch = geometry.Pointing(claimed=CENTRE, true=CENTRE, rotation_deg=0.7), chip_patch(shape)
    found = read_distortions()["any", "K"]
    distortion = geometry.Distortion(crpix=found.crpix, cd=found.cd, pv=found.pv)
    science = geometry.true_wcs(distortion, at, patch)
    x, y = node_grid(shape)
    start = time.perf_counter()
    sky = science.all_pix2world(x.ravel(), y.ravel(), 0)
    tile = geometry.tangent_plane(CENTRE, 0.4 / 3600)
    nodes = np.stack(tile.wcs_world2pix(*sky, 0)).reshape(2, *x.shape)
    corner = np.floor(nodes.min(axis=(1, 2))) - MARGIN
    nodes -= corner[:, None, None]
    exact = time.perf_counter() - start
    size = tuple(int(n) + MARGIN for n in nodes.max(axis=(1, 2))[::-1])
    image, bad = template(size)
    print(machine())
    print(f"template {size[1]}x{size[0]}, chip {shape[1]}x{shape[0]}; {(bad != 0).mean():.2%} of it masked")
    ours = best_of_five(lambda: resample(image, bad, nodes, shape))
    pixels = shape[0] * shape[1]
    print(f"resample, two threads: {ours:.3f} s, {1e9 * ours / pixels:.1f} ns per pixel")
    print(f"exact coordinates of {x.size} nodes by astropy: {exact:.2f} s")
    patch_nodes = nodes[:, :33, :33]
    one_patch = best_of_five(lambda: noise_covariance(patch_nodes))
    print(f"noise_covariance of a 512 px patch: {1e3 * one_patch:.2f} ms")
    print(f"peak memory so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    if options.spline:
        print(line("resample", ours, "scipy cubic spline", spline(image, bad, nodes, shape)))
    if options.swarp:
        cards = geometry.tpv_cards(distortion, at, patch)
        swarped(image, (tile, corner), (cards, shape), (ours, nodes))


def chip_patch(shape: tuple[int, int]) -> geometry.Patch:
    """Return the part of chip K that ends at its outer corner, where the distortion is largest."""
    columns, rows = geometry.FULL_SIZE
    return geometry.Patch(
        chip="K", x0=columns - shape[1], y0=rows - shape[0], columns=shape[1], rows=shape[0]
    )


def template(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (image, flags): smoothed noise, a twentieth of it no data, 2000 saturated stars per chip."""
    rng = np.random.default_rng(1)
    image = rng.standard_normal(size, dtype=np.float32)
    for top in range(0, size[0], 512):
        image[top : top + 512] = ndimage.gaussian_filter(image[top : top + 512], 1.3, output=np.float32)
    bad = np.zeros(size, dtype=np.uint16)
    bad[: size[0] // 20] = 1
    n = int(2000 * size[0] * size[1] / 8.5e7)
    for px, py in zip(rng.integers(9, size[1] - 9, n), rng.integers(9, size[0] - 9, n), strict=True):
        bad[py - 4 : py + 5, px - 4 : px + 5] |= 4
    return image, bad


def spline(image: np.ndarray, bad: np.ndarray, nodes: np.ndarray, shape: tuple[int, int]) -> float:
    """Return the seconds of scipy's cubic spline and nearest mask on the first 1000 rows, times all rows."""
    rows = min(shape[0], 1000)
    at = np.stack([ndimage.zoom(plane[: rows // 16 + 2], 16, order=1) for plane in nodes])
    at = at[:, :rows, : shape[1]]
    reach = int(at[1].max()) + 20
    start = time.perf_counter()
    ndimage.map_coordinates(image[:reach], at[::-1], order=3, output=np.float32)
    ndimage.map_coordinates(bad[:reach], at[::-1], order=0)
    return (time.perf_counter() - start) * shape[0] / rows


def swarped(image: np.ndarray, template_grid: tuple, chip_grid: tuple, ours: tuple) -> None:
    """Run SWarp on the same image, geometry, kernel and threads; print its times beside ours."""
    (tile, corner), (cards, shape), (seconds, nodes) = template_grid, chip_grid, ours
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="bench_swarp_") as folder:
        header = tile.to_header()
        header["CRPIX1"], header["CRPIX2"] = 1 - corner[0], 1 - corner[1]
        fits.PrimaryHDU(image, header).writeto(Path(folder) / "tile.fits")
        names = dict(cards, NAXIS=2, NAXIS1=shape[1], NAXIS2=shape[0], EQUINOX=2000.0, RADESYS="ICRS")
        lines = [str(fits.Card(name, value)) for name, value in names.items()]
        (Path(folder) / "coadd.head").write_text("\n".join([*lines, "END     "]) + "\n", encoding="ascii")
        command = ["SWarp", "tile.fits", *(word for k, v in SWARP_OPTIONS.items() for word in (f"-{k}", v))]
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            best = min(best, time.perf_counter() - start)
        version = re.search(r"SWarp\s+([\d.]+)", done.stderr + done.stdout)
        print(
            f"SWarp {version.group(1) if version else '?'} LANCZOS4, 2 threads: {best:.2f} s with its files"
        )
        print(
            f"ours: {seconds:.3f} s in memory, {with_files(Path(folder), nodes, shape):.2f} s with files; ",
            end="",
        )
        print(f"ratio {best / seconds:.1f} to the former")
        nothing = np.zeros(image.shape, dtype=np.uint16)
        compare(Path(folder) / "tile.resamp.fits", *resample(image, nothing, nodes, shape))


def with_files(folder: Path, nodes: np.ndarray, shape: tuple[int, int]) -> float:
    """Return the seconds of reading the image, warping it and writing image and mask: SWarp's files too."""
    start = time.perf_counter()
    image = fits.getdata(folder / "tile.fits").astype(np.float32)
    data, flags = resample(image, np.zeros(image.shape, dtype=np.uint16), nodes, shape)
    fits.PrimaryHDU(data).writeto(folder / "ours.fits")
    fits.PrimaryHDU(flags).writeto(folder / "ours.mask.fits")
    return time.perf_counter() - start


def compare(path: Path, data: np.ndarray, flags: np.ndarray) -> None:
    """Print how SWarp's pixels differ from ours, away from its border."""
    with fits.open(path, memmap=False) as hdus:
        theirs, header = hdus[0].data, hdus[0].header
    print(f"its output has {theirs.shape[1]}x{theirs.shape[0]} pixels, CRPIX {header['CRPIX1']:.2f}")
    if theirs.shape == data.shape:
        inside = (flags == 0) & (theirs != 0)
        apart = np.abs(theirs[inside] - data[inside])
        print(f"median |difference| {np.median(apart) / data[inside].std():.1e} of the image's spread")


if __name__ == "__main__":
    main()
