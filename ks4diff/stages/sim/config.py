"""What a simulated night looks like; numbers are those of KMTNet, source named beside each group."""

from __future__ import annotations

from dataclasses import dataclass, field

from ks4diff.products.ids import CHIPS, Site

# facts/kmtnet.md section 8: B and R zero points are guesses
ZEROPOINT_ADU_120S = {"B": 28.1, "V": 28.3, "R": 28.6, "I": 28.7}
DARK_SKY_ADU_120S = {"B": 25.0, "V": 60.0, "R": 165.0, "I": 365.0}
MOON_SKY_ADU_120S = {"B": 3500.0, "V": 3500.0, "R": 3500.0, "I": 4000.0}
SEEING_MEDIAN_ARCSEC = {Site.CTIO: 1.21, Site.SAAO: 1.54, Site.SSO: 1.71}
SEEING_LOG_SIGMA = {Site.CTIO: 0.26, Site.SAAO: 0.23, Site.SSO: 0.28}  # from the 5 and 95 % points
BIAS_ADU = {Site.CTIO: 2020.0, Site.SAAO: 1750.0, Site.SSO: 1675.0}
ZEROPOINT_GAIN = 1.88  # electrons per count of the zero points above (CTIO)


@dataclass(frozen=True, kw_only=True)
class SkyConfig:
    """What is in the sky; densities per square degree or per million 0.395" pixels (0.012 square degrees)."""

    density_deg2: float = 70_000.0  # stars and galaxies brighter than density_mag: the DR1 mean
    density_mag: float = 22.5  # AB, depth of DR1 to which the mean density belongs
    star_fraction: float = 0.5  # of those; rises towards the plane
    bright_mag: float = 12.0  # saturates and bleeds over some 300 pixels
    faint_mag: float = 24.0  # 2 mag below one exposure's limit: fainter sources are smooth sky
    star_slope: float = 0.25  # d log10 N / d mag at high latitude
    galaxy_slope: float = 0.40  # between Euclidean 0.6 and the faint 0.3
    galaxy_bright_mag: float = 15.0  # brighter galaxies are larger than a stamp
    galaxy_r20_arcsec: float = 1.2  # half-light radius at 20 mag; shrinks by 10 % per magnitude
    hostless_mpix: float = 3.0  # transients on nothing
    hosted_mpix: float = 4.0  # on galaxies, following their light
    nuclear_mpix: float = 2.0  # on galaxies' centres
    variable_mpix: float = 2.0  # stars that changed between the epochs
    moving_mpix: float = 1.0  # asteroids
    fading_mpix: float = 1.0  # bright in the template, gone in the science images
    transient_bright_mag: float = 18.0  # AB; uniform between this and the next
    transient_faint_mag: float = 23.0  # half a magnitude below the 5-sigma limit of a good exposure
    moving_arcsec_hour: tuple[float, float] = (8.0, 60.0)  # trans-Neptunian-slow to near-Earth-fast


@dataclass(frozen=True, kw_only=True)
class OpticsConfig:
    """Seeing, PSF and pointing."""

    seeing_arcsec: float = 0.0  # 0 draws from the site's lognormal distribution
    seeing_range_arcsec: tuple[float, float] = (0.8, 2.6)  # the distribution is cut here
    core_beta: float = 3.5  # Moffat wings of real seeing-limited images
    wing_fraction: float = 0.03  # of the light in an aureole ...
    wing_beta: float = 1.8
    wing_ratio: float = 4.0  # ... this many times wider
    fwhm_variation: float = 0.05  # over a chip, from centre to corner
    ellipticity: float = 0.02  # common to the exposure: tracking
    ellipticity_variation: float = 0.03  # over a chip: optics
    psf_node_pix: int = 2400  # PSFs are drawn about this far apart
    pointing_error_arcsec: tuple[float, float] = (6.0, 10.0)  # section 5: worse than 6", spec 10" rms
    rotation_deg: float = 0.05  # rms of the camera's angle from exposure to exposure, on top of the chips'
    throughput_variation: float = 0.03  # over a chip: illumination that flats did not take out


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What the CCDs and their electronics add (section 6 and 7)."""

    gain_sigma: float = 0.07  # relative, from amplifier to amplifier
    bias_sigma_adu: float = 100.0
    undershoot: float = 0.004  # overscan falls by this fraction of the row's mean signal
    saturation_adu: float = 60_000.0  # full well above bias
    saturation_sigma: float = 0.002  # relative, from column to column
    sky_gradient: float = 0.03  # relative, peak to peak over a chip
    moon: float = 0.0  # 0 dark to 1 full
    fringe: float = 0.007  # of the sky, I band only
    flat_residual: float = 0.002  # rms per pixel after flat-fielding
    cosmic_rays_mpix: float = 50.0
    cosmic_ray_log_electrons: float = 6.8  # ln of the median charge per pixel of track
    cosmic_ray_log_sigma: float = 0.9
    cosmic_ray_length_pix: float = 4.0  # mean of an exponential; one in 20 is five times longer
    bad_columns: float = 6.0  # per chip
    hot_pixels_mpix: float = 10.0
    dead_strip: bool = True  # seventh amplifier of N at CTIO
    crosstalk: tuple[float, float] = (1e-4, 5e-4)  # residual coefficients after KASI's correction
    crosstalk_min_adu: float = 2000.0  # fainter aggressors leave less than 1 count
    trails: float = 0.3  # satellite trails per chip and exposure
    trail_sigma: tuple[float, float] = (1.0, 12.0)  # brightness of their ridge in sky sigmas


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """How the KS4-like tile is made."""

    exposures: int = 4  # dithered 120-s frames
    combine: str = "median"  # or mean
    seeing_arcsec: float = 0.0  # 0: drawn for each exposure, from the better half of the site's nights
    pixel_arcsec: float = 0.4
    zeropoint: float = 30.0
    background_mesh_pix: int = 128  # SWarp BACK_SIZE of the KS4 pipeline
    zeropoint_error: float = 0.01  # rms per exposure, magnitudes
    gain_error: float = 0.003  # of the per-amplifier matching
    cosmic_rays_kept: float = 0.03  # tracks that cleaning missed
    margin_pix: int = 128  # around a chip when each chip has its own tile
    tile_pix: int = 0  # side of one tile on the field centre (22000 at KS4); 0: one tile per chip


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """One night."""

    seed: int = 1
    site: str = "CTIO"
    band: str = "R"
    night: str = "20250207"
    chips: tuple[str, ...] = CHIPS
    size: tuple[int, int] = (2048, 2048)  # columns, rows; up to 9216x9232
    offset: tuple[int, int] = (-1, -1)  # corner of the cut-out on the real chip; -1 takes the middle
    form: str = "trimmed"
    compress: str = ""  # .gz or .fz
    exposures: int = 4  # 0, 4' east, 7' north, both; then again
    dither: bool = True  # False: every exposure at the field centre
    exptime_s: float = 120.0
    cadence_s: float = 177.0
    start_utc_hours: float = -1.0  # of the first exposure; -1 takes the middle of the site's night
    first_number: int = 4413
    fields: tuple[str, ...] = ("1354.115-38",)  # FFFF.RRR-DD, of those centred on whole degrees
    sky: SkyConfig = field(default_factory=SkyConfig)
    optics: OpticsConfig = field(default_factory=OpticsConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.site not in Site.__members__:
            raise ValueError(f"site must be one of {', '.join(Site)}, got {self.site!r}")
        if self.band not in ZEROPOINT_ADU_120S:
            raise ValueError(f"band must be one of {', '.join(ZEROPOINT_ADU_120S)}, got {self.band!r}")
        if not self.chips or set(self.chips) - set(CHIPS) or len(set(self.chips)) < len(self.chips):
            raise ValueError(f"chips must be different ones of {', '.join(CHIPS)}, got {self.chips}")
        width, height = self.size
        if width % 8 or not (256 <= width <= 9216 and 128 <= height <= 9232):
            raise ValueError(
                f"size must be 256x128 to 9216x9232 with 8 equal amplifiers, got {width}x{height}"
            )
        if self.exposures < 1 or not 3 <= self.template.exposures <= 8:
            raise ValueError("at least 1 exposure, and 3 to 8 in a template")
        if self.template.combine not in ("median", "mean"):
            raise ValueError(f"combine must be median or mean, got {self.template.combine!r}")
        if self.compress not in ("", ".gz", ".fz"):
            raise ValueError(f"compress must be empty, .gz or .fz, got {self.compress!r}")
