"""Subtract the aligned template from the chip: proper difference, score and their errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from ks4diff.numerics.heap import keep_freed
from ks4diff.numerics.patches import Span, add, spans
from ks4diff.numerics.pools import n_threads, pool
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip
from ks4diff.products.difference import Difference, Match
from ks4diff.products.psf import Psf
from ks4diff.products.registration import Registration
from ks4diff.stages.bleed_masks import BleedConfig, flag_bleeds, flag_border
from ks4diff.stages.bright_stars import bright_stars
from ks4diff.stages.patch_noise import depth
from ks4diff.stages.subtract_patch import Pair, PatchResult, SubtractConfig, subtract_patch


def subtract(
    chip: CalibratedChip,
    template: AlignedTemplate,
    match: Match,
    registration: Registration,
    config: SubtractConfig,
) -> Difference:
    """Return the difference image and score of a matched pair.

    Patch by patch, each with the PSFs, noises, scale and errors of its middle; neighbours share a strip over
    which one fades into the other. Nothing is divided by its own scatter: the score is as normal as the noise
    models are right.
    """
    keep_freed()
    shape = chip.image.shape
    fwhm = max(chip.psf.fwhm_pix, template.psf.fwhm_pix)
    margin = max(int(np.ceil(config.margin_fwhm * fwhm)), 8)
    (down, high), (along, wide) = (spans(size, margin, config.overlap_pix) for size in shape)
    depths = depth(chip, match.amplifiers), depth(template)
    bright = bright_stars(chip, template, match)
    pair = Pair(chip, template, match, registration, config, depths, (high, wide), margin, bright)
    difference, score, error = (np.zeros(shape, dtype=np.float32) for _ in range(3))
    flags = np.zeros(shape, dtype=np.uint16)
    kept = []
    for rows, columns, result in _in_turn(pair, [(r, c) for r in down for c in along]):
        part = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        for out, plane in zip((difference, score, error), result, strict=False):
            add(plane, rows, columns, out)
        flags[part] |= result.flags
        kept.append(result._replace(difference=None, score_corr=None, flux_err=None, flags=None))
    noise = _cells([1 / one.flux for one in kept], len(down), shape)
    typical = float(np.median(noise.values))
    flag_bleeds(difference, typical, flags, fwhm, BleedConfig())
    flag_border(flags, int(np.ceil(config.edge_fwhm * fwhm)))
    return Difference(
        difference=difference,
        score_corr=score,
        flux_err=error,
        flags=flags,
        psf=_typical_psf(kept, min(chip.psf.n_stars, template.psf.n_stars)),
        flux_scale=match.flux_scale,
        noise=typical,
        noise_map=noise,
        slopes=_cells([one.slopes for one in kept], len(down), shape),
        scale=match.scale,
    )


def _in_turn(pair: Pair, places: list[tuple[Span, Span]]) -> Iterator[tuple[Span, Span, PatchResult]]:
    """Yield each place with its patch, in order whatever thread is first; few wait at a time."""
    with pool() as threads:
        waiting: deque = deque()
        for place in places:
            waiting.append((place, threads.submit(subtract_patch, pair, *place)))
            if len(waiting) > n_threads() + 1:
                (rows, columns), future = waiting.popleft()
                yield rows, columns, future.result()
        for (rows, columns), future in waiting:
            yield rows, columns, future.result()


def _cells(values: list, rows: int, shape: tuple[int, int]) -> Cells:
    """Return what the patches found as a map with one cell per patch, float32."""
    found = np.array(values, dtype=np.float32)
    return Cells(values=np.moveaxis(found.reshape(rows, -1, *found.shape[1:]), (0, 1), (-2, -1)), shape=shape)


def _typical_psf(results: list[PatchResult], n_stars: int) -> Psf:
    """Return the P_D of the patch in the middle of the chip's own order of widths."""
    widths = [result.width for result in results]
    middle = int(np.argsort(widths, kind="stable")[len(widths) // 2])
    return Psf(stamp=results[middle].psf, fwhm_pix=float(np.median(widths)), n_stars=n_stars)
