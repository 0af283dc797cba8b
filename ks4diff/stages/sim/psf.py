"""PSFs that vary over a chip, and galaxies seen through them: GalSim draws the tables, once per chip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics.stamps import PHASES, add_sources, phase_table
from ks4diff.products.errors import ConfigError
from ks4diff.products.ids import Site
from ks4diff.stages.sim.config import SEEING_LOG_SIGMA, SEEING_MEDIAN_ARCSEC, OpticsConfig
from ks4diff.stages.sim.geometry import FULL_SIZE, Patch

HALF = 24  # pixels from the middle within which the PSF is drawn exactly; beyond it is smooth
SCALE_ARCSEC = 0.3952  # true, at the chip's middle


def galsim_module():
    """Return galsim, which only the extra [simulate] installs."""
    try:
        import galsim
    except ImportError:
        raise ConfigError("simulate needs GalSim: pip install 'ks4diff[simulate]'") from None
    return galsim


@dataclass(frozen=True, kw_only=True)
class PsfShape:
    """One place's PSF: FWHM of the core in pixels, and its ellipticity (reduced shear, image axes)."""

    fwhm: float
    g1: float
    g2: float


@dataclass(frozen=True, kw_only=True)
class PsfField:
    """The PSF over one patch: shapes at nodes [y][x], their tables, and where the nodes are.

    ``table``, ``grid`` and ``wings`` are as `add_sources` wants them.
    """

    shapes: tuple[tuple[PsfShape, ...], ...]
    table: np.ndarray
    grid: np.ndarray
    wings: np.ndarray
    optics: OpticsConfig

    def stamp(self, x: float, y: float, half: int, *, off: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """Return the true PSF float64 [2 half + 1]² at (x, y), its centre ``off`` from the middle pixel."""
        image = np.zeros((2 * half + 1, 2 * half + 1), dtype=np.float32)
        grid = self.grid - np.array([x - half, y - half, 0, 0])
        add_sources(
            image,
            np.array([[half + off[0]], [half + off[1]], [1.0], [2 * half]]),
            self.table,
            grid,
            self.wings,
        )
        return image.astype(np.float64)

    def reach(self, flux: np.ndarray, threshold: float) -> np.ndarray:
        """Return how many pixels from the middle a source's light falls below ``threshold`` per pixel."""
        middle = self.wings[self.wings.shape[0] // 2, self.wings.shape[1] // 2]
        radius = np.concatenate([np.arange(6, 60), np.geomspace(60, 600, 60)])
        profile = _profile(middle, radius)
        first = np.searchsorted(-profile, -threshold / np.maximum(flux, 1e-9))
        return np.ceil(radius[np.minimum(first, len(radius) - 1)])


def _profile(wing: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return wing[0] * (1 + radius**2 / wing[1]) ** -wing[2] + wing[3] * (1 + radius**2 / wing[4]) ** -wing[5]


def seeing(optics: OpticsConfig, site: Site, rng: np.random.Generator, *, better: bool = False) -> float:
    """Return one exposure's FWHM in arcseconds; ``better`` keeps to the sharper half of the nights."""
    middle, sigma = SEEING_MEDIAN_ARCSEC[site], SEEING_LOG_SIGMA[site]
    z = rng.normal()
    value = middle * np.exp(sigma * (-abs(z) if better else z))
    return float(np.round(np.clip(value, *optics.seeing_range_arcsec), 4))


@dataclass(frozen=True, kw_only=True)
class OpticalState:
    """What one exposure and chip have in common: how FWHM and ellipticity run over the real chip."""

    fwhm_pix: float
    bend: tuple[float, float, float]  # relative change of the FWHM along x, along y, with radius²
    shear: np.ndarray  # [2, 3]: (g1, g2) as constant, per x, per y


def optical_state(
    optics: OpticsConfig, fwhm_arcsec: float, exposure_key: list[int], chip_key: list[int]
) -> OpticalState:
    """Draw the state; the ellipticity of tracking is common to the exposure's chips."""
    common, own = np.random.default_rng([31, *exposure_key]), np.random.default_rng([32, *chip_key])
    angle, amount = common.uniform(0, 2 * np.pi), optics.ellipticity * common.uniform(0.5, 1.5)
    shear = np.zeros((2, 3))
    shear[:, 0] = amount * np.cos(angle), amount * np.sin(angle)
    shear[:, 1:] = own.uniform(-1, 1, (2, 2)) * optics.ellipticity_variation / np.sqrt(2)
    v = optics.fwhm_variation
    bend = (float(own.uniform(-v, v) / 2), float(own.uniform(-v, v) / 2), float(own.uniform(0, v) / 2))
    return OpticalState(fwhm_pix=fwhm_arcsec / SCALE_ARCSEC, bend=bend, shear=np.round(shear, 6))


def shape_at(state: OpticalState, patch: Patch, x: float, y: float) -> PsfShape:
    """Return the PSF's shape at a pixel of the patch."""
    u = 2 * (patch.x0 + x) / FULL_SIZE[0] - 1
    v = 2 * (patch.y0 + y) / FULL_SIZE[1] - 1
    a, b, c = state.bend
    g = state.shear @ np.array([1.0, u, v])
    return PsfShape(
        fwhm=state.fwhm_pix * (1 + a * u + b * v + c * (u * u + v * v)), g1=float(g[0]), g2=float(g[1])
    )


def draw_psf_field(optics: OpticsConfig, state: OpticalState, patch: Patch) -> PsfField:
    """Return the patch's PSF tables."""
    nx, ny = (max(2, int(np.ceil(n / optics.psf_node_pix)) + 1) for n in (patch.columns, patch.rows))
    step = ((patch.columns - 1) / (nx - 1), (patch.rows - 1) / (ny - 1))
    shapes = tuple(
        tuple(shape_at(state, patch, i * step[0], j * step[1]) for i in range(nx)) for j in range(ny)
    )
    wings = np.array([[_wings(optics, shape) for shape in row] for row in shapes])
    table = np.array(
        [
            [_core_table(optics, shape, wing) for shape, wing in zip(*pair, strict=True)]
            for pair in zip(shapes, wings, strict=True)
        ]
    )
    return PsfField(shapes=shapes, table=table, grid=np.array([0.0, 0.0, *step]), wings=wings, optics=optics)


def _wings(optics: OpticsConfig, shape: PsfShape) -> np.ndarray:
    """Return the eight numbers of `add_sources` for this PSF: two Moffats of one ellipticity."""
    out = []
    for share, beta, ratio in (
        (1 - optics.wing_fraction, optics.core_beta, 1.0),
        (optics.wing_fraction, optics.wing_beta, optics.wing_ratio),
    ):
        alpha2 = (shape.fwhm * ratio) ** 2 / (4 * (2 ** (1 / beta) - 1))
        out += [share * (beta - 1) / (np.pi * alpha2), alpha2, beta]
    # inverse of the shear matrix, squared: r² = xᵀ A⁻² x with det 1
    s = 1 / (1 - shape.g1**2 - shape.g2**2)
    a = s * ((1 - shape.g1) ** 2 + shape.g2**2)
    b = -2 * s * shape.g2
    return np.array([*out, a, b])


def core_profile(optics: OpticsConfig, shape: PsfShape):
    """Return GalSim's profile of the core, unit flux, in pixels."""
    galsim = galsim_module()
    # stepk by default lets 0.5 % of a Moffat's light fold back
    accurate = galsim.GSParams(folding_threshold=3e-4, maximum_fft_size=16384)
    moffat = galsim.Moffat(beta=optics.core_beta, fwhm=shape.fwhm, gsparams=accurate)
    return moffat.shear(g1=shape.g1, g2=shape.g2)


def fine_side(half: int) -> int:
    """Return how many fine samples `phase_table` needs for stamps of 2 ``half`` + 1 pixels."""
    return 2 * PHASES * (half + 1) + 1


def _core_table(optics: OpticsConfig, shape: PsfShape, wing: np.ndarray) -> np.ndarray:
    """Return [S, S, n, n]: core through a pixel by GalSim, and the aureole, which no pixel blurs."""
    galsim = galsim_module()
    side = fine_side(HALF + 1)
    profile = galsim.Convolve(core_profile(optics, shape), galsim.Pixel(1.0))
    core = profile.drawImage(nx=side, ny=side, scale=1 / PHASES, method="no_pixel", dtype=np.float64).array
    fine = core * PHASES**2 * (1 - optics.wing_fraction) + aureole(wing, side)
    return phase_table(fine, HALF + 1)


def aureole(wing: np.ndarray, side: int, scale: float = 1 / PHASES) -> np.ndarray:
    """Return the wide component's density [side, side] every ``scale`` pixels, the source in the middle."""
    offset = (np.arange(side) - side // 2) * scale
    x, y = offset[None, :], offset[:, None]
    r2 = wing[6] * x * x + 2 * wing[7] * x * y + (1 + wing[7] ** 2) / wing[6] * y * y
    return wing[3] * (1 + r2 / wing[4]) ** -wing[5]
