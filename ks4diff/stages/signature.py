"""Take the camera out of a raw chip: bias, ghosts, flat, amplifier levels, fringes; mask what it spoils."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from ks4diff.numerics.bad_columns import bad_columns
from ks4diff.numerics.defects import flag_pixels, mark_above
from ks4diff.products.chip import Amplifier, RawChip
from ks4diff.products.errors import InputError
from ks4diff.products.image import PixelFlag
from ks4diff.products.masters import Masters
from ks4diff.stages.amplifiers import AmplifierConfig, Match, bands, dead_amplifiers, join_amplifiers
from ks4diff.stages.bleeds import BleedConfig, bleed_trails
from ks4diff.stages.crosstalk import CrosstalkConfig, ghosts, saturated_victims
from ks4diff.stages.fringe import FringeConfig, fringe_scale
from ks4diff.stages.overscan import OverscanConfig, overscan_levels
from ks4diff.stages.sky import over_strips

log = logging.getLogger(__name__)

BESIDE = 50  # rows: so far beyond a full pixel a trail may begin
_ROWS = 512  # processed at a time, so that temporaries stay below 20 MB for a chip of 9216 columns


@dataclass(frozen=True, kw_only=True)
class SignatureConfig:
    """How the camera's signature is removed."""

    overscan: OverscanConfig = field(default_factory=OverscanConfig)
    crosstalk: CrosstalkConfig = field(default_factory=CrosstalkConfig)
    amplifiers: AmplifierConfig = field(default_factory=AmplifierConfig)
    bleeds: BleedConfig = field(default_factory=BleedConfig)
    fringe: FringeConfig = field(default_factory=FringeConfig)
    masters_on_trimmed: bool = False  # files without overscan come bias-subtracted and flat-fielded
    least_response: float = 0.2  # of the flat; below, a pixel is bad
    # by which a column stands out of its neighbours, less 0.4 of all rows: then it is bad
    column_rows: float = 20.0
    star_rows: int = 400  # a shorter run beside a full pixel is a star's trail or spike
    zero_block_pix: int = 9  # exact zeros joined in at least this many pixels are no data

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if not 0 < self.least_response < 1:
            raise ValueError(f"least_response must be in (0, 1), got {self.least_response}")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A chip without its signature, and what was found on the way."""

    chip: RawChip
    match: Match | None  # None where there is one amplifier or none is known
    dead: tuple[str, ...]  # names of amplifiers without signal
    fringe_scale: float | None  # counts per unit of the master


def remove_signature(raw: RawChip, masters: Masters | None, config: SignatureConfig) -> RawChip:
    """Return the chip with the camera's signature removed and its spoilt pixels flagged.

    ``data`` keeps the sky; ``flags`` holds what the file knew and SATURATED, BLEED, DEAD_AMPLIFIER,
    BAD_PIXEL (of the masters, and columns that stand out), SEAM, CROSSTALK, NO_DATA, NON_FINITE;
    ``saturation`` is the least corrected count that may be full; the amplifiers have no overscan left and
    gains that belong to the corrected counts. ``raw`` is not modified.

    Raises
    ------
    InputError
        When a master has another shape than the chip.

    """
    return find_signature(raw, masters, config).chip


def find_signature(raw: RawChip, masters: Masters | None, config: SignatureConfig) -> Signature:
    """Return what `remove_signature` does, with the figures behind it."""
    masters = masters or Masters()
    if not (config.masters_on_trimmed or any(a.overscan is not None for a in raw.amplifiers)):
        masters = replace(masters, bias=None, flat=None)
    _check(raw, masters)
    flags = np.zeros(raw.data.shape, np.uint16) if raw.flags is None else raw.flags.astype(np.uint16)
    full = raw.saturation if raw.saturation is not None else _default_saturation(raw, config)
    saturated = _flag_as_read(raw.data, flags, full, config)
    levels = overscan_levels(raw.amplifiers, config.overscan)
    data = _linearised(raw, levels, masters, config)
    if masters.bad is not None:
        flags[masters.bad] |= np.uint16(PixelFlag.BAD_PIXEL)
    if masters.flat is not None:
        _flag_unresponsive(flags, masters.flat, config)
    dead, match = _match(raw, data, flags, levels, masters, config)
    scale = _remove_fringe(data, flags, masters, config)
    _flag_columns(data, flags, saturated, config)
    _flag_spill(raw, data, flags, saturated, masters, config)
    gains = np.ones(len(raw.amplifiers)) if match is None else match.gain
    responses = gains * _responses(raw.amplifiers, masters.flat)
    chip = replace(
        raw,
        data=data,
        flags=flags,
        saturation=_corrected_saturation(full, levels, responses, match),
        amplifiers=tuple(
            replace(a, overscan=None, gain=None if a.gain is None else a.gain * float(r))
            for a, r in zip(raw.amplifiers, responses, strict=True)
        ),
    )
    names = tuple(a.name for a, is_dead in zip(raw.amplifiers, dead, strict=True) if is_dead)
    _tell(raw, names, match, scale)
    return Signature(chip=chip, match=match, dead=names, fringe_scale=scale)


def _check(raw: RawChip, masters: Masters) -> None:
    for name in ("bias", "flat", "fringe", "bad"):
        master = getattr(masters, name)
        if master is not None and master.shape != raw.data.shape:
            sizes = (f"{s[1]} x {s[0]}" for s in (master.shape, raw.data.shape))
            raise InputError("{}: the {} master has {} pixels, the chip {}".format(raw.file, name, *sizes))
    n = len(raw.amplifiers)
    if masters.crosstalk is not None and n and masters.crosstalk.shape != (n, n):
        raise InputError(
            f"{raw.file}: crosstalk table is for {len(masters.crosstalk)} amplifiers, the chip has {n}"
        )


def _default_saturation(raw: RawChip, config: SignatureConfig) -> float:
    adu = config.bleeds.saturation_adu
    return adu * (raw.gain or 1.7) if raw.unit == "electron" else adu  # 1.7: kmtnet.md section 6


def _flag_as_read(data: np.ndarray, flags: np.ndarray, full: float, config: SignatureConfig) -> np.ndarray:
    """Flag, in place, what the file's own counts show: full and missing pixels. Return bool: full."""
    saturated = np.empty(data.shape, dtype=bool)
    bits = int(PixelFlag.NO_DATA), int(PixelFlag.NON_FINITE)

    def work(rows: slice) -> None:
        strip = rows.start, rows.stop
        np.greater_equal(data[rows], full, out=saturated[rows])  # false for NaN
        flag_pixels(data, flags, strip, block=config.zero_block_pix, absurd=np.inf, bits=bits)
        # neighbours of a full pixel hold its spilt charge
        mark_above(data, full, strip, 2, flags, int(PixelFlag.SATURATED))

    over_strips(work, len(data))
    return saturated


def linearise(raw: RawChip, masters: Masters, config: SignatureConfig) -> np.ndarray:
    """Return float32 [y, x]: counts without bias and ghosts, divided by the flat; amplifiers as they are."""
    return _linearised(raw, overscan_levels(raw.amplifiers, config.overscan), masters, config)


def _linearised(raw: RawChip, levels: list, masters: Masters, config: SignatureConfig) -> np.ndarray:
    data = np.empty(raw.data.shape, dtype=np.float32)

    def begin(rows: slice) -> None:
        data[rows] = raw.data[rows]
        for amplifier, level in zip(raw.amplifiers, levels, strict=True):
            top, end = max(amplifier.y0, rows.start), min(_end(amplifier, data), rows.stop)
            if level is not None and top < end:
                part = level[top - amplifier.y0 : end - amplifier.y0, None].astype(np.float32)
                data[top:end, amplifier.x0 : amplifier.x1] -= part
        if masters.bias is not None:
            data[rows] -= masters.bias[rows]

    over_strips(begin, len(data))
    if masters.crosstalk is not None:
        _remove_ghosts(data, raw, masters.crosstalk, config)
    if masters.flat is not None:

        def divide(rows: slice) -> None:
            flat = masters.flat[rows]
            data[rows] /= np.where(flat >= config.least_response, flat, 1)

        over_strips(divide, len(data))
    return data


def _end(amplifier: Amplifier, data: np.ndarray) -> int:
    return len(data) if amplifier.y1 is None else amplifier.y1


def _remove_ghosts(data: np.ndarray, raw: RawChip, matrix: np.ndarray, config: SignatureConfig) -> None:
    """Subtract the crosstalk, in place; amplifiers of other rows are not heard."""
    for band, members in bands(raw.amplifiers, len(data)):
        some, part = [raw.amplifiers[k] for k in members], data[band]
        for start in range(0, len(part), _ROWS):
            block = part[start : start + _ROWS]
            signal = block.copy()
            for victim, amplifier in enumerate(some):
                heard = ghosts(signal, some, victim, matrix[np.ix_(members, members)], config.crosstalk)
                block[:, amplifier.x0 : amplifier.x1] -= heard


def _flag_unresponsive(flags: np.ndarray, flat: np.ndarray, config: SignatureConfig) -> None:
    for start in range(0, len(flags), _ROWS):
        rows = slice(start, start + _ROWS)
        flags[rows][~(flat[rows] >= config.least_response)] |= np.uint16(PixelFlag.BAD_PIXEL)


def _flag_columns(
    data: np.ndarray, flags: np.ndarray, saturated: np.ndarray, config: SignatureConfig
) -> None:
    """Flag, in place, columns that are bright or dark for many rows: traps that no map of bad pixels has."""
    for x, first, end in bad_columns(data, config.column_rows).tolist():
        near = saturated[max(first - BESIDE, 0) : end + BESIDE, x - 1 : x + 2]
        if end - first >= config.star_rows or not near.any():
            flags[first:end, x] |= np.uint16(PixelFlag.BAD_PIXEL)


def _match(raw, data, flags, levels, masters, config) -> tuple[np.ndarray, Match | None]:
    """Flag dead amplifiers, bring the others together, in place; return (dead bool [n], the match)."""
    amplifiers, settings = raw.amplifiers, config.amplifiers
    if len(amplifiers) < 2:
        return np.zeros(len(amplifiers), dtype=bool), None
    with_overscan = all(level is not None for level in levels)
    dead = dead_amplifiers(data, amplifiers, overscan=with_overscan, config=settings)
    for amplifier, is_dead in zip(amplifiers, dead, strict=True):
        if is_dead:
            flags[amplifier.y0 : amplifier.y1, amplifier.x0 : amplifier.x1] |= np.uint16(
                PixelFlag.DEAD_AMPLIFIER
            )
    if not settings.match_amplifiers or (~dead).sum() < 2:
        return dead, None
    prior = settings.gain_prior if masters.flat is None else settings.gain_prior_flat
    return dead, join_amplifiers(data, flags, amplifiers, dead=dead, gain_prior=prior, config=settings)


def _remove_fringe(data, flags, masters, config) -> float | None:
    """Subtract the fringe master at the strength found, in place; return it, None without a master."""
    if masters.fringe is None:
        return None
    scale, error = fringe_scale(data, flags, masters.fringe, config.fringe)
    if not scale > config.fringe.fringe_least_sigma * error:
        return 0.0
    for start in range(0, len(data), _ROWS):
        rows = slice(start, start + _ROWS)
        data[rows] -= np.float32(scale) * np.nan_to_num(masters.fringe[rows])
    return scale


def _flag_spill(raw, data, flags, saturated, masters, config) -> None:
    """Flag, in place, where the charge of full pixels went: trails and ghosts."""
    if not saturated.any():
        return
    rows, columns = np.nonzero(bleed_trails(data, saturated, raw.chip, config.bleeds))
    flags[rows, columns] |= np.uint16(PixelFlag.BLEED)
    if config.crosstalk.crosstalk_mask and raw.amplifiers:
        for band, members in bands(raw.amplifiers, len(data)):
            some = [raw.amplifiers[k] for k in members]
            matrix = None if masters.crosstalk is None else masters.crosstalk[np.ix_(members, members)]
            victims = saturated_victims(saturated[band], some, matrix, config.crosstalk)
            flags[band][victims] |= np.uint16(PixelFlag.CROSSTALK)


def _responses(amplifiers: tuple[Amplifier, ...], flat: np.ndarray | None) -> np.ndarray:
    """Return float64 [n]: the flat's median in each amplifier, 1 without a flat or where it is dead."""
    if flat is None:
        return np.ones(len(amplifiers))
    samples = [flat[a.y0 : a.y1 : 16, a.x0 : a.x1 : 16] for a in amplifiers]
    medians = [np.median(s[np.isfinite(s)]) if np.isfinite(s).any() else 1.0 for s in samples]
    return np.where(np.array(medians) > 0.1, medians, 1.0)


def _corrected_saturation(full: float, levels: list, responses: np.ndarray, match: Match | None) -> float:
    """Return the least count, after all corrections, of a pixel that was full; 1 less for rounding."""
    least = full
    for k, level in enumerate(levels):
        top = full - (0.0 if level is None else float(level.max()))
        shift = 0.0 if match is None else float(np.abs(match.offset[k]).sum() / match.gain[k])
        least = min(least, top / float(responses[k]) - shift - 1.0)
    return least


def _tell(raw: RawChip, dead: tuple[str, ...], match: Match | None, scale: float | None) -> None:
    if dead:
        log.info("%s chip %s: no signal in %s", raw.file, raw.chip, ", ".join(dead))
    if match is not None and match.seams:
        worst = max(match.seams, key=lambda s: abs(s.after) / max(s.sigma, 1e-9))
        log.info(
            "%s chip %s: gains %.3f to %.3f; largest step left %.3g sigma at x = %d",
            *(raw.file, raw.chip, match.gain.min(), match.gain.max()),
            *(worst.after / max(worst.sigma, 1e-9), worst.x),
        )
    if scale is not None:
        log.info("%s chip %s: fringe scale %.4g", raw.file, raw.chip, scale)
