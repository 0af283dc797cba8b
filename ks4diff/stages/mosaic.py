"""Put the parts of several reference tiles on one grid, and make the template of a chip of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area

from ks4diff.numerics.lanczos import node_grid, noise_covariance, resample
from ks4diff.products.cells import Cells
from ks4diff.products.chip import CalibratedChip, RawChip, StarList
from ks4diff.products.image import MaskedImage, PixelFlag
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.products.template import PixelBox, TilePart
from ks4diff.stages.align import resampled_noise

MARGIN_PIX = 8  # taps of the resampling kernel, and a pixel for each rounding


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The rectangle of a part that another tile may fill: its box there and the bad pixels in it."""

    box: PixelBox
    wanted: np.ndarray  # bool [y, x]


def missing(part: TilePart) -> Patch | None:
    """Return the rectangle around the pixels without data, or None when all have some."""
    wanted = (part.image.flags & int(PixelFlag.NO_DATA | PixelFlag.NON_FINITE)) != 0
    rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
    if not len(rows):
        return None
    box = PixelBox(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Patch(box=box, wanted=wanted[box.y0 : box.y1, box.x0 : box.x1])


def positions_in(patch: Patch, part: TilePart, wcs: WCS) -> np.ndarray:
    """Return float64 [2, rows, columns]: pixels of another tile's grid at the nodes of a patch.

    See `ks4diff.numerics.lanczos.resample`; pixels without a place there are NaN.
    """
    x, y = node_grid(patch.box.shape)
    sky = part.wcs.all_pix2world(x.ravel() + patch.box.x0, y.ravel() + patch.box.y0, 0)
    return np.array(wcs.all_world2pix(*sky, 0, quiet=True)).reshape(2, *x.shape)


def fill_from(part: TilePart, patch: Patch, nodes: np.ndarray, other: TilePart) -> TilePart:
    """Return the part with the bad pixels of a patch taken from another tile, where that has good ones.

    The other tile is resampled by Lanczos-4 and scaled to the part's zero point. The variance of filled
    pixels is the other tile's with what resampling does to its correlated noise; the noise model of the
    result is the mean of both, weighted by their pixels. ``nodes`` are pixels of ``other``.
    """
    area = proj_plane_pixel_area(part.wcs.celestial) / proj_plane_pixel_area(other.wcs.celestial)
    scale = area * 10 ** (0.4 * (part.zeropoint - other.zeropoint))
    data, raised = resample(other.image.data, other.image.flags, nodes, patch.box.shape)
    usable = patch.wanted & (raised == 0)
    if not usable.any():
        return part
    noise = resampled_noise(other.noise, noise_covariance(nodes[:, :-1, :-1]))
    where = (slice(patch.box.y0, patch.box.y1), slice(patch.box.x0, patch.box.x1))
    image = MaskedImage(
        data=part.image.data.copy(),
        flags=part.image.flags.copy(),
        sky_variance=_mixed_variance(part, patch, usable, (noise.sigma * scale) ** 2),
    )
    image.data[where][usable] = data[usable] * np.float32(scale)
    image.flags[where][usable] = 0
    saturated = patch.wanted & ((raised & int(PixelFlag.SATURATED)) != 0)
    image.flags[where][saturated] = PixelFlag.SATURATED
    good = max(int(np.count_nonzero(image.flags == 0)), 1)
    share = float(usable.sum()) / good
    return replace(
        part,
        image=image,
        noise=_mixed(part.noise, noise, share, scale),
        stars=_with_filled_stars(part, patch, usable, other, scale / area),
        tile_ids=(*part.tile_ids, *other.tile_ids),
        filled=part.filled + share,
    )


def _mixed_variance(part: TilePart, patch: Patch, usable: np.ndarray, variance: float) -> Cells:
    """Return the part's sky variance with the cells mostly filled from another tile taking that one's."""
    cells = part.image.sky_variance
    filled = np.zeros(part.image.shape, dtype=bool)
    filled[patch.box.y0 : patch.box.y1, patch.box.x0 : patch.box.x1] = usable
    values = cells.values.copy()
    for j, i, rows, columns in cells.boxes():
        share = filled[rows, columns].mean()
        if share > 0:
            values[j, i] = variance if share > 0.5 else max(values[j, i], 0.0)
    return Cells(values=values, shape=cells.shape)


def _mixed(first: NoiseModel, second: NoiseModel, share: float, scale: float) -> NoiseModel:
    """Return the noise of pixels of which ``share`` have the second model, times ``scale``."""
    n = max(len(first.correlation), len(second.correlation))
    covariance = sum(
        weight * (model.sigma * factor) ** 2 * np.pad(model.correlation, (n - len(model.correlation)) // 2)
        for model, weight, factor in ((first, 1 - share, 1.0), (second, share, scale))
    )
    variance = float(covariance[n // 2, n // 2])
    return replace(first, sigma=variance**0.5, correlation=covariance / variance)


def _with_filled_stars(
    part: TilePart, patch: Patch, usable: np.ndarray, other: TilePart, flux: float
) -> StarList:
    """Return the part's stars and those of the other tile that fall on filled pixels, brightest first."""
    sky = other.wcs.all_pix2world(other.stars.x, other.stars.y, 0)
    x, y = part.wcs.all_world2pix(*sky, 0, quiet=True)
    i, j = np.rint(x).astype(int) - patch.box.x0, np.rint(y).astype(int) - patch.box.y0
    inside = (i >= 0) & (j >= 0) & (i < usable.shape[1]) & (j < usable.shape[0])
    inside[inside] = usable[j[inside], i[inside]]
    columns = {
        "x": (part.stars.x, x[inside]),
        "y": (part.stars.y, y[inside]),
        "flux": (part.stars.flux, other.stars.flux[inside] * flux),
        "fwhm": (part.stars.fwhm, other.stars.fwhm[inside]),
        "clean": (part.stars.clean, other.stars.clean[inside]),
    }
    joined = {name: np.concatenate(pair) for name, pair in columns.items()}
    order = np.argsort(-joined["flux"], kind="stable")
    return StarList(**{name: values[order] for name, values in joined.items()})


def as_template(part: TilePart) -> CalibratedChip:
    """Return a part as the template of a chip, with what its store measured: nothing is measured again."""
    fwhm = part.fwhm_pix or 3.0
    half = int(np.ceil(2 * fwhm))
    offset = np.arange(-half, half + 1)
    stamp = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) * 4 * np.log(2) / fwhm**2)
    psf = Psf(stamp=(stamp / stamp.sum()).astype(np.float32), fwhm_pix=fwhm, n_stars=0)
    known = part.gain is not None
    return CalibratedChip(
        raw=RawChip(
            data=np.empty((0, 0), dtype=np.float32),
            file="+".join(part.tile_ids),
            hdu="0",
            wcs=part.wcs,
            gain=part.gain,
            saturation=part.saturation,
            zeropoint=part.zeropoint,
            filter=part.band,
        ),
        image=part.image,
        sky=None,
        stars=part.stars,
        psf=PsfField.uniform(psf, part.image.shape),
        noise=part.noise,
        gain=part.gain or 1.0,
        gain_source="from the stack's zero point and exposure time" if known else "assumed: 1",
    )
