"""Find the map from science pixels to template pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ks4diff.numerics import polynomial
from ks4diff.numerics.neighbours import mutual_matches
from ks4diff.numerics.pattern import Limits
from ks4diff.numerics.pixel_map import PixelMap
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.registration import Registration
from ks4diff.stages.register_cells import CellConfig, refined, told_rms, verdicts
from ks4diff.stages.register_fit import Fit, FitConfig, fit_map
from ks4diff.stages.register_guess import Guess, Lists, guesses, settled, star_lists, verified
from ks4diff.stages.register_stamps import StampConfig, on_pixels
from ks4diff.stages.starting_map import sky_turn, through_sky


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """Limits of the unknown geometry and of what is believed."""

    ahead: str = ""  # folder of SCAMP .ahead files to start KMTNet chips from; "" takes our own table
    max_scale: float = 0.05  # fraction; KMTNet's outer corners are 4.4 % finer than a 0.4" tile
    max_rotation_deg: float = 2.0
    wcs_scale: float = 0.015  # by which the scale may differ from what two WCS imply
    wcs_rotation_deg: float = 1.5  # KMTNet chips are turned by up to 1 degree
    wcs_shift_pix: float = 700.0  # 2 arcminutes of pointing, and 1 degree about a centre 1.5 degrees away
    depths: tuple[int, ...] = (50, 150, 400)  # brightest science stars that vote, in turn
    match_radius_pix: float = 2.5
    accept_log_chance: float = -12.0  # ln of the odds of chance, after counting every map that was tried
    min_share: float = 0.1  # of the bright stars on the template; clumps match by more than random chance
    min_matched: int = 15
    min_matched_small: int = 6  # of images smaller than one 1k cell: parts and test frames
    telling_snr: float = 50.0  # in both images, of stars that tell the rms ...
    telling_noise_pix: float = 0.03  # ... and their own noise at most: half of the 0.06 px that is wanted
    sure_fraction: float = 0.5  # of the stars that could match; with so many no other guess is tried
    grow_stars: int = 4000  # brightest, with which the map grows to the corners; then all stars count
    fit: FitConfig = field(default_factory=FitConfig)
    cells: CellConfig = field(default_factory=CellConfig)
    stamps: StampConfig = field(default_factory=StampConfig)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A map that was grown to all stars from ``start``, its pairs as rows of the lists."""

    start: PixelMap
    fit: Fit
    pairs: tuple[np.ndarray, np.ndarray]
    method: str
    compared: np.ndarray  # bool: pairs whose places were compared by the images' pixels

    @property
    def n(self) -> int:
        return int((self.fit.weight > 0).sum())


def register(science: CalibratedChip, template: CalibratedChip, config: RegisterConfig) -> Registration:
    """Return the map from science to template pixels, by the stars that both images show.

    First guesses are tried in order: both WCS, the same moved as the stars vote, no shift at all, then votes
    alone. Those whose matches cannot be chance are grown to all stars, until one holds a fair share of all
    that could match: a guess that is right in one corner alone is not chance either, and only a better one
    tells. Else the one with most matches is taken. At last the best stars' places are compared by the pixels
    of both images (`on_pixels`), and the map is fitted again. For ``rms_pix`` see `Registration`.

    Raises
    ------
    SkipChip
        When no guess matches: the images show different fields, or too few stars in common.

    """
    lists = star_lists(science, template, through_wcs(science, template))
    found, most = None, 0
    for guess in guesses(lists, _limits(config), config.depths, config.match_radius_pix):
        start, n_bright, log_chance = verified(guess, config.match_radius_pix, config.min_share)
        most = max(most, n_bright)
        if log_chance > config.accept_log_chance:
            continue
        if guess.from_wcs:
            start = _turned(start, science, template, guess.lists, config)
        grown = _grown(start, lists, guess.method, config)
        if grown is None or not _plausible(grown, guess, lists):
            continue
        if found is None or grown.n > found.n:
            found = grown
        if found.n >= config.sure_fraction * _could_match(found, lists):
            break
    if found is None:
        raise SkipChip(
            "the two images do not show the same stars",
            n_science=float(len(lists.a)),
            n_template=float(len(lists.b)),
            n_matched=float(most),
        )
    small = lists.shape[0] * lists.shape[1] < 1024**2
    needed = config.min_matched_small if small else config.min_matched
    if found.n < needed:
        raise SkipChip(
            "too few stars in common for a registration", n_matched=float(found.n), n_required=float(needed)
        )
    return _product(_compared(found, science, template, lists, config), science, template, lists, config)


def through_wcs(science: CalibratedChip, template: CalibratedChip) -> PixelMap | None:
    """Return the map that the two headers imply, None without two usable WCS."""
    if science.raw.wcs is None or template.raw.wcs is None:
        return None
    return through_sky(science.raw.wcs, template.raw.wcs, science.image.shape)


def _limits(config: RegisterConfig) -> tuple[Limits, Limits]:
    """Return what is unknown beside the WCS, and without them: then any overlap is tried."""
    return (
        Limits(
            scale=config.wcs_scale,
            rotation=float(np.radians(config.wcs_rotation_deg)),
            shift=config.wcs_shift_pix,
        ),
        Limits(scale=config.max_scale, rotation=float(np.radians(config.max_rotation_deg)), shift=np.inf),
    )


def _turned(
    start: PixelMap,
    science: CalibratedChip,
    template: CalibratedChip,
    lists: Lists,
    config: RegisterConfig,
) -> PixelMap:
    """Return the map that the two WCS imply once the pointing is put right, where stars agree with it.

    An affine map of wrong pixels has the distortion in the wrong place; a rotation of the sky has not.
    """
    wcs = science.raw.wcs, template.raw.wcs
    turn = sky_turn(start, *wcs, lists.shape)
    exact = None if turn is None else through_sky(*wcs, lists.shape, turn)
    if exact is None:
        return start
    again, pairs = settled(exact, lists, 4 * config.match_radius_pix, config.match_radius_pix)
    _, before = settled(start, lists, config.match_radius_pix, config.match_radius_pix)
    return again if len(pairs[0]) >= len(before[0]) else start


def _grown(start: PixelMap, lists: Lists, method: str, config: RegisterConfig) -> _Found | None:
    """Return the registration through all stars that it matches itself, starting from a first guess.

    A guess without distortion matches only the middle of a field; each polynomial through the matches reaches
    farther out, until no more stars join.
    """
    rows = lists.bright(config.grow_stars, deeper=3.0)
    everything = np.arange(len(lists.a)), np.arange(len(lists.b))
    radius, near, found, before = config.match_radius_pix, start, None, 0
    for k in range(12):
        last = k == 11 or (found is not None and found.n <= 1.01 * before)
        if last:
            # a few times the bright stars' scatter: among 100,000 stars a wrong one is never far
            noise = float(np.median(found.fit.sigma[found.fit.weight > 0]))
            rows, radius = everything, float(np.clip(6 * noise, min(1.0, radius), radius))
        before = 0 if found is None else max(found.n, before)
        i, j = mutual_matches(near.at(lists.a[rows[0]]), lists.b[rows[1]], radius)
        pairs = rows[0][i], rows[1][j]
        fit = fit_map(start, near, lists.points(pairs), lists.expected(pairs), radius, config.fit)
        if fit is None:
            return None
        near = fit.map
        found = _Found(
            start=start, fit=fit, pairs=pairs, method=method, compared=np.zeros(len(pairs[0]), dtype=bool)
        )
        if last:
            break
    return found


def _plausible(found: _Found, guess: Guess, lists: Lists) -> bool:
    """Return whether a map keeps to the limits of scale and rotation in its middle, and folds nowhere."""
    u, v = np.meshgrid([-1.0, -0.5, 0.0, 0.5, 1.0], [-1.0, -0.5, 0.0, 0.5, 1.0])
    size = np.array([lists.shape[1], lists.shape[0]]) / 2
    points = np.stack([u.ravel(), v.ravel()], axis=1) * (size - 1) + found.fit.map.centre
    steps = [
        (m.at(points + d) - m.at(points - d)) / 2 for m in (found.fit.map, guess.base) for d in np.eye(2)
    ]
    new, old = np.stack(steps[:2], axis=2), np.stack(steps[2:], axis=2)
    change = new @ np.linalg.inv(old)
    determinant = np.linalg.det(change)
    middle = change[len(change) // 2]
    scale = float(np.sqrt(abs(np.linalg.det(middle))))
    angle = float(np.arctan2(middle[1, 0] - middle[0, 1], middle[0, 0] + middle[1, 1]))
    held = abs(scale - 1) <= 1.1 * guess.limits.scale and abs(angle) <= 1.1 * guess.limits.rotation
    # over a chip KMTNet's pixels change by 7 % in area
    return held and bool((np.abs(determinant / determinant[len(determinant) // 2] - 1) < 0.25).all())


def _could_match(found: _Found, lists: Lists) -> int:
    """Return how many stars of the shorter list lie where the other image is."""
    landed = found.fit.map.at(lists.a)
    rows, columns = lists.template_shape
    ours = ((landed >= 0) & (landed < [columns, rows])).all(axis=1)
    low, high = landed.min(axis=0), landed.max(axis=0)
    theirs = ((lists.b >= low) & (lists.b <= high)).all(axis=1)
    return int(min(ours.sum(), theirs.sum()))


def _compared(
    found: _Found, science: CalibratedChip, template: CalibratedChip, lists: Lists, config: RegisterConfig
) -> _Found:
    """Return the registration with the best stars' places compared by the pixels of both images.

    As it was where those places scatter more about their map than the lists' about theirs.
    """
    ours, expected = lists.a[found.pairs[0]], lists.expected(found.pairs)
    places = on_pixels(science, template, found.fit.map, ours, expected, config.stamps)
    compared = np.isfinite(places).all(axis=1)
    theirs = np.where(compared[:, None], places, lists.b[found.pairs[1]])
    fit = fit_map(found.start, found.fit.map, (ours, theirs), expected, config.match_radius_pix, config.fit)
    if fit is None or not compared.any():
        return found
    # where noise and not neighbours moves stars, a centroid can be better, most of all with unequal seeing
    by_pixels, by_lists = (
        np.median((np.hypot(*one.residual.T) / expected)[compared]) for one in (fit, found.fit)
    )
    return replace(found, fit=fit, compared=compared) if by_pixels <= by_lists else found


def _telling(
    found: _Found, chips: tuple[CalibratedChip, CalibratedChip], lists: Lists, config: RegisterConfig
) -> np.ndarray:
    """Return which pairs are bright in both images, and their own noise small beside what is looked for."""
    telling = lists.expected(found.pairs) < config.telling_noise_pix
    for chip, noise, rows in zip(chips, (lists.noise_a, lists.noise_b), found.pairs, strict=True):
        # by King 1983 a position's noise is the PSF's sigma over the S/N
        telling &= noise[rows] < chip.psf.fwhm_pix / 2.3548 / config.telling_snr
    return telling


def _product(
    found: _Found, science: CalibratedChip, template: CalibratedChip, lists: Lists, config: RegisterConfig
) -> Registration:
    """Return the registration with its local refinement and its verdicts."""
    fit, points = found.fit, lists.a[found.pairs[0]]
    correction = refined(fit, points, lists.shape, config.cells)
    residual = fit.residual if correction is None else fit.residual - correction.at(*points.T).T
    kept = fit.weight > 0
    square = 0.5 * (residual**2).sum(axis=1)
    weighted = float(np.sqrt(np.average(square[kept], weights=fit.sigma[kept] ** -2)))
    telling, noise = _telling(found, (science, template), lists, config), lists.expected(found.pairs)
    rms, scatter = told_rms(residual, found.compared & telling, noise)
    if np.isnan(rms):
        _, scatter = told_rms(residual, telling, noise)
    return Registration(
        coefficients=fit.map.coefficients,
        degree=fit.map.degree,
        centre=fit.map.centre,
        scale=fit.map.scale,
        n_matched=int(kept.sum()),
        rms_pix=weighted if np.isnan(rms) else rms,
        rms_weighted_pix=weighted,
        scatter_pix=scatter,
        method=found.method,
        pairs=np.stack([lists.rows_a[found.pairs[0]], lists.rows_b[found.pairs[1]]])[:, kept],
        correction=correction,
        **verdicts(fit, points, residual, lists.shape, config.cells),
    )


def template_position(registration: Registration, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return float64 [2, n]: template pixels of science pixels (x, y)."""
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    u = (x - registration.centre[0]) / registration.scale
    v = (y - registration.centre[1]) / registration.scale
    landed = polynomial.evaluate(registration.coefficients, u, v, registration.degree)
    return landed if registration.correction is None else landed + registration.correction.at(x, y)
