"""Bring science and template to one flux scale and one background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import AmplifierStep, Match
from ks4diff.products.errors import SkipChip
from ks4diff.products.noise import NoiseModel
from ks4diff.stages.differential_background import (
    BackgroundMatchConfig,
    DifferentialBackground,
    differential_background,
)
from ks4diff.stages.noise import FEWEST_QUIET, NoiseConfig, unshared_noise
from ks4diff.stages.on_scale import science_on_scale, template_on_scale
from ks4diff.stages.pixel_match import PixelMatchConfig, pixel_match
from ks4diff.stages.scale_field import ScaleConfig, ScaleField, scale_field
from ks4diff.stages.star_photometry import StarRatioConfig, StarRatios, star_ratios

SAMPLE_PIX = 384  # side of the squares on which noise that the images share is measured
SAMPLES = 4  # a side of the chip: 2.4 million pixels, 1 % of a variance
UNKNOWN = NoiseModel(sigma=1.0, correlation=np.ones((1, 1)), method="sky")


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """How the two images are compared."""

    min_pixels: int = 1000  # in common
    min_stars: int = 4  # with fewer the pixels decide: in sparse images those are mostly sky (scale 64 % off)
    crowded_pix: float = 3.0e6  # smaller images than this ...
    crowded_sky: float = 0.35  # ... with a smaller share of sky are matched by their pixels
    scale_range: float = 1000.0  # a flux scale farther from 1 than this factor is no match
    stars: StarRatioConfig = field(default_factory=StarRatioConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    background: BackgroundMatchConfig = field(default_factory=BackgroundMatchConfig)
    pixels: PixelMatchConfig = field(default_factory=PixelMatchConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)


def match(chip: CalibratedChip, template: AlignedTemplate, config: MatchConfig) -> Match:
    """Return the flux scale, amplifier steps and differential background of a chip and its template.

    The scale comes from stars that both images show, the background from where no source is. Where stars are
    few, or a small image so crowded that no sky is left, both come from all pixels together.

    Raises
    ------
    SkipChip
        When the images have too few pixels in common, or too few stars or too little sky while they are too
        large for all pixels together, or the template explains none of the science image's light.

    """
    _enough(chip, template, config.min_pixels)
    stars = None if _crowded(chip, config) else star_ratios(chip, template, config.stars)
    if stars is None or len(stars) < config.min_stars:
        found = _by_pixels(chip, template, config)
    else:
        found = _by_stars(chip, template, stars, config)
    if not (1 / config.scale_range < found.flux_scale < config.scale_range):
        raise SkipChip("the template explains none of the science image's light", flux_scale=found.flux_scale)
    return _with_noise(chip, template, found, config.noise)


def _enough(chip: CalibratedChip, template: AlignedTemplate, least: int) -> None:
    count = 0
    for start in range(0, chip.image.shape[0], 512):
        rows = slice(start, start + 512)
        count += int(np.count_nonzero((chip.image.flags[rows] | template.image.flags[rows]) == 0))
        if count >= least:
            return
    raise SkipChip("too few pixels in common", pixels=float(count))


def _crowded(chip: CalibratedChip, config: MatchConfig) -> bool:
    """Return whether a small image is nearly full of sources."""
    size = chip.image.data.size
    if chip.sky is None or size > config.crowded_pix:
        return False
    return np.count_nonzero(chip.sky) < config.crowded_sky * size


def _by_stars(
    chip: CalibratedChip, template: AlignedTemplate, stars: StarRatios, config: MatchConfig
) -> Match:
    shape = chip.image.shape
    boxes = [
        (a.x0, min(a.x1, shape[1]), a.y0, shape[0] if a.y1 is None else a.y1) for a in chip.raw.amplifiers
    ]
    ratio = chip.psf.fwhm_pix / template.psf.fwhm_pix
    light = float(np.hypot(*(_light_error(part) for part in (chip, template))))
    scale = _over_area(
        stars,
        template.area,
        lambda even: scale_field(even, shape, boxes, config.scale, width_ratio=ratio, light_error=light),
    )
    factors = [factor for factor, _ in scale.factors]
    try:
        left = differential_background(
            chip, template, scale.scale, list(zip(boxes, factors, strict=True)), config.background
        )
    except SkipChip:
        return _by_pixels(chip, template, config)
    return Match(
        flux_scale=float(np.median(scale.scale.values)),
        flux_scale_error=float(np.median(scale.error.values)),
        scale=scale.scale,
        scale_error=scale.error,
        stamp_error=scale.stamp_error,
        star_scatter=scale.scatter,
        amplifiers=_steps(boxes, scale, left),
        background=left.background,
        science_noise=UNKNOWN,
        template_noise=UNKNOWN,
    )


def _light_error(part: CalibratedChip | AlignedTemplate) -> float:
    """Return the error of the light in an image's PSF; correlated noise is larger in sums."""
    return part.psf.light_error * float(np.sqrt(max(part.noise.correlation.sum(), 1.0)))


def _over_area(stars: StarRatios, area: Cells, field: Callable[[StarRatios], ScaleField]) -> ScaleField:
    """Return the scale as ``field`` finds it of ratios freed of the pixels' area, with that put back.

    Surface brightness was conserved where the template was resampled: a star's counts go with the area, which
    changes by 7 % over a chip and is known better than few stars would tell.
    """
    middle = float(np.median(area.values))
    there = area.at(stars.x, stars.y) / middle
    found = field(replace(stars, ratio=stars.ratio / there, error=stars.error / there))
    x, y = found.scale.middles()
    values = (found.scale.values * area.at(x, y) / middle).astype(np.float32)
    return replace(found, scale=replace(found.scale, values=values))


def _steps(boxes, scale: ScaleField, left: DifferentialBackground) -> tuple[AmplifierStep, ...]:
    """Return the amplifiers, all where one of them has a factor or a level of its own, none otherwise."""
    if all(factor == 1 for factor, _ in scale.factors) and all(level == 0 for level, _ in left.levels):
        return ()
    return tuple(
        AmplifierStep(
            x0=x0,
            x1=x1,
            y0=y0,
            y1=y1,
            factor=factor,
            error=error,
            level=factor * level,
            level_error=factor * level_error,
        )
        for (x0, x1, y0, y1), (factor, error), (level, level_error) in zip(
            boxes, scale.factors, left.levels, strict=True
        )
    )


def _by_pixels(chip: CalibratedChip, template: AlignedTemplate, config: MatchConfig) -> Match:
    shape = chip.image.shape
    found = pixel_match(chip, template, config.pixels)
    return Match(
        flux_scale=found.scale,
        flux_scale_error=found.error,
        scale=Cells.constant(found.scale, shape),
        scale_error=Cells.constant(found.error, shape),
        stamp_error=found.stamp_error,
        amplifiers=(),
        background=Cells(values=found.background, shape=shape),
        science_noise=UNKNOWN,
        template_noise=UNKNOWN,
    )


def _with_noise(chip: CalibratedChip, template: AlignedTemplate, match: Match, config: NoiseConfig) -> Match:
    """Return the match with both noise models, less what the images share, measured on samples."""
    squares = _samples(chip.image.shape)
    sky = [_quiet(chip, template, *square) for square in squares]
    if len(squares) > 1 and np.count_nonzero(sky) < FEWEST_QUIET:
        squares = _fullest(chip, template)
        sky = [_quiet(chip, template, *square) for square in squares]
    first = [science_on_scale(chip, match, *square) for square in squares]
    second = [template_on_scale(template, match, *square) for square in squares]
    scale = match.flux_scale
    models = (chip.noise, replace(template.noise, sigma=scale * template.noise.sigma))
    science_noise, template_noise = unshared_noise(
        (np.stack(first), np.stack(second)), models, (chip.psf, template.psf), np.stack(sky), config
    )
    return replace(
        match,
        science_noise=science_noise,
        template_noise=replace(template_noise, sigma=template_noise.sigma / scale),
    )


def _quiet(chip: CalibratedChip, template: AlignedTemplate, rows: slice, columns: slice) -> np.ndarray:
    """Return which pixels of a rectangle are good in both images and free of sources."""
    quiet = (template.image.flags[rows, columns] == 0) & (chip.image.flags[rows, columns] == 0)
    return quiet if chip.sky is None else quiet & chip.sky[rows, columns]


def _fullest(chip: CalibratedChip, template: AlignedTemplate) -> list[tuple[slice, slice]]:
    """Return as many squares as `_samples`, those with the most quiet pixels: a template may cover little."""
    down, along = (
        [slice(low, low + SAMPLE_PIX) for low in range(0, n - SAMPLE_PIX + 1, SAMPLE_PIX)]
        for n in chip.image.shape
    )
    squares = [(rows, columns) for rows in down for columns in along]
    quiet = [np.count_nonzero(_quiet(chip, template, *square)) for square in squares]
    return [squares[k] for k in np.argsort(quiet)[-(SAMPLES**2) :]]


def _samples(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Return squares spread over an image; one, the whole, of a small one."""
    if min(shape) < SAMPLES * SAMPLE_PIX:
        return [(slice(0, shape[0]), slice(0, shape[1]))]
    starts = [np.linspace(0, n - SAMPLE_PIX, SAMPLES).astype(int) for n in shape]
    return [
        (slice(y, y + SAMPLE_PIX), slice(x, x + SAMPLE_PIX))
        for y in starts[0].tolist()
        for x in starts[1].tolist()
    ]
