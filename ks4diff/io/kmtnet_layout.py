"""Which of KMTNet's file forms a file has, told by its HDUs, and where each of its amplifiers belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from astropy.io import fits

from ks4diff.io.fits_hdus import MIN_SIDE
from ks4diff.io.fits_header import card
from ks4diff.io.kmtnet_header import name_facts, text
from ks4diff.io.kmtnet_sections import Image, Piece, amplifier_pieces, pair_pieces, raw_chip_pieces
from ks4diff.products.errors import InputError
from ks4diff.products.exposure import FileForm

CHIPS_IN_FILES = ("M", "K", "N", "T")  # the order of extensions, which may be the only label
MAX_CHIP_PIXELS = 2**27  # 512 MiB as float32; a KMTNet chip has 85 million
_PLANE = re.compile(r"^(SCI|VAR|MASK)_([MKNT])$")
_AMPLIFIER = re.compile(r"^([MKNT])(\d\d)([TB]?)$")
_CHIP_WORD = re.compile(r"(?:^|CCD |SCI_)([MKNT])$")


@dataclass(frozen=True, kw_only=True)
class ChipLayout:
    """How a chip is put together; ``shape`` (rows, columns).

    ``ordered`` is False when the file does not say from which side its amplifiers count.
    """

    shape: tuple[int, int]
    pieces: tuple[Piece, ...]
    ordered: bool = True

    @property
    def real(self) -> bool:
        """Whether any part holds data (a file may have zeros in place of a CCD that was not read)."""
        return any(piece.real for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """The form of a file and its chips; ``masks`` maps chips to the HDU with their mask."""

    form: FileForm
    chips: Mapping[str, ChipLayout]
    masks: Mapping[str, int] = field(default_factory=dict)


def layout_of(where: str, images: Sequence[Image], primary: fits.Header, name: str) -> FileLayout:
    """Return the layout of a file from its image HDUs; the name helps only where nothing else tells the chip.

    Raises
    ------
    InputError
        When the images are not those of a KMTNet exposure, or their sections contradict each other.

    """
    if not images:
        raise InputError(f"{where}: no 2-D image HDU")
    planes = {_PLANE.match(image.name).groups(): image for image in images if _PLANE.match(image.name)}
    science = {chip: image for (kind, chip), image in planes.items() if kind == "SCI"}
    masks = {chip: image.index for (kind, chip), image in planes.items() if kind == "MASK"}
    if science:
        return FileLayout(form=FileForm.L1_CHIPS, chips=_whole(where, science), masks=masks)
    if masks:
        return FileLayout(form=FileForm.L1_CHIPS, chips={}, masks=masks)
    if len(images) == 1 and not _AMPLIFIER.match(images[0].name):
        return _single(where, images[0], primary, name)
    if len(images) <= len(CHIPS_IN_FILES) and not any(_AMPLIFIER.match(image.name) for image in images):
        chips = [_chip_of(image.header, image.name) for image in images]
        if None in chips and len(images) == len(CHIPS_IN_FILES):
            chips = list(CHIPS_IN_FILES)
        if None in chips or len(set(chips)) < len(chips):
            raise InputError(f"{where}: {len(images)} images, but not one each of chips M, K, N, T")
        named = dict(zip(chips, images, strict=True))
        return FileLayout(form=FileForm.FOUR_CHIPS, chips=_whole(where, named))
    return _amplifiers(where, images, primary)


def _across(images: Sequence[Image], chips: Sequence[str], primary: fits.Header) -> int:
    """Return how many amplifiers lie side by side on a chip: NAMPS, or more when the file has more."""
    labels = [_AMPLIFIER.match(image.name) for image in images]
    stated = amplifiers_of(primary) if text([primary], "NAMPS") else 1
    if all(labels):
        return max(stated, *(int(label[2]) for label in labels))
    return max(stated, *(chips.count(chip) for chip in set(chips)))


def amplifiers_of(primary: fits.Header) -> int:
    """Return NAMPS, amplifiers side by side on a chip; 8 when absent or absurd."""
    words = text([primary], "NAMPS") or ""
    return int(words) if words.isdigit() and 1 <= int(words) <= 64 else 8


def _whole(where: str, images: Mapping[str, Image]) -> dict[str, ChipLayout]:
    for chip, image in images.items():
        _check_size(f"{where}, chip {chip}", image.shape)
    return {
        chip: ChipLayout(
            shape=image.shape,
            pieces=(
                Piece(hdu=image.index, name=chip, rows=(0, image.shape[0]), columns=(0, image.shape[1])),
            ),
        )
        for chip, image in images.items()
    }


def _single(where: str, image: Image, primary: fits.Header, name: str) -> FileLayout:
    headers = [image.header, primary]
    pair = (text(headers, "DETID") or "").upper()
    if re.fullmatch(r"[MKNT]{2}", pair) and pair[0] != pair[1]:
        layouts = {}
        for position, chip in enumerate(pair):
            shape, pieces = pair_pieces(where, image, position, chip)
            _check_size(f"{where}, chip {chip}", shape)
            layouts[chip] = ChipLayout(shape=shape, pieces=pieces)
        return FileLayout(form=FileForm.RAW_PAIR, chips=layouts)
    chip = _chip_of(image.header, image.name) or name_facts(name).chip
    if chip is None:
        raise InputError(f"{where}: one image, but neither DETID, CCDNAME nor the name says of which chip")
    raw = raw_chip_pieces(where, image, chip, amplifiers_of(image.header)) if image.bitpix == 16 else None
    if raw is None:
        return FileLayout(form=FileForm.SINGLE_CHIP, chips=_whole(where, {chip: image}))
    _check_size(where, raw[0])
    return FileLayout(form=FileForm.RAW_CHIP, chips={chip: ChipLayout(shape=raw[0], pieces=raw[1])})


def _chip_of(header: fits.Header, extname: str) -> str | None:
    words = [extname, *(str(card(header, key) or "").strip() for key in ("DETID", "CHIPID", "CCDNAME"))]
    match = next((m for m in (_CHIP_WORD.search(word.upper()) for word in words) if m), None)
    return match[1] if match else None


def _amplifiers(where: str, images: Sequence[Image], primary: fits.Header) -> FileLayout:
    """Lay out a file of one amplifier per HDU."""
    pieces = [(image, *amplifier_pieces(where, image, primary)) for image in images]
    chips = _chips_of_amplifiers(where, images)
    bottom = min((section[2] for _, _, section in pieces if section), default=0)
    across = _across(images, chips, primary)
    layouts = {}
    for chip in CHIPS_IN_FILES:
        mine = [entry for entry, of in zip(pieces, chips, strict=True) if of == chip]
        if mine:
            placed, ordered = _placed(f"{where}, chip {chip}", mine, across, bottom, reverse=chip in "KN")
            layouts[chip] = (placed, ordered)
    rows = max(piece.y1 for placed, _ in layouts.values() for piece in placed)
    columns = max(piece.x1 for placed, _ in layouts.values() for piece in placed)
    columns = max(
        columns, across * min(piece.x1 - piece.x0 for placed, _ in layouts.values() for piece in placed)
    )
    _check_size(where, (rows, columns))
    fullest = max(sum(piece.area for piece in placed) for placed, _ in layouts.values())
    if rows * columns > 16 * fullest:
        raise InputError(f"{where}: CCDSEC spans {columns} x {rows} pixels, nearly all without data")
    raw = any(piece.overscan for _, piece, _ in pieces)
    return FileLayout(
        form=FileForm.RAW_MEF if raw else FileForm.TRIMMED_AMPS,
        chips={
            chip: ChipLayout(shape=(rows, columns), pieces=tuple(placed), ordered=ordered)
            for chip, (placed, ordered) in layouts.items()
        },
    )


def _chips_of_amplifiers(where: str, images: Sequence[Image]) -> list[str]:
    """Return each amplifier's chip: from its name, else its quarter of the file."""
    labels = [_AMPLIFIER.match(image.name) for image in images]
    if all(labels):
        if len({image.name for image in images}) < len(images):
            raise InputError(f"{where}: two amplifiers have the same EXTNAME")
        return [label[1] for label in labels]
    chips = [_chip_of(image.header, "") for image in images]
    if None not in chips:
        return chips
    if len(images) % len(CHIPS_IN_FILES) or len(images) < 2 * len(CHIPS_IN_FILES):
        raise InputError(f"{where}: {len(images)} images without names: not a multiple of four chips")
    per_chip = len(images) // len(CHIPS_IN_FILES)
    return [CHIPS_IN_FILES[k // per_chip] for k in range(len(images))]


def _placed(where, mine, across: int, bottom: int, *, reverse: bool) -> tuple[list[Piece], bool]:
    """Return the pieces of a chip at their places and whether the file itself gives these places."""
    if all(section for _, _, section in mine):
        placed = [piece.at(section[0], section[2] - bottom) for _, piece, section in mine]
        placed.sort(key=lambda piece: (piece.x0, piece.y0))
        for first in placed:
            for second in placed:
                if first is not second and first.overlaps(second):
                    raise InputError(f"{where}: CCDSEC of {first.name} and {second.name} overlap")
        return placed, True
    if len({piece.shape for _, piece, _ in mine}) > 1:
        raise InputError(f"{where}: amplifiers of different sizes without CCDSEC")
    numbers = [int(m[2]) if (m := _AMPLIFIER.match(image.name)) else None for image, _, _ in mine]
    if None in numbers:
        slots = list(range(len(mine)))
        if len(mine) < across:
            raise InputError(f"{where}: {len(mine)} of {across} amplifiers, without CCDSEC or names")
    elif not all(1 <= n <= across for n in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"{where}: amplifier numbers {numbers} do not fit without CCDSEC")
    else:  # K01 and N01 are the rightmost of their chips
        slots = [across - n if reverse else n - 1 for n in numbers]
    placed = [piece.at(slot * piece.width, 0) for slot, (_, piece, _) in zip(slots, mine, strict=True)]
    return sorted(placed, key=lambda piece: piece.x0), False


def _check_size(where: str, shape: tuple[int, int]) -> None:
    rows, columns = shape
    if min(shape) < MIN_SIDE:
        raise InputError(f"{where}: {columns} x {rows} pixels; at least {MIN_SIDE} a side are needed")
    if rows * columns > MAX_CHIP_PIXELS:
        raise InputError(f"{where}: {columns} x {rows} pixels, more than the {MAX_CHIP_PIXELS} supported")
