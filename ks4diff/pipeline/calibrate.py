"""Make the calibration folder: master bias, flats, fringes and bad-pixel maps from a folder of raw frames."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ks4diff import __version__
from ks4diff.io.calibrations import MasterName, write_master
from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.io.scratch import Scratch, scratch
from ks4diff.pipeline.raw_frames import Frames, sort_frames
from ks4diff.products.chip import Amplifier, RawChip
from ks4diff.products.errors import ConfigError, InputError
from ks4diff.products.ids import CHIPS
from ks4diff.products.masters import Masters
from ks4diff.stages.amplifiers import dead_amplifiers
from ks4diff.stages.fringe import fringe_frame
from ks4diff.stages.masters import (
    MastersConfig,
    bad_pixels,
    combine_mean,
    combine_median,
    flat_level,
    smooth_fringe,
)
from ks4diff.stages.signature import SignatureConfig, linearise, remove_signature

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How masters are made, and how the frames behind them are reduced."""

    masters: MastersConfig = field(default_factory=MastersConfig)
    signature: SignatureConfig = field(default_factory=SignatureConfig)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One line of the result: a master that was made, or why it was not (``path`` None)."""

    site: str
    chip: str
    kind: str
    band: str | None
    frames: int
    path: Path | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the line as JSON can hold it."""
        return asdict(self) | {"path": None if self.path is None else str(self.path)}


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What was made, and what could not be read."""

    masters: tuple[Made, ...]
    problems: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """4 when a frame could not be read, else 0: too few frames are a stated reason."""
        return 4 if self.problems else 0


def make_calibrations(rawdir: Path, out: Path, config: CalibrationConfig) -> CalibrationReport:
    """Return what was made of the raw frames in ``rawdir`` for the calibration folder ``out``.

    One site and chip at a time; each frame is read once, reduced, and parked on disk (340 MB for a full chip,
    in a hidden folder of ``out``), and a few rows of all frames at a time are combined.

    Raises
    ------
    ConfigError
        When there is no frame to make anything from, or ``out`` cannot be a folder.
    InputError
        When ``rawdir`` does not exist.

    """
    every = sort_frames(find_exposures(rawdir), config.masters)
    if not every:
        raise ConfigError(f"{rawdir}: no bias, flat or science frame of KMTNet in it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    made: list[Made] = []
    problems: list[str] = []
    for frames in every:
        problems += frames.notes
        for chip in CHIPS:
            work = _ChipWork(frames=frames, chip=chip, out=out, config=config, problems=problems)
            made += work.run()
    return CalibrationReport(masters=tuple(made), problems=tuple(problems))


@dataclass(kw_only=True)
class _ChipWork:
    """The masters of one chip, made in the order in which they need each other."""

    frames: Frames
    chip: str
    out: Path
    config: CalibrationConfig
    problems: list[str]
    amplifiers: tuple[Amplifier, ...] = ()
    made: list[Made] = field(default_factory=list)

    def run(self) -> list[Made]:
        frames = self.frames
        if not any(self.chip in exposure.chips for exposure in frames.every):
            return []
        bias = self._bias()
        masters = Masters(bias=bias)
        first_flat, first_ratio = None, None
        for band, exposures in sorted(frames.flats.items()):
            flat, ratio = self._flat(band, exposures, masters)
            if band in frames.science:
                self._fringe(band, replace(masters, flat=flat))
            first_flat = flat if first_flat is None else first_flat
            first_ratio = ratio if first_ratio is None else first_ratio
        for band in sorted(frames.science.keys() - frames.flats.keys()):
            self._fringe(band, masters)
        if bias is not None or first_flat is not None:
            bad = bad_pixels(bias, first_flat, first_ratio, self.amplifiers, self.config.masters)
            self._write(
                "badpix", None, bad, [], note=f"{bad.mean():.3%} of pixels", BADFRAC=float(bad.mean())
            )
        return self.made

    def _bias(self) -> np.ndarray | None:
        with scratch(self.out) as parked:
            self._park(parked, self.frames.bias, lambda raw: linearise(raw, Masters(), self.config.signature))
            if not self._enough("bias", None, parked, self.config.masters.bias_least_frames):
                return None
            master = _combined(parked, lambda s: combine_mean(s, self.config.masters.clip_sigma))
            self._write("bias", None, master, parked.names)
        return master

    def _flat(self, band, exposures, masters) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the master flat and the ratio of the brighter to the fainter half of its frames."""
        levels: list[float] = []
        with scratch(self.out) as parked:
            self._park(parked, exposures, lambda raw: self._normalised(raw, masters, levels))
            if not self._enough("flat", band, parked, self.config.masters.flat_least_frames):
                return None, None
            flat = _combined(parked, self._median)
            order = np.argsort(levels, kind="stable")
            half = len(order) // 2
            ratio = None
            if half >= 2 and levels[order[-1]] > 2 * levels[order[0]]:
                faint = _combined(parked, self._median, sorted(order[:half]))
                ratio = _combined(parked, self._median, sorted(order[-half:]))
                np.divide(ratio, faint, out=ratio, where=faint > 0)
            note = f"levels {min(levels):.0f} to {max(levels):.0f} counts"
            self._write("flat", band, flat, parked.names, note=note, LEVEL=float(np.median(levels)))
        return flat, ratio

    def _normalised(self, raw: RawChip, masters: Masters, levels: list[float]) -> np.ndarray:
        """Return a flat frame over its level, full pixels and dead amplifiers NaN.

        Raises
        ------
        ValueError
            When it is too faint or too bright; the message is for the log.

        """
        data = linearise(raw, masters, self.config.signature)
        dead = dead_amplifiers(
            data,
            raw.amplifiers,
            overscan=any(a.overscan is not None for a in raw.amplifiers),
            config=self.config.signature.amplifiers,
        )
        level = flat_level(data, raw.amplifiers, dead)
        limits = self.config.masters
        if not limits.flat_faintest <= level <= limits.flat_brightest:
            raise ValueError(f"level {level:.0f} is not within {limits.flat_faintest:g} and the brightest")
        levels.append(level)
        data /= np.float32(level)
        data[raw.data >= (raw.saturation or self.config.signature.bleeds.saturation_adu)] = np.nan
        for amplifier, gone in zip(raw.amplifiers, dead, strict=True):
            if gone:
                data[amplifier.y0 : amplifier.y1, amplifier.x0 : amplifier.x1] = np.nan
        return data

    def _fringe(self, band: str, masters: Masters) -> None:
        settings = self.config.signature

        def frame(raw: RawChip) -> np.ndarray:
            chip = remove_signature(raw, masters, settings)
            return fringe_frame(chip.data, chip.flags, settings.fringe)

        with scratch(self.out) as parked:
            self._park(parked, self.frames.science[band], frame)
            if not self._enough("fringe", band, parked, self.config.masters.fringe_least_frames):
                return
            clip = self.config.masters.clip_sigma
            pattern = _combined(parked, lambda s: combine_median(s, clip, least=3))
            pattern = smooth_fringe(pattern, settings.fringe.fringe_smooth_pix)
            rms = float(np.std(pattern))
            self._write("fringe", band, pattern, parked.names, note=f"rms {rms:.2%} of the sky", RMS=rms)

    def _park(self, parked: Scratch, exposures, reduce: Callable[[RawChip], np.ndarray]) -> None:
        """Read, reduce and park one chip of each exposure; what cannot be used is told and left out."""
        for exposure in exposures:
            if self.chip not in exposure.chips:
                continue
            try:
                raw = read_exposure_chip(exposure, self.chip)
            except InputError as error:
                self.problems.append(str(error))
                continue
            if parked.names and raw.data.shape != parked.shape:
                self.problems.append(f"{raw.file}: chip {self.chip} has another size than {parked.names[0]}")
                continue
            try:
                frame = reduce(raw)
            except ValueError as error:
                log.warning("%s chip %s: not used: %s", exposure.id, self.chip, error)
                continue
            self.amplifiers = raw.amplifiers
            parked.add(frame, str(exposure.id))

    def _median(self, stack: np.ndarray) -> np.ndarray:
        return combine_median(stack, self.config.masters.clip_sigma)

    def _enough(self, kind: str, band: str | None, parked: Scratch, least: int) -> bool:
        if len(parked) >= least:
            return True
        if len(parked) or kind == "bias":
            note = f"not made: {len(parked)} usable frames, {least} are needed"
            self.made.append(self._line(kind, band, len(parked), None, note))
        return False

    def _write(
        self, kind: str, band: str | None, image, frames: list[str], note: str = "", **meta: Any
    ) -> None:
        name = MasterName(
            kind=kind, site=self.frames.site, chip=self.chip, band=band, night=self.frames.night
        )
        meta = {"SOFTWARE": f"ks4diff {__version__}", **meta}
        path = write_master(self.out, name, image, frames=frames, meta=meta)
        self.made.append(self._line(kind, band, len(frames), path, note))

    def _line(self, kind, band, frames, path, note) -> Made:
        site = self.frames.site
        return Made(site=site, chip=self.chip, kind=kind, band=band, frames=frames, path=path, note=note)


def _combined(parked: Scratch, combine, which: list[int] | None = None) -> np.ndarray:
    """Return the frames combined by ``combine``, a block of rows at a time."""
    image = np.empty(parked.shape, np.float32)
    for rows, stack in parked.blocks(which):
        image[rows] = combine(stack)
    return image
