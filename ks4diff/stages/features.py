"""The real/bogus feature vector of every candidate of a chip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from ks4diff.numerics import features as kernel
from ks4diff.numerics.moments import half_max_width, stamps
from ks4diff.numerics.pools import pool
from ks4diff.products.candidates import Candidates
from ks4diff.products.cells import Cells, cell_grid
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference, Match
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.on_scale import science_on_scale, template_on_scale

HALF = kernel.SIDE // 2
COUNTED_SCORE = 5.0  # |S_corr| of candidates that make a crowd, whatever the threshold of detection
CROWD_PIX = 450.0  # 3 arcminutes at 0.4 arcsec
CHI2_COLUMNS = {
    "point": "point_chi2",
    "light": "light_chi2",
    "charge": "charge_chi2",
    "struck": "struck_chi2",
    "trail": "trail_dchi2",
    "dipole": "dipole_dchi2",
}
CROWD_UNIT_PIX = 150.0  # density is per square of this side: an arcminute


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """How the chip is taken in parts."""

    cell_pix: float = 512.0  # candidates of one cell share the PSFs of its middle
    at_once: int = 512  # candidates: their stamps take 40 MB


class Scene(NamedTuple):
    """What the candidates are measured on."""

    chip: CalibratedChip
    template: AlignedTemplate
    match: Match
    difference: Difference


def scene_of(done: SubtractedChip) -> Scene:
    """Return the images of a subtraction."""
    return Scene(done.chip, done.template, done.match, done.difference)


def candidate_features(
    candidates: Candidates, scene: Scene, config: FeaturesConfig, *, uncounted: np.ndarray | None = None
) -> np.ndarray:
    """Return float32 [n, 66], the vector of `ks4diff.products.features.FEATURES` of each candidate.

    Rows are NaN where the stamp cannot be trusted. ``uncounted`` bool [n] marks candidates, such as injected
    ones, that the density of candidates leaves out.
    """
    table = candidates.table
    shape = scene.chip.image.shape
    out = np.full((len(table), kernel.N_FEATURES), np.nan, dtype=np.float32)
    weak = np.abs(table["scorr"]) < COUNTED_SCORE
    left_out = weak if uncounted is None else weak | uncounted
    density = crowding(table["x"], table["y"], shape, left_out)
    cells = Cells(values=np.zeros(cell_grid(shape, config.cell_pix)), shape=shape)
    j, i = cells.cell_of(table["x"], table["y"])
    parts = []
    for row, column, ys, xs in cells.boxes():
        inside = np.flatnonzero((j == row) & (i == column))
        middle = (0.5 * (xs.start + xs.stop - 1), 0.5 * (ys.start + ys.stop - 1))
        parts += [(inside[k : k + config.at_once], middle) for k in range(0, len(inside), config.at_once)]

    def work(part: tuple[np.ndarray, tuple[float, float]]) -> None:
        rows, middle = part
        out[rows] = kernel.features(
            _stamps(table[rows], scene, middle), _context(table[rows], scene, density[rows])
        )

    with pool() as threads:
        list(threads.map(work, parts))
    return out


def crowding(
    x: np.ndarray, y: np.ndarray, shape: tuple[int, int], uncounted: np.ndarray | None = None
) -> np.ndarray:
    """Return float64 [n]: other candidates per (150 px)² of the chip within 450 px."""
    if len(x) == 0:
        return np.empty(0)
    counted = np.ones(len(x), dtype=bool) if uncounted is None else ~uncounted
    places = np.stack([x, y], axis=1).astype(np.float64)
    number = np.zeros(len(x))
    if counted.any():
        tree = cKDTree(places[counted])
        number = tree.query_ball_point(places, CROWD_PIX, return_length=True) - counted.astype(np.float64)
    rows, columns = shape
    # the share of a square as large as the disc that lies on the chip
    reach = 0.5 * np.sqrt(np.pi) * CROWD_PIX
    wide = np.minimum(x + reach, columns - 0.5) - np.maximum(x - reach, -0.5)
    high = np.minimum(y + reach, rows - 0.5) - np.maximum(y - reach, -0.5)
    return number / (np.maximum(wide, 1.0) * np.maximum(high, 1.0) / CROWD_UNIT_PIX**2)


def _stamps(table: np.ndarray, scene: Scene, middle: tuple[float, float]) -> kernel.Stamps:
    """Return the stamps of candidates of one cell, whose PSFs are those of its ``middle`` (x, y)."""
    chip, template, match, difference = scene
    px, py = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    box = tuple(
        slice(max(int(at.min()) - HALF, 0), min(int(at.max()) + HALF + 1, n))
        for at, n in zip((py, px), chip.image.shape, strict=True)
    )
    x, y = px - box[1].start, py - box[0].start
    flags = chip.image.flags[box] | template.image.flags[box] | difference.flags[box]
    images = (
        science_on_scale(chip, match, *box),
        template_on_scale(template, match, *box),
        difference.difference[box],
        difference.score_corr[box],
    )
    planes = [stamps(image, x, y, HALF, 0.0) for image in images]
    scale = match.scale.at(table["x"], table["y"])
    noise = difference.noise
    if difference.noise_map is not None:
        noise = difference.noise_map.at(table["x"], table["y"])
    sigma = np.empty((len(table), 3))
    sigma[:, 0] = np.sqrt(chip.image.sky_variance.at(table["x"], table["y"]))
    sigma[:, 1] = np.sqrt(template.image.sky_variance.at(table["x"], table["y"])) * scale
    sigma[:, 2] = noise
    psfs = _same_size([chip.psf.at(*middle), template.psf.at(*middle), difference.psf.stamp])
    return kernel.Stamps(
        *planes,
        bad=stamps(flags != 0, x, y, HALF, True),
        sigma=np.maximum(sigma, 1e-6 * difference.noise),
        offset=np.stack([table["x"] - px, table["y"] - py], axis=1).astype(np.float64),
        cell=np.zeros(len(table), dtype=np.int64),
        psfs=psfs[:, None],
        fwhm=np.array([half_max_width(psfs[2])]),
    )


def _same_size(psfs: list[np.ndarray]) -> np.ndarray:
    """Return float32 [n, k, k]: the stamps of PSFs, the smaller ones with zeros around them."""
    k = max(psf.shape[0] for psf in psfs)
    return np.stack([np.pad(psf, (k - psf.shape[0]) // 2) for psf in psfs]).astype(np.float32)


def _context(table: np.ndarray, scene: Scene, density: np.ndarray) -> kernel.Context:
    """Return what is not measured on stamps."""
    chip, template, _, difference = scene
    rows, columns = chip.image.shape
    px, py = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    noise = difference.noise
    if difference.noise_map is not None:
        noise = difference.noise_map.at(table["x"], table["y"])
    sky = noise**2 / float((difference.psf.stamp.astype(np.float64) ** 2).sum())
    error = np.maximum(difference.flux_err[py, px].astype(np.float64), 1e-30)
    edges = (table["x"], table["y"], columns - 1 - table["x"], rows - 1 - table["y"])
    return kernel.Context(
        excess=np.clip(1 - sky / error**2, 0.0, 1.0),
        saturated=table["saturated_distance"].astype(np.float64),
        edge=np.minimum.reduce(edges),
        crosstalk=np.nan_to_num(table["crosstalk_ratio"].astype(np.float64)),
        density=density,
        seeing=np.full(len(table), chip.psf.fwhm_pix / template.psf.fwhm_pix),
        exposures=np.full(len(table), np.nan),
        **{name: table[column].astype(np.float64) for name, column in CHI2_COLUMNS.items()},
    )
