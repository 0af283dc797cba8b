"""Where each chip looks: true distortion, pointing with its error, and the header's naive WCS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import fit_wcs_from_points

from ks4diff.stages.sim.config import SimulateConfig

FULL_SIZE = (9216, 9232)  # columns, rows of a CCD290-99
# header CRPIX of the trimmed chip, and the chip's corner in DETSEC (facts/kmtnet.md section 4)
HEADER_CRPIX = {"M": (9445, -466), "K": (-231, -466), "N": (9445, 9698), "T": (-231, 9698)}
HEADER_CD_DEG = 0.000111222222222222  # 0.4004"; the truth is 0.395"
DITHERS_ARCMIN = ((0.0, 0.0), (4.0, 0.0), (0.0, 7.0), (4.0, 7.0))  # east, north (section 2)
STRETCH = 16.0  # pixels between exact coordinates when an image is resampled


class Distortion(NamedTuple):
    """A real chip's TPV solution: CRPIX (1-based), CD [2, 2] in degrees per pixel, PV1_n and PV2_n by n."""

    crpix: tuple[float, float]
    cd: np.ndarray
    pv: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Pointing:
    """Where the telescope says that it looks, where it does, and how the camera is turned; degrees."""

    claimed: tuple[float, float]
    true: tuple[float, float]
    rotation_deg: float


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A rectangle of one real chip: its corner (0-based) and size, pixels."""

    chip: str
    x0: int
    y0: int
    columns: int
    rows: int


def field_centre(name: str) -> tuple[float, float]:
    """Return (ra, dec) degrees of a tile's name FFFF.RRR-DD, such as 1354.115-38."""
    try:
        place = name.split(".", 1)[1]
        ra, dec = float(place[:3]), float(place[3:])
    except (IndexError, ValueError):
        raise ValueError(f"a field is named FFFF.RRR-DD, not {name!r}") from None
    if not (0 <= ra <= 360 and -90 < dec < 90):
        raise ValueError(f"field {name!r} is not on the sky")
    return ra, dec


def shifted(centre: tuple[float, float], east_deg: float, north_deg: float) -> tuple[float, float]:
    """Return the position that far on a tangent plane at ``centre``."""
    plane = tangent_plane(centre, 1.0)
    ra, dec = plane.wcs_pix2world([[-east_deg, north_deg]], 0)[0]
    return float(ra), float(dec)


def tangent_plane(
    centre: tuple[float, float], step_deg: float, middle: tuple[float, float] = (0.0, 0.0)
) -> WCS:
    """Return a TAN WCS, north up and east left, with ``centre`` at the 0-based pixel ``middle``."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = centre
    wcs.wcs.crpix = (middle[0] + 1, middle[1] + 1)
    wcs.wcs.cd = [[-step_deg, 0.0], [0.0, step_deg]]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def patch_of(config: SimulateConfig, chip: str) -> Patch:
    """Return the part of the real chip that the configuration cuts out."""
    corner = [
        (full - size) // 2 if at < 0 else min(at, full - size)
        for at, full, size in zip(config.offset, FULL_SIZE, config.size, strict=True)
    ]
    return Patch(chip=chip, x0=corner[0], y0=corner[1], columns=config.size[0], rows=config.size[1])


def pointing(config: SimulateConfig, centre: tuple[float, float], dither: int, key: list[int]) -> Pointing:
    """Return one exposure's pointing, drawn from ``key``."""
    rng = np.random.default_rng([config.seed, 11, *key])
    east, north = DITHERS_ARCMIN[dither % 4] if config.dither else (0.0, 0.0)
    claimed = shifted(centre, east / 60, north / 60)
    low, high = config.optics.pointing_error_arcsec
    error, angle = rng.uniform(low, high) / 3600, rng.uniform(0, 2 * np.pi)
    return Pointing(
        claimed=claimed,
        true=shifted(claimed, error * np.cos(angle), error * np.sin(angle)),
        rotation_deg=float(rng.normal(0, config.optics.rotation_deg)),
    )


def true_wcs(distortion: Distortion, at: Pointing, patch: Patch) -> WCS:
    """Return the patch's true TPV WCS."""
    cards = tpv_cards(distortion, at, patch)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [cards["CTYPE1"], cards["CTYPE2"]]
    wcs.wcs.crval = [cards["CRVAL1"], cards["CRVAL2"]]
    wcs.wcs.crpix = [cards["CRPIX1"], cards["CRPIX2"]]
    wcs.wcs.cd = [[cards["CD1_1"], cards["CD1_2"]], [cards["CD2_1"], cards["CD2_2"]]]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set_pv([(axis, k, v) for axis in (1, 2) for k, v in enumerate(distortion.pv[axis - 1])])
    wcs.wcs.set()
    return wcs


def tpv_cards(distortion: Distortion, at: Pointing, patch: Patch) -> dict[str, str | float]:
    """Return the cards of `true_wcs`: a WCS object forgets its TPV terms once it is set up."""
    turn = np.radians(at.rotation_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    cards: dict[str, str | float] = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"}
    corner = (patch.x0, patch.y0)
    for i in (0, 1):
        cards[f"CUNIT{i + 1}"] = "deg"
        cards[f"CRVAL{i + 1}"] = float(at.true[i])
        cards[f"CRPIX{i + 1}"] = float(distortion.crpix[i] - corner[i])
        for j in (0, 1):
            cards[f"CD{i + 1}_{j + 1}"] = float((rotation @ distortion.cd)[i, j])
        cards |= {f"PV{i + 1}_{k}": float(v) for k, v in enumerate(distortion.pv[i])}
    return cards


def header_wcs(at: Pointing, patch: Patch) -> WCS:
    """Return what the file's header says: plain TAN about the claimed pointing."""
    crpix = HEADER_CRPIX[patch.chip]
    wcs = tangent_plane(at.claimed, HEADER_CD_DEG)
    wcs.wcs.crpix = (crpix[0] - patch.x0, crpix[1] - patch.y0)
    wcs.wcs.set()
    return wcs


def sip_wcs(true: WCS, columns: int, rows: int) -> WCS:
    """Return the TAN-SIP of third order that fits the true WCS best, as an astrometric solver would."""
    gx, gy = np.meshgrid(np.linspace(0, columns - 1, 15), np.linspace(0, rows - 1, 15))
    ra, dec = true.all_pix2world(gx.ravel(), gy.ravel(), 0)
    sky = SkyCoord(ra, dec, unit="deg")
    wcs = fit_wcs_from_points((gx.ravel(), gy.ravel()), sky, proj_point="center", sip_degree=3)
    wcs.wcs.radesys = "ICRS"
    return wcs


def outline(wcs: WCS, columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (ra, dec) of points along the border of an image."""
    t = np.linspace(0, 1, 9)
    x = np.concatenate([t, t, 0 * t, 0 * t + 1]) * (columns - 1)
    y = np.concatenate([0 * t, 0 * t + 1, t, t]) * (rows - 1)
    ra, dec = wcs.all_pix2world(x, y, 0)
    return ra, dec


def pixels(wcs: WCS, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 0-based (x, y) rounded to 1e-6 pixel, so that they are the same on every machine."""
    if len(ra) == 0:
        return np.empty(0), np.empty(0)
    x, y = wcs.wcs_world2pix(ra, dec, 0)
    return np.round(x, 6), np.round(y, 6)


def template_nodes(tile: WCS, image: WCS, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Return float64 [2, rows, columns]: image pixels every `STRETCH` tile pixels from ``corner`` on."""
    step = int(STRETCH)
    ys, xs = (np.arange(0, n + 2 * step, step, dtype=float) for n in shape)
    gx, gy = np.meshgrid(xs + corner[0], ys + corner[1])
    ra, dec = tile.wcs_pix2world(gx.ravel(), gy.ravel(), 0)
    return np.stack([a.reshape(gx.shape) for a in pixels(image, ra, dec)])


def pixel_area_arcsec2(wcs: WCS, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the sky area of pixels at (x, y), square arcseconds."""
    ra, dec = wcs.all_pix2world(x, y, 0)
    ra_x, dec_x = wcs.all_pix2world(x + 1, y, 0)
    ra_y, dec_y = wcs.all_pix2world(x, y + 1, 0)
    cos = np.cos(np.radians(dec))

    def step(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a - b + 180) % 360 - 180) * cos

    determinant = step(ra_x, ra) * (dec_y - dec) - step(ra_y, ra) * (dec_x - dec)
    return np.abs(determinant) * 3600.0**2
