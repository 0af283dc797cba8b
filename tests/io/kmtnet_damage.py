"""Run by test_kmtnet_damage.py in a process of little memory: read damaged files, print what came of each."""

from __future__ import annotations

import gzip
import json
import logging
import re
import resource
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

from ks4diff.io.exposures import find_exposures
from ks4diff.io.kmtnet import read_exposure_chip
from ks4diff.products.errors import InputError
from ks4diff.products.exposure import ExposureFiles
from ks4diff.products.ids import ExposureId, Site
from tests import kmtnet_files as kf

ADDRESS_SPACE = 2 * 10**9
SECONDS = 10
STEM = f"kmta.{kf.STEM}"
NUMBERS = (
    "0",
    "-1",
    "1",
    "3",
    "7",
    "999",
    "70000",
    "2000000000",
    "99999999999999999999",
    "NaN",
    "1E999",
    "'x'",
    "T",
)
CARDS = (
    "NAXIS1",
    "NAXIS2",
    "NAXIS",
    "BITPIX",
    "BZERO",
    "PRESCANX",
    "AMPNAX1",
    "IMAGEY",
    "CRPIX1",
    "CD1_1",
    "NAMPS",
)
SECTION = re.compile(rb"\[(\d+):(\d+),(\d+):(\d+)\]")


def bases(folder):
    """Return the bytes of one small file of every form, and the suffix of its name."""
    skies = kf.skies(rows=32)
    mask = {"M": np.ones(skies["M"].shape, "u1")}
    made = {
        ".fits": [
            kf.raw_mef(folder / "0.fits", skies),
            kf.trimmed_amps(folder / "1.fits", skies),
            kf.four_chips(folder / "2.fits", skies),
            kf.level_one(folder / "3.fits", skies, masks=mask),
        ],
        ".MK.fits": [kf.raw_pair(folder / "4.fits", skies)],
        ".kk.fits": [
            kf.raw_chip(folder / "5.fits", "K", skies["K"]),
            kf.single_chip(folder / "6.fits", "K", skies["K"]),
        ],
        ".fits.fz": [kf.tile_compressed(folder / "2.fits", folder / "7.fits.fz")],
    }
    return [(path.read_bytes(), suffix) for suffix, paths in made.items() for path in paths]


def header_starts(content):
    return [m.start() for m in re.finditer(rb"(SIMPLE  =|XTENSION=)", content) if m.start() % 2880 == 0]


def cards_of(content, rng):
    """Return the offsets of the cards of one header."""
    start = int(rng.choice(header_starts(content)))
    end = content.index(b"END" + b" " * 77, start)
    return range(start, end, 80)


def damaged(content, kind, rng):
    content = bytearray(content)
    if kind == "truncated":
        return bytes(content[: rng.integers(0, len(content))])
    if kind == "flipped bytes":
        places = rng.integers(0, len(content), rng.integers(1, 30))
        if rng.random() < 0.7:
            cards = cards_of(content, rng)
            places = rng.integers(cards.start, cards.stop, rng.integers(1, 6))
        for place in places:
            content[place] ^= int(rng.integers(1, 256))
        return bytes(content)
    cards = cards_of(content, rng)
    if kind == "missing card":
        for place in rng.choice(cards, rng.integers(1, 4)):
            content[place : place + 80] = b" " * 80
    elif kind == "absurd section":
        found = [m for m in SECTION.finditer(content)]
        if found:
            match = found[rng.integers(len(found))]
            size = match.end() - match.start()
            content[match.start() : match.end()] = rng.choice(SECTIONS).encode().ljust(size)[:size]
    else:
        wanted = ("BITPIX",) if kind == "wrong BITPIX" else ("NAXIS",) if kind == "wrong NAXIS" else CARDS
        here = [c for c in cards if bytes(content[c : c + 8]).decode("latin1").strip() in wanted]
        place = int(rng.choice(here)) if here else cards.start
        value = "NaN" if kind == "NaN card" else str(rng.choice(NUMBERS))
        content[place + 8 : place + 80] = f"= {value:>20}".ljust(72).encode()
    return bytes(content)


SECTIONS = ("[0:0,0:0]", "[1:9,1:9]", "[9999999:9999999,1:2]", "[5:1,1:3]", "[1:x]", "[1:1,1:9999999]", "")
KINDS = (
    "truncated",
    "flipped bytes",
    "wrong NAXIS",
    "absurd size",
    "absurd section",
    "missing card",
    "NaN card",
    "wrong BITPIX",
)


def outcome(path, masked):
    """Return what reading a file gave: words for what was read, or the lines that refused it."""
    said = []
    try:
        found = find_exposures([path])
        said.append("partial" if found[0].partial else f"found {''.join(found[0].chips)}")
    except InputError as error:
        said.append(f"refused: {error}")
    key = ExposureId(Site.SSO, "20170209", 44131)
    files = ExposureFiles(
        id=key, form=None, chips={"K": path, "M": path}, masks={"M": path} if "M" in said[0] else {}
    )
    for chip in "KM":
        try:
            raw = read_exposure_chip(files, chip)
            said.append(f"read {chip} {raw.data.shape}")
        except InputError as error:
            said.append(f"refused: {error}")
    return said


def main(folder, count):
    logging.disable(logging.CRITICAL)
    originals = bases(folder)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for number in range(count):
        rng = np.random.default_rng(1000 + number)
        content, suffix = originals[number % len(originals)]
        kind = KINDS[number // len(originals) % len(KINDS)]
        content = damaged(content, kind, rng)
        path = folder / f"{STEM}{suffix}"
        if number % 5 == 4 and not suffix.endswith("fz"):
            path, content = path.with_name(path.name + ".gz"), gzip.compress(content, 1)
        path.write_bytes(content)
        signal.alarm(SECONDS)  # kills this process: the test then says at which file
        try:
            said = outcome(path, b"MASK_M" in originals[number % len(originals)][0])
        except Exception:  # noqa: BLE001 - anything that is no InputError is the failure looked for
            said = ["TRACEBACK " + traceback.format_exc()]
        signal.alarm(0)
        say({"number": number, "kind": kind, "suffix": suffix, "said": said})
        path.unlink()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    say({"peak_kb": int(re.search(r"VmHWM:\s+(\d+)", status)[1])})


def say(result):
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
