"""Synthetic pairs of images with known truth: stars, two epochs, what changed and what is broken.

Positions are science pixels, 0-based; a star's flux is in units that each epoch's ``throughput`` turns into
counts. Pixels integrate their PSF by 3x3 Gauss-Legendre points (exact to 1e-4 of the peak at FWHM 2.5 px).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from astropy.wcs import WCS

from ks4diff.products.chip import RawChip

NODES = np.array([-0.5, 0.0, 0.5]) * np.sqrt(0.6)
WEIGHTS = np.array([5.0, 8.0, 5.0]) / 18


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """An elliptical PSF: a Moffat, or a Gaussian without ``beta``; FWHM is the geometric mean of the axes."""

    fwhm: float
    beta: float | None = None
    ratio: float = 1.0  # minor over major axis
    angle_deg: float = 0.0  # of the major axis from x towards y

    def at(self, dx, dy):
        """Return the density per px² at offsets from the centre; its integral is 1."""
        c, s = np.cos(np.radians(self.angle_deg)), np.sin(np.radians(self.angle_deg))
        root = np.sqrt(self.ratio)
        r2 = ((c * dx + s * dy) * root) ** 2 + ((c * dy - s * dx) / root) ** 2
        if self.beta is None:
            k = 4 * np.log(2) / self.fwhm**2
            return k / np.pi * np.exp(-k * r2)
        alpha2 = self.fwhm**2 / (4 * (2 ** (1 / self.beta) - 1))
        return (self.beta - 1) / (np.pi * alpha2) * (1 + r2 / alpha2) ** -self.beta

    def pixels(self, dx, dy):
        """Return the fraction of light in the unit pixels at offsets (dx, dy), exact to quadrature."""
        total = 0.0
        for wy, ny in zip(WEIGHTS, NODES, strict=True):
            for wx, nx in zip(WEIGHTS, NODES, strict=True):
                total = total + wx * wy * self.at(dx + nx, dy + ny)
        return total

    def stamp(self, n, x=0.0, y=0.0):
        """Return the [n, n] stamp, n odd, of a star at (x, y) from the middle pixel."""
        offset = np.arange(n) - n // 2
        return self.pixels(offset[None, :] - x, offset[:, None] - y)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """How one image was taken; counts are sky + throughput * flux."""

    seeing: Seeing
    throughput: float = 1.0
    gain: float = 1.5  # electrons per count
    sky: float = 400.0  # counts per pixel
    read_noise: float = 6.0  # electrons

    @property
    def sky_sigma(self):
        """Noise of a source-free pixel, counts."""
        return float(np.sqrt(self.sky / self.gain + (self.read_noise / self.gain) ** 2))


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a science pixel lies in the template: a similarity and a bend quadratic in the distance."""

    scale: float = 1.008
    rotation_deg: float = -0.7
    shift: tuple[float, float] = (31.4, 27.7)
    bend: float = 8e-7  # px per px²
    about: tuple[float, float] = (150.0, 170.0)  # where the bend is 0

    @property
    def matrix(self):
        c, s = np.cos(np.radians(self.rotation_deg)), np.sin(np.radians(self.rotation_deg))
        return self.scale * np.array([[c, -s], [s, c]])

    def template(self, x, y):
        """Return float64 [2, n]: template pixels of science pixels."""
        dx, dy = np.asarray(x) - self.about[0], np.asarray(y) - self.about[1]
        bent = np.stack([self.bend * (dx**2 + 0.5 * dx * dy), self.bend * (dy**2 - 0.4 * dx**2)])
        straight = self.matrix @ np.stack([np.asarray(x, float), np.asarray(y, float)])
        return straight + np.array(self.shift)[:, None] + bent


@dataclass(frozen=True, kw_only=True)
class Stars:
    """Positions in science pixels, and fluxes."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray

    def __add__(self, other):
        return Stars(**{n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("x", "y", "flux")})


NO_STARS = Stars(x=np.empty(0), y=np.empty(0), flux=np.empty(0))
SHARP = Epoch(seeing=Seeing(fwhm=3.1, beta=3.4), throughput=1.7, gain=1.9, sky=250.0, read_noise=7.0)
BLURRED = Epoch(seeing=Seeing(fwhm=4.3, ratio=0.85, angle_deg=35), throughput=0.8, gain=1.4, sky=420.0)


def star_field(seed, shape, n, *, faintest=600.0, brightest=3e5, slope=0.8, margin=160):
    """Return n stars with N(> flux) ~ flux^-slope, strewn over the image and ``margin`` px around it."""
    rng = np.random.default_rng(seed)
    low, high = faintest**-slope, brightest**-slope
    flux = (low + rng.random(n) * (high - low)) ** (-1 / slope)
    return Stars(
        x=rng.uniform(-margin, shape[1] + margin, n), y=rng.uniform(-margin, shape[0] + margin, n), flux=flux
    )


def draw(shape, x, y, counts, seeing, radius=8.0):
    """Return float64 [y, x]: stars of the given counts, each out to ``radius`` FWHM."""
    half = int(np.ceil(radius * seeing.fwhm))
    rows, columns = shape
    image = np.zeros((rows + 2 * half + 1, columns + 2 * half + 1))
    offset = np.arange(-half, half + 1)
    for a, b, c in zip(x, y, counts, strict=True):
        i, j = round(a), round(b)
        if not (-half <= i <= columns + half and -half <= j <= rows + half):
            continue
        light = c * seeing.pixels(offset[None, :] - (a - i), offset[:, None] - (b - j))
        top, left = j, i  # of the padded image: half less than the centre's row there
        keep_y = slice(max(0, -top), min(2 * half + 1, image.shape[0] - top))
        keep_x = slice(max(0, -left), min(2 * half + 1, image.shape[1] - left))
        image[max(top, 0) : top + 2 * half + 1, max(left, 0) : left + 2 * half + 1] += light[keep_y, keep_x]
    return image[half : half + rows, half : half + columns]


def expose(shape, x, y, flux, epoch, seed):
    """Return float32 counts of stars at pixels (x, y): Poisson and read noise, sky included."""
    rng = np.random.default_rng(seed)
    clean = epoch.sky + draw(shape, x, y, epoch.throughput * np.asarray(flux), epoch.seeing)
    electrons = rng.poisson(np.maximum(clean, 0) * epoch.gain) + rng.normal(0, epoch.read_noise, shape)
    return (electrons / epoch.gain).astype(np.float32)


def raw_chip(data, epoch=None, **facts):
    """Return a RawChip of counts; gain and read noise are the epoch's unless ``facts`` says otherwise."""
    known = {} if epoch is None else {"gain": epoch.gain, "read_noise": epoch.read_noise}
    return RawChip(**{"data": data, "file": "made/sky.fits", "hdu": "0", **known, **facts})


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two epochs of one field with their truth."""

    science: RawChip
    template: RawChip
    stars: Stars
    new: Stars  # in the science image only
    gone: Stars  # in the template only
    geometry: Geometry
    epochs: tuple[Epoch, Epoch]

    @property
    def flux_scale(self):
        """Science counts per template count of surface brightness: pixel areas count."""
        first, second = self.epochs
        return first.throughput / second.throughput * self.geometry.scale**2

    def science_counts(self, stars):
        return self.epochs[0].throughput * stars.flux


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a pair shows; `make` exposes it."""

    shape: tuple[int, int] = (310, 350)
    template_shape: tuple[int, int] = (372, 410)
    n_stars: int = 900
    stars: Stars | None = None  # instead of n_stars random ones
    new: Stars = NO_STARS
    gone: Stars = NO_STARS
    geometry: Geometry = field(default_factory=Geometry)
    epochs: tuple[Epoch, Epoch] = (BLURRED, SHARP)

    def make(self, seed, **facts):
        """Return the Pair of this scene; equal seeds give equal pixels."""
        stars = star_field(seed, self.shape, self.n_stars) if self.stars is None else self.stars
        both = (stars + self.new, stars + self.gone)
        places = ((both[0].x, both[0].y), self.geometry.template(both[1].x, both[1].y))
        images = [
            expose(shape, *place, seen.flux, epoch, [seed, k])
            for k, (shape, place, seen, epoch) in enumerate(
                zip((self.shape, self.template_shape), places, both, self.epochs, strict=True)
            )
        ]
        return Pair(
            science=raw_chip(images[0], self.epochs[0], file="made/new.fits", **facts),
            template=raw_chip(images[1], self.epochs[1], file="made/old.fits"),
            stars=stars,
            new=self.new,
            gone=self.gone,
            geometry=self.geometry,
            epochs=self.epochs,
        )


def apart(seed, shape, n, stars, *, distance=14.0, margin=24):
    """Return n random positions [2, n], ``distance`` px from each other and from every star given."""
    rng = np.random.default_rng(seed)
    taken = np.stack([stars.x, stars.y])
    found = []
    while len(found) < n:
        spot = rng.uniform([margin, margin], [shape[1] - margin, shape[0] - margin])
        if np.hypot(*(taken - spot[:, None])).min(initial=np.inf) > distance:
            found.append(spot)
            taken = np.concatenate([taken, spot[:, None]], axis=1)
    return np.array(found).T


def bleed(data, x, y, level, *, radius=6, length=70):
    """Return a copy with a saturated star at (x, y): a full disc and a column of ``length`` px each way."""
    data = data.copy()
    rows, columns = np.mgrid[: data.shape[0], : data.shape[1]]
    data[np.hypot(columns - x, rows - y) <= radius] = level
    column = data[max(y - length, 0) : y + length + 1, x]
    np.maximum(column, level, out=column)
    return data


def sky_wcs(geometry=None, *, pixel=0.4, at=(268.3, -29.1), corner=(-411.0, 233.0)):
    """Return a TAN WCS of the science image, or with a ``geometry`` of its template, without the bend."""
    matrix = np.array([[-pixel, 0.0], [0.0, pixel]]) / 3600
    reference = np.array(corner)
    if geometry is not None:
        matrix = matrix @ np.linalg.inv(geometry.matrix)
        reference = geometry.matrix @ reference + np.array(geometry.shift)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = at
    wcs.wcs.crpix = reference + 1
    wcs.wcs.cd = matrix
    wcs.wcs.set()
    return wcs
