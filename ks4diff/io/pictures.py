"""PNG pictures a person can judge: the triplet of one candidate, and an overview of one subtraction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ks4diff.io.atomic import atomic_path

_TRIPLET_PANEL = 252  # screen pixels a side, at least: four per pixel of a 63-pixel stamp
_PAPER = (24, 24, 28)
_INK = (225, 225, 225)
_MARKER = (235, 125, 0)  # orange and violet show on black sky and on white zero alike
_NO_DATA = (52, 96, 84)  # a dull green that neither grey nor red-blue panels contain
_REJECTED = (150, 100, 230)
_GAP = 8


def write_triplet(
    path: str | os.PathLike[str],
    cutouts: np.ndarray,
    *,
    caption: str = "",
    labels: Sequence[str] = ("science", "template", "difference"),
    noise: float | None = None,
) -> None:
    """Write a candidate's science, template and difference stamps side by side as a PNG, y upwards.

    Science and template share one asinh stretch from just below their background to the
    99.7th percentile of the brighter one. The difference is blue below zero, red above, symmetric: linear
    within three noise and logarithmic beyond, so that both the noise and a bright source show. Pixels
    without data are green. Ticks point at the centre without covering it.

    Parameters
    ----------
    path
        The PNG; replaced whole.
    cutouts
        [3, k, k], NaN where there are no data.
    caption
        One line below, for instance position, score and rb.
    labels
        A title above each panel.
    noise
        Standard deviation of one difference pixel; estimated from the stamp when None.

    Raises
    ------
    ValueError
        When ``cutouts`` has another shape.

    """
    if cutouts.ndim != 3 or cutouts.shape[0] != 3:
        raise ValueError(f"cutouts have shape {cutouts.shape}, not [3, k, k]")
    zoom = max(1, -(-_TRIPLET_PANEL // cutouts.shape[2]))
    science, template, difference = (np.asarray(stamp, dtype=np.float64) for stamp in cutouts)
    low, high, soft = _sky_stretch([science, template])
    panels = [
        _grey(science, low, high, soft),
        _grey(template, low, high, soft),
        _diverging(difference, noise, peak=_central_peak(difference)),
    ]
    pictures = [_upscaled(panel, zoom) for panel in panels]
    for picture in pictures:
        _draw_ticks(picture, zoom)
    _save(path, _sheet(pictures, labels, caption))


def write_overview(
    path: str | os.PathLike[str],
    *,
    science: np.ndarray,
    difference: np.ndarray,
    score: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    accepted: np.ndarray,
    caption: str = "",
) -> None:
    """Write the whole science, difference and S_corr images side by side, candidates circled, as a PNG.

    Large images are shrunk by an integer: science and difference by block means, S_corr by the value
    of largest modulus in each block, so that no peak is diluted. y is upwards, pixels without data are
    green. Candidates that become alerts have a thick orange circle, others a thin violet one.

    Parameters
    ----------
    path
        The PNG; replaced whole.
    science, difference, score
        [y, x] of one shape, NaN where masked.
    x, y
        0-based pixels of the candidates.
    accepted
        Which of them become alerts, bool.
    caption
        One line below.

    Raises
    ------
    ValueError
        When the three images differ in shape.

    """
    if not science.shape == difference.shape == score.shape:
        raise ValueError(f"images of different shapes {science.shape}, {difference.shape}, {score.shape}")
    longest = max(science.shape)
    block = max(1, round(longest / 560))
    zoom = max(1, 400 * block // longest)
    small = _shrunk(science, block, extreme=False)
    panels = [
        _grey(small, *_sky_stretch([small])),
        _diverging(_shrunk(difference, block, extreme=False), None, peak=0.0),
        # Twice the unit noise: the extreme of 256 blank pixels is near 3, and full colour starts at 20.
        _diverging(_shrunk(score, block, extreme=True), 2.0, peak=0.0),
    ]
    pictures = [_upscaled(panel, zoom) for panel in panels]
    scale = zoom / block
    for picture in pictures:
        draw = ImageDraw.Draw(picture)
        for column, row, good in zip(x, y, accepted, strict=True):
            centre = ((column + 0.5) * scale, picture.height - (row + 0.5) * scale)
            colour, width = (_MARKER, 2) if good else (_REJECTED, 1)
            draw.circle(centre, 9 if good else 6, outline=colour, width=width)
    _save(path, _sheet(pictures, ("science", "difference", "S_corr"), caption))


def _sky_stretch(images: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return (black, white, softening) of an asinh stretch that suits all ``images``."""
    finite = [image[np.isfinite(image)] for image in images]
    finite = [values for values in finite if values.size]
    if not finite:
        return 0.0, 1.0, 1.0
    # Half of a crowded stamp is stars: the lower quartile side of the histogram still is sky. The noisier
    # image sets the scale, or its noise would fill the panel with black and white.
    quartiles = [np.percentile(values, [25, 50]) for values in finite]
    median = np.median(np.concatenate(finite))
    sigma = max((middle - quarter) / 0.6745 for quarter, middle in quartiles)
    sigma = max(sigma, 1e-6 * (1.0 + abs(median)))
    low = median - 2.5 * sigma
    high = max(max(np.percentile(values, 99.7) for values in finite), median + 5.0 * sigma)
    return float(low), float(high), float(3.0 * sigma)


def _central_peak(stamp: np.ndarray) -> float:
    """Return the largest modulus within two pixels of the centre, 0 when nothing is finite there."""
    middle = stamp.shape[0] // 2
    centre = np.abs(stamp[max(0, middle - 2) : middle + 3, max(0, middle - 2) : middle + 3])
    return float(centre[np.isfinite(centre)].max(initial=0.0))


def _grey(image: np.ndarray, low: float, high: float, soft: float) -> np.ndarray:
    """Return uint8 [y, x, 3]: asinh from ``low`` (black) to ``high`` (white), linear within ``soft``."""
    level = np.arcsinh((image - low) / soft) / np.arcsinh((high - low) / soft)
    shade = np.clip(np.nan_to_num(level, nan=0.0), 0.0, 1.0) * 255.0
    picture = np.repeat(shade.astype(np.uint8)[..., None], 3, axis=2)
    picture[~np.isfinite(image)] = _NO_DATA
    return picture


def _diverging(image: np.ndarray, noise: float | None, peak: float) -> np.ndarray:
    """Return uint8 [y, x, 3]: white at zero, red above and blue below.

    Full colour at ``peak`` or ten noise, whichever is larger.
    """
    finite = image[np.isfinite(image)]
    if noise is None or not noise > 0:
        spread = np.median(np.abs(finite - np.median(finite))) / 0.6745 if finite.size else 0.0
        noise = float(spread) or 1.0
    limit = max(peak, 10.0 * noise)
    level = np.arcsinh(np.nan_to_num(image, nan=0.0) / (3.0 * noise)) / np.arcsinh(limit / (3.0 * noise))
    level = np.clip(level, -1.0, 1.0)[..., None]
    zero, red, blue = (np.array(c, dtype=np.float64) for c in ((238, 238, 238), (168, 0, 22), (8, 48, 150)))
    colour = np.where(level > 0, zero + (red - zero) * level, zero + (blue - zero) * -level)
    picture = colour.astype(np.uint8)
    picture[~np.isfinite(image)] = _NO_DATA
    return picture


def _shrunk(image: np.ndarray, block: int, *, extreme: bool) -> np.ndarray:
    """Return ``image`` with each block x block square reduced to its mean or its value of largest modulus.

    NaN pixels do not count; a square without any other is NaN. Rows and columns beyond the last whole
    square are left out.
    """
    if block == 1:
        return np.asarray(image, dtype=np.float64)
    rows, columns = image.shape[0] // block, image.shape[1] // block
    small = np.empty((rows, columns))
    for row in range(rows):  # a band at a time: no second copy of a whole chip
        band = image[row * block : (row + 1) * block, : columns * block].reshape(block, columns, block)
        good = np.isfinite(band)
        count = good.sum(axis=(0, 2))
        if extreme:
            top = np.where(good, band, -np.inf).max(axis=(0, 2))
            bottom = np.where(good, band, np.inf).min(axis=(0, 2))
            value = np.where(top >= -bottom, top, bottom)
        else:
            value = np.where(good, band, 0.0).sum(axis=(0, 2)) / np.maximum(count, 1)
        small[row] = np.where(count > 0, value, np.nan)
    return small


def _upscaled(panel: np.ndarray, zoom: int) -> Image.Image:
    """Return the panel with row 0 at the bottom, each pixel a square of ``zoom`` pixels."""
    flipped = np.ascontiguousarray(panel[::-1])
    return Image.fromarray(flipped.repeat(zoom, axis=0).repeat(zoom, axis=1))


def _draw_ticks(picture: Image.Image, zoom: int) -> None:
    """Draw two ticks, right of and above the centre, six pixels of the stamp away from it."""
    draw = ImageDraw.Draw(picture)
    x, y = picture.width // 2, picture.height // 2
    near, far = 6 * zoom, 11 * zoom
    draw.line((x + near, y, x + far, y), fill=_MARKER, width=2)
    draw.line((x, y - near, x, y - far), fill=_MARKER, width=2)


def _sheet(pictures: Sequence[Image.Image], labels: Sequence[str], caption: str) -> Image.Image:
    """Return the panels in a row, a title above each and the caption below."""
    font = ImageFont.load_default(15)
    top = bottom = 24
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) + 1)
    sheet = Image.new("RGB", (width, pictures[0].height + top + bottom), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for picture, label in zip(pictures, labels, strict=True):
        draw.text((left, top // 2), label, fill=_INK, font=font, anchor="lm")
        sheet.paste(picture, (left, top))
        left += picture.width + _GAP
    size = 15
    while size > 8 and draw.textlength(caption, font=font) > width - 2 * _GAP:
        size -= 1
        font = ImageFont.load_default(size)
    draw.text((_GAP, sheet.height - bottom // 2), caption, fill=_INK, font=font, anchor="lm")
    return sheet


def _save(path: str | os.PathLike[str], sheet: Image.Image) -> None:
    with atomic_path(Path(path)) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
