"""Subtract simulated chips and keep the features and tags of what is found: a training set, file by file."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from ks4diff.io.atomic import atomic_path
from ks4diff.pipeline.config import PipelineConfig
from ks4diff.pipeline.pair import calibrated, match_chips, subtract_chips, subtract_matched
from ks4diff.pipeline.rb import RULES
from ks4diff.pipeline.report import Stopwatch
from ks4diff.products.candidates import REJECTING_BITS
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.errors import SkipChip
from ks4diff.products.features import VECTOR_NAME, definitions_hash
from ks4diff.products.subtracted import SubtractedChip
from ks4diff.stages.features import FeaturesConfig, candidate_features, scene_of
from ks4diff.stages.inject import INJECTED, InjectConfig, inject
from ks4diff.stages.mosaic import as_template
from ks4diff.stages.sim.config import SimulateConfig
from ks4diff.training.skies import Drawn, SkiesConfig, chip_config, draw
from ks4diff.training.tags import REAL, UNCLEAR, TagsConfig, tag_candidates

log = logging.getLogger(__name__)

BRIGHT_HOST_MAG = 21.5  # fainter galaxies hide nothing
HOST_FWHM_PIX = 5.0
ROW = np.dtype(
    [
        ("real", "?"),
        ("tag", "U16"),
        ("round", "i1"),  # of injection; -1 the template moved
        ("x", "f4"),
        ("y", "f4"),
        ("scorr", "f4"),
        (
            "expected",
            "f4",
        ),  # |S_corr| that the truth expects, of injections S/N on the sky alone; NaN of bogus
        ("is_positive", "?"),
        ("flags", "i4"),
        ("rules", "f4"),  # the score by rules
        ("mag", "f4"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """How chips become rows of a training set."""

    skies: SkiesConfig = field(default_factory=SkiesConfig)
    tags: TagsConfig = field(default_factory=TagsConfig)
    rounds: int = 1  # of injection into each exposure
    threshold: float = 4.5  # |S_corr|: noise peaks below 5 show the model what noise is
    # places: 45 % of the added ones anywhere, 15 % beside stars, 40 % on galaxies following their light
    inject: InjectConfig = field(
        default_factory=lambda: InjectConfig(snr_range=(4.0, 50.0), star_share=0.15, galaxy_share=0.4)
    )
    shifted_share: float = 0.25  # of chips that are also subtracted with the template moved ...
    shifted_pix: tuple[float, float] = (0.3, 1.0)  # ... by this much: dipoles of every size
    most_shifted: int = 300  # rows of such a chip: they would outnumber all others


def set_digest(config: HarvestConfig, seed: int) -> str:
    """Return 12 hex digits that name a training set: configuration, seed and feature definitions."""
    text = json.dumps([asdict(config), seed, definitions_hash(), VECTOR_NAME], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def harvest(folder: Path, config: HarvestConfig, seed: int, numbers: range) -> Iterator[tuple[int, Path]]:
    """Yield (number, file) of each chip, drawn and subtracted unless ``folder`` has its file already.

    A chip that the pipeline refuses leaves a file without rows that holds the reason.
    """
    own = folder / set_digest(config, seed)
    for number in numbers:
        path = own / f"chip{number:05d}.npz"
        if not path.exists():
            made = harvest_chip(chip_config(config.skies, seed, number), config)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **made)
        yield number, path


def harvest_chip(sim: SimulateConfig, config: HarvestConfig) -> dict[str, np.ndarray]:
    """Return "features" float32 [n, 60], "rows" [n] of `ROW` and the facts of one chip."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            drawn = draw(sim, harvest_pipeline(config), Path(folder))
        except SkipChip as skip:
            return _packed([], {"group": "", "site": sim.site, "seed": sim.seed, "reason": str(skip)})
    return harvest_drawn(drawn, config)


def harvest_pipeline(config: HarvestConfig) -> PipelineConfig:
    """Return the pipeline's configuration with the harvest's threshold; scored by rules."""
    plain = PipelineConfig()
    return replace(
        plain,
        detect=replace(plain.detect, threshold=config.threshold),
        score=replace(plain.score, model=RULES),
    )


def harvest_drawn(drawn: Drawn, config: HarvestConfig) -> dict[str, np.ndarray]:
    """Return what `harvest_chip` does, of a chip that is drawn already."""
    pipeline, sim = harvest_pipeline(config), drawn.config
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    facts = {"group": drawn.group, "site": sim.site, "band": sim.band, "reason": "", "seed": sim.seed}
    try:
        template = as_template(drawn.ready.part)
        plain = calibrated(drawn.ready.raw, pipeline)
        for number in range(config.rounds):
            done, injected = _injected(plain, template, drawn, config, number)
            facts |= _facts(done, sim)
            parts.append(_rows(done, drawn, injected, config, number))
        if np.random.default_rng([sim.seed, 62]).random() < config.shifted_share:
            parts.append(_shifted(plain, template, drawn, pipeline, config))
    except SkipChip as skip:
        facts["reason"] = str(skip)
        log.warning("chip %d: %s", sim.seed, skip)
    return _packed(parts, facts)


def _packed(parts: list[tuple[np.ndarray, np.ndarray]], facts: dict) -> dict[str, np.ndarray]:
    features = np.concatenate([part[0] for part in parts] or [np.zeros((0, 60), dtype=np.float32)])
    rows = np.concatenate([part[1] for part in parts] or [np.zeros(0, ROW)])
    return {"features": features, "rows": rows, **{name: np.array(value) for name, value in facts.items()}}


def _facts(done: SubtractedChip, sim: SimulateConfig) -> dict:
    return {
        "seeing": done.chip.psf.fwhm_pix,
        "template_seeing": done.template.psf.fwhm_pix,
        "mpix": done.chip.image.data.size / 1e6,
        "density": sim.sky.density_deg2,
        "quality": done.quality.verdict,
    }


def _injected(
    plain: CalibratedChip, template: CalibratedChip, drawn: Drawn, config: HarvestConfig, number: int
) -> tuple[SubtractedChip, np.ndarray]:
    """Return the subtraction after sources were added to the image as read, and their table."""
    pipeline = harvest_pipeline(config)
    hosts = drawn.truth["sources"]
    hosts = hosts[(hosts["kind"] == b"galaxy") & (hosts["mag"] < BRIGHT_HOST_MAG)]
    galaxies = np.array([hosts["x"], hosts["y"], np.full(len(hosts), HOST_FWHM_PIX)])
    wanted = replace(config.inject, seed=drawn.config.seed * 10 + number)
    changed, injected = inject(drawn.ready.raw, plain, wanted, galaxies=galaxies)
    return subtract_chips(calibrated(changed, pipeline), template, pipeline, Stopwatch()), injected


def _rows(
    done: SubtractedChip, drawn: Drawn, injected: np.ndarray, config: HarvestConfig, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (features, rows) of a subtraction's candidates: all of round 0, of others what was added."""
    table = done.candidates.table
    tags = tag_candidates(
        table,
        drawn.truth,
        injected,
        config.tags,
        fwhm=done.chip.psf.fwhm_pix,
        exptime_s=drawn.config.exptime_s,
    )
    added = np.char.startswith(tags.tag, "added_")
    features = candidate_features(done.candidates, scene_of(done), FeaturesConfig(), uncounted=added)
    rows = np.zeros(len(table), ROW)
    rows["real"], rows["tag"], rows["expected"] = np.isin(tags.tag, REAL), tags.tag, tags.expected
    rows["round"], rows["rules"] = number, table["rb"]
    for name in ("x", "y", "scorr", "is_positive", "flags", "mag"):
        rows[name] = table[name]
    keep = (tags.tag != UNCLEAR) & (added if number > 0 else True)
    return features[keep], rows[keep]


def _shifted(
    plain: CalibratedChip,
    template: CalibratedChip,
    drawn: Drawn,
    pipeline: PipelineConfig,
    config: HarvestConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Return bogus of a registration gone wrong: the template moved after its map was found."""
    rng = np.random.default_rng([drawn.config.seed, 63])
    size, angle = rng.uniform(*config.shifted_pix), rng.uniform(0, 2 * np.pi)
    move = (size * np.sin(angle), size * np.cos(angle))
    clock = Stopwatch()
    chip, aligned, registration, matched = match_chips(plain, template, pipeline, clock)
    moved = ndimage.shift(aligned.image.data, move, order=3, mode="nearest").astype(np.float32)
    aligned = replace(aligned, image=replace(aligned.image, data=moved))
    done = subtract_matched((chip, aligned, registration, matched), pipeline, clock)
    features, rows = _rows(done, drawn, np.zeros(0, INJECTED), config, 0)
    keep = ~rows["real"]
    features, rows = features[keep], rows[keep]
    unflagged = (rows["flags"] & REJECTING_BITS) == 0
    order = np.lexsort((rng.random(len(rows)), ~unflagged))[: config.most_shifted]
    rows = rows[order]
    rows["tag"], rows["round"] = "shifted", -1
    return features[order], rows
