"""Write simulated exposures in every form in which KMTNet's files come."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from astropy.io import fits

from ks4diff.io.atomic import atomic_path
from ks4diff.io.fits_header import quiet_astropy
from ks4diff.io.kmtnet_write_cards import (
    BACKWARDS,
    CHIP_ORDER,
    STRIPS,
    block,
    empty_primary_lines,
    image_lines,
    line,
    observation_lines,
    stored,
    strip_lines,
    strip_name,
    wcs_lines,
)
from ks4diff.io.kmtnet_write_new import level_one, raw_pair
from ks4diff.products.errors import ConfigError
from ks4diff.products.simulated import ExposureFacts, SimulatedChip

Hdu = tuple[list[str], np.ndarray | None]


def write_exposure(
    folder: Path, facts: ExposureFacts, chips: Sequence[SimulatedChip], form: str, compress: str = ""
) -> list[Path]:
    """Write the chips of one exposure and return the files.

    Parameters
    ----------
    folder
        Made if missing; an existing file of the same name is replaced.
    facts, chips
        The exposure and those of its chips that there are.
    form
        One of `FORMS`.
    compress
        Nothing, .gz or .fz (lossless).

    Raises
    ------
    ConfigError
        When the form needs chips that are not there.

    """
    if form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    ordered = sorted(chips, key=lambda chip: CHIP_ORDER.index(chip.chip))
    return [_write(folder / name, hdus, compress) for name, hdus in FORMS[form](facts, ordered)]


def _write(path: Path, hdus: Iterator[Hdu], compress: str) -> Path:
    target = path.with_name(path.name + compress)
    with atomic_path(target) as temporary:
        if compress == ".gz":
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as stream:
                _stream(stream, hdus)
        elif compress == ".fz":
            plain = temporary.with_name(temporary.name + ".plain")
            try:
                with plain.open("wb") as stream:
                    _stream(stream, hdus)
                _tile_compress(plain, temporary)
            finally:
                plain.unlink(missing_ok=True)
        else:
            with temporary.open("wb") as stream:
                _stream(stream, hdus)
    return target


def _stream(stream: BinaryIO, hdus: Iterator[Hdu]) -> None:
    for lines, data in hdus:
        stream.write(block(lines))
        if data is not None:
            stream.write(memoryview(np.ascontiguousarray(data)).cast("B"))
            stream.write(bytes(-data.nbytes % 2880))


def _tile_compress(plain: Path, target: Path) -> None:
    """Rewrite a file with lossless tile compression; cards that astropy cannot parse are left out."""
    drop = (
        "SIMPLE",
        "XTENSION",
        "BITPIX",
        "NAXIS",
        "NAXIS1",
        "NAXIS2",
        "EXTEND",
        "PCOUNT",
        "GCOUNT",
        "BZERO",
    )
    drop += ("COMMENT", "CONTINUE", "", "BSCALE")
    with quiet_astropy(str(plain)), fits.open(plain, do_not_scale_image_data=True) as source:
        out = fits.HDUList([fits.PrimaryHDU()])
        for hdu in source:
            cards = [c for c in hdu.header.cards if c.keyword not in drop]
            header = fits.Header([c for c in cards if not isinstance(c.value, fits.card.Undefined)])
            if hdu.data is None:
                out[0].header.update(header)
                continue
            kind = "GZIP_2" if hdu.header["BITPIX"] < 0 else "RICE_1"
            out.append(fits.CompImageHDU(hdu.data, header, compression_type=kind, quantize_level=0))
            out[-1].header["BZERO"] = hdu.header.get("BZERO", 0)
        out.writeto(target, overwrite=True, output_verify="silentfix")


def _raw_strip(chip: SimulatedChip, position: int) -> np.ndarray:
    strip = chip.amplifiers[position]
    data = chip.counts[:, strip.x0 : strip.x1]
    return np.hstack([chip.prescan[position], data, chip.overscan[position]])


def _raw_mef(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
    name = f"{facts.id}.fits"

    def hdus() -> Iterator[Hdu]:
        yield [*empty_primary_lines(), *observation_lines(facts, name)], None
        for chip in chips:
            for position in _by_label(chip):
                data = stored(_raw_strip(chip, position))
                lines = image_lines(data, strip_name(chip.chip, position))
                lines += [line("REALDATA", True), *strip_lines(chip, position, raw=True)]
                yield [*lines, line("FILTER", facts.band), line("BZERO", 32768)], data

    yield name, hdus()


def _by_label(chip: SimulatedChip) -> list[int]:
    positions = list(range(STRIPS))
    return positions[::-1] if chip.chip in BACKWARDS else positions


def _raw_chip(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
    """Give the camera's own files: prescans first, overscans last; K and N upside down."""
    for chip in chips:
        name = f"KMTN{chip.chip.lower()}.{facts.id.night}.{facts.id.number:06d}.fits"
        whole = np.hstack([*chip.prescan, chip.counts, *chip.overscan])
        if chip.chip in BACKWARDS:
            parts = [part[::-1, ::-1] for part in (*chip.prescan[::-1], chip.counts, *chip.overscan[::-1])]
            whole = np.hstack(parts)
        data = stored(whole)
        lines = [*image_lines(data, primary=True), line("BSCALE", 1), line("BZERO", 32768)]
        lines += [line("DETID", chip.chip), *observation_lines(facts, name, single=True)]
        yield name, iter([(lines, data)])


def _trimmed(sections: bool) -> Callable[..., Iterator[tuple[str, Iterator[Hdu]]]]:
    def form(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
        if not sections and len(chips) < len(CHIP_ORDER):
            raise ConfigError("form trimmed-nosec tells its chips by their order: it needs all four")
        name = f"{facts.id}.fits"

        def hdus() -> Iterator[Hdu]:
            yield [*empty_primary_lines(), *observation_lines(facts, name)], None
            for chip in chips:
                light = chip.trimmed()
                for position in _by_label(chip) if sections else range(STRIPS):
                    strip = chip.amplifiers[position]
                    data = light[:, strip.x0 : strip.x1].astype(">f4")
                    lines = image_lines(data, strip_name(chip.chip, position) if sections else None)
                    yield (lines + strip_lines(chip, position, raw=False) if sections else lines), data

        yield name, hdus()

    return form


def _four(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
    name = f"{facts.id}.fits"

    def hdus() -> Iterator[Hdu]:
        yield [*empty_primary_lines(), *observation_lines(facts, name)], None
        for chip in chips:
            data = chip.trimmed().astype(">f4")
            yield [*image_lines(data, chip.chip), *wcs_lines(chip.header_wcs)], data

    yield name, hdus()


def _single(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
    for chip in chips:
        name = f"{facts.id}.{chip.chip.lower() * 2}.fits"
        data = chip.trimmed().astype(">f4")
        lines = [
            *image_lines(data, primary=True),
            *wcs_lines(chip.header_wcs),
            *observation_lines(facts, name),
        ]
        yield name, iter([(lines, data)])


FORMS: dict[str, Callable[..., Iterator[tuple[str, Iterator[Hdu]]]]] = {
    "raw-mef": _raw_mef,
    "raw-chip": _raw_chip,
    "trimmed": _trimmed(True),
    "trimmed-nosec": _trimmed(False),
    "four": _four,
    "raw-pair": raw_pair,
    "l1": level_one,
    "single": _single,
}
