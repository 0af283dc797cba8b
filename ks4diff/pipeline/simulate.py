"""Draw a night and write it: exposures, templates, truth, and a manifest with the checksums of all pixels."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from ks4diff import __version__
from ks4diff.io.atomic import atomic_write_bytes
from ks4diff.io.kmtnet_write import FORMS, write_exposure
from ks4diff.io.kmtnet_write_truth import write_tile, write_tile_truth, write_truth
from ks4diff.io.tile_tables import read_distortions
from ks4diff.products.errors import ConfigError
from ks4diff.products.simulated import SimulatedChip
from ks4diff.stages.sim.config import SimulateConfig
from ks4diff.stages.sim.geometry import Distortion, field_centre, patch_of, true_wcs
from ks4diff.stages.sim.night import plan_exposures, plan_tiles, simulate_chip
from ks4diff.stages.sim.sky import sky_around
from ks4diff.stages.sim.template import Contribution, MadeTile, TilePlan, make_tile

log = logging.getLogger(__name__)

SKY_MARGIN_DEG = 0.06  # beyond an image: wings, bleeds, movers
MAPPED_BYTES = 2**30  # larger stacks of planes live on disk
TEMPLATE_MJD = 58900.0  # Feb 2020, the survey's first season


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What was written: files, and per product the sha256 of its pixels or truth."""

    folder: Path
    exposures: tuple[Path, ...]
    templates: tuple[Path, ...]
    truths: tuple[Path, ...]
    checksums: Mapping[str, str]
    sources: int
    changing: int


def simulate(config: SimulateConfig, out: Path) -> Simulated:
    """Simulate a night into ``out``: raw/<night>, templates, truth and manifest.json.

    Raises
    ------
    ConfigError
        When the form is unknown, needs more chips, or GalSim is not installed.

    """
    if config.form not in FORMS:
        raise ConfigError(f"form must be one of {', '.join(FORMS)}, not {config.form!r}")
    distortion = distortions(config)
    sums: dict[str, str] = {}
    written: dict[str, list[Path]] = {"exposures": [], "templates": [], "truths": []}
    counts = [0, 0]
    for field in range(len(config.fields)):
        _simulate_field(config, field, distortion, out, (sums, written, counts))
    manifest = {
        "software": f"ks4diff {__version__}",
        "config": asdict(config),
        "sha256": dict(sorted(sums.items())),
        "files": {k: [str(p.relative_to(out)) for p in v] for k, v in written.items()},
    }
    atomic_write_bytes(out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return Simulated(
        folder=out,
        exposures=tuple(written["exposures"]),
        templates=tuple(written["templates"]),
        truths=tuple(written["truths"]),
        checksums=sums,
        sources=counts[0],
        changing=counts[1],
    )


def distortions(config: SimulateConfig) -> dict[str, Distortion]:
    """Return each chip's distortion at the site; SAAO, where none is published, takes the survey's own."""
    table = read_distortions()
    chosen = {chip: table.get((config.site, chip)) or table[("any", chip)] for chip in "KMNT"}
    return {chip: Distortion(crpix=d.crpix, cd=np.asarray(d.cd), pv=d.pv) for chip, d in chosen.items()}


def _simulate_field(
    config: SimulateConfig, field: int, distortion: Mapping[str, Distortion], out: Path, tally
) -> None:
    """Draw one field's tiles, then its exposures chip by chip."""
    sums, written, counts = tally
    centre = field_centre(config.fields[field])
    contributions: dict[str, tuple[Contribution, ...]] = {}
    for plan in plan_tiles(config, field, distortion):
        log.info("template %s %dx%d", plan.name, *plan.shape)
        made = _tile(config, plan, centre, distortion, out)
        exptime = round(made.tile.exptime)
        stem = f"ks4.{plan.name}.{config.band}.{exptime}sec.reduced.scaled.stack"
        path = out / "templates" / config.fields[field] / f"{stem}.fits"
        written["templates"].append(write_tile(path, made.tile, _image_cards(plan)))
        written["truths"].append(write_tile_truth(out / "truth" / f"{stem}.truth.fits", _rows(made)))
        sums[f"pixels/{path.stem}"] = _sha256(made.tile.data)
        for chip in config.chips if config.template.tile_pix else (plan.name.rsplit(".", 1)[1],):
            contributions[chip] = made.contributions
    for facts, exposure in plan_exposures(config, field):
        chips: list[SimulatedChip] = []
        for chip in config.chips:
            log.info("exposure %s chip %s", facts.id, chip)
            patch = patch_of(config, chip)
            wcs = true_wcs(distortion[chip], exposure.at, patch)
            catalog = _sky(config, field, centre, wcs, (patch.columns, patch.rows))
            made = simulate_chip(config, exposure, chip, catalog, distortion[chip], contributions[chip])
            chips.append(made)
            name = f"{facts.id}.{chip}"
            written["truths"].append(write_truth(out / "truth" / f"{name}.truth.fits", facts, made))
            sums[f"pixels/{name}"] = _sha256(made.counts, made.overscan, made.prescan)
            sums[f"truth/{name}"] = _sha256(_rounded(made.truth["sources"]), made.truth["artefacts"])
            counts[0] += len(made.truth["sources"])
            counts[1] += int(np.isfinite(made.truth["sources"]["expected_scorr"]).sum())
        folder = out / "raw" / facts.id.night
        written["exposures"] += write_exposure(folder, facts, chips, config.form, config.compress)


def _sky(config: SimulateConfig, field: int, centre: tuple[float, float], wcs: WCS, size: tuple[int, int]):
    return sky_around(config.sky, [config.seed, field], centre, [(wcs, *size)], SKY_MARGIN_DEG)


def _tile(
    config: SimulateConfig, plan: TilePlan, centre, distortion: Mapping[str, Distortion], out: Path
) -> MadeTile:
    """Make a tile; its planes are on disk, beside the output, when they are large."""
    field = config.fields.index(plan.field)
    catalog = _sky(config, field, centre, plan.wcs, plan.shape[::-1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".planes.", dir=out) as folder:

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            if 4 * int(np.prod(shape)) < MAPPED_BYTES:
                return np.empty(shape, dtype=np.float32)
            return np.memmap(Path(folder) / "planes", dtype=np.float32, mode="w+", shape=shape)

        return make_tile(config, plan, catalog, distortion, allocate)


def _image_cards(plan: TilePlan) -> dict[str, str | float]:
    cards: dict[str, str | float] = {"MEANMJD": TEMPLATE_MJD}
    for k, exposure in enumerate(plan.exposures, 1):
        cards[f"IMAGE{k}"] = f"simulated dither {k}"
        cards[f"FWHM{k}"] = exposure.seeing_arcsec
    return cards


def _rows(made: MadeTile) -> np.ndarray:
    """Return the tile's contributions as a table."""
    kind = [("exposure", "i4"), ("chip", "S1"), ("x0", "i4"), ("y0", "i4"), ("columns", "i4"), ("rows", "i4")]
    rows = [
        (
            c.exposure,
            c.patch.chip,
            c.patch.x0,
            c.patch.y0,
            c.patch.columns,
            c.patch.rows,
            c.seeing_arcsec,
            c.variance_e,
        )
        for c in made.contributions
    ]
    return np.array(rows, dtype=[*kind, ("seeing", "f8"), ("variance_e", "f8")])


def _rounded(rows: np.ndarray) -> np.ndarray:
    """Return the rows with floats rounded to 6 digits: machines differ in the last bits of transforms."""
    out = rows.copy()
    for name in rows.dtype.names or ():
        if rows[name].dtype.kind == "f":
            out[name] = np.round(rows[name], 3 if name.startswith("expected") else 6) + 0.0
    return out


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(
            np.ascontiguousarray(array).tobytes()
            if array.dtype.names
            else memoryview(np.ascontiguousarray(array)).cast("B")
        )
    return digest.hexdigest()
