"""Where the data and the overscan of an amplifier lie in its HDU, and where they belong on the chip.

The layout of the camera's own single-CCD files is that of KASI's legacy converter (kmtn2mef): all prescans
first, then the data of all amplifiers as one block, then all overscans; K and N are mounted upside down, so
their images are turned by 180 degrees. The layout of the new electronics' pairs is that of KASI's raw FITS
specification v1.4 (section 4): tiles in the order of CCD columns, overscan to the right of the data in the
left four tiles and to the left in the others, rows of the upper half at the top of the file, the overscan
rows of both halves in the middle; nothing is turned. Widths come from the header of the file in both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from astropy.io import fits

from ks4diff.io.fits_header import card
from ks4diff.io.kmtnet_header import text
from ks4diff.products.errors import InputError

Span = tuple[int, int]  # 0-based, end excluded
Section = tuple[int, int, int, int]  # x0, x1, y0, y1

_PRESCAN, _OVERSCAN = 27, 32  # columns per amplifier of the legacy electronics, when the header is silent
_MIN_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image HDU's facts, no pixel read."""

    index: int
    name: str  # EXTNAME or empty
    shape: tuple[int, int]  # rows, columns
    bitpix: int
    header: fits.Header


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A rectangle of an HDU that is one amplifier's part of a chip, and its lower left corner there.

    ``turn``: by 180 degrees; ``real`` is False when the file holds zeros in its place.
    """

    hdu: int
    name: str
    rows: Span
    columns: Span
    overscan: Span | None = None  # columns, same rows
    x0: int = 0
    y0: int = 0
    turn: bool = False
    real: bool = True

    @property
    def width(self) -> int:
        """Columns."""
        return self.columns[1] - self.columns[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows[1] - self.rows[0], self.width

    @property
    def area(self) -> int:
        """Pixels."""
        return self.shape[0] * self.shape[1]

    @property
    def x1(self) -> int:
        """End of its columns on the chip."""
        return self.x0 + self.width

    @property
    def y1(self) -> int:
        """End of its rows on the chip."""
        return self.y0 + self.shape[0]

    def at(self, x0: int, y0: int) -> Piece:
        """Return the piece placed elsewhere."""
        return replace(self, x0=x0, y0=y0)

    def overlaps(self, other: Piece) -> bool:
        """Return whether two pieces claim the same pixel of the chip."""
        return max(self.x0, other.x0) < min(self.x1, other.x1) and max(self.y0, other.y0) < min(
            self.y1, other.y1
        )


def section(header: fits.Header, name: str) -> Section | None:
    """Return a section card such as [28:1179,1:9232] as 0-based (x0, x1, y0, y1), ends excluded."""
    words = str(card(header, name) or "").replace(" ", "")
    match = re.fullmatch(r"\[(\d{1,7}):(\d{1,7}),(\d{1,7}):(\d{1,7})\]", words)
    if not match:
        return None
    x1, x2, y1, y2 = (int(group) for group in match.groups())
    return (x1 - 1, x2, y1 - 1, y2) if 1 <= x1 <= x2 and 1 <= y1 <= y2 else None


def amplifier_pieces(where: str, image: Image, primary: fits.Header) -> tuple[Piece, Section | None]:
    """Return an amplifier HDU's piece and its place on the chip (CCDSEC), None when absent.

    Trimmed files may keep a DATASEC that no longer fits them: it is then passed over.

    Raises
    ------
    InputError
        When CCDSEC has another size than the data.

    """
    rows, columns = image.shape
    data = section(image.header, "DATASEC") or section(image.header, "TRIMSEC")
    bias = section(image.header, "BIASSEC")
    place = section(image.header, "CCDSEC")
    if data is not None and not (data[1] <= columns and data[3] <= rows):
        data = bias = None
    elif data is None and image.bitpix == 16:
        before, after = _number([primary], "PRESCANX"), _number([primary], "OVERSCNX")
        if before is not None and after and columns - before - after >= _MIN_WIDTH:
            data, bias = (before, columns - after, 0, rows), (columns - after, columns, 0, rows)
    data = data or (0, columns, 0, rows)
    if bias is not None and (bias[1] > columns or min(bias[1], data[1]) > max(bias[0], data[0])):
        bias = None
    label = f"{where}, HDU {image.index} ({image.name})" if image.name else f"{where}, HDU {image.index}"
    if data[1] - data[0] < _MIN_WIDTH:
        raise InputError(f"{label}: data section of {data[1] - data[0]} columns")
    size = (data[1] - data[0], data[3] - data[2])
    if place is not None and (place[1] - place[0], place[3] - place[2]) != size:
        raise InputError(
            f"{label}: CCDSEC {card(image.header, 'CCDSEC')} is not {size[0]} x {size[1]} as the data"
        )
    piece = Piece(
        hdu=image.index,
        name=image.name or f"{image.index}",
        rows=data[2:],
        columns=data[:2],
        overscan=bias[:2] if bias else None,
        real=card(image.header, "REALDATA") is not False,
    )
    return piece, place


def raw_chip_pieces(
    where: str, image: Image, chip: str, amplifiers: int, *, interleaved: bool = False
) -> tuple[tuple[int, int], tuple[Piece, ...]] | None:
    """Return the shape of an untrimmed single-CCD file's chip and its amplifiers; None when it is trimmed.

    ``interleaved`` is the other layout: each amplifier's prescan and overscan beside its data.
    """
    rows, columns = image.shape
    before, after = _number([image.header], "PRESCANX"), _number([image.header], "OVERSCNX")
    if before is None and after is None and image.shape == (9232, 9688):
        before, after = _PRESCAN, _OVERSCAN
    if (before is None) != (after is None):
        raise InputError(f"{where}: PRESCANX is {before} and OVERSCNX {after}: where the data lie is unknown")
    if before is None or not after:
        return None
    width, rest = divmod(columns - amplifiers * (before + after), amplifiers)
    if rest or width < _MIN_WIDTH:
        raise InputError(
            f"{where}: {columns} columns are not {amplifiers} amplifiers with "
            f"{before} prescan and {after} overscan"
        )
    turn = chip in "KN" and "-X" not in (text([image.header], "IMFLIP") or "")
    pieces = []
    for k in range(amplifiers):
        start = k * (before + width + after) + before if interleaved else amplifiers * before + k * width
        bias = start + width if interleaved else amplifiers * (before + width) + k * after
        place = amplifiers - 1 - k if turn else k
        piece = Piece(
            hdu=image.index,
            name=f"{chip}{k + 1:02d}",
            rows=(0, rows),
            columns=(start, start + width),
            overscan=(bias, bias + after),
            turn=turn,
        )
        pieces.append(piece.at(place * width, 0))
    return (rows, amplifiers * width), tuple(sorted(pieces, key=lambda piece: piece.x0))


def pair_pieces(
    where: str, image: Image, position: int, chip: str
) -> tuple[tuple[int, int], tuple[Piece, ...]]:
    """Return the shape and the amplifiers of the left (position 0) or right chip of a raw pair."""
    names = ("AMPNAX1", "IMAGEX", "OVRSCNX", "AMPNAX2", "IMAGEY", "OVRSCNY")
    values = [_number([image.header], name) or 0 for name in names]
    tile, width, bias, tile_rows, half, middle = values
    rows, columns = image.shape
    strips, rest = divmod(columns, 2 * tile) if tile else (0, 1)
    if (
        rest
        or rows != 2 * tile_rows
        or not (_MIN_WIDTH <= width <= tile - bias and bias > 0 and 0 < half <= tile_rows - middle)
    ):
        cards = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        raise InputError(f"{where}: {columns} x {rows} pixels are not two chips with {cards}")
    edge = tile_rows - half - middle  # prescan rows, at the frame's upper and lower edge
    pieces = []
    for strip in range(strips):
        left = (position * strips + strip) * tile
        end = left + tile
        if strip < strips // 2:
            data, over = (end - bias - width, end - bias), (end - bias, end)
        else:
            data, over = (left + bias, left + bias + width), (left, left + bias)
        for end_name, row, y0 in (("B", edge, 0), ("T", rows - edge - half, half)):
            piece = Piece(
                hdu=image.index,
                name=f"{chip}{strip + 1:02d}{end_name}",
                rows=(row, row + half),
                columns=data,
                overscan=over,
            )
            pieces.append(piece.at(strip * width, y0))
    return (2 * half, strips * width), tuple(pieces)


def _number(headers: list[fits.Header], name: str) -> int | None:
    words = text(headers, name) or ""
    return int(words) if words.isdigit() and len(words) < 7 else None
