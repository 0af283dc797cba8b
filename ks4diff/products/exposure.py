"""The files that make one exposure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ks4diff.products.ids import ExposureId


class FileForm(StrEnum):
    """How a KMTNet file is laid out; told by its structure, never by its name."""

    RAW_MEF = "raw 32-amplifier MEF"  # int16, prescan and overscan still there
    RAW_CHIP = "raw single chip"  # 9688 x 9232 int16, overscan still there
    TRIMMED_AMPS = "32 trimmed amplifiers"  # float32, what SNU receives
    FOUR_CHIPS = "4 assembled chips"  # float32 M, K, N, T
    RAW_PAIR = "raw MK or NT pair"  # new electronics
    L1_CHIPS = "level-1 chips"  # SCI_M ... in electrons
    SINGLE_CHIP = "single assembled chip"


@dataclass(frozen=True, kw_only=True)
class ExposureFiles:
    """One exposure on disk: which file holds which chip, and what is not there.

    ``chips`` maps K, M, N, T to the file with that chip; ``masks`` likewise to a mask file where there is
    one; ``missing`` are the chips without a file; ``partial`` the files that are still being written or cut
    short; ``form`` is None when nothing complete is there yet. ``image_type`` is IMAGETYP in capitals
    (OBJECT, BIAS, FLAT), None when the header has none.
    """

    id: ExposureId
    form: FileForm | None
    chips: Mapping[str, Path]
    masks: Mapping[str, Path]
    missing: tuple[str, ...] = ()
    partial: tuple[Path, ...] = ()
    image_type: str | None = None
