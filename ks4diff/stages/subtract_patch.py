"""Subtract one patch of a chip, everything that varies taken at its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ks4diff.numerics import holes, zogy_patch
from ks4diff.numerics.background_left import background_left, block_means, subtract_level
from ks4diff.numerics.moments import half_max_width
from ks4diff.numerics.patches import Span, window
from ks4diff.numerics.score_variance import Errors, corrected, terms
from ks4diff.numerics.zogy import PSF_LIFT, transform_noise
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Match
from ks4diff.products.image import PixelFlag
from ks4diff.products.registration import Registration
from ks4diff.stages.bright_stars import BrightStars, psf_with_wings
from ks4diff.stages.on_scale import Place, science_on_scale, template_on_scale
from ks4diff.stages.patch_noise import science_noise, template_noise
from ks4diff.stages.patch_stars import add, less_halos, lights

CUT_STAR = 5.0  # sigma of the sky: what is brighter beyond the border is no noise
STILL_PIX = 0.012  # per axis, how far sampling moves stars that stand still: 0.010 on a whole simulated chip
NODE_STEP = 32  # px between the nodes that carry the sky's variance


@dataclass(frozen=True, kw_only=True)
class SubtractConfig:
    """Which errors the score's variance holds, how patches overlap, and how far a bad pixel reaches."""

    source_noise: bool = True  # Poisson noise of the sources
    astrometric_noise: bool = True  # the registration's error times the gradient, ZOGY eqs 30-33
    scale_noise: bool = True  # the flux scale's error and its scatter from star to star times static light
    most_scatter: float = 0.02  # of one star's flux ratio: pixels and colours do less, galaxies more
    psf_noise: bool = True  # what PSFs known only so well leave of a static star
    background_left: bool = True  # fringes and steps that the match's background cannot follow
    overlap_pix: int = 32  # shared by two patches: the PSF's step between them is spread over it
    margin_fwhm: float = 5.0  # that a patch reads beyond what it answers for
    lost_flux: float = 0.1  # a pixel is flagged when holes take more of a source there
    fill_error: float = 1.0  # of the light that a hole hides: a fill knows no star's peak
    saturated_fill_error: float = 4.0  # of a saturated core, whose rim is far below its peak
    edge_fwhm: float = 1.0  # closer to the border a source is cut


class Pair(NamedTuple):
    """All that a patch takes its share of; ``margin`` px are read beyond it on a grid of ``shape``.

    ``depths`` of `patch_noise.depth`: both images' local variance over its mean; ``bright`` of
    `bright_stars`.
    """

    chip: CalibratedChip
    template: AlignedTemplate
    match: Match
    registration: Registration
    config: SubtractConfig
    depths: tuple[Cells, Cells]
    shape: tuple[int, int]
    margin: int
    bright: BrightStars


class PatchResult(NamedTuple):
    """One patch: D / F_D, S_corr, the error of the flux and flags [y, x], and what is constant over it.

    The latter are P_D, as large as the images' PSFs, its FWHM in pixels, F_D and the slopes of `zogy_patch`.
    """

    difference: np.ndarray
    score_corr: np.ndarray
    flux_err: np.ndarray
    flags: np.ndarray
    psf: np.ndarray
    width: float
    flux: float
    slopes: tuple[float, float, float]


def subtract_patch(pair: Pair, rows: Span, columns: Span) -> PatchResult:
    """Return the subtraction of the pixels of two spans."""
    depths = [_at_nodes(cells, rows, columns) for cells in pair.depths]
    means = [float(nodes[:-1, :-1].ravel().mean()) for nodes in depths]
    f, errors = _filters(pair, rows, columns, means)
    science, template, flags = _pixels(pair, rows, columns)
    unknown = _level_background(pair, rows, columns, (science, template), flags)
    inner = tuple(slice(pair.margin, pair.margin + s.stop - s.start) for s in (rows, columns))
    lost, bits = None, flags
    if flags.any():
        corner = columns.start - pair.margin, rows.start - pair.margin
        full = lights(pair.bright, (pair.chip.psf, pair.template.psf), corner, pair.shape)
        add(full, (science, template), -1)
        doubtful = _doubtful(pair, columns.middle, rows.middle, full)
        lost, bits = _holes(pair, f, flags, science, template, doubtful)
        add(full, (science, template), 1)
    difference, s_n, s_r, light = zogy_patch.apply(f, science, template)
    sky = f.sky_n * depths[0] / means[0] + f.sky_r * depths[1] / means[1]
    variance = terms((s_n, s_r, light), inner, errors, np.sqrt(f.score_flux))
    score, error, taken = corrected(
        (s_n, s_r),
        inner,
        (sky.astype(np.float32) + np.float32(f.level2 * unknown), NODE_STEP),
        variance,
        lost,
        flux=f.score_flux,
        limit=pair.config.lost_flux,
    )
    own = flags[inner].copy()
    if taken is not None:
        raised = bits[inner][taken]
        border = np.where(raised & holes.OUTSIDE, np.uint16(PixelFlag.EDGE), np.uint16(0))
        own[taken] |= (raised & np.uint16(holes.OUTSIDE - 1)) | border
    reach = len(f.psf) // 4  # P_D is twice as wide as the PSFs that made it
    psf = f.psf[reach : len(f.psf) - reach, reach : len(f.psf) - reach].copy()
    return PatchResult(
        difference=difference[inner] / np.float32(f.flux),
        score_corr=score,
        flux_err=error,
        flags=own,
        psf=psf,
        width=half_max_width(psf),
        flux=f.flux,
        slopes=f.slopes,
    )


def _filters(pair: Pair, rows: Span, columns: Span, depths: list[float]) -> tuple[zogy_patch.Filters, Errors]:
    """Return the filters of the PSFs and noises amid a patch, and how well things are known there.

    ``depths`` both images' mean over the patch of `Pair.depths`.
    """
    chip, template, match, config = pair.chip, pair.template, pair.match, pair.config
    x, y = columns.middle, rows.middle
    noises = (
        science_noise(chip, match.science_noise, depths[0]),
        template_noise(
            template,
            match.template_noise,
            depths[1],
            slice(rows.start, rows.stop),
            slice(columns.start, columns.stop),
        ),
    )
    scale = float(_value(match.scale, x, y, match.flux_scale))
    sides, noise_of_psf = [], 0.0
    for image, noise, factor, wings in zip(
        (chip, template), noises, (1.0, scale), pair.bright.wings, strict=True
    ):
        psf = psf_with_wings(image.psf, wings, x, y)
        error = _value(image.psf.error, x, y, 0.0)
        noise_of_psf = max(noise_of_psf, transform_noise(psf, float(error)))
        gain = image.gain / factor if config.source_noise else np.inf
        error = error if config.psf_noise else 0.0
        sides.append(
            zogy_patch.PatchSide(
                psf, factor**2 * noise.sigma**2, noise.correlation, gain, float(error), image.psf.white
            )
        )
    shift2 = _shift2(pair, x, y) if config.astrometric_noise else 0.0
    error2 = _value(match.scale_error, x, y, match.flux_scale_error) ** 2 - match.stamp_error**2
    filters = zogy_patch.filters(*sides, pair.shape, max(PSF_LIFT, noise_of_psf))
    # stars' fluxes scatter by what PSF errors leave of them too: that is in the variance already
    scatter2 = max(min(match.star_scatter, config.most_scatter) ** 2 - filters.left2, 0.0)
    scale2 = max(error2, 0.0) + scatter2 if config.scale_noise else 0.0
    return filters, Errors(shift2, shift2, scale2, filters.bend2)


def _shift2(pair: Pair, x: float, y: float) -> float:
    """Return the variance per axis of where a star lies in one image by the other, px², at a pixel.

    The map's error, and what single stars' scatter about the map is beyond noise and sampling: 0.03 px of
    their own left 41 of 390 constant stars above 5 sigma.
    """
    error = _value(pair.registration.error, x, y, pair.registration.rms_pix)
    return error**2 + max(pair.registration.scatter_pix**2 - STILL_PIX**2, 0.0)


def _value(cells: Cells, x: float, y: float, otherwise: float) -> float:
    """Return a map's value at one pixel, ``otherwise`` where it has none."""
    value = float(cells.at(np.array([x]), np.array([y]))[0])
    return value if np.isfinite(value) else float(otherwise)


def _at_nodes(cells: Cells, rows: Span, columns: Span) -> np.ndarray:
    """Return a map over a patch at nodes `NODE_STEP` px apart, [y, x], one row and column to spare."""
    y, x = (np.arange(s.start, s.stop + NODE_STEP, NODE_STEP) for s in (rows, columns))
    return cells.at(*(grid.ravel() for grid in np.meshgrid(x, y))).reshape(len(y), len(x))


def _pixels(pair: Pair, rows: Span, columns: Span) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both images on the patch's grid, zero beyond the chip, and the flags of either."""
    y, x, to_y, to_x = window(pair.chip.image.data, rows, columns, pair.margin)
    science, template = (
        Place(np.zeros(pair.shape, dtype=np.float32), (to_y.start, to_x.start)) for _ in range(2)
    )
    science_on_scale(pair.chip, pair.match, y, x, science)
    template_on_scale(pair.template, pair.match, y, x, template)
    flags = np.full(pair.shape, holes.OUTSIDE, dtype=np.uint16)
    np.bitwise_or(pair.chip.image.flags[y, x], pair.template.image.flags[y, x], out=flags[to_y, to_x])
    beyond_y, beyond_x = pair.margin + rows.stop - rows.start, pair.margin + columns.stop - columns.start
    less_halos(pair.bright, (x.start, y.start), science.grid[to_y, to_x])
    # what lies beyond the margins on the grid is no edge of the chip
    flags[beyond_y + pair.margin :, :] = 0
    flags[:, beyond_x + pair.margin :] = 0
    return science.grid, template.grid, flags


def _level_background(pair: Pair, rows: Span, columns: Span, images, flags: np.ndarray) -> float:
    """Subtract from the science image what the sky shows of a background in one image only, in place.

    Returns the variance, counts², of what is left of it; 0 where nothing shows.
    """
    if pair.chip.sky is None or not pair.config.background_left:
        return 0.0
    y, x, to_y, to_x = window(pair.chip.image.data, rows, columns, pair.margin)
    used = np.zeros(pair.shape, dtype=np.bool_)
    used[to_y, to_x] = pair.chip.sky[y, x] & (flags[to_y, to_x] == 0)
    left = background_left(*block_means(*images, used))
    if left is None:
        return 0.0
    subtract_level(left.level, images[0][: used.shape[0]])
    return left.variance


def _holes(pair, f, flags, science, template, doubtful):
    """Fill the holes of either image in both, and return what they cost around them with whose flags.

    What lies beyond the border is a hole too: a star that the border cuts ends as softly in both images.
    """
    bad = holes.listed(flags)
    depth = holes.depths(flags.shape, bad)
    raised = flags.reshape(-1)[bad]
    filled = raised != holes.OUTSIDE
    real, outside = bad[filled], bad[~filled]
    behind = depth.copy()
    behind.reshape(-1)[outside] = 0
    holes.fill((science, template), behind, real)
    _fill_beyond(pair, (science, template), depth, outside)
    # how much of a star's light a fill misses: a pixel next to good ones knows it from them
    area = 1 / float((f.psf.astype(np.float64) ** 2).sum())
    sigma2 = area / (4 * np.pi)
    open_part = (1 - np.exp(-(np.arange(holes.DEEPEST + 2) ** 2) / (2 * sigma2))).astype(np.float32)
    parts = np.ones((2, len(bad)), dtype=np.float32)
    parts[0, filled] = open_part[depth.reshape(-1)[real]]
    parts[1, filled] = holes.noise_taken(behind, real, outside)
    loss, bits = holes.losses(flags, depth, bad, parts, f.share)
    hidden = np.maximum(*(np.abs(image.reshape(-1)[bad]) for image in (science, template)))
    saturated = (raised & np.uint16(PixelFlag.SATURATED | PixelFlag.TEMPLATE_SATURATED)) != 0
    config = pair.config
    part = np.where(saturated, config.saturated_fill_error, config.fill_error).astype(np.float32)
    unknown = part * open_part[depth.reshape(-1)[bad]] * hidden + doubtful.reshape(-1)[bad]
    stamp = np.maximum(np.abs(f.kernel_n), np.abs(f.kernel_r)).astype(np.float32)
    errors = holes.fill_errors(flags, bad, unknown, stamp, 0.1 * np.sqrt(f.score_flux), bits)
    return (loss, errors), bits


def _doubtful(pair: Pair, x: float, y: float, full: list) -> np.ndarray:
    """Return float32 [y, x]: by how much the light of saturated stars may err, as PSFs do at (x, y)."""
    out = np.zeros(pair.shape, dtype=np.float32)
    errors = [np.float32(_value(part.psf.error, x, y, 0.0)) for part in (pair.chip, pair.template)]
    for place, light in full:
        out[place] += np.maximum(*(error * one for error, one in zip(errors, light, strict=True)))
    return out


def _fill_beyond(pair: Pair, images, depth: np.ndarray, outside: np.ndarray) -> None:
    """Fill what lies beyond the border, in place, where a star's light does; elsewhere it stays 0."""
    holes.fill(images, depth, outside)
    sigmas = pair.chip.noise.sigma, pair.match.flux_scale * pair.template.noise.sigma
    lit = np.zeros(len(outside), dtype=np.bool_)
    for image, sigma in zip(images, sigmas, strict=True):
        lit |= np.abs(image.reshape(-1)[outside]) > CUT_STAR * sigma
    for image in images:
        image.reshape(-1)[outside[~lit]] = 0
