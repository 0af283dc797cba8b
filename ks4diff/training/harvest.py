"""Subtract simulated fields and keep the features and tags of what is found: a training set, file by file."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ks4diff.io.atomic import atomic_path
from ks4diff.numerics.features import N_FEATURES
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
from ks4diff.training.skies import SITES, Drawn, SkiesConfig, draw_field, field_config
from ks4diff.training.tags import CHANGE, REAL, UNCLEAR, TagsConfig, tag_candidates

log = logging.getLogger(__name__)

BRIGHT_HOST_MAG = 21.5  # fainter galaxies hide nothing
HOST_FWHM_PIX = 5.0
ROW = np.dtype(
    [
        ("night", "i1"),
        ("round", "i1"),  # of injection; -1 the template spoilt
        ("real", "?"),
        ("tag", "U16"),
        ("x", "f4"),
        ("y", "f4"),
        ("scorr", "f4"),
        ("flags", "i4"),
        ("rules", "f4"),  # the score by rules
    ]
)
# all that changed, found or not; ``row`` counts the rows of the whole field
CHANGES = np.dtype([("night", "i1"), ("round", "i1"), *((name, CHANGE[name]) for name in CHANGE.names)])
NIGHT = np.dtype(
    [
        ("night", "i1"),
        ("group", "U40"),
        ("seeing", "f4"),  # pixels, FWHM
        ("template_seeing", "f4"),
        ("mpix", "f4"),
        ("hits_mpix", "f4"),
        ("trails", "i2"),
        ("quality", "U8"),
        ("reason", "U200"),  # why there is nothing
    ]
)


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """How fields become rows of a training set."""

    skies: SkiesConfig = field(default_factory=SkiesConfig)
    tags: TagsConfig = field(default_factory=TagsConfig)
    rounds: int = 1  # of injection into each exposure
    threshold: float = 4.5  # |S_corr|: noise peaks below 5 show the model what noise is
    # places: 45 % of the added ones anywhere, 15 % beside stars, 40 % on galaxies following their light; the
    # template's noise leaves about 50 of an S/N of 60
    inject: InjectConfig = field(
        default_factory=lambda: InjectConfig(
            per_mpix=10.0, snr_range=(4.0, 60.0), even_in_log=False, star_share=0.15, galaxy_share=0.4
        )
    )
    # nights that are also subtracted with the template spoilt after all was fitted, half of them moved, half
    # blurred: residuals of stars and galaxies that no flag rejects are too rare in good subtractions to learn
    spoilt_share: float = 0.1
    shifted_pix: tuple[float, float] = (0.1, 0.8)
    blurred_pix: tuple[float, float] = (0.3, 0.8)  # sigma; adds 2 to 13 % to a FWHM of 3.5 pixels
    most_spoilt: int = 300  # rows of such a chip: they would outnumber all others


class Part(NamedTuple):
    """Rows of one subtraction: "features" float32 [n, 66], `ROW` rows [n] and `CHANGES` [m]."""

    features: np.ndarray
    rows: np.ndarray
    changes: np.ndarray


def set_digest(config: HarvestConfig, seed: int) -> str:
    """Return 12 hex digits that name a training set: configurations, seed and feature definitions."""
    pipeline = harvest_pipeline(config).digest()
    text = json.dumps([asdict(config), seed, pipeline, definitions_hash(), VECTOR_NAME], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def set_folder(folder: Path, config: HarvestConfig, seed: int) -> Path:
    """Return where the files of a training set are."""
    return folder / set_digest(config, seed)


def harvest(folder: Path, config: HarvestConfig, seed: int, number: int) -> Path:
    """Return the file of a field, drawn and subtracted unless ``folder`` has it already.

    Nights that the pipeline refuses leave no rows but the reason.
    """
    path = set_folder(folder, config, seed) / f"field{number:05d}.npz"
    if not path.exists():
        made = harvest_field(field_config(config.skies, seed, number), config)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            told = {"site": SITES[number % len(SITES)], "definitions": definitions_hash()}
            np.savez_compressed(file, **{name: np.array(text) for name, text in told.items()}, **made)
    return path


def harvest_field(field: SimulateConfig, config: HarvestConfig) -> dict[str, np.ndarray]:
    """Return "features" float32 [n, 66], "rows" [n] of `ROW`, "changes" of `CHANGES`, "nights" of `NIGHT`."""
    parts: list[Part] = []
    nights = np.zeros(config.skies.nights, NIGHT)
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_field(config.skies, field, harvest_pipeline(config), Path(folder))
        for facts, one in zip(nights, drawn, strict=True):
            if isinstance(one, SkipChip):
                facts["reason"] = str(one)
                continue
            parts += harvest_night(one, config, facts)
    return packed(parts) | {"nights": nights}


def packed(parts: list[Part]) -> dict[str, np.ndarray]:
    """Return parts one after the other, the changes' candidates counted through."""
    empty = Part(np.zeros((0, N_FEATURES), dtype=np.float32), np.zeros(0, ROW), np.zeros(0, CHANGES))
    first = 0
    for part in parts:
        part.changes["row"][part.changes["row"] >= 0] += first
        first += len(part.rows)
    return {name: np.concatenate([getattr(p, name) for p in (empty, *parts)]) for name in Part._fields}


def harvest_pipeline(config: HarvestConfig) -> PipelineConfig:
    """Return the pipeline's configuration with the harvest's threshold; scored by rules."""
    plain = PipelineConfig()
    return replace(
        plain,
        detect=replace(plain.detect, threshold=config.threshold),
        score=replace(plain.score, model=RULES),
    )


def harvest_night(drawn: Drawn, config: HarvestConfig, facts: np.void) -> list[Part]:
    """Return the rows of one exposure and fill in its ``facts``, a row of `NIGHT`."""
    pipeline, sim = harvest_pipeline(config), drawn.config
    parts: list[Part] = []
    facts["night"], facts["group"] = drawn.night, drawn.group
    facts["hits_mpix"] = sim.detector.cosmic_rays_mpix
    facts["trails"] = (drawn.truth["artefacts"]["kind"] == b"trail").sum()
    try:
        template = as_template(drawn.ready.part)
        plain = calibrated(drawn.ready.raw, pipeline)
        for number in range(config.rounds):
            done, injected = _injected(plain, template, drawn, config, number)
            facts["seeing"], facts["template_seeing"] = done.chip.psf.fwhm_pix, done.template.psf.fwhm_pix
            facts["mpix"], facts["quality"] = done.chip.image.data.size / 1e6, done.quality.verdict
            parts.append(_part(done, drawn, injected, config, number))
        if np.random.default_rng([sim.seed, drawn.night, 62]).random() < config.spoilt_share:
            parts.append(_spoilt(plain, template, drawn, pipeline, config))
    except SkipChip as skip:
        facts["reason"] = str(skip)
        log.warning("%s: %s", drawn.group, skip)
    return parts


def _injected(
    plain: CalibratedChip, template: CalibratedChip, drawn: Drawn, config: HarvestConfig, number: int
) -> tuple[SubtractedChip, np.ndarray]:
    """Return the subtraction after sources were added to the image as read, and their table."""
    pipeline = harvest_pipeline(config)
    hosts = drawn.truth["sources"]
    hosts = hosts[(hosts["kind"] == b"galaxy") & (hosts["mag"] < BRIGHT_HOST_MAG)]
    galaxies = np.array([hosts["x"], hosts["y"], np.full(len(hosts), HOST_FWHM_PIX)])
    wanted = replace(config.inject, seed=(drawn.config.seed * 10 + drawn.night) * 10 + number)
    changed, injected = inject(drawn.ready.raw, plain, wanted, galaxies=galaxies)
    done = subtract_chips(calibrated(changed, pipeline), template, pipeline, Stopwatch())
    at = np.rint(injected["y"]).astype(int), np.rint(injected["x"]).astype(int)
    injected["snr"] = injected["flux"] / done.difference.flux_err[at]
    return done, injected


def _part(
    done: SubtractedChip, drawn: Drawn, injected: np.ndarray, config: HarvestConfig, number: int
) -> Part:
    """Return what a subtraction shows: all candidates of round 0, of others what was added."""
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
    rows["night"], rows["round"] = drawn.night, number
    rows["real"], rows["tag"], rows["rules"] = np.isin(tags.tag, REAL), tags.tag, table["rb"]
    for name in ("x", "y", "scorr", "flags"):
        rows[name] = table[name]
    keep = (tags.tag != UNCLEAR) & (added if number > 0 else True)
    changes = np.zeros(len(tags.changes), CHANGES)
    changes["night"], changes["round"] = drawn.night, number
    for name in CHANGE.names:
        changes[name] = tags.changes[name]
    if number > 0:
        changes = changes[np.char.startswith(changes["tag"], "added_")]
    seen = changes["row"] >= 0
    changes["row"][seen] = (np.cumsum(keep) - 1)[changes["row"][seen]]
    return Part(features[keep], rows[keep], changes)


def _spoilt(
    plain: CalibratedChip,
    template: CalibratedChip,
    drawn: Drawn,
    pipeline: PipelineConfig,
    config: HarvestConfig,
) -> Part:
    """Return bogus of a registration or a PSF gone wrong: the template moved or blurred after the match."""
    rng = np.random.default_rng([drawn.config.seed, drawn.night, 63])
    clock = Stopwatch()
    chip, aligned, registration, matched = match_chips(plain, template, pipeline, clock)
    data = aligned.image.data
    if rng.random() < 0.5:
        tag, size, angle = "shifted", rng.uniform(*config.shifted_pix), rng.uniform(0, 2 * np.pi)
        data = ndimage.shift(data, (size * np.sin(angle), size * np.cos(angle)), order=3, mode="nearest")
    else:
        tag = "blurred"
        data = ndimage.gaussian_filter(data, rng.uniform(*config.blurred_pix))
    aligned = replace(aligned, image=replace(aligned.image, data=data.astype(np.float32)))
    done = subtract_matched((chip, aligned, registration, matched), pipeline, clock)
    part = _part(done, drawn, np.zeros(0, INJECTED), config, 0)
    bogus = ~part.rows["real"]
    features, rows = part.features[bogus], part.rows[bogus]
    flagged = (rows["flags"] & REJECTING_BITS) != 0
    order = np.lexsort((rng.random(len(rows)), flagged))[: config.most_spoilt]
    rows = rows[order]
    rows["tag"], rows["round"] = tag, -1
    return Part(features[order], rows, np.zeros(0, CHANGES))
