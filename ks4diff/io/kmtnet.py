"""KMTNet files of every generation: recognised by their structure, read one chip at a time.

Forms (`FileForm`): the raw MEF with one amplifier per extension, the camera's single-CCD files, the trimmed
float amplifiers and the assembled chips that collaborations receive, the raw pairs of the new electronics
and its level-1 chips. Sizes, sections and amplifier counts come from the file. See `kmtnet_sections` for
what is known of the geometry, and from where.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.fits_hdus import checked_shape, hdu_label, hdu_name, is_image, walk_hdus
from ks4diff.io.fits_header import card, header_facts, quiet_astropy
from ks4diff.io.fits_open import failing_as_input_error, open_fits, read_to_end
from ks4diff.io.kmtnet_header import checked_band, chip_facts, chip_wcs, exposure_id, image_type, text
from ks4diff.io.kmtnet_layout import ChipLayout, FileLayout, amplifiers_of, layout_of
from ks4diff.io.kmtnet_masks import L1_BITS, SNU_BITS, read_flags
from ks4diff.io.kmtnet_order import by_contrast, by_seams
from ks4diff.io.kmtnet_pixels import read_pieces
from ks4diff.io.kmtnet_sections import Image
from ks4diff.products.chip import Amplifier, RawChip
from ks4diff.products.errors import InputError, TruncatedFile
from ks4diff.products.exposure import ExposureFiles, FileForm
from ks4diff.products.ids import CHIPS, ExposureId
from ks4diff.products.image import PixelFlag

_MIN_AMPLIFIER_SIDE = 4


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What one complete file holds: which chips of which exposure, and the chips it has masks for."""

    form: FileForm
    id: ExposureId
    chips: tuple[str, ...]
    masks: tuple[str, ...]
    image_type: str | None


@dataclass(frozen=True, kw_only=True)
class _Opened:
    path: Path
    hdus: fits.HDUList
    packed: object | None
    images: dict[int, Image]
    layout: FileLayout

    def headers(self, index: int) -> list[fits.Header]:
        """Return an HDU's header and the primary one behind it."""
        return [self.images[index].header, *([self.hdus[0].header] if index else [])]


def recognise(path: Path) -> FileForm:
    """Return the form of a file.

    Raises
    ------
    InputError
        When it is no KMTNet file; one line naming file, HDU and value.

    """
    with _opened(Path(path)) as file:
        return file.layout.form


def examine(path: Path) -> FileFacts:
    """Return what a file holds, after checking that it is there to its last byte; no pixel is read.

    Raises
    ------
    TruncatedFile
        When the file is cut short or still being written.
    InputError
        When it is no KMTNet file.

    """
    path = Path(path)
    with _opened(path) as file:
        _check_end(file)
        first = next(iter(file.images))
        headers = [file.hdus[0].header, *([file.images[first].header] if first else [])]
        return FileFacts(
            form=file.layout.form,
            id=exposure_id(str(path), path.name, headers),
            chips=tuple(chip for chip, layout in file.layout.chips.items() if layout.real),
            masks=tuple(file.layout.masks),
            image_type=image_type(headers),
        )


def read_exposure_chip(files: ExposureFiles, chip: str, *, threads: int = 2) -> RawChip:
    """Return one chip of an exposure as it was read out: trimmed, assembled, nothing subtracted.

    Parameters
    ----------
    files
        The exposure, from `find_exposures`.
    chip
        K, M, N or T.
    threads
        That copy amplifiers at a time.

    Returns
    -------
    RawChip
        ``data`` float32; ``amplifiers`` left to right with their overscan where the file has it; ``flags``
        NO_DATA where an amplifier is missing (``data`` is 0 there) and what a mask file says, else None.

    Raises
    ------
    InputError
        When the chip cannot be read; one line naming file, HDU and value.
    UnwantedExposure
        When it was taken through a filter outside BVRI.

    """
    path = files.chips.get(chip)
    if path is None:
        raise InputError(
            f"{files.id}: no file with chip {chip} (missing: {', '.join(files.missing) or 'none'})"
        )
    with _opened(path) as file:
        if file.packed is None:  # gzip streams are followed to their end below
            _check_end(file)
        layout = file.layout.chips.get(chip)
        if layout is None or not layout.real:
            raise InputError(f"{path}: has no data of chip {chip}")
        where = f"{path}, chip {chip}"
        headers = file.headers(next(piece.hdu for piece in layout.pieces if piece.real))
        band = checked_band(where, headers)
        with failing_as_input_error(f"{where}: cannot be read"):
            if file.layout.form is FileForm.RAW_CHIP:
                image = file.images[layout.pieces[0].hdu]
                layout = by_contrast(where, file.hdus[image.index], image, chip, layout)
            data = (np.empty if _covered(layout) else np.zeros)(layout.shape, np.float32)
            overscans = read_pieces(path, file.hdus, layout.pieces, data, threads, file.packed)
            if file.packed is not None:
                read_to_end(file.packed)
        if not layout.ordered:
            layout = by_seams(data, layout)
        flags = _flags(files, chip, layout, file)
        return _assembled(
            file, layout, data, overscans, headers, flags=flags, chip=chip, id=files.id, filter=band
        )


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    with quiet_astropy(str(path)), open_fits(path) as (hdus, packed):
        images = {}
        size = path.stat().st_size
        for index, item in walk_hdus(path, hdus):
            if not is_image(item):
                continue
            where = f"{path}, HDU {hdu_label(index, item)}"
            with failing_as_input_error(f"{where}: cannot be read"):
                shape = checked_shape(where, item, size, packed is not None, _MIN_AMPLIFIER_SIDE)
                name = hdu_name(index, item) if index else str(card(item.header, "EXTNAME") or "")
                images[index] = Image(
                    index=index,
                    name=name.upper().strip(),
                    shape=shape,
                    bitpix=item.header["BITPIX"],
                    header=item.header,
                )
        layout = layout_of(str(path), list(images.values()), hdus[0].header, path.name)
        yield _Opened(path=path, hdus=hdus, packed=packed, images=images, layout=layout)


def _check_end(file: _Opened) -> None:
    """Raise TruncatedFile unless the HDUs reach the end of the file and no further HDU begins there."""
    with failing_as_input_error(f"{file.path}: cannot be read"):
        info = file.hdus[len(file.hdus) - 1].fileinfo()
        end = info["datLoc"] + info["datSpan"]
        if file.packed is None:
            size = file.path.stat().st_size
            with file.path.open("rb") as stream:
                stream.seek(end)
                rest = stream.read(8)
        else:
            try:
                file.packed.seek(end)
                rest = file.packed.read(8)
                read_to_end(file.packed)
                size = file.packed.tell()
            except EOFError:
                raise TruncatedFile(f"{file.path}: truncated: its gzip stream is cut") from None
    # The last block may lack its padding; but not where HDUs that should follow are not there.
    counts = [len(layout.pieces) for layout in file.layout.chips.values()]
    whole = len(file.images) == 1 or counts == [max(counts, default=0)] * len(CHIPS)
    another = rest != b"" and b"XTENSION".startswith(rest)
    if another or size <= end - 2880 or (size < end and not whole):
        raise TruncatedFile(f"{file.path}: truncated: {size} bytes, the last HDU ends at {end}")


def _covered(layout: ChipLayout) -> bool:
    return sum(piece.area for piece in layout.pieces if piece.real) == layout.shape[0] * layout.shape[1]


def _flags(files: ExposureFiles, chip: str, layout: ChipLayout, file: _Opened) -> np.ndarray | None:
    """Return what the exposure's own mask says of a chip, NO_DATA where no amplifier is; None for neither."""
    flags = None
    path = files.masks.get(chip)
    if path is not None and path != file.path:
        with _opened(path) as other:
            flags = _mask(other, chip, layout.shape)
    elif path is not None:
        flags = _mask(file, chip, layout.shape)
    if not _covered(layout):
        empty = np.full(layout.shape, int(PixelFlag.NO_DATA), np.int32)
        for piece in layout.pieces:
            if piece.real:
                empty[piece.y0 : piece.y1, piece.x0 : piece.x1] = 0
        flags = empty if flags is None else flags | empty
    return flags


def _mask(file: _Opened, chip: str, shape: tuple[int, int]) -> np.ndarray:
    index = file.layout.masks.get(chip)
    bits = L1_BITS
    if index is None and file.layout.form is FileForm.SINGLE_CHIP:
        index, bits = next(iter(file.images)), SNU_BITS
    if index is None:
        raise InputError(f"{file.path}: has no mask of chip {chip}")
    with failing_as_input_error(f"{file.path}, mask of chip {chip}: cannot be read"):
        return read_flags(file.hdus[index], shape, bits)


def _assembled(
    file: _Opened,
    layout: ChipLayout,
    data: np.ndarray,
    overscans: list[np.ndarray | None],
    headers: list[fits.Header],
    **known: object,
) -> RawChip:
    """Return the chip with its amplifiers, WCS and header facts."""
    unit = "electron" if "electron" in (text(headers, "BUNIT") or "").lower() else "adu"
    amplifiers = _amplifiers(file, layout, overscans, unit)
    facts = chip_facts(headers)
    for name in ("gain", "read_noise"):
        values = [getattr(a, name) for a in amplifiers if getattr(a, name) is not None]
        facts[name] = float(np.mean(values)) if values else facts[name]
    if unit == "electron":
        facts["gain"] = 1.0
    source = next(piece for piece in layout.pieces if piece.real)
    wcs = None if source.turn else chip_wcs(headers[0], source.x0, source.y0, layout.shape)
    exposure = known.pop("id")
    facts |= {"site": exposure.site.value, "exposure": exposure, "unit": unit, **known}
    ends = sorted({piece.hdu for piece in layout.pieces})
    labels = [hdu_label(index, file.hdus[index]) for index in dict.fromkeys((ends[0], ends[-1]))]
    return RawChip(
        data=data, file=str(file.path), hdu=" to ".join(labels), wcs=wcs, amplifiers=amplifiers, **facts
    )


def _amplifiers(
    file: _Opened, layout: ChipLayout, overscans: list[np.ndarray | None], unit: str
) -> tuple[Amplifier, ...]:
    """Return the amplifiers left to right; those of an assembled chip are its equal strips."""
    rows, columns = layout.shape
    if len(layout.pieces) == 1 and layout.pieces[0].width == columns:
        piece = layout.pieces[0]
        strips = amplifiers_of(file.hdus[0].header)
        width, rest = divmod(columns, strips)
        spans = [] if rest else [(f"{piece.name}{k + 1}", k * width, (k + 1) * width) for k in range(strips)]
        return tuple(Amplifier(name=name, x0=x0, x1=x1) for name, x0, x1 in spans)
    amplifiers = []
    for piece, overscan in zip(layout.pieces, overscans, strict=True):
        facts = header_facts([file.images[piece.hdu].header])
        whole = piece.y0 == 0 and piece.y1 == rows
        amplifiers.append(
            Amplifier(
                name=piece.name,
                x0=piece.x0,
                x1=piece.x1,
                y0=piece.y0,
                y1=None if whole else piece.y1,
                overscan=overscan,
                gain=1.0 if unit == "electron" else facts["gain"],
                read_noise=facts["read_noise"],
            )
        )
    return tuple(sorted(amplifiers, key=lambda amplifier: (amplifier.x0, amplifier.y0)))
