"""The files of the new electronics: raw pairs of chips, and assembled chips in electrons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ks4diff.io.kmtnet_write_cards import (
    STRIPS,
    empty_primary_lines,
    image_lines,
    line,
    observation_lines,
    start,
    stored,
)
from ks4diff.products.errors import ConfigError
from ks4diff.products.simulated import ExposureFacts, SimulatedChip

Hdu = tuple[list[str], np.ndarray | None]
_PAIR_OVERSCAN = (48, 84)  # columns and rows of an amplifier (KASI's raw FITS specification)


def level_one(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
    """Give assembled chips in electrons with the solved TAN-SIP, and their masks in a second file."""
    names = [f"{facts.id}.ceu.l1ccd.mef.fits", f"{facts.id}.ceu.l1ccd.mask.mef.fits"]

    def hdus(name: str, kind: str) -> Iterator[Hdu]:
        common = [
            item for item in observation_lines(facts, name) if not item.startswith(("BUNIT", "INSTRUME"))
        ]
        yield (
            [
                *empty_primary_lines(),
                *common,
                line("INSTRUME", f"KMT{facts.id.site.facts.letter.upper()} 18k CCD"),
            ],
            None,
        )
        for chip in chips:
            data = (chip.electrons() if kind == "SCI" else chip.mask()).astype(
                ">f4" if kind == "SCI" else "u1"
            )
            lines = [*image_lines(data, f"{kind}_{chip.chip}"), line("CHIPID", chip.chip)]
            if kind == "SCI":
                lines += [line("BUNIT", "electron"), line("WCSSOLVE", True), *_sip_lines(chip)]
            yield lines, data

    yield names[0], hdus(names[0], "SCI")
    yield names[1], hdus(names[1], "MASK")


def _sip_lines(chip: SimulatedChip) -> list[str]:
    header = (chip.solved_wcs or chip.header_wcs).to_header(relax=True)
    plain = [c for c in header.cards if c.keyword not in ("DATE-REF", "MJDREF", "COMMENT", "HISTORY", "")]
    return [line(c.keyword, c.value) for c in plain]


def raw_pair(facts: ExposureFacts, chips: Sequence[SimulatedChip]) -> Iterator[tuple[str, Iterator[Hdu]]]:
    """Give the new electronics' files: two chips abreast, overscan columns inwards, rows in the middle."""
    over, middle = _PAIR_OVERSCAN
    present = {chip.chip: chip for chip in chips}
    for pair in ("MK", "NT"):
        mine = [present.get(letter) for letter in pair]
        some = next((chip for chip in mine if chip is not None), None)
        if some is None:
            continue
        if None in mine:
            raise ConfigError(f"form raw-pair needs both chips of {pair}")
        rows, width = some.counts.shape[0], some.counts.shape[1] // STRIPS
        name = f"KMT{facts.id.site.facts.letter.upper()}.{facts.id.night}.{facts.id.number:06d}.{pair}.fits"
        data = stored(np.hstack([_pair_half(chip, over, middle) for chip in mine]))
        begin = start(facts)
        millis = f"{begin:%Y-%m-%dT%H:%M:%S}.{begin.microsecond // 1000:03d}"
        gone = (
            "NAMPS",
            "UT  ",
            "PRESCANX",
            "OVERSCNX",
            "DATE-OBS",
            "INSTRUME",
            "PIXSCALE",
            "COMMENT",
            "GAINDL",
        )
        lines = [*image_lines(data, primary=True), line("BSCALE", 1), line("BZERO", 32768)]
        lines += [item for item in observation_lines(facts, name) if not item.startswith(gone)]
        sizes = {"AMPNAX1": width + over, "AMPNAX2": rows // 2 + middle, "IMAGEX": width, "IMAGEY": rows // 2}
        sizes |= {"PRESCNX": 0, "PRESCNY": 0, "OVRSCNX": over, "OVRSCNY": middle}
        lines += [line(key, value) for key, value in sizes.items()]
        lines += [line("DETID", pair), line("DATE-OBS", millis), line("PIXSCALE", 0.395)]
        yield name, iter([([*lines, line("INSTRUME", "KMTA 18k CCD")], data)])


def _pair_half(chip: SimulatedChip, over: int, middle: int) -> np.ndarray:
    """Return one chip's half of the frame; its overscan repeats the legacy one's pixels."""
    rows = chip.counts.shape[0]
    half = rows // 2
    tiles = []
    for position, strip in enumerate(chip.amplifiers):
        bias = np.hstack([chip.overscan[position], chip.prescan[position]])[:, :over]
        data = chip.counts[:, strip.x0 : strip.x1]
        tile = np.hstack([data, bias] if position < STRIPS // 2 else [bias, data])
        level = np.full((2 * middle, tile.shape[1]), round(float(chip.bias[position].mean())), np.uint16)
        tiles.append(np.vstack([tile[:half], level, tile[half:]]))
    return np.hstack(tiles)
