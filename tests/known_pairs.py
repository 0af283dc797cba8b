"""Registered pairs of which everything is known: what `subtract` makes of perfect input."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage
from scipy.signal import convolve2d

from ks4diff.numerics.lanczos import node_grid, resample
from ks4diff.numerics.lanczos_noise import noise_covariance
from ks4diff.numerics.noise import bilinear_covariance
from ks4diff.products.cells import Cells
from ks4diff.products.chip import AlignedTemplate, CalibratedChip, RawChip, StarList
from ks4diff.products.difference import Match
from ks4diff.products.image import MaskedImage
from ks4diff.products.noise import NoiseModel
from ks4diff.products.psf import Psf, PsfField
from ks4diff.products.registration import Registration
from ks4diff.stages.subtract import subtract
from ks4diff.stages.subtract_patch import SubtractConfig

WHITE = np.ones((1, 1))
NO_LIST = StarList(**{n: np.empty(0) for n in ("x", "y", "flux", "fwhm")}, clean=np.empty(0, dtype=bool))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One image: counts = sky + light, ``gain`` e-/count, read noise in e-; PSF [n, n] or field."""

    psf: np.ndarray | PsfField
    gain: float = 1.5
    sky: float = 400.0  # counts
    read_noise: float = 7.0
    sky_ramp: float = 0.0  # the sky's relative change from the left border to the right

    def sky_at(self, shape):
        return self.sky * (1 + self.sky_ramp * (np.arange(shape[1]) / shape[1] - 0.5))[None, :]

    def variance(self, shape):
        """Return counts² of source-free pixels, [1, columns]."""
        return self.sky_at(shape) / self.gain + (self.read_noise / self.gain) ** 2

    def shown(self, shape, light, rng):
        """Return float64 counts, sky subtracted, of one exposure."""
        electrons = np.maximum(np.broadcast_to(light + self.sky_at(shape), shape), 0) * self.gain
        counts = (rng.poisson(electrons) + rng.normal(0, self.read_noise, shape)) / self.gain
        return counts - self.sky_at(shape)


def fwhm_of(stamp):
    return 2.3548 / np.sqrt(4 * np.pi * (np.asarray(stamp, float) ** 2).sum())


def field_of(psf, shape, error=0.0):
    if isinstance(psf, PsfField):
        return psf
    return PsfField.uniform(
        Psf(stamp=np.asarray(psf, np.float32), fwhm_pix=float(fwhm_of(psf)), n_stars=50), shape, error=error
    )


def image_of(data, side, flags=None, part=1.0):
    shape = data.shape
    cells = np.broadcast_to(
        side.variance(shape)[:, ::8].reshape(1, -1, 1).mean(axis=2), (1, -(-shape[1] // 8))
    )
    if side.sky_ramp == 0:
        cells = cells[:, :1]
    return MaskedImage(
        data=data.astype(np.float32),
        flags=np.zeros(shape, np.uint16) if flags is None else flags.astype(np.uint16),
        sky_variance=Cells(values=(part * cells).astype(np.float32), shape=shape),
    )


@dataclass(frozen=True, kw_only=True)
class Known:
    """A pair ready for `subtract`."""

    chip: CalibratedChip
    template: AlignedTemplate
    match: Match
    registration: Registration

    @property
    def inputs(self):
        return self.chip, self.template, self.match, self.registration


def noise_of(side, shape, correlation=WHITE):
    return NoiseModel(
        sigma=float(np.sqrt(side.variance(shape).mean())), correlation=correlation, method="sky"
    )


def registration_of(shape, error=0.0):
    return Registration(
        coefficients=np.zeros((2, 3)),
        degree=1,
        centre=(0.0, 0.0),
        scale=1.0,
        n_matched=50,
        rms_pix=error,
        method="identity",
        pairs=np.zeros((2, 0), np.int64),
        n_stars=Cells.constant(50.0, shape),
        residual_rms=Cells.constant(error, shape),
        error=Cells.constant(error, shape),
        bad=Cells.constant(0.0, shape),
    )


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """How well things are known: of PSFs, of the flux scale (fractions), of the registration (px)."""

    psf: float = 0.0
    scale: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Two sides, their flux scale, and how their noise is correlated."""

    science: Side
    template: Side
    scale: float = 1.0  # science counts per template count
    correlations: tuple = (WHITE, WHITE)
    variances: tuple = (1.0, 1.0)  # of a pixel, relative to `Side.variance`: what resampling left
    doubt: Doubt = field(default_factory=Doubt)

    def known(self, science, template, flags=(None, None)):
        """Return the pair of these images (sky subtracted), everything known."""
        shape = science.shape
        parts = []
        for data, side, raised, colour, part in zip(
            (science, template),
            (self.science, self.template),
            flags,
            self.correlations,
            self.variances,
            strict=True,
        ):
            noise = noise_of(side, shape, colour)
            noise = replace(noise, sigma=noise.sigma * np.sqrt(part))
            parts.append(
                (
                    image_of(data, side, raised, part),
                    field_of(side.psf, shape, self.doubt.psf),
                    noise,
                    side.gain,
                )
            )
        (image, psf, noise, gain), other = parts
        chip = CalibratedChip(
            raw=RawChip(data=np.empty((0, 0), np.float32), file="known", hdu="0"),
            image=image,
            sky=None,
            stars=NO_LIST,
            psf=psf,
            noise=noise,
            gain=gain,
            gain_source="given",
        )
        aligned = AlignedTemplate(
            image=other[0],
            psf=other[1],
            noise=other[2],
            gain=other[3],
            coverage=1.0,
            area=Cells.constant(1.0, shape),
        )
        match = Match(
            flux_scale=self.scale,
            flux_scale_error=self.doubt.scale,
            scale=Cells.constant(self.scale, shape),
            scale_error=Cells.constant(self.doubt.scale, shape),
            amplifiers=(),
            background=Cells.constant(0.0, shape),
            science_noise=noise,
            template_noise=other[2],
        )
        return Known(
            chip=chip, template=aligned, match=match, registration=registration_of(shape, self.doubt.shift)
        )

    def exposed(self, shape, rng, light=(0.0, 0.0), flags=(None, None)):
        """Return the pair of one exposure each of ``light`` (science counts, template counts)."""
        shown = [
            side.shown(shape, part, rng)
            for side, part in zip((self.science, self.template), light, strict=True)
        ]
        return self.known(*shown, flags)


def run(known, **options):
    return subtract(known.chip, known.template, known.match, known.registration, SubtractConfig(**options))


def resampled(how, side, shape, rng):
    """Return noise of a side after half a pixel of shift, and its covariance for unit variance before."""
    return half_moved(how, side.shown((shape[0] + 40, shape[1] + 40), 0.0, rng), shape)


def half_moved(how, big, shape):
    """Return an image 40 px larger each way moved by half a pixel ("white": by none), cut to ``shape``.

    Its pixel (y, x) was at (y + 12.5, x + 10.5), of "white" at (y + 12, x + 10); with it comes the covariance
    of white noise of unit variance so moved.
    """
    if how == "white":
        return big[12 : 12 + shape[0], 10 : 10 + shape[1]], WHITE
    if how == "bilinear":
        mixed = 0.25 * (big[:-1, :-1] + big[1:, :-1] + big[:-1, 1:] + big[1:, 1:])
        return mixed[12 : 12 + shape[0], 10 : 10 + shape[1]], bilinear_covariance(0.25, 0.25)
    if how == "spline":
        weights = np.zeros((31, 31))
        weights[15, 15] = 1
        weights = ndimage.shift(weights, (-0.5, -0.5), order=3)
        moved = ndimage.shift(big, (-0.5, -0.5), order=3)[12 : 12 + shape[0], 10 : 10 + shape[1]]
        return moved, convolve2d(weights, weights[::-1, ::-1])[20:41, 20:41]
    x, y = node_grid(shape)
    nodes = np.stack([x + 10.5, y + 12.5])
    data = resample(big.astype(np.float32), np.zeros(big.shape, np.uint16), nodes, shape)[0]
    return data, noise_covariance(nodes)
