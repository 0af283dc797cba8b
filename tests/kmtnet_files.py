"""Small KMTNet files of every form, written byte by byte: with the traps that astropy would not write."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from astropy.io import fits

from ks4diff.io.fits_header import quiet_astropy

STRIPS = 8
PRESCAN, OVERSCAN = 27, 32
GAPS = (460, 933)
ORDER = "MKNT"
BIAS = 1700
STEM = "20170209.044131"
RA, DEC = 177.4995, -32.99988888888889


def skies(width=32, rows=48, seed=3):
    """Return a different integer-valued sky with stars for each chip, float32 [rows, 8 * width]."""
    rng = np.random.default_rng(seed)
    columns = STRIPS * width
    y, x = np.mgrid[-9:10, -9:10]
    chips = {}
    for chip in ORDER:
        sky = rng.normal(2000, 12, (rows + 20, columns + 20)) + 0.2 * np.arange(rows + 20)[:, None]
        for _ in range(columns * rows // 300):
            column, row = rng.integers(9, columns + 10), rng.integers(9, rows + 10)
            star = rng.uniform(200, 6000) * np.exp(-(x**2 + y**2) / 6)
            sky[row - 9 : row + 10, column - 9 : column + 10] += star
        sky = sky[10:-10, 10:-10]
        chips[chip] = np.rint(np.minimum(sky, 60000)).astype(np.float32)
    return chips


def line(name, value=None, comment=""):
    """Return one card; a float as the header writes it, None for a card without a value."""
    if value is None:
        return f"{name:<8}                       / {comment}"[:80]
    if isinstance(value, bool):
        words = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        words = f"'{value:<8}'"
    else:
        words = f"{value!s:>20}"
    return f"{name:<8}= {words} / {comment}"[:80]


def write(path, hdus):
    """Write (lines, array or None) one after the other; the array's dtype must be that of BITPIX."""
    opener = gzip.open if path.suffix == ".gz" else Path.open
    with opener(path, "wb") as stream:
        for lines, data in hdus:
            text = "".join(item.ljust(80) for item in (*lines, "END"))
            stream.write(text.ljust(-(-len(text) // 2880) * 2880).encode("ascii"))
            if data is not None:
                body = data.tobytes()
                stream.write(body + bytes(-len(body) % 2880))
    return path


def tile_compressed(plain, path):
    """Rewrite a plain file with lossless tile compression (.fits.fz)."""
    with quiet_astropy(str(plain)), fits.open(plain, do_not_scale_image_data=True) as source:
        out = fits.HDUList([fits.PrimaryHDU()])
        for index, hdu in enumerate(source):
            if hdu.data is None:
                out[0].header.update(_parsable(hdu.header))
                continue
            floats = hdu.header["BITPIX"] < 0
            out.append(
                fits.CompImageHDU(
                    hdu.data,
                    _parsable(hdu.header),
                    compression_type="GZIP_2" if floats else "RICE_1",
                    quantize_level=0,
                )
            )
            out[-1].header["BZERO"] = hdu.header.get("BZERO", 0)
            if index == 0:
                out[-1].header["EXTNAME"] = ""
        out.writeto(path, output_verify="silentfix")
    return path


def _parsable(header):
    skip = (
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
    cards = [
        c for c in header.cards if c.keyword not in skip and not isinstance(c.value, fits.card.Undefined)
    ]
    return fits.Header([c for c in cards if c.keyword not in ("COMMENT", "CONTINUE", "")])


def observation(observat="SSO", **changes):
    """Return the cards of an observation as the legacy system writes them, junk included."""
    cards = {
        "ORIGIN": observat,
        "OBJECT": "f=0.00",
        "BUNIT": "ADU",
        "DETECTOR": "e2v CCD290-99",
        "NAMPS": STRIPS,
        "GAINDL": None,
        "TSHSHUT": None,
        "OVERSCNX": OVERSCAN,
        "PRESCANX": PRESCAN,
        "PIXSCALE": 0.400,
        "OBSERVAT": observat,
        "LONGITUD": "210:56:08",
        "IMAGETYP": "OBJECT",
        "EXPTIME": 30,
        "PROJID": "ENG",
        "INSTRUME": "KMTS",
        "TIMESYS": "UTC",
        "DATE-OBS": "2017-02-09T16:34:45",
        "RADECSYS": "ICRS",
        "RA": "11:49:59.88",
        "DEC": "-32:59:59.6",
        "EQUINOX": "2000.000",
        "SECZ": "1.00",
        "FILTER": "I",
        "CCDTEMP": "-103.16",
        "UT": "2017-02-09T16:34:45.72",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    absent = [name for name, value in cards.items() if value == "absent"]
    lines = [line(name, value) for name, value in cards.items() if name not in absent]
    if "FILENAME" in cards:
        return lines
    lines += ["FILENAME= '/PL/SENDER3/d_INPUT/MEF_FITS/20170209/kmta.20170209.044131&'", "CONTINUE  '.fits&'"]
    return [*lines, "CONTINUE  '' / MEF Filename", line("RTD12"), line("MIDJD", 2457794.19097227)]


def empty_primary(**changes):
    start = [line("SIMPLE", True), line("BITPIX", 16), line("NAXIS", 0), line("EXTEND", False)]
    return [*start, *observation(**changes)]


def image_cards(data, extname=None, primary=False):
    bitpix = {"i2": 16, "f4": -32, "u1": 8}[data.dtype.str[1:]]
    first = line("SIMPLE", True) if primary else line("XTENSION", "IMAGE")
    cards = [first, line("BITPIX", bitpix), line("NAXIS", 2)]
    cards += [line("NAXIS1", data.shape[1]), line("NAXIS2", data.shape[0])]
    cards += [] if primary else [line("PCOUNT", 0), line("GCOUNT", 1)]
    return cards if extname is None else [*cards, line("EXTNAME", extname)]


def stored(counts):
    """Return counts 0 to 65535 as the file stores them."""
    return (counts - 32768).astype(">i2")


def strip_cards(chip, position, width, rows):
    """Return the sections and the WCS of the raw strip at a position (0 is leftmost)."""
    across = 2 * STRIPS * width + GAPS[0]
    east, upper = chip in "MN", chip in "MK"
    x0 = position * width
    det_x, det_y = x0 + (0 if east else STRIPS * width + GAPS[0]), rows + GAPS[1] if upper else 0
    data = f"[{PRESCAN + 1}:{PRESCAN + width},1:{rows}]"
    return [
        line("CCDSEC", f"[{x0 + 1}:{x0 + width},1:{rows}]"),
        line("DATASEC", data),
        line("DETSEC", f"[{det_x + 1}:{det_x + width},{det_y + 1}:{det_y + rows}]"),
        line("BIASSEC", f"[{PRESCAN + width + 1}:{PRESCAN + width + OVERSCAN},1:{rows}]"),
        line("CTYPE1", "RA---TAN"),
        line("CTYPE2", "DEC--TAN"),
        line("CRVAL1", RA),
        line("CRVAL2", DEC),
        line("CRPIX1", across // 2 - 1 - det_x),
        line("CRPIX2", (2 * rows + GAPS[1]) // 2 - det_y),
        line("CD1_1", -0.00011122222222222),
        line("CD1_2", 0.0),
        line("CD2_1", 0.0),
        line("CD2_2", 0.000111222222222222),
        line("LTV1", PRESCAN),
    ]


def label(chip, position):
    """Return the name of the strip at a position: K and N count from the right."""
    return f"{chip}{STRIPS - position if chip in 'KN' else position + 1:02d}"


def raw_strip(sky, position):
    """Return prescan, data and overscan of a strip, counts; the overscan numbers its rows."""
    rows, width = sky.shape[0], sky.shape[1] // STRIPS
    over = np.repeat(BIAS + np.arange(rows)[:, None] % 50, OVERSCAN, axis=1) + position
    data = sky[:, position * width : (position + 1) * width]
    return np.hstack([np.full((rows, PRESCAN), BIAS - 50), data, over])


def raw_mef(path, chips, drop=(), bscale=False, blank_chip=None, **changes):
    hdus = [(empty_primary(**changes), None)]
    for chip in ORDER:
        for position in range(STRIPS) if chip in chips else ():
            if label(chip, position) in drop:
                continue
            rows, width = chips[chip].shape[0], chips[chip].shape[1] // STRIPS
            data = stored(raw_strip(chips[chip], position))
            real = [line("REALDATA", chip != blank_chip)]
            cards = [
                *image_cards(data, label(chip, position)),
                *real,
                *strip_cards(chip, position, width, rows),
            ]
            cards += [
                line("FILTER", changes.get("FILTER", "I")),
                line("ALT", "0.000000"),
                line("BZERO", 32768),
            ]
            hdus.append((cards + ([line("BSCALE", 1)] if bscale else []), data))
    return write(path, hdus)


def raw_chip(path, chip, sky, interleaved=False, **changes):
    """Write the camera's own file: K and N upside down, prescans first and overscans last."""
    turned = sky[::-1, ::-1] if chip in "KN" else sky
    strips = [raw_strip(turned, k) for k in range(STRIPS)]
    cuts = [(0, PRESCAN), (PRESCAN, -OVERSCAN), (-OVERSCAN, None)]
    whole = np.hstack(strips if interleaved else [s[:, a:b] for a, b in cuts for s in strips])
    data = stored(whole)
    cards = [*image_cards(data, primary=True), line("BSCALE", 1), line("BZERO", 32768), line("DETID", chip)]
    return write(
        path, [([*cards, *observation(**{"UT": "absent", "TSHOPEN": "16:34:45.72"} | changes)], data)]
    )


def trimmed_amps(path, chips, ccdsec=True, names=True, backwards=(), **changes):
    """Write float amplifiers; without CCDSEC and names, chips in ``backwards`` run from right to left."""
    hdus = [(empty_primary(**changes), None)]
    for chip in ORDER:
        sky = chips[chip].astype(">f4")
        rows, width = sky.shape[0], sky.shape[1] // STRIPS
        for k in range(STRIPS):
            position = STRIPS - 1 - k if chip in backwards else k
            data = np.ascontiguousarray(sky[:, position * width : (position + 1) * width])
            cards = image_cards(data, label(chip, position) if names else None)
            cards += strip_cards(chip, position, width, rows) if ccdsec else []
            hdus.append((cards, data))
    return write(path, hdus)


def chip_wcs_cards(chip, sky):
    cards = strip_cards(chip, 0, sky.shape[1] // STRIPS, sky.shape[0])
    return [card for card in cards if card[:4] in ("CTYP", "CRVA", "CRPI", "CD1_", "CD2_")]


def four_chips(path, chips, names=True, **changes):
    hdus = [(empty_primary(**changes), None)]
    for chip in ORDER:
        data = chips[chip].astype(">f4")
        hdus.append(([*image_cards(data, chip if names else None), *chip_wcs_cards(chip, chips[chip])], data))
    return write(path, hdus)


def single_chip(path, chip, sky, **changes):
    data = sky.astype(">f4")
    cards = [*image_cards(data, primary=True), *chip_wcs_cards(chip, sky), *observation(**changes)]
    return write(path, [(cards, data)])


def level_one(path, chips, masks=None, sip=True, **changes):
    """Write SCI_M ... in electrons with TAN-SIP; ``masks`` adds MASK_M ... to the same file."""
    hdus = [(empty_primary(BUNIT="electron", **changes), None)]
    for chip in ORDER:
        data = chips[chip].astype(">f4")
        cards = [*image_cards(data, f"SCI_{chip}"), line("BUNIT", "electron"), line("CHIPID", chip)]
        wcs = chip_wcs_cards(chip, chips[chip])
        if sip:
            wcs[:2] = [line("CTYPE1", "RA---TAN-SIP"), line("CTYPE2", "DEC--TAN-SIP")]
            wcs += [line("A_ORDER", 2), line("B_ORDER", 2), line("A_2_0", 1e-6), line("B_0_2", -1e-6)]
        hdus.append((cards + wcs, data))
    for chip, mask in (masks or {}).items():
        hdus.append((image_cards(mask, f"MASK_{chip}"), mask))
    return write(path, hdus)


def mask_file(path, masks, **changes):
    hdus = [(empty_primary(**changes), None)]
    hdus += [(image_cards(mask, f"MASK_{chip}"), mask) for chip, mask in masks.items()]
    return write(path, hdus)


def raw_pair(path, chips, pair="MK", over=48, middle=84, **changes):
    """Write a pair of the new electronics: overscan towards the chip's middle, and in the middle rows."""
    rows, width = chips[pair[0]].shape[0], chips[pair[0]].shape[1] // STRIPS
    half = rows // 2
    frame = np.full((rows + 2 * middle, 2 * STRIPS * (width + over)), BIAS, np.float32)
    for side, chip in enumerate(pair):
        for k in range(STRIPS):
            left = (side * STRIPS + k) * (width + over) + (0 if k < STRIPS // 2 else over)
            strip = chips[chip][:, k * width : (k + 1) * width]
            frame[:half, left : left + width] = strip[:half]
            frame[half + 2 * middle :, left : left + width] = strip[half:]
    data = stored(frame)
    sizes = {"AMPNAX1": width + over, "AMPNAX2": half + middle, "IMAGEX": width, "IMAGEY": half}
    sizes |= {"PRESCNX": 0, "PRESCNY": 0, "OVRSCNX": over, "OVRSCNY": middle, "DETID": pair}
    gone = {"NAMPS": "absent", "UT": "absent", "PRESCANX": "absent", "OVERSCNX": "absent"}
    time = {"DATE-OBS": "2017-02-09T16:34:45.720", "INSTRUME": "KMTA 18k CCD"}
    cards = [*image_cards(data, primary=True), line("BSCALE", 1), line("BZERO", 32768)]
    cards += observation(**(sizes | gone | time | changes))
    return write(path, [(cards, data)])
